"""Tasks for tests: one event loop for each test, and databases that stand still."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import os
import shutil
import sqlite3
import threading
import uuid
from typing import Any, AsyncIterator, Awaitable, Callable, Coroutine, Iterator

import aiosqlite
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncAttrs,
    AsyncEngine,
    AsyncSession,
    create_async_engine,
)
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.util import await_only

from sharedsession.asyncio import AsyncSharedSession

from ..conftest import leave_transactions_to_sqlalchemy, template
from .databases import url_of

#: Seconds after which a test that waits for something that must happen gives up.
PATIENCE = 30.0

DATABASES = ("sqlite", "postgresql")


class Base(AsyncAttrs, DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "aio_parents"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    other: Mapped[str | None] = mapped_column(sa.String(50))
    data: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(sa.JSON))
    children: Mapped[list[Child]] = relationship(back_populates="parent")


class Child(Base):
    __tablename__ = "aio_children"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Parent.id))
    parent: Mapped[Parent | None] = relationship(back_populates="children")


def aio(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test that is a coroutine function in a loop of its own."""

    async def main(*args: Any, **kw: Any) -> None:
        before = _driver_threads()
        try:
            await asyncio.wait_for(test(*args, **kw), PATIENCE)
        finally:
            await asyncio.wait_for(_let_drivers_end(before), PATIENCE)

    @functools.wraps(test)
    def run(*args: Any, **kw: Any) -> None:
        asyncio.run(main(*args, **kw))

    return run


def _driver_threads() -> set[threading.Thread]:
    """Those of aiosqlite, which has one for each connection."""
    name = "_connection_worker_thread"
    return {thread for thread in threading.enumerate() if name in thread.name}


async def _let_drivers_end(before: set[threading.Thread]) -> None:
    """End connections that a cancelled task left open, while there is a loop to tell.

    Their threads would tell it later, in the middle of another test.
    """
    for attempt in range(100):
        if not _driver_threads() - before:
            return
        await asyncio.sleep(0.001)
    gc.collect()
    for connection in gc.get_objects():
        if isinstance(connection, aiosqlite.Connection):
            if connection._thread in _driver_threads() - before:
                connection.stop()
    while _driver_threads() - before:
        await asyncio.sleep(0.001)


# -- tasks


def stranger(coroutine: Coroutine[Any, Any, Any], name: str = "other") -> Any:
    """A task that was started in no section, wherever this is called."""
    context = contextvars.Context()
    return context.run(lambda: asyncio.create_task(coroutine, name=name))


def child(coroutine: Coroutine[Any, Any, Any], name: str = "child") -> Any:
    return asyncio.create_task(coroutine, name=name)


async def until(condition: Callable[[], Any]) -> None:
    """Return when *condition* holds.  For what cannot be waited for otherwise."""
    while not condition():
        await asyncio.sleep(0.0005)


async def passes(task: Any, guard: Any) -> bool:
    """Whether *task* gets through; False as soon as it is in the guard's queue."""
    await until(lambda: task.done() or task in guard.waiting)
    return bool(task.done())


async def settled() -> None:
    """Let every task go on that can go on without the database."""
    for _ in range(10):
        await asyncio.sleep(0)


# -- databases


