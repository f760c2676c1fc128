"""Work that a server, or an owner past the session, throws away: others are told."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from typing import Any, Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    make_transient,
    mapped_column,
)

from sharedsession import (
    SharedSession,
    SharedSessionError,
    WorkLostError,
    critical_section,
)
from sharedsession.internals import orm

from ..support.databases import url_of
from ..support.threads import Worker, wait_for


class Base(DeclarativeBase):
    pass


class Row(Base):
    # A table of this process's own: test processes run side by side.
    __tablename__ = f"sharedsession_lost_{os.getpid()}"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(40))


def in_thread(function: Any, name: str = "other") -> Any:
    return Worker(function, name=name).result()


def names(session: Any) -> set[str]:
    return set(session.scalars(sa.select(Row.name)))


def make_tables(engine: sa.Engine) -> None:
    if engine.dialect.name == "sqlite":
        leave_transactions_to_sqlalchemy(engine)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for name in ("one", "two"):  # by the database's own numbers, 1 and 2
            session.add(Row(name=name))
            session.flush()
        session.commit()


def leave_transactions_to_sqlalchemy(engine: Any) -> None:
    """The recipe of SQLAlchemy's documentation that makes SQLite's savepoints work."""

    @sa.event.listens_for(engine, "connect")
    def leave_transactions_alone(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


def engine_of(name: str, tmp_path: Any) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url_of(name, tmp_path))
    make_tables(engine)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def postgresql(tmp_path: Any) -> Iterator[sa.Engine]:
    yield from engine_of("postgresql", tmp_path)


@pytest.fixture
def mariadb(tmp_path: Any) -> Iterator[sa.Engine]:
    yield from engine_of("mariadb", tmp_path)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[sa.Engine]:
    yield from engine_of(request.param, tmp_path)


# -- PostgreSQL aborts a transaction in which a statement failed


def fail(execute: Callable[[Any], Any], statement: str = "select 1/0") -> None:
    with pytest.raises(DBAPIError):
        execute(sa.text(statement))


FAILURES = {
    "division": "select 1/0",
    "unknown column": "select nothing",
    "serialization failure": (
        "do $$ begin raise exception using errcode = '40001'; end $$"
    ),
    "timeout": "set local statement_timeout = 1; select pg_sleep(30)",
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("lock", ["rlock", "rw"])
def test_a_commit_after_anothers_failed_statement_does_not_seem_to_succeed(
    postgresql: sa.Engine, lock: str, failure: str
) -> None:
    with SharedSession(postgresql, lock=lock) as session:
        session.add(Row(name="mine"))
        session.flush()
        in_thread(lambda: fail(session.execute, FAILURES[failure]), "failing")
        with pytest.raises(WorkLostError, match="'failing'"):
            session.commit()
        session.add(Row(name="again"))
        session.commit()
        assert names(session) == {"one", "two", "again"}


WAYS: dict[str, Callable[[Any], Any]] = {
    "session.execute": lambda session: session.execute(sa.text("select 1/0")),
    "session.scalars": lambda session: session.scalars(sa.text("select 1/0")),
    "connection.execute": lambda session: session.connection().execute(
        sa.text("select 1/0")
    ),
    "connection.scalar": lambda session: session.connection().scalar(
        sa.select(1 / sa.literal(0))
    ),
    "exec_driver_sql": lambda session: session.connection().exec_driver_sql(
        "select 1/0"
    ),
    "query": lambda session: session.query(Row).filter(sa.text("1/0 = 1")).all(),
    "stream": lambda session: session.execute(
        sa.text("select 1/(id - 2) from " + Row.__tablename__),
        execution_options={"yield_per": 1},
    ).all(),
    "refresh": lambda session: _refresh_from_a_dropped_table(session),
}


def _refresh_from_a_dropped_table(session: Any) -> None:
    row = session.get(Row, 1)
    session.execute(sa.text(f"alter table {Row.__tablename__} rename to moved"))
    session.expire(row)
    row.name


@pytest.mark.parametrize("way", WAYS)
def test_nobody_inherits_a_failed_statement(postgresql: sa.Engine, way: str) -> None:
    with SharedSession(postgresql) as session:

        def fail_in_a_way() -> None:
            with pytest.raises(DBAPIError):
                WAYS[way](session)

        in_thread(fail_in_a_way)
        assert names(session) == {"one", "two"}


@pytest.mark.parametrize("end", ["rollback", "close"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.filterwarnings("error")
def test_who_rolls_back_what_another_broke_is_not_warned(
    postgresql: sa.Engine, nested: bool, end: str
) -> None:
    """The recovery before the rollback has done the same already."""
    with SharedSession(postgresql) as session:
        connection = session.connection()
        outer = connection.get_transaction()
        transaction: Any = connection.begin_nested() if nested else outer
        in_thread(lambda: fail(session.execute))
        getattr(transaction, end)()
        assert not transaction.is_active
        assert session.scalar(sa.text("select 1")) == 1
        transaction = session.connection().begin_nested()
        transaction.rollback()
        with pytest.raises(sa.exc.SAWarning):  # the control: as ever
            transaction.rollback()


def test_a_failed_statement_in_a_section_counts_as_well(postgresql: sa.Engine) -> None:
    with SharedSession(postgresql) as session:
        session.add(Row(name="mine"))
        session.flush()

        def fail_and_commit() -> None:
            with session.critical_section():
                fail(session.execute)
                session.commit()  # which plain sessions do not refuse either

        in_thread(fail_and_commit, "failing")
        with pytest.raises(WorkLostError, match="'failing'"):
            session.commit()


def test_the_failing_thread_sees_what_a_plain_session_shows(
    postgresql: sa.Engine,
) -> None:
    for session in (SharedSession(postgresql), Session(postgresql)):
        with session:
            session.add(Row(name="mine"))
            session.flush()
            fail(session.execute)
            with pytest.raises(DBAPIError, match="InFailedSqlTransaction"):
                session.execute(sa.text("select 1"))
            session.rollback()
            assert names(session) == {"one", "two"}
            fail(session.execute)
            session.commit()
            assert names(session) == {"one", "two"}


def test_a_late_rollback_of_the_failing_thread_spares_the_work_of_others(
    postgresql: sa.Engine,
) -> None:
    with SharedSession(postgresql) as session:
        failed, go_on = threading.Event(), threading.Event()

        def fail_and_roll_back_late() -> None:
            fail(session.execute)
            failed.set()
            wait_for(go_on)
            session.rollback()

        failing = Worker(fail_and_roll_back_late)
        wait_for(failed)
        session.add(Row(name="mine"))
        go_on.set()
        failing.result()
        session.commit()
        assert "mine" in names(session)


@pytest.mark.parametrize("where", ["session", "connection"])
def test_a_failure_in_a_savepoint_breaks_that_savepoint_only(
    postgresql: sa.Engine, where: str
) -> None:
    with SharedSession(postgresql) as session:
        session.add(Row(name="mine"))
        session.flush()

        def begin_and_fail() -> None:
            target = session if where == "session" else session.connection()
            target.begin_nested()
            session.add(Row(name="theirs"))
            session.flush()
            fail(session.execute)

        in_thread(begin_and_fail)
        session.commit()  # rolls back to the savepoint first
        assert names(session) == {"one", "two", "mine"}


@pytest.mark.parametrize("where", ["session", "connection"])
def test_rolling_ones_own_savepoint_back_leaves_the_rest_sound(
    postgresql: sa.Engine, where: str
) -> None:
    with SharedSession(postgresql) as session:
        session.add(Row(name="mine"))
        session.flush()

        def fail_within() -> None:
            target = session if where == "session" else session.connection()
            with pytest.raises(DBAPIError), target.begin_nested():
                session.execute(sa.text("select 1/0"))

        in_thread(fail_within)
        assert session._recovery.failure is None
        session.commit()
        assert names(session) == {"one", "two", "mine"}


def test_an_error_of_the_driver_alone_breaks_nothing(postgresql: sa.Engine) -> None:
    with SharedSession(postgresql) as session:
        session.add(Row(name="mine"))
        session.flush()

        def pass_what_the_driver_cannot_send() -> None:
            with pytest.raises(DBAPIError):
                session.execute(sa.text("select :value"), {"value": object()})

        in_thread(pass_what_the_driver_cannot_send)
        session.commit()
        assert "mine" in names(session)


def test_a_failure_under_autocommit_breaks_nothing(postgresql: sa.Engine) -> None:
    engine = postgresql.execution_options(isolation_level="AUTOCOMMIT")
    with SharedSession(engine) as session:
        session.add(Row(name="mine"))
        session.flush()
        in_thread(lambda: fail(session.execute))
        session.commit()
        assert "mine" in names(session)


def test_tasks_are_told_as_threads_are(postgresql: sa.Engine) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    from sharedsession.asyncio import AsyncSharedSession

    async def main() -> None:
        engine = create_async_engine(postgresql.url)
        async with AsyncSharedSession(engine) as session:
            session.add(Row(name="mine"))
            await session.flush()

            async def fail_alone() -> None:
                with pytest.raises(DBAPIError):
                    await session.execute(sa.text("select 1/0"))

            await asyncio.create_task(fail_alone(), name="failing")
            with pytest.raises(WorkLostError, match="'failing'"):
                await session.commit()
            await asyncio.create_task(fail_alone())
            found = await session.scalars(sa.select(Row.name))
            assert set(found) == {"one", "two"}
        await engine.dispose()

    asyncio.run(main())


# -- other databases roll the whole transaction back


def deadlock(session: Any, engine: sa.Engine) -> None:
    """Have the session be the victim of a deadlock, which the server resolves."""
    locked, going = threading.Event(), threading.Event()
    update = "update {} set name = 'x' where id = {}"
    first, second = (update.format(Row.__tablename__, number) for number in (1, 2))

    def be_in_the_way() -> None:
        with engine.connect() as connection:
            # What has written more rows is not chosen as the victim.
            connection.execute(
                sa.insert(Row), [{"name": "heavy"} for number in range(200)]
            )
            connection.execute(sa.text(second))
            locked.set()
            wait_for(going)
            connection.execute(sa.text(first))
            connection.rollback()

    session.execute(sa.text(first))
    other = Worker(be_in_the_way, name="in the way")
    wait_for(locked)
    going.set()
    with pytest.raises(DBAPIError, match="1213"):
        session.execute(sa.text(second))
    other.result()


@pytest.mark.parametrize("within", ["transaction", "savepoint", "both"])
def test_a_deadlock_of_mariadb_is_told_to_those_who_lose_by_it(
    mariadb: sa.Engine, within: str
) -> None:
    with SharedSession(mariadb) as session:
        session.add(Row(name="mine"))
        session.flush()

        def meet_a_deadlock() -> None:
            if within != "transaction":
                session.begin_nested()
            if within == "both":
                session.connection().begin_nested()
            deadlock(session, mariadb)

        in_thread(meet_a_deadlock, "failing")
        with pytest.raises(WorkLostError, match="'failing'"):
            session.commit()
        session.add(Row(name="again"))
        session.commit()
        assert names(session) == {"one", "two", "again"}


def test_another_error_of_mariadb_breaks_nothing(mariadb: sa.Engine) -> None:
    with SharedSession(mariadb) as session:
        session.add(Row(name="mine"))
        session.flush()
        in_thread(lambda: fail(session.execute, "select nothing"))
        session.commit()
        assert "mine" in names(session)


@pytest.fixture(params=["recipe", "default"])
def sqlite(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url_of("sqlite", tmp_path))
    if request.param == "recipe":
        leave_transactions_to_sqlalchemy(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(Row), [{"id": 1, "name": "one"}])
    yield engine
    engine.dispose()


def test_a_rollback_by_sqlite_itself_is_told(sqlite: sa.Engine) -> None:
    clash = f"insert or rollback into {Row.__tablename__} (id, name) values (1, 'x')"
    with SharedSession(sqlite) as session:
        session.add(Row(name="mine"))
        session.flush()
        in_thread(lambda: fail(session.execute, clash), "failing")
        with pytest.raises(WorkLostError, match="'failing'"):
            session.commit()
        assert names(session) == {"one"}


@pytest.mark.parametrize(
    "statement", ["select nothing", "insert into nothing values (1)"]
)
def test_another_error_of_sqlite_breaks_nothing(
    sqlite: sa.Engine, statement: str
) -> None:
    with SharedSession(sqlite) as session:
        session.add(Row(name="mine"))
        in_thread(lambda: fail(session.connection().execute, statement))
        session.commit()
        assert names(session) == {"one", "mine"}


# -- transactions that end at the connection


class Other:
    """A thread that does one thing after another, so that it can be told of losses."""

    def __init__(self) -> None:
        self._steps: list[Any] = []
        self._given = threading.Semaphore(0)
        self._worker = Worker(self._run, name="author")

    def _run(self) -> None:
        while True:
            if not self._given.acquire(timeout=30):
                return
            step = self._steps.pop(0)
            if step is None:
                return
            function, box, done = step
            try:
                box.append((function(), None))
            except BaseException as error:
                box.append((None, error))
            done.set()

    def do(self, function: Callable[[], Any]) -> Any:
        box: list[Any] = []
        done = threading.Event()
        self._steps.append((function, box, done))
        self._given.release()
        wait_for(done)
        result, error = box[0]
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        self._steps.append(None)
        self._given.release()
        self._worker.result()


@pytest.fixture
def author() -> Iterator[Other]:
    other = Other()
    yield other
    other.end()


def flush_one(session: Any) -> None:
    session.add(Row(name="theirs"))
    session.flush()


def execute_one(session: Any) -> None:
    session.execute(sa.insert(Row).values(name="theirs"))


@pytest.mark.parametrize("write", [flush_one, execute_one])
def test_who_wrote_in_a_savepoint_of_the_connection_is_told_of_its_rollback(
    database: sa.Engine, author: Other, write: Any
) -> None:
    with SharedSession(database) as session:
        savepoint = session.connection().begin_nested()
        author.do(lambda: write(session))
        savepoint.rollback()
        with pytest.raises(WorkLostError, match="savepoint"):
            author.do(session.commit)
        author.do(session.commit)
        assert names(session) == {"one", "two"}


def test_what_was_pending_is_in_the_savepoint_that_it_is_flushed_in(
    database: sa.Engine, author: Other
) -> None:
    with SharedSession(database) as session:
        author.do(lambda: session.add(Row(name="theirs")))
        savepoint = session.connection().begin_nested()
        assert "theirs" in names(session)  # autoflush
        savepoint.rollback()
        with pytest.raises(WorkLostError, match="savepoint"):
            author.do(session.commit)


def test_what_is_pending_still_is_not_lost_with_a_savepoint(
    database: sa.Engine, author: Other
) -> None:
    with SharedSession(database) as session:
        savepoint = session.connection().begin_nested()
        author.do(lambda: session.add(Row(name="theirs")))
        savepoint.rollback()
        author.do(session.commit)
        assert "theirs" in names(session)


def test_what_was_written_before_a_savepoint_is_not_lost_with_it(
    database: sa.Engine, author: Other
) -> None:
    with SharedSession(database) as session:
        author.do(lambda: flush_one(session))
        session.connection().begin_nested().rollback()
        author.do(session.commit)
        assert "theirs" in names(session)


def test_work_in_a_released_savepoint_belongs_to_the_one_around_it(
    database: sa.Engine, author: Other
) -> None:
    with SharedSession(database) as session:
        outer = session.connection().begin_nested()
        inner = session.connection().begin_nested()
        author.do(lambda: flush_one(session))
        inner.commit()
        outer.rollback()
        with pytest.raises(WorkLostError, match="savepoint"):
            author.do(session.commit)


def test_who_rolls_its_own_savepoint_back_is_not_told(database: sa.Engine) -> None:
    with SharedSession(database) as session:
        savepoint = session.connection().begin_nested()
        flush_one(session)
        savepoint.rollback()
        session.commit()


def test_a_statement_that_failed_is_no_work(sqlite: sa.Engine, author: Other) -> None:
    """Who rolls the savepoint back that it was tried in throws nothing away."""

    def fail_to_insert() -> None:
        with pytest.raises(sa.exc.IntegrityError):
            session.execute(sa.insert(Row).values(id=1, name="taken"))

    with SharedSession(sqlite) as session:
        savepoint = session.connection().begin_nested()
        author.do(fail_to_insert)
        savepoint.rollback()
        author.do(session.commit)


ENDS: dict[str, Callable[[Any], Any]] = {
    "rollback": lambda connection: connection.rollback(),
    "transaction.rollback": lambda connection: connection.get_transaction().rollback(),
    "transaction.close": lambda connection: connection.get_transaction().close(),
    "close": lambda connection: connection.close(),
    "invalidate": lambda connection: connection.invalidate(),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_who_loses_work_by_a_rollback_at_the_connection_is_told(
    database: sa.Engine, author: Other, end: str, nested: bool
) -> None:
    with SharedSession(database) as session:
        author.do(lambda: flush_one(session))
        if nested:
            session.begin_nested()
        ENDS[end](session.connection())
        with pytest.raises(WorkLostError, match="'MainThread'.*connection"):
            author.do(session.commit)
        author.do(lambda: session.add(Row(name="again")))
        author.do(session.commit)
        assert author.do(lambda: names(session)) == {"one", "two", "again"}


def test_a_transaction_begun_anew_at_the_connection_goes_too(
    database: sa.Engine, author: Other
) -> None:
    with database.connect() as connection, SharedSession(connection) as session:
        author.do(lambda: flush_one(session))
        session.connection().rollback()
        session.connection().execute(sa.text("select 1"))  # which begins another one
        with pytest.raises(WorkLostError):
            author.do(session.commit)
        author.do(lambda: flush_one(session))
        author.do(session.commit)
        connection.rollback()
        assert author.do(lambda: names(session)) == {"one", "two", "theirs"}


def test_what_was_committed_at_the_connection_is_not_lost(
    database: sa.Engine, author: Other
) -> None:
    with SharedSession(database) as session:
        author.do(lambda: flush_one(session))
        session.connection().commit()
        author.do(lambda: session.add(Row(name="again")))
        author.do(session.commit)
        assert author.do(lambda: names(session)) == {"one", "two", "theirs", "again"}


def test_who_ends_it_at_the_connection_sees_what_a_plain_session_shows(
    database: sa.Engine,
) -> None:
    for session in (SharedSession(database), Session(database)):
        with session:
            flush_one(session)
            session.connection().rollback()
            with pytest.raises(InvalidRequestError, match="inactive"):
                session.commit()


# -- two phases


def test_a_prepared_transaction_is_not_broken_by_a_refused_read(
    mariadb: sa.Engine,
) -> None:
    with SharedSession(mariadb, twophase=True) as session:
        flush_one(session)
        session.prepare()

        def read() -> None:
            with pytest.raises(InvalidRequestError) as caught:
                session.scalars(sa.select(Row.name))
            assert not isinstance(caught.value, WorkLostError)

        in_thread(read)
        session.commit()
        assert "theirs" in names(session)


def test_a_second_phase_that_fails_breaks_the_transaction(
    mariadb: sa.Engine, author: Other
) -> None:
    with SharedSession(mariadb, twophase=True) as session:
        author.do(lambda: flush_one(session))
        session.prepare()

        @sa.event.listens_for(mariadb, "commit_twophase", once=True)
        def fail_to_commit(connection: Any, xid: str, is_prepared: bool) -> None:
            connection.exec_driver_sql(f"XA ROLLBACK '{xid}'")  # or it stays for good
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            session.commit()
        with pytest.raises(WorkLostError, match="ZeroDivisionError"):
            author.do(session.commit)


def test_who_loses_prepared_work_by_a_rollback_is_told(
    mariadb: sa.Engine, author: Other
) -> None:
    with SharedSession(mariadb, twophase=True) as session:
        author.do(lambda: flush_one(session))
        session.prepare()
        session.rollback()
        with pytest.raises(WorkLostError):
            author.do(session.commit)


# -- changes thrown away before they are flushed


@pytest.fixture(params=["rlock", "rw"])
def calm(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Any]:
    """A session that flushes only when it is asked to."""
    for engine in engine_of("sqlite", tmp_path):
        with SharedSession(engine, lock=request.param, autoflush=False) as session:
            yield session


def load_anew(session: Any, row: Any) -> None:
    statement = sa.select(Row).execution_options(populate_existing=True)
    session.scalars(statement).all()


def query_anew(session: Any, row: Any) -> None:
    session.query(Row).populate_existing().all()


def set_committed(session: Any, row: Any) -> None:
    sa.orm.attributes.set_committed_value(row, "name", "loaded")


DISCARDS: dict[str, Callable[[Any, Any], Any]] = {
    "expire": lambda session, row: session.expire(row),
    "expire an attribute": lambda session, row: session.expire(row, ["name"]),
    "expire_all": lambda session, row: session.expire_all(),
    "refresh": lambda session, row: session.refresh(row),
    "refresh an attribute": lambda session, row: session.refresh(row, ["name"]),
    "expunge": lambda session, row: session.expunge(row),
    "expunge_all": lambda session, row: session.expunge_all(),
    "populate_existing": load_anew,
    "Query.populate_existing": query_anew,
    "set_committed_value": set_committed,
}


@pytest.mark.parametrize("how", DISCARDS)
def test_who_loses_unflushed_changes_is_told(
    calm: Any, author: Other, how: str
) -> None:
    row = calm.get(Row, 1)
    author.do(lambda: setattr(row, "name", "new"))
    DISCARDS[how](calm, row)
    with pytest.raises(WorkLostError, match="'MainThread'.*not flushed"):
        author.do(calm.commit)
    author.do(calm.commit)


@pytest.mark.parametrize("how", DISCARDS)
def test_who_throws_its_own_changes_away_is_not_told(
    calm: Any, author: Other, how: str
) -> None:
    row, other = calm.get(Row, 1), calm.get(Row, 2)
    author.do(lambda: calm.get(Row, 1))
    row.name = "new"
    DISCARDS[how](calm, row)
    author.do(calm.commit)
    calm.commit()
    assert other is not None


@pytest.mark.parametrize("how", DISCARDS)
def test_flushed_changes_are_not_lost_so(calm: Any, author: Other, how: str) -> None:
    row = calm.get(Row, 1)

    def change_and_flush() -> None:
        row.name = "new"
        calm.flush()

    author.do(change_and_flush)
    DISCARDS[how](calm, row)
    author.do(calm.commit)
    assert "new" in names(calm)


@pytest.mark.parametrize("how", ["expunge", "expunge_all"])
@pytest.mark.parametrize("what", ["added", "deleted"])
def test_who_loses_an_object_added_or_deleted_is_told(
    calm: Any, author: Other, how: str, what: str
) -> None:
    row = Row(name="new") if what == "added" else calm.get(Row, 1)
    author.do(lambda: calm.add(row) if what == "added" else calm.delete(row))
    DISCARDS[how](calm, row)
    with pytest.raises(WorkLostError, match="expunged"):
        author.do(calm.commit)


def test_what_another_object_or_attribute_loses_concerns_nobody_else(
    calm: Any, author: Other
) -> None:
    row, other = calm.get(Row, 1), calm.get(Row, 2)
    author.do(lambda: setattr(row, "name", "new"))
    other.name = "mine"
    calm.expire(other)
    calm.expire(row, ["id"])
    author.do(calm.commit)
    assert names(calm) == {"new", "two"}


def test_an_owner_that_changes_what_another_changed_is_told_too(
    calm: Any, author: Other
) -> None:
    row = calm.get(Row, 1)
    row.name = "mine"
    author.do(lambda: setattr(row, "name", "theirs"))  # in few steps: it is noted
    in_thread(lambda: calm.expire(row), "expiring")
    for change in (calm.commit, lambda: author.do(calm.commit)):
        with pytest.raises(WorkLostError, match="'expiring'"):
            change()


def test_what_a_commit_expires_is_not_lost(calm: Any, author: Other) -> None:
    row = calm.get(Row, 1)
    author.do(lambda: setattr(row, "name", "new"))
    calm.commit()
    author.do(calm.rollback)
    author.do(lambda: setattr(row, "name", "newer"))
    author.do(calm.commit)
    assert "newer" in names(calm)


def test_changes_that_a_commit_at_the_connection_did_not_write_are_lost(
    calm: Any, author: Other
) -> None:
    author.do(lambda: calm.add(Row(name="pending")))
    calm.connection().commit()
    with pytest.raises(WorkLostError, match="COMMIT at the connection"):
        author.do(calm.commit)


def test_flushed_changes_keep_no_owner_alive(calm: Any) -> None:
    row = calm.get(Row, 1)
    in_thread(lambda: setattr(row, "name", "new"))
    calm.flush()
    assert not calm._recovery._ledger.changed_states()
    assert orm.CHANGERS not in vars(sa.inspect(row))


def test_tasks_are_told_of_changes_thrown_away() -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    from sharedsession.asyncio import AsyncSharedSession

    async def main() -> None:
        engine = create_async_engine("sqlite+aiosqlite://")
        leave_transactions_to_sqlalchemy(engine.sync_engine)
        async with AsyncSharedSession(engine, autoflush=False) as session:
            await session.run_sync(
                lambda session: Base.metadata.create_all(session.connection())
            )
            session.add(Row(name="one"))
            await session.commit()
            row = await session.get(Row, 1)
            assert row is not None
            row.name = "new"

            async def discard() -> None:
                await session.refresh(row)

            await asyncio.create_task(discard(), name="careless")
            with pytest.raises(WorkLostError, match="'careless'"):
                await session.commit()
            row.name = "new"

            async def expire() -> None:
                session.expire_all()

            await asyncio.create_task(expire(), name="careless")
            with pytest.raises(WorkLostError, match="'careless'"):
                await session.commit()
            savepoint = await (await session.connection()).begin_nested()

            async def write() -> None:
                session.add(Row(name="theirs"))
                await session.flush()
                undone.set()
                await told.wait()
                with pytest.raises(WorkLostError, match="savepoint"):
                    await session.commit()

            undone, told = asyncio.Event(), asyncio.Event()
            writer = asyncio.create_task(write())
            await undone.wait()
            await savepoint.rollback()
            told.set()
            await writer
        await engine.dispose()

    asyncio.run(main())


# -- units of work where SQLite's driver begins no transaction


def begun_by_the_driver(tmp_path: Any, **arguments: Any) -> sa.Engine:
    engine = sa.create_engine(url_of("sqlite", tmp_path), connect_args=arguments)
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture(params=["rlock", "rw", "off"])
def by_default(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Any]:
    """A session on SQLite's driver as it is."""
    engine = begun_by_the_driver(tmp_path)
    with SharedSession(engine, lock=request.param) as session:
        yield session
    engine.dispose()


