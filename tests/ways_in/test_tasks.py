"""Every way in meets the guard of tasks: the matrix that is made of ``ways_in``.

Awaited, a way in waits for its turn; not awaited, it is done or refused, and whoever is
inside does not notice.
"""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from typing import Any, AsyncIterator

import pytest
import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
from sqlalchemy.util import greenlet_spawn

from sharedsession import ConcurrentAccessError, shared_session
from sharedsession.guard.access import READ

from ..conftest import fill_world
from ..support.aio import Database, aio, child, passes, stranger, until, world_database
from ..support.models import User
from .table import WAYS, Way

every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
#: Where the kind of lock, not the way, makes the difference: one of so many ways.
EVERY = int(os.environ.get("SHAREDSESSION_WAYS_EVERY", "3"))
some_ways = pytest.mark.parametrize("way", WAYS[::EVERY], ids=lambda way: way.name)

# Some ways leave a transaction half done on purpose, or a coroutine that nobody awaits.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
]


@contextlib.asynccontextmanager
async def world(
    way: Way, folders: Any, lock: str
) -> AsyncIterator[tuple[Any, Any, Any, Database]]:
    """The world, what the way prepared, the async session, and the database."""
    async with world_database(folders) as db:
        session = db.session(lock)
        registry = shared_session(lambda: session.sync_session)
        made = await greenlet_spawn(fill_world, db.engine.sync_engine, registry)
        prepared = await greenlet_spawn(way.prepare, made)
        try:
            yield made, prepared, session, db
        finally:
            db.gate.open()
            gc.collect()
            with contextlib.suppress(sa_exc.SQLAlchemyError):
                await session.close()


def go(way: Way, made: Any, prepared: Any) -> Any:
    return greenlet_spawn(lambda: way.go(made, prepared))


@every_way
@aio
async def test_waits_for_a_critical_section(way: Way, tmp_path_factory: Any) -> None:
    async with world(way, tmp_path_factory, "rw") as (made, prepared, session, db):
        guard = session.guard
        async with session.critical_section():
            other = stranger(go(way, made, prepared))
            assert not await passes(other, guard)
        await other
        del prepared
        gc.collect()
        await until(lambda: guard.owner is None)  # what it left open ends with its task


@some_ways
@pytest.mark.unguarded
@aio
async def test_control_off_lets_everybody_in(way: Way, tmp_path_factory: Any) -> None:
    if "critical_section(obj)" in way.name or not way.alone:
        pytest.skip("only with a guard")
    async with world(way, tmp_path_factory, "off") as (made, prepared, session, db):
        async with session.critical_section():
            await stranger(go(way, made, prepared))


@some_ways
@aio
async def test_a_child_passes_in_its_parents_section(
    way: Way, tmp_path_factory: Any
) -> None:
    async with world(way, tmp_path_factory, "rlock") as (made, prepared, session, db):
        if not way.alone:
            pytest.skip("its parent is another task, which may be joined")
        async with session.critical_section():
            await child(go(way, made, prepared))
        del prepared
        gc.collect()
        await until(lambda: session.guard.owner is None)


@every_way
@aio
async def test_passes_beside_a_read_section_if_it_reads(
    way: Way, tmp_path_factory: Any
) -> None:
    async with world(way, tmp_path_factory, "rw") as (made, prepared, session, db):
        async with session.read_section():
            other = stranger(go(way, made, prepared))
            reads = way.access is READ or "read_section" in way.name
            assert await passes(other, session.guard) is reads
        await other


@every_way
@aio
async def test_detect_raises_instead_of_waiting(
    way: Way, tmp_path_factory: Any
) -> None:
    async with world(way, tmp_path_factory, "detect") as (made, prepared, session, db):
        async with session.critical_section():
            with pytest.raises(ConcurrentAccessError, match="task 'other'.*task 'Task"):
                await stranger(go(way, made, prepared))
        if way.alone:
            await go(way, made, prepared)


@some_ways
@aio
async def test_confine_raises_from_a_second_task(
    way: Way, tmp_path_factory: Any
) -> None:
    async with world(way, tmp_path_factory, "confine") as (made, prepared, session, db):
        with pytest.raises(ConcurrentAccessError, match="task 'Task.*task 'other'"):
            await stranger(go(way, made, prepared))
        if way.alone:
            await go(way, made, prepared)


@every_way
@aio
async def test_not_awaited_it_is_done_or_refused(
    way: Way, tmp_path_factory: Any
) -> None:
    """And the other task's operation comes to the end it would have come to."""
    async with world(way, tmp_path_factory, "rlock") as (made, prepared, session, db):

        async def work() -> Any:
            session.add(User(name="in flight"))
            await session.flush()
            return await session.scalar(sa.select(sa.func.count(User.id)))

        stop = db.gate.at("insert")
        other = stranger(work())
        await stop.reached(other)
        owner, version = session.guard.owner, session.guard.version
        calls, done = db.gate.calls, True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                way.go(made, prepared)
            except ConcurrentAccessError:
                done = False
            except sa_exc.MissingGreenlet:
                assert way.name == "connection.get_isolation_level"
        assert db.gate.calls == calls, "it went to the database"
        assert session.guard.owner is owner is other
        assert session.guard.version == version
        expired = way.name == "read a column_property"  # by the flush
        assert done or way.access is not READ or expired
        stop.go_on()
        assert await other == 6
        assert session.guard.owner is None
        await session.rollback()
        assert await session.scalar(sa.select(sa.literal(1))) == 1
