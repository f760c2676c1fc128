"""Cancellation at every await, errors at every await, and schedules of tasks.

A task is driven step by step: at each point where it waits for something it is
cancelled, or an error is thrown into it, once for each such point.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import warnings
from typing import Any, Callable

import pytest
import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
from sqlalchemy.ext.asyncio import async_sessionmaker

from sharedsession import SharedSessionError, critical_section
from sharedsession.asyncio import AsyncSharedSession

from ..support.aio import Child, Parent, aio, database, gather, settled, stranger, until

COUNT = sa.select(sa.func.count()).select_from(Parent)

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
    # The drivers, on cursors and connections that were thrown away.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def add_and_commit(session: Any) -> None:
    session.add(Parent(name="new", children=[Child()]))
    await session.commit()


async def in_section(session: Any) -> None:
    async with session.critical_section():
        session.add(Parent(name="new"))
        await session.flush()
        await asyncio.gather(session.scalar(COUNT), session.scalar(COUNT))
        await session.commit()


async def in_read_section(session: Any) -> None:
    session.add(Parent(name="new"))
    async with session.read_section():
        await asyncio.gather(session.scalar(COUNT), session.scalar(COUNT))


async def in_unit(session: Any) -> None:
    async with critical_section(session, transaction="commit"):
        session.add(Parent(name="new"))
        await session.flush()


async def in_block(session: Any) -> None:
    async with session.begin_nested():
        session.add(Parent(name="new"))
    await session.rollback()


async def in_stream(session: Any) -> None:
    some = sa.select(Parent).limit(2)
    stream = await session.stream(some.execution_options(yield_per=1))
    async for _ in stream:
        pass


async def in_own_transactions(session: Any) -> None:
    begun = await session.begin_nested()
    session.add(Parent(name="new"))
    await begun.commit()
    begun = await session.begin_nested()
    await begun.rollback()
    with contextlib.suppress(LookupError):
        async with session.begin_nested():
            session.add(Parent(name="undone"))
            await session.flush()
            raise LookupError


async def on_connection(session: Any) -> None:
    connection = await session.connection()
    async with connection.begin_nested():
        await connection.execute(COUNT)
    await (await session.stream_scalars(COUNT)).one()


async def to_its_ends(session: Any) -> None:
    async with maker_of(session).begin() as another:
        await another.scalar(COUNT)
    for end in session.rollback, session.reset, session.invalidate, session.aclose:
        await session.scalar(COUNT)
        await end()


def maker_of(session: Any) -> Any:
    return async_sessionmaker(session.bind, class_=AsyncSharedSession)


async def in_with(session: Any) -> None:
    async with session:
        await session.run_sync(lambda sync: sync.add(Parent(name="new")))
        await session.flush()


SCRIPTS: list[Callable[[Any], Any]] = [
    *(add_and_commit, in_section, in_read_section, in_unit, in_block, in_stream),
    *(in_own_transactions, on_connection, to_its_ends, in_with),
]
#: Cancelled there, aiosqlite leaves a cursor that locks the file, plain session or not
NOT_ON_SQLITE = in_stream, on_connection, to_its_ends
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__)


class Steps:
    """Runs a coroutine as a task does, and counts where it waits.

    At the point with the given number, what it waits for has a say first: *interrupt*
    is called, with the task.
    """

    def __init__(self, coroutine: Any, point: int, interrupt: Any) -> None:
        self._coroutine = coroutine
        self._left = point
        self._interrupt = interrupt
        self.came_there = False
        self.task: Any = None

    def __await__(self) -> Any:
        running = self._coroutine.__await__()
        value: Any = None
        while True:
            try:
                waits_for = running.send(value)
            except StopIteration as end:
                return end.value
            if self._left == 0:
                self.came_there = True
                self._interrupt(self.task)
            self._left -= 1
            try:
                value = yield waits_for
            except BaseException as error:
                running = _thrown(running, error)
                value = None


def _thrown(running: Any, error: BaseException) -> Any:
    """*running* after the error was thrown into it, with what it waits for then."""
    first = [running.throw(error)]

    class Going:
        def send(self, value: Any) -> Any:
            return first.pop() if first else running.send(value)

        def throw(self, error: BaseException) -> Any:
            return running.throw(error)

    return Going()


async def run(coroutine: Any, point: int, interrupt: Any) -> tuple[bool, Any]:
    steps = Steps(coroutine, point, interrupt)

    async def go() -> Any:
        return await steps

    steps.task = stranger(go(), "victim")
    result = (await gather(steps.task))[0]
    return steps.came_there, result


@every_script
@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
@pytest.mark.parametrize("lock", ["rlock", "rw"])
@aio
async def test_cancelled_at_every_await(
    lock: str, name: str, script: Any, tmp_path: Any
) -> None:
    """The guard is free, the session usable, and who was there goes on."""
    if name == "sqlite" and script in NOT_ON_SQLITE:
        pytest.skip("a cursor that aiosqlite lost locks the file")
    async with database(name, tmp_path) as db:
        for point in itertools.count():
            session = db.session(lock)
            session.add(Parent(name=f"mine {point}"))
            await session.flush()
            waiting = stranger(session.scalar(COUNT)) if point % 2 else None
            came, result = await run(script(session), point, lambda task: task.cancel())
            if waiting is not None:
                await gather(waiting)
            await settled()
            guard = session.guard
            assert guard.owner is None, guard.explain()
            assert guard.waiting == () and guard.readers == ()
            await works_on(session, db, f"mine {point}")
            if not came and result is None:
                break
            assert isinstance(result, (asyncio.CancelledError, type(None))), result
        assert point > 1


async def works_on(session: Any, db: Any, name: str) -> None:
    """This task's work is there, or it is told that it is not."""
    try:
        await session.commit()
    except SharedSessionError:
        session.add(Parent(name=name))
        await session.commit()
    rolled_back = name not in await db.names()
    if rolled_back:  # by a script that does so itself
        with pytest.raises(SharedSessionError):
            await session.scalar(COUNT)
    await session.scalar(COUNT)
    await session.close()


