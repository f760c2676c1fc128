"""What the compiled part does in the place of SQLAlchemy's methods is what they do.

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
from typing import Any, Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import (
    ColumnProperty,
    Session,
    attributes,
    base,
    configure_mappers,
    make_transient,
    make_transient_to_detached,
    relationship,
)
from sqlalchemy.orm.exc import ObjectDereferencedError

from sharedsession import (
    SharedSession,
    SharedSessionMixin,
    UpgradeError,
    WorkLostError,
    alchemy,
    compiled,
    instances,
)
from sharedsession.disguise import is_ours
from sharedsession.operations import ATTRIBUTE_IMPL, run
from sharedsession.terms import CHANGE, LOAD

from .models import Address, Log, Tag, User, Visit, make_user
from .threads import Worker, passes

needs_compiled = pytest.mark.skipif(
    compiled.parts is None, reason="the compiled part was not built, or is disabled"
)


@pytest.fixture(autouse=True, scope="module")
def attributes_are_guarded() -> None:
    """As they are once a shared session was made, which not every test does."""
    configure_mappers()
    instances.install()


def known_of(instance: Any) -> dict[str, Any]:
    """All that the state of an object has, and the object's values."""
    state = sa.inspect(instance)
    # Of each object or each load, and what is only there once it was asked for.
    other = {"obj", "runid", "load_path", "mapper"}
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
    alchemy.ScalarAttributeImpl.set(impl, state, user.__dict__, value, None)


@needs_compiled
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


@needs_compiled
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


@needs_compiled
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
    plain = type(impl).__mro__[1] if is_ours(impl) else type(impl)
    function = getattr(plain, name)
    return lambda *args, **kw: function(impl, *args, **kw)


@needs_compiled
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


@needs_compiled
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


@needs_compiled
def test_a_state_is_made_as_sqlalchemy_makes_it() -> None:
    classes = instances.PlainState, instances.GuardedState
    make, user, manager = compiled.parts.Maker(*classes), User(), object()
    made, plain = make(user, manager), instances.PlainState(user, manager)
    assert type(made) is instances.PlainState
    assert list(vars(made)) == list(vars(plain))
    for state in (made, plain):
        assert state.class_ is User and state.manager is manager
        assert state.obj() is user and state.obj.__callback__ == state._cleanup
        assert state.committed_state == {} and state.expired_attributes == set()
    assert made.committed_state is not plain.committed_state
    for wrong in ((), (user,), (user, manager, None), (None, manager)):
        for way in (make, instances.PlainState):
            with pytest.raises(TypeError):
                way(*wrong)
    assert vars(make(obj=user, manager=manager)).keys() == vars(plain).keys()


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
        twin = make_detached()
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


# -- many at once


class _Counting(Session):
    """A session class that has an opinion of what is added."""

    added = 0

    def add(self, instance: object, _warn: bool = True) -> None:
        self.added += 1
        super().add(instance, _warn=_warn)


class _SharedCounting(SharedSessionMixin, _Counting):
    pass


class _CountingShared(SharedSession):
    added = 0

    def add(self, instance: object, _warn: bool = True) -> None:
        self.added += 1
        super().add(instance, _warn=_warn)


@pytest.mark.parametrize("session_class", [_SharedCounting, _CountingShared])
def test_add_all_calls_the_add_of_the_application(
    session_class: Any, engine: sa.Engine
) -> None:
    with session_class(engine) as session:
        session.add_all([User(), User()])
        assert session.added == 2 and len(session.new) == 2
        session.rollback()


def detached(session: Session) -> User:
    user = session.get_one(User, 1)
    assert user.addresses
    session.expunge_all()
    return user


def without_one(user: User) -> User:
    user.addresses.pop()
    return user


def with_a(child: Any, name: str, user: User) -> User:
    attribute = getattr(user, name)
    (attribute.append if hasattr(attribute, "append") else attribute.add)(child)
    return user


