"""The errors of the library.

Every one is a :class:`SharedSessionError`, which is one of SQLAlchemy's
``InvalidRequestError``: code that catches SQLAlchemy's errors catches these.
"""

from __future__ import annotations

import sqlalchemy.exc as sa_exc


class SharedSessionError(sa_exc.InvalidRequestError):
    """A shared session, or an object of one, was used in a way it refuses."""


class LockTimeout(SharedSessionError, TimeoutError):
    """The guard could not be had in the time that was given."""


class ConcurrentAccessError(SharedSessionError):
    """A thread met another one in a session that does not let it wait."""


class DeadlockError(SharedSessionError):
    """Waiting would never end: the holder waits for something of the asker's."""


class UpgradeError(SharedSessionError):
    """A write was asked for inside a read section."""


class WorkLostError(SharedSessionError, sa_exc.PendingRollbackError):
    """Another thread threw away work that this thread had in the transaction.

    Raised once, at this thread's next operation; its own ``rollback()`` or
    ``close()`` clears it without raising.
    """


class ForkedSessionError(SharedSessionError):
    """The session belongs to the parent of this forked process."""
