"""Work in a transaction: whose it is, and telling those who lose it.

Each level of the transaction (the outer one, and each savepoint) notes the owners that
left work in it.  When a level ends without a commit, everybody noted but the one who
ended it has lost something, and is told once, at its next operation.
"""

from __future__ import annotations

import datetime
from typing import Any

from .errors import WorkLostError
from .owners import Owner


class Loss:
    """Who threw away others' work, when, and by what."""

    def __init__(self, by: Owner, why: str) -> None:
        self.by = by
        self.why = why
        self.when = datetime.datetime.now().astimezone()
        self.where = by.where()

    def error(self, victim: Owner) -> WorkLostError:
        return WorkLostError(
            f"Work of {victim.name} in this session is lost: {self.by.name}, at "
            f"{self.where}, {self.why} at {self.when:%H:%M:%S}, and the transaction "
            f"that both worked in was rolled back. Do this {victim.noun}'s work again; "
            "its own rollback() or close() would have cleared this error, and so has "
            "raising it."
        )


class Ledger:
    """The work in one session's transaction.  Only used inside the session's guard."""

    def __init__(self) -> None:
        self._workers: dict[Any, set[Owner]] = {}
        self._losses: dict[Owner, Loss] = {}

    def note(self, level: Any, owner: Owner) -> None:
        self._workers.setdefault(level, set()).add(owner)

    def hand_over(self, level: Any, former: Owner, new: Owner) -> None:
        """The block of *level* goes on with another owner, and so does its work."""
        workers = self._workers.get(level)
        if workers is not None and former in workers:
            workers.add(new)
            workers.discard(former)

    def has_work(self, owner: Owner) -> bool:
        return any(owner in workers for workers in self._workers.values())

    def committed(self, level: Any, parent: Any) -> None:
        """A savepoint's work is its parent's now; that of the outer level is safe."""
        if parent is not None:
            workers = self._workers.get(level, ())
            self._workers.setdefault(parent, set()).update(workers)
        self._workers.pop(level, None)  # last, so that an interrupt loses nothing

    def concerns_others(self, level: Any, me: Owner) -> bool:
        """Whether anybody but *me* has work in the level."""
        return bool(self._workers.get(level, set()) - {me})

    def drop(self, level: Any) -> None:
        self._workers.pop(level, None)

    def thrown_away(self, level: Any, loss: Loss) -> None:
        for owner in self._workers.get(level, ()):
            if owner is not loss.by and owner.alive:
                self._losses[owner] = loss
        self._workers.pop(level, None)  # last, so that an interrupt loses nothing

    def error_for(self, owner: Owner) -> WorkLostError | None:
        """What *owner* has to be told."""
        loss = self._losses.get(owner)
        return None if loss is None else loss.error(owner)

    def forget(self, owner: Owner) -> None:
        self._losses.pop(owner, None)

    def anybody_to_tell(self) -> bool:
        for owner in [owner for owner in self._losses if not owner.alive]:
            del self._losses[owner]
        return bool(self._losses)
