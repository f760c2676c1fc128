"""Keeping the child of a fork away from the parent's connections.

The child has a copy of every session, engine and connection, and each connection is
the parent's: same socket, same file.  Guards refuse every use of the sessions.  But if
the garbage collector, or the child's exit, finalized a copy, the pool would roll its
connection back, or the driver would close it, and the parent's transaction would be
gone.  Therefore the copies are never finalized.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

from sqlalchemy.orm import Session

from ..guard.ownership import reset_all_after_fork
from ..internals import orm, transactions

#: Every shared session that is alive.
sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _in_child() -> None:
    reset_all_after_fork()
    engines: set[Any] = set()
    for session in list(sessions):
        transaction: Any = session._transaction
        while transaction is not None:
            for connection in transactions.connections_of(transaction):
                _keep_for_good(connection)
            transaction = transaction.parent
        engines.update(bind.engine for bind in orm.binds_of(session))
    for engine in engines:
        # The child may use the engine in sessions of its own.  They get new
        # connections, as SQLAlchemy advises for forks.
        _keep_for_good(engine.pool)
        engine.dispose(close=False)


def _keep_for_good(thing: object) -> None:
    """Keep *thing* beyond the interpreter's exit, which clears module by module."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
