"""Reading a loaded attribute, which takes no lock if nobody changes anything meanwhile.

No operation is as frequent in an application.
"""

from __future__ import annotations

from typing import Any, Callable

from . import alchemy
from .attachment import guards

Getter = Callable[[Any, Any, Any], Any]

_find_guard = guards.get


def getter_of(key: str, otherwise: Getter) -> Getter:
    """The ``__get__`` of an attribute whose values are in its objects' ``__dict__``.

    :param key: the attribute's name there.
    :param otherwise: called with the same arguments if it takes more than a look.
    """
    state_key = alchemy.STATE_KEY

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
            elif guard.is_mine():
                value = values[key]
                if guard.is_mine():
                    return value
        except KeyError:
            pass  # not loaded, not mapped, or its session went away at this moment
        return otherwise(self, instance, owner)

    return __get__
