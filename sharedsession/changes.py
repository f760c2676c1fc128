"""Changes to a column's value that were made beside an operation in flight.

A task sets an attribute, and cannot wait, while another task's flush or commit waits
for the database.  SQLAlchemy would forget that the attribute was set: a flush counts
all as written at its end, and a commit expires it.  So the change is there at once for
whoever reads it, but hidden from the operation: for that the attribute is as clean, or
as dirty, as it was before.  When the operation has ended the change is shown, as if it
were made then.
"""

from __future__ import annotations

from typing import Any

from . import alchemy
from .attachment import guards

_ABSENT: Any = object()

#: The guards for which changes are noted now; nearly always empty.
watched: dict[Any, dict[tuple[Any, str], Change]] = alchemy.watched


class Change:
    """One attribute of one object, as it was before and as it was left."""

    def __init__(self, state: Any, attribute: Any, previous: Any) -> None:
        self.state = state
        self.instance = state.obj()  # which nobody else may hold
        self.attribute = attribute
        self.key = attribute.key
        #: Whether an operation in flight may know already that it was set.
        self.was_dirty = alchemy.is_changed(state, self.key)
        self.was_modified = state.modified
        self.previous = alchemy.NO_VALUE if self.was_dirty else previous
        self.value: Any = _ABSENT

    def hide(self) -> None:
        self.value = self.state.dict.get(self.key, _ABSENT)
        if not self.was_dirty:
            alchemy.forget_change(self.state, self.key)
        if not self.was_modified:
            alchemy.unflag(self.state)

    def show(self) -> None:
        values = self.state.dict
        if self.value is _ABSENT:
            values.pop(self.key, None)
        else:
            values[self.key] = self.value
        alchemy.note_change(self.state, values, self.attribute, self.previous)


def note(state: Any, attribute: Any, previous: Any) -> None:
    """To be called before an attribute counts as set."""
    changes = watched.get(guards.get(state.session_id))
    if changes is not None and attribute is not None:
        changes.setdefault((state, attribute.key), Change(state, attribute, previous))
