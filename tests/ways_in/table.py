"""The one table of all ways into a session: what the matrix of tests goes by.

A row names a way, says what it does to the session (as in ``operations/tables.py``) and
how to go that way.  ``prepare`` gets hold of what is needed beforehand, in the thread
that owns the world; ``go`` is what the other thread does with it.
"""

from __future__ import annotations

import copy
import gc
import json
import pickle
from dataclasses import dataclass, field
from typing import Any, Callable

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from sqlalchemy.orm import attributes as sa_attributes
from sqlalchemy.orm.loading import merge_frozen_result

from sharedsession import SharedSessionError, critical_section, merge_into, read_section
from sharedsession.guard.access import CHANGE, END, LOAD, READ, WRITE, Access

from ..support.models import Address, Book, Log, Note, Pin, Point, Tag, User, Visit


@dataclass(frozen=True)
class Way:
    name: str
    access: Access
    go: Callable[[Any, Any], Any] = field(repr=False)
    prepare: Callable[[Any], Any] = field(default=lambda world: None, repr=False)
    #: False for what SQLAlchemy refuses if one thread does it all.
    alone: bool = True


WAYS: list[Way] = []


def way(name: str, access: Access, go: Any, prepare: Any = None, **kw: Any) -> None:
    if prepare is None:
        WAYS.append(Way(name, access, lambda world, _: go(world), **kw))
    else:
        WAYS.append(Way(name, access, lambda world, it: go(it), prepare, **kw))


def count() -> Any:
    return sa.select(sa.func.count()).select_from(User)


# -- the session

