"""A deterministic event loop: what is ready runs in every order, and time is made up.

Between two awaits a task runs undisturbed, so a schedule of tasks is no more than which
callback of the loop runs next, when the database answers, when a timer is due, and
where a task is cancelled.  At each of them somebody decides, in the same manner, and
with the same searches, as for threads; see :mod:`tests.proofs.schedules.scheduler`.

A usual loop runs what is ready in the order in which it became so.  Any other order
costs as much as a preemption does: it is more than a loop of today does, and what the
next one, or a database that answers in between, may do.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .scheduler import GO, LONGEST_RUN, TIME_OUT, Point, Stuck

CANCEL = "is cancelled"


@dataclass(eq=False)
class Actor:
    """What something happens to: a task, a call of the database, or the loop."""

    name: str
    task: asyncio.Task[Any] | None = None
    #: How many times it may still be cancelled.
    cancels: int = 0

    def __repr__(self) -> str:
        return self.name


Event = tuple[Actor, str]


class Handle:
    """What ``call_soon()`` and ``call_at()`` return."""

    def __init__(self, when: float, context: Any, function: Any, args: Any) -> None:
        self._when = when
        # Not by its truth: a context with nothing in it is one as well.
        self._context = contextvars.copy_context() if context is None else context
        self.function = function
        self._args = args
        self._cancelled = False

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def run(self) -> None:
        self._context.run(self.function, *self._args)


class Loop(asyncio.AbstractEventLoop):
    """Runs tasks to their ends as *choose* decides."""

    def __init__(self, choose: Callable[[int, list[Any], Any], int]) -> None:
        self.points: list[Point] = []
        #: What happened, for people; kept if asked for, since it takes time.
        self.told: list[str] | None = None
        #: Called between any two steps, to look at what must hold always.
        self.watch: Callable[[], None] = lambda: None
        #: What people want to know of each step besides.
        self.describe: Callable[[], str] = lambda: ""
        #: What tasks may raise, for others to find.
        self.expected: tuple[type[BaseException], ...] = ()
        self._choose = choose
        self._now = 0.0
        self._last: Actor | None = None
        self._ready: list[Handle] = []
        self._timers: list[Handle] = []
        self._calls: list[tuple[Actor, asyncio.Future[None]]] = []
        self._actors: dict[Any, Actor] = {}
        self._itself = Actor("the loop")
        self._is_abandoned = False

    # -- what tasks and futures ask of a loop

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = Handle(self._now, context, callback, args)
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, **kw: Any) -> Any:
        handle = Handle(when, kw.get("context"), callback, args)
        self._timers.append(handle)
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, **kw: Any) -> Any:
        return self.call_at(self._now + delay, callback, *args, **kw)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **kw: Any) -> Any:
        name = kw.get("name") or f"child-{len(self._actors)}"
        context = kw.get("context")
        context = contextvars.copy_context() if context is None else context
        task = context.run(asyncio.Task, coro, loop=self, name=name)
        self._actors[task] = Actor(name, task)
        return task

    def call_exception_handler(self, context: Any) -> None:
        if not self._is_abandoned:
            raise AssertionError(f"{context['message']}: {context.get('exception')!r}")

    # -- what programs ask of it

    def spawn(self, name: str, coroutine: Any) -> Any:
        """A task that belongs to nobody."""
        return self.create_task(coroutine, name=name, context=contextvars.Context())

    def current(self) -> Actor:
        return self.actor(asyncio.current_task(self))

    def actor(self, task: Any) -> Actor:
        return self._actors[task]

    def ask_database(self) -> asyncio.Future[None]:
        """Something to await, which the database answers at any time."""
        answer = self.create_future()
        self._calls.append((Actor(f"database of {self.current()}"), answer))
        return answer

    def run(self) -> None:
        """Run until nothing is left to do; every task has to be done then."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            while self._step():
                pass
            self._raise_what_tasks_raised()
            waiting = [str(actor) for actor in self._undone()]
            if waiting:
                raise Stuck(f"{', '.join(waiting)} cannot go on")
        except BaseException:
            self._abandon()
            raise
        finally:
            asyncio._set_running_loop(before)

    def _raise_what_tasks_raised(self) -> None:
        for task in self._actors:
            if task.done() and not task.cancelled():
                error = task.exception()
                if error is not None and not isinstance(error, self.expected):
                    raise error

    def _undone(self) -> list[Actor]:
        return [a for a in self._actors.values() if a.task and not a.task.done()]

    def _abandon(self) -> None:
        """End the tasks of a failed run, whose cleaning up is of no interest."""
        self._is_abandoned = True
        for _ in range(100):
            for actor in self._undone():
                assert actor.task is not None
                actor.task.cancel()
            ready, self._ready = self._ready, []
            for handle in ready:
                try:
                    handle.run()
                except BaseException:
                    pass
        for task in self._actors:
            if task.done() and not task.cancelled():
                task.exception()

    # -- decisions

    def _step(self) -> bool:
        """Let one thing happen, if anything can."""
        self.watch()
        if len(self.points) > LONGEST_RUN:
            raise Stuck(f"no end after {LONGEST_RUN} steps")
        self._forget_what_is_over()
        happenings = list(self._happenings())
        if not happenings:
            return False
        events: list[Any] = [(actor, what) for actor, what, *_ in happenings]
        costs = [cost for *_, cost, _ in happenings]
        chosen = self._choose(len(self.points), events, self._last)
        self.points.append(Point(events, costs, chosen))
        actor, what, _, happen = happenings[chosen]
        self._last = actor
        happen()
        if self.told is not None:
            self.told.append(f"{actor.name:<18} {what:<12} {self.describe()}")
        return True

    def _forget_what_is_over(self) -> None:
        self._ready = [handle for handle in self._ready if not handle.cancelled()]
        self._timers = [timer for timer in self._timers if not timer.cancelled()]
        self._calls = [call for call in self._calls if not call[1].done()]

    def _happenings(self) -> Iterator[tuple[Actor, str, int, Callable[[], None]]]:
        """All that can happen now, with its cost; first what a usual loop would do."""
        for number, handle in enumerate(self._ready):
            yield self._actor_of(handle), GO, int(number > 0), self._running(handle)
        busy = bool(self._ready)
        for call, answer in self._calls:
            yield call, GO, int(busy), self._answering(answer)
        busy = busy or bool(self._calls)
        for timer in sorted(self._timers, key=Handle.when)[:1]:
            yield self._actor_of(timer), TIME_OUT, int(busy), self._timing_out(timer)
        if busy or self._timers:  # else being cancelled would hide that it is stuck
            for actor in self._undone():
                if actor.cancels:
                    yield actor, CANCEL, 1, self._cancelling(actor)

    def _actor_of(self, handle: Handle) -> Actor:
        task = getattr(handle.function, "__self__", None)
        return self._actors.get(task, self._itself) if task else self._itself

    def _running(self, handle: Handle) -> Callable[[], None]:
        def happen() -> None:
            self._ready.remove(handle)
            handle.run()

        return happen

    def _answering(self, answer: asyncio.Future[None]) -> Callable[[], None]:
        return lambda: answer.set_result(None)

    def _timing_out(self, timer: Handle) -> Callable[[], None]:
        def happen() -> None:
            self._timers.remove(timer)
            self._now = max(self._now, timer.when())
            timer.run()

        return happen

    def _cancelling(self, actor: Actor) -> Callable[[], None]:
        def happen() -> None:
            assert actor.task is not None
            actor.cancels -= 1
            actor.task.cancel()

        return happen
