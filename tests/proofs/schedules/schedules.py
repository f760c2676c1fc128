"""Which programs the schedules of the guard are explored for, and how far.

``python -m tests.proofs.schedules.schedules --help`` goes as far as one likes.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from .guard_programs import KINDS, ON_ONE_GUARD, Program, program
from .scheduler import Explored, Scheduler, explore, try_chance
from .switch_everywhere import stepping_code

#: Few enough steps for every schedule there is, without a bound.
SMALL: list[Program] = [
    *(("change", "change"), ("change", "look"), ("change", "load"), ("load", "look")),
    *(("change-interrupted", "look"), ("change", "collect")),
]

#: What three owners do at once.
CORE = ["change", "look", "critical", "read", "read-load", "critical-timeout"]


def pairs(first: str) -> Iterator[Program]:
    """*first* beside every operation, itself included."""
    for second in ON_ONE_GUARD[ON_ONE_GUARD.index(first) :]:
        yield first, second


def triples(first: str) -> Iterator[Program]:
    for rest in itertools.combinations_with_replacement(CORE[CORE.index(first) :], 2):
        yield first, *rest


def by_lot(seed: str, longest: int) -> tuple[str, Program]:
    """A kind, and scripts of two or three owners with up to *longest* operations."""
    chance = random.Random(seed)
    scripts = [
        " ".join(chance.choices(ON_ONE_GUARD, k=chance.randint(1, longest)))
        for _ in range(chance.choice([2, 3]))
    ]
    return chance.choice(KINDS), tuple(scripts)


class Everywhere:
    """Programs whose owners may be stopped before any statement.

    :param in_monitor: before those of the monitor, too.
    """

    def __init__(self, *, in_monitor: bool = True) -> None:
        self._scheduler: Scheduler | None = None
        self._code = stepping_code(self._step, in_monitor=in_monitor)

    def _step(self) -> None:
        if self._scheduler is not None:
            self._scheduler.step(interruptible=False)

    def program(self, kind: str, scripts: Program) -> Callable[[Scheduler], Any]:
        plain = program(kind, scripts, self._code)

        def run(scheduler: Scheduler) -> Any:
            self._scheduler = scheduler
            try:
                return plain(scheduler)
            finally:
                self._scheduler = None

        return run


def chance_run(everywhere: Everywhere, seed: str, schedules: int) -> Explored:
    kind, scripts = by_lot(seed, longest=4)
    return try_chance(everywhere.program(kind, scripts), range(schedules), seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bound", type=int, default=2, help="preemptions of pairs")
    parser.add_argument("--bound-of-three", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--minutes", type=float, default=1, help="of programs by lot")
    options = parser.parse_args()
    for kind in options.kinds:
        report(f"{kind}: two owners, bound {options.bound}", _all_pairs(kind, options))
        report(
            f"{kind}: three owners, bound {options.bound_of_three}",
            _all_triples(kind, options),
        )
    by_chance, everywhere = Explored(), Everywhere()
    end = time.monotonic() + options.minutes * 60
    for number in itertools.count():
        if time.monotonic() > end:
            break
        by_chance.add(chance_run(everywhere, str(number), 20))
    report(f"{number} programs by lot, stopped at any statement", by_chance)
    return 0


def _all_pairs(kind: str, options: Any) -> Explored:
    explored = Explored()
    for first in ON_ONE_GUARD:
        for scripts in pairs(first):
            explored.add(explore(program(kind, scripts), options.bound))
    return explored


def _all_triples(kind: str, options: Any) -> Explored:
    explored = Explored()
    for first in CORE:
        for scripts in triples(first):
            explored.add(explore(program(kind, scripts), options.bound_of_three))
    return explored


def report(what: str, explored: Explored) -> None:
    print(f"{what}: {explored.schedules:,} schedules, {explored.steps:,} steps")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
