"""Critical and read sections: blocks during which a thread holds a guard."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from ..errors import SharedSessionError
from ..guard.access import check_timeout
from ..guard.guard import Guard
from ..guard.turn import Hold

_S = TypeVar("_S")


class _Section(Generic[_S]):
    """A block during which the calling thread holds the guard of one session."""

    _what = "section"

    def __init__(self, session: _S, timeout: float | None) -> None:
        self._session = session
        self._timeout = None if timeout is None else check_timeout(timeout)
        self._hold: Hold | None = None
        #: Whether the block has begun and has not ended.
        self.is_entered = False

    def __enter__(self) -> _S:
        if self.is_entered:
            raise SharedSessionError(
                f"This {self._what} is entered already; make a new one for each block."
            )
        guard: Guard | None = getattr(self._session, "guard", None)
        try:
            if guard is not None:
                self._acquire(guard)
            self.is_entered = True
            return self._session
        except BaseException:
            hold, self._hold = self._hold, None
            if hold is not None:
                hold.release()
            raise

    def take_over(self) -> None:
        """Make the caller the owner of this section, which another thread entered."""
        if self._hold is not None:
            self._hold.take_over()

    def is_mine(self) -> bool:
        """Whether the caller owns this section and may leave it now."""
        hold = self._hold
        if hold is None:
            return True
        me = hold.guard.current_owner()
        return me is hold.guard.owner_of(hold) and not me.busy

    def forget_if_busy(self) -> bool:
        """If a finalizer calls while its owner is busy, let the next owner finish."""
        hold = self._hold
        if hold is None or not hold.forget_if_busy():
            return False
        self.is_entered, self._hold = False, None
        return True

    def __exit__(self, *exc_info: Any) -> None:
        if not self.is_entered:
            raise SharedSessionError(
                f"This {self._what} is not entered, so there is nothing to release."
            )
        try:
            self._leave()
        except BaseException:
            # After an interrupt, or the error of a signal handler, leave to the end:
            # otherwise the waiters are not woken.  A refusal is raised again.
            self._leave()
            raise

    def _leave(self) -> None:
        if self._hold is not None:
            self._hold.guard.check_may_leave(self._hold)
            self._hold.release()
        self.is_entered, self._hold = False, None

    def _acquire(self, guard: Guard) -> None:
        """Acquire the guard; set ``_hold`` at once, because an interrupt may follow."""
        raise NotImplementedError


class CriticalSection(_Section[_S]):
    """What ``session.critical_section()`` returns."""

    _what = "critical section"

    def _acquire(self, guard: Guard) -> None:
        self._hold = guard.hold(self._what, self._timeout)


class ReadSection(_Section[_S]):
    """What ``session.read_section()`` returns."""

    _what = "read section"

    def _acquire(self, guard: Guard) -> None:
        """Enter for reading, after a flush or a recovery if readers need one."""
        session: Any = self._session
        reads_only = guard.reads_only()
        if reads_only or guard.held is None:
            self._hold = guard.hold_shared(self._what, self._timeout)
            if reads_only or not session._has_to_tidy():
                return
            self._hold.release()
        self._hold = guard.hold(self._what, self._timeout)
        session._autoflush()
        guard.downgrade(self._hold)
