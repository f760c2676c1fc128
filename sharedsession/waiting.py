"""Finding waits that would never end: cycles in who waits for whom.

An owner waits for one thing at a time, and a thing knows its holders, so the graph is
walked without any lock of its own.  That may see an owner that was let in a moment ago
as still waiting.  A real deadlock stays, though: so a cycle counts only if it is found
again, the same, after every guard on it was asked once more.
"""

from __future__ import annotations

from .owners import Owner, Waitable

_Path = list[int]


def would_deadlock(me: Owner, wanted: Waitable) -> bool:
    """Whether *me* waiting for *wanted* closes a cycle."""
    found = _cycle(me, wanted)
    return found is not None and found == _cycle(me, wanted) == _cycle(me, wanted)


def _cycle(me: Owner, wanted: Waitable) -> _Path | None:
    """The way from *wanted* through those who block it back to *me*, if any."""
    seen: set[int] = set()

    def follow(thing: Waitable) -> _Path | None:
        for blocker in thing.blockers():
            if blocker is me:
                return [id(thing)]
            onward = blocker.waiting_for
            if onward is None or id(blocker) in seen:
                continue
            seen.add(id(blocker))
            rest = follow(onward)
            if rest is not None:
                return [id(thing), id(blocker), *rest]
        return None

    return follow(wanted)


def describe(holders: list[Owner]) -> str:
    """A sentence on who holds something."""
    if not holders:
        return "It is held outside of any guard."
    named = ", ".join(f"{owner.name} at {owner.where()}" for owner in holders)
    return f"It is held by {named}."
