"""Small programs of several owners on one guard, and what must hold of each run.

A program is one script for each owner, a script a string of operations by name, for
example ``("critical look", "read change")``.  The owners share two numbers that are
equal whenever nobody is in the middle of changing them.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from sharedsession import (
    ConcurrentAccessError,
    DeadlockError,
    LockTimeout,
    UpgradeError,
)
from sharedsession.guard import guard
from sharedsession.guard.access import EXCLUSIVE, LOAD, STREAM, WRITE, Kind
from sharedsession.guard.kinds import _ForeignExclusive
from sharedsession.guard.owner import Owner
from sharedsession.objects import setting
from sharedsession.objects.guards import guards_by_session
from sharedsession.operations import operation
from sharedsession.session import sections

from .scheduler import Scheduler, Task

Program = tuple[str, ...]

#: The kinds that a program runs on; the last is an application's RLock.
KINDS = ("rlock", "rw", "detect", "confine", "foreign")

PLAIN_CODE = SimpleNamespace(
    Guard=guard.Guard,
    run=operation.run,
    look=operation.optimistic_read,
    setter_of=setting.setter_of,
    CriticalSection=sections.CriticalSection,
    ReadSection=sections.ReadSection,
)


class FakeRecovery:
    """The owner that comes in next hears of what was left unfinished."""

    def __init__(self, world: Any, guard: Any) -> None:
        self.world = world
        self.guard = guard

    def admit(self, second: Any) -> None:
        pass

    def wrote(self, owner: Any) -> None:
        pass

    def recover(self, me: Any, access: Any) -> None:
        if self.guard.held == "exclusive":
            self.world.left_unfinished += self.guard.abandoned_by is not None
            self.guard.abandoned_by = None
            self.guard.attention = self.guard.unsettled = False


class World:
    """A guard, what it guards, and what is known of who is inside."""

    def __init__(
        self, scheduler: Scheduler, kind: str, code: SimpleNamespace, count: int = 1
    ) -> None:
        self.scheduler = scheduler
        self.code = code
        self.kind = kind
        self.owners: dict[Task, Owner] = {}
        self._outsider = make_owner("outsider")
        self.sessions = [FakeSession(self, self._make_guard()) for _ in range(count)]
        self.session = self.sessions[0]
        self.guard: guard.Guard = self.session.guard
        # Equal, unless somebody is changing them
        self.left = self.right = 0
        #: The values that others may see: those in place whenever somebody left.
        self.published = [0]
        self.changes = self.timeouts = self.interrupts = self.refused = 0
        self.deadlocks = 0
        self.ended_inside = self.left_unfinished = 0
        #: Who is inside: how often, as what.
        self.inside: dict[Task, list[str]] = {}
        #: Operations that were under way at the same time as another owner's.
        self.under_way: set[Task] = set()
        self.overlapped: set[Task] = set()
        self.garbage: list[Any] = []

    def _make_guard(self) -> Any:
        kind = Kind.RLOCK if self.kind == "foreign" else Kind(self.kind)
        lock: Any = None
        if self.kind == "foreign":
            lock = _ForeignExclusive(ReentrantLock(self))
        made = self.code.Guard(
            kind,
            lock=lock,
            current_owner=self.current_owner,
            clock=self.scheduler.clock,
            make_lock=self.scheduler.lock,
            make_mutex=self.scheduler.lock,
            make_gate=self.scheduler.gate,
        )
        if lock is not None:
            made.warn_after = None  # each wait that is timed multiplies the schedules
        made.recovery = FakeRecovery(self, made)
        return made

    def current_owner(self) -> Owner:
        task = self.scheduler._current
        return self._outsider if task is None else self.owners[task]

    def spawn(self, number: int, script: str) -> None:
        def perform() -> None:
            for name in script.split():
                self.perform(OPERATIONS[name])

        task = self.scheduler.spawn(f"owner-{number}", perform)
        self.inside[task] = []
        self.owners[task] = make_owner(task.name)

    # -- one operation of a script

    def perform(self, operation: Callable[[World], None]) -> None:
        me = self.scheduler.current
        self.under_way.add(me)
        if len(self.under_way) > 1:
            self.overlapped |= self.under_way
        waiting = [(w, w.is_next()) for w in self.guard.queue if w.mode is EXCLUSIVE]
        if self.guard.is_exclusive(self.owners[me]):
            waiting = []  # it never left: a stream it forgot is not collected yet
        self.ahead = {**getattr(self, "ahead", {}), me: waiting}
        try:
            operation(self)
        except LockTimeout:
            self.timeouts += 1
        except KeyboardInterrupt:
            self.interrupts += 1
        except DeadlockError:
            self.deadlocks += 1
        except ConcurrentAccessError:
            if self.kind == "detect":
                assert me in self.overlapped, "refused, and nobody else was there"
            else:
                assert self.kind == "confine", "refused, where one waits"
                # Its new owner also, while the last one ends inside.
                stranger = self.guard.only_owner is not self.owners[me]
                assert stranger or me in self.overlapped, "refused its owner"
            self.refused += 1
        finally:
            me.interrupts = 0
            if me in self.under_way:
                self.under_way.remove(me)
                self.overlapped.discard(me)
        self.check_out(me)

    def check_out(self, me: Task) -> None:
        """Nothing of an operation that ended is left in the guard."""
        owner = self.owners[me]
        assert self.inside[me] == [], "still inside"
        for session in self.sessions:
            g = session.guard
            if g.abandoned_holds or g._mutex.taken:
                continue  # whoever has the mutex now releases what was forgotten
            if any(kept.is_stream for turn in turns(g) for kept in turn.keeps.values()):
                continue  # another one is in the middle of collecting it
            assert all(turn.owner is not owner for turn in turns(g)), "still inside"
            assert g.gate.get(0) is not owner, "still in by the gate"
            assert owner not in g.reading, "still a reader"
            assert all(w.owner is not owner for w in g.queue), "still waits"
        assert owner.waiting_for is None, "is still thought to wait"

    @contextmanager
    def being(self, what: str) -> Iterator[None]:
        """Be inside as ``exclusive``, as a ``reader``, or a ``loader`` beside them."""
        me = self.scheduler.current
        self._check_others(me, what)
        self._check_order(me, shares=what == "reader" and self.guard._shares)
        self.inside[me].append(what)
        try:
            yield
            self._check_others(me, what)
        finally:
            self.inside[me].pop()
            if "exclusive" not in self.inside[me]:
                self.published.append(self.right)

    def _check_others(self, me: Task, what: str) -> None:
        for task, modes in self.inside.items():
            if task is me or not modes:
                continue
            assert what != "exclusive", f"{me} is exclusive, {task} is {modes}"
            assert "exclusive" not in modes, f"{me} is {what}, {task} is {modes}"
            assert not (what == "loader" and "loader" in modes), "two loaders"

    def _check_order(self, me: Task, shares: bool) -> None:
        """Nobody overtakes who waited to be exclusive when this operation began.

        Unless it is exclusive itself, and the other was not due yet.
        """
        if self.inside[me]:
            return
        for waiter, was_due in self.ahead[me]:
            waits = waiter in self.guard.queue and not waiter.admitted
            overtook = waits and (was_due or shares)
            assert not overtook, f"{me} overtook {waiter.owner.name}"

    # -- at the end of a run

    def check_end(self) -> Any:
        for session in self.sessions:
            check_free(session.guard)
        assert self.left == self.right == self.changes
        guards_by_session = [session.guard for session in self.sessions]
        last = sum(guard.abandoned_by is not None for guard in guards_by_session)
        assert self.left_unfinished + last == self.ended_inside
        stats = [session.guard.stats() for session in self.sessions]
        assert sum(s.timeouts for s in stats) == self.timeouts
        for s in stats:
            assert s.timeouts <= s.contended
            assert 0 <= s.longest_wait <= s.wait_seconds <= s.contended * 1000
            assert s.longest_hold >= 0
        return SimpleNamespace(
            changes=self.changes,
            timeouts=self.timeouts,
            interrupts=self.interrupts,
            refused=self.refused,
            deadlocks=self.deadlocks,
        )


def turns(guard: Any) -> list[Any]:
    return [] if guard.turn is None else [*guard.turn.with_lenders()]


def check_free(g: Any) -> None:
    assert g.turn is None and g.running is None and g.window is None
    assert not g.reading and not g.queue and not g._before
    assert bool(g.gate) is not g._has_gate, "the gate is not as it should be"
    assert not g.abandoned_holds, "a forgotten hold was never released"
    has_none = g.version is None
    may_have_none = g.kind is Kind.CONFINE or g.unsettled
    assert has_none <= may_have_none, "no version, and nobody is in"
    assert not g._mutex.taken
    if g._lock is not None:
        assert not g._lock._held and g._lock._lock.depth == 0


class FakeSession:
    """What a section asks of its session."""

    def __init__(self, world: World, guard: Any) -> None:
        self.guard = guard
        self.pending = False
        self._world = world

    def _has_to_tidy(self) -> bool:
        return self.pending

    def _autoflush(self) -> None:
        if self.pending:
            self._world.change_inside()
            self.pending = False


class ReentrantLock:
    """Like ``threading.RLock()``, of an application that is scheduled."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lock = world.scheduler.lock()
        self._owner: Task | None = None
        self.depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = self._world.scheduler.current
        if self._owner is not me and not self._lock.acquire(blocking, timeout):
            return False
        self._owner = me
        self.depth += 1
        return True

    def release(self) -> None:
        assert self.depth, "release of a lock that nobody has"
        self.depth -= 1
        if not self.depth:
            self._owner = None
            self._lock.release()


