"""The rows of the table: what is compared with what, and the goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from . import models, single
from .models import BESIDE, DETECT, GUARDED, HAND, PLAIN, RLOCK, RW
from .pace import Round

BOTH = (RLOCK, RW)


class Figure(NamedTuple):
    """The median of all rounds, and the quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        if len(values) == 1:
            return cls(*values * 3)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    @property
    def spread(self) -> float:
        return (self.high - self.low) / 2


class Goal(NamedTuple):
    """A limit for the median; one that is to be equal may miss it by its spread."""

    limit: float
    at_least: bool = False
    allows_spread: bool = False

    def meets(self, figure: Figure) -> bool:
        if self.at_least:
            return figure.median >= self.limit
        return (figure.low if self.allows_spread else figure.median) <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


def _ratio(value: float, base: float) -> float:
    return value / base if base else float(value > 0)


def _difference(value: float, base: float) -> float:
    return value - base


def _alone(value: float, base: float) -> float:
    return value


@dataclass(frozen=True)
class Row:
    """One line of the table.

    :param source: the measurement; several rows may come from one.
    :param judged: for whom the goal is.
    :param base: whom the others are compared with.
    :param unit: of the figures before they are compared.
    """

    name: str
    title: str
    source: str
    goal: Goal | None = None
    judged: tuple[str, ...] = BOTH
    base: str = PLAIN
    compare: Callable[[float, float], float] = _ratio
    unit: str = "s"

    @property
    def compares(self) -> str:
        return self.compare.__name__.strip("_")


@dataclass(frozen=True)
class Result:
    """What came of a row: each contestant's own figures, and the compared ones."""

    row: Row
    own: dict[str, Figure]
    figures: dict[str, Figure]
    note: str = ""

    @property
    def missed(self) -> list[str]:
        goal = self.row.goal
        judged = [who for who in self.row.judged if who in self.figures]
        if goal is None:
            return []
        return [who for who in judged if not goal.meets(self.figures[who])]

    def is_close(self, who: str) -> bool:
        """Whether the goal lies within the spread, so that chance may have decided."""
        goal, figure = self.row.goal, self.figures[who]
        return goal is not None and figure.low <= goal.limit <= figure.high

    def to_dict(self) -> dict[str, Any]:
        row = self.row
        return {
            "row": row.name,
            "title": row.title,
            "unit": row.unit,
            "compares": row.compares,
            "base": row.base,
            "goal": row.goal and str(row.goal),
            "judged": list(row.judged) if row.goal else [],
            "figures": {who: each._asdict() for who, each in self.figures.items()},
            "own": {who: each._asdict() for who, each in self.own.items()},
            "missed": self.missed,
            "note": self.note,
        }


def _single(name: str, title: str, limit: float) -> Row:
    return Row(name, title, name, Goal(limit))


def _beside(name: str, title: str, limit: float) -> Row:
    return Row(f"plain-{name}", title, name, Goal(limit), (BESIDE,))


def _race(name: str, title: str, limit: float) -> Row:
    goal = Goal(limit, at_least=True)
    return Row(name, title, name, goal, base=HAND, unit="/s")


ROWS = {
    row.name: row
    for row in (
        _single("read", "loaded attribute read", 0.85),
        _single("write", "attribute write", 1.5),
        _single("get", "get() of what is loaded", 1.10),
        _single("contains", "obj in session", 2),
        _single("len", "len(user.items)", 2),
        _single("iterate", "for item in user.items, 100", 1.5),
        _single("index", "user.items[50]", 2),
        Row("bare-len", "len(items), no attribute read", "bare-len"),
        Row("bare-iterate", "for item in items, the same", "bare-iterate"),
        Row("bare-index", "items[50], the same", "bare-index"),
        Row("inside", "100 reads in one section", "inside"),
        _single("execute", "execute(select 1).scalar()", 1.05),
        _single("load", "load 500 objects", 1.03),
        _single("add", "add 50, flush, rollback", 1.03),
        _beside("read", "plain Session beside: read", 1.10),
        _beside("load", "plain Session beside: load 500", 1.05),
        _beside("add", "plain Session beside: add 50", 1.05),
        Row(
            "detect",
            "detect to rlock, at worst",
            "",
            Goal(1, allows_spread=True),
            (DETECT,),
            RLOCK,
        ),
        _race("reads-beside", "4 readers beside 200 ms SELECTs", 50),
        replace(
            _race("longest-read", "the longest read among them, s", 0),
            goal=Goal(0.1),
            compare=_alone,
        ),
        _race("walks-beside", "4 iterate beside 200 ms SELECTs", 20),
        _race("sections", "8 threads: get, change, commit", 0.95),
        replace(
            _race("fairness", "the slowest of them, of the mean", 0.7),
            compare=_alone,
        ),
        replace(
            _race("read-sections", "8 read sections that wait 1 ms", 6),
            judged=(RW,),
            base=RLOCK,
        ),
        Row(
            "memory",
            "bytes for each attached object",
            "memory",
            Goal(0),
            judged=GUARDED,
            compare=_difference,
            unit="B",
        ),
        Row("ledger", "ledger on SQLite", "ledger", base=HAND, unit="/s"),
        Row("ledger-url", "ledger on {url}", "ledger-url", base=HAND, unit="/s"),
    )
}

STATEMENTS = tuple(single.STATEMENTS)


def summarise(row: Row, rounds: Mapping[str, list[Round]]) -> Result:
    if row.name == "detect":
        return _worst(
            row, {name: rounds[name] for name in STATEMENTS if name in rounds}
        )
    return _compare(row, rounds[row.source])


def _compare(row: Row, rounds: list[Round]) -> Result:
    return Result(
        row,
        {who: Figure.of([each[who] for each in rounds]) for who in rounds[0]},
        {
            who: Figure.of([row.compare(each[who], each[row.base]) for each in rounds])
            for who in rounds[0]
        },
    )


def _worst(row: Row, rounds: Mapping[str, list[Round]]) -> Result:
    """The statement at which the contestant in question does worst."""
    results = {name: _compare(row, each) for name, each in rounds.items()}
    name, worst = max(
        results.items(), key=lambda item: item[1].figures[row.judged[0]].median
    )
    figures = {who: worst.figures[who] for who in row.judged}
    return Result(row, worst.own, figures, f"slowest at {name!r}")


def sources(names: Iterable[str]) -> list[str]:
    """The measurements that the rows need, in order."""
    needed: dict[str, None] = {}
    for name in names:
        if name == "detect":
            needed.update(dict.fromkeys(STATEMENTS))
        else:
            needed[ROWS[name].source] = None
    return list(needed)


def contestants(results: Iterable[Result]) -> list[str]:
    """All that take part, in the order of the columns."""
    order = (*single.CONTESTANTS, models.PER_THREAD)
    present = {who for result in results for who in result.figures}
    return [who for who in order if who in present]