way("session.add", WRITE, lambda w: w.session.add(User(name="new")))
way("session.add_all", WRITE, lambda w: w.session.add_all([User(name="new")]))
way("session.begin (joins)", CHANGE, lambda w: w.session.begin(), alone=False)
way("session.begin_nested", CHANGE, lambda w: w.session.begin_nested())
way("session.bind_mapper", CHANGE, lambda w: w.session.bind_mapper(User, w.engine))
way(
    "session.bind_table",
    CHANGE,
    lambda w: w.session.bind_table(User.__table__, w.engine),
)
way(
    "session.bulk_insert_mappings",
    WRITE,
    lambda w: w.session.bulk_insert_mappings(User, [{"name": "new"}]),
)
way(
    "session.bulk_save_objects",
    WRITE,
    lambda w: w.session.bulk_save_objects([User(name="new")]),
)
way(
    "session.bulk_update_mappings",
    WRITE,
    lambda w: w.session.bulk_update_mappings(User, [{"id": w.user_id, "name": "z"}]),
)
way("session.close", END, lambda w: w.session.close())
way("session.commit", CHANGE, lambda w: w.session.commit())
way("session.connection", LOAD, lambda w: w.session.connection())
way("session.delete", WRITE, lambda w: w.session.delete(w.spare))
way("session.deleted", READ, lambda w: w.session.deleted)
way("session.dirty", READ, lambda w: w.session.dirty)
way(
    "session.enable_relationship_loading",
    WRITE,
    lambda w: w.session.enable_relationship_loading(Address(user_id=1)),
)
way("session.execute(select)", LOAD, lambda w: w.session.execute(count()))
way("session.execute(text)", LOAD, lambda w: w.session.execute(sa.text("SELECT 1")))
way(
    "session.execute(update)",
    WRITE,
    lambda w: w.session.execute(sa.update(User).values(name="z")),
)
way(
    "session.execute(insert)",
    WRITE,
    lambda w: w.session.execute(sa.insert(User), [{"name": "new", "counter": 0}]),
)
way("session.expire", CHANGE, lambda w: w.session.expire(w.user))
way("session.expire_all", CHANGE, lambda w: w.session.expire_all())
way("session.expunge", CHANGE, lambda w: w.session.expunge(w.spare))
way("session.expunge_all", CHANGE, lambda w: w.session.expunge_all())
way("session.flush", CHANGE, lambda w: w.session.flush())
way("session.get", READ, lambda w: w.session.get(User, w.user_id))
way("session.get of what is not loaded", LOAD, lambda w: w.session.get(User, 99))
way("session.get_bind", READ, lambda w: w.session.get_bind())
way(
    "session.get_nested_transaction", READ, lambda w: w.session.get_nested_transaction()
)
way("session.get_one", LOAD, lambda w: w.session.get_one(User, w.user_id))
way("session.get_transaction", READ, lambda w: w.session.get_transaction())
way("session.in_nested_transaction", READ, lambda w: w.session.in_nested_transaction())
way("session.in_transaction", READ, lambda w: w.session.in_transaction())
way("session.invalidate", END, lambda w: w.session.invalidate())
way("session.is_active", READ, lambda w: w.session.is_active)
way("session.is_modified", LOAD, lambda w: w.session.is_modified(w.user))
way("session.merge", WRITE, lambda w: w.session.merge(User(id=w.user_id, name="z")))
way("session.new", READ, lambda w: w.session.new)
way("session.no_autoflush", CHANGE, lambda w: w.session.no_autoflush.__enter__())
way("session.prepare", CHANGE, lambda w: expect_error(w.session.prepare))
way("session.query().all", LOAD, lambda w: w.session.query(User).all())
way("session.query().count", LOAD, lambda w: w.session.query(User).count())
way("session.query().delete", WRITE, lambda w: w.session.query(Log).delete())
way("session.query().first", LOAD, lambda w: w.session.query(User).first())
way("session.query().get", LOAD, lambda w: w.session.query(User).get(w.user_id))
way("iter(session.query())", LOAD, lambda w: list(w.session.query(User)))
way(
    "session.query().update",
    WRITE,
    lambda w: w.session.query(User).update({"name": "z"}),
)
way("session.query().yield_per", LOAD, lambda w: next(stream_query(w)))
way("session.refresh", CHANGE, lambda w: w.session.refresh(w.user))
way("session.reset", END, lambda w: w.session.reset())
way("session.rollback", END, lambda w: w.session.rollback())
way("session.scalar", LOAD, lambda w: w.session.scalar(count()))
way("session.scalars", LOAD, lambda w: w.session.scalars(sa.select(User)))
way("obj in session", READ, lambda w: w.user in w.session)
way("iter(session)", READ, lambda w: list(w.session))
way("with session (exit)", END, lambda w: w.session.__exit__(None, None, None))
if hasattr(sa_orm.Session, "delete_all"):
    way("session.delete_all", WRITE, lambda w: w.session.delete_all([w.spare]))
    way("session.merge_all", WRITE, lambda w: w.session.merge_all([User(name="new")]))
way("session.stream", LOAD, lambda w: w.session.execute(streamed()).fetchone())
way("close_all_sessions", END, lambda w: close_all(w))
way("critical_section(session)", CHANGE, lambda w: enter(critical_section(w.session)))
way("session.critical_section", CHANGE, lambda w: enter(w.session.critical_section()))
way("session.read_section", LOAD, lambda w: enter(w.session.read_section()))
way("critical_section(obj)", CHANGE, lambda w: enter(critical_section(w.user)))
way("read_section(session)", LOAD, lambda w: enter(read_section(w.session)))
way("merge_into(session)", WRITE, lambda w: merge_into(w.session, User(name="new")))


def close_all(w: Any) -> None:
    gc.collect()  # sessions of other tests are nobody's business here
    sa_orm.close_all_sessions()


def expect_error(function: Any) -> None:
    try:
        function()
    except SharedSessionError:
        raise
    except sa.exc.InvalidRequestError:
        pass


def enter(section: Any) -> None:
    with section:
        pass


def streamed() -> Any:
    return sa.select(User.id).execution_options(yield_per=1)


def stream_query(w: Any) -> Any:
    return iter(w.session.query(User).yield_per(1))


# -- the transaction


def transaction(w: Any) -> Any:
    w.session.connection()
    return w.session.get_transaction()


