"""What guarded attributes, states and maps do is what SQLAlchemy's own do.

Each is done twice to objects that are alike, once by the method itself; then everything
that is known of the two has to be the same.
"""

from __future__ import annotations

import copy
import gc
import itertools
import re
import sqlite3
import unittest.mock
import weakref
from typing import Any, Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import (
    Session,
    attributes,
    base,
    configure_mappers,
    make_transient,
    make_transient_to_detached,
)
from sqlalchemy.orm.exc import ObjectDereferencedError

from sharedsession import SharedSession, UpgradeError
from sharedsession.guard.access import CHANGE, LOAD
from sharedsession.internals import orm
from sharedsession.objects.attributes import install
from sharedsession.operations.inplace import is_guarded
from sharedsession.operations.operation import run
from sharedsession.operations.tables import ATTRIBUTE_IMPL

from ..support.models import Address, User
from ..support.threads import Worker, passes


@pytest.fixture(autouse=True, scope="module")
def attributes_are_guarded() -> None:
    """As they are once a shared session was made, which not every test does."""
    configure_mappers()
    install()


def known_of(instance: Any) -> dict[str, Any]:
    """All that the state of an object has, and the object's values."""
    state = sa.inspect(instance)
    # Of each object or each load, what is only there once it was asked for, and the
    # note of this library's own while there is something to flush.
    other = {"obj", "runid", "load_path", "mapper", orm.CHANGERS}
    of_state = {name: it for name, it in vars(state).items() if name not in other}
    of_state["_strong_obj"] = state._strong_obj is instance
    of_state["_instance_dict"] = state._instance_dict() is not None
    of_state["key"] = state.key and state.key[1:]
    of_state["session_id"] = state.session_id is not None
    for name in ("committed_state", "expired_attributes", "insert_order"):
        of_state[name] = repr(getattr(state, name, None))
    values = {key: value for key, value in vars(instance).items() if key[0] != "_"}
    return {"state": of_state, "values": repr(values)}


# -- setting a value


def transient(session: Session) -> User:
    return User(counter=1)


def emptied(session: Session) -> User:
    return User()


def pending(session: Session) -> User:
    user = User(counter=1)
    session.add(user)
    return user


def loaded(session: Session) -> User:
    return session.get_one(User, 1)


def changed(session: Session) -> User:
    user = session.get_one(User, 1)
    user.counter = 100
    return user


def expired(session: Session) -> User:
    user = session.get_one(User, 1)
    session.expire(user)
    return user


def deleted(session: Session) -> User:
    user = session.get_one(User, 1)
    del user.name
    return user


def detached(session: Session) -> User:
    user = session.get_one(User, 1)
    session.expunge(user)
    return user


def made_transient(session: Session) -> User:
    user = session.get_one(User, 1)
    make_transient(user)
    return user


def with_last_known_value(session: Session) -> User:
    user = session.get_one(User, 1)
    sa.inspect(user)._track_last_known_value("name")
    return user


MAKES = [
    *(transient, emptied, pending, loaded, changed, expired, deleted),
    *(detached, made_transient, with_last_known_value),
]


def set_as_sqlalchemy_does(user: User, key: str, value: Any) -> None:
    impl: Any = getattr(User, key).impl
    state = sa.inspect(user)
    orm.ScalarAttributeImpl.set(impl, state, user.__dict__, value, None)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("session_class", [Session, SharedSession])
def test_a_value_is_set_as_sqlalchemy_sets_it(
    make: Callable[[Session], User], session_class: Any, engine: sa.Engine
) -> None:
    for keys in itertools.product(["name", "counter"], repeat=2):
        found = []
        for set_value in (set_as_sqlalchemy_does, setattr):
            with session_class(engine, autoflush=False) as session:
                user = make(session)
                for number, key in enumerate(keys):
                    set_value(user, key, number)
                found.append(
                    (known_of(user), user in session.dirty, user in session.new)
                )
                session.rollback()
        assert found[0] == found[1]


@pytest.mark.parametrize("active_history", [False, True])
def test_who_listens_to_a_set_is_told(active_history: bool, engine: sa.Engine) -> None:
    # An attribute of its own: one that was listened to once is not usual any more.
    told: list[Any] = []

    def listener(user: User, value: Any, before: Any, initiator: Any) -> Any:
        told.append((value, before))
        return f"{value}, as told"

    kw = {"retval": True, "active_history": active_history}
    sa.event.listen(User.bio, "set", listener, **kw)
    try:
        user = User(bio="a")
        user.bio = "b"
    finally:
        sa.event.remove(User.bio, "set", listener)
        User.bio.impl.dispatch._active_history = False
    assert user.bio == "b, as told"
    assert told == [("a", attributes.NO_VALUE), ("b", "a, as told")]
    user.bio = "c"
    assert user.bio == "c" and len(told) == 2


