"""What is found without a lock is what would be found under it."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from sharedsession import SharedSessionMixin
from sharedsession.internals import orm
from sharedsession.internals.orm import instance_state

from ..conftest import make_engine
from ..support.models import User
from ..support.threads import Worker


def while_another(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[], Any]
) -> None:
    """Let another thread *change* something right after *name* found what it did."""
    plain = getattr(orm, name)

    def find(*args: Any) -> Any:
        found = plain(*args)
        monkeypatch.undo()
        Worker(change).result()
        return found

    monkeypatch.setattr(orm, name, find)


def test_get_asks_again_if_something_changed_meanwhile(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = session.get(User, 1)
    while_another(monkeypatch, "find_unexpired", lambda: session.expunge(user))
    assert session.get(User, 1) is not user


def test_in_asks_again_if_something_changed_meanwhile(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = session.get(User, 1)
    while_another(monkeypatch, "is_present", lambda: session.expunge(user))
    assert user not in session


def statements_of(engine: sa.Engine) -> list[str]:
    said: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *args: Any) -> None:
        said.append(statement)

    return said


def test_get_finds_what_is_loaded(session: Any, engine: sa.Engine) -> None:
    user = session.get(User, 1)
    said = statements_of(engine)
    assert session.get(User, 1) is user
    assert session.get(User, (1,)) is user
    assert session.get(User, {"id": 1}) is user
    assert session.get(User, ident=1) is user and session.get(entity=User, ident=1)
    assert session.get_one(User, 1) is user
    assert said == []


def test_get_loads_what_is_not(session: Any, engine: sa.Engine) -> None:
    user = session.get(User, 1)
    said = statements_of(engine)
    assert session.get(User, 1, populate_existing=True) is user
    assert session.get(User, 1, with_for_update=True) is user
    session.expire(user)
    assert session.get(User, 1) is user
    assert session.get(User, 99) is None
    assert len(said) == 4


@pytest.mark.parametrize(
    ("entity", "ident"),
    [(User, (1, 2)), (User, [1, 2]), (int, 1), (None, 1), (User, {"nothing": 1})],
    ids=str,
)
def test_get_raises_as_ever(session: Any, entity: Any, ident: Any) -> None:
    session.get(User, 1)
    with pytest.raises(sa.exc.SQLAlchemyError) as ours:
        session.get(entity, ident)
    with Session(session.bind) as plain, pytest.raises(type(ours.value)) as theirs:
        plain.get(entity, ident)
    assert str(ours.value) == str(theirs.value)


def test_a_class_that_finds_in_its_own_way_is_asked(engine: sa.Engine) -> None:
    class Finder(Session):
        def get(self, *args: Any, **kw: Any) -> Any:
            return "found"

        def __contains__(self, instance: object) -> bool:
            return True

    class Shared(SharedSessionMixin, Finder):
        pass

    with Shared(engine) as session:
        assert session.get(User, 1) == "found"
        assert User() in session


# -- setting an attribute that was changed before


def marks(user: User) -> Any:
    state = instance_state(user)
    history = sa.inspect(user).attrs.name.history
    return dict(state.committed_state), state.modified, history, user in state.session


def set_plainly(user: User, value: Any) -> None:
    impl = User.name.impl
    orm.ScalarAttributeImpl.set(impl, instance_state(user), vars(user), value)


@pytest.mark.parametrize("values", [["one"], ["one", "two"], ["one", "ann"]], ids=str)
def test_setting_again_leaves_the_same_marks(session: Any, values: list[str]) -> None:
    user = session.get(User, 1)
    with Session(make_engine()) as plain:
        other = plain.get(User, 1)
        assert other is not None
        for value in values:
            user.name = value
            set_plainly(other, value)
            assert user.name == other.name
            assert marks(user) == marks(other)
    session.flush()
    user.name = "after a flush"
    assert session.is_modified(user)


def test_listeners_hear_of_every_value(session: Any) -> None:
    heard = []
    user = session.get(User, 1)

    @sa.event.listens_for(User.name, "set")
    def hear(target: Any, value: Any, *args: Any) -> None:
        heard.append(value)

    try:
        user.name = "one"
        user.name = "two"
    finally:
        sa.event.remove(User.name, "set", hear)
    user.name = "three"
    assert heard == ["one", "two"]
