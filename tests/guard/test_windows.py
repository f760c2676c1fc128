"""Windows: who waits for the database lets others look at what is loaded.

The database is made to wait by an SQL function, ``hold_on()``, that returns when the
test says so.
"""

from __future__ import annotations

import threading
from typing import Any, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData

from sharedsession import ConcurrentAccessError, SharedSession
from sharedsession.guard.monitor import Monitor

from ..support.models import Address, User
from ..support.threads import PATIENCE, Worker, passes, wait_for, wait_until

HOLD_ON = sa.text("SELECT hold_on()")


class Database:
    """Waits inside ``hold_on()``, and for nobody if nobody is to wait."""

    def __init__(self, engine: sa.Engine) -> None:
        self.waits, self.goes_on = threading.Event(), threading.Event()
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.create_function("hold_on", 0, self._hold_on)

    def _hold_on(self) -> int:
        self.waits.set()
        wait_for(self.goes_on)
        return 1


@pytest.fixture
def database(engine: sa.Engine) -> Database:
    return Database(engine)


@pytest.fixture
def user(session: Any) -> Any:
    """Loaded, in a session that two threads have used."""
    user = session.get(User, 1)
    assert len(user.addresses) == 3
    Worker(session.in_transaction).result()
    return user


@pytest.fixture
def waiting(database: Database) -> Iterator[Any]:
    """Starts a thread and returns when it waits for the database; ends it at last."""
    workers = []

    def start(function: Any) -> Worker:
        workers.append(Worker(function, "waiting"))
        wait_until(lambda: database.waits.is_set() or workers[0].done.is_set())
        assert not workers[0].done.is_set(), workers[0].error
        return workers[0]

    yield start
    database.goes_on.set()
    for worker in workers:
        worker.join(PATIENCE)


def look(user: User) -> Worker:
    return Worker(lambda: user.name, "looking")


def test_looks_go_on_beside_a_select(
    session: Any, user: Any, database: Database, waiting: Any
) -> None:
    selecting = waiting(lambda: session.scalar(HOLD_ON))
    assert look(user).result() == "ann"
    assert Worker(lambda: [a.email for a in user.addresses]).result()
    assert Worker(lambda: session.get(User, 1) is user).result()
    assert Worker(lambda: user in session).result()
    assert session.guard.owner is selecting and selecting.is_alive()
    database.goes_on.set()
    assert selecting.result() == 1


