"""Small programs of several tasks on one guard, and what must hold of each run.

A program is one script for each task, a script a string of operations by name, for
example ``("gather look", "set change")``.  The guard, the sections and the tasks are
the real ones; the session is one that counts, and its database answers when the
scheduler says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sharedsession import (
    ConcurrentAccessError,
    LockTimeout,
    SharedSessionError,
    UpgradeError,
)
from sharedsession.asyncio import AsyncSharedSession
from sharedsession.asyncio.guard import TaskGuard
from sharedsession.guard.access import CHANGE, END, LOAD, STREAM, WRITE, Kind
from sharedsession.guard.task import to_the_end
from sharedsession.internals import greenlets
from sharedsession.objects import hidden
from sharedsession.objects.setting import setter_of
from sharedsession.operations.operation import optimistic_read, run
from sharedsession.session.async_sections import AsyncSection
from sharedsession.session.sections import CriticalSection, ReadSection

from .aio_scheduler import Loop
from .guard_programs import attached, attaching, turns

Program = tuple[str, ...]

#: Kinds that let tasks wait, and those that do not.
KINDS = ("rlock", "rw", "detect", "confine")


@dataclass(eq=False)
class Block:
    """A section that is open, or a stream, as the tests know it."""

    reads: bool
    #: Whether what is not awaited may be done between two steps of it.
    streams: bool = False
    is_open: bool = True


#: The sections that the running task is in, or was started in.
_blocks: ContextVar[tuple[Block, ...]] = ContextVar("blocks", default=())


class Broken(Exception):
    """What a database that fails raises."""


class FakeRecovery:
    """The owner that comes in next hears of what was left unfinished."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.guard = world.guard

    def admit(self, second: Any) -> None:
        pass

    def wrote(self, owner: Any) -> None:
        self.guard.last_writer = owner

    def recover(self, me: Any, access: Any) -> None:
        self.guard.last_failure = None
        if greenlets.in_greenlet():
            self.world.left_unfinished += self.guard.abandoned_by is not None
            self.guard.abandoned_by = None
            self.guard.unsettled = self.guard.attention = False


