"""Who is asking: the one place that knows what can hold a guard.

An :class:`Owner` stands for one flow of control.  Guards never look at threads
themselves; they ask ``current_owner()`` and compare what it returns by identity.
(Tasks are owners as well, see ``tasks.py``.)
A thread's identifier would not do: the system gives the number of a thread that
ended to the next one, which would then hold whatever the first one left held.
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
    from .terms import Lock

from .errors import SharedSessionError

#: Frames of these packages are ours, or work for us, when a holder's line is named.
_INNER_PACKAGES = (
    *("sharedsession", "sqlalchemy", "contextlib", "threading", "asyncio"),
    *("concurrent", "queue", "logging", "selectors", "socket"),
)

#: The coroutines of these packages run the cells of notebooks.
_NOTEBOOK_PACKAGES = ("IPython", "ipykernel")

#: Called with each owner whose thread ended; the guards register themselves here.
on_death: list[Callable[[Owner], None]] = []


class Waitable(Protocol):
    """What an owner can wait for: something that others have."""

    def blockers(self) -> list[Owner]: ...


class Owner:
    """One thread, as the guards see it."""

    __slots__ = (
        *("thread", "ident", "native_id", "alive", "busy"),
        *("waiting_for", "is_patient", "sections", "__weakref__"),
    )

    #: What it is called in a message.
    noun: ClassVar[str] = "thread"

    def __init__(self, thread: threading.Thread) -> None:
        self.thread = thread
        #: The thread that made this owner, as Python and as the system number it.
        self.ident = get_ident()
        self.native_id = threading.get_native_id()
        #: False once the thread has ended.
        self.alive = True
        #: Whether this owner is entering or leaving a guard, or waits for it.  A
        #: finalizer or a signal handler may run meanwhile, as the same owner.
        self.busy = False
        #: The numbers of the holds of sections that this owner was started in.
        self.sections: frozenset[int] = frozenset()
        #: What this owner waits for; written by the owner, cleared by who lets it in.
        self.waiting_for: Waitable | None = None
        #: Whether it gave up its place in a queue for a look, and does not again.
        self.is_patient = False

    @property
    def flow(self) -> Any:
        """What it stands for, as a user knows it."""
        return self.thread

    @property
    def party(self) -> Owner:
        """Whose work and losses this owner's are: see :func:`one_owner`."""
        return self

    @property
    def name(self) -> str:
        if isinstance(self.thread, threading._DummyThread):
            return _name_of_foreign_thread(self)
        return f"thread {self.thread.name!r}"

    def has_ended(self) -> bool:
        """Whether its thread is gone, though nothing told this owner."""
        # A greenlet that passes for a thread is never listed there.
        listed = not _HAS_REAL_THREADS or self.ident in sys._current_frames()
        return self.alive and not listed

    def keeps(self, guard: Any) -> None:
        """Note that this owner holds *guard*; a thread's end is told anyway."""

    def can_wait(self) -> bool:
        """Whether nobody but itself stands still while it waits."""
        try:
            get_running_loop()
        except RuntimeError:
            return True
        return is_in_cell(sys._getframe())

    def parking(self, make_lock: Callable[[], Lock]) -> Lock:
        """What it waits on: a lock that it acquires twice, and others release."""
        return make_lock()

    def where(self) -> str:
        """The application's line that this owner is at now, as ``file:line``."""
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
    """Name a thread that the module ``threading`` did not start, by what is known."""
    return f"foreign thread {owner.thread.name!r} (native id {owner.native_id})"


def is_inner(frame: FrameType, packages: tuple[str, ...] = _INNER_PACKAGES) -> bool:
    """Whether its line is none of the application's."""
    module: str = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in packages


def is_in_cell(frame: FrameType | None) -> bool:
    """Whether it is in a cell of a notebook, outside of any coroutine of the cell's.

    A notebook runs its cells in its own loop, which stands still for each anyway.
    """
    while frame is not None and not frame.f_code.co_flags & CO_COROUTINE:
        frame = frame.f_back
    return frame is not None and is_inner(frame, _NOTEBOOK_PACKAGES)


class _Life:
    """Kept in a thread's local storage only, so it goes when the thread ends."""

    __slots__ = ("owner", "process")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.process = os.getpid()

    def __del__(self) -> None:
        # A fork's child and the interpreter's exit clear the storage of other threads.
        if self.process == os.getpid() and not sys.is_finalizing():
            _end(self.owner)


class _Local(threading.local):
    life: _Life | None = None


_local = _Local()

#: The thread owners that have not ended, by thread identifier.  Identifiers are reused,
#: so this table only tells that an earlier owner with the same one must have ended.
_owners: dict[int, Owner] = {}

#: Native identifiers of threads whose local storage is gone: they run finalizers only.
_ending: set[int] = set()

#: False where greenlets pass for threads, as with gevent: many have one native number.
_HAS_REAL_THREADS = isinstance(get_ident, BuiltinFunctionType)


def _end(owner: Owner) -> None:
    """Tell the guards, once, that the thread of *owner* has ended."""
    if not owner.alive:
        return
    owner.alive = False
    if _owners.get(owner.ident) is owner:
        _owners.pop(owner.ident, None)
    if _HAS_REAL_THREADS and owner.native_id == threading.get_native_id():
        _ending.add(owner.native_id)
    for tell in on_death:
        tell(owner)


def _introduce() -> Owner:
    """Make the owner of a thread that asks for the first time."""
    native_id, ident = threading.get_native_id(), get_ident()
    thread = threading.current_thread()
    if native_id in _ending:
        if isinstance(thread, threading._DummyThread):
            raise SharedSessionError(
                "A finalizer used a shared session while its thread was ending, so the "
                "session was left alone. Finish the work with the session in the "
                "function that the thread runs."
            )
        _ending.discard(native_id)  # the system has given the number to a new thread
    earlier = _owners.get(ident)
    if earlier is not None:
        _end(earlier)
    owner = Owner(thread)
    # One step: a finalizer that runs before it may have introduced this thread.
    life = _local.__dict__.setdefault("life", _Life(owner))
    _owners[ident] = life.owner
    return life.owner  # type: ignore[no-any-return]


def thread_owner() -> Owner:
    """Return the owner that stands for the calling thread."""
    life = _local.life
    return _introduce() if life is None else life.owner
