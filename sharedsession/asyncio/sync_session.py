"""The ``Session`` behind an AsyncSession that several tasks share."""

from __future__ import annotations

from typing import Any

import sqlalchemy.orm as sa_orm

from ..errors import SharedSessionError
from ..guard.access import LOAD, Access
from ..guard.guard import Guard
from ..guard.owner import Owner
from ..internals import greenlets
from ..operations.inplace import per_class
from ..operations.statements import access_of
from ..session.recovery import Recovery
from ..session.session import SharedSession, SharedSessionMixin
from .guard import TaskGuard


class TaskRecovery(Recovery):
    """Like :class:`Recovery`, but a task that cannot await only learns its own loss."""

    def recover(self, me: Owner, access: Access) -> None:
        if greenlets.in_greenlet():
            super().recover(me, access)
            if self.failure is not None and self._is_left_to_finish(me):
                raise self.failure.error(me)  # a read section may not roll back
        else:
            try:
                self._tell(me, access)
            finally:
                self._guard.attention = True  # for the next caller that can wait


class TaskSessionMixin(SharedSessionMixin):
    """Like :class:`SharedSessionMixin`, but for a session whose users are tasks."""

    _for_tasks = True
    _guard_class: type[Guard] = TaskGuard
    _recovery_class: type[Recovery] = TaskRecovery

    # Check at the two places where statements start: here, and when the transaction
    # picks a connection.

    def _note_statement(self, statement: Any, options: Any) -> None:
        guard = self.guard
        assert isinstance(guard, TaskGuard)
        guard.check_may_execute()
        if access_of(statement, options) is not LOAD:
            guard.note_change()

    def _flush(self, *args: Any, **kw: Any) -> None:
        if self.guard is not None:
            self.guard.check_may_execute()
        super()._flush(*args, **kw)

    def _bulk_save_mappings(self, *args: Any, **kw: Any) -> None:
        if self.guard is not None:
            self.guard.check_may_execute()
        super()._bulk_save_mappings(*args, **kw)

    def _has_to_tidy(self) -> bool:
        """True also if this task deferred operations, which wait for readers to go."""
        guard = self.guard
        assert isinstance(guard, TaskGuard)
        return guard.has_put_off(guard.current_owner()) or super()._has_to_tidy()


class TaskSession(TaskSessionMixin, SharedSession):
    """The ``Session`` that an AsyncSharedSession uses in its greenlets."""


def task_session_class(cls: Any) -> type[sa_orm.Session]:
    """Return a guarded class for *cls*, the ``sync_session_class`` of a user.

    :raises SharedSessionError: if *cls* is not a ``Session`` class.
    """
    if not isinstance(cls, type) or not issubclass(cls, sa_orm.Session):
        raise SharedSessionError(
            f"sync_session_class={cls!r} is no Session class, so it cannot be guarded. "
            "Give a subclass of Session."
        )
    if issubclass(cls, TaskSessionMixin):
        return cls
    made: type[sa_orm.Session] = _made_for(cls)
    return made


@per_class
def _made_for(plain: type) -> Any:
    """Make a class for tasks; its sessions show *plain* as their ``__class__``."""
    members = {
        "__module__": plain.__module__,
        "__doc__": plain.__doc__,
        "__class__": property(lambda self: plain),
    }
    bases = (TaskSession,) if plain is sa_orm.Session else (TaskSessionMixin, plain)
    return type(f"Task{plain.__name__}", bases, members)
