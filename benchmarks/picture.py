"""The picture for the README: what it costs, what it brings, and the goals.

Each row has a scale of its own, on which its goal is at the same place: to the left of
the line is better.  The scale is logarithmic, and the same for all rows but for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from .models import BESIDE, DETECT, RLOCK, RW
from .report import number
from .rows import Figure, Goal, Result

WIDTH = 860
LABELS = 250  # where the scale begins
NUMBERS = 660  # and where it ends
LINE = 26
TOP = 62

#: Powers of two from the goal to each end of the scale.
REACH = 3.0

DRAWN = (RLOCK, RW, DETECT, BESIDE)

STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #24292f }
.quiet { fill: #57606a; font-size: 12px }
.band { fill: #f6f8fa } .paper { fill: #ffffff } .goal { stroke: #57606a }
.rlock { fill: #0969da; stroke: #0969da } .rw { fill: #1a7f37; stroke: #1a7f37 }
.detect { fill: #9a6700; stroke: #9a6700 }
.plain-beside { fill: #8250df; stroke: #8250df }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .quiet { fill: #8d96a0 } .band { fill: #161b22 }
.paper { fill: #0d1117 } .goal { stroke: #8d96a0 }
.rlock { fill: #4493f8; stroke: #4493f8 } .rw { fill: #3fb950; stroke: #3fb950 }
.detect { fill: #d29922; stroke: #d29922 }
.plain-beside { fill: #ab7df8; stroke: #ab7df8 }
}"""


def draw(results: Sequence[Result], caption: str) -> str:
    """The results that have a goal above zero, as SVG."""
    drawn = [each for each in results if each.row.goal and each.row.goal.limit > 0]
    height = TOP + LINE * len(drawn) + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        "<title>Costs and gains of sharedsession, against their goals</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        *_legend(drawn),
    ]
    for place, result in enumerate(drawn):
        lines += _row(result, TOP + LINE * place, shaded=place % 2 == 0)
    lines += [
        *_goal_line(height - 34),
        _text(16, height - 12, caption, "quiet"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _legend(results: Sequence[Result]) -> Iterator[str]:
    present = {who for result in results for who in result.row.judged}
    x = 16
    for who in DRAWN:
        if who in present:
            yield f'<circle class="{_css(who)}" cx="{x}" cy="20" r="5"/>'
            yield _text(x + 10, 24, who)
            x += 40 + 8 * len(who)
    yield _text(LABELS, 48, "better", "quiet")
    yield _text(_goal_x(), 48, "goal", "quiet", "middle")
    yield _text(NUMBERS, 48, "worse", "quiet", "end")
    yield _text(WIDTH - 16, 48, "measured (goal)", "quiet", "end")


def _row(result: Result, y: float, shaded: bool) -> Iterator[str]:
    goal = result.row.goal
    assert goal is not None
    if shaded:
        yield f'<rect class="band" y="{y}" width="{WIDTH}" height="{LINE}"/>'
    yield _text(16, y + 18, result.row.title)
    judged = [who for who in result.row.judged if who in result.figures]
    for place, who in enumerate(judged):
        middle = y + LINE / 2 + 5 * (place - (len(judged) - 1) / 2)
        yield from _mark(result.figures[who], goal, who, middle)
    said = " / ".join(number(result.figures[who].median) for who in judged)
    yield _text(WIDTH - 16, y + 18, f"{said} ({goal})", "", "end")


def _mark(figure: Figure, goal: Goal, who: str, y: float) -> Iterator[str]:
    x, *ends = (_x(value, goal) for value in figure)
    yield (
        f'<line class="{_css(who)}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" '
        f'y1="{y:.1f}" y2="{y:.1f}" stroke-width="2"/>'
    )
    yield f'<circle class="{_css(who)}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _x(value: float, goal: Goal) -> float:
    """Where a value is on the scale of its row."""
    worse = math.log2(max(value, 1e-9) / goal.limit) * (-1 if goal.at_least else 1)
    worse = min(max(worse, -REACH), REACH)
    return LABELS + (NUMBERS - LABELS) * (worse + REACH) / (2 * REACH)


def _goal_x() -> float:
    return (LABELS + NUMBERS) / 2


def _goal_line(bottom: float) -> Iterator[str]:
    x = _goal_x()
    yield (
        f'<line class="goal" x1="{x}" x2="{x}" y1="{TOP - 8}" y2="{bottom}" '
        'stroke-dasharray="3 3"/>'
    )


def _css(who: str) -> str:
    return who.replace(" ", "-")


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    cls = f' class="{css}"' if css else ""
    return f'<text{cls} x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