class World:
    """A guard, what it guards, and what is known of who is inside."""

    def __init__(self, loop: Loop, kind: str) -> None:
        self.loop = loop
        self.kind = kind
        self.guard = TaskGuard(Kind(kind), clock=loop.time)
        self.session = FakeSession(self)
        self.guard.session = lambda: self.session
        self.guard.recovery = FakeRecovery(self)
        # Equal, unless an operation that changes them is in flight
        self.left = self.right = 0
        self.changes = self.timeouts = self.cancelled = self.refused = 0
        #: Operations in flight, and sections that are open.
        self.in_flight: list[str] = []
        self.blocks: list[Block] = []
        #: Sections from before they are entered until after they were left.
        self.around: list[Block] = []
        #: What was put off, by whom, in order; what of it is done.
        self.asked: list[tuple[Any, int]] = []
        self.done: list[int] = []
        #: What was set; what of it the next flush writes, and what was written.
        self.sets = 0
        self.unwritten: set[int] = set()
        self.written: set[int] = set()
        #: Who is under way, and whoever met somebody there.
        self.under_way: set[Any] = set()
        self.overlapped: set[Any] = set()
        self.left_unfinished = self.ended_inside = 0
        self.garbage: list[Any] = []

    # -- what must hold while somebody is inside

    @contextlib.contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Be in flight, which nobody else may be."""
        beside_readers = self.kind == "rw" and self.guard.reads_only()
        self._check_alone(name, beside_readers)
        self._check_put_off()
        may_change = self.guard.held == "exclusive"
        assert may_change or name == "load", f"{name}, and readers may come in"
        self.in_flight.append(name)
        try:
            yield
        finally:
            self.in_flight.remove(name)
        self._check_alone(name, beside_readers)

    @contextlib.contextmanager
    def block(self, reads: bool) -> Iterator[None]:
        name = "a read section" if reads else "a section"
        shares = reads and self.kind == "rw"
        self._check_alone(name, shares, shares)
        self._check_put_off()
        block = Block(reads)
        self.blocks.append(block)
        before = _blocks.get()
        _blocks.set((*before, block))
        try:
            yield
        finally:
            self.blocks.remove(block)
            block.is_open = False
            _blocks.set(before)

    def _check_alone(
        self, name: str, beside_readers: bool, beside_loads: bool = False
    ) -> None:
        """Nothing is in flight, and no section open but those that are one's own.

        Readers that share go beside each other, and what they load beside them.
        """
        for other in self.in_flight:
            assert beside_loads and other == "load", f"{name} beside {other}"
        for block in self.strange_blocks():
            assert beside_readers and block.reads, f"{name} beside another's {block}"

    def _check_put_off(self) -> None:
        """What this task put off comes before anything that it awaits."""
        me = self.guard.current_owner()
        left = [n for owner, n in self.asked if owner is me and n not in self.done]
        assert not left, f"{me.name} put off {left}"

    def strange_blocks(self) -> list[Block]:
        return [block for block in self.blocks if block not in _blocks.get()]

    def watch(self) -> None:
        guard = self.guard
        assert (
            guard._exclusive_owner() is None or not guard.reading
        ), "a reader beside a writer"
        assert guard._step is None, "a step did not end"
        assert not guard.is_in_bookkeeping()
        assert (
            guard._exclusive_owner() is None or guard.version is None
        ), "a version, and a writer"

    # -- a script

    def spawn(self, number: int, script: str) -> None:
        async def perform() -> None:
            for name in script.split():
                await self.perform(name)

        self.loop.spawn(f"task-{number}", perform())

    async def perform(self, name: str) -> None:
        name, _, how = name.partition("!")
        me = self.loop.current()
        self.under_way.add(me)
        if len(self.under_way) > 1:
            self.overlapped |= self.under_way
        me.cancels = int(how == "cancelled")
        try:
            await OPERATIONS[name](self)
            assert me.cancels or not how, "cancelled, and it does not say so"
        except LockTimeout:
            self.timeouts += 1
        except Broken:
            pass
        except asyncio.CancelledError:
            assert how == "cancelled" and not me.cancels
            self.cancelled += 1
        except ConcurrentAccessError as error:
            self._check_refusal(me, name, error)
            self.refused += 1
        finally:
            me.cancels = 0
            self.under_way.discard(me)
            self.overlapped.discard(me)
        self.check_out()

    def _check_refusal(self, me: Any, name: str, error: Exception) -> None:
        if self.kind == "detect":
            meets_family = "gather" in name or "child" in name
            met = meets_family or me in self.overlapped
            assert met, "refused, and nobody else was there"
        elif self.kind == "rlock" or self.kind == "rw":
            strange = [it for it in self.around if it not in _blocks.get()]
            assert strange and "section" in str(error), f"refused: {error}"

    def check_out(self) -> None:
        """Nothing of an operation that ended is left in the guard."""
        guard, owner = self.guard, self.guard.current_owner()
        for turn in turns(guard):
            is_lender = turn is not guard.turn and not turn.keeps
            assert turn.owner is not owner or is_lender, "still in"
        assert owner not in guard.reading, "still a reader"
        assert all(waiter.owner is not owner for waiter in guard.queue), "still waits"
        assert owner.waiting_for is None, "is still thought to wait"

    # -- at the end of a run

    def check_end(self) -> Any:
        check_free(self.guard)
        assert not self.in_flight and not self.blocks
        assert self.left == self.right == self.changes
        for owner in {owner for owner, _ in self.asked}:
            mine = [n for other, n in self.asked if other is owner]
            assert [n for n in self.done if n in mine] == mine, "put off, not done"
        assert len(self.done) == len(self.asked), "something was done twice"
        assert len(self.written | self.unwritten) == self.sets, "a set was lost"
        last = int(self.guard.abandoned_by is not None)
        assert self.left_unfinished + last <= self.ended_inside
        stats = self.guard.stats()
        assert stats.timeouts == self.timeouts <= stats.contended
        assert 0 <= stats.longest_wait <= stats.wait_seconds
        assert stats.longest_hold >= 0
        return SimpleNamespace(
            changes=self.changes,
            timeouts=self.timeouts,
            cancelled=self.cancelled,
            refused=self.refused,
        )


def check_free(guard: Any) -> None:
    assert guard.turn is None and guard.running is None, guard.explain()
    assert not guard.reading and not guard.queue and guard._step is None
    assert not guard.put_off, "put off, and nobody did it"
    assert not guard.abandoned_holds, "a forgotten hold was never released"
    assert guard not in hidden.watched
    may_have_none = guard.kind is Kind.CONFINE or guard.unsettled
    assert guard.version is not None or may_have_none, "no version, and nobody is in"


class FakeSession:
    """What a section asks of its session, and an AsyncSharedSession of itself."""

    _transaction = None
    _flushing = False

    def __init__(self, world: World) -> None:
        self.guard = world.guard
        self._world = world

    def _has_to_tidy(self) -> bool:
        left = (
            self.guard.has_put_off(self.guard.current_owner()) or self.guard.attention
        )
        return left or bool(self._world.unwritten)

    def _autoflush(self) -> None:
        run(self.guard, CHANGE, self._world.flush)

    def put_off(self, name: str, function: Any) -> None:
        session: Any = self
        AsyncSharedSession._do_or_put_off(session, name, function, (), {})


# -- what operations do inside


def _answer(world: World) -> None:
    greenlets.await_only(world.loop.ask_database())


def _change(world: World) -> None:
    with world.operation("a change"):
        assert world.left == world.right
        world.left += 1
        try:
            _answer(world)
        except BaseException:
            world.left -= 1  # the database undoes it
            raise
        world.right += 1
        world.changes += 1


def _fail(world: World) -> None:
    with world.operation("a failure"):
        _answer(world)
        raise Broken


def _load(world: World) -> None:
    # Who may only read flushes nothing on the way, so it may be beside readers, even if
    # the section that it is of has just ended.
    with world.operation("load" if world.guard.reads_only() else "a load"):
        assert world.left == world.right
        before = world.left
        _answer(world)
        assert world.left == world.right == before


def _load_and_change(world: World) -> None:
    """A load with a listener that changes something, if it may."""
    _load(world)
    with contextlib.suppress(UpgradeError):
        run(world.guard, WRITE, _change, world)


def _flush(world: World) -> None:
    """Like SQLAlchemy's: at its end everything counts as written."""
    with world.operation("a flush"):
        seen = set(world.unwritten)
        world.session._flushing = True
        try:
            _answer(world)
        finally:
            world.session._flushing = False
        assert world.unwritten == seen, "set beside the flush, and seen by it"
        world.written |= seen
        world.unwritten.clear()