way("transaction.commit", CHANGE, lambda t: t.commit(), transaction)
way("transaction.rollback", END, lambda t: t.rollback(), transaction)
way("transaction.close", END, lambda t: t.close(), transaction)
way("transaction.connection", LOAD, lambda t: t.connection(None), transaction)
way("transaction.is_active", READ, lambda t: t.is_active, transaction)
way("transaction.prepare", CHANGE, lambda t: expect_error(t.prepare), transaction)
way("with transaction", CHANGE, lambda t: t.__enter__(), transaction)
if hasattr(sa_orm.SessionTransaction, "connections"):
    way("transaction.connections", READ, lambda t: t.connections, transaction)
    way(
        "transaction.bound_connection",
        READ,
        lambda t: t.bound_connection(),
        transaction,
    )


# -- the connection


def connection(w: Any) -> Any:
    return w.session.connection()


def savepoint(w: Any) -> Any:
    return w.session.connection().begin_nested()


SELECT = sa.text("SELECT 1")

way("connection.execute", LOAD, lambda c: c.execute(SELECT), connection)
way("connection.scalar", LOAD, lambda c: c.scalar(SELECT), connection)
way("connection.scalars", LOAD, lambda c: c.scalars(SELECT), connection)
way(
    "connection.execute(insert)",
    WRITE,
    lambda c: c.execute(sa.insert(Log)),
    connection,
)
way(
    "connection.exec_driver_sql",
    LOAD,
    lambda c: c.exec_driver_sql("SELECT 1"),
    connection,
)
way("connection.begin_nested", CHANGE, lambda c: c.begin_nested(), connection)
way("connection.commit", CHANGE, lambda c: c.commit(), connection)
way("connection.rollback", CHANGE, lambda c: c.rollback(), connection)
way("connection.close", CHANGE, lambda c: c.close(), connection)
way("connection.closed", READ, lambda c: c.closed, connection)
way("connection.connection", LOAD, lambda c: c.connection, connection)
way("connection.detach", CHANGE, lambda c: c.detach(), connection)
way("connection.invalidate", CHANGE, lambda c: c.invalidate(), connection)
way("connection.invalidated", READ, lambda c: c.invalidated, connection)
way("connection.in_transaction", READ, lambda c: c.in_transaction(), connection)
way(
    "connection.in_nested_transaction",
    READ,
    lambda c: c.in_nested_transaction(),
    connection,
)
way("connection.get_transaction", READ, lambda c: c.get_transaction(), connection)
way(
    "connection.get_nested_transaction",
    READ,
    lambda c: c.get_nested_transaction(),
    connection,
)
way(
    "connection.get_execution_options",
    READ,
    lambda c: c.get_execution_options(),
    connection,
)
way(
    "connection.execution_options",
    LOAD,
    lambda c: c.execution_options(own=1),
    connection,
)
way(
    "connection.get_isolation_level",
    LOAD,
    lambda c: c.get_isolation_level(),
    connection,
)
way(
    "connection.default_isolation_level",
    READ,
    lambda c: c.default_isolation_level,
    connection,
)
way(
    "with connection (exit)",
    CHANGE,
    lambda c: c.__exit__(None, None, None),
    connection,
)
way("savepoint.commit", CHANGE, lambda s: s.commit(), savepoint)
way("savepoint.rollback", CHANGE, lambda s: s.rollback(), savepoint)
way("savepoint.close", CHANGE, lambda s: s.close(), savepoint)


# -- attributes