_numbers = itertools.count(1)


def make_owner(name: str) -> Owner:
    owner = Owner(threading.Thread(name=name))
    owner.native_id = -next(_numbers)  # all are made by one thread, which they are not
    return owner


# -- operations


def _change_inside(world: World) -> None:
    with world.being("exclusive"):
        world.left += 1
        world.scheduler.step(interruptible=False)
        world.right += 1
        world.changes += 1


World.change_inside = _change_inside  # type: ignore[attr-defined]


def change(world: World) -> None:
    world.code.run(world.guard, WRITE, _change_inside, world)


class FakeAttribute:
    """What setting an attribute asks of its implementation."""

    def __init__(self, world: World) -> None:
        self._world = world

    def set_unguarded(self, *args: Any) -> None:
        _change_inside(self._world)


def set_attribute(world: World) -> None:
    set_value = world.code.setter_of(FakeAttribute(world), "state", None)
    set_value(None, attached(world.guard), None)


def attached(guard: Any) -> Any:
    """Something that is attached to a session with that guard."""
    guards_by_session[_NUMBER] = guard  # there is one world at a time
    return SimpleNamespace(state=SimpleNamespace(session_id=_NUMBER))


_NUMBER = -1  # of no session


@contextmanager
def attaching() -> Iterator[None]:
    """Where :func:`attached` is used: keeps no guard beyond it."""
    try:
        yield
    finally:
        guards_by_session.pop(_NUMBER, None)


