"""The guard of a session: what the library and its users call on top of the monitor.

The monitor admits owners.  The guard adds operations, sections, blocks and streams,
work that is deferred to the next owner, and reports.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, Callable, Collection, Literal, NoReturn

from ..errors import SharedSessionError
from . import refusals
from .access import (
    BESIDE,
    CHANGE,
    EXCLUSIVE,
    LOAD,
    READ,
    SHARED,
    Access,
    ForeignLock,
    Gate,
    GuardStats,
    Kind,
    Lock,
    check_timeout,
)
from .owner import Owner
from .ownership import Ownership
from .task import current_owner
from .turn import Hold, Kept, Turn, snapshot


class Guard(Ownership):
    """Decides which thread may be inside a session.

    Like a :class:`threading.RLock`, but a guard names its owner, can be shared by
    readers, raises where waiting would never end, and keeps statistics.  Each session
    makes its own guard; read it as :attr:`SharedSession.guard`.
    """

    __slots__ = (
        *("session", "last_writer", "last_failure"),
        "_deferred",
    )

    #: Whether a call that fetches rows from a result can wait for its turn.
    consumers_can_wait = True

    @classmethod
    def check_lock_object(cls, lock: Any) -> None:
        """Raise if guards of this class cannot use a lock object."""

    def __init__(
        self,
        kind: Kind = Kind.RLOCK,
        *,
        lock: ForeignLock | None = None,
        timeout: float | None = None,
        current_owner: Callable[[], Owner] = current_owner,
        clock: Callable[[], float] = time.monotonic,
        make_lock: Callable[[], Lock] = threading.Lock,
        make_mutex: Callable[[], Lock] = threading.RLock,
        make_gate: Callable[[], Gate] = dict,
    ) -> None:
        super().__init__(
            kind,
            lock=lock,
            timeout=timeout,
            current_owner=current_owner,
            clock=clock,
            make_lock=make_lock,
            make_mutex=make_mutex,
            make_gate=make_gate,
        )
        #: Returns the session, or ``None`` if there is none or it was collected.
        self.session: Callable[[], Any] = _no_session
        #: The last owner whose work in the present transaction was noted.
        self.last_writer: Owner | None = None
        #: The owner that may have broken the transaction last, and how: the class name
        #: of an error, or another text.
        self.last_failure: tuple[Owner, str] | None = None
        self._deferred: deque[Callable[[], None]] = deque()

    # -- one operation

    def enter(self, me: Owner, access: Access) -> None:
        """Begin an operation of *me* that did not enter by the gate; wait if needed."""
        if self._is_in_mutex():
            raise refusals.nested(me)  # a finalizer, in the middle of a change
        turn = self.turn
        if turn is None or turn.owner is not me:
            self._enter_anew(me, access)
        elif self._goes_on(turn, me, access):
            return
        if self.attention:
            self.recover(me, access)

    def _goes_on(self, turn: Turn, me: Owner, access: Access) -> bool:
        """Begin an operation in the caller's own turn.

        Return True if no recovery is due, because the turn began with one.
        """
        restricted = turn.mode is BESIDE or turn.reads_only
        if restricted and access is not READ and access is not LOAD:
            self.refuse_write()
        if not self.go_on(me):
            self._enter_anew(me, access)  # another thread has ended the turn
            return False
        return not restricted

    def _enter_anew(self, me: Owner, access: Access) -> None:
        if self.checks_owners and self.only_owner is not me:
            self._check_owner(me)
            if self.come_in(me):
                self.since = self.clock()
                return
        reads = self._is_reading(me)
        turn = self.turn
        restricted = turn is not None and self._welcomes(me) and turn.reads_only
        if (reads or restricted) and access is not READ and access is not LOAD:
            self.refuse_write()
        beside = reads or (access is READ and self._shares)
        looks = access is READ and not reads and me.accepts_window
        mode = BESIDE if beside else EXCLUSIVE
        self._acquire(me, mode, self.timeout, looks=looks)
        turn = self.turn
        if access is not READ and access is not LOAD:
            if turn is not None and turn.owner is me and turn.reads_only:
                self.refuse_write()  # let into a read section of the same party

    def recover(self, me: Owner, access: Access) -> None:
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

        A load inside a read section stays beside the readers.  Other owners may enter
        before *me* is exclusive, so the caller must check again what it has read.
        """
        turn = self.turn
        beside = turn is not None and turn.owner is me and turn.mode is BESIDE
        if beside and not self._is_reading(me):
            with self._mutex:
                self._drop()
                self._pass_on()
            me.busy = True
            try:
                self._acquire(me, EXCLUSIVE, self.timeout)
            finally:
                me.busy = False
        return self.is_exclusive(me)

    def refuse_write(self) -> NoReturn:
        me = self.current_owner()
        if self._only_streams(me):
            raise refusals.beside_stream(me, "write")
        raise refusals.write(me)

    def _only_streams(self, me: Owner) -> bool:
        """Whether streams alone, and no section, keep the turns of *me*."""
        turns = [self.turn] if self.turn is not None and self.turn.owner is me else []
        turns += [self.reading[me]] if me in self.reading else []
        kept = [it for turn in turns for it in snapshot(turn.keeps.values())]
        return bool(kept) and all(it.is_stream for it in kept)

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
        me = self.current_owner()
        if self.reads_only():
            if self._only_streams(me):
                raise refusals.beside_stream(me, what)
            raise refusals.exclusive_in_read_section(me, what)
        return self._take(Hold(self, me, EXCLUSIVE, Kept(what)), timeout)

    def hold_shared(self, what: str, timeout: float | None = None) -> Hold:
        """Acquire the guard for reading until the hold is released.

        Shared if the kind shares, otherwise exclusive and read-only.  The arguments are
        those of :meth:`hold`.
        """
        me = self.current_owner()
        shares = self._shares and not self._is_in_turn(me)
        alone = self.is_exclusive(me) or not (shares or self._is_reading(me))
        mode = EXCLUSIVE if alone else SHARED
        return self._take(Hold(self, me, mode, Kept(what, reads_only=True)), timeout)

    def reads_only(self) -> bool:
        """Whether the caller is in a read section, or in an operation inside one."""
        turn = self.turn
        if turn is None and not self.reading:
            return False
        me = self.current_owner()
        if turn is not None and turn.owner is me:
            beside_readers = turn.mode is BESIDE and bool(self.reading)
            return beside_readers or turn.reads_only
        if turn is not None and turn.reads_only and self._welcomes(me):
            return True
        return self._is_reading(me)

    def keep(self, what: str) -> Hold:
        """Keep the guard after the present operation ends, for a stream."""
        me = self.current_owner()
        self._begin_turn(me)
        turn = self.turn
        assert turn is not None
        hold = Hold(self, me, turn.mode, Kept(what))
        turn.keeps[hold.number] = hold.kept
        me.keeps(self)
        return hold

    def kept(self) -> Collection[int]:
        """Return the numbers of the holds that keep the present turn."""
        turn = self.turn
        return () if turn is None else snapshot(turn.keeps)

    def drop_streams(self, me: Owner, before: Collection[int]) -> None:
        """End the streams that *me* began in an operation that raised.

        Their results were never returned, so no caller could close them.  If *me* gave
        up waiting for another owner's stream, that stream goes on.

        :param before: the numbers of the holds from before the operation.
        """
        turn = self.turn
        if turn is not None and turn.owner is me:
            for number in snapshot(turn.keeps):
                kept = turn.keeps.get(number)
                if kept is not None and kept.is_stream and number not in before:
                    turn.keeps.pop(number, None)

    def _take(self, hold: Hold, timeout: float | None) -> Hold:
        me = hold.owner
        if me.busy or self._is_in_mutex():
            hold.is_open = False
            raise refusals.nested(me)
        was_inside = True
        me.busy = True
        try:
            self._begin_turn(me)
            was_inside = self._join(hold)
            if not was_inside:
                self._enter_to_stay(hold, timeout)
            if self.attention and hold.mode is EXCLUSIVE and not hold.kept.reads_only:
                self.recover(me, CHANGE)
            if self.abandoned_holds:
                self.reap()
            # Keep this the last call: an interrupt in a later call would lose the hold,
            # because the caller does not have it yet.
            me.keeps(self)
        except BaseException:
            if not was_inside and (self._is_in_turn(me) or self.gate.get(0) is me):
                self.leave(me)  # an interrupt came before the hold kept the turn
            hold.release()
            raise
        finally:
            me.busy = False
        return hold

    def _enter_to_stay(self, hold: Hold, timeout: float | None) -> None:
        me = hold.owner
        if self.checks_owners and self.only_owner is not me:
            self._check_owner(me)
        wanted = self.timeout if timeout is None else check_timeout(timeout)
        if hold.mode is EXCLUSIVE and self.come_in(me):
            self.since = self.clock()
            self._begin_turn(me)
            assert self.turn is not None
            self.turn.keeps[hold.number] = hold.kept
            self.running = None
        else:
            self._acquire(me, hold.mode, wanted, hold=hold)

    def _join(self, hold: Hold) -> bool:
        """Keep the present turn of the hold's owner, too; return whether it has one.

        Takes the mutex for the same reason as :meth:`go_on`.
        """
        me = hold.owner
        if not self._is_in_turn(me) and me not in self.reading:
            return False  # no mutex: no other thread puts *me* inside meanwhile
        with self._mutex:
            turn = self.reading.get(me) if hold.mode is SHARED else self.turn
            mine = turn is not None and turn.owner is me
            if turn is not None and mine:
                turn.keeps[hold.number] = hold.kept
        if self.abandoned_holds:
            self.reap()
        return mine

    def downgrade(self, hold: Hold) -> None:
        """Turn an exclusive *hold* into a shared one; no other owner enters in between.

        If the kind does not share, or if another hold or an operation keeps the guard
        exclusive, the turn only becomes read-only.
        """
        me = hold.owner
        with self._mutex:
            me.busy = True
            try:
                self._downgrade(me, hold)
            finally:
                me.busy = False
        self.reap()

    def _downgrade(self, me: Owner, hold: Hold) -> None:
        turn = self.turn
        assert turn is not None
        alone = [*turn.keeps] == [hold.number] and self.running is None
        alone = alone and turn.lent_by is None and self._shares
        hold.kept = hold.kept._replace(reads_only=True)
        if alone and (self._lock is None or self._lock.downgrade(me, self)):
            reader = Turn(me, SHARED, turn.since)
            reader.keeps[hold.number] = hold.kept
            self.reading[me] = reader
            hold.mode = SHARED
            self._drop()
            self._pass_on()
        else:
            turn.keeps[hold.number] = hold.kept

    # -- work deferred to the next owner

    def defer(self, chore: Callable[[], None]) -> None:
        """Let the next owner that enters run *chore*; never wait."""
        self._deferred.append(chore)
        self.attention = True

    def has_deferred(self) -> bool:
        return bool(self._deferred)

    def run_deferred(self, me: Owner) -> None:
        """Run the deferred work; call this inside."""
        while self._deferred:
            self._deferred.popleft()()

    # -- reports

    @property
    def held(self) -> Literal["exclusive", "shared"] | None:
        """How the calling thread holds this guard; ``None`` if it does not."""
        me = self.current_owner()
        if self.is_exclusive(me):
            return "exclusive"
        return "shared" if me in self.reading or self._is_in_turn(me) else None

    @property
    def owner(self) -> Any:
        """The thread (or the task) that is exclusive, or ``None``."""
        owner = self._exclusive_owner()
        return None if owner is None else owner.flow

    def _exclusive_owner(self) -> Owner | None:
        turn = self.turn
        if turn is not None and turn.mode is EXCLUSIVE:
            return turn.owner
        return self._in_by_gate()

    @property
    def readers(self) -> tuple[Any, ...]:
        """The threads (or the tasks) in shared read sections."""
        with self._mutex:
            readers = tuple(owner.flow for owner in snapshot(self.reading))
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
        owner = self._exclusive_owner()
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


def _no_session() -> None:
    """Return None: the session of a guard that was made without one."""
