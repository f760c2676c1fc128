"""What a guard says of itself: who holds it, since when, where, and who waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .owner import Owner
from .turn import snapshot

if TYPE_CHECKING:
    from .waiter import Waiter
    from .waiting import Waiting


def explain(guard: Waiting) -> str:
    """Describe the owners of *guard* and the lines at which they are, then the waiters.

    Each with the time for which it has held the guard, or has waited.
    """
    with guard._mutex:
        now = guard.clock()
        turns = guard._turns_to_show()
        by_gate = guard._in_by_gate()
        inside = [(turn.owner, turn.since) for turn in turns[:1]]
        if not inside and by_gate is not None:
            inside = [(by_gate, guard.since)]
        lenders = [turn.owner for turn in turns[1:]]
        readers = [
            (turn.owner, now - (turn.since or now))
            for turn in snapshot(guard.reading.values())
        ]
        waiters = [*guard._before, *guard.queue]
        queue = [(w.owner, w.mode, now - w.since) for w in waiters]
    guard.reap()
    said = []
    for owner, since in inside:
        # An untimed operation was inside when the first waiter began to wait.
        known = [now - since] if since is not None else [t for *_, t in queue]
        said.append(f"{_held_by(owner, 'exclusively', max(known, default=0))}.")
    said += [f"{_held_by(o, 'for reading', t)}." for o, t in readers]
    said += [f"{o.name} has waited {t:.3g} s for {m.value}." for o, m, t in queue]
    for owner in dict.fromkeys(lenders):
        said.append(f"This is inside the section of {owner.name}, which lent its turn.")
    return " ".join(said) or "Nobody holds the guard and nobody waits."


def _held_by(owner: Owner, how: str, seconds: float) -> str:
    return f"{owner.name} has held it {how} for {seconds:.3g} s, now at {owner.where()}"


def long_wait(guard: Waiting, waiter: Waiter) -> str:
    """Describe a long wait, with advice if the owner's code is suspended."""
    owner = waiter.owner
    return (
        f"{owner.name} has waited more than {guard.warn_after:g} s for its turn in a "
        f"shared session, at {owner.where()}. {guard.explain()}{_hint(guard)}"
    )


def _hint(guard: Waiting) -> str:
    """Return advice for the case that the owner's code is suspended or waits."""
    turn = guard.turn
    if turn is None or not turn.keeps or guard.running is not None:
        return ""
    return (
        " No operation runs: the code of that block is suspended, or waits for "
        "something else. If one task goes on in another thread, such as a request "
        "whose dependency entered the block, run it as one owner: one_owner(), or "
        "sharedsession.asgi.RequestOwner for an ASGI application."
    )
