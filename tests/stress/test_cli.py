"""The command: what it prints where, and its exit status."""

import dataclasses
import json
import subprocess
import sys

import pytest

from sharedsession.stress import ledger, threads
from sharedsession.stress.cli import main
from sharedsession.version import __version__

CLEAN = ledger.Figures(
    mode="rlock",
    guarded=True,
    units=20,
    done=20,
    errors={},
    calls=100,
    overlaps=0,
    first_overlap=None,
    lost_updates=0,
    unbalanced=0,
    seconds=1.0,
)
SMALL = ["stress", "--units", "20", "--threads", "4"]


@pytest.fixture
def fake_runs(monkeypatch):
    """Let each run have these figures, whatever they are changed to."""
    changes = {}

    def run(plan, mode, progress=None):
        return dataclasses.replace(
            CLEAN, **{"mode": mode.name, "guarded": mode.guarded, **changes}
        )

    monkeypatch.setattr(threads, "run", run)
    return changes


def test_the_table(capsys):
    assert main([*SMALL]) == 0
    out, err = capsys.readouterr()
    for name in ledger.MODES:
        assert f"\n{name} " in out
    assert "20 units of work, 4 threads, sqlite:///" in out
    assert err == ""


def test_json_of_some_runs(capsys, tmp_path):
    url = f"sqlite:///{tmp_path}/stress.db"
    assert main([*SMALL, "--json", "--url", url, "--lock", "rw", "rlock"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["url"] == url
    assert [run["mode"] for run in report["runs"]] == ["rlock", "rw"]
    assert all(run["clean"] for run in report["runs"])


def test_lock_can_be_given_twice(capsys, fake_runs):
    assert main([*SMALL, "--json", "--lock", "rw", "--lock", "plain"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [run["mode"] for run in report["runs"]] == ["plain", "rw"]


@pytest.mark.parametrize("output", [[], ["--json"]])
@pytest.mark.parametrize(
    "change",
    [
        {"done": 19, "errors": {"LockTimeout": 1}},
        {"overlaps": 1, "first_overlap": "thread a called b"},
        {"lost_updates": 1},
        {"unbalanced": 1},
    ],
)
def test_a_guarded_run_that_is_not_clean(capsys, fake_runs, change, output):
    fake_runs.update(change)
    assert main([*SMALL, "--lock", "rlock", *output]) == 1
    assert main([*SMALL, "--lock", "rlock", "plain", *output]) == 1
    assert main([*SMALL, "--lock", "plain", "per-thread", *output]) == 0
    shown = [*change.get("errors", ()), change.get("first_overlap") or ""]
    out = capsys.readouterr().out
    assert all(text in out for text in shown)


@pytest.mark.parametrize("output", [[], ["--json"]])
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense:secret", "the URL cannot be read"),
        ("pigeon://user:secret@host/db", "sqlalchemy.dialects:pigeon"),
        ("mysql+no_driver://user:secret@host/db", "sqlalchemy.dialects:mysql.no_dri"),
        ("oracle+cx_oracle://user:secret@host/db", "No module named 'cx_Oracle'"),
        ("sqlite://", "a database in memory"),
        ("sqlite:////no/such/folder/stress.db", "unable to open database file"),
        ("sqlite://user:secret@host/stress.db", "Invalid SQLite URL"),
    ],
)
def test_a_url_that_cannot_be_used(capsys, url, reason, output):
    assert main([*SMALL, "--url", url, *output]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sharedsession: ")
    assert reason in err
    assert err.count("\n") == 1
    assert "secret" not in err


def test_a_server_that_does_not_answer(capsys):
    pytest.importorskip("psycopg")
    url = "postgresql+psycopg://user:secret@127.0.0.1:1/db"
    assert main([*SMALL, "--url", url]) == 2
    err = capsys.readouterr().err
    assert "postgresql+psycopg://user:***@127.0.0.1:1/db" in err
    assert err.count("\n") == 1


def test_no_place_for_the_file(capsys, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    assert main(SMALL) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_without_rich(capsys, monkeypatch, fake_runs):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(SMALL) == 2
    err = capsys.readouterr().err
    assert 'pip install "sqlalchemy-sharedsession[cli]"' in err
    assert err.count("\n") == 1
    assert main([*SMALL, "--json"]) == 0


def test_an_interrupt(capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(threads, "run", interrupt)
    assert main([*SMALL, "--json"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["dance"],
        ["stress", "--threads", "0"],
        ["stress", "--units", "-1"],
        ["stress", "--units", "many"],
        ["stress", "--patience", "0"],
        ["stress", "--lock", "padlock"],
    ],
)
def test_arguments_that_make_no_sense(capsys, wrong):
    with pytest.raises(SystemExit) as exit:
        main(wrong)
    assert exit.value.code == 2


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "sharedsession", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__