@pytest.mark.parametrize("is_known", [False, True])
def test_a_copy_of_an_object_that_is_gone_is_no_object(is_known: bool) -> None:
    """It has the state of the other one, whose changes nobody could flush."""
    user = User(x=1) if is_known else User()
    copied = copy.copy(user)
    del user
    gc.collect()
    if is_known:  # SQLAlchemy looks at the first change only
        copied.name = "b"
    else:
        with pytest.raises(ObjectDereferencedError):
            copied.name = "b"


def test_a_change_of_a_plain_value_waits_for_a_section(engine: sa.Engine) -> None:
    """The first one and the next, whatever is compiled of it."""
    with SharedSession(engine) as session:
        user = session.get_one(User, 1)
        for name in ("first", "second"):
            with session.critical_section():
                writer = Worker(lambda: setattr(user, "name", name))
                assert not passes(writer, session.guard)
            writer.result()
            assert user.name == name


# -- what get() and get_history() find


def get_as_sqlalchemy_does(name: str, impl: Any) -> Callable[..., Any]:
    plain = type(impl).__mro__[1] if is_guarded(impl) else type(impl)
    function = getattr(plain, name)
    return lambda *args, **kw: function(impl, *args, **kw)


@pytest.mark.parametrize("name", ["get", "get_history"])
@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("key", ["id", "name", "addresses"])
def test_an_attribute_is_found_as_sqlalchemy_finds_it(
    name: str, make: Callable[[Session], User], key: str, engine: sa.Engine
) -> None:
    assert ATTRIBUTE_IMPL[name] is not None
    flags = [
        attributes.PASSIVE_OFF,
        attributes.PASSIVE_NO_INITIALIZE,
        attributes.PASSIVE_NO_INITIALIZE | attributes.INCLUDE_PENDING_MUTATIONS,
        attributes.PASSIVE_RETURN_NO_VALUE,
        attributes.PASSIVE_NO_FETCH,
    ]
    impl: Any = getattr(User, key).impl
    for passive, by_name in itertools.product(flags, [False, True]):
        found = []
        for get in (get_as_sqlalchemy_does(name, impl), getattr(impl, name)):
            with SharedSession(engine, autoflush=False) as session:
                user = make(session)
                args = [sa.inspect(user), user.__dict__]
                kw = {"passive": passive} if by_name else {}
                if not by_name:
                    args.append(passive)
                try:  # as a part of an operation, like SQLAlchemy does
                    value = repr(run(session.guard, LOAD, lambda: get(*args, **kw)))
                except sa.exc.SQLAlchemyError as error:
                    value = type(error).__name__
                found.append((value, known_of(user)))
                session.rollback()
        assert without_addresses(found[0]) == without_addresses(found[1])


def without_addresses(found: Any) -> Any:
    """Reprs of objects have the place in memory."""
    return re.sub(r"0x[0-9a-f]+", "", repr(found))


def test_the_history_of_what_is_pending_on_a_collection(engine: sa.Engine) -> None:
    """Appended by a backref to a collection that is not loaded."""
    with SharedSession(engine, autoflush=False) as session:
        user = session.get_one(User, 1)
        address = Address(email="new", user=user)
        passive = (
            attributes.PASSIVE_NO_INITIALIZE | attributes.INCLUDE_PENDING_MUTATIONS
        )
        impl: Any = User.addresses.impl
        history = impl.get_history(sa.inspect(user), user.__dict__, passive)
        assert list(history.added) == [address]
        session.rollback()


# -- the values of an object, by its state


def test_a_state_has_the_values_of_its_object(engine: sa.Engine) -> None:
    with SharedSession(engine) as session:
        user = session.get_one(User, 1)
        state: Any = sa.inspect(user)
        assert state.dict is user.__dict__
        with pytest.raises(AttributeError):
            state.dict = {}
        del user
        gc.collect()
        assert state.dict == {}


