"""Guard the database connections of a session in place.

``session.connection()`` returns the connection that the session itself uses, therefore
every method of the connection is an operation of the session.  The connection changes
its class when the session's transaction takes it.  It keeps its guard as long as the
session lives, because the connection may belong to the application, which gave it to
the session as the bind.
"""

from __future__ import annotations

import weakref
from typing import Any, Callable, Iterable, NoReturn

from sqlalchemy.engine import Connection

from ..guard.access import END, LOAD, STATEMENT
from ..guard.guard import Guard
from ..guard.owner import Owner
from ..internals import cursors, orm, transactions
from ..operations.inplace import is_guarded, like, per_class, subclass
from ..operations.operation import in_window, run
from ..operations.statements import (
    access_of,
    has_changes_within,
    is_known_change,
    undoes_all,
)
from ..operations.tables import (
    CONNECTION,
    CONNECTION_TRANSACTION,
    HAND_OUT_TRANSACTIONS,
)
from ..operations.wrap import as_function, guarded
from . import rows
from .aborts import Abort, abort_after, is_aborted
from .savepoints import Savepoint


def guard_connection(connection: Connection, guard: Guard) -> Connection:
    """Guard *connection* and return it; if it has a guard already, it keeps that guard.

    Two sessions may share one connection.  An operation of the second session then
    takes the first session's guard too, while the operation uses the connection.
    """
    if (
        issubclass(type(connection), Connection)
        and guard_of_connection(connection) is None
    ):
        thing: Any = connection
        thing._sharedsession_guard = weakref.ref(guard)
        if not is_guarded(connection):
            connection.__class__ = _guarded_class(type(connection))
            _adopt_transactions(connection)
    return connection


def _adopt_transactions(connection: Any) -> None:
    """Guard the transactions that the application began before there was a guard."""
    savepoints = transactions.open_savepoints(connection)
    names = map(transactions.name_of_savepoint, savepoints)
    connection._sharedsession_savepoints = tuple(map(Savepoint, names))
    for transaction in (*savepoints, transactions.outer_transaction(connection)):
        if transaction is not None and not is_guarded(transaction):
            transaction.__class__ = _guarded_transaction(type(transaction))


def guard_of_connection(connection: Any) -> Guard | None:
    try:
        return connection._sharedsession_guard()  # type: ignore[no-any-return]
    except AttributeError:
        return None


def _no_guard() -> None:
    """The default for a connection of a guarded class that has no guard."""


def _guard_of(connection: Any) -> Guard | None:
    """Return the guard of a connection of a guarded class."""
    return connection._sharedsession_guard()  # type: ignore[no-any-return]


@per_class
def _guarded_class(base: Any) -> Any:
    members: dict[str, Any] = {
        "_sharedsession_guard": staticmethod(_no_guard),
        "_sharedsession_savepoints": (),
        "_sharedsession_abort": None,
        "_handle_dbapi_exception": _handling_errors(base._handle_dbapi_exception),
    }
    for name, access in CONNECTION.items():
        member = getattr(base, name, None)
        if name in _ACCOUNTED_FOR and member is not None:
            member = like(_ACCOUNTED_FOR[name](member), member)
        if access is None or member is None:
            continue
        if name in HAND_OUT_TRANSACTIONS:
            member = _handing_out(member)
        if hasattr(member, "fget"):
            members[name] = property(guarded(member.fget, access, _guard_of))
        else:
            members[name] = guarded(member, access, _guard_of)
    members["_safe_close_cursor"] = _closing_cursor(members["_safe_close_cursor"], base)
    for name in ("execute", "exec_driver_sql", "scalar"):
        function = getattr(base, name)
        members[name] = as_function(function, _executing)
    return subclass(base, members)


# -- the end of transactions at a connection, also without the session


def _recovery_of(connection: Any) -> Any:
    guard = guard_of_connection(connection)
    return None if guard is None else guard.recovery


