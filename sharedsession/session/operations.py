"""Put the operations of the tables on a session class."""

from __future__ import annotations

import operator
from types import FunctionType
from typing import Any

from sqlalchemy.orm import Session

from ..guard.access import CHANGE, LOAD, READ, Access
from ..operations.inplace import like
from ..operations.operation import run
from ..operations.tables import SESSION, SESSION_INTERNAL
from ..operations.wrap import as_function, guarded
from . import lookups

_guard_of = operator.attrgetter("guard")


def put_operations_on(cls: Any) -> None:
    """Make each method in the tables an operation of the session class *cls*.

    A method calls what *cls* itself defines under its name, or else the next class in
    the MRO.
    """
    for name, access in {**SESSION, **SESSION_INTERNAL}.items():
        plain = getattr(Session, name, None)
        if access is None or plain is None:
            continue  # free, or only in another release of SQLAlchemy
        if isinstance(plain, property):
            getter = guarded(_property_of_next(cls, name), access, _guard_of)
            setattr(cls, name, property(getter, doc=plain.__doc__))
        else:
            operation = _operation(cls, name, plain, access)
            if name == "get":
                operation = as_function(plain, lookups.quick_get(operation))
            elif name == "__contains__":
                operation = as_function(plain, lookups.quick_contains(operation))
            setattr(cls, name, operation)


def _operation(cls: Any, name: str, plain: Any, access: Access) -> Any:
    refused = name in SESSION and access not in (READ, LOAD)
    calls: Any = vars(cls).get(name) or _calling_next(cls, name)
    return guarded(plain, access, _guard_of, refused=refused, calls=calls)


def _calling_next(cls: Any, name: str) -> Any:
    """Return a function that calls *name* of the class after *cls* in the MRO."""

    def call_next(self: Any, *args: Any, **kw: Any) -> Any:
        return getattr(super(cls, self), name)(*args, **kw)

    return call_next


def _property_of_next(cls: Any, name: str) -> Any:
    return lambda self: getattr(super(cls, self), name)


def show_operations_on(cls: Any, mixin: Any) -> None:
    """Put the operations on *cls* itself, as ``Session`` has its methods."""
    for name in SESSION:
        if name in vars(Session) and name in vars(mixin):
            setattr(cls, name, vars(mixin)[name])


def guard_methods_of_base(cls: Any, mixin: Any) -> None:
    """Guard the methods that classes after the mixin in the MRO add to ``Session``."""
    line = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
    added = [base for base in line if not issubclass(Session, base)]
    for base in added:
        for name, function in vars(base).items():
            if name.startswith("_") or name in SESSION or not callable(function):
                continue
            if isinstance(function, FunctionType) and name not in vars(cls):
                setattr(cls, name, _as_one_operation(function))


def _as_one_operation(function: Any) -> Any:
    """Run a method of an application's session class as one operation.

    In a read section the method is called without the guard, and each operation within
    the method is let in or refused by itself.
    """

    def operation(self: Any, *args: Any, **kw: Any) -> Any:
        guard = self.guard
        if guard is None or guard.reads_only():
            return function(self, *args, **kw)
        return run(guard, CHANGE, function, self, *args, **kw)

    return like(operation, function)
