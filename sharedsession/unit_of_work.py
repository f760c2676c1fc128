"""A unit of work: a critical section that is committed, or undone, as a whole."""

from __future__ import annotations

import sys
from typing import Any

from .database.savepoints import Unit, make_savepoint_of
from .errors import LockTimeout, SharedSessionError
from .internals import transactions
from .session.sections import CriticalSection
from .session.session import SharedSessionMixin
from .session.transaction import enter_within_section


class UnitOfWork:
    """A critical section whose own work is committed, or undone, as a whole."""

    def __init__(
        self,
        session: SharedSessionMixin,
        section: CriticalSection[Any],
        commits: bool,
    ) -> None:
        self._session = session
        self._section = section
        self._commits = commits
        self._savepoint: Any = None
        self._began = False

    def __enter__(self) -> SharedSessionMixin:
        self._section.__enter__()
        session = self._session
        before = session._transaction
        try:
            self._commits = self._commits and not session._in_unit
            self._began = not session.in_transaction()
            self._savepoint = session.begin_nested()  # flushes others' pending work
            outcome = Unit.COMMITTED if self._commits else Unit.LEFT
            make_savepoint_of(self._savepoint, outcome)
            enter_within_section(self._savepoint)
            session._in_unit = session._in_unit or self._commits
            return session
        except BaseException:
            try:
                self._give_up(before)
            finally:
                self._section.__exit__(None, None, None)
            raise

    def _give_up(self, before: Any) -> None:
        """After a failed ``__enter__()``, end the transactions that it has begun."""
        session = self._session
        if self._savepoint is not None:
            self._savepoint.__exit__(*sys.exc_info())
        elif not session.is_active:
            session.rollback()  # the flush of others' pending work failed
        elif before is not None and session._transaction is not before:
            begun = session.get_nested_transaction()
            if begun is not None:
                begun.rollback()
        if self._began and session.in_transaction():
            session.rollback()

    @property
    def is_entered(self) -> bool:
        """Whether the unit has begun and has not ended."""
        return self._section.is_entered

    def take_over(self) -> None:
        """Make the caller the owner of this unit, which another thread began."""
        hold = self._section._hold
        if hold is not None:
            self._savepoint._take_over(hold, self._savepoint)

    def is_mine(self) -> bool:
        """Whether the caller owns this unit of work and may end it now."""
        return self._section.is_mine()

    def __exit__(self, type_: Any, value: Any, traceback: Any) -> None:
        try:
            self._leave(type_, value, traceback)
        except LockTimeout:
            raise  # another thread is in the middle of an operation in this unit
        except BaseException as error:
            # If an interrupt, or the error of a signal handler, came before _leave()
            # left the section, leave again: otherwise the unit would stay open until
            # the traceback is freed.
            if self._section.is_entered:
                self._leave(type(error), error, error.__traceback__)
            raise

    def _leave(self, type_: Any, value: Any, traceback: Any) -> None:
        if self._section.forget_if_busy():
            return
        self.take_over()
        if transactions.has_blocks_within(self._session, self._savepoint):
            raise SharedSessionError(
                "This unit of work cannot end yet, because a block that began inside "
                "it is still open. Nothing was changed. Leave the inner block first; "
                "if requests share threads, run each as one owner: one_owner()."
            )
        try:
            self._end(type_, value, traceback)
        except BaseException as error:
            # Call _end() again: this undoes what is still open, and leaves what has
            # ended.
            self._end(type(error), error, error.__traceback__)
            raise
        finally:
            if self._commits:
                # Set directly, because an interrupt may hit the session's __setattr__.
                self._session.__dict__["_in_unit"] = False
            self._section.__exit__(None, None, None)

    def _end(self, type_: Any, value: Any, traceback: Any) -> None:
        session = self._session
        undone = True
        try:
            self._savepoint.__exit__(type_, value, traceback)
            undone = type_ is not None
        finally:
            if undone and self._began:
                session.rollback()  # no transaction was open before this unit
        if self._commits and not undone:
            self._commit()

    def _commit(self) -> None:
        try:
            self._session.commit()
        except BaseException:
            self._session.rollback()  # because no other owner may inherit the failure
            raise