def test_what_finds_an_object_s_values_may_be_another(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sqlalchemy.ext.instrumentation puts it there."""
    with SharedSession(engine) as session:
        user = session.get_one(User, 1)
        state: Any = sa.inspect(user)
        with monkeypatch.context() as patch:
            patch.setattr(base, "instance_dict", lambda found: [found is user])
            assert state.dict == [True]
            patch.setattr(base, "instance_dict", None)
            with pytest.raises(TypeError):
                state.dict


# -- sessions that are gone


def _dropped_session(
    engine: sa.Engine, step: Callable[[SharedSession, User], object]
) -> tuple[User, Callable[[], SharedSession | None]]:
    session = SharedSession(engine)
    user = User(name="new")
    session.add(user)
    session.flush()
    step(session, user)
    return user, weakref.ref(session)


@pytest.mark.parametrize(
    "step",
    [
        lambda session, user: setattr(user, "name", "changed"),
        lambda session, user: (session.begin_nested(), setattr(user, "name", "b")),
        lambda session, user: session.delete(user),
        lambda session, user: user.addresses.append(Address(email="a")),
        lambda session, user: session.execute(sa.update(User).values(bio="b")),
    ],
    ids=["changed", "changed in a savepoint", "deleted", "appended", "bulk"],
)
def test_a_changed_object_lets_a_dropped_session_go(
    engine: sa.Engine, step: Callable[[SharedSession, User], object]
) -> None:
    """It is no session's then, and may be added to another one."""
    user, dropped = _dropped_session(engine, step)
    gc.collect()
    assert dropped() is None
    with SharedSession(engine) as session:
        session.add(user)
        assert user in session


# -- coming to a session, and to its identity map


EVENTS = ["before_attach", "after_attach", "transient_to_pending"]


@pytest.mark.parametrize("event", [None, *EVENTS])
@pytest.mark.parametrize("where", ["session", "class"])
def test_an_object_is_attached_as_sqlalchemy_attaches_it(
    event: str | None, where: str, engine: sa.Engine
) -> None:
    found = []
    for session_class in (Session, SharedSession):
        told: list[Any] = []
        with session_class(engine) as session:
            target = session if where == "session" else session_class

            def listener(session: Any, user: Any) -> None:
                told.append(known_of(user))

            if event is not None:
                sa.event.listen(target, event, listener)
            try:
                changed, unchanged = User(name="a"), User()
                session.add_all([changed, unchanged])
            finally:
                if event is not None:
                    sa.event.remove(target, event, listener)
            assert len(told) == (0 if event is None else 2)
            found.append((told, known_of(changed), known_of(unchanged)))
            session.rollback()
    assert found[0] == found[1]


def test_an_object_that_comes_back_is_told_of(engine: sa.Engine) -> None:
    told = []
    with SharedSession(engine) as session:
        user = session.get_one(User, 1)
        session.expunge(user)
        sa.event.listen(session, "detached_to_persistent", lambda s, u: told.append(u))
        session.add(user)
        assert told == [user]


@pytest.mark.parametrize("replaces", [False, True])
def test_a_flushed_object_is_in_the_map(replaces: bool, engine: sa.Engine) -> None:
    """In the place of another one, if that was deleted in the same flush."""
    found = []
    for session_class in (Session, SharedSession):
        with session_class(engine) as session:
            old = session.get_one(Address, 1) if replaces else None
            if old is not None:
                session.delete(old)
                session.flush()
            address = Address(id=1 if replaces else 100, email="new")
            session.add(address)
            session.flush()
            state = sa.inspect(address)
            assert session.identity_map._dict[state.key] is state
            assert state._instance_dict is session.identity_map._wr
            found.append((known_of(address), len(session.identity_map._modified)))
            session.rollback()
    assert found[0] == found[1]


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_changed_object_is_counted_in_its_map(
    is_changed: bool, engine: sa.Engine
) -> None:
    for session_class in (Session, SharedSession):
        with session_class(engine) as session:
            address = Address(email="new") if is_changed else Address()
            session.add(address)  # guarded now
            session.expunge(address)
            state: Any = sa.inspect(address)
            state.key = (Address, (100,), None)
            replace: Any = session.identity_map.replace
            for _ in range(2):  # then it is there already
                if isinstance(session, SharedSession):
                    run(session.guard, CHANGE, lambda: replace(state))
                else:
                    replace(state)
                assert (state in session.identity_map._modified) is is_changed
            assert session.identity_map._dict[state.key] is state
            session.identity_map.discard(state)


def test_a_map_knows_its_states(engine: sa.Engine) -> None:
    def known(identity_map: Any, *states: Any) -> list[Any]:
        has = [identity_map.contains_state(state) for state in states]
        return [*has, identity_map.check_modified(), len(identity_map.all_states())]

    def answers(session: Session) -> list[list[Any]]:
        user, another = session.get_one(User, 1), User(name="new")
        twin = User(id=1)
        make_transient_to_detached(twin)
        states = [sa.inspect(each) for each in (user, another, twin)]
        found = []
        for is_changed in (False, True):
            if is_changed:
                user.name = "changed"
            args = (known, session.identity_map, *states)
            if isinstance(session, SharedSession):
                found.append(run(session.guard, LOAD, *args))
            else:
                found.append(known(*args[1:]))
        session.rollback()
        return found

    found = []
    for session_class in (Session, SharedSession):
        with session_class(engine) as session:
            found.append(answers(session))
    assert found[0] == found[1]
    assert found[0] == [[True, False, False, is_changed, 1] for is_changed in (0, 1)]


# -- rows in memory


STEPS: dict[str, Callable[[Any], Any]] = {
    "all": lambda result: result.all(),
    "one by one": lambda result: [result.fetchone() for _ in range(5)],
    "by two": lambda result: [result.fetchmany(2) for _ in range(4)],
    "first": lambda result: result.first(),
    "scalar": lambda result: result.scalar(),
    "partitions": lambda result: [list(each) for each in result.partitions(2)],
    "one, rest": lambda result: [result.fetchone(), result.fetchmany(1), result.all()],
}


@pytest.mark.parametrize("size", [0, 1, 3, 4])
@pytest.mark.parametrize("steps", STEPS)
def test_rows_come_in_their_order(size: int, steps: str, engine: sa.Engine) -> None:
    def outcome(result: Any) -> Any:
        try:
            return STEPS[steps](result)
        except sa.exc.ResourceClosedError:
            return "closed"

    with Session(engine) as session:
        union = " UNION ALL ".join(f"SELECT {n}" for n in range(1, size + 1))
        statement = sa.text(union or "SELECT 1 WHERE 1 = 0")
        expected = outcome(session.execute(statement))
    with SharedSession(engine) as shared:
        assert outcome(shared.execute(statement)) == expected


def test_a_cursor_that_cannot_be_closed_is_logged(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """As SQLAlchemy does it; the rows are there all the same."""

    closed = []

    class Cursor(sqlite3.Cursor):
        def close(self) -> None:
            closed.append(self)
            super().close()
            if len(closed) == 1:
                raise ValueError("not closed")

    with SharedSession(engine) as session:
        raw: Any = session.connection().connection.driver_connection
        with unittest.mock.patch.object(
            type(session.connection().connection),
            "cursor",
            lambda *a: raw.cursor(Cursor),
        ):
            result: Any = session.execute(sa.text("SELECT 1"))
        assert result.all() == [(1,)]
        assert result._soft_closed and len(closed) == 1
    assert "Error closing cursor" in caplog.text
    assert "ValueError: not closed" in caplog.text


def test_a_list_that_the_driver_keeps_is_left_alone(engine: sa.Engine) -> None:
    kept = [(1,), (2,), (3,)]

    class Cursor(sqlite3.Cursor):
        def fetchall(self) -> Any:
            return kept

    with SharedSession(engine) as session:
        raw: Any = session.connection().connection.driver_connection
        with unittest.mock.patch.object(
            type(session.connection().connection),
            "cursor",
            lambda *a: raw.cursor(Cursor),
        ):
            for _ in range(2):
                result = session.execute(sa.text("SELECT 1"))
                assert [result.fetchone(), result.fetchone()] == [(1,), (2,)]
    assert kept == [(1,), (2,), (3,)]


# -- parts of an operation


def test_a_part_of_an_operation_is_called_right_away(engine: sa.Engine) -> None:
    """And the same method, called by another thread, waits."""
    with SharedSession(engine) as session:
        binds: list[Any] = []

        @sa.event.listens_for(session, "do_orm_execute")
        def look(state: Any) -> None:
            binds.append(session.get_bind())
            worker = Worker(lambda: session.get_nested_transaction())
            assert not passes(worker, session.guard)
            workers.append(worker)

        workers: list[Worker] = []
        session.execute(sa.text("SELECT 1"))
        assert binds == [engine]
        assert workers[0].result() is None


def test_a_flush_in_a_read_section_is_refused_as_a_part_too(engine: sa.Engine) -> None:
    with SharedSession(engine) as session:
        with session.read_section():
            sa.event.listen(session, "do_orm_execute", lambda state: session.flush())
            with pytest.raises(UpgradeError):
                session.execute(sa.text("SELECT 1"))
