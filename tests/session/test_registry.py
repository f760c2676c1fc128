"""shared_session, merge_into and sessionmaker_from_config."""

from __future__ import annotations

import configparser
import subprocess
import sys
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from sharedsession import (
    SharedSession,
    SharedSessionError,
    SharedSessionMixin,
    WorkLostError,
    critical_section,
    guard_of,
    merge_into,
    sessionmaker_from_config,
    shared_session,
)
from sharedsession.guard.access import Kind

from ..support.models import User
from ..support.threads import Worker, inside, passes, together, wait_for


@pytest.fixture
def registry(engine: sa.Engine, lock: str) -> Any:
    made = shared_session(sessionmaker(engine, class_=SharedSession, lock=lock))
    yield made
    made.close_all()


# -- the registry


def test_it_is_one_session_for_all(registry: Any) -> None:
    assert len(set(together(registry, registry, registry))) == 1


def test_the_factory_runs_once(engine: sa.Engine) -> None:
    made = []
    entered, go_on = threading.Event(), threading.Event()

    def factory() -> SharedSession:
        entered.set()
        wait_for(go_on)
        made.append(SharedSession(engine))
        return made[-1]

    registry = shared_session(factory)
    first = Worker(registry)
    wait_for(entered)
    second = Worker(registry)
    go_on.set()
    assert first.result() is second.result()
    assert len(made) == 1


def test_a_factory_of_plain_sessions_is_given_guarded_ones(engine: sa.Engine) -> None:
    registry = shared_session(sessionmaker(engine))
    assert isinstance(registry(), SharedSessionMixin)
    assert registry.guard is not None and registry.guard.kind is Kind.RLOCK
    registry.close_all()


def test_it_has_all_of_a_sessions_and_of_a_scoped_sessions_names() -> None:
    for cls in (Session, scoped_session, SharedSession):
        for name in dir(cls):
            if not name.startswith("_"):
                assert hasattr(shared_session, name) or name in ("session_factory",)


def test_remove_closes_when_nobody_is_left(registry: Any) -> None:
    session = registry()
    used, go_on = threading.Event(), threading.Event()

    def use() -> None:
        registry.get(User, 2)
        used.set()
        wait_for(go_on)
        registry.remove()

    other = Worker(use)
    wait_for(used)
    user = registry.get(User, 1)
    registry.remove()
    assert user in session
    go_on.set()
    other.result()
    assert user not in session
    assert registry() is not session


def test_threads_that_ended_do_not_count(registry: Any) -> None:
    session = registry()
    user = registry.get(User, 1)
    Worker(lambda: registry.get(User, 2)).result()
    registry.remove()
    assert user not in session


def test_close_all_closes_now(registry: Any) -> None:
    session = registry()
    session.add(User(name="mine"))
    Worker(registry.close_all).result()
    with pytest.raises(WorkLostError):
        session.get(User, 1)
    assert registry() is not session


def test_close_all_is_told_to_those_who_go_on_with_the_session(registry: Any) -> None:
    """They would write into a session that nobody commits."""
    session = registry()
    Worker(registry.close_all).result()
    with pytest.raises(WorkLostError, match="ask the registry"):
        session.add(User(name="mine"))
    assert registry() is not session


def test_who_loses_work_by_close_all_is_told_by_the_next_session(registry: Any) -> None:
    registry.add(User(name="mine"))
    registry.flush()
    Worker(registry.close_all).result()
    Worker(lambda: registry.get(User, 1)).result()  # had no work, and is not told
    with pytest.raises(WorkLostError, match="MainThread"):
        registry.commit()
    registry.commit()
    registry.add(User(name="mine"))
    Worker(registry.close_all).result()
    registry.rollback()  # clears it
    registry.commit()


