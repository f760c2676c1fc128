"""Critical and read sections: blocks during which a thread holds a guard."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from .errors import SharedSessionError
from .guard import Guard, check_timeout
from .holds import Hold

_S = TypeVar("_S")


class _Section(Generic[_S]):
    """A block during which the calling thread holds the guard of one session."""

    _what = "section"

    def __init__(self, session: _S, timeout: float | None) -> None:
        self._session = session
        self._timeout = check_timeout(timeout)
        self._hold: Hold | None = None
        self._entered = False

    @property
    def _guard(self) -> Guard | None:
        guard: Guard | None = getattr(self._session, "guard", None)
        return guard

    def __enter__(self) -> _S:
        if self._entered:
            raise SharedSessionError(
                f"This {self._what} is entered already; make a new one for each block."
            )
        guard = self._guard
        try:
            if guard is not None:
                self._hold = self._acquire(guard)
            self._entered = True
            return self._session
        except BaseException:
            hold, self._hold = self._hold, None
            if hold is not None:
                hold.release()
            raise

    def __exit__(self, *exc_info: Any) -> None:
        if not self._entered:
            raise SharedSessionError(
                f"This {self._what} is not entered, so there is nothing to release."
            )
        self._entered = False
        hold, self._hold = self._hold, None
        if hold is not None:
            try:
                hold.release()
            except BaseException:
                hold.release()  # an interrupt at its first line
                raise

    def _acquire(self, guard: Guard) -> Hold:
        raise NotImplementedError


class CriticalSection(_Section[_S]):
    """What ``session.critical_section()`` returns."""

    _what = "critical section"

    def _acquire(self, guard: Guard) -> Hold:
        return guard.hold(self._what, self._timeout)


class ReadSection(_Section[_S]):
    """What ``session.read_section()`` returns."""

    _what = "read section"

    def _acquire(self, guard: Guard) -> Hold:
        """Be let in for reading, with nothing pending that readers would not see."""
        session: Any = self._session
        if guard.reads_only():
            return guard.hold_shared(self._what, self._timeout)
        if guard.held is None:
            hold = guard.hold_shared(self._what, self._timeout)
            try:
                if not session._has_to_tidy():
                    return hold
                hold.release()
            except BaseException:
                hold.release()  # or it would pass for a section left unfinished
                raise
        return self._tidy_first(guard, session)

    def _tidy_first(self, guard: Guard, session: Any) -> Hold:
        hold = guard.hold(self._what, self._timeout)
        try:
            session._autoflush()
            guard.downgrade(hold)
        except BaseException:
            hold.release()
            raise
        return hold
