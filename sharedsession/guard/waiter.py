"""The queue of a guard: who waits, and for what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .access import Lock, Mode
from .owner import Owner
from .turn import Hold

if TYPE_CHECKING:
    from .waiting import Waiting

#: Seconds for which running owners may enter ahead of the first exclusive waiter after
#: it was woken (barging).  Then it is next.
BARGING = 0.005


class WindowOpened(Exception):
    """Raised in a waiter that only wants to read: it can read optimistically now."""


class Waiter:
    """One owner in the queue; ``parked`` is released to wake it.

    All other fields are changed under the mutex of its guard.
    """

    __slots__ = (
        *("guard", "owner", "mode", "parked", "since", "admitted", "woken"),
        *("next_at", "hold", "takes", "looks", "may_look"),
    )

    def __init__(
        self,
        guard: Waiting,
        owner: Owner,
        mode: Mode,
        parked: Lock,
        *,
        hold: Hold | None = None,
        takes: Hold | None = None,
        looks: bool = False,
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
        #: The hold that is to keep the turn; ``None`` for a single operation.
        self.hold = hold
        #: The hold of another owner that this waiter is about to take over.
        self.takes = takes
        #: Whether this waiter only reads, for which a window is enough.
        self.looks = looks
        #: Whether a window was open when the waiter checked.
        self.may_look = False
        self.since = guard.clock()

    def is_joiner(self) -> bool:
        """Whether it wants to take a turn over, or to join the turn of its party."""
        return self.takes is not None or self.owner.party is not self.owner

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
