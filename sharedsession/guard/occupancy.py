"""The owners inside a session: their turns, and what keeps and ends a turn.

The stay of an owner is a :class:`Turn`.  It ends when no operation runs in it and no
section, block or stream keeps it.  A turn stores each of them by the number of its
:class:`Hold`.
"""

from __future__ import annotations

import logging
from typing import Any

from . import refusals
from .access import BESIDE, EXCLUSIVE, SHARED, ForeignLock, Kind, Mode
from .gate import CLOSED, Gated
from .owner import Owner
from .turn import Hold, Turn, snapshot

logger = logging.getLogger("sharedsession")


class Occupancy(Gated):
    """Begins and ends turns; calls :meth:`_pass_on` after each change."""

    __slots__ = ("reading", "abandoned_by", "_lock")

    #: The turns of shared read sections.  Changed under the mutex.
    reading: dict[Owner, Turn]
    #: The owner that left a section unfinished, until the next owner recovers.
    abandoned_by: Owner | None

    def __init__(self, kind: Kind, *, lock: ForeignLock | None, **below: Any) -> None:
        super().__init__(kind, **below)
        self.reading = {}
        self.abandoned_by = None
        self._lock = lock

    def _pass_on(self) -> None:
        """Admit those waiters that may enter now.

        Call this as the last step of every change of owners or waiters.
        """
        raise NotImplementedError

    # -- turns

    def go_on(self, me: Owner) -> bool:
        """Begin an operation inside the turn of *me*; return whether *me* still has it.

        Takes the mutex, because a thread that ends the last hold of *me* meanwhile
        releases the guard if no operation runs.
        """
        with self._mutex:
            held = self._is_in_turn(me)
            if held:
                self.running = me
        if self.abandoned_holds:
            self.reap()
        return held

    def _leave_late(self, me: Owner) -> None:
        """End an operation that has waiters, or that did not enter by the gate."""
        if self._is_in_mutex() and self.gate.get(0) is not me:
            # This is a finalizer that interrupts a change.  The change does the rest.
            if self.running is me:
                self.running = None
            return
        with self._mutex:
            if self.gate.get(0) is me:
                self._begin_turn(me)
            if self._is_in_turn(me):
                self.running = self.window = None
                self._end_turns()
            self._pass_on()
        if self.abandoned_holds:
            self.reap()

    def _begin_turn(self, me: Owner) -> None:
        """Give *me* a turn if it is inside by the gate; else do nothing."""
        self.close_window(me)
        if self.gate.get(0) is me:
            turn = Turn(me, EXCLUSIVE, self.since)
            try:
                # No call from here on.  While the turn was made, a finalizer may have
                # begun a turn of *me*, or ended one.
                if self.turn is None and self.gate[0] is me:
                    self.turn = turn
                    self.since = None
                    self.gate[0] = CLOSED
            except KeyError:
                pass

    def _turn_kept_by(self, number: int) -> Turn | None:
        """Return the turn that the hold with this number keeps, also a lender's."""
        if self.turn is not None:
            for turn in self.turn.with_lenders():
                if number in turn.keeps:
                    return turn
        return None

    def _end_turns(self) -> None:
        """Take out the top turn if it is over, and then lenders' turns that are over.

        May be called again after an interrupt.
        """
        while self.running is None and self.window is None:
            turn = self.turn
            if turn is None or turn.keeps:
                return
            if turn.lent_by is None:
                self._drop()
            else:
                self._back_to_lender()

    def _back_to_lender(self) -> None:
        assert self.turn is not None
        self.turn = lender = self.turn.lent_by
        if lender is not None:
            self.running = lender.running

    def _drop(self) -> None:
        """Take out the owner that is exclusive or beside the readers."""
        turn = self.turn
        if turn is None:
            return
        if turn.since is not None:
            self._note_stay(turn.since)
        reader = self.reading.get(turn.owner)
        if reader is not None and not reader.keeps:
            self._drop_reader(reader)  # its section ended before its stream
        elif reader is None and self._lock is not None:
            self._lock.release(turn.owner, self)
        # Do this last and without a call: an interrupt before it leaves the owner
        # inside, and the whole can be done again.
        self.running = self.window = None
        self.last_version += 1
        if self.kind is not Kind.CONFINE and not self.unsettled:
            self.version = self.last_version
        self.turn = None

    def _drop_reader(self, reader: Turn) -> None:
        self._note_stay(reader.since or 0.0)
        if self._lock is not None and not self.is_exclusive(reader.owner):
            self._lock.release(reader.owner, self)
        self.reading.pop(reader.owner, None)

    def _drop_reader_if_over(self, reader: Turn) -> None:
        """Take out a reader without a section, unless its load or stream goes on."""
        if not reader.keeps and not self._is_in_turn(reader.owner):
            self._drop_reader(reader)

    def _fits(self, mode: Mode, owner: Owner) -> bool:
        turn = self.turn
        if turn is None:
            return mode is not EXCLUSIVE or not self.reading
        if turn.mode is BESIDE and mode is SHARED:
            return True
        return self._welcomes(owner)

    def _welcomes(self, owner: Owner) -> bool:
        """Whether *owner* may enter the present turn.

        Only while no operation runs in the turn, and only if *owner* is of the party of
        the turn's owner, or is a task that was started inside the turn's sections.
        """
        turn = self.turn
        if turn is None or not turn.keeps or self.running is not None:
            return False
        return turn.owner.party is owner.party or self._lends_to(turn, owner)

    def _lends_to(self, turn: Turn, owner: Owner) -> bool:
        """Whether *owner* was started inside all that keeps the turn."""
        return turn.mode is EXCLUSIVE and turn.keeps.keys() <= owner.sections

    def _is_reading(self, owner: Owner) -> bool:
        """Whether *owner*, or another member of its party, is in a read section."""
        if owner in self.reading or owner.party is owner:
            return owner in self.reading
        return any(other.party is owner.party for other in snapshot(self.reading))

    # -- holds, which last longer than one operation

    def release_hold(self, hold: Hold) -> None:
        """Release *hold*.  May be called again after an interrupt."""
        if self._is_in_mutex():
            # The caller is a finalizer that interrupts this thread inside the mutex.
            self.abandon(hold, finished=True)
            return
        with self._mutex:
            self._release_hold(hold)
            self._pass_on()
        self.reap()

    def check_may_leave(self, hold: Hold) -> None:
        """Refuse if only the thread that entered can release the lock object."""
        if self._lock is not None and self._lock.is_bound and hold.is_open:
            me, owner = self.current_owner(), self.owner_of(hold)
            if owner is not me and owner.alive:
                raise refusals.to_move(me, owner)

    def _release_hold(self, hold: Hold) -> None:
        if not hold.is_open:
            return
        hold.owner = self.owner_of(hold)
        for reader in snapshot(self.reading.values()):
            reader.keeps.pop(hold.number, None)
            self._drop_reader_if_over(reader)
        turn = self._turn_kept_by(hold.number)
        if turn is not None:
            del turn.keeps[hold.number]
        self._end_turns()
        hold.is_open = False

    def abandon_forgotten(self, hold: Hold) -> None:
        """Release a hold that was collected before it was released.

        The garbage collector calls this in any thread and at any line, even inside the
        mutex.
        """
        self.abandon(hold, finished=False)

    def abandon(self, hold: Hold, finished: bool) -> None:
        """Release *hold* as soon as the mutex is free, but never wait for the mutex.

        :param finished: True if the section of the hold was left, False if it was only
            forgotten.
        """
        heir = Hold(hold.guard, hold.owner, hold.mode, hold.kept)
        heir.number = hold.number
        heir.is_finished = finished
        hold.is_open = False
        self.abandoned_holds.append(heir)
        self.reap()

    def reap(self) -> None:
        """Release the holds that were abandoned.

        If another thread has the mutex, that thread calls this after releasing it.
        """
        while self.abandoned_holds and not self._is_in_mutex():
            got = False
            try:
                got = self._mutex.acquire(False)
                if not got:
                    return
                if self.abandoned_holds:  # otherwise another thread was faster
                    self._release_abandoned(self.abandoned_holds[0])
            finally:
                if got or self._is_in_mutex():  # an interrupt came before *got* was set
                    self._mutex.release()

    def _release_abandoned(self, hold: Hold) -> None:
        """Release *hold*, the first of those that were abandoned, and forget it.

        After an interrupt it is still the first, and is released again.
        """
        turn = self._turn_kept_by(hold.number)
        if turn is not None and not hold.is_finished:
            if not turn.keeps[hold.number].is_stream:
                self._note_abandoned(turn.owner)
        try:
            self._release_hold(hold)
            self._pass_on()
        except Exception:  # a lock object may refuse to be released
            hold.is_open = False
            self.abandoned_holds.popleft()
            raise
        self.abandoned_holds.popleft()

    def _note_abandoned(self, owner: Owner) -> None:
        self.abandoned_by = owner
        self.attention = self.unsettled = True

    # -- holds that move

    def owner_of(self, hold: Hold) -> Owner:
        """Return the present owner of the turn that *hold* keeps; turns can move."""
        turn = self._turn_kept_by(hold.number)
        if turn is not None:
            return turn.owner
        for reader in snapshot(self.reading.values()):
            if hold.number in reader.keeps:
                return reader.owner
        return hold.owner

    def _move(self, hold: Hold, me: Owner, begins: bool = False) -> bool:
        """Make *me* the owner of the turn that *hold* keeps.

        Return False, and change nothing, if an operation runs in that turn or the turn
        is lent: the borrower gives it back first.
        """
        hold.owner = self.owner_of(hold)
        owner = hold.owner
        turn = self._turn_kept_by(hold.number)
        if turn is None and owner not in self.reading:
            return True  # released already
        if turn is not None and turn is not self.turn:
            return False
        if owner is not me:
            if self._lock is not None:
                raise refusals.to_move(me, owner)
            if self.running is owner or self.window is owner:
                return False
            if owner.party is not me.party:
                moving = turn or self.reading[owner]
                for number in snapshot(moving.keeps):
                    moving.keeps[number] = moving.keeps[number]._replace(moved=True)
            if turn is not None:
                turn.owner = me
            else:
                self._reading_moves(owner, me)
            hold.owner = me
        if begins and self._is_in_turn(me):
            self.running = me
        return True

    def _reading_moves(self, owner: Owner, me: Owner) -> None:
        reader = self.reading.pop(owner)
        mine = self.reading.setdefault(me, reader)
        mine.owner = me
        mine.keeps.update(reader.keeps)

    # -- dead owners

    def release_dead_owner(self, owner: Owner) -> None:
        """Release what a dead *owner* still held."""
        with self._mutex:
            held = False
            for turn in () if self.turn is None else self.turn.with_lenders():
                if turn.owner.party is owner:
                    held = held or bool(turn.keeps)
                    self._end_turn_of_dead(turn, owner)
            for reader in snapshot(self.reading.values()):
                if reader.owner.party is owner:
                    held = True
                    self._drop_what_stayed(reader)
                    if not reader.keeps:
                        self._drop_reader(reader)
            self._end_turns()
            self._pass_on()
        self.reap()
        if held:
            logger.warning("%s ended while it held a guard; released", owner.name)

    def _end_turn_of_dead(self, turn: Turn, owner: Owner) -> None:
        """Let nothing keep the turn of a dead owner, except for holds that have moved.

        A stream or a block that moved belongs to its object.  The next owner that uses
        the object takes the hold over; it ends at the latest when the object is
        collected.
        """
        kept = snapshot(turn.keeps.values())
        if not all(each.is_stream or each.moved for each in kept):
            self._note_abandoned(owner)
        self._drop_what_stayed(turn)
        # Another thread of a party that ended may be in the middle of an operation.
        # The turn ends with that operation.
        member = self.running or self.window if turn is self.turn else turn.running
        if member is None or member is owner:
            turn.running = None
            if turn is self.turn:
                self.running = self.window = None

    @staticmethod
    def _drop_what_stayed(turn: Turn) -> None:
        """Remove what keeps *turn*, except for holds that have moved.

        In place, because another thread of the dead owner's party may add a hold at the
        same time.
        """
        for number in snapshot(turn.keeps):
            kept = turn.keeps.get(number)
            if kept is not None and not kept.moved:
                turn.keeps.pop(number, None)
