/* What methods of SQLAlchemy do in the usual case, in their place: see usual.h.

   Each looks whether it is the usual case first, and then does all that is to be done,
   or nothing. */

#include "usual.h"

Usual usual;

PyObject *
know_usual(PyObject *module, PyObject *args)
{
    Usual now;
    if (!PyArg_ParseTuple(args, "OOOlllO!OOO!O!:know_usual", &now.no_value, &now.no_result,
                          &now.no_history, &now.callables_ok, &now.init_ok,
                          &now.with_pending, &PyType_Type,
                          &now.no_listeners, &now.dont_set, &now.no_map, &PyDict_Type,
                          &now.watched, &PyDict_Type, &now.of_base))
        return NULL;
    /* They last as long as the process. */
    PyObject *kept[] = {now.no_value,  now.no_result,
                        now.no_history, (PyObject *)now.no_listeners,
                        now.dont_set,  now.no_map,
                        now.watched,   now.of_base};
    for (size_t which = 0; which < Py_ARRAY_LENGTH(kept); which++)
        Py_INCREF(kept[which]);
    usual = now;
    Py_RETURN_NONE;
}

int
nobody_hears(PyObject *dispatch, enum name event)
{
    PyObject *listeners = get_attribute(dispatch, event);
    if (listeners == NULL)
        return -1;
    Py_ssize_t count = 1;
    if (Py_IS_TYPE(listeners, usual.no_listeners)) {
        PyObject *of_class = get_attribute(listeners, NAME_PARENT_LISTENERS);
        count = of_class == NULL ? -1 : PyObject_Size(of_class);
        Py_XDECREF(of_class);
    }
    Py_DECREF(listeners);
    return count < 0 ? -1 : count == 0;
}

/* -- attributes */

/* Whether a dictionary or set that is an attribute has a key: -1 with an error. */
static int
is_among(PyObject *thing, enum name name, PyObject *key)
{
    PyObject *found = get_attribute(thing, name);
    int there = found == NULL ? -1 : PySequence_Contains(found, key);
    Py_XDECREF(found);
    return there;
}

/* Whether nothing could load it: no earlier value, not expired, no loader. */
static int
is_without_loader(PyObject *impl, PyObject *state, PyObject *key)
{
    if (!has(impl, NAME_CALLABLE, Py_None) || is_among(state, NAME_EXPIRED_ATTRIBUTES, key))
        return 0;
    return !is_among(state, NAME_CALLABLES, key);
}

/* The argument `passive`; -1 if it is not given, perhaps with an error. */
static long
flags_of(Args args)
{
    PyObject *flags = args.count > 3 ? args.args[3] : argument(args, name_of[NAME_PASSIVE]);
    return flags == NULL || !PyLong_Check(flags) ? -1 : PyLong_AsLong(flags);
}

/* get() of a value that is not there. */
static PyObject *
get_missing(Args args, PyObject *key)
{
    long flags = flags_of(args);
    if (flags < 0 || is_among(args.args[1], NAME_COMMITTED_STATE, key))
        return NULL;
    if (!(flags & usual.callables_ok))
        return Py_NewRef(usual.no_result);
    if (!(flags & usual.init_ok) && is_without_loader(args.args[0], args.args[1], key)
        && !PyErr_Occurred())
        return Py_NewRef(usual.no_value);
    return NULL;
}

/* get(impl, state, values, passive) */
static PyObject *
get_of_attribute(Args args, PyObject *key)
{
    PyObject *value = find(args.args[2], key);
    return value != NULL || PyErr_Occurred() ? value : get_missing(args, key);
}

/* get_history(impl, state, values, passive) of a value that is not there, and is not to
   be loaded. */
static PyObject *
history_of_attribute(int method, Args args, PyObject *key)
{
    long flags = flags_of(args);
    if (flags < 0 || (flags & usual.callables_ok) || PyDict_Contains(args.args[2], key)
        || is_among(args.args[1], NAME_COMMITTED_STATE, key))
        return NULL;
    if (method == HISTORY_OF_COLLECTION && (flags & usual.with_pending)
        && is_among(args.args[1], NAME_PENDING_MUTATIONS, key))
        return NULL;
    return Py_NewRef(usual.no_history);
}

static PyObject *
do_with_attribute(int method, Args args)
{
    if (args.count < 3 || !PyDict_Check(args.args[2]))
        return NULL;
    PyObject *key = get_attribute(args.args[0], NAME_KEY);
    if (key == NULL)
        return NULL;
    PyObject *result = method == GET_OF_ATTRIBUTE ? get_of_attribute(args, key)
                                                  : history_of_attribute(method, args, key);
    Py_DECREF(key);
    return result;
}

/* -- states */

/* The `dict` of a state: the values of its object, or nothing once that is gone.  What
   finds them is looked up each time, for others may be put in its place. */
