"""The stress run counts what there is to count."""

import json
import os
import signal
import threading
from contextlib import nullcontext

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from sharedsession.stress import ledger, process, threads
from sharedsession.stress.ledger import MODES, PLAIN, Account, Line, Outcome, Plan
from sharedsession.stress.threads import shares

from ..support.databases import VARIABLES, alone, url_of

UNITS = 20


@pytest.fixture
def file_url(tmp_path):
    return sa.make_url(f"sqlite:///{tmp_path}/stress.db")


@pytest.fixture(params=["sqlite", *VARIABLES])
def url(request, tmp_path):
    url = sa.make_url(url_of(request.param, tmp_path))
    with alone(request.param) if request.param in VARIABLES else nullcontext():
        yield url


@pytest.fixture
def plan(file_url):
    return Plan(file_url, threads=4, units=UNITS)


@pytest.fixture
def engine(plan):
    """An engine with the tables, for tests that do the work themselves."""
    engine = threads.connectable(plan.url)
    with ledger.tables(engine, plan.accounts):
        yield engine


def names(url):
    engine = threads.connectable(url)
    with engine.connect() as connection:
        return sa.inspect(connection).get_table_names()


@pytest.mark.parametrize("name", ["per-thread", "rlock", "rw"])
def test_a_run_that_should_be_clean_is(url, name):
    seen = []
    plan = Plan(url, threads=4, units=UNITS)
    figures = threads.run(plan, MODES[name], seen.append)
    assert figures.clean, figures
    assert figures.done == UNITS
    assert figures.calls > UNITS
    assert sorted(outcome.number for outcome in seen) == list(range(1, UNITS + 1))
    assert not {Account.__tablename__, Line.__tablename__} & set(names(url))


def test_a_plain_run_survives_and_accounts_for_every_unit(url):
    figures = threads.run(Plan(url, threads=4, units=UNITS), PLAIN)
    assert figures.done + sum(figures.errors.values()) == UNITS
    assert figures.failed == sum(figures.errors.values())
    assert not figures.guarded
    assert not {Account.__tablename__, Line.__tablename__} & set(names(url))


def test_figures_are_json(plan):
    figures = threads.run(plan, MODES["rlock"])
    told = json.loads(json.dumps(figures.to_dict()))
    assert told["mode"] == "rlock"
    assert told["clean"] is True
    assert told["failed"] == told["overlaps"] == told["lost_updates"] == 0
    assert told["units_per_second"] == figures.units_per_second > 0


