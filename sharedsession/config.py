"""sessionmaker_from_config: the lock kind as a setting of the application."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any, Callable

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.util import asbool

from .guard.access import check_timeout
from .guard.kinds import make_guard
from .session.session import SharedSession

#: The environment variable that overrides the lock kind.
VARIABLE = "SHAREDSESSION_LOCK"


def sessionmaker_from_config(
    config: Mapping[str, Any], prefix: str = "sqlalchemy.", **kwargs: Any
) -> sessionmaker[SharedSession]:
    """Make a ``sessionmaker`` of shared sessions, and its engine, from settings.

    Like :func:`sqlalchemy.engine_from_config`, but these keys, after the prefix, are
    for the session: ``session.lock``, ``session.lock_timeout`` (seconds, above zero),
    ``session.expire_on_commit`` and ``session.autoflush``; every other key with the
    prefix is for the engine.  The environment variable ``SHAREDSESSION_LOCK`` overrides
    the lock kind if the variable is set and not empty.

    :param config: any mapping; values may be strings, keys without the prefix are
      ignored.
    :param prefix: what the keys begin with, ``"sqlalchemy."`` by default.
    :param kwargs: arguments for the ``sessionmaker``, or else for ``create_engine()``;
      they override *config*.  With ``bind`` no engine is made.
    :raises ValueError: if a ``session.`` key is unknown or a value is not valid; the
      error names the key.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be a mapping of settings, not {config!r}")
    session_prefix = f"{prefix}session."
    of_session, of_engine = {}, {}
    for key, value in config.items():
        if isinstance(key, str) and key.startswith(session_prefix):
            name = key[len(session_prefix) :]
            of_session[name] = _coerce(key, name, value)
        else:
            of_engine[key] = value
    override = os.environ.get(VARIABLE)
    for name in tuple(kwargs):
        if name in _SESSION_ARGUMENTS:
            of_session[name] = kwargs.pop(name)
    if override:
        of_session["lock"] = _lock(VARIABLE, override)
    if "bind" not in of_session:
        of_session["bind"] = _engine(of_engine, prefix, kwargs)
    of_session.setdefault("class_", SharedSession)
    return sessionmaker(**of_session)


def _engine(config: dict[str, Any], prefix: str, kwargs: dict[str, Any]) -> sa.Engine:
    if f"{prefix}url" not in config and "url" not in kwargs:
        raise ValueError(f"{prefix}url is missing: it says which database to use")
    return sa.engine_from_config(config, prefix, **kwargs)


def _lock(key: str, value: Any) -> Any:
    lock = value.strip().lower() if isinstance(value, str) else value
    try:
        make_guard(lock)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    return lock


def _seconds(key: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        return check_timeout(float(value))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{key}={value!r} is not a number of seconds above 0"
        ) from None


def _flag(key: str, value: Any) -> bool:
    try:
        if not isinstance(value, (bool, int, str)) or value == "":
            raise ValueError
        return bool(asbool(value))
    except ValueError:
        raise ValueError(f"{key}={value!r} is neither true nor false") from None


_SETTINGS: dict[str, Callable[[str, Any], Any]] = {
    "lock": _lock,
    "lock_timeout": _seconds,
    "expire_on_commit": _flag,
    "autoflush": _flag,
}

#: Keyword arguments for the session; all others are for the engine.
_SESSION_ARGUMENTS = {
    *inspect.signature(Session.__init__).parameters,
    *_SETTINGS,
    "class_",
} - {
    "self",
    "execution_options",
}  # both take this one; here it is for the engine


def _coerce(key: str, name: str, value: Any) -> Any:
    if name not in _SETTINGS:
        known = ", ".join(f"session.{setting}" for setting in _SETTINGS)
        raise ValueError(f"{key} is not a setting of a session; known are {known}")
    return _SETTINGS[name](key, value)
