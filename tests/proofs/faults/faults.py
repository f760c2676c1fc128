"""Faults at every step of an operation, and what has to be right after each.

``python -m tests.proofs.faults.faults --help`` tries all of them and prints how many
there were; the tests try some.

An interrupt is a ``KeyboardInterrupt`` as Ctrl-C raises it.  CPython runs signal
handlers at certain steps only, and each of them inside the library is tried:

* the start of a function, raised in the function's own frame;
* the return of a function that is written in C, with what it returned thrown away;
* a jump back to the head of a loop;
* a wait for a lock, before it is had.

Nowhere else: between the end of a ``with`` block and the ``__exit__`` of a lock, say,
there is no such step, which is what the mutex of a guard relies on.  An interrupt in a
finalizer is not tried either, since the interpreter prints and drops it.
"""

from __future__ import annotations

import argparse
import gc
import os
import pickle
import queue
import sqlite3
import sys
import tempfile
import threading
import warnings
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, Callable, Iterator

import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

import sharedsession
from sharedsession import (
    LockTimeout,
    SharedSession,
    WorkLostError,
    critical_section,
    merge_into,
    read_section,
    shared_session,
)
from sharedsession.guard import access, task

from ...conftest import leave_transactions_to_sqlalchemy, make_engine
from ...support.models import Address, User
from ...support.threads import PATIENCE, Worker, stuck, wait_until

PACKAGE = os.path.dirname(sharedsession.__file__)

#: What ends a section, a block or a stream.  Interrupted at its very first step it has
#: not begun, and what it would have ended is open still, until the traceback goes that
#: keeps the frames: nothing that is written in Python can do better.
ENDS = {
    *(("session/sections", "__exit__"), ("decorators", "__exit__")),
    ("unit_of_work", "__exit__"),
    *(("database/rows", "soft_close"), ("database/rows", "hard_close")),
    *(("decorators", "send"), ("decorators", "throw")),
}


#: Where it stays open for good, or as long as the thread lives: an application's own
#: lock, had but not yet noted, and a block of a transaction, which the session keeps.
LIMITS = {
    ("c_return of acquire", "guard/kinds", "_acquire"),
    ("the start", "session/transaction", "__exit__"),
}


# -- interrupts


