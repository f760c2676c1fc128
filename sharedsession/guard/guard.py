"""The guard of a session: what the library and its users call on top of the monitor.

The monitor admits owners.  The guard adds the uses of an admission (operations,
sections, blocks, streams), the checks of each new owner, work that is deferred to the
next owner, statistics and reports, and the cleanup after a dead owner or a fork.
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

from ..errors import (
    ConcurrentAccessError,
    ForkedSessionError,
    SharedSessionError,
    UpgradeError,
)
from .access import (
    BESIDE,
    CHANGE,
    EXCLUSIVE,
    GO_ON,
    LOAD,
    READ,
    SHARED,
    STREAMS,
    Access,
    ForeignLock,
    Gate,
    GuardStats,
    Kind,
    Lock,
    Recovery,
    check_timeout,
)
from .monitor import CLOSED, FOREVER, Monitor
from .owner import Owner, on_death
from .task import current_owner
from .turn import Hold, Reading

logger = logging.getLogger("sharedsession")


_guard_numbers = itertools.count(1)


class Guard(Monitor):
    """Decides which thread may be inside a session.

    Like a :class:`threading.RLock`, but a guard names its owner, can be shared by
    readers, raises where waiting would never end, and keeps statistics.  Each session
    makes its own guard; read it as :attr:`SharedSession.guard`.
    """

    __slots__ = (
        *("number", "session", "recovery", "last_writer", "last_failure"),
        *("_chores", "_process", "__weakref__"),
    )

    #: Whether the consumer of a result can wait for its turn then.
    consumers_can_wait = True

    #: What :meth:`hand_over` takes.
    _flows: type[Any] = threading.Thread

    @classmethod
    def check_lock_object(cls, lock: Any) -> None:
        """Raise if guards of this class cannot use a lock object."""

    def __init__(
        self,
        kind: Kind = Kind.RLOCK,
        *,
        lock: ForeignLock | None = None,
        timeout: float | None = None,
        asker: Callable[[], Owner] = current_owner,
        clock: Callable[[], float] = time.monotonic,
        make_lock: Callable[[], Lock] = threading.Lock,
        make_mutex: Callable[[], Lock] = threading.RLock,
        make_gate: Callable[[], Gate] = dict,
    ) -> None:
        super().__init__(
            kind,
            lock=lock,
            timeout=timeout,
            asker=asker,
            clock=clock,
            make_lock=make_lock,
            make_mutex=make_mutex,
            make_gate=make_gate,
        )
        #: Grows with each guard that is made.  Several guards are acquired in the order
        #: of their numbers.
        self.number = next(_guard_numbers)
        #: Returns the session, or ``None`` if there is none or it was collected.
        self.session: Callable[[], Any] = _no_session
        #: What the session does about its owners; ``None`` without a session.
        self.recovery: Recovery | None = None
        #: The last owner whose work in the present transaction was noted.
        self.last_writer: Owner | None = None
        #: The owner whose operation raised last, and the class name of the error, which
        #: may have broken the transaction.
        self.last_failure: tuple[Owner, str] | None = None
        self._process = os.getpid()
        self._chores: deque[Callable[[], None]] = deque()
        _guards.add(self)

    # -- one operation

    def enter(self, me: Owner, access: Access) -> None:
        """Like :meth:`come_in`, but wait if the guard is not free."""
        if self.checks_askers and self.sole is not me:
            self._check_asker(me)
        if self.come_in(me):
            self.since = self.clock()
        else:
            if self._is_in_mutex():
                self.refuse_nested(me)  # a finalizer, in the middle of a change
            mine = self._owner is me or self._loader is me
            reads = self._is_reading(me)
            joins = mine or self._may_join(me)
            # If the turn is not read-only any more, another thread is ending the
            # section at this moment.
            only_reads = reads or self._loader is me or (joins and self.restricted)
            if only_reads and access is not READ and access is not LOAD:
                self.refuse_write()
            if not (mine and self.go_on(me)):
                beside = reads or (access is READ and self._shares)
                looks = access is READ and not reads and not me.is_patient
                mode = BESIDE if beside else EXCLUSIVE
                self._acquire(me, mode, self.timeout, looks=looks)
                self.running = me
        if self.attention:
            self.attend_to(me, access)

    def attend_to(self, me: Owner, access: Access) -> None:
        """Handle the reasons for ``attention``.

        Call this inside, before anything else of the operation.
        """
        me.busy = False  # *me* is inside, and the recovery may use the session
        if self.recovery is not None:
            self.recovery.recover(me, access)
        else:
            self.attention = self.unsettled = False  # there is no session

    def wrote(self, me: Owner) -> None:
        """Note that *me* left work in the transaction that a rollback would lose."""
        if self.recovery is not None:
            self.recovery.wrote(me)

    def exclude_others(self, me: Owner) -> bool:
        """Make the operation of *me* exclusive; return whether it is exclusive now.

        A load inside a read section stays as it is.  Other owners may enter before *me*
        is exclusive, so the caller must check again what it has read.
        """
        if self._loader is me and not self._is_reading(me):
            with self._mutex:
                self._drop()
                self._pass_on()
            me.busy = True
            try:
                self._acquire(me, EXCLUSIVE, self.timeout)
                self.running = me
            finally:
                me.busy = False
        return self.is_exclusive(me)

    def refuse_write(self) -> NoReturn:
        raise UpgradeError(
            "This is a write, and it was asked for inside a read section of "
            f"{self.asker().name}. Nothing was changed. Leave the read section first, "
            "or use critical_section() in its place."
        )

    def check_may_execute(self) -> None:
        """Refuse a statement while another statement runs."""

    def check_may_relate(self) -> None:
        """Refuse a change of a relationship that would be lost."""

    # -- sections, blocks and streams

    def hold(self, what: str, timeout: float | None = None) -> Hold:
        """Acquire the guard exclusively until the hold is released.

        :param what: the purpose of the hold, for messages.
        :param timeout: in seconds; ``None``, the default, for the guard's own timeout.
        :raises UpgradeError: if the caller is in a read section.
        """
        me = self.asker()
        if (self.restricted or self.reading) and self.reads_only():
            raise UpgradeError(
                f"A {what} cannot begin inside a read section of {me.name}: others "
                "may be reading. Leave the read section first, or make the outer "
                "section a critical_section()."
            )
        hold = Hold(self, me, EXCLUSIVE, what, False)
        return self._take(hold, timeout, restricts=False)

    def hold_shared(self, what: str, timeout: float | None = None) -> Hold:
        """Acquire the guard for reading until the hold is released.

        Shared if the kind shares, otherwise exclusive and read-only.  The arguments are
        those of :meth:`hold`.
        """
        me = self.asker()
        shares = self._shares and self._loader is not me
        alone = self.is_exclusive(me) or not (shares or self._is_reading(me))
        hold = Hold(self, me, EXCLUSIVE if alone else SHARED, what, False)
        return self._take(hold, timeout, restricts=alone)

    def reads_only(self) -> bool:
        """Whether the caller is in a read section, or in an operation inside one."""
        if not self.restricted and not self.reading:
            return False
        me = self.asker()
        if self._owner is me:
            return self.restricted
        if self._may_join(me) and self.restricted:
            return True
        return self._loader is me or self._is_reading(me)

    def keep(self, what: str) -> Hold:
        """Keep the guard after the present operation ends, for a stream."""
        me = self.asker()
        self._move_in(me)
        hold = Hold(self, me, BESIDE if self._loader is me else EXCLUSIVE, what, False)
        self.holds[hold.number] = what
        self._settle_rights()
        me.keeps(self)
        return hold

    def drop_streams(self, me: Owner, before: tuple[int, ...]) -> None:
        """End the streams that *me* began in an operation that raised.

        Their results were never returned, so no caller could close them.  If *me* gave
        up waiting for another owner's stream, that stream goes on.

        :param before: the numbers of the holds from before the operation.
        """
        if not self.is_exclusive(me) and self._loader is not me:
            return
        for number, what in list(self.holds.items()):
            if what in STREAMS and number not in before:
                del self.holds[number]

    def _take(self, hold: Hold, timeout: float | None, restricts: bool) -> Hold:
        me, mode = hold.owner, hold.mode
        if me.busy or self._is_in_mutex():
            hold.is_open = False
            self.refuse_nested(me)
        anew = False
        me.busy = True
        try:
            self._move_in(me)
            if not self._join(hold, restricts):
                anew = True
                if self.checks_askers and self.sole is not me:
                    self._check_asker(me)
                wanted = self.timeout if timeout is None else check_timeout(timeout)
                if mode is not SHARED and self.come_in(me):
                    self.since = self.clock()
                    self._move_in(me)
                    self.running = None
                else:
                    self._acquire(me, mode, wanted)
                self._note(hold, restricts)
            if self.attention and mode is EXCLUSIVE and not restricts:
                self.attend_to(me, CHANGE)
            if self.forsaken:
                self.reap()
            # Keep this the last call: an interrupt in a later call would lose the hold,
            # because the caller does not have it yet.
            me.keeps(self)
        except BaseException:
            if anew:
                self._note_whatever_it_got(hold)
            hold.release()
            raise
        finally:
            me.busy = False
        return hold

    def _note_whatever_it_got(self, hold: Hold) -> None:
        """Register *hold* if an interrupted acquisition did reach the guard.

        Otherwise releasing *hold* would not release the guard.
        """
        me = hold.owner
        if self.is_exclusive(me):
            self._move_in(me)
            self.running = None
            self.holds[hold.number] = hold.what
        elif me in self.reading:
            self.reading[me].holds.add(hold.number)

    def _join(self, hold: Hold, restricts: bool) -> bool:
        """Register *hold* if its owner is inside already; return whether it is.

        Takes the mutex for the same reason as :meth:`go_on`.
        """
        me = hold.owner
        if self._owner is not me and self._loader is not me and me not in self.reading:
            return False  # no mutex: no other thread puts *me* inside meanwhile
        with self._mutex:
            if hold.mode is SHARED:
                mine = me in self.reading
            else:
                mine = self._owner is me or self._loader is me
            if mine:
                self._note(hold, restricts)
        if self.forsaken:
            self.reap()
        return mine

    def _note(self, hold: Hold, restricts: bool) -> None:
        if hold.mode is SHARED:
            self.reading[hold.owner].holds.add(hold.number)
            return
        self.holds[hold.number] = hold.what
        if restricts and not self.restricted:
            hold.restricts = self.restricted = True
        self._settle_rights()

    def downgrade(self, hold: Hold) -> None:
        """Turn an exclusive *hold* into a shared one; no other owner enters in between.

        If the kind does not share, or if another hold or an operation keeps the guard
        exclusive, the turn only becomes read-only.
        """
        me = hold.owner
        with self._mutex:
            me.busy = True
            alone = [*self.holds] == [hold.number] and self.running is None
            lock = self._lock
            if alone and self._shares and (lock is None or lock.downgrade(me, self)):
                mine = self.reading[me] = Reading(self.since or 0.0)
                mine.holds.add(hold.number)
                hold.mode = SHARED
                self._drop()
                self._pass_on()
            elif not self.restricted:
                hold.restricts = self.restricted = True
                self._settle_rights()
            me.busy = False
        self.reap()

    # -- work deferred to the next owner

    def leave_behind(self, chore: Callable[[], None]) -> None:
        """Let the next owner that enters run *chore*; never wait."""
        self._chores.append(chore)
        self.attention = True

    def has_chores(self) -> bool:
        return bool(self._chores)

    def do_chores(self, me: Owner) -> None:
        """Run the deferred work; call this inside."""
        while self._chores:
            self._chores.popleft()()

    # -- checks of each new owner

    def _check_asker(self, me: Owner) -> None:
        """Check an owner that is not the only one so far; refuse it by raising.

        Refused are the child of a fork, a stranger to a confined session, and a second
        owner that the session cannot serve.
        """
        if self._process != os.getpid():
            raise ForkedSessionError(
                "This session was made in process "
                f"{self._process} and belongs to it; this is the forked process "
                f"{os.getpid()}. Make a new session here."
            )
        with self._mutex:
            sole = self.sole
            free = sole is None or sole is me.flow or self._is_free_to_take(sole)
            free = free or self._is_of_same_thread(me, sole)
            if free:
                self.sole = me
        self.reap()
        if free:
            return
        assert sole is not None
        if self.kind is Kind.CONFINE:
            self._refuse_stranger(me, sole)
        if self.recovery is not None:
            self.recovery.admit(me)
        self.checks_askers = False

    def _is_free_to_take(self, sole: Owner | threading.Thread) -> bool:
        if self.kind is not Kind.CONFINE:
            return False
        if isinstance(sole, Owner):
            return not sole.alive
        return sole.ident is not None and not sole.is_alive()

    def _is_of_same_thread(self, me: Owner, sole: Any) -> bool:
        """Whether *me* runs in the only thread that has entered so far."""
        if self.kind is Kind.CONFINE or not isinstance(sole, Owner):
            return False
        return (sole.ident, sole.native_id) == (me.ident, me.native_id)

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
        """Make another thread the owner of a confined session.

        Call this in the thread that owns the session.

        :param thread: the new owner, for an asyncio session a task; ``None``, the
            default, for the next thread that uses the session.
        :raises ConcurrentAccessError: if another thread owns the session.
        :raises SharedSessionError: if the kind is not ``"confine"``, if a section or a
            stream is open, or if *thread* is no thread.
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
        if self.sole is not me:
            self._check_asker(me)
        if self._owner is not None:
            raise SharedSessionError(
                "A section or a stream of this session is open; leave or close it "
                "before hand_over()."
            )
        with self._mutex:
            self.sole = thread
        self.reap()

    # -- reports

    @property
    def held(self) -> Literal["exclusive", "shared"] | None:
        """How the calling thread holds this guard; ``None`` if it does not."""
        me = self.asker()
        if self.is_exclusive(me):
            return "exclusive"
        return "shared" if me in self.reading or self._loader is me else None

    @property
    def is_shared(self) -> bool:
        """Whether more than one owner has entered so far."""
        return not self.checks_askers

    @property
    def owner(self) -> Any:
        """The thread (or the task) that is exclusive, or ``None``."""
        owner = self._owner or self._in_by_gate()
        return None if owner is None else owner.flow

    @property
    def readers(self) -> tuple[Any, ...]:
        """The threads (or the tasks) in shared read sections."""
        with self._mutex:
            readers = tuple(owner.flow for owner in self.reading)
        self.reap()
        return readers

    @property
    def waiting(self) -> tuple[Any, ...]:
        """The threads (or the tasks) that wait, in order of arrival."""
        with self._mutex:
            waiters = [*self._before, *self.queue]
        self.reap()
        return tuple(waiter.owner.flow for waiter in waiters)

    def stats(self) -> GuardStats:
        """Return the figures since this guard was made."""
        with self._mutex:  # an exclusive operation counts once it has ended
            stats = GuardStats(
                self._shared_entries + self.last_version - self._windows,
                self._contended,
                self._wait_seconds,
                self._longest_wait,
                self._longest_hold,
                self._timeouts,
            )
        self.reap()
        return stats

    def __repr__(self) -> str:
        owner = self._owner or self._in_by_gate()
        state = "free"
        if owner is not None:
            state = f"held by {owner.name}"
        elif self.reading:
            state = f"read by {len(self.reading)}"
        kind = self.kind.value if self._lock is None else self._lock.name
        return f"<Guard {kind} {state}, {len(self.queue)} waiting>"

    def __reduce__(self) -> NoReturn:
        raise SharedSessionError(
            "A guard cannot be pickled: it is about the threads of this process."
        )

    # -- dead owners and forks

    def bury(self, owner: Owner) -> None:
        """Release what a dead *owner* still held."""
        with self._mutex:
            inside = self._owner or self._loader
            held = inside is not None and inside.party is owner
            if held:
                if not (STREAMS | GO_ON).issuperset(self.holds.values()):
                    self.abandoned_by = owner
                    self.attention = self.unsettled = True
                member = self.running or self.window
                if member is None or member is owner:
                    self._end_turn_of_ended()
                else:
                    # A thread of a party that ended is in the middle of an operation,
                    # so the turn ends with that operation.
                    self.holds = {}
                    self._settle_rights()
            for reader in tuple(self.reading):
                if reader.party is owner:
                    held = True
                    self._drop_reader(reader)
            self._pass_on()
        self.reap()
        if held:
            logger.warning("%s ended while it held a guard; released", owner.name)

    def _end_turn_of_ended(self) -> None:
        """End the turn of a dead owner, except for holds that have moved.

        A stream or a block that moved belongs to its object.  The next owner that uses
        the object takes the hold over; it ends at the latest when the object is
        collected.
        """
        left = {n: what for n, what in self.holds.items() if what in GO_ON}
        if left:
            self.running = None
            self.restricted = False
            self.holds = left
            self._settle_rights()
        else:
            self._drop()

    def disown(self) -> None:
        """Refuse every owner from now on, because this is the child of a fork."""
        # A thread that exists in the parent only may hold the old mutex.
        self._set_mutex(threading.RLock())
        self.checks_askers = True
        self.sole = None
        self.version = None
        self.gate[0] = CLOSED
        self.running = self.inside = self._owner = self._loader = None
        self.restricted, self.window = False, None
        self.holds = {}
        self.reading = {}
        self.queue, self.rests_until = deque(), FOREVER


def _no_session() -> None:
    """Return None: the session of a guard that was made without one."""


#: All living guards: the death of an owner and a fork concern every one.
_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _bury_everywhere(owner: Owner) -> None:
    for guard in list(_guards):
        try:
            guard.bury(owner)
        except Exception:  # a lock object may refuse to be released
            logger.exception(
                "%s ended, and %r could not be released", owner.name, guard
            )


def disown_all() -> None:
    """Disown every guard in the child of a fork, because all belong to the parent."""
    for guard in list(_guards):
        guard.disown()


on_death.append(_bury_everywhere)