way("read a loaded attribute", READ, lambda w: w.user.name)
way("read a synonym", LOAD, lambda w: w.user.alias)
way("read a hybrid", READ, lambda w: w.user.shout)
way("read a column_property", READ, lambda w: w.user.address_count)
way("read a composite", LOAD, lambda w: w.user.point)
way("read a deferred attribute", LOAD, lambda w: w.fresh.bio)
way("read an expired attribute", LOAD, lambda w: w.expired.name)
way("read a lazy many-to-one", LOAD, lambda w: w.fresh_address.user)
way("read a lazy collection", LOAD, lambda w: w.fresh.addresses)
way("read a dynamic handle", LOAD, lambda w: w.user.visits)
way("read a write-only handle", LOAD, lambda w: w.user.logs)
way("read a scalar association proxy", LOAD, lambda w: w.address.city)
way("read an association proxy", LOAD, lambda w: w.user.words)
way("set an attribute", WRITE, lambda w: setattr(w.user, "name", "z"))
way("set a validated attribute", WRITE, lambda w: setattr(w.user, "counter", 2))
way("set a synonym", WRITE, lambda w: setattr(w.user, "alias", "z"))
way("set a composite", WRITE, lambda w: setattr(w.user, "point", Point(7, 7)))
way("set a many-to-one", WRITE, lambda w: setattr(w.address, "user", None))
way("set a collection", WRITE, lambda w: setattr(w.user, "addresses", []))
way("set by backref", WRITE, lambda w: setattr(Address(), "user", w.user))
way("set a mutable value", WRITE, lambda w: setattr(w.user, "data", {}))
way("set an association proxy", WRITE, lambda w: setattr(w.user, "words", []))
way("set a pending object", WRITE, lambda w: setattr(w.pending, "name", "z"))
way("delete an attribute", WRITE, lambda w: delattr(w.user, "name"))
way("delete a many-to-one", WRITE, lambda w: delattr(w.address, "user"))

# -- functions of sqlalchemy.orm

way("set_attribute", WRITE, lambda w: sa_attributes.set_attribute(w.user, "name", "z"))
way("get_attribute", LOAD, lambda w: sa_attributes.get_attribute(w.user, "name"))
way("del_attribute", WRITE, lambda w: sa_attributes.del_attribute(w.user, "name"))
way(
    "set_committed_value",
    CHANGE,
    lambda w: sa_attributes.set_committed_value(w.user, "name", "z"),
)
way(
    "init_collection",
    CHANGE,
    lambda w: sa_attributes.init_collection(w.user, "addresses"),
)
way("flag_modified", WRITE, lambda w: sa_attributes.flag_modified(w.user, "name"))
way("flag_dirty", WRITE, lambda w: sa_attributes.flag_dirty(w.user))
way("get_history", LOAD, lambda w: sa_attributes.get_history(w.user, "name"))
way("make_transient", CHANGE, lambda w: sa_orm.make_transient(w.spare))
way(
    "object_session(obj).add",
    WRITE,
    lambda w: sa_orm.object_session(w.user).add(User(name="new")),
)
way("pickle.dumps(obj)", READ, lambda w: pickle.dumps(w.spare))

# -- inspect(obj)

for _name in (
    *("transient", "pending", "persistent", "deleted", "detached", "was_deleted"),
    *("has_identity", "identity", "identity_key", "unloaded", "unmodified"),
):
    way(
        f"inspect(obj).{_name}",
        READ,
        lambda w, _name=_name: getattr(sa.inspect(w.user), _name),
    )
way(
    "inspect(obj).unmodified_intersection",
    READ,
    lambda w: sa.inspect(w.user).unmodified_intersection(["name"]),
)
way(
    "inspect(obj).get_history",
    LOAD,
    lambda w: sa.inspect(w.user).get_history("name", sa_attributes.PASSIVE_OFF),
)


def attribute_state(w: Any) -> Any:
    return sa.inspect(w.user).attrs.name


way("attrs.x.value", READ, lambda a: a.value, attribute_state)
way("attrs.x.loaded_value", READ, lambda a: a.loaded_value, attribute_state)
way("attrs.x.history", LOAD, lambda a: a.history, attribute_state)
way("attrs.x.load_history", LOAD, lambda a: a.load_history(), attribute_state)


# -- the identity map


def identity_map(w: Any) -> Any:
    return w.session.identity_map, sa.inspect(w.user)


way("identity_map[key]", READ, lambda m: m[0][m[1].key], identity_map)
way("key in identity_map", READ, lambda m: m[1].key in m[0], identity_map)
way("len(identity_map)", READ, lambda m: len(m[0]), identity_map)
way("iter(identity_map)", READ, lambda m: list(m[0]), identity_map)
for _name in ("all_states", "check_modified", "items", "keys", "values"):
    way(
        f"identity_map.{_name}",
        READ,
        lambda m, _name=_name: getattr(m[0], _name)(),
        identity_map,
    )