class Interrupt:
    """Raises KeyboardInterrupt at the n-th step inside the library; counts with 0."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.steps = 0
        self.place = ""
        #: Whether it came at the very first step of one of ENDS, or at one of LIMITS.
        self.at_an_end = self.at_a_limit = False

    def __enter__(self) -> Interrupt:
        sys.setprofile(self._profile)
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        sys.settrace(None)
        sys.setprofile(None)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event != "call" or not _is_ours(frame):
            return None
        # A generator that goes on does so in the middle of a line.
        last = 1 << 30 if _resumes(frame.f_code) else -1

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal last
            if event == "line":
                began, jumped_back = last == -1, -1 < frame.f_lasti < last < 1 << 30
                last = frame.f_lasti
                if began or jumped_back:
                    self._step(frame, "the start" if began else "a loop", began)
            return trace

        return trace

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_return" and arg.__name__ == "__enter__":
            return  # with a lock: one step, or was but for 3.14, see the README
        waits = event == "c_call" and arg.__name__ == "acquire"
        if (event == "c_return" or waits) and _is_ours(frame):
            self._step(frame, f"{event} of {arg.__name__}", False)

    def _step(self, frame: FrameType, what: str, began: bool) -> None:
        if _in_finalizer(frame):
            return
        self.steps += 1
        if self.steps == self.at:
            module, name = _module(frame.f_code), frame.f_code.co_name
            self.at_an_end = began and (module, name) in ENDS
            self.at_a_limit = (what, module, name) in LIMITS
            self.place = f"{what}, in {module}.{name}:{frame.f_lineno}"
            raise KeyboardInterrupt


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(PACKAGE)


def _module(code: CodeType) -> str:
    return os.path.relpath(code.co_filename, PACKAGE).removesuffix(".py")


def _resumes(code: CodeType) -> bool:
    return bool(code.co_flags & 0x20)  # inspect.CO_GENERATOR


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None and _is_ours(frame):
        if frame.f_code.co_name in ("__del__", "ended"):
            return True
        frame = frame.f_back
    return False


# -- another thread that works in the same session


class Agent(threading.Thread):
    """A thread that does what it is told, one thing after the other."""

    def __init__(self) -> None:
        super().__init__(name="agent", daemon=True)
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                self._results.put((task(), None))
            except BaseException as error:
                self._results.put((None, error))
            del task

    def do(self, task: Callable[[], Any]) -> Any:
        self._tasks.put(task)
        try:
            result, error = self._results.get(timeout=PATIENCE)
        except queue.Empty:
            stuck("the agent did not come back")
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        self._tasks.put(None)
        self.join(PATIENCE)


# -- the world that an operation is tried in


class World:
    """A session with a user in it, and the pending work of another thread."""

    def __init__(self, lock: Any, factory: Any = None) -> None:
        # In a file: an interrupt may make SQLAlchemy drop the connection.
        self.directory = tempfile.TemporaryDirectory(dir=_SHM)
        self.engine = make_engine(f"sqlite:///{self.directory.name}/test.db")
        if factory is not None:
            url = self.engine.url.update_query_dict({})
            self.engine.dispose()
            self.engine = sa.create_engine(url, connect_args={"factory": factory})
            leave_transactions_to_sqlalchemy(self.engine)
        self.registry = shared_session(
            sessionmaker(self.engine, class_=SharedSession, lock=_lock(lock))
        )
        self.session = self.registry()
        self.guard: Any = self.session.guard
        self.user = self.session.get_one(User, 1)
        _ = self.user.addresses, self.session.get_one(User, 2).name
        self.agent = Agent()
        self.agent.do(lambda: self.session.add(User(name="witness")))
        #: Of an operation that needs a second session.
        self.other: Any = None

    def end(self) -> None:
        self.agent.end()
        if self.other is not None:
            self.other.close()
        self.session.close()
        self.engine.dispose()
        self.directory.cleanup()


_SHM = "/dev/shm" if os.path.isdir("/dev/shm") else None


def _lock(lock: Any) -> Any:
    return lock() if callable(lock) else lock


Step = Callable[[World], Any]


@dataclass(frozen=True)
class Operation:
    name: str
    go: Step = field(repr=False)
    prepare: Step = field(default=lambda world: None, repr=False)


OPERATIONS: list[Operation] = []


def operation(name: str, go: Step, prepare: Step = lambda world: None) -> None:
    OPERATIONS.append(Operation(name, go, prepare))


def add(world: World) -> None:
    world.session.add(User(name="new"))


def add_and_flush(world: World) -> None:
    add(world)
    world.session.flush()


def rename(world: World) -> None:
    world.user.name = "new"


def pair(world: World) -> None:
    """Two rows that belong together."""
    world.session.add(User(name="one"))
    world.session.add(User(name="two"))


STREAM = sa.select(User).order_by(User.id).execution_options(yield_per=2)


def stream(world: World, rows: int) -> None:
    with world.session.execute(STREAM) as result:
        for number, _ in enumerate(result, 1):
            if number == rows:
                break


def within(enter: Callable[[World], Any], go: Step) -> Step:
    def block(world: World) -> None:
        with enter(world):
            go(world)

    return block


def fail(world: World) -> None:
    pair(world)
    raise ZeroDivisionError


def failing(go: Step) -> Step:
    def block(world: World) -> None:
        try:
            go(world)
        except ZeroDivisionError:
            pass

    return block


def decorated(world: World) -> None:
    critical_section(world.session)(rename)(world)


def decorated_unit(world: World) -> None:
    critical_section(world.registry, transaction="commit")(pair)(world)


def decorated_generator(world: World) -> None:
    @critical_section(lambda: world.session)
    def generate() -> Iterator[Any]:
        yield world.user.name
        yield world.user.addresses

    with closing(generate()) as generator:
        for _ in generator:
            pass


def make_other(world: World) -> None:
    world.other = SharedSession(make_engine())
    world.other.get(User, 1)


def unit(transaction: Any) -> Callable[[World], Any]:
    return lambda world: critical_section(world.session, transaction=transaction)


operation("read", lambda w: w.user.name)
operation("read expired", lambda w: w.user.name, lambda w: w.session.expire(w.user))
operation("lazy load", lambda w: w.user.tags)
operation("set", rename)
operation("append", lambda w: w.user.addresses.append(Address(email="new@0")))
operation("mutate", lambda w: w.user.data.update(new=1))
operation("add", add)
operation("delete", lambda w: w.session.delete(w.user.addresses[0]))
operation("get", lambda w: w.session.get(User, 3))
operation("refresh", lambda w: w.session.refresh(w.user))
operation("flush", lambda w: w.session.flush(), add)
operation("flush a change", lambda w: w.session.flush(), rename)
operation("commit", lambda w: w.session.commit(), add)
operation("commit flushed", lambda w: w.session.commit(), add_and_flush)
operation("rollback", lambda w: w.session.rollback(), add_and_flush)
operation("close", lambda w: w.session.close(), add)
operation("execute", lambda w: w.session.execute(sa.text("SELECT 1")).all())
operation("select objects", lambda w: w.session.scalars(sa.select(User)).all())
operation("update", lambda w: w.session.execute(sa.update(User).values(x=7)))
operation("stream to its end", lambda w: stream(w, 99))
operation("stream closed early", lambda w: stream(w, 1))
operation("critical section", within(lambda w: w.session.critical_section(), rename))
operation(
    "nested sections",
    within(
        lambda w: w.session.critical_section(),
        within(lambda w: w.session.critical_section(), rename),
    ),
)
operation(
    "read section", within(lambda w: w.session.read_section(), lambda w: w.user.tags)
)
operation(
    "read section of a registry",
    within(lambda w: read_section(w.registry), lambda w: w.user.name),
)
operation(
    "begin block",
    within(lambda w: w.session.begin(), pair),
    lambda w: w.session.commit(),
)
operation("begin_nested block", within(lambda w: w.session.begin_nested(), pair))
operation(
    "failing savepoint", failing(within(lambda w: w.session.begin_nested(), fail))
)
operation("no_autoflush", within(lambda w: w.session.no_autoflush, rename))
operation("unit of work", within(unit("commit"), pair))
operation("failing unit", failing(within(unit("commit"), fail)))
operation("savepoint unit", within(unit("savepoint"), pair))
operation("decorated function", decorated)
operation("decorated unit", decorated_unit)
operation("decorated generator", decorated_generator)
operation("merge_into", lambda w: merge_into(w.other, w.user), make_other)
operation("with session", within(lambda w: w.session, lambda w: w.user.name))
operation("remove", lambda w: w.registry.remove())


# -- what has to be right after a fault


class Wrong(AssertionError):
    """Something that a fault left behind."""


def check(condition: Any, what: str) -> None:
    if not condition:
        raise Wrong(what)


def check_free(guard: Any) -> None:
    check(guard._mutex.acquire(timeout=1), "the mutex is taken")
    guard._mutex.release()
    check(guard.turn is None, f"held: {guard.explain()}")
    check(not guard.readers, f"read: {guard.explain()}")
    check(not guard.waiting, f"waited for: {guard.explain()}")
    check(guard.running is None, "an operation runs")
    check(guard.version is not None or guard.unsettled, "there is no version")
    if guard._lock is not None:
        check(not guard._lock.blockers(), "the application's lock is held")
        check(Worker(lambda: _can_have(guard._lock)).result(), "and nobody has it")


def _can_have(foreign: Any) -> bool:
    me = task.current_owner()
    got: bool = foreign.acquire(access.EXCLUSIVE, me, None, 0)
    if got:
        foreign.release(me, None)
    return got


def committed(world: World) -> Counter[str]:
    """What another program would see in the database now."""
    with world.engine.connect() as connection:
        names = connection.scalars(sa.text("SELECT name FROM users")).all()
        emails = connection.scalars(sa.text("SELECT email FROM addresses")).all()
        values = connection.scalars(
            sa.text("SELECT x||data FROM users WHERE x>0")
        ).all()
    return Counter(map(str, [*names, *emails, *values]))


def check_after(world: World) -> Counter[str]:
    """Have the threads go on; return what is in the database then."""
    check_free(world.guard)
    session = world.session
    try:
        world.agent.do(session.commit)
        was_told = False
    except WorkLostError:
        was_told = True
    session.rollback()
    world.agent.do(lambda: session.get_one(User, 2).name)
    check(session.get_one(User, 2).name == "ben", "the session is of no use")
    with session.critical_section():
        plain = pickle.dumps(world.user)
    check(b"sharedsession" not in plain, "a class of ours is in the pickle")
    session.close()
    check_free(world.guard)
    found = committed(world)
    check(found.pop("witness", 0) or was_told, "work was lost, and nobody was told")
    return found


# -- trying


@dataclass
class Report:
    """How many faults were tried, and what was wrong after which."""

    tried: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, sort: str, where: str, error: BaseException | None) -> None:
        self.tried[sort] += 1
        if error is not None:
            self.wrong.append(f"{where}: {type(error).__name__}: {error}")

    def __str__(self) -> str:
        lines = [f"{count:6} {sort}" for sort, count in self.tried.items()]
        return "\n".join([*lines, *self.wrong])


def outcomes(operation: Operation, lock: Any) -> list[Counter[str]]:
    """What may be in the database: as without the operation, or as with all of it."""
    found = []
    steps = (operation.prepare, operation.go)
    for count in range(3):
        world = World(lock)
        for step in steps[:count]:
            step(world)
        found.append(check_after(world))
        world.end()
    return found


def interrupt_everywhere(
    operation: Operation, lock: Any, report: Report, every: int = 1, first: int = 0
) -> None:
    """Interrupt *operation* at each step of the library's in it."""
    allowed = outcomes(operation, lock)
    at = total = 0
    while at <= total:
        world = World(lock)
        operation.prepare(world)
        fault = Interrupt(at)
        error = _interrupted(world, operation, fault, allowed)
        total = total or fault.steps
        if at and not fault.at_a_limit:
            where = f"{operation.name}, step {at}, {fault.place}"
            report.note(f"interrupts, {_name(lock)}", where, error)
        error = None
        at += every if at else 1 + first % max(1, min(every, total))
        world.end()


