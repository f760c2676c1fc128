"""What the usual steps do not do: each was taken for the usual once."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import subprocess
import sys
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, attributes

from sharedsession import SharedSession, SharedSessionMixin, UpgradeError, WorkLostError
from sharedsession.guard.access import READ, WRITE
from sharedsession.guard.guard import Guard
from sharedsession.operations.operation import optimistic_read, run
from sharedsession.operations.wrap import guarded

from ..support.models import Address, User, make_user

BOTH = pytest.mark.parametrize("session_class", [Session, SharedSession])


# -- errors and interrupts


class _Failing(sqlite3.Cursor):
    error: BaseException | None = None

    def fetchall(self) -> list[Any]:
        if self.error is not None:
            raise self.error
        return super().fetchall()


class _Connection(sqlite3.Connection):
    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(_Failing)


@BOTH
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, sqlite3.Error])
def test_an_error_of_a_fetch_is_the_one_that_it_was(
    session_class: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another one is being handled."""
    engine = sa.create_engine("sqlite://", connect_args={"factory": _Connection})
    wanted = sa.exc.DBAPIError if kind is sqlite3.Error else kind
    with session_class(engine) as session:
        monkeypatch.setattr(_Failing, "error", kind("mine"))
        try:
            raise LookupError("another one")
        except LookupError:
            with pytest.raises(wanted, match="mine"):
                session.execute(sa.text("SELECT 1")).all()
        monkeypatch.undo()
        session.rollback()
        assert session.execute(sa.text("SELECT 1")).all() == [(1,)]
    engine.dispose()


class _Interrupting:
    """A part of an identity that is interrupted when a dictionary asks for it."""

    def __hash__(self) -> int:
        raise KeyboardInterrupt


@BOTH
def test_an_interrupt_of_a_look_is_raised(session_class: Any, engine: Any) -> None:
    with session_class(engine) as session:
        session.get_one(User, 1)
        with pytest.raises(KeyboardInterrupt):
            session.get(User, (_Interrupting(),))
        assert session.get(User, 1).id == 1


class _NoObject:
    @property
    def _sa_instance_state(self) -> Any:
        raise KeyboardInterrupt


@BOTH
def test_an_interrupt_of_in_is_raised(session_class: Any, engine: Any) -> None:
    with session_class(engine) as session:
        with pytest.raises(KeyboardInterrupt):
            _NoObject() in session
        with pytest.raises(sa.exc.InvalidRequestError):
            object() in session


# -- connections


@BOTH
@pytest.mark.filterwarnings("ignore:The engine provided as bind")  # by 2.0
def test_a_listener_may_use_a_connection_when_it_is_made(session_class: Any) -> None:
    engine = sa.create_engine("sqlite://")

    @sa.event.listens_for(engine, "engine_connect")
    def set_up(connection: Any) -> None:
        connection.execute(sa.text("PRAGMA foreign_keys=ON"))

    with session_class(engine) as session:
        assert session.scalar(sa.text("PRAGMA foreign_keys")) == 1
        connection = session.connection()
        assert connection.get_transaction() is connection.get_transaction()
    engine.dispose()


class _OtherEngine(sa.Engine):
    """An engine that does more than make a connection."""

    connected = 0

    def connect(self) -> Any:
        _OtherEngine.connected += 1
        return super().connect()


def test_an_engine_with_its_own_connect_is_asked(engine: Any) -> None:
    other = _OtherEngine(engine.pool, engine.dialect, engine.url)
    before = _OtherEngine.connected
    with SharedSession(other) as session:
        connection = session.connection()
        assert _OtherEngine.connected == before + 1
        assert connection._sharedsession_guard() is session.guard


@BOTH
def test_savepoints_and_flushes_are_on_one_connection(
    session_class: Any, engine: Any
) -> None:
    with session_class(engine) as session:
        outer = session.connection()
        with session.begin_nested():
            assert session.connection() is outer
            session.add(make_user(name="new"))
            session.flush()
            assert session.connection() is outer
        session.rollback()


# -- looks


def test_what_a_part_of_a_look_is_told_is_not_lost() -> None:
    """It is told once, and the look would begin anew, for something has changed."""
    guard = Guard()
    calls = []

    def function(self: Any) -> None:
        calls.append(self)
        run(guard, WRITE, lambda: None)
        raise WorkLostError("yours")

    with pytest.raises(WorkLostError, match="yours"):
        guarded(function, READ, lambda self: guard)("it")
    with pytest.raises(WorkLostError, match="yours"):
        optimistic_read(guard, function, "it")
    assert calls == ["it", "it"]


