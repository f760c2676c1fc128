"""Run SQLAlchemy's own tests with SharedSession in the place of Session.

Where greenlet is installed, AsyncSharedSession is in the place of AsyncSession too.
With ``--connections`` the tests get the connections of sessions: those of a plain
Session in the plain run, of a SharedSession in the shared one. That is for SQLAlchemy's
tests of engine, dialects and SQL.

Each run stands beside a plain one in the same environment, and every test has
to end alike in both. Whatever is downloaded or built stays in
``.cache/conformance``; so do the plain results, until something they depend on
changes or ``--refresh`` is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "conformance"

PYTEST = ("pytest>=9,<10", "pytest-xdist>=3")
PARTS = ("test/orm", "test/ext", "test/base")
KINDS = ("rlock", "rw")

# What a database needs beside SQLAlchemy; with greenlet, the asyncio tests of
# the suite run too where it is told of an async driver
DRIVERS = {
    "postgresql+psycopg": ["psycopg[binary]"],
    # psycopg creates the database
    "postgresql+asyncpg": ["asyncpg", "psycopg[binary]"],
    "mariadb+pymysql": ["pymysql"],
    "mysql+pymysql": ["pymysql"],
}
NEED_GREENLET = ("postgresql+asyncpg", "aiosqlite")
ASYNC_DRIVERS = {"sqlite": "aiosqlite", "postgresql+psycopg": "psycopg_async"}

# Executes on the driver's cursor of a result that was fetched in part, which is closed
# here: what goes past the session to the driver cannot run through a session
PAST_THE_SESSION = "test/engine/test_reconnect.py::InvalidateDuringResultTest"

# A test that hangs takes its worker down and counts as failed
TEST_TIMEOUT = 300
# More differences than these are neither listed nor mistaken for flaky tests
LISTED = 50


class Outcome(NamedTuple):
    status: str
    message: str = ""


Outcomes = dict[str, Outcome]
MISSING = Outcome("missing")


@dataclass(frozen=True)
class Suite:
    """The tests of an unpacked sdist, and the Python they run with."""

    title: str
    source: Path
    python: Path
    parts: tuple[str, ...]
    options: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    # Tests get connections of sessions
    connections: bool = False
    # All tasks of a test are one owner
    one_owner: bool = False
    # A fault that is planted in the library, which has to make a difference
    fault: str = ""
    # Of a database on a server; the tests run in one of their own beside it
    server: str = ""

    def run(self, lock: str | None, jobs: str, again: Iterable[str] = ()) -> Outcomes:
        """The outcome of every test, or of files again; no lock: the plain suite."""
        kind = f"{lock or 'plain'}{'-' if lock and self.fault else ''}{self.fault}"
        name = f"{self.title}-{kind}{'-again' if again else ''}"
        report = CACHE / "logs" / f"{slug(name)}.xml"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.unlink(missing_ok=True)
        with self.database() as database, report.with_suffix(".log").open("w") as log:
            done = subprocess.run(
                self.command(report, jobs, (*database, *(again or self.parts))),
                cwd=self.source,
                env=self.environ(lock),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if done.returncode not in (0, 1):
            raise SystemExit(
                f"{tail(log.name)}\npytest: status {done.returncode}, {log.name}"
            )
        return read_report(report)

    @contextmanager
    def database(self) -> Iterator[list[str]]:
        """Options that name a new database on the server, if there is one."""
        if not self.server:
            yield []
            return
        module = [str(self.python), "-m", "conformance.databases"]
        arguments = [self.server, f"sharedsession_conformance_{digest(ROOT)}"]
        created = output(*module, "create", *arguments, cwd=ROOT)
        try:
            yield ["--dburi", created.strip()]
        finally:
            output(*module, "drop", *arguments, cwd=ROOT)

    def command(self, report: Path, jobs: str, parts: tuple[str, ...]) -> list[str]:
        options = "-q --maxfail=0 -p no:cacheprovider -p conformance.plugin".split()
        # Theirs even if it says nothing of pytest, for the next above would be ours
        options += ["-c", "pyproject.toml"]
        settings = {
            "faulthandler_timeout": TEST_TIMEOUT,
            "faulthandler_exit_on_timeout": "true",
        }
        for name, value in settings.items():
            options += ["-o", f"{name}={value}"]
        if self.connections:
            options.append(f"--deselect={PAST_THE_SESSION}")
        options += ["-n", jobs, f"--junitxml={report}"]
        return [str(self.python), "-m", "pytest", *options, *self.options, *parts]

    def environ(self, lock: str | None) -> dict[str, str]:
        ours = {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            # Has SQLAlchemy's conftest test what is installed, not what lies about
            "PYTHONNOUSERSITE": "1",
            "PYTEST_ADDOPTS": "",
            "SHAREDSESSION_CONFORMANCE_LOCK": lock or "",
            "SHAREDSESSION_CONFORMANCE_CONNECTIONS": "1" if self.connections else "",
            "SHAREDSESSION_CONFORMANCE_ONE_OWNER": "1" if self.one_owner else "",
            "SHAREDSESSION_CONFORMANCE_FAULT": self.fault if lock else "",
        }
        return {**os.environ, **ours, **dict(self.env)}

    def file_of(self, test: str) -> str | None:
        """``test.orm.test_query.GetTest::test_get`` is in test/orm/test_query.py."""
        path = self.source.joinpath(*test.partition("::")[0].split("."))
        files = (parent.with_suffix(".py") for parent in (path, *path.parents))
        found = next((file for file in files if file.exists()), None)
        return None if found is None else str(found.relative_to(self.source))

    def plain(self, jobs: str, refresh: bool) -> Outcomes:
        """The plain outcomes: from the cache if nothing has changed since."""
        packages = output(self.python, "-m", "pip", "freeze", "--all")
        facts = [packages, sys.version, self.title, self.parts, self.options]
        if self.connections:
            # The plain run depends on it
            facts.append((ROOT / "conformance" / "connections.py").read_text())
        if self.server:
            facts.append(self.server)
        key = digest(*facts)
        cached = CACHE / "plain" / f"{key}.json"
        if refresh or not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            cached.write_text(json.dumps(self.run(None, jobs)))
        found = json.loads(cached.read_text())
        return {test: Outcome(*outcome) for test, outcome in found.items()}


# -- one suite, plain and shared ----------------------------------------------


def compare(
    suite: Suite, lock: str, jobs: str, refresh: bool
) -> tuple[Outcomes, list[str]]:
    """Run the suite, print its line; the outcomes, and the tests that differ."""
    plain = suite.plain(jobs, refresh)
    start = time.monotonic()
    shared = suite.run(lock, jobs)
    seconds = round(time.monotonic() - start)
    settle(suite, lock, plain, shared)
    differing = differences(plain, shared)
    print(
        f"{suite.title}  {lock}  {figures(shared)}"
        f"   (plain: {' / '.join(map(str, counts(plain)))})"
        f"  differences {len(differing)}  [{seconds // 60}m{seconds % 60:02}s]",
        flush=True,
    )
    for test in differing[:LISTED]:
        was, now = plain.get(test, MISSING), shared.get(test, MISSING)
        print(f"    {test}: {was.status} -> {now.status}  {now.message}", flush=True)
    return shared, differing


def differences(plain: Outcomes, shared: Outcomes) -> list[str]:
    def status(outcomes: Outcomes, test: str) -> str:
        return outcomes.get(test, MISSING).status

    tests = sorted(plain.keys() | shared.keys())
    return [test for test in tests if status(plain, test) != status(shared, test)]


def settle(suite: Suite, lock: str, plain: Outcomes, shared: Outcomes) -> None:
    """Run the files of what differs once more, in both modes.

    A test that is flaky in the plain suite counts as it ended this time. Any other
    difference stays one, and is marked if the test, in its file alone, ends well.
    """
    tests = differences(plain, shared)
    if not 0 < len(tests) <= LISTED:
        return
    files = sorted({file for test in tests if (file := suite.file_of(test))})
    plain_again, shared_again = suite.run(None, "1", files), suite.run(lock, "1", files)
    unstable = set(differences(plain, plain_again))
    alike = set(tests).difference(differences(plain_again, shared_again))
    for test in unstable.intersection(tests, plain_again, shared_again):
        plain[test], shared[test] = plain_again[test], shared_again[test]
    for test in alike.difference(unstable).intersection(shared):
        message = f"(not in its file alone) {shared[test].message}"
        shared[test] = shared[test]._replace(message=message)


def counts(outcomes: Outcomes) -> tuple[int, int, int]:
    found = Counter(outcome.status for outcome in outcomes.values())
    return found["passed"], found["failed"], found["skipped"]


def figures(outcomes: Outcomes) -> str:
    return "passed {}  failed {}  skipped {}".format(*counts(outcomes))


def read_report(report: Path) -> Outcomes:
    outcomes: Outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test = f"{case.get('classname')}::{case.get('name')}"
        # Where Session is a parameter, its name is part of the id
        test = test.replace("SharedSession", "Session")
        outcome = outcome_of(case)
        # An error in the teardown is a second entry; the worse one counts
        if outcome.status == "failed" or test not in outcomes:
            outcomes[test] = outcome
    return outcomes


def outcome_of(case: ElementTree.Element) -> Outcome:
    for tag in "failure", "error", "skipped":
        found = case.find(tag)
        if found is not None:
            status = "skipped" if tag == "skipped" else "failed"
            message = found.get("message", "").partition("\n")[0]
            return Outcome(status, message)
    return Outcome("passed")


# -- sdists and environments ---------------------------------------------------


def download(project: str, version: str = "") -> tuple[Path, str]:
    """The unpacked sdist of the newest release of that version, and its number."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    pip += ["--no-binary", project, project + pin(version), "--dest"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, folder], check=True)
        shutil.unpack_archive(next(Path(folder).glob("*.tar.gz")), folder)
        unpacked = next(path for path in Path(folder).iterdir() if path.is_dir())
        found = metadata(unpacked, "Version")
        source = CACHE / "sources" / unpacked.name
        if not source.exists():
            shutil.copytree(unpacked, source)
    if version and not f"{found}.".startswith(f"{version}."):
        raise SystemExit(f"{project} {version} was asked for, {found} came")
    return source, found


