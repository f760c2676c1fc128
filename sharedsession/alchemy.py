"""The private API of SQLAlchemy that this library uses, all in this module.

Each name says why the library needs it.  ``tests/test_tables.py`` and
``tests/test_looks.py`` check the assumptions, therefore a release of SQLAlchemy that
breaks one of them shows up as a failing test.
If 2.0 and 2.1 use two names for the same thing, this module looks up both, once.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import deque
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
    """Look up a name that 2.1 made private by an underscore and 2.0 did not."""
    return getattr(module, f"_{name}", None) or getattr(module, name)


#: SQLAlchemy's own class.  An application may replace ``sqlalchemy.orm.Session`` by a
#: shared session class.
_Session: Any = sa_orm.Session

NO_VALUE: Any = _base.NO_VALUE

# Attributes of attached objects are guarded at their implementation object, because all
# public functions that read or write an attribute call it.
AttributeImpl: type[Any] = _named(_attributes, "AttributeImpl")
ClassManager: type = _instrumentation.ClassManager


def instance_state(instance: object) -> Any:
    """Return the state of a mapped object; ``AttributeError`` if it has none."""
    # Look the function up each time: sqlalchemy.ext.instrumentation may replace it.
    return _attributes.instance_state(instance)


def instance_dict(instance: object) -> Any:
    """Return the values of a mapped object by name; looked up each time, too."""
    return _attributes.instance_dict(instance)


#: The key of an object's state in the object's ``__dict__``.
STATE_KEY = _base.DEFAULT_STATE_ATTR


#: The implementation of an attribute that holds one plain value.
ScalarAttributeImpl: Any = _named(_attributes, "ScalarAttributeImpl")
_NoListeners: Any = _event_attr._EmptyListener
_NO_SET = getattr(_attributes, "DONT_SET", object())  # new in 2.1


#: Deferred changes, for each guard that defers changes now; nearly always empty.  See
#: changes.py.
watched: dict[Any, Any] = {}


#: The attribute of a guarded state that stores the owners of its unflushed changes.
CHANGERS = "_sharedsession_changers"


def changers_of(state: Any) -> Any:
    return getattr(state, CHANGERS, None)


def forget_changers(state: Any) -> None:
    vars(state).pop(CHANGERS, None)


def set_scalar(
    impl: Any, state: Any, values: Any, value: Any, initiator: Any = None
) -> None:
    """Like ``ScalarAttributeImpl.set()``, but with a fast path for repeated changes.

    Once a change of the attribute was noted, the value before the change is stored, and
    the object is in the set of modified objects.  The fast path leaves out these steps.
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
    """Whether values are in ``__dict__``: no extension stores them somewhere else."""
    return type(vars(cls).get("_sa_class_manager")) is ClassManager


InstanceState: type[Any] = _state.InstanceState
AttributeState: type[Any] = _state.AttributeState


#: The identity map of a session, through which each load goes.
WeakInstanceDict: type[Any] = _named(_identity, "WeakInstanceDict")

#: The adapter of a collection, which fires its events; public functions return it.
CollectionAdapter: type[Any] = _collections.CollectionAdapter


def adapter_of(collection: Any) -> Any:
    """Return the adapter of a collection; ``None`` if no object has the collection."""
    return getattr(collection, "_sa_adapter", None)


def names_of_collections(state: Any) -> Any:
    """Return the names of the collection attributes of an object."""
    return state.manager._collection_impl_keys


def stands_before_others(attribute: Any) -> bool:
    """Whether *attribute* proxies other attributes, as a composite or synonym does."""
    return bool(getattr(attribute, "_is_internal_proxy", False))


#: The base of mutable values, which creates their dictionary of parents.
MutableBase: type[Any] = _mutable.MutableBase
#: The mixin of a dynamic relationship's query; private since 2.1.
DynamicHandle: Any = getattr(_dynamic, "_AppenderMixin", None) or getattr(
    _dynamic, "AppenderMixin"
)
has_identity = sa_orm.util.has_identity
AssociationCollection: type[Any] = _associationproxy._AssociationCollection

