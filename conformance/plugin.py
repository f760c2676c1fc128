"""A pytest plugin that puts SharedSession in the place of Session.

Other people's test suites import, subclass and call ``Session`` as ever and
get ours; where greenlet is installed, ``AsyncSession`` likewise. The environment
tells what to do; without a kind of lock nothing is replaced, so a plain run
differs from a shared one in this alone.

- ``SHAREDSESSION_CONFORMANCE_LOCK``: the kind
- ``SHAREDSESSION_CONFORMANCE_CONNECTIONS``: not empty: tests get the connections of
  sessions, in the plain run too; see connections.py
- ``SHAREDSESSION_CONFORMANCE_ONE_OWNER``: not empty: all tasks are one owner
- ``SHAREDSESSION_CONFORMANCE_FAULT``: a fault to plant, for the tests to find
- ``SHAREDSESSION_CONFORMANCE_MODULES``: where the suite finds its ``Session``,
  by default in SQLAlchemy
- ``SHAREDSESSION_CONFORMANCE_ASYNC_MODULES``: where it finds its ``AsyncSession``
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterable

import pytest

# The names under which users find Session and AsyncSession, and what makes sessions
# for them. The rest of SQLAlchemy keeps its own, of which ours are subclasses: the
# registries too, for they make one session a thread or task, as they are asked to
SQLALCHEMY = "sqlalchemy.orm sqlalchemy.orm.session sqlalchemy.orm._orm_constructors"
SQLALCHEMY_ASYNCIO = "sqlalchemy.ext.asyncio sqlalchemy.ext.asyncio.session"


# Last: SQLAlchemy's own conftest must come before any import of SQLAlchemy
@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    lock = os.environ.get("SHAREDSESSION_CONFORMANCE_LOCK")
    modules = os.environ.get("SHAREDSESSION_CONFORMANCE_MODULES", SQLALCHEMY)
    async_modules = os.environ.get(
        "SHAREDSESSION_CONFORMANCE_ASYNC_MODULES", SQLALCHEMY_ASYNCIO
    )
    if lock and importlib.util.find_spec("greenlet"):
        replace_async_session(async_modules.split(), lock)
    if lock:
        replace_session(modules.split(), lock)
    if lock and os.environ.get("SHAREDSESSION_CONFORMANCE_ONE_OWNER"):
        become_one_owner()


# Last: SQLAlchemy's plugin makes its testing package usable here
@pytest.hookimpl(trylast=True)
def pytest_sessionstart() -> None:
    if os.environ.get("SHAREDSESSION_CONFORMANCE_CONNECTIONS"):
        from conformance.connections import replace_connections

        replace_connections()
    if fault := os.environ.get("SHAREDSESSION_CONFORMANCE_FAULT"):
        from conformance.connections import plant_fault

        plant_fault(fault)


def become_one_owner() -> None:
    """With an async driver the steps of one test are tasks, one after the other.

    Its fixtures and its parts are that, too. In the event loop's context all of them
    are one owner, as they are one thread with other drivers.
    """
    from sharedsession import one_owner

    _until_the_end.enter_context(one_owner("tests"))


_until_the_end = contextlib.ExitStack()


def replace_session(names: list[str], lock: str) -> None:
    from sqlalchemy import orm

    from sharedsession import SharedSession, SharedSessionMixin, shared_session

    plain: type = importlib.import_module(names[0]).Session
    if plain is orm.Session:
        shared: type = SharedSession
        set_default(orm.sessionmaker, "class_", SharedSession)
    else:
        shared = type(plain.__name__, (SharedSessionMixin, plain), {})
    replace(names, plain, shared)
    show_on_registry(orm.scoped_session, shared_session)
    # The classes themselves with another default, for a subclass would be one
    # more step between what the tests expect and what they get
    set_default(SharedSession, "lock", lock)
    set_default(SharedSessionMixin, "lock", lock)


def show_on_registry(registry: type, shared_registry: type) -> None:
    """A test compares what a session and a registry have, and the session is ours."""
    for name in ("guard", "critical_section", "read_section"):
        setattr(registry, name, getattr(shared_registry, name))


def replace_async_session(names: list[str], lock: str) -> None:
    from sqlalchemy.ext import asyncio

    from sharedsession import SharedSession
    from sharedsession.asyncio import AsyncSharedSession, async_shared_session

    plain: type = importlib.import_module(names[0]).AsyncSession
    if plain is asyncio.AsyncSession:
        shared: type = AsyncSharedSession
        set_default(asyncio.async_sessionmaker, "class_", AsyncSharedSession)
        # Here, too, it finds Session
        asyncio.AsyncSession.sync_session_class = SharedSession
        # Errors tell the name of the class, whichever subclass of AsyncSession it is
        AsyncSharedSession.__name__ = plain.__name__
    else:
        shared = type(plain.__name__, (AsyncSharedSession, plain), {})
    replace(names, plain, shared)
    show_on_registry(asyncio.async_scoped_session, async_shared_session)
    set_default(AsyncSharedSession, "lock", lock)


def replace(names: Iterable[str], plain: type, shared: type) -> None:
    """Put a class in the place of another, in the modules of these names."""
    for name in names:
        module = importlib.import_module(name)
        found = getattr(module, plain.__name__, None)
        assert found is plain, f"{name}.{plain.__name__} is {found}, not {plain}"
        setattr(module, plain.__name__, shared)


def set_default(cls: type, name: str, value: object) -> None:
    defaults = cls.__init__.__kwdefaults__  # type: ignore[misc]
    assert name in defaults, f"{cls.__name__}() has no keyword {name!r}"
    defaults[name] = value
