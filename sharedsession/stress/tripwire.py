"""Counts the DBAPI calls that overlap on one connection.

A Session is a proxy for one database connection. Therefore errors between threads show
as two threads that are inside the same DBAPI connection. The tripwire detects this:
each connection that an engine makes, and each of its cursors, is of a *subclass* of the
driver's own class, which reports when a call begins and when the call ends. (A
subclass, because drivers and dialects check types, some of them in C.) The subclass
adds nothing else::

    engine = sa.create_engine(url)
    with tripwire(engine) as wire:
        ...
    assert wire.overlaps == 0, wire.first

The tripwire does not see connections that were made before it was set, or that another
``do_connect`` listener makes; ``wire.calls`` tells whether it saw any call.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import sqlalchemy as sa

__all__ = ["OverlapError", "Tripwire", "tripwire"]

_CONNECTION_CALLS = (
    *("cursor", "commit", "rollback", "close", "begin", "ping", "query"),
    *("execute", "executemany", "executescript"),
)
_CURSOR_CALLS = (
    *("execute", "executemany", "executescript", "callproc", "nextset"),
    *("fetchone", "fetchmany", "fetchall", "__next__", "close"),
)


class OverlapError(RuntimeError):
    """The call was refused because another thread is inside the same connection."""


class _Call(NamedTuple):
    thread: threading.Thread
    method: str


class Tripwire:
    """The counters of one engine; see :func:`tripwire`.

    ``calls`` is how many calls began, ``overlaps`` how many of them began while another
    thread was inside a call of the same connection, ``first`` describes the first
    overlap.
    """

    def __init__(self, engine: sa.Engine, *, fuse: bool = False) -> None:
        self.calls = 0
        self.overlaps = 0
        self.first: str | None = None
        self._fuse = fuse
        self._engine = weakref.ref(engine)
        # Protects the counters above and the list of every gate. Reentrant, because the
        # garbage collector may close a connection while this thread holds the lock.
        self._lock = threading.RLock()
        _connector_of(engine.dialect)
        sa.event.listen(engine, "do_connect", self._connect)

    def __enter__(self) -> Tripwire:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Tripwire {self.overlaps} overlaps in {self.calls} calls>"

    def remove(self) -> None:
        """Do not watch the connections that the engine makes from now on."""
        engine = self._engine()
        if engine is not None:
            sa.event.remove(engine, "do_connect", self._connect)

    def _connect(
        self, dialect: sa.Dialect, record: Any, cargs: Any, cparams: Any
    ) -> Any:
        connection = _connector_of(dialect)(dialect, cargs, cparams)
        connection.tripwire_gate = _Gate(self)
        return connection

    def _enter(self, inside: list[_Call], call: _Call) -> None:
        with self._lock:
            # Calls that the driver makes to serve a call are part of that call.
            if not any(other.thread is call.thread for other in inside):
                self.calls += 1
                if inside:
                    self._overlap(inside[0], call)
            inside.append(call)

    def _overlap(self, other: _Call, call: _Call) -> None:
        text = (
            f"thread {call.thread.name} called {call.method} while "
            f"thread {other.thread.name} was inside {other.method}"
        )
        self.overlaps += 1
        self.first = self.first or text
        if self._fuse:
            raise OverlapError(f"refused: {text} of the same connection")

    def _leave(self, inside: list[_Call], call: _Call) -> None:
        with self._lock:
            inside.remove(call)


class _Gate:
    """The calls that are inside one connection at this moment."""

    def __init__(self, wire: Tripwire) -> None:
        self._wire = wire
        self._inside: list[_Call] = []

    def enter(self, method: str) -> _Call:
        call = _Call(threading.current_thread(), method)
        self._wire._enter(self._inside, call)
        return call

    def leave(self, call: _Call) -> None:
        self._wire._leave(self._inside, call)


def tripwire(engine: sa.Engine, *, fuse: bool = False) -> Tripwire:
    """Watch the connections that ``engine`` makes from now on.

    :param engine: an engine of :func:`sqlalchemy.create_engine` on sqlite3, psycopg or
        PyMySQL, preferably before its first connection.
    :param fuse: if True, raise :class:`OverlapError` for an overlapping call instead of
        passing the call to the driver, which might crash. False by default.
    :raises sqlalchemy.exc.ArgumentError: if the driver is not one of these.
    """
    return Tripwire(engine, fuse=fuse)


def _reporting(
    method: Callable[..., Any], name: str, gate_of: Callable[[Any], _Gate | None]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def reported(self: Any, *args: Any, **kwargs: Any) -> Any:
        gate = gate_of(self)
        if gate is None:
            return method(self, *args, **kwargs)
        call = gate.enter(name)
        try:
            return method(self, *args, **kwargs)
        finally:
            gate.leave(call)

    return reported


def _subclass(
    base: type, names: tuple[str, ...], gate_of: Callable[[Any], _Gate | None]
) -> Any:
    namespace = {
        name: _reporting(getattr(base, name), f"{base.__name__}.{name}", gate_of)
        for name in names
        if hasattr(base, name)
    }
    return type(base.__name__, (base,), namespace)


def _gate(connection: Any) -> _Gate | None:
    return getattr(connection, "tripwire_gate", None)


@functools.cache
def _watched_connection(base: type) -> Any:
    # While it connects, a connection has no gate yet, and no other thread has it.
    return _subclass(base, _CONNECTION_CALLS, _gate)


@functools.cache
def _watched_cursor(base: type) -> Any:
    # A closed PyMySQL cursor has no connection: its calls are not reported.
    return _subclass(base, _CURSOR_CALLS, lambda self: _gate(self.connection))


@functools.cache
def _with_watched_cursors(base: Any) -> Any:
    """Make a subclass of *base* whose ``cursor(cls)`` returns watched cursors."""

    def cursor(self: Any, cls: type | None = None) -> Any:
        return base.cursor(self, _watched_cursor(cls or self.cursorclass))

    return type(base.__name__, (base,), {"cursor": cursor})


def _connect_sqlite3(dialect: Any, cargs: Any, cparams: Any) -> Any:
    base = cparams.get("factory", dialect.loaded_dbapi.Connection)
    watched = _watched_connection(_with_watched_cursors(base))
    watched.cursorclass = dialect.loaded_dbapi.Cursor
    return dialect.connect(*cargs, **{**cparams, "factory": watched})


def _connect_pymysql(dialect: Any, cargs: Any, cparams: Any) -> Any:
    base = dialect.loaded_dbapi.connections.Connection
    return _watched_connection(_with_watched_cursors(base))(*cargs, **cparams)


def _connect_psycopg(dialect: Any, cargs: Any, cparams: Any) -> Any:
    watched = _watched_connection(dialect.loaded_dbapi.Connection)
    connection = watched.connect(*cargs, **cparams)
    connection.cursor_factory = _watched_cursor(connection.cursor_factory)
    connection.server_cursor_factory = _watched_cursor(connection.server_cursor_factory)
    return connection


_CONNECTORS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "psycopg": _connect_psycopg,
    "pymysql": _connect_pymysql,
    "pysqlite": _connect_sqlite3,
}


def _connector_of(dialect: sa.Dialect) -> Callable[[Any, Any, Any], Any]:
    if dialect.is_async or dialect.driver not in _CONNECTORS:
        raise sa.exc.ArgumentError(
            f"the tripwire cannot watch {dialect.name}+{dialect.driver} connections; "
            f"it knows the synchronous drivers {', '.join(_CONNECTORS)}"
        )
    return _CONNECTORS[dialect.driver]
