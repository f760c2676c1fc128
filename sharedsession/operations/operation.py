"""Run one operation inside a guard, or read loaded state without a lock."""

from __future__ import annotations

from typing import Any, Callable, Collection

from ..errors import SharedSessionError
from ..guard import refusals
from ..guard.access import COMMIT, LOAD, READ, STATEMENT, WRITE, Access
from ..guard.guard import Guard
from ..guard.owner import Owner
from ..guard.turn import Hold
from ..guard.waiter import WindowOpened

#: Operations that wait for the database before they change anything.
_WAITING = (LOAD, STATEMENT, COMMIT)


def run(
    guard: Guard, access: Access, function: Callable[..., Any], *args: Any, **kw: Any
) -> Any:
    """Call *function* as one operation of the guarded session.

    Inside an operation of the same owner, *function* is a part of that operation.
    """
    me = guard.current_owner()
    if guard.running is me:
        return _run_within(guard, me, access, function, args, kw)
    if guard.window is me:
        guard.close_window(me)  # for a listener of the statement in flight
        return _run_within(guard, me, access, function, args, kw)
    if me.busy:
        return _run_nested(guard, me, access, function, args, kw)
    held = guard.kept()
    if me.is_member:
        me.operations += 1
    me.busy = True
    try:
        _enter(guard, me, access)
        me.busy = False
        held = guard.kept()  # with what others of this party began meanwhile
        guard.may_open = access in _WAITING and not guard.checks_owners
        result = function(*args, **kw)
        if (access is WRITE or access is STATEMENT) and guard.last_writer is not me:
            guard.wrote(me)
        return result
    except BaseException as error:
        _note_failure(guard, me, held, error)
        raise
    finally:
        try:
            _leave(guard, me)
        except BaseException:
            _leave_again(guard, me, held)
            raise
        finally:
            if me.is_member:
                me.operations -= 1


def _enter(guard: Guard, me: Owner, access: Access) -> None:
    """Begin an operation: by the gate if possible, or else by the monitor."""
    if guard.come_in(me):
        me.accepts_window = False
        guard.since = guard.clock()
        if guard.attention:
            guard.recover(me, access)
    else:
        guard.enter(me, access)
        me.accepts_window = False


def _leave(guard: Guard, me: Owner) -> None:
    """End an operation.  If this raises, call :func:`_leave_again`."""
    me.busy = True
    guard.leave(me)
    me.busy = False
    if guard.abandoned_holds:
        guard.reap()


def _run_nested(
    guard: Guard, me: Owner, access: Access, function: Any, args: Any, kw: Any
) -> Any:
    """Call *function* for a finalizer or a signal handler in the thread of *me*.

    The finalizer or handler interrupted *me* while *me* was entering or leaving a
    guard, or waiting for a guard.
    If *me* is exclusive in this guard, or this guard is free, *function* is called.
    Otherwise the call is refused, because it would wait for its own thread.
    """
    if guard.is_in_bookkeeping():
        raise refusals.nested(me)
    if guard.is_exclusive(me):
        return _run_interrupting(guard, me, access, function, args, kw)
    # From here on *me* is exclusive in this guard if and only if it came in here.
    try:
        if not guard.come_in(me):
            raise refusals.nested(me)
        me.busy = False
        if guard.attention:
            guard.recover(me, access)
        return _run_within(guard, me, access, function, args, kw)
    except BaseException as error:
        if guard.is_exclusive(me):
            _note_failure(guard, me, (), error)
        raise
    finally:
        try:
            if guard.is_exclusive(me):
                _leave(guard, me)
        except BaseException:
            if guard.is_exclusive(me):
                _leave_again(guard, me, ())
            raise
        finally:
            me.busy = True


def _run_interrupting(
    guard: Guard, me: Owner, access: Access, function: Any, args: Any, kw: Any
) -> Any:
    """Call *function* in the turn of *me*, which is entering or leaving it."""
    if access is not READ and access is not LOAD and guard.reads_only():
        guard.refuse_write()
    before = guard.running, guard.version
    try:
        guard.begin_nested_operation(me)
        return _run_within(guard, me, access, function, args, kw)
    finally:
        guard.end_nested_operation(*before)


