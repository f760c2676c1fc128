"""Several threads or tasks as one owner: ``one_owner()``."""

from __future__ import annotations

import contextlib
import weakref
from contextvars import ContextVar
from typing import Any, Callable, ClassVar, Iterator

from ..errors import SharedSessionError
from .access import Lock
from .owner import NO_THREAD, Owner, on_death


class Party(Owner):
    """The threads and tasks of one ``one_owner()`` block, which act as one owner."""

    __slots__ = ("_title", "_members", "_last")

    noun: ClassVar[str] = "party"

    def __init__(self, title: str) -> None:
        super().__init__(NO_THREAD)
        self._title = title
        self._last: Member | None = None
        self._members: weakref.WeakKeyDictionary[Owner, Member] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def name(self) -> str:
        return f"owner {self._title!r}"

    @property
    def flow(self) -> Any:
        return None if self._last is None else self._last.flow

    def where(self) -> str:
        return "a line that is not known" if self._last is None else self._last.where()

    def acting_for(self, owner: Owner) -> Owner:
        """Return the member that *owner* acts as; *owner* itself after the end."""
        if self.alive:
            return self.member(owner)
        member = self._members.get(owner)  # work may outlive its block
        return member if member is not None and member.operations else owner

    def member(self, owner: Owner) -> Member:
        member = self._members.get(owner)
        if member is None:
            member = self._members.setdefault(owner, Member(self, owner))
        self._last = member
        return member


class Member(Owner):
    """A thread or a task as far as it acts for a party."""

    __slots__ = ("_party", "_base", "operations")

    is_member: ClassVar[bool] = True

    def __init__(self, party: Party, base: Owner) -> None:
        super().__init__(NO_THREAD)
        #: The number of operations that run.  Each ends as the owner that began it,
        #: even if the party has ended meanwhile.
        self.operations = 0
        self._party = party
        self._base = weakref.proxy(base)
        self.ident, self.native_id = base.ident, base.native_id

    @property
    def alive(self) -> bool:
        """Whether the party is alive.

        The party holds what its members hold, because a worker thread may end earlier.
        """
        return self._party.alive

    @alive.setter
    def alive(self, value: bool) -> None:
        """Ignored: a member lives as long as its party."""

    @property
    def party(self) -> Owner:
        return self._party

    @property
    def noun(self) -> str:  # type: ignore[override]
        return self._name_of("noun")

    @property
    def flow(self) -> Any:
        try:
            return self._base.flow
        except ReferenceError:
            return None

    @property
    def name(self) -> str:
        return f"{self._party.name} in {self._name_of('name')}"

    def _name_of(self, what: str) -> str:
        try:
            return str(getattr(self._base, what))
        except ReferenceError:
            return "thread"

    def has_ended(self) -> bool:
        return False

    def can_wait(self) -> bool:
        return bool(self._base.can_wait())

    def parking(self, make_lock: Callable[[], Lock]) -> Lock:
        parked: Lock = self._base.parking(make_lock)
        return parked

    def where(self) -> str:
        try:
            return str(self._base.where())
        except ReferenceError:
            return "a line that is not known"


#: The party that the running code belongs to.
current_party: ContextVar[Party | None] = ContextVar(
    "sharedsession_party", default=None
)


@contextlib.contextmanager
def one_owner(name: str) -> Iterator[None]:
    """Make all code that runs in this context one owner, whatever threads it uses.

    Unlike a plain section, which belongs to one thread or task, a section or a block
    that is entered in this context belongs to all code of the context.  The context is
    that of :mod:`contextvars`: ``asyncio.to_thread()``, anyio's worker threads and
    child tasks inherit it.  The threads and tasks of the context take turns, an
    operation at a time.

    At the end of the block every guard that the owner still holds is released, as if a
    thread had ended.

    :param name: the name of this owner in messages, for example ``"request 7"``.
    :raises SharedSessionError: if *name* is not a string.
    """
    if not isinstance(name, str):
        raise SharedSessionError(f"one_owner() takes a name, not {name!r}.")
    party = Party(name)
    token = current_party.set(party)
    try:
        yield
    finally:
        current_party.reset(token)
        party.alive = False
        for tell in on_death:
            tell(party)
