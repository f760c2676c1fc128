"""The modules that compound steps are in, with a switch point before every statement.

A guard's own locks are few; what it does between them has to be right without the
interpreter's help as well.  So its source is compiled once more with a call between
any two statements, by which a scheduler can let another task go on there.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from sharedsession.guard import guard, monitor, owner
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


def stepping_code(
    hook: Callable[[], None], *, in_monitor: bool = True
) -> SimpleNamespace:
    """What ``guard_programs.World`` needs, with switch points everywhere.

    Without those in the monitor there are so few that whole programs can be explored.
    """
    told = list(owner.on_death)
    below = stepping_copy(monitor, hook) if in_monitor else vars(monitor)
    with mock.patch.multiple(monitor, Monitor=below["Monitor"], CLOSED=below["CLOSED"]):
        guards = stepping_copy(guard, hook)  # on top of the copy below it
    owner.on_death[:] = told  # the copy must not be told of the death of threads
    ops = stepping_copy(operation, hook)
    parts = stepping_copy(sections, hook)
    return SimpleNamespace(
        Guard=guards["Guard"],
        run=ops["run"],
        look=ops["optimistic_read"],
        setter_of=stepping_copy(setting, hook, run=ops["run"])["setter_of"],
        CriticalSection=parts["CriticalSection"],
        ReadSection=parts["ReadSection"],
    )
