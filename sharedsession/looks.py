"""Methods of a session that often find nothing to do but look.

``get()`` and ``in`` find without a lock what the session's own method would find, if
nobody changes anything meanwhile; else they leave it to that method, as an operation.
"""

from __future__ import annotations

import uuid
from typing import Any, Callable

from sqlalchemy.orm import Session

from . import alchemy

#: Identities of one column that ``get()`` takes as they are.
_ONE_VALUE = (int, str, uuid.UUID)

_Operation = Callable[..., Any]


def quick_get(operation: _Operation) -> _Operation:
    """``Session.get()`` that first looks whether the object is there, loaded."""
    defaults = Session.get.__kwdefaults__

    def get(self: Any, entity: Any, ident: Any, **kw: Any) -> Any:
        if self.guard is not None and kw == defaults and "get" in _plain_of(type(self)):
            found = _find_loaded(self, entity, ident)
            if found is not None:
                return found
        return operation(self, entity, ident, **kw)

    return get


def _find_loaded(session: Any, entity: Any, ident: Any) -> Any:
    version = session.guard.version
    if version is None:
        return None
    mapper = alchemy.mapper_of_class(entity)
    if mapper is None or mapper.inherits or mapper.always_refresh:
        return None
    if type(ident) in _ONE_VALUE:
        ident = (ident,)
    if type(ident) is not tuple or len(ident) != len(mapper.primary_key):
        return None
    found = alchemy.find_unexpired(
        session.identity_map, mapper.identity_key_from_primary_key(ident)
    )
    return found if session.guard.version is version else None


def quick_contains(operation: _Operation) -> _Operation:
    """``instance in session`` as a mere look."""

    def __contains__(self: Any, instance: object) -> Any:
        guard = self.guard
        version = None if guard is None else guard.version
        if version is not None and "__contains__" in _plain_of(type(self)):
            try:
                found = alchemy.is_present(self, alchemy.instance_state(instance))
            except AttributeError:
                pass  # not mapped, which the operation will say
            else:
                if guard.version is version:
                    return found
        return operation(self, instance)

    return __contains__


def quick_flush(operation: _Operation) -> _Operation:
    """``Session.flush()`` that is no change where there is nothing to flush.

    Every SELECT comes here first, to autoflush.
    """

    def flush(self: Any, objects: Any = None) -> Any:
        guard = self.guard
        if guard is not None and guard.running is guard.asker():
            nothing = not self._flushing and self._is_clean()
            if nothing and "flush" in _plain_of(type(self)):
                return None
        return operation(self, objects)

    return flush


QUICK = {"__contains__": quick_contains, "flush": quick_flush, "get": quick_get}


_plain: dict[type, frozenset[str]] = {}


def _plain_of(cls: type) -> frozenset[str]:
    """Which of these no class but ``Session`` has a way of its own for."""
    found = _plain.get(cls)
    if found is None:
        found = _plain[cls] = frozenset(filter(lambda name: _is_plain(cls, name), QUICK))
    return found


def _is_plain(cls: type, name: str) -> bool:
    line = [base for base in cls.__mro__ if not hasattr(base, "guard")]
    ways = (name, "_identity_lookup")  # the latter may look in several shards
    return all(
        next(base for base in line if way in vars(base)) is Session for way in ways
    )
