"""The words that guards are spoken to in: accesses, modes, kinds of guard."""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass
from typing import Any, Protocol

from .owners import Owner


class Access(enum.Enum):
    """What an operation does to the session it is an operation of."""

    #: Looks at what is loaded.
    READ = "read"
    #: May emit a SELECT, and adds what was not loaded.
    LOAD = "load"
    #: Changes something, but leaves no work that could be lost.
    CHANGE = "change"
    #: Leaves work in the transaction that a rollback would throw away.
    WRITE = "write"
    #: Ends the work of the transaction: rollback and close.
    END = "end"


READ, LOAD, CHANGE, WRITE, END = Access


class Mode(enum.Enum):
    EXCLUSIVE = "exclusive"
    SHARED = "shared"
    BESIDE = "beside"


EXCLUSIVE, SHARED, BESIDE = Mode

#: What a hold is for, if it may be forgotten: rows that nobody fetched are no loss.
STREAM = "streaming result"
#: What a hold is for that another owner has taken over: it goes on without its owner.
MOVED = "block that moved"
MOVED_STREAM = "streaming result that moved"

STREAMS = frozenset({STREAM, MOVED_STREAM})
#: What a hold is for, if it does not end with its owner.
GO_ON = frozenset({MOVED, MOVED_STREAM})


class Kind(enum.Enum):
    """How a guard treats the second thread."""

    RLOCK = "rlock"
    RW = "rw"
    DETECT = "detect"
    CONFINE = "confine"


class ForeignLock(Protocol):
    """A lock of the application's that a guard takes besides admitting somebody."""

    #: Whether readers may share it.
    shares: bool
    #: The class of the lock, for messages.
    name: str

    def acquire(
        self, mode: Mode, owner: Owner, through: object, timeout: float | None
    ) -> bool: ...

    # Nothing if the owner does not have it through that guard, or no longer has.
    def release(self, owner: Owner, through: object) -> None: ...

    # False, and unchanged, if it cannot.
    def downgrade(self, owner: Owner, through: object) -> bool: ...

    def blockers(self) -> list[Owner]: ...


class Gate(Protocol):
    """Where one owner at most puts itself, in one step: a dictionary."""

    def get(self, key: int, /) -> object: ...

    def __getitem__(self, key: int, /) -> object: ...

    def setdefault(self, key: int, value: object, /) -> object: ...

    def __setitem__(self, key: int, value: object, /) -> None: ...

    def __delitem__(self, key: int, /) -> None: ...


class Lock(Protocol):
    """The primitive that a guard stands on: a plain lock, not reentrant."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...

    def __enter__(self) -> bool: ...

    def __exit__(self, *exc_info: Any) -> None: ...


@dataclass(frozen=True)
class GuardStats:
    """What a guard has seen since it was made; times in seconds.

    An operation counts when it has ended.  Setting a single attribute is not timed.
    """

    acquisitions: int = 0
    contended: int = 0
    wait_seconds: float = 0.0
    longest_wait: float = 0.0
    longest_hold: float = 0.0
    timeouts: int = 0


def check_timeout(timeout: float | None) -> float | None:
    """Return *timeout*, a number of seconds above zero or ``None`` for ever."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ValueError(
            f"timeout must be a number of seconds or None, not {timeout!r}"
        )
    if not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
    return timeout


def check_wait_in_loop(seconds: float) -> None:
    """Raise unless *seconds* is a number of seconds, zero or more."""
    if seconds != 0:
        try:
            if check_timeout(seconds) is not None:
                return
        except ValueError:
            pass
        raise ValueError(
            f"wait_in_loop must be 0 or a number of seconds above, not {seconds!r}"
        )
