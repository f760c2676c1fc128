"""Setting an attribute, as one operation in as few steps as can be.

No application makes any other operation as often that changes something.
"""

from __future__ import annotations

from typing import Any, Callable

from .attachment import guards
from .monitor import FOREVER
from .operations import run
from .terms import WRITE

Setter = Callable[[Any, Any, Any], None]

_find_guard = guards.get


def setter_of(impl: Any, state_key: str, otherwise: Setter) -> Setter:
    """The ``__set__`` of an attribute whose values are in its objects' ``__dict__``.

    Like :func:`run`, but the steps of :meth:`Guard.come_in` and :meth:`Guard.leave`
    stand here in line, and the operation is not timed.

    :param impl: what is behind the attribute; its ``set_unguarded()`` is called.
    :param state_key: where the state of an object is in its ``__dict__``.
    :param otherwise: called with the same arguments for an object without a state.
    """
    set_unguarded = impl.set_unguarded

    def __set__(self: Any, instance: Any, value: Any) -> None:
        values = instance.__dict__
        try:
            state = values[state_key]
        except KeyError:
            otherwise(self, instance, value)
            return
        guard = _find_guard(state.session_id)
        if guard is None:
            set_unguarded(state, values, value, None)
            return
        me = guard.asker()
        # There is no version while anybody, and be it this one, is in a section or an
        # operation, but for one that has a window open.
        free = guard.version is not None and guard.window is not me
        if not free or (guard.checks_askers and guard.sole is not me):
            run(guard, WRITE, set_unguarded, state, values, value, None)
            return
        gate = guard.gate
        came_in = left = False
        try:
            try:
                came_in = gate.setdefault(0, me) is me and gate[0] is me
            except KeyError:
                pass  # see Guard.come_in()
            if came_in:
                guard.version = None
                guard.running = me
                guard.may_open = False
                if guard.attention:
                    guard.attend_to(me, WRITE)
                set_unguarded(state, values, value, None)
                if guard.worker is not me:
                    guard.note_work(me)
                if (
                    gate[0] is me
                    and guard.rests_until is FOREVER
                    and not guard.unsettled
                ):
                    # No call from here to the end: an interrupt finds all or nothing.
                    guard.running = guard.window = None
                    guard.last_version += 1
                    guard.version = guard.last_version
                    del gate[0]
                    left = guard.rests_until is FOREVER and not guard.forsaken
        except BaseException as error:
            guard.close_window(me)
            guard.failed = me, error.__class__.__name__
            guard.attention = guard.unsettled = True
            raise
        finally:
            if not left and (came_in or gate.get(0) is me):
                try:
                    guard.leave(me)
                except BaseException:
                    guard.leave(me)  # an interrupt at its first line
                    raise
        if not came_in:
            run(guard, WRITE, set_unguarded, state, values, value, None)

    return __set__
