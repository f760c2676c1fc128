"""The work of a stress test: accounts, ledger lines, and units that move money.

A unit of work moves money between two accounts and writes a ledger line for each; some
units only audit an account, and some fail on purpose.  Every unit checks what it reads.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from ..session.session import SharedSession

OPENING = 1000
PAUSE = 0.005  # seconds after a failed unit

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