GRAPHS: dict[str, Callable[[Session], list[Any]]] = {
    "alone": lambda session: [User(), User(name="a")],
    "with all": lambda session: [make_user()],
    "with a parent": lambda session: [Address(user=User()), Address()],
    "with a loaded parent": lambda session: [Address(user=session.get_one(User, 1))],
    "with none": lambda session: [Address(user=None), User(addresses=[])],
    "with others of others": lambda session: [
        Address(user=User(addresses=[Address()], tags={Tag()}))
    ],
    "of several kinds": lambda session: [User(), Address(user=User()), Tag(), User()],
    "twice": lambda session: [make_user()] * 2,
    "detached": lambda session: [detached(session)],
    "detached, unloaded": lambda session: [User(), make_detached()],
    "detached, without one": lambda session: [without_one(detached(session))],
    "with a log": lambda session: [with_a(Log(), "logs", User())],
    "with a visit": lambda session: [with_a(Visit(), "visits", User())],
    "detached, with a log": lambda session: [with_a(Log(), "logs", detached(session))],
    "detached, with a visit": lambda session: [
        with_a(Visit(), "visits", detached(session))
    ],
    "not mapped": lambda session: [User(), object(), User()],
}


def make_detached() -> User:
    user = User(id=1)
    make_transient_to_detached(user)
    return user


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("graph", GRAPHS)
def test_add_all_adds_what_comes_with_it(
    graph: str, listens: bool, engine: sa.Engine
) -> None:
    def attach(session: Session, instance: Any) -> None:
        if isinstance(instance, User):
            attributes.set_committed_value(instance, "tags", {Tag()})  # without events

    def added(session: Session) -> Any:
        instances = GRAPHS[graph](session)
        if listens:
            sa.event.listen(session, "before_attach", attach)
        try:
            session.add_all(instances)
        except sa.exc.InvalidRequestError as error:
            return str(error)[:20]
        new = sorted(session.new, key=lambda each: sa.inspect(each).insert_order)
        old = sorted(session.identity_map.keys(), key=repr)
        return [type(each).__name__ for each in new], [key[1:] for key in old]

    found = []
    for session_class in (Session, SharedSession):
        with session_class(engine, autoflush=False) as session:
            found.append(added(session))
            session.rollback()
    assert found[0] == found[1]


class _Asked:
    """Of an attribute that an application has made, which may add whatever it wants."""

    inherit_cache = True
    asked: list[str] = []

    def cascade_iterator(self, type_: str, *args: Any, **kw: Any) -> Any:
        self.asked.append(type_)
        return iter(())


class _AskedColumn(_Asked, ColumnProperty[int]):
    cascade = frozenset({"save-update"})


class _AskedRelationship(_Asked, type(relationship())):  # type: ignore[misc]
    pass


@pytest.fixture
def things() -> Iterator[Any]:
    """Makes a class that has a table, and others, with what attributes it is told."""
    registry = sa.orm.registry()

    def make(**properties: Any) -> Any:
        number = len(registry.metadata.tables)
        first = sa.ForeignKey("thing_0.id") if number else None
        table = sa.Table(
            f"thing_{number}",
            registry.metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("parent", sa.Integer, first),
        )
        made = type(f"Thing{number}", (), {})
        found = {name: of_table(table) for name, of_table in properties.items()}
        registry.map_imperatively(made, table, properties=found)
        return made

    yield make
    registry.dispose()


def test_add_all_asks_a_column_of_another_kind(things: Any, engine: sa.Engine) -> None:
    Thing = things(parent=lambda table: _AskedColumn(table.c.parent))
    for session_class in (Session, SharedSession):
        _Asked.asked.clear()
        with session_class(engine) as session:
            session.add_all([Thing(), Thing()])
            assert _Asked.asked == ["save-update"] * 2
            session.expunge_all()


