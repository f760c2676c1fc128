"""The gate: how an owner enters for one operation, and who is inside at this moment.

Most of the time a guard is free, its queue is empty, and the newcomer wants a single
operation.  Such an operation enters by the *gate*, without the mutex and without a
turn.  The gate is a dictionary with at most one entry: entering is one
``setdefault()``, an atomic step of the interpreter, and leaving is one ``del``.  The
entry is the owner of the operation that is inside, or ``CLOSED`` if the monitor
decides.  The monitor closes the gate before it admits an owner, and opens the gate when
no owner is left inside.  An owner that leaves by the gate opens the gate first and
reads ``hand_over_at`` then; a waiter sets ``hand_over_at`` first and reads the gate
then.  Therefore at least one of the two sees the other.

While an operation that has changed nothing yet waits for the database, no loaded state
changes.  Then the operation opens a *window*: the guard has a version until the window
closes, and optimistic reads go on.  Any operation of the owner itself in the meantime,
for example in a listener, closes the window first.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Callable

from .access import EXCLUSIVE, Gate, Kind, Lock
from .owner import Owner
from .turn import Hold, Turn
from .waiter import Waiter

#: ``hand_over_at`` while the queue is empty; compared by identity.
FOREVER = math.inf

#: In the gate while the monitor decides which owner may enter.
CLOSED = object()


def _never() -> bool:
    return False


class Gated:
    """What every operation reads and writes; see :class:`Monitor` for the rest.

    The comment at each field says which owner may change the field, and when.  "Inside"
    means: by the exclusive owner, or by the owner that is beside the readers.
    """

    __slots__ = (
        *("kind", "current_owner", "clock", "gate", "turn", "running"),
        *("version", "last_version", "window", "may_open", "_windows"),
        *("attention", "unsettled", "_mutex", "_is_in_mutex", "_has_gate"),
        *("_has_windows", "queue", "hand_over_at", "since", "only_owner"),
        *("checks_owners", "abandoned_holds", "joiners", "_longest_hold"),
    )

    #: Whether the gate may be used at all.
    _may_have_gate = True

    kind: Kind
    current_owner: Callable[[], Owner]
    clock: Callable[[], float]
    #: An owner puts itself into the empty gate, and takes itself out or puts CLOSED in
    #: its place.  The monitor closes the gate by the same step as an owner enters, and
    #: opens it under the mutex.
    gate: Gate
    #: The exclusive turn, or the one beside readers; a lent turn is on top of its
    #: lender's.  Stored under the mutex with the gate closed, or by the owner that is
    #: inside by the gate before it closes the gate.  An owner may compare the turn's
    #: owner with itself without the mutex: only that owner enters for itself, and no
    #: other thread ends its turn while its operation runs.  What keeps a turn changes
    #: inside, or under the mutex.
    turn: Turn | None
    #: The owner whose operation runs in the top turn, or by the gate.  Written by that
    #: owner, or under the mutex for an owner that is admitted or has died.  The end of
    #: an operation clears it first and reads what keeps the turn then.
    running: Owner | None
    #: None while an owner may be changing state, or has left state unsettled; otherwise
    #: a number that was never used before.  Set to None before the first change, and to
    #: a new number after the last one.  A value that was read between
    #: two checks of the very same version did not change.
    version: int | None
    #: The last number used; written together with ``version``.
    last_version: int
    #: The owner that has a window open.  Written by the exclusive owner alone.
    window: Owner | None
    #: Whether the running operation may open a window: neither it nor an operation
    #: nested in it has changed anything yet, and the session has a second owner.
    may_open: bool
    # The next two are notes for the next owner that enters.  The message or the work is
    # stored first, and the note after it.
    #: True if the next owner must be told something, or must do something, first.
    attention: bool
    #: True if reads of loaded state must wait for that, too.
    unsettled: bool
    #: The waiters, in order of arrival.  Changed under the mutex.
    queue: deque[Waiter]
    #: The clock's time until which a leaving owner may ignore the queue.
    hand_over_at: float
    #: When the operation inside by the gate began; ``None`` if it is not timed.
    since: float | None
    #: The first owner, which needs no check until a second owner enters.
    only_owner: Owner | threading.Thread | None
    #: From True to False once.  A stale True costs one needless check.
    checks_owners: bool
    #: Holds that were collected.  Any thread appends, because that is atomic.
    abandoned_holds: deque[Hold]
    #: The number of waiters that want to take a turn over, or to join their party.
    joiners: int

    def __init__(
        self,
        kind: Kind,
        *,
        usable: bool,
        current_owner: Callable[[], Owner],
        clock: Callable[[], float],
        mutex: Lock,
        gate: Gate,
    ) -> None:
        self.kind = kind
        self.current_owner = current_owner
        self.clock = clock
        self._set_mutex(mutex)
        self.gate = gate
        self._has_gate = usable and self._may_have_gate
        if not self._has_gate:
            self.gate[0] = CLOSED
        self._has_windows = kind is not Kind.DETECT and kind is not Kind.CONFINE
        self.turn = None
        self.running = self.window = None
        # always None for "confine", because each read is checked
        self.version = None if kind is Kind.CONFINE else 0
        self.last_version = 0
        self.may_open = self.attention = self.unsettled = False
        self.queue = deque()
        self.hand_over_at = FOREVER
        self.since = None
        self.only_owner = None
        self.checks_owners = True
        self.abandoned_holds = deque()
        self.joiners = self._windows = 0
        self._longest_hold = 0.0

    def _set_mutex(self, mutex: Lock) -> None:
        """Use *mutex*, which is reentrant, for the guard's own state.

        A finalizer that interrupts this thread inside the mutex must not wait for its
        own thread.  It calls ``_is_in_mutex()`` to find out.
        """
        self._mutex = mutex
        self._is_in_mutex: Callable[[], bool] = getattr(mutex, "_is_owned", _never)

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

    def leave(self, me: Owner) -> None:
        """End the operation that began, or tried to begin.

        After an interrupt, call this again: it does the steps that are left.
        """
        turn = self.turn
        if turn is not None:
            if turn.owner is me:
                self.running = None
                if turn.keeps and not self.joiners:
                    return  # the section goes on
        elif self.gate.get(0) is me and self._may_ignore_queue():
            if self.since is not None:
                self._note_stay(self.since)
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

    def _may_ignore_queue(self) -> bool:
        """Whether a leaving owner may ignore the queue now."""
        until = self.hand_over_at
        return until is FOREVER or self.clock() < until

    def _note_stay(self, since: float) -> None:
        held = self.clock() - since
        if held > self._longest_hold:
            self._longest_hold = held

    def is_exclusive(self, me: Owner) -> bool:
        turn = self.turn
        if turn is not None and turn.owner is me and turn.mode is EXCLUSIVE:
            return True
        return self.gate.get(0) is me

    def _is_in_turn(self, me: Owner) -> bool:
        turn = self.turn
        return turn is not None and turn.owner is me

    def _in_by_gate(self) -> Owner | None:
        owner = self.gate.get(0)
        return owner if isinstance(owner, Owner) else None

    def _leave_late(self, me: Owner) -> None:
        """End an operation that has waiters, or that did not enter by the gate."""
        raise NotImplementedError

    # -- operations of finalizers and signal handlers

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

    # -- optimistic reads, and windows for them

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
        only the caller's own entry can bring it back inside.
        """
        if self.running is me:
            return True
        turn = self.turn
        if turn is None or turn.owner is not me or turn.mode is not EXCLUSIVE:
            return False
        return not self.attention

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

    def close_window(self, me: Owner) -> None:
        """End the optimistic reads; do nothing if *me* has no window open."""
        if self.window is me:
            self.version = None
            self.running = me  # before ``window``: a finalizer must find *me* inside
            self.window = None

    def _let_look(self) -> None:
        """Wake the waiters that only want to read."""
        raise NotImplementedError
