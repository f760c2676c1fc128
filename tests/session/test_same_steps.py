"""What takes fewer steps than in SQLAlchemy comes to the same.

Executing a statement of Core's, saving objects, and the transactions that a flush and a
connection begin.
"""

from __future__ import annotations

import unittest.mock
from typing import Any, Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import (
    ColumnProperty,
    Session,
    attributes,
    make_transient_to_detached,
    relationship,
)

from sharedsession import SharedSession, SharedSessionMixin, UpgradeError, WorkLostError

from ..support.models import Address, Log, Tag, User, Visit, make_user
from ..support.threads import Worker, passes

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


def assert_each_is_asked(thing: Any, engine: sa.Engine) -> None:
    for session_class in (Session, SharedSession):
        _Asked.asked.clear()
        with session_class(engine) as session:
            session.add_all([thing(), thing()])
            assert _Asked.asked == ["save-update"] * 2
            session.expunge_all()


def test_add_all_asks_a_column_of_another_kind(things: Any, engine: sa.Engine) -> None:
    Thing = things(parent=lambda table: _AskedColumn(table.c.parent))
    assert_each_is_asked(Thing, engine)


def test_add_all_asks_a_relationship_of_another_kind(
    things: Any, engine: sa.Engine
) -> None:
    others: list[Any] = []
    Thing = things(others=lambda table: _AskedRelationship(lambda: others[0]))
    others.append(things())
    assert_each_is_asked(Thing, engine)


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
