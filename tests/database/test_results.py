"""Results in memory: whole, for several threads, and with a plain one's facts."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session

from sharedsession import SharedSession, SharedSessionError, SharedSessionMixin

from ..support.databases import alone, url_of
from ..support.models import Base, User
from ..support.threads import Worker, passes, together

DATABASES = ["sqlite", "postgresql", "mariadb"]


@pytest.fixture(params=DATABASES)
def tables(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    """An engine with a table of six rows."""
    engine = sa.create_engine(url_of(request.param, tmp_path))
    metadata = sa.MetaData()
    sa.Table(
        "facts",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20)),
    )
    with alone(request.param):
        metadata.drop_all(engine)
        metadata.create_all(engine)
        with engine.begin() as connection:
            rows = [{"name": f"name {number}"} for number in range(6)]
            connection.execute(metadata.tables["facts"].insert(), rows)
        yield engine, metadata.tables["facts"]
        metadata.drop_all(engine)
        engine.dispose()


# -- what a result says of itself


STATEMENTS = {
    "text select": lambda facts: sa.text("SELECT id, name FROM facts ORDER BY id"),
    "select": lambda facts: sa.select(facts).order_by(facts.c.id),
    "no rows": lambda facts: sa.select(facts).where(facts.c.id < 0),
    "text update": lambda facts: sa.text("UPDATE facts SET name='x' WHERE id > 1"),
    "update": lambda facts: sa.update(facts).values(name="x"),
    "insert": lambda facts: sa.insert(facts).values(name="x"),
    "delete": lambda facts: sa.delete(facts).where(facts.c.id > 4),
    "text returning": lambda facts: sa.text("UPDATE facts SET name='x' RETURNING id"),
}

FACTS: dict[str, Any] = {
    "rowcount": lambda r: r.rowcount,
    "keys": lambda r: list(r.keys()),
    "closed": lambda r: r.closed,
    "soft closed": lambda r: r._soft_closed,
    "returns_rows": lambda r: r.returns_rows,
    "is_insert": lambda r: r.is_insert,
    "lastrowid": lambda r: r.lastrowid,
    "inserted": lambda r: tuple(r.inserted_primary_key),
    "cursor": lambda r: r.cursor is None,
    "description": lambda r: [column[0] for column in r.cursor.description],
    "arraysize": lambda r: r.cursor.arraysize,
    "sane": lambda r: r.supports_sane_rowcount(),
}

STAGES: dict[str, Any] = {
    "fresh": lambda r: None,
    "one row": lambda r: r.fetchone(),
    "many without a size": lambda r: r.fetchmany(),
    "many": lambda r: r.fetchmany(2),
    "all": lambda r: r.all(),
    "after the last": lambda r: (r.fetchall(), r.fetchone()),
    "first": lambda r: r.first(),
    "closed": lambda r: r.close(),
}


def said_by(session: Session, statement: Any, stage: Any) -> dict[str, Any]:
    def answer(ask: Any, result: Any) -> Any:
        try:
            return repr(ask(result))
        except Exception as error:
            return type(error).__name__

    result = session.execute(statement)
    said = {"stage": answer(stage, result)}
    for name, fact in FACTS.items():
        # Psycopg's cursors have no lastrowid, and asking for it closes a plain result.
        if name != "lastrowid" or session.get_bind().dialect.name != "postgresql":
            said[name] = answer(fact, result)
    said["rest"] = answer(lambda r: r.all(), result)
    session.rollback()
    return said


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_result_says_what_a_plain_one_says(tables: Any, name: str) -> None:
    engine, facts = tables
    if name == "text returning" and engine.dialect.name == "mysql":
        pytest.skip("MariaDB has no UPDATE .. RETURNING")
    statement = STATEMENTS[name](facts)
    for stage, go in STAGES.items():
        with Session(engine) as plain:
            expected = said_by(plain, statement, go)
        with SharedSession(engine) as shared:
            said = said_by(shared, statement, go)
        if name == "insert":  # each makes a new row
            for each in (expected, said):
                each.pop("lastrowid", None), each.pop("inserted")
        if name == "text returning" and stage in ("first", "closed"):
            # SQLite counts the rows that were fetched, here and in a plain session.
            for each in (expected, said):
                each.pop("rowcount")
        assert said == expected, stage


# -- reflection


def test_reflection_on_the_sessions_connection(tables: Any) -> None:
    engine, _ = tables
    with SharedSession(engine) as session:
        connection = session.connection()
        inspector = sa.inspect(connection)
        assert inspector.has_table("facts")
        columns = [column["name"] for column in inspector.get_columns("facts")]
        assert columns == ["id", "name"]
        assert inspector.get_pk_constraint("facts")["constrained_columns"] == ["id"]
        reflected = sa.MetaData()
        reflected.reflect(connection, only=["facts"])
        assert list(reflected.tables["facts"].c.keys()) == ["id", "name"]
        reflected.create_all(connection)  # finds that it is there


# -- several threads


@pytest.fixture
def many(engine: sa.Engine) -> Any:
    Base.metadata.create_all(engine)
    with Session(engine) as plain:
        plain.add_all(User(name=f"user {number}") for number in range(400))
        plain.commit()
        numbers = plain.scalars(sa.select(User.id).order_by(User.id)).all()
    session = SharedSession(engine)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield session, list(numbers)
    sys.setswitchinterval(interval)
    session.close()


SELECTS = {
    "core": lambda: sa.select(User.__table__.c.id).order_by(User.__table__.c.id),
    "columns": lambda: sa.select(User.id).order_by(User.id),
    "objects": lambda: sa.select(User).order_by(User.id),
}


def consume_fetchone(result: Any) -> list[Any]:
    rows = []
    while (row := result.fetchone()) is not None:
        rows.append(row)
    return rows


def consume_fetchmany(result: Any) -> list[Any]:
    rows: list[Any] = []
    while some := result.fetchmany(2):
        rows += some
    return rows


CONSUMERS: dict[str, Any] = {
    "fetchone": lambda r: lambda: consume_fetchone(r),
    "fetchmany": lambda r: lambda: consume_fetchmany(r),
    "next": lambda r: lambda: list(r),
    "one iterator": lambda r: lambda rows=iter(r): list(rows),
    "one iterator of scalars": lambda r: lambda rows=iter(r.scalars()): [
        (value,) for value in rows
    ],
    "mappings": lambda r: lambda rows=r.mappings(): [
        tuple(row.values()) for row in rows
    ],
    "partitions": lambda r: lambda rows=r.partitions(3): [
        row for part in rows for row in part
    ],
    "unique": lambda r: lambda rows=r.unique(): list(rows),
    "all": lambda r: lambda: list(r.all()),
}


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("select", SELECTS)
def test_threads_that_consume_one_result_get_each_row_once(
    many: Any, select: str, consumer: str
) -> None:
    session, numbers = many
    result = session.execute(SELECTS[select]())
    consume = CONSUMERS[consumer](result)
    found = together(consume, consume, consume, consume)
    values = [row[0] for rows in found for row in rows]
    got = [getattr(value, "id", value) for value in values]
    assert sorted(got) == numbers


def test_a_result_is_whole_whoever_else_comes_in(many: Any) -> None:
    """Made later, and unlocked, the objects of nearly every result were missing."""
    session, numbers = many
    over = threading.Event()

    def disturb() -> None:
        while not over.is_set():
            session.scalar(sa.select(sa.func.count(User.id)))

    def count() -> set[int]:
        sizes = set()
        for _ in range(30):
            result = session.scalars(sa.select(User))
            session.in_transaction()
            sizes.add(len(result.all()))
        return sizes

    disturber = Worker(disturb)
    try:
        assert together(count, count) == [{len(numbers)}] * 2
    finally:
        over.set()
    disturber.result()


def test_rows_are_consumed_while_another_thread_is_inside(many: Any) -> None:
    from ..support.threads import inside

    session, numbers = many
    results = [session.execute(SELECTS[name]()) for name in SELECTS]
    with inside(session.critical_section):
        for result in results:
            first = Worker(lambda result=result: result.fetchmany(3))
            assert len(first.result()) == 3
            assert len(result.all()) == len(numbers) - 3
            result.close()


# -- objects of rows that an UPDATE returned


def renaming() -> Any:
    statement = sa.update(User).values(name="new").returning(User)
    return statement.execution_options(
        populate_existing=True, synchronize_session=False
    )


@pytest.mark.parametrize("lock", ["rlock", "rw"])
def test_returned_rows_become_objects_before_another_owner_comes_in(
    engine: sa.Engine, lock: str
) -> None:
    with SharedSession(engine, lock=lock) as session:
        user = session.get_one(User, 1)
        before = user.name
        rows = session.scalars(renaming())
        assert user.name == before  # as in a plain session, since no row was fetched
        Worker(lambda: session.scalar(sa.select(sa.func.count(User.id)))).result()
        assert user.name == "new"
        assert user in rows.all()
        session.rollback()


def test_returned_rows_become_objects_at_the_first_fetch(engine: sa.Engine) -> None:
    with SharedSession(engine) as session:
        user = session.get_one(User, 1)
        rows = session.execute(renaming()).scalars()
        assert rows.first() is not None
        assert user.name == "new"
        session.rollback()


def test_threads_consume_the_objects_of_returned_rows(engine: sa.Engine) -> None:
    with SharedSession(engine) as session:
        count = session.scalar(sa.select(sa.func.count(User.id)))
        rows = session.scalars(renaming())
        found = together(*[lambda: list(rows)] * 4)
        assert len({user for part in found for user in part}) == count
        assert sum(map(len, found)) == count
        session.rollback()


def test_a_fetch_that_waits_for_a_section_keeps_no_lock(engine: sa.Engine) -> None:
    """The thread in the section consumes the same result, and must not wait for it."""
    with SharedSession(engine) as session:
        count = session.scalar(sa.select(sa.func.count(User.id)))
        with session.critical_section():
            rows = session.scalars(renaming())
            waiting = Worker(rows.all)
            assert not passes(waiting, session.guard)
            assert len(rows.fetchmany(1)) == 1
        assert len(waiting.result()) == count - 1
        session.rollback()


def test_returned_rows_become_objects_before_a_read_section(engine: sa.Engine) -> None:
    with SharedSession(engine, lock="rw") as session:
        user = session.get_one(User, 1)
        rows = session.scalars(renaming())

        def read() -> list[Any]:
            with session.read_section():
                first = user.name
                session.scalar(sa.select(sa.func.count(User.id)))
                return [first, user.name]

        assert Worker(read).result() == ["new", "new"]
        assert user in rows.all()
        session.rollback()


def test_who_made_the_objects_may_be_interrupted(engine: sa.Engine) -> None:
    """The consumer is told, and does not find the result empty."""
    with SharedSession(engine) as session:
        rows = session.scalars(renaming())
        interrupts = [KeyboardInterrupt()]

        def interrupt(user: Any, context: Any) -> None:
            if interrupts:
                raise interrupts.pop()

        sa.event.listen(User, "load", interrupt)
        sa.event.listen(User, "refresh", lambda u, c, a: interrupt(u, c))
        try:
            other = Worker(lambda: session.scalar(sa.select(sa.func.count(User.id))))
            with pytest.raises(KeyboardInterrupt):
                other.result()
        finally:
            interrupts.clear()
            sa.event.remove(User, "load", interrupt)
        with pytest.raises(SharedSessionError, match="KeyboardInterrupt"):
            rows.all()
        session.rollback()


@pytest.mark.parametrize("end", ["close", "expunge_all"])
def test_objects_that_are_fetched_partly_outlive_their_session(
    engine: sa.Engine, end: str
) -> None:
    def fetch(session: Any) -> list[Any]:
        found = []
        for user in session.scalars(sa.select(User).order_by(User.id)):
            found.append(user.id)
            getattr(session, end)()
        return found

    with Session(engine) as plain:
        expected = fetch(plain)
    with SharedSession(engine) as session:
        assert fetch(session) == expected


@pytest.mark.parametrize("lock", ["rlock", "rw", None])
def test_a_bulk_insert_by_mapped_class_returns_what_it_should(
    engine: sa.Engine, lock: Any
) -> None:
    with SharedSession(engine, lock=lock) as session:
        rows = [{"name": "new"}, {"name": "new as well"}]
        result = session.execute(sa.insert(User), rows)
        with pytest.raises(sa.exc.ResourceClosedError):
            result.all()
        ids = session.scalars(sa.insert(User).returning(User.id), rows).all()
        assert len(ids) == 2


class SharedShards(SharedSessionMixin, ShardedSession):
    pass


@pytest.mark.parametrize("shards", [["a"], ["a", "b"]], ids=len)
@pytest.mark.parametrize("cls", [ShardedSession, SharedShards])
def test_statements_of_several_shards(
    engine: sa.Engine, cls: Any, shards: list[str]
) -> None:
    """Their results are merged, those without rows too."""
    session = cls(
        shard_chooser=lambda *args: "a",
        identity_chooser=lambda *args, **kw: shards,
        execute_chooser=lambda context: shards,
        shards={shard: engine for shard in shards},
    )
    with session:
        names = sa.select(User.name).where(User.id == 1)
        before = session.scalars(names).all()
        assert len(before) == len(shards)
        statement = sa.update(User).where(User.id == 1).values(name="new")
        merged = session.execute(statement)
        assert merged.rowcount == len(shards)
        with pytest.raises(sa.exc.ResourceClosedError):
            merged.all()
        assert session.scalars(names).all() == ["new"] * len(shards)
        session.execute(sa.delete(User).where(User.id == 1))
        assert session.scalars(names).all() == []
