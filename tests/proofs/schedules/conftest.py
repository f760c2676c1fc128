"""Keep the collector away from what other tests have left: schedules allocate much."""

from __future__ import annotations

import gc
from typing import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def old_objects_are_not_walked() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
