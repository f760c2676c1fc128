"""Deadlock detection: cycles in the graph of owners that wait for each other.

An owner waits for one thing at a time, and each thing knows its owners.  The search
does not lock the whole graph.  Therefore it may see an owner that was just admitted as
still waiting, but a real deadlock stays.  Therefore a cycle only counts
if two more searches, which ask every guard on it again, find the same cycle.
"""

from __future__ import annotations

from .owner import Owner, Waitable

_Path = list[int]


def would_deadlock(me: Owner, wanted: Waitable) -> bool:
    """Whether a cycle closes if *me* waits for *wanted*."""
    found = _cycle(me, wanted)
    return found is not None and found == _cycle(me, wanted) == _cycle(me, wanted)


def _cycle(me: Owner, wanted: Waitable) -> _Path | None:
    """Return a path from *wanted* through its blockers back to *me*, if any."""
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
    """Return a sentence that names *holders*."""
    if not holders:
        return "It is held outside of any guard."
    named = ", ".join(f"{owner.name} at {owner.where()}" for owner in holders)
    return f"It is held by {named}."
