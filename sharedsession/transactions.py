"""The transaction of a shared session: blocks keep the guard, ends are accounted for.

A ``SessionTransaction`` of a shared session changes its class to this one as soon as it
is made.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from typing import TYPE_CHECKING, Any, Callable, Iterator

import sqlalchemy.orm as sa_orm
from sqlalchemy.engine import Engine
from sqlalchemy.orm import SessionTransactionOrigin

from . import alchemy
from .affinity import check_engine
from .connections import guard_connection, guard_of_connection
from .errors import LockTimeout
from .guard import Guard
from .holds import Hold
from .operations import guarded, run
from .owners import Owner
from .savepoints import Unit, check_savepoint
from .terms import CHANGE, END, LOAD, READ

if TYPE_CHECKING:
    from .session import SharedSessionMixin


_guard_of: Callable[[Any], Guard | None] = operator.attrgetter("session.guard")

_Plain = sa_orm.SessionTransaction
#: What is done in such a one is work of the level around it.
_OF_FLUSH = SessionTransactionOrigin.SUBTRANSACTION


class GuardedTransaction(_Plain):
    """Like ``SessionTransaction``, but each of its methods is one operation.

    Used in a ``with`` statement it keeps the guard for the whole block.
    """

    session: SharedSessionMixin
    #: Who began it, unless it is the part of a flush; so with what follows.
    begun_by: Owner
    #: Who ended it, if it is closed.
    ended_by: Owner | None = None
    was_committed = False
    #: If it is the savepoint of a unit of work: what becomes of it.
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
        self.begun_by = guard.asker().party
        _Plain.__init__(self, session, origin, parent)
        guard.worker = None  # work is noted anew for each level

    def was_autobegun_by_another(self) -> bool:
        """Whether it is only open because another thread did something before."""
        guard = _guard_of(self)
        assert guard is not None
        autobegun = self.origin is SessionTransactionOrigin.AUTOBEGIN
        in_block = self._hold is not None
        return autobegun and not in_block and self.begun_by is not guard.asker().party

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
        """This, or a new one if another thread ended it before its block began."""
        if self.ended_by in (None, self.session._asker()):
            return self
        successor = self.session.begin(nested=self.nested)
        assert isinstance(successor, GuardedTransaction)
        self._successor = successor
        return successor

    def __exit__(self, type_: Any, value: Any, traceback: Any) -> None:
        try:
            self._leave(type_, value, traceback)
        except LockTimeout:
            raise  # another thread is in the middle of an operation in it
        except BaseException:
            # An interrupt, or what a signal handler raised, before it was half done: it
            # would stay open as long as anybody keeps the traceback.
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
            # What was not ended is rolled back; what was is not ended again.
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
        """Leave a block that another thread entered: its work goes with it."""
        former = hold.take_over()
        me = self.session._asker()
        if me is not None and former.party is not me:
            self.session._ledger.hand_over(transaction, former.party, me)

    # -- its ends

    def _close(self, invalidate: bool = False) -> None:
        if self.origin is _OF_FLUSH:
            _Plain.close(self, invalidate)
            return
        committed = alchemy.is_committed(self)
        try:
            with _ending(self.session):
                _Plain.close(self, invalidate)
        finally:
            if self.session._transaction is not self:  # else it is open still
                try:
                    self.session._account_for(self, committed)
                except BaseException:
                    self.session._account_for(self, committed)  # an interrupt
                    raise

    def _commit(self, _to_root: bool = False) -> None:
        if self.origin is _OF_FLUSH:
            self.session._note_flushed(self)
        try:
            with _ending(self.session):
                _Plain.commit(self, _to_root=_to_root)
        except BaseException as error:
            self.session._note_failure(error)
            raise

    def _rollback(
        self, _capture_exception: bool = False, _to_root: bool = False
    ) -> Any:
        me = self.session._asker()
        if self.ended_by not in (None, me) and not self.was_committed:
            return  # another thread did it, for this one or for itself
        try:
            with _ending(self.session):
                _Plain.rollback(self, _capture_exception, _to_root)
        except Exception:
            raise
        except BaseException:
            if self.session._transaction is None:
                _Plain.close(self)  # it was closing already
            elif not alchemy.is_closed(self):  # by half it would leave what is undone
                alchemy.restore_snapshot(self)
                _Plain.rollback(self, _capture_exception, _to_root)
            raise
        finally:
            self.session._note_failure(sys.exc_info()[1])

    close = guarded(_close, END, _guard_of)
    commit = guarded(_commit, CHANGE, _guard_of)
    rollback = guarded(_rollback, END, _guard_of)
    is_active = property(guarded(vars(_Plain)["is_active"].fget, READ, _guard_of))
    prepare = guarded(_Plain.prepare, CHANGE, _guard_of)
    connection = guarded(_Plain.connection, LOAD, _guard_of)
    if hasattr(_Plain, "connections"):
        _connections_seen = guarded(vars(_Plain)["connections"].fget, READ, _guard_of)
        connections = property(_connections_seen)
        bound_connection = guarded(_Plain.bound_connection, READ, _guard_of)

    # -- what it is made of

    @alchemy.begins_within
    def _begin(self, nested: bool = False) -> Any:
        origins = SessionTransactionOrigin
        origin = origins.BEGIN_NESTED if nested else origins.SUBTRANSACTION
        return GuardedTransaction(self.session, origin, self)

    def _connection_for_bind(self, bind: Any, execution_options: Any) -> Any:
        guard: Any = self.session.guard
        if guard is not None:
            guard.check_may_execute()
            if guard.is_shared and isinstance(bind, Engine):
                self._check_engine(bind, guard)  # before it connects
        if self.unit is not None and not alchemy.has_connection(self, bind):
            check_savepoint(self, bind, execution_options)
            execution_options = None  # they are applied
        plain: Any = super()._connection_for_bind
        connection = plain(bind, execution_options)
        if guard_of_connection(connection) is None:
            return self._guard(connection)
        return connection

    def _guard(self, connection: Any) -> Any:
        guard = _guard_of(self)
        assert guard is not None
        if guard.is_shared:
            self._check_engine(connection.engine, guard)
        return guard_connection(connection, guard)

    def _check_engine(self, engine: Any, guard: Guard) -> None:
        known = self.session._fit_engines
        if engine not in known:  # it takes a while
            check_engine(engine, guard.asker())
            known.add(engine)


@contextlib.contextmanager
def _ending(session: Any) -> Iterator[None]:
    """Tell ends of the session's own transaction from those at its connections."""
    before, session.__dict__["_is_ending"] = session._is_ending, True
    try:
        yield
    finally:
        session.__dict__["_is_ending"] = before


def enter_within_section(transaction: sa_orm.SessionTransaction) -> None:
    """Begin the block of a transaction where a section keeps the guard for it."""
    _Plain.__enter__(transaction)
