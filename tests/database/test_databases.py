"""The same on real databases: no lost update, forks, twophase, killed connections."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from typing import Any, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, close_all_sessions, mapped_column

from sharedsession import SharedSession, WorkLostError
from sharedsession.stress.tripwire import tripwire

from ..support.databases import url_of
from ..support.threads import Worker, inside, passes, together


class Base(DeclarativeBase):
    pass


class Counter(Base):
    # A table of this process's own: test processes run side by side.
    __tablename__ = f"sharedsession_test_{os.getpid()}"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url_of(request.param, tmp_path))
    wire = tripwire(engine)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    yield engine
    close_all_sessions()
    Base.metadata.drop_all(engine)
    engine.dispose()
    assert wire.calls and not wire.overlaps, wire.first


@pytest.mark.parametrize("lock", ["rlock", "rw"])
def test_ten_thousand_sections_lose_no_update(database: sa.Engine, lock: str) -> None:
    session = SharedSession(database, lock=lock, expire_on_commit=False)
    session.add(Counter(id=1))
    session.commit()
    counter = session.get_one(Counter, 1)

    def count() -> None:
        for number in range(5000):
            with session.critical_section():
                value = counter.value
                os.sched_yield()
                counter.value = value + 1
                if number % 500 == 499:
                    session.commit()

    together(count, count)
    session.close()
    assert session.get_one(Counter, 1).value == 10_000
    session.close()


def test_stress_of_every_kind_of_operation(database: sa.Engine) -> None:
    """Many threads, no sections: single operations may come in any order."""
    session = SharedSession(database, lock="rw")
    session.add_all([Counter(id=number) for number in range(1, 9)])
    session.commit()

    def go_through(number: int) -> None:
        counter = session.get_one(Counter, number)
        counter.value = counter.value
        session.scalars(sa.select(Counter).limit(3)).all()
        with session.begin_nested():
            session.execute(sa.text("SELECT 1"))
        session.expire(counter)
        with session.read_section():
            assert counter.value == 0

    def work() -> None:
        for number in range(1, 9):
            # Another thread may expire what this one has set and not flushed.
            with contextlib.suppress(WorkLostError):
                go_through(number)

    together(*[work] * 8)
    session.close()


def test_prepare_is_an_operation(database: sa.Engine) -> None:
    if database.dialect.name == "sqlite":
        pytest.skip("SQLite has no two-phase transactions")
    with database.connect() as connection:
        if database.dialect.name == "postgresql" and not int(
            connection.scalar(sa.text("SHOW max_prepared_transactions")) or 0
        ):
            pytest.skip("prepared transactions are off in this server")
    session = SharedSession(database, twophase=True)
    session.add(Counter(id=1))
    with inside(session.critical_section):
        other = Worker(session.prepare)
        assert session.guard is not None and not passes(other, session.guard)
    other.result()
    session.commit()
    session.close()


def test_a_killed_connection_is_the_killed_ones_failure(database: sa.Engine) -> None:
    kill = {
        "postgresql": "SELECT pg_terminate_backend({})",
        "mysql": "KILL {}",
        "mariadb": "KILL {}",
    }
    number = {
        "postgresql": "SELECT pg_backend_pid()",
        "mysql": "SELECT CONNECTION_ID()",
        "mariadb": "SELECT CONNECTION_ID()",
    }
    name = database.dialect.name
    if name not in kill:
        pytest.skip("SQLite has no server to kill connections")
    session = SharedSession(database, lock="rlock")

    def be_killed() -> None:
        victim = session.scalar(sa.text(number[name]))
        with database.connect() as killer:
            killer.execute(sa.text(kill[name].format(victim)))
        with pytest.raises(sa.exc.DBAPIError):
            session.execute(sa.text("SELECT 1"))

    Worker(be_killed).result()
    assert session.scalar(sa.text("SELECT 1")) == 1
    session.close()


# -- forks, in a process of their own: it ends as a whole interpreter does

FORK = """
import gc, os, sys
import sqlalchemy as sa
from sqlalchemy.orm import Session
from sharedsession import ForkedSessionError, SharedSession

url, kind = sys.argv[1:]
engine = sa.create_engine(url)
table = sa.Table("sharedsession_fork", sa.MetaData(), sa.Column("id", sa.Integer))
table.drop(engine, checkfirst=True)
table.create(engine)
session = Session(engine) if kind == "plain" else SharedSession(engine, lock=kind)
session.execute(table.insert().values(id=1))
parent = os.getpid()
pid = os.fork()
if pid == 0:
    if kind != "plain":
        for use in (session.rollback, session.close, session.commit):
            try:
                use()
            except ForkedSessionError:
                continue
            sys.exit("not refused")
    if kind != "plain" and not url.startswith("sqlite"):
        with SharedSession(engine) as own:
            assert own.scalar(sa.select(sa.func.count()).select_from(table)) == 0
    del session
    gc.collect()
    sys.exit(0)  # with all that the end of an interpreter does
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
found = session.scalar(sa.select(sa.func.count()).select_from(table))
session.commit()
session.close()
table.drop(engine)
print(status, found)
"""


def fork(url: str, kind: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(FORK), url, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.parametrize("name", ["sqlite", "postgresql", "mariadb"])
def test_the_childs_end_does_not_reach_the_parent(name: str, tmp_path: Any) -> None:
    assert fork(url_of(name, tmp_path), "rlock") == "0 1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_control_the_end_of_a_plain_session_does(tmp_path: Any) -> None:
    assert fork(url_of("postgresql", tmp_path), "plain") != "0 1"
