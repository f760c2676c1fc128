"""Executing a statement as an operation, compiled: the usual one, in fewer steps."""

from __future__ import annotations

from typing import Any, Callable

from . import alchemy, compiled, rows
from .operations import run
from .statements import access_of, known_kinds, known_texts

_statements: Any = compiled.parts and compiled.parts.Statements(
    run,
    known_kinds,
    known_texts,
    access_of,
    alchemy.CursorResult,
    alchemy.CursorFetchStrategy,
    alchemy.RowsInMemory,
    rows.handle_error,
    alchemy.log_unclosed,
    alchemy.ChunkedIteratorResult,
    rows.promise_objects,
    rows.make_objects,
    rows.settle,
    rows.settle_within,
)


def quick_execute(function: Callable[..., Any], in_python: Callable[..., Any]) -> Any:
    """The ``execute()`` of a connection, which does what *in_python* does."""
    if compiled.parts is None:
        return in_python
    return compiled.parts.Execute(_statements, function, in_python)


def quick_execute_internal(
    functions: dict[type, Any], in_python: Callable[..., Any]
) -> Any:
    """The same of sessions, by class the method of the one behind it."""
    if compiled.parts is None:
        return in_python
    return compiled.parts.Execute(_statements, functions, in_python)


def quick_connection(
    in_python: Callable[..., Any], otherwise: Callable[..., Any]
) -> Any:
    """How a transaction finds the connection it has already; or else *otherwise*."""
    if compiled.parts is None:
        return in_python
    return compiled.parts.AtHand(alchemy.ACTIVE, otherwise)
