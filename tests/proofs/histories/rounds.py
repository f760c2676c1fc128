"""Rounds of random ways in by many threads, each held to the same order on one.

In a round every thread goes some ways of the table ``ways_in``, drawn from a seed, on
one world.  The guard's admissions are written down; then one thread goes the same ways
in the order in which they were admitted, on a plain ``Session`` and a fresh world.
Each way must come out the same: the same error or none.  And the database must be left
the same.  So an error counts as one that a single thread would get only if it got it,
there.

A way that is one operation, measured beforehand, is gone as it is; one that is several
is gone in a critical section, since others may come in between operations.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Iterator

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sharedsession.guard.access import END
from sharedsession.guard.guard import Guard
from sharedsession.stress.tripwire import tripwire

from ...conftest import fill, make_engine, make_world, wires
from ...support.models import Base
from ...support.threads import PATIENCE, Worker, stuck
from ...ways_in.table import WAYS, Way
from .serial import UNSEEN_LOSSES, Serial
from .turns import Scheduler, schedule

#: Ways that leave the guard held, for others to find it so, or take the database away.
NOT_HERE = {
    "session.begin (joins)": "SQLAlchemy refuses it to one thread",
    "with transaction": "keeps the guard until its thread ends",
    "connection.detach": "what is in memory goes with the connection",
    "connection.invalidate": "the same",
    "session.invalidate": "the same",
    "close_all_sessions": "closes those of other tests, too",
    "session.scalars": "makes objects if another thread comes in, else none",
    "dict association: items": "loads when it is made, else when it is walked",
    "dict association: keys": "the same",
    "dict association: values": "the same",
}
TRIED = [way for way in WAYS if way.name not in NOT_HERE]

#: A thread, the number of its step, and whether it prepares the way or goes it.
Part = tuple[int, int, str]


@dataclass
class Outcome:
    """How one part came out: the name of its error, or none."""

    part: Part
    way: Way
    error: str | None = None
    text: str = ""
    admitted: bool = False
    #: Whether it left work in the transaction; held to the table by another test.
    wrote: bool = False
    #: How many admissions there were when it began and when it ended.
    began: int = 0
    ended: int = 0

    def __str__(self) -> str:
        thread, number, what = self.part
        came = f": {self.error} {self.text}" if self.error else ""
        admitted = "" if self.admitted else " (not admitted)"
        return f"thread {thread}.{number} {what} {self.way.name!r}{admitted}{came}"


@dataclass
class Round:
    """What came of one round."""

    overlaps: int = 0
    steps: int = 0
    losses: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    #: What came out otherwise on a plain session, and the order that led there.
    differences: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.overlaps and not self.differences


# -- databases


@contextlib.contextmanager
def own_database(url: str) -> Iterator[str]:
    """A database of this process's own on the server that *url* names."""
    if url.startswith("sqlite"):
        yield "sqlite://"
        return
    name = f"sharedsession_torture_{os.getpid()}"
    server = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        own = sa.make_url(url).set(database=name)
        engine = sa.create_engine(own)
        Base.metadata.create_all(engine)
        engine.dispose()
        yield own.render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}")
        server.dispose()


def fresh_engine(url: str) -> sa.Engine:
    """An engine on a database with the same rows, and the same next keys, each time."""
    if url == "sqlite://":
        return make_engine()
    engine = sa.create_engine(url)
    tables = [table.name for table in Base.metadata.sorted_tables]
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            names = ", ".join(tables)
            connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
        else:
            for name in reversed(tables):
                connection.exec_driver_sql(f"DELETE FROM {name}")
                connection.exec_driver_sql(f"ALTER TABLE {name} AUTO_INCREMENT = 1")
    with Session(engine) as session:
        fill(session)
    engine.dispose()
    wires[engine] = tripwire(engine)
    return engine


def stored(engine: sa.Engine) -> dict[str, list[str]]:
    """What is committed; without keys, for which rows of a set get which is chance."""
    left = {}
    with engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            columns = [c for c in table.c if not c.primary_key and c.name != "flags"]
            rows = connection.execute(sa.select(*columns)).all()
            if table.name in CHOSEN_BY_CHANCE:
                rows = [*zip(*rows)]
                left[table.name] = [repr(sorted(map(repr, row))) for row in rows]
            else:
                left[table.name] = sorted(map(repr, rows))
    return left


