"""SharedSession: a ``Session`` whose every operation goes through one guard."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, Callable, Iterator, NoReturn, TypeVar

from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin

from ..database import rows
from ..errors import LockTimeout, SharedSessionError
from ..guard.access import CHANGE, LOAD, Access, check_wait_in_loop
from ..guard.guard import Guard
from ..guard.kinds import LockArgument, make_guard
from ..guard.owner import Owner
from ..internals import orm
from ..objects import attributes
from ..objects.identity_map import guard_identity_map
from ..operations.operation import run
from ..operations.statements import access_of, has_changes_within
from ..operations.tables import SESSION_SETTINGS
from .checks import check_is_for_threads
from .guarding import put_guard
from .operations import guard_methods_of_base, put_operations_on, show_operations_on
from .recovery import Recovery
from .sections import CriticalSection, ReadSection
from .transaction import GuardedTransaction

_S = TypeVar("_S", bound=Session)


class SharedSessionMixin(Session):
    """Makes another Session class a shared one: ``class S(SharedSessionMixin, Base)``.

    Like :class:`SharedSession`, but for applications that have a ``Session`` class of
    their own.  Every public method of that class becomes an operation, including the
    methods that the class adds to ``Session``.

    :param lock: the lock kind or a lock object, see :class:`SharedSession`.
    :param lock_timeout: seconds, above zero, that an operation or a section waits for
      its turn; ``None``, the default: for ever.
    :param wait_in_loop: seconds, zero by default, that a coroutine may block its event
      loop to wait for its turn.
    :raises ValueError: if the lock, the timeout or *wait_in_loop* is not valid.
    """

    #: The guard; ``None`` if the lock is off.
    guard: Guard | None = None

    #: Whether this session is behind an AsyncSession: its users are tasks, not threads.
    _for_tasks = False
    _guard_class: type[Guard] = Guard
    _recovery_class: type[Recovery] = Recovery

    # The next three are set only if there is a guard, and are used inside the guard;
    # only __enter__() appends to `_blocks` outside.
    _recovery: Recovery
    #: An entry for each open with-block of the session: the owner that entered it.
    _blocks: list[Owner]
    #: Engines that passed check_engine(): several threads may use them.
    _fit_engines: weakref.WeakSet[Engine]
    #: Whether check_is_for_threads() has passed: no AsyncSession runs this session.
    _is_for_threads = False
    #: Whether a unit of work is open that commits at its end.
    _in_unit = False

    def __init__(
        self,
        *args: Any,
        lock: LockArgument = "rlock",
        lock_timeout: float | None = None,
        wait_in_loop: float = 0.0,
        **session_kwargs: Any,
    ) -> None:
        # First, because a bad value must leave no half-made session.
        guard = make_guard(lock, lock_timeout, self._guard_class)
        check_wait_in_loop(wait_in_loop)
        super().__init__(*args, **session_kwargs)
        if guard is not None:
            guard.wait_in_loop = wait_in_loop
            put_guard(self, guard)

    def __init_subclass__(cls, **kw: Any) -> None:
        super().__init_subclass__(**kw)
        guard_methods_of_base(cls, SharedSessionMixin)

    # -- sections

    def critical_section(self: _S, timeout: float | None = None) -> CriticalSection[_S]:
        """Keep every other thread out for a block: ``with session.critical_section():``

        Like holding a reentrant lock around the block, but other threads are kept away
        from the session's objects, rows and connections, too.  Yields the session.

        :param timeout: seconds, above zero, to wait at most; ``None``, the default: the
          ``lock_timeout`` of the session.
        :raises LockTimeout: if the wait took longer.
        :raises DeadlockError: if the wait would never end.
        :raises UpgradeError: inside a read section of the same thread.
        """
        return CriticalSection(self, timeout)

    def read_section(self: _S, timeout: float | None = None) -> ReadSection[_S]:
        """Let no thread write during a block that only reads.

        Like :meth:`critical_section`, but under ``lock="rw"`` any number of threads may
        be in read sections at once.  Pending changes are flushed on the way in, unless
        autoflush is off.  Loading works inside; a write raises :class:`UpgradeError`
        before it changes anything, under every lock kind.

        :param timeout: seconds, above zero, to wait at most; ``None``, the default: the
          ``lock_timeout`` of the session.
        :raises LockTimeout: if the wait took longer.
        """
        return ReadSection(self, timeout)

    # -- settings and blocks of Session
    #
    # At the end of this module every method in the tables SESSION and SESSION_INTERNAL
    # becomes an operation: one that is defined here, or else Session's own.

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; for one of ``SESSION_SETTINGS`` this is an operation."""
        guard = self.guard if name in SESSION_SETTINGS else None
        if guard is None:
            super().__setattr__(name, value)
        else:
            run(guard, CHANGE, super().__setattr__, name, value)

    def __enter__(self: _S) -> _S:
        guard = self.guard  # type: ignore[attr-defined]
        if guard is not None:
            self._blocks.append(guard.current_owner())  # type: ignore[attr-defined]
        return super().__enter__()

    def __exit__(self, type_: Any, value: Any, traceback: Any) -> None:
        """Close the session, unless another living owner is in a with-block of it."""
        if self.guard is None:
            super().__exit__(type_, value, traceback)
            return
        blocks, me = self._blocks, self.guard.current_owner()
        # If not the caller, then another thread entered the block that ends here.
        entered_by = blocks[-1] if blocks and me not in blocks else me
        entered = bool(blocks)
        if entered:
            blocks.remove(entered_by)
        if any(owner is not me and owner.alive for owner in blocks):
            return
        try:
            super().__exit__(type_, value, traceback)
        except LockTimeout:
            blocks += [
                entered_by
            ] * entered  # nothing was closed: the block is open still
            raise

    @property
    def no_autoflush(self) -> Any:
        """Like ``Session.no_autoflush``, but keeps other threads out of the block."""
        plain = super().no_autoflush
        return plain if self.guard is None else _guarded_block(self, plain)

    def begin(self, nested: bool = False) -> SessionTransaction:
        """Like ``Session.begin()``, but joins what another thread autobegan."""
        root = super().get_transaction()
        if not nested and isinstance(root, GuardedTransaction):
            if root.was_autobegun_by_another() and not self._has_savepoint_of_mine():
                assert self.guard is not None
                root.begun_by = self.guard.current_owner().party
                return root
        return super().begin(nested)

    def _has_savepoint_of_mine(self) -> bool:
        """Whether the caller itself began a savepoint: then ``begin()`` must raise."""
        savepoint = super().get_nested_transaction()
        while savepoint is not None and savepoint.nested:
            if getattr(savepoint, "begun_by", None) is self._current_owner():
                return True
            savepoint = savepoint.parent
        return False

    def rollback(self) -> None:
        """Like ``Session.rollback()``, unless another thread did it for the caller."""
        if self.guard is None or not self._recovery.was_rolled_back_for_me():
            super().rollback()

    # -- the one method that every statement goes through

    def _execute_internal(self, statement: Any, *args: Any, **kw: Any) -> Any:
        """Execute a statement, fetch its rows and make its objects as one operation."""
        guard = self.guard
        execute: Any = super()._execute_internal
        if guard is None:
            return execute(statement, *args, **kw)
        options = kw.get("execution_options")
        access = _access_to_execute(guard, statement, options)
        return run(guard, access, self._execute, execute, options, statement, args, kw)

    def _execute(
        self, execute: Any, options: Any, statement: Any, args: Any, kw: Any
    ) -> Any:
        self._note_statement(statement, options)
        guard: Any = self.guard
        return rows.settle(guard, execute(statement, *args, **kw))

    def _note_statement(self, statement: Any, options: Any) -> None:
        """For subclasses: called inside the guard before a statement is executed."""

    def _autoflush(self) -> None:
        guard = self.guard
        if guard is not None:
            # If there is nothing to flush, do not call flush(): as a change it would
            # forbid a window, in which other owners read loaded state.  An override of
            # flush() in the application is still called.
            if orm.is_clean(self) and _is(self.flush, _flush):
                if _is(super().flush, Session.flush):
                    return
            if guard.reads_only():
                return  # a read section refuses flush()
        super()._autoflush()

    # -- transactions and objects of the session

    def _autobegin_t(self, begin: bool = False) -> Any:
        if self._transaction is not None:
            return self._transaction
        if self.guard is None or not (begin or self.autobegin):
            return super()._autobegin_t(begin)
        if not self._is_for_threads and not self._for_tasks:
            # Once is enough, because an AsyncSession takes no session that is in use.
            check_is_for_threads(self)
            self._is_for_threads = True
        origins = SessionTransactionOrigin
        return GuardedTransaction(self, origins.BEGIN if begin else origins.AUTOBEGIN)

    def _after_attach(self, state: Any, obj: Any) -> None:
        if self.guard is not None:
            attributes.adopt(state, orm.instance_dict(obj))
            if orm.is_unflushed(self, state):
                attributes.note_changed(self.guard, state, None)
        super()._after_attach(state, obj)

    def _delete_impl(self, state: Any, obj: Any, head: bool) -> None:
        super()._delete_impl(state, obj, head)
        if self.guard is not None and orm.is_unflushed(self, state):
            attributes.note_changed(self.guard, state, None)

    def _expunge_states(self, *args: Any, **kw: Any) -> None:
        try:
            super()._expunge_states(*args, **kw)
        finally:  # a listener may raise half way
            if self.guard is not None and not self._recovery.is_ending:
                self._recovery.expunged()  # make_transient() comes here, too

    def close(self) -> None:
        _to_the_end(super().close)

    def reset(self) -> None:
        _to_the_end(super().reset)

    def invalidate(self) -> None:
        _to_the_end(super().invalidate)

    def expunge_all(self) -> None:
        try:
            _to_the_end(super().expunge_all)
        finally:  # a listener may raise half way
            if self.guard is not None:
                self._recovery.all_expunged()
                guard_identity_map(self.identity_map, self.guard)

    def _has_to_tidy(self) -> bool:
        """Whether to recover or flush first, for readers to see all that was done."""
        return self._recovery.is_needed() or (self.autoflush and not orm.is_clean(self))

    def _forget_blocks(self) -> None:
        """Forget the blocks of an unfinished section: no thread will leave them."""
        self._in_unit = False
        self._trans_context_manager = None

    def _current_owner(self) -> Owner | None:
        return None if self.guard is None else self.guard.current_owner().party

    # -- misuse

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise SharedSessionError(
            "A session cannot be pickled: it is about a connection and the threads of "
            "this process. Pickle its objects, or copy them with merge_into()."
        )


