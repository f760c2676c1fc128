"""What is not awaited, row by row of the table in ``sharedsession.asyncio``."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from typing import Any, AsyncIterator

import pytest
import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
import sqlalchemy.orm.exc as sa_orm_exc
from sqlalchemy.orm import attributes as sa_attributes
from sqlalchemy.orm import object_session

from sharedsession import ConcurrentAccessError, UpgradeError, WorkLostError
from sharedsession.asyncio.guard import PutOff
from sharedsession.guard.task import current_task_owner

from ..support.aio import Child, Parent, aio, child, database, gather, passes, stranger

# Sessions that a test leaves open have connections that aiosqlite would see closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

both = pytest.mark.parametrize("lock", ["rlock", "rw"])

COUNT = sa.select(sa.func.count()).select_from(Parent)

#: What another task does meanwhile, by the statement that it waits at.
IN_FLIGHT = {
    "select": lambda session: session.scalar(COUNT),
    "insert": lambda session: add_and_flush(session),
    "update": lambda session: update(session, "flush"),
    "commit": lambda session: update(session, "commit"),
    "rollback": lambda session: update(session, "rollback"),
}
in_flight = pytest.mark.parametrize("what", IN_FLIGHT)
heavy = pytest.mark.parametrize(
    "what", [what for what in IN_FLIGHT if what != "select"]
)


async def add_and_flush(session: Any) -> None:
    session.add(Parent(name="inserted"))
    await session.flush()


async def update(session: Any, then: str) -> None:
    parent = (await session.scalars(sa.select(Parent).where(Parent.id == 2))).one()
    parent.other = "updated"
    await getattr(session, then)()


class World:
    """A session with two parents that are loaded, and another task in flight."""

    def __init__(self, db: Any, session: Any) -> None:
        self.db = db
        self.session = session

    async def begin(self, what: str) -> None:
        self.stop = self.db.gate.at(what)
        self.other = stranger(IN_FLIGHT[what](self.session))
        await self.stop.reached(self.other)

    async def end(self) -> None:
        self.stop.go_on()
        await self.other


@contextlib.asynccontextmanager
async def world(tmp_path: Any, lock: str = "rlock", **kw: Any) -> AsyncIterator[Any]:
    with warnings.catch_warnings():
        # What a step does to a flush in flight must not be worth a warning.
        warnings.simplefilter("error")
        async with database("sqlite", tmp_path) as db:
            async with db.session(lock, **kw) as session:
                parents = [
                    Parent(id=n, name=f"p{n}", other="o", data={}, children=[Child()])
                    for n in (1, 2)
                ]
                session.add_all(parents)
                await session.commit()
                await session.scalars(sa.select(Parent))
                made = World(db, session)
                made.one, made.two = parents  # type: ignore[attr-defined]
                await parents[0].awaitable_attrs.children
                try:
                    yield made
                finally:
                    db.gate.open()


# -- put off: add() and the like


@both
@in_flight
@aio
async def test_add_is_put_off(what: str, lock: str, tmp_path: Any) -> None:
    async with world(tmp_path, lock) as w:
        session = w.session
        await w.begin(what)
        new, more = Parent(name="new"), [Parent(name="more"), Parent(name="most")]
        session.add(new)
        session.add_all(iter(more))
        assert object_session(new) is None  # the flush does not meet it
        assert new in session and {new, *more} <= {*session.new}
        assert new in [*session] and w.one in session
        assert "new" not in {each.name for each in await started(w)}
        await w.end()
        assert object_session(new) is session.sync_session  # before anything else
        await session.commit()
        assert {"new", "more", "most"} <= await w.db.names()


async def started(w: Any) -> list[Any]:
    """What the other task's operation has in hand now."""
    return [each for each in w.session.sync_session._new.values()]


@aio
async def test_it_is_done_before_others_come_in(tmp_path: Any) -> None:
    async with world(tmp_path) as w:
        await w.begin("select")
        waiting = stranger(w.session.scalar(COUNT))  # came before
        await asyncio.sleep(0)
        w.session.add(Parent(name="new"))
        await w.end()
        assert await waiting == 3  # it was flushed for that one already


