"""Hidden changes: column values that were set during an operation of another task.

A task sets an attribute, which cannot wait, while another task's flush or commit waits
for the database.  SQLAlchemy would lose the change, because a flush marks every
attribute as written at its end and a commit expires every attribute.  Therefore readers
see the new value at once, but the change is hidden from the operation: the attribute
stays as clean or as dirty as it was before.  When the operation has ended the change is
shown, as if the attribute were set at that moment.
"""

from __future__ import annotations

from typing import Any

from ..internals import orm
from .guards import guards_by_session

_ABSENT: Any = object()

#: Deferred changes, for each guard that defers changes now; nearly always empty.
watched: dict[Any, dict[tuple[Any, str], Change]] = orm.watched


class Change:
    """The change of one attribute of one object: the values before and after."""

    def __init__(self, state: Any, attribute: Any, previous: Any) -> None:
        self.state = state
        self.instance = state.obj()  # maybe the only reference to the object
        self.attribute = attribute
        self.key = attribute.key
        #: True if the attribute was changed before, which the operation may have seen.
        self.was_dirty = orm.is_changed(state, self.key)
        self.was_modified = state.modified
        self.previous = orm.NO_VALUE if self.was_dirty else previous
        self.value: Any = _ABSENT

    def hide(self) -> None:
        self.value = self.state.dict.get(self.key, _ABSENT)
        if not self.was_dirty:
            orm.forget_change(self.state, self.key)
        if not self.was_modified:
            orm.unflag(self.state)

    def show(self) -> None:
        values = self.state.dict
        if self.value is _ABSENT:
            values.pop(self.key, None)
        else:
            values[self.key] = self.value
        if not self.was_dirty:
            # The operation may have set the attribute, a merge() for example, and so
            # noted the hidden value as the one before.
            orm.forget_change(self.state, self.key)
        orm.note_change(self.state, values, self.attribute, self.previous)


def note(state: Any, attribute: Any, previous: Any) -> None:
    """Note a change; call this before SQLAlchemy marks the attribute as set."""
    changes = watched.get(guards_by_session.get(state.session_id))
    if changes is not None and attribute is not None:
        changes.setdefault((state, attribute.key), Change(state, attribute, previous))
