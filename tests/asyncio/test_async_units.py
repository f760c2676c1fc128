"""Decorators and blocks of ``critical_section()`` for tasks, and the registry."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)

from sharedsession import (
    SharedSession,
    SharedSessionError,
    UpgradeError,
    WorkLostError,
    critical_section,
    guard_of,
    read_section,
    shared_session,
)
from sharedsession.asyncio import AsyncSharedSession, async_shared_session

from ..support.aio import Parent, aio, database, gather, passes, stranger

# Sessions that a test leaves open have connections that aiosqlite would see closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

COUNT = sa.select(sa.func.count()).select_from(Parent)


def registry_of(db: Any, **kw: Any) -> Any:
    maker = async_sessionmaker(db.engine, class_=AsyncSharedSession, **kw)
    return async_shared_session(maker)


# -- decorators


@aio
async def test_coroutine_functions_of_every_kind(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session("rw") as session:

        @critical_section(session)
        async def function(name: str) -> str:
            assert session.guard.held == "exclusive"  # type: ignore
            session.add(Parent(name=name))
            await session.flush()
            return name

        class Service:
            def __init__(self) -> None:
                self.session = session

            @critical_section("session", timeout=5)
            async def method(self) -> Any:
                return self.session.guard.held  # type: ignore

            @classmethod
            @read_section(lambda: session)
            async def of_class(cls) -> Any:
                return session.guard.held  # type: ignore

            @critical_section(session)
            @staticmethod
            async def static() -> Any:
                return session.guard.held  # type: ignore

        assert inspect.iscoroutinefunction(function)
        assert function.__name__ == "function"
        assert await function("a") == "a"
        assert await Service().method() == "exclusive"
        assert await Service.of_class() == "shared"
        assert await Service.static() == "exclusive"
        assert session.guard.held is None
        async with session.critical_section():
            other = stranger(function("b"))
            assert not await passes(other, session.guard)
        await other
        found = (await session.scalars(sa.select(Parent).limit(1))).one()
        async with critical_section(found) as same:
            assert same is session and session.guard.held == "exclusive"
        async with read_section(session):
            with pytest.raises(UpgradeError):
                await session.flush()


@aio
async def test_async_generators(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session() as session:

        @critical_section(session)
        async def steps(up_to: int) -> AsyncIterator[Any]:
            """Says what it was sent."""
            for number in range(up_to):
                await session.scalar(COUNT)
                try:
                    got = yield number
                except KeyError:
                    got = "thrown"
                seen.append(got)

        seen: list[Any] = []
        assert steps.__doc__ == "Says what it was sent."
        running = steps(3)
        assert session.guard.owner is None
        assert await running.asend(None) == 0  # type: ignore
        other = stranger(session.scalar(COUNT))
        assert not await passes(other, session.guard)
        # Another task that takes a step takes the section over, and may end then.
        assert await stranger(running.asend("sent")) == 1  # type: ignore
        assert not other.done()
        assert await running.athrow(KeyError()) == 2  # type: ignore
        with pytest.raises(StopAsyncIteration):
            await running.__anext__()
        await other
        assert seen == ["sent", "thrown", None]
        assert [number async for number in steps(2)] == [0, 1]
        closed = steps(2)
        await closed.__anext__()
        await closed.aclose()  # type: ignore
        assert session.guard.owner is None


@aio
async def test_a_unit_of_work_commits_or_undoes_its_own(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session() as session:

        @critical_section(session, transaction="commit")
        async def unit(name: str, fails: bool = False) -> None:
            session.add(Parent(name=name))
            await asyncio.gather(session.flush(), session.scalar(COUNT))
            if fails:
                raise ZeroDivisionError

        await unit("a")
        assert await db.names() == {"a"}
        session.add(Parent(name="pending"))
        results = await gather(*(unit(str(n), n % 2 == 0) for n in range(10)))
        failed = [type(r) for r in results if r is not None]
        assert failed == [ZeroDivisionError] * 5
        assert await db.names() == {"a", "pending", "1", "3", "5", "7", "9"}
        with pytest.raises(ZeroDivisionError):
            async with critical_section(session, transaction="savepoint"):
                session.add(Parent(name="b"))
                raise ZeroDivisionError
        async with critical_section(session, transaction="savepoint"):
            session.add(Parent(name="c"))
        await session.commit()
        assert {"c"} <= await db.names() and "b" not in await db.names()


@aio
async def test_a_unit_that_is_cancelled_undoes_its_own(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session() as session:
        session.add(Parent(name="mine"))
        await session.flush()
        waiting = asyncio.Event()

        @critical_section(session, transaction="commit")
        async def unit() -> None:
            session.add(Parent(name="undone"))
            await session.flush()
            waiting.set()
            await asyncio.Event().wait()

        task = stranger(unit())
        await waiting.wait()
        task.cancel()
        results = await gather(task)
        assert isinstance(results[0], asyncio.CancelledError)
        await session.commit()
        assert await db.names() == {"mine"}


def test_sessions_for_threads_refuse_coroutines(engine: sa.Engine) -> None:
    session = SharedSession(engine)
    session.connection()

    async def function() -> None: ...

    async def generator() -> AsyncIterator[None]:
        yield None

    for target in (session, shared_session(lambda: session)):
        for each in (function, generator):
            with pytest.raises(SharedSessionError, match="asyncio.to_thread"):
                critical_section(target)(each)

    async def use() -> None:
        with pytest.raises(SharedSessionError, match="asyncio.to_thread"):
            await critical_section(lambda: session)(function)()
        with pytest.raises(SharedSessionError, match="asyncio.to_thread"):
            async with critical_section(session):
                pass
        with pytest.raises(SharedSessionError, match="can only decorate methods"):
            async with critical_section("session"):
                pass

    asyncio.run(use())
    assert session.guard is not None and session.guard.owner is None
    session.close()


@aio
async def test_a_block_is_entered_once(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session() as session:
        await session.connection()
        for block in (critical_section(session), session.critical_section()):
            async with block:
                with pytest.raises(SharedSessionError, match="entered already"):
                    await block.__aenter__()
            with pytest.raises(SharedSessionError, match="not entered"):
                await block.__aexit__(None, None, None)


# -- the registry


@aio
async def test_the_registry_has_one_session_for_all_tasks(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        Session = registry_of(db, lock="rw")
        assert isinstance(Session, async_scoped_session)
        session = Session()

        async def use() -> Any:
            Session.add(Parent(name="a"))
            await Session.flush()
            return Session()

        assert await asyncio.gather(stranger(use()), stranger(use())) == [session] * 2
        assert Session.guard is session.guard is guard_of(Session)
        assert Session.sync_session is session.sync_session
        assert await Session.run_sync(lambda sync: sync.scalar(COUNT)) == 2
        assert Session.in_transaction() and not Session.in_nested_transaction()
        assert Session.get_nested_transaction() is None
        async with Session.critical_section() as inside:
            assert inside is session
        async with Session.read_section():
            assert (await Session.scalars(sa.select(Parent))).all()
        async with critical_section(Session, transaction="commit"):
            Session.add(Parent(name="b"))
        await Session.remove()
        assert await db.names() == {"a", "b"}


@aio
async def test_remove_closes_when_the_last_task_is_done(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        Session = registry_of(db)
        session = Session()
        used, leave = asyncio.Event(), asyncio.Event()

        async def use() -> None:
            await Session.scalar(COUNT)
            used.set()
            await leave.wait()
            await Session.remove()

        task = stranger(use())
        await used.wait()
        await Session.remove()
        assert Session.registry.has() and session.in_transaction()
        leave.set()
        await task
        assert not Session.registry.has() and not session.in_transaction()
        again = Session()
        assert again is not session

        async def end_without_remove() -> None:
            await Session.scalar(COUNT)

        await stranger(end_without_remove())
        await Session.remove()
        assert not Session.registry.has()


@aio
async def test_close_all_closes_now(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        Session = registry_of(db)
        session = Session()
        session.add(Parent())
        await session.flush()
        await stranger(Session.close_all())
        assert not Session.registry.has()
        with pytest.raises(WorkLostError):
            await session.flush()
        with pytest.raises(SharedSessionError, match="cannot share"):
            async_shared_session(async_sessionmaker(db.engine))()  # type: ignore


@aio
async def test_an_async_scoped_sessions_sections_are_entered_by_the_functions(
    tmp_path: Any,
) -> None:
    async with database("sqlite", tmp_path) as db:
        maker = async_sessionmaker(db.engine, class_=AsyncSharedSession)
        registry: Any = async_scoped_session(maker, asyncio.current_task)
        async with critical_section(registry) as session:
            assert session is registry()
            assert session.guard is guard_of(registry)
        async with read_section(registry):
            assert await registry.scalar(COUNT) == 0
            with pytest.raises(UpgradeError):
                await registry.flush()
        await registry.remove()


def test_the_registry_has_all_names() -> None:
    for cls in (AsyncSession, AsyncSharedSession, async_scoped_session):
        for name in dir(cls):
            if name.startswith("_") or name in (
                "sync_session_class",
                "session_factory",
            ):
                continue
            assert hasattr(async_shared_session, name), name
