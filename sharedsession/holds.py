"""What a guard hands out and keeps while somebody is in it or waits for it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from .owners import Owner
from .terms import Lock, Mode

if TYPE_CHECKING:
    from .guard import Guard
    from .monitor import Monitor

#: Seconds that others may go on coming in before one who waits to be exclusive: for a
#: section, or for one operation.
TURN = 0.02
SHORT_TURN = 0.002

#: Seconds after which one who waits first sees for itself whether it can come in.  To
#: wake up takes the work of others from their core, so not too often.
DOZE = 0.006

_hold_numbers = itertools.count(1)


class Hold:
    """A guard kept beyond one operation: by a section, a block, or a stream.

    The guard knows a hold by its number only, so that a hold which everybody forgot is
    collected, and gives back what it kept.
    """

    is_open = False  # until it is all there
    #: Whether it has been taken away, but what it kept was not given back yet.
    is_ending = False

    def __init__(
        self, guard: Guard, owner: Owner, mode: Mode, what: str, restricts: bool
    ) -> None:
        self.guard = guard
        self.owner = owner
        self.mode = mode
        self.what = what
        self.restricts = restricts
        self.number = next(_hold_numbers)
        self.is_open = True

    def release(self) -> None:
        """Give it back; nothing if that was done before.  Any thread may call this."""
        self.guard.let_go(self)

    def __del__(self) -> None:
        if self.is_open:
            self.guard.forsake(self)


class WindowOpened(Exception):
    """Whoever waited to come in for a look can look without coming in."""


class Waiter:
    """One owner in the queue; ``parked`` is released to wake it.

    All but ``parked`` is changed under the mutex of its guard.
    """

    __slots__ = (
        *("guard", "owner", "mode", "parked", "since"),
        *("admitted", "woken", "is_nudged", "is_due", "turn", "due_at"),
        *("doze", "dozed"),
        *("looks", "may_look"),
    )

    def __init__(
        self,
        guard: Monitor,
        owner: Owner,
        mode: Mode,
        parked: Lock,
        looks: bool = False,
        turn: float = TURN,
    ) -> None:
        self.guard = guard
        self.owner = owner
        self.mode = mode
        self.parked = parked
        self.admitted = False
        #: Whether ``parked`` was released and it has not come to see why.
        self.woken = False
        #: Whether it was told to come in if nobody else does.
        self.is_nudged = False
        #: Whether it is to be let in before any other.
        self.is_due = False
        self.turn = turn
        self.due_at = 0.0
        #: Seconds after which it looks whether it can come in; how many it has slept.
        self.doze = min(turn, DOZE)
        self.dozed = 0.0
        #: Whether a window will do for it.
        self.looks = looks
        #: Whether one was open when it came to see.
        self.may_look = False
        self.since = guard.clock()

    def nudge(self) -> None:
        """Tell it to come in if nobody else does."""
        if not self.is_nudged:
            self.due_at = self.guard.clock() + self.turn
            self.is_nudged = True
            self.wake()

    def look_at_time(self) -> None:
        """Let it be due if others have gone before it for a turn."""
        if self.is_nudged and self.guard.clock() >= self.due_at:
            self.is_due = True

    def note_doze(self) -> None:
        """It slept for that long and nobody let it in; due if that was for a turn."""
        self.dozed += self.doze
        self.doze *= 2
        self.is_due = self.is_due or self.dozed >= self.turn

    def wake(self) -> None:
        """Wake it; nothing if that was done before."""
        if not self.woken:
            self.woken = True
            self.parked.release()

    def blockers(self) -> list[Owner]:
        return self.guard.blockers(self)


class Reading:
    """One owner's read sections, the outermost of which acquired the guard."""

    __slots__ = ("since", "holds")

    def __init__(self, since: float) -> None:
        self.since = since
        self.holds: set[int] = set()