def set_within(world: World) -> None:
    """Setting as a part of another operation, which goes on."""

    def body() -> None:
        set_attribute(world)
        _change_inside(world)

    world.code.run(world.guard, WRITE, body)


def change_and_leave_pending(world: World) -> None:
    def body() -> None:
        _change_inside(world)
        world.session.pending = True

    world.code.run(world.guard, WRITE, body)


def load(world: World) -> None:
    def body() -> None:
        with world.being("exclusive"):
            world.scheduler.step(interruptible=False)

    world.code.run(world.guard, LOAD, body)


def _wait_in_window(world: World, meanwhile: Callable[[], None]) -> None:
    """A load, which waits before it changes anything."""
    owner = world.owners[world.scheduler.current]

    def body() -> None:
        try:
            if world.guard.may_open:
                world.guard.open_window(owner)
            world.scheduler.step()
            meanwhile()
        finally:
            world.guard.close_window(owner)
        _change_inside(world)

    world.code.run(world.guard, LOAD, body)


def load_in_window(world: World) -> None:
    _wait_in_window(world, lambda: None)


def change_in_window(world: World) -> None:
    """A listener that changes something while the database is waited for."""
    _wait_in_window(world, lambda: change(world))


def set_in_window(world: World) -> None:
    """The same, by the shortest way in."""
    _wait_in_window(world, lambda: set_attribute(world))


