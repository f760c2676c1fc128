"""Threads that run one at a time, in an order drawn from a seed.

A thread goes on until it comes to a switch point (:meth:`Scheduler.pause`) or would
wait for a :class:`TurnLock`; then the seed says who goes on.  As nothing else decides,
the same seed gives the same run again.
"""

from __future__ import annotations

import itertools
import random
import threading
from typing import Any, Callable

from ...support.threads import PATIENCE, stuck


class NobodyCanGoOn(AssertionError):
    """All threads wait for each other."""


class Task(threading.Thread):
    """One of the threads; ``error`` is what it ended with, if it was an error."""

    def __init__(self, scheduler: Scheduler, name: str, function: Any) -> None:
        super().__init__(name=name, daemon=True)
        self.turn = threading.Event()
        self.waits_for: TurnLock | None = None
        self.ended = False
        self.error: BaseException | None = None
        self._scheduler = scheduler
        self._function: Callable[[], Any] = function

    @property
    def can_go_on(self) -> bool:
        return not self.ended and (self.waits_for is None or not self.waits_for.taken)

    def run(self) -> None:
        self.turn.wait()
        try:
            self._function()
        except BaseException as error:
            self.error = error
        finally:
            self.ended = True
            self._scheduler.back.set()


class Scheduler:
    """Decides whose turn it is.

    :param switching: how likely another thread is taken at a switch point.
    """

    def __init__(self, chance: random.Random, switching: float = 0.4) -> None:
        self.back = threading.Event()
        self.tasks: list[Task] = []
        #: How many turns there were.
        self.turns = 0
        self._chance = chance
        self._switching = switching

    def add(self, name: str, function: Callable[[], Any]) -> None:
        self.tasks.append(Task(self, name, function))

    def run(self) -> None:
        """Run all tasks to their ends; raise what the first to fail raised."""
        for task in self.tasks:
            task.start()
        while not all(task.ended for task in self.tasks):
            ready = [task for task in self.tasks if task.can_go_on]
            if not ready:
                raise NobodyCanGoOn(f"{len(self.tasks)} threads wait for each other")
            self._give_turn_to(self._chance.choice(ready))
        for task in self.tasks:
            if task.error is not None:
                raise task.error

    def _give_turn_to(self, task: Task) -> None:
        self.turns += 1
        self.back.clear()
        task.turn.set()
        if not self.back.wait(PATIENCE):
            stuck(f"{task.name} did not come to a switch point")
        if task.ended:
            task.join(PATIENCE)  # its last breath is part of its turn

    def pause(self) -> None:
        """A switch point; nothing in a thread that is not one of the tasks."""
        if self.is_running_here() and self._chance.random() < self._switching:
            self._give_back(self._task())

    def is_running_here(self) -> bool:
        """Whether the calling thread is one of the tasks, and has not ended."""
        task = threading.current_thread()
        return isinstance(task, Task) and task in self.tasks and not task.ended

    def _task(self) -> Task:
        task = threading.current_thread()
        assert isinstance(task, Task)
        return task

    def wait_for(self, lock: TurnLock | None) -> None:
        """Let others go on, until *lock* is free, or for some turns of theirs."""
        task = self._task()
        task.waits_for = lock
        self._give_back(task)
        task.waits_for = None

    def _give_back(self, task: Task) -> None:
        task.turn.clear()
        self.back.set()
        task.turn.wait()

    def make_lock(self) -> TurnLock:
        return TurnLock(self)


class TurnLock:
    """A lock on which a task waits by giving up its turn; a plain one for others."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._lock = threading.Lock()
        self._scheduler = scheduler

    @property
    def taken(self) -> bool:
        return self._lock.locked()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not self._scheduler.is_running_here():
            return self._lock.acquire(blocking, timeout)
        if blocking and timeout >= 0 and self.taken:
            self._scheduler.wait_for(None)
            return self._lock.acquire(False)  # the time is up
        while not self._lock.acquire(False):
            if not blocking:
                return False
            self._scheduler.wait_for(self)
        return True

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: Any) -> None:
        self.release()


def schedule(session: Any, scheduler: Scheduler) -> None:
    """Put the switch points on *session*: at each operation and each statement."""
    import sqlalchemy as sa

    guard = session.guard
    if guard is not None:
        asker = guard.current_owner

        def pausing_asker() -> Any:
            scheduler.pause()
            return asker()

        guard.current_owner = pausing_asker
        ticks = itertools.count()
        guard.clock = lambda: next(ticks) / 1000  # real time would decide who is next
        guard._make_lock = scheduler.make_lock
        guard._set_mutex(scheduler.make_lock())

    def pause(*args: Any) -> None:
        scheduler.pause()

    for target, name in (
        (session.bind, "before_cursor_execute"),
        (session.bind, "after_cursor_execute"),
        (session, "before_flush"),
        (session, "after_flush"),
    ):
        sa.event.listen(target, name, pause)
