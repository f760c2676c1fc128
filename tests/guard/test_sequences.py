"""The table of lock sequences: who comes in, who waits, who is refused, by kind.

One row is one sequence of steps, and what came of it under each kind of lock.  Threads
take their steps one after the other: each is waited for until it is done or stands in
the queue.  What comes out is written in few words:

``in``
    it came in, or went on, at once;
``waits``
    it stood in the queue, and came in once the one before had left;
the name of an error
    it was refused.

Each row names the mechanism that it stands on; a control runs it without that one.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from dataclasses import dataclass, field
from typing import Any, Callable

import pytest
import sqlalchemy as sa
from readerwriterlock import rwlock

from sharedsession import ForkedSessionError, SharedSession, critical_section
from sharedsession.guard import deadlocks, kinds
from sharedsession.guard.guard import Guard
from sharedsession.session.recovery import Recovery
from sharedsession.session.sections import CriticalSection
from sharedsession.session.transaction import GuardedTransaction

from ..conftest import make_engine
from ..support import threads
from ..support.models import Address, User
from ..support.threads import Worker, passes, wait_for, wait_until

#: What is given as ``lock=``, by the name in the table.
KINDS: dict[str, Callable[[], Any]] = {
    "rlock": lambda: "rlock",
    "rw": lambda: "rw",
    "detect": lambda: "detect",
    "confine": lambda: "confine",
    "own RLock": threading.RLock,
    "own RWLock": rwlock.RWLockFairD,
}
UPGRADE, CONCURRENT, DEADLOCK = "UpgradeError", "ConcurrentAccessError", "DeadlockError"
TIMEOUT, LOST, FORKED = "LockTimeout", "WorkLostError", "ForkedSessionError"


class Scene:
    """Two sessions of one kind (on one lock, if it is the application's)."""

    def __init__(self, kind: str, timeout: float | None) -> None:
        self.lock = KINDS[kind]()
        self._timeout = timeout
        self._engines: list[sa.Engine] = []
        self._waiting: list[Worker] = []
        self.session = self.new_session()
        self.user = self.session.get_one(User, 1)
        self.session.commit()
        self.session.refresh(self.user)

    def new_session(self) -> Any:
        self._engines.append(make_engine())
        return SharedSession(
            self._engines[-1], lock=self.lock, lock_timeout=self._timeout
        )

    def met(self, step: Callable[[], Any], guard: Any = None) -> str:
        """What comes of *step* in another thread, which may go on waiting."""
        worker = Worker(step, name="other")
        if not passes(worker, guard or self.session.guard):
            self._waiting.append(worker)
            return "waits"
        return outcome(worker.result)

    def meets(self, step: Callable[[], Any]) -> str:
        """The same while this thread has left again: a waiting one has come in."""
        return outcome(Worker(step, name="other").result)

    def add(self) -> None:
        self.session.add(User(name="added"))

    def write(self) -> None:
        with self.session.critical_section():
            pass

    def read(self) -> None:
        with self.session.read_section():
            pass

    def load(self) -> None:
        with self.session.read_section():
            self.session.get(User, 3)

    def end(self) -> None:
        """Whoever waits must come in now, and the guard must be free."""
        for worker in self._waiting:
            assert outcome(worker.result) == "in"
        guard = self.session.guard
        assert guard.owner is None and not guard.readers and not guard.waiting

    def dispose(self) -> None:
        for engine in self._engines:
            engine.dispose()


def outcome(step: Callable[[], Any]) -> str:
    """``in``, or the name of the error; what *step* itself returned as outcome."""
    try:
        result = step()
    except BaseException as error:
        return type(error).__name__
    return result if isinstance(result, str) else "in"


@dataclass(frozen=True)
class Sequence:
    name: str
    run: Callable[[Scene], Any] = field(repr=False)
    expected: dict[str, Any]
    stands_on: str


SEQUENCES: list[Sequence] = []


def sequence(
    stands_on: str,
    *,
    all: Any = None,
    waiting: Any = None,
    sharing: Any = None,
    detect: Any = None,
    confine: Any = None,
    **others: Any,
) -> Any:
    """Add a row; *waiting* is of kinds where others wait, *sharing* of the rest."""
    waiting = all if waiting is None else waiting
    sharing = waiting if sharing is None else sharing
    detect = all if detect is None else detect
    confine = detect if confine is None else confine
    expected = {
        "rlock": waiting,
        "rw": sharing,
        "detect": detect,
        "confine": confine,
        "own RLock": others.get("own_rlock", waiting),
        "own RWLock": others.get("own_rwlock", sharing),
    }

    def add(function: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
        name = function.__name__.replace("_", " ")
        SEQUENCES.append(Sequence(name, function, expected, stands_on))
        return function

    return add


# -- one section and another thread


@sequence("exclusion", waiting="waits", detect=CONCURRENT)
def write_beside_write(scene: Scene) -> Any:
    with scene.session.critical_section():
        return scene.met(scene.write)


@sequence("exclusion", waiting="waits", detect=CONCURRENT)
def read_beside_write(scene: Scene) -> Any:
    with scene.session.critical_section():
        return scene.met(scene.read)


@sequence("exclusion", waiting="waits", detect=CONCURRENT)
def write_beside_read(scene: Scene) -> Any:
    with scene.session.read_section():
        return scene.met(scene.write)


@sequence("exclusion", waiting="waits", sharing="in", detect=CONCURRENT)
def read_beside_read(scene: Scene) -> Any:
    with scene.session.read_section():
        return scene.met(scene.read)


@sequence("exclusion", waiting="waits", detect=CONCURRENT)
def single_operation_beside_write(scene: Scene) -> Any:
    with scene.session.critical_section():
        return scene.met(scene.add)


@sequence("exclusion", waiting="waits", detect=CONCURRENT)
def loaded_attribute_beside_write(scene: Scene) -> Any:
    with scene.session.critical_section():
        return scene.met(lambda: (scene.user.name, None)[1])


@sequence("exclusion", waiting="waits", sharing="in", detect=CONCURRENT)
def loaded_attribute_beside_read(scene: Scene) -> Any:
    with scene.session.read_section():
        return scene.met(lambda: (scene.user.name, None)[1])


@sequence("exclusion", waiting="waits", sharing="in", detect=CONCURRENT)
def load_beside_read(scene: Scene) -> Any:
    with scene.session.read_section():
        return scene.met(scene.load)


@sequence("exclusion", waiting="waits", detect=CONCURRENT)
def load_beside_load(scene: Scene) -> Any:
    found: list[str] = []

    @sa.event.listens_for(scene.session, "do_orm_execute", once=True)
    def while_loading(state: Any) -> None:
        found.append(scene.met(scene.load))

    scene.load()
    return found[0]


@sequence("exclusion", waiting="waits", detect=CONCURRENT)
def write_beside_a_transaction_block(scene: Scene) -> Any:
    scene.session.rollback()
    with scene.session.begin():
        return scene.met(scene.write)


@sequence("exclusion", waiting="waits", detect=CONCURRENT)
def write_beside_no_autoflush(scene: Scene) -> Any:
    with scene.session.no_autoflush:
        return scene.met(scene.write)


# -- sections in sections


@sequence("reentrancy", all="in")
def read_inside_read(scene: Scene) -> Any:
    with scene.session.read_section():
        return outcome(scene.read)


@sequence("reentrancy", waiting=("waits", "in", "in"), detect=(CONCURRENT, "in", "in"))
def read_inside_read_with_a_writer_waiting(scene: Scene) -> Any:
    with scene.session.read_section():
        writer = scene.met(scene.write)
        return writer, outcome(scene.read), outcome(scene.load)


@sequence("fairness", waiting=("waits", "waits"), detect=(CONCURRENT, CONCURRENT))
def a_reader_behind_a_waiting_writer(scene: Scene) -> Any:
    with scene.session.read_section():
        return scene.met(scene.write), scene.met(scene.read)


@sequence("upgrades", all=(UPGRADE, UPGRADE, UPGRADE, "in"))
def write_inside_read(scene: Scene) -> Any:
    with scene.session.read_section():
        found = [outcome(step) for step in (scene.write, scene.add)]
        found.append(outcome(lambda: setattr(scene.user, "name", "z")))
    return (*found, outcome(scene.write))


@sequence("upgrades", all=("in", UPGRADE, "in"))
def read_inside_write(scene: Scene) -> Any:
    with scene.session.critical_section():
        with scene.session.read_section():
            found = outcome(lambda: (scene.user.name, None)[1]), outcome(scene.add)
        return (*found, outcome(scene.add))


@sequence("reentrancy", waiting=("in", "waits"), detect=("in", CONCURRENT))
def write_inside_write(scene: Scene) -> Any:
    with scene.session.critical_section():
        inner = outcome(scene.write)
        return inner, scene.met(scene.write)


@sequence("reentrancy", all="in")
def section_inside_an_operation(scene: Scene) -> Any:
    found: list[str] = []

    @sa.event.listens_for(scene.session, "before_flush", once=True)
    def listen(*args: Any) -> None:
        found.append(outcome(scene.write))

    scene.add()
    scene.session.flush()
    return found[0]


@sequence("units", all=("in", "in"))
def unit_inside_unit(scene: Scene) -> Any:
    with critical_section(scene.session, transaction="commit"):
        with critical_section(scene.session, transaction="commit"):
            scene.add()
        inner = "in" if scene.session.in_transaction() else "committed too early"
    return inner, "committed too late" if scene.session.in_transaction() else "in"


@sequence("downgrade", waiting="waits", sharing="in", detect=CONCURRENT)
def downgrade_with_a_reader_waiting(scene: Scene) -> Any:
    guard = scene.session.guard
    hold = guard.hold("section")
    reader = Worker(scene.read, name="other")
    if guard.kind.value in ("detect", "confine"):
        found = outcome(reader.result)
    else:
        assert not passes(reader, guard)
        found = "waits"
    guard.downgrade(hold)
    if guard.held == "shared":
        found = outcome(reader.result)
    hold.release()
    if found == "waits":
        reader.result()
    return found


@sequence("streams", waiting=("in", "waits"), detect=("in", CONCURRENT))
def a_stream_then_a_section(scene: Scene) -> Any:
    statement = sa.select(User.id).execution_options(yield_per=1)
    with scene.session.execute(statement) as rows:
        rows.fetchone()
        inner = outcome(scene.write)
        return inner, scene.met(scene.write)  # the section's end is not the stream's


# -- several guards


@sequence("exclusion", waiting="in", detect="in", own_rlock="waits", own_rwlock="waits")
def another_session_beside_a_section(scene: Scene) -> Any:
    other = scene.new_session()
    with scene.session.critical_section():
        return scene.met(lambda: critical(other), other.guard)


@sequence("one adapter a lock", all="in")
def sections_of_two_sessions(scene: Scene) -> Any:
    other = scene.new_session()
    with scene.session.critical_section():
        return outcome(lambda: critical(other))


def critical(session: Any) -> None:
    with session.critical_section():
        pass


@sequence(
    "deadlocks",
    waiting=(DEADLOCK, "in"),
    detect=(CONCURRENT, "in"),
    # On one lock there are no two orders: the other one waits at its first section.
    own_rlock=("in", "in"),
    own_rwlock=("in", "in"),
)
def two_guards_in_opposite_order(scene: Scene) -> Any:
    first, second = scene.session, scene.new_session()
    has_second, go = threading.Event(), threading.Event()
    on_one_lock = not isinstance(scene.lock, str)

    def other_way() -> None:
        with second.critical_section():
            has_second.set()
            if not on_one_lock:
                wait_for(go)
            with first.critical_section():
                pass

    def this_way() -> None:
        with first.critical_section():
            if on_one_lock:
                workers.append(Worker(other_way, name="other"))
                assert not passes(workers[0], second.guard)
            else:
                workers.append(Worker(other_way, name="other"))
                wait_for(has_second)
                go.set()
                passes(workers[0], first.guard)
            critical(second)

    workers: list[Worker] = []
    found = {outcome(this_way), outcome(workers[0].result)}
    # In exactly one of the two, and both sessions can be used afterwards; but a
    # confined one is its first thread's, so there both are refused.
    refused = found - {"in"}
    assert len(refused) <= 1
    if scene.lock != "confine":
        assert outcome(lambda: critical(first)) == "in"
        assert outcome(lambda: critical(second)) == "in"
    return (refused or {"in"}).pop(), "in"


# -- waits that end otherwise


@sequence(
    "exclusion",
    waiting=(TIMEOUT, "in"),
    detect=(CONCURRENT, "in"),
    confine=(CONCURRENT, CONCURRENT),
)
def timeout_then_retry(scene: Scene) -> Any:
    def hurry() -> None:
        with scene.session.critical_section(timeout=0.01):
            pass

    with scene.session.critical_section():
        first = scene.meets(hurry)
    return first, scene.meets(hurry)


@sequence(
    "exclusion",
    waiting=("KeyboardInterrupt", "in"),
    detect=(CONCURRENT, "in"),
    confine=("in", "in"),  # a confined session is nobody's any more if its thread ended
)
def interrupt_while_waiting(scene: Scene) -> Any:
    if scene.lock == "confine":
        scene.session.guard.hand_over()
    guard, me = scene.session.guard, threading.current_thread()
    held, leave = threading.Event(), threading.Event()

    def hold_and_interrupt() -> None:
        with scene.session.critical_section():
            held.set()
            wait_until(lambda: me in guard.waiting or leave.is_set())
            if not leave.is_set():
                signal.pthread_kill(me.ident, signal.SIGINT)  # type: ignore[arg-type]
            wait_for(leave)

    holder = Worker(hold_and_interrupt, name="holder")
    wait_for(held)
    if scene.lock == "confine":
        leave.set()
        holder.result()
        holder.join()
    found = outcome(scene.write)
    left = guard.waiting
    leave.set()
    holder.result()
    assert left == ()
    return found, outcome(scene.write)


@sequence(
    "burying",
    all=("in", "undone"),
)
def the_holder_ends(scene: Scene) -> Any:
    session, guard = scene.session, scene.session.guard
    session.rollback()
    if scene.lock == "confine":
        guard.hand_over()
    kept: list[Any] = []

    def leave_open() -> None:
        section = session.critical_section()
        kept.append(section)
        section.__enter__()
        session.add(User(name="half done"))

    Worker(leave_open, name="gone").result()
    wait_until(lambda: guard.owner is None)

    def go_on() -> None:
        with session.critical_section(timeout=0.2):
            session.commit()

    found = outcome(go_on)
    names = set(session.scalars(sa.select(User.name)))
    return found, "kept" if "half done" in names else "undone"


@sequence("forks", all=(FORKED, "in"))
def fork_while_held(scene: Scene) -> Any:
    with scene.session.critical_section():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads live
            child = os.fork()
        if child == 0:
            try:
                scene.session.get(User, 1)
            except ForkedSessionError:
                os._exit(42)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return FORKED if status == 42 else status, outcome(scene.add)


# -- whose section it is


@sequence("ownership", all=("SharedSessionError", "in"))
def release_of_what_is_not_held(scene: Scene) -> Any:
    section = scene.session.critical_section()
    with scene.session.critical_section():
        found = outcome(lambda: section.__exit__(None, None, None))
    return found, outcome(scene.write)


@sequence(
    "ownership",
    all=("in", "SharedSessionError", "in"),
    own_rlock=("ConcurrentAccessError", "in", "in"),
)
def a_section_left_by_a_stranger(scene: Scene) -> Any:
    section = scene.session.critical_section()
    section.__enter__()
    left = scene.meets(lambda: section.__exit__(None, None, None))
    # An RLock lets nobody but its own thread release it; then nothing has changed.
    again = outcome(lambda: section.__exit__(None, None, None))
    return left, again, outcome(scene.write)


@sequence(
    "confinement",
    all=("SharedSessionError",),
    confine=("in", "in", CONCURRENT),
)
def hand_over(scene: Scene) -> Any:
    found = outcome(scene.session.guard.hand_over)
    if found != "in":
        return (found,)
    keep, go = threading.Event(), threading.Event()

    def use() -> None:
        scene.write()
        keep.set()
        wait_for(go)

    heir = Worker(use, name="heir")
    wait_until(lambda: keep.is_set() or heir.done.is_set())
    mine = outcome(scene.write)
    go.set()
    return found, outcome(heir.result), mine


# -- transactions that several threads are in


@sequence(
    "joining", waiting=("in", "in"), detect=("in", "in"), confine=(CONCURRENT, "in")
)
def begin_joins_what_another_autobegan(scene: Scene) -> Any:
    scene.session.rollback()
    other = scene.meets(scene.add)

    def begin() -> None:
        with scene.session.begin():
            scene.add()

    return other, outcome(begin)


@sequence("joining", all="InvalidRequestError")
def begin_does_not_join_ones_own(scene: Scene) -> Any:
    scene.session.rollback()
    scene.add()
    return outcome(scene.session.begin)


@sequence(
    "losses",
    waiting=("in", LOST, "in"),
    detect=("in", LOST, "in"),
    confine=(CONCURRENT, "in", "in"),
)
def work_that_another_threw_away(scene: Scene) -> Any:
    scene.add()
    other = scene.meets(scene.session.rollback)
    return other, outcome(scene.add), outcome(scene.add)


@sequence(
    "losses",
    waiting=("IntegrityError", "in"),
    detect=("IntegrityError", "in"),
    confine=(CONCURRENT, "in"),
)
def a_failure_of_anothers(scene: Scene) -> Any:
    scene.session.rollback()

    def fail() -> None:
        scene.session.add(Address(email="ann@0"))
        scene.session.flush()

    other = scene.meets(fail)
    return other, outcome(scene.load)


# -- the table is right, and each row can fail


def run(row: Sequence, kind: str, timeout: float | None = None) -> Any:
    scene = Scene(kind, timeout)
    try:
        found = row.run(scene)
        scene.end()
        return found
    finally:
        scene.dispose()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", SEQUENCES, ids=lambda row: row.name)
def test_sequence(row: Sequence, kind: str) -> None:
    assert run(row, kind) == row.expected[kind]


#: Ways to run without a mechanism, by its name in the table.
CUTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def cut(*names: str) -> Any:
    def add(function: Callable[[pytest.MonkeyPatch], None]) -> Any:
        CUTS.update(dict.fromkeys(names, function))
        return function

    return add


@cut("exclusion", "fairness", "streams")
def everybody_fits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "_may_enter_now", lambda *args: True)
    patch.setattr(Guard, "come_in", lambda *args: False)
    patch.setattr(Guard, "_acquire_foreign", lambda *args: None)
    patch.setattr(Guard, "_check_owner", lambda *args: None)


@cut("reentrancy")
def nobody_is_inside(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "_join", lambda *args: False)
    patch.setattr(Guard, "_welcomes", lambda *args: False)


@cut("one adapter a lock")
def each_guard_has_an_adapter(patch: pytest.MonkeyPatch) -> None:
    class Forgetful(dict[int, Any]):
        def get(self, key: int, default: Any = None) -> Any:
            return None

    patch.setattr(kinds, "_adapters", Forgetful())


@cut("upgrades")
def nothing_is_refused_to_readers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "refuse_write", lambda self: None)
    patch.setattr(Guard, "reads_only", lambda self: False)
    patch.setattr(Guard, "hold", lambda self, *args: self.hold_shared("section"))