def test_add_all_asks_a_relationship_of_another_kind(
    things: Any, engine: sa.Engine
) -> None:
    others: list[Any] = []
    Thing = things(others=lambda table: _AskedRelationship(lambda: others[0]))
    others.append(things())
    for session_class in (Session, SharedSession):
        _Asked.asked.clear()
        with session_class(engine) as session:
            session.add_all([Thing(), Thing()])
            assert _Asked.asked == ["save-update"] * 2
            session.expunge_all()


def test_an_attribute_may_come_later(things: Any, engine: sa.Engine) -> None:
    Thing, Other = things(), things()
    with SharedSession(engine) as session:
        session.add_all([Thing()])
        mapper: Any = sa.inspect(Thing)
        mapper.add_property("others", relationship(Other))
        thing = Thing()
        thing.others = [Other()]
        session.add_all([thing])
        assert len(session.new) == 3
        session.expunge_all()


def test_what_was_added_before_an_error_is_noted(engine: sa.Engine) -> None:
    """Another thread throws it away; who added it has to be told."""
    with SharedSession(engine) as session:
        with pytest.raises(sa.exc.InvalidRequestError):
            session.add_all([User(), object()])
        Worker(session.rollback).result()
        with pytest.raises(WorkLostError):
            session.commit()


def test_nothing_is_added_in_a_read_section(engine: sa.Engine) -> None:
    with SharedSession(engine) as session:

        def users() -> Iterator[User]:
            with session.read_section():
                yield User()

        with pytest.raises(UpgradeError):
            session.add_all(users())
        assert not session.new


class _Saving(Session):
    """A session class that has an opinion of what is saved."""

    saved = 0

    def _save_or_update_state(self, state: Any) -> None:
        self.saved += 1
        super()._save_or_update_state(state)  # type: ignore[misc]


class _SharedSaving(SharedSessionMixin, _Saving):
    pass


class _SavingShared(_Saving, SharedSession):
    pass


@pytest.mark.parametrize("session_class", [_Saving, _SharedSaving, _SavingShared])
def test_what_an_application_makes_of_saving_is_done(
    session_class: Any, engine: sa.Engine
) -> None:
    with session_class(engine) as session:
        session.add_all([User(), User()])
        assert session.saved == 2
        session.rollback()


def test_a_method_of_sqlalchemy_s_that_is_replaced_is_called(engine: sa.Engine) -> None:
    with SharedSession(engine) as session:
        with unittest.mock.patch.object(Session, "add") as add:
            session.add_all([User(), User()])
        assert add.call_count == 2


def test_add_all_waits_for_a_section(engine: sa.Engine) -> None:
    with SharedSession(engine) as session:
        users = [User(name="a"), User(name="b")]
        with session.critical_section():
            adder = Worker(lambda: session.add_all(users))
            assert not passes(adder, session.guard)
            assert len(session.new) == 0
        adder.result()
        assert len(session.new) == 2
        session.rollback()


@pytest.mark.parametrize("of_class", [False, True])
def test_a_method_that_is_replaced_is_called(of_class: bool, engine: sa.Engine) -> None:
    with SharedSession(engine) as session:
        session.add_all([User(), User()])
        session.scalars(sa.select(User)).all()
        target = SharedSession if of_class else session
        with unittest.mock.patch.object(target, "add") as add:
            session.add_all([User(), User()])
        with unittest.mock.patch.object(target, "flush") as flush:
            session.scalars(sa.select(User)).all()
        assert add.call_count == 2 and flush.call_count == 1
        session.rollback()


def test_a_shared_session_may_stand_in_the_place_of_all(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sa.orm, "Session", SharedSession)
    with SharedSession(engine) as session:
        session.add_all([User(name="new")])
        assert session.scalar(sa.text("SELECT 1"), {}) == 1
        assert session.scalars(sa.select(User).where(User.name == "new")).one()
        session.rollback()


class _Off(SharedSession):
    guard = None


def test_a_class_may_have_no_guard(engine: sa.Engine) -> None:
    with _Off(engine, lock=None) as session:
        session.add_all([User()])
        assert len(session.scalars(sa.select(User)).all()) == 5
        session.rollback()


