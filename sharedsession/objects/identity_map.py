"""Guard the identity map of a shared session in place."""

from __future__ import annotations

import operator
from typing import Any

from ..guard.guard import Guard
from ..internals import orm
from ..operations.tables import IDENTITY_MAP
from ..operations.wrap import guarded
from . import attributes

_Plain: Any = orm.WeakInstanceDict
_add: Any = _Plain._add_unpresent


def _guard_and_add(self: Any, state: Any, key: Any) -> None:
    if type(state) is attributes.PlainState:
        state.__class__ = attributes.GuardedState
    _add(self, state, key)


class _GuardedIdentityMap(_Plain):  # type: ignore[misc]
    """An identity map that guards the state of each object that is loaded."""

    __class__ = property(lambda self: _Plain)
    _guard: Guard

    _add_unpresent = _guard_and_add


def _keys(self: Any) -> Any:
    return dict.fromkeys(_Plain.keys(self)).keys()  # a snapshot instead of a view


def _iter(self: Any) -> Any:
    return iter(list(_Plain.keys(self)))


_OWN = {"keys": _keys, "__iter__": _iter}

for _name, _access in IDENTITY_MAP.items():
    if _access is not None:
        _function = _OWN.get(_name) or getattr(_Plain, _name)
        setattr(
            _GuardedIdentityMap,
            _name,
            guarded(_function, _access, operator.attrgetter("_guard")),
        )


def guard_identity_map(identity_map: Any, guard: Guard) -> None:
    if type(identity_map) is _Plain:
        identity_map._guard = guard
        identity_map.__class__ = _GuardedIdentityMap