class Gate:
    """Stops operations at the database, until they are told to go on.

    It also sees every statement from below, and counts those that began while another
    one was under way on the same connection.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.calls = 0
        self.overlaps = 0
        self._inside: dict[Any, int] = {}
        self._stops: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}
        self._made: list[asyncio.Event] = []
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            sa.event.listen(engine.sync_engine, name, getattr(self, name))
        for name in ("commit", "rollback"):
            sa.event.listen(
                engine.sync_engine, name, functools.partial(self._stop, name)
            )

    def do_execute(self, cursor: Any, statement: str, args: Any, context: Any) -> bool:
        with self._call(context):
            self._stop(statement.split()[0].lower())
            cursor.execute(statement, args)
        return True

    def do_executemany(
        self, cursor: Any, statement: str, args: Any, context: Any
    ) -> bool:
        with self._call(context):
            self._stop(statement.split()[0].lower())
            cursor.executemany(statement, args)
        return True

    def do_execute_no_params(self, cursor: Any, statement: str, context: Any) -> bool:
        with self._call(context):
            self._stop(statement.split()[0].lower())
            cursor.execute(statement)
        return True

    @contextlib.contextmanager
    def _call(self, context: Any) -> Iterator[None]:
        connection = context.root_connection
        self.calls += 1
        self.overlaps += bool(self._inside.get(connection))
        self._inside[connection] = self._inside.get(connection, 0) + 1
        try:
            yield
        finally:
            self._inside[connection] -= 1

    def _stop(self, what: str, *args: Any) -> None:
        if what in self._stops:
            reached, go_on = self._stops.pop(what)
            reached.set()
            await_only(go_on.wait())

    def at(self, what: str) -> Stop:
        """Stop the next statement that begins with that word, commit or rollback."""
        self._stops[what] = events = asyncio.Event(), asyncio.Event()
        self._made.append(events[1])
        return Stop(*events)

    def open(self) -> None:
        """Let everything go on, for a test that failed before it told so."""
        self._stops.clear()
        for go_on in self._made:
            go_on.set()


class Stop:
    """One stop that a gate has been told."""

    def __init__(self, reached: asyncio.Event, go_on: asyncio.Event) -> None:
        self._reached = reached
        self._go_on = go_on

    async def reached(self, task: Any) -> None:
        """Return when it is reached; raises what *task* raises before."""
        reaching = asyncio.ensure_future(self._reached.wait())
        await asyncio.wait({reaching, task}, return_when=asyncio.FIRST_COMPLETED)
        if not reaching.done():
            reaching.cancel()
            task.result()
            raise AssertionError("the task ended and never came there")

    def go_on(self) -> None:
        self._go_on.set()


class Database:
    """An engine with the tables of this module, and what stands before it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.gate = Gate(engine)

    def session(self, lock: Any = "rlock", **kw: Any) -> AsyncSharedSession:
        return AsyncSharedSession(self.engine, lock=lock, **kw)

    def plain(self, **kw: Any) -> AsyncSession:
        return AsyncSession(self.engine, **kw)

    async def rows(self, statement: Any) -> list[Any]:
        """What is in the database, seen from outside."""
        async with self.engine.connect() as connection:
            return list((await connection.execute(statement)).all())

    async def names(self) -> set[Any]:
        return {row.name for row in await self.rows(sa.select(Parent.name))}


@contextlib.asynccontextmanager
async def database(
    name: str, tmp_path: Any, unguarded: bool = False
) -> AsyncIterator[Database]:
    """A database with empty tables, which are this test's alone."""
    if name == "sqlite":
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/aio.db")
        leave_transactions_to_sqlalchemy(engine.sync_engine)  # type: ignore[arg-type]
    else:
        schema = f"aio_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        plain = create_async_engine(url_of(name, tmp_path))
        engine = plain.execution_options(schema_translate_map={None: schema})
        async with plain.begin() as connection:
            await connection.execute(sa.schema.CreateSchema(schema))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    made = Database(engine)
    try:
        try:
            yield made
        finally:
            made.gate.open()
        assert made.gate.calls, "the gate saw no call at all"
        assert unguarded or not made.gate.overlaps
    finally:
        if name != "sqlite":
            async with plain.begin() as connection:
                await connection.execute(sa.schema.DropSchema(schema, cascade=True))
        await engine.dispose()
        gc.collect()  # what drivers have to say is about this test, and no later one


@functools.lru_cache(maxsize=None)
def _template_file(folder: Any) -> str:
    path = f"{folder}/template.db"
    with contextlib.closing(sqlite3.connect(path)) as copy:
        template().backup(copy)
    return path


@contextlib.asynccontextmanager
async def world_database(tmp_path_factory: Any) -> AsyncIterator[Database]:
    """SQLite with the tables of tests.support.models and four users."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copy(_template_file(tmp_path_factory.getbasetemp()), f"{folder}/aio.db")
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/aio.db")
    leave_transactions_to_sqlalchemy(engine.sync_engine)  # type: ignore[arg-type]
    try:
        yield Database(engine)
    finally:
        await engine.dispose()
        engine.sync_engine.clear_compiled_cache()  # mappers remember the last dialects


async def gather(*awaitables: Awaitable[Any]) -> list[Any]:
    """What came of each, errors included."""
    return list(await asyncio.gather(*awaitables, return_exceptions=True))
