"""merge_into: copying objects between sessions that several threads use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, TypeVar, overload

import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
from sqlalchemy.orm import Session, scoped_session

from .errors import SharedSessionError
from .guard.guard import Guard
from .resolve import guard_of

_O = TypeVar("_O")


@overload
def merge_into(
    target: Session | scoped_session[Any],
    instance_or_instances: Iterable[_O],
    *,
    load: bool = ...,
) -> list[_O]: ...


@overload
def merge_into(
    target: Session | scoped_session[Any],
    instance_or_instances: _O,
    *,
    load: bool = ...,
) -> _O: ...


def merge_into(
    target: Session | scoped_session[Any],
    instance_or_instances: Any,
    *,
    load: bool = True,
) -> Any:
    """Copy objects into another session, while no other thread changes either session.

    Like ``target.merge()``, but holds the guards of the target and of every object's
    own session meanwhile.  The guards are acquired in the order in which the sessions
    were made; therefore two threads that copy in opposite directions do not deadlock.

    :param target: the session to copy into, shared or plain, or a registry of one.
    :param instance_or_instances: one mapped object, or an iterable of them.
    :param load: as for ``Session.merge()``; ``True`` is the default.
    :return: the copy, or a list of the copies.
    :raises SharedSessionError: if *target* is no session and no registry, or if an
      instance is not mapped.
    """
    if not isinstance(target, (Session, scoped_session)):
        raise SharedSessionError(
            f"merge_into() copies into a session or a registry, not into {target!r}."
        )
    one = _is_mapped(instance_or_instances)
    instances = [instance_or_instances] if one else _all_mapped(instance_or_instances)
    guards = {guard_of(thing) for thing in (target, *instances)} - {None}
    with contextlib.ExitStack() as held:
        for guard in sorted(guards, key=lambda guard: guard.number):  # type: ignore
            _hold(held, guard)  # type: ignore[arg-type]
        copies = [target.merge(instance, load=load) for instance in instances]
    return copies[0] if one else copies


def _hold(held: contextlib.ExitStack, guard: Guard) -> None:
    if guard.held != "shared":  # if it is, this thread's read section is enough
        hold = guard.hold("copy")
        held.callback(hold.release)  # twice, because an interrupt may hit the first
        held.callback(hold.release)


def _all_mapped(instances: Any) -> list[Any]:
    found = list(instances) if isinstance(instances, Iterable) else [instances]
    for instance in found:
        if not _is_mapped(instance):
            raise SharedSessionError(
                f"merge_into() copies mapped objects, and {instance!r} is none."
            )
    return found


def _is_mapped(instance: Any) -> bool:
    try:
        return bool(sa.inspect(instance).is_instance)
    except (sa_exc.NoInspectionAvailable, AttributeError):
        return False