CursorResult: type[Any] = _cursor.CursorResult
IteratorResult: type[Any] = _result.IteratorResult
ChunkedIteratorResult: type[Any] = _result.ChunkedIteratorResult


#: The default strategy by which a cursor result fetches its rows.
CursorFetchStrategy: type[Any] = _cursor.CursorFetchStrategy


class MemoryCursor:
    """Replaces the driver's cursor of a result whose rows are all in memory.

    Until it is closed, its attributes are those of the driver's cursor while that was
    open.  If fetching from the driver failed, the consumer of the result gets the
    error, as with a plain result.
    """

    __slots__ = (
        *("description", "lastrowid", "statusmessage", "arraysize", "_rowcount"),
        *("_driver_cursor", "_context", "_fetched", "_left", "_error", "_closed"),
    )

    def __init__(self, cursor: Any, context: Any) -> None:
        self.description = cursor.description
        for name in ("lastrowid", "statusmessage"):  # some drivers have none
            if hasattr(cursor, name):
                setattr(self, name, getattr(cursor, name))
        self.arraysize = getattr(cursor, "arraysize", 1)
        # After a SELECT read the driver's rowcount only if the application asks for it,
        # because some drivers have to count the rows.  After other statements read it
        # now, because it may change when the cursor is closed.
        is_select = context.compiled and not (context.is_text or context.is_crud)
        self._rowcount = None if is_select else getattr(cursor, "rowcount", -1)
        self._driver_cursor = cursor
        self._context = context
        #: The rows as the driver returned them, until a single row is fetched.
        self._fetched: Any = ()
        self._left: deque[Any] | None = None
        self._error: Exception | None = None
        self._closed = False

    @property
    def rowcount(self) -> Any:
        known = self._rowcount
        return getattr(self._driver_cursor, "rowcount", -1) if known is None else known

    def fetch_from(self, result: Any) -> None:
        """Take all rows from the driver's cursor of *result*."""
        cursor, strategy = result.cursor, result.cursor_strategy
        if isinstance(strategy, _cursor.FullyBufferedCursorFetchStrategy):
            return  # the strategy has all rows already
        try:
            try:
                driver_cursor = getattr(cursor, "_cursor", cursor)  # of an adapter
                is_psycopg = getattr(driver_cursor, "pgresult", None) is not None
                self._fetched = cursor.fetchall()
                if is_psycopg and self._rowcount is None:
                    self._rowcount = len(self._fetched)  # closing the cursor loses it
            except BaseException as error:
                strategy.handle_exception(result, cursor, error)
        except Exception as error:
            self._error = error

    def knows_of(self, error: BaseException) -> bool:
        """Whether the connection must raise *error* without handling it.

        True for an error of the fetch, which the connection has handled before, and for
        any error before this cursor is closed, which is not an error of the driver.
        """
        return error is self._error or not self._closed

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)

    def fetchone(self) -> Any:
        if self._closed:
            return self._driver_cursor.fetchone()  # raises, because it is closed
        left = self._rows()
        return left.popleft() if left else None

    def fetchmany(self, size: int | None = None) -> Any:
        if self._closed:
            return self._driver_cursor.fetchmany()  # raises, because it is closed
        left = self._rows()
        count = self.arraysize if size is None else size
        return [left.popleft() for _ in range(min(count, len(left)))]

    def fetchall(self) -> Any:
        if self._closed:
            return self._driver_cursor.fetchall()  # raises, because it is closed
        if self._error is None and self._left is None:
            fetched, self._fetched = self._fetched, ()
            return fetched
        left = self._rows()
        self._left = deque()
        return list(left)

    def _rows(self) -> deque[Any]:
        if self._error is not None:
            raise self._error
        if self._left is None:
            self._left = deque(self._fetched)
        return self._left

    def close(self) -> None:
        """From now on use the driver's cursor, which is closed already."""
        self._closed = True
        self._context.cursor = self._driver_cursor

    async def _async_soft_close(self) -> None:
        """AsyncSession calls this for the cursors of asyncio drivers."""