def _has_interrupt(error: BaseException | None) -> bool:
    """Also if what had to be done because of it, a rollback say, failed after it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _name(lock: Any) -> str:
    return lock if isinstance(lock, str) else lock.__name__


def _interrupted(
    world: World, operation: Operation, fault: Interrupt, allowed: list[Any]
) -> BaseException | None:
    kept = None
    try:
        with fault:
            operation.go(world)
    except BaseException as error:
        kept = error  # as a notebook keeps it, and with it every frame
    if fault.at_a_limit:
        return None
    try:
        check(not fault.at or _has_interrupt(kept), f"the interrupt became {kept!r}")
        if fault.at_an_end:
            kept = None
            gc.collect()
        found = check_after(world)
        check(found in allowed, f"half of it is committed: {found}")
    except Exception as error:
        return error
    return None


# -- interrupts while another thread waits, or is waited for


def _hold_while_it_waits(world: World, fault: Interrupt) -> BaseException | None:
    """One thread waits for a section of another, and is interrupted."""
    kept: list[BaseException] = []

    def wait() -> None:
        try:
            with fault, world.session.critical_section():
                pass
        except KeyboardInterrupt as error:
            kept.append(error)

    with world.session.critical_section():
        worker = Worker(wait)
        wait_until(lambda: worker in world.guard.waiting or worker.done.is_set())
    worker.result()
    return kept[0] if kept else None


def _leave_to_the_waiting(world: World, fault: Interrupt) -> BaseException | None:
    """Two threads wait for a section, whose thread is interrupted as it leaves."""
    section = world.session.critical_section()
    section.__enter__()
    workers = [Worker(lambda: world.session.get(User, 2)) for _ in range(2)]
    wait_until(lambda: len(world.guard.waiting) == 2)
    kept = None
    try:
        with fault:
            section.__exit__(None, None, None)
    except KeyboardInterrupt as error:
        kept = error
    if fault.at_an_end:
        section.__exit__(None, None, None)
    for worker in workers:
        worker.result()
    return kept


def _leave_a_read_section(world: World, fault: Interrupt) -> BaseException | None:
    """A writer waits for a read section, whose thread is interrupted as it leaves."""
    section = world.session.read_section()
    section.__enter__()
    workers = [Worker(lambda: world.session.add(User(name="late")))]
    wait_until(lambda: len(world.guard.waiting) == 1)
    kept = None
    try:
        with fault:
            section.__exit__(None, None, None)
    except KeyboardInterrupt as error:
        kept = error
    if fault.at_an_end:
        section.__exit__(None, None, None)
    workers[0].result()
    world.session.rollback()
    return kept


def _time_out(world: World, fault: Interrupt) -> BaseException | None:
    """A wait that takes too long is interrupted."""
    kept: list[BaseException] = []

    def wait() -> None:
        try:
            with fault, world.session.critical_section(timeout=0.001):
                pass
        except (KeyboardInterrupt, LockTimeout) as error:
            kept.append(error)

    with world.session.critical_section():
        Worker(wait).result()
    return kept[0]


SIDES = [_hold_while_it_waits, _leave_to_the_waiting, _leave_a_read_section, _time_out]


def interrupt_between(lock: Any, side: Any, report: Report, every: int = 1) -> None:
    at = total = 0
    while at <= total:
        world = World(lock)
        fault = Interrupt(at)
        error: BaseException | None = None
        try:
            kept = [side(world, fault)]  # as a notebook keeps it, with every frame
            check_after(world)
            kept.clear()
        except Exception as wrong:
            error = wrong
        total = total or fault.steps
        if at and fault.steps >= at and not fault.at_a_limit:
            where = f"{side.__name__[1:]}, step {at}, {fault.place}"
            report.note(f"interrupts between threads, {_name(lock)}", where, error)
        error = None
        at += every if at else 1
        world.end()


# -- drivers that fail


class Failing:
    """Has the n-th call of the driver raise; counts with 0."""

    def __init__(self) -> None:
        self.at = self.calls = 0
        self.on = False

    def call(self, fetching: Any = None) -> None:
        if self.on:
            self.calls += 1
            if self.calls == self.at:
                if fetching is not None:
                    fetching.close()  # sqlite3 resets a statement that fails
                raise sqlite3.OperationalError("the driver failed")


def _failing_connection(failing: Failing) -> Any:
    class Cursor(sqlite3.Cursor):
        def execute(self, *args: Any) -> Any:
            failing.call()
            return super().execute(*args)

        def executemany(self, *args: Any) -> Any:
            failing.call()
            return super().executemany(*args)

        def fetchall(self) -> Any:
            failing.call(self)
            return super().fetchall()

        def fetchmany(self, *args: Any) -> Any:
            failing.call(self)
            return super().fetchmany(*args)

        def fetchone(self) -> Any:
            failing.call(self)
            return super().fetchone()

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            failing.call()
            return super().cursor(factory)

        def commit(self) -> None:
            failing.call()
            super().commit()

    return Connection


def fail_everywhere(operation: Operation, lock: Any, report: Report) -> None:
    """Have each call fail that *operation* makes of the driver."""
    allowed = outcomes(operation, lock)
    at = total = 0
    while at <= total:
        failing = Failing()
        world = World(lock, factory=_failing_connection(failing))
        operation.prepare(world)
        failing.at, failing.on = at, True
        error = _tried(world, operation, allowed, lambda: setattr(failing, "on", False))
        total = total or failing.calls
        if at:
            report.note("calls of a driver", f"{operation.name}, call {at}", error)
        error = None
        at += 1
        world.end()


def _tried(
    world: World, operation: Operation, allowed: list[Any], after: Callable[[], Any]
) -> BaseException | None:
    try:
        operation.go(world)
    except Exception:
        pass
    after()
    try:
        found = check_after(world)
        check(found in allowed, f"half of it is committed: {found}")
    except Exception as error:
        return error
    return None


# -- hooks of the application's that fail


def _event(target: Any, name: str) -> Any:
    def install(world: World, function: Any) -> Callable[[], None]:
        found = target(world)
        sa.event.listen(found, name, function)
        return lambda: sa.event.remove(found, name, function)

    return install


def _engine(world: World) -> Any:
    return world.engine


def _session(world: World) -> Any:
    return world.session


HOOKS: dict[str, Any] = {
    **{
        name: _event(_session, name)
        for name in (
            *("before_flush", "after_flush", "after_flush_postexec", "before_commit"),
            *("after_commit", "after_rollback", "after_soft_rollback", "after_begin"),
            *(
                "before_attach",
                "after_attach",
                "do_orm_execute",
                "pending_to_persistent",
            ),
            *("after_transaction_create", "after_transaction_end"),
            *("transient_to_pending", "loaded_as_persistent"),
        )
    },
    **{
        name: _event(_engine, name)
        for name in ("before_cursor_execute", "after_cursor_execute")
    },
    "load": _event(lambda world: User, "load"),
    "before_insert": _event(lambda world: User, "before_insert"),
    "after_insert": _event(lambda world: User, "after_insert"),
    "before_update": _event(lambda world: User, "before_update"),
    "set, as a validator": _event(lambda world: User.name, "set"),
    "append, as a validator": _event(lambda world: User.addresses, "append"),
    "bind of a type": None,
    "result of a type": None,
}


class HookFailed(Exception):
    pass


def _install_type(sort: str, function: Any) -> Callable[[], None]:
    column: Any = User.__table__.c.name
    plain = column.type
    column.type = FailingType(sort, function)
    return lambda: setattr(column, "type", plain)


class FailingType(sa.types.TypeDecorator[Any]):
    """A type of the application's that fails on the way in, or out."""

    impl = sa.String(50)
    cache_ok = False

    def __init__(self, sort: str, function: Any) -> None:
        super().__init__()
        self.sort, self.function = sort, function

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if self.sort.startswith("bind"):
            self.function()
        return value

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        if self.sort.startswith("result"):
            self.function()
        return value


