"""Random operations of many threads on one session, watched from below.

``python -m tests.proofs.torture.torture --help`` runs it for as long as one likes.  A
seed runs the same operations in each thread again, though the system may interleave
them otherwise; its scheduled rounds, in which the seed says who goes on, are the same
for good.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import random
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from sharedsession import SharedSession, WorkLostError, critical_section
from sharedsession.stress.tripwire import tripwire

from ...support.models import Address, Base, User, Visit, make_user
from ..histories.rounds import own_database, run_round

Operation = Callable[[Any, Any], Any]


@dataclass
class Report:
    """What came of a run; all but the first two should be zero."""

    steps: int = 0
    losses: int = 0
    overlaps: int = 0
    stuck: int = 0
    lost_updates: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def is_clean(self) -> bool:
        return not (self.overlaps or self.stuck or self.lost_updates or self.errors)


# -- single operations: any thread, any time, no section


SINGLE: list[Operation] = [
    lambda session, user: (user.name, user.counter, user.point),
    lambda session, user: user.addresses,
    lambda session, user: list(user.words),
    lambda session, user: user.visits.count(),
    lambda session, user: setattr(user, "name", "new"),
    lambda session, user: user in session,
    lambda session, user: list(session),
    lambda session, user: session.dirty,
    lambda session, user: session.is_modified(user),
    lambda session, user: session.add(Visit(user_id=1)),
    lambda session, user: session.get(User, 2),
    lambda session, user: session.scalars(sa.select(User)).all(),
    lambda session, user: session.execute(sa.text("SELECT 1")).all(),
    lambda session, user: session.query(User).count(),
    lambda session, user: session.flush(),
    lambda session, user: session.expire(user),
    lambda session, user: session.refresh(user),
    lambda session, user: session.commit(),
    lambda session, user: session.rollback(),
]


# -- several operations that belong together: in a section, as an application would


def change_collection(session: Any, user: Any) -> None:
    with session.critical_section():
        address = Address()
        user.addresses.append(address)
        assert address in list(user.addresses)
        user.addresses.remove(address)


def change_value(session: Any, user: Any) -> None:
    with session.critical_section():
        user.data["key"] = user.data.get("key", 0) + 1


def read(session: Any, user: Any) -> None:
    with session.read_section():
        before = [address.email for address in user.addresses]
        assert before == [address.email for address in user.addresses]


def savepoint(session: Any, user: Any) -> None:
    with session.begin_nested():
        user.name = "within"


def failing_unit(session: Any, user: Any) -> None:
    try:
        with critical_section(session, transaction="savepoint"):
            session.add(Address(email="ann@0"))
            session.flush()
    except IntegrityError:
        return
    raise AssertionError("a second row with a unique value was let in")


def broken_off_stream(session: Any, user: Any) -> None:
    statement = sa.select(User.id).execution_options(yield_per=1)
    for number, _ in enumerate(session.execute(statement)):
        if number == 2:
            break


SECTIONS: list[Operation] = [
    change_collection,
    change_value,
    read,
    savepoint,
    failing_unit,
    broken_off_stream,
]


def torture(
    engine: sa.Engine, lock: str, *, threads: int, steps: int, seed: int
) -> Report:
    """Run it; *engine* must not have connected yet."""
    wire = tripwire(engine)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    session = SharedSession(engine, lock=lock, lock_timeout=60)
    session.add_all([make_user(name) for name in ("ann", "ben", "cat", "dan")])
    session.commit()
    users = [session.get_one(User, number) for number in (1, 2, 3, 4)]
    report, mutex = Report(), threading.Lock()
    counted = Counter[int]()

    def count(number: int) -> None:
        """An update that must not be lost: committed in its own section."""
        with critical_section(session, transaction="commit"):
            users[number].counter += 1
        with mutex:
            counted[number] += 1

    def step(chance: random.Random) -> None:
        number = chance.randrange(4)
        if chance.random() < 0.1:
            count(number)
        else:
            chance.choice(SINGLE + SECTIONS)(session, users[number])

    def work(chance: random.Random) -> None:
        for _ in range(steps):
            error = None
            try:
                step(chance)
            except WorkLostError:
                error = "lost"
            except BaseException as caught:
                error = f"{type(caught).__name__}: {str(caught)[:200]}"
            with mutex:
                report.steps += 1
                if error == "lost":
                    report.losses += 1
                elif error:
                    report.errors[error] += 1

    workers = [
        threading.Thread(target=work, args=(random.Random(f"{seed} {n}"),), daemon=True)
        for n in range(threads)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120 + steps / 20)
    finally:
        sys.setswitchinterval(interval)
    report.stuck = sum(worker.is_alive() for worker in workers)
    report.overlaps = wire.overlaps
    if report.stuck:
        faulthandler.dump_traceback(all_threads=True)
        return report
    session.rollback()
    report.lost_updates = sum(
        abs(user.counter - counted[number]) for number, user in enumerate(users)
    )
    session.close()
    Base.metadata.drop_all(engine)
    engine.dispose()
    return report


def rounds(
    url: str, lock: str, *, threads: int, count: int, seed: int, scheduled: bool
) -> RoundsReport:
    """Go random ways of the table of all ways in; see ``histories/rounds.py``."""
    report = RoundsReport()
    for number in range(count):
        result = run_round(
            url,
            lock,
            f"{seed} {number}",
            threads=threads,
            steps=max(3, 64 // threads),
            scheduled=scheduled,
        )
        report.rounds += 1
        report.steps += result.steps
        report.losses += result.losses
        report.overlaps += result.overlaps
        report.errors_met += sum(result.errors.values())
        if result.differences:
            named = f"round {seed} {number}, lock {lock}, {threads} threads:"
            report.differences.append("\n".join([named, *result.differences]))
    return report


@dataclass
class RoundsReport:
    """What came of some rounds; overlaps and differences should be none."""

    rounds: int = 0
    steps: int = 0
    losses: int = 0
    errors_met: int = 0  # by one thread in the same order as well
    overlaps: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.overlaps or self.differences)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--url",
        default="sqlite://",
        help="a server, on which it makes a database of its own; else SQLite",
    )
    parser.add_argument("--lock", nargs="+", default=["rlock", "rw"])
    parser.add_argument("--threads", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--steps", type=int, default=500, help="of each thread")
    parser.add_argument("--rounds", type=int, default=20, help="for each seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument(
        "--minutes", type=float, help="go on with further seeds for so long"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    clean = True
    began = time.monotonic()
    with own_database(options.url) as url:
        for seed in itertools.count(options.seed):
            if options.minutes is None and seed == options.seed + options.seeds:
                break
            if options.minutes and time.monotonic() - began > options.minutes * 60:
                break
            for lock, threads in itertools.product(options.lock, options.threads):
                clean = run_seed(options, url, lock, threads, seed) and clean
    return 0 if clean else 1


def run_seed(options: Any, url: str, lock: str, threads: int, seed: int) -> bool:
    """Run one seed in every manner there is, and print what came of it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        own = f"sqlite:///{folder}/torture.db" if url == "sqlite://" else url
        engine = engine_for(own)
        reports: list[Any] = [
            torture(engine, lock, threads=threads, steps=options.steps, seed=seed)
        ]
    if lock != "off" and not getattr(reports[0], "stuck"):
        if url != "sqlite://":
            Base.metadata.create_all(engine)
        for scheduled in (False, True):
            # What the system switches between is tried more often: it never is twice
            # the same.
            count = options.rounds if not scheduled else max(1, options.rounds // 4)
            reports.append(
                rounds(
                    url,
                    lock,
                    threads=threads,
                    count=count,
                    seed=seed,
                    scheduled=scheduled,
                )
            )
    engine.dispose()
    for report in reports:
        print(f"seed {seed}, lock {lock}, {threads} threads: {report}", flush=True)
    print(f"    {time.monotonic() - began:.0f} s", flush=True)
    return all(report.is_clean for report in reports)


def engine_for(url: str) -> sa.Engine:
    from ...conftest import leave_transactions_to_sqlalchemy

    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        leave_transactions_to_sqlalchemy(engine)
    return engine


if __name__ == "__main__":
    sys.exit(main())
