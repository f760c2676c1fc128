"""Threads for tests: they always end, or the test fails and shows where they are."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
from typing import Any, Callable, Iterator

#: Seconds after which a test that waits for something that must happen gives up.
PATIENCE = 30.0


class Worker(threading.Thread):
    """Runs a function in a thread and keeps what came of it."""

    def __init__(self, function: Callable[[], Any], name: str = "worker") -> None:
        super().__init__(name=name, daemon=True)
        self._function = function
        self._result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def result(self) -> Any:
        """What the function returned; raises what it raised."""
        self.join(PATIENCE)
        if self.is_alive():
            stuck(f"{self.name} did not end")
        if self.error is not None:
            raise self.error
        return self._result


def stuck(what: str) -> None:
    faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
    raise AssertionError(f"{what} within {PATIENCE:g} s; all stacks are on stderr")


def wait_until(condition: Callable[[], Any]) -> None:
    """Return when *condition* holds.  For what cannot be waited for otherwise."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            stuck("a condition did not come to hold")
        time.sleep(0.0005)


def passes(worker: Worker, guard: Any) -> bool:
    """Whether *worker* gets through; False as soon as it is in the guard's queue."""
    wait_until(lambda: worker.done.is_set() or worker in guard.waiting)
    return worker.done.is_set()


def wait_for(event: threading.Event) -> None:
    if not event.wait(PATIENCE):
        stuck("an event was not set")


@contextlib.contextmanager
def inside(enter: Callable[[], Any]) -> Iterator[None]:
    """Have another thread inside ``with enter():`` for the time of the block."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with enter():
            entered.set()
            wait_for(leave)

    holder = Worker(hold, name="holder")
    wait_until(lambda: entered.is_set() or holder.done.is_set())
    try:
        yield
    finally:
        leave.set()
        holder.result()


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Run the functions in a thread each, started at once, and return the results."""
    barrier = threading.Barrier(len(functions))

    def start(function: Callable[[], Any]) -> Any:
        barrier.wait(PATIENCE)
        return function()

    workers = [
        Worker(lambda function=function: start(function), name=f"worker-{number}")
        for number, function in enumerate(functions)
    ]
    return [worker.result() for worker in workers]
