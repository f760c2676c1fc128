"""Finding the session, or the guard, of a session, a registry or an object."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session, scoped_session

from .errors import SharedSessionError
from .guard.guard import Guard
from .internals.orm import instance_state, session_of_state, sync_session_of
from .objects.guards import guard_of_instance
from .session.session import SharedSessionMixin


def session_of(target: Any) -> SharedSessionMixin:
    """Return the shared session that *target* is, has, or is attached to.

    :param target: a shared session, a registry of one, an object attached to one, or a
      callable that returns one of these.
    :raises SharedSessionError: if *target* has no shared session.
    """
    session = _find(target)
    if isinstance(session, SharedSessionMixin):
        return session
    if session is not None:
        raise SharedSessionError(
            f"{session!r} is a plain session, which has no guard. Make it a "
            "SharedSession, or guard it with share()."
        )
    raise SharedSessionError(
        f"{target!r} is attached to no session, so there is nothing to guard. Add it "
        "to a shared session first, or name the session itself."
    )


def _find(target: Any) -> Session | None:
    if isinstance(target, Session):
        return target
    if isinstance(target, scoped_session):
        session: Session = target.registry()
        return session
    behind = sync_session_of(target)
    if behind is not None:
        return behind
    try:
        return session_of_state(instance_state(target))
    except AttributeError:
        if callable(target) and not isinstance(target, type):
            return _find(target())
    raise SharedSessionError(
        f"{target!r} is no session, no registry, no mapped object and no function that "
        "returns one of these."
    )


def guard_of(target: Any) -> Guard | None:
    """Return the guard behind a session, a registry or an attached object.

    Like ``session.guard``, but takes a registry or an object, too.

    :param target: any object.
    :return: the guard; ``None`` if *target* has none.
    """
    if isinstance(target, (Session, scoped_session)) or sync_session_of(target):
        guard: Guard | None = getattr(_find(target), "guard", None)
        return guard
    return guard_of_instance(target)
