"""The benchmarks run; what they measure is not for a test to judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree


def test_the_rows_that_were_asked_for(tmp_path):
    picture = tmp_path / "picture.svg"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json"]
    ran = subprocess.run(
        [*command, "--only", "len", "memory", "--svg", str(picture)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=True,
        text=True,
        timeout=50,
    )
    report = json.loads(ran.stdout)
    assert [row["row"] for row in report["rows"]] == ["len", "memory"]
    for row in report["rows"]:
        assert {"plain", "rlock", "rw", "detect"} <= set(row["figures"])
        assert all(len(figure) == 3 for figure in row["figures"].values())
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