def test_who_loses_work_is_told_by_a_session_made_during_the_close(
    registry: Any,
) -> None:
    registry.add(User(name="mine"))
    registry.flush()
    made: list[Any] = []

    @sa.event.listens_for(registry(), "after_transaction_end")
    def ask_meanwhile(*args: Any) -> None:
        made.append(Worker(registry).result())

    session = registry()
    Worker(registry.close_all).result()
    assert made and made[0] is registry() is not session
    with pytest.raises(WorkLostError, match="MainThread"):
        registry.commit()


@pytest.mark.parametrize("end", ["remove", "close_all"])
def test_nobody_gets_a_session_that_is_being_closed(registry: Any, end: str) -> None:
    closing, go_on = threading.Event(), threading.Event()

    def use_and_end() -> None:
        registry.get(User, 1)

        @sa.event.listens_for(registry(), "after_transaction_end")
        def wait(*args: Any) -> None:
            closing.set()
            wait_for(go_on)

        getattr(registry, end)()

    def work() -> None:
        registry.add(User(name="new"))
        registry.commit()
        registry.remove()

    first = Worker(use_and_end)
    wait_for(closing)
    Worker(work).result()  # does not wait for the close
    go_on.set()
    first.result()
    assert "new" in set(registry.scalars(sa.select(User.name)))


def test_remove_leaves_a_session_that_a_thread_has_come_to_use(registry: Any) -> None:
    """It has come while remove() waited for a section."""
    session = Worker(registry).result()
    with inside(session.critical_section):
        removing = Worker(registry.remove)
        assert not passes(removing, session.guard)
        registry()
    removing.result()
    assert registry() is session


def test_query_property_and_configure(registry: Any) -> None:
    class Queries:
        query = registry.query_property()

    registry.remove()
    registry.configure(expire_on_commit=False)
    assert registry().expire_on_commit is False
    with pytest.raises(sa.exc.InvalidRequestError, match="already present"):
        registry(expire_on_commit=True)
    registry.expire_on_commit = True
    assert registry.expire_on_commit is True


# -- merge_into


@pytest.fixture
def two(file_engine: sa.Engine, lock: str) -> Any:
    one, other = (SharedSession(file_engine, lock=lock) for _ in range(2))
    yield one, other
    one.close()
    other.close()


def test_it_copies_one_and_several(two: Any) -> None:
    source, target = two
    user = source.get(User, 1)
    copied = merge_into(target, user)
    assert copied in target and copied.name == "ann"
    users = [source.get(User, 2), source.get(User, 3)]
    assert [user.name for user in merge_into(target, users)] == ["ben", "cat"]
    assert merge_into(target, iter(users))[0] in target
    assert merge_into(target, User(name="transient")) in target.new


def test_both_guards_are_held(two: Any) -> None:
    source, target = two
    user = source.get(User, 1)
    for busy in two:
        with inside(busy.critical_section):
            other = Worker(lambda: merge_into(target, user))
            assert not passes(other, busy.guard)
        other.result()
    assert source.guard.held is target.guard.held is None


def test_opposite_directions_do_not_deadlock(two: Any) -> None:
    one, other = two
    mine, theirs = one.get(User, 1), other.get(User, 2)
    one.autoflush = other.autoflush = False

    def copy(target: Any, instance: Any) -> None:
        for _ in range(50):
            merge_into(target, instance)

    together(lambda: copy(other, mine), lambda: copy(one, theirs))


def test_a_plain_session_as_either(file_engine: sa.Engine, lock: str) -> None:
    with Session(file_engine) as plain, SharedSession(
        file_engine, lock=lock
    ) as session:
        assert merge_into(plain, session.get(User, 1)) in plain
        assert merge_into(session, plain.get(User, 2)) in session


def test_what_it_refuses(session: Any) -> None:
    for target, thing in ((7, User()), (session, 7), (session, [User(), 7])):
        with pytest.raises(SharedSessionError, match="merge_into"):
            merge_into(target, thing)  # type: ignore[call-overload]
    assert not session.new


# -- sessionmaker_from_config

SQLITE = {"connect_args": {"check_same_thread": False}, "poolclass": StaticPool}


