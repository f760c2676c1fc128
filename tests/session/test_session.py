"""SharedSession: a Session for one thread, and what only a shared one has."""

from __future__ import annotations

import copy
import inspect
import json
import os
import pickle
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, object_session, sessionmaker
from sqlalchemy.pool import QueuePool, SingletonThreadPool, StaticPool

from sharedsession import (
    ConcurrentAccessError,
    ForkedSessionError,
    LockTimeout,
    SharedSession,
    SharedSessionError,
    SharedSessionMixin,
    UpgradeError,
    share,
)
from sharedsession.guard.access import Kind
from sharedsession.objects.guards import guards_by_session
from sharedsession.operations.tables import SESSION

from ..support.models import Address, Base, Tag, User
from ..support.threads import Worker, inside, passes, together

ALL_KINDS = ["rlock", "rw", "detect", "confine"]


# -- a Session


def test_it_is_a_session(session: Any) -> None:
    assert isinstance(session, Session)
    user = session.get(User, 1)
    assert object_session(user) is session
    assert type(user) is User
    assert isinstance(user.addresses, list)
    assert user.addresses.__class__.__name__ == "InstrumentedList"
    assert json.dumps(user.data) == '{"a": 1}'
    assert sa.inspect(user).__class__ is sa.orm.InstanceState


def test_the_methods_have_the_very_parameters() -> None:
    for name in SESSION:
        plain = getattr(Session, name, None)
        if inspect.isfunction(plain):
            shared = getattr(SharedSession, name)
            assert inspect.getfullargspec(shared) == inspect.getfullargspec(plain)
            assert parameters(shared) == parameters(plain)
            assert shared.__doc__ == plain.__doc__


def parameters(function: Any) -> tuple[str, ...]:
    code = function.__code__
    names: tuple[str, ...] = code.co_varnames
    return names[: code.co_argcount + code.co_kwonlyargcount]


def test_a_pickle_has_nothing_of_ours(session: Any) -> None:
    user = session.get(User, 1)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        user.addresses, user.tags, user.notes, user.data, user.items, user.flags
        text = pickle.dumps(user, protocol)
        assert b"sharedsession" not in text.replace(b"tests.", b"")
        copied = pickle.loads(text)
        assert copied.name == "ann"
        assert [address.email for address in copied.addresses] == [
            address.email for address in user.addresses
        ]
        assert copied.data == {"a": 1}
        session.rollback()
        with Session(session.bind) as other:
            assert other.merge(copied).name == "ann"


def test_collections_and_values_copy_as_plain_ones(session: Any) -> None:
    user = session.get(User, 1)
    assert type(copy.copy(user.data)) is not type(user.data)
    assert copy.deepcopy(user.items) == [1, 2]
    assert sorted(user.data | {"b": 2}) == ["a", "b"]


def test_off_is_a_plain_session(engine: sa.Engine) -> None:
    for off in ("off", None):
        with SharedSession(engine, lock=off) as session:
            assert session.guard is None
            user = session.get(User, 1)
            assert type(sa.inspect(user)) is sa.orm.InstanceState
            with session.critical_section() as inside_section:
                assert inside_section is session
            with session.read_section():
                user.name = "new"  # nothing is guarded
            session.rollback()


def test_objects_of_plain_sessions_are_left_alone(engine: sa.Engine) -> None:
    with SharedSession(engine), Session(engine) as plain:
        user = plain.get_one(User, 1)
        assert type(sa.inspect(user)) is sa.orm.InstanceState
        assert type(user.addresses) is sa.orm.collections.InstrumentedList
        assert type(user.data).__mro__[0].__module__ == "sqlalchemy.ext.mutable"
        assert type(user.data) is type(user.data).__mro__[0]
        with inside(SharedSession(engine).critical_section):
            user.name = "new"
            user.addresses.append(Address())
            user.data["b"] = 2
        plain.rollback()


