"""What was wrong once, each with the steps that showed it."""

from __future__ import annotations

import copy
import gc
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.orm import Session, sessionmaker

from sharedsession import (
    LockTimeout,
    SharedSession,
    SharedSessionError,
    UpgradeError,
    WorkLostError,
    critical_section,
    shared_session,
)
from sharedsession.guard import deadlocks
from sharedsession.guard.access import LOAD, WRITE, Kind
from sharedsession.guard.guard import Guard
from sharedsession.guard.kinds import make_guard
from sharedsession.operations.operation import run

from ..support.models import Address, Note, User, Visit
from ..support.threads import Worker, inside, passes, wait_for, wait_until


def test_a_stream_that_ends_inside_an_operation_keeps_the_guard(session: Any) -> None:
    statement = sa.select(User).execution_options(stream_results=True)
    held = []

    @sa.event.listens_for(User, "load")
    def look(*args: Any) -> None:
        held.append(session.guard.held)

    session.expunge_all()
    session.execute(statement).all()
    sa.event.remove(User, "load", look)
    assert held == ["exclusive"] * 4
    assert session.guard.held is None


def test_a_stream_collected_inside_an_operation_keeps_the_guard(session: Any) -> None:
    kept = [session.execute(sa.select(User.id).execution_options(yield_per=1))]
    kept[0].fetchone()

    @sa.event.listens_for(session, "before_flush", once=True)
    def forget(*args: Any) -> None:
        kept.clear()
        gc.collect()
        others.append(Worker(lambda: session.get(User, 1)))
        assert not passes(others[0], session.guard)

    others: list[Worker] = []
    session.add(User())
    session.flush()
    assert session.guard.held is None
    others[0].result()  # or it would use the session while the test puts it away


@pytest.mark.parametrize("kind", [Kind.RLOCK, Kind.RW])
def test_a_read_section_that_waited_for_another_is_one(kind: Kind) -> None:
    guard = Guard(kind)
    refused = []

    def read() -> None:
        hold = guard.hold_shared("read section")
        try:
            run(guard, WRITE, lambda: None)
        except UpgradeError as error:
            refused.append(error)
        hold.release()

    first = guard.hold_shared("read section")
    other = Worker(read)
    if kind is Kind.RLOCK:
        assert not passes(other, guard)
    first.release()
    other.result()
    assert refused


def test_who_has_the_lock_through_one_guard_may_use_the_other() -> None:
    lock = threading.RLock()
    one, two = make_guard(lock), make_guard(lock)
    assert one is not None and two is not None
    hold = one.hold("section")
    other = Worker(lambda: run(two, WRITE, lambda: None))
    assert not passes(other, two)
    run(two, WRITE, lambda: None)
    hold.release()
    other.result()


def test_a_dead_threads_stream_is_no_unfinished_section(session: Any) -> None:
    kept: list[Any] = []

    def leave_stream() -> None:
        session.add(User(name="kept"))
        statement = sa.select(User.id).execution_options(yield_per=1)
        kept.append(session.execute(statement))

    Worker(leave_stream).result()
    wait_until(lambda: session.guard.owner is None)
    session.commit()
    assert "kept" in set(session.scalars(sa.select(User.name)))


def test_a_hold_forgotten_while_the_mutex_is_taken_is_released() -> None:
    guard = Guard()
    hold = guard.hold("section")
    with guard._mutex:
        del hold
        gc.collect()
        assert guard.turn is not None
    guard.stats()  # whoever has the mutex next sees to it
    assert guard.turn is None


def test_a_begin_in_a_joined_block_raises_as_ever(session: Any) -> None:
    Worker(lambda: session.add(User(name="other"))).result()
    with session.begin():
        with pytest.raises(InvalidRequestError, match="already begun"):
            session.begin()
        assert session.guard.held == "exclusive"


def test_a_heir_that_never_came_does_not_keep_the_session() -> None:
    guard = Guard(Kind.CONFINE)
    run(guard, WRITE, lambda: None)
    heir = Worker(lambda: None)
    heir.result()
    guard.hand_over(heir)
    run(guard, WRITE, lambda: None)
    with pytest.raises(InvalidRequestError, match="Thread"):
        guard.hand_over("heir")  # type: ignore[arg-type]


