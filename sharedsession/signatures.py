"""Functions that have the very parameters of another function.

``functools.wraps`` makes a function look like another one to ``inspect.signature()``
only; whoever looks at the code object, as SQLAlchemy does, sees ``*args, **kw`` still.
"""

from __future__ import annotations

import functools
import inspect
from inspect import Parameter
from typing import Any, Callable


def with_signature_of(
    function: Callable[..., Any], operation: Callable[..., Any]
) -> Callable[..., Any]:
    """Return *operation* as a function with the parameters of *function*."""
    parameters = inspect.signature(function).parameters.values()
    # Only names and stars go into the source; defaults are objects, copied below.
    source = (
        f"def {function.__name__}({', '.join(_declared(parameters))}):\n"
        f"    return _operation({', '.join(map(_passed_on, parameters))})\n"
    )
    made: dict[str, Any] = {"_operation": operation, "__name__": __name__}
    exec(compile(source, f"<operation {function.__qualname__}>", "exec"), made)
    named: Any = made[function.__name__]
    named.__defaults__ = getattr(function, "__defaults__", None)
    named.__kwdefaults__ = getattr(function, "__kwdefaults__", None)
    functools.update_wrapper(named, function)
    del named.__wrapped__
    return named  # type: ignore[no-any-return]


def _declared(parameters: Any) -> list[str]:
    declared, keyword_only = [], False
    for parameter in parameters:
        if parameter.kind is Parameter.VAR_POSITIONAL:
            keyword_only = True
        elif parameter.kind is Parameter.KEYWORD_ONLY and not keyword_only:
            declared.append("*")
            keyword_only = True
        default = "" if parameter.default is Parameter.empty else "=None"
        declared.append(f"{_STARS.get(parameter.kind, '')}{parameter.name}{default}")
    return declared


def _passed_on(parameter: Parameter) -> str:
    if parameter.kind is Parameter.KEYWORD_ONLY:
        return f"{parameter.name}={parameter.name}"
    return f"{_STARS.get(parameter.kind, '')}{parameter.name}"


_STARS: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
