"""The guard of a session that asyncio tasks share.

Like the guard for threads, with two additions.

**Lending.**  A task *belongs* to a section if it was started inside.  While the owner
of a section runs no operation, it lends its turn to the tasks that belong to the
section, for one operation or one section at a time.  These tasks take turns inside,
while other tasks wait for the end of the section.  All of them wait in the same queue.

**Steps.**  A call that is not awaited, such as ``add()``, cannot wait.  If the guard is
not free, the call may still be done at once, as a *step* beside the operation in
flight: that operation waits for the database at an ``await``, and a step ends before
any other code runs.  A change that the operation would undo is hidden from it, see
``objects/deferred.py``.  A change that cannot be hidden is deferred until the operation
ends, or refused.

Both replace the owner of the turn for a time.  Therefore the guard has a stack of turns
(:class:`_Place`).  The guard's own fields describe the top turn, because the base
classes expect that; ``_below`` has the other turns.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from collections import deque
from typing import Any, Callable, NoReturn, Sequence

from ..errors import ConcurrentAccessError
from ..guard.access import (
    BESIDE,
    CHANGE,
    END,
    EXCLUSIVE,
    GO_ON,
    LOAD,
    READ,
    SHARED,
    STREAMS,
    WRITE,
    Access,
    Kind,
    Mode,
)
from ..guard.guard import Guard
from ..guard.owner import Owner
from ..guard.task import (
    TaskOwner,
    current_task_owner,
    enter_section,
    leave_section,
    note_sections,
    on_behalf_of,
)
from ..guard.turn import Hold, Reading, Waiter
from ..internals import orm, transactions
from ..objects import deferred
from ..operations.operation import run

logger = logging.getLogger("sharedsession")


class _Place:
    """A turn below the top one: the guard's fields from before they were replaced."""

    __slots__ = (
        *("_owner", "_loader", "inside", "running", "restricted", "holds"),
        *("since", "_access", "is_over"),
    )

    _owner: Owner | None
    running: Owner | None
    holds: dict[int, str]
    restricted: bool

    def __init__(self, guard: TaskGuard) -> None:
        #: True once the last hold of this turn was released while it was not on top.
        self.is_over = False
        for name in _FIELDS:
            setattr(self, name, getattr(guard, name))

    def restore(self, guard: TaskGuard) -> None:
        for name in _FIELDS:
            setattr(guard, name, getattr(self, name))


_FIELDS = _Place.__slots__[:-1]


class _Step:
    """A step of *owner* beside another task's operation."""

    __slots__ = ("owner", "failure", "unsettled", "writer", "hides", "place")

    def __init__(self, owner: Owner, guard: TaskGuard) -> None:
        self.owner = owner
        self.failure = guard.last_failure
        self.unsettled = guard.unsettled
        self.writer = guard.last_writer
        self.hides = False
        self.place = _Place(guard)


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


