"""The guard of a session: one owner inside, and what the library and people ask of it.

It adds to the monitor what is done with an admission: single operations, sections,
blocks and streams; the checks of who asks; notes for whoever comes in next; and what
becomes of an owner or a process that is no more.
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

from .errors import (
    ConcurrentAccessError,
    ForkedSessionError,
    SharedSessionError,
    UpgradeError,
)
from .holds import Hold, Reading
from .monitor import CLOSED, FOREVER, Monitor
from .owners import Owner, on_death
from .tasks import current_owner
from .terms import (
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
    check_timeout,
)

logger = logging.getLogger("sharedsession")


_guard_numbers = itertools.count(1)


class Guard(Monitor):
    """Decides which thread may be inside a session.

    Like a :class:`threading.RLock`, but it knows its holder, can be shared by readers,
    notices what would never end, and tells what it has seen.  Sessions make their own;
    use :attr:`SharedSession.guard` to look at it.
    """

    __slots__ = (
        *("number", "session", "worker", "note_work", "second_owner", "failed"),
        *("attend", "_chores", "_process", "__weakref__"),
    )

    #: Whether the consumer of a result can wait for its turn then.
    consumers_can_wait = True

    #: What :meth:`hand_over` takes.
    _flows: type[Any] = threading.Thread

    @classmethod
    def check_lock_object(cls, lock: Any) -> None:
        """Raise if guards of this class cannot stand on a lock object."""

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
        #: Later guards have higher numbers; several are acquired in this order.
        self.number = next(_guard_numbers)
        #: The session, if there is one, and it is alive.
        self.session: Callable[[], Any] = _no_session
        #: The owner whose work in the present transaction was noted last.
        self.worker: Owner | None = None
        #: Called with an owner that left work in the transaction.
        self.note_work: Callable[[Owner], None] = _no_note
        #: Called when a second owner first comes in; refuses it by raising.
        self.second_owner: Callable[[Owner], None] = _no_note
        #: Whose operation raised last, and what: it may have broken the transaction.
        self.failed: tuple[Owner, str] | None = None
        #: Does what makes for attention; called with the owner that came in and what
        #: for.
        self.attend: Callable[[Owner, Access], None] | None = None
        self._process = os.getpid()
        self._chores: deque[Callable[[], None]] = deque()
        _guards.add(self)

    # -- one operation

    def enter(self, me: Owner, access: Access) -> None:
        """Let *me* in for one operation, or wait; otherwise like :meth:`come_in`."""
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
            # If the turn is not restricted, another thread is ending it at this moment.
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
        """Deal with what makes for attention; to be called inside, first of all."""
        me.busy = False  # inside: what is done here may use the session
        if self.attend is not None:
            self.attend(me, access)
        else:
            self.attention = self.unsettled = False  # there is no session

    def exclude_others(self, me: Owner) -> bool:
        """Make *me*, which is inside for one operation, exclusive; whether it is then.

        Not inside a read section.  Others may come in before: whoever asks has to look
        again at what it found.
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
        """Refuse a statement where another one is under way."""

    def check_may_relate(self) -> None:
        """Refuse a change to what belongs to what, where it would be lost."""

    # -- sections, blocks and streams

    def hold(self, what: str, timeout: float | None = None) -> Hold:
        """Acquire the guard exclusively until the hold is released."""
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
        """Acquire the guard for reading until the hold is released."""
        me = self.asker()
        shares = self._shares and self._loader is not me
        alone = self.is_exclusive(me) or not (shares or self._is_reading(me))
        hold = Hold(self, me, EXCLUSIVE if alone else SHARED, what, False)
        return self._take(hold, timeout, restricts=alone)

    def reads_only(self) -> bool:
        """Whether the asker is in a read section, or in an operation inside one."""
        if not self.restricted and not self.reading:
            return False
        me = self.asker()
        if self._owner is me:
            return self.restricted
        if self._may_join(me) and self.restricted:
            return True
        return self._loader is me or self._is_reading(me)

    def keep(self, what: str) -> Hold:
        """Keep the guard beyond the operation that runs now: for a stream."""
        me = self.asker()
        self._move_in(me)
        hold = Hold(self, me, BESIDE if self._loader is me else EXCLUSIVE, what, False)
        self.holds[hold.number] = what
        self._settle_rights()
        me.keeps(self)
        return hold

    def drop_streams(self, me: Owner, before: tuple[int, ...]) -> None:
        """End the streams that *me* began in an operation which raised.

        Nobody has them.  Those of another owner, for which *me* was waiting when it
        gave up, go on.
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
            # The last call: after it an interrupt would leave the hold to nobody.
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
        """Before it is released: an interrupt came at the gate, or after it."""
        me = hold.owner
        if self.is_exclusive(me):
            self._move_in(me)
            self.running = None
            self.holds[hold.number] = hold.what
        elif me in self.reading:
            self.reading[me].holds.add(hold.number)

    def _join(self, hold: Hold, restricts: bool) -> bool:
        """Note *hold* if its owner is in already; whether it is.

        Under the mutex, like :meth:`go_on`.
        """
        me = hold.owner
        if self._owner is not me and self._loader is not me and me not in self.reading:
            return False  # nobody else would let it in
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
        """Let readers in beside an exclusive *hold*, and nobody in between.

        Where there is no sharing, or something else keeps the guard exclusive, only
        the right to change things goes.
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

    # -- what is left for the next one

    def leave_behind(self, chore: Callable[[], None]) -> None:
        """Have *chore* done by the next owner that comes in; never waits."""
        self._chores.append(chore)
        self.attention = True

    def has_chores(self) -> bool:
        return bool(self._chores)

    def do_chores(self, me: Owner) -> None:
        """Do what was left behind; to be called inside."""
        while self._chores:
            self._chores.popleft()()

    # -- who asks

    def _check_asker(self, me: Owner) -> None:
        """What the only owner so far need not be asked."""
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
        self.second_owner(me)
        self.checks_askers = False

    def _is_free_to_take(self, sole: Owner | threading.Thread) -> bool:
        if self.kind is not Kind.CONFINE:
            return False
        if isinstance(sole, Owner):
            return not sole.alive
        return sole.ident is not None and not sole.is_alive()

    def _is_of_same_thread(self, me: Owner, sole: Any) -> bool:
        """Whether *me* is of the only thread that has come in so far."""
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

    # -- what a person wants to know

    @property
    def held(self) -> Literal["exclusive", "shared"] | None:
        """How the calling thread holds this guard."""
        me = self.asker()
        if self.is_exclusive(me):
            return "exclusive"
        return "shared" if me in self.reading or self._loader is me else None

    @property
    def is_shared(self) -> bool:
        """Whether more than one owner has come in so far."""
        return not self.checks_askers

    @property
    def owner(self) -> Any:
        """The thread (or the task) that is exclusive, if one is."""
        owner = self._owner or self._in_by_gate()
        return None if owner is None else owner.flow

    @property
    def readers(self) -> tuple[Any, ...]:
        """The threads (or the tasks) in read sections that share."""
        with self._mutex:
            readers = tuple(owner.flow for owner in self.reading)
        self.reap()
        return readers

    @property
    def waiting(self) -> tuple[Any, ...]:
        """The threads (or the tasks) that wait, in the order of their arrival."""
        with self._mutex:
            waiters = [*self._before, *self.queue]
        self.reap()
        return tuple(waiter.owner.flow for waiter in waiters)

    def stats(self) -> GuardStats:
        """Return the figures so far."""
        with self._mutex:  # those inside count from when they leave
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

    # -- owners and processes that are no more

    def bury(self, owner: Owner) -> None:
        """Release what an owner that has ended still held."""
        with self._mutex:
            inside = self._owner or self._loader
            held = inside is not None and inside.party is owner
            if held:
                if not (STREAMS | GO_ON).issuperset(self.holds.values()):
                    self.unfinished_by = owner
                    self.attention = self.unsettled = True
                self._end_turn_of_ended()
            for reader in tuple(self.reading):
                if reader.party is owner:
                    held = True
                    self._drop_reader(reader)
            self._pass_on()
        self.reap()
        if held:
            logger.warning("%s ended while it held a guard; released", owner.name)

    def _end_turn_of_ended(self) -> None:
        """End the turn of an owner that has ended, unless it goes on without it.

        A stream or a block that moved belongs to its object: the next owner that uses
        it takes it over, and it ends at the latest when the object is collected.
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
        """Make everybody come to be refused: this is the child of a fork."""
        self._set_mutex(threading.RLock())  # the old one may be held by nobody
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
    """For a guard that somebody made to look at."""


def _no_note(owner: Owner) -> None:
    """For a guard without a session: there is no transaction to lose work of."""


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
