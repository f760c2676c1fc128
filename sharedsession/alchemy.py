"""The private parts of SQLAlchemy that this library stands on, all in this module.

Each name says why it is needed; ``tests/test_tables.py`` and ``tests/test_looks.py``
hold them to what is assumed here, so that a release that changes one shows up as a
failing test.
Where 2.0 and 2.1 call the same thing by two names, both are looked up here, once.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, Callable, Iterator, NoReturn

import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
import sqlalchemy.orm as sa_orm
from sqlalchemy.engine import cursor as _cursor
from sqlalchemy.engine import result as _result
from sqlalchemy.event import attr as _event_attr
from sqlalchemy.ext import associationproxy as _associationproxy
from sqlalchemy.ext import mutable as _mutable
from sqlalchemy.orm import attributes as _attributes
from sqlalchemy.orm import base as _base
from sqlalchemy.orm import collections as _collections
from sqlalchemy.orm import dynamic as _dynamic
from sqlalchemy.orm import identity as _identity
from sqlalchemy.orm import instrumentation as _instrumentation
from sqlalchemy.orm import session as _session
from sqlalchemy.orm import state as _state
from sqlalchemy.orm import state_changes as _state_changes
from sqlalchemy.orm.mapper import _all_registries
from sqlalchemy.util import concurrency as _concurrency


def _named(module: Any, name: str) -> Any:
    """2.1 marks as private, with an underscore, what 2.0 did not mark."""
    return getattr(module, f"_{name}", None) or getattr(module, name)


#: Whoever wants shared ones everywhere puts their class in the place of this one.
_Session: Any = sa_orm.Session

NO_VALUE: Any = _base.NO_VALUE

# Reading and writing attributes of attached objects is guarded at the implementation
# object behind each attribute, which every public function ends up at.
AttributeImpl: type[Any] = _named(_attributes, "AttributeImpl")
ClassManager: type = _instrumentation.ClassManager


def instance_state(instance: object) -> Any:
    """The state of a mapped object; ``AttributeError`` if it has none."""
    # Looked up each time: sqlalchemy.ext.instrumentation puts others in its place.
    return _attributes.instance_state(instance)


def instance_dict(instance: object) -> Any:
    """The values of a mapped object by name; looked up each time, too."""
    return _attributes.instance_dict(instance)


#: Where the state of an object is in its ``__dict__``.
STATE_KEY = _base.DEFAULT_STATE_ATTR


#: The implementation of an attribute that holds one plain value.
ScalarAttributeImpl: Any = _named(_attributes, "ScalarAttributeImpl")
_NoListeners: Any = _event_attr._EmptyListener
_NO_SET = getattr(_attributes, "DONT_SET", object())  # new in 2.1


#: The guards for which changes are noted now, see changes.py; nearly always empty.
watched: dict[Any, Any] = {}


#: The attribute of a guarded state that has the owners of its unflushed changes.
CHANGERS = "_sharedsession_changers"


def changers_of(state: Any) -> Any:
    return getattr(state, CHANGERS, None)


def forget_changers(state: Any) -> None:
    vars(state).pop(CHANGERS, None)


def set_scalar(
    impl: Any, state: Any, values: Any, value: Any, initiator: Any = None
) -> None:
    """Like ``ScalarAttributeImpl.set()``, in fewer steps once a change was noted.

    What is left out then is what finds nothing to do: the value from before the change
    is kept already, and the object is among the modified ones.
    """
    dispatch = impl.dispatch
    listeners = dispatch.set
    changers = getattr(state, CHANGERS, None)
    if (
        impl.key in state.committed_state
        and state._strong_obj is not None
        and state.modified
        and state._last_known_values is None
        and not dispatch._active_history
        and type(listeners) is _NoListeners
        and not listeners.parent_listeners
        and value is not _NO_SET
        and not watched
        and (changers is None or changers.guard.running is changers.last)
    ):
        values[impl.key] = value
    else:
        ScalarAttributeImpl.set(impl, state, values, value, initiator)


def has_plain_instrumentation(cls: type) -> bool:
    """Whether values are in ``__dict__``, and not where an extension puts them."""
    return type(vars(cls).get("_sa_class_manager")) is ClassManager


InstanceState: type[Any] = _state.InstanceState
AttributeState: type[Any] = _state.AttributeState


#: The map of every session's persistent objects: each load goes through it.
WeakInstanceDict: type[Any] = _named(_identity, "WeakInstanceDict")

#: What a collection's events go through; public functions hand it out.
CollectionAdapter: type[Any] = _collections.CollectionAdapter


def adapter_of(collection: Any) -> Any:
    """The adapter of a collection that belongs to an object; else ``None``."""
    return getattr(collection, "_sa_adapter", None)


def names_of_collections(state: Any) -> Any:
    """The names of those attributes of an object that hold collections."""
    return state.manager._collection_impl_keys


def stands_before_others(attribute: Any) -> bool:
    """Whether it is a descriptor like a composite's or a synonym's."""
    return bool(getattr(attribute, "_is_internal_proxy", False))


#: Where a tracked mutable value meets its parents.
MutableBase: type[Any] = _mutable.MutableBase
#: What the query of a dynamic relationship is mixed with; 2.1 calls it private.
DynamicHandle: Any = getattr(_dynamic, "_AppenderMixin", None) or getattr(
    _dynamic, "AppenderMixin"
)
has_identity = sa_orm.util.has_identity
AssociationCollection: type[Any] = _associationproxy._AssociationCollection

CursorResult: type[Any] = _cursor.CursorResult
IteratorResult: type[Any] = _result.IteratorResult
ChunkedIteratorResult: type[Any] = _result.ChunkedIteratorResult


#: How the rows of a cursor result come, if nobody asked for anything else.
CursorFetchStrategy: type[Any] = _cursor.CursorFetchStrategy


class _ClosedCursor:
    """What a result in memory says of its cursor, which is closed."""

    __slots__ = ("description", "rowcount", "lastrowid", "arraysize")

    def __init__(self, cursor: Any) -> None:
        self.description = cursor.description
        self.rowcount = getattr(cursor, "rowcount", -1)
        if hasattr(cursor, "lastrowid"):  # some drivers have none
            self.lastrowid = cursor.lastrowid
        self.arraysize = getattr(cursor, "arraysize", 1)

    def close(self) -> None:
        """The cursor is closed already."""

    async def _async_soft_close(self) -> None:
        """AsyncSession calls this for the cursors of asyncio drivers."""


class RowsInMemory(_cursor.FullyBufferedCursorFetchStrategy):
    """The strategy of a cursor result whose rows are all here, its cursor closed.

    Until the rows are consumed the result says what it said when its cursor was open.
    """

    __slots__ = ("_cursor", "_default_size")

    def __init__(self, rows: Any, cursor: Any, default_size: int | None) -> None:
        super().__init__(None, initial_buffer=rows)
        self._cursor = cursor
        #: How many rows ``fetchmany()`` fetches without a size; ``None`` for all.
        self._default_size = default_size

    def soft_close(self, result: Any, cursor: Any) -> None:
        super().soft_close(result, cursor)
        self._end(result)

    def hard_close(self, result: Any, cursor: Any) -> None:
        super().hard_close(result, cursor)
        self._end(result)

    def _end(self, result: Any) -> None:
        """What the result would do next, by an operation of its connection."""
        result.context.cursor = self._cursor
        let_go_of_cursor(result)

    def fetchmany(self, result: Any, cursor: Any, size: int | None = None) -> Any:
        return super().fetchmany(result, cursor, size or self._default_size)


def buffer_rows(result: Any) -> None:
    """Fetch all rows of a cursor result and close its cursor, but not the result."""
    strategy, cursor, context = result.cursor_strategy, result.cursor, result.context
    closed = _ClosedCursor(cursor)
    buffered = isinstance(strategy, _cursor.FullyBufferedCursorFetchStrategy)
    rows = strategy.fetchall(result, cursor)  # closes the cursor
    size = None if buffered else closed.arraysize
    result.cursor_strategy = in_memory = RowsInMemory(rows, cursor, size)
    in_memory.alternate_cursor_description = strategy.alternate_cursor_description
    result.cursor = context.cursor = closed
    result._soft_closed = False


def is_in_memory(result: Any) -> bool:
    """Whether all rows of a cursor result were fetched by :func:`buffer_rows`."""
    return isinstance(result.cursor_strategy, RowsInMemory)


def refuse_identity_map() -> NoReturn:
    """Raise what SQLAlchemy raises for rows of a session that was closed since."""
    raise sa_exc.InvalidRequestError(
        "Object cannot be converted to 'persistent' state, as this identity map is no "
        "longer valid. Has the owning Session been closed?"
    )


def is_exhausted(result: Any) -> bool:
    """Whether a cursor result has no rows to fetch any more."""
    return bool(result._soft_closed)


def comes_piece_by_piece(result: Any, cursor_result: Any) -> bool:
    """Whether a result was asked for in pieces, by itself or in its dialect's way."""
    return bool(result._yield_per or cursor_result.context._is_server_side)


