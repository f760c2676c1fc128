"""The servers that some tests need, from the environment."""

from __future__ import annotations

import os
from typing import Any

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
