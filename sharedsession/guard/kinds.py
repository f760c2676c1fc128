"""The argument ``lock=``: kinds of lock by name, and adapters of lock objects."""

from __future__ import annotations

import inspect
import threading
import weakref
from typing import Any, Protocol, Union, runtime_checkable

from .access import EXCLUSIVE, Kind, Mode
from .guard import Guard
from .owner import Owner


@runtime_checkable
class RLockLike(Protocol):
    """A reentrant lock with the methods of :class:`threading.RLock`."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


@runtime_checkable
class RWLockLike(Protocol):
    """A reader/writer lock with the methods of the package readerwriterlock."""

    def gen_rlock(self) -> Any: ...

    def gen_wlock(self) -> Any: ...


#: The types that ``lock=`` takes.
LockArgument = Union[str, RLockLike, RWLockLike, None]

#: The names that ``lock=`` takes.
KINDS = (*(kind.value for kind in Kind), "off")


def make_guard(
    lock: LockArgument,
    timeout: float | None = None,
    guard_class: type[Guard] = Guard,
) -> Guard | None:
    """Return a new guard for the argument ``lock=``; ``None`` for ``"off"``."""
    if lock is None or lock == "off":
        return None
    if isinstance(lock, str):
        if lock not in KINDS:
            raise ValueError(f"lock={lock!r} is not a kind of lock; {_CHOICE}")
        return guard_class(Kind(lock), timeout=timeout)
    guard_class.check_lock_object(lock)
    return guard_class(Kind.RLOCK, lock=_foreign(lock), timeout=timeout)


_CHOICE = (
    f"it can be one of {', '.join(map(repr, KINDS))}, None, an RLock-like object with "
    "acquire(blocking, timeout) and release(), or a reader/writer lock with "
    "gen_rlock() and gen_wlock()."
)


def _name_of(lock: Any) -> str:
    cls = type(lock)
    return f"{cls.__module__}.{cls.__qualname__}"


class _ForeignExclusive:
    """Adapter of an RLock-like object, which several guards may use."""

    shares = False
    is_bound = True

    def __init__(self, lock: RLockLike) -> None:
        self._lock = lock
        self.name = _name_of(lock)
        #: The owners of the lock, each with the guard through which it has the lock.
        self._held: dict[tuple[Owner, object], bool] = {}

    def acquire(
        self, mode: Mode, owner: Owner, through: object, timeout: float | None
    ) -> bool:
        got = _acquire(self._lock, timeout)
        if got:
            self._held[owner, through] = True
        return got

    def release(self, owner: Owner, through: object) -> None:
        if (owner, through) in self._held:
            # In this order no interrupt can separate the two steps.
            del self._held[owner, through]
            try:
                self._lock.release()
            except Exception:  # the lock belongs to another thread
                self._held[owner, through] = True
                raise

    def downgrade(self, owner: Owner, through: object) -> bool:
        return False

    def blockers(self) -> list[Owner]:
        return [owner for owner, through in list(self._held)]


class _ForeignReadWrite:
    """Adapter of a reader/writer lock object, which counts its readers itself.

    Such a lock is not reentrant.  Therefore an owner that enters through a second guard
    shares the side of the lock that it has through the first guard.
    """

    shares = True
    is_bound = False

    def __init__(self, lock: RWLockLike) -> None:
        self._lock = lock
        self.name = _name_of(lock)
        #: The side of the lock that an owner has, and whether that side is exclusive.
        self._sides: dict[Owner, tuple[Any, bool]] = {}
        #: The guards through which an owner has the lock; written by that owner alone.
        self._guards: dict[Owner, list[object]] = {}

    def acquire(
        self, mode: Mode, owner: Owner, through: object, timeout: float | None
    ) -> bool:
        if owner in self._sides:
            exclusive = self._sides[owner][1]
            if mode is EXCLUSIVE and not exclusive:
                return False  # an upgrade would make the owner wait for itself
        else:
            exclusive = mode is EXCLUSIVE
            side = self._lock.gen_wlock() if exclusive else self._lock.gen_rlock()
            if not _acquire(side, timeout):
                return False
            self._sides[owner] = side, exclusive
        self._guards[owner] = [*self._guards.get(owner, ()), through]
        return True

    def release(self, owner: Owner, through: object) -> None:
        others = [other for other in self._guards.get(owner, ()) if other != through]
        if not others and owner in self._sides:
            self._sides[owner][0].release()
            del self._sides[owner]
        self._guards[owner] = others
        if not others:
            del self._guards[owner]

    def downgrade(self, owner: Owner, through: object) -> bool:
        side = self._sides[owner][0]
        if len(self._guards[owner]) > 1 or not hasattr(side, "downgrade"):
            return False
        self._sides[owner] = side.downgrade(), False
        return True

    def blockers(self) -> list[Owner]:
        return list(self._sides)


_Foreign = Union[_ForeignExclusive, _ForeignReadWrite]

#: One adapter for each lock object, because guards that share a lock object must know
#: each other's owners.
_adapters: weakref.WeakValueDictionary[int, _Foreign] = weakref.WeakValueDictionary()
_adapters_mutex = threading.Lock()


def _foreign(lock: Any) -> _Foreign:
    is_lock = isinstance(lock, (RWLockLike, RLockLike)) and not isinstance(lock, type)
    if not is_lock or inspect.iscoroutinefunction(getattr(lock, "acquire", None)):
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