def let_go_of_cursor(cursor_result: Any) -> None:
    """What a cursor result does at its end, once its cursor is closed."""
    cursor_result.cursor = None
    cursor_result._soft_closed = True


def closer_of_cursor(cursor_result: Any) -> Callable[[], None]:
    """What closes the cursor that a result has now, whatever becomes of the result."""
    connection = cursor_result.connection
    return functools.partial(connection._safe_close_cursor, cursor_result.cursor)


def options_of_statement(statement: Any) -> Any:
    """The execution options of a statement; ``None`` if it takes none.

    ``get_execution_options()`` is not there for all that can be executed.
    """
    return getattr(statement, "_execution_options", None)


def query_overwrites(options: Any) -> bool:
    """Whether a Query that executes with *options* has ``populate_existing()``."""
    load_options = options.get("_sa_orm_load_options")
    return bool(load_options and load_options._populate_existing)


def is_relationship(impl_class: Any) -> bool:
    """Whether it is behind attributes that hold other mapped objects."""
    return issubclass(impl_class, _RELATIONSHIPS)


ScalarObjectAttributeImpl: Any = _named(_attributes, "ScalarObjectAttributeImpl")
CollectionAttributeImpl: Any = _named(_attributes, "CollectionAttributeImpl")
_RELATIONSHIPS = ScalarObjectAttributeImpl, CollectionAttributeImpl


