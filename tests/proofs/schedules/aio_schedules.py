"""Which programs the schedules of tasks are explored for, and how far.

``python -m tests.proofs.schedules.aio_schedules --help`` goes as far as one likes.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

from .aio_programs import ALL, Program, program
from .aio_scheduler import Loop
from .scheduler import Explored, explore, try_chance
from .schedules import report

#: Kinds that let tasks wait.
WAITING = ("rlock", "rw")

#: Few enough steps for every schedule there is, without a bound.
SMALL: list[Program] = [
    *(("change", "change", "load"), ("change!cancelled", "change"), ("flush", "set")),
    *(("critical", "change!cancelled"), ("read", "change"), ("flush put-off", "flush")),
    *(("read", "read!cancelled"), ("gather-readers", "change"), ("change", "child")),
]

#: What three tasks do at once.
CORE = ["change", "load", "put-off", "critical", "read", "change!cancelled", "child"]


def pairs(first: str, both_cancelled: bool = True) -> Iterator[Program]:
    """*first* beside every operation, itself included."""
    for second in ALL[ALL.index(first) :]:
        if both_cancelled or "!" not in first or "!" not in second:
            yield first, second


def triples(first: str) -> Iterator[Program]:
    for rest in itertools.combinations_with_replacement(CORE[CORE.index(first) :], 2):
        yield first, *rest


def go_through(kind: str, scripts: Program, **kw: Any) -> Explored:
    return explore(program(kind, scripts), make=Loop, **kw)


def chance_run(seed: str, schedules: int) -> Explored:
    """Scripts of two to four tasks, drawn from the seed, in orders drawn from it."""
    chance = random.Random(seed)
    scripts = [
        " ".join(chance.choices(ALL, k=chance.randint(1, 4)))
        for _ in range(chance.choice([2, 3, 4]))
    ]
    run = program(chance.choice(WAITING), tuple(scripts))
    return try_chance(run, range(schedules), seed, length=100, make=Loop)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bound", type=int, default=2, help="what pairs may cost")
    parser.add_argument("--bound-of-three", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=WAITING)
    parser.add_argument("--minutes", type=float, default=1, help="of programs by lot")
    options = parser.parse_args()
    for kind in options.kinds:
        explored = Explored()
        for scripts in itertools.chain(*map(pairs, ALL)):
            explored.add(go_through(kind, scripts, bound=options.bound))
        report(f"{kind}: two tasks, bound {options.bound}", explored)
        explored = Explored()
        for scripts in itertools.chain(*map(triples, CORE)):
            explored.add(go_through(kind, scripts, bound=options.bound_of_three))
        report(f"{kind}: three tasks, bound {options.bound_of_three}", explored)
    by_chance, number = Explored(), 0
    end = time.monotonic() + options.minutes * 60
    while time.monotonic() < end:
        by_chance.add(chance_run(str(number), 20))
        number += 1
    report(f"{number} programs by lot", by_chance)
    return 0


if __name__ == "__main__":
    sys.exit(main())