@pytest.mark.parametrize("table", [Account.__tablename__, Line.__tablename__])
def test_a_table_of_that_name_is_left_alone(plan, table):
    engine = threads.connectable(plan.url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {table} (mine INTEGER)")
        connection.exec_driver_sql(f"INSERT INTO {table} VALUES (1)")
    with pytest.raises(ledger.StressError, match=f"there is a table {table} already"):
        threads.run(plan, MODES["rlock"])
    with engine.connect() as connection:
        assert connection.exec_driver_sql(f"SELECT mine FROM {table}").all() == [(1,)]
    assert names(plan.url) == [table]


def test_the_tables_are_dropped_on_an_interrupt(plan):
    def interrupt(outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.run(plan, MODES["rlock"], interrupt)
    assert names(plan.url) == []


# What is wrong is found out


def work(plan, engine):
    """Do all units in this thread; the numbers of those that moved money."""
    moved = set()
    with sa_orm.Session(engine) as session:
        for number in range(1, plan.units + 1):
            if ledger.do_unit(session, ledger.plan_unit(plan, PLAIN, number)):
                moved.add(number)
            session.commit()
    return moved


def overwrite(session, plan):
    session.get_one(Account, 0).moves -= 1


def overwrite_balance(session, plan):
    session.get_one(Account, 0).balance -= 1


def lose_line(session, plan):
    session.delete(session.scalars(sa.select(Line).where(Line.unit > 0)).first())


def cancel_out(session, plan):
    session.get_one(Account, 0).balance -= 1
    session.scalars(sa.select(Line).filter_by(unit=0, account_id=0)).one().amount -= 1


def invent(session, plan):
    for id in 0, 1:
        session.get_one(Account, id).moves += 1
        session.add(Line(unit=plan.units + 1, account_id=id, amount=0))


@pytest.mark.parametrize(
    ("harm", "lost", "off"),
    [
        pytest.param(lambda session, plan: None, 0, 0, id="control"),
        pytest.param(overwrite, 1, 0, id="a write overwritten"),
        pytest.param(overwrite_balance, 0, 2, id="a balance overwritten"),
        pytest.param(lose_line, 2, 1, id="a line lost"),
        pytest.param(cancel_out, 0, 1, id="the total changed"),
        pytest.param(invent, 1, 0, id="a transfer nobody reported"),
    ],
)
def test_verification(plan, engine, harm, lost, off):
    moved = work(plan, engine)
    assert len(moved) == UNITS * 7 // 10
    with sa_orm.Session(engine) as session, session.begin():
        harm(session, plan)
    assert ledger.verify(engine, plan, moved) == (lost, off)


def test_a_transfer_reported_but_absent_is_lost(plan, engine):
    moved = work(plan, engine)
    assert ledger.verify(engine, plan, moved | {UNITS + 1}) == (1, 0)


@pytest.mark.parametrize("number", range(1, 6))
def test_a_unit_refuses_figures_that_do_not_add_up(plan, engine, number):
    unit = ledger.plan_unit(plan, PLAIN, number)
    with sa_orm.Session(engine) as session:
        session.get_one(Account, unit.source).balance += 1
        with pytest.raises(ledger.WrongFigures):
            ledger.do_unit(session, unit)


def test_a_refused_unit_leaves_nothing(plan, engine):
    with sa_orm.Session(engine) as session:
        ledger.do_unit(session, ledger.plan_unit(plan, PLAIN, 4))
        session.commit()
    assert ledger.verify(engine, plan, set()) == (0, 0)


def test_an_error_is_counted_by_its_kind(plan, engine, monkeypatch):
    def fail(session, unit):
        if unit.number % 2:
            session.execute(sa.text("SELECT no_such_column"))
        return False

    monkeypatch.setattr(threads, "do_unit", fail)
    outcomes = set(threads.perform(plan, MODES["rlock"], engine))
    assert outcomes == {
        Outcome(number, False, "OperationalError" if number % 2 else None)
        for number in range(1, UNITS + 1)
    }


# What does not end


def test_threads_that_are_stuck_are_given_up(plan, engine, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(threads, "do_unit", lambda session, unit: go.wait(10))
    stuck = Plan(plan.url, threads=2, units=2, patience=0.01)
    before = set(threading.enumerate())
    assert list(threads.perform(stuck, PLAIN, engine)) == []
    go.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)


def one_unit(sender):
    sender.send(process.Report(Outcome(1, False, None), 1.0, 7, 0, None))


def crash(plan, mode, sender, reports):
    one_unit(sender)
    os.kill(os.getpid(), signal.SIGKILL)


def leave(plan, mode, sender, reports):
    one_unit(sender)
    os._exit(3)


def end_early(plan, mode, sender, reports):
    one_unit(sender)


def hang(plan, mode, sender, reports):
    one_unit(sender)
    threading.Event().wait()


@pytest.mark.parametrize(
    ("child", "ending"),
    [
        (crash, "crashed (SIGKILL)"),
        (leave, "crashed (status 3)"),
        (end_early, "stuck"),
        (hang, "stuck"),
    ],
)
def test_a_process_that_does_not_finish(plan, monkeypatch, child, ending):
    monkeypatch.setattr(process, "_child", child)
    if child is hang:
        monkeypatch.setattr(process, "GRACE", -plan.patience + 5)
    figures = threads.run(plan, MODES["rlock"])
    assert figures.errors == {ending: UNITS - 1}
    assert (figures.done, figures.failed, figures.calls) == (1, UNITS - 1, 7)
    assert not figures.clean


def complain(plan, mode, sender, reports):
    sender.send("ValueError: no")


def test_a_run_that_cannot_start_says_so(plan, monkeypatch):
    monkeypatch.setattr(process, "_child", complain)
    with pytest.raises(ledger.StressError, match="^ValueError: no$"):
        threads.run(plan, MODES["rlock"])
    assert names(plan.url) == []


def complain_late(plan, mode, sender, reports):
    for number in range(1, UNITS + 1):
        sender.send(process.Report(Outcome(number, False, None), 1.0, 0, 0, None))
    complain(plan, mode, sender, reports)


def test_a_session_that_cannot_be_closed_is_not_clean(plan, monkeypatch):
    monkeypatch.setattr(process, "_child", complain_late)
    figures = threads.run(plan, MODES["rlock"])
    assert (figures.done, figures.failed) == (UNITS, 0)
    assert figures.errors == {"ValueError at close": 1}
    assert not figures.clean


# The plan


def test_a_seed_draws_the_same_units_again(plan):
    def draw(seed):
        seeded = Plan(plan.url, seed=seed)
        return [ledger.plan_unit(seeded, PLAIN, number) for number in range(50)]

    assert draw(1) == draw(1) != draw(2)
    assert all(unit.source != unit.target for unit in draw(1))


@pytest.mark.parametrize(("threads", "units"), [(1, 5), (3, 10), (8, 3), (4, 400)])
def test_the_threads_share_all_units(file_url, threads, units):
    taken = shares(Plan(file_url, threads=threads, units=units))
    assert len(taken) == threads
    assert [number for share in taken for number in share] == list(range(1, units + 1))


@pytest.mark.parametrize(
    "text", ["user:secret@host", "postgresql+psycopg://user:secret@host:port/db"]
)
def test_a_url_that_cannot_be_read_is_not_repeated(text):
    with pytest.raises(ledger.StressError) as caught:
        process.parse_url(text)
    assert "secret" not in str(caught.value)
