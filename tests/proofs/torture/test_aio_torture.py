"""A short run of the torture of tasks, and the control: without a guard it fails."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest

from ...support.aio import DATABASES
from .aio_torture import torture

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("name", DATABASES)
@pytest.mark.parametrize("tasks", [8, 16])
def test_nothing_goes_wrong(tasks: int, name: str, lock: str, tmp_path: Any) -> None:
    run = asyncio.run(
        torture(name, tmp_path, lock, tasks=tasks, steps=240 // tasks, seed=1)
    )
    assert run.report.is_clean, run.report
    assert run.report.steps == 240
    assert run.cancelled or name == "sqlite"


@pytest.mark.unguarded
def test_control_a_plain_session_does_not_pass(tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = asyncio.run(torture("sqlite", tmp_path, None, tasks=8, steps=10, seed=1))
    assert not run.report.is_clean
