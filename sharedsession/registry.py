"""shared_session: a registry like scoped_session, with one session for all threads."""

from __future__ import annotations

import functools
import threading
from typing import Any, Callable, Generic, NoReturn, Optional, TypeVar

from sqlalchemy.orm import Session, SessionTransaction, scoped_session
from sqlalchemy.util import ScopedRegistry

from .errors import SharedSessionError, WorkLostError
from .guard.guard import Guard
from .guard.owner import Owner
from .guard.task import current_owner
from .session.sections import CriticalSection, ReadSection
from .session.session import SharedSessionMixin, share

_S = TypeVar("_S", bound=Session)
_T = TypeVar("_T")


#: Seconds that a thread waits while another thread's factory makes the session.
PATIENCE = 1.0


_Owners = set[Owner]


class OneForAll(ScopedRegistry[_T]):
    """Like SQLAlchemy's ``ScopedRegistry``, but with one scope, whose users it counts.

    The mutex protects all fields.  It is not held while the factory runs, because the
    factory may wait for a guard whose owner asks this registry.  Other threads wait for
    the session that the factory is making, but only for ``PATIENCE`` seconds; then each
    thread makes a session itself.  The registry keeps the session that is made first
    and closes the others unused.
    """

    def __init__(
        self,
        createfunc: Callable[..., _T],
        current_owner: Callable[[], Owner],
        guarded: Callable[[_T], _T],
        patience: float = PATIENCE,
    ) -> None:
        self.createfunc = createfunc
        self._current_owner = current_owner
        self._guarded = guarded
        self._patience = patience
        self.scopefunc = lambda: None
        self.mutex = threading.RLock()
        self._made = threading.Condition(self.mutex)
        self._session: _T | None = None
        self._users: set[Owner] = set()
        #: Losses in the last session that the next one tells of.
        self._losses: dict[Owner, Any] = {}
        #: The owners whose call of the factory has not returned.
        self._making: set[Owner] = set()

    def __call__(self, **kw: Any) -> _T:
        me = self._current_owner()
        session = self._session
        if session is not None and me in self._users:
            return session
        with self.mutex:
            self._refuse_recursion(me)
            if self._making and me.can_wait():
                self._made.wait_for(self._is_made, self._patience)
            if self._session is not None:
                self._note_user(me)
                return self._session
            self._making.add(me)
        try:
            made = self._guarded(self.createfunc(**kw))
        finally:
            with self.mutex:
                self._making.discard(me)
                self._made.notify_all()
        return self._keep(made, me)

    def _refuse_recursion(self, me: Owner) -> None:
        if me in self._making:
            raise SharedSessionError(
                f"The factory of this registry asked it for the session while it was "
                f"making that session in {me.name}. Make the session without the "
                "registry."
            )

    def _is_made(self) -> bool:
        return self._session is not None or not self._making

    def _keep(self, made: _T, me: Owner) -> _T:
        """Keep *made*, unless another thread's session was made first."""
        with self.mutex:
            if self._session is None:
                self._session = made
                self._pass_losses_on()
                self._made.notify_all()
            kept = self._session
            self._note_user(me)
        if kept is not made and isinstance(made, Session):
            made.close()  # an AsyncSession that was not used has nothing to close
        return kept

    def _note_user(self, me: Owner) -> None:
        """Count *me* as a user.  The caller holds the mutex."""
        ended = [user for user in self._users if not user.alive]
        self._users.difference_update(ended)
        self._users.add(me)

    def has(self) -> bool:
        return self._session is not None

    def set(self, obj: _T) -> None:
        guarded = self._guarded(obj)
        with self.mutex:
            self._session = guarded
            self._note_user(self._current_owner())
            self._made.notify_all()

    def clear(self) -> None:
        with self.mutex:
            self._session = None
            self._users.clear()

    def present(self) -> _T | None:
        """Return the session or ``None``, without counting the caller as a user."""
        return self._session

    def leave(self) -> _T | None:
        """Stop counting the caller; return the session if it has no user left."""
        with self.mutex:
            self._users.discard(self._current_owner())
            nobody = not any(user.alive for user in self._users)
            return self._session if nobody else None

    def withdraw(self, session: _T, even_if_used: bool) -> _Owners | None:
        """Hand *session* out no longer; return the other owners that used it.

        ``None`` if the session stays, because an owner has come to use it meanwhile.
        """
        with self.mutex:
            if self._session is not session:
                return set()  # another one has closed it, or there is a newer one
            users = {user for user in self._users if user.alive}
            if users and not even_if_used:
                return None
            self._session = None
            self._users.clear()
        users.discard(self._current_owner())
        return users

    def closed(self, session: _T, users: _Owners) -> None:
        """Have all *users* told: by the next session of what they lost by the close.

        Should they go on with *session* itself, they are told that it is discarded.
        """
        recovery = _recovery_of(session)
        if recovery is None:
            return
        losses = recovery.losses()
        recovery.discarded(users)
        with self.mutex:
            self._losses.update(losses)
            self._pass_losses_on()

    def _pass_losses_on(self) -> None:
        """Let the next owner in the present session, if there is one, learn of them."""
        guard = getattr(self._session, "guard", None)
        if self._losses and guard is not None and guard.recovery is not None:
            losses, self._losses = self._losses, {}
            guard.defer(functools.partial(guard.recovery.inherit, losses))

    def restore(self, session: _T, users: _Owners) -> None:
        """Hand *session* out again, because it could not be closed."""
        with self.mutex:
            if self._session is None:
                self._session = session
                self._users |= users


