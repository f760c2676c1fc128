"""Subclasses that take the place of a class without being seen."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable

_MARK = "_stands_in_for"


def subclass(base: type, members: dict[str, Any], *, shown: bool = False) -> Any:
    """Make a subclass of *base* that looks like it, for objects to change to.

    It must add no field: then an object's class can be changed in place.  Whoever asks
    an object for its ``__class__`` gets *base*, unless it is *shown*, and so does a
    pickle; who compares its ``type()`` with *base* finds them equal.
    """
    if base.__dictoffset__ == 0:
        members.setdefault("__slots__", ())
    members[_MARK] = base
    members["__doc__"] = next(vars(c)["__doc__"] for c in base.__mro__ if c.__doc__)
    if not shown:
        members["__class__"] = property(lambda self: base)
        members.setdefault("__reduce_ex__", reduce_as(base))
    make = type(base) if shown else _equal_to(base)
    ours = make(base.__name__, (base,), members)
    ours.__module__ = base.__module__
    ours.__qualname__ = base.__qualname__
    return ours


def _equal_to(base: type) -> Any:
    """A metaclass for one class, which passes for *base* where classes are compared."""

    def equals(cls: type, other: object) -> bool:
        return other is cls or other is base

    members = {"__eq__": equals, "__hash__": lambda cls: hash(base)}
    return type(type(base).__name__, (type(base),), members)


def become(thing: object, cls: type) -> None:
    """Change the class of *thing*, past whatever its class does when it is set."""
    object.__setattr__(thing, "__class__", cls)


def is_ours(thing: object) -> bool:
    """Whether *thing* has changed to a class that was made here."""
    return _MARK in vars(type(thing))


class ByClass(dict[type, Any]):
    """For each class what :meth:`find_out` says, which is asked once.

    Where it matters, ``get()`` comes first: asking a subclass of ``dict`` with ``[]``
    takes three times as long.
    """

    def find_out(self, cls: type) -> Any:
        raise NotImplementedError()

    def __missing__(self, cls: type) -> Any:
        self[cls] = found = self.find_out(cls)
        return found


def per_class(make: Any) -> Any:
    """Call *make* once for each class (and whatever comes with it), then remember."""
    made: dict[Any, Any] = {}

    def remembered(*key: Any) -> Any:
        if key not in made:
            made[key] = make(*key)
        return made[key]

    return remembered


def reduce_as(base: Any) -> Any:
    """Reduce an object to what an object of the plain class is reduced to."""

    def reduce(self: Any, protocol: Any) -> Any:
        reduced = base.__reduce_ex__(self, protocol)
        if isinstance(reduced, str):
            return reduced
        function, args, *rest = reduced
        function, *args = (base if it is type(self) else it for it in (function, *args))
        return function, tuple(args), *rest

    return reduce


def like(operation: Callable[..., Any], function: Any) -> Callable[..., Any]:
    """Give *operation* the name, the text and, for inspection, the signature too."""
    functools.update_wrapper(operation, function)
    del operation.__wrapped__  # type: ignore[attr-defined]
    try:
        operation.__signature__ = inspect.signature(  # type: ignore[attr-defined]
            function
        )
    except ValueError:
        pass  # some methods of built-in types do not tell theirs
    return operation
