"""Asyncio tasks as owners: the current task, its sections, and how a task waits.

A task that is started inside a section *belongs* to the section: the task inherits the
context, which contains the number of the section's hold.  The numbers of sections that
have ended mean nothing to any guard.  Therefore a task that outlives its section does
not belong to it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import weakref
from asyncio import _get_running_loop
from contextvars import ContextVar
from types import FrameType
from typing import Any, Awaitable, Callable, ClassVar, Coroutine, Iterator, TypeVar

from ..internals import greenlets
from .access import Lock
from .owner import (
    NO_THREAD,
    Owner,
    introduce,
    is_in_cell,
    is_inner,
    local,
    thread_owner,
)
from .party import current_party

_T = TypeVar("_T")

#: The hold numbers of all sections that the task is in, or was started in.
_sections: ContextVar[frozenset[int]] = ContextVar(
    "sharedsession_sections", default=frozenset()
)

#: The owner that the running code acts for, unless that is the running task.
_acting_for: ContextVar[Owner | None] = ContextVar(
    "sharedsession_acting_for", default=None
)


class TaskOwner(Owner):
    """One task, as the guards see it."""

    __slots__ = ("_task", "_name", "_guards")

    noun: ClassVar[str] = "task"

    def __init__(self, task: asyncio.Task[Any]) -> None:
        super().__init__(NO_THREAD)
        # A weak reference, because a guard may keep an owner much longer than the
        # application keeps the task.
        self._task = weakref.ref(task)
        self._name = task.get_name()
        self._guards: weakref.WeakSet[Any] | None = None

    @property
    def alive(self) -> bool:
        task = self._task()
        return task is not None and not task.done()

    @alive.setter
    def alive(self, value: bool) -> None:
        """Ignored: the task itself shows whether it is done."""

    @property
    def flow(self) -> asyncio.Task[Any] | None:
        return self._task()

    @property
    def name(self) -> str:
        task = self._task()
        if task is not None:
            self._name = task.get_name()
        return f"task {self._name!r}"

    def where(self) -> str:
        task = self._task()
        if task is not None and not task.done():
            running = task is _running_task()
            for frame in _running_frames() if running else _suspended_frames(task):
                if not is_inner(frame):
                    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return "a line that is not known"

    def has_ended(self) -> bool:
        return False  # the end of a task is always reported

    def can_wait(self) -> bool:
        return greenlets.in_greenlet()

    def parking(self, make_lock: Callable[[], Lock]) -> Lock:
        return _Parking()

    def keeps(self, guard: Any) -> None:
        """Have *guard* release what this owner holds once the task has ended."""
        task = self._task()
        if self._guards is None and task is not None:
            self._guards = weakref.WeakSet()
            task.add_done_callback(self._ended)
        if self._guards is not None:
            self._guards.add(guard)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        for guard in tuple(self._guards or ()):
            guard.release_dead_owner(self)


#: The owner of each task.  The keys are weak, because this table must not keep a task.
_owners: weakref.WeakKeyDictionary[asyncio.Task[Any], TaskOwner] = (
    weakref.WeakKeyDictionary()
)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def current_task_owner() -> Owner:
    """Return the owner of the running task; outside of tasks, that of the thread."""
    acting_for = _acting_for.get()
    if acting_for is not None:
        return acting_for
    task = _running_task()
    return thread_owner() if task is None else _owner_of(task)


def _owner_of(task: asyncio.Task[Any]) -> Owner:
    owner = _owners.get(task)
    if owner is None:
        owner = _owners.setdefault(task, TaskOwner(task))
    return owner


def current_owner() -> Owner:
    """Return the owner of the operation that the caller is about to begin.

    The owner is the running task if an event loop runs in this thread, else the thread.
    A plain cell of a notebook counts as its thread although it runs in the notebook's
    event loop.  Inside :func:`one_owner` the owner is a member of that party.
    """
    if _get_running_loop() is None:
        # thread_owner() inlined, because every read in a section calls this.
        life = local.life
        owner = introduce() if life is None else life.owner
    else:
        task = _running_task()
        in_cell = "IPython" in sys.modules and is_in_cell(sys._getframe())
        owner = thread_owner() if task is None or in_cell else _owner_of(task)
    party = current_party.get()
    return owner if party is None else party.acting_for(owner)


@contextlib.contextmanager
def acting_for(owner: Owner) -> Iterator[None]:
    """Let the block act for *owner*, which does nothing else meanwhile."""
    token = _acting_for.set(owner)
    try:
        yield
    finally:
        _acting_for.reset(token)


@contextlib.contextmanager
def on_behalf_of(owner: Owner) -> Iterator[None]:
    """Like :func:`acting_for`, for a call that *owner* deferred in another task.

    The call runs in the sections of *owner*.  Otherwise *owner*, which may be waiting
    to enter, would seem to belong to the sections of the running task.
    """
    token = _sections.set(owner.sections)
    try:
        with acting_for(owner):
            yield
    finally:
        _sections.reset(token)


# -- sections


def note_sections(me: Owner) -> None:
    """Store the sections of *me*, the caller, where other tasks can read them."""
    me.sections = _sections.get()


def enter_section(number: int) -> None:
    _sections.set(_sections.get() | {number})


def leave_section(number: int) -> None:
    """Remove the section from this context.

    A task that inherited the number keeps it, which is harmless.
    """
    sections = _sections.get()
    if number in sections:
        _sections.set(sections - {number})


# -- waiting


class _Parking:
    """Like a lock, but a second ``acquire()`` suspends the task, not the thread.

    It suspends the greenlet in which SQLAlchemy runs the operation, and with it the
    task.  The event loop goes on.  Any thread may call ``release()``.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._released: asyncio.Future[None] | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._released is None:
            self._released = self._loop.create_future()
            return True
        got: bool = greenlets.await_only(self._wait(self._released, timeout))
        return got

    async def _wait(self, released: asyncio.Future[None], timeout: float) -> bool:
        # asyncio.wait() does not cancel the future if this task is cancelled.
        await asyncio.wait({released}, timeout=None if timeout < 0 else timeout)
        return released.done()

    def release(self) -> None:
        if _running_loop() is self._loop:
            self._wake()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        assert self._released is not None
        if not self._released.done():  # woken already, and then cancelled
            self._released.set_result(None)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: Any) -> None:
        self.release()


