"""The guard: who may be inside a session now, and who waits.

A guard is a monitor.  All of its state is changed under one small mutex that is never
held while anything else runs: no user code, no wait, no logging.  (One exception: the
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

Fields, and how each is published:

``_owner``, ``_loader``, ``_readers``, ``_queue``
    Changed under the mutex only.  An owner may compare ``_owner`` or ``_loader`` with
    itself, and look itself up in ``_readers``, without the mutex: only that owner
    puts itself there or takes itself away.
``holds``
    What keeps the guard beyond one operation.  Changed inside only, or on behalf of an
    owner that is gone.
``inside``
    The owner with full rights now.  Written by that owner alone (or on its behalf
    once it is gone), so comparing it with oneself needs no mutex.
``operating``
    Whether an operation of ``inside`` runs, so that the end of a hold meanwhile does
    not give the guard away.  Written by that owner alone.
``version``
    Odd while somebody may be changing things, even otherwise; it only grows.  Written
    under the mutex, before the first change and after the last one, read by anybody:
    a value that was read between two looks at the same even version was not changed
    meanwhile.
``attention``, ``failed``, ``unfinished_by``
    Notes for whoever comes in next.  Each is one reference, stored whole: the note
    first, ``attention`` after it.  Who comes in looks at ``attention`` once it is
    inside, and clears what it dealt with there; a note that is stored meanwhile by
    the collector is dealt with by the one after.
``worker``, ``promises``
    Changed inside only.
``_forsaken``, ``_chores``
    Deques, appended to by anybody, for appending and taking are one step each.  They
    are emptied under the mutex and inside, respectively.
``_sole``, ``_checks_askers``
    The first is changed under the mutex; the second goes from true to false once, and
    who still sees it true asks needlessly.
``_restricted``, ``_since`` and the statistics
    Changed under the mutex, or by the exclusive owner for itself.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from typing import Any, Callable, Literal, NoReturn

from . import waiting
from .errors import (
    ConcurrentAccessError,
    DeadlockError,
    ForkedSessionError,
    LockTimeout,
    SharedSessionError,
    UpgradeError,
)
from .holds import Hold, Reading, Waiter
from .owners import Owner, current_owner, on_death
from .terms import (
    BESIDE,
    CHANGE,
    EXCLUSIVE,
    LOAD,
    READ,
    SHARED,
    STREAM,
    Access,
    ForeignLock,
    GuardStats,
    Kind,
    Lock,
    Mode,
    Promise,
)

logger = logging.getLogger("sharedsession")


_guard_numbers = itertools.count(1)


class Guard:
    """Decides which thread may be inside a session.

    Like a :class:`threading.RLock`, but it knows its holder, can be shared by readers,
    notices what would never end, and tells what it has seen.  Sessions make their own;
    use :attr:`SharedSession.guard` to look at it.
    """

    #: What :meth:`hand_over` takes.
    _flows: type[Any] = threading.Thread
    #: Whether objects may be made of rows later, if no other owner came in before.
    keeps_promises = True

    def __init__(
        self,
        kind: Kind = Kind.RLOCK,
        *,
        lock: ForeignLock | None = None,
        timeout: float | None = None,
        asker: Callable[[], Owner] = current_owner,
        clock: Callable[[], float] = time.monotonic,
        make_lock: Callable[[], Lock] = threading.Lock,
    ) -> None:
        #: Later guards have higher numbers; several are acquired in this order.
        self.number = next(_guard_numbers)
        self.kind = kind
        self.timeout = check_timeout(timeout)
        self.asker = asker
        self.clock = clock
        self.version = 0
        self.inside: Owner | None = None
        #: The session, if there is one, and it is alive.
        self.session: Callable[[], Any] = _no_session
        #: The owner whose work in the present transaction was noted last.
        self.worker: Owner | None = None
        #: Called with an owner that left work in the transaction.
        self.note_work: Callable[[Owner], None] = _no_note
        #: Called when a second owner first comes in; refuses it by raising.
        self.second_owner: Callable[[Owner], None] = _no_note
        #: True if the next one in has something to be told or to do first.
        self.attention = False
        #: Whose operation raised last, and what: it may have broken the transaction.
        self.failed: tuple[Owner, str] | None = None
        #: Does that; called with the owner that came in and what for.
        self.attend: Callable[[Owner, Access], None] | None = None
        self._lock = lock
        self._shares = kind is Kind.RW or (lock is not None and lock.shares)
        self._make_lock = make_lock
        self._mutex = make_lock()
        self._owner: Owner | None = None
        self._loader: Owner | None = None
        self.operating = False
        self._restricted = False
        self.holds: dict[int, str] = {}
        self._readers: dict[Owner, Reading] = {}
        self._queue: deque[Waiter] = deque()
        self._before: list[Waiter] = []  # those who wait for the application's lock
        self._since = 0.0
        #: Until a second owner came: the first one, who needs no check.
        self._sole: Owner | threading.Thread | None = None
        self._process = os.getpid()
        self._checks_askers = True
        self._forsaken: deque[Hold] = deque()
        self._chores: deque[Callable[[], None]] = deque()
        #: What is to be done before another owner comes in, as long as it matters to
        #: anybody.  Changed inside only.
        self.promises: weakref.WeakSet[Promise] = weakref.WeakSet()
        #: An owner that left a section unfinished, if the next one in must know.
        self.unfinished_by: Owner | None = None
        self._acquisitions = self._contended = self._timeouts = 0
        self._wait_seconds = self._longest_wait = self._longest_hold = 0.0
        if kind is Kind.CONFINE:
            self.version = 1  # odd for good: every look comes to be checked
        _guards.add(self)

    # -- one operation

    def enter(self, me: Owner, access: Access) -> None:
        """Let *me* in for one operation; to be called if ``inside`` is not *me*.

        Whatever comes of it, :meth:`leave` has to follow.
        """
        if self._checks_askers and self._sole is not me:
            self._check_asker(me)
        if self._enter_if_free(me):
            pass
        elif self._owner is me or self._loader is me or me in self._readers:
            self._enter_from_read_section(me, access)
        else:
            mode = BESIDE if access is READ and self._shares else EXCLUSIVE
            self._acquire(me, mode, self.timeout)
            self.operating = True
        if self.attention:
            self._attend(me, access)

    def _attend(self, me: Owner, access: Access) -> None:
        if self.attend is not None:  # there is a session
            self.attend(me, access)

    def _enter_if_free(self, me: Owner) -> bool:
        """The usual case, in as few steps as can be: nobody is in, nobody waits."""
        if self._lock is not None:
            return False
        with self._mutex:
            if (
                self._owner is None
                and self._loader is None
                and not self._readers
                and not self._queue
            ):
                self._acquisitions += 1
                self._since = self.clock()
                self.version |= 1
                self._owner = self.inside = me
                self.operating = True
                return True
        return False

    def _enter_from_read_section(self, me: Owner, access: Access) -> None:
        if access is not READ and access is not LOAD:
            self.refuse_write()
        if self._owner is me or self._loader is me:
            self.inside = me
        else:
            self._acquire(me, BESIDE, self.timeout)
        self.operating = True

    def exclude_others(self, me: Owner) -> bool:
        """Make *me*, which is inside for one operation, exclusive; whether it is then.

        Not inside a read section.  Others may come in before: whoever asks has to look
        again at what it found.
        """
        if self._loader is me and me not in self._readers:
            with self._mutex:
                self._drop()
                self._pass_on()
            self._acquire(me, EXCLUSIVE, self.timeout)
            self.operating = True
        return self._owner is me

    def leave(self, me: Owner) -> None:
        """End the operation that :meth:`enter` began, or tried to.

        To be called again if an interrupt came: it does what is left to do.
        """
        with self._mutex:
            if self._owner is me and not self.holds and self._lock is None:
                self._drop_alone()
            elif self._owner is me or self._loader is me:
                self.operating = False
                if not self.holds:
                    self._drop()
                elif self._restricted or self._loader is me:
                    self.inside = None
            if self._queue:
                self._pass_on()
        if self._forsaken:
            self._reap()

    # -- sections, blocks and streams

    def hold(self, what: str, timeout: float | None = None) -> Hold:
        """Acquire the guard exclusively until the hold is released."""
        me = self.asker()
        if self._owner is not me or self.inside is not me:
            if self._owner is me or self._loader is me or me in self._readers:
                raise UpgradeError(
                    f"A {what} cannot begin inside a read section of {me.name}: others "
                    "may be reading. Leave the read section first, or make the outer "
                    "section a critical_section()."
                )
        return self._take(me, EXCLUSIVE, what, timeout, restricts=False)

    def hold_shared(self, what: str, timeout: float | None = None) -> Hold:
        """Acquire the guard for reading until the hold is released."""
        me = self.asker()
        if self._owner is me or self._loader is me or not self._shares:
            return self._take(me, EXCLUSIVE, what, timeout, restricts=True)
        return self._take(me, SHARED, what, timeout, restricts=False)

    def reads_only(self) -> bool:
        """Whether the asker is in a read section, or in an operation inside one."""
        me = self.asker()
        if self._owner is me:
            return self._restricted
        return self._loader is me or me in self._readers

    def keep(self, what: str) -> Hold:
        """Keep the guard beyond the operation that runs now: for a stream."""
        me = self.asker()
        hold = Hold(self, me, BESIDE if self._loader is me else EXCLUSIVE, what, False)
        self.holds[hold.number] = what
        return hold

    def drop_streams(self, before: tuple[int, ...]) -> None:
        """End the streams that an operation which raised began: nobody has them."""
        for number, what in list(self.holds.items()):
            if what == STREAM and number not in before:
                del self.holds[number]

    def _take(
        self, me: Owner, mode: Mode, what: str, timeout: float | None, restricts: bool
    ) -> Hold:
        mine = self._owner is me or self._loader is me or me in self._readers
        hold = Hold(self, me, mode, what, False)
        try:
            if not mine:
                if self._checks_askers and self._sole is not me:
                    self._check_asker(me)
                wanted = self.timeout if timeout is None else check_timeout(timeout)
                self._acquire(me, mode, wanted)
            if mode is SHARED:
                self._readers[me].holds.add(hold.number)
            else:
                self.holds[hold.number] = what
                if restricts and not self._restricted:
                    hold.restricts = self._restricted = True
                    self.inside = None
            if self.attention and mode is EXCLUSIVE and not restricts:
                self._attend(me, CHANGE)
        except BaseException:
            hold.release()
            raise
        return hold

    def downgrade(self, hold: Hold) -> None:
        """Let readers in beside an exclusive *hold*, and nobody in between.

        Where there is no sharing, or something else keeps the guard exclusive, only
        the right to change things goes.
        """
        me = hold.owner
        with self._mutex:
            alone = [*self.holds] == [hold.number] and not self.operating
            lock = self._lock
            if alone and self._shares and (lock is None or lock.downgrade(me, self)):
                reading = self._readers[me] = Reading(self._since)
                reading.holds.add(hold.number)
                hold.mode = SHARED
                self._drop()
                self._pass_on()
            elif not self._restricted:
                hold.restricts = self._restricted = True
                self.inside = None
        self._reap()

    def let_go(self, hold: Hold) -> None:
        """Release *hold*.  May be called again if it was interrupted."""
        with self._mutex:
            self._let_go(hold)
            self._pass_on()
        self._reap()

    def _let_go(self, hold: Hold) -> None:
        me = hold.owner
        reading = self._readers.get(me)
        if reading is not None:
            reading.holds.discard(hold.number)
            if not reading.holds and self._loader is not me:
                self._drop_reader(me)
        if self._owner is me or self._loader is me:
            self.holds.pop(hold.number, None)
            if hold.restricts and self._restricted:
                self._restricted = False
                self.inside = me if self._owner is me else None
            if not self.holds and not self.operating:
                self._drop()
        hold.is_open = False

    def forsake(self, hold: Hold) -> None:
        """Release a hold that everybody forgot.

        Comes from the collector, so in any thread and at any line, this module's
        included: it must not wait for the mutex.
        """
        heir = Hold(self, hold.owner, hold.mode, hold.what, hold.restricts)
        heir.number = hold.number
        hold.is_open = False
        self._forsaken.append(heir)
        self._reap()

    def _reap(self) -> None:
        # If the mutex is taken, its holder comes here when it has released it.
        while self._forsaken and self._mutex.acquire(False):
            try:
                if not self._forsaken:
                    continue  # somebody did it; look again when the mutex is free
                hold = self._forsaken.popleft()
                if self.holds.get(hold.number, STREAM) != STREAM:
                    self.unfinished_by = hold.owner
                    self.attention = True
                self._let_go(hold)
                self._pass_on()
            finally:
                self._mutex.release()

    def leave_behind(self, chore: Callable[[], None]) -> None:
        """Have *chore* done by the next owner that comes in; never waits."""
        self._chores.append(chore)
        self.attention = True

    def has_chores(self) -> bool:
        return bool(self._chores or self.promises) or self.unfinished_by is not None

    def do_chores(self, me: Owner) -> None:
        """Do what was left behind, and keep others' promises; to be called inside."""
        while self._chores:
            self._chores.popleft()()
        for promise in tuple(self.promises):
            if promise.owner is not me:
                promise.keep()

    # -- the monitor

    def _acquire(self, me: Owner, mode: Mode, timeout: float | None) -> None:
        """Be admitted in *mode*, or raise with nothing changed."""
        # The application's lock first: who has it through another guard on the same
        # lock must not meet somebody in here who waits for it.
        foreign = None if mode is BESIDE and me in self._readers else self._lock
        try:
            if foreign is not None:
                self._acquire_foreign(foreign, me, mode, timeout)
            with self._mutex:
                admitted = self._may_enter_now(me, mode)
                if admitted:
                    self._admit(me, mode)
            if not admitted:
                self._wait(me, mode, timeout)
        except BaseException:
            try:
                self._withdraw(me, mode, foreign)
            except BaseException:
                self._withdraw(me, mode, foreign)  # an interrupt
                raise
            raise
        if self._forsaken:
            self._reap()

    def _may_enter_now(self, me: Owner, mode: Mode) -> bool:
        if self._queue and not self._goes_first(me):
            return False  # those who came before go before
        return self._fits(mode, me)

    def _goes_first(self, owner: Owner) -> bool:
        """Whether others in the queue wait for something that *owner* is part of."""
        return owner in self._readers

    def _fits(self, mode: Mode, owner: Owner) -> bool:
        if self._owner is not None:
            return False
        if mode is SHARED:
            return True
        return self._loader is None and (mode is BESIDE or not self._readers)

    def _admit(self, me: Owner, mode: Mode) -> None:
        # What calls comes first, what stores then: an interrupt finds all or nothing.
        now = self.clock()
        if mode is SHARED:
            reading = Reading(now)
            self._acquisitions += 1
            self._readers[me] = reading
            return
        self._acquisitions += 1
        self._since = now
        self.version |= 1
        if mode is EXCLUSIVE:
            self._owner = me
        else:
            self._loader = me
        self.inside = me

    def _drop_alone(self) -> None:
        """Like :meth:`_drop`, for the usual case: one operation, and nothing else."""
        held = self.clock() - self._since
        if held > self._longest_hold:
            self._longest_hold = held
        self.operating = self._restricted = False
        self.inside = None
        if self.kind is not Kind.CONFINE:
            self.version = (self.version | 1) + 1
        self._owner = None

    def _drop(self) -> None:
        """Take the exclusive, or the one beside the readers, out."""
        owner = self._owner or self._loader
        if owner is None:
            return
        held = self.clock() - self._since
        if held > self._longest_hold:
            self._longest_hold = held
        self.holds.clear()
        reading = self._readers.get(owner)
        if reading is not None and not reading.holds:
            self._drop_reader(owner)  # its section ended before its stream
        elif reading is None and self._lock is not None:
            self._lock.release(owner, self)
        # Last, and without a call in it: until then an interrupt leaves it to be
        # done again.
        self.operating = self._restricted = False
        self.inside = None
        if self.kind is not Kind.CONFINE:
            self.version = (self.version | 1) + 1
        self._owner = self._loader = None

    def _drop_reader(self, owner: Owner) -> None:
        held = self.clock() - self._readers[owner].since
        if held > self._longest_hold:
            self._longest_hold = held
        if self._lock is not None and self._owner is not owner:
            self._lock.release(owner, self)
        del self._readers[owner]

    def _pass_on(self) -> None:
        """Admit from the head of the queue all that fit together."""
        closed = False  # behind an exclusive that must wait, only readers' own loads go
        for waiter in tuple(self._queue):
            if not waiter.admitted:
                if closed and not self._goes_first(waiter.owner):
                    continue
                if not self._fits(waiter.mode, waiter.owner):
                    closed = closed or waiter.mode is not BESIDE
                    continue
                self._admit(waiter.owner, waiter.mode)
                waiter.admitted = True
                waiter.owner.waiting_for = None
            # Whoever comes here after an interrupt finds it admitted, and wakes it.
            waiter.wake()
            self._queue.remove(waiter)

    def _wait(self, me: Owner, mode: Mode, timeout: float | None) -> None:
        if not self._lets_wait(me):
            self._refuse_overlap(me)
        if not me.can_wait():
            self._refuse_to_wait(me)
        waiter = Waiter(self, me, mode, me.parking(self._make_lock))
        waiter.parked.acquire()
        try:
            with self._mutex:
                me.waiting_for = waiter
                self._queue.append(waiter)
                self._contended += 1
                self._pass_on()
            self._reap()  # before the wait: it may be what is waited for
            if not waiter.admitted and waiting.would_deadlock(me, waiter):
                if not waiter.admitted:  # while it looked; then what it saw was itself
                    self._refuse_deadlock(me)
            waiter.parked.acquire(timeout=-1 if timeout is None else timeout)
        finally:
            self._end_wait(waiter)
        if not waiter.admitted:
            self._refuse_timeout(me, mode, waiter)

    def _lets_wait(self, me: Owner) -> bool:
        return self.kind not in (Kind.DETECT, Kind.CONFINE)

    def _end_wait(self, waiter: Waiter) -> None:
        with self._mutex:
            if waiter in self._queue:  # not if it was let in, or never got that far
                self._queue.remove(waiter)
                self._pass_on()  # those behind may have waited for this one only
            waiter.owner.waiting_for = None
            self._note_wait(waiter)
        self._reap()

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
            self._reap()
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
            self._reap()
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
        self._reap()

    def _withdraw(self, me: Owner, mode: Mode, foreign: ForeignLock | None) -> None:
        """Undo what an acquisition that failed may have reached."""
        with self._mutex:
            me.waiting_for = None
            for waiter in tuple(self._queue):
                if waiter.owner is me:
                    self._queue.remove(waiter)
            if mode is SHARED and me in self._readers:
                self._drop_reader(me)
            elif self._owner is me or self._loader is me:
                self._drop()
            elif foreign is not None:
                foreign.release(me, self)
            self._pass_on()
        self._reap()

    # -- refusals

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

    def refuse_write(self) -> NoReturn:
        raise UpgradeError(
            "This is a write, and it was asked for inside a read section of "
            f"{self.asker().name}. Nothing was changed. Leave the read section first, "
            "or use critical_section() in its place."
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
        self._reap()
        waited = self.clock() - waiter.since
        raise LockTimeout(
            f"{me.name} waited {waited:.3g} s for {mode.value} access and did not get "
            f"it. {self.explain()} Nothing was changed. Give it more time with "
            "timeout= or lock_timeout=, or make the holder's section shorter."
        )

    def _check_asker(self, me: Owner) -> None:
        """What the only owner so far need not be asked."""
        if self._process != os.getpid():
            raise ForkedSessionError(
                "This session was made in process "
                f"{self._process} and belongs to it; this is the forked process "
                f"{os.getpid()}. Make a new session here."
            )
        with self._mutex:
            sole = self._sole
            free = sole is None or sole is me.flow or self._is_free_to_take(sole)
            if free:
                self._sole = me
        self._reap()
        if free:
            return
        assert sole is not None
        if self.kind is Kind.CONFINE:
            self._refuse_stranger(me, sole)
        self.second_owner(me)
        self._checks_askers = False

    def _is_free_to_take(self, sole: Owner | threading.Thread) -> bool:
        if self.kind is not Kind.CONFINE:
            return False
        if isinstance(sole, Owner):
            return not sole.alive
        return sole.ident is not None and not sole.is_alive()

    def _refuse_stranger(self, me: Owner, sole: Any) -> NoReturn:
        owner = sole.name if isinstance(sole, Owner) else self._name_of(sole)
        raise ConcurrentAccessError(
            f"This session is confined to {owner}; {me.name}, at "
            f"{me.where()}, used it or one of its objects. Give this {me.noun} a "
            "session of its own and copy objects with merge_into(), or let the owner "
            "pass it on with session.guard.hand_over()."
        )

    def _name_of(self, flow: Any) -> str:
        return f"thread {flow.name!r}"

    def hand_over(self, thread: Any = None) -> None:
        """Pass a confined session on.

        :param thread: the thread that owns it from now on; ``None``, the default, for
            whoever uses it next.
        :raises ConcurrentAccessError: if another thread owns it.
        :raises SharedSessionError: if the kind is not ``"confine"``, or a section is
            open.
        """
        if self.kind is not Kind.CONFINE:
            raise SharedSessionError(
                f"Only lock='confine' has an owner to change; this is {self!r}."
            )
        if thread is not None and not isinstance(thread, self._flows):
            raise SharedSessionError(
                f"hand_over() takes a {self._flows.__name__}, not {thread!r}."
            )
        me = self.asker()
        if self._sole is not me:
            self._check_asker(me)
        if self._owner is not None:
            raise SharedSessionError(
                "A section or a stream of this session is open; leave or close it "
                "before hand_over()."
            )
        with self._mutex:
            self._sole = thread
        self._reap()

    # -- what a person wants to know

    @property
    def held(self) -> Literal["exclusive", "shared"] | None:
        """How the calling thread holds this guard."""
        me = self.asker()
        if self._owner is me:
            return "exclusive"
        return "shared" if me in self._readers or self._loader is me else None

    @property
    def is_shared(self) -> bool:
        """Whether more than one owner has come in so far."""
        return not self._checks_askers

    @property
    def owner(self) -> Any:
        """The thread (or the task) that is exclusive, if one is."""
        owner = self._owner
        return None if owner is None else owner.flow

    @property
    def readers(self) -> tuple[Any, ...]:
        """The threads (or the tasks) in read sections that share."""
        with self._mutex:
            readers = tuple(owner.flow for owner in self._readers)
        self._reap()
        return readers

    @property
    def waiting(self) -> tuple[Any, ...]:
        """The threads (or the tasks) that wait, in the order of their arrival."""
        with self._mutex:
            waiters = [*self._before, *self._queue]
        self._reap()
        return tuple(waiter.owner.flow for waiter in waiters)

    def blockers(self, waiter: Waiter) -> list[Owner]:
        """Whom *waiter* waits for here.

        Readers keep an exclusive one out, and whoever is in the queue behind it.
        """
        waiting_owner = waiter.owner
        with self._mutex:
            present = {self._owner, self._loader}
            exclusives = waiter.mode is EXCLUSIVE or any(
                other.mode is EXCLUSIVE for other in self._queue
            )
            if exclusives and waiting_owner not in self._readers:
                present.update(self._readers)
        self._reap()
        # It may have been let in meanwhile, and nobody waits for itself.
        return [o for o in present if o is not None and o is not waiting_owner]

    def stats(self) -> GuardStats:
        """Return the figures so far."""
        with self._mutex:
            stats = GuardStats(
                self._acquisitions,
                self._contended,
                self._wait_seconds,
                self._longest_wait,
                self._longest_hold,
                self._timeouts,
            )
        self._reap()
        return stats

    def explain(self) -> str:
        """Say who holds this guard, since when, at which line, and who waits."""
        with self._mutex:
            now = self.clock()
            exclusive = self._owner or self._loader
            since = self._since
            readers = [(o, now - reading.since) for o, reading in self._readers.items()]
            waiters = [*self._before, *self._queue]
            queue = [(w.owner, w.mode, now - w.since) for w in waiters]
        self._reap()
        said = []
        if exclusive is not None:
            said.append(f"{_held_by(exclusive, 'exclusively', now - since)}.")
        said += [f"{_held_by(o, 'for reading', t)}." for o, t in readers]
        said += [f"{o.name} has waited {t:.3g} s for {m.value}." for o, m, t in queue]
        return " ".join(said) or "Nobody holds the guard and nobody waits."

    def __repr__(self) -> str:
        owner = self._owner
        state = "free"
        if owner is not None:
            state = f"held by {owner.name}"
        elif self._readers:
            state = f"read by {len(self._readers)}"
        return f"<Guard {self.kind.value} {state}, {len(self._queue)} waiting>"

    def __reduce__(self) -> NoReturn:
        raise SharedSessionError(
            "A guard cannot be pickled: it is about the threads of this process."
        )

    # -- owners and processes that are no more

    def bury(self, owner: Owner) -> None:
        """Release what a thread that ended still held."""
        with self._mutex:
            held = self._owner is owner or self._loader is owner
            if held:
                if any(what != STREAM for what in self.holds.values()):
                    self.unfinished_by = owner
                    self.attention = True
                self._drop()
            if owner in self._readers:
                held = True
                self._drop_reader(owner)
            self._pass_on()
        self._reap()
        if held:
            logger.warning("%s ended while it held a guard; released", owner.name)

    def check_may_relate(self) -> None:
        """Refuse a change to what belongs to what, where it would be lost."""

    def disown(self) -> None:
        """Make everybody come to be refused: this is the child of a fork."""
        self._mutex = self._make_lock()  # the old one may be held by nobody
        self._checks_askers = True
        self._sole = None
        self.version |= 1
        self.inside = self._owner = self._loader = None
        self.operating = self._restricted = False
        self.holds = {}
        self._readers = {}
        self._queue = deque()


def _no_session() -> None:
    """For a guard that somebody made to look at."""


def _no_note(owner: Owner) -> None:
    """For a guard without a session: there is no transaction to lose work of."""


def _held_by(owner: Owner, how: str, seconds: float) -> str:
    return f"{owner.name} has held it {how} for {seconds:.3g} s, now at {owner.where()}"


def check_timeout(timeout: float | None) -> float | None:
    """Return *timeout*, a number of seconds above zero or ``None`` for ever."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ValueError(
            f"timeout must be a number of seconds or None, not {timeout!r}"
        )
    if not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
    return timeout


#: Every guard alive, for those two events that concern all of them.
_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _bury_everywhere(owner: Owner) -> None:
    for guard in list(_guards):
        try:
            guard.bury(owner)
        except Exception:  # an application's lock may refuse to be released
            logger.exception(
                "%s ended, and %r could not be released", owner.name, guard
            )


def disown_all() -> None:
    """In the child of a fork: all guards are the parent's."""
    for guard in list(_guards):
        guard.disown()


on_death.append(_bury_everywhere)
