"""After a fault in one task: the guard is free, and others are told what they lost."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from sharedsession import WorkLostError

from ...support.aio import (
    PATIENCE,
    Parent,
    aio,
    database,
    gather,
    passes,
    settled,
    stranger,
    until,
)

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


# -- errors and Ctrl-C in what an operation calls


class Failing(sa.types.TypeDecorator[int]):
    """A type that fails where it would send a value."""

    impl = sa.Integer
    cache_ok = True
    error: Any = None

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        raise self.error()


def failing_once(error: Any) -> Any:
    errors = [error()]

    def fail(*args: Any, **kw: Any) -> None:
        if errors:
            raise errors.pop()

    return fail


def listen(find_target: Any, event: str) -> Any:
    """What installs a listener that raises once, and returns what removes it."""

    def install(db: Any, session: Any, error: Any) -> Any:
        target, fail = find_target(db, session), failing_once(error)
        sa.event.listen(target, event, fail)
        return lambda: sa.event.remove(target, event, fail)

    return install


def fail_in_driver(db: Any, session: Any, error: Any) -> Any:
    db.gate._stop = failing_once(error)
    return lambda: delattr(db.gate, "_stop")


def use_failing_type(db: Any, session: Any, error: Any) -> Any:
    Failing.error = error
    return lambda: None


async def flush(session: Any) -> None:
    session.add(Parent(name="faulty"))
    await session.flush()


async def load(session: Any) -> None:
    session.expunge_all()
    await session.scalars(sa.select(Parent))


async def commit(session: Any) -> None:
    session.add(Parent(name="faulty"))
    await session.commit()


async def send(session: Any) -> None:
    await session.scalar(sa.select(sa.literal(1, Failing())))


async def set_name(session: Any) -> None:
    (await session.scalars(sa.select(Parent))).one().name = "faulty"


def _session(db: Any, session: Any) -> Any:
    return session.sync_session


def _engine(db: Any, session: Any) -> Any:
    return db.engine.sync_engine


HOOKS = {
    "before_flush": (listen(_session, "before_flush"), flush),
    "after_flush": (listen(_session, "after_flush"), flush),
    "before_commit": (listen(_session, "before_commit"), commit),
    "before_insert": (listen(lambda *args: Parent, "before_insert"), flush),
    "the driver, in a flush": (fail_in_driver, flush),
    "the driver, in a load": (fail_in_driver, load),
    "the driver, in a commit": (listen(_engine, "commit"), commit),
    "load": (listen(lambda *args: Parent, "load"), load),
    "do_orm_execute": (listen(_session, "do_orm_execute"), load),
    "a type": (use_failing_type, send),
    "set": (listen(lambda *args: Parent.name, "set"), set_name),
}


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_fails(name: str, error: Any, tmp_path: Any) -> None:
    """Ctrl-C leaves the loop; when the loop goes on, so does everybody else."""
    install, operate = HOOKS[name]
    loop = asyncio.new_event_loop()
    step = loop.run_until_complete
    opened = database("sqlite", tmp_path)
    db = step(opened.__aenter__())
    session = db.session("rw")
    told: list[str] = []
    has_work, go_on = loop.create_future(), loop.create_future()

    async def witness() -> None:
        await add(session, "witness")
        has_work.set_result(None)
        await go_on
        try:
            await session.scalar(sa.select(sa.func.count(Parent.id)))
        except WorkLostError as lost:
            told.append(str(lost))
        await add(session, "again")
        await session.commit()

    async def fail() -> None:
        async with session.critical_section():
            go_on.set_result(None)
            assert not await passes(other, session.guard)
            await operate(session)

    async def check() -> None:
        await other
        assert session.guard.owner is None and not session.guard.waiting
        # What the failed task had pending may be so still, as in any session.
        kept = set() if told else {"witness"}
        assert await db.names() - {"faulty"} == {"again", *kept}
        assert not told or "faulty" not in await db.names()
        await session.close()

    async def begin() -> Any:
        return stranger(witness())

    other = step(begin())
    step(has_work)
    undo = install(db, session, error)
    try:
        with pytest.raises((error, sa.exc.StatementError)):
            step(fail())
    finally:
        undo()
    step(asyncio.wait_for(check(), PATIENCE))
    step(opened.__aexit__(None, None, None))
    loop.close()


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@aio
async def test_a_task_that_everybody_forgot(lock: str, tmp_path: Any) -> None:
    """It waits, in a section, for what nobody else knows, and is collected."""
    async with database("sqlite", tmp_path) as db:
        session = db.session(lock)
        guard = session.guard

        async def forgotten() -> None:
            async with session.critical_section():
                await add(session, "half done")
                await asyncio.get_running_loop().create_future()

        task = stranger(forgotten())
        await until(lambda: guard.owner is not None and guard.running is None)
        await settled()
        del task
        gc.collect()
        await add(session, "whole")
        await session.commit()
        assert guard.owner is None and not guard.waiting
        # It was left as by any exception, which undoes nothing.
        assert await db.names() == {"half done", "whole"}
        await session.close()
