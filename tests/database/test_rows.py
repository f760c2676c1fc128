"""Rows anywhere at any time; streams in their own thread."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import joinedload, selectinload

from ..conftest import wires
from ..support.models import User
from ..support.threads import Worker, inside, passes, wait_for, wait_until

USERS = sa.select(User).order_by(User.id)


def test_core_rows_are_dealt_out_while_somebody_is_inside(session: Any) -> None:
    result = session.execute(sa.text("SELECT id FROM users ORDER BY id"))
    with inside(session.critical_section):
        assert result.fetchone() == (1,)
        assert result.fetchmany(2) == [(2,), (3,)]
        assert result.all() == [(4,)]
        result.close()


def test_objects_are_made_before_somebody_else_comes_in(session: Any) -> None:
    result = session.scalars(USERS)
    with inside(session.critical_section):
        other = Worker(lambda: [user.id for user in result])
        # The holder made the objects when it came in, as its first operation.
    assert other.result() == [1, 2, 3, 4]


def test_what_others_change_does_not_mix_with_rows_from_before(session: Any) -> None:
    result = session.scalars(USERS)

    def change() -> None:
        session.get(User, 1).name = "changed"
        session.commit()

    Worker(change).result()
    assert [user.name for user in result] == ["changed", "ben", "cat", "dan"]


@pytest.mark.parametrize("option", [joinedload, selectinload])
def test_eager_loads_in_any_thread(session: Any, option: Any) -> None:
    result = session.scalars(USERS.options(option(User.addresses))).unique()
    loaded = Worker(lambda: [len(user.addresses) for user in result]).result()
    assert loaded == [3, 3, 3, 3]


def test_an_error_in_making_objects_is_raised_where_they_are_made(
    session: Any,
) -> None:
    @sa.event.listens_for(User, "load", once=True)
    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        session.scalars(USERS)
    assert session.scalars(USERS).first().id == 1


def test_a_result_of_the_connection_is_in_memory_too(session: Any) -> None:
    result = session.connection().execute(sa.text("SELECT id FROM users"))
    with inside(session.critical_section):
        assert len(result.all()) == 4


def test_rows_and_closes_do_not_overlap(session: Any, engine: sa.Engine) -> None:
    for row in session.execute(sa.text("SELECT 1")):
        Worker(lambda: session.execute(sa.text("SELECT 1")).all()).result()
    assert wires[engine].calls and not wires[engine].overlaps


# -- streams


def stream(session: Any) -> Any:
    return session.execute(USERS.execution_options(yield_per=1))


def core_stream(session: Any) -> Any:
    statement = sa.text("SELECT id FROM users ORDER BY id")
    return session.execute(statement.execution_options(stream_results=True))


def query_stream(session: Any) -> Any:
    return iter(session.query(User).yield_per(1))


STREAMS = pytest.mark.parametrize("make", [stream, core_stream])


@STREAMS
def test_a_stream_keeps_the_guard_until_its_last_row(session: Any, make: Any) -> None:
    result = make(session)
    other = Worker(lambda: session.execute(sa.text("SELECT 1")))
    assert not passes(other, session.guard)
    assert len([row for row in result]) == 4
    assert session.guard.held is None
    other.result()


@pytest.mark.parametrize("after", ["nothing", "rollback", "a section"])
def test_a_stream_that_fails_at_the_database_keeps_nobody_out(
    session: Any, after: str
) -> None:
    """Its result is alive in the traceback."""
    session.connection().connection.driver_connection.create_function(
        "fail", 1, lambda number: 1 // (2 - number)
    )
    statement = sa.text("SELECT fail(id) FROM users ORDER BY id")
    kept: list[BaseException] = []

    def read() -> None:
        try:
            list(session.execute(statement.execution_options(yield_per=1)))
        except sa.exc.DBAPIError as error:
            kept.append(error)

    if after == "a section":
        with session.critical_section():
            read()
    else:
        read()
    if after == "rollback":
        session.rollback()
    assert kept and session.guard.held is None
    assert Worker(lambda: session.scalar(sa.text("SELECT 1"))).result() == 1


ITERATORS = {
    "rows": iter,
    "scalars": lambda result: iter(result.scalars()),
    "mappings": lambda result: iter(result.mappings()),
    "partitions": lambda result: result.partitions(1),
}


@STREAMS
@pytest.mark.parametrize("kind", ITERATORS)
def test_threads_may_advance_one_iterator_of_a_stream(
    session: Any, make: Any, kind: str
) -> None:
    """Another thread takes its step while one is in the middle of its own."""
    rows = ITERATORS[kind](make(session))
    others: list[Worker] = []
    plain = rows._plain

    class Meanwhile:
        def __next__(self) -> Any:
            if not others:
                others.append(Worker(lambda: next(rows)))
                passes(others[0], session.guard)
            return next(plain)

    rows._plain = Meanwhile()
    found = [next(rows), others[0].result(), *rows]
    assert len(found) == 4 and session.guard.held is None


@STREAMS
def test_a_stream_gives_the_guard_back_when_closed(session: Any, make: Any) -> None:
    result = make(session)
    result.fetchone()
    assert session.guard.held == "exclusive"
    result.close()
    assert session.guard.held is None


@STREAMS
def test_a_stream_gives_the_guard_back_when_collected(session: Any, make: Any) -> None:
    result = make(session)
    result.fetchone()
    del result
    gc.collect()
    assert session.guard.held is None
    assert len(stream(session).all()) == 4


@STREAMS
def test_a_stream_moves_to_the_thread_that_fetches(session: Any, make: Any) -> None:
    """Its hold too: the thread that opened the stream is outside then."""
    result = make(session)
    fetched, go_on = threading.Event(), threading.Event()

    def fetch() -> int:
        assert result.fetchone() is not None
        assert session.guard.held == "exclusive"
        fetched.set()
        wait_for(go_on)
        return len(result.all())

    other = Worker(fetch)
    wait_for(fetched)
    assert session.guard.held is None
    outsider = Worker(lambda: session.scalar(sa.select(sa.func.count(User.id))))
    assert not passes(outsider, session.guard)
    go_on.set()
    assert other.result() == 3 and outsider.result() == 4


@STREAMS
def test_another_thread_may_close_a_stream(session: Any, make: Any) -> None:
    result = make(session)
    result.fetchone()
    Worker(result.close).result()
    assert session.guard.held is None
    assert len(stream(session).all()) == 4


def test_a_query_stream_that_is_broken_off(session: Any) -> None:
    rows = query_stream(session)
    next(rows)
    assert session.guard.held == "exclusive"
    rows.close()
    assert session.guard.held is None


def test_a_stream_of_a_thread_that_ended(session: Any) -> None:
    kept: list[Any] = []
    Worker(lambda: kept.append(stream(session))).result()
    wait_until(lambda: session.guard.owner is None)
    assert len(stream(session).all()) == 4


def test_a_stream_in_a_read_section_lets_no_write_through(session: Any) -> None:
    user = session.get(User, 1)
    with session.read_section():
        result = stream(session)
        result.fetchone()
        with pytest.raises(Exception, match="read section"):
            user.name = "new"
        result.close()
    user.name = "new"


def test_partitions_and_mappings(session: Any) -> None:
    sizes = [len(part) for part in stream(session).partitions(3)]
    assert sizes == [3, 1]
    assert session.guard.held is None
    assert [row["id"] for row in core_stream(session).mappings()] == [1, 2, 3, 4]
