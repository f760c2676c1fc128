"""The monitor: which owners are inside a session, which wait, and which comes next.

Except by the gate, the state of a guard changes under one small mutex.  Nothing else
runs while the mutex is held: no user code, no wait, no logging.  (One exception:
``release()`` and ``downgrade()`` of a lock object that the application passed in.  They
must not call back into the guard.)

Owners are admitted in three *modes*:

``EXCLUSIVE``
    One owner alone.  Every operation that is not a mere read of loaded state, every
    critical section, and any operation at all under a kind that does not share.
``SHARED``
    Any number of owners, none of which changes anything: the read sections of ``"rw"``.
``BESIDE``
    One operation at a time beside the shared owners: a load inside a read section, or a
    read of loaded state that came at a moment when no optimistic read was possible.

The owner that leaves hands the guard off in the order of arrival, because then neither
readers nor writers starve.  Owners that are in a read section already go first, because
all others wait for them.

Hand-off is not strict FIFO, because switching threads costs more than a short section.
The first exclusive waiter is woken and must win the guard against newcomers (barging).
If it has not won after ``BARGING`` seconds it is next: no owner may enter ahead of it.
This is eventual fairness as in WebKit's and Rust's parking lots.  Only exclusive owners
may barge, and only while all waiters are exclusive: a reader enters only once for each
time that it waits, and writers that barge ahead of readers would starve them.

Below the monitor are the *gate* (``gate.py``), by which single operations enter while
nobody waits, the turns of those inside (``occupancy.py``), and the wait of all others
(``waiting.py``).
"""

from __future__ import annotations

from typing import Callable

from . import refusals
from .access import (
    BESIDE,
    EXCLUSIVE,
    SHARED,
    ForeignLock,
    Gate,
    Kind,
    Lock,
    Mode,
    check_timeout,
)
from .gate import CLOSED, FOREVER
from .owner import Owner
from .turn import Hold, Turn, snapshot
from .waiter import BARGING, Waiter
from .waiting import Waiting


