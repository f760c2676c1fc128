"""Every schedule of small programs of tasks on one guard, and many of larger ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sharedsession.asyncio.guard import TaskGuard
from sharedsession.guard.task import _Parking
from sharedsession.objects import hidden

from .aio_programs import ALL, KINDS, FakeChange
from .aio_scheduler import Loop
from .aio_schedules import CORE, SMALL, WAITING, chance_run, go_through, pairs, triples
from .scheduler import Explored, explore

waiting_kinds = pytest.mark.parametrize("kind", WAITING)


@waiting_kinds
@pytest.mark.parametrize("scripts", SMALL, ids=" beside ".join)
def test_every_schedule_of_two_or_three_operations(kind: str, scripts: Any) -> None:
    explored = go_through(kind, scripts)
    assert explored.schedules > 3 and not explored.cut_off


@pytest.mark.parametrize(
    ("kind", "first"),
    [*(("rw", first) for first in ALL), *(("rlock", first) for first in ALL[::3])],
)
def test_two_tasks(kind: str, first: str) -> None:
    for scripts in pairs(first, both_cancelled=False):
        go_through(kind, scripts, bound=1)


@waiting_kinds
@pytest.mark.parametrize("first", CORE)
def test_three_tasks(kind: str, first: str) -> None:
    for scripts in triples(first):
        go_through(kind, scripts, bound=1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WAITING])
@pytest.mark.parametrize("first", ["change", "critical", "read", "gather", "child"])
def test_kinds_that_let_nobody_wait(kind: str, first: str) -> None:
    for second in ("change", "load", "set", "critical", "read", "gather"):
        go_through(kind, (first, second), bound=1)


@pytest.mark.parametrize(
    "scripts",
    [
        ("outlive-reading", "outlive-reading"),  # a child loads beside new readers
        ("put-off read", "read"),  # and does not see what it put off
        ("put-off critical", "read"),
        ("read", "put-off critical", "gather"),  # who put off is taken for family
    ],
    ids=" beside ".join,
)
def test_schedules_that_failed_once_do_not(scripts: Any) -> None:
    go_through("rw", scripts, bound=2, limit=2000)


@pytest.mark.parametrize("seed", range(10))
def test_programs_by_lot(seed: int) -> None:
    explored = Explored()
    for number in range(10):
        explored.add(chance_run(f"{seed} {number}", 5))
    assert explored.schedules == 50


# -- controls: what the exploring is for is found


def _goes_nowhere(*args: Any) -> None:
    """A part of the guard that was cut out."""


@pytest.mark.parametrize(
    ("cls", "name", "replacement", "scripts", "message"),
    [
        (
            *(TaskGuard, "_lends_to", lambda self, turn, owner: False),
            *(("gather", "pause"), "cannot go on"),
        ),
        (
            *(TaskGuard, "_fits", lambda self, mode, owner: True),
            *(("critical", "change"), "beside"),
        ),
        (
            *(TaskGuard, "_must_step", lambda self, me, access: False),
            *(("flush", "set"), "it cannot: this is"),
        ),
        (
            *(TaskGuard, "_check_step", _goes_nowhere),
            *(("critical", "glance"), "seen into a section"),
        ),
        (
            *(TaskGuard, "_do_put_off", _goes_nowhere),
            *(("flush", "put-off"), "put off"),
        ),
        (
            *(TaskGuard, "release_dead_owner", _goes_nowhere),
            *(("end-inside", "change"), "cannot go on"),
        ),
        (
            *(_Parking, "_wake", _goes_nowhere),
            *(("change", "change"), "cannot go on"),
        ),
        (
            *(FakeChange, "hide", _goes_nowhere),
            *(("flush", "set"), "seen by it"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_control_a_guard_without_a_part_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
    cls: Any,
    name: str,
    replacement: Any,
    scripts: Any,
    message: str,
) -> None:
    monkeypatch.setattr(cls, name, replacement)
    with pytest.raises(AssertionError, match=message):
        go_through("rlock", scripts, bound=2)
    hidden.watched.clear()


def test_control_counters_across_an_await_are_found_out_and_replayed() -> None:
    def run(loop: Loop) -> int:
        count = 0

        async def increment() -> None:
            nonlocal count
            seen = count
            await loop.ask_database()
            count = seen + 1

        for name in ("ann", "ben"):
            loop.spawn(name, increment())
        loop.run()
        assert count == 2, "an increment was lost"
        return count

    with pytest.raises(AssertionError, match="lost") as found:
        explore(run, make=Loop)
    assert "choices = []" in str(found.value)
    assert "database of ann" in str(found.value)


def test_the_loop_lets_time_pass_when_nothing_else_can_happen() -> None:
    def run(loop: Loop) -> str:
        async def wait() -> None:
            nothing = loop.create_future()
            await asyncio.wait({nothing}, timeout=60)
            assert loop.time() == 60

        loop.spawn("ann", wait())
        loop.run()
        return "waited"

    assert explore(run, make=Loop).outcomes == {"waited": 1}
