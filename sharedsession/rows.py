"""Results: all rows in memory, or a stream that keeps the guard.

A result that is fetched piece by piece would go to the database, and turn rows into
objects, long after the operation that made it.  So the rows of every result are fetched
before the operation ends, and the result then deals them out from memory, in any
thread, at any time.  Only a result that was asked to stream does not: it is one long
operation, and the guard is kept until its end.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, Callable, Iterator

from . import alchemy
from .errors import ConcurrentAccessError
from .guard import LOAD, STREAM, Guard, Hold
from .operations import run


def settle(guard: Guard, result: Any) -> Any:
    """Fetch what *result* would fetch later; to be called inside its operation."""
    if not isinstance(result, (alchemy.IteratorResult, alchemy.CursorResult)):
        return result
    cursor_result = _cursor_result(result)
    if cursor_result is not None and _streams(result, cursor_result):
        _stream(guard, result, cursor_result)
    elif isinstance(result, alchemy.IteratorResult):
        _buffer_objects(result)
    elif not cursor_result._soft_closed:
        _buffer_rows(cursor_result)
    return result


def _cursor_result(result: Any) -> Any:
    while isinstance(result, alchemy.IteratorResult):
        result = result.raw
    return result if isinstance(result, alchemy.CursorResult) else None


def _streams(result: Any, cursor_result: Any) -> bool:
    if cursor_result._soft_closed:
        return False
    options = cursor_result.context.execution_options
    return bool(
        result._yield_per
        or options.get("stream_results")
        or options.get("yield_per")
        or cursor_result.context._is_server_side
    )


def _buffer_rows(cursor_result: Any) -> None:
    strategy = cursor_result.cursor_strategy
    rows = strategy.fetchall(cursor_result, cursor_result.cursor)  # closes the cursor
    cursor_result.cursor_strategy = alchemy.rows_in_memory(rows)


def _buffer_objects(result: Any) -> None:
    rows = list(result.iterator)
    result.iterator = iter(rows)
    if isinstance(result, alchemy.ChunkedIteratorResult):
        source = iter(rows)
        result.iterator = source

        def chunks(size: int | None) -> Iterator[Any]:
            return _chunks(source, size)

        result.chunks = chunks


def _chunks(rows: Iterator[Any], size: int | None) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


# -- streams


def _stream(guard: Guard, result: Any, cursor_result: Any) -> None:
    strategy = cursor_result.cursor_strategy
    if not isinstance(strategy, _StreamStrategy):
        strategy = _StreamStrategy(cursor_result, guard.keep(STREAM))
        cursor_result.cursor_strategy = strategy
    if isinstance(result, alchemy.IteratorResult):
        result.iterator = _by_owner_only(strategy.hold, result.iterator)
        if isinstance(result, alchemy.ChunkedIteratorResult):
            result.chunks = _chunks_by_owner_only(strategy.hold, result.chunks)


def _fetch(hold: Hold, function: Callable[..., Any], *args: Any) -> Any:
    """One step of a stream: an operation of its owner, and of nobody else."""
    guard = hold.guard
    me = guard.asker()
    if hold.is_open and me is not hold.owner:
        raise ConcurrentAccessError(
            f"{me.name} fetches from a streaming result of {hold.owner.name}, which "
            "keeps the guard until the result is exhausted or closed. Fetch it in that "
            "thread, or leave out yield_per and stream_results: the rows are then "
            "fetched at once and can be dealt out anywhere."
        )
    return run(guard, LOAD, function, *args)


def _by_owner_only(hold: Hold, rows: Iterator[Any]) -> Iterator[Any]:
    return iter(lambda: _fetch(hold, next, rows, _END), _END)


_END = object()


def _chunks_by_owner_only(hold: Hold, chunks: Callable[..., Any]) -> Any:
    return lambda size: _by_owner_only(hold, chunks(size))


class _StreamStrategy:
    """Fetches from the cursor as the strategy before it did, inside the guard.

    Whatever ends the stream, be it the last row, ``close()``, an error or the
    collector, closes the cursor first and gives the guard back then.
    """

    def __init__(self, result: Any, hold: Hold) -> None:
        self._strategy = result.cursor_strategy
        self.hold = hold
        self._close_cursor = functools.partial(
            result.connection._safe_close_cursor, result.cursor
        )
        self.alternate_cursor_description = (
            result.cursor_strategy.alternate_cursor_description
        )

    def yield_per(self, result: Any, cursor: Any, num: int) -> None:
        _fetch(self.hold, self._strategy.yield_per, result, cursor, num)
        if result.cursor_strategy is not self:  # some put another in their place
            self._strategy = result.cursor_strategy
            result.cursor_strategy = self

    def fetchone(self, result: Any, cursor: Any, hard_close: bool = False) -> Any:
        fetch = self._strategy.fetchone
        return _fetch(self.hold, fetch, result, cursor, hard_close)

    def fetchmany(self, result: Any, cursor: Any, size: int | None = None) -> Any:
        return _fetch(self.hold, self._strategy.fetchmany, result, cursor, size)

    def fetchall(self, result: Any, cursor: Any) -> Any:
        return _fetch(self.hold, self._strategy.fetchall, result, cursor)

    def handle_exception(self, result: Any, cursor: Any, err: BaseException) -> Any:
        return self._strategy.handle_exception(result, cursor, err)

    def soft_close(self, result: Any, cursor: Any) -> None:
        self._strategy.soft_close(result, cursor)
        self._end(result)

    def hard_close(self, result: Any, cursor: Any) -> None:
        self._strategy.hard_close(result, cursor)
        self._end(result)

    def _end(self, result: Any) -> None:
        # What the result would do next, while the guard is still kept for it.
        result.cursor = None
        result._soft_closed = True
        guard = self.hold.guard
        if guard.asker() is self.hold.owner:
            run(guard, LOAD, self._close_cursor)
        else:
            guard.leave_behind(self._close_cursor)
        self.hold.release()

    def __del__(self) -> None:
        if self.hold.is_open:
            # Any thread, any line: the cursor waits for the next one that comes in.
            self.hold.guard.leave_behind(self._close_cursor)
            self.hold.guard.forsake(self.hold)
