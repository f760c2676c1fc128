"""The two processes: one that never makes a shared session, and one that has."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from . import models

_T = TypeVar("_T")


class RemoteError(Exception):
    """A benchmark that failed in its process."""


class Sides:
    """Calls functions in the process that a contestant belongs to, one at a time."""

    def __init__(self, without: Connection, beside: Connection) -> None:
        self._without = without
        self._beside = beside

    def ask(self, contestant: str, function: Callable[..., _T], *args: Any) -> _T:
        """Call *function* with the contestant and *args* there."""
        side = self._without if contestant in models.WITHOUT else self._beside
        side.send((function, contestant, *args))
        done, answer = side.recv()
        if not done:
            raise RemoteError(f"{contestant}, {function.__name__}(): {answer}")
        result: _T = answer
        return result


@contextlib.contextmanager
def open_sides() -> Iterator[Sides]:
    with _process(False) as without, _process(True) as beside:
        yield Sides(without, beside)


@contextlib.contextmanager
def _process(with_library: bool) -> Iterator[Any]:
    # Spawned, for forks would all have their types and names at the same places, and
    # so the same luck with the interpreter's caches.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, with_library), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def _serve(connection: Connection, with_library: bool) -> None:
    if with_library:
        models.use_library()
    while True:
        function, *args = connection.recv()
        try:
            connection.send((True, function(*args)))
        except Exception as error:
            connection.send((False, f"{type(error).__name__}: {error}"))