def _handling_errors(function: Any) -> Any:
    """After each failed statement, check if the database aborted the transaction."""

    def _handle_dbapi_exception(
        self: Any,
        e: BaseException,
        statement: Any,
        parameters: Any,
        cursor: Any,
        context: Any,
        **kw: Any,
    ) -> NoReturn:
        if isinstance(cursor, cursors.MemoryCursor) and cursor.knows_of(e):
            raise e
        abort = None
        if guard_of_connection(self) is not None:
            abort = abort_after(self, e, statement)
        if abort is not None:
            self._sharedsession_abort = abort
        try:
            function(self, e, statement, parameters, cursor, context, **kw)
        except BaseException as error:
            if abort is not None:
                recovery = _recovery_of(self)
                if recovery is not None:
                    recovery.failed(error)
            raise
        raise AssertionError("SQLAlchemy raises the error that it handles")

    return _handle_dbapi_exception


def _closing_cursor(guarded_close: Any, base: Any) -> Any:
    plain = base._safe_close_cursor

    def _safe_close_cursor(self: Any, cursor: Any) -> Any:
        if isinstance(cursor, cursors.MemoryCursor):
            return plain(self, cursor)
        result = guarded_close(self, cursor)
        if self._sharedsession_abort is None and is_aborted(self):
            # The CLOSE of a cursor on the server failed, which SQLAlchemy only logs.
            # A rollback to an earlier savepoint had closed it, for example.
            self._sharedsession_abort = Abort.LEVEL
            recovery = _recovery_of(self)
            if recovery is not None:
                recovery.failed(None)
        return result

    return _safe_close_cursor


def _making_savepoint(function: Any) -> Any:
    def make(self: Any, *args: Any) -> Any:
        name = function(self, *args)
        self._sharedsession_savepoints += (Savepoint(name),)
        return name

    return make


def _take_savepoints(connection: Any, name: str) -> list[Savepoint]:
    """Forget and return the savepoint *name* and all savepoints made after it."""
    kept = list(connection._sharedsession_savepoints)
    names = [savepoint.name for savepoint in kept]
    taken = kept[names.index(name) :] if name in names else []
    connection._sharedsession_savepoints = tuple(kept[: len(kept) - len(taken)])
    return taken


def innermost_savepoints(connections: Iterable[Any]) -> list[Savepoint]:
    """Return the innermost savepoint of each connection that has a savepoint."""
    of_each = (getattr(it, "_sharedsession_savepoints", ()) for it in connections)
    return [savepoints[-1] for savepoints in of_each if savepoints]


def _rolling_back_savepoint(function: Any) -> Any:
    def roll_back(self: Any, name: str) -> Any:
        result = function(self, name)
        if self._sharedsession_abort is Abort.LEVEL:
            self._sharedsession_abort = None
        workers = {w for each in _take_savepoints(self, name) for w in each.workers}
        recovery = _recovery_of(self)
        if recovery is not None:
            recovery.savepoint_undone(workers)
        return result

    return roll_back


def _releasing_savepoint(function: Any) -> Any:
    def release(self: Any, name: str) -> Any:
        result = function(self, name)
        taken = _take_savepoints(self, name)
        if self._sharedsession_savepoints:
            around = self._sharedsession_savepoints[-1]
            around.workers.update(*(each.workers for each in taken))
        return result

    return release


def _ending(what: str) -> Any:
    """Make a wrapper that notes the end of the outer transaction in the session.

    :param what: ``"COMMIT"``, ``"ROLLBACK"`` or ``"invalidation"``.
    """

    def accounted_for(function: Any) -> Any:
        def end(self: Any, *args: Any) -> Any:
            guard = guard_of_connection(self)
            if guard is None or what != "COMMIT":
                result = function(self, *args)
            else:
                result = in_window(guard, function, self, *args)
            self._sharedsession_savepoints = ()
            self._sharedsession_abort = None
            recovery = _recovery_of(self)
            if recovery is not None:
                recovery.ended_at_connection(self, what)
            return result

        return end

    return accounted_for


#: Methods that :class:`Connection` calls to begin a savepoint, or to end a savepoint or
#: a transaction.
_ACCOUNTED_FOR: dict[str, Callable[[Any], Any]] = {
    "invalidate": _ending("invalidation"),
    "_commit_impl": _ending("COMMIT"),
    "_commit_twophase_impl": _ending("COMMIT"),
    "_release_savepoint_impl": _releasing_savepoint,
    "_rollback_impl": _ending("ROLLBACK"),
    "_rollback_to_savepoint_impl": _rolling_back_savepoint,
    "_rollback_twophase_impl": _ending("ROLLBACK"),
    "_savepoint_impl": _making_savepoint,
}


