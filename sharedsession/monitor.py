"""The monitor: who is inside a session now, who waits, and who comes next.

All of a guard's state is changed under one small mutex that is never held while
anything else runs: no user code, no wait, no logging.  (One exception: the
``release()`` and ``downgrade()`` of a lock that the application brought along, which
must not come back here.)  Three kinds of admission exist, called *modes*:

``EXCLUSIVE``
    One owner, nobody else.  Every operation that is not a mere look, every critical
    section, and everything at all under a kind that does not share.
``SHARED``
    Any number of owners, none of whom changes anything: the read sections of ``"rw"``.
``BESIDE``
    One operation at a time beside the shared ones: a load inside a read section, or a
    look at loaded state that came while it could not be taken without a lock.

Admission is handed over by whoever leaves, in the order of arrival, so that neither
readers nor writers starve; owners that are in a read section already go first, since
everybody else waits for them.

Hand-off is not strict FIFO, because switching threads costs more than a short section.
The first exclusive waiter is woken and must win the guard against newcomers (barging).
If it has not won after ``TURN`` seconds it is next: nobody may enter ahead of it.  This
is eventual fairness as in WebKit's and Rust's parking lots.  Only exclusive owners may
barge, and only while all waiters are exclusive: a reader enters once for each time that
it waits, so that writers who barge ahead of readers would starve them.

Most of the time nobody is in, nobody waits, and what comes is one operation.  For that
there is the *gate*, which needs no mutex: a dictionary of one entry, so that coming in
is one ``setdefault()``, which is a single step of the interpreter, and leaving is one
``del``.  An entry is the owner of the one operation that is in, or ``CLOSED``: then the
monitor decides.  The monitor admits somebody only after it closed the gate itself, and
opens it when nobody is left.  Who is in by the gate looks at the queue after it opened
it, and who queues looks at the gate after it queued, so one of the two sees the other.

While an operation that has changed nothing so far waits for the database, nothing
changes for anybody.  Then it opens a *window*: there is a version for its duration, and
who looks at what is loaded goes on.  Whatever the owner itself does meanwhile, in a
listener, say, closes the window first.

Fields, and how each is published:

``gate``
    The owner of an operation puts itself there if nothing is there, and takes itself
    away, or replaces itself by ``CLOSED``.  ``CLOSED`` is put there in the same way,
    and taken away under the mutex.
``_owner``, ``_loader``, ``reading``, ``queue``, ``rests_until``
    Changed under the mutex, with the gate closed (the queue also while it is not; and
    ``_owner`` by who is in by the gate, before it closes it).  An owner may compare
    ``_owner`` or ``_loader`` with itself, and look itself up in ``reading``, without
    the mutex: only that owner puts itself there.  It is taken away by itself, or under
    the mutex by whoever ends the last thing that it holds while nothing of its runs.
``holds``
    What keeps the guard beyond one operation.  Changed inside only, or under the mutex
    by whoever ends a stream of another owner, or on behalf of one that is gone.
``running``
    The owner whose operation runs now.  Written by that owner alone (or on its behalf
    once it is gone), so comparing it with oneself needs no mutex.  While it is set, the
    end of a hold does not give the guard away; so the end of an operation clears it
    first, and looks for holds then, and one that begins in what is held sets it under
    the mutex.
``inside``
    The owner that has full rights between operations, too: by a section, a block or a
    stream.  Published like ``running``.
``window``, ``may_open``
    Written by the owner that is exclusive alone.
``version``, ``last_version``
    ``version`` is ``None`` while somebody may be changing things, or has left things
    ``unsettled``, and otherwise a number that was never there before.  It is written by
    who is exclusive alone: before the first change and after the last one.  A value
    that was read between two looks at the very same version was not changed meanwhile.
    ``last_version`` is where the next number comes from, and is written by who is
    exclusive, too.
``attention``, ``unsettled``, ``failed``, ``unfinished_by``
    Notes for whoever comes in next.  Each is one reference, stored whole: the note
    first, ``attention`` after it.  Who comes in looks at ``attention`` once it is
    inside, and clears what it dealt with there; a note that is stored meanwhile by
    the collector is dealt with by the one after.
``worker``
    Changed inside only.
``forsaken``, ``_chores``
    Deques, appended to by anybody, for appending and taking are one step each.  They
    are emptied under the mutex and inside, respectively.
``sole``, ``checks_askers``
    The first is changed under the mutex; the second goes from true to false once, and
    who still sees it true asks needlessly.
``restricted``, ``since`` and the statistics
    Changed under the mutex, or by the exclusive owner for itself.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from typing import Callable, NoReturn

from . import waiting
from .errors import (
    ConcurrentAccessError,
    DeadlockError,
    LockTimeout,
    SharedSessionError,
)
from .holds import TURN, Hold, Reading, Waiter, WindowOpened
from .owners import Owner
from .terms import (
    BESIDE,
    EXCLUSIVE,
    MOVED,
    MOVED_STREAM,
    SHARED,
    STREAM,
    STREAMS,
    ForeignLock,
    Gate,
    Kind,
    Lock,
    Mode,
    check_timeout,
)

#: That the queue rests until somebody joins it; compared by identity.
FOREVER = math.inf

logger = logging.getLogger("sharedsession")

#: In the gate: the monitor decides who comes in.
CLOSED = object()


def _never() -> bool:
    return False


class Monitor:
    """Admits owners to a session and hands it on; what a :class:`Guard` stands on."""

    __slots__ = (
        *("kind", "timeout", "asker", "clock", "gate", "running", "inside"),
        *("version", "last_version", "window", "may_open", "_windows"),
        *("attention", "unsettled", "unfinished_by", "holds", "_lock", "_shares"),
        *("_make_lock", "_mutex", "_has_gate", "_has_windows"),
        *("_owner", "_loader", "restricted"),
        *("reading", "queue", "rests_until", "_before"),
        *("since", "sole", "checks_askers"),
        *("forsaken", "joiners", "warn_after", "wait_in_loop"),
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
        asker: Callable[[], Owner],
        clock: Callable[[], float],
        make_lock: Callable[[], Lock],
        make_mutex: Callable[[], Lock],
        make_gate: Callable[[], Gate],
    ) -> None:
        self.kind = kind
        self.timeout = check_timeout(timeout)
        self.asker = asker
        self.clock = clock
        self.last_version = 0
        self.version: int | None = 0
        if kind is Kind.CONFINE:
            self.version = None  # for good: every look comes to be checked
        self.running: Owner | None = None
        self.inside: Owner | None = None
        #: True if the next one in has something to be told or to do first.
        self.attention = False
        #: True if that concerns who only looks at what is loaded, too.
        self.unsettled = False
        #: An owner that left a section unfinished, if the next one in must know.
        self.unfinished_by: Owner | None = None
        self._lock = lock
        self._shares = kind is Kind.RW or (lock is not None and lock.shares)
        self._make_lock = make_lock
        self._set_mutex(make_mutex())
        self.gate = make_gate()
        #: A lock of the application's, and a check at each entry, are the monitor's.
        usable = lock is None and kind is not Kind.CONFINE
        self._has_gate = usable and self._may_have_gate
        if not self._has_gate:
            self.gate[0] = CLOSED
        self._has_windows = kind is not Kind.DETECT and kind is not Kind.CONFINE
        self._owner: Owner | None = None
        self._loader: Owner | None = None
        self.restricted = False
        self.holds: dict[int, str] = {}
        self.reading: dict[Owner, Reading] = {}
        self.queue: deque[Waiter] = deque()
        #: Until when who leaves need not see to the queue, as the clock has it.
        self.rests_until = FOREVER
        self._before: list[Waiter] = []  # those who wait for the application's lock
        #: When it became exclusive; for an operation, only if it is timed.
        self.since: float | None = None
        #: Until a second owner came: the first one, who needs no check.
        self.sole: Owner | threading.Thread | None = None
        self.checks_askers = True
        self.forsaken: deque[Hold] = deque()
        #: How many waiters wait to take a turn over, or to join their party in it.
        self.joiners = 0
        #: Seconds of waiting after which a warning is logged; ``None`` for never.
        self.warn_after: float | None = 5.0
        #: Seconds that a coroutine may block its event loop to wait for its turn.
        self.wait_in_loop = 0.0
        #: The owner that has a window open.
        self.window: Owner | None = None
        #: Whether the operation that runs has changed nothing yet, and will do so only
        #: by operations of its own that say so; and there are others at all.
        self.may_open = False
        #: Those of readers; all others show in the version, and so do windows.
        self._shared_entries = self._windows = 0
        self._contended = self._timeouts = 0
        self._wait_seconds = self._longest_wait = self._longest_hold = 0.0

    def _set_mutex(self, mutex: Lock) -> None:
        """Use *mutex*, which is reentrant, for the bookkeeping.

        A finalizer that runs in the middle of it, in the same thread, must not wait for
        its own thread; it asks ``_is_in_mutex()``.
        """
        self._mutex = mutex
        self._is_in_mutex: Callable[[], bool] = getattr(mutex, "_is_owned", _never)

    # -- one operation

    def come_in(self, me: Owner) -> bool:
        """Let *me* in for one operation if nobody is in and nobody waits.

        The usual case, in as few steps as can be.  To be called if none of ``running``,
        ``inside`` and ``window`` is *me*: whoever is in by the gate already would come
        in once more.  Whatever comes of it, :meth:`leave` has to follow.
        """
        known = self.sole is me or not self.checks_askers
        try:
            # The second look is for what a signal handler may have done in between:
            # come in and leave, in this thread.  After it there is no call.
            if known and self.gate.setdefault(0, me) is me and self.gate[0] is me:
                self.version = None
                self.running = me
                return True
        except KeyError:
            pass
        return False

    def open_window(self, me: Owner) -> None:
        """Let others look while *me*, which is in, waits.

        Not in a section or a stream, nor where threads that meet are an error.
        """
        self.may_open = False
        if self.holds or not self._has_windows or not self.is_exclusive(me):
            return
        self._windows += 1
        # No call from here to the version: an interrupt finds it open or not.
        self.window = me
        self.running = None
        self.last_version += 1
        self.version = None if self.unsettled else self.last_version
        if self.queue:
            self._let_look()

    def _let_look(self) -> None:
        """Wake those who only wait to look.

        One who queues later looks for itself whether there is a window.
        """
        with self._mutex:
            for waiter in self.queue:
                if waiter.looks:
                    waiter.wake()
        self.reap()

    def close_window(self, me: Owner) -> None:
        """Let nobody look any more; nothing if the window was closed meanwhile."""
        if self.window is me:
            self.version = None
            self.running = me  # first: a finalizer in between must find it inside
            self.window = None

    def is_still(self, version: int | None) -> bool:
        """Whether nothing has changed since there was that version.

        Without a version, whether nothing can have changed: see :meth:`is_mine`.
        """
        return self.version is version and (version is not None or self.is_mine())

    def is_mine(self) -> bool:
        """Whether the asker may look, because it keeps everybody else out.

        In a section that only reads, it may have to be told something first.  To be
        asked before the look and after it: another thread may have ended a stream, or
        the collector a section that everybody forgot, and nobody gets back in without
        asking for it.
        """
        me = self.asker()
        if self.running is me or self.inside is me:
            return True
        return self._owner is me and not self.attention

    def is_in_bookkeeping(self) -> bool:
        """Whether this thread is in the middle of a change to the guard's own state."""
        return self._is_in_mutex()

    def begin_nested_operation(self, me: Owner) -> None:
        """Let *me*, which is inside, run an operation between two steps of its own."""
        self.version = None
        self.running = me

    def end_nested_operation(self, running: Owner | None, version: int | None) -> None:
        """Go on where ``running`` and ``version`` were these."""
        self.running = running
        if version is not None and not self.unsettled:
            self.last_version += 1
            self.version = self.last_version

    def is_exclusive(self, me: Owner) -> bool:
        return self._owner is me or self.gate.get(0) is me

    def go_on(self, me: Owner) -> bool:
        """Begin an operation in what *me* holds; whether it still holds anything.

        Under the mutex, since whoever ends a hold of *me* in the meantime, in another
        thread, gives the guard away if nothing runs.
        """
        with self._mutex:
            held = self._owner is me or self._loader is me
            if held:
                self.running = me
        if self.forsaken:
            self.reap()
        return held

    def leave(self, me: Owner) -> None:
        """End the operation that :meth:`enter` began, or tried to.

        To be called again if an interrupt came: it does what is left to do.
        """
        if self.inside is me:
            self.running = None
            if self.holds and not self.joiners:
                return  # a section goes on
        elif self.gate.get(0) is me and self._rests():
            if self.since is not None:
                self._note_hold()
            # No call from here to the end: an interrupt finds all of it or nothing.
            self.running = self.window = None
            self.last_version += 1
            self.version = None if self.unsettled else self.last_version
            del self.gate[0]
            if self.rests_until and not self.forsaken:
                return
        self._leave_late(me)

    def _rests(self) -> bool:
        """Whether nobody in the queue is to be seen to now."""
        until = self.rests_until
        return until is FOREVER or self.clock() < until

    def _leave_late(self, me: Owner) -> None:
        """The end of an operation that somebody waits for, or that did not come by the
        gate."""
        if self._is_in_mutex() and self.gate.get(0) is not me:
            # A finalizer in the middle of a change, which sees to the rest itself.
            if self.running is me:
                self.running = None
            return
        with self._mutex:
            if self.gate.get(0) is me:
                self._move_in(me)
            if self._owner is me or self._loader is me:
                self.running = None
                if not self.holds:
                    self._drop()
            self._pass_on()
        if self.forsaken:
            self.reap()

    def _move_in(self, me: Owner) -> None:
        """Let the monitor know *me*, which came in by the gate; nothing if it does."""
        self.close_window(me)
        if self.gate.get(0) is me:
            self._owner = me
            self.gate[0] = CLOSED

    # -- what is held beyond one operation

    def _settle_rights(self) -> None:
        """Who may go on between operations, by what is held."""
        has_rights = self.holds and not self.restricted
        self.inside = self._owner if has_rights else None

    def let_go(self, hold: Hold) -> None:
        """Release *hold*.  May be called again if it was interrupted."""
        if self._is_in_mutex():
            self.abandon(hold, finished=True)  # a finalizer, in the middle of this
            return
        with self._mutex:
            self._let_go(hold)
            self._pass_on()
        self.reap()

    def _let_go(self, hold: Hold) -> None:
        if not hold.is_open:
            return
        self._note_owner(hold)
        me, number = hold.owner, hold.number
        reading = self.reading.get(me)
        # One that is not there, for its stream was dropped, say, keeps nothing: its
        # owner may be in by now for something else.
        if reading is not None and (number in reading.holds or hold.is_ending):
            hold.is_ending = True
            reading.holds.discard(number)
            if not reading.holds and self._loader is not me:
                self._drop_reader(me)
        mine = self._owner is me or self._loader is me
        if mine and (number in self.holds or hold.is_ending):
            hold.is_ending = True
            self.holds.pop(number, None)
            if hold.restricts and self.restricted:
                self.restricted = False
            self._settle_rights()
            if not self.holds and self.running is None:
                self._drop()
        hold.is_open = False

    def forsake(self, hold: Hold) -> None:
        """Release a hold that everybody forgot.

        The collector calls this, in any thread and at any line, in the middle of the
        guard's own bookkeeping too.
        """
        self.abandon(hold, finished=False)

    def abandon(self, hold: Hold, finished: bool) -> None:
        """Release *hold* as soon as the mutex is free; never wait for it.

        :param finished: whether its section was left, and not just forgotten.
        """
        heir = Hold(hold.guard, hold.owner, hold.mode, hold.what, hold.restricts)
        heir.number, heir.is_ending = hold.number, hold.is_ending
        heir.is_finished = finished
        hold.is_open = False
        self.forsaken.append(heir)
        self.reap()

    def reap(self) -> None:
        # If the mutex is taken, its holder comes here when it has released it.
        while self.forsaken and not self._is_in_mutex() and self._mutex.acquire(False):
            try:
                if not self.forsaken:
                    continue  # somebody did it; look again when the mutex is free
                hold = self.forsaken.popleft()
                held = self.holds.get(hold.number, STREAM)
                if held not in STREAMS and not hold.is_finished:
                    self.unfinished_by = hold.owner
                    self.attention = self.unsettled = True
                self._let_go(hold)
                self._pass_on()
            finally:
                self._mutex.release()

    # -- holds that move

    def _note_owner(self, hold: Hold) -> None:
        """Note in *hold* who owns the turn that it keeps; it may have moved."""
        if hold.number in self.holds:
            owner = self._owner or self._loader
            if owner is not None:
                hold.owner = owner
            return
        for owner, reading in self.reading.items():
            if hold.number in reading.holds:
                hold.owner = owner

    def take_over(self, hold: Hold, *, begins: bool = False) -> None:
        """Make the caller the owner of the turn that *hold* keeps.

        Unlike entering, this waits only for the operation that the present owner may be
        in the middle of, not for the end of the turn.

        :param begins: whether an operation of the caller begins with it.
        """
        me = self.asker()
        if me.busy or self._is_in_mutex():
            self.refuse_nested(me)
        me.busy = True
        try:
            with self._mutex:
                moved = not hold.is_open or self._move(hold, me, begins)
            if not moved:
                self._wait(me, hold.mode, self.timeout, False, hold)
                with self._mutex:
                    if begins and hold.is_open:
                        self.running = me
        finally:
            me.busy = False
            if self.forsaken:
                self.reap()
        me.keeps(self)

    def _move(self, hold: Hold, me: Owner, begins: bool = False) -> bool:
        """Give the turn that *hold* keeps to *me*, unless an operation runs in it."""
        self._note_owner(hold)
        owner = hold.owner
        if hold.number not in self.holds and owner not in self.reading:
            return True  # released already
        if owner is not me:
            if self._lock is not None:
                self._refuse_to_move(me, owner)
            if self.running is owner or self.window is owner:
                return False
            if hold.number in self.holds:
                self._turn_moves_to(me)
                is_stream = hold.what == STREAM
                self.holds[hold.number] = MOVED_STREAM if is_stream else MOVED
            elif owner in self.reading:
                self._reading_moves(owner, me)
            hold.owner = me
        if begins and (self._owner is me or self._loader is me):
            self.running = me
        return True

    def _turn_moves_to(self, me: Owner) -> None:
        if self._owner is not None:
            self._owner = me
        else:
            self._loader = me
        self._settle_rights()

    def _reading_moves(self, owner: Owner, me: Owner) -> None:
        reading = self.reading.pop(owner)
        mine = self.reading.setdefault(me, reading)
        mine.holds |= reading.holds

    def _may_join(self, owner: Owner) -> bool:
        """Whether *owner* is of the party that holds the guard, between operations."""
        holder = self._owner or self._loader
        return (
            holder is not None
            and holder.party is owner.party
            and self.running is None
            and bool(self.holds)
        )

    def _is_reading(self, owner: Owner) -> bool:
        """Whether *owner*, or another member of its party, is in a read section."""
        if owner in self.reading or owner.party is owner:
            return owner in self.reading
        return any(other.party is owner.party for other in tuple(self.reading))

    # -- admission

    def _acquire(
        self,
        me: Owner,
        mode: Mode,
        timeout: float | None,
        *,
        looks: bool = False,
    ) -> None:
        """Be admitted in *mode*, or raise with nothing changed.

        With *looks*, raise :class:`WindowOpened` if there is one to wait in no longer.
        """
        # The application's lock first: who has it through another guard on the same
        # lock must not meet somebody in here who waits for it.
        foreign = None if mode is BESIDE and self._is_reading(me) else self._lock
        try:
            if foreign is not None:
                self._acquire_foreign(foreign, me, mode, timeout)
            with self._mutex:
                admitted = self._may_enter_now(me, mode)
                if admitted:
                    self._admit(me, mode)
            if not admitted:
                self._wait(me, mode, timeout, looks)
        except BaseException:
            try:
                self._withdraw(me, mode, foreign)
            except BaseException:
                self._withdraw(me, mode, foreign)  # an interrupt
                raise
            raise
        if self.forsaken:
            self.reap()

    def _may_enter_now(self, me: Owner, mode: Mode) -> bool:
        if self.gate.setdefault(0, CLOSED) is not CLOSED:
            return False  # an operation is in, by the gate
        if self.queue and not self._goes_first(me) and not self._may_overtake(mode):
            return False  # those who came before go before
        return self._fits(mode, me)

    def _goes_first(self, owner: Owner) -> bool:
        """Whether others in the queue wait for something that *owner* is part of."""
        return self._is_reading(owner) or self._may_join(owner)

    def _may_overtake(self, mode: Mode) -> bool:
        """Whether an owner that comes now may enter ahead of the waiters."""
        if not self._has_gate or mode is not EXCLUSIVE or self.queue[0].is_next():
            return False
        return all(waiter.mode is EXCLUSIVE for waiter in self.queue)

    def _fits(self, mode: Mode, owner: Owner) -> bool:
        if self._may_join(owner):
            return True
        if self._owner is not None:
            return False
        if mode is SHARED:
            return True
        return self._loader is None and (mode is BESIDE or not self.reading)

    def _admit(self, me: Owner, mode: Mode) -> None:
        # What calls comes first, what stores then: an interrupt finds all or nothing.
        if self._may_join(me):
            self._turn_moves_to(me)
            return
        now = self.clock()
        if mode is SHARED:
            reading = Reading(now)
            self._shared_entries += 1
            self.reading[me] = reading
            return
        self.since = now
        self.version = None
        if mode is EXCLUSIVE:
            self._owner = me
        else:
            self._loader = me

    def _drop(self) -> None:
        """Take the exclusive, or the one beside the readers, out."""
        owner = self._owner or self._loader
        if owner is None:
            return
        self._note_hold()
        self.holds.clear()
        reading = self.reading.get(owner)
        if reading is not None and not reading.holds:
            self._drop_reader(owner)  # its section ended before its stream
        elif reading is None and self._lock is not None:
            self._lock.release(owner, self)
        # Last, and without a call in it: until then an interrupt leaves it to be
        # done again.
        self.restricted = False
        self.running = self.inside = self.window = None
        self.last_version += 1
        if self.kind is not Kind.CONFINE and not self.unsettled:
            self.version = self.last_version
        self._owner = self._loader = None

    def _note_hold(self) -> None:
        """Note how long it was exclusive, if that is known."""
        if self.since is not None:
            held = self.clock() - self.since
            if held > self._longest_hold:
                self._longest_hold = held
            self.since = None

    def _drop_reader(self, owner: Owner) -> None:
        held = self.clock() - self.reading[owner].since
        if held > self._longest_hold:
            self._longest_hold = held
        if self._lock is not None and self._owner is not owner:
            self._lock.release(owner, self)
        del self.reading[owner]

    def _pass_on(self) -> None:
        """Admit from the head of the queue all that fit together.

        The last step of whatever changes who is in: it opens the gate if nobody is.
        """
        if self.gate.setdefault(0, CLOSED) is not CLOSED:
            return  # an operation is in, by the gate, and comes here when it ends
        closed = False  # behind an exclusive that must wait, only readers' own loads go
        for waiter in tuple(self.queue):
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
                    self._admit(waiter.owner, waiter.mode)
                waiter.admitted = True
                waiter.owner.waiting_for = None
            # Whoever comes here after an interrupt finds it admitted, and wakes it.
            waiter.wake()
            self.queue.remove(waiter)
        if not self.queue:
            self.rests_until = FOREVER
            self._open_gate()

    def _may_admit(self, waiter: Waiter) -> bool:
        if waiter.takes is not None:
            hold = waiter.takes
            return not hold.is_open or self._move(hold, waiter.owner)
        return self._fits(waiter.mode, waiter.owner)

    def _wake_first(self, waiter: Waiter) -> None:
        """Let the first waiter try, and others barge until it is next."""
        waiter.wake()  # first: an interrupt in between finds a waiter that looks
        if waiter.next_at is None:
            waiter.next_at = self.clock() + TURN
        self.rests_until = waiter.next_at
        self._open_gate()

    def _open_gate(self) -> None:
        """Let whoever comes in without the monitor, if nobody is in."""
        taken = self._owner is not None or self._loader is not None
        if self._has_gate and not taken and not self.reading:
            del self.gate[0]

    # -- waiting

    def _wait(
        self,
        me: Owner,
        mode: Mode,
        timeout: float | None,
        looks: bool,
        takes: Hold | None = None,
    ) -> None:
        if not self._lets_wait(me):
            self._refuse_overlap(me)
        blocks_loop = not me.can_wait()
        if blocks_loop:
            if not self.wait_in_loop:
                self._refuse_to_wait(me)
            timeout = min(timeout or self.wait_in_loop, self.wait_in_loop)
        parked = self._make_lock() if blocks_loop else me.parking(self._make_lock)
        waiter = Waiter(self, me, mode, parked, looks, takes)
        waiter.parked.acquire()
        try:
            with self._mutex:
                me.waiting_for = waiter
                self.rests_until = 0.0
                if takes is not None or me.party is not me:
                    self.joiners += 1
                self.queue.append(waiter)
                self._contended += 1
                self._pass_on()
            self.reap()  # before the wait: it may be what is waited for
            self._release_ended_owners(waiter)
            if not waiter.admitted and waiting.would_deadlock(me, waiter):
                if not (waiter.admitted or waiter.woken):  # while it looked
                    self._refuse_deadlock(me)
            self._park(waiter, timeout)
        finally:
            self._end_wait(waiter)
        if waiter.admitted:
            return
        if waiter.may_look:
            raise WindowOpened
        if blocks_loop:
            self._refuse_to_wait(me)
        self._refuse_timeout(me, mode, waiter)

    def _lets_wait(self, me: Owner) -> bool:
        return self.kind not in (Kind.DETECT, Kind.CONFINE)

    def _release_ended_owners(self, waiter: Waiter) -> None:
        """Release what is held by threads that ended and could not tell."""
        for owner in self.blockers(waiter):
            if owner.has_ended():
                owner.alive = False
                self.bury(owner)

    def bury(self, owner: Owner) -> None:
        """Release what an owner that has ended still held."""
        raise NotImplementedError

    def _park(self, waiter: Waiter, timeout: float | None) -> None:
        """Wait until *waiter* is admitted, or the time is up."""
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
            next_at = waiter.next_at if self.rests_until else None
            times = [t - now for t in (end, warn_at, next_at) if t is not None]
            woken = waiter.parked.acquire(timeout=max(min(times), 0) if times else -1)
            with self._mutex:
                if woken:
                    waiter.woken = False
                if waiter.is_next():
                    self.rests_until = 0.0  # whoever leaves hands over from now on
                if not waiter.admitted and waiter.takes is None:
                    self._admit_if_free(waiter)
            self.reap()

    def _warn(self, waiter: Waiter) -> None:
        """Log who holds the guard: the wait is long, and may be endless."""
        self._release_ended_owners(waiter)
        if not waiter.admitted:
            logger.warning(
                "%s has waited more than %g s for its turn in a shared session, at "
                "%s. %s%s",
                *(waiter.owner.name, self.warn_after, waiter.owner.where()),
                *(self.explain(), self._hint(waiter)),
            )

    def _hint(self, waiter: Waiter) -> str:
        """What may help, if the code of the holder is suspended or waits."""
        if not self.holds or self.running is not None:
            return ""
        return (
            " No operation runs: the code of that block is suspended, or waits for "
            "something else. If one task goes on in another thread, such as a request "
            "whose dependency entered the block, run it as one owner: one_owner(), or "
            "sharedsession.asgi.RequestOwner for an ASGI application."
        )

    def _admit_if_free(self, waiter: Waiter) -> None:
        """Admit *waiter*, which is awake, if it is the first and nobody is in."""
        if self.gate.setdefault(0, CLOSED) is not CLOSED:
            return
        first = self.queue and self.queue[0] is waiter
        if first and self._fits(waiter.mode, waiter.owner):
            waiter.next_at = waiter.since  # awake and first: no more barging
        self._pass_on()

    def _end_wait(self, waiter: Waiter) -> None:
        with self._mutex:
            if waiter.takes is not None or waiter.owner.party is not waiter.owner:
                self.joiners -= 1
            if waiter in self.queue:  # not if it was let in, or never got that far
                self.rests_until = 0.0
                self.queue.remove(waiter)
                self._pass_on()  # those behind may have waited for this one only
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
        """Take the application's lock, on which the next one waits for the last."""
        if lock.acquire(mode, me, self, 0):
            return
        if not me.can_wait():
            self._refuse_to_wait(me)
        waiter = Waiter(self, me, mode, me.parking(self._make_lock))
        me.waiting_for = lock
        try:
            with self._mutex:
                self._before.append(waiter)
                self._contended += 1
            self.reap()
            if waiting.would_deadlock(me, lock):
                self._refuse_deadlock(me)
            got = lock.acquire(mode, me, self, timeout)
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
            raise LockTimeout(
                f"{me.name} did not get the lock that this guard stands on in "
                f"{timeout:g} s. {waiting.describe(lock.blockers())} Give it more time "
                "with timeout= or lock_timeout=, or hold the lock for less."
            )

    def _end_wait_before(self, waiter: Waiter) -> None:
        with self._mutex:
            waiter.owner.waiting_for = None
            if waiter in self._before:
                self._before.remove(waiter)
                self._note_wait(waiter)
        self.reap()

    def _withdraw(self, me: Owner, mode: Mode, foreign: ForeignLock | None) -> None:
        """Undo what an acquisition that failed may have reached."""
        with self._mutex:
            me.waiting_for = None
            self.rests_until = 0.0
            for waiter in tuple(self.queue):
                if waiter.owner is me:
                    self.queue.remove(waiter)
            if mode is SHARED and me in self.reading:
                self._drop_reader(me)
            elif self._owner is me or self._loader is me:
                self._drop()
            elif foreign is not None:
                foreign.release(me, self)
            self._pass_on()
        self.reap()

    # -- refusals

    def refuse_nested(self, me: Owner) -> NoReturn:
        raise SharedSessionError(
            f"{me.name} used a shared session in a finalizer or a signal handler that "
            "came in while the same thread was entering or leaving a guard, or waited "
            "for its turn, so it cannot wait for its turn again. Nothing was changed. "
            "Let finalizers and signal handlers only note what is to be done, and do "
            "it with the session in ordinary code."
        )

    def _refuse_to_move(self, me: Owner, owner: Owner) -> NoReturn:
        raise ConcurrentAccessError(
            f"{me.name} would take over what {owner.name} holds, and the lock object "
            "of this session belongs to the thread that acquired it. Nothing was "
            "changed. Leave it there, or use a kind of lock by its name."
        )

    def _refuse_overlap(self, me: Owner) -> NoReturn:
        raise ConcurrentAccessError(
            f"{me.name}, at {me.where()}, came into a session while another {me.noun} "
            f"was inside. {self.explain()} Two {me.noun}s shared it: give each its own "
            "session, or let them take turns with lock='rlock' or 'rw'."
        )

    def _refuse_to_wait(self, me: Owner) -> NoReturn:
        raise SharedSessionError(
            f"{me.name}, at {me.where()}, would wait for its turn in a session, and "
            f"the event loop that runs in it would stand still. {self.explain()} "
            "Nothing was changed. Use the session in asyncio.to_thread(), or let the "
            "tasks share an AsyncSharedSession."
        )

    def _refuse_deadlock(self, me: Owner) -> NoReturn:
        raise DeadlockError(
            f"{me.name} would wait for ever: the holder of this guard waits, directly "
            f"or through others, for something that {me.name} holds. {self.explain()} "
            "Enter the sections of several sessions in the same order everywhere."
        )

    def _refuse_timeout(self, me: Owner, mode: Mode, waiter: Waiter) -> NoReturn:
        with self._mutex:
            self._timeouts += 1
        self.reap()
        waited = self.clock() - waiter.since
        raise LockTimeout(
            f"{me.name} waited {waited:.3g} s for {mode.value} access and did not get "
            f"it. {self.explain()} Nothing was changed. Give it more time with "
            "timeout= or lock_timeout=, or make the holder's section shorter."
        )

    # -- who is there

    def _in_by_gate(self) -> Owner | None:
        owner = self.gate.get(0)
        return owner if isinstance(owner, Owner) else None

    def blockers(self, waiter: Waiter) -> list[Owner]:
        """Whom *waiter* waits for here.

        Readers keep an exclusive one out, and whoever is in the queue behind it.
        """
        waiting_owner = waiter.owner
        with self._mutex:
            present = {self._owner, self._loader, self._in_by_gate()}
            exclusives = waiter.mode is EXCLUSIVE or any(
                other.mode is EXCLUSIVE for other in self.queue
            )
            if exclusives and not self._is_reading(waiting_owner):
                present.update(self.reading)
        self.reap()
        # It may have been let in meanwhile, and nobody waits for itself.
        return [o for o in present if o is not None and o is not waiting_owner]

    def explain(self) -> str:
        """Say who holds this guard, since when, at which line, and who waits."""
        with self._mutex:
            now = self.clock()
            exclusive = self._owner or self._loader or self._in_by_gate()
            since = self.since
            readers = [(o, now - reading.since) for o, reading in self.reading.items()]
            waiters = [*self._before, *self.queue]
            queue = [(w.owner, w.mode, now - w.since) for w in waiters]
        self.reap()
        said = []
        if exclusive is not None:
            # An operation that is not timed was there when the first one had to wait.
            known = [now - since] if since is not None else [t for *_, t in queue]
            said.append(f"{_held_by(exclusive, 'exclusively', max(known, default=0))}.")
        said += [f"{_held_by(o, 'for reading', t)}." for o, t in readers]
        said += [f"{o.name} has waited {t:.3g} s for {m.value}." for o, m, t in queue]
        return " ".join(said) or "Nobody holds the guard and nobody waits."


def _held_by(owner: Owner, how: str, seconds: float) -> str:
    return f"{owner.name} has held it {how} for {seconds:.3g} s, now at {owner.where()}"
