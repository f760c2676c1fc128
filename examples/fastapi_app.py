"""A FastAPI application that finds several things of a request at once.

All of a request shares one session: what is awaited waits for its turn, so nothing has
to be awaited one after the other for the session's sake.  Run it with
``uvicorn --factory examples.fastapi_app:make_app``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from sqlalchemy import ForeignKey, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sharedsession.asyncio import AsyncSharedSession


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Order(Base):
    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))


class Offer(Base):
    __tablename__ = "offers"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def make_app(
    url: str = "sqlite+aiosqlite:///shop.db",
    session_class: type[AsyncSession] = AsyncSharedSession,
) -> FastAPI:
    """Make the application.

    :param session_class: with a plain ``AsyncSession`` a request fails, or worse.
    """
    engine = create_async_engine(url)
    Session = async_sessionmaker(engine, class_=session_class)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with Session.begin() as session:
            if await session.get(User, 1) is None:
                session.add_all([User(id=1, name="ann"), Offer(text="two for one")])
                session.add_all([Order(number=number, user_id=1) for number in (1, 2)])
        yield
        await engine.dispose()

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with Session() as session:
            yield session

    app = FastAPI(lifespan=lifespan)

    @app.get("/orders/{number}")
    async def show(
        number: int, session: AsyncSession = Depends(get_session)
    ) -> dict[str, Any]:
        order, user, offers = await asyncio.gather(
            session.get_one(Order, number),
            session.scalar(select(User).join(Order).where(Order.number == number)),
            session.scalars(select(Offer.text)),
        )
        assert user is not None
        return {"order": order.number, "user": user.name, "offers": [*offers]}

    return app