class _Flushing(SharedSession):
    flushes = 0

    def flush(self, objects: Any = None) -> None:
        self.flushes += 1
        super().flush(objects)


def test_an_autoflush_calls_the_flush_of_the_application(engine: sa.Engine) -> None:
    """Also if there is nothing to flush, like in a plain session."""
    with _Flushing(engine) as session:
        session.scalars(sa.select(User)).all()
        assert session.flushes == 1


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


# -- executing a statement


class _Recorder:
    """A connection that says what it is asked to execute."""

    def execute(self, *args: Any, **kw: Any) -> Any:
        return "execute", args, kw

    def scalar(self, *args: Any, **kw: Any) -> Any:
        return "scalar", args, kw


class _Recording(Session):
    """A session that does so of the steps, and goes no further."""

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.steps: list[Any] = []

    def _autoflush(self) -> None:
        self.steps.append("autoflush")

    def get_bind(self, *args: Any, **kw: Any) -> Any:
        self.steps.append((args, kw))
        return "bind"

    def _connection_for_bind(self, *args: Any, **kw: Any) -> Any:
        self.steps.append((args, kw))
        return _Recorder()


STATEMENTS: dict[str, Any] = {
    "text": sa.text("SELECT 1"),
    "text with options": sa.text("SELECT 1").execution_options(some="thing"),
    "select": sa.select(User.__table__),
    "select of objects": sa.select(User),
    "union": sa.union(sa.select(sa.literal(1)), sa.select(sa.literal(2))),
    "insert": sa.insert(User.__table__),
    "insert of objects": sa.insert(User),
    "update": sa.update(User.__table__),
    "delete": sa.delete(User.__table__),
    "function": sa.func.now(),
    "lambda": lambda: sa.select(User.__table__),
    "string": "SELECT 1",
    "no statement": object(),
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scalar": {"_scalar_result": True},
    "options": {"execution_options": {"some": "thing"}},
    "no options": {"execution_options": {}},
    "bind": {"bind_arguments": {"bind": "another"}},
    "event": {"_add_event": lambda state: None},
}


def _listening() -> _Recording:
    session = _Recording()
    sa.event.listen(session, "do_orm_execute", lambda state: None)
    return session


SESSIONS: dict[str, Any] = {"plain": _Recording, "listening": _listening}
if Session._execute_internal in alchemy.quicker:
    SESSIONS["options"] = lambda: _Recording(execution_options={"of": "session"})


PARAMS: list[Any] = [None, {}, {"a": 1}, [{"a": 1}, {"a": 2}]]


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_is_executed_as_sqlalchemy_executes_it(
    statement: str, arguments: str, session: str
) -> None:
    def outcome(execute: Any, params: Any) -> Any:
        recording = SESSIONS[session]()
        keywords = ARGUMENTS[arguments]
        try:
            done = execute(recording, STATEMENTS[statement], params, **keywords)
        except Exception as error:
            done = type(error)
        return re.sub("0x[0-9a-f]+", "somewhere", repr([done, recording.steps]))

    quicker = alchemy.quicker.get(Session._execute_internal, Session)
    for params in PARAMS:
        expected = outcome(Session._execute_internal, params)
        assert outcome(quicker._execute_internal, params) == expected


# -- the part of a flush that a transaction is


def commits(session: Session, context: Any = None) -> None:
    session.commit()


def rolls_back(session: Session, context: Any = None) -> None:
    session.rollback()


def closes(session: Session, context: Any = None) -> None:
    session.close()


def fails(session: Session, context: Any = None) -> None:
    raise RuntimeError("no")


def ends_the_part(session: Session, context: Any) -> None:
    context.transaction.commit()


def ends_all(session: Session, context: Any) -> None:
    context.transaction.commit(_to_root=True)


def begins_a_savepoint(session: Session, context: Any) -> None:
    session.begin_nested()


def begins_one_that_ends_the_part(session: Session, context: Any) -> None:
    def end(session: Session, transaction: Any) -> None:
        transaction.parent.commit()

    sa.event.listen(session, "after_transaction_create", end, once=True)
    session.begin_nested()


