"""The floors of the house: no package imports from a floor above its own."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator

import pytest

import sharedsession

PACKAGE = Path(sharedsession.__file__).parent

#: From the ground up.  A name is that of a package, or of a module beside the packages.
FLOORS = (
    {"errors", "version"},
    {"internals"},
    {"guard"},
    {"operations"},
    {"objects", "database"},
    {"session"},
    {"resolve", "unit_of_work", "decorators", "registry", "merge", "config", "asgi"},
    {"asyncio"},
    {"stress"},
    {"__init__", "__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """The modules of this package that a module imports, also for its types only."""
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            around = path.parts[: -node.level]
            named = (*around, *(node.module or "").split("."))
            for alias in node.names:
                whole = tuple(part for part in (*named, alias.name) if part)
                yield whole if is_module(whole) else whole[:-1]


def is_module(parts: tuple[str, ...]) -> bool:
    place = PACKAGE.joinpath(*parts)
    return place.is_dir() or place.with_suffix(".py").exists()


def test_each_module_has_a_floor() -> None:
    assert {path.parts[0].removesuffix(".py") for path in MODULES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_import_runs_upward(path: Path) -> None:
    mine = FLOOR_OF[path.parts[0].removesuffix(".py")]
    for imported in imports(path):
        assert FLOOR_OF[imported[0]] <= mine, f"{path} imports {'.'.join(imported)}"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_each_module_and_each_function_can_be_read_at_once(path: Path) -> None:
    source = (PACKAGE / path).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 450
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 40, node.name


def test_no_module_imports_itself_in_a_circle() -> None:
    """Imports that only types need count as well, with the exceptions named here."""
    graph = {path.with_suffix("").parts: set(imports(path)) for path in MODULES}
    for module, exceptions in FOR_TYPES.items():
        graph[module] -= exceptions
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], trail: tuple[tuple[str, ...], ...]) -> None:
        assert module not in trail, " -> ".join(map("/".join, (*trail, module)))
        if module not in done and module in graph:
            for imported in graph[module]:
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


#: Two modules that cannot be described without each other.
FOR_TYPES = {
    ("guard", "turn"): {("guard", "guard")},
    ("guard", "waiter"): {("guard", "waiting")},
    ("guard", "report"): {("guard", "waiting"), ("guard", "waiter")},
    ("guard", "owner"): {("guard", "access")},
    ("session", "transaction"): {("session", "session")},
}


def test_the_guard_knows_nothing_of_sqlalchemy() -> None:
    """Except that a task waits in a greenlet; and the errors are SQLAlchemy's."""
    for path in MODULES:
        if path.parts[0] == "guard":
            source = (PACKAGE / path).read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                    assert not any(n.startswith("sqlalchemy") for n in names), path
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    assert not (node.module or "").startswith("sqlalchemy"), path
            beyond = {each for each in imports(path) if each[0] == "internals"}
            assert beyond <= {("internals", "greenlets")}, path


def test_the_floors_are_no_fiction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a guard on the floor above the session would not pass."""
    monkeypatch.setitem(FLOOR_OF, "guard", FLOOR_OF["session"] + 1)
    with pytest.raises(AssertionError, match="imports guard"):
        test_no_import_runs_upward(Path("session/session.py"))
