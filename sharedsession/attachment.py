"""Which guard guards an object: that of the session the object is attached to.

SQLAlchemy notes in each object's state the number of its session and keeps the note
right on attach, detach, merge and expunge.  So a table from that number to the guard
is all there is to know, and an object needs no byte for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .alchemy import instance_state

if TYPE_CHECKING:
    from .guard import Guard

#: Session number to guard.  Entries come with a session and go with it; each is put
#: there and taken away in one step.
guards: dict[int | None, Guard] = {}


def guard_of_state(state: Any) -> Guard | None:
    return guards.get(state.session_id)


def guard_of_instance(instance: object) -> Guard | None:
    """The guard of a mapped object; ``None`` if it has none or is not mapped."""
    try:
        return guards.get(instance_state(instance).session_id)
    except AttributeError:
        return None
