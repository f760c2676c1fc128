"""A short run of the torture, and the control: without a guard it does not pass."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from .databases import url_of
from .torture import engine_for, torture

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_goes_wrong(tmp_path: Any, lock: str, seed: int) -> None:
    engine = engine_for(url_of("sqlite", tmp_path))
    report = torture(engine, lock, threads=6, steps=120, seed=seed)
    assert report.is_clean, report
    assert report.steps == 720


def test_control_without_a_guard_it_does() -> None:
    """In a process of its own: calls that overlap inside a driver may crash it."""
    command = [sys.executable, "-m", "tests.torture", "--lock", "off"]
    command += ["--threads", "2", "--steps", "100", "--seeds", "5"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return  # stuck: that is not clean either
    assert done.returncode != 0, done.stdout.decode()
