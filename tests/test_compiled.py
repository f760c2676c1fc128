"""What only the compiled part does, and what it assumes of SQLAlchemy.

That it does the same as the Python is for all the other tests, which run with it and
without it.
"""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from sharedsession import (
    SharedSession,
    SharedSessionMixin,
    alchemy,
    compiled,
    instances,
)
from sharedsession.guard import Guard
from sharedsession.operations import run
from sharedsession.owners import current_owner
from sharedsession.terms import LOAD, WRITE

from .models import User, make_user
from .threads import Worker, passes

pytestmark = pytest.mark.skipif(
    compiled.parts is None, reason="the compiled part was not built, or is disabled"
)


@pytest.fixture(autouse=True, scope="module")
def attributes_are_guarded() -> None:
    """As they are once a shared session was made, which not every test does."""
    sa.orm.configure_mappers()
    instances.install()


def test_sqlalchemy_has_the_private_names(engine: sa.Engine) -> None:
    with Session(engine) as session:
        user = session.get_one(User, 1)
        result: Any = session.execute(sa.text("SELECT 1"))
        objects: Any = session.execute(sa.select(User))
        options: list[Any] = []
        sa.event.listen(session, "do_orm_execute", lambda s: options.append(s))
        session.scalars(sa.select(User)).all()
        state = sa.inspect(user)
        things = [
            *(session, session.identity_map, session.get_transaction(), user, User),
            *(state, state.manager, state.mapper, User.name, User.name.impl),
            User.name.impl.dispatch,
            alchemy.RowsInMemory([]),
            *(result, result.context, result.connection, result.cursor_strategy),
            *(objects, objects.raw, options[0].load_options, sa.select(User)),
        ]
        theirs = {n for n in compiled.parts.NAMES if n.startswith("_")}
        ours = {"_sharedsession_guard", "__class__"}
        of_options = {"_sa_orm_load_options"}  # a key: see test_tables.py
        missing = [
            name
            for name in theirs - ours - of_options
            if not any(hasattr(thing, name) for thing in things)
        ]
        assert missing == []


def test_a_load_puts_into_the_map_what_it_does_otherwise(engine: sa.Engine) -> None:
    for session_class in (Session, SharedSession):
        with session_class(engine) as session:
            user = session.get_one(User, 1)
            state = sa.inspect(user)
            assert session.identity_map._dict[state.key] is state
            assert state._instance_dict is session.identity_map._wr


def test_a_key_is_what_the_mapper_makes(engine: sa.Engine) -> None:
    """Found in the identity map, which the compiled look asks with a key of its own."""
    with SharedSession(engine) as session:
        user = session.get_one(User, 1)
        assert sa.inspect(user).key == (User, (1,), None)
        with no_operation(session):
            assert session.get(User, 1) is user
            assert session.get(User, (1,)) is user


class no_operation:
    """Fails if there is an operation meanwhile: what comes is found by a mere look."""

    def __init__(self, session: SharedSession) -> None:
        self._guard: Any = session.guard

    def __enter__(self) -> None:
        self._before = self._guard.stats().acquisitions

    def __exit__(self, *exc_info: Any) -> None:
        assert self._guard.stats().acquisitions == self._before


def test_the_attribute_of_a_value_gets_it_from_the_dictionary() -> None:
    """What the compiled ``get()`` of an attribute does in its place."""
    user = make_user(name="a")
    state = sa.inspect(user)
    for values in ({"name": "b"}, {"name": None}):
        impl: Any = User.name.impl
        plain = alchemy.AttributeImpl.get(impl, state, values)
        assert impl.get(state, values) is plain is values["name"]


# -- states


def test_states_of_a_shared_session_are_guarded_from_the_start(
    engine: sa.Engine,
) -> None:
    with SharedSession(engine) as session:
        session.get_one(User, 1)  # the class is known now
        session.expunge_all()
        changed = counted_changes(session)
        users = session.scalars(sa.select(User)).all()
        assert changed == [] and len(users) > 1
        assert all(type(sa.inspect(u)) is instances.GuardedState for u in users)
    with Session(engine) as plain:
        users = plain.scalars(sa.select(User)).all()
        assert all(type(sa.inspect(u)) is instances.PlainState for u in users)


def counted_changes(session: Any) -> list[Any]:
    """The states that change their class when they are loaded, from now on."""
    noticed: list[Any] = []
    plain = type(session.identity_map).__dict__["_add_unpresent"]

    def add(state: Any, key: Any) -> None:
        if type(state) is instances.PlainState:
            noticed.append(state)
        plain(session.identity_map, state, key)

    session.identity_map._add_unpresent = add
    return noticed


def test_a_new_object_has_a_plain_state(engine: sa.Engine) -> None:
    with SharedSession(engine) as session:
        session.scalars(sa.select(User)).all()
        session.get(User, 1_000_000)  # not there: nothing is made after the look
        make_user()  # whatever it has, it is none of the next one's
        user = make_user(name="new")
        assert type(sa.inspect(user)) is instances.PlainState
        session.add(user)
        assert type(sa.inspect(user)) is instances.GuardedState
        session.rollback()


# -- operations


def test_an_operation_wants_its_object() -> None:
    with pytest.raises(TypeError, match="add"):
        SharedSession.add()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        alchemy.AttributeImpl.get(User.name.impl)
    with pytest.raises(TypeError):
        User.name.impl.get()