@pytest.mark.parametrize("before", ["nothing", "a read"])
@pytest.mark.parametrize("write", [flush_one, execute_one])
def test_a_unit_that_could_not_be_undone_is_refused(
    by_default: Any, write: Any, before: str
) -> None:
    if before == "a read":
        names(by_default)
    with pytest.raises(SharedSessionError, match="Serializable isolation"):
        with critical_section(by_default, transaction="savepoint"):
            write(by_default)
    by_default.rollback()
    assert not names(by_default)


def test_a_refused_unit_writes_nothing_at_its_end_either(by_default: Any) -> None:
    with pytest.raises(SharedSessionError, match="Nothing was changed"):
        with critical_section(by_default, transaction="savepoint"):
            by_default.add(Row(name="unit"))
    by_default.commit()
    assert not names(by_default)


def test_a_unit_after_a_write_can_be_undone(by_default: Any) -> None:
    flush_one(by_default)
    with critical_section(by_default, transaction="savepoint"):
        by_default.add(Row(name="unit"))
    with pytest.raises(ZeroDivisionError):
        with critical_section(by_default, transaction="savepoint"):
            by_default.add(Row(name="undone"))
            by_default.flush()
            raise ZeroDivisionError
    assert names(by_default) == {"theirs", "unit"}
    by_default.rollback()
    assert not names(by_default)


