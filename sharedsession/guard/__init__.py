"""The guard of a session: which thread or task may be inside.

It knows nothing of SQLAlchemy, except that a task waits in one of SQLAlchemy's
greenlets.  Read ``turn`` and the head of ``monitor`` first, then ``guard``.
"""
