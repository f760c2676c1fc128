"""Measure everything and show one table; goals that are missed are no failure."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence

import sqlalchemy as sa

from sharedsession.stress.ledger import StressError
from sharedsession.stress.process import parse_url

from . import ledger, picture, races, report, single
from .pace import FULL, QUICK, Pace, Round
from .rows import ROWS, STATEMENTS, Result, sources, summarise
from .sides import RemoteError, open_sides


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    started = time.perf_counter()
    try:
        url = None if options.url is None else parse_url(options.url)
        results = run(options.only or list(ROWS), url, options.quick)
    except (StressError, RemoteError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - started
    if options.json:
        print(report.as_json(results, seconds))
    else:
        report.show(results, seconds)
    if options.svg:
        options.svg.write_text(picture.draw(results, report.environment()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--json", action="store_true", help="print JSON in place of the table")
    add("--svg", type=pathlib.Path, metavar="PATH", help="draw the picture, too")
    add("--quick", action="store_true", help="a rough idea in less than half a minute")
    add(
        "--only",
        nargs="+",
        action="extend",
        choices=list(ROWS),
        metavar="ROW",
        help=f"only these rows, of {', '.join(ROWS)}",
    )
    add("--url", help="a database for one more run of the ledger, such as PostgreSQL")
    return parser


def run(names: Sequence[str], url: sa.URL | None, quick: bool) -> list[Result]:
    rows = [row for name, row in ROWS.items() if name in names]
    if url is None:
        rows = [row for row in rows if row.name != "ledger-url"]
    settings = QUICK if quick else FULL
    pace = Pace(**settings, tell=_tell)  # type: ignore[arg-type]
    rounds = _measure(sources(row.name for row in rows), url, pace)
    _tell("")
    if url is not None:
        server = url.get_backend_name()
        rows = [
            dataclasses.replace(row, title=row.title.format(url=server)) for row in rows
        ]
    return [summarise(row, rounds) for row in rows]


def _tell(name: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{name}", end="", file=sys.stderr, flush=True)


def _measure(
    needed: Sequence[str], url: sa.URL | None, pace: Pace
) -> dict[str, list[Round]]:
    statements = [name for name in needed if name in STATEMENTS]
    rounds = single.measure(statements, pace) if statements else {}
    with open_sides() as sides:
        for name in needed:
            pace.tell(name)
            if name in rounds:
                continue
            if name == "memory":
                rounds[name] = single.measure_memory(sides, pace)
            elif name == "ledger":
                rounds[name] = ledger.measure(None, sides, pace)
            elif name == "ledger-url":
                rounds[name] = ledger.measure(url, sides, pace)
            else:
                rounds.update(races.measure(name, sides, pace))
    return rounds


if __name__ == "__main__":
    sys.exit(main())
