"""The command ``sharedsession``.

``sharedsession stress`` prints the figures of each run as a table (this needs rich, the
extra ``cli``) or as JSON. Exit status: 0 if the runs with a guard
show only zeros, 1 if one of these runs does not, 2 if the runs could not be made.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import sqlalchemy as sa

from ..version import __version__
from . import ledger, process, threads

EPILOG = """\
Runs: plain, one Session without any lock; per-thread, a Session for each thread; rlock
and rw, one SharedSession of that kind. Calls that overlap inside the driver are let
through and counted; each run has a process of its own, because they may crash it.
Creates the tables sharedsession_stress_account and sharedsession_stress_ledger for each
run and drops them at its end; touches no other table. Exit status 1 if a run of
rlock or rw shows anything but zeros, 2 if the runs could not be made.

With --async: tasks of one event loop that share an AsyncSession, or have one each
(per-task). Overlapping calls are not counted then.
"""

_Run = Callable[..., ledger.Figures]


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        return _stress(options)
    except ledger.StressError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted; the tables are dropped", 130)


def _complain(text: str, status: int) -> int:
    print(f"sharedsession: {text}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sharedsession", description="Share one SQLAlchemy Session safely."
    )
    parser.add_argument("--version", action="version", version=__version__)
    command = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "stress",
        help="prove it on a database",
        description="Let threads move money through one session and count what breaks.",
        epilog=EPILOG,
    )
    _add_options(command.add_argument)
    return parser


def _add_options(add: Callable[..., object]) -> None:
    add("--url", help="the database to use (default: a temporary SQLite file)")
    add("--async", dest="tasks", action="store_true", help="tasks in place of threads")
    add(
        "--threads",
        type=_positive(int),
        default=8,
        help="how many of them, or of tasks, default %(default)s",
    )
    add(
        "--units",
        type=_positive(int),
        default=400,
        help="units of work of each run, default %(default)s",
    )
    add(
        "--lock",
        nargs="+",
        action="extend",
        choices=[*ledger.MODES, "per-task"],
        metavar="RUN",
        help=f"only these runs, of {', '.join(ledger.MODES)}",
    )
    add("--seed", type=int, default=0, help="another one draws other transfers")
    add(
        "--patience",
        type=_positive(float),
        default=30.0,
        metavar="SECONDS",
        help="give a run up when no unit ends for so long, default %(default)s",
    )
    add("--json", action="store_true", help="print JSON, without a progress bar")


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def positive(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
        return value

    return positive


def _stress(options: argparse.Namespace) -> int:
    display = _json if options.json else _table
    run, known = _with_tasks() if options.tasks else (threads.run, ledger.MODES)
    modes = [mode for name, mode in known.items() if name in (options.lock or known)]
    if not modes:
        raise ledger.StressError(f"of these runs there are only {', '.join(known)}")
    with _url(options.url, "sqlite+aiosqlite" if options.tasks else "sqlite") as url:
        plan = ledger.Plan(
            url, options.threads, options.units, options.seed, options.patience
        )
        runs = display(run, plan, modes, "tasks" if options.tasks else "threads")
    return int(not all(figures.clean for figures in runs if figures.guarded))


def _with_tasks() -> tuple[_Run, dict[str, ledger.Mode]]:
    try:
        from . import tasks
    except ImportError as error:
        raise ledger.StressError(
            'this takes greenlet: pip install "sqlalchemy-sharedsession[asyncio]"'
        ) from error
    return tasks.run, tasks.MODES


@contextlib.contextmanager
def _url(text: str | None, driver: str) -> Iterator[sa.URL]:
    if text is not None:
        yield process.parse_url(text)
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix="sharedsession-")
    except OSError as error:
        raise ledger.StressError(f"no place for a temporary file: {error}") from error
    with folder:
        yield sa.URL.create(driver, database=f"{folder.name}/stress.db")


def _json(
    run: _Run, plan: ledger.Plan, modes: Sequence[ledger.Mode], flows: str
) -> list[ledger.Figures]:
    runs = [run(plan, mode) for mode in modes]
    report = {
        "url": plan.url.render_as_string(hide_password=True),
        flows: plan.threads,
        "units": plan.units,
        "seed": plan.seed,
        "runs": [figures.to_dict() for figures in runs],
    }
    print(json.dumps(report, indent=2))
    return runs


def _table(
    run: _Run, plan: ledger.Plan, modes: Sequence[ledger.Mode], flows: str
) -> list[ledger.Figures]:
    try:
        import rich.console  # noqa: F401
    except ImportError:
        raise ledger.StressError(
            'this takes rich: pip install "sqlalchemy-sharedsession[cli]" '
            "(--json works without)"
        ) from None
    runs = _run_with_progress(run, plan, modes)
    url = plan.url.render_as_string(hide_password=True)
    _print(f"{plan.units} units of work, {plan.threads} {flows}, {url}", runs)
    return runs


def _run_with_progress(
    run: _Run, plan: ledger.Plan, modes: Sequence[ledger.Mode]
) -> list[ledger.Figures]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    screen = Console(stderr=True)
    with Progress(
        *columns, console=screen, transient=True, disable=not screen.is_terminal
    ) as bar:

        def show(mode: ledger.Mode) -> ledger.Figures:
            task = bar.add_task(mode.name, total=plan.units)
            return run(plan, mode, lambda outcome: bar.advance(task))

        return [show(mode) for mode in modes]


def _print(title: str, runs: Sequence[ledger.Figures]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=None, padding=(0, 2, 0, 0), pad_edge=False)
    shown = {
        heading: cell
        for heading, cell in COLUMNS.items()
        if any(cell(figures) is not None for figures in runs)
    }
    for heading in shown:
        justify: Literal["left", "right"] = "right" if "\n" in heading else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for figures in runs:
        cells = (Text(str(cell(figures))) for cell in shown.values())
        table.add_row(*cells, style="green" if figures.clean else "red")
    console = Console()
    console.print(table)
    for figures in runs:
        if figures.first_overlap:
            console.print(
                Text(f"first overlap, {figures.mode}: {figures.first_overlap}")
            )


COLUMNS: dict[str, Callable[[ledger.Figures], object]] = {
    "run": lambda figures: figures.mode,
    "units\ndone": lambda figures: figures.done,
    "\nfailed": lambda figures: figures.failed,
    "calls\noverlap": lambda figures: figures.overlaps,
    "writes\nlost": lambda figures: figures.lost_updates,
    "sums\noff": lambda figures: figures.unbalanced,
    "units\nper s": lambda figures: round(figures.units_per_second),
    "errors": lambda figures: "\n".join(
        f"{count} {kind}" for kind, count in figures.errors.items()
    ),
}
