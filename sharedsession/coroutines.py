"""Sections of sessions that tasks share: as async blocks and around coroutines."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator
from typing import Any, Callable, Generic, TypeVar

from . import alchemy
from .errors import ConcurrentAccessError
from .owners import Owner
from .tasks import current_task_owner

_S = TypeVar("_S")


class AsyncSection(Generic[_S]):
    """A section that is entered with ``async with``, and yields the session."""

    def __init__(self, session: _S, section: Any) -> None:
        self._session = session
        self._section = section

    async def __aenter__(self) -> _S:
        await alchemy.greenlet_spawn(self._section.__enter__)
        return self._session

    async def __aexit__(self, *exc_info: Any) -> None:
        await alchemy.greenlet_spawn(self._section.__exit__, *exc_info)


def in_sections(
    make_section: Callable[[tuple[Any, ...]], Any], function: Callable[..., Any]
) -> Any:
    """Decorate a coroutine function, or an async generator function.

    :param make_section: returns the section for a call, given its arguments.
    """
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        def stepwise(*args: Any, **kw: Any) -> Any:
            return _InSection(make_section(args), function(*args, **kw))

        return stepwise

    @functools.wraps(function)
    async def in_section(*args: Any, **kw: Any) -> Any:
        async with make_section(args):
            return await function(*args, **kw)

    return in_section


class _InSection(AsyncGenerator[Any, Any]):
    """Runs an async generator in a section that is entered at its first step.

    Not a generator itself: the error that another task gets for a step must not end
    the generator of the one that may go on.
    """

    def __init__(self, section: Any, generator: AsyncGenerator[Any, Any]) -> None:
        self._section = section
        self._generator = generator
        self._owner: Owner | None = None

    #: Whether the section is held.
    _is_open = False

    async def asend(self, value: Any) -> Any:
        if self._owner is None:
            me = current_task_owner()
            await self._section.__aenter__()
            self._owner = me
            self._is_open = True
        return await self._step(self._generator.asend, value)

    async def athrow(self, *error: Any) -> Any:
        if self._owner is None:
            return await self._generator.athrow(*error)
        return await self._step(self._generator.athrow, *error)

    async def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        me = current_task_owner()
        if self._is_open and self._owner is not me:
            assert self._owner is not None
            raise ConcurrentAccessError(
                f"{me.name} takes a step of a generator whose section is held by "
                f"{self._owner.name}. Run it to its end in the task that began it."
            )
        try:
            return await step(*args)
        except StopAsyncIteration:
            await self._leave(None)
            raise
        except BaseException as error:
            await self._leave(error)
            raise

    async def _leave(self, error: BaseException | None) -> None:
        if self._is_open:
            self._is_open = False
            kind = type(error) if error else None
            await self._section.__aexit__(kind, error, None)