PyObject *
values_of_state(PyObject *module, PyObject *state)
{
    PyObject *reference = get_attribute(state, NAME_OBJ);
    PyObject *object = reference == NULL ? NULL : PyObject_CallNoArgs(reference);
    Py_XDECREF(reference);
    if (object == Py_None) {
        Py_DECREF(object);
        return PyDict_New();
    }
    PyObject *function = NULL, *values = NULL;
    if (object != NULL)
        function = PyObject_GetItem(usual.of_base, name_of[NAME_INSTANCE_DICT]);
    if (function != NULL)
        values = PyObject_CallOneArg(function, object);
    Py_XDECREF(function);
    Py_XDECREF(object);
    return values;
}

/* -- identity maps */

/* What one has, as a new reference; NULL, perhaps without an error. */
static PyObject *
states_of(PyObject *map)
{
    PyObject *states = get_attribute(map, NAME_STATES);
    if (states != NULL && !PyDict_Check(states))
        Py_CLEAR(states);
    return states;
}

/* What get() and `in` say of a key that is not there. */
static PyObject *
say_of_missing(PyObject *map, PyObject *key, PyObject *answer)
{
    PyObject *states = states_of(map);
    if (states == NULL)
        return NULL;
    int there = PyDict_Contains(states, key);
    Py_DECREF(states);
    return there == 0 ? Py_NewRef(answer) : NULL;
}

static PyObject *
get_of_map(PyObject *map, PyObject *key)
{
    PyObject *missing = say_of_missing(map, key, Py_None);
    expects_guarded_state = missing != NULL;
    return missing;
}

static PyObject *
length_of_map(PyObject *map)
{
    PyObject *states = states_of(map);
    if (states == NULL)
        return NULL;
    Py_ssize_t length = PyDict_GET_SIZE(states);
    Py_DECREF(states);
    return PyLong_FromSsize_t(length);
}

static PyObject *
is_map_modified(PyObject *map)
{
    PyObject *modified = get_attribute(map, NAME_MODIFIED_STATES);
    int is_modified = modified == NULL ? -1 : PyObject_IsTrue(modified);
    Py_XDECREF(modified);
    return is_modified < 0 ? NULL : PyBool_FromLong(is_modified);
}

static PyObject *
list_of_states(PyObject *map)
{
    PyObject *states = states_of(map);
    PyObject *list = states == NULL ? NULL : PyDict_Values(states);
    Py_XDECREF(states);
    return list;
}

static PyObject *
has_map_state(PyObject *map, PyObject *state)
{
    PyObject *states = states_of(map);
    PyObject *key = states == NULL ? NULL : get_attribute(state, NAME_KEY);
    PyObject *there = key == NULL ? NULL : find(states, key), *answer = NULL;
    if (key != NULL && !PyErr_Occurred())
        answer = PyBool_FromLong(there == state);
    Py_XDECREF(there);
    Py_XDECREF(key);
    Py_XDECREF(states);
    return answer;
}

/* Among the modified ones of the map, if it is one; 0, or -1 with an error. */
static int
count_as_modified(PyObject *map, PyObject *state)
{
    PyObject *is_modified = get_attribute(state, NAME_MODIFIED);
    if (is_modified == NULL)
        return -1;
    Py_DECREF(is_modified);
    if (is_modified == Py_False)
        return 0;
    PyObject *modified = get_attribute(map, NAME_MODIFIED_STATES);
    int failed = modified == NULL ? -1 : PySet_Add(modified, state);
    Py_XDECREF(modified);
    return failed;
}

/* replace(map, state), where there is nothing to be replaced */
static PyObject *
replace_in_map(PyObject *map, PyObject *state)
{
    PyObject *states = states_of(map), *key = NULL, *done = NULL;
    if (states != NULL)
        key = get_attribute(state, NAME_KEY);
    if (key != NULL && key != Py_None && PyDict_Contains(states, key) == 0
        && put_into_map(map, state, key) == 0 && count_as_modified(map, state) == 0)
        done = Py_NewRef(Py_None);
    Py_XDECREF(key);
    Py_XDECREF(states);
    return done;
}

PyObject *
do_as_usual(int method, Args args)
{
    if (method <= HISTORY_OF_COLLECTION)
        return do_with_attribute(method, args);
    if (args.names != NULL || args.count != (method <= STATES_OF_MAP ? 1 : 2))
        return NULL;
    switch (method) {
    case LEN_OF_MAP:
        return length_of_map(args.args[0]);
    case IS_MAP_MODIFIED:
        return is_map_modified(args.args[0]);
    case STATES_OF_MAP:
        return list_of_states(args.args[0]);
    case GET_OF_MAP:
        return get_of_map(args.args[0], args.args[1]);
    case CONTAINS_OF_MAP:
        return say_of_missing(args.args[0], args.args[1], Py_False);
    case HAS_MAP_STATE:
        return has_map_state(args.args[0], args.args[1]);
    default:
        return replace_in_map(args.args[0], args.args[1]);
    }
}
