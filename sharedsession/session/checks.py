"""Refusals for sessions that threads share, because they could not work.

They refuse engines whose connections work only in the thread that made them, and
sessions that are behind an AsyncSession.
"""

from __future__ import annotations

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from sqlalchemy.pool import SingletonThreadPool

from ..errors import SharedSessionError
from ..guard.owner import Owner
from ..internals import orm


def check_second_thread(session: sa_orm.Session, second: Owner) -> None:
    """Raise if *second* could not use the engines that *session* is bound to."""
    for bind in orm.binds_of(session):
        check_engine(bind.engine, second)


def check_is_for_threads(session: sa_orm.Session) -> None:
    """Raise if *session* is behind an AsyncSession: its guard is for threads only."""
    if orm.async_session_of(session) is not None:
        raise SharedSessionError(
            f"{session!r} is shared by threads, and it is behind an AsyncSession, "
            "whose tasks are all in one thread, so nothing would keep them apart. Make "
            "an AsyncSharedSession in the place of the AsyncSession; it takes the same "
            "sync_session_class."
        )


def check_engine(engine: sa.Engine, second: Owner) -> None:
    if isinstance(engine.pool, SingletonThreadPool):
        raise SharedSessionError(
            f"{second.name} is not the only one to use this session, and its engine "
            f"{engine!r} has a SingletonThreadPool, which gives each thread a database "
            "connection of its own. Make the engine with poolclass=StaticPool (one "
            "connection, also for SQLite in memory) or QueuePool, and for SQLite "
            "connect_args={'check_same_thread': False}."
        )
    if orm.sqlite_checks_thread(engine):
        raise SharedSessionError(
            f"{second.name} is not the only one to use this session, and SQLite "
            f"connections of its engine {engine!r} refuse every thread but the one "
            "that made them. Make the engine with "
            "connect_args={'check_same_thread': False}, and with poolclass=StaticPool "
            "or QueuePool."
        )
