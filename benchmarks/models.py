"""The objects that are measured, and the sessions they are attached to."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from sqlalchemy.pool import StaticPool

from sharedsession import SharedSession

Section = Callable[[], contextlib.AbstractContextManager[object]]

#: The rows of ``User``, and the members of the first one's collection.
USERS = 500
ITEMS = 100

#: Who takes part.  The first two never meet a shared session, see ``sides``.
PLAIN = "plain"
HAND = "one RLock"
BESIDE = "plain beside"
RLOCK = "rlock"
RW = "rw"
DETECT = "detect"
PER_THREAD = "per thread"

WITHOUT = (PLAIN, HAND)
GUARDED = (RLOCK, RW, DETECT)


class Base(sa_orm.DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"

    id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)
    name: sa_orm.Mapped[str]
    points: sa_orm.Mapped[int] = sa_orm.mapped_column(default=0)
    items: sa_orm.Mapped[list[Item]] = sa_orm.relationship()


class Item(Base):
    __tablename__ = "item"

    id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)
    user_id: sa_orm.Mapped[int] = sa_orm.mapped_column(sa.ForeignKey(User.id))


def make_engine() -> sa.Engine:
    """SQLite in memory, on one connection for all threads, with an SQL ``wait()``."""
    engine = sa.create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )

    @sa.event.listens_for(engine, "connect")
    def add_wait(connection: Any, record: object) -> None:
        connection.create_function("wait", 1, time.sleep)  # lets other threads run

    Base.metadata.create_all(engine)
    with sa_orm.Session(engine) as session, session.begin():
        session.add_all(User(name=f"user {number}") for number in range(USERS))
        session.flush()
        session.add_all(Item(user_id=1) for _ in range(ITEMS))
    return engine


def make_session(contestant: str) -> sa_orm.Session:
    """A session of the contestant's kind, on a database of its own."""
    if contestant in GUARDED:
        return SharedSession(make_engine(), lock=contestant)
    return sa_orm.Session(make_engine())


def sections(session: sa_orm.Session) -> tuple[Section, Section]:
    """How to make a critical section, and a section that only reads."""
    if isinstance(session, SharedSession):
        return session.critical_section, session.read_section
    lock = threading.RLock()
    return lambda: lock, lambda: lock


def use_library() -> None:
    """Make what a process has that shares one session and uses it in two threads."""
    with SharedSession(make_engine(), lock=RW) as session:
        user = session.get_one(User, 1)
        thread = threading.Thread(target=lambda: user.items)
        thread.start()
        thread.join()
