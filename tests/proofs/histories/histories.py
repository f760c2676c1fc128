"""Random small histories of several threads on one session, held to a serial order.

A history is a few *units* for each thread: critical and read sections, transaction
blocks, units of work, single operations.  It runs twice: by threads that a seed
switches between on a shared session, and by one thread, unit after unit, on a plain
``Session``.  What every unit saw, and what is left in the session and the database,
must be the same for *some* order of the units, in which a unit that had ended before
another began comes first.

``python -m tests.proofs.histories.histories --help`` compares as many as one likes.  A
seed is one history, for good: nothing but the seed decides who goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
import sqlite3
import sys
import time
import warnings
from dataclasses import dataclass, field
from typing import Any, Iterator

import sqlalchemy as sa
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    object_session,
    relationship,
)
from sqlalchemy.pool import StaticPool

from sharedsession import SharedSession, critical_section

from ...conftest import leave_transactions_to_sqlalchemy
from .serial import UNSEEN_LOSSES, Serial
from .turns import NobodyCanGoOn, Scheduler, schedule

# -- the world


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]
    entries: Mapped[list[Entry]] = relationship(order_by="Entry.id")


class Entry(Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(sa.String(20), unique=True)
    row_id: Mapped[int | None] = mapped_column(sa.ForeignKey("rows.id"))


TAKEN = "taken"


class World:
    """A fresh database with three rows, and a session that has them loaded."""

    def __init__(self, lock: str) -> None:
        self.engine = sa.create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        leave_transactions_to_sqlalchemy(self.engine)
        with self.engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            template().backup(driver)
        self.database: sqlite3.Connection = driver
        self.session = SharedSession(self.engine, lock=lock)
        self.rows = [self.session.get_one(Row, number) for number in (1, 2, 3)]
        self.rollback = self.session.rollback
        self.rollback()

    def left(self) -> Any:
        """The state of the session and of the database."""
        session = self.session
        objects = [self._loaded(row) for row in self.rows]
        sizes = len(session.new), len(session.dirty), len(session.deleted)
        before = session.in_transaction(), sizes, objects, self._stored()
        session.rollback()
        return before, self._stored()

    def _loaded(self, row: Row) -> Any:
        entries = vars(row).get("entries")
        texts = entries and [vars(entry).get("text") for entry in entries]
        return vars(row).get("value"), texts, row in self.session

    def _stored(self) -> Any:
        rows = "SELECT id, value FROM rows ORDER BY id"
        entries = "SELECT text, row_id FROM entries ORDER BY text"
        return [self.database.execute(sql).fetchall() for sql in (rows, entries)]

    def close(self) -> None:
        self.session.close()
        self.engine.dispose()


@functools.lru_cache(maxsize=None)
def template() -> sqlite3.Connection:
    engine = sa.create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        rows = [{"id": number, "value": number} for number in (1, 2, 3)]
        connection.execute(sa.insert(Row), rows)
        connection.execute(sa.insert(Entry), [{"text": TAKEN, "row_id": 1}])
    driver: Any = engine.raw_connection().driver_connection
    return driver  # type: ignore[no-any-return]


# -- steps: what a unit is made of


class Boom(Exception):
    """What a unit of an application raises."""


def texts(world: World, row: Row) -> list[str]:
    return [entry.text for entry in row.entries]


def bump(world: World, row: Row, number: int) -> int:
    row.value += number
    return row.value


def append(world: World, row: Row, text: str) -> None:
    row.entries.append(Entry(text=text))


def take(world: World, row: Row) -> str | None:
    return row.entries.pop().text if row.entries else None


def boom(world: World, *args: Any) -> None:
    raise Boom


_VALUES = sa.select(Row.id, Row.value).order_by(Row.id)
_TEXTS = sa.select(Entry.text).order_by(Entry.text)

#: Looks at what is in the rows.
READS: dict[str, Any] = {
    "value": lambda world, row: row.value,
    "in session": lambda world, row: row in world.session,
    "get": lambda world, row: world.session.get(Row, 3) is not None,
    "values": lambda world, row: [tuple(it) for it in world.session.execute(_VALUES)],
    "stored texts": lambda world, row: world.session.scalars(_TEXTS).all(),
    "count": lambda world, row: world.session.scalar(
        sa.select(sa.func.count()).select_from(Entry)
    ),
}

#: Looks at what others may do even in a read section beside others: begin, and load.
STATES: dict[str, Any] = {
    "in transaction": lambda world, row: world.session.in_transaction(),
    "is active": lambda world, row: world.session.is_active,
    "new": lambda world, row: len(world.session.new),
    "dirty": lambda world, row: len(world.session.dirty),
    "unloaded": lambda world, row: sorted(sa.inspect(row).unloaded),
}

WRITES: dict[str, Any] = {
    "set": lambda world, row, number: setattr(row, "value", number),
    "add": lambda world, row, number: world.session.add(
        Entry(text=f"new {number}", row_id=2)
    ),
    "add taken": lambda world, row, number: world.session.add(Entry(text=TAKEN)),
    "delete": lambda world, row, number: world.session.delete(world.rows[2]),
    "update": lambda world, row, number: world.session.execute(
        sa.update(Row).where(Row.id == 2).values(value=number)
    ).rowcount,
    "insert taken": lambda world, row, number: world.session.execute(
        sa.insert(Entry), [{"text": TAKEN}]
    ),
}

CHANGES: dict[str, Any] = {
    "flush": lambda world, row: world.session.flush(),
    "commit": lambda world, row: world.session.commit(),
    "expire": lambda world, row: world.session.expire(row),
    "refresh": lambda world, row: world.session.refresh(row),
    "expire all": lambda world, row: world.session.expire_all(),
}

ENDS: dict[str, Any] = {
    "rollback": lambda world, row: world.rollback(),
    "close": lambda world, row: world.session.close(),
}

#: Several operations, which only belong together inside a section.
TOGETHER: dict[str, Any] = {"texts": texts}
TOGETHER_WRITES: dict[str, Any] = {
    "bump": bump,
    "append": lambda world, row, number: append(world, row, f"text {number}"),
    "take": lambda world, row, number: take(world, row),
}

#: Touches the row only, so it is no operation of the session if the row is detached.
OF_THE_ROW = {"value", "set", "unloaded"}

FUNCTIONS = {**READS, **STATES, **WRITES, **CHANGES, **ENDS}
FUNCTIONS |= {**TOGETHER, **TOGETHER_WRITES, "boom": boom}


@dataclass(frozen=True)
class Step:
    name: str
    row: int
    number: int | None = None

    def __repr__(self) -> str:
        number = "" if self.number is None else f" {self.number}"
        return f"{self.name}({self.row}{number})"

    @property
    def writes(self) -> bool:
        return self.name in WRITES or self.name in TOGETHER_WRITES

    @property
    def ends(self) -> bool:
        return self.name in ENDS

    def take(self, world: World) -> Any:
        args = () if self.number is None else (self.number,)
        return FUNCTIONS[self.name](world, world.rows[self.row], *args)


# -- units


BLOCKS = ("critical", "read", "commit", "savepoint", "nested", "begin", "no autoflush")


@dataclass(frozen=True)
class Unit:
    """What belongs together; ``kind`` is one of ``BLOCKS``, or ``single``."""

    kind: str
    steps: tuple[Step, ...]
    #: Whether an error ends the block, or the step only.
    catches: bool = False

    def __repr__(self) -> str:
        return f"{self.kind}{'*' if self.catches else ''}{list(self.steps)}"


def outcome_of(error: BaseException) -> str:
    return type(error).__name__


def note_end(outcome: list[Any], error: BaseException) -> None:
    """A unit ended with *error*, which a step of it may have raised already."""
    if outcome[-1:] != [outcome_of(error)]:
        outcome.append(outcome_of(error))


def run_steps(world: Any, unit: Unit, seen: list[Any], took: Any = None) -> None:
    """Take the steps of a unit; what each saw is appended to *seen*."""
    for step in unit.steps:
        try:
            seen.append(step.take(world))
            if took is not None and (step.name, seen[-1]) != ("take", None):
                took(step)  # nothing to take is nothing done
        except Exception as error:
            seen.append(outcome_of(error))
            if not unit.catches or step.name == "boom":
                raise


def block_of(world: Any, kind: str) -> Any:
    session = world.session
    if kind in ("commit", "savepoint"):
        return critical_section(session, transaction=kind)  # type: ignore[arg-type]
    return {
        "critical": session.critical_section,
        "read": session.read_section,
        "nested": session.begin_nested,
        "begin": session.begin,
        "no autoflush": lambda: session.no_autoflush,
        "single": contextlib.nullcontext,
    }[kind]()


Program = tuple[tuple[Unit, ...], ...]


def make_program(seed: int) -> Program:
    """The units of each thread."""
    chance = random.Random(f"program {seed}")
    numbers = iter(range(10, 1000))
    looks = Unit("single", (Step("in transaction", 0),))  # to be told what is lost
    return tuple(
        (*(_make_unit(chance, numbers) for _ in range(chance.randint(1, 3))), looks)
        for _ in range(chance.randint(2, 3))
    )


def _make_unit(chance: random.Random, numbers: Iterator[int]) -> Unit:
    kind = chance.choice(BLOCKS + ("critical", "commit") + ("single",) * 5)

    def step(*tables: dict[str, Any]) -> Step:
        name = chance.choice([name for table in tables for name in table])
        writes = name in WRITES or name in TOGETHER_WRITES
        return Step(name, chance.randrange(3), next(numbers) if writes else None)

    if kind == "single":
        return Unit(kind, (step(READS, STATES, WRITES, WRITES, CHANGES, ENDS),))
    if kind == "read":
        steps = [step(READS, READS, TOGETHER) for _ in range(chance.randint(1, 4))]
        if chance.random() < 0.2:
            steps.append(step(WRITES))  # is refused
        return Unit(kind, tuple(steps))
    writes = (WRITES, TOGETHER_WRITES, TOGETHER_WRITES, TOGETHER_WRITES)
    steps = [
        step(READS, STATES, TOGETHER, TOGETHER, *writes)
        for _ in range(chance.randint(1, 4))
    ]
    if chance.random() < 0.25:
        steps.append(step({"flush": None}))
    if kind in ("critical", "no autoflush") and chance.random() < 0.4:
        steps.append(step({"commit": None, "rollback": None, "expire all": None}))
    elif chance.random() < 0.25:
        steps.append(Step("boom", 0))
    return Unit(kind, tuple(steps), catches=chance.random() < 0.3)


# -- the concurrent run


@dataclass
class Seen:
    """What became of one unit, and at which turns it began and ended."""

    unit: Unit
    outcome: list[Any] = field(default_factory=list)
    began: int = 0
    ended: int = 0
    #: Whether it was told of a loss that public events do not show.
    lost_unseen: bool = False


@dataclass
class Run:
    seen: list[list[Seen]]
    left: Any


def run_concurrently(program: Program, lock: str, seed: int) -> Run:
    """Run *program* by threads on one session; all is decided by *seed*."""
    world = World(lock)
    scheduler = Scheduler(random.Random(f"schedule {seed}"))
    ticks = iter(range(1_000_000))
    seen = [[Seen(unit) for unit in units] for units in program]

    def work(mine: list[Seen]) -> None:
        for it in mine:
            scheduler.pause()
            it.began = next(ticks)
            try:
                with block_of(world, it.unit.kind):
                    scheduler.pause()
                    run_steps(world, it.unit, it.outcome)
            except Exception as error:
                note_end(it.outcome, error)
                it.lost_unseen = any(words in str(error) for words in UNSEEN_LOSSES)
            it.ended = next(ticks)

    for number, mine in enumerate(seen):
        scheduler.add(f"thread-{number}", lambda mine=mine: work(mine))
    schedule(world.session, scheduler)
    scheduler.run()
    scheduler.tasks.clear()
    try:
        return Run(seen, world.left())
    finally:
        world.close()


# -- the same on a plain session, unit after unit

#: One part of a unit: a thread and how many parts of its own came before.
Part = tuple[int, int]


class SerialRun:
    """Takes units on a plain session, one after the other."""

    def __init__(self, program: Program) -> None:
        self.world = World("off")
        self.serial = Serial(self.world.session)
        self.world.rollback = self.serial.rollback
        self._program = [parts_of(units) for units in program]
        self._begun: dict[int, Any] = {}

    def take(self, part: Part, wanted: Seen) -> list[Any] | None:
        """What this part's unit saw; None if another part of it is to come.

        An object may leave the session while somebody waits to operate on it; then
        that thread was admitted or not, as *wanted* says.
        """
        thread, number = part
        unit, first = self._program[thread][number]
        self.serial.now(thread)
        if wanted.lost_unseen and thread not in self._begun:
            self.serial.lost_changes()
        outcome: list[Any] = []
        try:
            if first:
                self._begun[thread] = self._begin(unit)
                return None
            if unit.kind in TWO_PARTS:
                block = self._go_on(unit, self._begun.pop(thread))
            else:
                self._admit(unit, wanted.outcome)
                block = block_of(self.world, unit.kind)
            with block:
                self._run_steps(unit, outcome)
        except Exception as error:
            note_end(outcome, error)
        finally:
            self.serial.after()
        return outcome

    def _begin(self, unit: Unit) -> Any:
        """The first operation of a block: its transaction, or what it raised."""
        try:
            self.serial.admit()
            if unit.kind == "read":
                return self.world.session.flush()
            return self.serial.begin(unit.kind == "nested")
        except Exception as error:
            return error

    def _go_on(self, unit: Unit, begun: Any) -> Any:
        if isinstance(begun, Exception):
            raise begun
        if unit.kind == "read":
            return contextlib.nullcontext()
        self.serial.admit()
        return self.serial.still_open(begun, unit.kind == "nested")

    def _admit(self, unit: Unit, wanted: list[Any]) -> None:
        step = unit.steps[0]
        if unit.kind == "single" and step.name in OF_THE_ROW:
            detached = object_session(self.world.rows[step.row]) is None
            if detached and wanted != ["WorkLostError"]:
                return
        self.serial.admit(ends=unit.kind == "single" and step.ends)

    def _run_steps(self, unit: Unit, outcome: list[Any]) -> None:
        if unit.kind == "read" and unit.steps[-1].writes:
            reads = Unit("read", unit.steps[:-1])
            run_steps(self.world, reads, outcome)
            row = self.world.rows[unit.steps[-1].row]
            if unit.steps[-1].name == "set" and object_session(row) is None:
                run_steps(self.world, Unit("read", unit.steps[-1:]), outcome)
                return  # not an object of the session's any more
            outcome.append("UpgradeError")
            raise UpgradeError
        run_steps(self.world, unit, outcome, self._took)

    def _took(self, step: Step) -> None:
        if step.writes:
            row = self.world.rows[step.row]
            if step.name not in {"set", "bump", "append", "take"} or object_session(
                row
            ):
                self.serial.wrote()
        self.serial.after()


class UpgradeError(Exception):
    """What a write in a read section raises."""


#: A transaction block is two operations: beginning it, and entering it.  A read section
#: ends what others left, and flushes, before it shares.
TWO_PARTS = ("nested", "begin", "read")


def parts_of(units: tuple[Unit, ...]) -> list[tuple[Unit, bool]]:
    """Each unit with whether another part of it follows."""
    parts = []
    for unit in units:
        if unit.kind in TWO_PARTS:
            parts.append((unit, True))
        parts.append((unit, False))
    return parts


# -- looking for the order


@dataclass
class Verdict:
    """The order that explains a history, or None; and how many were tried."""

    order: tuple[Part, ...] | None
    tried: int
    decided: bool = True
    closest: str = ""


def find_order(program: Program, run: Run, most: int = 3000) -> Verdict:
    """Find an order of the parts in which a plain session sees what *run* saw."""
    parts = [parts_of(units) for units in program]
    seen = [_seen_by_part(part, mine) for part, mine in zip(parts, run.seen)]
    dead: set[tuple[Part, ...]] = set()
    closest, furthest = "", -1
    for tried in range(1, most + 1):
        order = _next_order(parts, seen, dead)
        if order is None:
            return Verdict(None, tried - 1, closest=closest)
        right, difference = _follow(program, seen, order, run.left)
        if difference is None:
            return Verdict(order, tried)
        if right > furthest:
            closest, furthest = f"{order[: right + 1]}: {difference}", right
        dead.add(order[: right + 1])
    return Verdict(None, most, decided=False, closest=closest)


def _seen_by_part(parts: list[tuple[Unit, bool]], mine: list[Seen]) -> list[Seen]:
    units = iter(mine)
    found: list[Seen] = []
    for _, first in parts:
        if len(found) == 0 or not parts[len(found) - 1][1]:
            it = next(units)
        found.append(it)
    return found


def _next_order(
    parts: list[list[tuple[Unit, bool]]],
    seen: list[list[Seen]],
    dead: set[tuple[Part, ...]],
) -> tuple[Part, ...] | None:
    """The first order that does not begin in a way known to be wrong.

    Between the parts of a read section come only others that change nothing.
    """

    def is_reading(n: int, done: int) -> bool:
        return done > 0 and parts[n][done - 1][1] and parts[n][done][0].kind == "read"

    def looks_only(n: int, done: int) -> bool:
        unit, first = parts[n][done]
        single = unit.kind == "single" and unit.steps[0].name in {**READS, **STATES}
        return unit.kind == "read" or single

    def extend(order: tuple[Part, ...], done: tuple[int, ...]) -> Any:
        ready = [n for n, count in enumerate(done) if count < len(seen[n])]
        if not ready:
            return order
        waiting = [seen[n][done[n]] for n in ready]
        first_end = min(it.ended for it in waiting)
        if any(is_reading(n, done[n]) for n in ready):
            ready = [n for n in ready if looks_only(n, done[n])]
        for n in sorted(ready, key=lambda n: seen[n][done[n]].ended):
            longer = (*order, (n, done[n]))
            if seen[n][done[n]].began > first_end or longer in dead:
                continue
            found = extend(longer, (*done[:n], done[n] + 1, *done[n + 1 :]))
            if found is not None:
                return found
            dead.add(longer)
        return None

    return extend((), (0,) * len(seen))


def _follow(
    program: Program, seen: list[list[Seen]], order: tuple[Part, ...], left: Any
) -> tuple[int, str | None]:
    """How many parts come out the same, and what the next one saw instead."""
    serial = SerialRun(program)
    try:
        for count, (thread, number) in enumerate(order):
            wanted = seen[thread][number]
            outcome = serial.take((thread, number), wanted)
            if outcome is not None and outcome != wanted.outcome:
                return count, f"saw {wanted.outcome}, serially {outcome}"
        serial.serial.now("main")
        serial.serial.admit(ends=True)
        found = serial.world.left()
        return len(order), None if found == left else f"left {left}, serially {found}"
    finally:
        serial.world.close()


def compare(seed: int, lock: str) -> tuple[Verdict, str]:
    """Run one history and look for its order; with all there is to say about it."""
    program = make_program(seed)
    try:
        run = run_concurrently(program, lock, seed)
    except NobodyCanGoOn as error:
        return (
            Verdict(None, 0, closest=str(error)),
            f"seed {seed}, lock {lock}: {error}",
        )
    verdict = find_order(program, run)
    lines = [f"seed {seed}, lock {lock}: {verdict}"]
    for number, mine in enumerate(run.seen):
        for it in mine:
            lines.append(f"  thread {number} [{it.began}-{it.ended}] {it.unit}")
            lines.append(f"      saw {it.outcome}")
    lines.append(f"  left {run.left}")
    return verdict, "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--lock", nargs="+", default=["rlock", "rw"])
    parser.add_argument("--show", action="store_true", help="every history")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    wrong = tried = undecided = 0
    began = time.monotonic()
    for seed in range(options.start, options.start + options.seeds):
        for lock in options.lock:
            verdict, text = compare(seed, lock)
            tried += verdict.tried
            undecided += not verdict.decided
            if verdict.order is None:
                wrong += 1
            if verdict.order is None or options.show:
                print(text, flush=True)
    histories = options.seeds * len(options.lock)
    print(
        f"{histories} histories, {tried} orders tried, {undecided} undecided, "
        f"{wrong} without a serial order, {time.monotonic() - began:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
