"""Private API of SQLAlchemy: transactions of sessions and of connections."""

from __future__ import annotations

from typing import Any, Callable, Iterator

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from sqlalchemy.orm import session as _session
from sqlalchemy.orm import state_changes as _state_changes


def is_broken(transaction: sa_orm.SessionTransaction | None) -> bool:
    """Whether only a rollback is possible in the transaction.

    Read without entering the guard: the caller may be on its way out of it.
    """
    if transaction is None:
        return False
    states = _session.SessionTransactionState
    if transaction._state in (states.DEACTIVE, states.COMMITTED):
        return True
    if transaction._state is states.PREPARED and not _is_prepared(transaction):
        return True  # the commit failed half way
    return any(map(_is_broken_at_connection, _with_parents(transaction)))


def _with_parents(transaction: Any) -> Iterator[Any]:
    while transaction is not None:
        yield transaction
        transaction = transaction._parent


def _is_prepared(transaction: Any) -> bool:
    """Whether ``prepare()`` was called and the second phase of the commit is due."""
    began = [entry[1] for entry in transaction._connections.values()]
    return bool(transaction.session.twophase) and all(
        each.is_active and getattr(each, "_is_prepared", False) for each in began
    )


def _is_broken_at_connection(transaction: Any) -> bool:
    """Whether the database transaction ended without the session.

    The server has aborted it, the connection was invalidated, or a method of the
    connection has ended it.
    """
    return any(
        _is_invalidated(connection)
        or abort_of(connection) is not None
        or (transaction._state is ACTIVE and not began.is_active)
        for connection, began, *_ in transaction._connections.values()
    )


def abort_of(connection: Any) -> Any:
    """Return the :class:`Abort` of a guarded connection's transaction, or ``None``."""
    return getattr(connection, "_sharedsession_abort", None)


def is_aborted_as(transaction: Any, abort: Any) -> bool:
    """Whether *abort* happened at a connection of *transaction* or of a parent."""
    return any(
        abort_of(connection) is abort
        for each in _with_parents(transaction)
        for connection in connections_of(each)
    )


_is_invalidated: Callable[[Any], bool] = vars(sa.Connection)["invalidated"].fget


class _Ended:
    """Replaces a transaction of a connection that has ended or cannot be rolled back.

    Rolling that transaction back again would emit a warning, or would name a savepoint
    that the server has forgotten.
    """

    is_active = False

    def __init__(self, connection: Any, is_root: bool) -> None:
        self._connection = connection
        self._is_root = is_root

    def rollback(self) -> None:
        """For an outer transaction, roll back what the connection began since."""
        if self._is_root and not self._connection.closed:
            self._connection.rollback()


def set_ended_aside(transaction: Any, savepoints_too: bool) -> None:
    """Let a rollback of *transaction* skip what has ended at its connections already.

    :param savepoints_too: whether the server has forgotten the transaction's savepoint.
    """
    for bind, entry in list(transaction._connections.items()):
        connection, began, is_own, closes = entry
        nested = transaction.nested
        # If the RELEASE of a savepoint failed, the connection still needs its rollback.
        is_over = not began.is_active and connection._nested_transaction is not began
        if (nested and savepoints_too) or is_over:
            ended: Any = _Ended(connection, is_own and not nested)
            transaction._connections[bind] = connection, ended, is_own, closes


def has_connection(transaction: Any, bind: Any) -> bool:
    """Whether *transaction* itself has begun on a connection of *bind*."""
    return bind in transaction._connections


def savepoint_beyond(transaction: Any) -> Any:
    """Return a savepoint that the application made at an aborted connection.

    Only a savepoint inside all transactions of the session; ``None`` if there is none.
    """
    own = {e[1] for t in _with_parents(transaction) for e in t._connections.values()}
    for each in _with_parents(transaction):
        for connection in connections_of(each):
            innermost = connection._nested_transaction
            if innermost is not None and innermost not in own:
                if abort_of(connection) is not None:
                    return innermost
    return None


def has_blocks_within(session: Any, block: Any) -> bool:
    """Whether a transaction block that was entered inside *block* is still open."""
    innermost = within = session._trans_context_manager
    while within is not None and within is not block:
        within = within._outer_trans_ctx
    return within is block and innermost is not block


def open_savepoints(connection: Any) -> list[Any]:
    """Return the savepoints of *connection* that are open, the innermost last."""
    found, savepoint = [], connection._nested_transaction
    while savepoint is not None:
        found.append(savepoint)
        savepoint = savepoint._previous_nested
    return found[::-1]


def name_of_savepoint(savepoint: Any) -> str:
    return savepoint._savepoint  # type: ignore[no-any-return]


def outer_transaction(connection: Any) -> Any:
    """Return the transaction around the savepoints, or ``None``."""
    return connection._transaction


def names_of_savepoints(transaction: Any) -> list[tuple[Any, str | None]]:
    """Return each connection of *transaction*, with the name of its savepoint there.

    The name is ``None`` for an outer transaction.
    """
    return [
        (entry[0], entry[1]._savepoint if transaction.nested else None)
        for entry in transaction._connections.values()
    ]


def driver_connection(connection: Any) -> Any:
    """Return the connection of the driver; ``None`` if there is none at present.

    The public attribute ``connection`` would connect again.
    """
    fairy = connection._dbapi_connection
    return None if fairy is None else fairy.driver_connection


def is_in_transaction(connection: Any) -> bool:
    """Like ``Connection.in_transaction()``, but not an operation of the guard."""
    return connection._transaction is not None


def is_autocommit(connection: Any) -> bool:
    """Whether the connection is in AUTOCOMMIT: each statement is a transaction."""
    return bool(connection._is_autocommit_isolation())


def restore_snapshot(transaction: sa_orm.SessionTransaction) -> None:
    """Restore the objects to the state before, if an interrupted rollback has not."""
    ended = boundary(transaction)
    if ended._state is _session.SessionTransactionState.DEACTIVE:
        ended._restore_snapshot(dirty_only=ended.nested)


def is_committed(transaction: sa_orm.SessionTransaction) -> bool:
    return transaction._state is _session.SessionTransactionState.COMMITTED


def is_closed(transaction: sa_orm.SessionTransaction) -> bool:
    return transaction._state is _session.SessionTransactionState.CLOSED


#: Decorator for a method that begins a transaction inside a transaction.  The method
#: then makes the same checks as ``SessionTransaction._begin()``.
begins_within: Callable[[Any], Any] = _state_changes._StateChange.declare_states(
    (_session.SessionTransactionState.ACTIVE,),
    _state_changes._StateChangeStates.NO_CHANGE,
)


#: The state of a transaction that is neither beginning nor ending.
ACTIVE = _session.SessionTransactionState.ACTIVE


def boundary(transaction: Any) -> Any:
    """Return the innermost savepoint or outer transaction around *transaction*.

    This is *transaction* itself unless it is the subtransaction of a flush.
    """
    while transaction is not None and not is_boundary(transaction):
        transaction = transaction._parent
    return transaction


def is_boundary(transaction: Any) -> bool:
    """Whether *transaction* has its own COMMIT or RELEASE: no subtransaction."""
    return transaction.nested or transaction._parent is None


def all_connections_of(transaction: Any) -> set[Any]:
    """Return the connections of a transaction and of its parents."""
    return set().union(*map(connections_of, _with_parents(transaction)))


def connections_of(transaction: Any) -> set[Any]:
    return {entry[0] for entry in transaction._connections.values()}
