"""The session's database connections, guarded where they stand.

``session.connection()`` hands out the very connection that the session works on, so
whatever is done with it is an operation of the session.  The connection changes its
class when the session's transaction takes it, and keeps its guard as long as the
session is there: it may be an application's own, given to the session as its bind.
"""

from __future__ import annotations

import weakref
from typing import Any

from sqlalchemy.engine import Connection

from . import rows
from .disguise import is_ours, per_class, subclass
from .guard import Guard
from .operations import (
    CONNECTION,
    CONNECTION_TRANSACTION,
    HAND_OUT_TRANSACTIONS,
    guarded,
    like,
    run,
)
from .owners import Owner
from .statements import access_of, has_changes_within, is_known_change
from .terms import CHANGE, LOAD, WRITE

_GUARD = "_sharedsession_guard"


def is_guarded(connection: Connection) -> bool:
    return _GUARD in connection.__dict__ and _guard_of(connection) is not None


def guard_connection(connection: Connection, guard: Guard) -> Connection:
    """Guard *connection*; one that has a guard already keeps it.

    Two sessions may work on one connection.  The second one's operations then take the
    first one's guard too, for as long as they are on the connection.
    """
    if issubclass(type(connection), Connection) and _guard_of(connection) is None:
        connection.__dict__[_GUARD] = weakref.ref(guard)
        if not is_ours(connection):
            connection.__class__ = _guarded_class(type(connection))
    return connection


def _guard_of(connection: Any) -> Guard | None:
    known = connection.__dict__.get(_GUARD)
    return None if known is None else known()


@per_class
def _guarded_class(base: Any) -> Any:
    members: dict[str, Any] = {}
    for name, access in CONNECTION.items():
        member = getattr(base, name, None)
        if access is None or member is None:
            continue
        if name in HAND_OUT_TRANSACTIONS:
            member = _handing_out(member)
        if hasattr(member, "fget"):
            members[name] = property(guarded(member.fget, access, _guard_of))
        else:
            members[name] = guarded(member, access, _guard_of)
    for name in ("execute", "exec_driver_sql", "scalar"):
        members[name] = _executing(getattr(base, name))
    return subclass(base, members)


def _handing_out(function: Any) -> Any:
    def hand_out(self: Any, *args: Any, **kw: Any) -> Any:
        transaction = function(self, *args, **kw)
        if transaction is not None and not is_ours(transaction):
            transaction.__class__ = _guarded_transaction(type(transaction))
        return transaction

    return like(hand_out, function)


@per_class
def _guarded_transaction(base: Any) -> Any:
    members: dict[str, Any] = {}
    for name, access in CONNECTION_TRANSACTION.items():
        member = getattr(base, name, None)
        if access is not None and member is not None:
            if hasattr(member, "fget"):
                getter = guarded(member.fget, access, _guard_of_transaction)
                members[name] = property(getter)
            else:
                members[name] = guarded(member, access, _guard_of_transaction)
    return subclass(base, members)


def _guard_of_transaction(transaction: Any) -> Guard | None:
    return _guard_of(transaction.connection)


def _executing(function: Any) -> Any:
    def operation(self: Any, statement: Any, *args: Any, **kw: Any) -> Any:
        guard = _guard_of(self)
        if guard is None:
            return function(self, statement, *args, **kw)
        guard.check_may_execute()
        me = guard.asker()
        if guard.reads_only():
            if has_changes_within(statement):
                guard.refuse_write()
        elif guard.running is me and guard.worker is me and not guard.may_open:
            # A part of an operation that is noted as this owner's work already
            return rows.settle(guard, function(self, statement, *args, **kw))
        access = access_of(statement)
        if guard.running is me:
            if access is WRITE and not is_known_change(statement):
                access = CHANGE
            if access is LOAD and not guard.may_open:
                return rows.settle(guard, function(self, statement, *args, **kw))
            if access is LOAD and guard.open_window(me):
                return _in_window(guard, me, function, self, statement, args, kw)
        return run(guard, access, _execute, guard, function, self, statement, args, kw)

    return like(operation, function)


def _in_window(
    guard: Guard,
    me: Owner,
    function: Any,
    connection: Any,
    statement: Any,
    args: Any,
    kw: Any,
) -> Any:
    """Let others look at what is loaded while this one waits for the database."""
    try:
        result = function(connection, statement, *args, **kw)
    finally:
        guard.close_window(me)
    return rows.settle(guard, result)


def _execute(
    guard: Guard, function: Any, connection: Any, statement: Any, args: Any, kw: Any
) -> Any:
    guard.check_may_execute()
    result = function(connection, statement, *args, **kw)
    return rows.settle(guard, result)
