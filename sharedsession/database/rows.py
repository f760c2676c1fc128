"""Results: all rows in memory, or a stream that holds the guard.

A plain result fetches rows from the database, and makes objects from them, after its
operation has ended.  Therefore all rows of a result are fetched, and their objects are
made, before the operation ends.  The result then returns them from memory, at any time,
in any thread and in several threads at once.  The exception is a result that was asked
to stream: the stream is one long operation, and the guard is held until its end.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from typing import Any, Callable, Iterator

from ..errors import SharedSessionError
from ..guard.access import LOAD, STREAM
from ..guard.guard import Guard
from ..guard.turn import Hold
from ..internals import cursors
from ..operations.inplace import per_class
from ..operations.operation import run, run_in
from . import results


def settle(guard: Guard, result: Any) -> Any:
    """Fetch all rows of *result*, or make it a stream, and return it.

    Call this inside the operation that made *result*.
    """
    if isinstance(result, cursors.CursorResult):
        if cursors.is_exhausted(result):
            own = cursors.has_rows_of_its_own(result)
            return results.for_all_threads(result) if own else result
        if cursors.is_in_memory(result):
            return result
        cursor_result: Any = result
    elif isinstance(result, cursors.IteratorResult):
        if isinstance(result.iterator, (_MadeObjects, _LaterMade)):
            return result
        if not cursors.may_have_rows(result):
            return result  # and therefore no objects to make
        cursor_result = _cursor_result(result)
    else:
        return result
    if cursor_result is not None and _streams(result, cursor_result):
        _stream(guard, result, cursor_result)
        return result
    if cursor_result is not result:
        return _see_to_objects(guard, result, cursor_result)
    cursors.buffer_rows(result)
    return results.for_all_threads(result)


def _cursor_result(result: Any) -> Any:
    while isinstance(result, cursors.IteratorResult):
        result = result.raw
    return result if isinstance(result, cursors.CursorResult) else None


def _streams(result: Any, cursor_result: Any) -> bool:
    if cursors.is_exhausted(cursor_result):
        return False
    options = cursor_result.context.execution_options
    asked = options and (options.get("stream_results") or options.get("yield_per"))
    return bool(asked or cursors.comes_piece_by_piece(result, cursor_result))


# -- objects


def _see_to_objects(guard: Guard, result: Any, cursor_result: Any) -> Any:
    if cursor_result is None:
        _make_objects(guard, result, guard.session())
    elif cursors.changes_rows(cursor_result) and guard.consumers_can_wait:
        if not cursors.is_exhausted(cursor_result):
            cursors.buffer_rows(cursor_result)
        objects = _LaterMade(guard, result)
        return results.for_all_threads(result, objects.ensure_made)
    else:
        asked = cursors.is_prebuffered(cursor_result)
        _make_objects(guard, result, None if asked else guard.session())
    return results.for_all_threads(result)


def _make_objects(guard: Guard, result: Any, session: Any) -> None:
    """Make the objects of all rows, as SQLAlchemy does at the first fetch.

    :param session: refused later if it has another identity map by then; or ``None``.
    """
    guard.may_open = False  # close the window: half-loaded objects must not be read
    if isinstance(result, cursors.ChunkedIteratorResult):
        rows = list(itertools.chain.from_iterable(result.chunks(None)))
        made = _MadeObjects(session, rows)
        result.chunks = functools.partial(_in_chunks, made)
    else:
        made = _MadeObjects(session, list(result.iterator))
    result.iterator = made


class _MadeObjects:
    """Iterator over rows whose objects are made already.

    Raises the error that SQLAlchemy raises for a plain result if the session was closed
    since, or all its objects were expunged: the session has a new identity map then.
    """

    __slots__ = ("_session", "_identity_map", "_rows")

    def __init__(self, session: Any, rows: list[Any]) -> None:
        self._session = session
        self._identity_map = None if session is None else session.identity_map
        self._rows = iter(rows)  # next() on the iterator of a list is atomic

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        session = self._session
        row = next(self._rows)
        if session is not None:
            if session.identity_map is not self._identity_map:
                cursors.refuse_identity_map(row)
            self._session = None  # at the first row only, as SQLAlchemy does
        return row


def _in_chunks(rows: Iterator[Any], size: int | None) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


class _LaterMade:
    """The objects of rows that an INSERT, UPDATE or DELETE returned.

    A plain session overwrites its objects with such rows at the first fetch, which
    programs may see.  So the objects are made at the first fetch, or by the next owner
    that comes in, if that is earlier; by either as an operation.
    """

    def __init__(self, guard: Guard, result: Any) -> None:
        self._guard = guard
        self._session = guard.session()
        self._chunks = getattr(result, "chunks", None)
        self._rows = result.iterator
        self._made: Iterator[Any] | None = None
        self._error: Exception | None = None
        if self._chunks is not None:
            result.chunks = self._in_chunks
        result.iterator = self
        guard.defer(functools.partial(_make_now, weakref.ref(self)))

    def make(self) -> None:
        """Make the objects, unless they are made; only called inside the guard."""
        if self._made is not None or self._error is not None:
            return
        self._guard.may_open = False  # half-loaded objects must not be read
        rows: list[Any] = []
        try:
            if self._chunks is not None:
                rows += itertools.chain.from_iterable(self._chunks(None))
            else:
                rows += self._rows
        except Exception as error:
            self._error = error  # for the consumer
        except BaseException as error:
            self._error = SharedSessionError(
                "The objects of this result were being made when "
                f"{type(error).__name__} came in between. Execute the statement again."
            )
            raise
        else:
            self._made = _MadeObjects(self._session, rows)

    def ensure_made(self) -> None:
        if self._made is None and self._error is None:
            run(self._guard, LOAD, self.make)
        if self._error is not None:
            raise self._error

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.ensure_made()
        assert self._made is not None
        return next(self._made)

    def _in_chunks(self, size: int | None) -> Iterator[list[Any]]:
        self.ensure_made()
        return _in_chunks(self, size)


def _make_now(find: Callable[[], _LaterMade | None]) -> None:
    objects = find()
    if objects is not None:  # else nobody has the result any more
        objects.make()


# -- streams


def _stream(guard: Guard, result: Any, cursor_result: Any) -> None:
    strategy = cursor_result.cursor_strategy
    streams = isinstance(strategy, _Streaming)
    hold = strategy.hold if streams else guard.keep(STREAM)
    try:
        if not streams:
            cursor_result.cursor_strategy = _streaming(cursor_result, hold)
        if isinstance(result, cursors.IteratorResult):
            result.iterator = _guarded_steps(hold, result.iterator)
            if isinstance(result, cursors.ChunkedIteratorResult):
                result.chunks = _guarded_chunks(hold, result.chunks)
        results.step_by_step(result, functools.partial(_fetch, hold))
    except BaseException:
        hold.release()  # the caller gets no result that could end the stream
        raise


def _fetch(hold: Hold, function: Callable[..., Any], *args: Any) -> Any:
    """Run one step of a stream as an operation of the caller.

    The caller takes over the hold of the stream first.
    """
    return run_in(hold, LOAD, function, *args)


def _guarded_steps(hold: Hold, rows: Iterator[Any]) -> Iterator[Any]:
    return iter(lambda: _fetch(hold, next, rows, _END), _END)


_END = object()


def _guarded_chunks(hold: Hold, chunks: Callable[..., Any]) -> Any:
    return lambda size: _guarded_steps(hold, chunks(size))


class _Streaming:
    """Mixin for SQLAlchemy's cursor fetch strategies: each fetch runs under the guard.

    A stream ends by its last row, by ``close()``, by an error or by garbage collection.
    In each case the cursor is closed first and the guard is released afterwards.
    """

    __slots__ = ()

    # Fields of the subclasses that are made below.
    hold: Hold
    close_cursor: Callable[[], None]

    def yield_per(self, result: Any, cursor: Any, num: int) -> None:
        plain: Any = super()
        _fetch(self.hold, plain.yield_per, result, cursor, num)
        if result.cursor_strategy is not self:  # some strategies replace themselves
            result.cursor_strategy = _streaming(result, self.hold)

    def fetchone(self, result: Any, cursor: Any, hard_close: bool = False) -> Any:
        return _fetch(self.hold, self._now, "fetchone", result, cursor, hard_close)

    def fetchmany(self, result: Any, cursor: Any, size: int | None = None) -> Any:
        return _fetch(self.hold, self._now, "fetchmany", result, cursor, size)

    def fetchall(self, result: Any, cursor: Any) -> Any:
        return _fetch(self.hold, self._now, "fetchall", result, cursor)

    def _now(self, name: str, result: Any, cursor: Any, *args: Any) -> Any:
        """Fetch, unless another thread ended the stream while the caller waited."""
        strategy = result.cursor_strategy
        if strategy is not self:
            return getattr(strategy, name)(result, result.cursor, *args)
        try:
            return getattr(super(), name)(result, cursor, *args)
        except BaseException:
            # SQLAlchemy has closed the cursor.  The traceback keeps the result alive,
            # and other threads must not wait for its collection.
            self.hold.release()
            raise

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
        # The result would clear its cursor next; do it while the guard is still held.
        cursors.let_go_of_cursor(result)
        run_in(self.hold, LOAD, self.close_cursor)
        self.hold.release()

    def _give_up(self) -> None:
        """Let the next owner close the cursor.

        The result is marked as closed already and does not call its strategy again.
        """
        self.hold.guard.defer(self.close_cursor)
        self.hold.release()

    def __del__(self) -> None:
        if hasattr(self, "hold") and self.hold.is_open:
            # The collector runs in any thread, at any line, and cannot enter the guard.
            # The next owner closes the cursor.
            self.hold.guard.defer(self.close_cursor)
            self.hold.guard.abandon_forgotten(self.hold)


@per_class
def _streaming_class(base: Any) -> Any:
    slots = ("hold", "close_cursor")
    return type(base.__name__, (_Streaming, base), {"__slots__": slots})


def _streaming(result: Any, hold: Hold) -> Any:
    """Copy the present strategy of *result* for a stream that keeps *hold*."""
    plain = result.cursor_strategy
    streaming = object.__new__(_streaming_class(type(plain)))
    for cls in type(plain).__mro__:
        for name in getattr(cls, "__slots__", ()):
            if hasattr(plain, name):
                setattr(streaming, name, getattr(plain, name))
    streaming.close_cursor = cursors.closer_of_cursor(result)
    streaming.hold = hold  # last, because __del__ releases the hold once it is set
    return streaming
