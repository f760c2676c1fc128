"""Create or drop the database that SQLAlchemy's tests run in, on a server.

``python -m conformance.databases create URL NAME`` prints the URL of the database that
it created; ``drop`` drops it.  It runs in the environment of the tests, which has the
driver.  The tests make further databases of their own from this one, ``test_...``, and
drop them.  The database that the URL names is only connected to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine, make_url

# What README.unittests.rst of SQLAlchemy asks for
POSTGRESQL = (
    "create schema test_schema",
    "create schema test_schema_2",
    "create extension hstore",
    "create extension citext",
)
#: The driver that does this for an async one.
SYNC_DRIVERS = {"postgresql+asyncpg": "postgresql+psycopg"}


def sync_url(url: URL) -> URL:
    return url.set(drivername=SYNC_DRIVERS.get(url.drivername, url.drivername))


def run(engine: Engine, statements: Iterable[str]) -> None:
    with engine.connect() as plain:
        connection = plain.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def main(action: str, given: str, name: str) -> None:
    url = make_url(given)
    engine = create_engine(sync_url(url))
    drop = f"drop database if exists {name}"
    if action == "drop":
        return run(engine, [drop])
    run(engine, [drop, f"create database {name}"])
    created = url.set(database=name)
    if engine.dialect.name == "postgresql":
        run(create_engine(sync_url(created)), POSTGRESQL)
    print(created.render_as_string(hide_password=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