def test_looks_tell_of_lost_work_too(session: Any) -> None:
    user = User(name="mine")
    session.add(user)
    Worker(session.rollback).result()
    with pytest.raises(WorkLostError):
        user in session  # noqa: B015
    assert user not in session


@pytest.mark.parametrize(
    "write",
    [
        lambda session: session.add(User()),
        lambda session: setattr(session.get(User, 2), "name", "z"),
        lambda session: session.rollback(),
        lambda session: session.expire_all(),
        lambda session: session.execute(sa.delete(User)),
        lambda session: session.connection().execute(sa.delete(User)),
    ],
)
def test_a_listener_of_a_load_writes_nothing_in_a_read_section(
    session: Any, write: Any
) -> None:
    session.get(User, 2)

    @sa.event.listens_for(session, "do_orm_execute", once=True)
    def listen(state: Any) -> None:
        write(session)

    with session.read_section(), pytest.raises(UpgradeError):
        session.get(User, 1)
    assert session.guard.held is None


def test_such_a_listener_writes_nothing_where_its_owner_has_written_before(
    session: Any,
) -> None:
    user = session.get(User, 1)
    before = list(user.addresses)
    session.autoflush = False  # or the section would flush, and note work anew
    user.name = "pending"
    assert session.guard.last_writer is not None

    @sa.event.listens_for(session, "do_orm_execute", once=True)
    def listen(state: Any) -> None:
        user.addresses.reverse()

    with session.read_section(), pytest.raises(UpgradeError):
        session.get(User, 3)
    assert list(user.addresses) == before


def test_a_load_in_a_read_section_may_begin_what_it_needs(
    session: Any, engine: sa.Engine
) -> None:
    """BEGIN comes from a listener of the engine, SAVEPOINT with the first statement."""
    user = session.get(User, 1)
    session.commit()
    with session.read_section():
        assert user.name == "ann"
    session.begin_nested()
    session.expire(user)
    with session.read_section():
        assert user.name == "ann"


def test_changes_within_a_select_are_changes(session: Any) -> None:
    cte = sa.update(User).values(name="z").returning(User.id).cte()
    textual = sa.text("UPDATE users SET name='z' RETURNING id").columns(User.id)
    with session.read_section():
        for statement in (sa.select(cte), textual):
            with pytest.raises(UpgradeError):
                session.execute(statement)


def test_a_failed_savepoint_is_rolled_back_alone(session: Any) -> None:
    failed, go_on = threading.Event(), threading.Event()

    def fail_in_savepoint() -> None:
        session.add(User(name="outer"))
        savepoint = session.begin_nested()
        session.add(Address(email="ann@0"))
        with pytest.raises(IntegrityError):
            session.flush()
        failed.set()
        wait_for(go_on)
        savepoint.rollback()  # the other thread did it; nothing is left to do
        session.commit()

    failing = Worker(fail_in_savepoint)
    wait_for(failed)
    assert session.get(User, 1) is not None
    go_on.set()
    failing.result()
    assert "outer" in set(session.scalars(sa.select(User.name)))


def test_an_interrupt_after_a_commit_leaves_no_committed_session(session: Any) -> None:
    def interrupted() -> None:
        session.add(User(name="committed"))

        @sa.event.listens_for(session, "after_commit", once=True)
        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            session.commit()

    Worker(interrupted).result()
    assert "committed" in set(session.scalars(sa.select(User.name)))


def test_an_interrupt_in_a_release_is_made_good(session: Any) -> None:
    """The error is kept, as a notebook keeps it, and with it every frame."""
    interrupts = [KeyboardInterrupt]

    class Interrupted(Guard):
        __slots__ = ()

        def release_hold(self, hold: Any) -> None:
            if interrupts:
                raise interrupts.pop()
            super().release_hold(hold)

    guard = session.guard
    guard.__class__ = Interrupted
    with pytest.raises(KeyboardInterrupt) as kept:
        with session.critical_section():
            pass
    assert guard.held is None and kept.value is not None


def test_two_waiting_for_one_is_no_cycle() -> None:
    guard = Guard()
    with_turns = []

    def take_turns() -> None:
        for _ in range(300):
            hold = guard.hold("section")
            with_turns.append(1)
            hold.release()

    workers = [Worker(take_turns) for _ in range(3)]
    for worker in workers:
        worker.result()
    assert len(with_turns) == 900


