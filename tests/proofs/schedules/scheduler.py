"""A deterministic scheduler: tasks that run one at a time, in every order.

A task is a greenlet.  It gives control back at *switch points*: before it takes or
releases a lock that was made here, and wherever it calls :meth:`Scheduler.step`.  At
each of them somebody decides what happens next: a list of choices, which a depth-first
search varies until every schedule within a bound was seen, or chance.  The same
choices give the same run, so a failing schedule is replayed from the list.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import greenlet

#: A run longer than this does not end: somebody is being woken again and again.
LONGEST_RUN = 20_000


class Stuck(AssertionError):
    """Nobody can go on: a deadlock, or a wake-up that was lost."""


@dataclass(eq=False)
class Task:
    name: str
    run: Any = None
    wants: Lock | None = None
    deadline: float | None = None
    #: How many KeyboardInterrupts may still come to it.
    interrupts: int = 0
    done: bool = False

    def __repr__(self) -> str:
        return self.name

    def is_ready(self) -> bool:
        return not self.done and (self.wants is None or not self.wants.taken)


# What can happen next to a task, and what it finds when it comes back
GO, TIME_OUT, INTERRUPT = "go", "times out", "interrupted"
Event = tuple[Task, str]


class Lock:
    """Like ``threading.Lock()``, for the tasks of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.taken = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if blocking:
            if not self._scheduler.wait_for(self, None if timeout < 0 else timeout):
                return False
        else:
            self._scheduler.step()
            if self.taken:
                return False
        self.taken = True
        return True

    def release(self) -> None:
        # Others may come and find it taken, which a try to acquire it tells them.
        self._scheduler.step(interruptible=False)
        if not self.taken:
            raise RuntimeError("release unlocked lock")
        self.taken = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: Any) -> None:
        self.release()


