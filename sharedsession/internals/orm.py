"""Private API of SQLAlchemy: mapped objects, their attributes, and sessions."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import sqlalchemy.orm as sa_orm
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
from sqlalchemy.orm.mapper import _all_registries


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
#: objects/hidden.py.
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