def run_in(hold: Hold, access: Access, function: Callable[..., Any], *args: Any) -> Any:
    """Like :func:`run`, but inside *hold*, which the caller takes over first."""
    guard = hold.guard
    me = guard.current_owner()
    if guard.running is me or not hold.is_open:
        return run(guard, access, function, *args)
    held = guard.kept()
    if me.is_member:
        me.operations += 1
    try:
        guard.take_over(hold, begins=True)
        if guard.running is not me:  # the hold was released meanwhile
            return run(guard, access, function, *args)
        if guard.attention:
            guard.recover(me, access)
        held = guard.kept()
        guard.may_open = False
        return function(*args)
    except BaseException as error:
        _note_failure(guard, me, held, error)
        raise
    finally:
        try:
            _leave(guard, me)
        except BaseException:
            _leave_again(guard, me, held)
            raise
        finally:
            if me.is_member:
                me.operations -= 1


def _note_failure(
    guard: Guard, me: Owner, held: Collection[int], error: BaseException
) -> None:
    guard.close_window(me)  # an interrupt may have left the window open
    if guard.running is me:  # otherwise the owner was not admitted
        guard.last_failure = me, error.__class__.__name__
        guard.attention = guard.unsettled = True
    guard.drop_streams(me, held)


def _leave_again(guard: Guard, me: Owner, held: Collection[int]) -> None:
    """Leave again after an interrupt stopped :func:`_leave`.

    Without this, the guard would stay held and no other owner could enter any more.
    """
    me.busy = True
    try:
        guard.drop_streams(me, held)
        guard.leave(me)
    finally:
        me.busy = False
        if guard.abandoned_holds:
            guard.reap()


def _run_within(
    guard: Guard, me: Owner, access: Access, function: Any, args: Any, kw: Any
) -> Any:
    """Call *function* as a part of the operation that *me* runs already."""
    if access is READ or access is LOAD:
        return function(*args, **kw)
    writes = access is WRITE or access is STATEMENT
    if writes and guard.reads_only():
        guard.refuse_write()  # for example a listener of a load in a read section
    if access is not STATEMENT and access is not COMMIT:
        guard.may_open = False  # no window after a change
    result = function(*args, **kw)
    guard.may_open = False
    if writes and guard.last_writer is not me:
        guard.wrote(me)
    return result


def in_window(guard: Guard, function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    """Call *function*, which waits for the database, while others may read.

    Call this inside an operation.  Opens a window (``guard/gate.py``) if the operation
    has changed nothing yet.
    """
    if not guard.may_open:
        return function(*args, **kw)
    me = guard.current_owner()
    try:
        guard.open_window(me)
        return function(*args, **kw)
    finally:
        guard.close_window(me)


def optimistic_read(
    guard: Guard, function: Callable[..., Any], *args: Any, **kw: Any
) -> Any:
    """Optimistic read: call *function* without a lock if possible, else as a ``READ``.

    :param function: reads loaded state only.

    The result counts if no other owner can have changed anything during the call:
    either the guard has the same version before and after the call, or the caller keeps
    all other owners out.  The same rule decides whether an error of *function* counts.

    A reader that waits in the queue leaves the queue if a window opens, and tries an
    optimistic read again.  In the second attempt it does not leave the queue again.
    """
    if guard.version is None and guard.running is guard.current_owner():
        return function(*args, **kw)
    try:
        return _attempt(guard, True, function, args, kw)
    except WindowOpened:
        return _attempt(guard, False, function, args, kw)


def _attempt(
    guard: Guard, accepts_window: bool, function: Any, args: Any, kw: Any
) -> Any:
    """Call *function* without a lock, or else as an operation.

    :param accepts_window: whether to raise :class:`WindowOpened`, instead of waiting
      on, when a window opens.
    """
    version = guard.version
    if guard.is_still(version):
        try:
            result = function(*args, **kw)
        except SharedSessionError:
            raise  # from an operation inside: a WorkLostError is raised only once
        except Exception:
            if guard.is_still(version):
                raise
        else:
            if guard.is_still(version):
                return result
    me = guard.current_owner()
    me.accepts_window = accepts_window
    try:
        return run(guard, READ, function, *args, **kw)
    finally:
        me.accepts_window = False
