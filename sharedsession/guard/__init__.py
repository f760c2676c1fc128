"""The guard of a session: which thread or task may be inside.

:class:`~.guard.Guard` is the last of six classes, each a subclass of the one before,
and each in a module of its own: ``gate`` (who is inside, for single operations and
optimistic reads), ``occupancy`` (turns, and what keeps and ends them), ``waiting`` (the
queue), ``monitor`` (who enters next), ``ownership`` (which owners may enter at all) and
``guard`` (operations, sections and streams).  A lower class calls a higher one only
through methods that it declares as abstract.

Read ``turn`` and the head of ``monitor`` first.  The package knows nothing of
SQLAlchemy, except that a task waits in one of SQLAlchemy's greenlets.
"""
