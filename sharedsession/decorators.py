"""``critical_section()`` and ``read_section()``: as blocks and as decorators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Generator
from typing import Any, Callable, Literal, NoReturn, TypeVar, Union

from sqlalchemy.orm import Session, scoped_session

from .errors import SharedSessionError
from .guard.access import check_timeout
from .internals.orm import async_session_of
from .resolve import session_of
from .session.sections import CriticalSection, ReadSection
from .session.session import SharedSessionMixin
from .unit_of_work import UnitOfWork

_F = TypeVar("_F", bound=Callable[..., Any])
_Transaction = Literal["commit", "savepoint", None]


class _SectionOf:
    """A section of a target's session, which is looked up when the section begins."""

    _name: str

    def __init__(self, target: Any, timeout: float | None) -> None:
        self._target = target
        self._timeout = check_timeout(timeout)
        self._open: Any = None

    def _section(self, session: SharedSessionMixin) -> Any:
        """Make the context manager for one block."""
        raise NotImplementedError

    # -- as a block

    def __enter__(self) -> SharedSessionMixin:
        if isinstance(self._target, str):
            raise SharedSessionError(
                f"{self._name}({self._target!r}) names an attribute of a method's "
                "object, so it can only decorate methods; give a block the session."
            )
        if self._open is not None:
            raise SharedSessionError(
                f"This {self._name} is entered already; make a new one for each block."
            )
        section = self._section(session_of(self._target))
        session: SharedSessionMixin = section.__enter__()
        self._open = section
        return session

    def __exit__(self, *exc_info: Any) -> None:
        section = self._open
        if section is None:
            raise SharedSessionError(
                f"This {self._name} is not entered, so there is nothing to release."
            )
        try:
            section.__exit__(*exc_info)
        finally:
            if not section.is_entered:  # otherwise it may be left again
                self._open = None

    # -- as a block of a coroutine

    async def __aenter__(self) -> Any:
        if isinstance(self._target, str) or self._open is not None:
            self.__enter__()  # raises
        section = self._async_section(session_of(self._target))
        session = await section.__aenter__()
        self._open = section
        return session

    async def __aexit__(self, *exc_info: Any) -> None:
        section = self._open
        if section is None:
            self.__exit__()  # raises
        try:
            await section.__aexit__(*exc_info)
        finally:
            if not section.is_entered:
                self._open = None

    def _async_section(self, session: SharedSessionMixin) -> Any:
        if not session._for_tasks:
            raise SharedSessionError(
                f"{self._name}() of a session for threads cannot be awaited: waiting "
                "would stop the event loop. Enter it with 'with' in a function that "
                "asyncio.to_thread() runs, or share an AsyncSharedSession."
            )
        from .session.async_sections import (
            AsyncSection,  # here, because it may need greenlet
        )

        return AsyncSection(async_session_of(session), self._section(session))

    # -- as a decorator

    def __call__(self, function: _F) -> _F:
        if isinstance(function, (classmethod, staticmethod)):
            return type(function)(self(function.__func__))
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(
            function
        ):
            coroutine: _F = self._decorate_coroutine(function)
            return coroutine
        if not callable(function) or isinstance(function, type):
            raise SharedSessionError(
                f"{self._name}() decorates functions and methods, not {function!r}."
            )
        if inspect.isgeneratorfunction(function):
            decorated: _F = self._decorate_generator(function)
            return decorated

        @functools.wraps(function)
        def in_section(*args: Any, **kw: Any) -> Any:
            with self._section(self._session_for(function, args)):
                return function(*args, **kw)

        return in_section  # type: ignore[return-value]

    def _decorate_coroutine(self, function: Any) -> Any:
        if _is_for_threads(self._target):
            self._refuse_coroutine(function)
        from .session.async_sections import in_sections

        def make_section(args: tuple[Any, ...]) -> Any:
            session = self._session_for(function, args)
            if not session._for_tasks:
                self._refuse_coroutine(function)
            return self._async_section(session)

        return in_sections(make_section, function)

    def _refuse_coroutine(self, function: Any) -> NoReturn:
        raise SharedSessionError(
            f"{self._name}() of a session for threads cannot decorate the "
            f"coroutine function {function.__qualname__}: waiting would stop the "
            "event loop. Decorate a function and run it with asyncio.to_thread(), or "
            "share an AsyncSharedSession."
        )

    def _decorate_generator(self, function: Any) -> Any:
        @functools.wraps(function)
        def in_section(*args: Any, **kw: Any) -> Any:
            section = self._section(self._session_for(function, args))
            return _InSection(section, function(*args, **kw))

        return in_section

    def _session_for(self, function: Any, args: tuple[Any, ...]) -> SharedSessionMixin:
        if not isinstance(self._target, str):
            return session_of(self._target)
        if not args or not hasattr(args[0], self._target):
            raise SharedSessionError(
                f"{self._name}({self._target!r}) decorates methods of objects that "
                f"have an attribute {self._target!r}; {function.__qualname__}() was "
                "called without such an object."
            )
        return session_of(getattr(args[0], self._target))


