"""Share one SQLAlchemy Session, and its objects, between threads safely."""

from .config import sessionmaker_from_config
from .decorators import critical_section, read_section
from .errors import (
    ConcurrentAccessError,
    DeadlockError,
    ForkedSessionError,
    LockTimeout,
    SharedSessionError,
    UpgradeError,
    WorkLostError,
)
from .guard.access import GuardStats
from .guard.guard import Guard
from .guard.party import one_owner
from .merge import merge_into
from .registry import shared_session
from .resolve import guard_of
from .session.session import SharedSession, SharedSessionMixin, share
from .version import __version__

__all__ = [
    "__version__",
    "ConcurrentAccessError",
    "DeadlockError",
    "ForkedSessionError",
    "Guard",
    "GuardStats",
    "LockTimeout",
    "SharedSession",
    "SharedSessionError",
    "SharedSessionMixin",
    "UpgradeError",
    "WorkLostError",
    "critical_section",
    "guard_of",
    "merge_into",
    "one_owner",
    "read_section",
    "sessionmaker_from_config",
    "share",
    "shared_session",
]
