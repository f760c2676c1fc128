"""A long history of appends to lists, and the check that it is as if serial.

Too long to try all orders; but the lists themselves tell theirs.  Each transaction
appends its own numbers to some lists and reads others.  The last read of a list shows
in which order its versions came, and every earlier read must be the beginning of it.
From that follow three kinds of edges between transactions: who wrote after whom (*ww*),
who read from whom (*wr*), who read what was there before whose write (*rw*); a fourth
leads from what had ended to what began later.  The history is as if serial if there is
no cycle.  (The method of Elle, for Jepsen's list-append.)
"""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Iterable

import sqlalchemy as sa
from sqlalchemy.ext.mutable import MutableList
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.pool import StaticPool

from sharedsession import SharedSession, critical_section

from ...conftest import leave_transactions_to_sqlalchemy
from .turns import Scheduler, schedule


class Base(DeclarativeBase):
    pass


class Lines(Base):
    """A list in a JSON value and one of child rows; each is a list of its own here."""

    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[list[int]] = mapped_column(MutableList.as_mutable(sa.JSON))
    children: Mapped[list[Line]] = relationship(order_by="Line.id")


class Line(Base):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    lines_id: Mapped[int] = mapped_column(sa.ForeignKey("lines.id"))
    number: Mapped[int]


#: A list is named by the row it is of and the attribute that has it.
Key = tuple[int, str]
KEYS: list[Key] = [(id_, name) for id_ in range(4) for name in ("value", "children")]


@dataclass
class Transaction:
    """What one transaction did and saw, and when by the clock of the run."""

    name: str
    appended: list[tuple[Key, int]] = field(default_factory=list)
    read: list[tuple[Key, tuple[int, ...]]] = field(default_factory=list)
    committed: bool = True
    began: int = 0
    ended: int = 0
    error: str | None = None


# -- the checker


def anomalies(
    transactions: list[Transaction], final: dict[Key, tuple[int, ...]]
) -> list[str]:
    """Everything that no serial order of *transactions* explains."""
    found = [f"{it.name} had {it.error}" for it in transactions if it.error]
    writer = {(key, number): it for it in transactions for key, number in it.appended}
    found += _wrong_appends(writer, final)
    for it in transactions:
        found += _wrong_reads(it, writer, final)
    if not found:
        cycle = _cycle(_edges(transactions, writer, final))
        if cycle:
            found.append("a cycle: " + " -> ".join(cycle))
    return found


def _wrong_appends(writer: Any, final: Any) -> Iterable[str]:
    for (key, number), it in writer.items():
        times = final[key].count(number)
        if times != int(it.committed):
            yield f"{number} of {it.name} is {times} times in {key}"


def _wrong_reads(it: Transaction, writer: Any, final: Any) -> Iterable[str]:
    own = [entry for entry in it.appended]
    for key, numbers in it.read:
        for number in numbers:
            by = writer.get((key, number))
            if by is None or (by is not it and not by.committed):
                yield f"{it.name} read {number} in {key}, which was undone"
        others = tuple(n for n in numbers if (key, n) not in own)
        if others != final[key][: len(others)]:
            yield f"{it.name} read {numbers} in {key}, which became {final[key]}"
        if others and writer[key, others[-1]] is not it:
            last = writer[key, others[-1]]
            all_of_last = [n for k, n in last.appended if k == key]
            if all_of_last[-1] != others[-1]:
                yield f"{it.name} read half of what {last.name} appended to {key}"


Edges = dict[str, dict[str, str]]


def _edges(
    transactions: list[Transaction], writer: Any, final: dict[Key, tuple[int, ...]]
) -> Edges:
    edges: Edges = defaultdict(dict)

    def edge(before: Transaction, after: Transaction, why: str) -> None:
        if before is not after:
            edges[before.name].setdefault(after.name, why)

    for key, numbers in final.items():
        for one, other in itertools.pairwise(numbers):
            edge(writer[key, one], writer[key, other], f"ww {key}")
    for it in transactions:
        for key, seen in it.read:
            others = [n for n in seen if writer[key, n] is not it]
            if others:
                edge(writer[key, others[-1]], it, f"wr {key}")
            after = final[key][len(others) :]
            following = [n for n in after if writer[key, n] is not it]
            if following:
                edge(it, writer[key, following[0]], f"rw {key}")
    for one, other in itertools.permutations(transactions, 2):
        if one.ended < other.began:
            edge(one, other, "time")
    return edges


