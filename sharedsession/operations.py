"""Run one operation inside a guard, and the tables of all operations.

The tables list every public name of the session and of the objects that it returns,
with the access of the operation.  ``None`` means that the name needs no guard, for the
reason beside it ("one field": reading a single field is atomic).  Tests walk the
classes and fail on a name that is not listed.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping

from .errors import SharedSessionError
from .guard import Guard
from .holds import Hold, WindowOpened
from .owners import Owner
from .signatures import as_function
from .terms import CHANGE, END, LOAD, READ, WRITE, Access


def run(
    guard: Guard, access: Access, function: Callable[..., Any], *args: Any, **kw: Any
) -> Any:
    """Call *function* as one operation of the guarded session.

    Operations are reentrant: inside an operation of the same owner, *function* is a
    part of that operation.
    """
    me = guard.asker()
    if guard.running is me:
        return _run_within(guard, me, access, function, args, kw)
    if guard.window is me:
        guard.close_window(me)  # for a listener of the statement in flight
        return _run_within(guard, me, access, function, args, kw)
    if me.busy:
        return _run_nested(guard, me, access, function, args, kw)
    held = tuple(guard.holds.copy()) if guard.holds else ()
    me.busy = True
    try:
        if guard.inside is me and guard.go_on(me):
            pass
        elif guard.come_in(me):
            guard.since = guard.clock()
            if guard.attention:
                guard.attend_to(me, access)
        else:
            guard.enter(me, access)
        me.busy = False
        guard.may_open = access is LOAD and not guard.checks_askers
        result = function(*args, **kw)
        if access is WRITE and guard.worker is not me:
            guard.note_work(me)
        return result
    except BaseException as error:
        _note_failure(guard, me, held, error)
        raise
    finally:
        try:
            _leave(guard, me)
        except BaseException:
            _leave_again(guard, me, held)
            raise


def _leave(guard: Guard, me: Owner) -> None:
    """End an operation.  If this raises, call :func:`_leave_again`."""
    me.busy = True
    guard.leave(me)
    me.busy = False
    if guard.forsaken:
        guard.reap()


def _run_nested(
    guard: Guard, me: Owner, access: Access, function: Any, args: Any, kw: Any
) -> Any:
    """Call *function* for a finalizer or a signal handler in the thread of *me*.

    The finalizer or handler interrupted *me* while *me* was entering or leaving a
    guard, or waiting for a guard.
    If *me* is exclusive in this guard, or this guard is free, *function* is called.
    Otherwise the call is refused, because it would wait for its own thread.
    """
    if guard.is_in_bookkeeping():
        guard.refuse_nested(me)
    if guard.is_exclusive(me):
        if access is not READ and access is not LOAD and guard.reads_only():
            guard.refuse_write()
        before = guard.running, guard.version
        try:
            guard.begin_nested_operation(me)
            return _run_within(guard, me, access, function, args, kw)
        finally:
            guard.end_nested_operation(*before)
    if not guard.come_in(me):
        guard.refuse_nested(me)
    me.busy = False
    try:
        if guard.attention:
            guard.attend_to(me, access)
        return _run_within(guard, me, access, function, args, kw)
    except BaseException as error:
        _note_failure(guard, me, (), error)
        raise
    finally:
        try:
            _leave(guard, me)
        except BaseException:
            _leave_again(guard, me, ())
            raise
        finally:
            me.busy = True


def run_in(hold: Hold, access: Access, function: Callable[..., Any], *args: Any) -> Any:
    """Like :func:`run`, but inside *hold*, which the caller takes over first."""
    guard = hold.guard
    me = guard.asker()
    if guard.running is me or not hold.is_open:
        return run(guard, access, function, *args)
    held = tuple(guard.holds.copy())
    try:
        guard.take_over(hold, begins=True)
        if guard.running is not me:  # the hold was released meanwhile
            return run(guard, access, function, *args)
        if guard.attention:
            guard.attend_to(me, access)
        guard.may_open = False
        return function(*args)
    except BaseException as error:
        _note_failure(guard, me, held, error)
        raise
    finally:
        try:
            _leave(guard, me)
        except BaseException:
            _leave_again(guard, me, held)
            raise


def _note_failure(
    guard: Guard, me: Owner, held: tuple[int, ...], error: BaseException
) -> None:
    guard.close_window(me)  # an interrupt may have left the window open
    if guard.running is me:  # otherwise the owner was not admitted
        guard.failed = me, error.__class__.__name__
        guard.attention = guard.unsettled = True
    if guard.holds:
        guard.drop_streams(me, held)


def _leave_again(guard: Guard, me: Owner, held: tuple[int, ...]) -> None:
    """Leave again after an interrupt stopped :func:`_leave`.

    Without this, the guard would stay held and no other owner could enter any more.
    """
    me.busy = True
    try:
        if guard.holds:
            guard.drop_streams(me, held)
        guard.leave(me)
    finally:
        me.busy = False
        if guard.forsaken:
            guard.reap()


def _run_within(
    guard: Guard, me: Owner, access: Access, function: Any, args: Any, kw: Any
) -> Any:
    """Call *function* as a part of the operation that *me* runs already."""
    if access is WRITE and guard.reads_only():
        guard.refuse_write()  # for example a listener of a load in a read section
    if access is not READ and access is not LOAD:
        guard.may_open = False  # no window after a change
    result = function(*args, **kw)
    if access is WRITE and guard.worker is not me:
        guard.note_work(me)
    return result


def look(guard: Guard, function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    """Optimistic read: call *function* without a lock if possible, else as a ``READ``.

    :param function: reads loaded state only.

    The result counts if no other owner can have changed anything during the call:
    either the guard has the same version before and after the call, or the caller keeps
    all other owners out.  The same rule decides whether an error of *function* counts.

    A reader that waits in the queue leaves the queue if a window opens, and tries an
    optimistic read again.  The second attempt keeps its place in the queue.
    """
    version = guard.version
    if version is None and guard.running is guard.asker():
        return function(*args, **kw)
    if guard.is_still(version):
        try:
            result = function(*args, **kw)
        except SharedSessionError:
            raise  # from an operation inside: a WorkLostError is raised only once
        except Exception:
            if guard.is_still(version):
                raise
        else:
            if guard.is_still(version):
                return result
    try:
        return run(guard, READ, function, *args, **kw)
    except WindowOpened:
        me = guard.asker()
        me.is_patient = True
    try:
        return look(guard, function, *args, **kw)
    finally:
        me.is_patient = False


FindGuard = Callable[[Any], "Guard | None"]


def guarded(
    function: Callable[..., Any],
    access: Access,
    find_guard: FindGuard,
    *,
    refused: bool = False,
    calls: Callable[..., Any] | None = None,
    which: int = 0,
) -> Callable[..., Any]:
    """Return an operation that calls the method *function*, with the same signature.

    :param access: what the operation does to the session.
    :param find_guard: returns the guard of the guarded argument, or ``None``.
    :param refused: whether a read section refuses the operation even if it is a part of
      another operation.  The default is False.
    :param calls: the function to call instead of *function*.  The default is
      *function* itself.
    :param which: the position of the guarded argument.  The default is 0, ``self``.
    """
    if access is READ:

        def look_at(function: Any, *args: Any, **kw: Any) -> Any:
            do = calls or function
            guard = find_guard(args[which])
            if guard is None:
                return do(*args, **kw)
            return look(guard, do, *args, **kw)

        return as_function(function, look_at)

    def operate(function: Any, *args: Any, **kw: Any) -> Any:
        do = calls or function
        guard = find_guard(args[which])
        if guard is None:
            return do(*args, **kw)
        if refused and guard.reads_only():
            guard.refuse_write()
        return run(guard, access, do, *args, **kw)

    return as_function(function, operate)


Table = Mapping[str, "Access | None"]

#: Configuration attributes of a session; setting one is a ``CHANGE``.
SESSION_SETTINGS = frozenset(
    {
        *("autobegin", "autoflush", "bind", "enable_baked_queries"),
        *("expire_on_commit", "join_transaction_mode", "twophase"),
    }
)

SESSION: Table = {
    "__contains__": READ,
    "__enter__": None,  # the session counts its with-blocks, see session.py
    "__exit__": END,
    "__iter__": READ,
    "add": WRITE,
    "add_all": WRITE,
    "begin": CHANGE,
    "begin_nested": CHANGE,
    "bind_mapper": CHANGE,
    "bind_table": CHANGE,
    "bulk_insert_mappings": WRITE,
    "bulk_save_objects": WRITE,
    "bulk_update_mappings": WRITE,
    "close": END,
    "close_all": None,  # closes each session under that session's guard
    "commit": CHANGE,
    "connection": LOAD,
    "connection_callable": None,  # a hook that the application sets before use
    "delete": WRITE,
    "delete_all": WRITE,
    "deleted": READ,
    "dirty": READ,
    "dispatch": None,  # event listeners, a matter of the class
    "enable_relationship_loading": WRITE,
    "execute": None,  # guarded in _execute_internal(), see session.py
    "execution_options": None,  # an immutable mapping
    "expire": CHANGE,
    "expire_all": CHANGE,
    "expunge": CHANGE,
    "expunge_all": CHANGE,
    "flush": CHANGE,
    "get": LOAD,
    "get_bind": READ,
    "get_nested_transaction": READ,
    "get_one": LOAD,
    "get_transaction": READ,
    "identity_key": None,  # computes from the arguments alone
    "in_nested_transaction": READ,
    "in_transaction": READ,
    "info": None,  # a dictionary that belongs to the application
    "invalidate": END,
    "is_active": READ,
    "is_modified": LOAD,
    "merge": WRITE,
    "merge_all": WRITE,
    "new": READ,
    "no_autoflush": None,  # a block, see session.py
    "object_session": None,  # returns the session and reads nothing of it
    "prepare": CHANGE,
    "query": None,  # only makes a Query, which is executed like any statement
    "refresh": CHANGE,
    "reset": END,
    "rollback": END,
    "scalar": None,  # see execute
    "scalars": None,  # see execute
}

#: Private methods by which the rest of SQLAlchemy enters a session, bypassing the
#: public ones.
SESSION_INTERNAL: Table = {
    "_get_impl": LOAD,  # Query.get()
    "_merge": WRITE,  # merge_frozen_result()
    "_expunge_states": CHANGE,  # make_transient()
    "_save_or_update_state": WRITE,  # cascades from objects that are not attached
}

TRANSACTION: Table = {
    "__enter__": None,  # a block, see transactions.py
    "__exit__": None,  # the same
    "bound_connection": READ,
    "close": END,
    "commit": CHANGE,
    "connection": LOAD,
    "connections": READ,
    "declare_states": None,  # a decorator, used when the class is made
    "is_active": READ,
    "nested": None,  # never changes
    "origin": None,  # never changes
    "parent": None,  # never changes
    "prepare": CHANGE,
    "rollback": END,
    "session": None,  # never changes
}

CONNECTION: Table = {
    "__enter__": None,  # returns the connection
    "__exit__": CHANGE,
    "begin": CHANGE,
    "begin_nested": CHANGE,
    "begin_twophase": CHANGE,
    "close": CHANGE,
    "closed": READ,
    "commit": CHANGE,
    "commit_prepared": CHANGE,
    "connection": LOAD,
    "default_isolation_level": READ,
    "detach": CHANGE,
    "dialect": None,  # belongs to the engine
    "dispatch": None,  # event listeners
    "engine": None,  # never changes
    "exec_driver_sql": None,  # the access depends on the statement, see connections.py
    "execute": None,  # the same
    "execution_options": LOAD,
    "get_execution_options": READ,
    "get_isolation_level": LOAD,
    "get_nested_transaction": READ,
    "get_transaction": READ,
    "in_nested_transaction": READ,
    "in_transaction": READ,
    "info": None,  # a dictionary that belongs to the application
    "invalidate": CHANGE,
    "invalidated": READ,
    "recover_twophase": LOAD,
    "rollback": CHANGE,
    "rollback_prepared": CHANGE,
    "scalar": None,  # see execute
    "scalars": None,  # see execute
    "schema_for_object": None,  # computes from the arguments alone
    "should_close_with_result": None,  # a constant
    "_begin_impl": CHANGE,  # from here to _savepoint_impl: called by its transactions
    "_begin_twophase_impl": CHANGE,
    "_commit_impl": CHANGE,
    "_commit_twophase_impl": CHANGE,
    "_prepare_twophase_impl": CHANGE,
    "_release_savepoint_impl": CHANGE,
    "_rollback_impl": CHANGE,
    "_rollback_to_savepoint_impl": CHANGE,
    "_rollback_twophase_impl": CHANGE,
    "_savepoint_impl": CHANGE,
    "_safe_close_cursor": LOAD,  # called at the end of every result
}

#: The transactions and savepoints that a connection returns.
CONNECTION_TRANSACTION: Table = {
    "__enter__": None,  # only stores a reference to itself on the connection
    "__exit__": CHANGE,
    "close": CHANGE,
    "commit": CHANGE,
    "connection": None,  # never changes
    "is_active": None,  # one field
    "is_valid": READ,
    "prepare": CHANGE,
    "rollback": CHANGE,
    "xid": None,  # never changes
}

#: Methods of a connection that return such a transaction.
HAND_OUT_TRANSACTIONS = frozenset(
    {
        *("begin", "begin_nested", "begin_twophase"),
        *("get_nested_transaction", "get_transaction"),
    }
)

IDENTITY_MAP: Table = {
    "__contains__": READ,
    "__getitem__": READ,
    "__iter__": READ,
    "__len__": READ,
    "add": CHANGE,
    "all_states": READ,
    "check_modified": READ,
    "contains_state": READ,
    "discard": CHANGE,
    "fast_get_state": READ,
    "get": READ,
    "has_key": READ,
    "items": READ,
    "keys": READ,
    "replace": CHANGE,
    "safe_discard": CHANGE,
    "values": READ,
}

STATE: Table = {
    "async_session": None,  # returns the session and reads nothing of it
    "attrs": None,  # makes a namespace of AttributeState, see ATTRIBUTE_STATE
    "callables": None,  # internal: the loaders of this object
    "class_": None,  # never changes
    "committed_state": None,  # one field; internal
    "deleted": READ,
    "detached": READ,
    "dict": None,  # the object's own __dict__
    "expired": None,  # one field
    "expired_attributes": None,  # one field
    "extension_type": None,  # a constant
    "get_history": None,  # guarded at the attribute, see instances.py
    "get_impl": None,  # belongs to the class
    "has_identity": READ,
    "identity": READ,
    "identity_key": READ,
    "identity_token": None,  # never changes
    "info": None,  # a dictionary that belongs to the application
    "insert_order": None,  # one field; internal
    "is_aliased_class": None,  # a constant, like all the following is_... names
    "is_attribute": None,
    "is_bundle": None,
    "is_clause_element": None,
    "is_instance": None,
    "is_mapper": None,
    "is_property": None,
    "is_selectable": None,
    "key": None,  # one field
    "load_options": None,  # never changes
    "load_path": None,  # never changes
    "manager": None,  # belongs to the class
    "mapper": None,  # belongs to the class
    "modified": None,  # one field
    "obj": None,  # the weak reference to the object
    "object": None,  # the object
    "parents": None,  # internal
    "pending": READ,
    "persistent": READ,
    "runid": None,  # one field; internal
    "session": None,  # returns the session and reads nothing of it
    "session_id": None,  # one field
    "transient": READ,
    "unloaded": READ,
    "unloaded_expirable": READ,
    "unmodified": READ,
    "unmodified_intersection": READ,
    "was_deleted": READ,
}

ATTRIBUTE_STATE: Table = {
    "history": None,  # guarded at the attribute, like get_history()
    "key": None,  # never changes
    "load_history": None,  # guarded at the attribute
    "loaded_value": READ,
    "state": None,  # never changes
    "value": None,  # guarded at the attribute
}

#: Methods of an attribute's implementation, which work on the value of one object.
ATTRIBUTE_IMPL: Table = {
    "_default_value": CHANGE,  # init_collection() makes an empty collection
    "_dispose_previous_collection": CHANGE,  # and drops the previous collection
    "append": WRITE,
    "delete": WRITE,
    "get": LOAD,
    "get_committed_value": LOAD,
    "get_history": LOAD,
    "pop": WRITE,
    "remove": WRITE,
    "set": WRITE,
    "set_committed_value": CHANGE,
}

COLLECTION_ADAPTER: Table = {
    "__iter__": READ,
    "__len__": READ,
    "append_multiple_without_event": None,  # internal: fills a new collection
    "append_with_event": WRITE,
    "append_without_event": CHANGE,
    "attr": None,  # belongs to the class
    "bulk_appender": None,  # returns a method of the adapter
    "bulk_remover": None,  # the same
    "clear_with_event": WRITE,
    "clear_without_event": CHANGE,
    "data": None,  # returns the collection, which is guarded
    "empty": None,  # one field
    "fire_append_event": None,  # internal: called by the methods of the collection
    "fire_append_wo_mutation_event": None,  # the same
    "fire_pre_remove_event": None,  # the same
    "fire_remove_event": None,  # the same
    "invalidated": None,  # one field
    "owner_state": None,  # never changes
    "remove_with_event": WRITE,
    "remove_without_event": CHANGE,
}

#: Methods of collections and mutable values that read only the value itself.
LOOKS = frozenset(
    {
        *("__bool__", "__getitem__", "__iter__", "__len__", "__reversed__"),
        *("copy", "get", "items", "keys", "values"),
    }
)

#: Methods that call methods of the members too, which may load something.  A method in
#: neither set, also one that the application has defined, counts as a write.
COMPARES = frozenset(
    {
        *("__add__", "__and__", "__contains__", "__eq__", "__format__", "__ge__"),
        *("__gt__", "__le__", "__lt__", "__mul__", "__ne__", "__or__", "__radd__"),
        *("__rand__", "__repr__", "__rmul__", "__ror__", "__rsub__", "__rxor__"),
        *("__str__", "__sub__", "__xor__", "count", "difference", "index"),
        *("intersection", "isdisjoint", "issubset", "issuperset"),
        *("symmetric_difference", "union"),
    }
)
