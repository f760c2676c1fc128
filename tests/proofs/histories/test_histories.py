"""The session is as if serial: many small histories, a few long ones, the controls."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from sharedsession.guard.guard import Guard
from sharedsession.session import sections

from .appends import KEYS, Transaction, anomalies, run_appends
from .histories import compare

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("start", range(0, 150, 25))
def test_a_history_is_as_if_serial(lock: str, start: int) -> None:
    for seed in range(start, start + 25):
        verdict, text = compare(seed, lock)
        assert verdict.order is not None, text


#: Each found a defect, in the library or in the model, that no other test had.
TELLING = (105, 342, 611, 1151, 1658, 2463, 2551, 2950, 3004)


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("seed", TELLING)
def test_a_history_that_was_not_is_now(lock: str, seed: int) -> None:
    verdict, text = compare(seed, lock)
    assert verdict.order is not None, text


def test_the_same_seed_gives_the_same_history() -> None:
    assert compare(7, "rw")[1] == compare(7, "rw")[1]


def test_control_a_plain_session_is_not_as_if_serial() -> None:
    wrong = [seed for seed in range(10) if not explained(seed, "off")]
    assert len(wrong) >= 5


@pytest.mark.parametrize("lock", ["rlock", "rw"])
def test_control_without_its_sections_a_shared_session_is_not(
    monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    """Single operations still take turns; what belongs together does not."""
    monkeypatch.setattr(sections.CriticalSection, "_acquire", lambda *args: None)
    monkeypatch.setattr(sections.ReadSection, "_acquire", lambda *args: None)
    assert not all(explained(seed, lock) for seed in range(60))


def test_control_without_waiting_a_shared_session_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def enter_at_once(guard: Any, me: Any, access: Any) -> None:
        guard.running = me

    monkeypatch.setattr(Guard, "come_in", lambda guard, me: False)
    monkeypatch.setattr(Guard, "enter", enter_at_once)
    assert not all(explained(seed, "rlock") for seed in range(60))


def explained(seed: int, lock: str) -> bool:
    with contextlib.suppress(AssertionError):
        return compare(seed, lock)[0].order is not None
    return False


# -- a long history of appends


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("seed", [1, 2])
def test_appends_are_as_if_serial(lock: str, seed: int) -> None:
    transactions, final = run_appends(lock, seed)
    assert len(transactions) == 320
    assert anomalies(transactions, final) == []
    kept = sum(map(len, final.values()))
    assert kept == sum(len(it.appended) for it in transactions if it.committed) > 100


def test_control_appends_to_a_plain_session_are_not() -> None:
    transactions, final = run_appends("off", 1, transactions=10)
    assert anomalies(transactions, final)


A, B = KEYS[:2]
FINAL = {key: () for key in KEYS}

PLANTED: dict[str, Any] = {
    "a lost append": ([Transaction("1", [(A, 1)])], {A: ()}),
    "an append that is there twice": ([Transaction("1", [(A, 1)])], {A: (1, 1)}),
    "an aborted read": (
        [
            Transaction("1", [(A, 1)], committed=False),
            Transaction("2", [], [(A, (1,))]),
        ],
        {},
    ),
    "a read of half a transaction": (
        [Transaction("1", [(A, 1), (A, 2)]), Transaction("2", [], [(A, (1,))])],
        {A: (1, 2)},
    ),
    "a read that is not a beginning": (
        [
            Transaction("1", [(A, 1)]),
            Transaction("2", [(A, 2)]),
            Transaction("3", [], [(A, (2,))]),
        ],
        {A: (1, 2)},
    ),
    "writes in two orders": (
        [Transaction("1", [(A, 1), (B, 3)]), Transaction("2", [(A, 2), (B, 4)])],
        {A: (1, 2), B: (4, 3)},
    ),
    "each read from the other": (
        [
            Transaction("1", [(A, 1)], [(B, (2,))]),
            Transaction("2", [(B, 2)], [(A, (1,))]),
        ],
        {A: (1,), B: (2,)},
    ),
    "each read what was before the other": (
        [
            Transaction("1", [(A, 1)], [(B, ())]),
            Transaction("2", [(B, 2)], [(A, ())]),
        ],
        {A: (1,), B: (2,)},
    ),
    "a read of what was there before it began": (
        [
            Transaction("1", [(A, 1)], ended=1),
            Transaction("2", [], [(A, ())], began=2, ended=3),
        ],
        {A: (1,)},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_control_the_checker_finds(name: str) -> None:
    transactions, final = PLANTED[name]
    assert anomalies(transactions, {**FINAL, **final})
