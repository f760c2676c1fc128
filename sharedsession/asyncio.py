"""One AsyncSession for several tasks of an event loop.

An awaited operation waits for its turn.  An operation that is not awaited cannot wait;
while another task is inside, such an operation behaves as follows, under each lock kind
that lets tasks wait:

==================================== ==================================================
not awaited                          while another task's operation is in flight
==================================== ==================================================
``add()``, ``add_all()``,            deferred: done when that operation ends, in the
``expire()``, ``expire_all()``,      order of the calls, and before the next operation
``expunge()``, ``expunge_all()``     that this task awaits.  An error that SQLAlchemy
                                     would raise at once is raised at once
``in``, ``new``, iteration           at once, including what this task has deferred
reading a loaded attribute or        at once
collection; ``dirty``, ``deleted``,
``is_active``, ``in_transaction()``,
``get_transaction()``,
``is_modified()``, ``inspect()``
reading an attribute that is not     refused: await it, by ``awaitable_attrs``
loaded
setting or deleting a column's       at once.  A flush, commit or rollback in flight
attribute; mutable values,           does not see the change, which counts as made when
``flag_modified()``                  that operation has ended and is therefore not lost
setting a relationship, changing a   at once beside a mere load; refused beside an
collection                           operation that would lose the change
``bind_mapper()``, ``bind_table()``, refused
setting ``autoflush`` or ``bind``,
``no_autoflush``
==================================== ==================================================

Refused means that :class:`ConcurrentAccessError` is raised and nothing is changed; to
wait instead, use ``session.run_sync()`` or ``async with session.critical_section()``.
While another task is in a *section*, everything that is not deferred is refused,
because no other task may see the inside of a section; beside a read section, reads are
done.  The lock kinds ``"detect"`` and ``"confine"`` let no task wait and refuse
everything, as they do for threads.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Concatenate, Generic, Iterator, ParamSpec, TypeVar

import sqlalchemy.exc as sa_exc
import sqlalchemy.orm.exc as sa_orm_exc
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    AsyncSessionTransaction,
    async_scoped_session,
)
from sqlalchemy.orm import Session, object_session
from sqlalchemy.util import IdentitySet

from . import alchemy
from .coroutines import AsyncSection
from .errors import SharedSessionError
from .locks import LockArgument
from .registry import OneForAll, check_factory, refuse_to_pickle
from .sections import CriticalSection, ReadSection
from .signatures import as_function
from .taskguard import PutOff, TaskGuard
from .tasks import current_task_owner, to_the_end
from .tasksession import TaskSession, task_session_class

__all__ = ["AsyncSharedSession", "async_shared_session"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_AS = TypeVar("_AS", bound="AsyncSharedSession")


class AsyncSharedSession(AsyncSession):
    """Like :class:`~sqlalchemy.ext.asyncio.AsyncSession`, but tasks may share it.

    Plug it in where the application makes its sessions::

        Session = async_sessionmaker(engine, class_=AsyncSharedSession, lock="rw")

    Then ``asyncio.gather()`` over one session works: an awaited operation waits for its
    turn.  An operation that is not awaited, for example :meth:`add` or setting an
    attribute, takes effect without touching another task's operation in flight, or
    raises :class:`ConcurrentAccessError`; the module's documentation has the table.

    :param bind: the engine or connection, as for ``AsyncSession``.
    :param sync_session_class: as for ``AsyncSession``; any ``Session`` class.
    :param lock: the lock kind, see :class:`SharedSession`; not a lock object.
    :param lock_timeout: seconds, above zero, that an operation or a section waits for
      its turn before it raises :class:`LockTimeout`; ``None``, the default: for ever.
    :param session_kwargs: everything else that ``AsyncSession`` takes.
    :raises SharedSessionError: if *sync_session_class* is not a ``Session`` class.
    :raises ValueError: if the lock or the timeout is not valid.
    """

    sync_session: TaskSession

    def __init__(
        self,
        bind: Any = None,
        *,
        binds: Any = None,
        sync_session_class: type[Session] | None = None,
        lock: LockArgument = "rlock",
        lock_timeout: float | None = None,
        **session_kwargs: Any,
    ) -> None:
        asked_for = sync_session_class
        if asked_for is None:
            asked_for = self.sync_session_class
        _check_session_class(asked_for)
        super().__init__(
            bind,
            binds=binds,
            sync_session_class=task_session_class(asked_for),
            lock=lock,
            lock_timeout=lock_timeout,
            **session_kwargs,
        )
        self.sync_session_class = asked_for

    @property
    def guard(self) -> TaskGuard | None:
        """The guard; ``None`` if the lock is off."""
        guard = self.sync_session.guard
        assert guard is None or isinstance(guard, TaskGuard)
        return guard

    # -- sections

    def critical_section(self: _AS, timeout: float | None = None) -> AsyncSection[_AS]:
        """Keep every other task out: ``async with session.critical_section():``

        Like holding an ``asyncio.Lock`` around the block, but reentrant, and what the
        block does to the session's objects and connections is covered too.  Tasks that
        are started inside belong to the section: they take turns with each other and
        with this task, and therefore ``gather()`` works inside.  A thread that
        ``asyncio.to_thread()`` starts inside belongs to the section as well; any other
        thread gets :class:`ConcurrentAccessError`, because the section may wait for it.
        Yields the session.

        :param timeout: seconds, above zero, to wait at most; ``None``, the default: the
          ``lock_timeout`` of the session.
        :raises LockTimeout: if the wait took longer.
        :raises DeadlockError: if the wait would never end.
        :raises UpgradeError: inside a read section of the same task.
        """
        section = CriticalSection(self.sync_session, timeout)
        return AsyncSection(self, section)

    def read_section(self: _AS, timeout: float | None = None) -> AsyncSection[_AS]:
        """Keep every change out for a block that only reads; readers share it.

        Like :meth:`critical_section`, but under ``lock="rw"`` any number of tasks may
        be in read sections at once.  See :meth:`SharedSession.read_section`.

        :param timeout: seconds, above zero, to wait at most; ``None``, the default: the
          ``lock_timeout`` of the session.
        :raises LockTimeout: if the wait took longer.
        """
        section: Any = ReadSection(self.sync_session, timeout)
        return AsyncSection(self, section)

    async def run_sync(
        self, fn: Callable[Concatenate[Session, _P], _T], *arg: _P.args, **kw: _P.kwargs
    ) -> _T:
        """Like ``AsyncSession.run_sync()``, but keeps other tasks out meanwhile."""
        result: _T = await alchemy.greenlet_spawn(self._run_whole, fn, arg, kw)
        return result

    def _run_whole(self, function: Any, args: Any, kw: Any) -> Any:
        session = self.sync_session
        if session.guard is None or session.guard.reads_only():
            return function(session, *args, **kw)
        with CriticalSection(session, None):
            return function(session, *args, **kw)

    # -- blocks

    def begin(self) -> AsyncSessionTransaction:
        """Like ``AsyncSession.begin()``, but the block keeps other tasks out.

        The block joins a transaction that another task autobegan.
        """
        return _SharedTransaction(self)

    def begin_nested(self) -> AsyncSessionTransaction:
        """Like ``AsyncSession.begin_nested()``, but the block keeps other tasks out."""
        return _SharedTransaction(self, nested=True)

    async def __aenter__(self: _AS) -> _AS:
        self.sync_session.__enter__()
        return self

    async def __aexit__(self, type_: Any, value: Any, traceback: Any) -> None:
        """Close the session, unless another task is still in a with-block of it."""
        leave = self.sync_session.__exit__
        await to_the_end(alchemy.greenlet_spawn, leave, type_, value, traceback)

    def _maker_context_manager(self) -> Any:
        return _SessionBlock(self)

    # -- operations that are not awaited and may be deferred

    def __contains__(self, instance: object) -> bool:
        for it in reversed(self._put_off()):
            if it.name in _ADDS and any(each is instance for each in it.instances):
                return True
            if it.name in _EXPUNGES and it.concerns(instance):
                return False
        return super().__contains__(instance)

    def __iter__(self) -> Iterator[object]:
        """Like iterating an ``AsyncSession``, but includes what this task deferred."""
        there = IdentitySet(super().__iter__())
        return iter(list(self._as_put_off(there)))

    @property
    def new(self) -> IdentitySet:
        """Like ``AsyncSession.new``, but includes what this task has deferred."""
        pending: IdentitySet = self._as_put_off(IdentitySet(super().new))
        return pending

    def _as_put_off(self, there: Any) -> Any:
        for it in self._put_off():
            if it.name in _ADDS:
                there.update(each for each in it.instances if _is_new(each))
            elif it.name in _EXPUNGES:
                there = IdentitySet(each for each in there if not it.concerns(each))
        return there

    def _put_off(self) -> list[PutOff]:
        """Return the operations that this task has deferred, in calling order."""
        guard = self.guard
        if guard is None or not guard.put_off:
            return []
        me = guard.asker()
        return [it for it in guard.put_off if it.owner is me]

    def _do_or_put_off(self, name: str, plain: Any, args: Any, kw: Any) -> Any:
        guard = self.guard
        if name == "add_all":
            args = ([*args[0]],) if args else ()
            kw = {key: [*value] for key, value in kw.items()}
        me = None if guard is None else guard.asker()
        if guard is None or me is None or guard.is_free_for(me):
            return plain(self, *args, **kw)
        guard.check_may_put_off(me)
        given = [*args, *kw.values()]
        instances = given[0] if name == "add_all" else given[:1]
        for instance in instances:
            _check(self, name, instance)
        do = functools.partial(plain, self, *args, **kw)
        guard.put_off.append(PutOff(me, name, do, instances))


def _check_session_class(cls: Any) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Session)):
        raise SharedSessionError(
            f"sync_session_class must be a class of sessions, not {cls!r}."
        )


_ADDS = frozenset({"add", "add_all"})
_EXPUNGES = frozenset({"expunge", "expunge_all"})


def _check(session: AsyncSharedSession, name: str, instance: Any) -> None:
    """Raise the error that SQLAlchemy would raise if the operation ran now."""
    try:
        state = alchemy.instance_state(instance)
    except AttributeError:
        raise sa_orm_exc.UnmappedInstanceError(instance) from None
    if name not in _ADDS:
        if instance not in session:
            raise sa_exc.InvalidRequestError(
                f"Instance {alchemy.described(state)} is not present in this Session"
            )
        return
    present = object_session(instance)
    if present is not None and present is not session.sync_session:
        raise sa_exc.InvalidRequestError(
            f"Object {alchemy.described(state)} is already attached to another session "
            f"{present!r} (this is {session.sync_session!r})"
        )


def _is_new(instance: Any) -> bool:
    return alchemy.instance_state(instance).key is None


def _put_off_if_need_be(name: str) -> Any:
    def operation(plain: Any, self: AsyncSharedSession, *args: Any, **kw: Any) -> Any:
        return self._do_or_put_off(name, plain, args, kw)

    return as_function(getattr(AsyncSession, name), operation)


for _name in ("add", "add_all", "expire", "expire_all", "expunge", "expunge_all"):
    setattr(AsyncSharedSession, _name, _put_off_if_need_be(_name))


class _SharedTransaction(AsyncSessionTransaction):
    """Like ``AsyncSessionTransaction``, but its block begins as one operation."""

    __slots__ = ()

    async def start(self, is_ctxmanager: bool = False) -> AsyncSessionTransaction:
        if not is_ctxmanager:
            return await super().start()
        begun = await alchemy.greenlet_spawn(self._begin_block)
        self.sync_transaction = self._assign_proxied(begun)
        return self

    def _begin_block(self) -> Any:
        session = self.session.sync_session
        with CriticalSection(session, None):  # no other task between the two steps
            begun = session.begin_nested() if self.nested else session.begin()
            begun.__enter__()
        return begun


class _SessionBlock(Generic[_AS]):
    """What ``async_sessionmaker.begin()`` returns: a transaction, then a close."""

    def __init__(self, session: _AS) -> None:
        self._session = session
        self._transaction = session.begin()

    async def __aenter__(self) -> _AS:
        await self._transaction.__aenter__()
        return self._session

    async def __aexit__(self, *exc_info: Any) -> None:
        await to_the_end(self._end, *exc_info)

    async def _end(self, *exc_info: Any) -> None:
        try:
            await self._transaction.__aexit__(*exc_info)
        finally:
            await self._session.__aexit__(*exc_info)


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
        await self._close(self.registry.leave())

    async def close_all(self) -> None:  # type: ignore[override]
        """Close and discard the session now, even if other tasks still use it.

        Unlike ``async_scoped_session.close_all()``, only this registry's session.  A
        task that had work in the session gets :class:`WorkLostError` when it next uses
        the session.
        """
        await self._close(self.registry.present())

    async def _close(self, session: _AS | None) -> None:
        if session is not None:
            await session.close()  # first: if this fails, the session is still here
            self.registry.discard(session)

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
