"""Owners: threads that end, identifiers that are reused, finalizers, long waits."""

from __future__ import annotations

import _thread
import gc
import logging
import sys
import threading
from typing import Any, Callable

import pytest
import sqlalchemy as sa

from sharedsession import SharedSessionError
from sharedsession.guard import owner
from sharedsession.guard.access import READ, WRITE, Kind
from sharedsession.guard.guard import Guard
from sharedsession.guard.owner import thread_owner
from sharedsession.guard.turn import snapshot
from sharedsession.operations.operation import run

from ..proofs.faults.faults import Interrupt
from ..support.models import User
from ..support.threads import PATIENCE, Worker, inside, wait_for, wait_until


def in_foreign_thread(function: Any) -> Any:
    """Run *function* in a thread that the module ``threading`` did not start."""
    done = threading.Event()
    results: list[Any] = []

    def perform() -> None:
        try:
            results.append(function())
        finally:
            done.set()

    _thread.start_new_thread(perform, ())
    wait_for(done)
    return results[0]


class Cleaner:
    """In a thread's local storage: uses the session when the thread's storage goes."""

    def __init__(self, use: Any, ended: threading.Event) -> None:
        self._use, self._ended = use, ended

    def __del__(self) -> None:
        try:
            self._use()
        except SharedSessionError:
            pass  # the other outcome that is allowed
        finally:
            self._ended.set()


@pytest.mark.parametrize("first", [False, True], ids=["at its end only", "before"])
def test_a_thread_that_ends_leaves_no_owner_behind(session: Any, first: bool) -> None:
    """The system gives its identifier to one of the next threads."""
    for _ in range(20):
        local, ended = threading.local(), threading.Event()

        def work() -> None:
            local.cleaner = Cleaner(session.rollback, ended)
            if first:
                session.scalar(sa.select(1))

        Worker(work).result()
        wait_for(ended)
    mine = thread_owner()
    seen = Worker(lambda: (thread_owner().alive, thread_owner() is mine)).result()
    assert seen == (True, False)
    session.rollback()
    assert session.guard.owner is None


def test_the_next_thread_is_not_taken_for_the_one_that_ended() -> None:
    """The control: both have one identifier, which is not what an owner is."""
    known = {}
    for _ in range(50):
        ident, owner = Worker(lambda: (threading.get_ident(), thread_owner())).result()
        if ident in known:
            break
        known[ident] = owner
    else:
        pytest.skip("the system did not give an identifier again")
    assert owner is not known[ident] and not known[ident].alive


def test_a_section_entered_while_a_thread_ends_is_released(session: Any) -> None:
    local, ended = threading.local(), threading.Event()
    sections = []

    def enter() -> None:
        section = session.critical_section()
        section.__enter__()
        sections.append(section)

    def work() -> None:
        local.cleaner = Cleaner(enter, ended)

    worker = Worker(work)
    wait_for(ended)
    worker.join(PATIENCE)
    assert session.scalar(sa.select(1)) == 1
    assert session.guard.owner is None


def test_a_finalizer_at_the_first_question_of_a_thread() -> None:
    """It introduces its thread, which is what the thread was about to do."""
    made = []

    class Intruder:
        def __del__(self) -> None:
            made.append(thread_owner())

    def work() -> Any:
        plain, owner.Owner = owner.Owner, intruding
        try:
            return thread_owner()
        finally:
            owner.Owner = plain  # type: ignore[misc]

    def intruding(thread: Any) -> Any:
        owner.Owner = type(thread_owner_of_main)  # type: ignore[misc]
        Intruder()
        return owner.Owner(thread)

    thread_owner_of_main = thread_owner()
    assert Worker(work).result() is made[0]


def test_foreign_threads_are_named_by_what_is_known(session: Any) -> None:
    def look() -> Any:
        with session.critical_section():
            return thread_owner().name, threading.get_native_id()

    name, native_id = in_foreign_thread(look)
    assert str(native_id) in name and "foreign thread" in name


# -- finalizers


def test_a_finalizer_in_the_bookkeeping_does_not_wait_for_its_own_thread() -> None:
    guard = Guard()
    errors = []

    def finalize() -> None:
        try:
            run(guard, WRITE, lambda: None)
        except SharedSessionError as error:
            errors.append(str(error))

    run(guard, READ, lambda: None)
    with guard._mutex:
        guard.current_owner().busy = True  # as everywhere in the guard's own work
        finalize()
        guard.current_owner().busy = False
    assert len(errors) == 1 and "finalizer" in errors[0]
    run(guard, WRITE, finalize)  # the control: inside an operation it gets through
    assert len(errors) == 1


@pytest.mark.parametrize("kind", [Kind.RLOCK, Kind.RW])
def test_an_interrupt_in_a_signal_handler_leaves_no_guard_held(kind: Kind) -> None:
    """The handler comes while its thread waits for another guard."""
    at, interrupted = 0, True
    while interrupted:
        at += 1
        guard = Guard(kind)
        run(guard, READ, lambda: None)
        me = guard.current_owner()
        me.busy = True  # as in the queue of another guard
        interrupt = Interrupt(at)
        try:
            with interrupt:
                run(guard, WRITE, lambda: None)
            interrupted = False  # there are fewer steps
        except KeyboardInterrupt:
            pass
        assert me.busy, interrupt.place
        me.busy = False
        assert guard.held is None and guard.running is None, interrupt.place
        assert Worker(lambda: run(guard, WRITE, lambda: 1)).result() == 1
    assert at > 10