async def to_the_end(
    function: Callable[..., Coroutine[Any, Any, _T]], *args: Any
) -> _T:
    """Await ``function(*args)`` to its end even if this task is cancelled meanwhile.

    The call runs in a new task, which acts for this one.
    """
    owner = current_task_owner()
    sections = _sections.get()

    async def act() -> _T:
        try:
            with acting_for(owner):
                return await function(*args)
        finally:
            ended.update(sections - _sections.get())

    ended: set[int] = set()
    task = asyncio.create_task(act())
    cancelled: BaseException | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    _sections.set(_sections.get() - ended)
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # otherwise asyncio logs that it was never retrieved
        raise cancelled
    return task.result()


# -- the line at which a task is

_OPERATIONS = ("sharedsession", "sqlalchemy")


def _running_frames() -> Iterator[FrameType]:
    """Yield the frames, innermost first, through the greenlets of SQLAlchemy."""
    frame: FrameType | None = sys._getframe(1)
    greenlet = greenlets.current_greenlet()
    while frame is not None:
        yield frame
        frame = frame.f_back
        if frame is None and greenlet is not None:
            greenlet = greenlet.parent
            frame = None if greenlet is None else greenlet.gr_frame


def _suspended_frames(task: asyncio.Task[Any]) -> list[FrameType]:
    """Return the frames, innermost first, without those of a database driver."""
    frames: list[FrameType] = []
    coroutine: Any = task.get_coro()
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is None:
            frame = getattr(coroutine, "gi_frame", None)
        if frame is not None:
            if is_inner(frame, _OPERATIONS):
                break
            frames.append(frame)
        coroutine = _awaited_by(coroutine)
    return frames[::-1]


def _awaited_by(coroutine: Awaitable[Any]) -> Any:
    awaited = getattr(coroutine, "cr_await", None)
    return getattr(coroutine, "gi_yieldfrom", None) if awaited is None else awaited
