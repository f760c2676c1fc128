"""The modules that compound steps are in, with a switch point before every statement.

A guard's own locks are few; what it does between them has to be right without the
interpreter's help as well.  So its source is compiled once more with a call between
any two statements, by which a scheduler can let another task go on there.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from sharedsession.guard import (
    gate,
    guard,
    monitor,
    occupancy,
    owner,
    ownership,
    waiting,
)
from sharedsession.objects import setting
from sharedsession.operations import operation
from sharedsession.session import sections

_HOOK = "_switch_point"


class _Stepping(ast.NodeTransformer):
    """Puts a call of the hook before every statement of every function."""

    def __init__(self) -> None:
        self._depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if self._depth:
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list) and block:
                    setattr(node, name, list(map_with_hook(block)))
        return node


def map_with_hook(block: list[ast.stmt]) -> Any:
    for statement in block:
        hook = ast.parse(f"{_HOOK}()").body[0]
        yield ast.copy_location(hook, statement)
        yield statement


def stepping_copy(
    module: ModuleType, hook: Callable[[], None], **names: Any
) -> dict[str, Any]:
    """The names of a copy of *module* that calls *hook* before every statement."""
    tree = _Stepping().visit(ast.parse(inspect.getsource(module)))
    copy: dict[str, Any] = {
        "__name__": module.__name__,
        "__package__": module.__package__,
    }
    copy[_HOOK] = hook
    code = compile(ast.fix_missing_locations(tree), str(module.__file__), "exec")
    exec(code, copy)
    copy.update(names)
    return copy


#: What a guard is made of, from the ground up: each class is a subclass of the last.
LAYERS: list[tuple[ModuleType, str]] = [
    (gate, "Gated"),
    (occupancy, "Occupancy"),
    (waiting, "Waiting"),
    (monitor, "Monitor"),
    (ownership, "Ownership"),
    (guard, "Guard"),
]


def stepping_guard(
    hook: Callable[[], None], layers: list[tuple[ModuleType, str]]
) -> Any:
    """A copy of Guard with switch points in these uppermost layers."""
    made: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for module, name in layers:
            copy = stepping_copy(module, hook)
            made[name] = copy[name]
            # For the copies above: they import it from here
            names = {name: copy[name]} | (
                {"CLOSED": copy["CLOSED"]} if module is gate else {}
            )
            stack.enter_context(mock.patch.multiple(module, **names))
    return made["Guard"]


def stepping_code(
    hook: Callable[[], None], *, in_monitor: bool = True
) -> SimpleNamespace:
    """What ``guard_programs.World`` needs, with switch points everywhere.

    Without those in the monitor there are so few that whole programs can be explored.
    """
    told = list(owner.on_death)
    made = stepping_guard(hook, LAYERS if in_monitor else LAYERS[-2:])
    owner.on_death[:] = told  # the copy must not be told of the death of threads
    ops = stepping_copy(operation, hook)
    parts = stepping_copy(sections, hook)
    return SimpleNamespace(
        Guard=made,
        run=ops["run"],
        look=ops["optimistic_read"],
        setter_of=stepping_copy(setting, hook, run=ops["run"])["setter_of"],
        CriticalSection=parts["CriticalSection"],
        ReadSection=parts["ReadSection"],
    )
