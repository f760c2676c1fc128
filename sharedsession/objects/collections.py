"""Guard the values of an object: collections, mutable values, association proxies.

For each class of such values one subclass is made.  In the subclass every method is an
operation of the session that the value's object is attached to.  A value changes to the
subclass in place when its object is attached to a guarded session.  An iterator or a
view that a method returns is made from a snapshot, therefore iterating over it later
needs no guard.

SQLAlchemy's own code uses the adapter of a collection and the ``_sa_...`` methods.  The
``_sa_...`` methods are not guarded, because that code runs inside an operation already.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, KeysView, MappingView, ValuesView
from types import FunctionType
from typing import Any, Callable

import sqlalchemy.exc as sa_exc

from ..guard.access import LOAD, READ, WRITE
from ..guard.guard import Guard
from ..internals import orm
from ..operations.inplace import change_class, is_guarded, like, per_class, subclass
from ..operations.operation import optimistic_read, run
from ..operations.tables import COLLECTION_ADAPTER, COMPARES, LOOKS
from ..operations.wrap import guarded
from . import pickling
from .guards import guard_of_instance, guard_of_state, guards_by_session

_FindGuard = Callable[[Any], "Guard | None"]

#: Methods that concern the Python object, not its content.
_NOT_OPERATIONS = frozenset(
    {
        *("__alloc__", "__class__", "__class_getitem__", "__del__", "__delattr__"),
        *("__dir__", "__getattr__", "__getattribute__", "__getstate__", "__hash__"),
        *("__init__", "__init_subclass__", "__new__", "__reduce__", "__reduce_ex__"),
        *("__setattr__", "__setstate__", "__sizeof__", "__subclasshook__"),
        *("__copy__", "__deepcopy__", "__instancecheck__", "__getnewargs__"),
        "coerce",
    }
)

_METHOD_TYPES = (FunctionType, type(list.append), type(list.__len__))


# -- collections


def guard_collection(collection: Any) -> None:
    """Guard the collection of an attached object, and its adapter."""
    adapter = orm.adapter_of(collection)
    if not is_guarded(collection) and adapter is not None:
        if type(adapter) is orm.CollectionAdapter:
            adapter.__class__ = _guarded_adapter()
        change_class(collection, _guarded_class(type(collection), _guard_of_collection))


def _guard_of_collection(collection: Any) -> Guard | None:
    adapter = orm.adapter_of(collection)
    return (
        None
        if adapter is None
        else guards_by_session.get(adapter.owner_state.session_id)
    )


@per_class
def _guarded_adapter() -> Any:
    base = orm.CollectionAdapter
    members: dict[str, Any] = {}
    for name, access in COLLECTION_ADAPTER.items():
        if access is not None:
            operation = guarded(getattr(base, name), access, _guard_of_adapter)
            if access is WRITE:
                operation = _if_it_may_relate(operation, _guard_of_adapter)
            members[name] = operation
    return subclass(base, members)


def _guard_of_adapter(adapter: Any) -> Guard | None:
    return guard_of_state(adapter.owner_state)


# -- mutable values


class _Parents(weakref.WeakKeyDictionary[Any, Any]):
    """The parents of a mutable value.

    Guards the value when a parent is added whose session is guarded.
    """

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self._find = None if value is None else weakref.ref(value)

    def are_of(self, value: Any) -> bool:
        """False for a dictionary that was copied together with another value.

        ``copy.copy()`` of a value copies its dictionary of parents too.
        """
        return self._find is not None and self._find() is value

    def __setitem__(self, state: Any, key: Any) -> None:
        super().__setitem__(state, key)
        if state.session_id in guards_by_session and self._find is not None:
            guard_mutable(self._find())


class _ParentsOfMutable:
    """Descriptor that makes :class:`_Parents` instead of SQLAlchemy's dictionary."""

    def __get__(self, value: Any, owner: Any) -> Any:
        if value is None:
            return self
        known = value.__dict__.get("_parents")
        if isinstance(known, _Parents) and known.are_of(value):
            return known
        parents = value.__dict__["_parents"] = _Parents(value)
        parents.update(known or {})
        return parents

    def __set__(self, value: Any, parents: Any) -> None:
        value.__dict__["_parents"] = parents


def install() -> None:
    """Replace the parents of mutable values and the session of dynamic handles."""
    orm.MutableBase._parents = _ParentsOfMutable()
    orm.DynamicHandle.session = property(_session_of_dynamic, _plain_session.fset)