for _name in ("get", "has_key", "fast_get_state"):
    way(
        f"identity_map.{_name}",
        READ,
        lambda m, _name=_name: getattr(m[0], _name)(m[1].key),
        identity_map,
    )
way(
    "identity_map.contains_state",
    READ,
    lambda m: m[0].contains_state(m[1]),
    identity_map,
)
for _name in ("add", "replace", "discard", "safe_discard"):
    way(
        f"identity_map.{_name}",
        CHANGE,
        lambda m, _name=_name: getattr(m[0], _name)(m[1]),
        identity_map,
    )

# -- collections: every public method of each kind


def methods(kind: str, find: Any, reads: Any, loads: Any, writes: Any) -> None:
    for access, calls in ((READ, reads), (LOAD, loads), (WRITE, writes)):
        for name, call in calls.items():
            way(f"{kind}: {name}", access, call, find)


LIST_READS = {
    "len": len,
    "[0]": lambda c: c[0],
    "[:]": lambda c: c[:],
    "iter": list,
    "reversed": lambda c: list(reversed(c)),
    "bool": bool,
    "copy": lambda c: c.copy(),
}
LIST_LOADS = {
    "in": lambda c: object() in c,
    "==": lambda c: c == [],
    "!=": lambda c: c != [],
    "<": lambda c: [] < c,
    "+": lambda c: c + [],
    "radd": lambda c: [] + c,
    "*": lambda c: c * 2,
    "rmul": lambda c: 2 * c,
    "repr": repr,
    "str": str,
    "count": lambda c: c.count(None),
    "index": lambda c: c.index(c.copy()[0]),
}


def list_writes(new: Any) -> dict[str, Any]:
    return {
        "append": lambda c: c.append(new()),
        "extend": lambda c: c.extend([new()]),
        "insert": lambda c: c.insert(0, new()),
        "pop": lambda c: c.pop(),
        "remove": lambda c: c.remove(c.copy()[0]),
        "clear": lambda c: c.clear(),
        "[0] =": lambda c: c.__setitem__(0, new()),
        "[:] =": lambda c: c.__setitem__(slice(None), [new()]),
        "del [0]": lambda c: c.__delitem__(0),
        "+=": lambda c: c.__iadd__([new()]),
        "reverse": lambda c: c.reverse(),
        "sort": lambda c: c.sort(key=id),
    }


SET_READS = {"len": len, "iter": list, "bool": bool, "copy": lambda c: c.copy()}
SET_LOADS = {
    "in": lambda c: 1 in c,
    "==": lambda c: c == set(),
    "<=": lambda c: c <= set(),
    ">": lambda c: c > set(),
    "|": lambda c: c | set(),
    "r|": lambda c: set() | c,
    "&": lambda c: c & set(),
    "r&": lambda c: set() & c,
    "-": lambda c: c - set(),
    "r-": lambda c: set() - c,
    "^": lambda c: c ^ set(),
    "r^": lambda c: set() ^ c,
    "repr": repr,
    "union": lambda c: c.union([]),
    "intersection": lambda c: c.intersection([]),
    "difference": lambda c: c.difference([]),
    "symmetric_difference": lambda c: c.symmetric_difference([]),
    "isdisjoint": lambda c: c.isdisjoint([]),
    "issubset": lambda c: c.issubset([]),
    "issuperset": lambda c: c.issuperset([]),
}


def set_writes(new: Any) -> dict[str, Any]:
    return {
        "add": lambda c: c.add(new()),
        "discard": lambda c: c.discard(new()),
        "remove": lambda c: c.remove(next(iter(c.copy()))),
        "pop": lambda c: c.pop(),
        "clear": lambda c: c.clear(),
        "update": lambda c: c.update([new()]),
        "|=": lambda c: c.__ior__({new()}),
        "&=": lambda c: c.__iand__({new()}),
        "-=": lambda c: c.__isub__({new()}),
        "^=": lambda c: c.__ixor__({new()}),
        "intersection_update": lambda c: c.intersection_update({new()}),
        "difference_update": lambda c: c.difference_update({new()}),
        "symmetric_difference_update": lambda c: c.symmetric_difference_update({new()}),
    }


