"""Lending: tasks that were started inside a section take turns in it.

A task *belongs* to a section if it was started inside.  While the owner of a section
runs no operation, it lends its turn to the tasks that belong to the section, for one
operation or one section at a time.  These tasks take turns inside, while other tasks
wait for the end of the section.  All of them wait in the same queue.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..guard.access import EXCLUSIVE, LOAD, READ, SHARED, Access, Kind, Mode
from ..guard.guard import Guard
from ..guard.owner import Owner
from ..guard.task import (
    TaskOwner,
    current_task_owner,
    enter_section,
    leave_section,
    note_sections,
)
from ..guard.turn import Hold, Kept, Turn, snapshot
from . import refusals


class LendingGuard(Guard):
    """A guard whose owners are tasks, each with the sections that it belongs to."""

    _flows = asyncio.Task
    consumers_can_wait = False
    #: The gate cannot check whether a task belongs to an open section.
    _may_have_gate = False

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
        super().__init__(
            kind, timeout=timeout, current_owner=current_task_owner, **primitives
        )

    # -- operations

    def enter(self, me: Owner, access: Access) -> None:
        note_sections(me)
        if self._reads_with_family(me):
            if access is not READ and access is not LOAD:
                self.refuse_write()
            self._join_readers(me)
        super().enter(me, access)

    def leave(self, me: Owner) -> None:
        super().leave(me)
        if self.queue and self._is_in_turn(me):  # tasks of the section may wait
            with self._mutex:
                self._pass_on()
            self.reap()

    def open_window(self, me: Owner) -> None:
        """Open no window, because a read beside an operation is a step."""
        self.may_open = False

    def _acquire(
        self,
        me: Owner,
        mode: Mode,
        timeout: float | None,
        *,
        hold: Hold | None = None,
        looks: bool = False,
    ) -> None:
        was_reading = me in self.reading
        super()._acquire(me, mode, timeout, hold=hold, looks=looks)
        if was_reading:
            # The read section of *me* may have ended during the wait.  Then the load
            # may flush, which is not allowed beside the readers of another section.
            self.exclude_others(me)

    # -- sections

    def reads_only(self) -> bool:
        me = self.current_owner()
        note_sections(me)
        return super().reads_only() or self._reads_with_family(me)

    def hold(self, what: str, timeout: float | None = None) -> Hold:
        me = self.current_owner()
        note_sections(me)
        if self._reads_with_family(me):
            self._join_readers(me)
            if me not in self.reading:
                self.refuse_write()
        return super().hold(what, timeout)

    def hold_shared(self, what: str, timeout: float | None = None) -> Hold:
        me = self.current_owner()
        note_sections(me)
        if self._reads_with_family(me):
            self._join_readers(me)
        if not self._is_in_turn(me) and self._is_family(me):
            kept = Kept(what, reads_only=True)
            return self._take(Hold(self, me, EXCLUSIVE, kept), timeout)
        return super().hold_shared(what, timeout)

    def _take(self, hold: Hold, timeout: float | None) -> Hold:
        super()._take(hold, timeout)
        enter_section(hold.number)
        return hold

    def take_over(self, hold: Hold, *, begins: bool = False) -> None:
        super().take_over(hold, begins=begins)
        if not hold.kept.is_stream and hold.is_open:
            enter_section(hold.number)

    def release_hold(self, hold: Hold) -> None:
        super().release_hold(hold)
        leave_section(hold.number)

    # -- tasks that belong to a section

    def _is_family(self, me: Owner) -> bool:
        """Whether *me* belongs to the outermost section, which excludes other tasks."""
        outermost = self._outermost_turn()
        if outermost is None or outermost.mode is not EXCLUSIVE or not outermost.keeps:
            return False
        return outermost.keeps.keys() <= me.sections

    def _outermost_turn(self) -> Turn | None:
        return None if self.turn is None else [*self.turn.with_lenders()][-1]

    def _reads_with_family(self, me: Owner) -> bool:
        """Whether *me* belongs to an open read section of another task."""
        turn = self.turn
        if turn is not None and turn.mode is EXCLUSIVE and turn.owner is not me:
            return turn.reads_only and self._is_family(me)
        if me in self.reading or self._is_in_turn(me):
            return False
        readers = snapshot(self.reading.values())
        return any(me.sections.intersection(snapshot(r.keeps)) for r in readers)

    def _join_readers(self, me: Owner) -> None:
        """Make *me* a reader in the read sections of its parent tasks.

        *me* stays a reader until those sections end.
        """
        if self.turn is not None and self.turn.mode is EXCLUSIVE:
            return
        with self._mutex:
            shared = {
                number: reader.keeps[number]
                for reader in snapshot(self.reading.values())
                for number in me.sections.intersection(snapshot(reader.keeps))
            }
            if shared:
                reader = self.reading[me] = Turn(me, SHARED, self.clock())
                reader.keeps.update(shared)
        self.reap()

    def _is_in_section_of_others(self, me: Owner) -> bool:
        """Whether a section is open that *me* does not belong to."""
        turns = () if self.turn is None else self.turn.with_lenders()
        return any(sections_in(turn) - me.sections for turn in turns)

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
        if not isinstance(me, TaskOwner) and me.can_wait() and takes is None:
            note_sections(me)
            if self._is_in_section_of_others(me):
                raise refusals.thread_in_section(me, self.explain())
        super()._wait(me, mode, timeout, hold=hold, takes=takes, looks=looks)

    def _lets_wait(self, me: Owner) -> bool:
        """Like the base, but a confined session also lets the owner's tasks wait.

        The owner takes turns with the tasks that belong to its section.
        """
        ours = me is self.only_owner or self._is_family(me)
        return (self.kind is Kind.CONFINE and ours) or super()._lets_wait(me)

    def _refusal_to_wait(self, me: Owner) -> Exception:
        return refusals.to_wait(me, self.explain())

    # -- confine

    def _check_owner(self, me: Owner) -> None:
        if self.kind is Kind.CONFINE and self._is_family(me):
            outermost = self._outermost_turn()
            if outermost is not None and outermost.owner is self.only_owner:
                return
        super()._check_owner(me)

    def _is_free_to_take(self, only_owner: Any) -> bool:
        if isinstance(only_owner, asyncio.Task):
            return self.kind is Kind.CONFINE and only_owner.done()
        return super()._is_free_to_take(only_owner)

    def _name_of(self, flow: Any) -> str:
        return f"task {flow.get_name()!r}"


def sections_in(turn: Turn) -> set[int]:
    """Return the numbers of the sections and blocks that keep *turn*, not streams."""
    kept = {number: turn.keeps.get(number) for number in snapshot(turn.keeps)}
    return {number for number, it in kept.items() if it and not it.is_stream}
