"""Set an attribute as one operation."""

from __future__ import annotations

from typing import Any, Callable

from ..guard.access import WRITE
from ..operations.operation import run
from .guards import guards_by_session

Setter = Callable[[Any, Any, Any], None]

_find_guard = guards_by_session.get


def setter_of(impl: Any, state_key: str, otherwise: Setter) -> Setter:
    """Make the ``__set__`` of an attribute whose values are in ``__dict__`` of objects.

    :param impl: the implementation of the attribute; its ``set_unguarded()`` is called.
    :param state_key: the key of an object's state in its ``__dict__``.
    :param otherwise: called with the same arguments if the object has no state.
    """
    set_unguarded = impl.set_unguarded

    def __set__(self: Any, instance: Any, value: Any) -> None:
        values = instance.__dict__
        try:
            state = values[state_key]
        except KeyError:
            otherwise(self, instance, value)
            return
        guard = _find_guard(state.session_id)
        if guard is None:
            set_unguarded(state, values, value, None)
        else:
            run(guard, WRITE, set_unguarded, state, values, value, None)

    return __set__