def buffer_rows(result: Any) -> None:
    """Fetch all rows of a cursor result and close its cursor, but not the result.

    The result keeps its strategy, which then fetches the rows from memory.
    """
    cursor = result.cursor
    in_memory = MemoryCursor(cursor, result.context)
    in_memory.fetch_from(result)
    result.connection._safe_close_cursor(cursor)
    result.cursor = result.context.cursor = in_memory


def is_in_memory(result: Any) -> bool:
    """Whether all rows of a cursor result were fetched by :func:`buffer_rows`."""
    return isinstance(result.cursor, MemoryCursor)


def was_consumed(result: Any) -> bool:
    """Whether *result*, or the result that it filters, has no cursor any more."""
    result = getattr(result, "_real_result", None) or result
    if not isinstance(result, CursorResult):
        return False
    return result.cursor is None and not has_rows_of_its_own(result)


def has_rows_of_its_own(result: Any) -> bool:
    """Whether a cursor result has buffered its rows and closed its cursor at once."""
    strategy = result.cursor_strategy
    return isinstance(strategy, _cursor.FullyBufferedCursorFetchStrategy)


def changes_rows(cursor_result: Any) -> bool:
    """Whether it has the rows that an INSERT, UPDATE or DELETE returned."""
    return bool(cursor_result.context.is_crud)


def is_prebuffered(cursor_result: Any) -> bool:
    """Whether SQLAlchemy, too, makes the objects at once, as some options ask for."""
    return bool(cursor_result.context.execution_options.get("prebuffer_rows"))


def refuse_identity_map(row: Any) -> NoReturn:
    """Raise what SQLAlchemy raises for a row of a session that was closed since."""
    values = row if isinstance(row, (tuple, sa.Row)) else (row,)
    states = [getattr(value, STATE_KEY, None) for value in values]
    found = next(
        (described(state) for state in states if state is not None), "of a row"
    )
    raise sa_exc.InvalidRequestError(
        f"Object {found} cannot be converted to 'persistent' state, as this identity "
        "map is no longer valid. Has the owning Session been closed?",
        code="lkrp",
    )


def is_exhausted(result: Any) -> bool:
    """Whether a cursor result has no more rows to fetch from the driver."""
    return bool(result._soft_closed)


def comes_piece_by_piece(result: Any, cursor_result: Any) -> bool:
    """Whether a result streams: by ``yield_per()`` or by a server-side cursor."""
    return bool(result._yield_per or cursor_result.context._is_server_side)


def let_go_of_cursor(cursor_result: Any) -> None:
    """Do the last steps of a cursor result's close, after its cursor was closed."""
    cursor_result.cursor = None
    cursor_result._soft_closed = True


def closer_of_cursor(cursor_result: Any) -> Callable[[], None]:
    """Return a function that closes the result's present cursor, without the result."""
    connection = cursor_result.connection
    return functools.partial(connection._safe_close_cursor, cursor_result.cursor)


def options_of_statement(statement: Any) -> Any:
    """Return the execution options of a statement; ``None`` if it takes none.

    Not every executable has ``get_execution_options()``.
    """
    return getattr(statement, "_execution_options", None)


def query_overwrites(options: Any) -> bool:
    """Whether a Query that executes with *options* has ``populate_existing()``."""
    load_options = options.get("_sa_orm_load_options")
    return bool(load_options and load_options._populate_existing)


def is_relationship(impl_class: Any) -> bool:
    """Whether *impl_class* implements attributes that refer to mapped objects."""
    return issubclass(impl_class, _RELATIONSHIPS)


