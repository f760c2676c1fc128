"""Whatever comes at whatever step: the thread gets on, and so does everybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Iterator

import pytest

from . import any_step
from .any_step import KINDS, SCENARIOS, everywhere, quick_collector

#: Every how many steps something happens; ``python -m tests.proofs.faults.any_step``
#: tries all.
EVERY = int(os.environ.get("SHAREDSESSION_STEPS_EVERY", "23"))
#: Those whose every step is tried here: what others wait for goes on to them.
THROUGHOUT = {"set", "leave a read section to a writer"}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def directory() -> Iterator[str]:
    with quick_collector() as directory:
        yield directory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda it: it.name)
def test_it_gets_on(scenario: Any, kind: str, directory: str) -> None:
    steps, event = KINDS[kind]
    number = SCENARIOS.index(scenario) + [*KINDS].index(kind)
    lock = scenario.locks[number % len(scenario.locks)]
    every = EVERY * 9 if steps is any_step.Opcodes else EVERY
    if scenario.name in THROUGHOUT and steps is not any_step.Opcodes:
        every = 1
    report = everywhere(scenario, lock, steps, event, directory, every, number * 7)
    assert report.tried.total() and not report.wrong, str(report)


@pytest.mark.parametrize("control", any_step.CONTROLS)
def test_control_a_fault_is_noticed(control: str) -> None:
    """In a process of its own: threads wait for ever there, and sessions are stuck."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.proofs.faults.any_step", "--control", control],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert any_step.CONTROLS[control][0] in done.stdout
