"""The units of work of ``sharedsession stress``, done by tasks of one event loop.

All tasks of a run are in one event loop, in a separate process.  The units of work and
the verification of the database are the same.  Calls that overlap inside the driver are
not counted, because async drivers have a queue of their own.

This module needs SQLAlchemy's asyncio, and therefore greenlet.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from ..asyncio.session import AsyncSharedSession
from ..internals import greenlets
from . import ledger, process, threads
from .ledger import Figures, Line, Mode, Outcome, Plan, Unit
from .process import Report

__all__ = ["MODES", "run"]

MODES = {
    mode.name: mode
    for mode in (
        ledger.PLAIN,
        Mode("per-task", shared=False),
        ledger.MODES["rlock"],
        ledger.MODES["rw"],
    )
}


def run(
    plan: Plan, mode: Mode, progress: Callable[[Outcome], object] = lambda outcome: None
) -> Figures:
    """Like :func:`sharedsession.stress.threads.run`, but with tasks."""
    return asyncio.run(_main(plan, mode, progress))


async def _main(
    plan: Plan, mode: Mode, progress: Callable[[Outcome], object]
) -> Figures:
    before = set(threading.enumerate())
    try:
        figures: Figures = await greenlets.greenlet_spawn(_run, plan, mode, progress)
        return figures
    finally:
        # Wait for drivers' threads: each calls the loop when its connection is closed.
        for thread in set(threading.enumerate()) - before:
            await asyncio.to_thread(thread.join, process.GRACE)


def _run(plan: Plan, mode: Mode, progress: Callable[[Outcome], object]) -> Figures:
    return process.run_on(connectable(plan.url), reports, plan, mode, progress)


def connectable(url: sa.URL) -> sa.Engine:
    """Like ``stress.connectable()``, but to be called inside ``greenlet_spawn()``."""
    with process.said_clearly(url, Exception):
        try:
            engine = make_engine(url, poolclass=sa.NullPool)
        except ModuleNotFoundError as error:
            raise ledger.StressError(
                f"{error.name} is not installed: pip install {error.name}"
            ) from error
        except sa.exc.InvalidRequestError as error:
            raise ledger.StressError(
                "tasks take an async driver: sqlite+aiosqlite, postgresql+psycopg or "
                f"postgresql+asyncpg, say, and not {url.drivername}"
            ) from error
        if url.get_backend_name() == "sqlite" and url.database in (
            None,
            "",
            ":memory:",
        ):
            process.refuse_memory()
        engine.connect().close()
    return engine


def make_engine(url: sa.URL, **options: Any) -> sa.Engine:
    return threads.make_engine(url, create=_create, **options)


def _create(url: sa.URL, **options: Any) -> sa.Engine:
    return create_async_engine(url, **options).sync_engine


# The tasks ----------------------------------------------------------------------------


def reports(plan: Plan, mode: Mode) -> Iterator[Report]:
    """Let tasks do the units; yield a report as each unit ends."""
    # With one shared session there is no other connection to wait for.
    engine = make_engine(
        plan.url, busy=0 if mode.shared else 20, pool_size=plan.threads
    )
    loop = asyncio.new_event_loop()
    outcomes = perform(plan, mode, AsyncEngine(engine))
    started = time.perf_counter()
    seconds = 0.0
    with contextlib.suppress(StopAsyncIteration):
        while True:  # the loop runs only while the next outcome is awaited
            outcome = loop.run_until_complete(outcomes.__anext__())
            seconds = time.perf_counter() - started
            yield Report(outcome, seconds)


async def perform(
    plan: Plan, mode: Mode, engine: AsyncEngine
) -> AsyncIterator[Outcome]:
    """Like ``stress.perform()``, but the units run in tasks."""
    factory: Callable[[], AsyncSession] = async_sessionmaker(engine)
    if mode.guarded:
        factory = async_sessionmaker(engine, class_=AsyncSharedSession, lock=mode.lock)
    shared = factory() if mode.shared else None
    outcomes: asyncio.Queue[Outcome] = asyncio.Queue()

    async def work(numbers: range) -> None:
        for number in numbers:
            unit = ledger.plan_unit(plan, mode, number)
            session = contextlib.nullcontext(shared) if shared else factory()
            outcomes.put_nowait(await _attempt(session, unit))

    tasks = [
        asyncio.create_task(work(numbers), name=f"worker-{index}")
        for index, numbers in enumerate(threads.shares(plan))
    ]
    for _ in range(plan.units):
        try:
            yield await asyncio.wait_for(outcomes.get(), plan.patience)
        except asyncio.TimeoutError:
            return
    await asyncio.gather(*tasks)
    if shared and mode.guarded:  # closing a broken plain session may fail
        await shared.close()


async def _attempt(
    opened: contextlib.AbstractAsyncContextManager[AsyncSession], unit: Unit
) -> Outcome:
    try:
        async with opened as session:
            try:
                return Outcome(unit.number, await do_unit(session, unit), None)
            except Exception:
                # Roll back, as an application does; the first error is reported.
                with contextlib.suppress(Exception):
                    await session.rollback()
                raise
    except Exception as error:
        await asyncio.sleep(ledger.PAUSE)
        cause = getattr(error, "orig", None) or error
        return Outcome(unit.number, False, type(cause).__name__)


# The units of work --------------------------------------------------------------------


async def do_unit(session: AsyncSession, unit: Unit) -> bool:
    """Like ``stress.do_unit()``, but awaited."""
    match unit.number % 10:
        case 1 | 2:
            await _audit(session, unit)
            return False
        case 3:
            await _declined(session, unit)
            return True
        case 4:
            await _refused(session, unit)
            return False
        case _:
            await _transfer(session, unit)
            return True


def _writing(
    session: AsyncSession,
) -> contextlib.AbstractAsyncContextManager[object]:
    if isinstance(session, AsyncSharedSession):
        return session.critical_section()
    return contextlib.nullcontext()


def _reading(
    session: AsyncSession,
) -> contextlib.AbstractAsyncContextManager[object]:
    if isinstance(session, AsyncSharedSession):
        return session.read_section()
    return contextlib.nullcontext()


async def _transfer(session: AsyncSession, unit: Unit) -> None:
    async with _writing(session):
        source, target = await session.run_sync(ledger.load, unit)
        async with session.begin_nested():
            ledger.move(unit, source, target)
        await session.commit()


async def _declined(session: AsyncSession, unit: Unit) -> None:
    async with _writing(session):
        source, target = await session.run_sync(ledger.load, unit)
        ledger.move(unit, source, target)
        with contextlib.suppress(ledger.Declined):
            async with session.begin_nested():
                source.balance = source.balance - ledger.OPENING
                await session.flush()
                raise ledger.Declined
        await session.run_sync(ledger.load, unit)
        await session.commit()


async def _refused(session: AsyncSession, unit: Unit) -> None:
    async with _writing(session):
        source, target = await session.run_sync(ledger.load, unit)
        ledger.move(unit._replace(number=0), source, target)
        try:
            await session.flush()
        except sa.exc.IntegrityError:
            await session.rollback()
        else:
            raise ledger.WrongFigures(f"account {unit.source} was opened twice")
        await session.run_sync(ledger.load, unit)


async def _audit(session: AsyncSession, unit: Unit) -> None:
    async with _reading(session):
        balance = await session.run_sync(_checked_balance, unit)
        amounts = await session.scalars(
            sa.select(Line.amount).where(Line.account_id == unit.source)
        )
        if sum(amounts) != balance:
            raise ledger.WrongFigures(f"the ledger of account {unit.source}")


def _checked_balance(session: ledger.Session, unit: Unit) -> int:
    account = ledger.get_account(session, unit.source, unit.lock)
    ledger.check(account)
    return account.balance