ScalarObjectAttributeImpl: Any = _named(_attributes, "ScalarObjectAttributeImpl")
CollectionAttributeImpl: Any = _named(_attributes, "CollectionAttributeImpl")
_RELATIONSHIPS = ScalarObjectAttributeImpl, CollectionAttributeImpl


def is_changed(state: Any, key: str) -> bool:
    """Whether an attribute was changed since the object was loaded or flushed."""
    return key in state.committed_state


def is_another_value(state: Any, key: str) -> bool:
    """Whether the present value of a changed attribute is not the one before."""
    impl = state.manager[key].impl
    if not impl.supports_population:  # a dynamic handle's, which has no value
        return True
    history = impl.get_history(state, state.dict, _base.PASSIVE_NO_INITIALIZE)
    return bool(history.added or history.deleted)


def forget_change(state: Any, key: str) -> None:
    """Mark an attribute as unchanged."""
    state.committed_state.pop(key, None)


def note_change(state: Any, values: Any, attribute: Any, previous: Any) -> None:
    """Mark an attribute as changed, as if it were set now."""
    state.expired_attributes.discard(attribute.key)
    state._modified_event(values, attribute, previous)


def unflag(state: Any) -> None:
    """Mark a changed object as unchanged."""
    identity_map = state._instance_dict()
    if identity_map is not None:
        identity_map._modified.discard(state)
    state.modified = False
    state._strong_obj = None


def described(state: Any) -> str:
    """Describe an object as SQLAlchemy's error messages do."""
    return str(_base.state_str(state))


def is_flushing(session: Any) -> bool:
    return bool(session._flushing)


def session_of_state(state: Any) -> sa_orm.Session | None:
    session: sa_orm.Session | None = _session._state_session(state)
    return session


def mapper_of_class(cls: Any) -> sa_orm.Mapper[Any] | None:
    """Return the mapper of a mapped class; ``None`` for anything else.

    Like ``inspect()``, but faster: ``inspect()`` takes longer than the rest of a lookup
    in the identity map.
    """
    manager = getattr(cls, "__dict__", _NOTHING).get("_sa_class_manager")
    if manager is None or not manager.is_mapped:
        return None
    mapper: sa_orm.Mapper[Any] = manager.mapper
    return mapper


_NOTHING: dict[str, Any] = {}


def find_unexpired(identity_map: Any, key: Any) -> Any:
    """Return the object with *key* in an identity map; ``None`` if a load is needed."""
    try:
        state = identity_map._dict.get(key)
    except TypeError:
        return None  # the key is not hashable
    return None if state is None or state.expired else state.obj()


def is_clean(session: Any) -> bool:
    """Like ``Session._is_clean()``, but without the guard of the identity map."""
    modified = session.identity_map._modified
    return not modified and not session._deleted and not session._new


def states_in(session: Any) -> list[Any]:
    """Return the states of all pending and persistent objects of a session."""
    return [*session.identity_map.all_states(), *session._new]


def is_unflushed(session: Any, state: Any) -> bool:
    """Whether a flush would write or delete the object."""
    return state.modified or state in session._new or state in session._deleted


def is_in_session(session: Any, state: Any) -> bool:
    """Whether the object of *state* is attached to *session*.

    Unless the object is deleted, it is then pending or persistent.
    """
    return bool(state.session_id == session.hash_key)


def changed_keys(state: Any) -> Any:
    """Return the names of the attributes that were changed since they were loaded."""
    return state.committed_state


def is_present(session: Any, state: Any) -> bool:
    """Like ``Session.__contains__()``, for the object of *state*."""
    return state in session._new or session.identity_map._dict.get(state.key) is state


def all_mappers() -> list[sa_orm.Mapper[Any]]:
    """Return all mappers: mappers made before the first guard are guarded late."""
    managers = [m for registry in _all_registries() for m in registry._managers]
    return [manager.mapper for manager in managers if manager.is_mapped]