def test_it_looks_like_the_method() -> None:
    import inspect

    impl = type(User.name.impl)
    for name in ("set", "get", "get_history"):
        plain = getattr(User.name.impl.__class__, name)
        assert inspect.signature(vars(impl)[name]) == inspect.signature(plain)
        assert vars(impl)[name].__name__ == name
        assert vars(impl)[name].__doc__ == plain.__doc__


def test_many_arguments_are_passed_on() -> None:
    guard = Guard()

    def function(*args: Any, **kw: Any) -> Any:
        return args, kw

    many = {f"name{number}": number for number in range(20)}
    found = run(guard, WRITE, function, *range(20), **many)
    assert found == (tuple(range(20)), many)
    assert guard.held is None


def test_an_error_is_passed_on_and_noted() -> None:
    guard = Guard()
    error = KeyError("mine")

    def fail() -> None:
        raise error

    with pytest.raises(KeyError) as raised:
        run(guard, LOAD, fail)
    assert raised.value is error
    assert guard.failed == (current_owner(), "KeyError")
    assert guard.held is None
    assert error.__traceback__ is not None


def test_nothing_of_an_operation_is_kept() -> None:
    """Its arguments, its result and its error go when nobody has them any more."""
    guard = Guard()

    class Thing:
        alive = 0

        def __init__(self) -> None:
            Thing.alive += 1

        def __del__(self) -> None:
            Thing.alive -= 1

    def function(thing: Thing, fails: bool) -> Thing:
        if fails:
            raise ValueError(Thing())
        return Thing()

    for fails in (False, True):
        for _ in range(50):
            try:
                run(guard, WRITE, function, Thing(), fails=fails)
            except ValueError:
                pass
    gc.collect()
    assert Thing.alive == 0


def test_whoever_asks_is_found_again_after_a_thread_ended() -> None:
    """The last one that asked is remembered, and its number is given to the next."""
    owners = []
    for _ in range(50):
        thread = threading.Thread(target=lambda: owners.append(current_owner()))
        thread.start()
        thread.join()
    assert len(set(map(id, owners))) == 50
    assert not any(owner.alive for owner in owners)
    assert current_owner().thread is threading.current_thread()


def test_a_second_one_is_checked_before_it_comes_in() -> None:
    guard = Guard()
    seen = []

    def refuse(second: Any) -> None:
        seen.append(second)
        raise LookupError("not you")

    guard.second_owner = refuse
    run(guard, WRITE, lambda: None)
    with pytest.raises(LookupError):
        Worker(lambda: run(guard, WRITE, lambda: None)).result()
    with pytest.raises(LookupError):
        Worker(lambda: guard.hold("section")).result()
    assert len(seen) == 2 and guard.held is None


def test_an_operation_deals_with_what_was_left_first() -> None:
    guard = Guard()
    done: list[Any] = []
    guard.attend = lambda me, access: guard.do_chores(me)
    run(guard, WRITE, lambda: None)
    guard.leave_behind(lambda: done.append("chore"))
    run(guard, WRITE, lambda: done.append("operation"))
    assert done == ["chore", "operation"]


def shared_guard() -> Guard:
    """One that two have used: they are not checked any more."""
    guard = Guard()
    run(guard, WRITE, lambda: None)
    Worker(lambda: run(guard, WRITE, lambda: None)).result()
    return guard


def test_an_operation_waits_for_whoever_is_in() -> None:
    guard = shared_guard()
    workers: list[Worker] = []

    def begin() -> None:
        workers.append(Worker(lambda: run(guard, WRITE, lambda: None)))
        assert not passes(workers[0], guard)

    run(guard, WRITE, begin)
    workers[0].result()
    assert guard.held is None


# -- holds


def test_a_hold_waits_for_whoever_is_in() -> None:
    """It is taken in one step only if nobody is."""
    guard = shared_guard()
    first = guard.hold("section")
    second = Worker(lambda: guard.hold("section").release())
    assert not passes(second, guard)
    first.release()
    second.result()
    assert guard.held is None


def test_a_hold_deals_with_what_was_left_first() -> None:
    guard = Guard()
    done = []
    guard.leave_behind(lambda: done.append(True))
    guard.attend = lambda me, access: guard.do_chores(me)
    guard.hold("section").release()
    assert done == [True]


def test_a_hold_within_another_keeps_the_guard() -> None:
    guard = Guard()
    outer, inner = guard.hold("outer"), guard.hold("inner")
    outer.release()
    assert guard.held == "exclusive"
    inner.release()
    assert guard.held is None
    inner.release()  # nothing, for it was done before
    assert guard.held is None


# -- settings


class _Own(Session):
    """A session class that has an opinion of what is set."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "autoflush" and value == "often":
            value = True
        super().__setattr__(name, value)


class _SharedOwn(SharedSessionMixin, _Own):
    pass


@pytest.mark.parametrize("session_class", [SharedSession, _SharedOwn])
def test_a_setting_waits_and_another_attribute_does_not(
    session_class: Any, engine: sa.Engine
) -> None:
    with session_class(engine) as session:
        with session.critical_section():
            setting = Worker(lambda: setattr(session, "autoflush", False))
            assert not passes(setting, session.guard)
            Worker(lambda: setattr(session, "of_mine", 1)).result()
            assert session.autoflush is True
        setting.result()
        assert session.autoflush is False and session.of_mine == 1
        del session.of_mine
        assert not hasattr(session, "of_mine")


def test_a_class_with_its_own_way_to_set_is_asked(engine: sa.Engine) -> None:
    with _SharedOwn(engine) as session:
        setattr(session, "autoflush", "often")
        assert session.autoflush is True
