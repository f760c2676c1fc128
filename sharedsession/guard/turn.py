"""Turns (an owner's time inside a session) and holds (which prolong a turn)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Collection, Iterator, NamedTuple, TypeVar

from .access import STREAM, Access, Mode
from .owner import Owner

if TYPE_CHECKING:
    from .guard import Guard

_T = TypeVar("_T")

_hold_numbers = itertools.count(1)


def snapshot(things: Collection[_T]) -> list[_T]:
    """Return the present items of a dictionary, a values view, a set or a deque.

    Unlike ``tuple()``, this allocates nothing once it has begun to iterate.  An
    allocation may run the garbage collector, and with it a finalizer of this thread
    that changes *things*.  Another thread cannot come in between.  This does not hold
    for a view of items, because each item is allocated.
    """
    return list(things)


class Kept(NamedTuple):
    """What keeps a turn beyond one operation: a section, a block, or a stream.

    :ivar what: its purpose, for messages.
    :ivar reads_only: whether it is a read section.
    :ivar moved: whether another owner took it over.  Then it outlives its owners.
    """

    what: str
    reads_only: bool = False
    moved: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether it may be abandoned: rows that were not fetched are no loss."""
        return self.what == STREAM


class Turn:
    """One owner's stay in the session, from its admission until nothing keeps it.

    A turn is over when no operation runs in it and nothing keeps it.  A borrowed turn
    is on top of the turn of its lender (``lent_by``), and ends before the lender goes
    on.
    """

    __slots__ = (
        *("owner", "mode", "since", "keeps", "lent_by", "running", "access"),
        "is_aside",
    )

    def __init__(
        self, owner: Owner, mode: Mode, since: float | None, lent_by: Turn | None = None
    ) -> None:
        self.owner = owner
        self.mode = mode
        #: When it began; ``None`` for an operation that is not timed.
        self.since = since
        #: The open sections, blocks and streams, by the number of their hold.
        self.keeps: dict[int, Kept] = {}
        self.lent_by = lent_by
        #: While another turn is on top: the owner whose operation runs in this one.
        self.running: Owner | None = None
        #: The access of the operation in flight; ``None`` if it is not known.
        self.access: Access | None = None
        #: Whether the turn is on top for one operation that runs at once (a step or a
        #: deferred call, see ``asyncio/guard.py``), and is not borrowed from below.
        self.is_aside = False

    @property
    def reads_only(self) -> bool:
        """Whether a read section keeps this turn, or the turn of its lender."""
        # The owner may end a stream meanwhile.
        if any(kept.reads_only for kept in snapshot(self.keeps.values())):
            return True
        lender = None if self.is_aside else self.lent_by
        return lender is not None and lender.reads_only

    def with_lenders(self) -> Iterator[Turn]:
        """Yield this turn, then the turns that lent it, the outermost last."""
        turn: Turn | None = self
        while turn is not None:
            yield turn
            turn = turn.lent_by


class Hold:
    """A guard kept beyond one operation: by a section, a block, or a stream.

    The guard only stores the number of a hold.  Therefore a hold that the application
    forgot is collected, and releases the guard then.
    """

    is_open = False  # until ``__init__()`` is done
    #: Whether its section was left, although the hold could not be released at once.
    is_finished = False

    def __init__(self, guard: Guard, owner: Owner, mode: Mode, kept: Kept) -> None:
        self.guard = guard
        self.owner = owner
        self.mode = mode
        self.kept = kept
        self.number = next(_hold_numbers)
        self.is_open = True

    def take_over(self) -> Owner:
        """Make the caller the owner of the turn; return the former owner."""
        former = self.guard.owner_of(self)
        if self.is_open and self.guard.current_owner() is not former:
            self.guard.take_over(self)
        return former

    def forget_if_busy(self) -> bool:
        """Abandon this hold if its owner is busy, because a finalizer is ending it.

        Return whether it was abandoned.  The next owner then rolls back, as after every
        section that was abandoned.
        """
        if not self.guard.current_owner().busy:
            return False
        self.guard.abandon_forgotten(self)
        return True

    def release(self) -> None:
        """Release the guard; do nothing the second time.  Any thread may call this."""
        self.guard.release_hold(self)

    def __del__(self) -> None:
        if self.is_open:
            self.guard.abandon_forgotten(self)