@contextlib.contextmanager
def _guarded_block(session: SharedSessionMixin, plain: Any) -> Iterator[Any]:
    """Hold the guard during *plain*, a block that changes a setting of the session."""
    guard = session.guard
    assert guard is not None
    if guard.reads_only():
        yield session  # a read section has nothing pending that autoflush would write
    else:
        section = CriticalSection(session, None)
        with section, plain:
            try:
                yield session
            finally:
                section.take_over()  # another thread may leave the block


def _access_to_execute(guard: Guard, statement: Any, options: Any) -> Access:
    """Return the access of *statement*; raise in a read section if it is a write."""
    access = access_of(statement, options)
    if guard.reads_only() and (access is not LOAD or has_changes_within(statement)):
        guard.refuse_write()  # even if the operation around it is a load
    return access


def _is(method: Any, function: Any) -> bool:
    return getattr(method, "__func__", None) is function


def _to_the_end(throw_away: Callable[[], None]) -> None:
    """Call *throw_away*, and after an interrupt once more.

    Otherwise owners whose work is lost would not be told.  The second call is harmless,
    because work that is thrown away twice is lost only once.
    """
    try:
        throw_away()
    except Exception:
        raise
    except BaseException:
        throw_away()
        raise


put_operations_on(SharedSessionMixin)
_flush = vars(SharedSessionMixin)["flush"]