class Monitor(Waiting):
    """Admits owners to a session and hands it off; the base of :class:`Guard`."""

    __slots__ = ("timeout", "_shares", "_shared_entries")

    def __init__(
        self,
        kind: Kind,
        *,
        lock: ForeignLock | None,
        timeout: float | None,
        current_owner: Callable[[], Owner],
        clock: Callable[[], float],
        make_lock: Callable[[], Lock],
        make_mutex: Callable[[], Lock],
        make_gate: Callable[[], Gate],
    ) -> None:
        super().__init__(
            kind,
            lock=lock,
            # A lock object and the checks of "confine" need the monitor at each entry.
            usable=lock is None and kind is not Kind.CONFINE,
            current_owner=current_owner,
            clock=clock,
            make_lock=make_lock,
            mutex=make_mutex(),
            gate=make_gate(),
        )
        self.timeout = check_timeout(timeout)
        self._shares = kind is Kind.RW or (lock is not None and lock.shares)
        #: Entries of readers.  ``last_version`` counts all other entries, and the
        #: windows as well.
        self._shared_entries = 0

    # -- admission

    def _acquire(
        self,
        me: Owner,
        mode: Mode,
        timeout: float | None,
        *,
        hold: Hold | None = None,
        looks: bool = False,
    ) -> None:
        """Admit *me* in *mode*, or raise with nothing changed.

        :param hold: what is to keep the turn; without it an operation of *me* runs.
        :param looks: whether *me* only reads.  If a window opens, such a waiter raises
            :class:`WindowOpened`, because it need not wait any longer.
        """
        # Acquire the lock object first.  Otherwise an owner that has it through another
        # guard could wait here for an owner that waits for the lock object.
        foreign = None if mode is BESIDE and self._is_reading(me) else self._lock
        try:
            if foreign is not None:
                self._acquire_foreign(foreign, me, mode, timeout)
            with self._mutex:
                admitted = self._may_enter_now(me, mode)
                if admitted:
                    self._admit(me, mode, hold)
            if not admitted:
                self._wait(me, mode, timeout, hold=hold, looks=looks)
        except BaseException:
            try:
                self._withdraw(me, mode, hold, foreign)
            except BaseException:
                self._withdraw(me, mode, hold, foreign)  # an interrupt
                raise
            raise
        if self.abandoned_holds:
            self.reap()

    def _may_enter_now(self, me: Owner, mode: Mode) -> bool:
        if self.gate.setdefault(0, CLOSED) is not CLOSED:
            return False  # an operation is inside by the gate
        if self.queue and not self._goes_first(me) and not self._may_overtake(mode):
            return False  # earlier waiters go first
        return self._fits(mode, me)

    def _goes_first(self, owner: Owner) -> bool:
        """Whether *owner* belongs to the readers or the turn that others wait for."""
        return self._is_reading(owner) or self._welcomes(owner)

    def _may_overtake(self, mode: Mode) -> bool:
        """Whether a newcomer may barge, that is, enter ahead of the waiters."""
        if not self._has_gate or mode is not EXCLUSIVE or self.queue[0].is_next():
            return False
        return all(waiter.mode is EXCLUSIVE for waiter in self.queue)

    def _admit(self, me: Owner, mode: Mode, hold: Hold | None) -> None:
        # Do the calls first and the stores after them, because an interrupt must find
        # all of the stores done or none.
        turn = self.turn
        if turn is None or not self._welcomes(me):
            turn = Turn(me, mode, self.clock())
        elif turn.owner.party is me.party:
            turn.owner = me
        else:
            turn.running = None  # no operation of the lender runs
            turn = Turn(me, EXCLUSIVE, self.clock(), lent_by=turn)
        if hold is not None:
            turn.keeps[hold.number] = hold.kept
        if turn.mode is SHARED:
            self._shared_entries += 1
            self.reading[me] = turn
            return
        self.version = None
        if hold is None:
            self.running = me
        self.turn = turn

    def _pass_on(self) -> None:
        """Admit waiters from the head of the queue, as many as fit together.

        Call this as the last step of every change of owners or waiters.  The gate opens
        here if the guard is free and the queue is empty.
        """
        if self.gate.setdefault(0, CLOSED) is not CLOSED:
            return  # the operation inside by the gate calls this when it ends
        # Behind a waiter that must wait, admit only waiters that go first, such as the
        # loads of readers.
        closed = False
        for waiter in snapshot(self.queue):
            if not waiter.admitted:
                goes_first = waiter.takes is not None or self._goes_first(waiter.owner)
                if closed and not goes_first:
                    continue
                if not self._may_admit(waiter):
                    closed = closed or (waiter.mode is not BESIDE and not goes_first)
                    continue
                if not goes_first and self._may_overtake(waiter.mode):
                    self._wake_first(waiter)
                    return
                if waiter.takes is None:
                    self._admit(waiter.owner, waiter.mode, waiter.hold)
                waiter.admitted = True
                waiter.owner.waiting_for = None
            # If an interrupt comes here, the next call finds the waiter admitted and
            # wakes it.
            waiter.wake()
            self.queue.remove(waiter)
        if not self.queue:
            self.hand_over_at = FOREVER
            self._open_gate()

    def _may_admit(self, waiter: Waiter) -> bool:
        if waiter.takes is not None:
            hold = waiter.takes
            return not hold.is_open or self._move(hold, waiter.owner)
        return self._fits(waiter.mode, waiter.owner)

    def _wake_first(self, waiter: Waiter) -> None:
        """Wake the first waiter to try by itself; let others barge until it is next."""
        waiter.wake()  # first, so that after an interrupt the waiter tries anyway
        if waiter.next_at is None:
            waiter.next_at = self.clock() + BARGING
        self.hand_over_at = waiter.next_at
        self._open_gate()

    def _open_gate(self) -> None:
        """Open the gate if no owner is inside."""
        if self._has_gate and self.turn is None and not self.reading:
            del self.gate[0]

    def _withdraw(
        self, me: Owner, mode: Mode, hold: Hold | None, foreign: ForeignLock | None
    ) -> None:
        """Undo the steps that a failed acquisition may have done."""
        with self._mutex:
            me.waiting_for = None
            self.hand_over_at = 0.0
            for waiter in snapshot(self.queue):
                if waiter.owner is me:
                    self.queue.remove(waiter)
            reader = self.reading.get(me)
            if self.running is me:
                self.running = None
            if mode is SHARED and reader is not None:
                self._drop_reader(reader)
            elif self.turn is not None and self.turn.owner is me:
                if hold is not None:
                    self.turn.keeps.pop(hold.number, None)
                self._end_turns()
            elif foreign is not None:
                foreign.release(me, self)
            self._pass_on()
        self.reap()

    # -- taking a hold over

    def take_over(self, hold: Hold, *, begins: bool = False) -> None:
        """Make the caller the owner of the turn that *hold* keeps.

        Unlike entering, this does not wait for the end of the turn, only for the end of
        the operation that its present owner may be running.

        :param begins: whether an operation of the caller begins at the same time.
        """
        me = self.current_owner()
        if me.busy or self._is_in_mutex():
            raise refusals.nested(me)
        me.busy = True
        try:
            until = None if self.timeout is None else self.clock() + self.timeout
            while not self._try_to_move(hold, me, begins):
                # Several waiters may be let in for one hold, one after the other.  Only
                # the last of them owns it; the others wait for its operation again.
                left = None if until is None else max(until - self.clock(), 0.001)
                self._wait(me, hold.mode, left, takes=hold)
        finally:
            me.busy = False
            if self.abandoned_holds:
                self.reap()
        me.keeps(self)

    def _try_to_move(self, hold: Hold, me: Owner, begins: bool) -> bool:
        with self._mutex:
            return not hold.is_open or self._move(hold, me, begins)
