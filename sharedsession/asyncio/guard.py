"""The guard of a session that asyncio tasks share.

On top of lending (``lending.py``) it adds *steps*.  A call that is not awaited, such as
``add()``, cannot wait.  If the guard is not free, the call may still be done at once,
as a step beside the operation in flight: that operation waits for the database at an
``await``, and a step ends before any other code runs.  A change that the operation
would undo is hidden from it, see ``objects/hidden.py``.  A change that cannot be
hidden is deferred until the operation ends, or refused.

Lending and steps both put a turn on top of the present one for a time, see
:class:`Turn`.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections import deque
from typing import Any, Callable, Sequence

from ..guard.access import (
    BESIDE,
    CHANGE,
    END,
    EXCLUSIVE,
    LOAD,
    READ,
    WRITE,
    Access,
    Kind,
)
from ..guard.owner import Owner
from ..guard.task import TaskOwner, note_sections, on_behalf_of
from ..guard.turn import Hold, Turn
from ..internals import orm, transactions
from ..objects import hidden
from ..operations.operation import run
from . import refusals
from .lending import LendingGuard, sections_in

logger = logging.getLogger("sharedsession")


class _Step:
    """A step of *owner* beside another task's operation: a turn on top of its turn."""

    __slots__ = ("owner", "failure", "unsettled", "writer", "hides", "turn")

    def __init__(self, owner: Owner, guard: TaskGuard) -> None:
        self.owner = owner
        self.failure = guard.last_failure
        self.unsettled = guard.unsettled
        self.writer = guard.last_writer
        self.hides = False
        self.turn = guard._make_turn_on_top(owner)


class PutOff:
    """A call that is deferred until it is possible."""

    def __init__(
        self,
        owner: Owner,
        name: str,
        function: Callable[[], Any],
        instances: Sequence[Any] = (),
    ) -> None:
        self.owner = owner
        self.name = name
        self.function = function
        self.instances = instances

    def concerns(self, instance: object) -> bool:
        """Whether the call concerns *instance*; one without instances concerns all."""
        return not self.instances or any(each is instance for each in self.instances)


