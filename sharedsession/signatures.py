"""Functions that have the signature of another function.

``functools.wraps`` is not enough, because only ``inspect.signature()`` respects it and
SQLAlchemy reads code objects.  SQLAlchemy's own decorator makes such functions.
"""

from __future__ import annotations

import inspect
from typing import Any, Callable

from sqlalchemy.util import decorator

from .disguise import like


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