def test_a_unit_inside_one_that_commits_can_be_undone(by_default: Any) -> None:
    with critical_section(by_default, transaction="commit"):
        by_default.add(Row(name="outer"))
        with pytest.raises(ZeroDivisionError):
            with critical_section(by_default, transaction="savepoint"):
                flush_one(by_default)
                raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        with critical_section(by_default, transaction="commit"):
            with critical_section(by_default, transaction="savepoint"):
                flush_one(by_default)
            raise ZeroDivisionError
    by_default.rollback()
    assert names(by_default) == {"outer"}


def test_a_unit_whose_commit_fails_commits_nothing(by_default: Any) -> None:
    @sa.event.listens_for(by_default, "before_commit")
    def fail_at_the_outer_commit(session: Any) -> None:
        if not session.in_nested_transaction():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        with critical_section(by_default, transaction="commit"):
            flush_one(by_default)
    by_default.rollback()
    assert not names(by_default)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="new in Python 3.12")
def test_a_unit_can_be_undone_if_the_driver_begins_at_once(tmp_path: Any) -> None:
    engine = begun_by_the_driver(tmp_path, autocommit=False)
    with SharedSession(engine) as session:
        with critical_section(session, transaction="savepoint"):
            flush_one(session)
        session.rollback()
        assert not names(session)
    engine.dispose()


