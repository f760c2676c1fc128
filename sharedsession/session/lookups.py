"""Optimistic reads of a session, without the guard: ``get()`` and ``in``.

Each looks for the result that the session's method would return.  If the version of the
guard changed meanwhile, or the object is not loaded, the method is called instead, as
an operation.
"""

from __future__ import annotations

import uuid
from typing import Any, Callable

from sqlalchemy.orm import Session

from ..internals import orm
from ..operations.inplace import ByClass


class _Plain(ByClass):
    """For each session class, whether ``Session`` itself defines the method *name*.

    False also if a class overrides ``_identity_lookup()``, which may look in several
    shards.
    """

    def __init__(self, name: str) -> None:
        self._ways = (name, "_identity_lookup")

    def find_out(self, cls: type) -> bool:
        line = [base for base in cls.__mro__ if not hasattr(base, "guard")]
        has = [next(base for base in line if way in vars(base)) for way in self._ways]
        return all(base is Session for base in has)


_are_plain = {name: _Plain(name) for name in ("get", "__contains__")}


def is_plain(cls: type, name: str) -> bool:
    known = _are_plain[name]
    plain: bool = known.get(cls) or known[cls]
    return plain


#: Types of an identity of one column that ``get()`` takes as they are.
_ONE_VALUE = (int, str, uuid.UUID)

_Operation = Callable[..., Any]


def quick_get(operation: _Operation) -> _Operation:
    """Return ``Session.get()`` that first tries an optimistic read."""
    defaults = Session.get.__kwdefaults__

    def get(_: Any, self: Any, entity: Any, ident: Any, **kw: Any) -> Any:
        if self.guard is not None and kw == defaults and is_plain(type(self), "get"):
            found = _find_loaded(self, entity, ident)
            if found is not None:
                return found
        return operation(self, entity, ident, **kw)

    return get


def _find_loaded(session: Any, entity: Any, ident: Any) -> Any:
    version = session.guard.version
    if not session.guard.is_still(version):
        return None
    mapper = orm.mapper_of_class(entity)
    if mapper is None or mapper.inherits or mapper.always_refresh:
        return None
    if type(ident) in _ONE_VALUE:
        ident = (ident,)
    if type(ident) is not tuple or len(ident) != len(mapper.primary_key):
        return None
    found = orm.find_unexpired(
        session.identity_map, mapper.identity_key_from_primary_key(ident)
    )
    return found if session.guard.is_still(version) else None


def quick_contains(operation: _Operation) -> _Operation:
    """Return ``Session.__contains__()`` that first tries an optimistic read."""

    def __contains__(_: Any, self: Any, instance: object) -> Any:
        guard = self.guard
        if guard is None:
            return operation(self, instance)
        version = guard.version
        free = version is not None or guard.is_still(None)
        if free and is_plain(type(self), "__contains__"):
            try:
                found = orm.is_present(self, orm.instance_state(instance))
            except AttributeError:
                pass  # not mapped; the operation raises SQLAlchemy's error
            else:
                # First the common case, which needs no call.
                if guard.version is version is not None or guard.is_still(version):
                    return found
        return operation(self, instance)

    return __contains__
