"""The guard alone: modes, order, timeouts, deadlocks, ends of threads."""

from __future__ import annotations

import gc
import pickle
import sys
import threading
import unittest.mock
from types import SimpleNamespace
from typing import Any

import pytest
from readerwriterlock import rwlock

from sharedsession import (
    ConcurrentAccessError,
    DeadlockError,
    LockTimeout,
    SharedSessionError,
    UpgradeError,
)
from sharedsession.guard import occupancy
from sharedsession.guard.access import (
    CHANGE,
    EXCLUSIVE,
    LOAD,
    READ,
    STREAM,
    WRITE,
    Kind,
)
from sharedsession.guard.guard import Guard
from sharedsession.guard.kinds import KINDS, make_guard
from sharedsession.guard.owner import Owner
from sharedsession.guard.task import current_owner
from sharedsession.guard.waiter import BARGING
from sharedsession.objects.setting import setter_of
from sharedsession.operations.operation import run
from sharedsession.operations.wrap import guarded

from ..proofs.schedules.guard_programs import attached, attaching
from ..support.threads import Worker, inside, passes, wait_for, wait_until

WAITING_KINDS = ["rlock", "rw"]


@pytest.fixture(params=WAITING_KINDS)
def guard(request: pytest.FixtureRequest) -> Guard:
    made = make_guard(request.param)
    assert made is not None
    return made


def exclusive(guard: Guard, timeout: float | None = None) -> Any:
    return _Held(lambda: guard.hold("section", timeout))


def shared(guard: Guard, timeout: float | None = None) -> Any:
    return _Held(lambda: guard.hold_shared("section", timeout))


class _Held:
    def __init__(self, take: Any) -> None:
        self._take = take

    def __enter__(self) -> Any:
        self.hold = self._take()
        return self.hold

    def __exit__(self, *exc_info: Any) -> None:
        self.hold.release()


def operate(guard: Guard, access: Any, function: Any = lambda: None) -> Any:
    return run(guard, access, function)


# -- one at a time


def test_exclusive_excludes(guard: Guard) -> None:
    with exclusive(guard):
        other = Worker(lambda: operate(guard, WRITE))
        assert not passes(other, guard)
    other.result()


def test_readers_share_under_rw_only(guard: Guard) -> None:
    with inside(lambda: shared(guard)):
        other = Worker(lambda: _enter(shared(guard)))
        assert passes(other, guard) is (guard.kind is Kind.RW)
    other.result()


def _enter(section: Any) -> None:
    with section:
        pass


def test_nests(guard: Guard) -> None:
    with exclusive(guard), exclusive(guard), shared(guard):
        operate(guard, READ)
        assert guard.held == "exclusive"
    with shared(guard), shared(guard):
        operate(guard, LOAD, lambda: operate(guard, READ))
    assert guard.held is None


def test_a_reader_comes_in_again_while_a_writer_waits() -> None:
    guard = Guard(Kind.RW)
    with shared(guard):
        writer = Worker(lambda: operate(guard, WRITE))
        assert not passes(writer, guard)
        with shared(guard):
            operate(guard, LOAD)
    writer.result()


def test_readers_do_not_overtake_a_waiting_writer() -> None:
    guard = Guard(Kind.RW)
    with shared(guard):
        writer = Worker(lambda: operate(guard, WRITE), name="writer")
        assert not passes(writer, guard)
        reader = Worker(lambda: _enter(shared(guard)), name="reader")
        assert not passes(reader, guard)
        assert [thread.name for thread in guard.waiting] == ["writer", "reader"]
    writer.result()
    reader.result()


def test_loads_in_read_sections_take_turns() -> None:
    guard = Guard(Kind.RW)
    loading, go_on = threading.Event(), threading.Event()

    def load() -> None:
        with shared(guard):
            operate(guard, LOAD, lambda: (loading.set(), wait_for(go_on)))

    first = Worker(load)
    wait_for(loading)
    with shared(guard):
        second = Worker(load)
        assert not passes(second, guard)
        go_on.set()
    first.result()
    second.result()


def test_writes_in_a_read_section_raise_under_every_kind() -> None:
    for kind in Kind:
        guard = Guard(kind)
        with shared(guard):
            with pytest.raises(UpgradeError, match="critical_section"):
                operate(guard, WRITE)
            with pytest.raises(UpgradeError, match="cannot begin"):
                guard.hold("critical section")
            operate(guard, LOAD)
        assert guard.held is None
        operate(guard, WRITE)