def is_changed(state: Any, key: str) -> bool:
    """Whether an attribute was changed since it was loaded or flushed."""
    return key in state.committed_state


def forget_change(state: Any, key: str) -> None:
    """Let an attribute count as unchanged."""
    state.committed_state.pop(key, None)


def note_change(state: Any, values: Any, attribute: Any, previous: Any) -> None:
    """Let an attribute count as changed, as if it were set now."""
    state.expired_attributes.discard(attribute.key)
    state._modified_event(values, attribute, previous)


def unflag(state: Any) -> None:
    """Let an object that was changed count as unchanged."""
    identity_map = state._instance_dict()
    if identity_map is not None:
        identity_map._modified.discard(state)
    state.modified = False
    state._strong_obj = None


def described(state: Any) -> str:
    """An object, as SQLAlchemy's errors describe it."""
    return str(_base.state_str(state))


def is_flushing(session: Any) -> bool:
    return bool(session._flushing)


def session_of_state(state: Any) -> sa_orm.Session | None:
    session: sa_orm.Session | None = _session._state_session(state)
    return session


def mapper_of_class(cls: Any) -> sa_orm.Mapper[Any] | None:
    """The mapper of a mapped class; ``None`` for anything else.

    Like ``inspect()``, which takes longer than all the rest of finding an object.
    """
    manager = getattr(cls, "__dict__", _NOTHING).get("_sa_class_manager")
    if manager is None or not manager.is_mapped:
        return None
    mapper: sa_orm.Mapper[Any] = manager.mapper
    return mapper


