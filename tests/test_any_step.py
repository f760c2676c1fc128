"""Whatever comes at whatever step: the thread gets on, and so does everybody else."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from sharedsession.holds import Waiter
from sharedsession.monitor import Monitor

from . import any_step, threads
from .any_step import KINDS, SCENARIOS, everywhere

#: Every how many steps something happens; ``python -m tests.any_step`` tries all.
EVERY = int(os.environ.get("SHAREDSESSION_STEPS_EVERY", "23"))
#: Those whose every step is tried here: what others wait for goes on to them.
THROUGHOUT = {"set", "leave a read section to a writer"}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda it: it.name)
def test_it_gets_on(scenario: Any, kind: str) -> None:
    steps, event = KINDS[kind]
    every = 1 if scenario.name in THROUGHOUT and "instruction" not in kind else EVERY
    if "instruction" in kind:
        every *= 5
    number = SCENARIOS.index(scenario)
    for first, lock in enumerate(scenario.locks, number):
        report = everywhere(scenario, lock, steps, event, every, first * 7)
        assert report.tried.total() and not report.wrong, str(report)


def by_name(name: str) -> Any:
    return next(it for it in SCENARIOS if it.name == name)


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For controls, in which a thread waits for ever; nobody wants to see its stack."""
    for module in (any_step, threads):
        monkeypatch.setattr(module, "PATIENCE", 0.5)
        monkeypatch.setattr(module.faulthandler, "dump_traceback", lambda **kw: None)


@pytest.mark.usefixtures("little_patience")
def test_control_a_lost_wake_up_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter that counts as woken before it is woken sleeps on after an interrupt."""

    def note(waiter: Any) -> None:
        """A call, at the start of which an interrupt may come."""
        waiter.woken = True

    def wake(waiter: Any) -> None:
        if not waiter.woken:
            waiter.woken = True
            waiter.guard.clock()
            waiter.parked.release()

    wake.__code__ = wake.__code__.replace(co_filename=any_step.PLANTED)
    monkeypatch.setattr(Waiter, "wake", wake)
    steps, event = KINDS["interrupt"]
    report = everywhere(by_name("leave to two that wait"), "rlock", steps, event)
    assert any("waits for what never comes" in wrong for wrong in report.wrong)


@pytest.mark.usefixtures("little_patience")
def test_control_a_thread_that_waits_for_itself_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A finalizer in the bookkeeping of a mutex that is not reentrant hangs."""
    plain = Monitor._set_mutex
    monkeypatch.setattr(
        Monitor, "_set_mutex", lambda self, mutex: plain(self, threading.Lock())
    )
    steps, event = KINDS["finalizer"]
    report = everywhere(by_name("leave a read section to a writer"), "rw", steps, event)
    assert any("waits for what never comes" in wrong for wrong in report.wrong)


def test_control_a_guard_that_is_not_given_back_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operation that does not see to it that it is left after an interrupt."""
    monkeypatch.setattr("sharedsession.operations._leave_again", lambda *args: None)
    steps, event = KINDS["interrupt"]
    report = everywhere(by_name("add"), "rlock", steps, event)
    assert any("somebody is inside" in wrong for wrong in report.wrong)