def guard_mutable(value: Any) -> None:
    """Guard a mutable value of an attached object."""
    if value is not None and not is_guarded(value):
        change_class(value, _guarded_class(type(value), _guard_of_mutable))


def _explained(function: Any) -> Any:
    """Explain the error that a change raises if its mutable value was discarded."""

    def change(self: Any, *args: Any, **kw: Any) -> Any:
        try:
            return function(self, *args, **kw)
        except sa_exc.InvalidRequestError as error:
            if not str(error).startswith("Can't flag attribute"):
                raise
            raise sa_exc.InvalidRequestError(
                f"{error} This value was discarded from its object, by a commit, a "
                "rollback or expire(), perhaps in another thread, after it was read: "
                "the change is in a value that no object has, so it will not be saved. "
                "Read and change the value in one critical section: 'with "
                "session.critical_section():'."
            ) from error

    return like(change, function)


def _guard_of_mutable(value: Any) -> Guard | None:
    # References, because another thread may be giving the value to a parent.
    for reference in value._parents.keyrefs():
        state = reference()
        guard = None if state is None else guards_by_session.get(state.session_id)
        if guard is not None:
            return guard
    return None


# -- dynamic handles

_plain_session = orm.DynamicHandle.session


def _session_of_dynamic(handle: Any) -> Any:
    """Like ``session`` of SQLAlchemy's handle, but does not flush in a read section.

    The read section flushed on the way in.
    """
    guard = guard_of_instance(handle.instance)
    if guard is None or not guard.reads_only():
        return _plain_session.fget(handle)
    session = guard.session()
    return session if orm.has_identity(handle.instance) else None


# -- association proxies


def guard_association(value: Any) -> Any:
    """Guard *value* if it is a collection of an association proxy; return *value*."""
    if isinstance(value, orm.AssociationCollection) and not is_guarded(value):
        change_class(value, _guarded_class(type(value), _guard_of_association))
    return value


def _guard_of_association(value: Any) -> Guard | None:
    return guard_of_instance(value.lazy_collection.parent)


# -- the subclass for a class of values


@per_class
def _guarded_class(base: type, find_guard: _FindGuard) -> Any:
    members: dict[str, Any] = {
        "__reduce_ex__": guarded(pickling.reduction_of(base), READ, find_guard),
    }
    if find_guard is _guard_of_mutable and not issubclass(base, (list, dict, set)):
        members["__setattr__"] = _guarded_setattr(base)
        members["__getattribute__"] = _guarded_getattribute(base)
    if issubclass(base, list):
        members["__radd__"] = guarded(_add_to_plain_list, LOAD, find_guard)
    for name in dir(base):
        if name in _NOT_OPERATIONS or name.startswith("_sa_"):
            continue
        if name.startswith("_") and not name.endswith("__"):
            continue
        member = _static_member(base, name)
        if isinstance(member, _METHOD_TYPES):
            members[name] = _operation(member, name, find_guard)
        elif isinstance(member, property):
            members[name] = _guarded_property(member, find_guard)
    return subclass(base, members)


def _static_member(base: type, name: str) -> Any:
    for cls in base.__mro__[:-1]:
        if name in vars(cls):
            return vars(cls)[name]
    return None


def _operation(function: Any, name: str, find_guard: _FindGuard) -> Any:
    if find_guard is _guard_of_collection and name in _QUICK_LOOKS:
        return _QUICK_LOOKS[name](function)
    # The collection of an association proxy reads other attributes, which may load.
    if name in LOOKS and find_guard is not _guard_of_association:
        return guarded(function, READ, find_guard, calls=_snapshot_of(function))
    if name in LOOKS or name in COMPARES:
        return guarded(function, LOAD, find_guard, calls=_snapshot_of(function))
    write = guarded(function, WRITE, find_guard, calls=_snapshot_of(function))
    if find_guard is _guard_of_mutable:
        return _explained(write)
    if find_guard is _guard_of_collection:
        write = _if_it_may_relate(write, find_guard)
        return _unless_loading(function, write, find_guard)
    return write


def _if_it_may_relate(write: Any, find_guard: _FindGuard) -> Any:
    def checked(self: Any, *args: Any, **kw: Any) -> Any:
        guard = find_guard(self)
        if guard is not None:
            guard.check_may_relate()
        return write(self, *args, **kw)

    return like(checked, write)


# -- fast paths for optimistic reads of a collection