_NOTHING: dict[str, Any] = {}


def find_unexpired(identity_map: Any, key: Any) -> Any:
    """The object of a key in an identity map, if no load is needed for it."""
    try:
        state = identity_map._dict.get(key)
    except TypeError:
        return None  # a key that cannot be one
    return None if state is None or state.expired else state.obj()


def add_all(session: Any, instances: Any) -> None:
    """Like ``Session.add_all()``, but calls nobody's ``add()`` other than Session's."""
    if session._warn_on_events:
        session._flush_warning("Session.add_all()")
    for instance in instances:
        _Session.add(session, instance, _warn=False)


class InFewerSteps:
    """Methods of ``Session``: what they leave out finds nothing to do."""

    def _execute_internal(
        session: Any,
        statement: Any,
        params: Any = None,
        *,
        execution_options: Any = sa.util.EMPTY_DICT,
        bind_arguments: Any = None,
        _parent_execute_state: Any = None,
        _add_event: Any = None,
        _scalar_result: bool = False,
    ) -> Any:
        """For a statement of Core's: it concerns no mapped class, nor does it become
        another one first, there are no options, and nobody listens."""
        if (
            type(statement) not in _AS_THEY_ARE
            or statement._propagate_attrs
            or execution_options
            or session.execution_options
            or bind_arguments
            or _parent_execute_state is not None
            or _add_event is not None
            or session.dispatch.do_orm_execute
        ):
            return _Session._execute_internal(
                session,
                statement,
                params,
                execution_options=execution_options,
                bind_arguments=bind_arguments,
                _parent_execute_state=_parent_execute_state,
                _add_event=_add_event,
                _scalar_result=_scalar_result,
            )
        session._autoflush()
        connection = session._connection_for_bind(session.get_bind(clause=statement))
        options = sa.util.EMPTY_DICT
        if _scalar_result:
            return connection.scalar(statement, params or {}, execution_options=options)
        return connection.execute(statement, params, execution_options=options)

    def _save_or_update_state(session: Any, state: Any) -> None:
        """For an object without others that come with it."""
        state._orphaned_outside_of_session = False
        session._save_or_update_impl(state)
        mapper = state.manager.mapper
        cascading = vars(mapper).get(_CASCADING)
        if cascading is None:
            cascading = _find_cascading(mapper)
        if not cascading.isdisjoint(state.dict):
            has = session._contains_state
            search = mapper.cascade_iterator("save-update", state, halt_on=has)
            for _, _, found, _ in search:
                session._save_or_update_impl(found)


_AS_THEY_ARE = frozenset(
    {sa.CompoundSelect, sa.Delete, sa.Insert, sa.Select, sa.TextClause, sa.Update}
)

_CASCADING = "_sharedsession_cascading"


class _All(frozenset[str]):
    """Stands for whatever names there may be."""

    def isdisjoint(self, other: Any) -> bool:
        return False


def _find_cascading(mapper: Any) -> frozenset[str]:
    """The attributes whose objects are added with the one that has them.

    What is not among an object's values cascades nothing, but if an application has
    made an attribute that says otherwise.  The mapper forgets it with what else it has
    found out, when it gets another attribute.
    """
    of_others = sa_orm.RelationshipProperty
    cascading = {
        name: it
        for name, it in mapper._props.items()
        if it.cascade or isinstance(it, of_others)  # which may be given a cascade later
    }
    usual = [type(it).cascade_iterator is _cascade for it in cascading.values()]
    names = frozenset(cascading) if all(usual) else _All()
    if mapper.configured:
        mapper._set_memoized_attribute(_CASCADING, names)
    return names


