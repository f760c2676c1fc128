"""Keeping the child of a fork away from the parent's connections.

The child has a copy of every session, engine and connection, and the connections are
the parent's: same socket, same file.  Guards refuse their use.  What is left is the
end of those copies, by the collector or at the child's exit: a pool would roll the
connection back, a driver would close it, and the parent's transaction would be gone.
So the copies are made to have no end.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

from sqlalchemy.orm import Session

from . import alchemy
from .guard import disown_all

#: Every shared session alive.
sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _in_child() -> None:
    disown_all()
    engines: set[Any] = set()
    for session in list(sessions):
        transaction: Any = session._transaction
        while transaction is not None:
            for connection in alchemy.connections_of(transaction):
                _keep_for_good(connection)
            transaction = transaction.parent
        engines.update(bind.engine for bind in alchemy.binds_of(session))
    for engine in engines:
        # The child's own sessions may use the engine; they get connections of their
        # own, as SQLAlchemy advises for forks.
        _keep_for_good(engine.pool)
        engine.dispose(close=False)


def _keep_for_good(thing: object) -> None:
    """Let *thing* outlive even the interpreter, which ends module by module."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
