"""Anything at any step: what comes into the middle of a guard's own work.

A scenario runs once to count the steps of one thread inside the guard's modules, and
then once for each step, with one event at exactly that step:

* a *finalizer* that uses the session, which the collector may run before any line;
* a *signal handler* that uses the session, and whose error comes out where it struck;
* an *interrupt*: KeyboardInterrupt, or the exception that a handler raises;
* a *failure* of a function that is written in C: no memory, or no lock;
* the *end of the thread*, by an exception that nothing catches.

Handlers and interrupts come where the interpreter lets them come, see ``faults``.
After each the guard has to be free, whoever waited for it has had a turn, and the
database holds all of the operation or nothing.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import sys
import tempfile
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Callable, Iterator

import sqlalchemy as sa
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError
from sqlalchemy.orm import sessionmaker

from sharedsession import (
    LockTimeout,
    SharedSession,
    SharedSessionError,
    critical_section,
    shared_session,
)
from sharedsession.guard import gate, owner, waiter
from sharedsession.operations import operation

from ...conftest import make_engine
from ...support import threads
from ...support.models import User
from ...support.threads import Worker, inside, wait_for, wait_until
from . import faults
from .faults import Agent, Interrupt, Wrong, _is_ours, _lock, _module, check, check_free

#: The modules that a guard's own work is in.
CORE = {
    *("guard/guard", "guard/ownership", "guard/monitor", "guard/waiting"),
    *("guard/occupancy", "guard/gate", "guard/turn", "guard/owner", "guard/task"),
    "guard/party",
    *("guard/kinds", "guard/deadlocks", "guard/waiter", "guard/report"),
    *("operations/operation", "registry"),
    *("objects/reading", "objects/setting", "session/sections", "session/transaction"),
    *("decorators", "unit_of_work"),
}

#: Seconds that a thread may take for what never waits long.
PATIENCE = 20.0


class Stuck(Wrong):
    """A thread waits for what never comes."""


# -- the place where a scenario happens


class Place:
    """A session with a user in it, one thread at whose steps things happen, others."""

    def __init__(self, lock: Any, directory: str) -> None:
        self.path = f"{directory}/test.db"
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.engine = make_engine(f"sqlite:///{self.path}")
        self.registry = shared_session(
            sessionmaker(self.engine, class_=SharedSession, lock=_lock(lock))
        )
        self.session = self.registry()
        self.guard: Any = self.session.guard
        self.user = self.session.get_one(User, 1)
        self.expired = self.session.get_one(User, 2)
        self.session.expire(self.expired)
        self.session.commit()
        _ = self.user.name
        self.actor: Worker | None = None
        #: What the actor comes to, and what it waits for.
        self.ready, self.may_go = threading.Event(), threading.Event()
        self.acted, self.may_end = threading.Event(), threading.Event()
        #: What came out of its scenario.
        self.error: BaseException | None = None
        #: What the actor's scenario prepared for itself.
        self.block: Any = None
        #: Other threads, which must all get through.
        self.others: list[Worker] = []
        #: One that did what was prepared.
        self.helper: Agent | None = None
        #: Generators in sections, which an event or the scenario's end closes.
        self.forgotten: list[Any] = []

    def end(self) -> None:
        if self.helper is not None:
            self.helper.end()
        self.session.close()
        self.engine.dispose()

    # -- for what other threads do meanwhile

    def let_go(self) -> None:
        self.may_go.set()

    def is_waiting(self, worker: Any) -> bool:
        """Looked up without the mutex: a thread that is stuck may have it."""
        queue = [*self.guard.queue, *self.guard._before]
        return any(waiter.owner.flow is worker for waiter in queue)

    def until_waiting(self, worker: Any) -> None:
        wait_until(lambda: self._is_done(worker) or self.is_waiting(worker))

    def _is_done(self, worker: Any) -> bool:
        return bool((self.acted if worker is self.actor else worker.done).is_set())

    def start_other(self, name: str) -> None:
        """Have another thread wait for its turn, to add a user of that name."""
        other = Worker(lambda: self.session.add(User(name=name)), name=name)
        self.others.append(other)
        self.until_waiting(other)


Act = Callable[[Place], Any]


def nothing(place: Place) -> None:
    """For what a scenario does not need."""


@dataclass(frozen=True)
class Scenario:
    """What one thread does at whose steps things happen, and others beside it."""

    name: str
    go: Act
    #: The users that are in the database when all of it was done.
    makes: tuple[str, ...] = ()
    #: Those that another thread makes in any case.
    others: tuple[str, ...] = ()
    #: Done before by the same thread.
    prepare: Act = nothing
    #: Done by other threads; it has to call ``let_go()``.
    meanwhile: Act = Place.let_go
    #: Whether what fails leaves it as open as it was, as long as it is there.
    stays_open: bool = False
    locks: tuple[Any, ...] = ("rlock", "rw")


SCENARIOS: list[Scenario] = []


def scenario(name: str, go: Act, *makes: str, **more: Any) -> None:
    SCENARIOS.append(Scenario(name, go, makes, **more))


# -- scenarios


def add(place: Place) -> None:
    place.session.add(User(name="mine"))


def add_and_flush(place: Place) -> None:
    place.session.add(User(name="mine"))
    place.session.flush()


def rename(place: Place) -> None:
    place.user.name = "mine"


def critical(place: Place) -> Any:
    return place.session.critical_section()


def reading(place: Place) -> Any:
    return place.session.read_section()


def look(place: Place) -> Any:
    return place.user.name, place.expired.name


def within(enter: Callable[[Place], Any], act: Act) -> Act:
    def go(place: Place) -> None:
        with enter(place):
            act(place)

    return go


def enter_before(enter: Callable[[Place], Any]) -> Act:
    def prepare(place: Place) -> None:
        place.block = enter(place)
        place.block.__enter__()

    return prepare


def leave(place: Place) -> None:
    place.block.__exit__(None, None, None)


def add_and_leave(place: Place) -> None:
    try:
        add(place)
    finally:
        leave(place)


def waiting_for(enter: Callable[[Place], Any]) -> Act:
    """The actor has to wait for another thread's section, or never gets that far."""

    def meanwhile(place: Place) -> None:
        with inside(lambda: enter(place)):
            place.let_go()
            place.until_waiting(place.actor)

    return meanwhile