def pin(version: str) -> str:
    """What pip has to match: 2.1 is a series, 2.1.9 a release."""
    if not version:
        return ""
    return f"=={version}" if version.count(".") > 1 else f"=={version}.*"


def metadata(source: Path, field: str) -> str:
    for line in (source / "PKG-INFO").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}: "):
            return line.partition(": ")[2]
    raise SystemExit(f"{source} does not tell its {field}")


def environment(requirements: Sequence[str], without: Sequence[str] = ()) -> Path:
    """The Python of a venv with these requirements, made when first asked for."""
    folder = CACHE / "venvs" / digest(*requirements, *without, sys.version)
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *PYTEST, *requirements], check=True)
        if without:
            subprocess.run([*pip, "uninstall", "--yes", *without], check=True)
        complete.touch()
    return python


def output(*command: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd
    ).stdout


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in text.lower())


def tail(path: str) -> str:
    return "\n".join(Path(path).read_text(errors="replace").splitlines()[-30:])


# -- SQLAlchemy ------------------------------------------------------------------


def sqlalchemy_suite(
    source: Path, version: str, db: str, greenlet: bool, asked: argparse.Namespace
) -> Suite:
    driver, _, server = db.partition("://")
    requirements = [f"SQLAlchemy=={version}", *DRIVERS.get(driver, ())]
    # --nomypy: what 2.0 has for its mypy plugin needs mypy and makes no session
    options = ["--nomypy", *([] if server else ["--db", db])]
    if greenlet:
        requirements += ["greenlet", "aiosqlite"]
        if not asked.connections:
            options += ["--dbdriver", ASYNC_DRIVERS[driver]] * (driver in ASYNC_DRIVERS)
    python = environment(requirements, () if greenlet else ("greenlet",))
    check_version(python, version)
    title = f"SQLAlchemy {version}  {driver}{'+greenlet' if greenlet else ''}"
    return Suite(
        title + asked.connections * "  connections",
        source,
        python,
        parts_of(source, asked, driver),
        tuple(options),
        connections=asked.connections,
        one_owner=asked.connections and driver in NEED_GREENLET,
        fault=asked.fault,
        server=db if server else "",
    )


