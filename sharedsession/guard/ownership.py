"""Which owners may use a session at all: one, or all of one process."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections import deque
from typing import Any

from ..errors import ForkedSessionError, SharedSessionError
from . import refusals
from .access import Kind, Recovery
from .gate import CLOSED, FOREVER
from .monitor import Monitor
from .owner import Owner, on_death

logger = logging.getLogger("sharedsession")

_guard_numbers = itertools.count(1)


class Ownership(Monitor):
    """Checks each new owner, and disowns all of them in the child of a fork."""

    __slots__ = ("number", "recovery", "_process", "__weakref__")

    #: What :meth:`hand_over` takes.
    _flows: type[Any] = threading.Thread

    def __init__(self, kind: Kind, **below: Any) -> None:
        super().__init__(kind, **below)
        #: Grows with each guard that is made.  Several guards are acquired in the order
        #: of their numbers.
        self.number = next(_guard_numbers)
        #: What the session does about its owners; ``None`` without a session.
        self.recovery: Recovery | None = None
        self._process = os.getpid()
        _guards[self.number] = self

    @property
    def is_shared(self) -> bool:
        """Whether more than one owner has entered so far."""
        return not self.checks_owners

    def _check_owner(self, me: Owner) -> None:
        """Check an owner that is not ``only_owner``; raise to refuse it.

        This refuses an owner in a forked child, an owner that a confined session does
        not belong to, and a second owner that the session's engine cannot serve.
        """
        if self._process != os.getpid():
            raise ForkedSessionError(
                "This session was made in process "
                f"{self._process} and belongs to it; this is the forked process "
                f"{os.getpid()}. Make a new session here."
            )
        with self._mutex:
            only_owner = self.only_owner
            free = (
                only_owner is None
                or only_owner is me.flow
                or self._is_free_to_take(only_owner)
            )
            free = free or self._is_of_same_thread(me, only_owner)
            if free:
                self.only_owner = me
        self.reap()
        if free:
            return
        assert only_owner is not None
        if self.kind is Kind.CONFINE:
            owner = (
                only_owner.name
                if isinstance(only_owner, Owner)
                else self._name_of(only_owner)
            )
            raise refusals.confined(me, owner)
        if self.recovery is not None:
            self.recovery.admit(me)
        self.checks_owners = False

    def _is_free_to_take(self, only_owner: Owner | threading.Thread) -> bool:
        if self.kind is not Kind.CONFINE:
            return False
        if isinstance(only_owner, Owner):
            return not only_owner.alive
        return only_owner.ident is not None and not only_owner.is_alive()

    def _is_of_same_thread(self, me: Owner, only_owner: Any) -> bool:
        """Whether *me* runs in the only thread that has entered so far."""
        if self.kind is Kind.CONFINE or not isinstance(only_owner, Owner):
            return False
        return (only_owner.ident, only_owner.native_id) == (me.ident, me.native_id)

    def _name_of(self, flow: Any) -> str:
        return f"thread {flow.name!r}"

    def hand_over(self, thread: Any = None) -> None:
        """Make another thread the owner of a confined session.

        Call this in the thread that owns the session.

        :param thread: the new owner, for an asyncio session a task; ``None``, the
            default, for the next thread that uses the session.
        :raises ConcurrentAccessError: if another thread owns the session.
        :raises SharedSessionError: if the kind is not ``"confine"``, if a section or a
            stream is open, or if *thread* is not a thread.
        """
        if self.kind is not Kind.CONFINE:
            raise SharedSessionError(
                f"Only lock='confine' has an owner to change; this is {self!r}."
            )
        if thread is not None and not isinstance(thread, self._flows):
            raise SharedSessionError(
                f"hand_over() takes a {self._flows.__name__}, not {thread!r}."
            )
        me = self.current_owner()
        if self.only_owner is not me:
            self._check_owner(me)
        if self.turn is not None:
            raise SharedSessionError(
                "A section or a stream of this session is open; leave or close it "
                "before hand_over()."
            )
        with self._mutex:
            self.only_owner = thread
        self.reap()

    def reset_after_fork(self) -> None:
        """Refuse every owner from now on, because this is the child of a fork."""
        # A thread that exists in the parent only may hold the old mutex.
        self._set_mutex(threading.RLock())
        self.checks_owners = True
        self.only_owner = None
        self.version = None
        self.gate[0] = CLOSED
        self.running = self.window = self.turn = None
        self.reading = {}
        self.queue, self.hand_over_at = deque(), FOREVER


#: All living guards, by number: the death of an owner and a fork concern every one.
_guards: weakref.WeakValueDictionary[int, Ownership] = weakref.WeakValueDictionary()


def _living_guards() -> list[Ownership]:
    """Return all guards, while other threads make guards and drop some.

    ``valuerefs()`` is a snapshot.  Iterating the dictionary itself would raise.
    """
    guards = [reference() for reference in _guards.valuerefs()]
    return [guard for guard in guards if guard is not None]


def _release_everywhere(owner: Owner) -> None:
    for guard in _living_guards():
        try:
            guard.release_dead_owner(owner)
        except Exception:  # a lock object may refuse to be released
            logger.exception(
                "%s ended, and %r could not be released", owner.name, guard
            )


def reset_all_after_fork() -> None:
    """Disown every guard in the child of a fork, because all belong to the parent."""
    for guard in _living_guards():
        guard.reset_after_fork()


on_death.append(_release_everywhere)
