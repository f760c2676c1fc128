"""async_shared_session: a registry with one session for all tasks."""

from __future__ import annotations

from typing import Any, Callable, Concatenate, Generic, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncSessionTransaction, async_scoped_session
from sqlalchemy.orm import Session

from ..errors import SharedSessionError, WorkLostError
from ..guard.owner import Owner
from ..guard.task import current_task_owner
from ..registry import OneForAll, check_factory, refuse_to_pickle
from ..session.async_sections import AsyncSection
from .guard import TaskGuard
from .session import AsyncSharedSession
from .sync_session import TaskSession

_P = ParamSpec("_P")
_T = TypeVar("_T")
_AS = TypeVar("_AS", bound=AsyncSharedSession)


class _PassedOn(Generic[_AS]):
    """Forwards what the session adds to ``AsyncSession`` to the current session."""

    @property
    def guard(self: Any) -> TaskGuard | None:
        """The guard of the current session."""
        guard: TaskGuard | None = self._proxied.guard
        return guard

    def critical_section(self: Any, timeout: float | None = None) -> AsyncSection[_AS]:
        """Like :meth:`AsyncSharedSession.critical_section`, of the current session."""
        section: AsyncSection[_AS] = self._proxied.critical_section(timeout)
        return section

    def read_section(self: Any, timeout: float | None = None) -> AsyncSection[_AS]:
        """Like :meth:`AsyncSharedSession.read_section`, of the current session."""
        section: AsyncSection[_AS] = self._proxied.read_section(timeout)
        return section


class async_shared_session(_PassedOn[_AS], async_scoped_session[_AS], Generic[_AS]):
    """Like ``async_scoped_session``, but with one session for all tasks.

    ::

        Session = async_shared_session(
            async_sessionmaker(engine, class_=AsyncSharedSession)
        )

    ``Session()`` is the same session in every task.  The registry forwards all methods
    of a session to this session.

    :param session_factory: makes the session when it is first used; an
      ``async_sessionmaker``, or another callable that returns an
      :class:`AsyncSharedSession`.
    :raises SharedSessionError: if *session_factory* cannot be called.
    """

    registry: OneForAll[_AS]

    def __init__(self, session_factory: Callable[..., _AS]) -> None:
        check_factory("async_shared_session", session_factory)
        factory: Any = session_factory
        super().__init__(factory, scopefunc=_everybody)
        self.registry = OneForAll(session_factory, current_task_owner, _checked)

    def __call__(self, **kw: Any) -> _AS:
        """Like calling an ``async_scoped_session``, but all tasks get one session."""
        if kw and self.registry.has():
            return super().__call__(**kw)  # raises
        return self.registry(**kw)

    __reduce_ex__ = refuse_to_pickle

    async def remove(self) -> None:
        """Say that this task is done with the session.

        Like ``async_scoped_session.remove()``, but the session is closed and discarded
        when no task that used it is left; tasks that have ended do not count.
        """
        await self._close(self.registry.leave(), even_if_used=False)

    async def close_all(self) -> None:  # type: ignore[override]
        """Close and discard the session now, even if other tasks still use it.

        Unlike ``async_scoped_session.close_all()``, only this registry's session.  A
        task that had work in the session gets :class:`WorkLostError` when it next uses
        the session.
        """
        await self._close(self.registry.present(), even_if_used=True)

    async def _close(self, session: _AS | None, even_if_used: bool) -> None:
        if session is None:
            return
        section = session.critical_section()  # as in the registry for threads
        try:
            await section.__aenter__()
        except WorkLostError:
            await section.__aenter__()
        try:
            users = self.registry.withdraw(session, even_if_used)
            if users is not None:
                await self._close_withdrawn(session, users)
        finally:
            await section.__aexit__(None, None, None)

    async def _close_withdrawn(self, session: _AS, users: set[Owner]) -> None:
        try:
            await session.close()
        except BaseException:
            self.registry.restore(session, users)
            raise
        self.registry.closed(session, users)

    # -- members of the session that async_scoped_session does not forward

    @property
    def sync_session(self) -> TaskSession:
        """Like ``AsyncSession.sync_session``."""
        return self._proxied.sync_session

    async def run_sync(
        self, fn: Callable[Concatenate[Session, _P], _T], *arg: _P.args, **kw: _P.kwargs
    ) -> _T:
        """Like :meth:`AsyncSharedSession.run_sync`."""
        return await self._proxied.run_sync(fn, *arg, **kw)

    def bind_mapper(self, mapper: Any, bind: Any) -> None:
        """Like ``AsyncSession.bind_mapper()``, where SQLAlchemy has it."""
        session: Any = self._proxied
        session.bind_mapper(mapper, bind)

    def bind_table(self, table: Any, bind: Any) -> None:
        """Like ``AsyncSession.bind_table()``, where SQLAlchemy has it."""
        session: Any = self._proxied
        session.bind_table(table, bind)

    def get_nested_transaction(self) -> AsyncSessionTransaction | None:
        """Like ``AsyncSession.get_nested_transaction()``."""
        return self._proxied.get_nested_transaction()

    def get_transaction(self) -> AsyncSessionTransaction | None:
        """Like ``AsyncSession.get_transaction()``."""
        return self._proxied.get_transaction()

    def in_nested_transaction(self) -> bool:
        """Like ``AsyncSession.in_nested_transaction()``."""
        return self._proxied.in_nested_transaction()

    def in_transaction(self) -> bool:
        """Like ``AsyncSession.in_transaction()``."""
        return self._proxied.in_transaction()


def _checked(session: _AS) -> _AS:
    if not isinstance(session, AsyncSharedSession):
        raise SharedSessionError(
            f"The factory of an async_shared_session made {session!r}, which tasks "
            "cannot share. Give it async_sessionmaker(..., class_=AsyncSharedSession)."
        )
    return session


def _everybody() -> None:
    """Return the one scope that all tasks have."""
