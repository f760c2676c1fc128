"""How an owner waits for its turn in a session, and how a long wait is logged."""

from __future__ import annotations

import logging
from typing import Any, Callable, NoReturn

from . import deadlocks, refusals, report
from .access import EXCLUSIVE, ForeignLock, Kind, Lock, Mode
from .gate import CLOSED
from .occupancy import Occupancy
from .owner import Owner
from .turn import Hold, Turn
from .waiter import Waiter, WindowOpened

logger = logging.getLogger("sharedsession")


class Waiting(Occupancy):
    """Lets owners wait in the queue, and before it for a lock object."""

    __slots__ = (
        *("warn_after", "wait_in_loop", "_make_lock", "_before"),
        *("_contended", "_timeouts", "_wait_seconds", "_longest_wait"),
    )

    #: Seconds of waiting after which a warning is logged, once for each wait; ``None``
    #: for never.
    warn_after: float | None
    #: Seconds for which a coroutine may block its event loop to wait for its turn.
    wait_in_loop: float

    def __init__(
        self, kind: Kind, *, make_lock: Callable[[], Lock], **below: Any
    ) -> None:
        super().__init__(kind, **below)
        self.warn_after = 5.0
        self.wait_in_loop = 0.0
        self._make_lock = make_lock
        self._before: list[Waiter] = []  # those that wait for the lock object
        self._contended = self._timeouts = 0
        self._wait_seconds = self._longest_wait = 0.0

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
        if not waiter.admitted:
            self._give_up(waiter, blocks_loop)

    def _give_up(self, waiter: Waiter, blocks_loop: bool) -> NoReturn:
        """Raise the error of a wait that ended without an admission."""
        me = waiter.owner
        if waiter.may_look:
            raise WindowOpened
        if blocks_loop:
            raise self._refusal_to_wait(me)
        with self._mutex:
            self._timeouts += 1
        self.reap()
        waited = self.clock() - waiter.since
        raise refusals.timed_out(me, self.explain(), waiter.mode, waited)

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
        """Release what dead threads hold if their death was not reported."""
        for owner in self.blockers(waiter):
            if owner.has_ended():
                owner.alive = False
                self.release_dead_owner(owner)

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

    def _let_look(self) -> None:
        """Wake the waiters that only want to read.

        A waiter that joins the queue later checks for a window by itself.
        """
        with self._mutex:
            for waiter in self.queue:
                if waiter.looks:
                    waiter.wake()
        self.reap()

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

    # -- waiting for the lock object

    def _acquire_foreign(
        self, lock: ForeignLock, me: Owner, mode: Mode, timeout: float | None
    ) -> None:
        """Acquire the lock object, before joining the queue."""
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
