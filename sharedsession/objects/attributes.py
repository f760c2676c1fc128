"""Guard mapped objects in place.

Objects are not wrapped, because ``type(obj)``, identity and C code would reveal the
wrapper.  Instead, the parts that SQLAlchemy itself puts on a mapped class and its
objects change their class in place, to a subclass without fields of its own:

* each attribute of a mapped class (the descriptor) and its implementation, when the
  first guard of the process is made; a later attribute, when the attribute is made;
* the state of an object, when the object is attached to a guarded session.

Attributes belong to the class, therefore objects of plain sessions use the guarded
attributes too.  The number of a plain session has no guard, and the attribute then
behaves as before.
"""

from __future__ import annotations

import threading
from typing import Any, Callable

import sqlalchemy.event as sa_event
import sqlalchemy.orm as sa_orm
from sqlalchemy.ext.associationproxy import AssociationProxy
from sqlalchemy.orm import InstrumentedAttribute, QueryableAttribute

from ..guard.access import LOAD, WRITE, Access
from ..guard.guard import Guard
from ..guard.turn import snapshot
from ..internals import orm
from ..operations.inplace import is_guarded, like, per_class, subclass
from ..operations.operation import optimistic_read, run
from ..operations.tables import ATTRIBUTE_IMPL, ATTRIBUTE_STATE, STATE, Table
from ..operations.wrap import FindGuard, guarded
from . import collections, hidden, pickling, reading
from .changers import Changers
from .guards import guard_of_instance, guard_of_state, guards_by_session
from .setting import setter_of

_MISSING: Any = object()


# -- the descriptor of an attribute


def _in_dict_class(attribute: Any) -> Any:
    """Make a class for one attribute whose values are in the ``__dict__`` of objects.

    Each attribute has a class of its own, because its methods can then keep the key and
    the implementation in closures: reading both from the attribute takes longer than
    the rest of the method.
    """
    impl = attribute.impl
    getter = reading.getter_of(attribute.key, _get_otherwise)
    set_value = setter_of(impl, orm.STATE_KEY, _plain_set)

    def set_related(self: Any, instance: Any, value: Any) -> None:
        guard = guard_of_instance(instance)
        if guard is not None:
            guard.check_may_relate()
        set_value(self, instance, value)

    related = orm.is_relationship(type(impl))
    setter = set_related if related else set_value
    members = {"__get__": getter, "__set__": setter, "inherit_cache": True}
    # Shown, because the attributes of aliases are made from the attribute's own class,
    # and comparing the two depends on which class is a subclass of the other.
    return subclass(InstrumentedAttribute, {**members, "_guarded": impl}, shown=True)


def _get_otherwise(self: Any, instance: Any, owner: Any) -> Any:
    """Read as an operation: a ``READ`` if the value is loaded, otherwise a ``LOAD``."""
    guard = guard_of_instance(instance)
    if guard is None:
        return _plain_get(self, instance, owner)
    values = instance.__dict__
    if self.key in values:
        value = optimistic_read(guard, values.get, self.key, _MISSING)
        if value is not _MISSING:
            return value
    return run(guard, LOAD, _plain_get, self, instance, owner)


def _get_as_load(self: Any, instance: Any, owner: Any) -> Any:
    """Read a value that is made at each read or is kept outside of ``__dict__``."""
    guard = None if instance is None else guard_of_instance(instance)
    if guard is None:
        return _plain_get(self, instance, owner)
    return run(guard, LOAD, _plain_get, self, instance, owner)


_plain_set: Any = InstrumentedAttribute.__set__
_plain_get: Any = InstrumentedAttribute.__get__

_NotInDict = subclass(
    InstrumentedAttribute,
    {"__get__": _get_as_load, "inherit_cache": True},
    shown=True,
)


# -- the implementation of an attribute, which all public functions call


@per_class
def _guarded_impl(impl_class: Any) -> Any:
    """Make the guarded subclass of one of SQLAlchemy's attribute implementations."""
    members: dict[str, Any] = {"__slots__": ()}
    for name, access in ATTRIBUTE_IMPL.items():
        function = getattr(impl_class, name, None)
        if function is not None and access is not None:
            relates = access is WRITE and orm.is_relationship(impl_class)
            make = _for_related_state if relates else _for_state
            members[name] = make(function, access)
    is_scalar = impl_class is orm.ScalarAttributeImpl
    members["set_unguarded"] = orm.set_scalar if is_scalar else impl_class.set
    if hasattr(impl_class, "_initialize_collection"):
        members["_initialize_collection"] = _guarded_initializer(impl_class)
    return subclass(impl_class, members)


def _for_state(function: Any, access: Access) -> Any:
    return guarded(function, access, guard_of_state, which=1)


def _for_related_state(function: Any, access: Access) -> Any:
    operation = _for_state(function, access)

    def checked(impl: Any, state: Any, *args: Any, **kw: Any) -> Any:
        guard = guards_by_session.get(state.session_id)
        if guard is not None:
            guard.check_may_relate()
        return operation(impl, state, *args, **kw)

    return checked


