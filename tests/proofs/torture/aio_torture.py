"""Random operations of many tasks on one async session, watched from below.

``python -m tests.proofs.torture.aio_torture --help`` runs it for as long as one likes.
A seed says what each task does, where it lets others go on, and who is cancelled when.
When the database answers is left to it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from typing import Any, Callable

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from sharedsession import ConcurrentAccessError, WorkLostError, critical_section

from ...support.aio import Child, Database, Parent, database, gather
from .torture import Report

#: Seconds after which whoever is not done counts as stuck.
PATIENCE = 120.0

#: With how many objects it is done.
PARENTS = 4

Operation = Callable[[Any, Any], Any]


# -- what is awaited: any task, any time


def by_run_sync(function: Callable[[Any, Any], Any]) -> Operation:
    return lambda session, parent: session.run_sync(lambda sync: function(sync, parent))


AWAITED: list[Operation] = [
    lambda session, parent: parent.awaitable_attrs.name,
    lambda session, parent: parent.awaitable_attrs.children,
    lambda session, parent: session.get(Parent, 2),
    lambda session, parent: session.scalar(sa.select(sa.func.count(Parent.id))),
    lambda session, parent: session.scalars(sa.select(Parent)),
    lambda session, parent: session.execute(sa.text("SELECT 1")),
    lambda session, parent: session.flush(),
    lambda session, parent: session.refresh(parent),
    lambda session, parent: session.commit(),
    lambda session, parent: session.rollback(),
    lambda session, parent: session.connection(),
    by_run_sync(lambda sync, parent: sync.query(Parent).count()),
    by_run_sync(lambda sync, parent: setattr(parent, "other", "sync")),
    by_run_sync(lambda sync, parent: len(parent.children)),
]


async def savepoint(session: Any, parent: Any) -> None:
    async with session.begin_nested():
        parent.other = "within"


async def failing_unit(session: Any, parent: Any) -> None:
    try:
        async with critical_section(session, transaction="savepoint"):
            await session.execute(sa.insert(Parent).values(id=1))
    except IntegrityError:
        return
    raise AssertionError("a second row with the same key was let in")


async def stream(session: Any, parent: Any) -> None:
    some = sa.select(Parent.id).execution_options(yield_per=1)
    async for _ in await session.stream(some):
        pass


async def read(session: Any, parent: Any) -> None:
    async with session.read_section():
        before = await parent.awaitable_attrs.name
        await asyncio.gather(session.get(Parent, 1), session.scalar(sa.select(1)))
        assert await parent.awaitable_attrs.name == before


async def family(session: Any, parent: Any) -> None:
    async with session.critical_section():
        session.add(Child(parent_id=1))
        await asyncio.gather(session.flush(), session.refresh(parent))


async def change_collection(session: Any, parent: Any) -> None:
    async with session.critical_section():
        child = Child()
        (await parent.awaitable_attrs.children).append(child)
        assert child in parent.children
        parent.children.remove(child)


SECTIONS: list[Operation] = [
    *(savepoint, failing_unit, stream, read, family, change_collection)
]


# -- what is not: done at once, put off, or refused beside what it cannot be done beside


NOT_AWAITED: list[Callable[[Any, Any], Any]] = [
    lambda session, parent: session.add(Child(parent_id=1)),
    lambda session, parent: session.expire(parent, ["other"]),
    lambda session, parent: setattr(parent, "other", "new"),
    lambda session, parent: parent in session,
    lambda session, parent: list(session),
    lambda session, parent: session.dirty,
    lambda session, parent: session.is_modified(parent),
]


class Run:
    """One seed's tasks on one session."""

    def __init__(self, db: Database, session: Any, seed: int, cancels: bool) -> None:
        self._db = db
        self._session = session
        self._seed = seed
        self._cancels = cancels
        self.report = Report()
        self.parents: list[Any] = []
        #: Updates that were committed, and those whose commit was cancelled.
        self.sure = Counter[int]()
        self.unsure = Counter[int]()
        self.cancelled = self.refused = 0

    async def go(self, tasks: int, steps: int) -> None:
        session = self._session
        self.parents = [Parent(name="0") for _ in range(PARENTS)]
        session.add_all(self.parents)
        await session.commit()
        for parent in self.parents:
            await session.refresh(parent)
        workers = [asyncio.create_task(self._work(n, steps)) for n in range(tasks)]
        _, stuck = await asyncio.wait(workers, timeout=PATIENCE)
        self.report.stuck = len(stuck)
        self.report.overlaps = self._db.gate.overlaps
        for worker in stuck:
            worker.cancel()

    async def _work(self, number: int, steps: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        for _ in range(steps):
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            await self._note(self._step(chance))
            self.report.steps += 1

    async def _step(self, chance: random.Random) -> None:
        session, number = self._session, chance.randrange(PARENTS)
        parent, draw = self.parents[number], chance.random()
        if draw < 0.2:
            await self._count(number)
        elif draw < 0.3 and self._cancels:
            await self._cancel(chance, chance.choice(AWAITED + SECTIONS), parent)
        elif draw < 0.6:
            try:
                chance.choice(NOT_AWAITED)(session, parent)
            except ConcurrentAccessError:
                self.refused += 1  # beside another task's section, or not loaded
        else:
            await chance.choice(AWAITED + SECTIONS)(session, parent)

    async def _count(self, number: int) -> None:
        """An update that must not be lost: committed in its own section."""
        parent = self.parents[number]
        self.unsure[number] += 1
        async with critical_section(self._session, transaction="commit"):
            value = int(await parent.awaitable_attrs.name)
            await asyncio.sleep(0)
            parent.name = str(value + 1)
        self.unsure[number] -= 1
        self.sure[number] += 1

    async def _cancel(self, chance: Any, operation: Operation, parent: Any) -> None:
        async def go() -> None:
            await operation(self._session, parent)

        task = asyncio.create_task(go())
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(0)
        task.cancel()
        result = (await gather(task))[0]
        if isinstance(result, asyncio.CancelledError):
            self.cancelled += 1
        elif isinstance(result, BaseException):
            raise result

    async def _note(self, step: Any) -> None:
        try:
            await step
        except WorkLostError:
            self.report.losses += 1
        except Exception as error:
            self.report.errors[f"{type(error).__name__}: {str(error)[:200]}"] += 1

    async def check(self) -> None:
        """That the guard is free, and the books balance."""
        guard = self._session.guard
        if guard is not None and (guard.owner or guard.waiting or guard.readers):
            self.report.errors[f"not free: {guard.explain()}"] += 1
        await self._session.rollback()
        await self._session.close()
        rows = await self._db.rows(sa.select(Parent.id, Parent.name))
        found = {row.id: int(row.name) for row in rows if row.name is not None}
        for number in range(PARENTS):
            sure, value = self.sure[number], found[number + 1]
            if not sure <= value <= sure + self.unsure[number]:
                self.report.lost_updates += abs(value - sure)


async def torture(
    name: str, folder: Any, lock: Any, *, tasks: int, steps: int, seed: int
) -> Run:
    """Run it.  On SQLite nobody is cancelled: aiosqlite may leave the file locked.

    :param lock: ``None`` for a plain ``AsyncSession``.
    """
    async with database(name, folder, unguarded=lock is None) as db:
        session = db.plain() if lock is None else db.session(lock)
        run = Run(db, session, seed, cancels=name != "sqlite")
        await run.go(tasks, steps)
        if lock is not None and not run.report.stuck:
            await run.check()
        elif lock is None:
            await gather(session.close())
        return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", default="sqlite", help="or postgresql")
    parser.add_argument("--lock", nargs="+", default=["rlock", "rw"])
    parser.add_argument("--tasks", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--steps", type=int, default=200, help="of each task")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument(
        "--minutes", type=float, help="go on with further seeds for so long"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    clean, began = True, time.monotonic()
    for seed in itertools.count(options.seed):
        if options.minutes is None and seed == options.seed + options.seeds:
            break
        if options.minutes and time.monotonic() - began > options.minutes * 60:
            break
        for lock, tasks in itertools.product(options.lock, options.tasks):
            with tempfile.TemporaryDirectory() as folder:
                run = asyncio.run(
                    torture(
                        options.database,
                        folder,
                        lock,
                        tasks=tasks,
                        steps=options.steps,
                        seed=seed,
                    )
                )
            clean = clean and run.report.is_clean
            named = f"seed {seed}, lock {lock}, {tasks} tasks"
            print(f"{named}: {run.report}, {run.cancelled} cancelled", flush=True)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
