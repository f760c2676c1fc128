"""Tasks on one AsyncSharedSession: turns, sections, families, blocks and ends."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_object_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.util import greenlet_spawn

from sharedsession import (
    ConcurrentAccessError,
    DeadlockError,
    LockTimeout,
    SharedSession,
    SharedSessionError,
    UpgradeError,
    WorkLostError,
    guard_of,
    share,
)
from sharedsession.asyncio import AsyncSharedSession
from sharedsession.guard.task import TaskOwner

from ..support.aio import (
    Child,
    Parent,
    aio,
    child,
    database,
    gather,
    passes,
    settled,
    stranger,
    until,
)
from ..support.threads import Worker, inside, wait_for

# Sessions that a test leaves open have connections that aiosqlite would see closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

both = pytest.mark.parametrize("lock", ["rlock", "rw"])

COUNT = sa.select(sa.func.count()).select_from(Parent)


# -- what it is


@aio
async def test_it_is_an_async_session(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        maker = async_sessionmaker(db.engine, class_=AsyncSharedSession, lock="rw")
        async with maker() as session:
            assert isinstance(session, AsyncSession)
            assert isinstance(session.sync_session, SharedSession)
            assert session.guard is not None and session.guard.kind.value == "rw"
            assert guard_of(session) is session.guard
            session.add(Parent(name="a"))
            await session.commit()
            found = (await session.scalars(sa.select(Parent))).one()
            assert found in session and found.name == "a"
            assert guard_of(found) is session.guard
            assert await session.run_sync(lambda s: s.scalar(COUNT)) == 1


@aio
async def test_bad_values_are_refused(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        with pytest.raises(ValueError, match="not a kind of lock"):
            db.session("mutex")
        for lock in (threading.RLock(), asyncio.Lock()):
            with pytest.raises(ValueError, match="name of a kind"):
                db.session(lock)
        with pytest.raises(ValueError, match="timeout"):
            db.session(lock_timeout=0)
        with pytest.raises(SharedSessionError, match="sync_session_class"):
            db.session(sync_session_class=sessionmaker())
        async with db.session() as session:
            await session.connection()


@aio
async def test_a_session_class_of_ones_own_is_guarded(tmp_path: Any) -> None:
    class Own(Session):
        def greet(self) -> str:
            return "hello"

    class Shared(AsyncSharedSession):
        sync_session_class = Own

    class OwnAsync(AsyncSession):
        sync_session_class = Own

    class Mixed(AsyncSharedSession, OwnAsync):
        pass

    async with database("sqlite", tmp_path) as db:
        own = db.session(sync_session_class=Own)
        for session in (Shared(db.engine), Mixed(db.engine), own):
            assert isinstance(session.sync_session, Own)
            assert session.sync_session.greet() == "hello"  # type: ignore
            assert session.sync_session_class is Own
            assert session.sync_session.__class__ is Own
            assert session.guard is not None
            await session.scalar(COUNT)
            await session.close()


@pytest.mark.parametrize("cls", [Session, SharedSession])
@aio
async def test_it_shows_the_session_class_it_was_given(cls: Any, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        assert AsyncSharedSession.sync_session_class is Session
        async with db.session(sync_session_class=cls) as session:
            assert session.sync_session_class is cls
            assert session.sync_session.__class__ is cls
            assert isinstance(session.sync_session, SharedSession)
            parent = Parent()
            session.add(parent)
            await session.flush()
            assert async_object_session(parent) is session


@aio
async def test_events_of_a_session_class_of_ones_own(tmp_path: Any) -> None:
    class Own(Session):
        pass

    seen = []
    sa.event.listen(Own, "before_flush", lambda session, *_: seen.append(session))
    async with database("sqlite", tmp_path) as db:
        async with db.session(sync_session_class=Own) as session, db.session() as other:
            for each in session, other:
                each.add(Parent())
                await each.flush()
                await each.rollback()
            assert seen == [session.sync_session]


@aio
async def test_off_is_a_plain_one(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session("off") as session:
        assert session.guard is None
        async with session.critical_section(), session.read_section():
            session.add(Parent())
            assert len(session.new) == 1
        async with session.begin_nested():
            pass
        await session.run_sync(lambda s: s.flush())


# -- turns


@both
@aio
async def test_who_is_awaited_waits(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        stop = db.gate.at("select")
        first = stranger(session.scalar(COUNT), "first")
        await stop.reached(first)
        second = stranger(session.commit(), "second")
        assert not await passes(second, session.guard)
        assert session.guard.owner is first
        assert session.guard.waiting == (second,)
        assert "task 'first'" in session.guard.explain()
        stop.go_on()
        await second
        assert first.done() and session.guard.stats().contended == 1


@pytest.mark.unguarded
@aio
async def test_control_a_plain_session_does_not_wait(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path, unguarded=True) as db:
        async with db.plain() as session:
            await session.connection()
            stop = db.gate.at("select")
            first = stranger(session.scalar(COUNT))
            await stop.reached(first)
            await session.scalar(COUNT)
            stop.go_on()
            await first
        assert db.gate.overlaps


@both
@aio
async def test_turns_are_in_order(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        order = []

        async def work(number: int) -> None:
            async with session.critical_section():
                order.append(number)
                await session.scalar(COUNT)

        async with session.critical_section():
            tasks = []
            for number in range(10):
                tasks.append(stranger(work(number)))
                await until(lambda: len(session.guard.waiting) == len(tasks))
        await asyncio.gather(*tasks)
        assert order == [*range(10)]


@aio
async def test_a_timeout_names_the_holder(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        async with db.session(lock_timeout=0.01) as session:
            await session.connection()
            async with session.critical_section():
                task = asyncio.current_task()
                name = re.escape(repr(task.get_name()))  # type: ignore
                with pytest.raises(
                    LockTimeout, match=rf"task 'late' waited.*task {name}.*test_asy"
                ):
                    await stranger(session.flush(), "late")
                with pytest.raises(LockTimeout):
                    await stranger(enter(session.critical_section(timeout=0.02)))
            assert session.guard.stats().timeouts == 2
            await session.flush()


async def enter(section: Any) -> None:
    async with section:
        pass


@aio
async def test_a_timeout_of_asyncio_leaves_nothing(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session() as session:
        async with session.critical_section():

            async def wait() -> None:
                await asyncio.wait_for(session.scalar(COUNT), 0.01)

            with pytest.raises(asyncio.TimeoutError):
                await stranger(wait())
            assert session.guard.waiting == ()
            await session.scalar(COUNT)


@aio
async def test_a_cycle_of_two_sessions_raises(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        async with db.session() as one, db.session() as two:
            await one.connection()
            has_one, has_two = asyncio.Event(), asyncio.Event()

            async def first() -> None:
                async with one.critical_section():
                    has_one.set()
                    await has_two.wait()
                    async with two.critical_section():
                        pass

            async def second() -> None:
                await has_one.wait()
                async with two.critical_section():
                    has_two.set()
                    await until(lambda: two.guard.waiting)  # type: ignore
                    async with one.critical_section():
                        pass

            results = await gather(stranger(first()), stranger(second()))
            assert results[0] is None
            assert isinstance(results[1], DeadlockError)


@both
@aio
async def test_sections_keep_strangers_out(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        parent = Parent(name="0")
        session.add(parent)
        await session.commit()

        async def add_one() -> None:
            async with session.critical_section():
                value = int(await parent.awaitable_attrs.name)
                await session.scalar(COUNT)  # others would come in here
                parent.name = str(value + 1)
                await session.commit()

        await asyncio.gather(*(add_one() for _ in range(10)))
        assert await parent.awaitable_attrs.name == "10"


@aio
async def test_read_sections_share_and_refuse_to_write(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session("rw") as session:
        parent = Parent(name="a")
        session.add(parent)
        await session.commit()
        both_in = asyncio.Event()
        inside = []

        async def read() -> None:
            async with session.read_section():
                inside.append(session.guard.held)  # type: ignore
                if len(inside) == 2:
                    both_in.set()
                await both_in.wait()
                assert await parent.awaitable_attrs.name == "a"
                assert parent.name == "a"
                with pytest.raises(UpgradeError):
                    parent.name = "b"
                with pytest.raises(UpgradeError):
                    session.add(Parent())
                with pytest.raises(UpgradeError):
                    await session.commit()

        await asyncio.gather(stranger(read()), stranger(read()))
        assert inside == ["shared", "shared"]
        assert parent.name == "a" and not session.new


@aio
async def test_read_sections_of_rlock_take_turns(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session() as session:
        await session.scalar(COUNT)
        async with session.read_section():
            other = stranger(enter(session.read_section()))
            assert not await passes(other, session.guard)
            with pytest.raises(UpgradeError):
                await session.flush()
        await other


@both
@aio
async def test_run_sync_is_whole(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        seen = []

        def work(sync: Session) -> None:
            for _ in range(3):
                sync.scalar(COUNT)
                seen.append(asyncio.current_task())

        tasks = [asyncio.create_task(session.run_sync(work)) for _ in range(3)]
        await asyncio.gather(*tasks)
        assert seen == [task for task in tasks for _ in range(3)]
        async with session.read_section():
            await session.run_sync(lambda sync: sync.scalar(COUNT))
            with pytest.raises(UpgradeError):
                await session.run_sync(lambda sync: sync.flush())


# -- families


@both
@aio
async def test_gather_in_a_section(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:

        async def add(number: int) -> None:
            async with session.critical_section():  # its own, inside its parent's
                session.add(Parent(name=str(number)))
                await session.flush()
            await session.scalar(COUNT)

        async with session.critical_section():
            other = stranger(session.scalar(COUNT))
            assert not await passes(other, session.guard)
            await asyncio.gather(*(add(number) for number in range(10)))
            assert not other.done()
            assert await session.scalar(COUNT) == 10
            await session.commit()
        assert await other == 10
        assert session.guard.owner is None


@both
@aio
async def test_children_and_parent_take_turns(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        async with session.critical_section():
            stop = db.gate.at("select")
            one = child(session.scalar(COUNT), "one")
            await stop.reached(one)
            two = child(session.scalar(COUNT), "two")
            assert not await passes(two, session.guard)
            waiting = asyncio.get_running_loop().call_later(0, stop.go_on)
            await session.scalar(COUNT)  # waits for both
            assert one.done() and two.done() and waiting is not None
            async with session.critical_section():  # they were not started in this one
                late = child(session.scalar(COUNT))
                await late
                three = outside_of_it(session, {*()})
                assert three is not None
        assert db.gate.overlaps == 0


def outside_of_it(session: Any, nothing: Any) -> Any:
    return session.guard.held


@both
@aio
async def test_a_nested_section_keeps_siblings_out(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def nested() -> None:
            async with session.critical_section():
                entered.set()
                await leave.wait()
                await child(session.scalar(COUNT), "grandchild")

        async with session.critical_section():
            one = child(nested(), "one")
            await entered.wait()
            two = child(session.scalar(COUNT), "two")
            assert not await passes(two, session.guard)
            leave.set()
            await one
            await two
        assert session.guard.owner is None


@both
@aio
async def test_who_outlives_a_section_is_a_stranger(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        go_on = asyncio.Event()

        async def late() -> Any:
            await go_on.wait()
            return await session.scalar(COUNT)

        async with session.critical_section():
            orphan = child(late())
        async with session.critical_section():
            go_on.set()
            assert not await passes(orphan, session.guard)
        await orphan


@both
@aio
async def test_a_section_ends_while_a_child_is_inside(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        async with session.critical_section():
            stop = db.gate.at("select")
            orphan = child(session.scalar(COUNT))
            await stop.reached(orphan)
        other = stranger(session.scalar(COUNT))
        assert not await passes(other, session.guard)  # the section is whole still
        stop.go_on()
        await asyncio.gather(orphan, other)
        assert session.guard.owner is None


@aio
async def test_a_section_of_another_session_makes_no_family(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        async with db.session() as one, db.session() as two:
            await one.connection()
            async with one.critical_section():
                stop = db.gate.at("select")
                first = stranger(two.scalar(COUNT))
                await stop.reached(first)
                second = child(two.scalar(COUNT))
                assert not await passes(second, two.guard)
                stop.go_on()
                await asyncio.gather(first, second)


@both
@aio
async def test_children_of_a_read_section_read(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        await session.connection()

        async def read() -> Any:
            async with session.read_section():
                return await session.scalar(COUNT)

        async def write() -> None:
            session.add(Parent())

        async with session.read_section():
            writer = stranger(session.flush())
            assert not await passes(writer, session.guard)
            assert await asyncio.gather(
                session.scalar(COUNT), read(), child(read()), session.scalar(COUNT)
            ) == [0, 0, 0, 0]
            results = await gather(
                session.flush(), enter(session.critical_section()), write()
            )
            assert [type(result) for result in results] == [UpgradeError] * 3
        await writer
        assert session.guard.readers == () and session.guard.owner is None


@aio
async def test_a_read_section_in_a_childs_turn(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session("rw") as session:

        async def read() -> None:
            session.add(Parent(name="pending"))
            async with session.read_section():  # flushes on the way in
                assert not session.new
                with pytest.raises(UpgradeError):
                    await session.flush()
                assert await session.scalar(COUNT) == 1

        async with session.critical_section():
            await child(read())
            await session.rollback()
        assert session.guard.owner is None and not session.guard.readers


@aio
async def test_a_failing_sibling_in_a_task_group(tmp_path: Any) -> None:
    group = getattr(asyncio, "TaskGroup", None)
    if group is None:
        pytest.skip("TaskGroup came with Python 3.11")
    async with database("sqlite", tmp_path) as db, db.session() as session:

        async def fail() -> None:
            await session.scalar(COUNT)
            raise ZeroDivisionError

        async def work() -> None:
            while True:
                await session.scalar(COUNT)

        for block in (Nothing, session.critical_section):
            with pytest.raises(ExceptionGroup) as caught:  # noqa: F821
                async with block():
                    async with group() as tasks:
                        for function in (work, work, fail, work):
                            tasks.create_task(function())
            assert len(caught.value.exceptions) == 1
            assert session.guard.owner is None and not session.guard.waiting
            assert await session.scalar(COUNT) == 0


class Nothing:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *exc_info: Any) -> None: ...


@aio
async def test_families_of_the_other_kinds(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        async with db.session("confine") as session:
            async with session.critical_section():
                await asyncio.gather(*(session.scalar(COUNT) for _ in range(3)))
            with pytest.raises(ConcurrentAccessError, match="confined to task"):
                await stranger(session.scalar(COUNT))
            session.guard.hand_over()
            await stranger(session.scalar(COUNT))
            await session.scalar(COUNT)  # that task has ended
            with pytest.raises(SharedSessionError, match="takes a Task"):
                session.guard.hand_over(threading.current_thread())
        async with db.session("detect") as session:
            async with session.critical_section():
                await child(session.scalar(COUNT))
                results = await gather(session.scalar(COUNT), session.scalar(COUNT))
                assert results[0] == 0
                assert isinstance(results[1], ConcurrentAccessError)


# -- blocks


@both
@aio
async def test_a_transaction_block_keeps_others_out(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        for begin in (session.begin, session.begin_nested):
            async with begin():
                other = stranger(session.scalar(COUNT))
                assert not await passes(other, session.guard)
                session.add(Parent(name="a"))
                await asyncio.gather(session.flush(), session.scalar(COUNT))
            await other
        await session.commit()
        assert session.guard.owner is None
    assert await db.names() == {"a"}


@aio
async def test_a_block_begins_in_one_step(tmp_path: Any) -> None:
    """Whoever waits meanwhile comes in after the block, not between its two parts."""
    async with database("sqlite", tmp_path) as db, db.session() as session:
        stop = db.gate.at("select")
        first = stranger(session.scalar(COUNT))
        await stop.reached(first)

        async def block() -> None:
            async with session.begin():
                assert session.guard.held == "exclusive"  # type: ignore
                await session.scalar(COUNT)

        blocks = [stranger(block()) for _ in range(3)]
        others = [stranger(session.scalar(COUNT)) for _ in range(3)]
        await until(lambda: len(session.guard.waiting) == 6)  # type: ignore
        stop.go_on()
        results = await gather(first, *blocks, *others)
        assert [r for r in results if isinstance(r, BaseException)] == []


@aio
async def test_begin_joins_anothers_transaction(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session() as session:
        await session.scalar(COUNT)
        assert session.in_transaction()

        async def block() -> None:
            async with session.begin():
                session.add(Parent(name="a"))

        await stranger(block())
        await session.scalar(COUNT)
        with pytest.raises(sa_exc.InvalidRequestError, match="already begun"):
            async with session.begin():
                pass
        await session.rollback()
        begun = await session.begin()
        await begun.commit()
    assert await db.names() == {"a"}


@aio
async def test_it_closes_when_the_last_block_ends(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        session = db.session()
        parent = Parent(name="a")
        entered, leave = asyncio.Event(), asyncio.Event()

        async def other() -> None:
            async with session:
                entered.set()
                await leave.wait()

        task = stranger(other())
        await entered.wait()
        async with session:
            session.add(parent)
            await session.flush()
        assert parent in session
        leave.set()
        await task
        with pytest.raises(WorkLostError, match="task 'other'"):
            parent in session
        assert parent not in session
        assert not await db.names()


@aio
async def test_the_block_of_a_sessionmaker(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        maker = async_sessionmaker(db.engine, class_=AsyncSharedSession)
        async with maker.begin() as session:
            session.add(Parent(name="a"))
            other = stranger(session.scalar(COUNT))
            assert not await passes(other, session.guard)
        assert session.guard.owner is None
        assert await other == 1
        with pytest.raises(ZeroDivisionError):
            async with maker.begin() as session:
                session.add(Parent(name="b"))
                await session.flush()
                raise ZeroDivisionError
        await session.scalar(COUNT)  # what was lost is its own doing
        await session.close()
        assert await db.names() == {"a"}


@aio
async def test_a_cancelled_end_goes_to_its_end(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        maker = async_sessionmaker(db.engine, class_=AsyncSharedSession)
        stop = db.gate.at("rollback")

        async def work() -> Any:
            async with maker() as session:
                await session.scalar(COUNT)
                sessions.append(session)

        sessions: list[Any] = []
        task = stranger(work())
        await stop.reached(task)
        task.cancel()
        await settled()
        assert not task.done()
        stop.go_on()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not sessions[0].in_transaction()
        assert sessions[0].guard.owner is None


# -- streams


@both
@aio
async def test_a_stream_is_one_long_operation(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        session.add_all([Parent(name=str(number)) for number in range(5)])
        await session.commit()
        stream = await session.stream_scalars(
            sa.select(Parent).execution_options(yield_per=2)
        )
        first = await anext_of(stream)
        assert first.name == "0"
        other = stranger(session.commit())
        assert not await passes(other, session.guard)
        second = await stranger(anext_of(stream))  # takes the stream over, and ends
        assert second.name == "1" and not other.done()
        third = await anext_of(stream)
        assert third.name == "2"
        session.add(Parent(name="beside"))
        assert len([parent async for parent in stream]) == 2
        await other
        stream = await session.stream(sa.select(Parent.id))
        await stream.close()
        await session.stream(sa.select(Parent.id))  # forgotten
        gc.collect()
        await stranger(session.commit())
    assert "beside" in await db.names()


async def anext_of(stream: Any) -> Any:
    return await stream.__anext__()


@both
@aio
async def test_the_connection_is_guarded(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        connection = await session.connection()
        async with session.critical_section():
            other = stranger(connection.scalar(COUNT))
            assert not await passes(other, session.guard)
            await connection.scalar(COUNT)
            await child(connection.scalar(COUNT))
        assert await other == 0


# -- work and losses


@both
@aio
async def test_lost_work_is_told_once(lock: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        session.add(Parent(name="mine"))
        await session.flush()
        await stranger(session.rollback(), "vandal")
        with pytest.raises(WorkLostError, match="task 'vandal', at .*ended it without"):
            session.add(Parent(name="more"))
        assert not session.new
        session.add(Parent(name="again"))
        await session.commit()
        await stranger(fail(session), "clumsy")
        await session.scalar(COUNT)  # rolled back for it
    assert await db.names() == {"again"}


async def fail(session: Any) -> None:
    session.add(Parent(id=1, name="twice"))
    with pytest.raises(sa_exc.IntegrityError):
        await session.flush()


@aio
async def test_lost_work_is_told_when_awaited(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session() as session:
        session.add(Parent(name="mine"))
        await session.flush()
        await stranger(session.close(), "vandal")
        with pytest.raises(WorkLostError, match="task 'vandal'"):
            await session.commit()
        await session.commit()


@aio
async def test_a_task_that_ends_leaves_nothing(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.session(
        lock_timeout=5
    ) as session:
        await session.connection()

        async def forget() -> None:
            kept.append(session.critical_section())
            await kept[0].__aenter__()
            session.add(Parent(name="half done"))
            await session.flush()

        kept: list[Any] = []
        await stranger(forget(), "forgetful")
        assert await session.scalar(COUNT) == 0  # it was rolled back


@aio
async def test_owners_go_with_their_tasks(tmp_path: Any) -> None:
    def ended() -> int:
        gc.collect()
        owners = [it for it in gc.get_objects() if isinstance(it, TaskOwner)]
        return len([owner for owner in owners if not owner.alive])

    async with database("sqlite", tmp_path) as db, db.session() as session:
        before = ended()
        for _ in range(20):
            await stranger(session.scalar(COUNT))
        await settled()
        assert ended() - before <= 2


# -- sessions for threads, and tasks


def test_a_session_for_threads_does_not_stop_the_loop(engine: sa.Engine) -> None:
    session = SharedSession(engine)

    async def use() -> None:
        session.connection()  # nobody else is there
        with inside(session.critical_section):
            with pytest.raises(SharedSessionError, match="asyncio.to_thread"):
                session.connection()
            with pytest.raises(SharedSessionError, match="AsyncSharedSession"):
                with session.critical_section():
                    pass
            assert session.guard is not None and not session.guard.waiting
            waiter = asyncio.ensure_future(asyncio.to_thread(session.connection))
            await until(lambda: session.guard.waiting)  # type: ignore
        await waiter

    asyncio.run(use())
    session.close()


@pytest.mark.unguarded
@aio
async def test_a_session_for_threads_does_not_serve_an_async_one(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path, unguarded=True) as db:
        for lock in "rlock", "detect":
            session = db.plain(sync_session_class=SharedSession, lock=lock)
            for _ in range(2):
                with pytest.raises(SharedSessionError, match="AsyncSharedSession"):
                    session.add(Parent())
                with pytest.raises(SharedSessionError, match="AsyncSharedSession"):
                    await session.scalar(COUNT)
            assert not session.new and not session.in_transaction()
            await session.close()
        session = db.plain()
        with pytest.raises(SharedSessionError, match="AsyncSharedSession"):
            share(session.sync_session)
        assert type(session.sync_session) is Session
        off = db.plain(sync_session_class=SharedSession, lock="off")
        for usable in session, off:
            await usable.scalar(COUNT)
            await usable.close()


@aio
async def test_a_thread_that_is_started_in_a_section_belongs_to_it(
    tmp_path: Any,
) -> None:
    async with database("sqlite", tmp_path) as db:
        session = db.session(lock_timeout=10)
        parent = Parent(name="a")
        session.add(parent)
        await session.flush()

        def read() -> Any:
            return parent.name

        for section in session.critical_section, session.read_section:
            async with section():
                assert await asyncio.to_thread(read) == "a"
                assert session.guard.waiting == ()
                assert await child(asyncio.to_thread(passing, session)) == "ok"
                # The control: a thread that does not inherit the context is a stranger.
                loop = asyncio.get_running_loop()
                with pytest.raises(ConcurrentAccessError, match="asyncio.to_thread"):
                    await loop.run_in_executor(None, read)
                with pytest.raises(ConcurrentAccessError, match="asyncio.to_thread"):
                    await loop.run_in_executor(None, passing, session)
            assert await loop.run_in_executor(None, read) == "a"
            assert await asyncio.to_thread(read) == "a"
        await session.close()


def passing(session: Any) -> str:
    with session.sync_session.read_section():
        return "ok"


@aio
async def test_a_session_for_threads_on_a_connection_of_a_task(tmp_path: Any) -> None:
    def use(connection: sa.Connection) -> Any:
        with SharedSession(connection) as session:
            return session.scalar(COUNT)

    async with database("sqlite", tmp_path) as db, db.engine.connect() as connection:
        assert await connection.run_sync(use) == 0


def test_control_in_a_thread_without_a_loop_it_waits(engine: sa.Engine) -> None:
    with SharedSession(engine) as session:
        session.connection()
        released = threading.Event()
        with session.critical_section():
            other = Worker(lambda: (session.connection(), released.set()))
        wait_for(released)
        other.result()


@aio
async def test_before_the_loop_runs_it_belongs_to_the_thread(tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db:
        session = db.session()
        await asyncio.to_thread(session.add, Parent(name="a"))
        await session.commit()
        await session.close()
        assert await db.names() == {"a"}


@aio
async def test_a_kept_greenlet_is_the_tasks_own(tmp_path: Any) -> None:
    """What runs in a greenlet of a task is that task, as far as the guard can tell."""
    async with database("sqlite", tmp_path) as db, db.session() as session:
        async with session.critical_section():
            held = await greenlet_spawn(lambda: session.guard.held)  # type: ignore
            assert held == "exclusive"
        assert session.guard.held is None
        await session.scalar(sa.select(Child.id))
