"""After a fault at any step: the guard is free, and nobody is misled."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from sharedsession import ForkedSessionError, SharedSession, WorkLostError
from sharedsession.guard.guard import Guard
from sharedsession.guard.turn import Hold

from ...conftest import make_engine
from ...support.databases import url_of
from ...support.models import User
from ...support.threads import Worker, wait_for, wait_until
from . import faults
from .faults import OPERATIONS, Agent, Report, check_free

#: Every how many steps a fault is tried here; ``python -m tests.proofs.faults.faults``
#: tries all.
EVERY = int(os.environ.get("SHAREDSESSION_FAULTS_EVERY", "97"))
#: The same for hooks: every how many operations one is tried with.
SOME = min(EVERY, 5)

pytestmark = pytest.mark.filterwarnings("ignore")


def clean(report: Report) -> None:
    assert report.tried.total() and not report.wrong, str(report)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda it: it.name)
def test_interrupts(operation: Any) -> None:
    report = Report()
    for number, lock in enumerate(("rlock", "rw", threading.RLock)):
        faults.interrupt_everywhere(operation, lock, report, EVERY, number * 7)
    clean(report)


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("side", faults.SIDES)
def test_interrupts_between_two_threads(lock: Any, side: Any) -> None:
    report = Report()
    faults.interrupt_between(lock, side, report, max(1, EVERY // 6))
    clean(report)


def test_control_interrupts_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that nobody gives back would be seen."""
    monkeypatch.setattr(Hold, "release", lambda self: None)
    monkeypatch.setattr(Guard, "abandon_forgotten", lambda self, hold: None)
    section = next(it for it in OPERATIONS if it.name == "critical section")
    with pytest.raises(faults.Wrong):
        faults.outcomes(section, "rlock")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda it: it.name)
def test_the_driver_fails_at_each_call(operation: Any) -> None:
    report = Report()
    faults.fail_everywhere(operation, "rw", report)
    assert not report.wrong, str(report)


@pytest.mark.parametrize("sort", faults.HOOKS)
def test_a_hook_fails(sort: str) -> None:
    report = Report()
    # Each hook with some of the operations, and each operation with some of the hooks.
    some = list(faults.HOOKS).index(sort) % SOME
    for operation in OPERATIONS[some::SOME]:
        faults.fail_in_hook(operation, "rlock", sort, report)
    assert not report.wrong, str(report)


# -- the database


def session_on(engine: sa.Engine, lock: Any = "rlock") -> Any:
    return SharedSession(engine, lock=lock)


def test_a_full_disk(tmp_path: Any) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/test.db")
    session = session_on(engine)
    pages = session.scalar(sa.text("PRAGMA page_count"))
    session.execute(sa.text(f"PRAGMA max_page_count={pages}"))
    agent = Agent()
    agent.do(lambda: session.add(User(name="witness")))
    big = {"big": "x" * 100_000}
    session.add(User(name="too big", data=big))
    with pytest.raises(OperationalError, match="full"):
        session.commit()
    check_free(session.guard)
    with pytest.raises(WorkLostError, match="OperationalError"):
        agent.do(session.commit)
    session.rollback()
    agent.do(lambda: session.add(User(name="small")))
    agent.do(session.commit)
    names = set(session.scalars(sa.select(User.name)))
    assert "small" in names and not names & {"witness", "too big"}
    agent.end()
    session.close()
    engine.dispose()


