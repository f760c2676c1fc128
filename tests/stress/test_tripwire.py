"""The tripwire sees what overlaps, and nothing else."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from sharedsession.stress.tripwire import OverlapError, tripwire

SERVERS = {
    "postgresql": "SHAREDSESSION_TEST_POSTGRESQL",
    "mariadb": "SHAREDSESSION_TEST_MARIADB",
}


@pytest.fixture(params=["sqlite", *SERVERS])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tripwire.db"
    variable = SERVERS[request.param]
    if variable not in os.environ:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop(f"{variable} is not set")
    return os.environ[variable]


class Block:
    """``SELECT block()`` stays inside of the driver's call until it is let go."""

    def __init__(self):
        self.inside = threading.Event()
        self.go = threading.Event()

    def __call__(self):
        self.inside.set()
        assert self.go.wait(10)
        return 1

    def cursor_class(self, base):
        def execute(cursor, statement, *args, **kwargs):
            if statement == "SELECT block()":
                statement = f"SELECT {self()}"
            return base.execute(cursor, statement, *args, **kwargs)

        return type("BlockingCursor", (base,), {"execute": execute})


@pytest.fixture
def block():
    block = Block()
    yield block
    block.go.set()


@pytest.fixture
def engine(url, block):
    """An engine whose connections know ``block()``, each driver in its own way."""
    kind = sa.make_url(url).get_driver_name()
    arguments = {}
    if kind == "psycopg":
        psycopg = pytest.importorskip("psycopg")
        arguments["cursor_factory"] = block.cursor_class(psycopg.Cursor)
    elif kind == "pymysql":
        cursors = pytest.importorskip("pymysql.cursors")
        arguments["cursorclass"] = block.cursor_class(cursors.Cursor)
    engine = sa.create_engine(url, connect_args=arguments)
    if kind == "pysqlite":
        sa.event.listen(
            engine, "connect", lambda raw, _: raw.create_function("block", 0, block)
        )
    yield engine
    engine.dispose()


@contextlib.contextmanager
def driver_connection(engine):
    with contextlib.closing(engine.raw_connection()) as proxy:
        yield proxy.driver_connection


@contextlib.contextmanager
def blocked(connection, block):
    """Another thread is inside a call of ``connection`` for the with-block."""
    cursor = connection.cursor()
    with ThreadPoolExecutor(1, thread_name_prefix="other") as pool:
        future = pool.submit(cursor.execute, "SELECT block()")
        try:
            assert block.inside.wait(10)
            yield
        finally:
            block.go.set()
        future.result()
    assert cursor.fetchall()[0][0] == 1
    cursor.close()


def test_it_sees_calls_that_overlap(engine, block):
    with tripwire(engine) as wire, driver_connection(engine) as connection:
        with blocked(connection, block):
            assert wire.overlaps == 0
            connection.cursor().close()
    assert wire.overlaps == 2
    assert wire.first.startswith("thread MainThread called Connection.cursor while")
    assert "thread other_0 was inside" in wire.first
    assert wire.first.endswith("Cursor.execute")


def test_it_does_not_see_calls_in_turn(engine, block):
    block.go.set()
    with tripwire(engine) as wire, driver_connection(engine) as connection:
        with blocked(connection, block):
            pass
        with ThreadPoolExecutor(1) as pool:
            pool.submit(connection.cursor).result().close()
        connection.rollback()
    assert wire.calls > 0
    assert wire.overlaps == 0
    assert wire.first is None


def test_it_does_not_see_calls_of_different_connections(engine, block):
    with tripwire(engine) as wire, contextlib.ExitStack() as stack:
        one = stack.enter_context(driver_connection(engine))
        two = stack.enter_context(driver_connection(engine))
        with blocked(one, block):
            two.cursor().close()
            two.rollback()
    assert wire.overlaps == 0


def test_a_fuse_refuses_the_call(engine, block):
    with tripwire(engine, fuse=True) as wire, driver_connection(engine) as connection:
        with blocked(connection, block):
            with pytest.raises(OverlapError, match="MainThread called Connection.rol"):
                connection.rollback()
        connection.rollback()
    assert wire.overlaps == 1


def test_what_a_thread_does_inside_its_own_call_is_no_overlap(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path}/tripwire.db")
    with tripwire(engine) as wire, driver_connection(engine) as connection:
        connection.create_function("nest", 0, lambda: connection.cursor().close())
        cursor = connection.cursor()
        before = wire.calls
        cursor.execute("SELECT nest()")
        assert wire.calls == before + 1
    assert wire.overlaps == 0
    engine.dispose()


def test_a_watched_driver_works_as_before(engine):
    table = sa.Table(
        "sharedsession_tripwire",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("data", sa.JSON),
        prefixes=["TEMPORARY"],
    )
    rows = [(number, {"number": number}) for number in range(1, 30)]
    streamed = sa.select(table).order_by("id").execution_options(yield_per=7)
    with tripwire(engine) as wire, engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, engine.dialect.loaded_dbapi.Connection)
        table.create(connection)
        connection.execute(table.insert(), [dict(zip(["id", "data"], r)) for r in rows])
        assert connection.execute(streamed).all() == rows
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(table.insert(), {"id": 1})
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 29
        table.drop(connection)
    assert wire.calls > 20
    assert wire.overlaps == 0


def test_every_call_is_counted(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path}/tripwire.db", pool_size=4)
    barrier = threading.Barrier(4)

    def call(connection):
        barrier.wait(10)
        for _ in range(100):
            connection.cursor().close()

    with tripwire(engine) as wire, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(driver_connection(engine)) for _ in range(4)]
        before = wire.calls
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(call, connections))
        assert wire.calls - before == 4 * 100 * 2
    engine.dispose()


def test_it_can_be_removed(engine):
    tripwire(engine).remove()
    with tripwire(engine) as wire:
        pass
    with driver_connection(engine) as connection:
        assert not hasattr(connection, "tripwire_gate")
    assert repr(wire) == "<Tripwire 0 overlaps in 0 calls>"


def test_a_driver_it_does_not_know_is_refused(engine, monkeypatch):
    monkeypatch.setattr(engine.dialect, "driver", "carrier_pigeon")
    with pytest.raises(sa.exc.ArgumentError, match=r"carrier_pigeon.*knows.*psycopg"):
        tripwire(engine)
