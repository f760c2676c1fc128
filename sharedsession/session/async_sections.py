"""Sections of sessions that tasks share, as async blocks and as decorators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator
from typing import Any, Callable, Generic, TypeVar

from ..internals import greenlets

_S = TypeVar("_S")


class AsyncSection(Generic[_S]):
    """Wraps a section for ``async with``; yields the session."""

    def __init__(self, session: _S, section: Any) -> None:
        self._session = session
        self._section = section

    async def __aenter__(self) -> _S:
        await greenlets.greenlet_spawn(self._section.__enter__)
        return self._session

    @property
    def is_entered(self) -> bool:
        """Whether the block has begun and has not ended."""
        return bool(self._section.is_entered)

    async def take_over(self) -> None:
        """Make the running task the owner of this section."""
        await greenlets.greenlet_spawn(self._section.take_over)

    async def __aexit__(self, *exc_info: Any) -> None:
        await greenlets.greenlet_spawn(self._section.__exit__, *exc_info)


def in_sections(
    make_section: Callable[[tuple[Any, ...]], Any], function: Callable[..., Any]
) -> Any:
    """Decorate a coroutine function or an async generator function.

    :param make_section: returns the section for one call of *function*, given the
      positional arguments of the call.
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

    The task that takes the next step takes over the section.
    """

    def __init__(self, section: Any, generator: AsyncGenerator[Any, Any]) -> None:
        self._section = section
        self._generator = generator
        self._is_begun = False

    #: Whether the section is held.
    _is_open = False

    async def asend(self, value: Any) -> Any:
        if not self._is_begun:
            self._is_begun = True
            await self._section.__aenter__()
            self._is_open = True
        return await self._step(self._generator.asend, value)

    async def athrow(self, *error: Any) -> Any:
        if not self._is_begun:
            return await self._generator.athrow(*error)
        return await self._step(self._generator.athrow, *error)

    async def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        if self._is_open:
            await self._section.take_over()
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
