"""The package without greenlet: all of it but ``sharedsession.asyncio``."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["greenlet"] = None  # as if it were not installed
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sharedsession import SharedSession, critical_section, guard_of
class Base(DeclarativeBase): ...
class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
engine = sa.create_engine("sqlite://")
Base.metadata.create_all(engine)
with SharedSession(engine) as session:
    with critical_section(session, transaction="commit"):
        session.add(User())
    assert guard_of(session) is session.guard
def error_of(use):
    try:
        use()
    except Exception as error:
        return type(error)
def ours():
    import asyncio
    from sharedsession.asyncio import AsyncSharedSession
    asyncio.run(AsyncSharedSession().connection())
def theirs():
    import asyncio
    from sqlalchemy.ext.asyncio import AsyncSession
    asyncio.run(AsyncSession().connection())
errors = error_of(theirs), error_of(ours)
assert errors[0] is errors[1] is not None, errors
"""


def test_without_greenlet() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
