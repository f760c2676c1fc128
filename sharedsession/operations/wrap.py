"""Turn a method into an operation that has the same signature.

``functools.wraps`` is not enough, because only ``inspect.signature()`` respects it and
SQLAlchemy reads code objects.  SQLAlchemy's own decorator makes such functions.
"""

from __future__ import annotations

import inspect
from typing import Any, Callable

from sqlalchemy.util import decorator

from ..guard.access import READ, Access
from ..guard.guard import Guard
from .inplace import like
from .operation import optimistic_read, run

FindGuard = Callable[[Any], "Guard | None"]


def as_function(function: Any, body: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the signature of *function* that calls *body*.

    :param body: called with *function* as the first argument, then the arguments of the
      call.
    """
    if not _has_plain_signature(function):

        def call(*args: Any, **kw: Any) -> Any:
            return body(function, *args, **kw)

        return like(call, function)
    made: Any = decorator(body)(function)
    del made.__wrapped__
    return made  # type: ignore[no-any-return]


def _has_plain_signature(function: Any) -> bool:
    """Whether SQLAlchemy's decorator can make a function with the same signature."""
    return (
        inspect.isfunction(function)
        and function.__name__.isidentifier()  # False for a lambda
        and not function.__code__.co_posonlyargcount
    )


def guarded(
    function: Callable[..., Any],
    access: Access,
    find_guard: FindGuard,
    *,
    refused: bool = False,
    calls: Callable[..., Any] | None = None,
    which: int = 0,
) -> Callable[..., Any]:
    """Return an operation that calls the method *function*, with the same signature.

    :param access: what the operation does to the session.
    :param find_guard: returns the guard of the guarded argument, or ``None``.
    :param refused: whether a read section refuses the operation even if it is a part of
      another operation.  The default is False.
    :param calls: the function to call instead of *function*.  The default is
      *function* itself.
    :param which: the position of the guarded argument.  The default is 0, ``self``.
    """
    if access is READ:

        def look_at(function: Any, *args: Any, **kw: Any) -> Any:
            do = calls or function
            guard = find_guard(args[which])
            if guard is None:
                return do(*args, **kw)
            return optimistic_read(guard, do, *args, **kw)

        return as_function(function, look_at)

    def operate(function: Any, *args: Any, **kw: Any) -> Any:
        do = calls or function
        guard = find_guard(args[which])
        if guard is None:
            return do(*args, **kw)
        if refused and guard.reads_only():
            guard.refuse_write()
        return run(guard, access, do, *args, **kw)

    return as_function(function, operate)
