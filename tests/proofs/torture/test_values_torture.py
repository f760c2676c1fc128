"""A short run of the torture of values, and two controls that it must not pass."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain
from typing import Any

import pytest

from sharedsession.database import rows
from sharedsession.guard.access import LOAD
from sharedsession.internals import cursors
from sharedsession.operations.operation import run

from ...support.databases import url_of
from .values_torture import DATABASES, values_torture

pytestmark = pytest.mark.filterwarnings("ignore")

#: Of each run; making its tables, and going through its history, comes to it.
SECONDS = 2.5


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("name", DATABASES)
def test_readers_get_what_a_plain_session_gives(
    name: str, lock: str, tmp_path: Any
) -> None:
    url = "" if name == "memory" else url_of(name, tmp_path)
    report = values_torture(name, url, lock, seed=1, seconds=SECONDS)
    assert report.is_clean, report
    assert report.compared > 50 and report.sections > 10, report


class _Later:
    """Rows whose objects are made by whoever comes first, inside the guard.

    The former fault: who comes second reads the flag outside of it, and takes it, which
    says that the making was begun, as if it said that it was done.
    """

    def __init__(self, guard: Any, make: Any) -> None:
        self.guard = guard
        self.make = make
        self.begun = False
        self.rows: list[Any] = []

    def finish(self) -> None:
        if not self.begun:
            self.begun = True
            self.rows = run(self.guard, LOAD, self.make)

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


def make_objects_later(monkeypatch: pytest.MonkeyPatch, mended: bool) -> None:
    """Have the objects made by the next operation, or by the first fetch.

    Mended, they are made at once, as they should be.
    """
    left: list[_Later] = []

    def _make_objects(guard: Any, result: Any, session: Any) -> None:
        guard.may_open = False
        while left:
            left.pop().finish()
        cursors.buffer_rows(result.raw)
        chunks, rows = getattr(result, "chunks", None), result.iterator
        if chunks is not None:
            later = _Later(guard, lambda: [*chain.from_iterable(chunks(None))])
            result.chunks = later.in_chunks
        else:
            later = _Later(guard, lambda: list(rows))
        result.iterator = later
        left.append(later)
        if mended:
            later.finish()

    monkeypatch.setattr(rows, "_make_objects", _make_objects)


@pytest.mark.parametrize("mended", [False, True], ids=["begun", "mended"])
def test_control_what_is_begun_is_not_done(
    monkeypatch: pytest.MonkeyPatch, mended: bool
) -> None:
    make_objects_later(monkeypatch, mended)
    empty: list[str] = []
    for seed in (1,) if mended else range(1, 6):
        report = values_torture("memory", "", "rlock", seed=seed, seconds=2)
        empty += [each for each in report.found if ": [] and not [" in each]
        assert report.is_clean or not mended, report
        if empty:
            break
    assert mended or empty, report


def test_control_without_a_guard_it_does_not_pass() -> None:
    """In a process of its own: calls that overlap inside a driver may crash it."""
    command = [
        sys.executable,
        "-m",
        "tests.proofs.torture.values_torture",
        "--kinds",
        "off",
    ]
    command += ["--databases", "sqlite", "--seconds", "2"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return  # stuck: that is not clean either
    assert done.returncode != 0, done.stdout.decode()