def test_objects_leave_and_come_as_they_are_attached(session: Any) -> None:
    user = session.get(User, 1)
    user.addresses
    with inside(session.critical_section):
        other = Worker(lambda: len(user.addresses))
        assert not passes(other, session.guard)
    other.result()
    session.expunge(user)
    with inside(session.critical_section):
        assert len(user.addresses) == 3
        user.name = "detached"
    session.add(user)
    with inside(session.critical_section):
        other = Worker(lambda: user.addresses.append(Address()))
        assert not passes(other, session.guard)
    other.result()


def test_a_new_object_is_guarded_when_it_is_added(session: Any) -> None:
    user = User(addresses=[Address()], data={"a": 1}, tags={Tag()})
    session.add(user)
    with inside(session.critical_section):
        for use in (
            lambda: user.addresses.append(Address()),
            lambda: user.tags.add(Tag()),
            lambda: user.data.update(b=1),
            lambda: user.addresses[0].email,
        ):
            other = Worker(use)
            assert not passes(other, session.guard)
    other.result()


def test_the_guards_table_goes_with_the_session(engine: sa.Engine) -> None:
    session = SharedSession(engine)
    number = session.hash_key
    assert guards_by_session[number] is session.guard
    del session
    assert number not in guards_by_session


# -- one and the same task of several threads


@pytest.mark.parametrize("kind", ["rlock", "rw"])
def test_no_update_is_lost(engine: sa.Engine, kind: str) -> None:
    session = SharedSession(engine, lock=kind)
    user = session.get_one(User, 1)

    def count() -> None:
        for _ in range(500):
            with session.critical_section():
                counter = user.counter
                os.sched_yield()
                user.counter = counter + 1

    together(count, count)
    session.commit()
    assert user.counter == 1000
    session.close()


def test_control_without_a_guard_updates_are_lost(engine: sa.Engine) -> None:
    session = SharedSession(engine, lock="off")
    user = session.get_one(User, 1)
    read, written = threading.Barrier(2), threading.Barrier(2)

    def count() -> None:
        with session.critical_section():
            counter = user.counter
            read.wait(5)
            user.counter = counter + 1
            written.wait(5)

    together(count, count)
    assert user.counter == 1
    session.close()


def test_listeners_validators_and_defaults_may_use_the_session(session: Any) -> None:
    seen = []

    @sa.event.listens_for(session, "before_flush")
    def look(*args: Any) -> None:
        seen.append(session.get(User, 1).name)

    session.add(User(name="new"))
    session.commit()
    assert seen == ["ann"]


# -- sections


def test_reading_loads_inside_a_read_section(session: Any) -> None:
    session.add(User(name="pending"))
    with session.read_section():
        names = set(session.scalars(sa.select(User.name)))
        assert "pending" in names  # flushed on the way in
        assert len(session.get(User, 2).addresses) == 3
        assert session.connection().scalar(sa.text("SELECT 1")) == 1


def test_no_autoflush_no_flush_on_the_way_in(engine: sa.Engine, lock: str) -> None:
    with SharedSession(engine, lock=lock, autoflush=False) as session:
        session.add(User(name="pending"))
        with session.read_section():
            assert "pending" not in set(session.scalars(sa.select(User.name)))
        assert session.new


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_writing_in_a_read_section_changes_nothing(
    engine: sa.Engine, kind: str
) -> None:
    session = SharedSession(engine, lock=kind)
    user = session.get_one(User, 1)
    user.addresses, user.data
    for write in (
        lambda: setattr(user, "name", "new"),
        lambda: user.addresses.append(Address()),
        lambda: user.addresses.clear(),
        lambda: user.data.update(b=1),
        lambda: session.add(User()),
        lambda: session.delete(user),
        lambda: session.execute(sa.delete(User)),
        lambda: session.execute(sa.text("DELETE FROM users")),
        lambda: session.commit(),
        lambda: session.rollback(),
        lambda: session.expire(user),
        lambda: session.begin_nested(),
        lambda: session.critical_section().__enter__(),
        lambda: session.get(User, 1, populate_existing=True),
    ):
        with session.read_section():
            with pytest.raises(UpgradeError):
                write()
            assert (user.name, len(user.addresses), user.data) == ("ann", 3, {"a": 1})
    assert session.guard is not None and session.guard.held is None
    session.close()


