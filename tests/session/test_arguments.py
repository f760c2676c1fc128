"""Wrong arguments are refused at once, with an error that says what is right."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any, Callable

import pytest
import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
from sqlalchemy.orm import sessionmaker

from sharedsession import (
    SharedSession,
    SharedSessionError,
    critical_section,
    one_owner,
    sessionmaker_from_config,
    shared_session,
)
from sharedsession.asyncio import AsyncSharedSession, async_shared_session
from sharedsession.guard.task import current_owner
from sharedsession.registry import OneForAll

from ..support.models import User
from ..support.threads import Worker, passes, together, wait_for

URL = {"sqlalchemy.url": "sqlite://"}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: SharedSession(lock=asyncio.Lock()), id="asyncio lock"),
        pytest.param(lambda: SharedSession(lock=threading.RLock), id="class of locks"),
        pytest.param(lambda: SharedSession(lock_timeout=True), id="timeout True"),
        pytest.param(lambda: SharedSession(lock_timeout=10**400), id="timeout huge"),
        pytest.param(lambda: SharedSession(wait_in_loop=-1), id="wait_in_loop"),
        pytest.param(lambda: sessionmaker_from_config(None), id="config None"),
        pytest.param(
            lambda: sessionmaker_from_config([("sqlalchemy.url", "sqlite://")]),
            id="config list",
        ),
    ],
)
def test_a_bad_value_is_a_value_error(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="lock|timeout|config|wait_in_loop"):
        make()


@pytest.mark.parametrize("value", [True, 10**400, float("nan"), object(), "soon"])
def test_a_setting_that_is_no_timeout_is_refused_by_its_key(value: Any) -> None:
    with pytest.raises(ValueError, match="sqlalchemy.session.lock_timeout"):
        sessionmaker_from_config({**URL, "sqlalchemy.session.lock_timeout": value})


@pytest.mark.parametrize("value", [object(), [], 0.5, None, ""])
def test_a_setting_that_is_no_flag_is_refused_by_its_key(value: Any) -> None:
    with pytest.raises(ValueError, match="sqlalchemy.session.autoflush"):
        sessionmaker_from_config({**URL, "sqlalchemy.session.autoflush": value})


@pytest.mark.parametrize("value", [True, False, 1, 0, "yes", "off"])
def test_a_setting_that_is_a_flag_is_taken(value: Any) -> None:
    made = sessionmaker_from_config({**URL, "sqlalchemy.session.autoflush": value})
    assert made().autoflush is (value in (True, 1, "yes"))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: shared_session(None), id="shared_session(None)"),
        pytest.param(
            lambda: shared_session(SharedSession()), id="shared_session(session)"
        ),
        pytest.param(lambda: async_shared_session(0), id="async_shared_session(0)"),
        pytest.param(
            lambda: AsyncSharedSession(sync_session_class=0), id="sync_session_class=0"
        ),
        pytest.param(
            lambda: AsyncSharedSession(sync_session_class=int), id="sync_session_class"
        ),
        pytest.param(lambda: critical_section(SharedSession())(User), id="a class"),
        pytest.param(lambda: critical_section(SharedSession())(7), id="a number"),
        pytest.param(lambda: one_owner(7).__enter__(), id="a name that is none"),
    ],
)
def test_what_cannot_be_used_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(SharedSessionError):
        make()


def test_a_registry_cannot_be_pickled(engine: sa.Engine) -> None:
    maker = sessionmaker(engine, class_=SharedSession)
    for registry in (shared_session(maker), async_shared_session(maker)):
        with pytest.raises(SharedSessionError, match="cannot be pickled"):
            pickle.dumps(registry)


def test_the_guard_of_a_lock_object_names_it() -> None:
    session = SharedSession(lock=threading.RLock())
    assert repr(session.guard) == "<Guard _thread.RLock free, 0 waiting>"
    assert repr(SharedSession(lock="rw").guard) == "<Guard rw free, 0 waiting>"


def test_a_mutable_value_that_was_discarded_says_so(engine: sa.Engine) -> None:
    session = SharedSession(engine)
    parent = User(name="ann", data={"a": 1})
    session.add(parent)
    session.commit()
    data = parent.data
    Worker(session.commit).result()
    with pytest.raises(sa_exc.InvalidRequestError) as caught:
        data["b"] = 2
    assert str(caught.value).startswith("Can't flag attribute 'data' modified")
    assert "with session.critical_section():" in str(caught.value)
    with session.critical_section():
        parent.data["b"] = 2
    session.commit()
    assert dict(parent.data) == {"a": 1, "b": 2}
    session.close()


# -- a registry's factory


def test_a_factory_may_wait_for_whoever_asks_the_registry(engine: sa.Engine) -> None:
    """The factory waits for a guard whose owner waits for the factory's session."""
    other = SharedSession(engine)
    entered, asked = threading.Event(), threading.Event()

    def factory() -> Any:
        if threading.current_thread() is not making:
            return SharedSession(engine)
        asked.set()
        with other.critical_section():
            return SharedSession(engine)

    registry: Any = shared_session(factory)
    registry.registry._patience = 0.05

    def hold() -> Any:
        with other.critical_section():
            entered.set()
            wait_for(asked)
            return registry()

    holder = Worker(hold)
    wait_for(entered)
    making: Any = threading.Thread(target=registry, daemon=True)
    making.start()
    session = holder.result()
    making.join(30)
    assert not making.is_alive()
    assert registry() is session
    registry.close_all()