_cascade = sa_orm.RelationshipProperty.cascade_iterator

#: Where methods of ``Session`` are in fewer steps, by what they were when this was
#: imported.  In 2.0 executing has others: no options of a session, fewer flushes.
quicker: dict[Any, Any] = {_Session._save_or_update_state: InFewerSteps}
if hasattr(_Session, "execution_options"):
    quicker[_Session._execute_internal] = InFewerSteps


def is_clean(session: Any) -> bool:
    """Like ``Session._is_clean()``, without asking the identity map's guard."""
    modified = session.identity_map._modified
    return not modified and not session._deleted and not session._new


def states_in(session: Any) -> list[Any]:
    """The states of all objects that are pending or persistent in a session."""
    return [*session.identity_map.all_states(), *session._new]


def is_unflushed(session: Any, state: Any) -> bool:
    """Whether a flush would write something of the object, or delete it."""
    return state.modified or state in session._new or state in session._deleted


def is_in_session(session: Any, state: Any) -> bool:
    """Whether the object is pending or persistent in *session*, and not on its way out.

    Like ``state.session_id == session.hash_key`` for states that are not deleted.
    """
    return bool(state.session_id == session.hash_key)


def changed_keys(state: Any) -> Any:
    """The names of the attributes that were changed since they were loaded."""
    return state.committed_state


def is_present(session: Any, state: Any) -> bool:
    """What ``Session.__contains__()`` finds for the object of a state."""
    return state in session._new or session.identity_map._dict.get(state.key) is state


def all_mappers() -> list[sa_orm.Mapper[Any]]:
    """Every mapper there is: those made before the first guard are adopted late."""
    managers = [m for registry in _all_registries() for m in registry._managers]
    return [manager.mapper for manager in managers if manager.is_mapped]


def is_broken(transaction: sa_orm.SessionTransaction | None) -> bool:
    """Whether nothing but a rollback is possible in the transaction.

    Read without entering the guard: the caller may be on its way out of it.
    """
    if transaction is None:
        return False
    states = _session.SessionTransactionState
    if transaction._state in (states.DEACTIVE, states.COMMITTED):
        return True
    if transaction._state is states.PREPARED and not _is_prepared(transaction):
        return True  # the commit failed half way
    return any(map(_is_broken_at_connection, _with_parents(transaction)))


def _with_parents(transaction: Any) -> Iterator[Any]:
    while transaction is not None:
        yield transaction
        transaction = transaction._parent


def _is_prepared(transaction: Any) -> bool:
    """Whether it waits for the second phase of its commit, by ``prepare()``."""
    began = [entry[1] for entry in transaction._connections.values()]
    return bool(transaction.session.twophase) and all(
        each.is_active and getattr(each, "_is_prepared", False) for each in began
    )


def _is_broken_at_connection(transaction: Any) -> bool:
    """Whether the server, or somebody at the connection, ended what it stands for."""
    return any(
        _is_invalidated(connection)
        or abort_of(connection) is not None
        or (transaction._state is ACTIVE and not began.is_active)
        for connection, began, *_ in transaction._connections.values()
    )


def abort_of(connection: Any) -> Any:
    """How the database aborted the transaction of a guarded connection, if it did."""
    return getattr(connection, "_sharedsession_abort", None)


def is_aborted_as(transaction: Any, abort: Any) -> bool:
    """Whether *transaction*, or one around it, has a connection aborted that way."""
    return any(
        abort_of(connection) is abort
        for each in _with_parents(transaction)
        for connection in connections_of(each)
    )


_is_invalidated: Callable[[Any], bool] = vars(sa.Connection)["invalidated"].fget


class _Ended:
    """Stands for a transaction of a connection that is over or cannot be rolled back.

    Rolling it back once more would warn, or send the server the name of a savepoint
    that it has forgotten.
    """

    is_active = False

    def __init__(self, connection: Any, is_root: bool) -> None:
        self._connection = connection
        self._is_root = is_root

    def rollback(self) -> None:
        """Roll back what the connection began since, in the place of the outer one."""
        if self._is_root and not self._connection.closed:
            self._connection.rollback()