def critical_in_window(world: World) -> None:
    """A listener with a section of its own."""
    _wait_in_window(world, lambda: critical(world))


def look(world: World) -> int:
    """A look sees a value that was in place when nobody changed anything."""
    me = world.scheduler.current
    mine = "exclusive" in world.inside[me]
    seen_before = len(world.published) - 1

    def read() -> tuple[int, int]:
        left = world.left
        world.scheduler.step(interruptible=False)
        return left, world.right

    left, right = world.code.look(world.guard, read)
    assert left == right, f"a torn read: {left}, {right}"
    if not mine:
        seen = world.published[seen_before:]
        assert left in seen, f"{left} was never there for others; {seen} was"
    return int(left)


def critical(world: World, timeout: float | None = None) -> None:
    with world.code.CriticalSection(world.session, timeout):
        with world.being("exclusive"):
            before = world.left
            change(world)
            assert look(world) == before + 1
            change(world)


def critical_with_timeout(world: World) -> None:
    critical(world, timeout=1.0)


def nested(world: World) -> None:
    with world.code.CriticalSection(world.session, None):
        with world.being("exclusive"):
            critical(world)
            with world.code.ReadSection(world.session, None):
                look(world)
                try:
                    change(world)
                except UpgradeError:
                    pass
                else:
                    raise AssertionError("a write inside a read section")
            change(world)


def read(world: World, timeout: float | None = None) -> None:
    with world.code.ReadSection(world.session, timeout):
        with world.being("reader"):
            before = look(world)
            world.scheduler.step(interruptible=False)
            assert look(world) == before, "changed under a reader"


def read_with_timeout(world: World) -> None:
    read(world, timeout=1.0)


def read_and_load(world: World) -> None:
    def body() -> None:
        with world.being("loader"):
            world.scheduler.step(interruptible=False)

    with world.code.ReadSection(world.session, None):
        with world.being("reader"):
            before = look(world)
            world.code.run(world.guard, LOAD, body)
            assert look(world) == before, "changed under a reader"


def read_twice(world: World) -> None:
    """A reader comes in again, whoever waits."""
    with world.code.ReadSection(world.session, None):
        with world.being("reader"):
            read(world)


def read_and_write(world: World) -> None:
    with world.code.ReadSection(world.session, None):
        with world.being("reader"):
            try:
                change(world)
            except UpgradeError:
                pass
            else:
                raise AssertionError("a write inside a read section")
            try:
                critical(world)
            except UpgradeError:
                return
            raise AssertionError("a critical section inside a read section")


def _open_stream(world: World) -> Any:
    def body() -> Any:
        with world.being("exclusive"):
            return world.guard.keep(STREAM)

    return world.code.run(world.guard, LOAD, body)


def stream(world: World) -> None:
    hold = _open_stream(world)
    try:
        with world.being("exclusive"):
            world.scheduler.step(interruptible=False)
    finally:
        hold.release()


def forget_stream(world: World) -> None:
    """The collector takes it, in the same thread."""
    hold = _open_stream(world)
    with world.being("exclusive"):
        look(world)
    del hold


def drop_stream(world: World) -> None:
    """The collector takes it in whatever thread comes by, perhaps this one."""
    hold = _open_stream(world)
    world.garbage.append(hold)
    del hold
    world.scheduler.step(interruptible=False)
    world.garbage.clear()


def leave_stream(world: World) -> None:
    """It is open until somebody collects it."""
    world.garbage.append(_open_stream(world))


def look_and_drop_stream(world: World) -> None:
    """A look in a stream of one's own, which another one collects meanwhile."""
    hold = _open_stream(world)
    world.garbage.append(hold)
    del hold
    look(world)
    world.garbage.clear()