def test_an_interrupt_while_abandoned_holds_are_released_leaves_the_mutex() -> None:
    at, interrupted = 0, True
    while interrupted:
        at += 1
        guard = Guard()
        hold = guard.hold("section")
        with guard._mutex:
            hold.release()  # is put off, as by a finalizer
        interrupt = Interrupt(at)
        try:
            with interrupt:
                guard.reap()
            interrupted = False
        except KeyboardInterrupt:
            pass
        assert Worker(lambda: run(guard, WRITE, lambda: 1)).result() == 1
        assert guard.held is None, interrupt.place
    assert at > 5


def test_a_life_that_the_exit_clears_is_no_death(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: list[Any] = []
    someone = owner.Owner(threading.current_thread())
    life = owner._Life(someone)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", errors.append)
        patch.setattr(owner, "os", None)
        patch.setattr(owner._Life.__del__, "__defaults__", (lambda: True,))
        del life
    assert not errors and someone.alive


def test_a_release_in_the_bookkeeping_is_done_after_it() -> None:
    guard = Guard()
    hold = guard.hold("section")
    with guard._mutex:
        hold.release()
        assert guard.held == "exclusive"
    guard.reap()
    assert guard.held is None and guard.abandoned_by is None


class Disturber:
    """A cycle, whose finalizer changes a dictionary when the collector finds it."""

    def __init__(self, things: dict[int, int]) -> None:
        self.me, self.things = self, things

    def __del__(self) -> None:
        del self.things[0]


def disturb(take: Callable[[dict[int, int]], Any], nth: int) -> Any:
    """Have the collector run at the n-th allocation of *take*, if it has so many."""
    things = dict.fromkeys(range(30), 1)
    gc.collect()
    gc.freeze()
    Disturber(things)
    threshold = gc.get_threshold()
    try:
        gc.set_threshold(gc.get_count()[0] + nth)
        return take(things)
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()


@pytest.mark.parametrize("view", [dict.keys, dict.values])
def test_a_snapshot_is_whole_although_a_finalizer_changes_the_dictionary(
    view: Any,
) -> None:
    for nth in range(8):
        disturb(lambda things: snapshot(view(things)), nth)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="collects between steps only")
@pytest.mark.parametrize("view", [dict.keys, dict.values, dict.items])
def test_control_a_tuple_is_not(view: Any) -> None:
    with pytest.raises(RuntimeError, match="changed size"):
        for nth in range(8):
            disturb(lambda things: tuple(view(things)), nth)


def test_the_end_of_a_thread_is_told_to_guards_while_others_are_made() -> None:
    """At every line of the telling another thread makes a guard."""
    made, told = [Guard()], thread_owner()
    hold = made[0].hold("section")

    def trace(frame: Any, event: str, arg: Any) -> Any:
        made.append(Guard())
        return trace

    sys.settrace(trace)
    try:
        for tell in owner.on_death:
            tell(told)
    finally:
        sys.settrace(None)
    assert made[0].held is None and len(made) > 10
    hold.release()


def test_garbage_with_sections_does_not_hang_threads(session: Any) -> None:
    """Forgotten generators in sections, collected wherever the collector runs."""
    over = threading.Event()

    def forgotten() -> Any:
        with session.critical_section():
            yield session.get(User, 1).name

    class Garbage:
        def __init__(self) -> None:
            self.me = self
            self.generator = forgotten()

    def work() -> None:
        for _ in range(60):
            with session.critical_section():
                session.scalar(sa.select(1))
                garbage = Garbage()
                next(garbage.generator)
            del garbage

    threshold = gc.get_threshold()
    gc.set_threshold(3, 2, 2)
    try:
        workers = [Worker(work) for _ in range(4)]
        for worker in workers:
            worker.result()
    finally:
        gc.set_threshold(*threshold)
        over.set()
    gc.collect()
    session.scalar(sa.select(1))
    assert session.guard.owner is None


# -- long waits


def test_a_long_wait_is_logged_once(session: Any, caplog: Any) -> None:
    session.guard.warn_after = 0.01
    with caplog.at_level(logging.WARNING, "sharedsession"):
        with inside(session.critical_section):
            waiter = Worker(lambda: session.scalar(sa.select(1)), name="patient")
            wait_until(lambda: caplog.records)
            wait_until(lambda: session.guard.waiting)
        waiter.result()
    waits = [it for it in caplog.messages if "has waited more than" in it]
    assert len(waits) == 1
    assert "'patient'" in waits[0] and "'holder'" in waits[0]
    assert "test_owners.py" in waits[0] and "one_owner" in waits[0]


def test_the_line_of_a_thread_that_waits_elsewhere_is_the_applications() -> None:
    """Not that of the queue or the pool of the standard library where it waits."""
    import concurrent.futures

    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    found: list[Any] = []

    def wait() -> None:
        found.append(thread_owner())
        future.result(PATIENCE)

    worker = Worker(wait)
    wait_until(lambda: found and "test_owners.py" in found[0].where())
    future.set_result(None)
    worker.result()
