"""Owners: the flows of control that can hold a guard.

An :class:`Owner` stands for one flow of control, here a thread.  (Tasks are owners as
well, see ``task.py``.)  Guards never deal with threads themselves.  They call
``current_owner()`` and compare its results by identity.

A thread's identifier cannot be the owner, because the system reuses it: a new thread
with the identifier of a dead one would hold all that the dead thread left held.
"""

from __future__ import annotations

import os
import sys
import threading
from asyncio import get_running_loop
from inspect import CO_COROUTINE
from threading import get_ident
from types import BuiltinFunctionType, FrameType
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Protocol

if TYPE_CHECKING:
    from .access import Lock

from ..errors import SharedSessionError

#: Frames of these packages are skipped to find the application's line of an owner.
_INNER_PACKAGES = (
    *("sharedsession", "sqlalchemy", "contextlib", "threading", "asyncio"),
    *("concurrent", "queue", "logging", "selectors", "socket", "_collections_abc"),
)

#: The coroutines of these packages run the cells of notebooks.
_NOTEBOOK_PACKAGES = ("IPython", "ipykernel")

#: Called with each owner that has ended; ``ownership.py`` registers its cleanup here.
on_death: list[Callable[[Owner], None]] = []


class Waitable(Protocol):
    """Something that an owner can wait for because other owners have it."""

    def blockers(self) -> list[Owner]: ...


#: The ``thread`` of an owner that is not a thread.
NO_THREAD: Any = None


class Owner:
    """One thread, as the guards see it."""

    __slots__ = (
        *("thread", "ident", "native_id", "alive", "busy"),
        *("waiting_for", "accepts_window", "sections", "__weakref__"),
    )

    #: The word for this kind of owner in messages.
    noun: ClassVar[str] = "thread"
    #: Whether this owner acts for a party, which may end before an operation does.
    is_member: ClassVar[bool] = False
    #: The number of operations that run, of a member of a party only.
    operations = 0

    def __init__(self, thread: threading.Thread) -> None:
        self.thread = thread
        #: Python's and the system's identifier of the thread that made this owner.
        self.ident = get_ident()
        self.native_id = threading.get_native_id()
        #: False once the thread has ended.
        self.alive = True
        #: Whether this owner is entering or leaving a guard, or waits for one.  A
        #: finalizer or a signal handler that runs meanwhile is the same owner.
        self.busy = False
        #: The hold numbers of the sections that this owner was started in.
        self.sections: frozenset[int] = frozenset()
        #: What this owner waits for.  Set by the owner, cleared by the thread that
        #: admits the owner.
        self.waiting_for: Waitable | None = None
        #: True from the begin of an optimistic read's first attempt until it enters the
        #: guard: if a window opens meanwhile, it need not enter.
        self.accepts_window = False

    @property
    def flow(self) -> Any:
        """The object that this owner stands for, as users know it: a Thread."""
        return self.thread

    @property
    def party(self) -> Owner:
        """The owner to which work and losses are attributed; see :func:`one_owner`."""
        return self

    @property
    def name(self) -> str:
        if isinstance(self.thread, threading._DummyThread):
            return _name_of_foreign_thread(self)
        return f"thread {self.thread.name!r}"

    def has_ended(self) -> bool:
        """Whether the thread is dead although its death was not reported."""
        # ``sys._current_frames()`` never lists a greenlet of gevent.
        listed = not _HAS_REAL_THREADS or self.ident in sys._current_frames()
        return self.alive and not listed

    def keeps(self, guard: Any) -> None:
        """Note that this owner holds *guard*.

        Nothing to do for a thread, because every guard is told when a thread ends.
        """

    def can_wait(self) -> bool:
        """Whether a wait of this owner blocks nothing else, such as an event loop."""
        try:
            get_running_loop()
        except RuntimeError:
            return True
        return is_in_cell(sys._getframe())

    def parking(self, make_lock: Callable[[], Lock]) -> Lock:
        """Return a lock to wait on.

        The owner acquires the lock twice; another thread wakes it by a release.
        """
        return make_lock()

    def where(self) -> str:
        """The application's line that this owner runs now, as ``file:line``."""
        ident = self.thread.ident
        frame = None if ident is None else sys._current_frames().get(ident)
        while frame is not None and is_inner(frame):
            frame = frame.f_back
        if frame is None or not self.alive:
            return "a line that is not known"
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def __repr__(self) -> str:
        return f"<Owner {self.name}{'' if self.alive else ', ended'}>"


def _name_of_foreign_thread(owner: Owner) -> str:
    """Name a thread that the module ``threading`` did not start."""
    return f"foreign thread {owner.thread.name!r} (native id {owner.native_id})"


def is_inner(frame: FrameType, packages: tuple[str, ...] = _INNER_PACKAGES) -> bool:
    """Whether *frame* runs code of these packages, not of the application."""
    module: str = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in packages


def is_in_cell(frame: FrameType | None) -> bool:
    """Whether *frame* runs in a notebook cell, outside of the cell's own coroutines.

    A notebook runs its cells in its own event loop, which each cell blocks anyway.
    """
    while frame is not None and not frame.f_code.co_flags & CO_COROUTINE:
        frame = frame.f_back
    return frame is not None and is_inner(frame, _NOTEBOOK_PACKAGES)


class _Life:
    """Reports the death of a thread: only the thread's local storage refers to it."""

    __slots__ = ("owner", "process")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.process = os.getpid()

    def __del__(self, is_exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # A forked child and the interpreter's exit clear the storage of other threads,
        # which is no death to report.  The exit clears the names of this module first.
        if not is_exiting() and self.process == os.getpid():
            _end(self.owner)


class _Local(threading.local):
    life: _Life | None = None


local = _Local()

#: The thread owners that have not ended, by thread identifier.  Because identifiers are
#: reused, an owner that is found here for a new thread must have ended.
_owners: dict[int, Owner] = {}

#: Native identifiers of threads that are ending: only finalizers still run in them.
_ending: set[int] = set()

#: False if greenlets are presented as threads, as by gevent: then many threads have the
#: same native identifier.
_HAS_REAL_THREADS = isinstance(get_ident, BuiltinFunctionType)


def _end(owner: Owner) -> None:
    """Tell the guards that the thread of *owner* has ended; do so once."""
    if not owner.alive:
        return
    owner.alive = False
    if _owners.get(owner.ident) is owner:
        _owners.pop(owner.ident, None)
    if _HAS_REAL_THREADS and owner.native_id == threading.get_native_id():
        _ending.add(owner.native_id)
    for tell in on_death:
        tell(owner)


def introduce() -> Owner:
    """Make the owner of a thread that has none yet."""
    native_id, ident = threading.get_native_id(), get_ident()
    thread = threading.current_thread()
    if native_id in _ending:
        if isinstance(thread, threading._DummyThread):
            raise SharedSessionError(
                "A finalizer used a shared session while its thread was ending, so the "
                "session was left alone. Finish the work with the session in the "
                "function that the thread runs."
            )
        _ending.discard(native_id)  # the system reused the identifier
    earlier = _owners.get(ident)
    if earlier is not None:
        _end(earlier)
    owner = Owner(thread)
    # Atomic, because a finalizer may have introduced this thread meanwhile.
    life = local.__dict__.setdefault("life", _Life(owner))
    _owners[ident] = life.owner
    return life.owner  # type: ignore[no-any-return]


def thread_owner() -> Owner:
    """Return the owner that stands for the calling thread."""
    life = local.life
    return introduce() if life is None else life.owner
