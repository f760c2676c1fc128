"""Check savepoints on SQLite, whose driver may begin no transaction around them.

By default Python's ``sqlite3`` begins a transaction only before the first INSERT,
UPDATE, DELETE or REPLACE.  If a SAVEPOINT comes before these, the savepoint itself is
the transaction: its RELEASE commits, and a unit of work cannot be undone afterwards.
"""

from __future__ import annotations

import enum
from typing import Any

from sqlalchemy.orm import SessionTransaction

from ..errors import SharedSessionError
from ..guard.owner import Owner
from ..internals import transactions


class Savepoint:
    """A savepoint of a connection, with the owners whose rows its rollback undoes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers: set[Owner] = set()


class Unit(enum.Enum):
    """What follows the savepoint of a unit of work when the unit succeeds."""

    #: The whole transaction is committed.
    COMMITTED = enum.auto()
    #: The surrounding transaction goes on and may still be rolled back.
    LEFT = enum.auto()


def make_savepoint_of(transaction: SessionTransaction, unit: Unit) -> None:
    """Have the savepoint of a unit checked when it is sent to the database."""
    if type(transaction) is SessionTransaction:  # of a session without a guard
        transaction.__class__ = _CheckedSavepoint
    transaction.unit = unit  # type: ignore[attr-defined]


class _CheckedSavepoint(SessionTransaction):
    """The savepoint of a unit of work in a session whose lock is off."""

    unit: Unit

    def _connection_for_bind(self, bind: Any, execution_options: Any) -> Any:
        if not transactions.has_connection(self, bind):
            check_savepoint(self, bind, execution_options)
            execution_options = None  # check_savepoint() has applied them
        plain: Any = super()._connection_for_bind
        return plain(bind, execution_options)


def check_savepoint(transaction: Any, bind: Any, execution_options: Any) -> None:
    """Refuse a unit that SQLite would commit early, before its SAVEPOINT is sent.

    If a commit follows the unit anyway, begin a transaction around the unit instead.

    :raises SharedSessionError: if the unit could not be undone by a later rollback.
    """
    connection = transaction.parent._connection_for_bind(bind, execution_options)
    driver = transactions.driver_connection(connection)
    if connection.dialect.name != "sqlite" or getattr(driver, "in_transaction", True):
        return
    if transaction.unit is Unit.LEFT:
        raise SharedSessionError(
            "A unit of work with transaction='savepoint' cannot be undone here: "
            "SQLite's driver has begun no transaction, so it would commit at the end "
            "of the unit what a later rollback() should undo. Nothing was changed. Let "
            "SQLAlchemy begin the transactions, with the two event listeners that its "
            "documentation of SQLite gives under 'Serializable isolation / Savepoints "
            "/ Transactional DDL', or with connect_args={'autocommit': False} "
            "(Python 3.12)."
        )
    legacy = getattr(driver, "autocommit", _LEGACY) == _LEGACY
    if legacy and not transactions.is_autocommit(connection):
        connection.exec_driver_sql("BEGIN")


_LEGACY = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL, new in Python 3.12
