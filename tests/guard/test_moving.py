"""Blocks, sections and streams belong to their object: another thread may end them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
import threading
from typing import Any

import pytest
import sqlalchemy as sa

from sharedsession import (
    ConcurrentAccessError,
    LockTimeout,
    SharedSession,
    SharedSessionError,
    UpgradeError,
    WorkLostError,
    critical_section,
    one_owner,
    read_section,
)
from sharedsession.guard.access import LOAD
from sharedsession.guard.task import current_owner
from sharedsession.operations.operation import run, run_in

from ..support.models import User
from ..support.threads import Worker, passes, wait_for, wait_until


class Pool:
    """Threads that run one function after the other, and live until the test ends."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def run(self, function: Any) -> Any:
        done = threading.Event()
        results: list[Any] = []
        errors: list[BaseException] = []

        def perform() -> None:
            try:
                results.append(function())
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()
            wait_for(self.over)

        Worker(perform)
        wait_for(done)
        if errors:
            raise errors[0]
        return results[0]


@pytest.fixture
def pool() -> Any:
    made = Pool()
    yield made
    made.over.set()


BLOCKS = {
    "section": lambda session: session.critical_section(),
    "read section": lambda session: session.read_section(),
    "begin": lambda session: session.begin(),
    "begin_nested": lambda session: session.begin_nested(),
    "no_autoflush": lambda session: session.no_autoflush,
    "unit": lambda session: critical_section(session, transaction="commit"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_may_be_left_in_another_thread(
    name: str, session: Any, pool: Pool
) -> None:
    block = BLOCKS[name](session)
    pool.run(block.__enter__)
    assert session.guard.held is None
    stranger = Worker(lambda: session.add(User(name="new")))
    assert not passes(stranger, session.guard)
    pool.run(lambda: block.__exit__(None, None, None))
    stranger.result()
    assert session.guard.owner is None and not session.guard.readers


def test_a_block_that_was_left_cannot_be_left_again(session: Any, pool: Pool) -> None:
    section = session.critical_section()
    pool.run(section.__enter__)
    pool.run(lambda: section.__exit__(None, None, None))
    with pytest.raises(SharedSessionError, match="not entered"):
        section.__exit__(None, None, None)


def test_the_thread_that_leaves_waits_for_the_operation_that_runs(
    session: Any, pool: Pool
) -> None:
    """Control: without the operation the block is left at once (see above)."""
    block = session.begin()
    running, go_on = threading.Event(), threading.Event()

    def operate() -> None:
        block.__enter__()

        def slowly(*args: Any) -> None:
            running.set()
            wait_for(go_on)

        sa.event.listen(session, "before_flush", slowly, once=True)
        session.add(User(name="slow"))
        session.flush()

    owner = Worker(operate)
    wait_for(running)
    leaver = Worker(lambda: block.__exit__(None, None, None))
    assert not passes(leaver, session.guard)
    go_on.set()
    owner.result()
    leaver.result()
    assert session.guard.owner is None


def test_work_goes_with_the_block_that_moved(session: Any, pool: Pool) -> None:
    """A rollback at its end is nobody's loss: the block raised, and that is known."""
    block = session.begin()

    def enter() -> None:
        block.__enter__()
        session.add(User(name="undone"))
        session.flush()

    pool.run(enter)
    error = ValueError("of the block")
    pool.run(lambda: block.__exit__(ValueError, error, None))
    names = sa.select(User.name)
    assert "undone" not in session.scalars(names).all()


def test_a_session_closes_with_its_last_block_in_whatever_thread(
    engine: sa.Engine, pool: Pool
) -> None:
    session = SharedSession(engine)
    session.add(User(name="pending"))
    pool.run(session.__enter__)
    pool.run(session.__enter__)
    pool.run(lambda: session.__exit__(None, None, None))
    assert session.new
    pool.run(lambda: session.__exit__(None, None, None))
    with pytest.raises(WorkLostError):  # this thread's, which the others closed
        session.new
    assert not session.new


# -- one owner


def in_context(pool: Pool, function: Any) -> Any:
    """Run *function* in a thread of the pool that inherits the context."""
    context = contextvars.copy_context()
    return pool.run(lambda: context.run(function))


def test_threads_of_one_owner_share_a_block(session: Any, pool: Pool) -> None:
    with one_owner("request 7"):
        block = session.begin()
        in_context(pool, block.__enter__)
        in_context(pool, lambda: session.add(User(name="of the request")))
        assert session.guard.held is None
        stranger = Worker(lambda: session.scalars(sa.select(User.name)).all())
        assert not passes(stranger, session.guard)
        in_context(pool, session.flush)
        in_context(pool, lambda: block.__exit__(None, None, None))
        assert "of the request" in stranger.result()
    assert session.guard.owner is None


def test_threads_of_another_owner_wait(session: Any, pool: Pool) -> None:
    """The control: the same thread in another context is another owner."""
    block = session.begin()
    with one_owner("request 7"):
        in_context(pool, block.__enter__)
    assert session.guard.owner is None  # its owner ended, so it was released
    session.rollback()
    block = session.begin()
    seven = contextvars.Context()
    eight = contextvars.Context()
    entered = threading.Event()
    leave = threading.Event()

    def request(name: str, function: Any) -> None:
        with one_owner(name):
            function()

    def hold() -> None:
        block.__enter__()
        entered.set()
        wait_for(leave)
        block.__exit__(None, None, None)

    first = Worker(lambda: seven.run(request, "request 7", hold))
    wait_for(entered)
    second = Worker(lambda: eight.run(request, "request 8", session.commit))
    assert not passes(second, session.guard)
    assert "request 7" in session.guard.explain()
    leave.set()
    first.result()
    second.result()


def test_operations_of_one_owner_take_turns(session: Any) -> None:
    running, go_on = threading.Event(), threading.Event()
    with one_owner("request 7"):
        context = contextvars.copy_context()
        with session.critical_section():

            def slowly(*args: Any) -> None:
                running.set()
                wait_for(go_on)

            sa.event.listen(session, "before_flush", slowly, once=True)
            session.add(User(name="slow"))
            first = Worker(lambda: context.copy().run(session.flush))
            wait_for(running)
            second = Worker(lambda: context.copy().run(session.add, User(name="next")))
            assert not passes(second, session.guard)
            go_on.set()
            first.result()
            second.result()
        assert session.guard.owner is None


def test_one_owner_in_a_read_section_writes_nothing(session: Any) -> None:
    with one_owner("request 7"):
        context = contextvars.copy_context()
        with session.read_section():
            other = Worker(lambda: context.run(session.add, User(name="new")))
            with pytest.raises(UpgradeError):
                other.result()
            reader = Worker(lambda: context.copy().run(session.scalar, sa.select(1)))
            assert reader.result() == 1


def test_one_owner_takes_a_name() -> None:
    with pytest.raises(SharedSessionError, match="name"):
        with one_owner(7):  # type: ignore[arg-type]
            pass


# -- coroutines on a session for threads


def test_two_coroutines_are_two_owners(session: Any) -> None:
    """Without a word, both would be inside and an update would be lost."""
    user = session.get(User, 1)
    refused = []

    async def increment() -> None:
        try:
            with session.critical_section():
                number = user.counter
                await asyncio.sleep(0)
                user.counter = number + 1
        except SharedSessionError as error:
            refused.append(error)

    async def both() -> None:
        await asyncio.gather(increment(), increment())

    before = user.counter or 0
    user.counter = before
    asyncio.run(both())
    assert user.counter == before + 1 and len(refused) == 1
    assert "event loop" in str(refused[0])


def test_a_coroutine_may_wait_if_it_says_so(session: Any) -> None:
    session.guard.wait_in_loop = 20.0
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with session.critical_section():
            entered.set()
            wait_for(leave)

    holder = Worker(hold)
    wait_for(entered)

    async def read() -> Any:
        return session.scalar(sa.select(1))

    reader = Worker(lambda: asyncio.run(read()))
    wait_until(lambda: session.guard.waiting)
    leave.set()
    assert reader.result() == 1
    holder.result()


def test_tasks_of_one_thread_need_no_engine_for_threads(tmp_path: Any) -> None:
    """SQLite's connections only refuse other threads."""
    url = f"sqlite:///{tmp_path}/one.db"
    engine = sa.create_engine(url, connect_args={"check_same_thread": True})
    session = SharedSession(engine)
    assert session.scalar(sa.select(1)) == 1

    async def both() -> list[Any]:
        async def read() -> Any:
            return session.scalar(sa.select(1))

        return list(await asyncio.gather(read(), read()))

    assert asyncio.run(both()) == [1, 1]
    with pytest.raises(SharedSessionError, match="check_same_thread"):
        Worker(lambda: session.scalar(sa.select(1))).result()
    session.close()
    engine.dispose()


def test_a_lock_object_cannot_move(engine: sa.Engine, pool: Pool) -> None:
    session = SharedSession(engine, lock=threading.RLock())
    block = session.begin()
    pool.run(block.__enter__)
    with pytest.raises(ConcurrentAccessError, match="lock object"):
        block.__exit__(None, None, None)


def test_owners_that_wait_for_one_hold_get_it_one_after_the_other(
    session: Any,
) -> None:
    """All of them are let in when the operation that they wait for ends."""
    guard = session.guard
    hold = guard.hold("section")
    inside: list[str] = []
    overlaps: list[int] = []
    begun, may_end = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        wait_for(may_end)

    def operation(left: list[int]) -> None:
        inside.append("in")
        left[0] -= 1
        wait_until(lambda: len(inside) > 1 or len(guard.waiting) == left[0])
        overlaps.append(len(inside))
        inside.pop()

    left = [3]
    holder = Worker(lambda: run_in(hold, LOAD, first))
    wait_for(begun)
    others = [Worker(lambda: run_in(hold, LOAD, operation, left)) for _ in range(3)]
    wait_until(lambda: len(guard.waiting) == 3)
    may_end.set()
    for worker in (holder, *others):
        worker.result()
    assert overlaps == [1, 1, 1]
    hold.release()


def test_a_party_that_ends_leaves_its_thread_to_its_operation(session: Any) -> None:
    """As a request does that is cancelled while its worker thread waits."""
    begun, may_end = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        wait_for(may_end)

    def in_section() -> None:
        with session.critical_section():
            run(session.guard, LOAD, wait)

    with one_owner("request"):
        member = Worker(functools.partial(contextvars.copy_context().run, in_section))
        wait_for(begun)
    other = Worker(lambda: session.get(User, 1))
    assert not passes(other, session.guard)
    may_end.set()
    member.result()
    assert other.result() is not None


def test_work_that_outlives_its_party_is_its_threads(session: Any, pool: Pool) -> None:
    with one_owner("request"):
        context = contextvars.copy_context()
    owner = context.run(current_owner)
    assert owner is current_owner()
    with session.critical_section():
        assert context.run(lambda: session.guard.held) == "exclusive"


# -- what moves with a hold, and what does not


def stream_of(session: Any) -> Any:
    statement = sa.select(User.id).execution_options(yield_per=1)
    return session.execute(statement)


def test_a_block_is_left_although_its_stream_was_fetched_elsewhere(
    session: Any, pool: Pool
) -> None:
    block = session.begin()
    block.__enter__()
    stream = stream_of(session)
    pool.run(stream.all)
    session.guard.timeout = 5.0
    block.__exit__(None, None, None)
    assert session.guard.owner is None


def test_a_block_outlives_a_thread_that_fetched_from_its_stream(session: Any) -> None:
    block = session.begin()
    block.__enter__()
    stream = stream_of(session)
    fetching = Worker(stream.fetchone)
    fetching.result()
    fetching.join()
    stranger = Worker(session.commit)
    assert not passes(stranger, session.guard)
    stream.close()
    block.__exit__(None, None, None)
    stranger.result()


def test_a_read_section_outlives_a_thread_that_took_it_over(session: Any) -> None:
    @read_section(session)
    def steps() -> Any:
        yield 1
        yield 2

    user = session.get(User, 1)
    stepping = steps()
    next(stepping)
    second = Worker(lambda: next(stepping))
    second.result()
    second.join()
    writer = Worker(lambda: setattr(user, "name", "written"))
    assert not passes(writer, session.guard)
    stepping.close()
    writer.result()


def test_what_hops_inside_a_party_ends_with_the_party(session: Any, pool: Pool) -> None:
    with one_owner("request 7"):
        stream = in_context(pool, lambda: stream_of(session))
        in_context(pool, stream.fetchone)
    assert session.guard.owner is None
    Worker(session.commit).result()


def hold_a_statement(engine: sa.Engine) -> tuple[threading.Event, threading.Event]:
    """Make the next statement wait; return when it has begun, and let it go on."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(*args: Any) -> None:
        begun.set()
        wait_for(go_on)

    sa.event.listen(engine, "before_cursor_execute", wait, once=True)
    return begun, go_on


def test_a_write_is_not_let_into_a_read_section_of_its_party(
    session: Any, engine: sa.Engine, pool: Pool
) -> None:
    user = session.get(User, 1)
    left = threading.Event()

    def read() -> None:
        with session.read_section():
            session.scalars(sa.select(User)).all()
            wait_for(left)

    with one_owner("request 7"):
        contexts = [contextvars.copy_context() for _ in range(2)]
        begun, go_on = hold_a_statement(engine)
        reader = Worker(lambda: contexts[0].run(read))
        wait_for(begun)
        writer = Worker(lambda: contexts[1].run(lambda: setattr(user, "name", "x")))
        wait_until(lambda: writer in session.guard.waiting or writer.done.is_set())
        go_on.set()
        with pytest.raises(UpgradeError):
            writer.result()
        left.set()
        reader.result()
    assert user.name != "x"


def test_an_operation_that_fails_leaves_a_stream_of_its_party(
    session: Any, engine: sa.Engine
) -> None:
    ended = threading.Event()
    streams = []

    def stream() -> None:
        streams.append(stream_of(session))
        wait_for(ended)

    with one_owner("request 7"):
        contexts = [contextvars.copy_context() for _ in range(2)]
        begun, go_on = hold_a_statement(engine)
        streaming = Worker(lambda: contexts[0].run(stream))
        wait_for(begun)
        failing = Worker(
            lambda: contexts[1].run(session.execute, sa.text("SELECT nonsense"))
        )
        wait_until(lambda: failing in session.guard.waiting)
        go_on.set()
        with pytest.raises(sa.exc.OperationalError):
            failing.result()
        stranger = Worker(lambda: contextvars.Context().run(session.commit))
        assert not passes(stranger, session.guard)
        streams[0].close()
        stranger.result()
        ended.set()
        streaming.result()


def test_an_operation_ends_although_its_party_has_ended(
    session: Any, engine: sa.Engine
) -> None:
    """A request is cancelled, and the worker thread goes on."""
    waiting, go_on = threading.Event(), threading.Event()

    @sa.event.listens_for(session, "do_orm_execute", once=True)
    def wait(state: Any) -> None:
        waiting.set()
        wait_for(go_on)

    with one_owner("request 7"):
        context = contextvars.copy_context()
        statement = sa.select(User)
        worker = Worker(lambda: context.run(session.scalars, statement).all())
        wait_for(waiting)
    go_on.set()
    assert worker.result()
    assert session.guard.owner is None
    Worker(session.commit).result()


# -- blocks that end elsewhere, and fail


def fail_to_leave(block: Any) -> None:
    """Leave *block* as a statement does that raised."""
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        block.__exit__(*sys.exc_info())


@pytest.mark.parametrize("write", ["flush", "statement"])
@pytest.mark.parametrize(
    "make",
    [
        lambda session: critical_section(session, transaction="commit"),
        lambda session: critical_section(session, transaction="savepoint"),
        lambda session: session.begin_nested(),
    ],
)
def test_who_began_a_block_is_not_told_of_its_end_elsewhere(
    session: Any, pool: Pool, make: Any, write: str
) -> None:
    """The work in it has moved along, so it was undone by its own owner."""
    first: list[Any] = []

    def enter() -> None:
        first.append(current_owner())
        block = make(session)
        block.__enter__()
        if write == "flush":
            session.add(User(name="new"))
            session.flush()
        else:
            session.execute(sa.insert(User).values(name="new"))
        first.append(block)

    pool.run(enter)
    fail_to_leave(first[1])
    assert session._recovery._ledger.error_for(first[0]) is None
    assert not session._recovery._ledger.anybody_to_tell()


def test_a_unit_that_could_not_be_left_can_be_left_again(session: Any) -> None:
    unit = critical_section(session, transaction="commit")
    working, over, worked, end = (threading.Event() for _ in range(4))

    def wait() -> None:
        working.set()
        wait_for(over)

    def work() -> None:
        unit.__enter__()
        session.add(User(name="new"))
        run(session.guard, LOAD, wait)
        worked.set()
        wait_for(end)  # its end would end the unit

    worker = Worker(work)
    wait_for(working)
    session.guard.timeout = 0.01
    with pytest.raises(LockTimeout):
        unit.__exit__(None, None, None)
    session.guard.timeout = None
    over.set()
    wait_for(worked)
    unit.__exit__(None, None, None)
    end.set()
    worker.result()
    session.rollback()
    assert "new" in set(session.scalars(sa.select(User.name)))


def test_a_unit_ends_after_those_that_began_in_it(session: Any) -> None:
    outer = critical_section(session, transaction="commit")
    inner = critical_section(session, transaction="commit")
    outer.__enter__()
    session.add(User(name="outer"))
    inner.__enter__()
    session.add(User(name="inner"))
    with pytest.raises(SharedSessionError, match="still open"):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    outer.__exit__(None, None, None)
    session.rollback()
    names = set(session.scalars(sa.select(User.name)))
    assert {"outer", "inner"} <= names and session.guard.held is None
