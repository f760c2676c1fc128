"""What many threads read of one session, compared with what a plain session gives.

Readers consume results in every way there is, under every loader strategy, beside
writers who move through known states in critical sections:

* constant rows are never written, so every read of them must equal the same read on a
  plain session, made before;
* live rows keep sums and counts, which each ``SELECT`` and each section must see whole;
* the writers note their sections inside of them, and a plain session goes through the
  same history afterwards: tables and objects must come out the same.

``python -m tests.proofs.torture.values_torture --help`` runs it for as long as one
likes.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import os
import random
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from sharedsession import SharedSession, critical_section
from sharedsession.stress.tripwire import tripwire

from ...support.databases import VARIABLES
from ...support.models import (
    Address,
    Base,
    Book,
    Log,
    Pin,
    Point,
    Tag,
    User,
    Visit,
    make_user,
)
from ..histories.rounds import own_database
from .torture import engine_for

Pause = Callable[[], None]

#: Users that writers change.
LIVE = range(1, 5)
#: Constant users of each source of rows: they share objects with no other source, whose
#: options would tell what is in a collection.
PER_SOURCE = 3
#: Constant users of whom somebody keeps the objects.
KEPT = range(900, 903)
#: Constant users with nothing but a name, so many that it takes time to make them.
MANY = range(100, 180)
#: Seconds after its end in which every thread must have ended.
PATIENCE = 60.0


# -- what is in the database at first


def constant_user(number: int) -> User:
    user = make_user(f"user{number}")
    user.id, user.counter = number, 3
    user.addresses.append(Address(email=f"user{number}@x"))
    user.visits.append(Visit())
    user.books.put(Book(title=f"book{number}"))
    user.logs.add(Log())
    return user


def live_user(number: int) -> User:
    data = {"tags": 0, "notes": 0, "visits": 0, "logs": 0}
    pin, point = Pin(0, 0), Point(50, 50)
    return User(
        id=number, name=f"live{number}", data=data, items=[], point=point, pin=pin
    )


def fill(engine: sa.Engine) -> None:
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    constant = [n for source in SOURCES.values() for n in source.numbers] + [*KEPT]
    with Session(engine) as session:
        session.add_all(live_user(number) for number in LIVE)
        session.add_all(constant_user(number) for number in constant)
        session.add_all(User(id=number, name=f"many{number}") for number in MANY)
        session.commit()


# -- values that can be compared, of whatever a read gives


def shape(value: Any) -> Any:
    if isinstance(value, User):
        return shape_of_user(value)
    if isinstance(value, Address):
        return ("address", value.email, value.user_id)
    if isinstance(value, sa.RowMapping):
        return {str(key): shape(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, sa.Row)):
        return [shape(each) for each in value]
    return value


def shape_of_user(user: User) -> Any:
    try:
        emails: Any = sorted(str(address.email) for address in user.addresses)
    except sa.exc.InvalidRequestError as error:
        if "raise" not in str(error):
            raise
        emails = "not to be loaded"
    labels = sorted(str(tag.label) for tag in user.tags)
    return (user.id, user.name, user.bio, user.counter, user.point, emails, labels)


def whole_shape(user: Any) -> Any:
    """All that a user has, through every kind of collection and proxy."""
    session: Any = orm.object_session(user)
    return (
        shape_of_user(user),
        *(user.pin.x, user.pin.y, user.data, list(user.items or ()), user.flags),
        {key: note.text for key, note in user.notes.items()},
        sorted(user.words),
        dict(user.texts),
        sorted(user.books.titles()),
        (user.visits.count(), len(user.visits.all())),
        len(session.scalars(user.logs.select()).all()),
        (user.address_count, user.shout, user.alias),
    )


# -- where rows come from


@dataclass
class Source:
    """A statement with its loader strategy, and the constant users it is used on."""

    name: str
    make: Callable[[], Any]
    options: Callable[[], list[Any]] = list
    unique: bool = False
    streams: bool = True
    #: Whether to read in a section, since an expired object would be loaded otherwise.
    in_section: bool = False
    is_entity: bool = True
    numbers: range = range(0)

    def statement(self, one: bool = False) -> Any:
        numbers = self.numbers[:1] if one else self.numbers
        statement = self.make().where(User.id.in_(numbers)).order_by(User.id)
        return statement.options(*self.options())

    def query(self, session: Session) -> Any:
        query = session.query(User).filter(User.id.in_(self.numbers))
        return query.order_by(User.id).options(*self.options())


def users() -> Any:
    return sa.select(User)


def _sources() -> Iterator[Source]:
    addresses, tags = User.addresses, User.tags
    joined = orm.aliased(Address)
    yield Source("select", users, lambda: [orm.lazyload(addresses)])
    yield Source(
        "joined",
        users,
        lambda: [orm.joinedload(addresses), orm.joinedload(tags)],
        unique=True,
        streams=False,
    )
    yield Source(
        "subquery", users, lambda: [orm.subqueryload(addresses)], streams=False
    )
    yield Source(
        "selectin",
        users,
        lambda: [orm.selectinload(addresses), orm.selectinload(tags)],
    )
    yield Source("immediate", users, lambda: [orm.immediateload(addresses)])
    yield Source("raise", users, lambda: [orm.raiseload(addresses)], in_section=True)
    yield Source(
        "raise on SQL",
        users,
        lambda: [orm.raiseload(addresses, sql_only=True)],
        in_section=True,
    )
    yield Source("noload", users, lambda: [orm.noload(addresses)], in_section=True)
    yield Source(
        "contains_eager",
        lambda: sa.select(User).join(addresses.of_type(joined)),
        lambda: [orm.contains_eager(addresses.of_type(joined))],
        unique=True,
        streams=False,
    )
    yield Source("load_only", users, lambda: [orm.load_only(User.name)])
    yield Source("defer", users, lambda: [orm.defer(User.name), orm.undefer(User.bio)])
    yield Source(
        "criteria",
        users,
        lambda: [
            orm.with_loader_criteria(Address, Address.email.like("%@1")),
            orm.selectinload(addresses),
        ],
        in_section=True,
    )
    yield Source(
        "pairs",
        lambda: sa.select(User, joined)
        .join(addresses.of_type(joined))
        .where(joined.email.like("%@0")),
        is_entity=False,
    )
    yield Source(
        "columns", lambda: sa.select(User.name, User.id, User.data), is_entity=False
    )
    yield Source(
        "core",
        lambda: sa.select(User.__table__.c.id, User.__table__.c.name),
        is_entity=False,
    )
    yield Source(
        "bundle",
        lambda: sa.select(orm.Bundle("both", User.id, User.name)),
        is_entity=False,
    )


SOURCES = {source.name: source for source in _sources()}
for _number, _source in enumerate(SOURCES.values(), 1):
    _source.numbers = range(1000 * _number, 1000 * _number + PER_SOURCE)


# -- ways to consume a result


def by_fetchone(result: Any, pause: Pause) -> list[Any]:
    rows = []
    while (row := result.fetchone()) is not None:
        rows.append(row)
        pause()
    return rows


def by_fetchmany(result: Any, pause: Pause) -> list[Any]:
    rows: list[Any] = []
    while some := result.fetchmany(2):
        rows += some
        pause()
    return rows


def by_next(result: Any, pause: Pause) -> list[Any]:
    rows, end = [], object()
    while (row := next(result, end)) is not end:
        rows.append(row)
        pause()
    return rows


def by_iteration(result: Any, pause: Pause) -> list[Any]:
    rows = []
    for row in result:
        rows.append(row)
        pause()
    return rows


def by_half(result: Any, pause: Pause) -> list[Any]:
    row = result.fetchone()
    pause()
    result.close()
    return [row]


CONSUMERS: dict[str, Callable[[Any, Pause], Any]] = {
    "all": lambda r, pause: r.all(),
    "fetchall": lambda r, pause: r.fetchall(),
    "first": lambda r, pause: r.first(),
    "scalar": lambda r, pause: r.scalar(),
    "scalars": lambda r, pause: r.scalars().all(),
    "first of scalars": lambda r, pause: r.scalars().first(),
    "iterated scalars": lambda r, pause: by_iteration(r.scalars(), pause),
    "mappings": lambda r, pause: r.mappings().all(),
    "iterated mappings": lambda r, pause: by_iteration(r.mappings(), pause),
    "tuples": lambda r, pause: r.tuples().all(),
    "columns": lambda r, pause: r.columns(0).all(),
    "unique": lambda r, pause: r.unique(id_of_first).all(),
    "partitions": lambda r, pause: by_iteration(r.partitions(2), pause),
    "fetchmany": by_fetchmany,
    "fetchone": by_fetchone,
    "next": by_next,
    "iteration": by_iteration,
    "half": by_half,
    "yield_per later": lambda r, pause: by_iteration(r.yield_per(2), pause),
    "freeze": lambda r, pause: thaw_twice(r.freeze(), pause),
}
#: Of these the statement is to give one row only.
CONSUMERS_OF_ONE: dict[str, Callable[[Any, Pause], Any]] = {
    "one": lambda r, pause: r.one(),
    "one_or_none": lambda r, pause: r.one_or_none(),
    "scalar_one": lambda r, pause: r.scalar_one(),
    "one of mappings": lambda r, pause: r.mappings().one(),
}
#: And these are for results that come piece by piece.
STREAMERS = ("all", "iteration", "fetchmany", "partitions", "half", "iterated scalars")


def id_of_first(row: Any) -> Any:
    first = row[0] if isinstance(row, sa.Row) else row
    return getattr(first, "id", first)


def thaw_twice(frozen: Any, pause: Pause) -> Any:
    first = frozen().all()
    pause()
    return [first, frozen().scalars().all()]


# -- reads of constant rows


@dataclass
class Read:
    """A read; ``go`` returns a value, shaped so that it can be compared."""

    name: str
    strategy: str
    go: Callable[[Any, Pause], Any]

    def __str__(self) -> str:
        return f"{self.name!r} with strategy {self.strategy!r}"


def section_of(session: Any, wanted: bool = True) -> Any:
    """A read section of a shared session; for a plain one, none is needed."""
    if wanted and isinstance(session, SharedSession):
        return session.read_section()
    return contextlib.nullcontext()


def consuming(
    source: Source, consume: Any, one: bool, session: Any, pause: Pause, **options: Any
) -> Any:
    with section_of(session, source.in_section):
        statement = source.statement(one).execution_options(**options)
        result = session.execute(statement)
        pause()
        if source.unique:
            result = result.unique()
        return shape(consume(result, pause))


def _of_results(source: Source) -> Iterator[Read]:
    for one, consumers in ((False, CONSUMERS), (True, CONSUMERS_OF_ONE)):
        for name, consume in consumers.items():
            if name == "yield_per later" and not source.streams:
                continue
            go = functools.partial(consuming, source, consume, one)
            yield Read(name, source.name, go)
    for name in STREAMERS if source.streams else ():
        go = functools.partial(consuming, source, CONSUMERS[name], False)
        stream = functools.partial(go, yield_per=2)
        yield Read(f"{name} of a stream", source.name, stream)


QUERIES: dict[str, Callable[[Any], Any]] = {
    "query all": lambda query: query.all(),
    "query first": lambda query: query.limit(1).all(),
    "query iteration": lambda query: list(query),
    "query count": lambda query: query.count(),
    "query populated": lambda query: query.populate_existing().all()[0],
}


def querying(source: Source, ask: Any, session: Any, pause: Pause) -> Any:
    with section_of(session, source.in_section):
        return shape(ask(source.query(session)))


def counting(session: Any, pause: Pause) -> Any:
    kept = User.id.in_(KEPT)
    counts = []
    for _ in range(3):
        counts.append(session.query(User).filter(kept).count())
        pause()
        counts.append(session.scalar(sa.select(sa.func.count(User.id)).where(kept)))
    return counts


def of_many(consume: Any, session: Any, pause: Pause) -> Any:
    """Which objects come, of a result that is fetched while others come in."""
    statement = sa.select(User).where(User.id.in_(MANY)).order_by(User.id)
    result = session.execute(statement)
    pause()
    return identities(consume(result, lambda: None))


def identities(value: Any) -> Any:
    """Of objects; that asks nothing of the database, even if they are expired."""
    if isinstance(value, User):
        return sa.inspect(value).identity
    if isinstance(value, sa.RowMapping):
        return [identities(each) for each in value.values()]
    if isinstance(value, (list, tuple, sa.Row)):
        return [identities(each) for each in value]
    return value


#: Of a user whose object is kept, and shared by all who read it.
OF_KEPT: dict[str, Callable[[Any, Any], Any]] = {
    "all of it": lambda session, user: whole_shape(user),
    "columns": lambda session, user: (user.name, user.counter, user.point, user.bio),
    "len of collections": lambda session, user: (
        *(len(user.addresses), len(user.tags), len(user.notes), len(user.words)),
    ),
    "in a collection": lambda session, user: (
        *("k" in user.notes, "k" in user.texts, "w" in user.words),
        user.addresses[0] in user.addresses,
    ),
    "back reference": lambda session, user: [a.city for a in user.addresses],
    "in the session": lambda session, user: (
        *(user in session, user in list(session)),
        *(user in session.new, user in session.deleted, len(list(session)) > 0),
    ),
    "get": lambda session, user: (
        *(session.get(User, user.id) is user, session.get(User, -1)),
        session.get_one(User, user.id) is user,
    ),
    "get with options": lambda session, user: shape(
        session.get(User, user.id, options=[orm.selectinload(User.addresses)])
    ),
    "get, populated": lambda session, user: shape(
        session.get(User, user.id, populate_existing=True)
    ),
    "expire and read": lambda session, user: (session.expire(user), shape(user)),
    "refresh": lambda session, user: (session.refresh(user), shape(user)),
    "dynamic": lambda session, user: (
        *(user.visits.count(), len(user.visits.all()), len(list(user.visits))),
        user.visits.first().user_id == user.id,
    ),
    "write-only": lambda session, user: (
        len(session.scalars(user.logs.select()).all()),
    ),
    "association proxies": lambda session, user: (
        *(list(user.words), dict(user.texts), user.texts.get("k"), len(user.words)),
    ),
    "mutable values": lambda session, user: (
        *(dict(user.data), list(user.items), set(user.flags), user.pin.x),
    ),
    "identity of objects": lambda session, user: (
        session.scalars(sa.select(User).where(User.id == user.id)).one() is user
    ),
}


def of_kept(number: int, ask: Any, session: Any, pause: Pause) -> Any:
    return ask(session, session.get_one(User, number))


def constant_reads() -> list[Read]:
    reads = [Read("count in a loop", "none", counting)]
    for source in SOURCES.values():
        reads += _of_results(source)
        for name, ask in QUERIES.items() if source.is_entity else ():
            if name != "query count" and source.name == "contains_eager":
                continue  # a query of users does not join
            if name == "query populated" and source.in_section:
                continue  # it overwrites what readers have
            reads.append(
                Read(name, source.name, functools.partial(querying, source, ask))
            )
    for name, consume in CONSUMERS.items():
        go = functools.partial(of_many, consume)
        reads.append(Read(f"{name} of many", "identities", go))
    for number in KEPT:
        for name, look in OF_KEPT.items():
            go = functools.partial(of_kept, number, look)
            reads.append(Read(name, "attributes", go))
    return reads


#: Of each kind of database; constant rows are the same in every run.
_expected: dict[str, list[Any]] = {}


def expected_on(engine: sa.Engine) -> list[Any]:
    """What a plain session gives for each; each read on a session of its own."""
    name = engine.dialect.name
    if name not in _expected:
        _expected[name] = list(_plainly_read(engine))
    return _expected[name]


def _plainly_read(engine: sa.Engine) -> Iterator[Any]:
    for read in constant_reads():
        with Session(engine) as session:
            yield read.go(session, lambda: None)


# -- reads of live rows: each returns what is wrong, if anything


def wrong_rows(rows: list[Any]) -> Any:
    """Rows of one SELECT: id, x, y, u, counter, and the number of addresses."""
    if [row[0] for row in rows] != list(LIVE):
        return rows
    sums = {row[1] + row[2] for row in rows}
    versions = {row[3] for row in rows}
    counted = all(row[4] == row[5] for row in rows)
    return None if sums == {100} and len(versions) == 1 and counted else rows


def live_columns(**options: Any) -> Any:
    number: Any = getattr(User, "address_count")
    columns = (User.id, User.x, User.y, User.u, User.counter, number)
    statement = sa.select(*columns).where(User.id.in_(LIVE)).order_by(User.id)
    return statement.execution_options(**options)


def live_core() -> Any:
    users, addresses = User.__table__, Address.__table__
    count = sa.select(sa.func.count()).where(addresses.c.user_id == users.c.id)
    columns = (*(users.c[name] for name in ("id", "x", "y", "u", "counter")),)
    statement = sa.select(*columns, count.scalar_subquery())
    return statement.where(users.c.id.in_(LIVE)).order_by(users.c.id)


def live_objects() -> Any:
    return sa.select(User).where(User.id.in_(LIVE)).order_by(User.id)


def wrong_users(users: list[User]) -> Any:
    """What a section must see whole: columns, collections, proxies and handles."""
    found = [(u.id, u.x, u.y, u.u, u.counter, len(u.addresses)) for u in users]
    wrong = wrong_rows(found)
    for user in () if wrong else users:
        wrong = wrong or wrong_collections(user)
    return wrong


def wrong_collections(user: Any) -> Any:
    session: Any = orm.object_session(user)
    lengths = {
        "tags": len(user.tags),
        "notes": len(user.texts),
        "visits": user.visits.count(),
        "logs": len(session.scalars(user.logs.select()).all()),
    }
    said = dict(user.data), list(user.items), user.point
    words = list(user.words)
    point = user.point.x + user.point.y
    if said[0] == lengths and sorted(said[1]) == sorted(words) and point == 100:
        return None
    return (user.id, said, lengths, words)


def by_section(session: Any, pause: Pause, options: Any = ()) -> Any:
    with session.read_section():
        users = session.scalars(live_objects().options(*options)).unique().all()
        pause()
        return wrong_users(users)


def by_critical_section(session: Any, pause: Pause) -> Any:
    with session.critical_section():
        users = [session.get_one(User, number) for number in LIVE]
        return wrong_users(users)


def by_fresh_section(session: Any, pause: Pause, options: Any = ()) -> Any:
    """Loaded anew in a section of its own, with a strategy."""
    with session.critical_section():
        session.flush()
        fresh = live_objects().execution_options(populate_existing=True)
        users = session.scalars(fresh.options(*options)).unique().all()
        return wrong_users(users)


def by_consumer(consume: Any, make: Any, session: Any, pause: Pause) -> Any:
    result = session.execute(make())
    pause()
    rows = consume(result, pause)
    return wrong_rows([tuple(row) for row in rows])


def by_partitions(session: Any, pause: Pause) -> Any:
    parts = session.execute(live_columns(yield_per=3)).partitions()
    return wrong_rows([tuple(row) for part in parts for row in part])


def by_mappings(session: Any, pause: Pause) -> Any:
    result = session.execute(live_columns()).mappings()
    pause()
    return wrong_rows([tuple(row.values()) for row in result])


def by_point(session: Any, pause: Pause) -> Any:
    """A composite is one operation, of which no half may be seen."""
    points = [session.get_one(User, number).point for number in LIVE]
    return None if all(p.x + p.y == 100 for p in points) else points


def by_objects(session: Any, pause: Pause, options: Any = ()) -> Any:
    """Which objects there are, and that each is the one of the session."""
    result = session.execute(live_objects().options(*options)).unique()
    pause()
    users = result.scalars().all()
    kept = [session.get_one(User, number) for number in LIVE]
    same = len(users) == len(kept) and all(a is b for a, b in zip(users, kept))
    return None if same else users


def by_walks(session: Any, pause: Pause) -> Any:
    """Collections that writers change meanwhile: a walk is of one moment."""
    for number in LIVE:
        user: Any = session.get_one(User, number)
        emails = [address.email for address in list(user.addresses)]
        texts = {key: note.text for key, note in list(user.notes.items())}
        labels = [tag.label for tag in user.tags]
        found = [emails, list(texts.values()), labels, list(user.words)]
        if any(None in each or len({*each}) != len(each) for each in found):
            return found
    return None


STRATEGIES: dict[str, Callable[[], list[Any]]] = {
    "select": lambda: [orm.lazyload(User.addresses)],
    "joined": lambda: [orm.joinedload(User.addresses), orm.joinedload(User.tags)],
    "subquery": lambda: [orm.subqueryload(User.addresses), orm.subqueryload(User.tags)],
    "selectin": lambda: [orm.selectinload(User.addresses), orm.selectinload(User.tags)],
    "immediate": lambda: [orm.immediateload(User.addresses)],
}


def live_reads() -> list[Read]:
    reads = [
        Read("mappings of live rows", "columns", by_mappings),
        Read("partitions of a live stream", "columns", by_partitions),
        Read("composites of live users", "attributes", by_point),
        Read("walks of live collections", "attributes", by_walks),
        Read("critical section", "attributes", by_critical_section),
    ]
    several = ("all", "fetchall", "tuples", "fetchmany", "fetchone", "next")
    for name in (*several, "iteration"):
        for make in (live_columns, live_core):
            go = functools.partial(by_consumer, CONSUMERS[name], make)
            reads.append(Read(f"{name} of live rows", make.__name__, go))
        stream = functools.partial(live_columns, yield_per=2)
        go = functools.partial(by_consumer, CONSUMERS[name], stream)
        reads.append(Read(f"{name} of a live stream", "columns", go))
    for name, options in STRATEGIES.items():
        for by in (by_section, by_fresh_section, by_objects):
            go = functools.partial(with_options, by, options)
            reads.append(Read(f"{by.__name__} of live users", name, go))
    return reads


def with_options(by: Any, options: Any, session: Any, pause: Pause) -> Any:
    return by(session, pause, options())


# -- writers: what they do is noted, and can be done again


def move(session: Any, user: Any, amount: int) -> None:
    user.point = Point(user.point.x - amount, user.point.y + amount)


def move_in_two_steps(session: Any, user: Any, amount: int) -> None:
    x = user.x - amount
    user.point = Point(x, user.y)
    session.flush()
    user.point = Point(x, 100 - x)
    session.flush()  # a SELECT of Core does not, and would find the first step alone


def add_address(session: Any, user: Any, amount: int) -> None:
    user.addresses.append(Address(email=f"{user.name}#{amount}"))
    user.counter += 1


def remove_address(session: Any, user: Any, amount: int) -> None:
    if user.addresses:
        session.flush()
        address = min(user.addresses, key=lambda each: each.email)
        user.addresses.remove(address)
        session.delete(address)
        user.counter -= 1


def add_tag(session: Any, user: Any, amount: int) -> None:
    user.tags.add(Tag(label=f"tag{amount}"))
    user.data["tags"] = len(user.tags)


def remove_tag(session: Any, user: Any, amount: int) -> None:
    if user.tags:
        session.flush()
        tag = min(user.tags, key=lambda each: each.label)
        user.tags.remove(tag)
        session.delete(tag)
        user.data["tags"] = len(user.tags)


def put_note(session: Any, user: Any, amount: int) -> None:
    user.texts[f"key{amount % 9}"] = f"text{amount}"
    user.data["notes"] = len(user.notes)


def remove_note(session: Any, user: Any, amount: int) -> None:
    if user.notes:
        session.flush()
        del user.notes[min(user.notes)]
        user.data["notes"] = len(user.notes)


def add_word(session: Any, user: Any, amount: int) -> None:
    user.words.append(f"word{amount}")
    user.items.append(f"word{amount}")


def visit(session: Any, user: Any, amount: int) -> None:
    user.visits.append(Visit())
    user.data["visits"] += 1


def log(session: Any, user: Any, amount: int) -> None:
    user.logs.add(Log())
    user.data["logs"] += 1


def grow(session: Any, user: Any, amount: int) -> None:
    """All live users have one version, which only grows."""
    for number in LIVE:
        session.get_one(User, number).u += amount


def grow_at_once(session: Any, user: Any, amount: int) -> None:
    grown = sa.update(User).where(User.id.in_(LIVE)).values(u=User.u + amount)
    session.execute(grown)


class _Undone(Exception):
    pass


def undo(session: Any, user: Any, amount: int) -> None:
    """Nobody may see what is undone before the section ends."""
    with contextlib.suppress(_Undone), session.begin_nested():
        user.point = Point(user.x + amount, user.y)
        user.counter += 7
        session.flush()
        raise _Undone


def commit(session: Any, user: Any, amount: int) -> None:
    session.commit()


Operation = Callable[[Any, Any, int], None]

OPERATIONS: list[Operation] = [
    *(move, move_in_two_steps, add_address, remove_address, add_tag, remove_tag),
    *(put_note, remove_note, add_word, visit, log, grow, grow_at_once, undo, commit),
]


@dataclass
class Section:
    """What a writer did in one critical section."""

    operation: Operation
    number: int
    amount: int
    commits: bool

    def go(self, session: Any) -> None:
        user = session.get_one(User, self.number)
        self.operation(session, user, self.amount)


# -- the threads


@dataclass
class Report:
    """What came of a run; all but the first two should be none."""

    compared: int = 0
    sections: int = 0
    differences: int = 0
    overlaps: int = 0
    stuck: int = 0
    #: What the first of the differences were.
    found: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.differences or self.overlaps or self.stuck)

    def __str__(self) -> str:
        said = f"{self.compared} results compared, {self.sections} sections"
        said += f", {self.differences} differences, {self.overlaps} overlaps"
        said += f", {self.stuck} stuck"
        return f"{said}\n    first: {self.found[0]}" if self.found else said


@dataclass
class Run:
    """One shared session, its readers and its writers."""

    engine: sa.Engine
    lock: str
    seed: int
    readers: int = 6
    writers: int = 2
    report: Report = field(default_factory=Report)
    history: list[Section] = field(default_factory=list)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def go(self, seconds: float) -> Report:
        """Run it; the engine must not have connected yet."""
        wire = tripwire(self.engine)
        fill(self.engine)
        self.constant = constant_reads()
        self.expected = expected_on(self.engine)
        self.places = range(len(self.constant))
        self.many = [
            n for n in self.places if self.constant[n].strategy == "identities"
        ]
        self.live = live_reads()
        self.session = SharedSession(self.engine, lock=self.lock, lock_timeout=60)
        self.kept = [self.session.get_one(User, n) for n in (*KEPT, *LIVE)]
        self.run_threads(seconds)
        self.report.overlaps = wire.overlaps
        if not self.report.stuck:
            self.attempt("the end", self.compare_with_a_plain_history)
        return self.report

    def run_threads(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        roles = [self.read] * self.readers + [self.write] * self.writers
        threads = [
            threading.Thread(target=role, args=(number,), daemon=True)
            for number, role in enumerate(roles)
        ]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(max(0, self.deadline + PATIENCE - time.monotonic()))
        finally:
            sys.setswitchinterval(interval)
        self.report.stuck = sum(thread.is_alive() for thread in threads)
        if self.report.stuck:
            faulthandler.dump_traceback(file=2, all_threads=True)

    def differ(self, what: str) -> None:
        said = f"seed {self.seed}, lock {self.lock}: {what}"
        with self.mutex:
            self.report.differences += 1
            if len(self.report.found) < 50:
                self.report.found.append(said[:900])

    def attempt(self, what: str, go: Callable[[], Any]) -> None:
        """Do it; an error of any kind is a difference."""
        try:
            go()
        except BaseException as error:
            self.differ(f"{what}: {type(error).__name__}: {error}")

    # -- readers

    def read(self, me: int) -> None:
        chance = random.Random(f"{self.seed} {me}")

        def pause() -> None:
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.002)

        versions = dict.fromkeys(LIVE, 0)
        while time.monotonic() < self.deadline:
            kind = chance.random()
            if kind < 0.6:
                place = chance.choice(self.many if kind < 0.2 else self.places)
                read = self.constant[place]
                check = functools.partial(self.check_constant, place, pause)
            elif kind < 0.95:
                read = chance.choice(self.live)
                check = functools.partial(self.check_live, read, pause)
            else:
                read = Read("version", "attributes", lambda session, pause: None)
                check = functools.partial(self.check_version, versions, chance)
            self.attempt(f"reader {me}, {read}", check)
            with self.mutex:
                self.report.compared += 1

    def check_constant(self, place: int, pause: Pause) -> None:
        read, expected = self.constant[place], self.expected[place]
        found = read.go(self.session, pause)
        if found != expected:
            self.differ(f"{read}: {found!r} and not {expected!r}")

    def check_live(self, read: Read, pause: Pause) -> None:
        wrong = read.go(self.session, pause)
        if wrong is not None:
            self.differ(f"{read}: {wrong!r}")

    def check_version(self, versions: dict[int, int], chance: Any) -> None:
        number = chance.choice(LIVE)
        found = self.session.get_one(User, number).u or 0
        if found < versions[number]:
            self.differ(f"version of {number} went back to {found}")
        versions[number] = found

    # -- writers

    def write(self, me: int) -> None:
        chance = random.Random(f"{self.seed} {me}")
        for number in range(1, 1_000_000):
            if time.monotonic() >= self.deadline:
                return
            operation = chance.choice(OPERATIONS)
            section = Section(
                operation,
                number=chance.choice(LIVE),
                amount=number * 10 + me,  # no other section has it
                commits=operation is not commit and chance.random() < 0.3,
            )
            go = functools.partial(self.write_section, section)
            self.attempt(f"writer {me}, {operation.__name__}", go)
            time.sleep(chance.random() * 0.004)

    def write_section(self, section: Section) -> None:
        with contextlib.ExitStack() as stack:
            if section.commits:
                stack.enter_context(
                    critical_section(self.session, transaction="commit")
                )
            else:
                stack.enter_context(self.session.critical_section())
            self.history.append(section)
            self.report.sections += 1
            section.go(self.session)

    # -- the same history on a plain session

    def compare_with_a_plain_history(self) -> None:
        numbers = [*LIVE, *KEPT]
        objects = whole_shapes(self.session, numbers)
        self.session.commit()
        again = whole_shapes(self.session, numbers)
        self.session.close()
        tables = contents(self.engine)
        fill(self.engine)
        with Session(self.engine) as plain:
            self.replay(plain)
            expected = whole_shapes(plain, numbers)
            plain.commit()
        expected_tables = contents(self.engine)
        self.compare("objects before the last commit", objects, expected)
        self.compare("objects after it", again, expected)
        for name, rows in expected_tables.items():
            self.compare(f"table {name}", tables[name], rows)

    def replay(self, plain: Session) -> None:
        kept = [plain.get_one(User, number) for number in LIVE]
        for section in self.history:
            section.go(plain)
            if section.commits:
                plain.commit()
        del kept

    def compare(self, what: str, found: list[Any], expected: list[Any]) -> None:
        self.report.compared += 1
        if found != expected:
            pairs = [(a, b) for a, b in zip(found, expected) if a != b]
            lengths = len(found), len(expected)
            self.differ(f"{what} after the same history: {lengths}, {pairs[:2]!r}")


def whole_shapes(session: Any, numbers: list[int]) -> list[Any]:
    return [whole_shape(session.get_one(User, number)) for number in numbers]


def contents(engine: sa.Engine) -> dict[str, list[Any]]:
    """All rows, but for the ids of children: who flushes first gets the next one."""
    found = {}
    with engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            named = [c for c in table.c if c.name != "id" or table is User.__table__]
            rows = [list(row) for row in connection.execute(sa.select(*named))]
            found[table.name] = sorted(rows, key=repr)
    return found


# -- databases

DATABASES = ("sqlite", "memory", "postgresql", "mariadb")


@contextlib.contextmanager
def fresh_engine(name: str, url: str) -> Iterator[sa.Engine]:
    """An engine for a database of this run's own; *url* names the server."""
    with contextlib.ExitStack() as stack:
        if name == "memory":
            engine = engine_in_memory()
        elif name == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            engine = engine_for(f"sqlite:///{folder}/values.db")
        else:
            engine = engine_for(stack.enter_context(own_database(url)))
        stack.callback(engine.dispose)
        yield engine


def engine_in_memory() -> sa.Engine:
    from ...conftest import leave_transactions_to_sqlalchemy

    engine = sa.create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    leave_transactions_to_sqlalchemy(engine)
    return engine


def values_torture(
    name: str, url: str, lock: str, *, seed: int, seconds: float, **numbers: Any
) -> Report:
    with fresh_engine(name, url) as engine:
        return Run(engine, lock, seed, **numbers).go(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--databases", nargs="+", choices=DATABASES, help="default: all"
    )
    parser.add_argument("--kinds", nargs="+", default=["rlock", "rw"])
    parser.add_argument("--readers", type=int, default=6)
    parser.add_argument("--writers", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    clean = True
    for name in options.databases or DATABASES:
        url = os.environ.get(VARIABLES.get(name, ""), "")
        if name in VARIABLES and not url:
            print(f"{name}: skipped, for {VARIABLES[name]} names none", flush=True)
            clean = clean and options.databases is None
            continue
        for lock in options.kinds:
            report = values_torture(
                name,
                url,
                lock,
                seed=options.seed,
                seconds=options.seconds,
                readers=options.readers,
                writers=options.writers,
            )
            clean = clean and report.is_clean
            print(f"{name}, lock {lock}: {report}", flush=True)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