class SharedSession(SharedSessionMixin, Session):
    """Like :class:`sqlalchemy.orm.Session`, but several threads may use it at once.

    Plug it in where the application makes its sessions::

        Session = sessionmaker(engine, class_=SharedSession, lock="rw")

    Every operation on the session, on the objects attached to it, and on the rows,
    connections and transactions that it returns goes through one guard, which lets in
    one thread at a time, or several readers under ``"rw"``.  If only one thread uses
    the session, it behaves like a plain ``Session``.

    :param bind: the engine or connection, as for ``Session``.
    :param lock: the lock kind, or a lock object.  ``"rlock"``, the default: operations
      take turns.  ``"rw"``: reads of loaded state, and read sections, share.
      ``"detect"``: no thread waits; two threads that overlap get
      :class:`ConcurrentAccessError`.  ``"confine"``: the first thread that uses the
      session owns it; other threads get :class:`ConcurrentAccessError`.  ``"off"`` or
      ``None``: a plain ``Session``.  A lock object is an RLock-like lock, which several
      sessions may share, or a reader/writer lock like those of readerwriterlock.
    :param lock_timeout: seconds, above zero, that an operation or a section waits for
      its turn before it raises :class:`LockTimeout`; ``None``, the default: for ever.
    :param wait_in_loop: seconds, zero by default, that a coroutine which uses this
      session may block its event loop to wait for its turn before it raises
      :class:`SharedSessionError`; for programs whose window runs in a coroutine.
    :param session_kwargs: everything else that ``Session`` takes.
    :raises ValueError: if the lock, the timeout or *wait_in_loop* is not valid.
    """

    def __init__(
        self,
        bind: Any = None,
        *,
        lock: LockArgument = "rlock",
        lock_timeout: float | None = None,
        wait_in_loop: float = 0.0,
        **session_kwargs: Any,
    ) -> None:
        super().__init__(
            bind=bind,
            lock=lock,
            lock_timeout=lock_timeout,
            wait_in_loop=wait_in_loop,
            **session_kwargs,
        )


