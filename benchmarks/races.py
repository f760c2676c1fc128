"""What several threads get done in one session, against one RLock around it all."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from . import models
from .models import GUARDED, HAND, ITEMS, RLOCK, RW, User
from .pace import Pace, Round
from .sides import Sides, open_sides

CONTESTANTS = (HAND, RLOCK, RW)

SELECT = 0.2  # seconds
HEAD_START = SELECT / 10
OWN_WAIT = 0.001


class Race:
    """Threads that each do one thing over and over until the time is up.

    :param steps: what each thread does, as a function of its own.
    :param head_start: seconds that the first one has before the others.
    """

    def __init__(
        self, steps: list[Callable[[], object]], head_start: float = 0
    ) -> None:
        self._head_start = head_start
        self.counts = [0] * len(steps)
        self.errors: list[Exception] = []
        self._on = True
        self._start = threading.Barrier(len(steps) + 1)
        self._threads = [
            threading.Thread(target=self._run, args=(number, step), daemon=True)
            for number, step in enumerate(steps)
        ]

    def _run(self, number: int, step: Callable[[], object]) -> None:
        count = 0
        self._start.wait()
        if number:
            time.sleep(self._head_start)
        try:
            while self._on:
                step()
                count += 1
        except Exception as error:
            self._on = False
            self.errors.append(error)
        self.counts[number] = count

    def run(self, seconds: float) -> list[float]:
        """Start together; returns what each thread did per second."""
        for thread in self._threads:
            thread.start()
        self._start.wait()
        started = time.perf_counter()
        while self._on and time.perf_counter() < started + seconds:
            time.sleep(min(0.05, seconds / 10))
        self._on = False
        taken = time.perf_counter() - started
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return [count / taken for count in self.counts]


# Beside SELECTs -----------------------------------------------------------------------


def _look(user: User) -> Callable[[], object]:
    return lambda: user.name


def _walk(user: User) -> Callable[[], object]:
    items = user.items

    def walk(user: User = user) -> None:  # the collection does not keep its owner
        for _ in items:
            pass

    return walk


def _locked(step: Callable[[], object], lock: models.Section) -> Callable[[], object]:
    def locked() -> None:
        with lock():
            step()

    return locked


def _timed(step: Callable[[], object], longest: list[float]) -> Callable[[], object]:
    def timed() -> None:
        started = time.perf_counter()
        step()
        longest[0] = max(longest[0], time.perf_counter() - started)

    return timed


def _readers(
    contestant: str, make: Callable[[User], Callable[[], object]]
) -> tuple[list[Callable[[], object]], Callable[[], object]]:
    """Four that read, and one that is in SELECTs all the time."""
    session = models.make_session(contestant)
    users = session.scalars(sa.select(User).order_by(User.id).limit(4)).all()
    assert len(users[0].items) == ITEMS
    wait = sa.text(f"select wait({SELECT})")
    reads = [make(users[0]) for _ in users]

    def select() -> None:
        session.execute(wait).scalar()

    if contestant in GUARDED:
        return reads, select
    lock = models.sections(session)[0]
    return [_locked(read, lock) for read in reads], _locked(select, lock)


def beside_select(contestant: str, walk: bool, seconds: float) -> float:
    """Reads per second, of all readers together."""
    reads, select = _readers(contestant, _walk if walk else _look)
    rate = sum(Race([select, *reads], HEAD_START).run(seconds)[1:])
    return max(rate, 1 / seconds)  # none at all would compare with nothing


def longest_read(contestant: str, seconds: float) -> float:
    """Seconds that the one read took that waited longest."""
    longest = [0.0]
    reads, select = _readers(contestant, _look)
    timed = [_timed(read, longest) for read in reads]
    Race([select, *timed], HEAD_START).run(seconds)
    return longest[0]


# Sections -----------------------------------------------------------------------------

THREADS = 8


def _change(session: sa_orm.Session, section: models.Section, id: int) -> None:
    with section():
        session.get_one(User, id).points += 1
        session.commit()


def short_sections(contestant: str, seconds: float) -> tuple[float, float]:
    """Sections per second, and the slowest thread's share of the mean."""
    session = models.make_session(contestant)
    section, _ = models.sections(session)

    def step(id: int) -> Callable[[], object]:
        return lambda: _change(session, section, id)

    rates = Race([step(id) for id in range(1, THREADS + 1)]).run(seconds)
    return sum(rates), min(rates) / statistics.mean(rates)


def waiting_readers(contestant: str, seconds: float) -> float:
    """Read sections per second, in each of which its thread waits a moment."""
    session = models.make_session(contestant)
    _, section = models.sections(session)
    user = session.get_one(User, 1)

    def read() -> None:
        with section():
            assert user.name
            time.sleep(OWN_WAIT)

    return sum(Race([read] * THREADS).run(seconds))


# The rounds ---------------------------------------------------------------------------


def measure(name: str, sides: Sides, pace: Pace) -> dict[str, list[Round]]:
    """The rounds of the quantity called *name*, and of what comes with it."""
    if name in ("sections", "fairness"):
        return _measure_sections(pace)
    function, *args = _RACES[name]
    rounds = [
        {who: sides.ask(who, function, *args, pace.race) for who in CONTESTANTS}
        for _ in range(pace.races)
    ]
    return {name: rounds}


def _measure_sections(pace: Pace) -> dict[str, list[Round]]:
    rounds = [_round_of_sections(pace) for _ in range(pace.pairs)]
    return {
        "sections": [{who: each[who][0] for who in each} for each in rounds],
        "fairness": [{who: each[who][1] for who in each} for each in rounds],
    }


def _round_of_sections(pace: Pace) -> dict[str, tuple[float, float]]:
    """Each in a process of its own: what others left in one slows it down."""
    found = {}
    for who in random.sample(CONTESTANTS, len(CONTESTANTS)):
        with open_sides() as sides:
            found[who] = sides.ask(who, short_sections, pace.race)
    return found


_RACES: dict[str, tuple[Any, ...]] = {
    "reads-beside": (beside_select, False),
    "walks-beside": (beside_select, True),
    "longest-read": (longest_read,),
    "read-sections": (waiting_readers,),
}