def test_tasks_are_refused_such_a_unit_too() -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    from sharedsession.asyncio import AsyncSharedSession

    async def main() -> None:
        engine = create_async_engine("sqlite+aiosqlite://")
        async with AsyncSharedSession(engine) as session:
            await session.run_sync(
                lambda session: Base.metadata.create_all(session.connection())
            )
            await session.commit()
            with pytest.raises(SharedSessionError, match="Serializable isolation"):
                async with critical_section(session, transaction="savepoint"):
                    session.add(Row(name="unit"))
            async with critical_section(session, transaction="commit"):
                session.add(Row(name="done"))
            await session.rollback()
            assert set(await session.scalars(sa.select(Row.name))) == {"done"}
        await engine.dispose()

    asyncio.run(main())


def test_a_changed_object_that_nobody_keeps_is_lost_aloud(
    calm: Any, author: Other
) -> None:
    """Without its change the session does not keep the object either."""
    author.do(lambda: setattr(calm.get(Row, 1), "name", "new"))
    calm.expire_all()
    with pytest.raises(WorkLostError, match="expired"):
        author.do(calm.commit)


def test_an_object_that_is_made_transient_is_lost_aloud(
    calm: Any, author: Other
) -> None:
    row = Row(name="new")
    author.do(lambda: calm.add(row))
    make_transient(row)
    with pytest.raises(WorkLostError, match="expunged"):
        author.do(calm.commit)