def set_ended_aside(transaction: Any, savepoints_too: bool) -> None:
    """Let a rollback of *transaction* pass by what is over at the connection already.

    :param savepoints_too: whether the server has forgotten its savepoint.
    """
    for bind, entry in list(transaction._connections.items()):
        connection, began, is_own, closes = entry
        nested = transaction.nested
        if (nested and savepoints_too) or not began.is_active:
            ended: Any = _Ended(connection, is_own and not nested)
            transaction._connections[bind] = connection, ended, is_own, closes


def has_connection(transaction: Any, bind: Any) -> bool:
    """Whether *transaction* itself has begun at the connection of *bind*."""
    return bind in transaction._connections


def savepoint_beyond(transaction: Any) -> Any:
    """A savepoint that was made at a connection, inside all of the session's own."""
    own = {e[1] for t in _with_parents(transaction) for e in t._connections.values()}
    for each in _with_parents(transaction):
        for connection in connections_of(each):
            innermost = connection._nested_transaction
            if innermost is not None and innermost not in own:
                if abort_of(connection) is not None:
                    return innermost
    return None


def driver_connection(connection: Any) -> Any:
    """The driver's own connection; ``None`` if there is none at present.

    The public ``connection`` would connect again.
    """
    fairy = connection._dbapi_connection
    return None if fairy is None else fairy.driver_connection


def is_in_transaction(connection: Any) -> bool:
    """Like ``Connection.in_transaction()``, which is an operation of its own."""
    return connection._transaction is not None


def is_autocommit(connection: Any) -> bool:
    """Whether each statement is a transaction of its own."""
    return bool(connection._is_autocommit_isolation())


def restore_snapshot(transaction: sa_orm.SessionTransaction) -> None:
    """Give the objects the state from before, if a rollback did not come to do it."""
    ended = boundary(transaction)
    if ended._state is _session.SessionTransactionState.DEACTIVE:
        ended._restore_snapshot(dirty_only=ended.nested)


def is_committed(transaction: sa_orm.SessionTransaction) -> bool:
    return transaction._state is _session.SessionTransactionState.COMMITTED


def is_closed(transaction: sa_orm.SessionTransaction) -> bool:
    return transaction._state is _session.SessionTransactionState.CLOSED


def sqlite_checks_thread(engine: Any) -> bool:
    """Whether sqlite3 refuses the engine's connections to other threads.

    The driver does not tell, so this is what the engine passes to its ``connect()``.
    """
    if getattr(engine.dialect, "name", "") != "sqlite" or engine.dialect.is_async:
        return False
    try:
        found = inspect.getclosurevars(engine.pool._creator).nonlocals
    except TypeError:
        return False  # an application's own creator, of a kind that does not tell
    if "cparams" not in found:
        return False
    return bool(found["cparams"].get("check_same_thread", True))


def binds_of(session: Any) -> list[Any]:
    """Every engine and connection that *session* is known to use."""
    # 2.0 called the dictionary by a name of the class's own.
    named = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})
    binds = [session.bind, *named.values()]
    transaction = session._transaction
    if transaction is not None:
        binds += transaction._connections
    return [bind for bind in binds if bind is not None]


def sync_session_of(target: Any) -> sa_orm.Session | None:
    """The Session behind an AsyncSession, or a registry of one; ``None`` for others."""
    # Importing it takes greenlet, and who has one of these has imported it.
    module: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    if module is None or not hasattr(module, "async_scoped_session"):
        return None
    if isinstance(target, module.async_scoped_session):
        target = target.registry()
    if isinstance(target, module.AsyncSession):
        session: sa_orm.Session = target.sync_session
        return session
    return None


