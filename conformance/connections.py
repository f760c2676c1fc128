"""Give SQLAlchemy's tests of engine, dialects and SQL the connection of a session.

Those tests ask an engine for their connections, or use the fixture ``connection``.
Here both get ``session.connection()`` of a session that lives as long as its
connection.  The plain run and the shared run do this alike; only the class of the
session differs.  So what a session's connection cannot do, because its session began
a transaction on it, ends alike in both runs.

The environment variable ``SHAREDSESSION_CONFORMANCE_CONNECTIONS`` switches this on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from sqlalchemy import orm
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.testing import config
from sqlalchemy.testing.fixtures import base

#: What sessions are made of: it gets plain connections from an engine.
SESSIONS = ("sqlalchemy.orm.", "sharedsession.")


def replace_connections() -> None:
    """Have tests get session-made connections from fixtures and engines."""
    base.TestBase.connection = config.fixture()(_connection)  # type: ignore[assignment]
    Engine.connect = _session_made(Engine.connect)  # type: ignore[method-assign]
    _leave_out_transaction_of_start()


def session_connection(engine: Engine) -> Connection:
    """The connection of a new session, in the transaction that the session began."""
    session = orm.Session(engine)
    connection = session.connection()
    # The session is there as long as its connection, and goes with it
    connection._conformance_session = session  # type: ignore[attr-defined]
    return connection


def _connection(self: Any) -> Iterator[Connection]:
    """Like ``TestBase.connection``, in the transaction of a session."""
    connection = session_connection(getattr(self, "bind", None) or config.db)
    transaction = connection.get_transaction()
    assert transaction is not None
    # The fixture ``metadata`` looks here for where to drop its tables
    base._connection_fixture_connection = connection
    yield connection
    base._connection_fixture_connection = None
    if transaction.is_active:
        transaction.rollback()
    connection.close()


# -- connections that an engine is asked for ------------------------------------------


def _session_made(connect: Callable[[Engine], Connection]) -> Any:
    def session_made_connect(self: Engine) -> Connection:
        """Like ``Engine.connect()``, of a session; no transaction is begun as yet."""
        if _is_called_by_session(sys._getframe(1)):
            return connect(self)
        if not isinstance(self.dialect, Dialect):
            return connect(self)  # a mock, with which no session can work
        _starting.append(self)
        try:
            connection = session_connection(self)
            transaction = connection.get_transaction()
            assert transaction is not None
            transaction.rollback()
        finally:
            _starting.remove(self)
        return connection

    return session_made_connect


def _is_called_by_session(caller: FrameType) -> bool:
    return caller.f_globals.get("__name__", "").startswith(SESSIONS)


#: Engines that are making a session's connection, without the session's transaction.
_starting: list[Engine] = []


def _leave_out_transaction_of_start() -> None:
    """Neither listeners nor the database see the transaction that is undone at once.

    A test that counts events or statements starts from nothing, then, as it expects.
    """
    for name in ("_begin_impl", "_rollback_impl"):
        setattr(Connection, name, _silent_at_start(getattr(Connection, name)))


def _silent_at_start(function: Any) -> Any:
    def silent_at_start(self: Connection, *args: Any) -> None:
        if self.engine not in _starting:
            function(self, *args)

    return silent_at_start


# -- faults to be found ----------------------------------------------------------------


def plant_fault(name: str) -> None:
    """Put back a fault that the library once had, for the tests to find."""
    from sharedsession.internals import cursors

    if name == "soft-closed":
        # The dialect asks whether a result is soft-closed before it fetches
        buffer_rows = cursors.buffer_rows

        def buffer_and_soft_close(result: Any) -> None:
            buffer_rows(result)
            result._soft_closed = True

        cursors.buffer_rows = buffer_and_soft_close
    else:
        assert name == "facts", name

        def forget(self: Any, cursor: Any, context: Any) -> None:
            init(self, cursor, context)
            self.description, self._rowcount = None, -1

        init = cursors.MemoryCursor.__init__
        cursors.MemoryCursor.__init__ = forget  # type: ignore[method-assign]
