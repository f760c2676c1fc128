"""Fixtures that every test may use."""

from __future__ import annotations

import contextlib
import functools
import gc
import signal
import sqlite3
import warnings
import weakref
from types import SimpleNamespace
from typing import Any, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, close_all_sessions, sessionmaker
from sqlalchemy.pool import StaticPool

from sharedsession import SharedSession, shared_session
from sharedsession.stress.tripwire import Tripwire, tripwire

from .support.models import Address, Base, Book, Log, User, Visit, make_user

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As of whatever a shell starts in the background; tests interrupt themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: The tripwire of every engine that is made here: all tests are watched from below.
wires: weakref.WeakKeyDictionary[sa.Engine, Tripwire] = weakref.WeakKeyDictionary()


def make_engine(url: str = "sqlite://") -> sa.Engine:
    """SQLite in memory, on one connection that any thread may use; or in a file."""
    if url == "sqlite://":
        engine = sa.create_engine(
            url, poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
    else:
        engine = sa.create_engine(url)
    wires[engine] = tripwire(engine)
    leave_transactions_to_sqlalchemy(engine)
    with engine.connect() as connection:
        template().backup(connection.connection.driver_connection)  # type: ignore
    return engine


def leave_transactions_to_sqlalchemy(engine: sa.Engine) -> None:
    """The recipe of SQLAlchemy's documentation that makes SQLite's savepoints work."""

    @sa.event.listens_for(engine, "connect")
    def leave_transactions_alone(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


@pytest.fixture(scope="module", autouse=True)
def older_objects_are_not_walked() -> Iterator[None]:
    """Keep the collector away from what other modules left, which slows it a lot.

    Many tests collect, so that what they dropped goes at a known moment.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def connections_left_behind(
    request: pytest.FixtureRequest, older_objects_are_not_walked: None
) -> Iterator[None]:
    """Collect what a module's interrupts and cancellations left unclosed.

    That is why the module ignores the warnings; the next one does not, and would get
    them, for CPython 3.13 and later warn of SQLite's connections.
    """
    yield
    marks = getattr(request.module, "pytestmark", [])
    marks = marks if isinstance(marks, list) else [marks]
    if {"ignore", "ignore::ResourceWarning"} & {arg for m in marks for arg in m.args}:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()


@functools.lru_cache(maxsize=None)
def template() -> sqlite3.Connection:
    """A database with the tables and four users, to be copied for each test."""
    engine = sa.create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        fill(session)
    connection = engine.raw_connection().driver_connection
    assert isinstance(connection, sqlite3.Connection)
    return connection


def fill(session: Session) -> None:
    """Put four users into empty tables."""
    users = [make_user(name) for name in ("ann", "ben", "cat", "dan")]
    session.add_all(users)
    users[0].books.put(Book(title="one"))
    users[0].logs.add(Log())
    session.commit()


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    engine = make_engine()
    yield engine
    with contextlib.suppress(sa.exc.SQLAlchemyError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close_all_sessions()
    engine.dispose()
    engine.clear_compiled_cache()  # mappers remember the last dialects
    no_calls_may_have_overlapped(engine, request)


@pytest.fixture
def file_engine(tmp_path: Any, request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    """SQLite in a file: each session has a connection of its own."""
    engine = make_engine(f"sqlite:///{tmp_path}/test.db")
    yield engine
    engine.dispose()
    engine.clear_compiled_cache()  # mappers remember the last dialects
    no_calls_may_have_overlapped(engine, request)


def no_calls_may_have_overlapped(
    engine: sa.Engine, request: pytest.FixtureRequest
) -> None:
    """Fail a test in which two threads were inside one DBAPI connection at once.

    Unless it is marked ``unguarded``: a control that uses a plain session.
    """
    wire = wires[engine]
    assert wire.calls, "the tripwire saw no call at all"
    if request.node.get_closest_marker("unguarded") is None:
        assert wire.overlaps == 0, wire.first


@pytest.fixture(params=["rlock", "rw"])
def lock(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def session(engine: sa.Engine, lock: str) -> Iterator[SharedSession]:
    with SharedSession(engine, lock=lock) as session:
        yield session


def make_world(engine: sa.Engine, lock: Any) -> Any:
    """A session with objects in every state that a way in may need."""
    return fill_world(
        engine,
        shared_session(sessionmaker(engine, class_=SharedSession, lock=lock)),
    )


def fill_world(engine: Any, registry: Any) -> Any:
    session = registry()
    user, fresh, expired, spare = (session.get_one(User, id_) for id_ in (1, 2, 3, 4))
    for value in ("addresses", "tags", "notes", "keywords", "books", "point", "pin"):
        getattr(user, value)
    list(user.words)
    session.expire(expired)
    pending = User(name="pending")
    session.add(pending)
    session.flush()
    session.autoflush = False  # so that a look does not become a write
    user.name = "ann"
    return SimpleNamespace(
        engine=engine,
        registry=registry,
        session=session,
        user=user,
        user_id=user.id,
        address=user.addresses[0],
        fresh=fresh,
        fresh_address=session.scalars(
            sa.select(Address).where(Address.user_id == 4)
        ).first(),
        expired=expired,
        spare=spare,
        pending=pending,
        visit=session.scalars(sa.select(Visit).where(Visit.user_id == 1)).one(),
        log=session.scalars(sa.select(Log).where(Log.user_id == 1)).one(),
    )