def test_a_with_block_whose_end_timed_out_can_be_ended_again(session: Any) -> None:
    around = len(session._blocks)
    block = session.__enter__()
    session.scalar(sa.text("SELECT 1"))
    session.guard.timeout = 0.01
    with inside(session.critical_section):
        with pytest.raises(LockTimeout):
            block.__exit__(None, None, None)
    assert session.in_transaction()
    block.__exit__(None, None, None)
    assert not session.in_transaction() and len(session._blocks) == around


def test_a_stream_that_outlives_its_read_section_is_named_in_refusals(
    session: Any,
) -> None:
    statement = sa.select(User.id).execution_options(yield_per=1)
    for write in (
        lambda: session.add(User(name="new")),
        lambda: session.critical_section().__enter__(),
    ):
        with session.read_section():
            result = session.execute(statement)
            with pytest.raises(UpgradeError, match="read section"):
                write()
        if session.guard.kind is Kind.RW:
            with pytest.raises(UpgradeError, match="close it first"):
                write()
        result.close()
    write().__exit__(None, None, None)
    assert session.guard.held is None


def test_a_section_is_entered_once_and_released_once(session: Any) -> None:
    section = session.critical_section()
    with pytest.raises(SharedSessionError, match="nothing to release"):
        section.__exit__(None, None, None)
    with section:
        with pytest.raises(SharedSessionError, match="entered already"):
            section.__enter__()
    with pytest.raises(SharedSessionError, match="nothing to release"):
        section.__exit__(None, None, None)
    assert session.guard.held is None


def test_timeouts(engine: sa.Engine) -> None:
    session = SharedSession(engine, lock_timeout=0.01)
    user = session.get_one(User, 1)
    with inside(session.critical_section):
        for use in (
            lambda: user.name,
            lambda: session.add(User()),
            lambda: session.critical_section(timeout=0.01).__enter__(),
            lambda: session.read_section(timeout=0.01).__enter__(),
        ):
            with pytest.raises(LockTimeout, match="'holder'"):
                use()
    assert user.name == "ann"
    for bad in (0, -1, "x"):
        with pytest.raises(ValueError, match="timeout"):
            session.critical_section(timeout=bad)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout"):
            SharedSession(engine, lock_timeout=bad)  # type: ignore[arg-type]
    session.close()


# -- refused


def test_a_second_thread_on_a_pool_of_threads() -> None:
    engine = sa.create_engine("sqlite://")
    assert isinstance(engine.pool, SingletonThreadPool)
    Base.metadata.create_all(engine)
    with SharedSession(engine) as session:
        session.add(User())
        session.commit()
        for use in (lambda: session.add(User()), lambda: session.get(User, 1)):
            with pytest.raises(SharedSessionError, match="StaticPool.*QueuePool"):
                Worker(use).result()
        assert session.guard is not None and session.guard.held is None
        assert session.get(User, 1) is not None
    engine.dispose()


@pytest.mark.parametrize("pool", [StaticPool, QueuePool])
def test_a_second_thread_on_sqlite_that_checks(pool: Any, tmp_path: Any) -> None:
    engine = sa.create_engine(
        f"sqlite:///{tmp_path}/a.db",
        poolclass=pool,
        connect_args={"check_same_thread": True},
    )
    with SharedSession(engine) as session:
        session.execute(sa.text("SELECT 1"))
        with pytest.raises(SharedSessionError, match="check_same_thread.*False"):
            Worker(lambda: session.add(User())).result()
        assert session.guard is not None and session.guard.held is None
        session.execute(sa.text("SELECT 1"))
    engine.dispose()