STATEMENTS: dict[str, Any] = {
    "text": HOLD_ON,
    "WITH": sa.text("WITH it AS (SELECT hold_on() AS x) SELECT x FROM it"),
    "ORM select": sa.select(User.id).where(sa.func.hold_on() == 1),
    "UPDATE": sa.text("UPDATE users SET x = 1 WHERE hold_on() = 1"),
    "ORM update": sa.update(User).where(User.id == 1).values(x=sa.func.hold_on()),
    "ORM update, fetch": (
        sa.update(User)
        .where(sa.func.hold_on() == 1)
        .values(x=1)
        .execution_options(synchronize_session="fetch")
    ),
    "DELETE": sa.text("DELETE FROM users WHERE hold_on() = 2"),
    "INSERT": sa.text(
        "INSERT INTO users (name, counter) SELECT 'new', 0 WHERE hold_on() = 1"
    ),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("at", ["session", "connection"])
@pytest.mark.parametrize("what", STATEMENTS)
def test_looks_go_on_beside_any_statement(
    session: Any,
    user: Any,
    database: Database,
    waiting: Any,
    what: str,
    at: str,
    first: bool,
) -> None:
    """The first of its transaction, too."""
    if first:
        session.expire_on_commit = False
        session.commit()

    def execute() -> None:
        executing = session if at == "session" else session.connection()
        executing.execute(STATEMENTS[what])

    executing = waiting(execute)
    assert look(user).result() == "ann"
    assert Worker(lambda: session.get(User, 1) is user).result()
    database.goes_on.set()
    executing.result()
    assert user.name == "ann" and user.x == 1


@pytest.mark.parametrize("event", ["checkout", "begin", "commit"])
def test_looks_go_on_beside_a_connect_a_begin_and_a_commit(
    session: Any,
    engine: sa.Engine,
    user: Any,
    database: Database,
    waiting: Any,
    event: str,
) -> None:
    session.expire_on_commit = False
    session.commit()
    if event == "commit":
        session.execute(sa.text("SELECT 1"))
    waiting_in = sa.event.listens_for(engine, event, once=True)
    waiting_in(lambda *args: database._hold_on() and None)
    if event == "commit":
        worker = waiting(session.commit)
    else:
        worker = waiting(lambda: session.execute(sa.text("SELECT 1")))
    assert look(user).result() == "ann"
    database.goes_on.set()
    worker.result()


def test_nobody_looks_while_a_commit_that_flushed_waits(
    session: Any, engine: sa.Engine, user: Any, database: Database, waiting: Any
) -> None:
    session.expire_on_commit = False
    session.add(User(name="new"))
    waiting_in = sa.event.listens_for(engine, "commit", once=True)
    waiting_in(lambda *args: database._hold_on() and None)
    committing = waiting(session.commit)
    looking = look(user)
    assert not passes(looking, session.guard)
    database.goes_on.set()
    committing.result()
    assert looking.result() == "ann"


def test_a_change_waits_for_the_select(
    session: Any, user: Any, database: Database, waiting: Any
) -> None:
    waiting(lambda: session.scalar(HOLD_ON))
    change = Worker(lambda: setattr(user, "name", "changed"), "changing")
    assert not passes(change, session.guard)
    assert look(user).result() == "ann"  # still, and whoever waits
    database.goes_on.set()
    change.result()
    assert user.name == "changed"


def test_looks_go_on_beside_a_lazy_load(
    session: Any, engine: sa.Engine, user: Any, database: Database, waiting: Any
) -> None:
    other = session.get(User, 2)

    @sa.event.listens_for(engine, "do_execute")
    def wait_first(cursor: Any, statement: str, *args: Any) -> None:
        if "addresses" in statement:
            cursor.execute("SELECT hold_on()")

    loading = waiting(lambda: len(other.addresses))
    assert look(user).result() == "ann"
    database.goes_on.set()
    assert loading.result() == 3


def test_who_waits_to_look_leaves_the_queue_for_a_window(
    session: Any, user: Any, database: Database, waiting: Any
) -> None:
    looking: list[Worker] = []

    @sa.event.listens_for(session, "do_orm_execute")
    def let_one_queue(state: Any) -> None:  # inside, and before there is a window
        if not looking:
            looking.append(look(user))
            wait_until(lambda: session.guard.waiting)

    selecting = waiting(lambda: session.scalar(HOLD_ON))
    assert looking[0].result() == "ann"
    assert session.guard.owner is selecting and not session.guard.waiting
    database.goes_on.set()
    assert selecting.result() == 1


@pytest.mark.parametrize("kind", ["critical", "begin"])
def test_nobody_looks_into_a_section(
    session: Any, user: Any, database: Database, waiting: Any, kind: str
) -> None:
    def select() -> None:
        with session.critical_section() if kind == "critical" else session.begin():
            session.scalar(HOLD_ON)

    waiting(select)
    looking = look(user)
    assert not passes(looking, session.guard)
    database.goes_on.set()
    looking.result()


def test_nobody_looks_after_a_flush_in_the_same_operation(
    session: Any, user: Any, database: Database, waiting: Any
) -> None:
    def select() -> None:
        session.add(User(name="new"))
        session.scalar(sa.select(User.id).where(sa.func.hold_on() == 1))  # autoflushes

    waiting(select)
    looking = look(user)
    assert not passes(looking, session.guard)
    database.goes_on.set()
    assert looking.result() == "ann"


def test_nobody_looks_while_rows_become_objects(
    session: Any, user: Any, database: Database, waiting: Any
) -> None:
    @sa.event.listens_for(Address, "load")
    def select(*args: Any) -> None:
        session.scalar(HOLD_ON)

    try:
        waiting(lambda: session.scalars(sa.select(Address)).all())
        looking = look(user)
        assert not passes(looking, session.guard)
        database.goes_on.set()
        assert looking.result() == "ann"
    finally:
        sa.event.remove(Address, "load", select)


def test_nobody_looks_while_rows_of_a_listener_become_objects(
    session: Any, user: Any, database: Database, waiting: Any
) -> None:
    """They need no statement of the operation, after which no window opens."""

    def rows() -> Iterator[Any]:
        yield (session.scalar(HOLD_ON),)

    @sa.event.listens_for(session, "do_orm_execute")
    def answer(state: Any) -> Any:
        if state.is_orm_statement:
            return IteratorResult(SimpleResultMetaData(["id"]), rows())
        return None

    waiting(lambda: session.scalars(sa.select(User.id)).all())
    looking = look(user)
    assert not passes(looking, session.guard)
    database.goes_on.set()
    assert looking.result() == "ann"


def test_nobody_looks_while_a_commit_flushes(
    session: Any, user: Any, database: Database, waiting: Any
) -> None:
    session.expire_on_commit = False
    session.add(User(name=sa.func.hold_on()))
    committing = waiting(session.commit)
    looking = look(user)
    assert not passes(looking, session.guard)
    database.goes_on.set()
    committing.result()
    assert looking.result() == "ann"


def test_a_change_of_its_own_closes_the_window(
    session: Any, engine: sa.Engine, user: Any, database: Database, waiting: Any
) -> None:
    """A listener is called with the window open."""

    @sa.event.listens_for(engine, "before_cursor_execute")
    def change(*args: Any) -> None:
        if session.guard.window is not None:
            assert Worker(lambda: user.name).result() == "ann"
            user.name = "changed"

    waiting(lambda: session.scalar(HOLD_ON))
    looking = look(user)
    assert not passes(looking, session.guard)
    database.goes_on.set()
    assert looking.result() == "changed"


def test_no_window_opens_after_a_change_of_its_own(
    session: Any, user: Any, database: Database, waiting: Any
) -> None:
    other = session.get(User, 2)

    @sa.event.listens_for(session, "do_orm_execute")
    def change(state: Any) -> None:
        session.expunge(other)

    waiting(lambda: session.scalar(HOLD_ON))
    looking = look(user)
    assert not passes(looking, session.guard)
    database.goes_on.set()
    assert looking.result() == "ann"


def test_no_window_opens_while_an_attribute_is_set(
    session: Any, engine: sa.Engine, user: Any
) -> None:
    """Not even if a load before it had none to open."""
    windows: list[Any] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(*args: Any) -> None:
        windows.append(session.guard.window)

    def select(*args: Any) -> None:
        session.scalar(sa.text("SELECT 1"))

    Worker(select).result()
    session.connection()
    sa.event.listen(User.name, "set", select)
    try:
        user.name = "changed"
    finally:
        sa.event.remove(User.name, "set", select)
    control, window = windows
    assert control is not None and window is None


def test_detect_lets_nobody_look(
    engine: sa.Engine, database: Database, waiting: Any
) -> None:
    with SharedSession(engine, lock="detect") as session:
        user = session.get_one(User, 1)
        Worker(session.in_transaction).result()
        selecting = waiting(lambda: session.scalar(HOLD_ON))
        with pytest.raises(ConcurrentAccessError, match="'looking'.*'waiting'"):
            look(user).result()
        database.goes_on.set()
        selecting.result()


def test_an_error_of_the_database_leaves_no_window(session: Any, user: Any) -> None:
    with pytest.raises(sa.exc.OperationalError):
        session.scalar(sa.text("SELECT nothing FROM nowhere"))
    assert session.guard.window is None and session.guard.owner is None
    assert Worker(lambda: user.name).result() == "ann"


def test_an_interrupt_just_after_it_opened_leaves_no_window(
    session: Any, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks while what it interrupted is put right, and the next one is told."""
    looking: list[Worker] = []

    @sa.event.listens_for(session, "do_orm_execute")
    def let_one_queue(state: Any) -> None:
        looking.append(look(user))
        wait_until(lambda: session.guard.waiting)

    def interrupt(guard: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Monitor, "_let_look", interrupt)
    noted: list[Any] = []
    leave = Monitor.leave
    monkeypatch.setattr(
        Monitor,
        "leave",
        lambda guard, me: (
            noted.append((guard.window, guard.last_failure)),
            leave(guard, me),
        ),
    )
    selecting = Worker(lambda: session.scalar(sa.text("SELECT 1")))
    with pytest.raises(KeyboardInterrupt):
        selecting.result()
    assert looking[0].result() == "ann"
    assert noted[0][0] is None and noted[0][1][1] == "KeyboardInterrupt"
    assert session.guard.window is None and session.guard.owner is None


def test_a_window_that_interrupts_left_open_ends_with_the_operation(
    session: Any, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its owner would go on by it, later, without being in."""
    Worker(lambda: session.scalar(sa.text("SELECT 1"))).result()
    left = []

    def interrupt(guard: Any, me: Any) -> None:
        left.append(guard.window)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Monitor, "close_window", interrupt)
        session.scalar(sa.text("SELECT 1"))
    assert len(left) > 1 and left[0] is left[-1] is not None
    assert session.guard.window is None and session.guard.owner is None
    changing = Worker(lambda: setattr(user, "name", "changed"))
    changing.result()
    assert user.name == "changed"