class Gate(dict[int, object]):
    """A dictionary, for the tasks of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def setdefault(self, key: int, value: object = None) -> object:
        self._scheduler.step()
        return super().setdefault(key, value)

    def __delitem__(self, key: int) -> None:
        # Not a call, so an interrupt cannot come here.
        self._scheduler.step(interruptible=False)
        super().__delitem__(key)


class Point(NamedTuple):
    """One decision of a run: what could have happened, and at what cost."""

    events: list[Event]
    costs: list[int]
    chosen: int


class Scheduler:
    """Runs tasks to their ends as *choose* decides."""

    def __init__(self, choose: Callable[[int, list[Event], Task | None], int]) -> None:
        self.now = 0.0
        self.points: list[Point] = []
        self.tasks: list[Task] = []
        #: What happened, for people; kept if asked for, since it takes time.
        self.told: list[str] | None = None
        self._choose = choose
        self._current: Task | None = None
        self._last: Task | None = None
        #: Decided already, by the task that gave control back.
        self._next: Event | None = None
        self._main = greenlet.getcurrent()

    def lock(self) -> Lock:
        return Lock(self)

    def gate(self) -> Gate:
        return Gate(self)

    def clock(self) -> float:
        return self.now

    @property
    def current(self) -> Task:
        assert self._current is not None, "nobody runs"
        return self._current

    def spawn(self, name: str, function: Callable[[], None]) -> Task:
        task = Task(name)

        def run(what: str) -> None:
            function()
            task.done = True

        task.run = greenlet.greenlet(run, self._main)
        self.tasks.append(task)
        return task

    def run(self) -> None:
        """Run until every task is done; raises what a task raised."""
        try:
            while not all(task.done for task in self.tasks):
                task, what = self._next or self._decide()
                self._next = None
                self._current = self._last = task
                task.run.switch(what)
                self._current = None
        finally:
            self._current = None
            self._abandon()

    def _abandon(self) -> None:
        """End the tasks of a failed run, whose cleaning up is of no interest."""
        for task in self.tasks:
            while not task.done and not task.run.dead:
                try:
                    task.run.throw(greenlet.GreenletExit)
                except BaseException:
                    pass

    # -- switch points

    def step(self, interruptible: bool = True) -> None:
        """A moment at which others may go on."""
        task = self._current
        if task is None:
            return  # before or after the run, in which there are no others
        self._switch(task, interruptible)

    def wait_for(self, lock: Lock, timeout: float | None) -> bool:
        task = self._current
        if task is None:
            assert not lock.taken, "a lock was left taken"
            return True
        task.wants = lock
        task.deadline = None if timeout is None else self.now + timeout
        try:
            return self._switch(task, True) is not TIME_OUT
        finally:
            task.wants = task.deadline = None

    def _switch(self, task: Task, interruptible: bool) -> str:
        interrupts = task.interrupts
        if not interruptible:
            task.interrupts = 0
        if self.told is not None:
            self._tell(task, self.told)
        what = self._what_comes(task)
        if what is INTERRUPT:
            raise KeyboardInterrupt
        if not interruptible:
            task.interrupts = interrupts
        return what

    def _what_comes(self, task: Task) -> str:
        """Give control back; return what happens to *task* when it goes on."""
        try:
            chosen, what = self._decide()
        except BaseException:
            pass  # it is raised in the run, where it is no business of the task's
        else:
            if chosen is task:
                return what
            self._next = chosen, what
        switched: str = self._main.switch()
        return switched

    @staticmethod
    def _tell(task: Task, told: list[str]) -> None:
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        where = f"{frame.f_code.co_name}:{frame.f_lineno}"
        told.append(f"{task.name:<8} at {where}")

    # -- decisions

    def _decide(self) -> Event:
        if len(self.points) > LONGEST_RUN:
            raise Stuck(f"no end after {LONGEST_RUN} steps")
        events, costs = self._events()
        if not events:
            blocked = [task.name for task in self.tasks if not task.done]
            raise Stuck(f"{', '.join(blocked)} cannot go on")
        chosen = self._choose(len(self.points), events, self._last)
        self.points.append(Point(events, costs, chosen))
        task, what = events[chosen]
        if what is TIME_OUT:
            assert task.deadline is not None
            self.now = max(self.now, task.deadline)
        elif what is INTERRUPT:
            task.interrupts -= 1
        return events[chosen]

    def _events(self) -> tuple[list[Event], list[int]]:
        """All that can happen now; first that the one who ran last runs on.

        Beside each its cost: 1 for what need not happen, which is a preemption, an
        interrupt, or time that passes.
        """
        events: list[Event] = []
        costs: list[int] = []
        last = self._last
        goes_on = last is not None and last.is_ready()
        if last is not None and goes_on:
            events.append((last, GO))
            costs.append(0)
        for task in self.tasks:
            if task is not last and task.is_ready():
                events.append((task, GO))
                costs.append(int(goes_on))
        for task in self.tasks:
            if task.done:
                continue
            if task.deadline is not None and not task.is_ready():
                events.append((task, TIME_OUT))
                costs.append(1)
            if task.interrupts:
                events.append((task, INTERRUPT))
                costs.append(1)
        return events, costs


# -- who decides


class Choices:
    """The choices of a list; beyond its end, whatever costs nothing."""

    def __init__(self, choices: list[int]) -> None:
        self._choices = choices

    def __call__(self, number: int, events: list[Event], last: Task | None) -> int:
        return self._choices[number] if number < len(self._choices) else 0


class Chance:
    """Probabilistic concurrency testing: priorities by lot, that drop a few times.

    Finds a bug that needs *depth* ordered steps with a probability that is known, and
    reaches schedules that a bound on preemptions never lets a search see.
    """

    def __init__(self, seed: str, depth: int = 3, length: int = 300) -> None:
        self._chance = random.Random(seed)
        self._drops = {self._chance.randrange(length) for _ in range(depth - 1)}
        self._priorities: dict[str, float] = {}

    def __call__(self, number: int, events: list[Event], last: Task | None) -> int:
        chance = self._chance
        for task, _ in events:
            self._priorities.setdefault(task.name, chance.random())
        if number in self._drops and last is not None:
            self._priorities[last.name] = -chance.random()
        ready = [n for n, (_, what) in enumerate(events) if what is GO]
        others = [n for n, (_, what) in enumerate(events) if what is not GO]
        if others and (not ready or chance.random() < 0.02):
            return chance.choice(others)
        return max(ready, key=lambda n: self._priorities[events[n][0].name])


# -- every schedule


@dataclass
class Explored:
    schedules: int = 0
    steps: int = 0
    #: Whether there was more within the bound than the limit allowed to see.
    cut_off: bool = False
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Explored) -> None:
        self.schedules += other.schedules
        self.steps += other.steps
        self.cut_off = self.cut_off or other.cut_off
        self.outcomes += other.outcomes


#: Sets a run up on a scheduler, runs it, checks it, and returns what came of it.
Run = Callable[[Any], Any]


def explore(
    run: Run,
    bound: int | None = None,
    limit: int = 1_000_000,
    make: Callable[[Any], Any] = Scheduler,
) -> Explored:
    """Run every schedule with at most *bound* preemptions, interrupts and timeouts.

    :param bound: ``None`` for every schedule at all.
    :param limit: stop after so many.
    :param make: makes the scheduler, given who decides.
    :raises AssertionError: for the first schedule that fails, with its steps.
    """
    explored = Explored()
    choices: list[int] | None = []
    while choices is not None:
        if explored.schedules == limit:
            explored.cut_off = True
            break
        scheduler = make(Choices(choices))
        explored.outcomes[str(attempt(run, scheduler))] += 1
        explored.schedules += 1
        explored.steps += len(scheduler.points)
        choices = _next_choices(scheduler.points, bound)
    return explored


def _next_choices(points: list[Point], bound: int | None) -> list[int] | None:
    """The last decision that can still be made otherwise, made otherwise."""
    spent = [0]
    for point in points:
        spent.append(spent[-1] + point.costs[point.chosen])
    for number in range(len(points) - 1, -1, -1):
        point = points[number]
        for other in range(point.chosen + 1, len(point.events)):
            if bound is None or spent[number] + point.costs[other] <= bound:
                return [earlier.chosen for earlier in points[:number]] + [other]
    return None


def try_chance(
    run: Run,
    seeds: range,
    name: str = "",
    length: int = 300,
    make: Callable[[Any], Any] = Scheduler,
) -> Explored:
    """Run one schedule by lot for each seed; *length* is that of a usual one."""
    explored = Explored()
    for seed in seeds:
        scheduler = make(Chance(f"{name} {seed}", length=length))
        explored.outcomes[str(attempt(run, scheduler))] += 1
        explored.schedules += 1
        explored.steps += len(scheduler.points)
    return explored


def attempt(run: Run, scheduler: Any) -> Any:
    try:
        return run(scheduler)
    except Exception as error:
        choices = [point.chosen for point in scheduler.points]
        while choices and not choices[-1]:
            choices.pop()
        raise AssertionError(
            f"{type(error).__name__}: {error}\nchoices = {choices}\n"
            + "\n".join(steps_of(run, choices, type(scheduler)))
        ) from error


def steps_of(
    run: Run, choices: list[int], make: Callable[[Any], Any] = Scheduler
) -> list[str]:
    """What happens in one schedule, step by step."""
    scheduler = make(Choices(choices))
    told: list[str] = []
    scheduler.told = told
    try:
        run(scheduler)
    except BaseException as error:
        told.append(f"{type(error).__name__}: {error}")
    return told
