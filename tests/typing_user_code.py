"""What users write, for mypy --strict to check; it is not run."""

from __future__ import annotations

from typing import AsyncIterator, Iterator

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sharedsession import (
    Guard,
    SharedSession,
    critical_section,
    guard_of,
    merge_into,
    read_section,
    sessionmaker_from_config,
    share,
    shared_session,
)
from sharedsession.asyncio import AsyncSharedSession, async_shared_session


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def use(engine: sa.Engine) -> None:
    maker: sessionmaker[SharedSession] = sessionmaker(
        engine, class_=SharedSession, lock="rw", lock_timeout=2.0
    )
    with maker() as session:
        user: User | None = session.get(User, 1)
        names: list[str] = [user.name for user in session.scalars(sa.select(User))]
        guard: Guard | None = session.guard
    with session.critical_section(timeout=1) as same:
        shared: SharedSession = same
    with session.read_section():
        pass
    registry: shared_session[SharedSession] = shared_session(maker)
    one: User = registry.get_one(User, 1)
    copied: User = merge_into(session, one)
    several: list[User] = merge_into(registry, [one, copied])
    plain: Session = share(Session(engine), lock="rlock")
    configured: sessionmaker[SharedSession] = sessionmaker_from_config({})
    guard = guard_of(plain)
    with critical_section(registry, transaction="commit"), read_section(session):
        pass

    @critical_section(registry, timeout=1.0)
    def rename(user: User, name: str) -> str:
        user.name = name
        return name

    @read_section(session)
    def walk() -> Iterator[int]:
        yield 1

    renamed: str = rename(one, "new")
    first: int = next(walk())
    print(user, names, shared, several, configured, guard, renamed, first)


async def use_tasks(engine: AsyncEngine) -> None:
    maker: async_sessionmaker[AsyncSharedSession] = async_sessionmaker(
        engine, class_=AsyncSharedSession, lock="rw", lock_timeout=2.0
    )
    async with maker() as session:
        user: User | None = await session.get(User, 1)
        users = await session.scalars(sa.select(User))
        names: list[str] = [each.name for each in users]
        guard: Guard | None = session.guard
    async with session.critical_section(timeout=1) as same:
        shared: AsyncSharedSession = same
    async with session.read_section(), session.begin_nested():
        pass
    async with maker.begin() as begun:
        one: User = await begun.get_one(User, 1)
    registry: async_shared_session[AsyncSharedSession] = async_shared_session(maker)
    same = registry()
    found: User = await registry.get_one(User, 1)
    length: int = await registry.run_sync(lambda sync: len(sync.new))

    @critical_section(registry, transaction="commit")
    async def rename(user: User, name: str) -> str:
        user.name = name
        return name

    @read_section(session)
    async def walk() -> AsyncIterator[int]:
        yield 1

    async with critical_section(session, transaction="savepoint"):
        renamed: str = await rename(one, "new")
    first: list[int] = [number async for number in walk()]
    print(user, names, guard, shared, found, length, renamed, first)
