"""The servers that some tests need, from the environment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from typing import Any, Iterator

import pytest

VARIABLES = {
    "postgresql": "SHAREDSESSION_TEST_POSTGRESQL",
    "mariadb": "SHAREDSESSION_TEST_MARIADB",
}


def url_of(name: str, tmp_path: Any) -> str:
    """The URL of a database; skips without one, but fails in CI."""
    if name == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    variable = VARIABLES[name]
    url = os.environ.get(variable)
    if not url:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing(f"{variable} names no {name} database")
    return url  # type: ignore[return-value]


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Keep other processes of the test run away from tables that have fixed names."""
    path = os.path.join(tempfile.gettempdir(), f"sharedsession-test-{name}.lock")
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # which ends with the file, or the process
        yield
