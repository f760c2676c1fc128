"""Optimistic reads of loaded attributes, the most frequent operation of all.

A read takes no lock.  Its value counts if no other owner can have changed anything
meanwhile; otherwise the attribute is read again, as an operation.
"""

from __future__ import annotations

from typing import Any, Callable

from ..internals import orm
from .guards import guards_by_session

Getter = Callable[[Any, Any, Any], Any]

_find_guard = guards_by_session.get


def getter_of(key: str, otherwise: Getter) -> Getter:
    """Make the ``__get__`` of an attribute whose values are in ``__dict__`` of objects.

    :param key: the name of the attribute in ``__dict__``.
    :param otherwise: called with the same arguments if an optimistic read fails.
    """
    state_key = orm.STATE_KEY

    def __get__(self: Any, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        try:
            values = instance.__dict__
            guard = _find_guard(values[state_key].session_id)
            if guard is None:
                return values[key]
            version = guard.version
            if version is not None:
                value = values[key]
                if guard.version is version:
                    return value
            else:
                me = guard.current_owner()
                if guard.is_held_by(me):
                    value = values[key]
                    if guard.is_held_by(me):
                        return value
        except KeyError:
            pass  # not loaded, not mapped, or the session is just going away
        return otherwise(self, instance, owner)

    return __get__
