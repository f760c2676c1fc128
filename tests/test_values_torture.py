"""A short run of the torture of values, and two controls that it must not pass."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest

from sharedsession import alchemy, rows

from .databases import url_of
from .values_torture import DATABASES, values_torture

pytestmark = pytest.mark.filterwarnings("ignore")

SECONDS = 3


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("name", DATABASES)
def test_readers_get_what_a_plain_session_gives(
    name: str, lock: str, tmp_path: Any
) -> None:
    url = "" if name == "memory" else url_of(name, tmp_path)
    report = values_torture(name, url, lock, seed=1, seconds=SECONDS)
    assert report.is_clean, report
    assert report.compared > 50 and report.sections > 10, report


class _Begun:
    """Rows whose objects are made at the first fetch, by whoever comes first.

    The former fault: who comes second reads the flag, which says that it was begun, as
    if it said that it was done, and goes on with what is there.
    """

    def __init__(self, make: Any) -> None:
        self.make = make
        self.begun = False
        self.rows: list[Any] = []

    def finish(self) -> None:
        if not self.begun:
            self.begun = True
            self.rows.extend(self.make())

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        self.finish()
        if not self.rows:
            raise StopIteration
        return self.rows.pop(0)

    def in_chunks(self, size: Any) -> Any:
        self.finish()
        while chunk := self.rows[:size]:
            del self.rows[: len(chunk)]
            yield chunk


def make_objects_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next one inside make the objects, or the first fetch, unguarded."""
    left: list[_Begun] = []

    def _make_objects(guard: Any, result: Any) -> None:
        guard.may_open = False
        while left:
            left.pop().finish()
        alchemy.buffer_rows(result.raw)
        if isinstance(result, alchemy.ChunkedIteratorResult):
            chunks = result.chunks
            lazy = _Begun(lambda: itertools.chain.from_iterable(chunks(None)))
            result.chunks = lazy.in_chunks
        else:
            plain = result.iterator
            lazy = _Begun(lambda: plain)
        result.iterator = lazy
        left.append(lazy)

    monkeypatch.setattr(rows, "_make_objects", _make_objects)


def test_control_objects_that_are_only_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    make_objects_later(monkeypatch)
    report = values_torture("memory", "", "rlock", seed=1, seconds=SECONDS)
    assert report.differences, report


def test_control_without_a_guard_it_does_not_pass() -> None:
    """In a process of its own: calls that overlap inside a driver may crash it."""
    command = [sys.executable, "-m", "tests.values_torture", "--kinds", "off"]
    command += ["--databases", "sqlite", "--seconds", "2"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return  # stuck: that is not clean either
    assert done.returncode != 0, done.stdout.decode()