def test_writes_in_a_read_section_inside_a_critical_one_raise(guard: Guard) -> None:
    with exclusive(guard):
        with shared(guard):
            with pytest.raises(UpgradeError):
                operate(guard, WRITE)
        operate(guard, WRITE)


def test_there_is_no_version_while_somebody_is_exclusive(guard: Guard) -> None:
    before = guard.version
    with exclusive(guard):
        assert guard.version is None
    assert guard.version is not None
    assert guard.version > before


def test_downgrade_lets_readers_in_and_no_writer() -> None:
    guard = Guard(Kind.RW)
    hold = guard.hold("section")
    reader = Worker(lambda: _enter(shared(guard)))
    assert not passes(reader, guard)
    guard.downgrade(hold)
    reader.result()
    assert guard.held == "shared"
    writer = Worker(lambda: operate(guard, WRITE))
    assert not passes(writer, guard)
    hold.release()
    writer.result()


# -- waiting


def test_a_timeout_names_the_holder_and_its_line(guard: Guard) -> None:
    with inside(lambda: exclusive(guard)):
        with pytest.raises(LockTimeout) as caught:
            guard.hold("section", timeout=0.01)
    message = str(caught.value)
    assert "'holder'" in message
    assert "threads.py:" in message
    assert "has held it" in message
    assert isinstance(caught.value, TimeoutError)
    assert guard.stats().timeouts == 1
    operate(guard, WRITE)


def test_after_a_timeout_those_behind_go_on() -> None:
    guard = Guard(Kind.RW)
    with inside(lambda: shared(guard)):
        waiting = threading.Event()

        def try_to_write() -> None:
            waiting.set()
            guard.hold("section", timeout=0.2)

        writer = Worker(try_to_write, name="writer")
        wait_until(lambda: writer in guard.waiting)
        reader = Worker(lambda: _enter(shared(guard)), name="reader")
        reader.result()
        with pytest.raises(LockTimeout):
            writer.result()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "soon", True, 1e300])