def check_factory(name: str, factory: Any) -> None:
    """Raise unless *factory* can be called to make a session."""
    if isinstance(factory, Session) or not callable(factory):
        raise SharedSessionError(
            f"{name}() takes a session factory, a sessionmaker for instance, not "
            f"{factory!r}."
        )


def _recovery_of(session: Any) -> Any:
    guard = getattr(session, "guard", None)
    return None if guard is None else guard.recovery


def refuse_to_pickle(registry: Any, protocol: Any) -> NoReturn:
    raise SharedSessionError(
        "A registry cannot be pickled: its session is about a connection and the "
        "threads of this process. Make a registry in the other process."
    )


def _guarded(session: _S) -> _S:
    return session if isinstance(session, SharedSessionMixin) else share(session)


class _PassedOn(Generic[_S]):
    """Forwards what a shared session adds to ``Session`` to the current session."""

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


class shared_session(_PassedOn[_S], scoped_session[_S], Generic[_S]):
    """Like :class:`sqlalchemy.orm.scoped_session`, with one session for all threads.

    ::

        Session = shared_session(sessionmaker(engine, class_=SharedSession))

    ``Session()`` is the same session in every thread.  The registry forwards all
    methods of a session to this session.

    :param session_factory: makes the session when it is first used; a ``sessionmaker``
      or another callable.  A plain session that it makes is guarded with :func:`share`.
    :raises SharedSessionError: if *session_factory* cannot be called.
    """

    registry: OneForAll[_S]

    def __init__(self, session_factory: Callable[..., _S]) -> None:
        check_factory("shared_session", session_factory)
        factory: Any = session_factory
        super().__init__(factory, scopefunc=_everybody)
        self.registry = OneForAll(session_factory, current_owner, _guarded)

    def __call__(self, **kw: Any) -> _S:
        """Like calling a ``scoped_session``, but all threads get the same session."""
        if kw and self.registry.has():
            return super().__call__(**kw)  # raises
        return self.registry(**kw)

    __reduce_ex__ = refuse_to_pickle

    def remove(self) -> None:
        """Say that this thread is done with the session.

        Like ``scoped_session.remove()``, but the session is closed and discarded when
        no thread that used it is left; threads that have ended do not count.
        """
        self._close(self.registry.leave(), even_if_used=False)

    def close_all(self) -> None:
        """Close and discard the session now, even if other threads still use it.

        Unlike ``Session.close_all()``, only this registry's session.  A thread that had
        work in the session gets :class:`WorkLostError` when it next uses the session.
        """
        self._close(self.registry.present(), even_if_used=True)

    def _close(self, session: _S | None, even_if_used: bool) -> None:
        if session is None:
            return
        # In a section: no thread that gets the session before it is withdrawn can use
        # it before it is closed.  If this times out, the session is still here.
        shared: Any = session
        section = shared.critical_section()
        try:
            section.__enter__()
        except WorkLostError:
            section.__enter__()  # the caller closes, which clears this error
        try:
            users = self.registry.withdraw(session, even_if_used)
            if users is not None:
                self._close_withdrawn(session, users)
        finally:
            section.__exit__(None, None, None)

    def _close_withdrawn(self, session: _S, users: _Owners) -> None:
        try:
            session.close()
        except BaseException:
            self.registry.restore(session, users)
            raise
        self.registry.closed(session, users)

    # -- members of Session that scoped_session does not forward

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
    """Return the one scope that all threads have."""
