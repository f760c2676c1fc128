"""Results in memory, for several threads at once.

A plain result is not thread-safe: its iterators are generators, which two threads
cannot advance at once, and a fetch takes several steps.  Therefore a result whose rows
are in memory changes its class in place, to a subclass whose methods acquire a lock of
the result.  This lock is not a guard, because its holder only reads memory and never
waits.  The iterators of a stream are advanced under the guard.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Iterator

from ..internals import cursors
from ..operations.inplace import change_class, is_guarded, like, per_class, subclass

#: Methods that consume rows and are done when they return.
_CONSUMING = (
    *("_allrows", "_next_impl", "_only_one_row"),
    *("fetchone", "fetchmany"),
)
#: Methods that give up the rows that are left.
_ENDING = ("_soft_close", "close")
#: Methods that return an iterator over the rows.
_ITERATING = ("_iter_impl", "partitions")
#: Methods that return the same result, or another result over the same rows.
_FILTERING = ("columns", "mappings", "scalars", "tuples", "unique", "yield_per")

_LOCK = "_sharedsession_lock"
_PREPARE = "_sharedsession_prepare"
_STEP = "_sharedsession_step"


def for_all_threads(result: Any, prepare: Callable[[], None] | None = None) -> Any:
    """Let several threads consume *result*, whose rows are in memory.

    :param prepare: called before rows are consumed, and before the result's lock is
      taken, since it may wait for the guard.
    """
    if not is_guarded(result):
        vars(result)[_LOCK] = threading.RLock()
        vars(result)[_PREPARE] = prepare
        change_class(result, _shared_class(type(result)))
    return result


def step_by_step(result: Any, step: Callable[..., Any]) -> Any:
    """Let several threads advance the iterators of *result*, which is a stream.

    :param step: calls a function as a step of the stream, one thread at a time.
    """
    if not is_guarded(result) and hasattr(result, "__dict__"):
        vars(result)[_STEP] = step
        change_class(result, _stepping_class(type(result)))
    return result


@per_class
def _stepping_class(base: Any) -> Any:
    members: dict[str, Any] = {"__slots__": ()}
    for names, make in ((_ITERATING, _stepping), (_FILTERING, _stepping_too)):
        for name in names:
            if hasattr(base, name):
                members[name] = make(getattr(base, name))
    return subclass(base, members)


def _stepping(function: Callable[..., Any]) -> Any:
    def iterate(self: Any, *args: Any, **kw: Any) -> Any:
        return _Steps(vars(self)[_STEP], function(self, *args, **kw))

    return like(iterate, function)


def _stepping_too(function: Callable[..., Any]) -> Any:
    def filtered(self: Any, *args: Any, **kw: Any) -> Any:
        return step_by_step(function(self, *args, **kw), vars(self)[_STEP])

    return like(filtered, function)


class _Steps:
    """An iterator over a stream; SQLAlchemy's own is a generator."""

    __slots__ = ("_step", "_plain")

    def __init__(self, step: Callable[..., Any], plain: Iterator[Any]) -> None:
        self._step = step
        self._plain = plain

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        row = self._step(next, self._plain, _END)
        if row is _END:
            raise StopIteration
        return row


_END = object()


def _filtered(result: Any, whole: Any) -> Any:
    if not is_guarded(result) and hasattr(result, "__dict__"):
        vars(result)[_LOCK] = vars(whole)[_LOCK]
        vars(result)[_PREPARE] = vars(whole)[_PREPARE]
        change_class(result, _shared_class(type(result)))
    return result


@per_class
def _shared_class(base: Any) -> Any:
    members: dict[str, Any] = {"__slots__": ()}
    for names, make in (
        (_CONSUMING, _consuming),
        (_ENDING, _ending),
        (_ITERATING, _iterating),
        (_FILTERING, _filtering),
    ):
        for name in names:
            if hasattr(base, name):
                members[name] = make(getattr(base, name))
    return subclass(base, members)


def _consuming(function: Callable[..., Any]) -> Any:
    def consume(self: Any, *args: Any, **kw: Any) -> Any:
        _prepare(self)
        with vars(self)[_LOCK]:
            return function(self, *args, **kw)

    return like(consume, function)


def _ending(function: Callable[..., Any]) -> Any:
    def end(self: Any, *args: Any, **kw: Any) -> Any:
        with vars(self)[_LOCK]:
            return function(self, *args, **kw)

    return like(end, function)


def _prepare(result: Any) -> None:
    prepare = vars(result)[_PREPARE]
    if prepare is not None:
        prepare()


def _iterating(function: Callable[..., Any]) -> Any:
    def iterate(self: Any, *args: Any, **kw: Any) -> Any:
        lock = vars(self)[_LOCK]
        _prepare(self)
        with lock:
            return _Iterator(lock, self, function(self, *args, **kw))

    return like(iterate, function)


def _filtering(function: Callable[..., Any]) -> Any:
    def filtered(self: Any, *args: Any, **kw: Any) -> Any:
        with vars(self)[_LOCK]:
            return _filtered(function(self, *args, **kw), self)

    return like(filtered, function)


class _Iterator:
    """An iterator that several threads may advance, one at a time."""

    __slots__ = ("_lock", "_result", "_plain")

    def __init__(self, lock: Any, result: Any, plain: Iterator[Any]) -> None:
        self._lock = lock
        self._result = result
        self._plain = plain

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._lock:
            if cursors.was_consumed(self._result):
                raise StopIteration  # another iterator has consumed the same rows
            return next(self._plain)
