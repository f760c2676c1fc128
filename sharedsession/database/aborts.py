"""Detect transactions that the database aborts or rolls back by itself.

After a failed statement PostgreSQL refuses every statement until a rollback, and turns
a COMMIT into a ROLLBACK.  MySQL and MariaDB roll the whole transaction back after a
deadlock, and SQLite does the same if the disk is full, for example.  SQLAlchemy does
not notice any of these: its transaction stays active.
"""

from __future__ import annotations

import enum
import re
from typing import Any

from ..internals import transactions


class Abort(enum.Enum):
    """How much of a transaction the database threw away."""

    #: The work since the innermost savepoint.  After a rollback to the savepoint the
    #: transaction goes on.
    LEVEL = enum.auto()
    #: The whole transaction and every savepoint in it.
    WHOLE = enum.auto()


def abort_after(
    connection: Any, error: BaseException, statement: str | None
) -> Abort | None:
    """Return what the database did to the transaction when *statement* failed.

    ``None`` if the transaction goes on.

    :param error: the exception that the driver raised.
    """
    dialect = connection.dialect
    if not isinstance(error, dialect.loaded_dbapi.Error):
        return None
    driver = transactions.driver_connection(connection)
    if driver is None or not transactions.is_in_transaction(connection):
        return None
    if transactions.is_autocommit(connection):
        return None
    if dialect.name == "sqlite":
        return _abort_on_sqlite(connection, driver, error, statement or "")
    if any(base.__name__ == "PGDialect" for base in type(dialect).__mro__):
        return _abort_on_postgresql(driver)
    return Abort.WHOLE if _rolls_everything_back(error) else None


def is_aborted(connection: Any) -> bool:
    """Whether PostgreSQL's transaction is aborted, as far as the driver knows."""
    if not any(
        base.__name__ == "PGDialect" for base in type(connection.dialect).__mro__
    ):
        return False
    driver = transactions.driver_connection(connection)
    return bool(_status_of(driver) == _PQTRANS_INERROR)


def _status_of(driver: Any) -> Any:
    return getattr(getattr(driver, "info", None), "transaction_status", None)


def _abort_on_postgresql(driver: Any) -> Abort | None:
    """Also for databases that use PostgreSQL's dialect, such as CockroachDB."""
    status = _status_of(driver)
    # psycopg and psycopg2 know the server's transaction status.  With another driver
    # assume an abort, because only client-side errors leave the transaction intact.
    in_error = status is None or status == _PQTRANS_INERROR
    return Abort.LEVEL if in_error else None


_PQTRANS_INERROR = 3  # a constant of libpq


def _rolls_everything_back(error: Any) -> bool:
    """Whether the error is a MySQL deadlock or has an SQLSTATE of class 40."""
    codes = [*error.args[:1], getattr(error, "errno", None)]
    state = getattr(error, "sqlstate", None) or next(iter(error.args), None)
    return _DEADLOCK in codes or (isinstance(state, str) and bool(_STATE.match(state)))


_DEADLOCK = 1213
_STATE = re.compile("40[0-9A-Z]{3}$")  # class 40: "transaction rollback"


def _abort_on_sqlite(
    connection: Any, driver: Any, error: Any, statement: str
) -> Abort | None:
    """Return ``Abort.WHOLE`` if the error ended a transaction that was open before.

    By default the driver begins a transaction only before the first INSERT, UPDATE,
    DELETE or REPLACE.  If another statement failed, or SQLite could not parse the
    statement, there may have been no transaction.
    """
    try:
        if getattr(driver, "in_transaction", True):
            return None
    except Exception:
        return None  # the driver's connection is closed
    if _has_begin_listener(connection) or getattr(driver, "autocommit", -1) is False:
        return Abort.WHOLE
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # new in Python 3.11
    by_conflict = code == _INTERRUPT or type(error).__name__ == "IntegrityError"
    has_begun = driver.isolation_level is not None and _BEGINS.match(statement)
    if (has_begun and by_conflict) or code in _ROLL_BACK:
        return Abort.WHOLE
    return None


def _has_begin_listener(connection: Any) -> bool:
    """Whether a listener emits the BEGIN, as SQLAlchemy's documentation advises."""
    return any(True for _ in connection.dispatch.begin)


_BEGINS = re.compile(
    r"(\s|--[^\n]*\n|/\*.*?\*/)*(INSERT|UPDATE|DELETE|REPLACE)\b", re.I
)
_INTERRUPT = 9
_ROLL_BACK = frozenset({7, 10, 13})  # SQLITE_NOMEM, SQLITE_IOERR, SQLITE_FULL
