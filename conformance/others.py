"""Run other people's tests with their Session class a shared one.

The suites of Flask-SQLAlchemy, SQLModel and zope.sqlalchemy, from their sdists;
otherwise like ``conformance.run``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from conformance.run import Suite, download, environment, parser, pin, run_all


@dataclass(frozen=True)
class Project:
    name: str
    tests: str
    # Where its Session is, to be mixed with SharedSessionMixin; first the one to mix
    modules: str
    requirements: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    # Where its AsyncSession is, to be mixed with AsyncSharedSession
    async_modules: str = ""

    def suite(self, sqlalchemy: str) -> Suite:
        source, version = download(self.name)
        python = environment(
            [f"{self.name}=={version}", f"SQLAlchemy{pin(sqlalchemy)}"]
            + list(self.requirements)
        )
        return Suite(
            f"{self.name} {version}  SQLAlchemy {sqlalchemy}",
            source,
            python,
            (self.tests,),
            self.options,
            self.env(),
        )

    def env(self) -> tuple[tuple[str, str], ...]:
        env = [("SHAREDSESSION_CONFORMANCE_MODULES", self.modules)]
        if self.async_modules:
            env += [("SHAREDSESSION_CONFORMANCE_ASYNC_MODULES", self.async_modules)]
        return tuple(env)


# fmt: off
PROJECTS = {
    "flask": Project(
        "Flask-SQLAlchemy",
        "tests",
        "flask_sqlalchemy.session flask_sqlalchemy.extension",
    ),
    "sqlmodel": Project(
        "sqlmodel",
        "tests",
        "sqlmodel.orm.session sqlmodel sqlmodel.ext.asyncio.session",
        tuple(
            "SQLAlchemy[asyncio] aiosqlite alembic black coverage dirty-equals fastapi "
            "httpx jinja2 pymysql pyyaml typer".split()
        ),
        async_modules="sqlmodel.ext.asyncio.session",
    ),
    # Its tests use SQLAlchemy's own Session. They run where they are installed, for
    # its source folder ``zope/sqlalchemy`` would be in the way of SQLAlchemy; and
    # without those that it does not run on SQLite itself
    "zope": Project(
        "zope.sqlalchemy",
        "zope.sqlalchemy.tests",
        "sqlalchemy.orm sqlalchemy.orm.session sqlalchemy.orm._orm_constructors",
        ("packaging", "zope.testing"),
        ("--import-mode=importlib", "-k", "not RetryTests", "--pyargs"),
    ),
}
# fmt: on


def suites(options: argparse.Namespace) -> Iterable[Suite]:
    for name in options.projects:
        for sqlalchemy in options.sqlalchemy:
            yield PROJECTS[name].suite(sqlalchemy)


def main() -> int:
    options = parser(__doc__)
    add = options.add_argument
    add("--projects", nargs="+", choices=PROJECTS, default=list(PROJECTS))
    add("--sqlalchemy", nargs="+", default=["2.1", "2.0"], help="series or releases")
    args = options.parse_args()
    return 0 if run_all(suites(args), args) else 1


if __name__ == "__main__":
    sys.exit(main())
