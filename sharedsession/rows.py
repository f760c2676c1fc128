"""Results: all rows in memory, or a stream that keeps the guard.

A result that is fetched piece by piece would go to the database, and turn rows into
objects, long after the operation that made it.  So the rows of every result are fetched
before the operation ends, and objects are made of them before another thread can come
in; the result then deals them out from memory, in any thread, at any time.  Only a
result that was asked to stream does not: it is one long operation, and the guard is
kept until its end.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, Callable, Iterator

from . import alchemy
from .disguise import per_class
from .errors import SharedSessionError
from .guard import Guard
from .holds import Hold
from .operations import run, run_in
from .terms import LOAD, STREAM


def settle(guard: Guard, result: Any) -> Any:
    """Fetch what *result* would fetch later; to be called inside its operation."""
    return _settle(guard, result, promise_objects)


def settle_within(guard: Guard, result: Any) -> Any:
    """The same for one that a part of an operation executed.

    It is for what SQLAlchemy does next, as a rule, so its objects are made at once.
    """
    return _settle(guard, result, make_objects)


def _settle(guard: Guard, result: Any, see_to_objects: Callable[..., None]) -> Any:
    if isinstance(result, alchemy.CursorResult):
        if alchemy.is_exhausted(result):
            return result  # it has no rows, or is settled
        cursor_result: Any = result
    elif isinstance(result, alchemy.IteratorResult):
        cursor_result = _cursor_result(result)
    else:
        return result
    if cursor_result is not None and _streams(result, cursor_result):
        _stream(guard, result, cursor_result)
    elif cursor_result is not result:
        see_to_objects(guard, result)
    else:
        _buffer_rows(result)
    return result


def _cursor_result(result: Any) -> Any:
    while isinstance(result, alchemy.IteratorResult):
        result = result.raw
    return result if isinstance(result, alchemy.CursorResult) else None


def _streams(result: Any, cursor_result: Any) -> bool:
    if alchemy.is_exhausted(cursor_result):
        return False
    options = cursor_result.context.execution_options
    asked = options and (options.get("stream_results") or options.get("yield_per"))
    return bool(asked or alchemy.comes_piece_by_piece(result, cursor_result))


def _buffer_rows(cursor_result: Any) -> None:
    strategy = cursor_result.cursor_strategy
    rows = strategy.fetchall(cursor_result, cursor_result.cursor)  # closes the cursor
    cursor_result.cursor_strategy = alchemy.RowsInMemory(rows)


# -- objects


def make_objects(guard: Guard, result: Any) -> None:
    if isinstance(result, alchemy.ChunkedIteratorResult):
        made = iter(list(itertools.chain.from_iterable(result.chunks(None))))
        result.chunks = functools.partial(_in_chunks, made)
    else:
        made = iter(list(result.iterator))
    result.iterator = made


def _in_chunks(rows: Iterator[Any], size: int | None) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def promise_objects(guard: Guard, result: Any) -> None:
    if isinstance(result.iterator, _Objects):
        return
    if isinstance(result, alchemy.ChunkedIteratorResult):
        objects = _Objects(guard, result.chunks)
        result.chunks = objects.chunks
    else:
        rows = result.iterator
        objects = _Objects(guard, lambda size: [list(rows)])
    result.iterator = objects


class _Objects:
    """Makes objects of rows when they are asked for, as SQLAlchemy does.

    Or before another owner comes in, whichever is first: what another thread changes
    must not be mixed with rows from before.  Then it deals them out from memory.
    """

    def __init__(self, guard: Guard, chunks: Callable[[int | None], Any]) -> None:
        self.owner = guard.asker()
        self._guard = guard
        # Kept as a plain result keeps it: rows that were fetched early stay in it, and
        # their objects in the identity map, for as long as somebody has the result.
        self._chunks = chunks
        self._is_made = False
        self._made: Iterator[Any] = iter(())
        self._error: BaseException | None = None
        if guard.keeps_promises:
            guard.promise(self)
        else:
            self.keep()  # at once: who asks later may be unable to wait

    def keep(self) -> None:
        """Make them for whoever asks later; an error is for that one, too."""
        try:
            self._make(None)
        except Exception as error:
            self._error = error
        except BaseException as error:
            self._error = SharedSessionError(
                "The objects of this result were being made by another thread when "
                f"{type(error).__name__} came in between. Execute the statement again."
            )
            raise

    def _make(self, size: int | None) -> None:
        self._guard.may_open = False  # what is half made is not for others
        was_made, self._is_made = self._is_made, True
        self._guard.forget_promise(self)
        if not was_made:  # nobody came before
            objects = itertools.chain.from_iterable(self._chunks(size))
            self._made = iter(list(objects))

    def _ensure_made(self, size: int | None = None) -> None:
        if not self._is_made:
            run(self._guard, LOAD, self._make, size)
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __iter__(self) -> Iterator[Any]:
        self._ensure_made()
        return self._made

    def __next__(self) -> Any:
        self._ensure_made()
        return next(self._made)

    def chunks(self, size: int | None) -> Iterator[list[Any]]:
        self._ensure_made(size)
        return _in_chunks(self, size)


# -- streams


def _stream(guard: Guard, result: Any, cursor_result: Any) -> None:
    strategy = cursor_result.cursor_strategy
    streams = isinstance(strategy, _Streaming)
    hold = strategy.hold if streams else guard.keep(STREAM)
    try:
        if not streams:
            cursor_result.cursor_strategy = _streaming(cursor_result, hold)
        if isinstance(result, alchemy.IteratorResult):
            result.iterator = _guarded_steps(hold, result.iterator)
            if isinstance(result, alchemy.ChunkedIteratorResult):
                result.chunks = _guarded_chunks(hold, result.chunks)
    except BaseException:
        hold.release()  # nobody will get the result that would have ended it
        raise


def _fetch(hold: Hold, function: Callable[..., Any], *args: Any) -> Any:
    """One step of a stream: an operation of the caller, which takes the stream over."""
    return run_in(hold, LOAD, function, *args)


def _guarded_steps(hold: Hold, rows: Iterator[Any]) -> Iterator[Any]:
    return iter(lambda: _fetch(hold, next, rows, _END), _END)


_END = object()


def _guarded_chunks(hold: Hold, chunks: Callable[..., Any]) -> Any:
    return lambda size: _guarded_steps(hold, chunks(size))


class _Streaming:
    """What a strategy of SQLAlchemy's does in a stream: the same, inside the guard.

    Whatever ends the stream, be it the last row, ``close()``, an error or the
    collector, closes the cursor first and gives the guard back then.
    """

    __slots__ = ()

    # Of the subclasses that are made below.
    hold: Hold
    close_cursor: Callable[[], None]

    def yield_per(self, result: Any, cursor: Any, num: int) -> None:
        plain: Any = super()
        _fetch(self.hold, plain.yield_per, result, cursor, num)
        if result.cursor_strategy is not self:  # some put another in their place
            result.cursor_strategy = _streaming(result, self.hold)

    def fetchone(self, result: Any, cursor: Any, hard_close: bool = False) -> Any:
        plain: Any = super()
        return _fetch(self.hold, plain.fetchone, result, cursor, hard_close)

    def fetchmany(self, result: Any, cursor: Any, size: int | None = None) -> Any:
        plain: Any = super()
        return _fetch(self.hold, plain.fetchmany, result, cursor, size)

    def fetchall(self, result: Any, cursor: Any) -> Any:
        plain: Any = super()
        return _fetch(self.hold, plain.fetchall, result, cursor)

    def soft_close(self, result: Any, cursor: Any) -> None:
        plain: Any = super()
        try:
            plain.soft_close(result, cursor)
            self._end(result)
        except BaseException:
            self._give_up()
            raise

    def hard_close(self, result: Any, cursor: Any) -> None:
        plain: Any = super()
        try:
            plain.hard_close(result, cursor)
            self._end(result)
        except BaseException:
            self._give_up()
            raise

    def _end(self, result: Any) -> None:
        # What the result would do next, while the guard is still kept for it.
        alchemy.let_go_of_cursor(result)
        run_in(self.hold, LOAD, self.close_cursor)
        self.hold.release()

    def _give_up(self) -> None:
        """The result counts as closed and will not come back to do the rest."""
        self.hold.guard.leave_behind(self.close_cursor)
        self.hold.release()

    def __del__(self) -> None:
        if hasattr(self, "hold") and self.hold.is_open:
            # Any thread, any line: the cursor waits for the next one that comes in.
            self.hold.guard.leave_behind(self.close_cursor)
            self.hold.guard.forsake(self.hold)


@per_class
def _streaming_class(base: Any) -> Any:
    slots = ("hold", "close_cursor")
    return type(base.__name__, (_Streaming, base), {"__slots__": slots})


def _streaming(result: Any, hold: Hold) -> Any:
    """The same strategy as *result* has now, for a stream that keeps *hold*."""
    plain = result.cursor_strategy
    streaming = object.__new__(_streaming_class(type(plain)))
    for cls in type(plain).__mro__:
        for name in getattr(cls, "__slots__", ()):
            if hasattr(plain, name):
                setattr(streaming, name, getattr(plain, name))
    streaming.close_cursor = alchemy.closer_of_cursor(result)
    streaming.hold = hold  # last: with it, it is complete
    return streaming
