"""Private API of SQLAlchemy: results and their cursors."""

from __future__ import annotations

import functools
import operator
from collections import deque
from typing import Any, Callable, Iterator, NoReturn

import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
from sqlalchemy.engine import cursor as _cursor
from sqlalchemy.engine import result as _result

from .orm import STATE_KEY, described

CursorResult: type[Any] = _cursor.CursorResult
IteratorResult: type[Any] = _result.IteratorResult
ChunkedIteratorResult: type[Any] = _result.ChunkedIteratorResult


#: The default strategy by which a cursor result fetches its rows.
CursorFetchStrategy: type[Any] = _cursor.CursorFetchStrategy


class MemoryCursor:
    """Replaces the driver's cursor of a result whose rows are all in memory.

    Until it is closed, its attributes are those of the driver's cursor while that was
    open.  If fetching from the driver failed, the consumer of the result gets the
    error, as with a plain result.
    """

    __slots__ = (
        *("description", "lastrowid", "statusmessage", "arraysize", "_rowcount"),
        *("_driver_cursor", "_context", "_fetched", "_left", "_error", "_closed"),
    )

    def __init__(self, cursor: Any, context: Any) -> None:
        self.description = cursor.description
        for name in ("lastrowid", "statusmessage"):  # some drivers have none
            if hasattr(cursor, name):
                setattr(self, name, getattr(cursor, name))
        self.arraysize = getattr(cursor, "arraysize", 1)
        # After a SELECT read the driver's rowcount only if the application asks for it,
        # because some drivers have to count the rows.  After other statements read it
        # now, because it may change when the cursor is closed.
        is_select = context.compiled and not (context.is_text or context.is_crud)
        self._rowcount = None if is_select else getattr(cursor, "rowcount", -1)
        self._driver_cursor = cursor
        self._context = context
        #: The rows as the driver returned them, until a single row is fetched.
        self._fetched: Any = ()
        self._left: deque[Any] | None = None
        self._error: Exception | None = None
        self._closed = False

    @property
    def rowcount(self) -> Any:
        known = self._rowcount
        return getattr(self._driver_cursor, "rowcount", -1) if known is None else known

    def fetch_from(self, result: Any) -> None:
        """Take all rows from the driver's cursor of *result*."""
        cursor, strategy = result.cursor, result.cursor_strategy
        if isinstance(strategy, _cursor.FullyBufferedCursorFetchStrategy):
            return  # the strategy has all rows already
        try:
            try:
                driver_cursor = getattr(cursor, "_cursor", cursor)  # of an adapter
                is_psycopg = getattr(driver_cursor, "pgresult", None) is not None
                self._fetched = cursor.fetchall()
                if is_psycopg and self._rowcount is None:
                    self._rowcount = len(self._fetched)  # closing the cursor loses it
            except BaseException as error:
                strategy.handle_exception(result, cursor, error)
        except Exception as error:
            self._error = error

    def knows_of(self, error: BaseException) -> bool:
        """Whether the connection must raise *error* without handling it.

        True for an error of the fetch, which the connection has handled before, and for
        any error before this cursor is closed, which is not an error of the driver.
        """
        return error is self._error or not self._closed

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)

    def fetchone(self) -> Any:
        if self._closed:
            return self._driver_cursor.fetchone()  # raises, because it is closed
        left = self._rows()
        return left.popleft() if left else None

    def fetchmany(self, size: int | None = None) -> Any:
        if self._closed:
            return self._driver_cursor.fetchmany()  # raises, because it is closed
        left = self._rows()
        count = self.arraysize if size is None else size
        return [left.popleft() for _ in range(min(count, len(left)))]

    def fetchall(self) -> Any:
        if self._closed:
            return self._driver_cursor.fetchall()  # raises, because it is closed
        if self._error is None and self._left is None:
            fetched, self._fetched = self._fetched, ()
            return fetched
        left = self._rows()
        self._left = deque()
        return list(left)

    def _rows(self) -> deque[Any]:
        if self._error is not None:
            raise self._error
        if self._left is None:
            self._left = deque(self._fetched)
        return self._left

    def close(self) -> None:
        """From now on use the driver's cursor, which is closed already."""
        self._closed = True
        self._context.cursor = self._driver_cursor

    async def _async_soft_close(self) -> None:
        """AsyncSession calls this for the cursors of asyncio drivers."""


def buffer_rows(result: Any) -> None:
    """Fetch all rows of a cursor result and close its cursor, but not the result.

    The result keeps its strategy, which then fetches the rows from memory.
    """
    cursor = result.cursor
    in_memory = MemoryCursor(cursor, result.context)
    in_memory.fetch_from(result)
    result.connection._safe_close_cursor(cursor)
    result.cursor = result.context.cursor = in_memory


def is_in_memory(result: Any) -> bool:
    """Whether all rows of a cursor result were fetched by :func:`buffer_rows`."""
    return isinstance(result.cursor, MemoryCursor)


def was_consumed(result: Any) -> bool:
    """Whether *result*, or the result that it filters, has no cursor any more."""
    result = getattr(result, "_real_result", None) or result
    if not isinstance(result, CursorResult):
        return False
    return result.cursor is None and not has_rows_of_its_own(result)


def has_rows_of_its_own(result: Any) -> bool:
    """Whether a cursor result has buffered its rows and closed its cursor at once."""
    strategy = result.cursor_strategy
    return isinstance(strategy, _cursor.FullyBufferedCursorFetchStrategy)


def changes_rows(cursor_result: Any) -> bool:
    """Whether it has the rows that an INSERT, UPDATE or DELETE returned."""
    return bool(cursor_result.context.is_crud)


def is_prebuffered(cursor_result: Any) -> bool:
    """Whether SQLAlchemy, too, makes the objects at once, as some options ask for."""
    return bool(cursor_result.context.execution_options.get("prebuffer_rows"))


def refuse_identity_map(row: Any) -> NoReturn:
    """Raise what SQLAlchemy raises for a row of a session that was closed since."""
    values = row if isinstance(row, (tuple, sa.Row)) else (row,)
    states = [getattr(value, STATE_KEY, None) for value in values]
    found = next(
        (described(state) for state in states if state is not None), "of a row"
    )
    raise sa_exc.InvalidRequestError(
        f"Object {found} cannot be converted to 'persistent' state, as this identity "
        "map is no longer valid. Has the owning Session been closed?",
        code="lkrp",
    )


def may_have_rows(result: Any) -> bool:
    """Whether an iterator result may have rows left.

    ``Result.merge()`` of results without rows, such as those of an UPDATE of several
    shards, makes one whose iterator raises an error, as each of the results would.
    """
    if not getattr(result._metadata, "returns_rows", True):
        return False
    return operator.length_hint(result.iterator, 1) > 0


def is_exhausted(result: Any) -> bool:
    """Whether a cursor result has no more rows to fetch from the driver."""
    return bool(result._soft_closed)


def comes_piece_by_piece(result: Any, cursor_result: Any) -> bool:
    """Whether a result streams: by ``yield_per()`` or by a server-side cursor."""
    return bool(result._yield_per or cursor_result.context._is_server_side)


def let_go_of_cursor(cursor_result: Any) -> None:
    """Do the last steps of a cursor result's close, after its cursor was closed."""
    cursor_result.cursor = None
    cursor_result._soft_closed = True


def closer_of_cursor(cursor_result: Any) -> Callable[[], None]:
    """Return a function that closes the result's present cursor, without the result."""
    connection = cursor_result.connection
    return functools.partial(connection._safe_close_cursor, cursor_result.cursor)