# -- sections and streams


class _App(Session):
    def begin_reading(self: Any) -> Any:
        self.reading = self.read_section()
        self.reading.__enter__()
        return self.execute(sa.select(User.id), execution_options={"yield_per": 1})


class _SharedApp(SharedSessionMixin, _App):
    pass


def test_a_stream_that_an_operation_hands_out_keeps_the_guard(engine: Any) -> None:
    """Even if what the operation opened lets its owner only read."""
    with _SharedApp(engine) as session:
        stream = session.begin_reading()
        session.reading.__exit__(None, None, None)
        assert session.guard.held == "exclusive"
        assert stream.fetchone() == (1,)
        stream.close()
        assert session.guard.held is None


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize(
    "write",
    [
        lambda session, user: setattr(user, "name", "written while reading"),
        lambda session, user: attributes.set_attribute(user, "name", "the same"),
        lambda session, user: session.expire(user),
        lambda session, user: session.delete(user),
    ],
)
def test_a_listener_does_not_write_in_a_read_section(
    engine: Any, lock: str, write: Any
) -> None:
    """Not even if it is a part of a load of whoever wrote something before."""
    with SharedSession(engine, lock=lock) as session:
        user = session.get_one(User, 1)
        user.name = "written before"

        def listener(target: Any, context: Any) -> None:
            write(session, user)

        sa.event.listen(Address, "load", listener)
        try:
            with session.read_section(), pytest.raises(UpgradeError):
                session.scalars(sa.select(Address)).all()
        finally:
            sa.event.remove(Address, "load", listener)
        assert user.__dict__["name"] == "written before"
        session.rollback()


# -- attributes


@BOTH
def test_what_is_behind_an_attribute_takes_names(
    session_class: Any, engine: Any
) -> None:
    with session_class(engine) as session:
        user = session.get_one(User, 1)
        state = sa.inspect(user)
        impl: Any = User.name.impl
        impl.set(state=state, dict_=state.dict, value="by name", initiator=None)
        assert impl.get(state=state, dict_=state.dict) == "by name"
        with pytest.raises(TypeError):
            impl.get()
        session.rollback()


def test_values_that_an_extension_keeps_elsewhere() -> None:
    """In a process of its own: the extension changes the whole of SQLAlchemy."""
    said = _run_alone("""
import sqlalchemy as sa
from sqlalchemy.ext.instrumentation import InstrumentationManager
from sqlalchemy.orm import registry, relationship
from sharedsession import SharedSession
from sharedsession.objects.collections import is_guarded

class Elsewhere(InstrumentationManager):
    def instrument_attribute(self, cls, key, attribute): setattr(cls, key, attribute)
    install_descriptor = instrument_attribute
    def get_instance_dict(self, cls, thing): return thing._values
    def initialize_instance_dict(self, cls, thing): thing._values = {}
    def install_state(self, cls, thing, state):
        thing._values = getattr(thing, "_values", None) or {}
        thing._state = state
    def state_getter(self, cls): return lambda thing: thing._state
    def dict_getter(self, cls): return lambda thing: thing._values

class A:
    __slots__ = ("_values", "_state", "__weakref__")
    __sa_instrumentation_manager__ = Elsewhere
class B: pass

tables = sa.MetaData()
id = lambda: sa.Column("id", sa.Integer, primary_key=True)
a = sa.Table("a", tables, id())
b = sa.Table("b", tables, id(), sa.Column("a", sa.ForeignKey("a.id")))
mappers = registry()
mappers.map_imperatively(A, a, properties={"bs": relationship(B)})
mappers.map_imperatively(B, b)
with SharedSession(sa.create_engine("sqlite://")) as session:
    tables.create_all(session.connection())
    thing = A()
    thing.bs = [B()]
    session.add(thing)
    session.flush()
    print(thing in session, is_guarded(thing.bs), len(thing.bs))
""")
    assert said == "True True 1"


def test_greenlets_that_pass_for_threads_are_owners() -> None:
    """As with gevent, in whose place of threads many have one native number."""
    if importlib.util.find_spec("gevent") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no gevent")
    said = _run_alone("""
from gevent import monkey
monkey.patch_all()
import gevent
from sharedsession.guard.task import current_owner
first = current_owner()
again = current_owner()
others = [gevent.spawn(current_owner) for _ in range(3)]
gevent.joinall(others)
others = {it.value for it in others}
print(first is again, len(others | {first}))
""")
    assert said == "True 4"


def _run_alone(code: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