def test_a_locked_file(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    make_engine(url).dispose()
    engine = sa.create_engine(url, connect_args={"timeout": 0})
    session = session_on(engine)
    agent = Agent()
    agent.do(lambda: session.add(User(name="witness")))
    locker = sqlite3.connect(f"{tmp_path}/test.db", isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OperationalError, match="locked"):
        session.commit()
    check_free(session.guard)
    with pytest.raises(WorkLostError):
        agent.do(session.commit)
    locker.execute("ROLLBACK")
    session.rollback()
    agent.do(lambda: session.add(User(name="again")))
    agent.do(session.commit)
    assert "again" in set(session.scalars(sa.select(User.name)))
    agent.end()
    session.close()
    locker.close()
    engine.dispose()


KILL = {
    "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
    "mysql": ("SELECT CONNECTION_ID()", "KILL {}"),
}
KILL["mariadb"] = KILL["mysql"]


@pytest.mark.parametrize("when", ["idle", "between flush and commit", "in a statement"])
@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_a_killed_connection(name: str, when: str, tmp_path: Any) -> None:
    engine = sa.create_engine(url_of(name, tmp_path))
    metadata = sa.MetaData()
    words = sa.Table(f"faults_{os.getpid()}", metadata, sa.Column("w", sa.String(20)))
    metadata.create_all(engine)
    number, kill = KILL[engine.dialect.name]
    session, agent = session_on(engine), Agent()
    agent.do(lambda: session.execute(words.insert().values(w="witness")))
    victim = session.scalar(sa.text(number))

    def kill_it() -> None:
        with engine.connect() as killer:
            killer.execute(sa.text(kill.format(victim)))

    if when == "in a statement":
        sleep = "pg_sleep(30)" if name == "postgresql" else "SLEEP(30)"
        sleeper = Worker(lambda: session.execute(sa.text(f"SELECT {sleep}")))
        wait_until(lambda: session.guard.owner is sleeper)
        Worker(lambda: _kill_the_sleeping(engine, kill, victim)).result()
        # MariaDB may let SLEEP() return as interrupted, and end the connection then.
        try:
            sleeper.result()
            session.execute(sa.text("SELECT 1"))
        except DBAPIError:
            pass
    else:
        if when != "idle":
            session.execute(words.insert().values(w="mine"))
        kill_it()
        with pytest.raises(DBAPIError):
            session.execute(sa.text("SELECT 1"))
            session.commit()
    check_free(session.guard)
    with pytest.raises(WorkLostError):
        agent.do(lambda: session.execute(sa.text("SELECT 1")))
    session.rollback()
    agent.do(lambda: session.execute(words.insert().values(w="again")))
    agent.do(session.commit)
    assert session.scalars(sa.select(words.c.w)).all() == ["again"]
    session.close()
    agent.end()
    metadata.drop_all(engine)
    engine.dispose()


def _kill_the_sleeping(engine: sa.Engine, kill: str, victim: int) -> None:
    sleeping = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE pid = {} "
        "AND state = 'active' AND query LIKE '%%sleep%%'",
        "mysql": "SELECT count(*) FROM information_schema.processlist "
        "WHERE id = {} AND info LIKE '%%SLEEP%%'",
    }
    sleeping["mariadb"] = sleeping["mysql"]
    with engine.connect() as killer:
        look = sa.text(sleeping[engine.dialect.name].replace("%%", "%").format(victim))
        wait_until(lambda: killer.scalar(look))
        killer.execute(sa.text(kill.format(victim)))


# -- processes and their ends


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.parametrize("lock", ["rlock", "rw"])
def test_a_fork_while_another_thread_is_in_an_operation(
    lock: str, tmp_path: Any
) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/test.db")
    session = session_on(engine, lock)
    session.add(User(name="before"))
    session.flush()
    inside, go_on = threading.Event(), threading.Event()

    @sa.event.listens_for(session, "do_orm_execute", once=True)
    def stop(state: Any) -> None:
        inside.set()
        wait_for(go_on)

    other = Worker(lambda: session.get(User, 2).name)
    wait_for(inside)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            session.get(User, 1)
        except ForkedSessionError:
            os._exit(42)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    go_on.set()
    assert other.result() == "ben"
    session.commit()
    assert "before" in set(session.scalars(sa.select(User.name)))
    session.close()
    engine.dispose()


EXIT = """
import sys, threading
import sqlalchemy as sa
from sqlalchemy.pool import StaticPool
from sharedsession import SharedSession

engine = sa.create_engine("sqlite://", poolclass=StaticPool,
                          connect_args={"check_same_thread": False})
session = SharedSession(engine, lock=sys.argv[1])
session.execute(sa.text("SELECT 1"))
ready, never = threading.Event(), threading.Event()

def section():
    with session.critical_section():
        ready.set()
        never.wait()

def stream():
    rows = session.execute(sa.text("SELECT 1 UNION SELECT 2"),
                           execution_options={"yield_per": 1})
    rows.fetchone()
    ready.set()
    never.wait()

def wait():
    session.execute(sa.text("SELECT 1"))

threading.Thread(target=locals()[sys.argv[2]], daemon=True).start()
ready.wait()
waiting = threading.Thread(target=wait, daemon=True)
waiting.start()
while waiting not in session.guard.waiting:
    pass
"""


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize("place", ["section", "stream"])
def test_the_interpreter_ends_with_threads_inside(lock: str, place: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT, lock, place],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_thread_that_ends_in_each_kind_of_block(tmp_path: Any) -> None:
    blocks = {
        "section": lambda session: session.critical_section(),
        "read section": lambda session: session.read_section(),
        "begin_nested": lambda session: session.begin_nested(),
        "no_autoflush": lambda session: session.no_autoflush,
        "session": lambda session: session,
    }
    for lock in ("rlock", "rw"):
        for enter in blocks.values():
            engine = make_engine()
            session = session_on(engine, lock)
            kept: list[Any] = []

            def leave_open(session: Any = session, enter: Any = enter) -> None:
                block = enter(session)
                kept.append(block)
                block.__enter__()

            Worker(leave_open).result()
            wait_until(lambda guard=session.guard: not guard.owner)
            wait_until(lambda guard=session.guard: not guard.readers)
            session.add(User(name="next"))
            session.commit()
            assert "next" in set(session.scalars(sa.select(User.name)))
            check_free(session.guard)
            session.close()
            engine.dispose()
