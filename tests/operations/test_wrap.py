"""Operations take what the functions they stand for take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from sharedsession.operations.wrap import as_function


def call(function: Any, *args: Any, **kw: Any) -> Any:
    return "called", function(*args, **kw)


def wrapper_of(function: Any) -> Callable[..., Any]:
    return as_function(function, call)


def plain(self: Any, value: Any = 1) -> Any:
    return self, value


def by_position(self: Any, value: Any, /, other: Any = 2) -> Any:
    return self, value, other


def only_by_position(self: Any, value: Any = 3, /) -> Any:
    return self, value


def by_name(self: Any, *, value: Any, other: Any = 4) -> Any:
    return self, value, other


def everything(
    self: Any, /, first: Any, second: Any = 5, *rest: Any, by: Any = 6, **more: Any
) -> Any:
    return self, first, second, rest, by, more


CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (plain, ("it",), {}),
    (plain, ("it",), {"value": 7}),
    (by_position, ("it", 1), {}),
    (by_position, ("it", 1), {"other": 7}),
    (only_by_position, ("it",), {}),
    (only_by_position, ("it", 7), {}),
    (by_name, ("it",), {"value": 1}),
    (by_name, ("it",), {"value": 1, "other": 7}),
    (everything, ("it", 1), {}),
    (everything, ("it", 1, 2, 3, 4), {"by": 7}),
    (everything, ("it", 1), {"self": 7, "guard": 8}),
]


@pytest.mark.parametrize("function, args, kw", CALLS)
def test_arguments_are_passed_on(function: Any, args: Any, kw: Any) -> None:
    wrapper = wrapper_of(function)
    assert wrapper(*args, **kw) == ("called", function(*args, **kw))


@pytest.mark.parametrize("function", {call[0]: None for call in CALLS})
def test_parameters_and_names_are_the_same(function: Any) -> None:
    wrapper: Any = wrapper_of(function)
    assert inspect.signature(wrapper) == inspect.signature(function)
    if not function.__code__.co_posonlyargcount:  # no method of SQLAlchemy's has any
        assert inspect.getfullargspec(wrapper) == inspect.getfullargspec(function)
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(wrapper, name) == getattr(function, name)
    assert not hasattr(wrapper, "__wrapped__")


@pytest.mark.parametrize(
    "args, kw, error", [((), {}, "value"), (("it", 1, 2), {}, "takes")]
)
def test_wrong_arguments_are_refused(args: Any, kw: Any, error: str) -> None:
    def function(self: Any, value: Any) -> None:
        """Never called."""

    with pytest.raises(TypeError, match=error):
        wrapper_of(function)("it", *args[1:], **kw)


def test_a_builtin_that_does_not_tell_takes_anything() -> None:
    assert wrapper_of(set.union)({1}, {2}, {3}) == ("called", {1, 2, 3})
    assert wrapper_of(dict.pop)({}, "key", "other") == ("called", "other")


def test_a_decorated_function_takes_what_the_decorator_takes() -> None:
    """It may look like the function inside, which takes something else."""

    def inside(self: Any, value: Any, extra: Any) -> Any:
        return self, value, extra

    @functools.wraps(inside)
    def outside(self: Any, value: Any) -> Any:
        return inside(self, value, "added")

    wrapper = wrapper_of(outside)
    assert wrapper("it", 1) == ("called", ("it", 1, "added"))
    taken = inspect.signature(outside, follow_wrapped=False)
    assert inspect.signature(wrapper) == taken


def test_a_parameter_with_a_name_of_ours_is_no_mix_up() -> None:
    def function(self: Any, target: Any, fn: Any) -> Any:
        return self, target, fn

    assert wrapper_of(function)("it", 1, 2) == ("called", ("it", 1, 2))


def test_executing_has_the_parameters_that_the_steps_name() -> None:
    parameters = inspect.signature(Session._execute_internal).parameters
    assert {"statement", "execution_options"} <= set(parameters)
