"""Find the guard of an object: the guard of the session that the object belongs to.

SQLAlchemy stores in the state of each object the number of its session
(``session_id``) and updates the number on attach, detach, merge and expunge.  A table
from session numbers to guards is therefore enough, and an object needs no extra
field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..internals.orm import instance_state

if TYPE_CHECKING:
    from ..guard.guard import Guard

#: Guards by session number.  An entry lives as long as its session; adding and removing
#: an entry is atomic.
guards_by_session: dict[int | None, Guard] = {}


def guard_of_state(state: Any) -> Guard | None:
    return guards_by_session.get(state.session_id)


def guard_of_instance(instance: object) -> Guard | None:
    """Return the guard of a mapped object.

    ``None`` if the object has no guard, or is not mapped.
    """
    try:
        return guards_by_session.get(instance_state(instance).session_id)
    except AttributeError:
        return None