def test_a_file_needs_nothing(tmp_path: Any) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db")
    with SharedSession(engine) as session:
        session.execute(sa.text("SELECT 1"))
        Worker(lambda: session.execute(sa.text("SELECT 1"))).result()
    engine.dispose()


def test_a_session_cannot_be_pickled(session: Any) -> None:
    with pytest.raises(SharedSessionError, match="pickled"):
        pickle.dumps(session)


@pytest.mark.parametrize("lock", ["mutex", 3])
def test_bad_locks(engine: sa.Engine, lock: Any) -> None:
    with pytest.raises(ValueError, match="'rlock', 'rw', 'detect', 'confine', 'off'"):
        SharedSession(engine, lock=lock)


# -- other ways to have one


def test_share_guards_what_is_there(engine: sa.Engine) -> None:
    with Session(engine) as plain:
        user = plain.get_one(User, 1)
        user.addresses, user.data
        user.name = "changed"
        connection = plain.connection()
        transaction = plain.get_transaction()
        assert share(plain, lock="rw") is plain
        assert isinstance(plain, SharedSessionMixin)
        with inside(plain.critical_section):  # type: ignore[attr-defined]
            for use in (
                lambda: user.name,
                lambda: user.addresses.append(Address()),
                lambda: user.data,
                lambda: connection.scalar(sa.text("SELECT 1")),
                lambda: transaction.rollback(),  # type: ignore[union-attr]
                lambda: plain.identity_map.keys(),
            ):
                other = Worker(use)
                assert not passes(other, plain.guard)  # type: ignore[attr-defined]
        with pytest.raises(SharedSessionError, match="already"):
            share(plain)
        other.result()


def test_share_refuses_what_is_no_session() -> None:
    with pytest.raises(SharedSessionError, match="Session"):
        share("session")  # type: ignore[type-var]


def test_the_mixin_guards_what_a_class_adds(engine: sa.Engine) -> None:
    class Own(Session):
        def rename(self, user: Any) -> None:
            user.name = "own"

    class SharedOwn(SharedSessionMixin, Own):
        pass

    maker = sessionmaker(engine, class_=SharedOwn, lock="rw")
    with maker() as session:
        user = session.get_one(User, 1)
        with inside(session.critical_section):
            other = Worker(lambda: session.rename(User()))
            assert not passes(other, session.guard)
        other.result()
        with session.read_section():
            with pytest.raises(UpgradeError):
                session.rename(user)
        session.rename(user)
        assert user.name == "own"


def test_sqlmodel(engine: sa.Engine) -> None:
    sqlmodel = pytest.importorskip("sqlmodel")

    class S(SharedSessionMixin, sqlmodel.Session):  # type: ignore[misc, name-defined]
        pass

    with S(engine, lock="rw") as session:
        with session.read_section():
            assert session.exec(sa.select(User.id)).first() == (1,)
        with inside(session.critical_section):
            other = Worker(lambda: session.exec(sa.select(User.id)).first())
            assert not passes(other, session.guard)
        assert other.result() == (1,)


# -- forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_child_of_a_fork_is_refused(session: Any) -> None:
    user = session.get(User, 1)
    user.name
    with session.critical_section():
        pid = os.fork()
        if pid == 0:
            refused = 0
            for use in (
                lambda: user.name,
                lambda: session.add(User()),
                lambda: session.get(User, 1),
                lambda: session.critical_section().__enter__(),
                lambda: session.close(),
            ):
                try:
                    use()
                except ForkedSessionError as error:
                    refused += str(os.getppid()) in str(error)
            os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    user.name = "still here"
    session.commit()
    assert isinstance(ConcurrentAccessError(), sa.exc.InvalidRequestError)