def _quick_len(function: Any) -> Any:
    def __len__(self: Any) -> int:
        try:
            guard = guards_by_session[self._sa_adapter.owner_state.session_id]
        except (AttributeError, KeyError):
            return function(self)  # type: ignore[no-any-return]
        version = guard.version
        if version is not None:
            count: int = function(self)
            if guard.version is version:
                return count
        return optimistic_read(guard, function, self)  # type: ignore[no-any-return]

    return like(__len__, function)


def _quick_iter(function: Any) -> Any:
    def walk_copy(self: Any) -> Iterator[Any]:
        return iter(copy_of(self))

    def copy_in_steps(self: Any) -> list[Any]:
        return list(function(self))

    copy_of = list.copy if function is list.__iter__ else copy_in_steps

    def __iter__(self: Any) -> Iterator[Any]:
        try:
            guard = guards_by_session[self._sa_adapter.owner_state.session_id]
        except (AttributeError, KeyError):
            return walk_copy(self)
        version = guard.version
        if version is not None:
            try:
                copy = copy_of(self)
            except RuntimeError:
                pass  # the collection changed meanwhile, and so did the version
            else:
                if guard.version is version:
                    return iter(copy)
        return optimistic_read(guard, walk_copy, self)  # type: ignore[no-any-return]

    return like(__iter__, function)


def _quick_getitem(function: Any) -> Any:
    def __getitem__(self: Any, key: Any) -> Any:
        try:
            guard = guards_by_session[self._sa_adapter.owner_state.session_id]
        except (AttributeError, KeyError):
            return function(self, key)
        version = guard.version
        if version is not None:
            try:
                value = function(self, key)
            except LookupError:
                pass  # look up again under the guard
            else:
                if guard.version is version:
                    return value
        return optimistic_read(guard, function, self, key)

    return like(__getitem__, function)


_QUICK_LOOKS = {
    "__getitem__": _quick_getitem,
    "__iter__": _quick_iter,
    "__len__": _quick_len,
}


def _unless_loading(function: Any, write: Any, find_guard: _FindGuard) -> Any:
    """Return *write*, but as a ``LOAD`` if SQLAlchemy calls it without an initiator.

    SQLAlchemy fills a collection while loading by calling its appender without an event
    (``_sa_initiator=False``).  The appender itself is not guarded then, but it may call
    other methods of the collection, for example in a keyed collection.
    """
    load = guarded(function, LOAD, find_guard)

    def change(self: Any, *args: Any, **kw: Any) -> Any:
        loading = kw.get("_sa_initiator") is False or (args and args[-1] is False)
        return (load if loading else write)(self, *args, **kw)

    return like(change, function)


def _snapshot_of(function: Any) -> Any:
    return lambda *args, **kw: _snapshot(function(*args, **kw))


def _snapshot(result: Any) -> Any:
    if isinstance(result, Iterator):
        return iter(list(result))
    if isinstance(result, MappingView):
        return _view_of_copy(result)
    return result


def _view_of_copy(view: MappingView) -> Any:
    if isinstance(view, KeysView):
        return dict.fromkeys(view).keys()
    if isinstance(view, ValuesView):
        return dict(enumerate(view)).values()
    return dict(view).items()  # type: ignore[call-overload]


def _guarded_property(member: property, find_guard: _FindGuard) -> property:
    getter = member.fget and guarded(member.fget, LOAD, find_guard)
    setter = member.fset and guarded(member.fset, WRITE, find_guard)
    deleter = member.fdel and guarded(member.fdel, WRITE, find_guard)
    return property(getter, setter, deleter, member.__doc__)


def _add_to_plain_list(self: list[Any], other: Any) -> Any:
    """``[...] + collection``, which ``list`` would copy without its guard."""
    if not isinstance(other, list):
        return NotImplemented
    return [*other, *list.copy(self)]


def _guarded_getattribute(base: Any) -> Any:
    def __getattribute__(self: Any, name: str) -> Any:
        guard = None if name.startswith("_") else _guard_of_mutable(self)
        if guard is None:
            return base.__getattribute__(self, name)
        return optimistic_read(guard, base.__getattribute__, self, name)

    return __getattribute__


def _guarded_setattr(base: Any) -> Any:
    """For values whose attributes can be set, such as mutable composites."""

    def __setattr__(self: Any, name: str, value: Any) -> None:
        guard = None if name == "_parents" else _guard_of_mutable(self)
        if guard is None:
            base.__setattr__(self, name, value)
        else:
            run(guard, WRITE, base.__setattr__, self, name, value)

    return _explained(__setattr__)
