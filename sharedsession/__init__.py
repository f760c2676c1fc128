"""Share one SQLAlchemy Session, and its objects, between threads safely."""

from .config import sessionmaker_from_config
from .copying import merge_into
from .errors import (
    ConcurrentAccessError,
    DeadlockError,
    ForkedSessionError,
    LockTimeout,
    SharedSessionError,
    UpgradeError,
    WorkLostError,
)
from .guard import Guard
from .registry import shared_session
from .session import SharedSession, SharedSessionMixin, share
from .targets import guard_of
from .tasks import one_owner
from .terms import GuardStats
from .units import critical_section, read_section
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
