"""Every public name of AsyncSession: awaited it waits, else it is in the table.

A release of SQLAlchemy that adds a name shows up here as a failing test.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, AsyncIterator, Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from sharedsession import ConcurrentAccessError
from sharedsession.asyncio import AsyncSharedSession

from ..support.aio import Parent, aio, database, gather, passes, stranger

SELECT = sa.select(Parent.id)

Use = Callable[[Any, Any], Any]

AWAITED: dict[str, Use] = {
    "aclose": lambda session, one: session.aclose(),
    "close": lambda session, one: session.close(),
    "commit": lambda session, one: session.commit(),
    "connection": lambda session, one: session.connection(),
    "delete": lambda session, one: session.delete(one),
    "delete_all": lambda session, one: session.delete_all([one]),
    "execute": lambda session, one: session.execute(SELECT),
    "flush": lambda session, one: session.flush(),
    "get": lambda session, one: session.get(Parent, 1),
    "get_one": lambda session, one: session.get_one(Parent, 1),
    "invalidate": lambda session, one: session.invalidate(),
    "merge": lambda session, one: session.merge(one),
    "merge_all": lambda session, one: session.merge_all([one]),
    "refresh": lambda session, one: session.refresh(one),
    "reset": lambda session, one: session.reset(),
    "rollback": lambda session, one: session.rollback(),
    "run_sync": lambda session, one: session.run_sync(lambda sync: None),
    "scalar": lambda session, one: session.scalar(SELECT),
    "scalars": lambda session, one: session.scalars(SELECT),
    "stream": lambda session, one: session.stream(SELECT),
    "stream_scalars": lambda session, one: session.stream_scalars(SELECT),
    # What takes a block or begins something
    "begin": lambda session, one: session.begin().start(),
    "begin_nested": lambda session, one: session.begin_nested().start(),
    "async with begin": lambda session, one: enter(session.begin()),
    "critical_section": lambda session, one: enter(session.critical_section()),
    "read_section": lambda session, one: enter(session.read_section()),
}

#: Done at once beside an operation in flight, refused beside a section.
LOOKS: dict[str, Use] = {
    "deleted": lambda session, one: session.deleted,
    "dirty": lambda session, one: session.dirty,
    "get_async_bind": lambda session, one: session.get_async_bind(),
    "get_bind": lambda session, one: session.get_bind(),
    "get_nested_transaction": lambda session, one: session.get_nested_transaction(),
    "get_transaction": lambda session, one: session.get_transaction(),
    "identity_map": lambda session, one: list(session.identity_map.values()),
    "in_nested_transaction": lambda session, one: session.in_nested_transaction(),
    "in_transaction": lambda session, one: session.in_transaction(),
    "is_active": lambda session, one: session.is_active,
    "is_modified": lambda session, one: session.is_modified(one),
    "new": lambda session, one: session.new,
    "in": lambda session, one: one in session,
    "iteration": lambda session, one: list(session),
}

#: Refused beside both.
REFUSED: dict[str, Use] = {
    "autoflush": lambda session, one: setattr(session, "autoflush", True),
    "bind": lambda session, one: setattr(session, "bind", session.bind),
    "bind_mapper": lambda session, one: session.bind_mapper(Parent, session.bind),
    "bind_table": lambda session, one: session.bind_table(
        Parent.__table__, session.bind
    ),
    "no_autoflush": lambda session, one: session.no_autoflush.__enter__(),
}

#: Tested in test_asyncio_not_awaited.py.
PUT_OFF = {"add", "add_all", "expire", "expire_all", "expunge", "expunge_all"}

#: Of no session, or of parts of it that never change by themselves.
FREE = {
    *("binds", "close_all", "dispatch", "execution_options", "identity_key", "info"),
    *("object_session", "sync_session", "sync_session_class"),
}


async def enter(block: Any) -> None:
    async with block:
        pass


def there(table: dict[str, Use]) -> list[tuple[str, Use]]:
    """What of a table is in the SQLAlchemy in use."""
    names = [n for n in table if hasattr(AsyncSharedSession, n) or " " in n]
    names += [n for n in ("in", "iteration") if n in table]
    return [(name, table[name]) for name in names]


@pytest.mark.parametrize("cls", [AsyncSession, AsyncSharedSession])
def test_every_public_name_is_in_a_table(cls: type) -> None:
    names = {name for name in dir(cls) if not name.startswith("_")}
    tables = {*AWAITED, *LOOKS, *REFUSED, *PUT_OFF, *FREE, "guard"}
    assert names - tables == set()


@contextlib.asynccontextmanager
async def held(lock: str, tmp_path: Any) -> AsyncIterator[Any]:
    """A session whose section another task holds, and an object."""
    async with database("sqlite", tmp_path) as db:
        session = db.session(lock)
        one = Parent(id=1, name="one")
        session.add(one)
        await session.flush()
        entered, leave = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with session.critical_section():
                entered.set()
                await leave.wait()

        holder = stranger(hold())
        await entered.wait()
        try:
            yield session, one
        finally:
            leave.set()
            await holder
            await session.close()


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@aio
async def test_what_is_awaited_waits(lock: str, tmp_path: Any) -> None:
    async with held(lock, tmp_path) as (session, one):
        for name, use in there(AWAITED):
            task = stranger(use(session, one))
            assert not await passes(task, session.guard), name
            task.cancel()
            await gather(task)
            assert session.guard.waiting == (), name
        end = stranger(enter(session))
        assert not await passes(end, session.guard)
    await end


@aio
async def test_control_without_a_guard_nothing_waits(tmp_path: Any) -> None:
    ends = {"aclose", "close", "commit", "invalidate", "reset", "rollback"}
    async with held("off", tmp_path) as (session, one):
        for name, use in there(AWAITED):
            if name not in ends and "begin" not in name and "delete" not in name:
                await use(session, one)


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@aio
async def test_what_is_not_awaited_does_as_the_table_says(
    lock: str, tmp_path: Any
) -> None:
    async with held(lock, tmp_path) as (session, one):
        for name, use in there(LOOKS) + there(REFUSED):
            with pytest.raises(ConcurrentAccessError):
                print(name, use(session, one))
    async with database("sqlite", tmp_path) as db, db.session(lock) as session:
        one = Parent(name="one")
        session.add(one)
        await session.flush()
        stop = db.gate.at("select")
        other = stranger(session.scalar(SELECT))
        await stop.reached(other)
        try:
            for name, use in there(LOOKS):
                # get_transaction() of 2.0.30 was not ready, plain session or not
                with contextlib.suppress(NotImplementedError):
                    use(session, one)
            for name, use in there(REFUSED):
                with pytest.raises(ConcurrentAccessError):
                    print(name, use(session, one))
        finally:
            stop.go_on()
            await other
