"""That the planted bugs of ``make mutants`` have a place to be planted in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .mutants import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_bug_can_be_planted(mutant: Any, tmp_path: Path) -> None:
    copy = tmp_path / mutant.path
    copy.parent.mkdir(parents=True)
    source = (ROOT / mutant.path).read_text(encoding="utf-8")
    copy.write_text(source, encoding="utf-8")
    mutant.plant(tmp_path)
    planted = copy.read_text(encoding="utf-8")
    assert planted != source
    compile(planted, str(mutant.path), "exec")