def _is_for_threads(target: Any) -> bool:
    """Whether the target is known to be for threads, without making a session."""
    if isinstance(target, Session):
        return not getattr(target, "_for_tasks", False)
    return isinstance(target, scoped_session)


class critical_section(_SectionOf):
    """Keep every other thread out of a session for a block or a whole function.

    Like :meth:`SharedSession.critical_section`, but takes a session, a registry or an
    attached object, and is a decorator, too::

        @critical_section(Session, transaction="commit")
        def transfer(source, target, amount): ...

        class Importer:
            @critical_section("session")
            def run(self): ...

    Decorates functions, methods, classmethods, staticmethods and generator functions;
    for a generator the section is held while the generator is open.  If tasks share the
    session, it decorates coroutine functions and async generator functions, and a block
    is entered with ``async with``.

    :param target: a :class:`SharedSession`, a :class:`shared_session` (or those of
      ``sharedsession.asyncio``), an object that is attached to one, a callable that
      returns one of these, or, for methods, the name of an attribute of ``self``.
      Looked up each time the section is entered.
    :param timeout: seconds, above zero, to wait at most; ``None``, the default: the
      ``lock_timeout`` of the session.
    :param transaction: ``"commit"``: the section is one unit of work, committed at its
      end; if it raises, a savepoint undoes its own work, and the pending work of other
      owners stays.  ``"savepoint"``: the same without the commit.  ``None``, the
      default: the section leaves the transaction alone.  A unit of work inside another
      one is a savepoint of the outer unit of work.
    :raises LockTimeout: if the wait took longer.
    :raises SharedSessionError: if the target is attached to no shared session.
    :raises ValueError: if *timeout* or *transaction* is not valid.
    """

    _name = "critical_section"

    def __init__(
        self,
        target: Any,
        *,
        timeout: float | None = None,
        transaction: _Transaction = None,
    ) -> None:
        if transaction not in ("commit", "savepoint", None):
            raise ValueError(
                "transaction must be 'commit', 'savepoint' or None, not "
                f"{transaction!r}"
            )
        super().__init__(target, timeout)
        self._transaction = transaction

    def _section(self, session: SharedSessionMixin) -> Any:
        section = CriticalSection(session, self._timeout)
        if self._transaction is None:
            return section
        return UnitOfWork(session, section, self._transaction == "commit")


class read_section(_SectionOf):
    """Keep every change out of a session for a block or a function that only reads.

    Like :meth:`SharedSession.read_section`, but takes the same targets, and decorates
    the same kinds of function, as :class:`critical_section`.

    :param target: as for :class:`critical_section`.
    :param timeout: seconds, above zero, to wait at most; ``None``, the default: the
      ``lock_timeout`` of the session.
    :raises LockTimeout: if the wait took longer.
    :raises SharedSessionError: if the target is attached to no shared session.
    :raises ValueError: if *timeout* is not valid.
    """

    _name = "read_section"

    def __init__(self, target: Any, *, timeout: float | None = None) -> None:
        super().__init__(target, timeout)

    def _section(self, session: SharedSessionMixin) -> Any:
        return ReadSection(session, self._timeout)


_Sections = Union[CriticalSection[Any], ReadSection[Any], UnitOfWork]


class _InSection(Generator[Any, Any, Any]):
    """Runs a generator in a section that is entered at its first step.

    The thread that takes the next step takes over the section.
    """

    def __init__(self, section: _Sections, generator: Generator[Any, Any, Any]) -> None:
        self._section = section
        self._generator = generator
        self._is_begun = False

    #: Whether the section is held.
    _is_open = False

    def send(self, value: Any) -> Any:
        if not self._is_begun:
            self._is_begun = True
            self._section.__enter__()
            self._is_open = True
        return self._step(self._generator.send, value)

    def throw(self, *error: Any) -> Any:
        if not self._is_begun:
            return self._generator.throw(*error)
        return self._step(self._generator.throw, *error)

    def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        if self._is_open:
            self._section.take_over()
        try:
            return step(*args)
        except StopIteration:
            self._leave(None)
            raise
        except BaseException as error:
            self._leave(error)
            raise

    def _leave(self, error: BaseException | None) -> None:
        if (
            self._is_open
            and inspect.getgeneratorstate(self._generator) != inspect.GEN_RUNNING
        ):
            self._is_open = False
            self._section.__exit__(type(error) if error else None, error, None)

    def __del__(self) -> None:
        # If the caller does not own the section, or is busy, the next owner finishes
        # the section.
        if self._is_open and self._section.is_mine():
            self.close()