@cut("units")
def units_know_of_no_others(patch: pytest.MonkeyPatch) -> None:
    never = property(lambda self: False, lambda self, value: None)
    patch.setattr(SharedSession, "_in_unit", never)


@cut("downgrade")
def nothing_is_downgraded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "downgrade", lambda self, hold: None)


@cut("deadlocks")
def nobody_looks_for_cycles(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deadlocks, "would_deadlock", lambda *args: False)


@cut("burying")
def the_dead_are_not_buried(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Recovery, "_finish_for_others", lambda *args: None)


@cut("forks")
def a_child_goes_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "getpid", lambda: 1)
    patch.setattr(Guard, "reset_after_fork", lambda self: None)


@cut("ownership")
def sections_can_be_left_at_any_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CriticalSection, "__exit__", lambda self, *args: self._leave())


@cut("confinement")
def nobody_is_confined(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "_check_owner", lambda *args: None)
    patch.setattr(Guard, "hand_over", lambda *args: None)


@cut("joining")
def begin_joins_the_wrong_one(patch: pytest.MonkeyPatch) -> None:
    plain = GuardedTransaction.was_autobegun_by_another
    patch.setattr(
        GuardedTransaction, "was_autobegun_by_another", lambda self: not plain(self)
    )


@cut("losses")
def nobody_recovers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Recovery, "recover", lambda *args: None)


@pytest.mark.parametrize("row", SEQUENCES, ids=lambda row: row.name)
def test_control_without_its_mechanism_a_row_fails(
    row: Sequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    CUTS[row.stands_on](monkeypatch)
    monkeypatch.setattr(threads, "PATIENCE", 0.5)
    monkeypatch.setattr(threads, "stuck", _give_up)
    for kind in KINDS:
        try:
            found = run(row, kind, timeout=0.1)
        except BaseException:
            return
        if found != row.expected[kind]:
            return
    pytest.fail("it came out the same under every kind")


def _give_up(what: str) -> None:
    raise AssertionError(what)
