"""What the contract says of several threads, as a model on a plain session.

A plain session that one thread uses knows nothing of others.  :class:`Serial` plays
them one after the other and adds what is promised about each other's failures:

* a transaction that one thread broke is rolled back by the next operation of another,
  and the own rollback of who broke it then has nothing to do;
* a transaction that ends at the connection, past the session, counts as broken by who
  ended it; a COMMIT there makes safe what was flushed;
* who had work in what another ended without a commit is told so, once, by
  ``WorkLostError``, unless its next operation is a rollback or close;
* ``begin()`` joins what another thread's operation began.

It stands on SQLAlchemy's public events alone and has nothing of the library in it.
"""

from __future__ import annotations

import functools
from typing import Any, Hashable

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin

Thread = Hashable


class WorkLostError(Exception):
    """Stands for the library's error of this name."""


#: Of errors that tell of work which public events do not show to be lost: unflushed
#: changes that were expired, or that a COMMIT at the connection left out, and what a
#: savepoint at the connection took back.
UNSEEN_LOSSES = (
    "which were not flushed, are gone",
    "had the COMMIT at the connection",
    "rolled back a savepoint",
)


class Serial:
    """Several threads, one after the other, on one plain session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._me: Thread = "main"
        self._work: dict[SessionTransaction, set[Thread]] = {}
        self._committed: set[SessionTransaction] = set()
        self._told_next: set[Thread] = set()
        self._broken_by: Thread | None = None
        self._done_for: set[Thread] = set()
        self._begun_by: dict[SessionTransaction, Thread] = {}
        self._ended_by: dict[SessionTransaction, Thread] = {}
        #: How the transaction ended at the connection, until the session's ends, too.
        self._ended_at_connection: str | None = None
        for target, name in self._events():
            sa.event.listen(target, name, functools.partial(self._note_end, name))
        for name in (
            "after_commit",
            "after_transaction_create",
            "after_transaction_end",
        ):
            sa.event.listen(session, name, getattr(self, f"_{name}"))

    def _events(self) -> list[tuple[Any, str]]:
        engine: Any = self.session.bind
        return [(engine, "commit"), (engine, "rollback"), (engine, "invalidate")]

    # -- what the threads do

    def now(self, thread: Thread) -> None:
        """*thread* is the one that does what follows."""
        self._me = thread

    def admit(self, ends: bool = False) -> None:
        """The next operation begins; *ends*, if it is a rollback or a close."""
        me = self._me
        if self._broken_by not in (None, me):
            self._done_for.add(self._broken_by)
            while self._is_broken() and self._innermost() is not None:
                self._innermost().rollback()
        told = me in self._told_next
        self._told_next.discard(me)
        if told and not ends:
            raise WorkLostError

    def lost_changes(self) -> None:
        """This thread's changes were expired, reloaded or expunged by another one.

        Which changes, the public events do not tell: the caller says so.
        """
        self._told_next.add(self._me)

    def after(self) -> None:
        """An operation has ended: if it broke the transaction, it was this thread's."""
        if self._broken_by is None and self._is_broken():
            self._broken_by = self._me
            if self._ended_at_connection == "commit":
                self._work.clear()

    def wrote(self) -> None:
        """This thread has left work in the transaction."""
        level = self._level()
        if level is not None:
            self._work.setdefault(level, set()).add(self._me)

    def rollback(self) -> None:
        done = self._me in self._done_for
        self._done_for.discard(self._me)
        if not done or any(self._me in workers for workers in self._work.values()):
            Session.rollback(self.session)

    def rolled_back_by_another(self, transaction: SessionTransaction) -> bool:
        """Whether its own rollback has nothing to do, and says nothing."""
        ended_by = self._ended_by.get(transaction, self._me)
        return ended_by != self._me and transaction not in self._committed

    def begin(self, nested: bool) -> Any:
        root = self.session.get_transaction()
        if not nested and root is not None and self._joins(root):
            self._begun_by[root] = self._me
            return root
        return self.session.begin(nested)

    def still_open(self, transaction: Any, nested: bool) -> Any:
        """The block to enter: another one if somebody ended it meanwhile."""
        if self._ended_by.get(transaction, self._me) == self._me:
            return transaction
        return self.begin(nested)

    # -- what is watched

    def _is_broken(self) -> bool:
        return not self.session.is_active or self._ended_at_connection is not None

    def _innermost(self) -> Any:
        session = self.session
        return session.get_nested_transaction() or session.get_transaction()

    def _level(self) -> SessionTransaction | None:
        level: SessionTransaction | None = self._innermost()
        return level

    def _joins(self, root: SessionTransaction) -> bool:
        """Whether nothing that is open was begun by this thread on purpose."""
        level = self._innermost()
        while level is not None and level is not root:
            if self._begun_by[level] == self._me:
                return False
            level = level.parent
        autobegun = root.origin is SessionTransactionOrigin.AUTOBEGIN
        return autobegun and self._begun_by[root] != self._me

    def _note_end(self, how: str, *args: Any) -> None:
        if self.session.get_transaction() is not None:
            self._ended_at_connection = how

    def _after_transaction_create(self, session: Any, transaction: Any) -> None:
        self._begun_by[transaction] = self._me

    def _after_commit(self, session: Any) -> None:
        level = self._level()
        assert level is not None
        self._committed.add(level)

    def _after_transaction_end(self, session: Any, transaction: Any) -> None:
        self._ended_by[transaction] = self._me
        if transaction.origin is SessionTransactionOrigin.SUBTRANSACTION:
            return
        if not transaction.nested:
            self._ended_at_connection = None
        self._done_for.discard(self._me)
        workers = self._work.pop(transaction, set())
        if transaction in self._committed:
            if transaction.nested:
                parent = transaction.parent
                while parent.origin is SessionTransactionOrigin.SUBTRANSACTION:
                    parent = parent.parent
                self._work.setdefault(parent, set()).update(workers)
            return
        blamed = self._me if self._broken_by is None else self._broken_by
        self._told_next |= workers - {blamed}
        if not self._is_broken():
            self._broken_by = None