show_operations_on(SharedSession, SharedSessionMixin)


def share(
    session: _S, *, lock: LockArgument = "rlock", lock_timeout: float | None = None
) -> _S:
    """Guard an existing session in place, with all that is attached to it.

    Like making a :class:`SharedSession` in the first place, but for a session that
    other code has made.  Call it before a second thread has the session, because an
    operation that another thread has begun already is not stopped.

    :param session: any ``Session``; its class changes to a shared one.
    :param lock: the lock kind or a lock object, see :class:`SharedSession`.
    :param lock_timeout: seconds, above zero, that an operation or a section waits for
      its turn; ``None``, the default: for ever.
    :return: *session*.
    :raises SharedSessionError: if *session* is shared already, is behind an
      AsyncSession, or is not a ``Session``.
    :raises ValueError: if the lock or the timeout is not valid.
    """
    if not isinstance(session, Session):
        raise SharedSessionError(
            f"share() takes a Session, not {session!r}. For a registry use "
            "shared_session() in the place of scoped_session()."
        )
    if getattr(session, "guard", None) is not None:
        raise SharedSessionError(f"{session!r} is shared already.")
    check_is_for_threads(session)
    guard = make_guard(lock, lock_timeout)
    if guard is not None:
        if not isinstance(session, SharedSessionMixin):
            session.__class__ = _shared_class(type(session))
        put_guard(session, guard)
    return session


_shared_classes: dict[type, type] = {}


def _shared_class(plain: type) -> type:
    if plain not in _shared_classes:
        name = f"Shared{plain.__name__}"
        members = {"__module__": plain.__module__, "__doc__": plain.__doc__}
        _shared_classes[plain] = type(name, (SharedSessionMixin, plain), members)
    return _shared_classes[plain]
