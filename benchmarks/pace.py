"""How long to measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: What each contestant reached in one round.
Round = dict[str, float]


@dataclass(frozen=True)
class Pace:
    """``tell`` is called with the name of what is measured next."""

    #: Pairs of processes for the statements, the rounds in each, seconds of a sample.
    pairs: int
    rounds: int
    sample: float
    #: The rounds of the races between threads, and the seconds of each.
    races: int
    race: float
    #: The rounds of the ledger, and the units of work in each.
    ledgers: int
    units: int
    tell: Callable[[str], object] = lambda name: None


FULL = {
    **{"pairs": 7, "rounds": 5, "sample": 0.02},
    **{"races": 5, "race": 1.0, "ledgers": 3, "units": 200},
}
QUICK = {
    **{"pairs": 1, "rounds": 5, "sample": 0.005},
    **{"races": 1, "race": 0.5, "ledgers": 1, "units": 40},
}
