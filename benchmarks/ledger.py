"""The ledger of ``sharedsession stress``: whole units of work on a real database.

One session for all threads, with the library's lock or with one RLock around each unit;
or a session for each unit, which takes the accounts with ``merge()`` from where the
application has them.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from sharedsession import SharedSession
from sharedsession.stress import ledger, threads

from . import models
from .models import HAND, PER_THREAD, RLOCK, RW
from .pace import Pace, Round
from .sides import Sides

CONTESTANTS = (HAND, PER_THREAD, RLOCK, RW)
THREADS = 8

_Attempt = Callable[[int], None]


def measure(url: sa.URL | None, sides: Sides, pace: Pace) -> list[Round]:
    """Units of work per second, for each contestant."""
    with contextlib.ExitStack() as stack:
        if url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            url = sa.URL.create("sqlite", database=f"{folder}/ledger.db")
        plan = ledger.Plan(url, THREADS, pace.units)
        return [
            {who: sides.ask(who, units_per_second, plan) for who in CONTESTANTS}
            for _ in range(pace.ledgers)
        ]


def _make_engine(plan: ledger.Plan) -> sa.Engine:
    engine = threads.make_engine(
        plan.url, poolclass=sa.QueuePool, pool_size=plan.threads
    )
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def do_not_wait_for_the_disk(connection: Any, record: object) -> None:
            connection.execute("PRAGMA synchronous = OFF")

    return engine


def units_per_second(contestant: str, plan: ledger.Plan) -> float:
    engine = _make_engine(plan)
    try:
        with ledger.tables(engine, plan.accounts):
            with _attempt(contestant, engine, plan) as attempt:
                return plan.units / _seconds(attempt, plan)
    finally:
        engine.dispose()


def _seconds(attempt: _Attempt, plan: ledger.Plan) -> float:
    errors: list[Exception] = []

    def work(numbers: range) -> None:
        try:
            for number in numbers:
                attempt(number)
        except Exception as error:
            errors.append(error)

    ends = [1 + plan.units * n // plan.threads for n in range(plan.threads + 1)]
    threads = [
        threading.Thread(target=work, args=(range(*ends[n : n + 2]),))
        for n in range(plan.threads)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - started


@contextlib.contextmanager
def _attempt(
    contestant: str, engine: sa.Engine, plan: ledger.Plan
) -> Iterator[_Attempt]:
    """How the contestant does the unit of a number."""
    if contestant == PER_THREAD:
        yield _by_merging(engine, plan)
    elif contestant == HAND:
        with sa_orm.Session(engine) as session:
            lock = threading.RLock()
            yield _in_one_session(session, plan, lambda: lock)
    else:
        with SharedSession(engine, lock=contestant) as session:
            yield _in_one_session(session, plan, contextlib.nullcontext)


def _in_one_session(
    session: sa_orm.Session, plan: ledger.Plan, section: models.Section
) -> _Attempt:
    def attempt(number: int) -> None:
        with section():
            ledger.do_unit(session, ledger.plan_unit(plan, ledger.PLAIN, number))

    return attempt


def _by_merging(engine: sa.Engine, plan: ledger.Plan) -> _Attempt:
    at_home = [ledger.Account(id=id) for id in range(plan.accounts)]
    for account in at_home:
        sa_orm.make_transient_to_detached(account)

    def attempt(number: int) -> None:
        unit = ledger.plan_unit(plan, ledger.PER_THREAD, number)
        with sa_orm.Session(engine) as session:
            copies = [
                session.merge(at_home[id], load=False)
                for id in (unit.source, unit.target)
            ]
            ledger.do_unit(session, unit)
            del copies

    return attempt
