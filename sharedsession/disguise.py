"""Subclasses that take the place of a class without being seen."""

from __future__ import annotations

from typing import Any

_ours: set[type] = set()


def subclass(base: type, members: dict[str, Any]) -> Any:
    """Make a subclass of *base* that looks like it, for objects to change to.

    It must add no field: then an object's class can be changed in place.  Whoever asks
    an object for its ``__class__`` gets *base*, and so does a pickle.
    """
    if base.__dictoffset__ == 0:
        members.setdefault("__slots__", ())
    members.setdefault("__class__", property(lambda self: base))
    members.setdefault("__reduce_ex__", reduce_as(base))
    ours = type(base)(base.__name__, (base,), members)
    ours.__module__ = base.__module__
    ours.__qualname__ = base.__qualname__
    _ours.add(ours)
    return ours


def is_ours(thing: object) -> bool:
    """Whether *thing* has changed to a class that was made here."""
    return type(thing) in _ours


def reduce_as(base: Any) -> Any:
    """Reduce an object to what an object of the plain class is reduced to."""

    def reduce(self: Any, protocol: Any) -> Any:
        reduced = base.__reduce_ex__(self, protocol)
        if isinstance(reduced, str):
            return reduced
        function, args, *rest = reduced
        return function, tuple(base if arg is type(self) else arg for arg in args), *rest

    return reduce