@aio
async def test_what_is_put_off_keeps_its_order(tmp_path: Any) -> None:
    async with world(tmp_path) as w:
        session = w.session
        await w.begin("update")
        new = Parent(name="new")
        session.add(new)
        session.expunge(new)
        assert new not in session and new not in session.new
        session.add(new)
        assert new in session
        session.expunge_all()
        assert new not in session and [*session] == [] and not session.new
        last = Parent(name="last")
        session.add(last)
        await w.end()
        assert [*session] == [last]
        await session.commit()
        assert "last" in await w.db.names() and "new" not in await w.db.names()


@heavy
@aio
async def test_expire_is_put_off(what: str, tmp_path: Any) -> None:
    async with world(tmp_path, expire_on_commit=False) as w:
        await w.begin(what)
        w.session.expire(w.one, ["name"])
        assert w.one.name == "p1"
        await w.end()
        if what != "rollback":
            assert "name" not in w.one.__dict__
        assert await w.one.awaitable_attrs.name == "p1"
        await w.begin("select")
        w.session.expire_all()
        await w.end()
        assert sa.inspect(w.one).expired


@aio
async def test_errors_are_raised_at_once(tmp_path: Any) -> None:
    async with world(tmp_path) as w, w.db.session() as another:
        elsewhere = Parent()
        another.add(elsewhere)
        await w.begin("update")
        for put_off in (w.session.add, w.session.expire, w.session.expunge):
            with pytest.raises(sa_orm_exc.UnmappedInstanceError):
                put_off(object())
        with pytest.raises(sa_orm_exc.UnmappedInstanceError):
            w.session.add_all([Parent(), object()])
        with pytest.raises(sa_exc.InvalidRequestError, match="already attached to"):
            w.session.add(elsewhere)
        for put_off in (w.session.expire, w.session.expunge):
            with pytest.raises(sa_exc.InvalidRequestError, match="not present in this"):
                put_off(elsewhere)
        with pytest.raises(TypeError):
            w.session.add()
        assert not w.session.guard.put_off
        await w.end()


@aio
async def test_an_error_that_comes_later_is_for_who_asked(tmp_path: Any) -> None:
    async with world(tmp_path) as w:
        await w.begin("update")
        twice = Parent(name="x")
        sa.inspect(twice).key = sa.inspect(w.one).key
        w.session.add(twice)
        await w.end()  # the other one has nothing to do with it
        await stranger(w.session.scalar(sa.select(1)))
        with pytest.raises(sa_exc.InvalidRequestError, match="already present"):
            await w.session.scalar(sa.select(1))
        await w.session.rollback()


@aio
async def test_an_add_survives_anothers_failure(tmp_path: Any) -> None:
    async with world(tmp_path) as w:
        w.stop = w.db.gate.at("insert")
        w.other = stranger(fail(w.session))
        await w.stop.reached(w.other)
        w.session.add(Parent(name="new"))
        await w.end()
        await w.session.commit()
        assert "new" in await w.db.names()


