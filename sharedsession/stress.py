"""A stress test on a user's own database: threads move money through one session.

:func:`run` makes the tables, lets the threads do their units of work in a separate
process, and then verifies the database through a fresh connection. A unit of work moves
money between two accounts and writes a ledger line for each; some units only audit an
account, and some fail on purpose. Every unit checks what it reads.

Each run has its own process, because a plain Session that many threads use may hang or
crash the interpreter, and because leftovers of one run should not slow down the next.
In that process a run ends at the latest when no unit has ended for ``patience``
seconds.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, NoReturn

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from sqlalchemy.pool import SingletonThreadPool

from .session import SharedSession
from .tripwire import tripwire

__all__ = ["MODES", "Figures", "Mode", "Outcome", "Plan", "StressError", "run"]

OPENING = 1000
PAUSE = 0.005  # seconds after a failed unit
GRACE = 10.0  # seconds beyond its patience that a process has to start and report

Session = sa_orm.Session


class StressError(Exception):
    """A run could not be made; the message is one line for the user."""


class WrongFigures(Exception):
    """A unit of work read values that it must never read."""


class Declined(Exception):
    """A unit of work failed on purpose."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What each run does.

    :param url: the database.
    :param threads: the number of threads, or of tasks; 8 by default.
    :param units: the number of units of work, 400 by default.
    :param seed: determines the transfers, 0 by default.
    :param patience: seconds without the end of any unit after which a run ends early;
      30 by default.
    """

    url: sa.URL
    threads: int = 8
    units: int = 400
    seed: int = 0
    patience: float = 30.0

    @property
    def accounts(self) -> int:
        """The number of accounts: grows with the units, to keep each ledger short."""
        return max(10, self.units // 20)


@dataclasses.dataclass(frozen=True)
class Mode:
    """How the threads, or the tasks, of a run get their session."""

    name: str
    lock: str | None = None
    shared: bool = True

    @property
    def guarded(self) -> bool:
        return self.lock is not None


PLAIN = Mode("plain")
PER_THREAD = Mode("per-thread", shared=False)
MODES = {
    mode.name: mode
    for mode in (PLAIN, PER_THREAD, Mode("rlock", "rlock"), Mode("rw", "rw"))
}


class Outcome(NamedTuple):
    """How one unit of work ended; ``error`` is ``None`` if it did what it should."""

    number: int
    moved: bool
    error: str | None


@dataclasses.dataclass(frozen=True)
class Figures:
    """The results of a run.

    ``calls`` is the number of calls to the driver, ``overlaps`` how many of them
    overlapped another call; both are ``None`` if the run does not count them.
    """

    mode: str
    guarded: bool
    units: int
    done: int
    errors: dict[str, int]
    calls: int | None
    overlaps: int | None
    first_overlap: str | None
    lost_updates: int
    unbalanced: int
    seconds: float

    @property
    def failed(self) -> int:
        return self.units - self.done

    @property
    def units_per_second(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def clean(self) -> bool:
        wrong = self.overlaps, self.lost_updates, self.unbalanced
        return not (self.failed or self.errors or any(wrong))

    def to_dict(self) -> dict[str, Any]:
        """Return all figures in types that JSON has."""
        return {
            **dataclasses.asdict(self),
            "failed": self.failed,
            "units_per_second": self.units_per_second,
            "clean": self.clean,
        }


# The tables ---------------------------------------------------------------------------


class Base(sa_orm.DeclarativeBase):
    pass


class Account(Base):
    """``balance`` is the sum of ``lines``; ``moves`` counts the writes to it."""

    __tablename__ = "sharedsession_stress_account"
    __table_args__ = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}

    id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True, autoincrement=False)
    balance: sa_orm.Mapped[int]
    moves: sa_orm.Mapped[int] = sa_orm.mapped_column(default=0)
    lines: sa_orm.Mapped[list[Line]] = sa_orm.relationship(back_populates="account")


class Line(Base):
    """A line of the ledger; unit 0 opened the account."""

    __tablename__ = "sharedsession_stress_ledger"
    __table_args__ = (
        sa.UniqueConstraint("unit", "account_id"),
        {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"},
    )

    id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)
    unit: sa_orm.Mapped[int]
    account_id: sa_orm.Mapped[int] = sa_orm.mapped_column(sa.ForeignKey(Account.id))
    amount: sa_orm.Mapped[int]
    account: sa_orm.Mapped[Account] = sa_orm.relationship(back_populates="lines")


@contextlib.contextmanager
def tables(engine: sa.Engine, accounts: int) -> Iterator[None]:
    """Make the tables, with open accounts; drop the tables at the end in any case."""
    present = sa.inspect(engine)
    for table in Base.metadata.sorted_tables:
        if present.has_table(table.name):
            raise StressError(
                f"there is a table {table.name} already; it is not this run's, so it "
                "was left alone: drop it if a run that was killed has left it behind"
            )
    with contextlib.ExitStack() as created:
        for table in Base.metadata.sorted_tables:
            table.create(engine)
            created.callback(table.drop, engine)
        with Session(engine) as session, session.begin():
            for id in range(accounts):
                opening = Line(unit=0, amount=OPENING)
                session.add(Account(id=id, balance=OPENING, lines=[opening]))
        yield


def verify(engine: sa.Engine, plan: Plan, moved: set[int]) -> tuple[int, int]:
    """Count the errors in the database: ``(lost updates, sums that are off)``.

    A lost update is a transfer whose two lines are missing though its unit reported
    success (or whose lines exist though the unit reported none), or a write to an
    account that another write overwrote. A sum is off if the lines of an account do not
    add up to its balance, or if the total of all balances has changed.

    :param moved: the numbers of the units that reported a transfer.
    """
    with engine.connect() as connection:
        accounts = connection.execute(
            sa.select(Account.id, Account.balance, Account.moves)
        ).all()
        lines = connection.execute(
            sa.select(Line.unit, Line.account_id, Line.amount)
        ).all()
    written = collections.Counter(line.unit for line in lines if line.unit)
    moves = collections.Counter(line.account_id for line in lines if line.unit)
    sums: collections.Counter[int] = collections.Counter()
    for line in lines:
        sums[line.account_id] += line.amount
    units = moved | set(written)
    lost = sum(written[unit] != (2 if unit in moved else 0) for unit in units)
    lost += sum(abs(account.moves - moves[account.id]) for account in accounts)
    off = sum(account.balance != sums[account.id] for account in accounts)
    off += sum(account.balance for account in accounts) != OPENING * plan.accounts
    return lost, off


# The units of work --------------------------------------------------------------------


class Unit(NamedTuple):
    """One unit of work, the same in every run of a plan.

    With ``lock`` the database locks the accounts; sessions that do not share a
    transaction need this.
    """

    number: int
    source: int
    target: int
    amount: int
    lock: bool


def plan_unit(plan: Plan, mode: Mode, number: int) -> Unit:
    draw = random.Random(f"{plan.seed}/{number}")
    source, target = draw.sample(range(plan.accounts), 2)
    return Unit(number, source, target, draw.randint(1, 100), not mode.shared)


def do_unit(session: Session, unit: Unit) -> bool:
    """Do *unit*; return True if it moved money.

    Of ten units six move money, two only read, one fails in a savepoint, and one
    violates a constraint.
    """
    match unit.number % 10:
        case 1 | 2:
            _audit(session, unit)
            return False
        case 3:
            _declined(session, unit)
            return True
        case 4:
            _refused(session, unit)
            return False
        case _:
            _transfer(session, unit)
            return True


def _writing(session: Session) -> contextlib.AbstractContextManager[object]:
    if isinstance(session, SharedSession):
        return session.critical_section()
    return contextlib.nullcontext()


def _reading(session: Session) -> contextlib.AbstractContextManager[object]:
    if isinstance(session, SharedSession):
        return session.read_section()
    return contextlib.nullcontext()


def _transfer(session: Session, unit: Unit) -> None:
    with _writing(session):
        source, target = load(session, unit)
        with session.begin_nested():
            move(unit, source, target)
        session.commit()


def _declined(session: Session, unit: Unit) -> None:
    """A transfer, then a savepoint that fails: only the savepoint is undone."""
    with _writing(session):
        source, target = load(session, unit)
        move(unit, source, target)
        with contextlib.suppress(Declined), session.begin_nested():
            source.balance = source.balance - OPENING
            session.flush()
            raise Declined
        check(source)
        check(target)
        session.commit()


def _refused(session: Session, unit: Unit) -> None:
    """The database refuses a second opening line: the whole unit must be undone."""
    with _writing(session):
        source, target = load(session, unit)
        move(unit._replace(number=0), source, target)
        try:
            session.flush()
        except sa.exc.IntegrityError:
            session.rollback()
        else:
            raise WrongFigures(f"account {unit.source} was opened twice")
        load(session, unit)


def _audit(session: Session, unit: Unit) -> None:
    with _reading(session):
        account = get_account(session, unit.source, unit.lock)
        check(account)
        amounts = session.scalars(
            sa.select(Line.amount).where(Line.account_id == unit.source)
        )
        if sum(amount for amount in amounts) != account.balance:
            raise WrongFigures(f"the ledger of account {unit.source}")


def get_account(session: Session, id: int, lock: bool) -> Account:
    return session.get_one(Account, id, with_for_update=lock or None)


def load(session: Session, unit: Unit) -> list[Account]:
    """Return source and target, checked.

    Lock both in the order of their ids, because otherwise two units could wait for each
    other; and lock both before reading anything else, because otherwise a snapshot
    could be older than the locks.
    """
    ids = [unit.source, unit.target]
    accounts = {id: get_account(session, id, unit.lock) for id in sorted(ids)}
    for account in accounts.values():
        check(account)
    return [accounts[id] for id in ids]


def check(account: Account) -> None:
    total = 0
    for line in account.lines:
        if line.account is not account:
            raise WrongFigures(f"a strange line in account {account.id}")
        total += line.amount
    if total != account.balance:
        raise WrongFigures(f"the lines of account {account.id}")


def move(unit: Unit, source: Account, target: Account) -> None:
    for account, amount in (source, -unit.amount), (target, unit.amount):
        account.balance = account.balance + amount
        account.moves = account.moves + 1
        account.lines.append(Line(unit=unit.number, amount=amount))


# The threads --------------------------------------------------------------------------


def make_engine(
    url: sa.URL,
    *,
    busy: float = 20,
    create: Callable[..., sa.Engine] = sa.create_engine,
    **options: Any,
) -> sa.Engine:
    """Make an engine; on SQLite with transactions and savepoints that work.

    See "Serializable isolation / Savepoints / Transactional DDL" in SQLAlchemy's
    documentation of pysqlite. ``IMMEDIATE``, because if two transactions have both
    read, SQLite does not let both write.

    :param busy: seconds, 20 by default, to wait for another SQLite connection's
      transaction.
    :param create: the function that makes the engine.
    """
    if url.get_backend_name() != "sqlite":
        return create(url, **options)
    engine = create(url, connect_args={"timeout": busy}, **options)

    @sa.event.listens_for(engine, "connect")
    def no_implicit_begin(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def perform(plan: Plan, mode: Mode, engine: sa.Engine) -> Iterator[Outcome]:
    """Let the threads do all units and yield each outcome as it comes.

    Ends early if no outcome has come for ``plan.patience`` seconds. The threads are
    daemons, because a stuck thread must not keep the process alive.
    """
    factory: Callable[[], Session] = sa_orm.sessionmaker(engine)
    if mode.guarded:
        factory = sa_orm.sessionmaker(engine, class_=SharedSession, lock=mode.lock)
    shared = factory() if mode.shared else None
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    start = threading.Barrier(plan.threads)

    def work(numbers: range) -> None:
        start.wait()
        for number in numbers:
            unit = plan_unit(plan, mode, number)
            session = contextlib.nullcontext(shared) if shared else factory()
            outcomes.put(_attempt(session, unit))

    for index, numbers in enumerate(shares(plan)):
        threading.Thread(
            target=work, args=(numbers,), name=f"worker-{index}", daemon=True
        ).start()
    for _ in range(plan.units):
        try:
            yield outcomes.get(timeout=plan.patience)
        except queue.Empty:
            return
    if shared and mode.guarded:  # closing a broken plain session may fail
        shared.close()


def shares(plan: Plan) -> list[range]:
    """Give each thread a fixed share: a fast-failing thread must not take them all."""
    ends = [1 + plan.units * n // plan.threads for n in range(plan.threads + 1)]
    return [range(*ends[n : n + 2]) for n in range(plan.threads)]


def _attempt(opened: contextlib.AbstractContextManager[Session], unit: Unit) -> Outcome:
    try:
        with opened as session:
            try:
                return Outcome(unit.number, do_unit(session, unit), None)
            except Exception:
                # Roll back, as an application does. Without a lock the rollback may
                # fail, too, but the first error is the one to report.
                with contextlib.suppress(Exception):
                    session.rollback()
                raise
    except Exception as error:
        # An application needs time for an error, too. Without this pause the failing
        # threads end before the first thread has connected.
        time.sleep(PAUSE)
        cause = getattr(error, "orig", None) or error
        return Outcome(unit.number, False, type(cause).__name__)


# The process --------------------------------------------------------------------------


def parse_url(text: str) -> sa.URL:
    """Like :func:`sqlalchemy.make_url`, but an error never shows the password."""
    try:
        return sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise StressError(
            "the URL cannot be read; one looks like "
            "postgresql+psycopg://user:password@host/database"
        ) from None


def run(
    plan: Plan, mode: Mode, progress: Callable[[Outcome], object] = lambda outcome: None
) -> Figures:
    """Make one run in a process of its own.

    :param progress: called with the outcome of each unit as the unit ends.
    :raises StressError: if the run could not be made.
    """
    return run_on(connectable(plan.url), reports, plan, mode, progress)


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


def connectable(url: sa.URL) -> sa.Engine:
    """Return an engine that has connected once and keeps no connection."""
    # Any error that a driver raises here is about the URL or the server.
    with said_clearly(url, Exception):
        engine = make_engine(url, poolclass=sa.NullPool)
        tripwire(engine).remove()
        if issubclass(engine.dialect.get_dialect_pool_class(url), SingletonThreadPool):
            refuse_memory()
        engine.connect().close()
    return engine


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


def reports(plan: Plan, mode: Mode) -> Iterator[Report]:
    """Let threads do the units; yield a report as each unit ends."""
    # With one shared session there is no other connection to wait for.
    busy = 0 if mode.shared else 20
    engine = make_engine(
        plan.url, busy=busy, poolclass=sa.QueuePool, pool_size=plan.threads
    )
    wire = tripwire(engine)
    started = time.perf_counter()
    seconds = 0.0
    for outcome in perform(plan, mode, engine):
        seconds = time.perf_counter() - started
        yield Report(outcome, seconds, wire.calls, wire.overlaps, wire.first)
    yield Report(None, seconds, wire.calls, wire.overlaps, wire.first)


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
