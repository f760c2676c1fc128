"""AsyncSharedSession: one AsyncSession that several tasks share."""

from __future__ import annotations

import functools
from typing import Any, Callable, Concatenate, Generic, Iterator, ParamSpec, TypeVar

import sqlalchemy.exc as sa_exc
import sqlalchemy.orm.exc as sa_orm_exc
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction
from sqlalchemy.orm import Session, object_session
from sqlalchemy.util import IdentitySet

from ..errors import SharedSessionError
from ..guard.kinds import LockArgument
from ..guard.task import to_the_end
from ..internals import greenlets, orm
from ..operations.wrap import as_function
from ..session.async_sections import AsyncSection
from ..session.sections import CriticalSection, ReadSection
from .guard import PutOff, TaskGuard
from .sync_session import TaskSession, task_session_class

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
        result: _T = await greenlets.greenlet_spawn(self._run_whole, fn, arg, kw)
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
        await to_the_end(greenlets.greenlet_spawn, leave, type_, value, traceback)

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
        me = guard.current_owner()
        return [it for it in guard.put_off if it.owner is me]

    def _do_or_put_off(self, name: str, plain: Any, args: Any, kw: Any) -> Any:
        guard = self.guard
        if name == "add_all":
            args = ([*args[0]],) if args else ()
            kw = {key: [*value] for key, value in kw.items()}
        me = None if guard is None else guard.current_owner()
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
        state = orm.instance_state(instance)
    except AttributeError:
        raise sa_orm_exc.UnmappedInstanceError(instance) from None
    if name not in _ADDS:
        if instance not in session:
            raise sa_exc.InvalidRequestError(
                f"Instance {orm.described(state)} is not present in this Session"
            )
        return
    present = object_session(instance)
    if present is not None and present is not session.sync_session:
        raise sa_exc.InvalidRequestError(
            f"Object {orm.described(state)} is already attached to another session "
            f"{present!r} (this is {session.sync_session!r})"
        )


def _is_new(instance: Any) -> bool:
    return orm.instance_state(instance).key is None


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
        begun = await greenlets.greenlet_spawn(self._begin_block)
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
