"""shared_session: a registry in the manner of scoped_session, one session for all."""

from __future__ import annotations

import threading
from typing import Any, Callable, Generic, Optional, TypeVar

from sqlalchemy.orm import Session, SessionTransaction, scoped_session
from sqlalchemy.util import ScopedRegistry

from .guard import Guard
from .owners import Owner
from .sections import CriticalSection, ReadSection
from .session import SharedSessionMixin, share
from .tasks import current_owner

_S = TypeVar("_S", bound=Session)
_T = TypeVar("_T")


class OneForAll(ScopedRegistry[_T]):
    """Like SQLAlchemy's ``ScopedRegistry``, with one scope; it knows who used it.

    The mutex protects both fields.  It is held while the factory runs, so that two
    threads get one session; the factory must not come back here.
    """

    def __init__(
        self,
        createfunc: Callable[[], _T],
        asker: Callable[[], Owner],
        guarded: Callable[[_T], _T],
    ) -> None:
        self.createfunc = createfunc
        self._asker = asker
        self._guarded = guarded
        self.scopefunc = lambda: None
        self.mutex = threading.RLock()
        self._session: _T | None = None
        self._users: set[Owner] = set()

    def __call__(self) -> _T:
        me = self._asker()
        session = self._session
        if session is not None and me in self._users:
            return session
        with self.mutex:
            if self._session is None:
                self._session = self._guarded(self.createfunc())
            self._users.add(me)
            return self._session

    def has(self) -> bool:
        return self._session is not None

    def set(self, obj: _T) -> None:
        with self.mutex:
            self._session = self._guarded(obj)
            self._users.add(self._asker())

    def clear(self) -> None:
        with self.mutex:
            self._session = None
            self._users.clear()

    def present(self) -> _T | None:
        """The session, if there is one; this does not use it."""
        return self._session

    def leave(self) -> _T | None:
        """Leave; return the session if no thread that used it is left."""
        with self.mutex:
            self._users.discard(self._asker())
            nobody = not any(user.alive for user in self._users)
            return self._session if nobody else None

    def discard(self, session: _T) -> None:
        """Forget *session*, which is closed; a newer one stays."""
        with self.mutex:
            if self._session is session:
                self._session = None
                self._users.clear()


def _guarded(session: _S) -> _S:
    return session if isinstance(session, SharedSessionMixin) else share(session)


class _PassedOn(Generic[_S]):
    """What a shared session has more than a plain one, passed on by a registry."""

    @property
    def guard(self: Any) -> Guard | None:
        """The guard of the current session."""
        guard: Guard | None = self._proxied.guard
        return guard

    def critical_section(
        self: Any, timeout: float | None = None
    ) -> CriticalSection[_S]:
        """Like :meth:`SharedSession.critical_section`, of the current session."""
        section: CriticalSection[_S] = self._proxied.critical_section(timeout)
        return section

    def read_section(self: Any, timeout: float | None = None) -> ReadSection[_S]:
        """Like :meth:`SharedSession.read_section`, of the current session."""
        section: ReadSection[_S] = self._proxied.read_section(timeout)
        return section


# A scoped_session passes on every public name of Session, and code that was written
# for SharedSession expects the same: with Flask-SQLAlchemy's ``db.session``, say.
for _name in ("guard", "critical_section", "read_section"):
    setattr(scoped_session, _name, vars(_PassedOn)[_name])


class shared_session(_PassedOn[_S], scoped_session[_S], Generic[_S]):
    """Like :class:`sqlalchemy.orm.scoped_session`, with one session for all threads.

    ::

        Session = shared_session(sessionmaker(engine, class_=SharedSession))

    ``Session()`` is the same session in every thread, and the registry has all of the
    session's own methods besides.

    :param session_factory: makes the session at its first use; a ``sessionmaker``, or
      anything callable.  Plain sessions that it makes are guarded with
      :func:`share`.
    """

    registry: OneForAll[_S]

    def __init__(self, session_factory: Callable[..., _S]) -> None:
        factory: Any = session_factory
        super().__init__(factory, scopefunc=_everybody)
        self.registry = OneForAll(session_factory, current_owner, _guarded)

    def __call__(self, **kw: Any) -> _S:
        """Like calling a ``scoped_session``; two threads at once get one session."""
        with self.registry.mutex:
            return super().__call__(**kw)

    def remove(self) -> None:
        """Say that this thread is done with the session.

        Like ``scoped_session.remove()``, but the session is closed and discarded when
        no thread that used it is left; threads that have ended do not count.
        """
        self._close(self.registry.leave())

    def close_all(self) -> None:
        """Close and discard the session now, whoever uses it.

        Threads that had work in it get :class:`WorkLostError` if they go on with it.
        """
        self._close(self.registry.present())

    def _close(self, session: _S | None) -> None:
        if session is not None:
            session.close()  # first: if this times out, the session is still here
            self.registry.discard(session)

    # -- what Session has and scoped_session does not pass on

    def bind_mapper(self, mapper: Any, bind: Any) -> None:
        """Like :meth:`Session.bind_mapper`."""
        self._proxied.bind_mapper(mapper, bind)

    def bind_table(self, table: Any, bind: Any) -> None:
        """Like :meth:`Session.bind_table`."""
        self._proxied.bind_table(table, bind)

    @property
    def connection_callable(self) -> Any:
        """Like ``Session.connection_callable``."""
        return self._proxied.connection_callable

    @property
    def dispatch(self) -> Any:
        """Like ``Session.dispatch``."""
        return self._proxied.dispatch

    def enable_relationship_loading(self, obj: object) -> None:
        """Like :meth:`Session.enable_relationship_loading`."""
        self._proxied.enable_relationship_loading(obj)

    def get_nested_transaction(self) -> Optional[SessionTransaction]:
        """Like :meth:`Session.get_nested_transaction`."""
        return self._proxied.get_nested_transaction()

    def get_transaction(self) -> Optional[SessionTransaction]:
        """Like :meth:`Session.get_transaction`."""
        return self._proxied.get_transaction()

    @property
    def expire_on_commit(self) -> bool:
        """Like ``Session.expire_on_commit``."""
        return self._proxied.expire_on_commit

    @expire_on_commit.setter
    def expire_on_commit(self, value: bool) -> None:
        self._proxied.expire_on_commit = value

    def in_nested_transaction(self) -> bool:
        """Like :meth:`Session.in_nested_transaction`."""
        return self._proxied.in_nested_transaction()

    def in_transaction(self) -> bool:
        """Like :meth:`Session.in_transaction`."""
        return self._proxied.in_transaction()

    def invalidate(self) -> None:
        """Like :meth:`Session.invalidate`."""
        self._proxied.invalidate()

    def prepare(self) -> None:
        """Like :meth:`Session.prepare`."""
        self._proxied.prepare()


def _everybody() -> None:
    """The scope of all threads."""