World.flush = _flush  # type: ignore[attr-defined]


def _seen(world: World) -> int:
    return world.left


class FakeChange:
    """A change that is hidden from an operation in flight."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number

    def hide(self) -> None:
        self._world.unwritten.discard(self._number)

    def show(self) -> None:
        self._world.unwritten.add(self._number)


class FakeAttribute:
    """What setting an attribute asks of its implementation."""

    def __init__(self, world: World) -> None:
        self._world = world

    def set_unguarded(self, *args: Any) -> None:
        world = self._world
        assert all(
            it.streams for it in world.strange_blocks()
        ), "set in another task's section"
        world.sets += 1
        world.unwritten.add(world.sets)
        noted: Any = hidden.watched.get(world.guard)
        if noted is not None:
            noted[world.sets, "attribute"] = FakeChange(world, world.sets)


# -- operations

Operation = Callable[[World], Any]


def awaited(access: Any, function: Any) -> Operation:
    async def perform(world: World) -> None:
        await greenlets.greenlet_spawn(run, world.guard, access, function, world)

    return perform


change = awaited(WRITE, _change)
load = awaited(LOAD, _load)
load_and_change = awaited(LOAD, _load_and_change)


async def look_around(world: World) -> None:
    """A look that can wait."""
    await greenlets.greenlet_spawn(optimistic_read, world.guard, _seen, world)


async def glance(world: World) -> None:
    """A look that cannot wait."""
    optimistic_read(world.guard, _glanced_at, world)


def _glanced_at(world: World) -> None:
    assert all(
        it.reads or it.streams for it in world.strange_blocks()
    ), "seen into a section"


async def set_attribute(world: World) -> None:
    set_value = setter_of(FakeAttribute(world), "state", None)
    set_value(None, attached(world.guard), None)


async def put_off(world: World) -> None:
    number = len(world.asked)
    here = _blocks.get()

    def function(session: Any) -> None:
        run(world.guard, WRITE, body)

    def body() -> None:
        assert not world.in_flight, f"beside {world.in_flight}"
        assert all(
            it in here or it.streams for it in world.blocks
        ), "in another task's section"
        world.done.append(number)

    me = world.guard.current_owner()
    world.asked.append((me, number))
    try:
        world.session.put_off("expire_all", function)
    except BaseException:
        world.asked.remove((me, number))
        raise


async def pause(world: World) -> None:
    """Wait for something that has nothing to do with the session."""
    await world.loop.ask_database()


async def to_its_end(world: World) -> None:
    end = awaited(END, _change)
    await to_the_end(end, world)


@contextlib.asynccontextmanager
async def section(
    world: World, reads: bool = False, timeout: float | None = None
) -> AsyncIterator[None]:
    session: Any = world.session
    made: Any = ReadSection if reads else CriticalSection
    around = Block(reads)
    world.around.append(around)
    try:
        async with AsyncSection(session, made(session, timeout)):
            with world.block(reads):
                yield
    finally:
        world.around.remove(around)


async def critical(world: World, timeout: float | None = None) -> None:
    async with section(world, timeout=timeout):
        before = world.left
        await change(world)
        assert optimistic_read(world.guard, _seen, world) == before + 1
        await set_attribute(world)
        await put_off(world)


async def nested(world: World) -> None:
    async with section(world):
        await critical(world)
        async with section(world, reads=True):
            await refused(change, world)
        await change(world)


async def refused(write: Operation, world: World) -> None:
    try:
        await write(world)
    except UpgradeError:
        return
    raise AssertionError("a write inside a read section")


async def read(world: World, timeout: float | None = None) -> None:
    async with section(world, reads=True, timeout=timeout):
        before = world.left
        await load(world)
        assert (
            optimistic_read(world.guard, _seen, world) == before
        ), "changed under a reader"


async def read_and_write(world: World) -> None:
    async with section(world, reads=True):
        await refused(change, world)
        await refused(critical, world)
        await refused(set_attribute, world)


async def gather(world: World) -> None:
    async with section(world):
        await asyncio.gather(change(world), load(world))


async def gather_steps(world: World) -> None:
    """A child sets and puts off beside its sibling's operation."""

    async def step() -> None:
        await set_attribute(world)
        await put_off(world)

    async with section(world):
        await asyncio.gather(awaited(CHANGE, _flush)(world), step())