def waited_for_by(*names: str) -> Act:
    """Others wait for what the actor has."""

    def meanwhile(place: Place) -> None:
        for name in names:
            place.start_other(name)
        place.let_go()

    return meanwhile


def time_out(place: Place) -> None:
    try:
        with place.session.critical_section(timeout=0.001):
            raise Wrong("it got in")
    except LockTimeout:
        pass


def until_it_gave_up(place: Place) -> None:
    with inside(lambda: critical(place)):
        place.let_go()
        wait_within_patience(place.acted, "the thread")


def impatient(act: Act) -> Act:
    """Where what comes in would wait for what its own thread is about to end."""

    def prepare(place: Place) -> None:
        act(place)
        place.guard.timeout = 0.002

    return prepare


def in_another_thread(act: Act) -> Act:
    """That goes on to live: its end would release what it holds."""

    def prepare(place: Place) -> None:
        place.helper = Agent()
        place.helper.do(lambda: act(place))

    return prepare


def begin_block(place: Place) -> None:
    place.session.rollback()
    enter_before(lambda place: place.session.begin())(place)
    add(place)


def unit(place: Place) -> None:
    critical_section(place.registry, transaction="commit")(add)(place)


def use_registry(place: Place) -> None:
    place.registry.add(User(name="mine"))
    place.registry.commit()
    place.registry.remove()


def begin_generator(place: Place) -> None:
    @critical_section(lambda: place.session)
    def generate() -> Iterator[None]:
        yield
        add(place)
        yield

    place.block = generate()
    next(place.block)


def go_on(place: Place) -> None:
    try:
        next(place.block)
    finally:
        place.block.close()


def stream(place: Place) -> None:
    statement = sa.select(User.name).execution_options(yield_per=1)
    with place.session.execute(statement) as result:
        result.fetchone()


def end_thread(place: Place) -> None:
    """What becomes of a thread's local storage at its end.

    This one lives on, unlike others, and would wait for what it held before.
    """
    place.guard.timeout = 0.002
    owner.local.__dict__.pop("life", None)


def section_generator(place: Place) -> Any:
    with place.session.critical_section():
        yield


def forget_section(place: Place) -> None:
    generator = section_generator(place)
    next(generator)
    place.forgotten.append(generator)


def close_forgotten(place: Place) -> None:
    """The collector closes generators that everybody forgot, in whatever thread."""
    while place.forgotten:
        try:
            place.forgotten.pop()
        except IndexError:  # another thread was first
            pass


