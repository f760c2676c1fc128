"""The transaction of a shared session: its blocks hold the guard, its ends are noted.

A shared session makes its transactions of this class; ``share()`` changes the class of
those that are open already.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from typing import TYPE_CHECKING, Any, Callable, Iterator

import sqlalchemy.orm as sa_orm
from sqlalchemy.engine import Engine
from sqlalchemy.orm import SessionTransactionOrigin

from ..database.connections import guard_connection, guard_of_connection
from ..database.savepoints import Unit, check_savepoint
from ..errors import LockTimeout
from ..guard.access import CHANGE, COMMIT, END, LOAD, READ
from ..guard.guard import Guard
from ..guard.owner import Owner
from ..guard.turn import Hold
from ..internals import transactions
from ..operations.operation import run
from ..operations.wrap import guarded
from .checks import check_engine

if TYPE_CHECKING:
    from .session import SharedSessionMixin


_guard_of: Callable[[Any], Guard | None] = operator.attrgetter("session.guard")

_Plain = sa_orm.SessionTransaction
#: Work in the subtransaction of a flush belongs to the level around it.
_OF_FLUSH = SessionTransactionOrigin.SUBTRANSACTION


class GuardedTransaction(_Plain):
    """Like ``SessionTransaction``, but each of its methods is one operation.

    In a ``with`` statement the transaction holds the guard for the whole block.
    """

    session: SharedSessionMixin
    #: Owner that began this transaction.  Not set on the subtransaction of a flush;
    #: neither are the next three.
    begun_by: Owner
    #: Owner that ended this transaction; ``None`` while it is open.
    ended_by: Owner | None = None
    was_committed = False
    #: For the savepoint of a unit of work: what happens to it at the end of the unit.
    unit: Unit | None = None
    _hold: Hold | None = None
    _successor: GuardedTransaction | None = None

    def __init__(
        self,
        session: SharedSessionMixin,
        origin: SessionTransactionOrigin,
        parent: GuardedTransaction | None = None,
    ) -> None:
        if origin is _OF_FLUSH:
            _Plain.__init__(self, session, origin, parent)
            return
        guard: Any = session.guard
        self.begun_by = guard.current_owner().party
        _Plain.__init__(self, session, origin, parent)
        guard.last_writer = None  # each level notes the owners of its work anew

    def was_autobegun_by_another(self) -> bool:
        """Whether another owner autobegan this transaction and no block holds it."""
        guard = _guard_of(self)
        assert guard is not None
        autobegun = self.origin is SessionTransactionOrigin.AUTOBEGIN
        in_block = self._hold is not None
        return (
            autobegun
            and not in_block
            and self.begun_by is not guard.current_owner().party
        )

    # -- as a block

    def __enter__(self) -> GuardedTransaction:
        guard = _guard_of(self)
        assert guard is not None
        hold = guard.hold("transaction block")
        try:
            transaction = self._still_open()
            _Plain.__enter__(transaction)
            self._hold = hold
            return transaction
        except BaseException:
            self._hold = None
            hold.release()
            raise

    def _still_open(self) -> GuardedTransaction:
        """Return self, or a new transaction if another owner has ended this one."""
        if self.ended_by in (None, self.session._current_owner()):
            return self
        successor = self.session.begin(nested=self.nested)
        assert isinstance(successor, GuardedTransaction)
        self._successor = successor
        return successor

    def __exit__(self, type_: Any, value: Any, traceback: Any) -> None:
        try:
            self._leave(type_, value, traceback)
        except LockTimeout:
            raise  # another thread is in the middle of an operation in this block
        except BaseException:
            # If an interrupt, or the error of a signal handler, came before _leave()
            # cleared the hold, leave again: otherwise the block would stay open until
            # the traceback is freed.
            if self._hold is not None:
                self._leave(*sys.exc_info())
            raise

    def _leave(self, type_: Any, value: Any, traceback: Any) -> None:
        guard = self.session.guard
        assert guard is not None
        transaction, hold = self._successor or self, self._hold
        if hold is not None:
            if hold.forget_if_busy():
                return
            self._take_over(hold, transaction)
        self._successor = self._hold = None
        try:
            run(guard, END, _Plain.__exit__, transaction, type_, value, traceback)
        except LockTimeout:
            raise
        except BaseException:
            # Call __exit__() again: this rolls back a transaction that is still open,
            # and does nothing if the transaction has ended.
            run(guard, END, _Plain.__exit__, transaction, *sys.exc_info())
            raise
        finally:
            if hold is not None:
                try:
                    hold.release()
                except BaseException:
                    hold.release()  # an interrupt at its first line
                    raise

    def _take_over(self, hold: Hold, transaction: GuardedTransaction) -> None:
        """Make the caller the owner of the block and of the work in it."""
        former = hold.take_over()
        me = self.session._current_owner()
        if me is not None and former.party is not me:
            self.session._recovery.hand_over(transaction, former.party, me)

    # -- how the transaction ends

    def _close(self, invalidate: bool = False) -> None:
        if self.origin is _OF_FLUSH:
            _Plain.close(self, invalidate)
            return
        committed = transactions.is_committed(self)
        try:
            with _ending(self.session):
                _Plain.close(self, invalidate)
        finally:
            if self.session._transaction is not self:  # otherwise still open
                try:
                    self.session._recovery.ended(self, committed)
                except BaseException:
                    self.session._recovery.ended(self, committed)  # after an interrupt
                    raise

    def _commit(self, _to_root: bool = False) -> None:
        if self.origin is _OF_FLUSH:
            self.session._recovery.flushed(self)
        try:
            with _ending(self.session):
                _Plain.commit(self, _to_root=_to_root)
        except BaseException as error:
            self.session._recovery.failed(error)
            raise

    def _rollback(
        self, _capture_exception: bool = False, _to_root: bool = False
    ) -> Any:
        me = self.session._current_owner()
        if self.ended_by not in (None, me) and not self.was_committed:
            return  # another thread rolled it back, for the caller or for itself
        try:
            with _ending(self.session):
                _Plain.rollback(self, _capture_exception, _to_root)
        except Exception:
            raise
        except BaseException:
            if self.session._transaction is None:
                _Plain.close(self)  # the rollback had begun to close it
            elif not transactions.is_closed(self):
                # Interrupted half way: restore the objects, then roll back again.
                transactions.restore_snapshot(self)
                _Plain.rollback(self, _capture_exception, _to_root)
            raise
        finally:
            self.session._recovery.failed(sys.exc_info()[1])

    close = guarded(_close, END, _guard_of)
    commit = guarded(_commit, COMMIT, _guard_of)
    rollback = guarded(_rollback, END, _guard_of)
    is_active = property(guarded(vars(_Plain)["is_active"].fget, READ, _guard_of))
    prepare = guarded(_Plain.prepare, CHANGE, _guard_of)
    connection = guarded(_Plain.connection, LOAD, _guard_of)
    if hasattr(_Plain, "connections"):
        _connections_seen = guarded(vars(_Plain)["connections"].fget, READ, _guard_of)
        connections = property(_connections_seen)
        bound_connection = guarded(_Plain.bound_connection, READ, _guard_of)

    # -- savepoints, subtransactions and connections

    @transactions.begins_within
    def _begin(self, nested: bool = False) -> Any:
        origins = SessionTransactionOrigin
        origin = origins.BEGIN_NESTED if nested else origins.SUBTRANSACTION
        return GuardedTransaction(self.session, origin, self)

    def _connection_for_bind(self, bind: Any, execution_options: Any) -> Any:
        guard: Any = self.session.guard
        if guard is not None:
            guard.check_may_execute()
            if guard.is_shared and isinstance(bind, Engine):
                self._check_engine(bind, guard)  # before the engine connects
        if self.unit is not None and not transactions.has_connection(self, bind):
            check_savepoint(self, bind, execution_options)
            execution_options = None  # check_savepoint() has applied them
        plain: Any = super()._connection_for_bind
        connection = self._connect(guard, plain, bind, execution_options)
        if guard_of_connection(connection) is None:
            return self._guard(connection)
        return connection

    def _connect(self, guard: Any, plain: Any, *args: Any) -> Any:
        """Connect and begin while others go on reading; a statement follows."""
        connected = transactions.has_connection(self, args[0])
        if guard is None or connected or not guard.may_open:
            return plain(*args)
        me = guard.current_owner()
        try:
            guard.open_window(me)
            guard.may_open = guard.window is me  # unless a listener changes something
            return plain(*args)
        finally:
            guard.close_window(me)

    def _guard(self, connection: Any) -> Any:
        guard = _guard_of(self)
        assert guard is not None
        if guard.is_shared:
            self._check_engine(connection.engine, guard)
        return guard_connection(connection, guard)

    def _check_engine(self, engine: Any, guard: Guard) -> None:
        known = self.session._fit_engines
        if engine not in known:  # check once, because the check is slow
            check_engine(engine, guard.current_owner())
            known.add(engine)


@contextlib.contextmanager
def _ending(session: Any) -> Iterator[None]:
    """Mark that the session, and not a user of its connection, ends a transaction."""
    recovery = session._recovery
    before, recovery.is_ending = recovery.is_ending, True
    try:
        yield
    finally:
        recovery.is_ending = before


def enter_within_section(transaction: sa_orm.SessionTransaction) -> None:
    """Enter *transaction* as a block, for which a section holds the guard already."""
    _Plain.__enter__(transaction)