def dict_reads(key: Any) -> dict[str, Any]:
    return {
        "len": len,
        "[key]": lambda c: c[key],
        "iter": list,
        "bool": bool,
        "copy": lambda c: c.copy(),
        "get": lambda c: c.get(key),
        "keys": lambda c: c.keys(),
        "values": lambda c: c.values(),
        "items": lambda c: c.items(),
    }


def dict_loads(key: Any) -> dict[str, Any]:
    return {"in": lambda c: key in c, "==": lambda c: c == {}, "repr": repr}


def dict_writes(key: Any, new: Any) -> dict[str, Any]:
    return {
        "[key] =": lambda c: c.__setitem__(key, new()),
        "del [key]": lambda c: c.__delitem__(key),
        "pop": lambda c: c.pop(key),
        "popitem": lambda c: c.popitem(),
        "clear": lambda c: c.clear(),
        "setdefault": lambda c: c.setdefault(key, new()),
        "update": lambda c: c.update({key: new()}),
    }


def only(calls: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: calls[name] for name in names if name in calls}


def without(calls: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: call for name, call in calls.items() if name not in names}


methods(
    "list collection",
    lambda w: w.user.addresses,
    LIST_READS,
    LIST_LOADS,
    list_writes(Address),
)
methods("set collection", lambda w: w.user.tags, SET_READS, SET_LOADS, set_writes(Tag))
methods(
    "dict collection",
    lambda w: w.user.notes,
    without(dict_reads("k")),
    {**dict_loads("k"), "|": lambda c: c | {}, "r|": lambda c: {} | c},
    {
        **dict_writes("k", lambda: Note(key="k")),
        "set": lambda c: c.set(Note(key="q")),
        "remove": lambda c: c.remove(c.copy()["k"]),
    },
)
methods(
    "custom collection",
    lambda w: w.user.books,
    {"iter": list},
    {},
    {
        "own method": lambda c: c.titles(),
        "appender": lambda c: c.put(Book(title="b")),
        "remover": lambda c: c.take(next(iter(c))),
    },
)


methods(
    "collection adapter",
    lambda w: w.user.addresses._sa_adapter,
    {"len": len, "iter": list},
    {},
    {
        "append_with_event": lambda a: a.append_with_event(Address()),
        "remove_with_event": lambda a: a.remove_with_event(next(iter(a))),
        "clear_with_event": lambda a: a.clear_with_event(),
    },
)

# -- mutable values

methods(
    "MutableDict",
    lambda w: w.user.data,
    dict_reads("a"),
    {**dict_loads("a"), "|": lambda c: c | {}},
    {**dict_writes("a", lambda: 2), "|=": lambda c: c.__ior__({"q": 1})},
)
methods(
    "MutableList",
    lambda w: w.user.items,
    LIST_READS,
    LIST_LOADS,
    {**list_writes(lambda: 3), "*=": lambda c: c.__imul__(2)},
)
methods(
    "MutableSet",
    lambda w: w.user.flags,
    SET_READS,
    SET_LOADS,
    set_writes(lambda: "f"),
)
methods(
    "MutableComposite",
    lambda w: w.user.pin,
    {"get": lambda p: p.x},
    {"==": lambda p: p == Pin(0, 0), "repr": repr},
    {"set": lambda p: setattr(p, "x", 9), "changed": lambda p: p.changed()},
)

# -- association proxies: everything loads, the members' attributes may be expired

methods(
    "list association",
    lambda w: w.user.words,
    {},
    {**LIST_READS, **without(LIST_LOADS, "radd", "rmul", "*", "<")},
    without(list_writes(lambda: "new"), "reverse", "sort"),
)
methods(
    "dict association",
    lambda w: w.user.texts,
    {},
    {**dict_reads("k"), **dict_loads("k")},
    dict_writes("k", lambda: "new"),
)