def _guarded_initializer(impl_class: Any) -> Any:
    def _initialize_collection(impl: Any, state: Any, *args: Any) -> Any:
        adapter, collection = impl_class._initialize_collection(impl, state, *args)
        if state.session_id in guards_by_session:
            collections.guard_collection(collection)
        return adapter, collection

    return _initialize_collection


# -- the state of an object


_flag = orm.InstanceState._modified_event


def _modified_event(
    state: Any,
    values: Any,
    attribute: Any,
    previous: Any,
    collection: bool = False,
    is_userland: bool = False,
) -> Any:
    # Only flag_modified(), flag_dirty() and mutable values are userland and need an
    # operation here.  All other calls are made inside an operation on an attribute.
    guard = guards_by_session.get(state.session_id)
    if guard is None or not is_userland:
        if hidden.watched:
            hidden.note(state, attribute, previous)
        if guard is not None:
            note_changed(guard, state, attribute)
        return _flag(state, values, attribute, previous, collection, is_userland)
    args = (state, values, attribute, previous, collection, is_userland)
    return run(guard, WRITE, _flag_and_note, *args)


def _flag_and_note(state: Any, values: Any, attribute: Any, *args: Any) -> Any:
    hidden.note(state, attribute, *args[:1])
    note_changed(guards_by_session[state.session_id], state, attribute)
    return _flag(state, values, attribute, *args)


def note_changed(guard: Guard, state: Any, attribute: Any) -> None:
    """Note the current owner as an owner of unflushed changes to an object.

    :param attribute: the attribute that was changed; ``None`` if the object was added
      or deleted.
    """
    session = guard.session()
    if session is None or orm.is_flushing(session):
        return  # a flush sets keys on behalf of the owners that are noted already
    changers = orm.changers_of(state)
    if changers is None or changers.guard is not guard:
        changers = Changers(guard)
        setattr(state, orm.CHANGERS, changers)
    if not changers.by_key:
        recovery: Any = guard.recovery
        recovery.changed(state, changers)
    key = None if attribute is None else attribute.key
    changers.note(key, guard.current_owner().party)


def _discarding(name: str, which: Callable[..., Any]) -> Any:
    """Make a method of a state that discards changes and notes what their owners lose.

    :param name: the method of ``InstanceState``.
    :param which: returns the names of the attributes whose changes are lost; it is
      called with the same arguments before the method.
    """
    plain: Any = getattr(orm.InstanceState, name)

    def discard(state: Any, values: Any, *args: Any, **kw: Any) -> Any:
        changers = orm.changers_of(state)
        if changers is None or not changers.by_key:
            return plain(state, values, *args, **kw)
        keys = set(which(state, values, *args, **kw)).intersection(changers.by_key)
        # First: nobody but the session may have the object, until it is unchanged.
        guard = guards_by_session.get(state.session_id)
        recovery: Any = None if guard is None else guard.recovery
        result = plain(state, values, *args, **kw)
        if recovery is not None:
            recovery.overwritten(changers, keys)
        return result

    return like(discard, plain)


def _every_attribute(state: Any, *args: Any, **kw: Any) -> Any:
    return [key for key in orm.changers_of(state).by_key if key is not None]


def _every_other_value(state: Any, *args: Any, **kw: Any) -> Any:
    """Only attributes with a new value: setting the old value again loses no work."""
    changed = _these_attributes(state, None, _every_attribute(state))
    return [key for key in changed if orm.is_another_value(state, key)]


def _these_other_values(
    state: Any, values: Any, names: Any, *args: Any, **kw: Any
) -> Any:
    changed = _these_attributes(state, values, names)
    return [key for key in changed if orm.is_another_value(state, key)]


def _these_attributes(
    state: Any, values: Any, names: Any, *args: Any, **kw: Any
) -> Any:
    return [key for key in names if orm.is_changed(state, key)]


def _attrs(state: Any) -> Any:
    """Like ``InstanceState.attrs``, but its attributes are read under the guard."""
    plain = orm.InstanceState.attrs.fget(state)
    return type(plain)({key: _AttributeState(state, key) for key in plain.keys()})


def _guarded_members(base: Any, table: Table, find_guard: FindGuard) -> dict[str, Any]:
    """Return the guarded properties and methods of *base* that are in *table*."""
    members: dict[str, Any] = {}
    for name, access in table.items():
        member = getattr(base, name, None)
        if access is None or member is None:
            continue
        if hasattr(member, "fget"):
            getter = guarded(member.fget, access, find_guard)
            members[name] = property(getter, doc=member.__doc__)
        else:
            members[name] = guarded(member, access, find_guard)
    return members


_AttributeState = subclass(
    orm.AttributeState,
    _guarded_members(
        orm.AttributeState,
        ATTRIBUTE_STATE,
        lambda attribute: guard_of_state(attribute.state),
    ),
)