def test_it_reads_a_mapping() -> None:
    maker = sessionmaker_from_config(
        {
            "sqlalchemy.url": "sqlite://",
            "sqlalchemy.echo": "false",
            "sqlalchemy.session.lock": "rw",
            "sqlalchemy.session.lock_timeout": "2.5",
            "sqlalchemy.session.expire_on_commit": "no",
            "sqlalchemy.session.autoflush": "off",
            "other": "left alone",
        },
        **SQLITE,
    )
    session = maker()
    assert session.guard is not None and session.guard.kind is Kind.RW
    assert session.guard.timeout == 2.5
    assert (session.expire_on_commit, session.autoflush) == (False, False)
    assert isinstance(session.bind, sa.Engine)
    assert isinstance(session.bind.pool, StaticPool)
    session.bind.dispose()


def test_it_reads_a_section_of_an_ini_file() -> None:
    parser = configparser.ConfigParser()
    parser.read_string("[db]\nmy.url=sqlite://\nmy.session.lock = detect\n")
    maker = sessionmaker_from_config(parser["db"], "my.", expire_on_commit=False)
    session = maker()
    assert session.guard is not None and session.guard.kind is Kind.DETECT
    assert session.expire_on_commit is False


def test_the_environment_overrides_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"sqlalchemy.url": "sqlite://", "sqlalchemy.session.lock": "rw"}
    for value, kind in (("off", None), ("detect", Kind.DETECT), ("", Kind.RW)):
        monkeypatch.setenv("SHAREDSESSION_LOCK", value)
        guard = sessionmaker_from_config(config)().guard
        assert (guard and guard.kind) == kind
    monkeypatch.setenv("SHAREDSESSION_LOCK", "nonsense")
    with pytest.raises(ValueError, match="SHAREDSESSION_LOCK.*'rlock'"):
        sessionmaker_from_config(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("session.lock", "mutex"),
        ("session.lock_timeout", "soon"),
        ("session.lock_timeout", "0"),
        ("session.lock_timeout", "-1"),
        ("session.expire_on_commit", "maybe"),
        ("session.autoflush", "maybe"),
        ("session.unknown", "1"),
    ],
)
def test_bad_settings_name_the_key(key: str, value: str) -> None:
    config = {"sqlalchemy.url": "sqlite://", f"sqlalchemy.{key}": value}
    with pytest.raises(ValueError, match=f"sqlalchemy.{key}"):
        sessionmaker_from_config(config)


def test_a_url_is_needed_unless_there_is_a_bind(engine: sa.Engine) -> None:
    with pytest.raises(ValueError, match="sqlalchemy.url"):
        sessionmaker_from_config({})
    assert sessionmaker_from_config({}, bind=engine)().bind is engine


def test_importing_changes_no_class_of_sqlalchemys() -> None:
    classes = "scoped_session", "Session", "SessionTransaction", "sessionmaker"
    script = f"""
import sqlalchemy.orm, sqlalchemy.ext.asyncio
modules = sqlalchemy.orm, sqlalchemy.ext.asyncio
classes = {{
    cls for each in modules for cls in vars(each).values() if isinstance(cls, type)
}}
assert {{cls.__name__ for cls in classes}}.issuperset({classes})
before = {{cls: dict(vars(cls)) for cls in classes}}
import sharedsession, sharedsession.asyncio
changed = [
    (cls, name)
    for cls, members in before.items()
    for name, member in vars(cls).items()
    if not name.startswith("__") and members.get(name, None) is not member
]
assert not changed, changed
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_scoped_sessions_sections_are_entered_by_the_functions(
    engine: sa.Engine,
) -> None:
    registry: Any = scoped_session(sessionmaker(engine, class_=SharedSession))
    with critical_section(registry) as session:
        assert session is registry()
        assert session.guard is guard_of(registry)
        assert session.guard.held == "exclusive"
    registry.remove()
