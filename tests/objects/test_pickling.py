"""Pickling and copying objects while another thread loads or expires them."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any, Callable

import pytest
import sqlalchemy as sa
import sqlalchemy.orm.exc as sa_orm_exc
from sqlalchemy.orm import Session, make_transient_to_detached

from sharedsession import SharedSession

from ..support.models import Address, Note, Tag, User
from ..support.threads import Worker, inside, passes

KINDS = pytest.mark.parametrize("lock", ["rlock", "rw"])


def make_user(session: Session) -> User:
    user = User(name="ann", data={"a": 1}, items=[1, 2], flags={1})
    user.addresses = [Address(email="a"), Address(email="b")]
    user.tags = {Tag(label="x"), Tag(label="y")}
    user.notes = {"n": Note(key="n", text="t")}
    session.add(user)
    session.commit()
    load(user)
    return user


def load(user: User) -> None:
    """Load all that the tests pickle."""
    _ = user.name, user.bio, [(it.email, it.user) for it in user.addresses]
    _ = [each.label for each in user.tags], [each.text for each in user.notes.values()]


class _Pickler(pickle.Pickler):
    """Calls a function when it comes to its n-th object."""

    def __init__(self, file: Any, at: int, interfere: Callable[[], Any]) -> None:
        super().__init__(file)
        self.steps = 0
        self._at = at
        self._interfere = interfere

    def persistent_id(self, thing: Any) -> Any:
        self.steps += 1
        if self.steps == self._at:
            self._interfere()
        return None


def pickled_with(
    thing: Any, at: int, interfere: Callable[[], Any]
) -> tuple[bytes, bool]:
    """Pickle *thing*, and say whether the pickler came to its step *at*."""
    file = io.BytesIO()
    pickler = _Pickler(file, at, interfere)
    pickler.dump(thing)
    return file.getvalue(), pickler.steps >= at


def value_of(function: Callable[[], Any]) -> Any:
    """What the copy says; ``"expired"`` if it says that it would have to load."""
    try:
        return function()
    except sa_orm_exc.DetachedInstanceError:
        return "expired"


def check_copy(user: User) -> None:
    """A copy has each value, or knows that it was expired; it never has a wrong one."""
    assert value_of(lambda: user.name) in ("ann", "expired")
    assert value_of(lambda: user.bio) in (None, "expired")
    data = value_of(lambda: dict(user.data or {}))
    assert data in ({"a": 1}, {"a": 1, "b": 2}, "expired")
    emails = value_of(lambda: [value_of(lambda: it.email) for it in user.addresses])
    assert emails == "expired" or len(emails) == 2
    assert set(emails) <= {"a", "b", "expired"} or emails == "expired"
    labels = value_of(lambda: {value_of(lambda: it.label) for it in user.tags})
    assert labels == "expired" or labels <= {"x", "y", "expired"}


def pickle_at_every_step(
    session: Any,
    get: Callable[[User], Any],
    interfere: Callable[[User], Any],
    before: Callable[[User], Any] = load,
) -> None:
    """Have another thread interfere at each step of the pickler in turn."""
    user = make_user(session)
    at, came_there = 1, True
    while came_there:
        thing = get(user)
        before(user)
        text, came_there = pickled_with(
            thing, at, lambda: Worker(lambda: interfere(user)).result()
        )
        assert b"sharedsession" not in text
        copied = pickle.loads(text)
        check_copy(copied if isinstance(copied, User) else copied[1])
        session.expire_all()
        at += 1
    assert at > 20


def expire(user: User) -> None:
    sa.orm.object_session(user).commit()  # type: ignore[union-attr]


def expire_and_load(user: User) -> None:
    expire(user)
    load(user)


def change(user: User) -> None:
    """Change the sizes of all that a pickler may be walking."""
    user.visits.count()
    user.point = user.point  # noqa: B018
    user.counter += 1
    user.data["b"] = 2  # type: ignore[index]
    user.items.append(3)  # type: ignore[union-attr]
    sa.orm.object_session(user).rollback()  # type: ignore[union-attr]
    load(user)


@pytest.mark.parametrize("interfere", [expire, expire_and_load, change])
def test_a_pickle_has_right_values(
    engine: sa.Engine, interfere: Callable[[User], Any]
) -> None:
    with SharedSession(engine, lock="rw") as session:
        pickle_at_every_step(session, lambda user: user, interfere)


def test_so_has_the_pickle_of_what_is_loaded_meanwhile(engine: sa.Engine) -> None:
    """What the object does not have yet, its state must not call loaded."""
    with SharedSession(engine, lock="rw") as session:
        pickle_at_every_step(session, lambda user: user, load, before=expire)


@pytest.mark.parametrize("interfere", [expire, expire_and_load])
def test_so_has_the_pickle_that_comes_to_the_state_first(
    engine: sa.Engine, interfere: Callable[[User], Any]
) -> None:
    with SharedSession(engine, lock="rw") as session:
        pickle_at_every_step(session, lambda user: (sa.inspect(user), user), interfere)


def test_a_plain_session_shows_that_this_can_fail(engine: sa.Engine) -> None:
    with Session(engine) as session:
        with pytest.raises((AssertionError, RuntimeError)):
            pickle_at_every_step(session, lambda user: user, expire)


@KINDS
@pytest.mark.parametrize(
    "take", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda each: each.__name__
)
@pytest.mark.parametrize("name", ["user", "addresses", "data"])
def test_it_waits_for_a_section(
    engine: sa.Engine, lock: str, take: Callable[[Any], Any], name: str
) -> None:
    with SharedSession(engine, lock=lock) as session:
        user = make_user(session)
        things = {
            "user": user,
            "addresses": user.addresses,
            "data": user.data,
        }
        thing = things[name]
        with inside(session.critical_section):
            assert not passes(waiting := Worker(lambda: take(thing)), session.guard)
        waiting.result()


def test_a_pickle_is_what_it_is_of_a_plain_session(engine: sa.Engine) -> None:
    def text(session: Session) -> bytes:
        user = User(id=7, name="ann", x=1, y=2)
        make_transient_to_detached(user)
        session.add(user)
        user.name = "bea"
        return pickle.dumps(user)

    with Session(engine) as plain, SharedSession(engine) as shared:
        assert text(shared) == text(plain)


def test_what_a_copy_took_apart_is_not_used_again(engine: sa.Engine) -> None:
    """A copy asks for one half only; the other half must not come up later."""
    with SharedSession(engine) as session:
        user = make_user(session)
        copy.copy(user)
        user.name = "bea"
        for thing in (user.addresses[0], user):
            pickle.dumps(thing)
        copied = pickle.loads(pickle.dumps(user))
        assert copied.name == "bea"
        assert sa.inspect(copied).committed_state == {"name": "ann"}


def test_reductions_of_ones_own_are_called() -> None:
    class Base(sa.orm.DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = "things"
        id: sa.orm.Mapped[int] = sa.orm.mapped_column(primary_key=True)

        def __reduce__(self) -> Any:
            return (int, (self.id,))

    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    Base.metadata.create_all(engine)
    with SharedSession(engine) as session:
        session.add(thing := Thing(id=3))
        session.commit()
        assert pickle.loads(pickle.dumps(thing)) == 3
        assert copy.copy(thing) == 3  # type: ignore[comparison-overlap]
    engine.dispose()


@KINDS
@pytest.mark.parametrize(
    "make",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        lambda it: sa.inspect(it).__reduce_ex__(2),
    ],
)
def test_a_copy_waits_for_a_statement_that_others_may_read_beside(
    engine: sa.Engine, lock: str, make: Any
) -> None:
    """No window is enough for it, because it reads more than what is loaded."""
    session = SharedSession(engine, lock=lock)
    user = make_user(session)
    Worker(lambda: session.scalar(sa.text("SELECT 1"))).result()  # a second owner
    made: list[Worker] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def meanwhile(*args: Any) -> None:
        if not made and session.guard.window is not None:
            made.append(Worker(lambda: make(user)))
            passes(made[0], session.guard)

    session.execute(sa.text("SELECT 1"))
    sa.event.remove(engine, "before_cursor_execute", meanwhile)
    assert made and made[0].result() is not None
    session.close()
