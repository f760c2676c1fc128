"""Failures and lost work in a shared session, and how the next owner recovers.

An owner may break the transaction, leave a section without finishing it, or throw away
work of others.  The guard, the transaction and the connections tell :class:`Recovery`
of each.  The next owner that enters the guard rolls back what is broken, and an owner
that lost work is told by a :class:`WorkLostError`.
"""

from __future__ import annotations

import weakref
from typing import Any

from ..database.aborts import Abort
from ..database.connections import innermost_savepoints, savepoints_within
from ..guard.access import END, Access
from ..guard.guard import Guard
from ..guard.owner import Owner
from ..internals import orm, transactions
from ..objects.changers import Changers, replace
from .checks import check_second_thread
from .losses import Ledger, Loss


class Recovery:
    """The failures and losses of one session.  Used only inside the session's guard.

    ``transaction`` stands for a transaction of the session or one of its savepoints,
    each of which is a level of its own.
    """

    def __init__(self, session: Any, guard: Guard) -> None:
        # A weak reference, because the guard has this object.
        self._session = weakref.ref(session)
        self._guard = guard
        self._ledger = Ledger()
        #: The failure that broke the transaction, until a rollback.
        self.failure: Loss | None = None
        #: Owners whose failed transaction another owner rolled back for them.
        self._owed: set[Owner] = set()
        #: Whether the session itself is ending a transaction at this moment.
        self.is_ending = False

    # -- what the guard tells

    def admit(self, second: Owner) -> None:
        """Refuse a second thread if the session's engines fit only one."""
        session = self._session()
        if session is not None:
            check_second_thread(session, second)

    def wrote(self, owner: Owner) -> None:
        """Note that *owner* left work in the transaction that a rollback would lose."""
        session = self._session()
        if session is None or session._transaction is None or orm.is_flushing(session):
            return  # a flush writes work that was noted when it became pending
        self._ledger.note(transactions.boundary(session._transaction), owner.party)
        self._guard.last_writer = owner

    def recover(self, me: Owner, access: Access) -> None:
        """Recover from what other owners left; raise if *me* lost work through them."""
        session, guard = self._session(), self._guard
        if session is None:
            guard.attention = guard.unsettled = False
            return
        if guard.last_failure is not None:
            by, what = guard.last_failure
            self._note_broken(by.party, what)
            guard.last_failure = None
        guard.run_deferred(me)
        party = me.party
        if self._is_left_to_finish(party) and guard.exclude_others(me):
            guard.run_deferred(me)
            self._finish_for_others(session, party)
        self._tell(party, access)

    def is_needed(self) -> bool:
        """Whether a recovery is needed before readers may see all that was done."""
        guard = self._guard
        left = guard.abandoned_by is not None or guard.last_failure is not None
        left = left or guard.has_deferred() or self.failure is not None
        return left or self._ledger.anybody_to_tell()

    def _tell(self, me: Owner, access: Access) -> None:
        """Raise if *me* lost work; not if *me* is rolling back or closing anyway."""
        guard = self._guard
        error = self._ledger.error_for(me) if access is not END else None
        if error is None:
            self._ledger.forget(me)
        guard.unsettled = (
            guard.abandoned_by is not None or self.failure is not None
        ) or self._ledger.anybody_to_tell()
        guard.attention = guard.unsettled or guard.has_deferred()
        if error is not None:
            self._ledger.forget(me)  # last, because the error is raised only once
            raise error

    def _call_for_attention(self) -> None:
        self._guard.attention = self._guard.unsettled = True

    # -- finishing for others

    def _is_left_to_finish(self, me: Owner) -> bool:
        broken = self.failure is not None and self.failure.by is not me
        return broken or self._guard.abandoned_by is not None

    def _finish_for_others(self, session: Any, me: Owner) -> None:
        abandoned_by, self._guard.abandoned_by = self._guard.abandoned_by, None
        if abandoned_by is not None:
            abandoned_by = abandoned_by.party
            session._forget_blocks()
            if self._ledger.has_work(abandoned_by):
                why = "left a section without finishing it"
                self._roll_back_for(session, Loss(abandoned_by, why))
        elif self.failure is not None and self.failure.by is not me:
            self._owed.add(self.failure.by)
            while transactions.is_broken(session._transaction):
                self._end_broken(session, session._transaction)

    def _roll_back_for(self, session: Any, loss: Loss) -> None:
        """Roll back all levels; note the failure anew, because each end forgets it."""
        while session._transaction is not None:
            self.failure = loss
            session._transaction.rollback()

    def _end_broken(self, session: Any, transaction: Any) -> None:
        """End one level that another thread broke; the level around it may be sound."""
        whole = transactions.is_aborted_as(transaction, Abort.WHOLE)
        savepoint = None if whole else transactions.savepoint_beyond(transaction)
        if savepoint is not None:
            savepoint.rollback()
            return
        transactions.set_ended_aside(transaction, whole)
        if not transactions.is_committed(transaction):
            transaction.rollback()
        if session._transaction is transaction:
            transaction.close()  # committed, or interrupted before its end

    def was_rolled_back_for_me(self) -> bool:
        """Whether another owner rolled back for the caller; True only once."""
        me = self._guard.current_owner().party
        owed = me in self._owed
        self._owed.discard(me)
        return owed and not self._ledger.has_work(me)

    # -- failures

    def failed(self, error: BaseException | None) -> None:
        """If the transaction is broken, note the caller as the owner that broke it."""
        what = type(error).__name__ if error else "an error"
        self._note_broken(self._guard.current_owner().party, what)

    def _note_broken(self, owner: Owner, what: str) -> None:
        session = self._session()
        transaction = None if session is None else session._transaction
        if self.failure is None and transactions.is_broken(transaction):
            if transaction is not None and transactions.is_committed(transaction):
                self._committed(transaction)  # a listener failed after it
            self.failure = Loss(owner, f"had {what}, which broke the transaction")
            self._call_for_attention()

    def _forget_failure(self) -> None:
        """Forget the failure if the open levels are sound: only a savepoint broke."""
        session = self._session()
        if session is None or not transactions.is_broken(session._transaction):
            self.failure = None

    # -- the ends of transactions

    def ended(self, transaction: Any, committed: bool) -> None:
        """After the end of a level, note whose work is safe and whose is lost."""
        me = self._guard.current_owner().party
        transaction.ended_by = me
        transaction.was_committed = committed
        self._guard.last_writer = None
        self._owed.discard(me)
        if committed and transaction.nested:
            self._committed(transaction)
            self._forget_failure()
            return
        if committed and self.failure is None:
            self._ledger.drop(transaction)
            return
        self._ledger.take_changed(self._ledger.changed_states())  # all are undone
        # If the server had aborted the transaction, its COMMIT was a ROLLBACK.
        if self.failure is not None or self._ledger.concerns_others(transaction, me):
            loss = self.failure or Loss(me, "ended it without a commit")
            self._ledger.thrown_away(transaction, loss)
        else:
            self._ledger.drop(transaction)
        self._forget_failure()
        if self._ledger.anybody_to_tell():
            self._call_for_attention()

    def _committed(self, transaction: Any) -> None:
        """After a commit, a savepoint's work is its parent's; other work is safe."""
        nested = transaction.nested
        parent = transactions.boundary(transaction.parent) if nested else None
        self._ledger.committed(transaction, parent)

    def savepoint_undone(self, workers: set[Owner]) -> None:
        """A savepoint of the connection was rolled back, with the work of *workers*."""
        me = self._guard.current_owner().party
        so = "what was written since the savepoint is undone"
        loss = self.failure or Loss(me, "rolled back a savepoint", so)
        self._lose(workers, loss)
        # If the session itself ends its savepoint, ended() follows.
        if not self.is_ending:
            self._forget_failure()

    def ended_at_connection(self, connection: Any, what: str) -> None:
        """A connection's outer transaction ended, perhaps not through the session."""
        session = self._session()
        transaction = None if session is None else session._transaction
        if transaction is None or self.is_ending:
            return
        while transaction.parent is not None:
            transaction = transaction.parent
        connections = transactions.connections_of(transaction)
        if connection not in connections:
            return
        if what == "COMMIT" and connections == {connection}:
            self._ledger.all_safe()
        self._guard.last_failure = (
            self._guard.current_owner(),
            f"the {what} at the connection",
        )
        self._call_for_attention()

    def undone_by_statement(self) -> None:
        """A statement in text rolled back, unseen by SQLAlchemy."""
        me = self._guard.current_owner().party
        self._lose(self._ledger.take_flushed(), Loss(me, "executed a ROLLBACK"))

    def losses(self) -> dict[Owner, Loss]:
        """Return the losses that nobody was told of yet, for :meth:`inherit`."""
        return self._ledger.losses()

    def inherit(self, losses: dict[Owner, Loss]) -> None:
        """Tell of the losses in a session that this one replaces in a registry."""
        self._ledger.inherit(losses)
        if self._ledger.anybody_to_tell():
            self._call_for_attention()

    def discarded(self, users: set[Owner]) -> None:
        """A registry closed the session for all of its *users* and forgot it."""
        me = self._guard.current_owner().party
        so = "the session is discarded: ask the registry for the new one"
        others = {user.party for user in users} - self._ledger.losses().keys()
        self._lose(others, Loss(me, "closed it for all threads", so))

    def hand_over(self, transaction: Any, former: Owner, new: Owner) -> None:
        """Give the work of *former* in a level to *new*, which took over its block."""
        self._ledger.hand_over(transaction, former, new)
        for savepoint in savepoints_within(transaction):
            replace(savepoint.workers, former, new)

    # -- changes that are not flushed

    def changed(self, state: Any, changers: Changers) -> None:
        """Note an object that has its first change since the last flush."""
        self._ledger.note_changed(state, changers)

    def flushed(self, transaction: Any) -> None:
        """Move flushed work from the unflushed changes to the innermost savepoint."""
        session = self._session()
        changed = self._ledger.changed_states()
        flushed = [each for each in changed if not orm.is_unflushed(session, each)]
        authors = self._ledger.take_changed(flushed)
        for author in authors:
            self._ledger.note(transactions.boundary(transaction), author)
        connections = transactions.all_connections_of(transaction)
        for savepoint in innermost_savepoints(connections):
            savepoint.workers |= authors

    def expunged(self) -> None:
        """Objects were expunged: their changes that were not flushed are lost."""
        session = self._session()
        changed = self._ledger.changed_states()
        gone = [each for each in changed if not orm.is_in_session(session, each)]
        self._discarded("expunged objects", self._ledger.take_changed(gone))

    def all_expunged(self) -> None:
        authors = self._ledger.take_changed(self._ledger.changed_states())
        self._discarded("expunged objects", authors)

    def overwritten(self, changers: Changers, keys: set[str]) -> None:
        """Changes to attributes *keys* of one object were overwritten or expired."""
        session = self._session()
        if keys and not self.is_ending and not orm.is_flushing(session):
            self._discarded("expired or reloaded objects", changers.take(keys))

    def _discarded(self, why: str, owners: set[Owner]) -> None:
        if owners:
            gone = "their changes, which were not flushed, are gone"
            self._lose(owners, Loss(self._guard.current_owner().party, why, gone))

    def _lose(self, owners: set[Owner], loss: Loss) -> None:
        self._ledger.lose(owners, loss)
        if self._ledger.anybody_to_tell():
            self._call_for_attention()
