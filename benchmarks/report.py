"""The table, as text and as JSON."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

import sharedsession

from .rows import Figure, Result, contestants

_HEAD = ("", "goal")
_WIDTH = 150


def environment() -> str:
    return (
        f"Python {platform.python_version()}, SQLAlchemy {sa.__version__}, "
        f"sharedsession {sharedsession.__version__}, {sys.platform}"
    )


def as_json(results: Sequence[Result], seconds: float) -> str:
    report = {
        "environment": environment(),
        "seconds": round(seconds, 1),
        "rows": [result.to_dict() for result in results],
    }
    return json.dumps(report, indent=2)


def show(results: Sequence[Result], seconds: float) -> None:
    columns = contestants(results)
    lines = [[*_HEAD, *columns]] + [_line(result, columns) for result in results]
    try:
        _show_rich(lines)
    except ImportError:
        print(_as_text(lines))
    for line in footer(results, seconds):
        print(line)


def footer(results: Sequence[Result], seconds: float) -> list[str]:
    missed = [_missed(result, who) for result in results for who in result.missed]
    judged = sum(
        who in result.figures
        for result in results
        for who in (result.row.judged if result.row.goal else ())
    )
    return [
        "",
        "Medians of ratios, ± half the range between the quartiles; a figure in "
        "brackets is what the others of its row are compared with. ! misses its goal.",
        f"{environment()}; {seconds:.0f} s.",
        f"{len(missed)} of {judged} goals missed{':' if missed else '.'}",
        *missed,
    ]


def _missed(result: Result, who: str) -> str:
    figure = result.figures[who]
    close = ", but the goal is within the spread" if result.is_close(who) else ""
    note = f" ({result.note})" if result.note else ""
    return (
        f"  {result.row.title}, {who}: {number(figure.median)}, "
        f"goal {result.row.goal}{close}{note}"
    )


def _line(result: Result, columns: Sequence[str]) -> list[str]:
    goal = "" if result.row.goal is None else str(result.row.goal)
    return [result.row.title, goal, *(_cell(result, who) for who in columns)]


def _cell(result: Result, who: str) -> str:
    if who not in result.figures:
        return ""
    if who == result.row.base and result.row.compares != "alone":
        return f"[{_with_unit(result.own[who].median, result.row.unit)}]"
    mark = "!" if who in result.missed else ""
    return mark + _with_spread(result.figures[who])


def _with_spread(figure: Figure) -> str:
    return f"{number(figure.median)} ±{number(figure.spread)}"


def number(value: float) -> str:
    """So many digits as mean something."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


def _with_unit(value: float, unit: str) -> str:
    if unit != "s":
        return f"{number(value)} {unit}".replace(" /", "/")
    for factor, name in (1, "s"), (1e3, "ms"), (1e6, "us"):
        if value * factor >= 1:
            return f"{number(value * factor)} {name}"
    return f"{number(value * 1e9)} ns"


def _as_text(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def _show_rich(lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console = Console(width=max(console.width, _WIDTH))
    table: Any = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place, heading in enumerate(lines[0]):
        justify: Any = "right" if place else "left"
        table.add_column(Text(heading), justify=justify, no_wrap=True)
    for line in lines[1:]:
        cells = (Text(each, style="red" if each[:1] == "!" else "") for each in line)
        table.add_row(*cells)
    console.print(table)