def test_who_is_let_in_while_it_looks_for_cycles_sees_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = Guard()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        hold = guard.hold("section")
        held.set()
        wait_for(release)
        hold.release()

    holder = Worker(hold)
    wait_for(held)

    def find_a_cycle(*args: Any) -> bool:
        release.set()
        holder.result()  # which lets this thread in
        return True

    monkeypatch.setattr(deadlocks, "would_deadlock", find_a_cycle)
    run(guard, WRITE, lambda: None)


def test_a_load_in_a_read_section_may_set_what_is_committed(session: Any) -> None:
    with session.read_section():
        assert run(session.guard, LOAD, lambda: session.get(User, 1).addresses)


def test_a_unit_of_a_dead_thread_leaves_nothing_behind(session: Any) -> None:
    kept: list[Any] = []

    def leave_open() -> None:
        unit = critical_section(session, transaction="commit")
        unit.__enter__()
        session.add(User(name="half done"))
        kept.append(unit)

    Worker(leave_open).result()
    wait_until(lambda: session.guard.owner is None)
    with critical_section(session, transaction="commit"):
        session.add(User(name="whole"))
    session.rollback()
    found = set(session.scalars(sa.select(User.name)))
    assert "whole" in found and "half done" not in found


def test_mutable_values_of_plain_sessions_can_be_copied(engine: sa.Engine) -> None:
    SharedSession(engine).close()
    with Session(engine) as plain:
        user = plain.get_one(User, 1)
        for value in (user.data, user.items, user.flags):
            assert copy.deepcopy(value) == value
    with SharedSession(engine) as session:
        copied = copy.deepcopy(session.get_one(User, 1).data)
        session.get_one(User, 2).data = copied
        with inside(session.critical_section):
            other = Worker(lambda: copied.update(b=1))
            assert session.guard is not None and not passes(other, session.guard)
        other.result()


def test_a_registry_that_could_not_close_keeps_its_session(engine: sa.Engine) -> None:
    registry = shared_session(
        sessionmaker(engine, class_=SharedSession, lock_timeout=0.01)
    )
    session = registry()
    with inside(session.critical_section):
        with pytest.raises(LockTimeout):
            registry.close_all()
    assert registry() is session
    registry.close_all()
    assert registry() is not session


def test_an_engine_that_only_get_bind_knows_is_checked(engine: sa.Engine) -> None:
    other_engine = sa.create_engine("sqlite://")

    class Routed(SharedSession):
        def get_bind(self, *args: Any, **kw: Any) -> Any:
            return other_engine

    with Routed(engine) as session:
        session.execute(sa.text("SELECT 1"))
        with pytest.raises(SharedSessionError, match="SingletonThreadPool"):
            Worker(lambda: session.execute(sa.text("SELECT 1"))).result()
    other_engine.dispose()


def test_a_rollback_that_was_owed_is_not_owed_for_ever(session: Any) -> None:
    def fail() -> None:
        session.add(Address(email="ann@0"))
        with pytest.raises(IntegrityError):
            session.flush()

    failed, go_on = threading.Event(), threading.Event()

    def fail_then_close_then_work() -> None:
        fail()
        failed.set()
        wait_for(go_on)
        session.close()
        session.get(User, 1)
        session.rollback()
        assert not session.in_transaction()

    failing = Worker(fail_then_close_then_work)
    wait_for(failed)
    session.get(User, 1)
    go_on.set()
    failing.result()


def test_making_a_confined_session_is_no_use_of_it(engine: sa.Engine) -> None:
    session = SharedSession(engine, lock="confine")
    assert Worker(lambda: session.get(User, 1) is not None).result()


def test_who_loses_work_by_a_dead_threads_unit_is_told(session: Any) -> None:
    """The unit's savepoint ends first, and must not take the reason along."""
    kept: list[Any] = []
    session.add(User(name="mine"))

    def leave_open() -> None:
        kept.append(critical_section(session, transaction="commit"))
        kept[0].__enter__()
        session.add(User(name="half done"))

    Worker(leave_open).result()
    wait_until(lambda: session.guard.owner is None)
    with pytest.raises(WorkLostError, match="without finishing"):
        session.commit()


