"""The terms that guards use: accesses, modes, kinds, and protocols of locks."""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass
from typing import Any, Protocol

from .owner import Owner


class Access(enum.Enum):
    """What an operation does to its session."""

    #: Reads loaded state only.
    READ = "read"
    #: May emit a SELECT and add the result to the loaded state.
    LOAD = "load"
    #: Changes state, but leaves no work that could be lost.
    CHANGE = "change"
    #: Leaves work in the transaction that a rollback would lose.
    WRITE = "write"
    #: Sends a statement that leaves work; until it is answered, no state changes.
    STATEMENT = "statement"
    #: Commits; until that is done, no state changes unless something is flushed.
    COMMIT = "commit"
    #: Ends the work of the transaction: rollback and close.
    END = "end"


READ, LOAD, CHANGE, WRITE, STATEMENT, COMMIT, END = Access


class Mode(enum.Enum):
    EXCLUSIVE = "exclusive"
    SHARED = "shared"
    BESIDE = "beside"


EXCLUSIVE, SHARED, BESIDE = Mode

#: The purpose of a hold that may be abandoned: rows that were not fetched are no loss.
STREAM = "streaming result"


class Kind(enum.Enum):
    """How a guard treats a second owner."""

    RLOCK = "rlock"
    RW = "rw"
    DETECT = "detect"
    CONFINE = "confine"


class ForeignLock(Protocol):
    """A lock object passed in as ``lock=``, acquired with each admission."""

    #: Whether readers may share the lock.
    shares: bool
    #: Whether only the thread that acquired the lock can release it.
    is_bound: bool
    #: The class of the lock, for messages.
    name: str

    def acquire(
        self, mode: Mode, owner: Owner, through: object, timeout: float | None
    ) -> bool: ...

    # Does nothing unless *owner* has the lock through that guard.
    def release(self, owner: Owner, through: object) -> None: ...

    # Returns False and changes nothing if the lock cannot be downgraded.
    def downgrade(self, owner: Owner, through: object) -> bool: ...

    def blockers(self) -> list[Owner]: ...


class Gate(Protocol):
    """A dictionary of at most one entry, changed atomically; see ``gate.py``."""

    def get(self, key: int, /) -> object: ...

    def __getitem__(self, key: int, /) -> object: ...

    def setdefault(self, key: int, value: object, /) -> object: ...

    def __setitem__(self, key: int, value: object, /) -> None: ...

    def __delitem__(self, key: int, /) -> None: ...


class Recovery(Protocol):
    """What a guard tells the session about its owners; see ``session/recovery.py``."""

    # Raises to refuse a second owner when it enters for the first time.
    def admit(self, second: Owner) -> None: ...

    # *owner* left work in the transaction that a rollback would lose.
    def wrote(self, owner: Owner) -> None: ...

    # A statement in text rolled the whole transaction back.
    def undone_by_statement(self) -> None: ...

    # The losses that nobody was told of, for the session that replaces this one.
    def losses(self) -> dict[Owner, Any]: ...

    def inherit(self, losses: dict[Owner, Any]) -> None: ...

    # A registry closed the session for all of its *users* and forgot it.
    def discarded(self, users: set[Owner]) -> None: ...

    # Handles the reasons for ``attention`` before an operation of *me* goes on.
    def recover(self, me: Owner, access: Access) -> None: ...


class Lock(Protocol):
    """A lock that a guard uses: plain to park on, reentrant as its mutex."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...

    def __enter__(self) -> bool: ...

    def __exit__(self, *exc_info: Any) -> None: ...


@dataclass(frozen=True)
class GuardStats:
    """Figures of a guard since it was made; times in seconds.

    An operation counts once it has ended.  Setting a single attribute is not timed.
    """

    acquisitions: int = 0
    contended: int = 0
    wait_seconds: float = 0.0
    longest_wait: float = 0.0
    longest_hold: float = 0.0
    timeouts: int = 0


def check_timeout(timeout: float | None) -> float | None:
    """Return *timeout*: seconds, more than 0, or ``None`` to wait for ever.

    :raises ValueError: for any other value.
    """
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
    """Raise ``ValueError`` unless *seconds* is a number of seconds, 0 or more."""
    if seconds != 0:
        try:
            if check_timeout(seconds) is not None:
                return
        except ValueError:
            pass
        raise ValueError(
            f"wait_in_loop must be 0 or a number of seconds above, not {seconds!r}"
        )