def parts_of(source: Path, asked: argparse.Namespace, driver: str) -> tuple[str, ...]:
    """What is asked for; by default, of the dialects only the database's own."""
    if asked.parts or not asked.connections:
        return tuple(asked.parts or PARTS)
    dialect = {"mariadb": "mysql", "aiosqlite": "sqlite"}.get(
        driver.partition("+")[0], driver.partition("+")[0]
    )
    return tuple(
        part
        for part in (
            "test/engine",
            "test/dialect/test_all.py",
            "test/dialect/test_suite.py",
            f"test/dialect/{dialect}",
            f"test/dialect/test_{dialect}.py",
            "test/sql",
        )
        if (source / part).exists()
    )


def check_version(python: Path, version: str) -> None:
    found = output(python, "-c", "import sqlalchemy; print(sqlalchemy.__version__)")
    if found.strip() != version:
        raise SystemExit(f"SQLAlchemy {version} was asked for, {found} is installed")


def sqlalchemy_suites(options: argparse.Namespace) -> Iterable[Suite]:
    for asked in options.sqlalchemy:
        source, version = download("SQLAlchemy", asked)
        for db in options.db:
            for greenlet in options.greenlet:
                if greenlet == "without" and db.startswith(NEED_GREENLET):
                    continue
                yield sqlalchemy_suite(source, version, db, greenlet == "with", options)