def waiting_for_the_forgotten(place: Place) -> None:
    """A forgotten section of another thread is what the actor waits for."""
    place.let_go()
    place.until_waiting(place.actor)
    close_forgotten(place)


scenario("add", add, "mine")
scenario("add and flush", add_and_flush, "mine")
scenario("set", rename, "mine")
scenario("look", look)
scenario("add in a section", within(critical, add), "mine")
scenario("sections in sections", within(critical, within(critical, add)), "mine")
scenario("look in a section", within(critical, look))
scenario("look in a read section", within(reading, look))
scenario("read section in a section", within(critical, within(reading, look)))
scenario("add, in a section to be forgotten", add, "mine", prepare=forget_section)
scenario("wait", add, "mine", meanwhile=waiting_for(critical))
scenario("wait to look", look, meanwhile=waiting_for(critical))
scenario(
    "wait for a section", within(critical, add), "mine", meanwhile=waiting_for(critical)
)
scenario("wait to read", within(reading, look), meanwhile=waiting_for(critical))
scenario("wait for a reader", add, "mine", meanwhile=waiting_for(reading))
scenario(
    *("wait for a forgotten section", add, "mine"),
    prepare=in_another_thread(forget_section),
    meanwhile=waiting_for_the_forgotten,
)
scenario(
    *("leave to two that wait", add_and_leave, "mine"),
    others=("one", "two"),
    prepare=enter_before(critical),
    meanwhile=waited_for_by("one", "two"),
)
scenario(
    "leave a read section to a writer",
    leave,
    others=("one",),
    prepare=enter_before(reading),
    meanwhile=waited_for_by("one"),
)
scenario(
    *("time out", time_out), prepare=impatient(nothing), meanwhile=until_it_gave_up
)
scenario(
    "leave another thread's begin block",
    leave,
    "mine",
    prepare=impatient(in_another_thread(begin_block)),
)
scenario(
    "go on with another thread's generator",
    go_on,
    "mine",
    prepare=impatient(in_another_thread(begin_generator)),
    stays_open=True,
)
scenario("unit of work", unit, "mine")
scenario("use a registry, and remove", use_registry, "mine")
scenario("stream", stream)
scenario(
    "the thread ends in a section",
    end_thread,
    others=("one",),
    prepare=enter_before(critical),
    meanwhile=waited_for_by("one"),
)


# -- steps


class Steps:
    """Calls *happen* at the n-th step of a thread; counts with 0."""

    def __init__(self, at: int, happen: Callable[[], Any], guard: Any) -> None:
        self.at, self.happen, self.guard = at, happen, guard
        self.steps = 0
        self.place = ""
        self.at_an_end = self.at_a_limit = False
        #: While it counts: the steps at which the library is where it was not before.
        self.new: list[int] = []
        self._seen: set[Any] = set()

    def __enter__(self) -> Any:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        sys.settrace(None)
        sys.setprofile(None)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        raise NotImplementedError

    def come_to(self, frame: FrameType, what: str = "") -> None:
        self.steps += 1
        if self.at:
            if self.steps == self.at:
                self.place = f"{what} {_place(frame)}"
                self.happen()
            return
        where = (what, _stack(frame), _state(self.guard))
        if where not in self._seen:
            self._seen.add(where)
            self.new.append(self.steps)


def _stack(frame: FrameType | None) -> tuple[Any, ...]:
    """The lines of the guard's modules that a thread is at."""
    lines = []
    while frame is not None:
        if _is_core(frame):
            lines.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(lines)


def _state(guard: Any) -> tuple[Any, ...]:
    """What tells one moment of a guard from another at the same line."""
    return (
        *(guard.owner, guard.turn is None, guard.running, guard.window),
        *(guard.gate.get(0), guard.attention, guard.version is None),
        *(tuple(guard.kept()), len(guard.reading), len(guard.queue)),
        any(waiter.admitted for waiter in tuple(guard.queue)),
    )


