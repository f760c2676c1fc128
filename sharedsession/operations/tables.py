"""The tables of all operations: what each public name does to the session.

They list every public name of the session and of the objects that it returns, with the
access of the operation.  ``None`` means that the name needs no guard, for the reason
beside it ("one field": reading a single field is atomic).  Tests walk the classes and
fail on a name that is not listed.
"""

from __future__ import annotations

from typing import Mapping

from ..guard.access import CHANGE, COMMIT, END, LOAD, READ, WRITE, Access

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
    "__enter__": None,  # the session counts its with-blocks, see session/session.py
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
    "commit": COMMIT,
    "connection": LOAD,
    "connection_callable": None,  # a hook that the application sets before use
    "delete": WRITE,
    "delete_all": WRITE,
    "deleted": READ,
    "dirty": READ,
    "dispatch": None,  # event listeners, a matter of the class
    "enable_relationship_loading": WRITE,
    "execute": None,  # guarded in _execute_internal(), see session/session.py
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
    "no_autoflush": None,  # a block, see session/session.py
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
    "__enter__": None,  # a block, see session/transaction.py
    "__exit__": None,  # the same
    "bound_connection": READ,
    "close": END,
    "commit": COMMIT,
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
    "begin": LOAD,  # as the first statement of a transaction does it
    "begin_nested": CHANGE,
    "begin_twophase": CHANGE,
    "close": CHANGE,
    "closed": READ,
    "commit": COMMIT,
    "commit_prepared": CHANGE,
    "connection": LOAD,
    "default_isolation_level": READ,
    "detach": CHANGE,
    "dialect": None,  # belongs to the engine
    "dispatch": None,  # event listeners
    "engine": None,  # never changes
    "exec_driver_sql": None,  # depends on the statement, see database/connections.py
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
    "_begin_impl": LOAD,  # from here to _savepoint_impl: called by its transactions
    "_begin_twophase_impl": CHANGE,
    "_commit_impl": COMMIT,
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
    "close": None,  # as rollback
    "commit": COMMIT,
    "connection": None,  # never changes
    "is_active": None,  # one field
    "is_valid": READ,
    "prepare": CHANGE,
    "rollback": None,  # ends the work of others, see database/connections.py
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
    "get_history": None,  # guarded at the attribute, see objects/attributes.py
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