def is_broken(transaction: sa_orm.SessionTransaction | None) -> bool:
    """Whether only a rollback is possible in the transaction.

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
    """Whether ``prepare()`` was called and the second phase of the commit is due."""
    began = [entry[1] for entry in transaction._connections.values()]
    return bool(transaction.session.twophase) and all(
        each.is_active and getattr(each, "_is_prepared", False) for each in began
    )


def _is_broken_at_connection(transaction: Any) -> bool:
    """Whether the database transaction ended without the session.

    The server has aborted it, the connection was invalidated, or a method of the
    connection has ended it.
    """
    return any(
        _is_invalidated(connection)
        or abort_of(connection) is not None
        or (transaction._state is ACTIVE and not began.is_active)
        for connection, began, *_ in transaction._connections.values()
    )


def abort_of(connection: Any) -> Any:
    """Return the :class:`Abort` of a guarded connection's transaction, or ``None``."""
    return getattr(connection, "_sharedsession_abort", None)


def is_aborted_as(transaction: Any, abort: Any) -> bool:
    """Whether *abort* happened at a connection of *transaction* or of a parent."""
    return any(
        abort_of(connection) is abort
        for each in _with_parents(transaction)
        for connection in connections_of(each)
    )


_is_invalidated: Callable[[Any], bool] = vars(sa.Connection)["invalidated"].fget


class _Ended:
    """Replaces a transaction of a connection that has ended or cannot be rolled back.

    Rolling that transaction back again would emit a warning, or would name a savepoint
    that the server has forgotten.
    """

    is_active = False

    def __init__(self, connection: Any, is_root: bool) -> None:
        self._connection = connection
        self._is_root = is_root

    def rollback(self) -> None:
        """For an outer transaction, roll back what the connection began since."""
        if self._is_root and not self._connection.closed:
            self._connection.rollback()


def set_ended_aside(transaction: Any, savepoints_too: bool) -> None:
    """Let a rollback of *transaction* skip what has ended at its connections already.

    :param savepoints_too: whether the server has forgotten the transaction's savepoint.
    """
    for bind, entry in list(transaction._connections.items()):
        connection, began, is_own, closes = entry
        nested = transaction.nested
        # If the RELEASE of a savepoint failed, the connection still needs its rollback.
        is_over = not began.is_active and connection._nested_transaction is not began
        if (nested and savepoints_too) or is_over:
            ended: Any = _Ended(connection, is_own and not nested)
            transaction._connections[bind] = connection, ended, is_own, closes


def has_connection(transaction: Any, bind: Any) -> bool:
    """Whether *transaction* itself has begun on a connection of *bind*."""
    return bind in transaction._connections


def savepoint_beyond(transaction: Any) -> Any:
    """Return a savepoint that the application made at an aborted connection.

    Only a savepoint inside all transactions of the session; ``None`` if there is none.
    """
    own = {e[1] for t in _with_parents(transaction) for e in t._connections.values()}
    for each in _with_parents(transaction):
        for connection in connections_of(each):
            innermost = connection._nested_transaction
            if innermost is not None and innermost not in own:
                if abort_of(connection) is not None:
                    return innermost
    return None


def driver_connection(connection: Any) -> Any:
    """Return the connection of the driver; ``None`` if there is none at present.

    The public attribute ``connection`` would connect again.
    """
    fairy = connection._dbapi_connection
    return None if fairy is None else fairy.driver_connection


def is_in_transaction(connection: Any) -> bool:
    """Like ``Connection.in_transaction()``, but not an operation of the guard."""
    return connection._transaction is not None


def is_autocommit(connection: Any) -> bool:
    """Whether the connection is in AUTOCOMMIT: each statement is a transaction."""
    return bool(connection._is_autocommit_isolation())


