"""What a guard keeps for the owners inside and for its waiters."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from .access import Lock, Mode
from .owner import Owner

if TYPE_CHECKING:
    from .guard import Guard
    from .monitor import Monitor

#: Seconds for which running owners may enter ahead of the first exclusive waiter after
#: it was woken (barging).  Then it is next.
TURN = 0.005

_hold_numbers = itertools.count(1)


class Hold:
    """A guard kept beyond one operation: by a section, a block, or a stream.

    The guard only stores the number of a hold.  Therefore a hold that the application
    forgot is collected, and releases the guard then.
    """

    is_open = False  # until ``__init__()`` is done
    #: Whether the hold was removed from the guard, but the guard is not released yet.
    is_ending = False
    #: Whether its section was left, although the hold could not be released at once.
    is_finished = False

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

    def take_over(self) -> Owner:
        """Make the caller the owner of the turn; return the former owner."""
        former = self.owner
        if self.is_open and self.guard.asker() is not former:
            self.guard.take_over(self)
        return former

    def forget_if_busy(self) -> bool:
        """Abandon this hold if a finalizer ends it that cannot use the guard now.

        Return whether it was abandoned.  The next owner then does what is left to do,
        such as a rollback, as after every section that was abandoned.
        """
        if not self.guard.asker().busy:
            return False
        self.guard.forsake(self)
        return True

    def release(self) -> None:
        """Release the guard; do nothing the second time.  Any thread may call this."""
        self.guard.let_go(self)

    def __del__(self) -> None:
        if self.is_open:
            self.guard.forsake(self)


class WindowOpened(Exception):
    """Raised in a waiter that only wants to read: it can read optimistically now."""


class Waiter:
    """One owner in the queue; ``parked`` is released to wake it.

    All other fields are changed under the mutex of its guard.
    """

    __slots__ = (
        *("guard", "owner", "mode", "parked", "since", "admitted", "woken"),
        *("next_at", "takes", "looks", "may_look"),
    )

    def __init__(
        self,
        guard: Monitor,
        owner: Owner,
        mode: Mode,
        parked: Lock,
        looks: bool = False,
        takes: Hold | None = None,
    ) -> None:
        self.guard = guard
        self.owner = owner
        self.mode = mode
        self.parked = parked
        self.admitted = False
        #: Whether ``parked`` was released since the waiter last checked.
        self.woken = False
        #: When barging ends, by the guard's clock; ``None`` until it was first woken.
        self.next_at: float | None = None
        #: The hold of another owner that this waiter is about to take over.
        self.takes = takes
        #: Whether this waiter only reads, for which a window is enough.
        self.looks = looks
        #: Whether a window was open when the waiter checked.
        self.may_look = False
        self.since = guard.clock()

    def is_next(self) -> bool:
        """Whether no owner may enter ahead of this waiter any more."""
        return self.next_at is not None and self.guard.clock() >= self.next_at

    def wake(self) -> None:
        """Wake the waiter; do nothing if it has been woken already."""
        if not self.woken:
            self.woken = True
            self.parked.release()

    def blockers(self) -> list[Owner]:
        return self.guard.blockers(self)


class Reading:
    """The read sections of one owner; the outermost one acquired the guard."""

    __slots__ = ("since", "holds")

    def __init__(self, since: float) -> None:
        self.since = since
        self.holds: set[int] = set()