def _cycle(edges: Edges) -> list[str]:
    """The names on a cycle, with why each leads to the next."""
    done: set[str] = set()
    for start in list(edges):
        path: list[str] = []
        stack = [(start, iter(edges[start]))]
        path.append(start)
        while stack:
            name, onward = stack[-1]
            after = next(onward, None)
            if after is None:
                stack.pop()
                done.add(path.pop())
            elif after in path:
                names = [*path[path.index(after) :], after]
                why = [edges[a][b] for a, b in itertools.pairwise(names)]
                return [f"{a} ({b})" for a, b in zip(names, [*why, "the first"])]
            elif after not in done:
                path.append(after)
                stack.append((after, iter(edges.get(after, {}))))
    return []


# -- the run


class Abort(Exception):
    """Ends a transaction on purpose."""


def run_appends(
    lock: str, seed: int, *, threads: int = 8, transactions: int = 40
) -> tuple[list[Transaction], dict[Key, tuple[int, ...]]]:
    """Run so many transactions in each thread; return them, and the lists at last."""
    engine = sa.create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    leave_transactions_to_sqlalchemy(engine)
    Base.metadata.create_all(engine)
    session = SharedSession(engine, lock=lock)
    session.add_all([Lines(id=id_, value=[]) for id_, name in KEYS if name == "value"])
    session.commit()
    rows = {id_: session.get_one(Lines, id_) for id_, _ in KEYS}
    scheduler = Scheduler(random.Random(f"appends {seed}"))
    clock, numbers = itertools.count(), itertools.count(1)
    done: list[Transaction] = []

    def work(thread: int) -> None:
        chance = random.Random(f"appends {seed} {thread}")
        for count in range(transactions):
            it = Transaction(f"{thread}.{count}", began=next(clock))
            scheduler.pause()
            try:
                transact(session, rows, it, chance, numbers, scheduler)
            except Abort:
                it.committed = False
            except Exception as error:
                it.error = f"{type(error).__name__}: {error}"
            it.ended = next(clock)
            done.append(it)

    for thread in range(threads):
        scheduler.add(f"thread-{thread}", lambda thread=thread: work(thread))
    schedule(session, scheduler)
    scheduler.run()
    scheduler.tasks.clear()
    try:
        session.commit()
    except sa.exc.SQLAlchemyError as error:
        done.append(Transaction("the last commit", error=type(error).__name__))
    return done, stored_lists(engine)


def stored_lists(engine: sa.Engine) -> dict[Key, tuple[int, ...]]:
    """All lists as they are in the database, whatever state the session is in."""
    driver: Any = engine.raw_connection().driver_connection
    values = dict(driver.execute("SELECT id, value FROM lines").fetchall())
    final = {}
    for id_, name in KEYS:
        if name == "value":
            final[id_, name] = tuple(json.loads(values[id_]))
        else:
            sql = "SELECT number FROM line WHERE lines_id = ? ORDER BY id"
            final[id_, name] = tuple(n for (n,) in driver.execute(sql, (id_,)))
    return final


def read(session: Any, rows: Any, key: Key, stored: bool) -> tuple[int, ...]:
    """A list, from the object or from the database."""
    id_, name = key
    if not stored and name == "value":
        return tuple(rows[id_].value)
    if not stored:
        return tuple(line.number for line in rows[id_].children)
    if name == "value":
        statement: Any = sa.select(Lines.value).where(Lines.id == id_)
        return tuple(session.scalars(statement).one())
    statement = sa.select(Line.number).where(Line.lines_id == id_).order_by(Line.id)
    return tuple(session.scalars(statement))


def append(rows: Any, key: Key, number: int, chance: random.Random) -> None:
    id_, name = key
    if name == "children":
        rows[id_].children.append(Line(number=number))
    elif chance.random() < 0.5:
        rows[id_].value.append(number)
    else:
        rows[id_].value = [*rows[id_].value, number]


def transact(
    session: Any,
    rows: Any,
    it: Transaction,
    chance: random.Random,
    numbers: Any,
    scheduler: Scheduler,
) -> None:
    kind = chance.choice(("read", "commit", "commit", "savepoint", "section"))
    with {
        "read": session.read_section,
        "section": session.critical_section,
        "commit": lambda: critical_section(session, transaction="commit"),
        "savepoint": lambda: critical_section(session, transaction="savepoint"),
    }[kind]():
        for _ in range(chance.randint(1, 4)):
            scheduler.pause()
            key = chance.choice(KEYS)
            if kind == "read" or chance.random() < 0.4:
                seen = read(session, rows, key, stored=chance.random() < 0.5)
                it.read.append((key, seen))
            else:
                number = next(numbers)
                it.appended.append((key, number))
                append(rows, key, number, chance)
        if kind == "section" and chance.random() < 0.5:
            session.commit()
        if kind in ("commit", "savepoint") and chance.random() < 0.2:
            raise Abort
