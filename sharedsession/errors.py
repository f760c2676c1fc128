"""The errors of the library.

Each error is a :class:`SharedSessionError`, which is a subclass of SQLAlchemy's
``InvalidRequestError``: code that catches SQLAlchemy's errors catches these, too.
"""

from __future__ import annotations

import sqlalchemy.exc as sa_exc


class SharedSessionError(sa_exc.InvalidRequestError):
    """A shared session, or an object of one, was used in a way it refuses."""


class LockTimeout(SharedSessionError, TimeoutError):
    """The guard was not acquired within the timeout."""


class ConcurrentAccessError(SharedSessionError):
    """A thread or task met another one in a session where it must not wait."""


class DeadlockError(SharedSessionError):
    """Waiting would never end: the owner waits for something that the waiter holds."""


class UpgradeError(SharedSessionError):
    """A write was attempted inside a read section."""


class WorkLostError(SharedSessionError, sa_exc.PendingRollbackError):
    """Another thread threw away work that this thread had in the transaction.

    Raised once, at this thread's next operation.  Its own ``rollback()`` or ``close()``
    clears the error without raising it.
    """


class ForkedSessionError(SharedSessionError):
    """The session belongs to the parent of this forked process."""
