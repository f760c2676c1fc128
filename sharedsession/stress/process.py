"""One run of a stress test, in a process of its own.

A plain Session that many threads use may hang or crash the interpreter, and leftovers
of one run should not slow down the next.  In the process a run ends at the latest when
no unit has ended for ``patience`` seconds.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple, NoReturn

import sqlalchemy as sa

from .ledger import Figures, Mode, Outcome, Plan, StressError, tables, verify

GRACE = 10.0  # seconds beyond its patience that a process has to start and report


def parse_url(text: str) -> sa.URL:
    """Like :func:`sqlalchemy.make_url`, but an error never shows the password."""
    try:
        return sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise StressError(
            "the URL cannot be read; one looks like "
            "postgresql+psycopg://user:password@host/database"
        ) from None


def run_on(
    engine: sa.Engine,
    reports: Reports,
    plan: Plan,
    mode: Mode,
    progress: Callable[[Outcome], object],
) -> Figures:
    """Make the tables, call *reports* in a process, and verify the database."""
    with said_clearly(plan.url, sa.exc.SQLAlchemyError, OSError):
        with tables(engine, plan.accounts):
            tally = _Tally(progress)
            with _process(plan, mode, reports) as (process, receiver):
                ending = tally.listen(process, receiver, plan.patience + GRACE)
            moved = {outcome.number for outcome in tally.outcomes if outcome.moved}
            lost, unbalanced = verify(engine, plan, moved)
            return tally.figures(plan, mode, ending, lost, unbalanced)


def refuse_memory() -> NoReturn:
    raise StressError(
        "a database in memory is this process's own and each run has another; "
        "give the URL of a file"
    )


@contextlib.contextmanager
def said_clearly(url: sa.URL, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except StressError:
        raise
    except kinds as error:
        reason = str(getattr(error, "orig", None) or error) or type(error).__name__
        safe = url.render_as_string(hide_password=True)
        raise StressError(f"cannot use {safe}: {reason.splitlines()[0]}") from error


@contextlib.contextmanager
def _process(
    plan: Plan, mode: Mode, reports: Reports
) -> Iterator[tuple[BaseProcess, Connection]]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(plan, mode, sender, reports), daemon=True
    )
    process.start()
    sender.close()
    try:
        yield process, receiver
    finally:
        process.kill()
        process.join()
        receiver.close()


class Report(NamedTuple):
    """What a run's process sends after each unit; the counters are totals so far."""

    outcome: Outcome | None
    seconds: float
    calls: int | None = None
    overlaps: int | None = None
    first_overlap: str | None = None


#: The function that the process of a run calls; a module-level one, to be pickled.
Reports = Callable[[Plan, Mode], Iterator[Report]]


def _child(plan: Plan, mode: Mode, sender: Connection, reports: Reports) -> None:
    # Ignore Ctrl-C here, because the parent handles it and drops the tables. Discard
    # stderr, because log lines of a broken plain Session would garble the progress bar.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        for report in reports(plan, mode):
            sender.send(report)
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")
    # No regular shutdown, because a thread that is stuck in a driver could block it.
    os._exit(0)


class _Tally:
    """What a process has reported so far; survives a crash of the process."""

    def __init__(self, progress: Callable[[Outcome], object]) -> None:
        self.progress = progress
        self.outcomes: list[Outcome] = []
        self.errors: collections.Counter[str] = collections.Counter()
        self.last = Report(None, 0.0)

    def listen(
        self, process: BaseProcess, receiver: Connection, patience: float
    ) -> str:
        """Take reports until the last one; return how the process ended."""
        try:
            while receiver.poll(patience):
                self._take(receiver.recv())
            return "stuck"
        except EOFError:
            process.join(patience)
        match process.exitcode:
            case 0 | None:
                return "stuck"
            case code if code < 0:
                return f"crashed ({signal.Signals(-code).name})"
            case code:
                return f"crashed (status {code})"

    def _take(self, report: Report | str) -> None:
        if isinstance(report, str):
            if not self.outcomes:
                raise StressError(report)
            # All outcomes have come; therefore closing the session has failed.
            self.errors[f"{report.partition(':')[0]} at close"] += 1
            return
        self.last = report
        if report.outcome is not None:
            self.outcomes.append(report.outcome)
            self.progress(report.outcome)

    def figures(
        self, plan: Plan, mode: Mode, ending: str, lost: int, unbalanced: int
    ) -> Figures:
        failed = [outcome.error for outcome in self.outcomes if outcome.error]
        errors = self.errors + collections.Counter(failed)
        errors[ending] += plan.units - len(self.outcomes)
        return Figures(
            mode=mode.name,
            guarded=mode.guarded,
            units=plan.units,
            done=len(self.outcomes) - len(failed),
            errors={kind: count for kind, count in errors.most_common() if count},
            calls=self.last.calls,
            overlaps=self.last.overlaps,
            first_overlap=self.last.first_overlap,
            lost_updates=lost,
            unbalanced=unbalanced,
            seconds=self.last.seconds,
        )
