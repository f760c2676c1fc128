"""A stress test with threads that share one session.

:func:`run` makes the tables, lets the threads do their units of work in a separate
process, and then verifies the database through a fresh connection.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from sqlalchemy.pool import SingletonThreadPool

from ..session.session import SharedSession
from .ledger import (
    PAUSE,
    Figures,
    Mode,
    Outcome,
    Plan,
    Session,
    Unit,
    do_unit,
    plan_unit,
)
from .process import Report, refuse_memory, run_on, said_clearly
from .tripwire import tripwire


def run(
    plan: Plan, mode: Mode, progress: Callable[[Outcome], object] = lambda outcome: None
) -> Figures:
    """Make one run in a process of its own.

    :param progress: called with the outcome of each unit as the unit ends.
    :raises StressError: if the run could not be made.
    """
    return run_on(connectable(plan.url), reports, plan, mode, progress)


def connectable(url: sa.URL) -> sa.Engine:
    """Return an engine that has connected once and keeps no connection."""
    # Any error that a driver raises here is about the URL or the server.
    with said_clearly(url, Exception):
        engine = make_engine(url, poolclass=sa.NullPool)
        tripwire(engine).remove()
        if issubclass(engine.dialect.get_dialect_pool_class(url), SingletonThreadPool):
            refuse_memory()
        engine.connect().close()
    return engine


def make_engine(
    url: sa.URL,
    *,
    busy: float = 20,
    create: Callable[..., sa.Engine] = sa.create_engine,
    **options: Any,
) -> sa.Engine:
    """Make an engine; on SQLite with transactions and savepoints that work.

    See "Serializable isolation / Savepoints / Transactional DDL" in SQLAlchemy's
    documentation of pysqlite. ``IMMEDIATE``, because if two transactions have both
    read, SQLite does not let both write.

    :param busy: seconds, 20 by default, to wait for another SQLite connection's
      transaction.
    :param create: the function that makes the engine.
    """
    if url.get_backend_name() != "sqlite":
        return create(url, **options)
    engine = create(url, connect_args={"timeout": busy}, **options)

    @sa.event.listens_for(engine, "connect")
    def no_implicit_begin(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def perform(plan: Plan, mode: Mode, engine: sa.Engine) -> Iterator[Outcome]:
    """Let the threads do all units and yield each outcome as it comes.

    Ends early if no outcome has come for ``plan.patience`` seconds. The threads are
    daemons, because a stuck thread must not keep the process alive.
    """
    factory: Callable[[], Session] = sa_orm.sessionmaker(engine)
    if mode.guarded:
        factory = sa_orm.sessionmaker(engine, class_=SharedSession, lock=mode.lock)
    shared = factory() if mode.shared else None
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    start = threading.Barrier(plan.threads)

    def work(numbers: range) -> None:
        start.wait()
        for number in numbers:
            unit = plan_unit(plan, mode, number)
            session = contextlib.nullcontext(shared) if shared else factory()
            outcomes.put(_attempt(session, unit))

    for index, numbers in enumerate(shares(plan)):
        threading.Thread(
            target=work, args=(numbers,), name=f"worker-{index}", daemon=True
        ).start()
    for _ in range(plan.units):
        try:
            yield outcomes.get(timeout=plan.patience)
        except queue.Empty:
            return
    if shared and mode.guarded:  # closing a broken plain session may fail
        shared.close()


def shares(plan: Plan) -> list[range]:
    """Give each thread a fixed share: a fast-failing thread must not take them all."""
    ends = [1 + plan.units * n // plan.threads for n in range(plan.threads + 1)]
    return [range(*ends[n : n + 2]) for n in range(plan.threads)]


def _attempt(opened: contextlib.AbstractContextManager[Session], unit: Unit) -> Outcome:
    try:
        with opened as session:
            try:
                return Outcome(unit.number, do_unit(session, unit), None)
            except Exception:
                # Roll back, as an application does. Without a lock the rollback may
                # fail, too, but the first error is the one to report.
                with contextlib.suppress(Exception):
                    session.rollback()
                raise
    except Exception as error:
        # An application needs time for an error, too. Without this pause the failing
        # threads end before the first thread has connected.
        time.sleep(PAUSE)
        cause = getattr(error, "orig", None) or error
        return Outcome(unit.number, False, type(cause).__name__)


def reports(plan: Plan, mode: Mode) -> Iterator[Report]:
    """Let threads do the units; yield a report as each unit ends."""
    # With one shared session there is no other connection to wait for.
    busy = 0 if mode.shared else 20
    engine = make_engine(
        plan.url, busy=busy, poolclass=sa.QueuePool, pool_size=plan.threads
    )
    wire = tripwire(engine)
    started = time.perf_counter()
    seconds = 0.0
    for outcome in perform(plan, mode, engine):
        seconds = time.perf_counter() - started
        yield Report(outcome, seconds, wire.calls, wire.overlaps, wire.first)
    yield Report(None, seconds, wire.calls, wire.overlaps, wire.first)