def test_threads_that_come_at_once_wait_for_the_one_that_makes_it() -> None:
    made: list[object] = []
    is_making, go_on = threading.Event(), threading.Event()

    def factory() -> object:
        is_making.set()
        wait_for(go_on)
        made.append(object())
        return made[-1]

    registry = OneForAll(factory, current_owner, lambda session: session, patience=30)
    first = Worker(registry)
    wait_for(is_making)
    second = Worker(registry)
    go_on.set()
    assert first.result() is second.result() is made[0]
    assert len(made) == 1


def test_sessions_made_in_vain_are_closed(engine: sa.Engine) -> None:
    barrier = threading.Barrier(3)
    made: list[SharedSession] = []

    def factory() -> SharedSession:
        barrier.wait(30)
        made.append(SharedSession(engine, close_resets_only=False))
        return made[-1]

    registry: Any = shared_session(factory)
    registry.registry._patience = 0.001
    kept = set(together(registry, registry, registry))
    assert len(kept) == 1 and len(made) == 3
    for session in made:
        if session in kept:
            session.connection()
        else:
            with pytest.raises(sa_exc.InvalidRequestError, match="closed"):
                session.connection()
    registry.close_all()


def test_a_factory_that_asks_its_own_registry_is_refused() -> None:
    registry: Any = shared_session(lambda: registry())
    with pytest.raises(SharedSessionError, match="while it was making"):
        registry()


def test_a_factory_that_fails_leaves_the_registry_as_it_was(engine: sa.Engine) -> None:
    broken = [True]

    def factory() -> SharedSession:
        if broken:
            raise OSError(broken.pop())
        return SharedSession(engine)

    registry: Any = shared_session(factory)
    with pytest.raises(OSError):
        registry()
    assert registry() is registry()
    registry.close_all()


def test_threads_that_ended_are_not_kept(engine: sa.Engine) -> None:
    registry: Any = shared_session(sessionmaker(engine, class_=SharedSession))
    for _ in range(50):
        Worker(registry).result()
    assert len(registry.registry._users) <= 2
    registry.close_all()


def test_a_section_that_waits_is_seen_to_wait(engine: sa.Engine) -> None:
    """The control of the helper that the tests above trust in."""
    session = SharedSession(engine)
    with session.critical_section():
        assert not passes(waiting := Worker(session.commit), session.guard)
    waiting.result()
    session.close()
