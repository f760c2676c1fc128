"""Guard a session, and everything that is attached to it already."""

from __future__ import annotations

import weakref
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import SessionTransaction

from ..database.connections import guard_connection
from ..guard.guard import Guard
from ..internals import orm, transactions
from ..objects import attributes, collections
from ..objects.guards import guards_by_session
from ..objects.identity_map import guard_identity_map
from . import fork
from .transaction import GuardedTransaction


def put_guard(session: Any, guard: Guard) -> None:
    """Guard *session* and everything that is attached to it already."""
    attributes.install()
    collections.install()
    session._recovery = guard.recovery = session._recovery_class(session, guard)
    session._blocks = []
    session._fit_engines = weakref.WeakSet()
    guard.session = weakref.ref(session)
    session.guard = guard
    guards_by_session[session.hash_key] = guard
    fork.sessions.add(session)
    weakref.finalize(session, guards_by_session.pop, session.hash_key, None).atexit = (
        False
    )
    _adopt_present(session, guard)


def _adopt_present(session: Any, guard: Guard) -> None:
    # Read the states before the identity map is guarded: otherwise the thread that
    # makes the session would count as its first user.
    states = orm.states_in(session)
    guard_identity_map(session.identity_map, guard)
    for state in states:
        attributes.adopt(state, state.dict)
    transaction = session._transaction
    while transaction is not None:
        if type(transaction) is SessionTransaction:
            transaction.__class__ = GuardedTransaction
            me = guard.current_owner().party
            transaction.begun_by = me  # type: ignore[attr-defined]
        for connection in transactions.connections_of(transaction):
            guard_connection(connection, guard)
        transaction = transaction.parent
    if isinstance(session.bind, Connection):
        guard_connection(session.bind, guard)