# -- dynamic and write-only handles

methods(
    "dynamic",
    lambda w: w.user.visits,
    {},
    {
        "all": lambda d: d.all(),
        "iter": list,
        "count": lambda d: d.count(),
        "first": lambda d: d.first(),
        "[0]": lambda d: d[0],
        "filter": lambda d: d.filter(Visit.id > 0).all(),
    },
    {
        "append": lambda d: d.append(Visit()),
        "add": lambda d: d.add(Visit()),
        "extend": lambda d: d.extend([Visit()]),
        "add_all": lambda d: d.add_all([Visit()]),
    },
)
way(
    "dynamic: remove",
    WRITE,
    lambda it: it[0].remove(it[1]),
    lambda w: (w.user.visits, w.visit),
)
methods(
    "write-only",
    lambda w: w.user.logs,
    {},
    {},
    {"add": lambda h: h.add(Log()), "add_all": lambda h: h.add_all([Log()])},
)
way(
    "write-only: remove",
    WRITE,
    lambda it: it[0].remove(it[1]),
    lambda w: (w.user.logs, w.log),
)


# -- rows


def made_query(w: Any) -> Any:
    return w.session.query(User)


way("a Query made before: all", LOAD, lambda q: q.all(), made_query)
way("a Query made before: one", LOAD, lambda q: q.limit(1).one(), made_query)
way("a Query made before: scalar", LOAD, lambda q: q.limit(1).scalar(), made_query)
way("a Query made before: [0]", LOAD, lambda q: q[0], made_query)
way(
    "a Query made before: exists",
    LOAD,
    lambda it: it[0].query(it[1].exists()).scalar(),
    lambda w: (w.session, w.session.query(User)),
)


way(
    "merge_frozen_result",
    WRITE,
    lambda it: merge_frozen_result(it[0], sa.select(User), it[1]),
    lambda w: (w.session, w.session.execute(sa.select(User)).freeze()),
)

# -- what Python itself does with a value

way("json.dumps(MutableDict)", READ, json.dumps, lambda w: w.user.data)
way("json.dumps(MutableList)", READ, json.dumps, lambda w: w.user.items)
# The copy has the adapter too, so filling it appends to the object.
way("copy.copy(collection)", WRITE, copy.copy, lambda w: w.user.addresses)
way("copy.deepcopy(MutableDict)", READ, copy.deepcopy, lambda w: w.user.data)
way("tuple(collection)", READ, tuple, lambda w: w.user.addresses)
way("sorted(collection)", READ, lambda c: sorted(c, key=id), lambda w: w.user.tags)
way("{**collection}", READ, lambda c: {**c}, lambda w: w.user.notes)
way("[*collection]", READ, lambda c: [*c], lambda w: w.user.addresses)
way(
    "inspect(connection).get_table_names",
    LOAD,
    lambda c: sa.inspect(c).get_table_names(),
    connection,
)


# -- settings of the session

for _name, _value in (
    *(("autobegin", True), ("autoflush", True), ("expire_on_commit", True)),
    *(("enable_baked_queries", True), ("twophase", False)),
    ("join_transaction_mode", "conditional_savepoint"),
):
    way(
        f"session.{_name} =",
        CHANGE,
        lambda w, _name=_name, _value=_value: setattr(w.session, _name, _value),
    )

# -- a registry

for _name in ("add", "delete", "expunge"):
    way(
        f"registry.{_name}",
        WRITE if _name != "expunge" else CHANGE,
        lambda w, _name=_name: getattr(w.registry, _name)(
            User(name="new") if _name == "add" else w.spare
        ),
    )
way("registry.execute", LOAD, lambda w: w.registry.execute(count()))
way("registry.commit", CHANGE, lambda w: w.registry.commit())
way("registry.in_transaction", READ, lambda w: w.registry.in_transaction())
way("registry.close_all", END, lambda w: w.registry.close_all())
way("registry.new", READ, lambda w: w.registry.new)
way("critical_section(registry)", CHANGE, lambda w: enter(critical_section(w.registry)))