class TaskGuard(Guard):
    """Decides which task may be inside a session."""

    _flows = asyncio.Task
    consumers_can_wait = False
    _may_have_gate = False  # family must be asked for by the monitor

    @classmethod
    def check_lock_object(cls, lock: Any) -> None:
        raise ValueError(
            f"lock={lock!r} keeps threads apart, and the tasks of an event loop are in "
            "one thread: give an asyncio session the name of a kind."
        )

    def __init__(
        self,
        kind: Kind = Kind.RLOCK,
        *,
        timeout: float | None = None,
        **primitives: Any,
    ) -> None:
        super().__init__(kind, timeout=timeout, asker=current_task_owner, **primitives)
        self._below: list[_Place] = []
        self._step: _Step | None = None
        #: The access of the operation in flight; ``None`` if it is not known.
        self._access: Access | None = None
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
        if self._reads_with_family(me):
            if access is not READ and access is not LOAD:
                self.refuse_write()
            self._join_readers(me)
        super().enter(me, access)
        self._access = access
        if access is not END:
            if self.put_off:
                self._do_put_off()
                if self.attention:  # a deferred expire() may have lost this task's work
                    self.attend_to(me, access)
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
        if self.queue and self.inside is me:  # tasks of the section may wait
            with self._mutex:
                self._pass_on()
            self.reap()
        self._do_if_free()

    def open_window(self, me: Owner) -> None:
        """Open no window, because a read beside an operation is a step."""
        self.may_open = False

    def note_change(self) -> None:
        """Note that the operation in flight does more than its access said."""
        self._access = None

    # -- lending

    def _lends_to(self, owner: Owner) -> bool:
        """Whether *owner* belongs to the sections of the turn and no operation runs."""
        return (
            self._owner is not None
            and self.running is None
            and bool(self.holds)
            and self.holds.keys() <= owner.sections
        )

    def _may_enter_now(self, me: Owner, mode: Mode) -> bool:
        return self._lends_to(me) or super()._may_enter_now(me, mode)

    def _goes_first(self, owner: Owner) -> bool:
        return self._lends_to(owner) or super()._goes_first(owner)

    def _fits(self, mode: Mode, owner: Owner) -> bool:
        return self._lends_to(owner) or super()._fits(mode, owner)

    def _admit(self, me: Owner, mode: Mode) -> None:
        if self._owner is None:
            super()._admit(me, mode)
        else:
            # A borrowed turn has no more rights than the lender's: read-only stays
            # read-only.
            self._below.append(_Place(self))
            self.holds = {}
            self.inside = None
            super()._admit(me, EXCLUSIVE)
        if mode is not SHARED:
            self._access = None

    def _acquire(
        self,
        me: Owner,
        mode: Mode,
        timeout: float | None,
        *,
        looks: bool = False,
    ) -> None:
        was_reading = me in self.reading
        super()._acquire(me, mode, timeout, looks=looks)
        if was_reading and self._loader is me:
            # The read section of *me* may have ended during the wait.  Then the load
            # may flush, which is not allowed beside the readers of another section.
            self.exclude_others(me)

    def _drop(self) -> None:
        if self._below:
            self._give_back()
        else:
            super()._drop()

    def _give_back(self) -> None:
        place = self._below.pop()
        place.restore(self)
        if place.is_over:
            self._drop()

    def _all_holds(self) -> list[dict[int, str]]:
        """Return the holds of the top turn, and those of all turns below it."""
        return [self.holds, *(place.holds for place in self._below)]

    def _places_below(self) -> list[_Place]:
        step = self._step
        return self._below if step is None else [*self._below, step.place]

    # -- tasks that belong to a section

    def _is_family(self, me: Owner) -> bool:
        """Whether *me* belongs to the outermost section, which excludes other tasks."""
        holds = self._below[0].holds if self._below else self.holds
        return self._owner is not None and bool(holds) and holds.keys() <= me.sections

    def _reads_with_family(self, me: Owner) -> bool:
        """Whether *me* belongs to a read section that is still open."""
        if self._owner is not None and self._owner is not me:
            return self.restricted and self._is_family(me)
        if me in self.reading or self._owner is me or self._loader is me:
            return False
        return any(r.holds & me.sections for r in self.reading.values())

    def _join_readers(self, me: Owner) -> None:
        """Make *me* a reader in the read sections of its parent tasks.

        *me* stays a reader until those sections end.
        """
        if self._owner is not None:
            return
        with self._mutex:
            shared: set[int] = set()
            for reading in self.reading.values():
                shared |= reading.holds & me.sections
            if shared:
                reading = self.reading[me] = Reading(self.clock())
                reading.holds |= shared
        self.reap()

    def reads_only(self) -> bool:
        me = self.asker()
        note_sections(me)
        return super().reads_only() or self._reads_with_family(me)

    def hold(self, what: str, timeout: float | None = None) -> Hold:
        me = self.asker()
        note_sections(me)
        if self._reads_with_family(me):
            self._join_readers(me)
            if me not in self.reading:
                self.refuse_write()
        return super().hold(what, timeout)

    def hold_shared(self, what: str, timeout: float | None = None) -> Hold:
        me = self.asker()
        note_sections(me)
        if self._reads_with_family(me):
            self._join_readers(me)
        if self._owner is not me and self._is_family(me):
            hold = Hold(self, me, EXCLUSIVE, what, False)
            return self._take(hold, timeout, restricts=True)
        return super().hold_shared(what, timeout)

    def _take(self, hold: Hold, timeout: float | None, restricts: bool) -> Hold:
        me = hold.owner
        super()._take(hold, timeout, restricts)
        enter_section(hold.number)
        alone = self._owner is me and [*self.holds] == [hold.number]
        if self.put_off and alone and self.running is None:
            try:
                self._do_put_off()  # impossible before, beside readers
            except BaseException:
                hold.release()
                raise
        return hold

    def take_over(self, hold: Hold, *, begins: bool = False) -> None:
        super().take_over(hold, begins=begins)
        if hold.what not in STREAMS and hold.is_open:
            enter_section(hold.number)

    def _move(self, hold: Hold, me: Owner, begins: bool = False) -> bool:
        if any(hold.number in place.holds for place in self._places_below()):
            return False  # the turn is lent, and its borrower gives it back first
        return super()._move(hold, me, begins)

    def downgrade(self, hold: Hold) -> None:
        if not self._below:
            super().downgrade(hold)
        elif not self.restricted:  # a borrowed turn cannot be shared with readers
            hold.restricts = self.restricted = True
            self._settle_rights()

    def let_go(self, hold: Hold) -> None:
        alone = self.running is None and [*self.holds] == [hold.number]
        if self.put_off and alone and not self._is_in_mutex():
            if not self._below:
                self._do_put_off()
        super().let_go(hold)
        leave_section(hold.number)
        self._do_if_free()

    def _let_go(self, hold: Hold) -> None:
        # Tasks that belong to a read section are readers only until its end.
        for owner, reading in tuple(self.reading.items()):
            if owner is not hold.owner and hold.number in reading.holds:
                reading.holds.discard(hold.number)
                if not reading.holds and self._loader is not owner:
                    self._drop_reader(owner)
        if any(hold.number in place.holds for place in self._places_below()):
            self._let_go_below(hold)
        else:
            super()._let_go(hold)

    def _let_go_below(self, hold: Hold) -> None:
        """End a section whose turn is lent; its borrower gives the turn back later."""
        for place in self._places_below():
            if place.holds.pop(hold.number, None):
                place.is_over = not place.holds and place.running is None
                if hold.restricts:
                    place.restricted = False
        hold.is_open = False

    def bury(self, owner: Owner) -> None:
        with self._mutex:
            for place in self._below:
                if place._owner is owner and place.holds:
                    if not (STREAMS | GO_ON).issuperset(place.holds.values()):
                        self.abandoned_by = owner
                        self.attention = self.unsettled = True
                    for number, what in tuple(place.holds.items()):
                        if what not in GO_ON:
                            del place.holds[number]
                    place.is_over = place.running is None and not place.holds
        super().bury(owner)

    def disown(self) -> None:
        super().disown()
        self._below = []
        self._step = None
        self.put_off.clear()

    # -- steps beside an operation in flight

    def _must_step(self, me: Owner, access: Access) -> bool:
        if me.can_wait() or self.kind in (Kind.DETECT, Kind.CONFINE):
            return False
        if self._owner is me or self._loader is me:
            return False
        if me in self.reading or self._reads_with_family(me):
            return self._owner is not None or self._loader is not None
        if self.last_failure is not None:
            return True  # only an owner that can wait can deal with the failure
        mode = BESIDE if access is READ and self._shares else EXCLUSIVE
        return not self._may_enter_now(me, mode)

    def _begin_step(self, me: Owner, access: Access) -> None:
        with self._mutex:
            self._step = step = _Step(me, self)
        self._check_step(me, access)
        step.hides = access is WRITE and not self._is_quiet()
        if step.hides:
            deferred.watched[self] = {}
            self.last_writer = me  # the work is noted when the change is shown
        with self._mutex:
            self._owner = self.running = me
            self._loader = self.inside = None
            self.restricted = False
            self.holds = {}
            self._access = None
        if self.attention:
            self.attend_to(me, access)

    def _end_step(self, step: _Step) -> None:
        # All of this may be done again after an interrupt.
        for change in deferred.watched.get(self, {}).values():
            change.hide()
            show = functools.partial(self._show, change)
            self.put_off.append(PutOff(step.owner, "set", show))
        deferred.watched.pop(self, None)
        with self._mutex:
            step.place.restore(self)
            # A step that fails does not break the transaction.
            self.last_failure, self.unsettled = step.failure, step.unsettled
            if step.hides:
                self.last_writer = step.writer
            self._step = None
            if step.place.is_over:  # the stream was collected meanwhile
                self._drop()
                self._pass_on()
        self.reap()

    def _show(self, change: deferred.Change) -> None:
        change.show()
        owner = self.asker()
        if self.last_writer is not owner:
            self.wrote(owner)

    def check_may_relate(self) -> None:
        me = self.asker()
        if self.running is me:
            if self._step is not None and self._step.hides:
                self._refuse_to_lose(me)
            return
        note_sections(me)
        if self._must_step(me, WRITE):
            self._check_step(me, WRITE)
            if not self._is_quiet():
                self._refuse_to_lose(me)

    def check_may_execute(self) -> None:
        """Refuse a statement inside a step: another statement may be in flight."""
        if self._step is not None:
            self._refuse_beside(self.asker())

    def check_may_put_off(self, me: Owner) -> None:
        """Refuse to defer a call that would be refused if the guard were free."""
        if self.reads_only():
            self.refuse_write()
        if self.attention:
            self.attend_to(me, WRITE)  # raises if *me* has lost work

    def has_put_off(self, me: Owner) -> bool:
        """Whether a call of *me* is still deferred."""
        return any(it.owner is me for it in self.put_off)

    def is_free_for(self, me: Owner) -> bool:
        """Whether a call that is not awaited may run now, like an awaited one."""
        note_sections(me)
        mine = self.inside is me or self.running is me
        if mine or self.kind in (Kind.DETECT, Kind.CONFINE):
            return True  # *me* does not wait, though it may be refused
        return not self._must_step(me, WRITE)

    def _check_step(self, me: Owner, access: Access) -> None:
        if self.running is not None and not isinstance(self.running, TaskOwner):
            self._refuse_beside(me)  # a thread does not stop for this step
        strange = {
            number
            for holds in self._all_holds()
            for number, what in holds.items()
            if what not in STREAMS and number not in me.sections
        }
        if strange and not self.restricted:
            self._refuse_in_section(me)
        if access is READ or access is LOAD:
            return
        reads = self.restricted or me in self.reading
        if not strange and (reads or self._reads_with_family(me)):
            self.refuse_write()
        if strange or self.reading:
            self._refuse_in_section(me)
        if access is not WRITE:
            self._refuse_beside(me)

    def _is_quiet(self) -> bool:
        """Whether the operation in flight would keep a change that is made now."""
        session = self.session()
        if session is not None and orm.is_flushing(session):
            return False
        if self.running is None:
            return bool(self.holds)  # between two fetches from a stream
        return self._access is READ or self._access is LOAD

    # -- deferred calls

    def _do_put_off(self) -> None:
        """Run the deferred calls that can run now.

        Call this while no operation is in flight.
        """
        session = self.session()
        if session is None or transactions.is_broken(session._transaction):
            return  # a rollback must come first, and would undo the calls
        if self.reading or self._loader is not None:
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
        if self._owner is None and self._may_enter_now(owner, EXCLUSIVE):
            self._is_tidying = True
            try:
                with on_behalf_of(owner):
                    run(self, CHANGE, _nothing)
            except Exception as error:
                self._errors[owner] = error  # the caller, which leaves, did not call it
            finally:
                self._is_tidying = False

    def _is_due(self, it: PutOff) -> bool:
        holds = [place.holds for place in self._below]
        if self.running is not None:
            holds.append(self.holds)
        kept = {n for each in holds for n, what in each.items() if what not in STREAMS}
        return kept <= it.owner.sections

    def _do(self, it: PutOff) -> None:
        with self._mutex:
            place = _Place(self)
            self._below.append(place)
            self._owner = self.running = it.owner
            self.inside = None
            self.restricted = False
            self.holds = {}
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
                self._below.remove(place)
                place.restore(self)

    # -- threads

    def _wait(
        self,
        me: Owner,
        mode: Mode,
        timeout: float | None,
        looks: bool,
        takes: Hold | None = None,
    ) -> None:
        if not isinstance(me, TaskOwner) and me.can_wait() and takes is None:
            note_sections(me)
            if self._is_in_section_of_others(me):
                self._refuse_thread_in_section(me)
        super()._wait(me, mode, timeout, looks, takes)

    # -- confine

    def _lets_wait(self, me: Owner) -> bool:
        """Like the base, but a confined session also lets the owner's tasks wait.

        The owner takes turns with the tasks that belong to its section.
        """
        ours = me is self.sole or self._is_family(me)
        return (self.kind is Kind.CONFINE and ours) or super()._lets_wait(me)

    def _check_asker(self, me: Owner) -> None:
        if self.kind is Kind.CONFINE and self._is_family(me):
            lender = self._below[0]._owner if self._below else self._owner
            if lender is self.sole:
                return
        super()._check_asker(me)

    def _is_free_to_take(self, sole: Any) -> bool:
        if isinstance(sole, asyncio.Task):
            return self.kind is Kind.CONFINE and sole.done()
        return super()._is_free_to_take(sole)

    def _name_of(self, flow: Any) -> str:
        return f"task {flow.get_name()!r}"

    # -- refusals

    def _refuse_to_wait(self, me: Owner) -> NoReturn:
        raise ConcurrentAccessError(
            f"{me.name}, at {me.where()}, would have to wait, and here it cannot: "
            f"this is not awaited. {self.explain()} Nothing was changed. Do it in "
            "session.run_sync(), or enter 'async with session.critical_section()' "
            "first."
        )

    def _is_in_section_of_others(self, me: Owner) -> bool:
        """Whether a section is open that *me* does not belong to."""
        return any(
            what not in STREAMS and number not in me.sections
            for holds in self._all_holds()
            for number, what in holds.items()
        )

    def _refuse_thread_in_section(self, me: Owner) -> NoReturn:
        raise ConcurrentAccessError(
            f"{me.name}, at {me.where()}, came into a task's section that it was not "
            "started in, and would wait for its end, which may wait for this thread. "
            f"{self.explain()} Nothing was changed. Start the thread's work with "
            "asyncio.to_thread(), which tells that it belongs to the section, or wait "
            "for the section's end first."
        )

    def _refuse_in_section(self, me: Owner) -> NoReturn:
        raise ConcurrentAccessError(
            f"{me.name}, at {me.where()}, came into another task's section with what "
            f"is not awaited, so it cannot wait for the end. {self.explain()} Nothing "
            "was changed. Do it in session.run_sync(), or enter 'async with "
            "session.critical_section()' first; attributes can be awaited, too, by "
            "AsyncAttrs.awaitable_attrs."
        )

    def _refuse_beside(self, me: Owner) -> NoReturn:
        raise ConcurrentAccessError(
            f"{me.name}, at {me.where()}, did what is not awaited, so it cannot wait, "
            f"while another task's operation was in flight. {self.explain()} Nothing "
            "was changed. Do it in session.run_sync(), or enter 'async with "
            "session.critical_section()' first."
        )

    def _refuse_to_lose(self, me: Owner) -> NoReturn:
        raise ConcurrentAccessError(
            f"{me.name}, at {me.where()}, changed a relationship while another task's "
            f"operation was in flight that would lose it. {self.explain()} Nothing was "
            "changed. Do it in session.run_sync(), or enter 'async with "
            "session.critical_section()' first."
        )

    # -- reports

    def blockers(self, waiter: Waiter) -> list[Owner]:
        lenders = [place._owner for place in self._below]
        blockers = super().blockers(waiter)
        return blockers + [
            owner
            for owner in lenders
            if owner is not None
            and owner is not waiter.owner
            and not waiter.owner.sections & {*self._holds_of(owner)}
        ]

    def _holds_of(self, owner: Owner) -> list[int]:
        return [
            n for place in self._below if place._owner is owner for n in place.holds
        ]

    def explain(self) -> str:
        step = self._step
        if step is not None and self._owner is step.owner:
            return self._explain_below(step.place)
        said = super().explain()
        lenders = [place._owner for place in self._below if place._owner is not None]
        for owner in dict.fromkeys(lenders):
            said += f" It is lent by {owner.name}, in whose section this happens."
        return said

    def _explain_below(self, place: _Place) -> str:
        """Explain, inside a step, the turn that the step runs beside."""
        now = _Place(self)
        try:
            place.restore(self)
            return self.explain()
        finally:
            now.restore(self)


def _nothing() -> None:
    """An operation that does nothing: entering and leaving run the deferred calls."""
