"""A short run of the torture, and the control: without a guard it does not pass."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

import pytest
import sqlalchemy as sa

from sharedsession.guard.access import WRITE
from sharedsession.guard.guard import Guard

from ...conftest import make_engine, make_world
from ...support.databases import url_of
from ...ways_in.table import Way
from ..histories.rounds import TRIED, own_database
from .torture import engine_for, rounds, torture

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_goes_wrong(tmp_path: Any, lock: str, seed: int) -> None:
    engine = engine_for(url_of("sqlite", tmp_path))
    report = torture(engine, lock, threads=6, steps=120, seed=seed)
    assert report.is_clean, report
    assert report.steps == 720


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("threads", [8, 16])
@pytest.mark.parametrize("scheduled", [False, True], ids=["preempted", "scheduled"])
def test_every_way_comes_out_as_in_one_thread(
    lock: str, threads: int, scheduled: bool
) -> None:
    report = rounds(
        "sqlite://", lock, threads=threads, count=4, seed=1, scheduled=scheduled
    )
    assert report.is_clean, "\n".join(report.differences) or report
    assert report.steps > 200


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_so_it_does_on_a_server(tmp_path: Any, name: str) -> None:
    with own_database(url_of(name, tmp_path)) as url:
        report = rounds(url, "rw", threads=8, count=2, seed=1, scheduled=False)
        assert report.is_clean, "\n".join(report.differences) or report
        engine = engine_for(url)
        whole = torture(engine, "rlock", threads=8, steps=40, seed=1)
        assert whole.is_clean, whole


def test_control_without_waiting_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def enter_at_once(guard: Any, me: Any, access: Any) -> None:
        guard.running = me

    monkeypatch.setattr(Guard, "come_in", lambda guard, me: False)
    monkeypatch.setattr(Guard, "enter", enter_at_once)
    different = 0
    for seed in range(4):
        try:
            report = rounds(
                "sqlite://", "rlock", threads=8, count=1, seed=seed, scheduled=True
            )
            different += not report.is_clean
        except Exception:
            different += 1  # it came to no end at all
    # Its threads keep their guards, for which the next test's end would wait.
    sa.orm.session._sessions.clear()
    assert different


def test_ways_that_write_leave_work() -> None:
    """Who wrote must be told if it is lost."""
    writes = [way for way in TRIED if way.access is WRITE]
    assert [way.name for way in writes if not leaves_work(way, expired=False)] == []


def test_ways_that_only_look_or_load_leave_none() -> None:
    """And who did not must not; not even if everything has to be loaded for it."""
    others = [way for way in TRIED if way.access is not WRITE]
    assert [way.name for way in others if leaves_work(way, expired=True)] == []


def leaves_work(way: Way, expired: bool) -> bool:
    engine = make_engine()
    world = make_world(engine, "rlock")
    session = world.session
    if expired:
        session.commit()
    noted: list[Any] = []
    session._recovery._ledger._workers.clear()
    session.guard.last_writer = None
    if expired:  # getting hold of what is needed is to load, too
        session._recovery._ledger.note = lambda *args: noted.append(args)
    prepared = way.prepare(world)
    session._recovery._ledger.note = lambda *args: noted.append(args)
    with contextlib.suppress(sa.exc.InvalidRequestError):
        way.go(world, prepared)
    session.close()
    engine.dispose()
    return bool(noted)


def test_control_without_a_guard_it_does() -> None:
    """In a process of its own: calls that overlap inside a driver may crash it."""
    command = [sys.executable, "-m", "tests.proofs.torture.torture", "--lock", "off"]
    command += ["--threads", "2", "--steps", "100", "--seeds", "5"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return  # stuck: that is not clean either
    assert done.returncode != 0, done.stdout.decode()
