"""Hidden subclasses: objects change to them in place and still look like the base."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable

_MARK = "_stands_in_for"


def subclass(base: type, members: dict[str, Any], *, shown: bool = False) -> Any:
    """Make a subclass of *base* that looks like *base*, for objects to change to.

    ``__class__`` of an object is *base*, a pickle contains *base*, and ``type()`` of an
    object equals *base*.

    :param members: the members of the subclass.  They must add no field (slot), because
      otherwise the class of an object cannot be changed in place.
    :param shown: True if the subclass is to be visible: ``__class__``, ``type()`` and
      pickles then show it.  The default is False.
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
    """Return a metaclass for one class that compares equal to *base*."""

    def equals(cls: type, other: object) -> bool:
        return other is cls or other is base

    members = {"__eq__": equals, "__hash__": lambda cls: hash(base)}
    return type(type(base).__name__, (type(base),), members)


def change_class(thing: object, cls: type) -> None:
    """Change the class of *thing*, bypassing a ``__setattr__()`` of its class."""
    object.__setattr__(thing, "__class__", cls)


def is_guarded(thing: object) -> bool:
    """Whether the class of *thing* was made by :func:`subclass`."""
    return _MARK in vars(type(thing))


class ByClass(dict[type, Any]):
    """A cache of the results of :meth:`find_out`, by class.

    Where speed matters, call ``get()`` first: ``[]`` on a subclass of ``dict`` takes
    three times as long.
    """

    def find_out(self, cls: type) -> Any:
        raise NotImplementedError()

    def __missing__(self, cls: type) -> Any:
        self[cls] = found = self.find_out(cls)
        return found


def per_class(make: Any) -> Any:
    """Decorate *make* with a cache: it is called once for each tuple of arguments.

    The first argument is a class.
    """
    made: dict[Any, Any] = {}

    def remembered(*key: Any) -> Any:
        if key not in made:
            made[key] = make(*key)
        return made[key]

    return remembered


def reduce_as(base: Any) -> Any:
    """Return a ``__reduce_ex__()`` that reduces an object as if *base* were its class.

    Pickles then contain no class of this library.
    """

    def reduce(self: Any, protocol: Any) -> Any:
        reduced = base.__reduce_ex__(self, protocol)
        if isinstance(reduced, str):
            return reduced
        function, args, *rest = reduced
        function, *args = (base if it is type(self) else it for it in (function, *args))
        return function, tuple(args), *rest

    return reduce


def like(operation: Callable[..., Any], function: Any) -> Callable[..., Any]:
    """Copy the name, the docstring and ``__signature__`` of *function*.

    :return: *operation* itself, without ``__wrapped__``.
    """
    functools.update_wrapper(operation, function)
    del operation.__wrapped__  # type: ignore[attr-defined]
    try:
        operation.__signature__ = inspect.signature(  # type: ignore[attr-defined]
            function
        )
    except ValueError:
        pass  # some methods of built-in types have no known signature
    return operation