class Lines(Steps):
    """Each line of the guard's modules: the collector may run before it."""

    opcodes = False

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not _is_core(frame):
            return None
        frame.f_trace_opcodes = self.opcodes
        return self._trace_core

    def _trace_core(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == ("opcode" if self.opcodes else "line"):
            self.come_to(frame)
        return self._trace_core


class Opcodes(Lines):
    """Each instruction of the interpreter's."""

    opcodes = True


class Signals(Steps, Interrupt):
    """Each step at which the interpreter runs signal handlers."""

    def __enter__(self) -> Any:
        sys.setprofile(self._profile)
        return super().__enter__()

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        return Interrupt._trace(self, frame, event, arg)

    def _step(self, frame: FrameType, what: str, began: bool) -> None:
        if not _is_core(frame) or faults._in_finalizer(frame):
            return
        if self.steps + 1 == self.at:
            module, name = _module(frame.f_code), frame.f_code.co_name
            self.at_an_end = began and (module, name) in faults.ENDS
            self.at_a_limit = (what, module, name) in faults.LIMITS
        self.come_to(frame, what)


class Calls(Signals):
    """Each call of a function that is written in C."""

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        return None

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call" and arg.__name__ not in NEVER_FAIL and _is_core(frame):
            self._step(frame, f"{event} of {arg.__name__}", False)


#: Functions in C that need no memory and no lock: what gives back, and what looks.
NEVER_FAIL = {
    *("release", "__exit__", "settrace", "setprofile", "_is_owned", "get_ident"),
    *("len", "isinstance", "getattr", "get", "bool", "exc_info"),
}


def _is_core(frame: FrameType) -> bool:
    return _is_ours(frame) and _module(frame.f_code) in CORE


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{_module(code)}.{code.co_name}:{frame.f_lineno}"


# -- events


def write_guest(place: Place) -> None:
    place.session.add(User(name="guest"))


def execute(place: Place) -> None:
    place.session.execute(sa.text("SELECT 1")).all()


def decorated_generator(place: Place) -> None:
    @critical_section(lambda: place.session)
    def generate() -> Iterator[None]:
        yield

    next(generate())


def forgotten_generator(place: Place) -> None:
    next(section_generator(place))


#: What finalizers and signal handlers do with the session.
USES: dict[str, Act] = {
    "look": lambda place: place.user.name,
    "load": lambda place: place.expired.name,
    "write": write_guest,
    "execute": execute,
    "section": within(critical, nothing),
    "read section": within(reading, look),
    "generator in a section": forgotten_generator,
    "generator that is decorated": decorated_generator,
    "close what is forgotten": close_forgotten,
    "ask": lambda place: (place.guard.readers, place.guard.explain()),
}


class Garbage:
    """A cycle, whose finalizer runs when the collector finds it."""

    def __init__(self, finalize: Callable[[], Any]) -> None:
        self.me, self.finalize = self, finalize

    def __del__(self) -> None:
        self.finalize()


class Event:
    """What happens at a step, and what came of it."""

    #: Whether what comes of it may come out of the scenario.
    comes_out = True
    #: Whether the thread ends with it.
    ends_thread = False

    def __init__(self) -> None:
        self.happened = False
        self.error: Exception | None = None
        #: Whether a user "guest" was made.
        self.wrote = False

    def __call__(self, place: Place) -> None:
        raise NotImplementedError


class Handled(Event):
    """A signal handler that uses the session, and lets its first error out."""

    def __init__(self, *uses: str) -> None:
        super().__init__()
        self.uses = uses

    def __call__(self, place: Place) -> None:
        self.happened = True
        for use in self.uses:
            try:
                USES[use](place)
                self.wrote = self.wrote or use == "write"
            except Exception as error:
                self.error = self.error or error
                if not isinstance(error, SharedSessionError):
                    self.error = error
                # One that had to wait for what its own thread is ending goes without.
                if self.comes_out and not isinstance(error, LockTimeout):
                    raise


class Collected(Handled):
    """A finalizer that the collector runs, which drops its error."""

    comes_out = False

    def __call__(self, place: Place) -> None:
        Garbage(lambda: self._finalize(place))
        gc.collect(0)

    def _finalize(self, place: Place) -> None:
        super().__call__(place)


class Raised(Event):
    """An error that comes out at a step."""

    def __init__(self, sort: type[BaseException], ends_thread: bool = False) -> None:
        super().__init__()
        self.sort, self.ends_thread = sort, ends_thread

    def __call__(self, place: Place) -> None:
        self.happened = True
        raise self.sort("at a step")


# -- trying


@contextmanager
def quick_collector() -> Iterator[str]:
    """A directory in memory; what is alive now is nothing for the collector."""
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        with tempfile.TemporaryDirectory(dir=shm) as directory:
            yield directory
    finally:
        gc.enable()
        gc.unfreeze()


@dataclass
class Try:
    """One run of a scenario with an event at one step."""

    scenario: Scenario
    steps: Any
    event: Event
    place: Place

    def run(self) -> None:
        place = self.place
        place.actor = actor = Worker(self._live, name="actor")
        wait_for(place.ready)
        try:
            self.scenario.meanwhile(place)
            if self.event.ends_thread:
                finish(actor, "the thread")
            wait_within_patience(place.acted, "the thread")
            self._check_outcome()
            self._check_others()
        finally:
            place.may_end.set()
        finish(actor, "the thread, at its end,")
        self._check_names()

    def _live(self) -> None:
        """The life of the thread at whose steps things happen."""
        place = self.place
        try:
            self.scenario.prepare(place)
            place.ready.set()
            wait_for(place.may_go)
            with self.steps:
                self.scenario.go(place)
        except BaseException as error:
            place.error = error  # as a notebook keeps it, with every frame
        finally:
            place.ready.set()
            place.acted.set()
        if not self.event.ends_thread:
            wait_for(place.may_end)  # its end would release what it left held

    def _check_outcome(self) -> None:
        event, error = self.event, self.place.error
        if event.error is not None:
            # The latter from SQLAlchemy, in the middle of its own work, as ever.
            refused = isinstance(event.error, (SharedSessionError, InvalidRequestError))
            check(refused, f"what came in got {event.error!r}")
            event.error = None  # which keeps the frames that it struck
        if error is not None:
            check(event.happened and event.comes_out, f"it became {error!r}")
        stays_open = self.scenario.stays_open and error is not None
        if stays_open or (self.steps.at_an_end and not event.ends_thread):
            self.place.error = self.place.block = error = None  # and what it is open in
            gc.collect()

    def _check_others(self) -> None:
        """Whoever waited has had a turn, and whoever comes has one."""
        place = self.place
        place.guard.timeout = None
        close_forgotten(place)
        for other in place.others:
            finish(other, f"{other.name}, which waited,")
            check(other.error is None, f"{other.name} got {other.error!r}")
        check_free(place.guard)
        check_gate(place.guard)
        later = Worker(lambda: commit(place), name="later")
        finish(later, "a thread that came later")
        check(later.error is None, f"a thread that came later got {later.error!r}")
        check_free(place.guard)
        check_gate(place.guard)

    def _check_names(self) -> None:
        found = names_in(self.place)
        whole = {*self.scenario.makes, *self.scenario.others}
        if self.event.wrote:
            whole.add("guest")
        all_is_done = not self.event.comes_out or not self.event.happened
        if all_is_done and not self.event.ends_thread:
            check(found == whole, f"{found}, and not {whole}")
        else:
            mine = {*self.scenario.makes}
            check(found <= whole, f"{found} are more than {whole}")
            check(found & mine in (set(), mine), f"half of it is there: {found}")


def check_gate(guard: Any) -> None:
    check(bool(guard.gate) is not guard._has_gate, f"the gate is {guard.gate}")


def finish(worker: Worker, what: str) -> None:
    wait_within_patience(worker.done, what)
    worker.join(PATIENCE)


def wait_within_patience(event: threading.Event, what: str) -> None:
    if not event.wait(PATIENCE):
        assert sys.__stderr__ is not None
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        raise Stuck(f"{what} waits for what never comes")


#: The names that scenarios and events give.
NAMES = {"mine", "one", "two", "guest"}


def names_in(place: Place) -> set[str]:
    with place.engine.connect() as connection:
        select = sa.text("SELECT name FROM users")
        return {*connection.scalars(select)} & NAMES


def commit(place: Place) -> None:
    """Go on with the session, as whoever comes next."""
    try:
        place.session.commit()
    except (SharedSessionError, SQLAlchemyError):
        place.session.rollback()


def everywhere(
    scenario: Scenario,
    lock: Any,
    make_steps: type[Steps],
    make_event: Callable[[int], Event],
    directory: str,
    every: int = 1,
    first: int = 0,
) -> faults.Report:
    """Try *scenario* with an event at each step.

    Not at those at which the library is where it was before: at the same lines, with
    the guard in the same state.

    :param every: try each n-th of them only, from the one numbered *first* on.
    """
    report = faults.Report()

    def try_at(at: int) -> Steps:
        event = make_event(at)
        gc.collect()
        gc.freeze()  # so that there is little to look at when the event collects
        place = Place(lock, directory)
        steps = make_steps(at, lambda: event(place), place.guard)
        error: Exception | None = None
        try:
            Try(scenario, steps, event, place).run()
            place.end()
        except Exception as wrong:
            error = wrong.with_traceback(None)
        if not (at and steps.at_a_limit):
            where = f"{scenario.name}, {faults._name(lock)}, {at}: {steps.place}"
            report.note(make_steps.__name__, where, error)
        return steps

    counted = try_at(0)
    for at in counted.new[first % every :: every]:
        try_at(at)
        if report.wrong and "what never comes" in report.wrong[-1]:
            break  # nothing that follows would be more than waiting
    return report


def in_turn(at: int) -> list[str]:
    """All uses of the session, another one first at each step."""
    uses = [*USES]
    first = at % len(uses)
    return uses[first:] + uses[:first]


#: What may happen, by name: at which steps, and what.
KINDS: dict[str, tuple[type[Steps], Callable[[int], Event]]] = {
    "finalizer": (Lines, lambda at: Collected(*in_turn(at))),
    "finalizer at each instruction": (Opcodes, lambda at: Collected(*in_turn(at))),
    "handler": (Signals, lambda at: Handled(*in_turn(at))),
    "interrupt": (Signals, lambda at: Raised(KeyboardInterrupt)),
    "alarm": (Signals, lambda at: Raised(TimeoutError)),
    "no memory": (Calls, lambda at: Raised(MemoryError)),
    "no lock": (Calls, lambda at: Raised(RuntimeError)),
    "end of the thread": (Signals, lambda at: Raised(SystemExit, ends_thread=True)),
}


# -- controls: faults that are planted, and have to be noticed


def _wake_late() -> None:
    """A waiter counts as woken before it is: after an interrupt it sleeps on."""

    def wake(waiter: Any) -> None:
        if not waiter.woken:
            waiter.woken = True
            waiter.guard.clock()  # an interrupt may come at a call
            waiter.parked.release()

    wake.__code__ = wake.__code__.replace(co_filename=waiter.__file__)
    setattr(waiter.Waiter, "wake", wake)


def _plain_mutex() -> None:
    """A finalizer in the middle of the bookkeeping waits for its own thread."""
    plain = gate.Gated._set_mutex

    def set_mutex(guard: Any, mutex: Any) -> None:
        plain(guard, threading.Lock())

    setattr(gate.Gated, "_set_mutex", set_mutex)


def _leave_once() -> None:
    """Nobody ends an operation whose end was interrupted."""
    setattr(operation, "_leave_again", lambda *args: None)


#: What each is noticed by, what it plants, and where: a scenario and what happens.
CONTROLS: dict[str, tuple[str, Callable[[], None], str, str]] = {
    "a lost wake-up": (
        *("one, which waited, waits for what never comes", _wake_late),
        *("leave to two that wait", "interrupt"),
    ),
    "a thread that waits for itself": (
        *("the thread waits for what never comes", _plain_mutex),
        *("leave a read section to a writer", "finalizer"),
    ),
    "a guard that is not given back": (
        *("an operation runs", _leave_once, "add", "interrupt"),
    ),
}


def control(name: str) -> None:
    """Plant a fault, print what is noticed, and end the process, stuck as it is."""
    global PATIENCE
    PATIENCE = threads.PATIENCE = 0.5
    _, plant, scenario_name, kind = CONTROLS[name]
    plant()
    scenario = next(it for it in SCENARIOS if it.name == scenario_name)
    with quick_collector() as directory:
        report = everywhere(scenario, "rlock", *KINDS[kind], directory)
        print(report, flush=True)
        os._exit(1 if report.wrong else 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="try each n-th step only")
    parser.add_argument("--scenario", default="", help="only those with this in it")
    parser.add_argument("--kind", default="", help="the same for what happens")
    parser.add_argument("--control", choices=CONTROLS, help="plant that fault")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    # The interpreter tells of errors in finalizers, which is where some of these come.
    sys.unraisablehook = lambda unraisable: None
    if arguments.control:
        control(arguments.control)
    chosen = [
        (scenario, kind, lock)
        for scenario in SCENARIOS
        for kind in KINDS
        for lock in scenario.locks
        if arguments.scenario in scenario.name and arguments.kind in kind
    ]
    failed = 0
    with quick_collector() as directory:
        for scenario, kind, lock in chosen:
            every = arguments.every
            report = everywhere(scenario, lock, *KINDS[kind], directory, every)
            print(f"{scenario.name}, {kind}, {lock}:\n{report}", flush=True)
            failed += len(report.wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