async def fail(session: Any) -> None:
    session.add(Parent(id=1, name="twice"))
    with pytest.raises(sa_exc.IntegrityError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        await session.flush()
    # and never rolls back: whoever comes next does


@both
@aio
async def test_add_in_anothers_section(lock: str, tmp_path: Any) -> None:
    async with world(tmp_path, lock) as w:
        session = w.session

        async def add() -> None:
            new = Parent(name="new")
            session.add(new)
            assert new in session
            await session.flush()  # after the section
            assert new.id

        async with session.critical_section():
            task = stranger(add())
            await asyncio.sleep(0)
            assert await session.scalar(COUNT) == 2
            assert not session.new
        await task
        assert await session.scalar(COUNT) == 3


@aio
async def test_add_beside_read_sections(tmp_path: Any) -> None:
    async with world(tmp_path, "rw") as w:
        async with w.session.read_section():
            new = Parent(name="new")
            await stranger(call(w.session.add, new))
            assert object_session(new) is None
            assert await w.session.scalar(COUNT) == 2
            with pytest.raises(UpgradeError):
                w.session.add(new)
        assert object_session(new) is w.session.sync_session


@pytest.mark.parametrize("block", ["read_section", "critical_section"])
@aio
async def test_add_beside_readers_comes_before_a_section(
    block: str, tmp_path: Any
) -> None:
    """Of the task that asked for it, be it a section that readers would share."""
    async with world(tmp_path, "rw") as w:
        session = w.session

        async def add_and_count() -> Any:
            session.add(Parent(name="new"))
            async with getattr(session, block)():
                return await session.scalar(COUNT)

        async with session.read_section():
            other = stranger(add_and_count())
            assert not await passes(other, session.guard)
        assert await other == 3


async def call(function: Any, *args: Any) -> Any:
    return function(*args)


async def merge_after_a_flush(session: Any) -> None:
    """The flush of the other parent waits, and the merge sets the same column."""
    two = (await session.scalars(sa.select(Parent).where(Parent.id == 2))).one()
    two.other = "updated"
    await session.merge(Parent(id=1, name="merged"))


@both
@aio
async def test_a_column_set_beside_a_merge_is_not_lost(
    lock: str, tmp_path: Any
) -> None:
    async with world(tmp_path, lock) as w:
        w.stop = w.db.gate.at("update")
        w.other = stranger(merge_after_a_flush(w.session))
        await w.stop.reached(w.other)
        w.one.name = "set"
        await w.end()
        await w.session.commit()
        name = sa.select(Parent.name).where(Parent.id == 1)
        assert await w.session.scalar(name) == "set"


# -- reading


@both
@in_flight
@aio
async def test_reading_is_done_at_once(what: str, lock: str, tmp_path: Any) -> None:
    async with world(tmp_path, lock) as w:
        await w.begin(what)
        session, one = w.session, w.one
        assert one.name == "p1" and len(one.children) == 1
        assert one.children[0].parent is one and one.data == {}
        assert w.one in session and not session.deleted and session.in_transaction()
        assert not session.is_modified(one)
        assert session.sync_session.get_transaction() is not None
        assert isinstance(session.is_active, bool) and session.dirty is not None
        assert sa.inspect(one).persistent and sa.inspect(one).attrs.name.value == "p1"
        assert sa_attributes.get_history(one, "name").unchanged == ["p1"]
        await w.end()


@both
@aio
async def test_what_is_not_loaded_must_be_awaited(lock: str, tmp_path: Any) -> None:
    async with world(tmp_path, lock) as w:
        await w.begin("update")
        with pytest.raises(ConcurrentAccessError, match="not awaited.*task 'other'"):
            w.two.children
        loading = stranger(awaited(w.two, "children"))
        await w.end()
        assert len(await loading) == 1


async def awaited(parent: Any, name: str) -> Any:
    return await getattr(parent.awaitable_attrs, name)


@both
@aio
async def test_a_section_shows_nothing(lock: str, tmp_path: Any) -> None:
    async with world(tmp_path, lock) as w:

        async def look() -> None:
            for function in (
                lambda: w.one.name,
                lambda: len(w.one.children),
                lambda: w.one in w.session,
                lambda: w.session.new,
                lambda: setattr(w.one, "name", "x"),
                lambda: w.one.children.append(Child()),
                lambda: w.one.data.update(a=1),
                lambda: w.session.no_autoflush.__enter__(),
            ):
                with pytest.raises(
                    ConcurrentAccessError,
                    match="(?s)task 'look'.*has held it.*run_sync",
                ):
                    function()
            assert await w.one.awaitable_attrs.name == "whole"

        async with w.session.critical_section():
            w.one.name = "half"
            task = stranger(look(), "look")
            await asyncio.sleep(0)
            await w.session.flush()
            w.one.name = "whole"
        await task


@aio
async def test_a_read_section_may_be_read_beside(tmp_path: Any) -> None:
    for lock in ("rlock", "rw"):
        async with world(tmp_path / lock, lock) as w:

            async def look() -> None:
                assert w.one.name == "p1" and w.one in w.session
                with pytest.raises(ConcurrentAccessError):
                    w.one.name = "x"

            async with w.session.read_section():
                await stranger(look())
                assert w.one.name == "p1"


@pytest.fixture(autouse=True)
def folders(tmp_path: Any) -> None:
    for lock in ("rlock", "rw"):
        (tmp_path / lock).mkdir()


# -- setting


@both
@in_flight
@aio
async def test_a_set_attribute_is_not_lost(what: str, lock: str, tmp_path: Any) -> None:
    async with world(tmp_path, lock) as w:
        one, two = w.one, w.two
        await w.begin(what)
        one.name = "set"
        two.name = "set, too"  # of the very object that is being written
        assert (one.name, two.name) == ("set", "set, too")
        await w.end()
        assert (one.name, two.name) == ("set", "set, too")
        assert one in w.session.dirty and two in w.session.dirty
        await w.session.commit()
        assert {"set", "set, too"} <= await w.db.names()


@in_flight
@aio
async def test_what_is_set_twice(what: str, tmp_path: Any) -> None:
    async with world(tmp_path) as w:
        if what != "rollback":
            w.two.name = "before"  # dirty already, and part of the flush
        await w.begin(what)
        w.two.name = "meanwhile"
        w.two.name = "at last"
        await w.end()
        await w.session.commit()
        rows = await w.db.rows(sa.select(Parent.name).where(Parent.id == 2))
        assert rows == [("at last",)]


@in_flight
@aio
async def test_mutable_values_are_not_lost(what: str, tmp_path: Any) -> None:
    async with world(tmp_path) as w:
        await w.begin(what)
        w.one.data["key"] = "value"
        w.two.data = {"new": 1}
        sa_attributes.flag_modified(w.two, "other")
        await w.end()
        assert w.one.data == {"key": "value"}
        await w.session.commit()
        rows = await w.db.rows(sa.select(Parent.data).order_by(Parent.id).limit(2))
        assert rows == [({"key": "value"},), ({"new": 1},)]


@heavy
@aio
async def test_a_set_is_the_setters_work(what: str, tmp_path: Any) -> None:
    async with world(tmp_path) as w:
        await w.begin(what)
        w.one.name = "set"
        await w.end()
        await stranger(w.session.rollback(), "vandal")
        with pytest.raises(sa_exc.PendingRollbackError, match="vandal"):
            await w.session.flush()


@pytest.mark.unguarded
@pytest.mark.parametrize("what", ["update", "commit"])
@aio
async def test_control_a_plain_session_loses_it(what: str, tmp_path: Any) -> None:
    async with database("sqlite", tmp_path) as db, db.plain() as session:
        session.add_all([Parent(id=n, name=f"p{n}") for n in (1, 2)])
        await session.commit()
        two = await session.get_one(Parent, 2)
        stop = db.gate.at(what)
        other = stranger(update(session, "commit" if what == "commit" else "flush"))
        await stop.reached(other)
        two.name = "set"
        stop.go_on()
        await other
        await session.commit()
        assert "set" not in await db.names()


# -- relationships


@both
@aio
async def test_relationships_beside_a_load(lock: str, tmp_path: Any) -> None:
    async with world(tmp_path, lock) as w:
        await w.begin("select")
        new, other = Child(), Child()
        w.one.children.append(new)
        other.parent = w.two
        w.one.children[0].parent = w.two
        await w.end()
        assert new in w.session
        w.session.add(other)
        await w.session.commit()
        counted = sa.select(Child.parent_id, sa.func.count()).group_by(Child.parent_id)
        assert {*await w.db.rows(counted)} == {(1, 1), (2, 3)}


@both
@heavy
@aio
async def test_relationships_beside_what_would_lose_them(
    what: str, lock: str, tmp_path: Any
) -> None:
    async with world(tmp_path, lock) as w:
        only = w.one.children[0]
        await w.begin(what)
        for change in (
            lambda: w.one.children.append(Child()),
            lambda: w.one.children.remove(only),
            lambda: setattr(only, "parent", None),
            lambda: setattr(w.one, "children", []),
            lambda: setattr(Child(), "parent", w.one),
            lambda: delattr(only, "parent"),
        ):
            with pytest.raises(ConcurrentAccessError, match="relationship.*run_sync"):
                change()
        assert w.one.children == [only] and only.parent is w.one

        async def wait() -> None:
            await w.session.run_sync(lambda sync: w.one.children.append(Child()))

        waiting = stranger(wait())
        await w.end()
        await gather(waiting)
        await w.session.commit()
        counted = sa.select(sa.func.count()).where(Child.parent_id == 1)
        assert await w.db.rows(counted) in ([(2,)], [(1,)])
        if what != "commit" and what != "rollback":
            assert await w.db.rows(counted) == [(2,)]


# -- refused


@both
@aio
async def test_settings_and_blocks_are_refused(lock: str, tmp_path: Any) -> None:
    async with world(tmp_path, lock) as w:
        await w.begin("update")
        for function in (
            lambda: setattr(w.session, "autoflush", False),
            lambda: w.session.no_autoflush.__enter__(),
            lambda: w.session.sync_session.commit(),
            lambda: w.session.sync_session.rollback(),
            lambda: w.session.sync_session.flush(),
            lambda: w.session.sync_session.critical_section().__enter__(),
        ):
            with pytest.raises(ConcurrentAccessError, match="task 'other'.*run_sync"):
                function()
        assert w.session.autoflush
        await w.end()
        with w.session.no_autoflush:
            w.session.autoflush = False
            await child(w.session.scalar(COUNT))
        assert w.session.guard.owner is None


@in_flight
@aio
async def test_detect_refuses_all_of_it(what: str, tmp_path: Any) -> None:
    async with world(tmp_path, "detect") as w:
        only = w.one.children[0]
        await w.begin(what)
        for function in (
            lambda: w.one.name,
            lambda: setattr(w.one, "name", "x"),
            lambda: w.one in w.session,
            lambda: w.session.add(Parent()),
            lambda: w.session.expunge(only),
            lambda: w.one.children.append(Child()),
        ):
            with pytest.raises(ConcurrentAccessError, match="Two tasks shared it"):
                function()
        await w.end()
        assert not w.session.guard.put_off


@aio
async def test_a_family_has_the_same_table(tmp_path: Any) -> None:
    async with world(tmp_path) as w:
        async with w.session.critical_section():
            stop = w.db.gate.at("update")
            one = child(update(w.session, "flush"))
            await stop.reached(one)
            new = Parent(name="new")
            w.session.add(new)
            w.one.name = "set"
            with pytest.raises(ConcurrentAccessError):
                w.one.children.append(Child())
            assert w.one.name == "set" and new in w.session
            stop.go_on()
            await one
            assert object_session(new) is w.session.sync_session
            await w.session.commit()
            assert {"new", "set"} <= await w.db.names()


@aio
async def test_errors_beside_a_read_section_are_for_who_asked(tmp_path: Any) -> None:
    async with world(tmp_path, "rw") as w:
        twice = Parent(name="x")
        sa.inspect(twice).key = sa.inspect(w.one).key
        asked, tell = asyncio.Event(), asyncio.Event()

        async def ask() -> None:
            w.session.add(twice)
            asked.set()
            await tell.wait()
            with pytest.raises(sa_exc.InvalidRequestError, match="already present"):
                await w.session.scalar(COUNT)

        async with w.session.read_section():
            asking = stranger(ask())
            await asked.wait()
        assert not w.session.guard.put_off
        await w.session.scalar(COUNT)  # not this one's
        tell.set()
        await asking


@both
@aio
async def test_what_is_put_off_and_what_was_lost(lock: str, tmp_path: Any) -> None:
    """A section keeps no guard that it was not entered for."""
    async with world(tmp_path, lock) as w:
        session, guard = w.session, w.session.guard
        done: list[str] = []
        asked = PutOff(current_task_owner(), "expire_all", lambda: done.append("it"))
        session.add(Parent(name="lost"))
        await session.flush()
        await stranger(session.rollback())
        await stranger(session.scalar(COUNT))  # there is a transaction, with its own
        assert guard.attention
        guard.put_off.append(asked)
        with pytest.raises(WorkLostError):
            async with session.read_section():
                await session.scalar(COUNT)
        assert guard.owner is None and guard.readers == ()
        assert await session.scalar(COUNT) == 2
        assert done == ["it"]
