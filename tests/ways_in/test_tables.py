"""The tables of operations, and the private API, against the SQLAlchemy in use."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import InstrumentedAttribute, Session, SessionTransaction
from sqlalchemy.pool import QueuePool

import sharedsession
from sharedsession import SharedSession
from sharedsession.internals import cursors, orm, transactions
from sharedsession.operations import tables

from ..support.models import User, make_user

DUNDERS = {
    *("__contains__", "__enter__", "__exit__", "__getitem__", "__iter__", "__len__")
}


def public_names(cls: type) -> set[str]:
    names = {name for base in cls.__mro__[:-1] for name in vars(base)}
    annotated = {
        name for base in cls.__mro__[:-1] for name in vars(base).get("__slots__", ())
    }
    everything = {*names, *annotated}
    return {n for n in everything if not n.startswith("_") or n in DUNDERS}


@pytest.mark.parametrize(
    ("cls", "table"),
    [
        (Session, tables.SESSION),
        (SessionTransaction, tables.TRANSACTION),
        (Connection, tables.CONNECTION),
        (orm.WeakInstanceDict, tables.IDENTITY_MAP),
        (orm.InstanceState, tables.STATE),
        (orm.AttributeState, tables.ATTRIBUTE_STATE),
        (orm.CollectionAdapter, tables.COLLECTION_ADAPTER),
        (sa.engine.RootTransaction, tables.CONNECTION_TRANSACTION),
        (sa.engine.NestedTransaction, tables.CONNECTION_TRANSACTION),
        (sa.engine.TwoPhaseTransaction, tables.CONNECTION_TRANSACTION),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_public_name_is_in_the_table(cls: type, table: Any) -> None:
    assert public_names(cls) - set(table) == set()


def test_every_setting_of_a_session_is_in_the_table() -> None:
    """What Session() is given and keeps as it is."""
    kept = {name for name in vars(Session()) if not name.startswith("_")}
    parts = {"identity_map", "binds", "hash_key"}
    assert kept - parts == set(tables.SESSION_SETTINGS)


def test_what_is_guarded_in_all_releases_is_there() -> None:
    for name in tables.SESSION_INTERNAL:
        assert inspect.isfunction(getattr(Session, name))
    for name in tables.ATTRIBUTE_IMPL:
        if not name.startswith("_dispose"):
            assert inspect.isfunction(getattr(orm.AttributeImpl, name))
    for name in tables.CONNECTION:
        if name.startswith("_"):
            assert inspect.isfunction(getattr(Connection, name))


def test_every_method_of_the_builtin_collections_is_classed() -> None:
    """One that is not is taken for a write, which a mere look should not be."""
    writes = {
        *("__delitem__", "__iadd__", "__iand__", "__imul__", "__ior__", "__isub__"),
        *("__ixor__", "__setitem__", "add", "append", "clear", "difference_update"),
        *("discard", "extend", "insert", "intersection_update", "pop", "popitem"),
        *("remove", "reverse", "setdefault", "sort", "symmetric_difference_update"),
        "update",
    }
    for cls in (list, set, dict):
        methods = {name for name in dir(cls) if name not in dir(object)}
        known = tables.LOOKS | tables.COMPARES | writes
        assert methods - known <= {"__class_getitem__", "fromkeys"}


# -- the private API: what the package internals assumes


def test_an_attribute_has_an_implementation_with_a_key() -> None:
    sa.orm.configure_mappers()
    attribute = User.name
    assert isinstance(attribute, InstrumentedAttribute)
    assert isinstance(attribute.impl, orm.AttributeImpl)
    assert attribute.impl.supports_population
    assert orm.has_plain_instrumentation(User)
    assert hasattr(type(User.addresses.impl), "_initialize_collection")


def test_a_state_notes_the_number_of_its_session(engine: sa.Engine) -> None:
    with Session(engine) as session:
        user = make_user()
        state = sa.inspect(user)
        assert state.session_id is None
        session.add(user)
        assert state.session_id == session.hash_key
        assert user.__dict__["_sa_instance_state"] is state
        session.expunge(user)
        assert state.session_id is None
        assert "addresses" in state.manager._collection_impl_keys


def test_loading_puts_states_into_the_map_by_one_method(engine: sa.Engine) -> None:
    with Session(engine) as session:
        assert type(session.identity_map) is orm.WeakInstanceDict
        added = []
        plain = session.identity_map._add_unpresent
        session.identity_map._add_unpresent = lambda *args: (  # type: ignore
            added.append(args),
            plain(*args),
        )
        user = session.get(User, 1)
        assert [state.obj() for state, key in added] == [user]


def test_a_mutable_value_knows_its_parents(engine: sa.Engine) -> None:
    with Session(engine) as session:
        user = session.get_one(User, 1)
        assert isinstance(user.data, MutableDict)
        assert isinstance(user.data, orm.MutableBase)
        assert list(user.data._parents) == [sa.inspect(user)]


def test_a_result_fetches_through_its_strategy(engine: sa.Engine) -> None:
    with Session(engine) as session:
        result: Any = session.execute(sa.text("SELECT 1 UNION SELECT 2"))
        cursors.buffer_rows(result)
        assert cursors.is_in_memory(result) and not result._soft_closed
        assert result.all() == [(1,), (2,)]
        objects: Any = session.execute(sa.select(User))
        assert isinstance(objects, cursors.ChunkedIteratorResult)
        assert objects.raw.context is not None
        assert len([row for chunk in objects.chunks(None) for row in chunk]) == 4


def test_a_query_tells_whether_it_overwrites(engine: sa.Engine) -> None:
    with Session(engine) as session:
        states: list[Any] = []
        sa.event.listen(session, "do_orm_execute", lambda state: states.append(state))
        session.query(User).all()
        session.query(User).populate_existing().all()
        found = [{"_sa_orm_load_options": state.load_options} for state in states]
        assert [orm.query_overwrites(each) for each in found] == [False, True]


def test_a_transaction_tells_its_state(engine: sa.Engine) -> None:
    with Session(engine) as session:
        session.connection()
        transaction = session.get_transaction()
        assert transaction is not None
        assert not transactions.is_broken(transaction)
        assert transactions.boundary(transaction) is transaction
        assert len(transactions.connections_of(transaction)) == 1
        assert orm.binds_of(session)[0] is engine
        session.rollback()
        assert transactions.is_closed(transaction)
        assert not transactions.is_broken(transaction)


def test_sqlite_tells_what_it_connects_with(tmp_path: Any) -> None:
    for given, checks in (({}, False), ({"check_same_thread": True}, True)):
        engine = sa.create_engine(
            f"sqlite:///{tmp_path}/a.db", poolclass=QueuePool, connect_args=given
        )
        assert orm.sqlite_checks_thread(engine) is checks


def test_all_mappers_are_found() -> None:
    assert User.__mapper__ in orm.all_mappers()


#: Private names that are not in ``internals``, and why they cannot be.
PRIVATE_ELSEWHERE = {
    # What a subclass overrides, or asks of its base, stands in the subclass.
    **dict.fromkeys(("_assign_proxied", "_proxied"), "asyncio and the registries"),
    "_identity_lookup": "another class's own way to find is looked for by its name",
    "_parents": "documented for subclasses of MutableBase",
    "_sa_adapter": "the quick looks at collections: a call would double their time",
    "_sa_initiator": "a parameter of the methods of collections",
}


def names_made_in(tree: ast.AST) -> set[str]:
    made = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, (ast.Name, ast.Attribute)):
            if isinstance(node.ctx, ast.Store):
                made.add(node.id if isinstance(node, ast.Name) else node.attr)
    return made


def test_private_names_are_used_in_one_package() -> None:
    """What SQLAlchemy marks as private comes from ``internals`` only.

    The tables of operations name what they guard, and other tests here ask whether it
    is there.
    """
    folder = Path(sharedsession.__file__).parent
    trees = {
        str(path.relative_to(folder)): ast.parse(path.read_text())
        for path in folder.rglob("*.py")
    }
    ours = set().union(*map(names_made_in, trees.values()))
    # Python's; asyncio documents the last one for event loops.
    ours |= {"_current_frames", "_exit", "_getframe", "_replace", "_get_running_loop"}
    for path, tree in trees.items():
        if path.startswith("internals/") or path == "operations/tables.py":
            continue
        for node in ast.walk(tree):
            used = set()
            if isinstance(node, ast.ImportFrom):
                if (node.module or "").startswith("sqlalchemy"):
                    used = {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute):
                used = {node.attr} - ours
            private = {n for n in used if re.match("_[a-z]", n)}
            assert private <= set(PRIVATE_ELSEWHERE), f"{path} uses {private}"


def test_what_subclasses_override_is_there() -> None:
    overridden = {
        sa.orm.Session: (
            *("_after_attach", "_autobegin_t", "_autoflush", "_bulk_save_mappings"),
            *("_connection_for_bind", "_delete_impl", "_execute_internal", "_flush"),
            *("_identity_lookup",),
        ),
        SessionTransaction: ("_begin", "_connection_for_bind"),
        orm.WeakInstanceDict: ("_add_unpresent",),
        orm.InstanceState: (
            *("_commit", "_commit_all", "_expire", "_expire_attributes"),
            "_modified_event",
        ),
        sa.Connection: ("_handle_dbapi_exception", "_is_autocommit_isolation"),
    }
    for cls, names in overridden.items():
        for name in names:
            assert inspect.isfunction(getattr(cls, name)), (cls, name)
    kept = {"_transaction", "_flushing", "_new", "_deleted"}
    assert kept <= set(vars(Session()))


def test_a_change_can_be_hidden_and_shown_again(engine: sa.Engine) -> None:
    with Session(engine) as session:
        user = session.get_one(User, 1)
        state = sa.inspect(user)
        before = user.name
        user.name = "changed"
        assert orm.is_changed(state, "name")
        assert user in session.dirty
        orm.forget_change(state, "name")
        orm.unflag(state)
        assert not session.is_modified(user)
        assert user not in session.dirty
        impl = User.name.impl  # type: ignore[attr-defined]
        orm.note_change(state, state.dict, impl, before)
        assert session.is_modified(user)
        assert sa.inspect(user).attrs.name.history.deleted == [before]


def test_a_result_tells_whether_it_comes_piece_by_piece(engine: sa.Engine) -> None:
    with Session(engine) as session:
        result: Any = session.execute(sa.text("SELECT 1 UNION SELECT 2"))
        assert not cursors.comes_piece_by_piece(result, result)
        assert not cursors.is_exhausted(result)
        assert cursors.comes_piece_by_piece(result.yield_per(1), result)
        cursors.closer_of_cursor(result)()
        cursors.let_go_of_cursor(result)
        assert cursors.is_exhausted(result)
    assert orm.options_of_statement(sa.text("SELECT 1")) is not None


def test_a_plain_session_stays_plain(engine: sa.Engine) -> None:
    SharedSession(engine).close()
    with Session(engine) as session:
        assert type(session.connection()) is Connection
        assert type(session.get_transaction()) is SessionTransaction
        assert type(session.identity_map) is orm.WeakInstanceDict