def async_session_of(session: sa_orm.Session) -> Any:
    """The AsyncSession before a Session; ``None`` if there is none."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    find = getattr(module, "async_session", None)
    return None if find is None else find(session)


# -- greenlets, without which SQLAlchemy's asyncio does not work, but this library does


def in_greenlet() -> bool:
    """Whether ``await_only()`` works here: inside of ``greenlet_spawn()``."""
    return bool(_concurrency.in_greenlet())


def await_only(awaitable: Any) -> Any:
    return _concurrency.await_only(awaitable)


async def greenlet_spawn(function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    """Call a function that may wait for the event loop, and wait with it."""
    return await _concurrency.greenlet_spawn(function, *args, **kw)


def current_greenlet() -> Any:
    """The greenlet that runs; ``None`` where nothing ever used one."""
    greenlet = sys.modules.get("greenlet")
    return None if greenlet is None else greenlet.getcurrent()


#: Decorates a method of a transaction that begins another one in it, which then checks
#: what ``SessionTransaction._begin()`` checks.
begins_within: Callable[[Any], Any] = _state_changes._StateChange.declare_states(
    (_session.SessionTransactionState.ACTIVE,),
    _state_changes._StateChangeStates.NO_CHANGE,
)


def makes_connection(transaction: Any, bind: Any) -> bool:
    """Whether a transaction that needs a connection does ``bind.connect()`` next.

    And that only makes an object of :func:`connection_class`.
    """
    if transaction._parent is not None or bind in transaction._connections:
        return False
    return getattr(type(bind), "connect", None) is _connect


_connect = sa.Engine.connect


def connection_class(engine: Any) -> Any:
    return engine._connection_cls


def begin(connection: Any, root_class: Any) -> Any:
    """Like ``Connection.begin()``, with a transaction of that class.

    One that changes its class later is slower for good.
    """
    if connection._transaction is None:
        return root_class(connection)  # which notes itself there
    return sa.Connection.begin(connection)  # raises


#: The state of a transaction that is neither beginning nor ending.
ACTIVE = _session.SessionTransactionState.ACTIVE


def commit_part(transaction: Any) -> bool:
    """Like ``SessionTransaction.commit()`` of the part of a flush, in fewer steps.

    All that is left to do then is to hand over to the level around it, which has the
    connections.  False, and nothing done, if there is more to it.
    """
    session = transaction.session
    if (
        transaction._state is not ACTIVE
        or transaction._next_state is not _ANY_STATE
        or session._transaction is not transaction
        or not session._flushing
        or session.dispatch.after_transaction_end
    ):
        return False
    # No call is in between, if the session has no __setattr__() of Python's.
    session._transaction, transaction._state = transaction._parent, _CLOSED
    return True


_ANY_STATE = _state_changes._StateChangeStates.ANY
_CLOSED = _session.SessionTransactionState.CLOSED


def connection_at_hand(transaction: Any, bind: Any, options: Any) -> Any:
    """The connection that a transaction has already, if there is nothing to check.

    What ``SessionTransaction._connection_for_bind()`` returns then, in fewer steps.
    """
    while transaction._state is ACTIVE and not options:
        found = transaction._connections.get(bind)
        if found is not None:
            return found[0]
        if transaction.nested or transaction._parent is None:
            break
        transaction = transaction._parent  # which the part of a flush does not have
    return None


def boundary(transaction: Any) -> Any:
    """The savepoint or outer transaction that *transaction*, if any, is part of."""
    while transaction is not None and not is_boundary(transaction):
        transaction = transaction._parent
    return transaction


def is_boundary(transaction: Any) -> bool:
    """Whether it has a COMMIT of its own, or a RELEASE; those of flushes have not."""
    return transaction.nested or transaction._parent is None


def all_connections_of(transaction: Any) -> set[Any]:
    """The connections of a transaction and of those around it."""
    return set().union(*map(connections_of, _with_parents(transaction)))


def connections_of(transaction: Any) -> set[Any]:
    return {entry[0] for entry in transaction._connections.values()}