async def gather_sections(world: World) -> None:
    async with section(world):
        await asyncio.gather(critical(world), change(world), return_exceptions=True)


async def gather_readers(world: World) -> None:
    async with section(world, reads=True):
        await asyncio.gather(load(world), refused(change, world))


async def beside_a_child(world: World) -> None:
    async with section(world):
        child = asyncio.create_task(change(world))
        await change(world)
        await child


async def beside_a_cancelled_child(world: World) -> None:
    async with section(world):
        child = asyncio.create_task(critical(world))
        world.loop.actor(child).cancels = 1
        await change(world)
        await asyncio.wait({child})


async def outlive(world: World) -> None:
    """A child begins in the section, and goes on after it, as a stranger."""
    async with section(world):
        asyncio.create_task(_twice(change, world))
        await pause(world)


async def outlive_reading(world: World) -> None:
    async with section(world, reads=True):
        asyncio.create_task(_tolerant(load_and_change, world))
        await pause(world)


async def outlive_in_a_section(world: World) -> None:
    async with section(world):
        asyncio.create_task(critical(world))
        await pause(world)


async def outlive_the_inner_one(world: World) -> None:
    """A child reads on when its parent is back in a section that may write."""
    async with section(world):
        async with section(world, reads=True):
            asyncio.create_task(_tolerant(load_and_change, world))
            await pause(world)
        await change(world)