def test_bad_timeouts(guard: Guard, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        make_guard("rlock", timeout)
    with pytest.raises(ValueError, match="timeout"):
        guard.hold("section", timeout)
    operate(guard, WRITE)


def test_an_interrupt_while_waiting_leaves_the_queue(guard: Guard) -> None:
    class Interrupting:
        """A lock on which a wait is interrupted, as Ctrl-C does it."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if self._lock.acquire(False):
                return True
            raise KeyboardInterrupt

        def release(self) -> None:
            self._lock.release()

    with inside(lambda: exclusive(guard)):
        guard._make_lock = Interrupting  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            operate(guard, WRITE)
        assert guard.waiting == ()
        assert current_owner().waiting_for is None
    operate(guard, WRITE)


def test_a_cycle_of_two_guards_raises() -> None:
    first, second = Guard(), Guard()
    has_second, go = threading.Event(), threading.Event()

    def other_way() -> None:
        with exclusive(second):
            has_second.set()
            wait_for(go)
            with exclusive(first):
                pass

    with exclusive(first):
        worker = Worker(other_way, name="other")
        wait_for(has_second)
        go.set()
        wait_until(lambda: worker in first.waiting)
        with pytest.raises(DeadlockError, match="'other'.*same order"):
            with exclusive(second):
                pass
    worker.result()
    assert first.owner is None and second.owner is None


def test_waiting_for_a_fellow_reader_to_load_is_no_cycle() -> None:
    """Reader A waits for B's load; C, a reader too, waits for something of A's."""
    shared_guard, other = Guard(Kind.RW), Guard()
    loading, go_on = threading.Event(), threading.Event()

    def load() -> None:
        with shared(shared_guard):
            operate(shared_guard, LOAD, lambda: (loading.set(), wait_for(go_on)))

    def wait_for_other() -> None:
        with shared(shared_guard), exclusive(other):
            pass

    with exclusive(other), shared(shared_guard):
        reader = Worker(wait_for_other)
        wait_until(lambda: reader in other.waiting)
        loader = Worker(load)
        wait_for(loading)
        me = threading.current_thread()
        Worker(lambda: (wait_until(lambda: me in shared_guard.waiting), go_on.set()))
        operate(shared_guard, LOAD)
    loader.result()
    reader.result()


# -- the ends of threads


def test_what_a_thread_held_when_it_ended_is_released(
    guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    kept = []
    caplog.set_level("WARNING", "sharedsession")  # the programs here set another one
    Worker(lambda: kept.append(guard.hold("section")), name="gone").result()
    wait_until(lambda: guard.owner is None)
    operate(guard, WRITE)
    assert "'gone'" in caplog.text
    kept[0].release()
    assert guard.stats().acquisitions == 2


def test_work_is_noted_anew_if_a_write_began_a_level(guard: Guard) -> None:
    """As a part of an operation that is noted already, too."""
    noted: list[Owner] = []
    guard.recovery = unittest.mock.Mock(wrote=noted.append)

    def begin_level(self: Guard) -> None:
        self.last_writer = None

    write_within = guarded(begin_level, WRITE, lambda self: self)

    def operation() -> None:
        guard.last_writer = current_owner()
        write_within(guard)

    run(guard, CHANGE, operation)
    assert noted == [current_owner()]


def test_a_reader_that_ended_does_not_keep_writers_out() -> None:
    guard = Guard(Kind.RW)
    kept = []
    Worker(lambda: kept.append(guard.hold_shared("section"))).result()
    wait_until(lambda: guard.readers == ())
    operate(guard, WRITE)


def test_a_forgotten_hold_is_released(guard: Guard) -> None:
    guard.hold("section")
    gc.collect()
    assert guard.held is None
    assert guard.abandoned_by is current_owner()


def test_a_new_thread_with_an_old_number_owns_nothing(guard: Guard) -> None:
    owners = []
    for _ in range(3):
        Worker(lambda: owners.append(current_owner())).result()
    assert len(set(owners)) == 3
    wait_until(lambda: not any(owner.alive for owner in owners))


# -- kinds


def test_detect_names_both() -> None:
    guard = Guard(Kind.DETECT)
    with inside(lambda: exclusive(guard)):
        with pytest.raises(ConcurrentAccessError, match="MainThread.*'holder'"):
            operate(guard, READ)
    operate(guard, WRITE)


def test_confine_and_hand_over() -> None:
    guard = Guard(Kind.CONFINE)
    operate(guard, WRITE)
    with pytest.raises(ConcurrentAccessError, match="confined to thread 'MainThread'"):
        Worker(lambda: operate(guard, READ)).result()
    with pytest.raises(ConcurrentAccessError, match="hand_over"):
        Worker(guard.hand_over).result()
    with exclusive(guard), pytest.raises(SharedSessionError, match="section"):
        guard.hand_over()
    guard.hand_over()
    Worker(lambda: operate(guard, WRITE), name="next").result()


def test_hand_over_to_a_thread() -> None:
    guard = Guard(Kind.CONFINE)
    operate(guard, WRITE)
    go = threading.Event()

    def use() -> None:
        wait_for(go)
        operate(guard, WRITE)

    heir = Worker(use, name="heir")
    guard.hand_over(heir)
    with pytest.raises(ConcurrentAccessError, match="'heir'"):
        operate(guard, WRITE)
    go.set()
    heir.result()


def test_hand_over_is_for_confine_only(guard: Guard) -> None:
    with pytest.raises(SharedSessionError, match="confine"):
        guard.hand_over()


@pytest.mark.parametrize("lock", ["mutex", 7, object(), threading.Event()])
def test_bad_kinds_list_the_good_ones(lock: Any) -> None:
    with pytest.raises(ValueError) as caught:
        make_guard(lock)
    for kind in KINDS:
        assert repr(kind) in str(caught.value)


# -- locks of the application's


def test_two_guards_on_one_rlock_exclude_each_other() -> None:
    lock = threading.RLock()
    one, two = make_guard(lock), make_guard(lock)
    assert one is not None and two is not None
    with exclusive(one), exclusive(two):
        assert not Worker(lambda: lock.acquire(False)).result()
    assert Worker(lambda: (lock.acquire(False), lock.release())).result()
    with inside(lambda: exclusive(one)):
        with pytest.raises(LockTimeout, match="'holder'"):
            two.hold("section", timeout=0.01)
    operate(two, WRITE)


def test_a_cycle_of_guards_on_two_locks_raises() -> None:
    one, two = make_guard(threading.RLock()), make_guard(threading.RLock())
    assert one is not None and two is not None
    has_two = threading.Event()

    def other_way() -> None:
        with exclusive(two):
            has_two.set()
            with exclusive(one):
                pass

    with exclusive(one):
        worker = Worker(other_way)
        wait_for(has_two)
        wait_until(lambda: worker in one.waiting)
        with pytest.raises(DeadlockError):
            two.hold("section")
    worker.result()


@pytest.mark.parametrize("make", [rwlock.RWLockFair, rwlock.RWLockFairD])
def test_a_reader_writer_lock_of_the_applications(make: Any) -> None:
    guard = make_guard(make())
    assert guard is not None
    with inside(lambda: shared(guard)):
        Worker(lambda: _enter(shared(guard))).result()
        writer = Worker(lambda: operate(guard, WRITE))
        assert not passes(writer, guard)
    writer.result()
    hold = guard.hold("section")
    guard.downgrade(hold)
    with pytest.raises(UpgradeError):
        operate(guard, WRITE)
    hold.release()
    operate(guard, WRITE)


# -- for people


def test_it_tells_who_and_since_when(guard: Guard) -> None:
    assert "free" in repr(guard)
    with inside(lambda: exclusive(guard)):
        worker = Worker(lambda: operate(guard, WRITE), name="patient")
        assert not passes(worker, guard)
        assert guard.owner is not None and guard.owner.name == "holder"
        assert "'holder'" in repr(guard) and "\n" not in repr(guard)
        said = guard.explain()
        assert "'holder' has held it exclusively" in said
        assert "'patient' has waited" in said
    worker.result()
    stats = guard.stats()
    assert (stats.acquisitions, stats.contended, stats.timeouts) == (2, 1, 0)
    assert stats.longest_wait > 0 and stats.longest_hold > 0
    assert guard.explain() == "Nobody holds the guard and nobody waits."


def test_it_cannot_be_pickled(guard: Guard) -> None:
    with pytest.raises(SharedSessionError, match="pickled"):
        pickle.dumps(guard)


@pytest.mark.parametrize("enter", ["operation", "attribute", "section"])
def test_a_signal_handler_may_use_what_is_being_entered(enter: str) -> None:
    """It runs where the interpreter lets it: after a call of a C function, say."""

    class Gate(dict[int, object]):
        handler: Any = None

        def setdefault(self, key: int, value: object = None) -> object:
            found = super().setdefault(key, value)
            handler, self.handler = self.handler, None
            if handler is not None:
                handler()
            return found

    guard = Guard(make_gate=Gate)
    handled, held = [], []

    def handle() -> None:
        operate(guard, WRITE)
        handled.append(True)

    def check(*args: Any) -> None:
        held.append(guard.held)

    operate(guard, WRITE)
    guard.gate.handler = handle  # type: ignore[attr-defined]
    if enter == "operation":
        run(guard, WRITE, check)
    elif enter == "attribute":
        impl = SimpleNamespace(key="key", set_unguarded=check)
        set_value = setter_of(impl, "state", check)
        with attaching():
            set_value(None, attached(guard), None)
    else:
        hold = guard.hold("section")
        check()
        hold.release()
    assert handled == [True] and held == ["exclusive"] and guard.held is None


class _Script:
    """What somebody parks on: each wait is a step of the test, told of its timeout."""

    def __init__(self, *steps: Any) -> None:
        self._steps = list(steps)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        result: bool = self._steps.pop(0)(timeout)
        return result

    def release(self) -> None:
        pass


def barging_guard(second: Owner, parked: Any, now: list[float]) -> Guard:
    """A guard for which *second* asks and waits on *parked*."""
    guard = Guard(
        current_owner=lambda: second, clock=lambda: now[0], make_lock=lambda: parked
    )
    guard.checks_owners = False
    guard.warn_after = None
    return guard


def test_nobody_enters_ahead_of_the_first_waiter_for_more_than_a_turn() -> None:
    """One owner waits, and another enters and leaves again and again."""
    first, second, third = (Owner(threading.Thread(name=n)) for n in "abc")
    came_in = []
    now = [100.0]

    def not_yet(timeout: float) -> bool:
        assert timeout == -1
        guard.leave(first)  # which wakes the second
        assert guard.come_in(first), "the first could not go on"
        return True

    def a_turn_passes(timeout: float) -> bool:
        assert timeout == pytest.approx(BARGING)
        now[0] += timeout
        return False

    def at_last(timeout: float) -> bool:
        assert timeout == -1, "it polls"
        guard.leave(first)
        assert not guard.come_in(first) and not guard.come_in(third)
        assert guard.owner is second.thread
        return True

    parked = _Script(lambda timeout: True, not_yet, a_turn_passes, at_last)
    guard = barging_guard(second, parked, now)
    assert guard.come_in(first)
    run(guard, WRITE, lambda: came_in.append(True))
    assert came_in == [True] and guard.owner is None


@pytest.mark.parametrize("what", ["operation", "section"])
def test_the_first_waiter_is_admitted_by_an_owner_that_leaves(what: str) -> None:
    """The waiter does not have to wake up to find that barging is over."""
    first, second = (Owner(threading.Thread(name=name)) for name in "ab")
    now = [100.0]

    def not_yet(timeout: float) -> bool:
        guard.leave(first)  # which wakes the second
        assert guard.come_in(first), "the first could not go on"
        return True

    def a_turn_passes(timeout: float) -> bool:
        now[0] += BARGING * 0.9
        guard.leave(first)
        assert guard.come_in(first), "barging is not over"
        now[0] += BARGING * 0.2
        guard.leave(first)
        assert not guard.come_in(first) and guard.owner is second.thread
        return True

    parked = _Script(lambda timeout: True, not_yet, a_turn_passes)
    guard = barging_guard(second, parked, now)
    assert guard.come_in(first)
    if what == "operation":
        operate(guard, WRITE)
    else:
        guard.hold("section").release()
    assert guard.owner is None and guard.stats().contended == 1


@pytest.mark.parametrize("reader", [False, True])
def test_nobody_enters_ahead_of_readers(reader: bool) -> None:
    """A waiting writer may be overtaken for a turn, unless a reader waits too."""
    guard = Guard(Kind.RW)
    with inside(lambda: exclusive(guard)):
        waiters = [Worker(lambda: operate(guard, WRITE))]
        wait_until(lambda: len(guard.waiting) == 1)
        if reader:
            waiters.append(Worker(lambda: _enter(shared(guard))))
            wait_until(lambda: len(guard.waiting) == 2)
        assert guard._may_overtake(EXCLUSIVE) is not reader
    for waiter in waiters:
        waiter.result()


def test_who_gives_up_waiting_ends_no_stream_of_another() -> None:
    """One that began meanwhile: there was none when the waiting began."""
    guard = Guard(timeout=0.5)

    def begin_stream() -> Any:
        other = Worker(lambda: run(guard, LOAD, lambda: None))
        wait_until(lambda: guard.waiting)
        return other, guard.keep(STREAM)

    other, hold = run(guard, LOAD, begin_stream)
    with pytest.raises(LockTimeout):
        other.result()
    run(guard, LOAD, lambda: None)  # fetches a row
    assert guard.held == "exclusive"
    hold.release()
    assert guard.held is None


def test_a_handler_may_begin_a_stream_while_its_thread_leaves(guard: Guard) -> None:
    """At the call of the clock, which is one of two before the gate opens."""
    kept = []
    plain = guard.clock

    def clock() -> float:
        frame = sys._getframe(2)
        if frame.f_code.co_name == "leave" and not kept:
            kept.append(guard.keep(STREAM))
        return plain()

    guard.clock = clock
    operate(guard, WRITE)
    guard.clock = plain
    assert kept and guard.owner is threading.current_thread()
    stranger = Worker(lambda: operate(guard, WRITE))
    assert not passes(stranger, guard)
    kept[0].release()
    stranger.result()


def test_a_finalizer_may_begin_a_turn_where_a_turn_is_made(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    plain = occupancy.Turn

    def make(*args: Any) -> Any:
        if not kept:
            kept.append(None)
            kept[0] = guard.keep(STREAM)  # as a finalizer does, in an allocation
        return plain(*args)

    monkeypatch.setattr(occupancy, "Turn", make)
    outer = []
    run(guard, LOAD, lambda: outer.append(guard.keep(STREAM)))
    outer[0].release()
    assert guard.owner is threading.current_thread()
    kept[0].release()
    assert guard.owner is None


def test_a_lock_object_that_refuses_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A forgotten section is collected in a thread that may not release the lock."""
    guard = make_guard(threading.RLock())
    assert guard is not None
    errors: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    kept: list[Any] = []
    over = threading.Event()

    def enter() -> None:
        kept.append(guard.hold("section"))
        wait_for(over)

    worker = Worker(enter)
    wait_until(lambda: bool(kept))
    kept.clear()
    gc.collect()
    assert len(errors) == 1
    over.set()
    worker.result()


def test_a_long_wait_for_a_lock_object_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", "sharedsession")  # the programs here set another one
    lock = threading.RLock()
    guard = make_guard(lock)
    assert guard is not None
    guard.warn_after = 0.01
    with lock:
        waiter = Worker(lambda: operate(guard, WRITE), "waiter")
        wait_until(lambda: "has waited more than" in caplog.text)
    waiter.result()
    assert caplog.text.count("'waiter' has waited more than 0.01 s") == 1
