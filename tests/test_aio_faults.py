"""After a fault in one task: the guard is free, and others are told what they lost."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from sharedsession import WorkLostError

from .aio import Parent, aio, database, gather, passes, stranger

pytestmark = pytest.mark.filterwarnings("ignore")


async def add(session: Any, name: str) -> None:
    session.add(Parent(name=name))
    await session.flush()


async def lock_the_file(db: Any, session: Any) -> Any:
    path = db.engine.url.database
    await session.execute(sa.text("PRAGMA busy_timeout = 0"))
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("PRAGMA locking_mode = NORMAL")
    locker.execute("BEGIN")
    locker.execute("SELECT * FROM aio_parents").fetchall()  # keeps commits out
    return locker.close


async def kill_the_connection(db: Any, session: Any) -> Any:
    number = await session.scalar(sa.text("SELECT pg_backend_pid()"))
    await db.rows(sa.text(f"SELECT pg_terminate_backend({number})"))
    return lambda: None


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@pytest.mark.parametrize(
    ("name", "fault"),
    [("sqlite", lock_the_file), ("postgresql", kill_the_connection)],
    ids=lambda value: getattr(value, "__name__", value),
)
@aio
async def test_a_database_that_fails(
    name: str, fault: Any, lock: str, tmp_path: Any
) -> None:
    async with database(name, tmp_path) as db:
        session = db.session(lock)
        guard = session.guard

        async def witness() -> None:
            """Has work in the transaction, waits, and is told that it is lost."""
            await add(session, "witness")
            has_work.set_result(None)
            await go_on
            with pytest.raises(WorkLostError):
                await session.scalar(sa.select(sa.func.count(Parent.id)))
            await add(session, "again")
            await session.commit()

        has_work = asyncio.get_running_loop().create_future()
        go_on = has_work.get_loop().create_future()
        other = stranger(witness())
        await has_work
        undo = await fault(db, session)
        async with session.critical_section():
            go_on.set_result(None)
            assert not await passes(other, guard)
            failed = (await gather(session.commit(), session.scalar(sa.select(1))))[0]
            undo()
        assert isinstance(failed, DBAPIError), failed
        await other
        assert guard.owner is None and not guard.waiting
        assert await db.names() == {"again"}
        await session.close()