#: A set has no order, and some ways sort by ``id()``; so which member one takes out of
#: them is chance, and only the columns are compared.
CHOSEN_BY_CHANCE = ("addresses", "keywords", "tags")


def keeping_world(engine: sa.Engine, lock: str) -> Any:
    """A world that keeps every object: when one is collected is chance, too."""
    world = make_world(engine, lock)
    world.kept = []

    def keep(session: Any, thing: Any) -> None:
        world.kept.append(thing)

    for name in (
        "loaded_as_persistent",
        "pending_to_persistent",
        "transient_to_pending",
    ):
        sa.event.listen(world.session, name, keep)
    return world


# -- what is one operation


@functools.lru_cache(maxsize=None)
def is_one_operation(way: Way) -> bool:
    """Measured: going it alone is let in by the guard not more than once."""
    engine = make_engine()
    world = make_world(engine, "confine")  # where looks are let in, too
    prepared = way.prepare(world)
    admissions = []
    _when_admitted(world.session.guard, lambda: admissions.append(1))
    with contextlib.suppress(Exception):
        way.go(world, prepared)
    world.session.close()
    engine.dispose()
    return len(admissions) <= 1


def _when_admitted(guard: Any, note: Any) -> None:
    class Noting(Guard):
        __slots__ = ()

        def enter(self, me: Any, access: Any) -> None:
            try:
                super().enter(me, access)
            finally:
                note()

        def _take(self, *args: Any, **kw: Any) -> Any:
            inside = self.held
            try:
                return super()._take(*args, **kw)
            finally:
                if inside is None:
                    note()

    guard.__class__ = Noting


def block(session: Any, needed: bool) -> Any:
    return session.critical_section() if needed else contextlib.nullcontext()


# -- one round


def draw(seed: str, threads: int, steps: int) -> list[list[Way]]:
    """Which ways each thread goes."""
    chance = random.Random(seed)
    return [[chance.choice(TRIED) for _ in range(steps)] for _ in range(threads)]


def run_round(
    url: str, lock: str, seed: str, *, threads: int, steps: int, scheduled: bool
) -> Round:
    """Run one round and the same order on a plain session; say what differed.

    :param scheduled: let the seed decide who goes on, for good, in the place of the
      system.
    """
    plan = draw(seed, threads, steps)
    [is_one_operation(way) for ways in plan for way in ways]
    result = Round()
    outcomes, left = _run_concurrently(url, lock, seed, plan, scheduled, result)
    for it in outcomes:
        result.steps += it.part[2] == "go"
        result.losses += it.error == "WorkLostError"
        if it.error is not None:
            result.errors[it.error] += 1
    for looks_last in (False, True):
        order = _order(outcomes, looks_last)
        differences = _go_alone(url, order, left)
        if not differences:
            return result
    result.differences = differences
    result.differences += [f"    {it}" for it in order]
    return result


