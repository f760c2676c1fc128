"""A pytest plugin that puts SharedSession in the place of Session.

Other people's test suites import, subclass and call ``Session`` as ever and
get ours. The environment tells what to do; without a kind of lock nothing is
replaced, so a plain run differs from a shared one in this alone.

- ``SHAREDSESSION_CONFORMANCE_LOCK``: the kind
- ``SHAREDSESSION_CONFORMANCE_MODULES``: where the suite finds its ``Session``,
  by default in SQLAlchemy
"""

from __future__ import annotations

import importlib
import os

import pytest

# The names under which users find Session, and what makes sessions for them.
# The rest of SQLAlchemy keeps its own, of which ours is a subclass
SQLALCHEMY = "sqlalchemy.orm sqlalchemy.orm.session sqlalchemy.orm._orm_constructors"


# Last: SQLAlchemy's own conftest must come before any import of SQLAlchemy
@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    lock = os.environ.get("SHAREDSESSION_CONFORMANCE_LOCK")
    modules = os.environ.get("SHAREDSESSION_CONFORMANCE_MODULES", SQLALCHEMY)
    if lock:
        replace_session(modules.split(), lock)


def replace_session(names: list[str], lock: str) -> None:
    from sqlalchemy import orm

    from sharedsession import SharedSession, SharedSessionMixin

    modules = [importlib.import_module(name) for name in names]
    plain: type = modules[0].Session
    if plain is orm.Session:
        shared: type = SharedSession
        set_default(orm.sessionmaker, "class_", SharedSession)
    else:
        shared = type(plain.__name__, (SharedSessionMixin, plain), {})
    for module in modules:
        module.Session = shared  # type: ignore[attr-defined]
    # The classes themselves with another default, for a subclass would be one
    # more step between what the tests expect and what they get
    set_default(SharedSession, "lock", lock)
    set_default(SharedSessionMixin, "lock", lock)


def set_default(cls: type, name: str, value: object) -> None:
    defaults = cls.__init__.__kwdefaults__  # type: ignore[misc]
    assert name in defaults, f"{cls.__name__}() has no keyword {name!r}"
    defaults[name] = value