@pytest.mark.parametrize("how", ["close", "expunge_all", "expunge"])
def test_what_is_lost_although_a_listener_raises_is_told(
    calm: Any, author: Other, how: str
) -> None:
    row = calm.get(Row, 1)
    other = calm.get(Row, 2)
    author.do(lambda: setattr(row, "name", "new"))
    author.do(lambda: setattr(other, "name", "new as well"))

    def refuse(*args: Any) -> None:
        raise RuntimeError("by a listener")

    sa.event.listen(calm, "persistent_to_detached", refuse, once=True)
    with pytest.raises(RuntimeError, match="by a listener"):
        calm.expunge(row) if how == "expunge" else getattr(calm, how)()
    with pytest.raises(WorkLostError, match="expunged"):
        author.do(calm.commit)
    author.do(calm.commit)
    calm.close()


def test_changes_go_with_the_block_that_moved(calm: Any, author: Other) -> None:
    """The end of the block flushes them, in the name of the owner that leaves it."""
    block = calm.begin()

    def enter_and_add() -> None:
        block.__enter__()
        calm.add(Row(name="new"))

    def refuse(connection: Any) -> None:
        raise RuntimeError("no commit")

    sa.event.listen(calm.get_bind(), "commit", refuse, once=True)
    author.do(enter_and_add)
    with pytest.raises(RuntimeError, match="no commit"):
        block.__exit__(None, None, None)
    assert "new" not in author.do(lambda: names(calm))