def restore_snapshot(transaction: sa_orm.SessionTransaction) -> None:
    """Restore the objects to the state before, if an interrupted rollback has not."""
    ended = boundary(transaction)
    if ended._state is _session.SessionTransactionState.DEACTIVE:
        ended._restore_snapshot(dirty_only=ended.nested)


def is_committed(transaction: sa_orm.SessionTransaction) -> bool:
    return transaction._state is _session.SessionTransactionState.COMMITTED


def is_closed(transaction: sa_orm.SessionTransaction) -> bool:
    return transaction._state is _session.SessionTransactionState.CLOSED


def sqlite_checks_thread(engine: Any) -> bool:
    """Whether sqlite3 refuses the engine's connections to other threads.

    The driver has no attribute for this, therefore look at the arguments that the
    engine passes to the driver's ``connect()``.
    """
    if getattr(engine.dialect, "name", "") != "sqlite" or engine.dialect.is_async:
        return False
    try:
        found = inspect.getclosurevars(engine.pool._creator).nonlocals
    except TypeError:
        return False  # a creator of the application without a closure to inspect
    if "cparams" not in found:
        return False
    return bool(found["cparams"].get("check_same_thread", True))


def binds_of(session: Any) -> list[Any]:
    """Return every engine and connection that *session* is known to use."""
    # In 2.0 the name of the dictionary is mangled with the name of the class.
    named = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})
    binds = [session.bind, *named.values()]
    transaction = session._transaction
    if transaction is not None:
        binds += transaction._connections
    return [bind for bind in binds if bind is not None]


def sync_session_of(target: Any) -> sa_orm.Session | None:
    """Return the Session of an AsyncSession or of an async_scoped_session.

    ``None`` for any other *target*.
    """
    # Do not import the module, because it needs greenlet.  An application that has such
    # a target has imported it already.
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
    """Return the AsyncSession of a Session; ``None`` if there is none."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    find = getattr(module, "async_session", None)
    return None if find is None else find(session)


# -- greenlet, which SQLAlchemy's asyncio needs and the rest of this library does not


def in_greenlet() -> bool:
    """Whether ``await_only()`` works, because the caller is in ``greenlet_spawn()``."""
    return bool(_concurrency.in_greenlet())


def await_only(awaitable: Any) -> Any:
    return _concurrency.await_only(awaitable)


async def greenlet_spawn(function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    """Call *function* in a greenlet, where it may use :func:`await_only`."""
    return await _concurrency.greenlet_spawn(function, *args, **kw)


def current_greenlet() -> Any:
    """Return the current greenlet; ``None`` if greenlet was never imported."""
    greenlet = sys.modules.get("greenlet")
    return None if greenlet is None else greenlet.getcurrent()


#: Decorator for a method that begins a transaction inside a transaction.  The method
#: then makes the same checks as ``SessionTransaction._begin()``.
begins_within: Callable[[Any], Any] = _state_changes._StateChange.declare_states(
    (_session.SessionTransactionState.ACTIVE,),
    _state_changes._StateChangeStates.NO_CHANGE,
)


#: The state of a transaction that is neither beginning nor ending.
ACTIVE = _session.SessionTransactionState.ACTIVE


def boundary(transaction: Any) -> Any:
    """Return the innermost savepoint or outer transaction around *transaction*.

    This is *transaction* itself unless it is the subtransaction of a flush.
    """
    while transaction is not None and not is_boundary(transaction):
        transaction = transaction._parent
    return transaction


def is_boundary(transaction: Any) -> bool:
    """Whether *transaction* has its own COMMIT or RELEASE: no subtransaction."""
    return transaction.nested or transaction._parent is None


def all_connections_of(transaction: Any) -> set[Any]:
    """Return the connections of a transaction and of its parents."""
    return set().union(*map(connections_of, _with_parents(transaction)))


def connections_of(transaction: Any) -> set[Any]:
    return {entry[0] for entry in transaction._connections.values()}