def savepoints_within(transaction: Any) -> list[Savepoint]:
    """Return the savepoints of a session's transaction and those made inside it."""
    found: list[Savepoint] = []
    for connection, name in transactions.names_of_savepoints(transaction):
        savepoints = list(getattr(connection, "_sharedsession_savepoints", ()))
        names = [savepoint.name for savepoint in savepoints]
        if name is None or name in names:
            found += savepoints[0 if name is None else names.index(name) :]
    return found


def _note_in_savepoint(guard: Guard, connection: Any, statement: Any) -> None:
    """If *statement* changes data, note its owner in the innermost savepoint.

    Not during a flush, because its statements are the work of the owners that changed
    the objects.
    """
    session = guard.session()
    if session is None or orm.is_flushing(session):
        return
    if access_of(statement) is not LOAD and is_known_change(statement):
        connection._sharedsession_savepoints[-1].workers.add(
            guard.current_owner().party
        )


def _handing_out(function: Any) -> Any:
    def hand_out(self: Any, *args: Any, **kw: Any) -> Any:
        transaction = function(self, *args, **kw)
        if transaction is None or is_guarded(transaction):
            return transaction
        if guard_of_connection(transaction.connection) is not None:
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
                getter = guarded(member.fget, access, _guard_behind)
                members[name] = property(getter)
            else:
                members[name] = guarded(member, access, _guard_behind)
    for name in ("rollback", "close"):
        members[name] = as_function(getattr(base, name), _rolling_back)
    return subclass(base, members)


def _rolling_back(function: Any, transaction: Any) -> None:
    """Roll back, unless another owner has rolled back for the caller already.

    Doing so again would warn that the transaction has ended, although the caller did
    not end it: its own rollback clears what another owner broke.
    """
    guard = _guard_behind(transaction)
    if guard is None:
        return function(transaction)  # type: ignore[no-any-return]
    me = guard.current_owner()
    within = guard.running is me  # as when the session itself ends its transaction
    was_active = transaction.is_active  # before the recovery of this very operation

    def roll_back() -> None:
        by, _ended_by[transaction] = _ended_by.get(transaction, me.party), me.party
        mine = by is me.party and not was_active
        if within or mine or transaction.is_active:
            function(transaction)

    return run(guard, END, roll_back)  # type: ignore[no-any-return]


#: The last owner that ended a transaction of a connection.
_ended_by: weakref.WeakKeyDictionary[Any, Owner] = weakref.WeakKeyDictionary()


def _guard_behind(transaction: Any) -> Guard | None:
    return _guard_of(transaction.connection)


def _executing(function: Any, self: Any, *args: Any, **kw: Any) -> Any:
    """Execute a statement, the first of *args*, as an operation or a part of one."""
    guard = _guard_of(self)
    if guard is None:
        return function(self, *args, **kw)
    access = _access_now(guard, args[0])
    if access is None:
        return _execute(guard, function, self, *args, **kw)
    return run(guard, access, _execute_alone, guard, function, self, *args, **kw)


def _access_now(guard: Guard, statement: Any) -> Any:
    """Return what executing *statement* does to the session.

    ``None`` if the statement is a part of an operation and needs nothing more.
    """
    guard.check_may_execute()
    me = guard.current_owner()
    within = guard.running is me
    if guard.reads_only():
        if has_changes_within(statement):
            guard.refuse_write()
    elif within and guard.last_writer is me and not guard.may_open:
        return None  # the work of this owner is noted already
    access = access_of(statement)
    if not within:
        return access
    return STATEMENT if is_known_change(statement) else None


def _execute_alone(guard: Guard, *args: Any, **kw: Any) -> Any:
    guard.check_may_execute()
    return _execute(guard, *args, **kw)


def _execute(
    guard: Guard, function: Any, connection: Any, *args: Any, **kw: Any
) -> Any:
    """Execute a statement in an operation; others may read while it waits."""
    result = in_window(guard, function, connection, *args, **kw)
    if undoes_all(args[0]) and guard.recovery is not None:
        connection._sharedsession_savepoints = ()
        guard.recovery.undone_by_statement()
    if connection._sharedsession_savepoints:
        _note_in_savepoint(guard, connection, args[0])
    return rows.settle(guard, result)