@pytest.mark.parametrize("how", ["block", "unit"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cursor_that_cannot_be_closed_breaks_the_transaction(
    postgresql: sa.Engine,
    author: Other,
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The rollback to the savepoint has closed it on the server."""
    numbers = sa.text("select generate_series(1, 9)").execution_options(yield_per=1)
    with SharedSession(postgresql) as session:
        author.do(lambda: flush_one(session))
        blocks: dict[str, Any] = {
            "block": session.begin_nested,
            "unit": lambda: critical_section(session, transaction="savepoint"),
        }
        with pytest.raises(KeyError):
            with blocks[how]():
                result = session.execute(numbers)
                result.fetchone()
                raise KeyError
        result.close()
        with pytest.raises(WorkLostError):
            author.do(session.commit)
        session.rollback()
    # psycopg warns of the cursor, whose CLOSE has failed, when it is collected.
    del result
    caplog.clear()  # has the traceback
    gc.collect()


# -- the end of a transaction by a statement in text


@pytest.mark.parametrize("where", ["session", "connection", "driver"])
def test_who_loses_work_by_a_rollback_in_text_is_told(
    database: sa.Engine, author: Other, where: str
) -> None:
    with SharedSession(database) as session:
        author.do(lambda: flush_one(session))
        if where == "session":
            session.execute(sa.text("/* undo */ ROLLBACK;"))
        elif where == "connection":
            session.connection().execute(sa.text("-- undo\nrollback"))
        else:
            session.connection().exec_driver_sql("ROLLBACK")
        with pytest.raises(WorkLostError, match="executed a ROLLBACK"):
            author.do(session.commit)
        session.rollback()


def test_a_rollback_to_a_savepoint_in_text_is_no_end(
    database: sa.Engine, author: Other
) -> None:
    with SharedSession(database) as session:
        author.do(lambda: flush_one(session))
        session.execute(sa.text("SAVEPOINT here"))
        session.execute(sa.text("ROLLBACK TO SAVEPOINT here"))
        author.do(session.commit)