@every_script
@aio
async def test_a_statement_that_fails_at_each_place(script: Any, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        for point in itertools.count():
            session = db.session()
            left = [point]

            def fail(*args: Any) -> None:
                left[0] -= 1
                if left[0] == -1:
                    raise ZeroDivisionError

            await session.connection()
            engine = db.engine.sync_engine
            sa.event.listen(engine, "before_cursor_execute", fail)
            try:
                result = (await gather(stranger(script(session))))[0]
            finally:
                sa.event.remove(engine, "before_cursor_execute", fail)
            await until(lambda: session.guard.owner is None)  # siblings go on
            assert session.guard.waiting == ()
            await session.scalar(COUNT)
            await session.rollback()
            await session.close()
            if left[0] >= 0:
                assert result is None
                break
            assert isinstance(result, ZeroDivisionError)


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
@pytest.mark.parametrize("seed", range(15))
@aio
async def test_schedules(seed: int, name: str, lock: str, tmp_path: Any) -> None:
    """Random tasks in random order, some cancelled at random points.

    Whoever is in a section sees nothing of others, and the books balance at the end.
    On SQLite nobody is cancelled: aiosqlite may leave the file locked then.
    """
    draw = random.Random(seed)
    async with database(name, tmp_path) as db:
        session = db.session(lock)
        account = Parent(name="0")
        session.add(account)
        await session.commit()
        sure, unsure = [0], [0]
        inside: list[Any] = []

        async def deposit() -> None:
            async with session.critical_section():
                inside.append(asyncio.current_task())
                try:
                    value = int(await account.awaitable_attrs.name)
                    if draw.random() < 0.5:
                        await asyncio.gather(session.scalar(COUNT), session.flush())
                    account.name = str(value + 1)
                    assert inside == [asyncio.current_task()]
                    unsure[0] += 1
                    await session.commit()
                    sure[0] += 1
                    unsure[0] -= 1
                finally:
                    inside.pop()

        async def read() -> None:
            async with session.read_section():
                value = await account.awaitable_attrs.name
                await session.scalar(COUNT)
                assert await account.awaitable_attrs.name == value

        async def write() -> None:
            session.add(Parent(name="x"))
            await session.commit()

        async def patient(work: Any) -> None:
            while True:
                try:
                    return await work()  # type: ignore[no-any-return]
                except SharedSessionError:
                    pass  # what a cancelled one took along

        kinds = [deposit, deposit, read, write]
        tasks = [stranger(patient(draw.choice(kinds))) for _ in range(12)]
        for _ in range(4):
            for _ in range(draw.randrange(60)):
                await asyncio.sleep(0)
            if name != "sqlite":
                draw.choice(tasks).cancel()
        results = await gather(*tasks)
        for result in results:
            assert isinstance(result, (type(None), asyncio.CancelledError)), result
        await session.rollback()
        assert session.guard.owner is None and session.guard.readers == ()
        await session.close()
        rows = await db.rows(sa.select(Parent.name).where(Parent.id == account_id()))
        assert sure[0] <= int(rows[0].name) <= sure[0] + unsure[0]


def account_id() -> int:
    return 1


@aio
async def test_control_a_plain_session_does_not_survive(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path, unguarded=True) as db:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = db.plain()
            tasks = [stranger(add_and_commit(session)) for _ in range(5)]
            results = await gather(*tasks)
            assert any(isinstance(r, sa_exc.InvalidRequestError) for r in results)
            await gather(session.close())