#: The class of an object's state once the object was attached to a guarded session.
GuardedState = subclass(
    orm.InstanceState,
    {
        **_guarded_members(orm.InstanceState, STATE, guard_of_state),
        "_modified_event": _modified_event,
        orm.CHANGERS: None,
        "_expire": _discarding("_expire", _every_other_value),
        "_commit_all": _discarding("_commit_all", _every_attribute),
        "_expire_attributes": _discarding("_expire_attributes", _these_other_values),
        "_commit": _discarding("_commit", _these_attributes),
        "attrs": property(_attrs, doc=orm.InstanceState.attrs.__doc__),
        "__reduce_ex__": pickling.reduce_state,
    },
)


def adopt(state: Any, values: Any) -> None:
    """Guard the state of an object that is attached to a guarded session.

    Also guards the object's collections and mutable values.
    """
    if type(state) is PlainState:
        state.__class__ = GuardedState
    adopt_values(orm.names_of_collections(state), values)


def adopt_values(names: Any, values: Any) -> None:
    """Guard the collections of these names, and all mutable values, of an object."""
    for key in names.intersection(values):
        collections.guard_collection(values[key])
    for value in snapshot(values.values()):
        if isinstance(value, orm.MutableBase):
            collections.guard_mutable(value)


PlainState = orm.InstanceState


# -- descriptors of other kinds on a mapped class


def _guarded_proxy(proxy_class: type, shown: bool) -> Any:
    """Make the guarded subclass of a descriptor that proxies other attributes.

    Composites, synonyms and similar descriptors read several attributes, or a value
    that they keep.  One read of such a descriptor is one operation.

    :param shown: see :func:`subclass`.
    """
    plain: Any = proxy_class

    def __get__(self: Any, instance: Any, owner: Any) -> Any:
        guard = None if instance is None else guard_of_instance(instance)
        if guard is None:
            return plain.__get__(self, instance, owner)
        value = run(guard, LOAD, plain.__get__, self, instance, owner)
        return collections.guard_association(value)

    members: dict[str, Any] = {"__get__": __get__, "inherit_cache": True}
    for name in ("__set__", "__delete__"):
        if hasattr(plain, name):
            members[name] = _for_instance(getattr(plain, name))
    return subclass(plain, members, shown=shown)


def _for_instance(function: Any) -> Any:
    def operation(self: Any, instance: Any, *args: Any) -> Any:
        guard = guard_of_instance(instance)
        if guard is None:
            return function(self, instance, *args)
        return run(guard, WRITE, function, self, instance, *args)

    return operation


_GuardedAssociationProxy = _guarded_proxy(AssociationProxy, shown=False)


# -- finding all mapped classes


def install() -> None:
    """Guard all mapped classes, also those that are mapped later."""
    with _installing:
        for target, event, listener in _LISTENERS:
            if not sa_event.contains(target, event, listener):
                sa_event.listen(target, event, listener)
                for mapper in orm.all_mappers():
                    guard_class(mapper)


#: A thread that makes a guard waits here until another thread that makes one has added
#: all listeners.  Reentrant, because a listener may configure mappers.
_installing = threading.RLock()


def _attribute_instrumented(cls: type, key: str, attribute: Any) -> None:
    guard_attribute(attribute)


def _mapper_changed(mapper: sa_orm.Mapper[Any], cls: type) -> None:
    guard_class(mapper)


# Guard each attribute as early as possible, because a SQL expression of two attributes
# comes out differently if only one of them has changed its class.
_LISTENERS: list[Any] = [
    (sa_orm.Mapper, "after_mapper_constructed", _mapper_changed),
    (object, "attribute_instrument", _attribute_instrumented),
    (sa_orm.Mapper, "mapper_configured", _mapper_changed),
]


def guard_class(mapper: sa_orm.Mapper[Any]) -> None:
    for attribute in mapper.class_manager.values():
        guard_attribute(attribute)
    pickling.guard_reduction(mapper.class_)
    for cls in mapper.class_.__mro__:
        for descriptor in tuple(vars(cls).values()):
            if type(descriptor) is AssociationProxy:
                descriptor.__class__ = _GuardedAssociationProxy


def guard_attribute(attribute: QueryableAttribute[Any]) -> None:
    """Guard one attribute of a mapped class, unless this was done already."""
    guarded = getattr(type(attribute), "_guarded", None)
    if guarded is not None and guarded is attribute.impl:
        return
    if guarded or type(attribute) in (InstrumentedAttribute, _NotInDict):
        _guard_instrumented(attribute)
    elif orm.stands_before_others(attribute) and not is_guarded(attribute):
        attribute.__class__ = _guarded_proxy(type(attribute), shown=True)


def _guard_instrumented(attribute: Any) -> None:
    impl = attribute.impl
    if impl is None:  # not configured yet; attribute_instrument fires once it is
        attribute.__class__ = _NotInDict
        return
    if not is_guarded(impl):
        impl.__class__ = _guarded_impl(type(impl))
    plain = orm.has_plain_instrumentation(attribute.class_)
    in_dict = impl.supports_population and plain
    attribute.__class__ = _in_dict_class(attribute) if in_dict else _NotInDict
