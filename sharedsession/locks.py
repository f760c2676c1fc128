"""The kinds of lock by name, and the locks that applications bring along."""

from __future__ import annotations

import threading
import weakref
from typing import Any, Protocol, Union, runtime_checkable

from .guard import Guard
from .owners import Owner
from .terms import EXCLUSIVE, Kind, Mode


@runtime_checkable
class RLockLike(Protocol):
    """A reentrant lock in the manner of :class:`threading.RLock`."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


@runtime_checkable
class RWLockLike(Protocol):
    """A reader/writer lock in the manner of the package readerwriterlock."""

    def gen_rlock(self) -> Any: ...

    def gen_wlock(self) -> Any: ...


#: What ``lock=`` takes.
LockArgument = Union[str, RLockLike, RWLockLike, None]

#: The names that ``lock=`` takes.
KINDS = (*(kind.value for kind in Kind), "off")


def make_guard(lock: LockArgument, timeout: float | None = None) -> Guard | None:
    """Return a new guard for what was given as ``lock=``; ``None`` for off."""
    if lock is None or lock == "off":
        return None
    if isinstance(lock, str):
        if lock not in KINDS:
            raise ValueError(f"lock={lock!r} is not a kind of lock; {_CHOICE}")
        return Guard(Kind(lock), timeout=timeout)
    return Guard(Kind.RLOCK, lock=_foreign(lock), timeout=timeout)


_CHOICE = (
    f"it can be one of {', '.join(map(repr, KINDS))}, None, an RLock-like object with "
    "acquire(blocking, timeout) and release(), or a reader/writer lock with "
    "gen_rlock() and gen_wlock()."
)


class _ForeignExclusive:
    """An application's RLock; several guards may stand on one."""

    shares = False

    def __init__(self, lock: RLockLike) -> None:
        self._lock = lock
        self._counts: dict[Owner, int] = {}

    def acquire(self, mode: Mode, owner: Owner, timeout: float | None) -> bool:
        got = _acquire(self._lock, timeout)
        if got:
            self._counts[owner] = self._counts.get(owner, 0) + 1
        return got

    def release(self, owner: Owner) -> None:
        count = self._counts.pop(owner, 0)
        if count > 1:
            self._counts[owner] = count - 1
        if count:
            self._lock.release()

    def downgrade(self, owner: Owner) -> bool:
        return False

    def blockers(self) -> list[Owner]:
        return list(self._counts)


class _ForeignReadWrite:
    """An application's reader/writer lock, which counts its readers itself.

    Such a lock is not reentrant, so an owner that comes through a second guard shares
    what it has through the first one.
    """

    shares = True

    def __init__(self, lock: RWLockLike) -> None:
        self._lock = lock
        self._held: dict[Owner, tuple[Any, bool, int]] = {}

    def acquire(self, mode: Mode, owner: Owner, timeout: float | None) -> bool:
        side, exclusive, count = self._held.get(owner, (None, False, 0))
        if count:
            if mode is EXCLUSIVE and not exclusive:
                return False  # an upgrade: it would wait for itself
        else:
            exclusive = mode is EXCLUSIVE
            side = self._lock.gen_wlock() if exclusive else self._lock.gen_rlock()
            if not _acquire(side, timeout):
                return False
        self._held[owner] = (side, exclusive, count + 1)
        return True

    def release(self, owner: Owner) -> None:
        side, exclusive, count = self._held.pop(owner, (None, False, 0))
        if count > 1:
            self._held[owner] = (side, exclusive, count - 1)
        elif count:
            side.release()

    def downgrade(self, owner: Owner) -> bool:
        side, exclusive, count = self._held[owner]
        if count > 1 or not hasattr(side, "downgrade"):
            return False
        self._held[owner] = (side.downgrade(), False, count)
        return True

    def blockers(self) -> list[Owner]:
        return list(self._held)


_Foreign = Union[_ForeignExclusive, _ForeignReadWrite]

#: One adapter for each lock, so that guards on one lock know each other's holders.
_adapters: weakref.WeakValueDictionary[int, _Foreign] = weakref.WeakValueDictionary()
_adapters_mutex = threading.Lock()


def _foreign(lock: Any) -> _Foreign:
    if not isinstance(lock, (RWLockLike, RLockLike)):
        raise ValueError(f"lock={lock!r} cannot be used as a lock; {_CHOICE}")
    with _adapters_mutex:
        adapter = _adapters.get(id(lock))
        if adapter is None:
            if isinstance(lock, RWLockLike):
                adapter = _ForeignReadWrite(lock)
            else:
                adapter = _ForeignExclusive(lock)
            _adapters[id(lock)] = adapter
    return adapter


def _acquire(lock: Any, timeout: float | None) -> bool:
    if timeout is None:
        return bool(lock.acquire(True))
    if timeout == 0:
        return bool(lock.acquire(False))
    return bool(lock.acquire(True, timeout))