def fail_in_hook(operation: Operation, lock: Any, sort: str, report: Report) -> None:
    """Have a hook fail at its first call, and at its second and third if any."""
    allowed = outcomes(operation, lock)
    for at in (1, 2, 3):
        world = World(lock)
        operation.prepare(world)
        calls: list[int] = []

        def hook(*args: Any, **kw: Any) -> None:
            calls.append(1)
            if len(calls) == at:
                raise HookFailed

        install = HOOKS[sort]
        remove = install(world, hook) if install else _install_type(sort, hook)
        try:
            error = _tried(world, operation, allowed, remove)
        finally:
            world.end()
        if len(calls) < at:
            return
        report.note("hooks", f"{operation.name}, {sort}, call {at}", error)


# -- from the command line


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="try each n-th step only")
    parser.add_argument("--operation", default="", help="only those with this in it")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    # SQLAlchemy complains of objects that an interrupt left between two states.
    sys.unraisablehook = lambda unraisable: None
    report = Report()
    for operation in OPERATIONS:
        if arguments.operation in operation.name:
            print(operation.name, flush=True)
            for lock in ("rlock", "rw", threading.RLock):
                interrupt_everywhere(operation, lock, report, arguments.every)
            fail_everywhere(operation, "rw", report)
            for sort in HOOKS:
                fail_in_hook(operation, "rlock", sort, report)
    for lock in ("rlock", "rw"):
        for side in SIDES:
            interrupt_between(lock, side, report, arguments.every)
    print(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
