"""A small schema with every kind of attribute that a mapped class can have."""

from __future__ import annotations

import dataclasses
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.associationproxy import association_proxy
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import (
    MutableComposite,
    MutableDict,
    MutableList,
    MutableSet,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    attribute_keyed_dict,
    column_property,
    composite,
    deferred,
    mapped_column,
    relationship,
    synonym,
    validates,
)
from sqlalchemy.orm.collections import collection


class Base(DeclarativeBase):
    pass


@dataclasses.dataclass
class Point:
    x: int | None
    y: int | None


@dataclasses.dataclass
class Pin(MutableComposite):
    x: int | None
    y: int | None

    def __getstate__(self) -> Any:
        return {"x": self.x, "y": self.y}

    def __setattr__(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)
        self.changed()


class Shelf:
    """A collection class of the application's own."""

    def __init__(self) -> None:
        self.books: list[Any] = []

    @collection.appender
    def put(self, book: Any) -> None:
        self.books.append(book)

    @collection.remover
    def take(self, book: Any) -> None:
        self.books.remove(book)

    @collection.iterator
    def __iter__(self) -> Any:
        return iter(self.books)

    def titles(self) -> list[str]:
        return [book.title for book in self.books]


def make_keyword(word: str) -> Keyword:
    return Keyword(word=word)


def make_note(key: str, text: str) -> Note:
    return Note(key=key, text=text)


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    counter: Mapped[int] = mapped_column(default=0)
    bio: Mapped[str | None] = deferred(mapped_column(sa.String(50)))
    x: Mapped[int | None]
    y: Mapped[int | None]
    u: Mapped[int | None]
    v: Mapped[int | None]
    data: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(sa.JSON))
    items: Mapped[list[Any] | None] = mapped_column(MutableList.as_mutable(sa.JSON))
    flags: Mapped[set[Any] | None] = mapped_column(MutableSet.as_mutable(sa.PickleType))

    point: Mapped[Point] = composite("x", "y")
    pin: Mapped[Pin] = composite("u", "v")
    alias = synonym("name")

    addresses: Mapped[list[Address]] = relationship(back_populates="user")
    tags: Mapped[set[Tag]] = relationship()
    notes: Mapped[dict[str, Note]] = relationship(
        collection_class=attribute_keyed_dict("key"), cascade="all, delete-orphan"
    )
    books: Mapped[Shelf] = relationship("Book", collection_class=Shelf)
    keywords: Mapped[list[Keyword]] = relationship()
    visits = relationship("Visit", lazy="dynamic")
    logs = relationship("Log", lazy="write_only")

    words = association_proxy("keywords", "word", creator=make_keyword)
    texts = association_proxy("notes", "text", creator=make_note)

    @hybrid_property
    def shout(self) -> str:
        return (self.name or "").upper()

    @validates("counter")
    def check_counter(self, key: str, value: int) -> int:
        if value < 0:
            raise ValueError("counter must not be negative")
        return value


class _Child:
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id"))


class Address(_Child, Base):
    __tablename__ = "addresses"
    email: Mapped[str | None] = mapped_column(sa.String(50), unique=True)
    user: Mapped[User | None] = relationship(back_populates="addresses")
    city = association_proxy("user", "name")


class Tag(_Child, Base):
    __tablename__ = "tags"
    label: Mapped[str | None] = mapped_column(sa.String(50))


class Note(_Child, Base):
    __tablename__ = "notes"
    key: Mapped[str | None] = mapped_column(sa.String(50))
    text: Mapped[str | None] = mapped_column(sa.String(50))


class Book(_Child, Base):
    __tablename__ = "books"
    title: Mapped[str | None] = mapped_column(sa.String(50))


class Keyword(_Child, Base):
    __tablename__ = "keywords"
    word: Mapped[str | None] = mapped_column(sa.String(50))


class Visit(_Child, Base):
    __tablename__ = "visits"


class Log(_Child, Base):
    __tablename__ = "logs"


User.address_count = column_property(
    sa.select(sa.func.count(Address.id))
    .where(Address.user_id == User.id)
    .scalar_subquery()
)


def make_user(name: str = "ann") -> User:
    """A user that has something of everything."""
    return User(
        name=name,
        bio="a life",
        x=1,
        y=2,
        u=3,
        v=4,
        data={"a": 1},
        items=[1, 2],
        flags={"f"},
        addresses=[Address(email=f"{name}@{i}") for i in range(3)],
        tags={Tag(label="t")},
        notes={"k": Note(key="k", text="n")},
        keywords=[Keyword(word="w")],
        visits=[Visit()],
    )
