"""One AsyncSession for several tasks of an event loop.

An awaited operation waits for its turn.  An operation that is not awaited cannot wait;
while another task is inside, such an operation behaves as follows, under each lock kind
that lets tasks wait:

==================================== ==================================================
not awaited                          while another task's operation is in flight
==================================== ==================================================
``add()``, ``add_all()``,            deferred: done when that operation ends, in the
``expire()``, ``expire_all()``,      order of the calls, and before the next operation
``expunge()``, ``expunge_all()``     that this task awaits.  An error that SQLAlchemy
                                     would raise at once is raised at once
``in``, ``new``, iteration           at once, including what this task has deferred
reading a loaded attribute or        at once
collection; ``dirty``, ``deleted``,
``is_active``, ``in_transaction()``,
``get_transaction()``,
``is_modified()``, ``inspect()``
reading an attribute that is not     refused: await it, by ``awaitable_attrs``
loaded
setting or deleting a column's       at once.  A flush, commit or rollback in flight
attribute; mutable values,           does not see the change, which counts as made when
``flag_modified()``                  that operation has ended and is therefore not lost
setting a relationship, changing a   at once beside a mere load; refused beside an
collection                           operation that would lose the change
``bind_mapper()``, ``bind_table()``, refused
setting ``autoflush`` or ``bind``,
``no_autoflush``
==================================== ==================================================

Refused means that :class:`ConcurrentAccessError` is raised and nothing is changed; to
wait instead, use ``session.run_sync()`` or ``async with session.critical_section()``.
While another task is in a *section*, everything that is not deferred is refused,
because no other task may see the inside of a section; beside a read section, reads are
done.  The lock kinds ``"detect"`` and ``"confine"`` do not let other tasks wait: they
refuse these calls, and awaited operations as well, as they do for threads.
"""

from .registry import async_shared_session
from .session import AsyncSharedSession

__all__ = ["AsyncSharedSession", "async_shared_session"]
