"""The monitor: which owners are inside a session, which wait, and which comes next.

All state of a guard changes under one small mutex.  Nothing else runs while the mutex
is held: no user code, no wait, no logging.  (One exception: ``release()`` and
``downgrade()`` of a lock object that the application passed in.  They must not call
back into the guard.)  Owners are admitted in three *modes*:

``EXCLUSIVE``
    One owner alone.  Every operation that is not a mere read of loaded state, every
    critical section, and any operation at all under a kind that does not share.
``SHARED``
    Any number of owners, none of which changes anything: the read sections of ``"rw"``.
``BESIDE``
    One operation at a time beside the shared owners: a load inside a read section, or a
    read of loaded state that came at a moment when no optimistic read was possible.

The stay of an owner is a :class:`Turn`.  It ends when no operation runs in it and no
section, block or stream keeps it.  The owner that leaves hands the guard off in the
order of arrival, because then neither readers nor writers starve.  Owners that are in a
read section already go first, because all others wait for them.

Hand-off is not strict FIFO, because switching threads costs more than a short section.
The first exclusive waiter is woken and must win the guard against newcomers (barging).
If it has not won after ``TURN`` seconds it is next: no owner may enter ahead of it.
This is eventual fairness as in WebKit's and Rust's parking lots.  Only exclusive owners
may barge, and only while all waiters are exclusive: a reader enters only once for each
time that it waits, and writers that barge ahead of readers would starve them.

Most of the time the guard is free, the queue is empty, and the newcomer wants a single
operation.  Such an operation enters by the *gate*, without the mutex and without a
turn.  The gate is a dictionary with at most one entry: entering is one
``setdefault()``, an atomic step of the interpreter, and leaving is one ``del``.  The
entry is the owner of the operation that is inside, or ``CLOSED`` if the monitor
decides.  The monitor closes the gate before it admits an owner, and opens the gate when
no owner is left inside.  An owner that leaves by the gate opens the gate first and
reads the queue then; a waiter joins the queue first and reads the gate then.  Therefore
one of the two sees the other.

While an operation that has changed nothing yet waits for the database, no loaded state
changes.  Then the operation opens a *window*: the guard has a version until the window
closes, and optimistic reads go on.  Any operation of the owner itself in the meantime,
for example in a listener, closes the window first.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from typing import Callable

from . import deadlocks, refusals, report
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
from .owner import Owner
from .queue import TURN, Waiter, WindowOpened
from .turn import Hold, Turn, snapshot

#: ``hand_over_at`` while the queue is empty; compared by identity.
FOREVER = math.inf

logger = logging.getLogger("sharedsession")

#: In the gate while the monitor decides which owner may enter.
CLOSED = object()


def _never() -> bool:
    return False


class Monitor:
    """Admits owners to a session and hands it off; the base of :class:`Guard`.

    The comment at each field says which owner may change the field, and when.  "Inside"
    means: by the exclusive owner, or by the owner that is beside the readers.
    """

    __slots__ = (
        *(
            "kind",
            "timeout",
            "current_owner",
            "clock",
            "gate",
            "turn",
            "reading",
            "running",
        ),
        *("version", "last_version", "window", "may_open", "_windows"),
        *("attention", "unsettled", "abandoned_by", "_lock", "_shares"),
        *("_make_lock", "_mutex", "_has_gate", "_has_windows"),
        *("queue", "hand_over_at", "_before", "since", "only_owner", "checks_owners"),
        *("abandoned_holds", "joiners", "warn_after", "wait_in_loop"),
        *("_shared_entries", "_contended", "_timeouts", "_is_in_mutex"),
        *("_wait_seconds", "_longest_wait", "_longest_hold"),
    )

    #: Whether the gate may be used at all.
    _may_have_gate = True

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
        self.kind = kind
        self.timeout = check_timeout(timeout)
        self.current_owner = current_owner
        self.clock = clock
        self._lock = lock
        self._shares = kind is Kind.RW or (lock is not None and lock.shares)
        self._make_lock = make_lock
        self._set_mutex(make_mutex())
        #: An owner puts itself into the empty gate, and takes itself out or puts CLOSED
        #: in its place.  The monitor closes the gate by the same step as an owner
        #: enters, and opens it under the mutex.
        self.gate = make_gate()
        #: A lock object and the checks of ``"confine"`` need the monitor at each entry.
        usable = lock is None and kind is not Kind.CONFINE
        self._has_gate = usable and self._may_have_gate
        if not self._has_gate:
            self.gate[0] = CLOSED
        self._has_windows = kind is not Kind.DETECT and kind is not Kind.CONFINE
        #: The exclusive turn, or the one beside readers; a lent turn is on top of its
        #: lender's.  Stored under the mutex with the gate closed, or by the owner that
        #: is inside by the gate before it closes the gate.  An owner may compare the
        #: turn's owner with itself without the mutex: only that owner enters for
        #: itself, and no other thread ends its turn while its operation runs.  What
        #: keeps a turn changes inside, or under the mutex.
        self.turn: Turn | None = None
        #: The turns of shared read sections.  Changed under the mutex.
        self.reading: dict[Owner, Turn] = {}
        #: The owner whose operation runs in the top turn, or by the gate.  Written by
        #: that owner, or under the mutex for an owner that is admitted or has died.
        #: The end of an operation clears it first and reads what keeps the turn then.
        self.running: Owner | None = None
        #: None while an owner may be changing state, or has left state unsettled;
        #: otherwise a number that was never used before.  Written by the exclusive
        #: owner alone: before its first change and after its last one.  A value that
        #: was read between two checks of the very same version did not change.
        self.version: int | None = 0
        if kind is Kind.CONFINE:
            self.version = None  # for good, because every read must be checked
        #: The last number used; written by the exclusive owner alone.
        self.last_version = 0
        #: The owner that has a window open.  Written by the exclusive owner alone.
        self.window: Owner | None = None
        #: Whether the running operation may open a window: neither it nor an operation
        #: nested in it has changed anything yet, and the session has a second owner.
        self.may_open = False
        # The next four are notes for the next owner that enters.  Each is one reference
        # and stored whole: the note first, `attention` after it.
        #: True if the next owner must be told something, or must do something, first.
        self.attention = False
        #: True if that concerns mere reads of loaded state, too.
        self.unsettled = False
        #: An owner that left a section unfinished, if the next owner must know.
        self.abandoned_by: Owner | None = None
        #: The waiters, in order of arrival.  Changed under the mutex.
        self.queue: deque[Waiter] = deque()
        #: The clock's time until which a leaving owner may ignore the queue.
        self.hand_over_at = FOREVER
        self._before: list[Waiter] = []  # those that wait for the lock object
        #: When the operation inside by the gate began; ``None`` if it is not timed.
        self.since: float | None = None
        #: The first owner, which needs no check; valid until a second owner came.
        self.only_owner: Owner | threading.Thread | None = None
        #: From True to False once.  A stale True costs one needless check.
        self.checks_owners = True
        #: Holds that were collected.  Any thread appends, because that is atomic.
        self.abandoned_holds: deque[Hold] = deque()
        #: The number of waiters that want to take a turn over, or to join their party.
        self.joiners = 0
        #: Seconds of waiting after which a warning is logged, once for each wait;
        #: ``None`` for never.
        self.warn_after: float | None = 5.0
        #: Seconds for which a coroutine may block its event loop to wait for its turn.
        self.wait_in_loop = 0.0
        #: Entries of readers, and windows.  ``last_version`` counts all other entries,
        #: and the windows as well.
        self._shared_entries = self._windows = 0
        self._contended = self._timeouts = 0
        self._wait_seconds = self._longest_wait = self._longest_hold = 0.0

    def _set_mutex(self, mutex: Lock) -> None:
        """Use *mutex*, which is reentrant, for the guard's own state.

        A finalizer that interrupts this thread inside the mutex must not wait for its
        own thread.  It calls ``_is_in_mutex()`` to find out.
        """
        self._mutex = mutex
        self._is_in_mutex: Callable[[], bool] = getattr(mutex, "_is_owned", _never)

    # -- one operation

    def come_in(self, me: Owner) -> bool:
        """Let *me* in by the gate for one operation; return whether *me* is inside.

        The fast path of the common case.  Call this only if neither ``running`` nor
        ``window`` is *me*, because an owner inside by the gate would enter a second
        time.  Call :meth:`leave` afterwards in any case.
        """
        known = self.only_owner is me or not self.checks_owners
        try:
            # Check the gate twice: in between, a signal handler in this thread may have
            # entered and left.  No call follows the second check.
            if known and self.gate.setdefault(0, me) is me and self.gate[0] is me:
                self.version = None
                self.running = me
                return True
        except KeyError:
            pass
        return False

    def open_window(self, me: Owner) -> None:
        """Let optimistic reads go on while the operation of *me* waits.

        Opens nothing in a section or a stream, nor under the kinds that never wait.
        """
        self.may_open = False
        turn = self.turn
        kept = turn is not None and turn.keeps
        if kept or not self._has_windows or not self.is_exclusive(me):
            return
        self._windows += 1
        # No call from here to the version, because an interrupt must find the window
        # either open or closed.
        self.window = me
        self.running = None
        self.last_version += 1
        self.version = None if self.unsettled else self.last_version
        if self.queue:
            self._let_look()

    def _let_look(self) -> None:
        """Wake the waiters that only want to read.

        A waiter that joins the queue later checks for a window by itself.
        """
        with self._mutex:
            for waiter in self.queue:
                if waiter.looks:
                    waiter.wake()
        self.reap()

    def close_window(self, me: Owner) -> None:
        """End the optimistic reads; do nothing if *me* has no window open."""
        if self.window is me:
            self.version = None
            self.running = me  # first: a finalizer in between must find it inside
            self.window = None

    def is_still(self, version: int | None) -> bool:
        """Whether nothing has changed since the guard had that version.

        For the version ``None``: whether nothing can have changed, see
        :meth:`is_held_by`.
        """
        if version is None:
            return self.version is None and self.is_held_by(self.current_owner())
        return self.version is version

    def is_held_by(self, me: Owner) -> bool:
        """Whether *me*, the caller, keeps all others out and may read without a lock.

        False if the caller must be told something first.  Check this before the read
        and after it, because meanwhile another thread may have ended the caller's
        stream, or the garbage collector a forgotten section.  Checking twice is enough:
        the caller only gets back inside by its own entry.
        """
        if self.running is me:
            return True
        turn = self.turn
        if turn is None or turn.owner is not me or turn.mode is not EXCLUSIVE:
            return False
        return not self.attention

    def is_in_bookkeeping(self) -> bool:
        """Whether this thread is changing the guard's own state at this moment."""
        return self._is_in_mutex()

    def begin_nested_operation(self, me: Owner) -> None:
        """Let *me* run an operation that interrupts its own entering or leaving."""
        self.version = None
        self.running = me

    def end_nested_operation(self, running: Owner | None, version: int | None) -> None:
        """Restore ``running`` and, by a new number, ``version``."""
        self.running = running
        if version is not None and not self.unsettled:
            self.last_version += 1
            self.version = self.last_version

    def is_exclusive(self, me: Owner) -> bool:
        turn = self.turn
        if turn is not None and turn.owner is me and turn.mode is EXCLUSIVE:
            return True
        return self.gate.get(0) is me

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

    def _is_in_turn(self, me: Owner) -> bool:
        turn = self.turn
        return turn is not None and turn.owner is me

    def leave(self, me: Owner) -> None:
        """End the operation that :meth:`enter` began, or tried to begin.

        After an interrupt, call this again: it does the steps that are left.
        """
        turn = self.turn
        if turn is not None:
            if turn.owner is me:
                self.running = None
                if turn.keeps and not self.joiners:
                    return  # the section goes on
        elif self.gate.get(0) is me and self._rests():
            if self.since is not None:
                self._note_hold(self.since)
                self.since = None
            if self._leave_by_gate(me):
                if self.hand_over_at and not self.abandoned_holds:
                    return
        self._leave_late(me)

    def _leave_by_gate(self, me: Owner) -> bool:
        """Open the gate; return False if a signal handler has given *me* a turn."""
        try:
            # No call from here to the ``del``, because an interrupt must find all of
            # these steps done or none.
            if self.turn is not None or self.gate[0] is not me:
                return False
            self.running = self.window = None
            self.last_version += 1
            self.version = None if self.unsettled else self.last_version
            del self.gate[0]
        except KeyError:
            return False
        return True

    def _rests(self) -> bool:
        """Whether a leaving owner may ignore the queue now."""
        until = self.hand_over_at
        return until is FOREVER or self.clock() < until

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

    # -- turns

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
            self._note_hold(turn.since)
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
        self._note_hold(reader.since or 0.0)
        if self._lock is not None and not self.is_exclusive(reader.owner):
            self._lock.release(reader.owner, self)
        self.reading.pop(reader.owner, None)

    def _drop_reader_if_over(self, reader: Turn) -> None:
        """Take out a reader without a section, unless its load or stream goes on."""
        if not reader.keeps and not self._is_in_turn(reader.owner):
            self._drop_reader(reader)

    def _note_hold(self, since: float) -> None:
        held = self.clock() - since
        if held > self._longest_hold:
            self._longest_hold = held

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

        The garbage collector calls this in any thread and at any line, while the guard
        changes its own state, too.
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
        # If the mutex is taken, its owner calls reap() after releasing it.
        while (
            self.abandoned_holds
            and not self._is_in_mutex()
            and self._mutex.acquire(False)
        ):
            try:
                if not self.abandoned_holds:
                    continue  # done by another thread; check again after the release
                hold = self.abandoned_holds.popleft()
                turn = self._turn_kept_by(hold.number)
                if turn is not None and not hold.is_finished:
                    if not turn.keeps[hold.number].is_stream:
                        self._note_abandoned(turn.owner)
                try:
                    self._release_hold(hold)
                    self._pass_on()
                finally:
                    hold.is_open = False  # a lock object may refuse to be released
            finally:
                self._mutex.release()

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

    # -- admission

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

    def _fits(self, mode: Mode, owner: Owner) -> bool:
        turn = self.turn
        if turn is None:
            return mode is not EXCLUSIVE or not self.reading
        if turn.mode is BESIDE and mode is SHARED:
            return True
        return self._welcomes(owner)

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
            waiter.next_at = self.clock() + TURN
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

    # -- waiting

    def _wait(
        self,
        me: Owner,
        mode: Mode,
        timeout: float | None,
        *,
        hold: Hold | None = None,
        takes: Hold | None = None,
        looks: bool = False,
    ) -> None:
        """Wait in the queue until *me* is admitted; see :class:`Waiter`."""
        if not self._lets_wait(me):
            raise refusals.overlap(me, self.explain())
        blocks_loop = not me.can_wait()
        if blocks_loop:
            if not self.wait_in_loop:
                raise self._refusal_to_wait(me)
            timeout = min(timeout or self.wait_in_loop, self.wait_in_loop)
        parked = self._make_lock() if blocks_loop else me.parking(self._make_lock)
        waiter = Waiter(self, me, mode, parked, hold=hold, takes=takes, looks=looks)
        waiter.parked.acquire()
        try:
            self._join_queue(waiter)
            self._release_ended_owners(waiter)
            if not waiter.admitted and deadlocks.would_deadlock(me, waiter):
                if not (waiter.admitted or waiter.woken):  # during the search
                    raise refusals.deadlock(me, self.explain())
            self._park(waiter, timeout)
        finally:
            self._end_wait(waiter)
        if waiter.admitted:
            return
        if waiter.may_look:
            raise WindowOpened
        if blocks_loop:
            raise self._refusal_to_wait(me)
        with self._mutex:
            self._timeouts += 1
        self.reap()
        waited = self.clock() - waiter.since
        raise refusals.timed_out(me, self.explain(), mode, waited)

    def _lets_wait(self, me: Owner) -> bool:
        return self.kind not in (Kind.DETECT, Kind.CONFINE)

    def _refusal_to_wait(self, me: Owner) -> Exception:
        return refusals.to_wait_in_loop(me, self.explain())

    def _join_queue(self, waiter: Waiter) -> None:
        with self._mutex:
            waiter.owner.waiting_for = waiter
            self.hand_over_at = 0.0
            self.queue.append(waiter)
            self._count_joiners()
            self._contended += 1
            self._pass_on()
        # An abandoned hold may be the very thing that this waiter waits for.
        self.reap()

    def _count_joiners(self) -> None:
        """Count anew, so that an interrupted wait leaves no wrong number behind."""
        self.joiners = sum(waiter.is_joiner() for waiter in self.queue)

    def _release_ended_owners(self, waiter: Waiter) -> None:
        """Release what dead threads hold whose death was not reported."""
        for owner in self.blockers(waiter):
            if owner.has_ended():
                owner.alive = False
                self.release_dead_owner(owner)

    def release_dead_owner(self, owner: Owner) -> None:
        """Release what a dead *owner* still held."""
        raise NotImplementedError

    def _park(self, waiter: Waiter, timeout: float | None) -> None:
        """Wait until *waiter* is admitted, may read in a window, or timed out."""
        end = None if timeout is None else waiter.since + timeout
        after = self.warn_after
        warn_at = None if after is None else waiter.since + after
        while not waiter.admitted:
            if waiter.looks and self.window is not None and self.version is not None:
                waiter.may_look = True
                return
            now = self.clock()
            if end is not None and now >= end:
                return
            if warn_at is not None and now >= warn_at:
                warn_at = None
                self._warn(waiter)
                continue
            next_at = waiter.next_at if self.hand_over_at else None
            times = [t - now for t in (end, warn_at, next_at) if t is not None]
            woken = waiter.parked.acquire(timeout=max(min(times), 0) if times else -1)
            with self._mutex:
                if woken:
                    waiter.woken = False
                if waiter.is_next():
                    self.hand_over_at = 0.0  # every leaving owner hands off from now on
                if not waiter.admitted and waiter.takes is None:
                    self._admit_if_free(waiter)
            self.reap()

    def _warn(self, waiter: Waiter) -> None:
        """Log the state of the guard, because a wait this long may be endless."""
        self._release_ended_owners(waiter)
        if not waiter.admitted:
            logger.warning("%s", report.long_wait(self, waiter))

    def _admit_if_free(self, waiter: Waiter) -> None:
        """Admit *waiter*, which is awake, if it is the first and the guard is free."""
        if self.gate.setdefault(0, CLOSED) is not CLOSED:
            return
        first = self.queue and self.queue[0] is waiter
        if first and self._fits(waiter.mode, waiter.owner):
            waiter.next_at = waiter.since  # it is next: barging ends
        self._pass_on()

    def _end_wait(self, waiter: Waiter) -> None:
        with self._mutex:
            if waiter in self.queue:  # not if admitted, or interrupted before joining
                self.hand_over_at = 0.0
                self.queue.remove(waiter)
                self._pass_on()  # later waiters may have waited for this one only
            self._count_joiners()
            waiter.owner.waiting_for = None
            self._note_wait(waiter)
        self.reap()

    def _note_wait(self, waiter: Waiter) -> None:
        waited = self.clock() - waiter.since
        self._wait_seconds += waited
        self._longest_wait = max(self._longest_wait, waited)

    def _acquire_foreign(
        self, lock: ForeignLock, me: Owner, mode: Mode, timeout: float | None
    ) -> None:
        """Acquire the lock object, inside which the owners wait for each other."""
        if lock.acquire(mode, me, self, 0):
            return
        if not me.can_wait():
            raise self._refusal_to_wait(me)
        waiter = Waiter(self, me, mode, me.parking(self._make_lock))
        me.waiting_for = lock
        try:
            with self._mutex:
                self._before.append(waiter)
                self._contended += 1
            self.reap()
            if deadlocks.would_deadlock(me, lock):
                raise refusals.deadlock(me, self.explain())
            got = self._acquire_patiently(lock, waiter, timeout)
        finally:
            try:
                self._end_wait_before(waiter)
            except BaseException:
                self._end_wait_before(waiter)  # an interrupt
                raise
        if not got:
            with self._mutex:
                self._timeouts += 1
            self.reap()
            holders = deadlocks.describe(lock.blockers())
            raise refusals.lock_timed_out(me, timeout, holders)

    def _acquire_patiently(
        self, lock: ForeignLock, waiter: Waiter, timeout: float | None
    ) -> bool:
        """Acquire the lock object; log a wait that may be endless, once."""
        mode, me, after = waiter.mode, waiter.owner, self.warn_after
        if after is None or (timeout is not None and timeout <= after):
            return lock.acquire(mode, me, self, timeout)
        if lock.acquire(mode, me, self, after):
            return True
        holders = deadlocks.describe(lock.blockers())
        logger.warning("%s %s", report.long_wait(self, waiter), holders)
        rest = None if timeout is None else timeout - after
        return lock.acquire(mode, me, self, rest)

    def _end_wait_before(self, waiter: Waiter) -> None:
        with self._mutex:
            waiter.owner.waiting_for = None
            if waiter in self._before:
                self._before.remove(waiter)
                self._note_wait(waiter)
        self.reap()

    # -- reports

    def _in_by_gate(self) -> Owner | None:
        owner = self.gate.get(0)
        return owner if isinstance(owner, Owner) else None

    def _turns_to_show(self) -> list[Turn]:
        """Return the turn that a report describes, and after it those of lenders."""
        return [] if self.turn is None else [*self.turn.with_lenders()]

    def blockers(self, waiter: Waiter) -> list[Owner]:
        """Return the owners that *waiter* waits for in this guard.

        Readers block an exclusive waiter and all that queue behind it.  A lender does
        not block what belongs to its section.
        """
        me = waiter.owner
        with self._mutex:
            present = {self._in_by_gate()}
            for turn in () if self.turn is None else self.turn.with_lenders():
                if turn is self.turn or not me.sections & turn.keeps.keys():
                    present.add(turn.owner)
            exclusives = waiter.mode is EXCLUSIVE or any(
                other.mode is EXCLUSIVE for other in self.queue
            )
            if exclusives and not self._is_reading(me):
                present.update(self.reading)
        self.reap()
        # Leave the waiter out: it may have been admitted meanwhile.
        return [o for o in present if o is not None and o is not me]

    def explain(self) -> str:
        """Return a description of this guard in words.

        It names the owners, the time for which they have held the guard and the line at
        which they are, and then the waiters with the time that they have waited.
        """
        return report.explain(self)