def _run_concurrently(
    url: str, lock: str, seed: str, plan: Any, scheduled: bool, result: Round
) -> tuple[list[Outcome], Any]:
    engine = fresh_engine(url)
    world = keeping_world(engine, lock)
    guard = world.session.guard
    present = threading.local()
    admitted: list[Outcome] = []
    outcomes: list[Outcome] = []
    end = threading.Barrier(len(plan) + 1)

    def note() -> None:
        it = getattr(present, "part", None)
        if it is not None and not it.admitted:
            it.admitted = True
            it.began = len(admitted)
            admitted.append(it)
            guard.last_writer = None  # so that work is noted anew

    _when_admitted(guard, note)
    ledger = world.session._recovery._ledger
    note_level = ledger.note

    def note_who_wrote(level: Any, owner: Any) -> None:
        note_level(level, owner)
        part = getattr(present, "part", None)
        if part is not None and owner is guard.current_owner().party:
            part.wrote = True  # else it flushes what another thread wrote

    ledger.note = note_who_wrote

    def take_part(part: Part, way: Way, function: Any) -> Any:
        present.part = it = Outcome(part, way, began=len(admitted))
        outcomes.append(it)
        try:
            return function()
        except BaseException as error:
            it.error, it.text = type(error).__name__, str(error)[:600]
        finally:
            present.part = None
            it.ended = len(admitted)

    def work(thread: int, ways: list[Way]) -> None:
        for number, way in enumerate(ways):

            def prepare(way: Way = way) -> Any:
                with world.session.critical_section():
                    return (way.prepare(world),)

            prepared = take_part((thread, number, "prepare"), way, prepare)
            if prepared is None:
                continue

            def go(way: Way = way, prepared: Any = prepared) -> None:
                with block(world.session, not is_one_operation(way)):
                    way.go(world, prepared[0])

            take_part((thread, number, "go"), way, go)
            del go, prepared

    if scheduled:
        scheduler = Scheduler(random.Random(f"schedule {seed}"))
        for thread, ways in enumerate(plan):
            scheduler.add(f"thread-{thread}", functools.partial(work, thread, ways))
        schedule(world.session, scheduler)
        scheduler.run()
        scheduler.tasks.clear()
    else:
        _run_preempted(work, plan, end)
    world.session.rollback()
    world.session.close()
    left = stored(engine)
    wire = wires[engine]
    result.overlaps = wire.overlaps
    engine.dispose()
    return outcomes, left


def _run_preempted(work: Any, plan: Any, end: threading.Barrier) -> None:
    """By threads that the system switches between, very often."""

    def until_all_are_done(thread: int, ways: list[Way]) -> None:
        try:
            work(thread, ways)
        finally:
            end.wait(PATIENCE * 4)  # a thread that ends clears up after itself

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        workers = [
            Worker(
                functools.partial(until_all_are_done, thread, ways), f"thread-{thread}"
            )
            for thread, ways in enumerate(plan)
        ]
        try:
            end.wait(PATIENCE * 4)
        except threading.BrokenBarrierError:
            stuck("not all threads came to the end of the round")
        for worker in workers:
            worker.result()
    finally:
        sys.setswitchinterval(interval)


def _order(outcomes: list[Outcome], looks_last: bool) -> list[Outcome]:
    """As they were admitted; what needed no admission, as it began or as it ended."""

    def place(it: Outcome) -> tuple[int, int, int]:
        if it.admitted:
            return it.began, 1, it.part[1]
        return (it.ended if looks_last else it.began), 0, it.part[1]

    return sorted(outcomes, key=place)


# -- the same order on a plain session


def _go_alone(url: str, order: list[Outcome], left: Any) -> list[str]:
    engine = fresh_engine(url)
    world = keeping_world(engine, "off")
    serial = Serial(world.session)
    world.session.rollback = serial.rollback
    prepared: dict[tuple[int, int], Any] = {}
    differences: list[str] = []
    for it in order:
        error = _go_part(world, serial, prepared, it)
        if error != it.error:
            differences.append(f"{it}, alone {error}")
    serial.now("main")
    serial.admit(ends=True)
    Session.rollback(world.session)
    prepared.clear()
    world.session.close()
    found = stored(engine)
    engine.dispose()
    for table in left:
        if found[table] != left[table]:
            differences.append(f"left {left[table]} in {table}, alone {found[table]}")
    return differences


def _go_part(world: Any, serial: Serial, prepared: Any, it: Outcome) -> str | None:
    thread, number, what = it.part
    serial.now(thread)
    try:
        lost = any(words in it.text for words in UNSEEN_LOSSES)
        if lost:
            serial.lost_changes()
        if it.admitted or lost:
            one = what == "go" and is_one_operation(it.way)
            serial.admit(ends=one and it.way.access is END)
        if what == "prepare":
            prepared[thread, number] = it.way.prepare(world)
        else:
            thing = prepared.pop((thread, number))
            rolls_back = it.way.name == "transaction.rollback"
            if not (rolls_back and serial.rolled_back_by_another(thing)):
                it.way.go(world, thing)
        return None
    except Exception as error:
        return type(error).__name__
    finally:
        if it.wrote:
            serial.wrote()
        serial.after()