def fail_with_stream(world: World) -> None:
    """A stream is dropped since its operation fails; its hold is collected later."""

    def body() -> None:
        with world.being("exclusive"):
            world.garbage.append(world.guard.keep(STREAM))
            raise ZeroDivisionError

    try:
        world.code.run(world.guard, LOAD, body)
    except ZeroDivisionError:
        world.guard.last_failure = (
            None  # there is no transaction that it could have broken
        )


def pause(world: World) -> None:
    """Between two operations others may go on, too."""
    world.scheduler.step(interruptible=False)


def collect(world: World) -> None:
    world.scheduler.step(interruptible=False)
    world.garbage.clear()


def end_inside(world: World) -> None:
    """A thread that ends in a section: its last breath lets everybody else in."""
    me = world.scheduler.current
    owner = world.owners[me]
    section = world.code.CriticalSection(world.session, None)
    section.__enter__()
    with world.being("exclusive"):
        change(world)
    world.garbage.append(section)
    owner.alive = False
    world.ended_inside += 1
    world.guard.release_dead_owner(owner)
    world.owners[me] = make_owner(f"{me.name} anew")


def interrupted(operation: Callable[[World], None]) -> Callable[[World], None]:
    def perform(world: World) -> None:
        world.scheduler.current.interrupts = 1
        operation(world)

    return perform


def both(first: int, second: int) -> Callable[[World], None]:
    """Sections of two guards, one inside the other."""

    def perform(world: World) -> None:
        outer, inner = world.sessions[first], world.sessions[second]
        with world.code.CriticalSection(outer, None):
            world.scheduler.step()
            with world.code.CriticalSection(inner, None):
                with world.being("exclusive"):
                    world.scheduler.step()

    return perform


OPERATIONS: dict[str, Callable[[World], None]] = {
    "change": change,
    "set": set_attribute,
    "set-within": set_within,
    "leave-pending": change_and_leave_pending,
    "load": load,
    "load-window": load_in_window,
    "change-window": change_in_window,
    "set-window": set_in_window,
    "critical-window": critical_in_window,
    "look": look,  # type: ignore[dict-item]
    "critical": critical,
    "critical-timeout": critical_with_timeout,
    "nested": nested,
    "read": read,
    "read-timeout": read_with_timeout,
    "read-load": read_and_load,
    "read-twice": read_twice,
    "read-write": read_and_write,
    "stream": stream,
    "forget-stream": forget_stream,
    "drop-stream": drop_stream,
    "leave-stream": leave_stream,
    "look-drop-stream": look_and_drop_stream,
    "fail-stream": fail_with_stream,
    "collect": collect,
    "pause": pause,
    "end-inside": end_inside,
    "change-interrupted": interrupted(change),
    "set-interrupted": interrupted(set_attribute),
    "critical-interrupted": interrupted(critical),
    "read-interrupted": interrupted(read),
    "load-window-interrupted": interrupted(load_in_window),
    "set-window-interrupted": interrupted(set_in_window),
    "read-load-interrupted": interrupted(read_and_load),
    "a-in-b": both(1, 0),
    "b-in-a": both(0, 1),
}


#: Those of one guard that leave nothing for others to wait for, for programs by lot.
ON_ONE_GUARD = [
    n for n in OPERATIONS if "-in-" not in n and n not in ("pause", "leave-stream")
]


def program(
    kind: str, scripts: Program, code: SimpleNamespace = PLAIN_CODE
) -> Callable[[Scheduler], Any]:
    """One run of a program, for a scheduler to explore."""
    logging.getLogger("sharedsession").setLevel(logging.ERROR)
    two = any("-in-" in script for script in scripts)

    @attaching()
    def run(scheduler: Scheduler) -> Any:
        world = World(scheduler, kind, code, count=2 if two else 1)
        for number, script in enumerate(scripts):
            world.spawn(number, script)
        scheduler.run()
        world.garbage.clear()
        return world.check_end()

    return run