def test_an_interrupt_in_a_statement_is_the_interrupted_ones_failure(
    file_engine: sa.Engine,
) -> None:
    """SQLAlchemy drops the connection then, and with it the work of everybody."""
    with SharedSession(file_engine) as session:
        session.add(User(name="mine"))
        session.flush()

        @sa.event.listens_for(file_engine, "do_execute", once=True)
        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Worker(lambda: session.get(User, 2)).result()
        with pytest.raises(WorkLostError, match="KeyboardInterrupt"):
            session.get(User, 1)
        assert session.get(User, 1) is not None


def test_a_failed_operation_leaves_no_stream_behind(session: Any) -> None:
    kept: list[Any] = []

    @sa.event.listens_for(User, "load", once=True)
    def interrupt(*args: Any) -> None:
        statement = sa.select(Address.id).execution_options(yield_per=1)
        kept.append(session.execute(statement))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.get(User, 3)
    assert session.guard.held is None


def test_a_look_that_waited_also_ends_what_another_broke(engine: Any) -> None:
    """It comes in beside readers, where nothing can be rolled back."""
    session = SharedSession(engine, lock="rw")
    session.add(Address(email="ann@0"))  # there is one
    with session.critical_section():
        other = Worker(lambda: session.is_active)
        assert not passes(other, session.guard)
        with pytest.raises(IntegrityError):
            session.flush()
    assert other.result()
    assert not session.in_transaction()
    assert session.guard.held is None


def test_reading_a_loaded_attribute_tells_of_lost_work(session: Any) -> None:
    """Loaded again by another thread, it could be read without asking the guard."""
    user = session.get_one(User, 1)
    user.name = "mine"
    session.flush()

    def throw_away() -> str | None:
        session.rollback()
        return user.name

    assert Worker(throw_away).result() == "ann"
    with pytest.raises(WorkLostError):
        user.name
    assert user.name == "ann"


def test_begin_joins_beside_a_savepoint_of_another_thread(session: Any) -> None:
    """The savepoint is the innermost level, and not autobegun; the outer one is."""

    def leave_a_savepoint_open() -> None:
        session.get_one(User, 1)
        session.begin_nested()

    Worker(leave_a_savepoint_open).result()
    with session.begin():
        session.get_one(User, 1).name = "joined"
    assert not session.in_transaction()
    session.begin_nested()
    with pytest.raises(InvalidRequestError, match="already begun"):
        session.begin()  # this one is of the thread's own making


def test_a_flush_of_others_work_is_no_rollback_that_was_owed(session: Any) -> None:
    """It ends a level, too: then the rollback threw away what others did since."""
    session.add(Address(email="ann@0"))  # there is one
    with pytest.raises(IntegrityError):
        session.flush()
    Worker(lambda: session.add(User(name="since"))).result()
    count = sa.select(sa.func.count()).select_from(User)
    assert session.scalar(count) == 5  # flushes
    session.rollback()  # was done for this thread
    assert session.scalar(count) == 5


def test_loading_a_keyed_collection_is_no_write(session: Any) -> None:
    """Its ``set()`` goes through ``__setitem__()``, which an application may call."""
    user = session.get_one(User, 1)
    with session.read_section():
        assert user.notes["k"].text == "n"
    session.expire_all()

    def read() -> None:
        assert user.texts["k"] == "n"
        session.rollback()  # nobody has lost anything

    assert user.notes["k"].text == "n"
    Worker(read).result()
    assert user.notes["k"].text == "n"


def test_what_an_application_puts_in_a_keyed_collection_is(session: Any) -> None:
    user = session.get_one(User, 1)
    user.notes["new"] = Note(key="new")
    Worker(session.rollback).result()
    with pytest.raises(WorkLostError):
        user.notes


@pytest.mark.parametrize("new", [0, 2])
def test_a_dynamic_handle_may_be_read_in_a_read_section(session: Any, new: int) -> None:
    """SQLAlchemy has it flush, which was refused though there was nothing to flush."""
    user = session.get_one(User, 1)
    user.visits.add_all(Visit() for _ in range(new))
    with session.read_section():
        assert user.visits.count() == 1 + new
        assert len(user.visits.all()) == len(list(user.visits)) == 1 + new
        assert user.visits.first().user_id == 1
        with pytest.raises(UpgradeError):
            user.visits.append(Visit())
        with pytest.raises(UpgradeError):
            session.flush()
    user.visits.append(Visit())
    assert user.visits.count() == 2 + new
