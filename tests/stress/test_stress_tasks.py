"""The stress run with tasks, of which the plain run is the control."""

import json
import sys

import pytest
import sqlalchemy as sa

from sharedsession.stress import tasks, threads
from sharedsession.stress.cli import main
from sharedsession.stress.ledger import PLAIN, Account, Line, Plan
from sharedsession.stress.tasks import MODES

from ..support.databases import alone, url_of

UNITS = 20
SMALL = ["stress", "--async", "--units", "20", "--threads", "4"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        yield sa.make_url(f"sqlite+aiosqlite:///{tmp_path}/stress.db")
        return
    url = sa.make_url(url_of(request.param, tmp_path))
    with alone(request.param):
        yield url


def names(url):
    sync = url.set(drivername=url.drivername.replace("+aiosqlite", ""))
    with threads.connectable(sync).connect() as connection:
        return set(sa.inspect(connection).get_table_names())


@pytest.mark.parametrize("name", ["per-task", "rlock", "rw"])
def test_a_run_that_should_be_clean_is(url, name):
    seen = []
    plan = Plan(url, threads=4, units=UNITS)
    figures = tasks.run(plan, MODES[name], seen.append)
    assert figures.clean, figures
    assert figures.done == UNITS
    assert figures.overlaps is figures.calls is None
    assert sorted(outcome.number for outcome in seen) == list(range(1, UNITS + 1))
    assert not {Account.__tablename__, Line.__tablename__} & names(url)


def test_control_a_plain_run_is_not_clean(url):
    figures = tasks.run(Plan(url, threads=4, units=UNITS), PLAIN)
    assert figures.done + sum(figures.errors.values()) == UNITS
    assert not figures.clean and not figures.guarded
    assert not {Account.__tablename__, Line.__tablename__} & names(url)


def test_the_table_has_no_column_for_what_is_not_counted(capsys):
    assert main([*SMALL, "--lock", "rlock", "per-task"]) == 0
    out = capsys.readouterr().out
    assert "20 units of work, 4 tasks," in out and "sqlite+aiosqlite:///" in out
    assert "\nrlock " in out and "\nper-task " in out and "\nplain" not in out
    assert "overlap" not in out and "lost" in out


def test_json(capsys, tmp_path):
    url = f"sqlite+aiosqlite:///{tmp_path}/stress.db"
    assert main([*SMALL, "--json", "--url", url, "--lock", "rw"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tasks"] == 4
    assert [run["mode"] for run in report["runs"]] == ["rw"]
    assert report["runs"][0]["clean"] and report["runs"][0]["overlaps"] is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--url", "sqlite:///stress.db"], "sqlite+aiosqlite, postgresql+psycopg or"),
        (["--url", "sqlite+aiosqlite://"], "a database in memory"),
        (
            ["--url", "sqlite+aiosqlite:////no/such/stress.db"],
            "unable to open database",
        ),
        (["--lock", "per-thread"], "there are only plain, per-task, rlock, rw"),
    ],
)
def test_what_cannot_be_run(capsys, arguments, reason):
    assert main([*SMALL, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err and err.count("\n") == 1


def test_without_greenlet(capsys, monkeypatch):
    monkeypatch.delattr("sharedsession.stress.tasks")
    monkeypatch.setitem(sys.modules, "sharedsession.stress.tasks", None)
    assert main(SMALL) == 2
    assert 'pip install "sqlalchemy-sharedsession[asyncio]"' in capsys.readouterr().err


def test_without_the_driver(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    assert main(SMALL) == 2
    assert "pip install aiosqlite" in capsys.readouterr().err