def begins_one_that_ends_both(session: Session, context: Any) -> None:
    def end(session: Session, transaction: Any) -> None:
        transaction.close()
        transaction.parent.commit()

    sa.event.listen(session, "after_transaction_create", end, once=True)
    session.begin_nested()


def ends_the_part_when_it_has_failed(session: Session, context: Any) -> None:
    def end(session: Session) -> None:
        context.transaction.commit()

    sa.event.listen(session, "after_rollback", end, once=True)
    raise RuntimeError("no")


def nothing(session: Session, context: Any) -> None:
    pass


@pytest.mark.parametrize("is_told", [False, True])
@pytest.mark.parametrize("in_savepoint", [False, True])
@pytest.mark.parametrize(
    "hook",
    [
        *(nothing, commits, rolls_back, closes, fails),
        *(ends_the_part, ends_all, begins_a_savepoint),
        *(begins_one_that_ends_the_part, begins_one_that_ends_both),
        *(ends_the_part_when_it_has_failed,),
    ],
)
def test_a_flush_ends_its_transaction_as_sqlalchemy_ends_it(
    hook: Any, in_savepoint: bool, is_told: bool, engine: sa.Engine
) -> None:
    def states(session: Any) -> list[Any]:
        now = session._transaction
        line = now._iterate_self_and_parents() if now else []
        inner = session._nested_transaction is not None
        return [inner, *((each.origin, each._state) for each in line)]

    def outcome(session: Session) -> Any:
        told: list[Any] = []

        def end(session: Session, transaction: Any) -> None:
            now: Any = session._transaction  # type: ignore[attr-defined]
            told.append((transaction.origin, transaction._state, now and now.origin))

        if is_told:
            sa.event.listen(session, "after_transaction_end", end)
        session.add(User(name="new"))
        if in_savepoint:
            session.begin_nested()
        sa.event.listen(session, "after_flush", hook, once=True)
        session.add(User(name="another"))
        try:
            session.flush()
            error = None
        except Exception as raised:
            error = type(raised)
        state = [*states(session), len(session.new), len(session.identity_map)]
        try:
            session.rollback()
        except Exception as raised:
            return told, error, state, type(raised)
        return told, error, state, states(session)

    found = []
    for session_class in (Session, SharedSession):
        with session_class(engine) as session:
            found.append(outcome(session))
        with Session(engine) as session, session.begin():
            session.execute(sa.delete(User).where(User.name.in_(["new", "another"])))
    assert found[0] == found[1]


def test_a_part_that_no_flush_has_begun_flushes(engine: sa.Engine) -> None:
    for session_class in (Session, SharedSession):
        with session_class(engine) as session:
            part = session._autobegin_t()._begin()  # type: ignore[attr-defined]
            session.add(User())
            part.commit()
            assert not session.new
            session.rollback()


# -- the transaction of a connection


class _Borrowing(sa.Connection):
    """Begins a transaction of another connection, which nobody has guarded."""

    def begin(self) -> Any:
        super().begin()
        self.other = sa.Connection(self.engine)
        return self.other.begin()


def test_a_connection_may_hand_out_another_s_transaction() -> None:
    for session_class in (Session, SharedSession):
        engine: Any = sa.create_engine("sqlite://")
        engine._connection_cls = _Borrowing
        with session_class(engine) as session:
            session.execute(sa.text("SELECT 1"))
            session.commit()
        engine.dispose()


def test_a_begin_that_is_replaced_is_called() -> None:
    class Own(sa.Connection):
        """Of which there is no guarded class yet."""

    engine: Any = sa.create_engine("sqlite://")
    engine._connection_cls = Own
    with unittest.mock.patch.object(
        sa.Connection, "begin", autospec=True, side_effect=sa.Connection.begin
    ) as begin:
        with SharedSession(engine) as session:
            session.execute(sa.text("SELECT 1"))
    assert begin.call_count == 1
    engine.dispose()