class TaskGuard(LendingGuard):
    """Decides which task may be inside a session."""

    def __init__(self, kind: Kind = Kind.RLOCK, **lending: Any) -> None:
        super().__init__(kind, **lending)
        self._step: _Step | None = None
        #: The deferred calls, in the order in which they were made.
        self.put_off: deque[PutOff] = deque()
        self._is_tidying = False
        #: Errors of deferred calls, to be raised in the owners that made the calls.
        self._errors: weakref.WeakKeyDictionary[Owner, Exception] = (
            weakref.WeakKeyDictionary()
        )

    # -- operations

    def enter(self, me: Owner, access: Access) -> None:
        note_sections(me)
        if self._must_step(me, access):
            self._begin_step(me, access)
            return
        super().enter(me, access)
        if self.turn is not None:
            self.turn.access = access
        if access is not END:
            if self.put_off:
                self._do_put_off()
                if self.attention:  # a deferred expire() may have lost this task's work
                    self.recover(me, access)
            error = self._errors.pop(me, None)
            if error is not None:
                raise error

    def leave(self, me: Owner) -> None:
        step = self._step
        if step is not None and step.owner is me:
            self._end_step(step)
            return
        if self.put_off and self.running is me:
            self._do_put_off()
        super().leave(me)
        self._do_if_free()

    def note_change(self) -> None:
        """Note that the operation in flight does more than its access said."""
        if self.turn is not None:
            self.turn.access = None

    def _take(self, hold: Hold, timeout: float | None) -> Hold:
        super()._take(hold, timeout)
        if self.put_off and self._is_alone(hold):
            try:
                self._do_put_off()  # impossible before, beside readers
            except BaseException:
                hold.release()
                raise
        return hold

    def _is_alone(self, hold: Hold) -> bool:
        """Whether nothing but *hold* keeps the turn, and no operation runs in it."""
        return self.running is None and [*self.kept()] == [hold.number]

    def release_hold(self, hold: Hold) -> None:
        turn = self.turn
        lent = turn is not None and turn.lent_by is not None
        if self.put_off and self._is_alone(hold) and not self._is_in_mutex():
            if not lent:
                self._do_put_off()
        super().release_hold(hold)
        self._do_if_free()

    def reset_after_fork(self) -> None:
        super().reset_after_fork()
        self._step = None
        self.put_off.clear()

    # -- steps beside an operation in flight

    def _must_step(self, me: Owner, access: Access) -> bool:
        if me.can_wait() or self.kind in (Kind.DETECT, Kind.CONFINE):
            return False
        if self._is_in_turn(me):
            return False
        if me in self.reading or self._reads_with_family(me):
            return self.turn is not None
        if self.last_failure is not None:
            return True  # only an owner that can wait can deal with the failure
        mode = BESIDE if access is READ and self._shares else EXCLUSIVE
        return not self._may_enter_now(me, mode)

    def _begin_step(self, me: Owner, access: Access) -> None:
        with self._mutex:
            self._step = step = _Step(me, self)
        self._check_step(me, access)
        step.hides = access is WRITE and not self._keeps_changes()
        if step.hides:
            hidden.watched[self] = {}
            self.last_writer = me  # no wrote() now: _show() notes the work
        with self._mutex:
            self._put_on_top(step.turn)
        if self.attention:
            self.recover(me, access)

    def _end_step(self, step: _Step) -> None:
        # All of this may be done again after an interrupt.
        for change in hidden.watched.get(self, {}).values():
            change.hide()
            show = functools.partial(self._show, change)
            self.put_off.append(PutOff(step.owner, "set", show))
        hidden.watched.pop(self, None)
        with self._mutex:
            self._take_off(step.turn)
            # A step that fails does not break the transaction.
            self.last_failure, self.unsettled = step.failure, step.unsettled
            if step.hides:
                self.last_writer = step.writer
            self._step = None
            if step.turn.lent_by is not None and not step.turn.lent_by.keeps:
                self._end_turns()  # a stream may have been collected meanwhile
                self._pass_on()
        self.reap()

    def _make_turn_on_top(self, owner: Owner) -> Turn:
        """Return a turn for an operation that runs at once, beside the present turn."""
        if self.turn is not None:
            self.turn.running = self.running
        turn = Turn(owner, EXCLUSIVE, None, lent_by=self.turn)
        turn.is_aside = True
        return turn

    def _put_on_top(self, turn: Turn) -> None:
        self.running = turn.owner
        self.turn = turn

    def _take_off(self, turn: Turn) -> None:
        """Go back to what was under *turn*.  May be called again after an interrupt."""
        self.turn = turn.lent_by
        self.running = None if turn.lent_by is None else turn.lent_by.running

    def _show(self, change: hidden.Change) -> None:
        change.show()
        owner = self.current_owner()
        if self.last_writer is not owner:
            self.wrote(owner)

    def check_may_relate(self) -> None:
        me = self.current_owner()
        if self.running is me:
            if self._step is not None and self._step.hides:
                raise refusals.to_lose(me, self.explain())
            return
        note_sections(me)
        if self._must_step(me, WRITE):
            self._check_step(me, WRITE)
            if not self._keeps_changes():
                raise refusals.to_lose(me, self.explain())

    def check_may_execute(self) -> None:
        """Refuse a statement inside a step: another statement may be in flight."""
        if self._step is not None:
            raise refusals.beside(self.current_owner(), self.explain())

    def check_may_put_off(self, me: Owner) -> None:
        """Refuse to defer a call that would be refused if the guard were free."""
        if self.reads_only():
            self.refuse_write()
        if self.attention:
            self.recover(me, WRITE)  # raises if *me* has lost work

    def has_put_off(self, me: Owner) -> bool:
        """Whether a call of *me* is still deferred."""
        return any(it.owner is me for it in self.put_off)

    def is_free_for(self, me: Owner) -> bool:
        """Whether a call that is not awaited may run now, like an awaited one."""
        note_sections(me)
        mine = self._is_in_turn(me) or self.running is me
        if mine or self.kind in (Kind.DETECT, Kind.CONFINE):
            return True  # *me* does not wait, though it may be refused
        return not self._must_step(me, WRITE)

    def _check_step(self, me: Owner, access: Access) -> None:
        if self.running is not None and not isinstance(self.running, TaskOwner):
            # A thread does not stop for this step.
            raise refusals.beside(me, self.explain())
        strange = self._is_in_section_of_others(me)
        restricted = self.turn is not None and self.turn.reads_only
        if strange and not restricted:
            raise refusals.in_section(me, self.explain())
        if access is READ or access is LOAD:
            return
        reads = restricted or me in self.reading
        if not strange and (reads or self._reads_with_family(me)):
            self.refuse_write()
        if strange or self.reading:
            raise refusals.in_section(me, self.explain())
        if access is not WRITE:
            raise refusals.beside(me, self.explain())

    def _keeps_changes(self) -> bool:
        """Whether the operation in flight would keep a change that is made now."""
        session = self.session()
        if session is not None and orm.is_flushing(session):
            return False
        if self.running is None:
            return bool(self.kept())  # between two fetches from a stream
        return self.turn is not None and self.turn.access in (READ, LOAD)

    # -- deferred calls

    def _do_put_off(self) -> None:
        """Run the deferred calls that can run now.

        Call this while no operation is in flight.
        """
        session = self.session()
        if session is None or transactions.is_broken(session._transaction):
            return  # a rollback must come first, and would undo the calls
        if self.reading or (self.turn is not None and self.turn.mode is BESIDE):
            return  # nothing may change while a reader is inside
        for it in tuple(self.put_off):
            if it in self.put_off and self._is_due(it):
                self.put_off.remove(it)
                self._do(it)

    def _do_if_free(self) -> None:
        """Run the deferred calls if the guard is free.

        A reader that has just left was not allowed to run them.
        """
        if not self.put_off or self._is_tidying or self.attention:
            return
        owner = self.put_off[0].owner
        if self.turn is None and self._may_enter_now(owner, EXCLUSIVE):
            self._is_tidying = True
            try:
                with on_behalf_of(owner):
                    run(self, CHANGE, _nothing)
            except Exception as error:
                # Raise it in the task that made the call, not in the leaving task.
                self._errors[owner] = error
            finally:
                self._is_tidying = False

    def _is_due(self, it: PutOff) -> bool:
        for turn in () if self.turn is None else self.turn.with_lenders():
            if turn is self.turn and self.running is None:
                continue
            if sections_in(turn) - it.owner.sections:
                return False
        return True

    def _do(self, it: PutOff) -> None:
        with self._mutex:
            turn = self._make_turn_on_top(it.owner)
            self._put_on_top(turn)
        try:
            with on_behalf_of(it.owner):
                it.function()
        except Exception as error:
            if it.owner.alive:
                self._errors[it.owner] = error
            else:
                logger.error("%s of %s failed", it.name, it.owner.name, exc_info=error)
        finally:
            with self._mutex:
                self._take_off(turn)

    # -- reports

    def _turns_to_show(self) -> list[Turn]:
        """Inside a step, return the turns that the step runs beside."""
        turns = super()._turns_to_show()
        step = self._step
        inside = step is not None and self.turn is step.turn
        return turns[1:] if inside else turns


def _nothing() -> None:
    """An operation that does nothing: entering and leaving run the deferred calls."""
