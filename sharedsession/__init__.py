"""Share one SQLAlchemy Session, and its objects, between threads safely."""

from .session import SharedSession, SharedSessionMixin, share
