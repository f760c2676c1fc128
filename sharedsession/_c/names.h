/* The names of what is looked for in objects of Python classes.

   What SQLAlchemy has is here like in alchemy.py: the private names with the reason why
   nothing public will do, which tests/test_compiled.py holds to what is there. */

#ifndef SHAREDSESSION_NAMES_H
#define SHAREDSESSION_NAMES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define EACH_NAME(X)                                                                    \
    /* Python's */                                                                      \
    X(CLASS, "__class__")                                                               \
    X(CLOSE, "close")                                                                   \
    X(FETCHALL, "fetchall")                                                             \
    X(LOCKED, "locked")                                                                 \
    /* this library's */                                                                \
    X(ATTEND_TO, "attend_to")                                                           \
    X(GUARD, "guard")                                                                   \
    X(GUARD_OF_CONNECTION, "_sharedsession_guard")                                      \
    X(IS_OPEN, "is_open")                                                               \
    X(LEAVE, "leave")                                                                   \
    X(NUMBER, "number")                                                                 \
    X(OWNER_OF_HOLD, "owner")                                                           \
    X(READS_ONLY, "reads_only")                                                         \
    X(REFUSE_WRITE, "refuse_write")                                                     \
    X(WHAT, "what")                                                                     \
    /* SQLAlchemy's: of statements and results, which a call each would cost more than  \
       all the rest of settling a result */                                             \
    X(ALWAYS_REFRESH, "always_refresh")                                                 \
    X(CONNECTION, "connection")                                                         \
    X(CONTEXT, "context")                                                               \
    X(CURSOR, "cursor")                                                                 \
    X(CURSOR_STRATEGY, "cursor_strategy")                                               \
    X(DESCRIPTION, "alternate_cursor_description")                                      \
    X(EXECUTION_OPTIONS, "execution_options")                                           \
    X(LOAD_OPTIONS, "_sa_orm_load_options")                                             \
    X(OPTION_POPULATE, "_populate_existing")                                            \
    X(OPTION_STREAM, "stream_results")                                                  \
    X(OPTION_YIELD, "yield_per")                                                        \
    X(OWN_OPTIONS, "_execution_options")                                                \
    X(POPULATE_EXISTING, "populate_existing")                                           \
    X(RAW, "raw")                                                                       \
    X(ROW_BUFFER, "_rowbuffer")                                                         \
    X(SOFT_CLOSED, "_soft_closed")                                                      \
    X(TEXT, "text")                                                                     \
    X(YIELD_PER, "_yield_per")                                                          \
    /* of transactions: the connections that one has already */                         \
    X(CONNECTIONS, "_connections")                                                      \
    X(NESTED, "nested")                                                                 \
    X(PARENT, "_parent")                                                                \
    X(SESSION, "session")                                                               \
    X(STATE_OF_TRANSACTION, "_state")                                                   \
    /* of sessions and identity maps: where an object is found without a guard */       \
    X(AFTER_ATTACH, "_after_attach")                                                    \
    X(AFTER_ATTACH_EVENT, "after_attach")                                               \
    X(DISPATCH, "dispatch")                                                             \
    X(HASH_KEY, "hash_key")                                                             \
    X(IDENTITY_MAP, "identity_map")                                                     \
    X(MODIFIED_STATES, "_modified")                                                     \
    X(NEW, "_new")                                                                      \
    X(REFERENCE, "_wr")                                                                 \
    X(STATES, "_dict")                                                                  \
    X(TRANSIENT_TO_PENDING, "transient_to_pending")                                     \
    /* of states, managers, mappers and attributes */                                   \
    X(ACTIVE_HISTORY, "_active_history")                                                \
    X(CALLABLE, "callable_")                                                            \
    X(CALLABLES, "callables")                                                           \
    X(CLEAN_UP, "_cleanup")                                                             \
    X(COLLECTION_NAMES, "_collection_impl_keys")                                        \
    X(COMMITTED_STATE, "committed_state")                                               \
    X(EXPIRED, "expired")                                                               \
    X(EXPIRED_ATTRIBUTES, "expired_attributes")                                         \
    X(IDENTITY_CLASS, "_identity_class")                                                \
    X(INHERITS, "inherits")                                                             \
    X(INSTANCE_DICT, "instance_dict")                                                   \
    X(KEY, "key")                                                                       \
    X(LAST_KNOWN_VALUES, "_last_known_values")                                          \
    X(MANAGER, "manager")                                                               \
    X(MANAGER_OF_CLASS, "_sa_class_manager")                                            \
    X(MAP_OF_STATE, "_instance_dict")                                                   \
    X(MAPPED, "class_")                                                                 \
    X(MAPPER, "mapper")                                                                 \
    X(MODIFIED, "modified")                                                             \
    X(OBJ, "obj")                                                                       \
    X(PARENT_LISTENERS, "parent_listeners")                                             \
    X(PASSIVE, "passive")                                                               \
    X(PENDING_MUTATIONS, "_pending_mutations")                                          \
    X(PRIMARY_KEY, "primary_key")                                                       \
    X(SESSION_ID, "session_id")                                                         \
    X(SET, "set")                                                                       \
    X(STATE, "_sa_instance_state")                                                      \
    X(STRONG_OBJECT, "_strong_obj")

#define X(name, text) NAME_##name,
enum name { EACH_NAME(X) NAMES };
#undef X

extern PyObject *name_of[NAMES];

int init_names(void);

/* A tuple of them all. */
PyObject *all_names(void);

/* An attribute, as a new reference; NULL with an error if there is none. */
static inline PyObject *
get_attribute(PyObject *thing, enum name name)
{
    return PyObject_GetAttr(thing, name_of[name]);
}

/* The same, but without an error if there is none; NULL also of NULL. */
static inline PyObject *
attribute(PyObject *thing, enum name name)
{
    PyObject *found = thing == NULL ? NULL : PyObject_GetAttr(thing, name_of[name]);
    if (thing != NULL && found == NULL && PyErr_ExceptionMatches(PyExc_AttributeError))
        PyErr_Clear();
    return found;
}

/* After a look: whether an error is one that came in between, an interrupt say.  Another
   one is met again by who does it in Python, and cleared. */
static inline int
is_interrupted(void)
{
    if (PyErr_Occurred() == NULL)
        return 0;
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return 1;
    PyErr_Clear();
    return 0;
}

/* Whether an attribute is that very object; 0 also with an error. */
static inline int
has(PyObject *thing, enum name name, PyObject *wanted)
{
    PyObject *found = attribute(thing, name);
    Py_XDECREF(found);
    return found != NULL && found == wanted;
}

#endif