# -- the command line --------------------------------------------------------------


def parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--kinds", nargs="+", default=KINDS, help="kinds of lock (%(default)s)")
    add("--jobs", default="auto", help="tests at a time (%(default)s)")
    add("--refresh", action="store_true", help="run the plain suite anew")
    return parser


def run_all(suites: Iterable[Suite], options: argparse.Namespace) -> bool:
    """Run every suite with every kind; True if nothing differs."""
    total, same = [0, 0, 0], True
    for suite in suites:
        refresh = options.refresh
        for lock in options.kinds:
            outcomes, differing = compare(suite, lock, options.jobs, refresh)
            total = [a + b for a, b in zip(total, counts(outcomes))]
            same, refresh = same and not differing, False
    print("{} passed, {} failed, {} skipped".format(*total))
    return same


def main() -> int:
    options = parser(__doc__)
    add = options.add_argument
    add("--sqlalchemy", nargs="+", default=["2.1", "2.0"], help="series or releases")
    add("--parts", nargs="+", help=f"of the suite ({' '.join(PARTS)})")
    add(
        "--connections",
        action="store_true",
        help="give tests the connections of sessions; parts: engine, SQL, the dialect",
    )
    add(
        "--db",
        nargs="+",
        default=["sqlite"],
        help="names or URLs of databases (%(default)s)",
    )
    add(
        "--greenlet",
        nargs="+",
        choices=["with", "without"],
        default=["without", "with"],
        help="environments to test in (%(default)s)",
    )
    add(
        "--fault",
        choices=["soft-closed", "facts"],
        default="",
        help="plant this fault in results, and fail if the tests do not find it",
    )
    args = options.parse_args()
    same = run_all(sqlalchemy_suites(args), args)
    return int(same if args.fault else not same)


if __name__ == "__main__":
    sys.exit(main())
