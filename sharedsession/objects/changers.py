"""The owners of the unflushed changes of each object."""

from __future__ import annotations

from typing import Iterable

from ..guard.guard import Guard
from ..guard.owner import Owner
from ..guard.turn import snapshot


class Changers:
    """The owners of one object's unflushed changes.

    :ivar by_key: the owners by attribute.  Owners that added or deleted the object are
      under ``None``.
    :ivar last: the owner that was noted last; an owner that changes the same attribute
      again is not noted again.
    """

    __slots__ = ("guard", "last", "by_key")

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.last: Owner | None = None
        self.by_key: dict[str | None, set[Owner]] = {}

    def note(self, key: str | None, owner: Owner) -> None:
        self.by_key.setdefault(key, set()).add(owner)
        self.last = owner

    def owners(self) -> set[Owner]:
        return set().union(*snapshot(self.by_key.values()))

    def hand_over(self, former: Owner, new: Owner) -> None:
        self.last = None  # *former* may make changes of its own from now on
        for owners in snapshot(self.by_key.values()):
            replace(owners, former, new)

    def take(self, keys: Iterable[str]) -> set[Owner]:
        """Forget the changes to the attributes *keys*, and return their owners."""
        return set().union(*(self.by_key.pop(key, ()) for key in list(keys)))


def replace(owners: set[Owner], former: Owner, new: Owner) -> None:
    """Replace *former* by *new* in *owners*, if *former* is there."""
    if former in owners:
        owners.add(new)
        owners.discard(former)
