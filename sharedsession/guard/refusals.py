"""The errors of a guard: each gives the state and the remedy.

*state* is what the guard says of itself in ``explain()``.
"""

from __future__ import annotations

from ..errors import (
    ConcurrentAccessError,
    DeadlockError,
    LockTimeout,
    SharedSessionError,
    UpgradeError,
)
from .access import Mode
from .owner import Owner


def write(me: Owner) -> UpgradeError:
    return UpgradeError(
        f"A write is not possible inside a read section of {me.name}. "
        "Nothing was changed. Leave the read section first, or use "
        "critical_section() in its place."
    )


def exclusive_in_read_section(me: Owner, what: str) -> UpgradeError:
    return UpgradeError(
        f"A {what} cannot begin inside a read section of {me.name}, because other "
        f"{me.noun}s may be reading. Leave the read section first, or make the outer "
        "section a critical_section()."
    )


def beside_stream(me: Owner, what: str) -> UpgradeError:
    return UpgradeError(
        f"A {what} is not possible yet: {me.name} has a streaming result open that "
        f"began in a read section, and other {me.noun}s may be reading beside it. "
        "Nothing was changed. Read the result to its end or close it first."
    )


def nested(me: Owner) -> SharedSessionError:
    return SharedSessionError(
        f"{me.name} used a shared session in a finalizer or a signal handler that "
        "interrupted the same thread while it was entering or leaving a guard, or "
        "waiting for its turn. The call cannot wait, because it would wait for its "
        "own thread. Nothing was changed. In finalizers and signal handlers only "
        "record the work, and do it later in ordinary code."
    )


def to_move(me: Owner, owner: Owner) -> ConcurrentAccessError:
    return ConcurrentAccessError(
        f"{me.name} would take over a block or stream of {owner.name}, but the lock "
        "object of this session belongs to the thread that acquired it. Nothing was "
        f"changed. End the block or stream in {owner.name}, or make the session with "
        "the name of a lock kind, such as lock='rlock'."
    )


def overlap(me: Owner, state: str) -> ConcurrentAccessError:
    return ConcurrentAccessError(
        f"{me.name}, at {me.where()}, came into a session while another {me.noun} "
        f"was inside. {state} Two {me.noun}s shared it: give each its own "
        "session, or let them take turns with lock='rlock' or 'rw'."
    )


def to_wait_in_loop(me: Owner, state: str) -> SharedSessionError:
    return SharedSessionError(
        f"{me.name}, at {me.where()}, would wait for its turn in a session and "
        f"block the event loop of its thread. {state} "
        "Nothing was changed. Use the session in asyncio.to_thread(), or let the "
        "tasks share an AsyncSharedSession."
    )


def deadlock(me: Owner, state: str) -> DeadlockError:
    return DeadlockError(
        f"{me.name} would wait for ever: the holder of this guard waits, directly "
        f"or through others, for something that {me.name} holds. {state} "
        "Enter the sections of several sessions in the same order everywhere."
    )


def timed_out(me: Owner, state: str, mode: Mode, waited: float) -> LockTimeout:
    return LockTimeout(
        f"{me.name} waited {waited:.3g} s for {mode.value} access and did not get "
        f"it. {state} Nothing was changed. Give it more time with "
        "timeout= or lock_timeout=, or make the holder's section shorter."
    )


def lock_timed_out(me: Owner, timeout: float | None, holders: str) -> LockTimeout:
    return LockTimeout(
        f"{me.name} did not acquire the lock object of this session within "
        f"{timeout:g} s. {holders} Give it more time with timeout= or "
        "lock_timeout=, or hold the lock for a shorter time."
    )


def confined(me: Owner, owner: str) -> ConcurrentAccessError:
    return ConcurrentAccessError(
        f"This session is confined to {owner}; {me.name}, at {me.where()}, used it "
        f"or one of its objects. Give this {me.noun} a session of its own and copy "
        "objects with merge_into(), or let the owner pass it on with "
        "session.guard.hand_over()."
    )