async def _twice(operation: Operation, world: World) -> None:
    await operation(world)
    await operation(world)


async def _tolerant(operation: Operation, world: World) -> None:
    with contextlib.suppress(SharedSessionError):
        await _twice(operation, world)


async def stream(world: World) -> None:
    """What is kept between steps, and given back."""
    hold = await greenlets.greenlet_spawn(run, world.guard, LOAD, _open_stream, world)
    block = Block(False, streams=True)
    world.blocks.append(block)
    before = _blocks.get()
    _blocks.set((*before, block))
    try:
        await load(world)  # the next row
        await pause(world)
    finally:
        world.blocks.remove(block)
        _blocks.set(before)
        hold.release()


def _open_stream(world: World) -> Any:
    with world.operation("a load"):
        _answer(world)
        return world.guard.keep(STREAM)


async def end_inside(world: World, has_child: bool = False) -> None:
    """A task that enters a section and ends; somebody has the section still."""
    session: Any = world.session
    block = AsyncSection(session, CriticalSection(session, None))
    around = Block(False)

    async def enter() -> None:
        await block.__aenter__()
        world.ended_inside += 1
        world.garbage.append(block)
        if has_child:
            asyncio.create_task(change(world))
            await pause(world)

    world.around.append(around)  # for good: when it is noticed is chance
    await asyncio.wait({asyncio.create_task(enter())})


async def end_while_lending(world: World) -> None:
    await end_inside(world, has_child=True)


def timed(operation: Any) -> Operation:
    return lambda world: operation(world, timeout=1.0)


OPERATIONS: dict[str, Operation] = {
    "change": change,
    "load": load,
    "look": look_around,
    "load-change": load_and_change,
    "flush": awaited(CHANGE, _flush),
    "fail": awaited(WRITE, _fail),
    "end": to_its_end,
    "glance": glance,
    "set": set_attribute,
    "put-off": put_off,
    "pause": pause,
    "critical": critical,
    "critical-timeout": timed(critical),
    "nested": nested,
    "read": read,
    "read-timeout": timed(read),
    "read-write": read_and_write,
    "gather": gather,
    "gather-steps": gather_steps,
    "gather-sections": gather_sections,
    "gather-readers": gather_readers,
    "child": beside_a_child,
    "child-cancelled": beside_a_cancelled_child,
    "outlive": outlive,
    "outlive-reading": outlive_reading,
    "outlive-section": outlive_in_a_section,
    "outlive-inner": outlive_the_inner_one,
    "stream": stream,
    "end-inside": end_inside,
    "end-lending": end_while_lending,
}

#: Not a step: only what is suspended can be cancelled.
CANCELLED = [
    *("change", "load", "end", "critical", "read", "nested"),
    *("gather", "gather-steps", "gather-sections", "gather-readers"),
    *("child", "outlive", "outlive-reading", "outlive-inner", "stream"),
]

ALL = [*OPERATIONS, *(f"{name}!cancelled" for name in CANCELLED)]


def program(kind: str, scripts: Program) -> Callable[[Loop], Any]:
    """One run of a program, for a loop to explore."""
    logging.getLogger("sharedsession").setLevel(logging.ERROR)

    @attaching()
    def run(loop: Loop) -> Any:
        world = World(loop, kind)
        loop.watch = world.watch
        loop.expected = (SharedSessionError, Broken)
        loop.describe = lambda: f"{world.guard!r} {world.in_flight}"
        for number, script in enumerate(scripts):
            world.spawn(number, script)
        loop.run()
        world.garbage.clear()
        if world.guard.attention:  # what was left is for whoever comes next
            world.spawn(len(scripts), "change")
            loop.run()
        return world.check_end()

    return run
