"""What one thread pays: a statement at a time, against a plain Session."""

from __future__ import annotations

import functools
import gc
import itertools
import random
import timeit
import tracemalloc
from typing import Any

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from . import models
from .models import User
from .pace import Pace, Round
from .sides import Sides, open_sides

#: What is measured.  All but the slow ones are repeated, lest it be the loop that is.
STATEMENTS = {
    "read": "user.name",
    "write": "user.name = 'another'",
    "get": "session.get(User, 1)",
    "contains": "user in session",
    "len": "len(user.items)",
    "iterate": "for item in user.items: pass",
    "index": "user.items[50]",
    "bare-len": "len(items)",
    "bare-iterate": "for item in items: pass",
    "bare-index": "items[50]",
    "inside": "for _ in range(100): user.name",
    "execute": "session.execute(text('select 1')).scalar()",
    "load": "session.scalars(select(User)).all()",
    "add": (
        "session.add_all([User(name='new') for _ in range(50)]); "
        "session.flush(); session.rollback()"
    ),
}
_SLOW = {"iterate", "bare-iterate", "inside", "execute", "load", "add"}
#: What a shared session does in a critical section.
_INSIDE = {"inside"}
_TIMES = 10
_DEPTHS = 64

CONTESTANTS = (
    models.PLAIN,
    models.HAND,
    models.BESIDE,
    models.RLOCK,
    models.RW,
    models.DETECT,
)


@functools.cache
def _timer(contestant: str, name: str) -> timeit.Timer:
    """A timer of the statement; it lives as long as the process."""
    names: dict[str, Any] = {"User": User, "select": sa.select, "text": sa.text}
    session = names["session"] = models.make_session(contestant)
    if name not in ("load", "add"):  # those are about new objects
        names["user"] = session.get_one(User, 1)
        names["items"] = names["user"].items
    statement = STATEMENTS[name]
    if contestant == models.HAND:
        names["lock"] = models.sections(session)[0]()
        statement = f"with lock: {_in_one_line(statement)}"
    if contestant in models.GUARDED and name in _INSIDE:
        names["section"] = session.critical_section
        statement = f"with section(): {_in_one_line(statement)}"
    times = 1 if name in _SLOW else _TIMES
    return timeit.Timer("\n".join([statement] * times), globals=names)


def _in_one_line(statement: str) -> str:
    if statement.startswith("for "):
        return f"\n  {statement}"
    return statement


def _seconds(contestant: str, name: str, loops: int) -> float:
    timer = _timer(contestant, name)
    timer.timeit(loops // 4 + 1)  # the other process has just used the caches
    times = 1 if name in _SLOW else _TIMES
    return _at_depth(random.randrange(_DEPTHS), timer, loops) / loops / times


def _at_depth(depth: int, timer: timeit.Timer, loops: int) -> float:
    """Time with that many more frames on the stack.

    The interpreter gets memory for frames in pieces.  A call that happens to be at the
    end of one takes several times as long, every time: to whom that happens is chance,
    and must not be the same all the time.
    """
    return _at_depth(depth - 1, timer, loops) if depth else timer.timeit(loops)


def _loops(contestant: str, name: str, at_least: float) -> int:
    """So many loops that one sample of the contestant takes that long."""
    timer = _timer(contestant, name)
    timer.timeit(1)
    for loops in (1 << power for power in itertools.count()):
        seconds = timer.timeit(loops)
        if seconds >= at_least / 4:
            return max(1, round(loops * at_least / seconds))
    raise AssertionError


def measure(names: list[str], pace: Pace) -> dict[str, list[Round]]:
    """Seconds for one statement; each pair of processes makes a part of the rounds."""
    rounds: dict[str, list[Round]] = {name: [] for name in names}
    for _ in range(pace.pairs):
        with open_sides() as sides:
            for name in names:
                pace.tell(name)
                rounds[name] += _rounds(sides, name, pace)
    return rounds


def _rounds(sides: Sides, name: str, pace: Pace) -> list[Round]:
    """Each in an order of its own, for who comes first may be at a disadvantage."""
    turns = random.sample(CONTESTANTS, len(CONTESTANTS))
    loops = {who: sides.ask(who, _loops, name, pace.sample) for who in turns}
    rounds = []
    for _ in range(pace.rounds):
        random.shuffle(turns)
        rounds.append(
            {who: sides.ask(who, _seconds, name, loops[who]) for who in turns}
        )
    return rounds


# Memory -------------------------------------------------------------------------------


def _bytes(contestant: str) -> float:
    """What one more loaded object takes, in whole bytes.

    Nothing that is made for each object is smaller; a fraction is something that is
    made once, such as a number of the guard's, divided by the objects.
    """
    few = models.USERS // 5
    with models.make_session(contestant) as session:
        more = _traced(session, models.USERS) - _traced(session, few)
    return round(more / (models.USERS - few))


def _traced(session: sa_orm.Session, count: int) -> int:
    statement = sa.select(User).limit(count)
    session.scalars(statement).all()  # what is made once, is made
    gc.collect()
    tracemalloc.start()
    users = session.scalars(statement).all()
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(users) == count
    return taken


def measure_memory(sides: Sides, pace: Pace) -> list[Round]:
    contestants = (models.PLAIN, models.BESIDE, *models.GUARDED)
    return [{who: sides.ask(who, _bytes) for who in contestants} for _ in range(3)]
