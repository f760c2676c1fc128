"""Functions that have the very parameters of another function.

``functools.wraps`` makes a function look like another one to ``inspect.signature()``
only; whoever looks at the code object, as SQLAlchemy does, sees ``*args, **kw`` still.
And passing ``*args, **kw`` on takes longer than all that a guard does for an operation
inside another one.  So these functions are made from source.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import textwrap
from inspect import Parameter
from typing import Any, Callable, Sequence

#: For functions that do not tell theirs, such as some methods of built-in types.
_ANY = (
    Parameter("self", Parameter.POSITIONAL_ONLY),
    Parameter("args", Parameter.VAR_POSITIONAL),
    Parameter("kw", Parameter.VAR_KEYWORD),
)


def with_parameters_of(
    function: Callable[..., Any], body: str, *, which: int = 0, **names: Any
) -> Callable[..., Any]:
    """Return a function that looks like *function* and does what *body* says.

    :param body: its source.  ``{self}`` in it stands for a parameter, and
        ``{parameters}`` for all of them, passed on.
    :param which: the number of that parameter, usually the first.
    :param names: what *body* refers to; its own names, and these, begin with an
        underscore.
    """
    parameters = _parameters_of(function)
    if not _begin_with_one(parameters) or not _are_free(parameters, body):
        parameters = _ANY
    name = getattr(function, "__name__", "operation")
    name = name if name.isidentifier() else "operation"  # not so of a lambda
    # Only names and stars go into the source; defaults are objects, copied below.
    steps = _steps(parameters, body, which)
    source = f"def {name}({_declared(parameters)}):\n{steps}\n"
    made: dict[str, Any] = {**names, "__name__": __name__}
    where = getattr(function, "__qualname__", name)
    exec(compile(source, f"<operation {where}>", "exec"), made)
    return _dressed_as(function, made[name], parameters)


def with_signature_of(
    function: Callable[..., Any], operation: Callable[..., Any]
) -> Callable[..., Any]:
    """Return *operation* as a function with the parameters of *function*."""
    body = "return _operation({parameters})"
    return with_parameters_of(function, body, _operation=operation)


def _steps(parameters: Sequence[Parameter], body: str, which: int) -> str:
    steps = _filled(body, parameters, which)
    last = parameters[-1]
    if last.kind is Parameter.VAR_KEYWORD:
        # They are seldom given, and passing none on takes as long as passing some.
        given = textwrap.indent(steps, "    ")
        steps = f"if {last.name}:\n{given}\n{_filled(body, parameters[:-1], which)}"
    return textwrap.indent(steps, "    ")


def _filled(body: str, parameters: Sequence[Parameter], which: int) -> str:
    passed = ", ".join(map(_passed_on, parameters))
    return body.format(self=parameters[which].name, parameters=passed)


def _parameters_of(function: Any) -> tuple[Parameter, ...]:
    # A decorated function may take others than the one inside, which it looks like.
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except ValueError:
        return _ANY
    return tuple(signature.parameters.values())


def _begin_with_one(parameters: Sequence[Parameter]) -> bool:
    """Whether the first parameter stands for one argument, and not for all."""
    return bool(parameters) and parameters[0].kind in _POSITIONAL


_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def _are_free(parameters: Sequence[Parameter], body: str) -> bool:
    """Whether no parameter has a name that the body uses for something else."""
    return not any(
        parameter.name.startswith("_") and parameter.name in body
        for parameter in parameters
    )


def _dressed_as(
    function: Any, made: Any, parameters: Sequence[Parameter]
) -> Callable[..., Any]:
    given = [each for each in parameters if each.default is not Parameter.empty]
    made.__defaults__ = tuple(e.default for e in given if e.kind in _POSITIONAL) or None
    by_name = {e.name: e.default for e in given if e.kind is Parameter.KEYWORD_ONLY}
    made.__kwdefaults__ = by_name or None
    functools.update_wrapper(made, function)
    del made.__wrapped__
    if parameters is _ANY or hasattr(function, "__wrapped__"):
        with contextlib.suppress(ValueError):  # it does not tell
            made.__signature__ = inspect.signature(function)
    return made  # type: ignore[no-any-return]


def _declared(parameters: Sequence[Parameter]) -> str:
    declared: list[str] = []
    by_position_only = by_name_only = False
    for parameter in parameters:
        if by_position_only and parameter.kind is not Parameter.POSITIONAL_ONLY:
            declared.append("/")
        by_position_only = parameter.kind is Parameter.POSITIONAL_ONLY
        if parameter.kind is Parameter.VAR_POSITIONAL:
            by_name_only = True
        elif parameter.kind is Parameter.KEYWORD_ONLY and not by_name_only:
            declared.append("*")
            by_name_only = True
        default = "" if parameter.default is Parameter.empty else "=None"
        declared.append(f"{_STARS.get(parameter.kind, '')}{parameter.name}{default}")
    if by_position_only:
        declared.append("/")
    return ", ".join(declared)


def _passed_on(parameter: Parameter) -> str:
    if parameter.kind is Parameter.KEYWORD_ONLY:
        return f"{parameter.name}={parameter.name}"
    return f"{_STARS.get(parameter.kind, '')}{parameter.name}"


_STARS: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
