"""Every schedule of small programs on one guard, and many of larger ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sharedsession.guard.access import EXCLUSIVE
from sharedsession.guard.gate import CLOSED
from sharedsession.guard.guard import Guard

from .guard_programs import KINDS, ON_ONE_GUARD, PLAIN_CODE, program
from .scheduler import Explored, Scheduler, explore, try_chance
from .schedules import CORE, SMALL, Everywhere, chance_run, pairs, triples

every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("scripts", SMALL, ids=" beside ".join)
def test_every_schedule_of_two_operations(kind: str, scripts: Any) -> None:
    explored = explore(program(kind, scripts))
    assert explored.schedules > 20 and not explored.cut_off


@every_kind
@pytest.mark.parametrize("first", ON_ONE_GUARD)
def test_two_owners(kind: str, first: str) -> None:
    for scripts in pairs(first):
        explore(program(kind, scripts), bound=1)


@pytest.mark.parametrize("kind", ["rlock", "rw"])
@pytest.mark.parametrize("first", CORE)
def test_three_owners(kind: str, first: str) -> None:
    for scripts in triples(first):
        explore(program(kind, scripts), bound=1)


@pytest.mark.parametrize("kind", ["rlock", "rw"])
@pytest.mark.parametrize(
    "scripts",
    [
        ("change look", "read change"),
        ("leave-pending read", "look read-load"),
        ("read-twice read", "critical-timeout change"),
        ("change critical", "critical change"),
        # Setting takes its own way from the second time on, and windows open once two
        # have come in.
        ("set set", "set pause look"),
        ("set set", "set critical"),
        ("change load-window", "change pause look"),
        ("change change-window", "change pause look"),
        ("change load-window", "change pause set"),
        ("change set-window", "change pause set"),
        ("change set-window", "change pause look"),
        ("change critical-window", "change pause look"),
        ("set set-within", "set pause set"),
    ],
    ids=" beside ".join,
)
def test_two_owners_in_several_operations(kind: str, scripts: Any) -> None:
    explore(program(kind, scripts), bound=2)


@pytest.mark.parametrize(
    ("kind", "scripts"),
    [
        ("rlock", ("end-inside", "forget-stream", "collect")),
        ("rlock", ("leave-pending", "read-interrupted")),
        ("rw", ("read", "read-interrupted")),
        ("foreign", ("change", "drop-stream")),
        ("foreign", ("read", "read-load-interrupted")),
        ("rlock", ("look-drop-stream", "collect change")),
        ("foreign", ("look-drop-stream", "collect change")),
        ("foreign", ("fail-stream change", "change change", "pause collect")),
    ],
    ids=lambda value: value if isinstance(value, str) else " beside ".join(value),
)
def test_schedules_that_failed_once_do_not(kind: str, scripts: Any) -> None:
    explore(program(kind, scripts), bound=2, limit=5000)


@every_kind
def test_opposite_orders_of_two_guards_end_in_one_error(kind: str) -> None:
    """Whenever each has one and wants the other's, one of them is told."""
    if kind in ("detect", "confine"):
        pytest.skip("it waits for nobody, so nothing can go round in a circle")
    explored = explore(program(kind, ("a-in-b", "b-in-a")), bound=2)
    deadlocks = {text.rpartition("deadlocks=")[2][0] for text in explored.outcomes}
    assert deadlocks == {"0", "1"}


@pytest.mark.parametrize("seed", range(16))
def test_programs_by_lot_with_switches_at_every_statement(seed: int) -> None:
    explored = Explored()
    for number in range(4):
        explored.add(chance_run(Everywhere(), f"{seed} {number}", 10))
    assert explored.schedules == 40


@pytest.mark.parametrize("goes_on", ["change", "critical", "look", "set"])
def test_a_stream_that_ends_just_as_its_owner_goes_on(goes_on: str) -> None:
    everywhere = Everywhere(in_monitor=False)
    scripts = f"leave-stream {goes_on} collect", "collect change"
    explored = explore(everywhere.program("rlock", scripts), bound=2)
    assert explored.schedules > 1000


# -- controls: what the exploring is for is found


def no_guard(name: str, replacement: Any) -> Any:
    """Cut one method out of the guard."""

    def cut(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Guard, name, replacement)

    return cut


@pytest.mark.parametrize(
    ("name", "replacement", "scripts", "message"),
    [
        (
            "_fits",
            lambda self, mode, owner: True,
            ("critical", "change"),
            "is exclusive|still exclusive",
        ),
        ("_pass_on", lambda self: None, ("critical", "change"), "cannot|the gate"),
        ("reap", lambda self: None, ("forget-stream", "change"), "cannot go on"),
        (
            "_may_enter_now",
            lambda self, me, mode: self.gate.setdefault(0, CLOSED) is CLOSED
            and self._fits(mode, me),
            ("read", "critical", "read"),
            "overtook",
        ),
        (
            "_may_overtake",
            lambda self, mode: self._has_gate and mode is EXCLUSIVE,
            ("critical", "change critical", "critical"),
            "overtook|no end|cannot go on",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_control_a_guard_without_a_part_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    replacement: Any,
    scripts: Any,
    message: str,
) -> None:
    monkeypatch.setattr(Guard, name, replacement)
    with pytest.raises(AssertionError, match=message):
        explore(program("rw", scripts), bound=2)


def test_control_a_look_that_trusts_no_version_is_found_out() -> None:
    code = SimpleNamespace(**vars(PLAIN_CODE))
    code.look = lambda guard, function: function()
    with pytest.raises(AssertionError, match="torn read|never there"):
        explore(program("rlock", ("change", "look"), code), bound=2)


def test_control_unguarded_counters_are_found_out_and_replayed() -> None:
    def run(scheduler: Scheduler) -> int:
        count = 0

        def increment() -> None:
            nonlocal count
            seen = count
            scheduler.step()
            count = seen + 1

        for name in ("ann", "ben"):
            scheduler.spawn(name, increment)
        scheduler.run()
        assert count == 2, "an increment was lost"
        return count

    with pytest.raises(AssertionError, match="lost") as first:
        explore(run)
    assert "choices = [0, 1]" in str(first.value)
    assert "ann      at increment" in str(first.value)
    seeds = range(100)
    with pytest.raises(AssertionError, match="lost"):
        try_chance(run, seeds, length=6)
