"""Fifty tasks on one session, as gather() runs them; one in ten is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy.exc as sa_exc

from sharedsession import ConcurrentAccessError, WorkLostError

from ..support.aio import DATABASES, Child, Parent, aio, database, gather

TASKS = 50

pytestmark = [
    pytest.mark.parametrize("name", DATABASES),
    # A cancelled task's connection is thrown away, and pool and driver say so.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def work(session: Any, number: int, done: dict[int, int]) -> None:
    """Add, commit, select, lazy load, change, commit; noted when it is known done."""
    while True:
        parent = Parent(name=f"p{number}", children=[Child(), Child()])
        try:
            session.add(parent)
            await session.commit()
            break
        except WorkLostError:
            continue  # a cancelled task took the connection along: once more
    done[number] = 1
    found = await session.scalar(sa.select(Parent).where(Parent.name == f"p{number}"))
    assert found is parent
    assert len(await found.awaitable_attrs.children) == 2
    while True:
        try:
            found.other = f"o{number}"
            await session.commit()
            break
        except WorkLostError:
            continue
    done[number] = 2


async def all_work(session: Any, cancels: bool = True) -> Any:
    """Everybody's work; every tenth is cancelled when some have come to an end."""
    done: dict[int, int] = {}
    tasks = [
        asyncio.create_task(work(session, number, done), name=f"worker-{number}")
        for number in range(TASKS)
    ]
    if cancels:
        for number in range(5, TASKS, 10):
            # In the middle of things: when the one before has done its first half.
            while number - 1 not in done and not tasks[number - 1].done():
                await asyncio.sleep(0)
            tasks[number].cancel()
    return done, await gather(*tasks)


async def is_in_database(db: Any, done: dict[int, int]) -> None:
    rows = await db.rows(sa.select(Parent.name, Parent.other))
    there = {row.name: row.other for row in rows}
    assert len(rows) == len(there), "something was written twice"
    for number, what in done.items():
        assert f"p{number}" in there
        if what == 2:
            assert there[f"p{number}"] == f"o{number}"
    counted = sa.select(sa.func.count(Child.id)).group_by(Child.parent_id)
    assert {row[0] for row in await db.rows(counted)} == {2}


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@aio
async def test_nothing_is_lost(name: str, lock: str, tmp_path: Any) -> None:
    async with database(name, tmp_path) as db:
        async with db.session(lock) as session:
            done, results = await all_work(session)
            cancelled = {number for number in range(5, TASKS, 10)}
            for number, result in enumerate(results):
                if number in cancelled and isinstance(result, BaseException):
                    assert isinstance(result, asyncio.CancelledError)
                else:
                    assert result is None, (number, result)
                    assert done[number] == 2
            assert session.guard.owner is None and not session.guard.waiting
        await is_in_database(db, done)


@pytest.mark.parametrize("lock", ["rlock", "rw"])
@aio
async def test_without_cancelling_everybody_is_done(
    name: str, lock: str, tmp_path: Any
) -> None:
    async with database(name, tmp_path) as db:
        async with db.session(lock) as session:
            done, results = await all_work(session, cancels=False)
        assert results == [None] * TASKS
        assert set(done.values()) == {2} and len(done) == TASKS
        await is_in_database(db, done)


@pytest.mark.parametrize("lock", ["detect", "confine"])
@aio
async def test_kinds_that_refuse_refuse(name: str, lock: str, tmp_path: Any) -> None:
    async with database(name, tmp_path) as db:
        async with db.session(lock) as session:
            done, results = await all_work(session, cancels=False)
            refused = [r for r in results if isinstance(r, ConcurrentAccessError)]
            assert refused and len(refused) + len(done) >= TASKS
            assert all(r is None or r in refused for r in results)
        await is_in_database(db, done)


@pytest.mark.parametrize("lock", ["off", None])
@pytest.mark.unguarded
@aio
async def test_control_without_a_guard(name: str, lock: Any, tmp_path: Any) -> None:
    async with database(name, tmp_path, unguarded=True) as db:
        session = db.plain() if lock is None else db.session(lock)
        done, results = await all_work(session, cancels=False)
        assert sum(result is None for result in results) < TASKS
        assert any(isinstance(r, sa_exc.InvalidRequestError) for r in results)
        try:
            await session.invalidate()
        except sa_exc.SQLAlchemyError:
            pass  # beyond that
