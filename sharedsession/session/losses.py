"""Whose work a transaction has, and the errors that tell owners of a loss.

Each level of the transaction (the outer transaction, and each savepoint) notes the
owners that left work in it.  If a level ends without a commit, each noted owner except
the owner that ended the level has lost work, and is told once, at its next operation.
"""

from __future__ import annotations

import datetime
from typing import Any, Iterable
from weakref import WeakKeyDictionary

from ..errors import WorkLostError
from ..guard.owner import Owner
from ..guard.turn import snapshot
from ..internals import orm
from ..objects.changers import Changers, replace

_ROLLED_BACK = "the transaction that both worked in was rolled back"


class Loss:
    """The owner that threw away other owners' work, when, where and how."""

    def __init__(self, by: Owner, why: str, so: str = _ROLLED_BACK) -> None:
        self.by = by
        self.why = why
        self.so = so
        self.when = datetime.datetime.now().astimezone()
        self.where = by.where()
        #: The owners that were told.  A session and its successor share the loss.
        self.told: set[Owner] = set()

    def error(self, victim: Owner) -> WorkLostError:
        return WorkLostError(
            f"Work of {victim.name} in this session is lost: {self.by.name}, at "
            f"{self.where}, {self.why} at {self.when:%H:%M:%S}, and "
            f"{self.so}. Do this {victim.noun}'s work again; its own "
            "rollback() or close() would have cleared this error, and so has "
            "raising it."
        )


class Ledger:
    """The work in one session's transaction.  Used only inside the session's guard."""

    def __init__(self) -> None:
        #: By level, weakly: a changed object leads to its guard and so to this ledger.
        #: It must not keep a session alive that the application has dropped.
        self._workers: WeakKeyDictionary[Any, set[Owner]] = WeakKeyDictionary()
        #: By state.  The session keeps the changed objects alive anyway.
        self._changers: dict[Any, Changers] = {}
        self._losses: dict[Owner, Loss] = {}

    def note(self, level: Any, owner: Owner) -> None:
        self._workers.setdefault(level, set()).add(owner)

    def hand_over(self, level: Any, former: Owner, new: Owner) -> None:
        """Give the work of *former* in *level* to *new*, which took over its block.

        Changes that are not flushed were made in this block: it began with a flush.
        """
        workers = self._workers.get(level)
        if workers is not None:
            replace(workers, former, new)
        for changers in snapshot(self._changers.values()):
            changers.hand_over(former, new)

    def has_work(self, owner: Owner) -> bool:
        return any(owner in workers for workers in self._of_each_level())

    def committed(self, level: Any, parent: Any) -> None:
        """Move a savepoint's work to *parent*; forget an outer level's: it is safe."""
        if parent is not None:
            workers = self._workers.get(level, ())
            self._workers.setdefault(parent, set()).update(workers)
        self._workers.pop(level, None)  # last: an interrupt must lose nothing

    def concerns_others(self, level: Any, me: Owner) -> bool:
        """Whether an owner other than *me* has work in the level."""
        return bool(self._workers.get(level, set()) - {me})

    def drop(self, level: Any) -> None:
        self._workers.pop(level, None)

    def thrown_away(self, level: Any, loss: Loss) -> None:
        self.lose(self._workers.get(level, ()), loss)
        self._workers.pop(level, None)  # last: an interrupt must lose nothing

    def lose(self, owners: Iterable[Owner], loss: Loss) -> None:
        """Have all *owners* told of *loss*, except the owner that caused the loss."""
        for owner in owners:
            if owner is not loss.by and owner.alive:
                self._losses[owner] = loss

    def take_flushed(self) -> set[Owner]:
        """Forget the work in every level, except for changes that are not flushed."""
        flushed: set[Owner] = set().union(*self._of_each_level())
        self.all_safe()
        return flushed

    def losses(self) -> dict[Owner, Loss]:
        """Return the losses that nobody was told of yet."""
        return dict(self._losses)

    def inherit(self, losses: dict[Owner, Loss]) -> None:
        self._losses.update(losses)

    def all_safe(self) -> None:
        """Forget flushed work in every level: it is committed."""
        changers = snapshot(self._changers.values())
        pending: set[Owner] = set().union(*(each.owners() for each in changers))
        for workers in self._of_each_level():
            workers &= pending

    def _of_each_level(self) -> list[set[Owner]]:
        """Return the owners of each level; a finalizer may note others meanwhile."""
        levels = [reference() for reference in self._workers.keyrefs()]
        return [self._workers.get(it, set()) for it in levels if it is not None]

    # -- changes that are not flushed

    def note_changed(self, state: Any, changers: Changers) -> None:
        self._changers[state] = changers

    def changed_states(self) -> list[Any]:
        return snapshot(self._changers)

    def take_changed(self, states: Iterable[Any]) -> set[Owner]:
        """Forget the changes to the objects of *states*, and return their owners."""
        owners: set[Owner] = set()
        for state in states:
            changers = self._changers.pop(state, None)
            if changers is not None:
                owners |= changers.owners()
                orm.forget_changers(state)
        return owners

    def error_for(self, owner: Owner) -> WorkLostError | None:
        """Return the error that tells *owner* of its loss; ``None`` without a loss."""
        loss = self._losses.get(owner)
        return None if loss is None or owner in loss.told else loss.error(owner)

    def forget(self, owner: Owner) -> None:
        loss = self._losses.pop(owner, None)
        if loss is not None:
            loss.told.add(owner)

    def anybody_to_tell(self) -> bool:
        for owner in snapshot(self._losses):
            loss = self._losses.get(owner)
            if loss is not None and (not owner.alive or owner in loss.told):
                self._losses.pop(owner, None)
        return bool(self._losses)
