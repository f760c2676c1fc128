"""Who is asking: the one place that knows what can hold a guard.

An :class:`Owner` stands for one flow of control.  Guards never look at threads
themselves; they ask :func:`current_owner` and compare what it returns by identity.
(Those of asyncio sessions ask for tasks instead, see ``tasks.py``.)
A thread's identifier would not do: the system gives the number of a thread that
ended to the next one, which would then hold whatever the first one left held.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from asyncio import get_running_loop
from inspect import CO_COROUTINE
from threading import get_ident
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Protocol

if TYPE_CHECKING:
    from .terms import Lock

#: Frames of these packages are ours, or work for us, when a holder's line is named.
_INNER_PACKAGES = ("sharedsession", "sqlalchemy", "contextlib", "threading", "asyncio")

#: The coroutines of these packages run the cells of notebooks.
_NOTEBOOK_PACKAGES = ("IPython", "ipykernel")

#: Called with each owner whose thread ended; the guards register themselves here.
on_death: list[Callable[[Owner], None]] = []


class Waitable(Protocol):
    """What an owner can wait for: something that others have."""

    def blockers(self) -> list[Owner]: ...


class Owner:
    """One thread, as the guards see it."""

    __slots__ = ("thread", "alive", "waiting_for", "is_patient", "__weakref__")

    #: What it is called in a message.
    noun: ClassVar[str] = "thread"
    #: The numbers of the holds whose family it is of: only tasks have families.
    sections: frozenset[int] = frozenset()

    def __init__(self, thread: threading.Thread) -> None:
        self.thread = thread
        #: False once the thread has ended; written by its last breath only.
        self.alive = True
        #: What this owner waits for; written by the owner, cleared by who lets it in.
        self.waiting_for: Waitable | None = None
        #: Whether it gave up its place in a queue for a look, and does not again.
        self.is_patient = False

    @property
    def flow(self) -> Any:
        """What it stands for, as a user knows it."""
        return self.thread

    @property
    def name(self) -> str:
        return f"thread {self.thread.name!r}"

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


class _LastBreath:
    """Lives in a thread's local storage only, so it goes when the thread does."""

    __slots__ = ("__weakref__",)


class _Local(threading.local):
    last_breath: _LastBreath


_local = _Local()

#: Every thread that asked, by its identifier; an entry goes before the thread does, so
#: before the identifier is given to another one.
_owners: dict[int, Owner] = {}

#: Keeps the weak references alive whose callbacks tell that a thread ended.
_watches: set[weakref.ref[_LastBreath]] = set()


def _introduce() -> Owner:
    owner = Owner(threading.current_thread())
    process, ident = os.getpid(), get_ident()

    def ended(watch: weakref.ref[_LastBreath]) -> None:
        _watches.discard(watch)
        _owners.pop(ident, None)
        owner.alive = False
        if process != os.getpid() or sys.is_finalizing():
            return  # a fork's child, or the end, clears the storage of other threads
        for tell in on_death:
            tell(owner)

    _local.last_breath = _LastBreath()
    _watches.add(weakref.ref(_local.last_breath, ended))
    _owners[ident] = owner
    return owner


def current_owner() -> Owner:
    """Return the owner for whoever is asking."""
    try:
        return _owners[get_ident()]
    except KeyError:
        return _introduce()
