"""Whatever comes at whatever step: the thread gets on, and so does everybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from . import any_step
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


@pytest.mark.parametrize("control", any_step.CONTROLS)
def test_control_a_fault_is_noticed(control: str) -> None:
    """In a process of its own: threads wait for ever there, and sessions are stuck."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.any_step", "--control", control],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert any_step.CONTROLS[control][0] in done.stdout
