"""Pickle and copy mapped objects while other threads load or expire them.

``pickle`` and ``copy`` reduce an object by its ``__reduce_ex__()`` and iterate over the
result later, outside of any operation.  Therefore the result here is a snapshot, which
is made as one operation and contains no class of this library.

An object and its state are reduced in two calls.  An attribute that is expired between
the two calls would be missing from both results.  Therefore the first call reduces both
the object and the state, and the second call of the same thread returns the other half.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from ..guard.access import READ
from ..internals import orm
from ..operations.inplace import reduce_as
from ..operations.operation import run
from .guards import guard_of_instance, guard_of_state


class _Half(threading.local):
    """The half of a reduced pair that this thread has not asked for yet."""

    #: A weak reference to the state: a forgotten half must keep no object alive.
    state: Any = None
    #: The reduced object and the reduced state; one of the two is None.
    of_object: Any = None
    of_state: Any = None

    def leave(self, state: Any, of_object: Any = None, of_state: Any = None) -> None:
        self.state = weakref.ref(state)
        self.of_object, self.of_state = of_object, of_state

    def take(self, state: Any) -> tuple[Any, Any]:
        """Return both fields, or None for each if another state was reduced last."""
        is_same = self.state is not None and self.state() is state
        taken = (self.of_object, self.of_state) if is_same else (None, None)
        self.state = self.of_object = self.of_state = None
        return taken


_half = _Half()


# -- objects


def guard_reduction(cls: type) -> None:
    """Have the objects of a mapped class reduced under the guard of their session."""
    plain: Any = cls.__reduce_ex__
    if not getattr(plain, "_is_guarded", False):
        # Bypass a declarative metaclass, which would look for a column in the value.
        type.__setattr__(cls, "__reduce_ex__", _guarded_reduction(plain))


def _guarded_reduction(plain: Any) -> Any:
    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        guard = guard_of_instance(self)
        if guard is None:
            return plain(self, protocol)
        return run(guard, READ, _reduce_object, plain, self, protocol)

    __reduce_ex__._is_guarded = True  # type: ignore[attr-defined]
    return __reduce_ex__


def _reduce_object(plain: Any, instance: Any, protocol: Any) -> Any:
    state = orm.instance_state(instance)
    known, _ = _half.take(state)
    if known is not None:
        return known
    reduced = _snapshot(plain(instance, protocol))
    function, args, contents = _snapshot_of_state(state, protocol)
    _half.leave(state, of_state=(function, args, {**contents, "instance": None}))
    return reduced


# -- their states


def reduce_state(state: Any, protocol: Any) -> Any:
    """The ``__reduce_ex__`` of a guarded state."""
    guard = guard_of_state(state)
    if guard is None:
        return _plain_reduction(state, protocol)
    return run(guard, READ, _reduce_state, state, protocol)


def _reduce_state(state: Any, protocol: Any) -> Any:
    _, known = _half.take(state)
    instance = state.obj()
    if known is not None:
        function, args, contents = known
        return function, args, {**contents, "instance": instance}
    reduced = _snapshot_of_state(state, protocol)
    if instance is not None:
        _half.leave(state, of_object=instance.__reduce_ex__(protocol))
    return reduced


def _snapshot_of_state(state: Any, protocol: Any) -> Any:
    function, args, contents, *_ = _plain_reduction(state, protocol)
    return function, args, {key: _copy(value) for key, value in contents.items()}


_plain_reduction = reduce_as(orm.InstanceState)


# -- snapshots


def reduction_of(base: type) -> Any:
    """Return the ``__reduce_ex__`` of a guarded collection or mutable value."""
    plain = reduce_as(base)
    return lambda self, protocol: _snapshot(plain(self, protocol))


def _snapshot(reduced: Any) -> Any:
    """Copy the parts that are iterated later: dictionaries of attributes, iterators."""
    if isinstance(reduced, str) or len(reduced) < 3:
        return reduced
    function, args, contents, *items = reduced
    if isinstance(contents, tuple):  # the __dict__ and the values of slots
        contents = tuple(map(_copy, contents))
    items = [it if it is None or callable(it) else iter([*it]) for it in items]
    return function, args, _copy(contents), *items


def _copy(value: Any) -> Any:
    return value.copy() if type(value) in (dict, set) else value
