/* Looks at the objects of a session that need no lock: what looks.py says, compiled. */

#include "parts.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *plain;     /* by class of session: whether its method is Session's own */
    PyObject *defaults;  /* of the parameters by name; of get() only */
    PyObject *types;     /* of identities that are taken as they are; of get() only */
    PyObject *otherwise; /* called for all that is not usual */
} Look;

/* The guard of a session, and the version to look in, if a look may do: new references,
   and whether it may. */
static int
may_look(Look *self, PyObject *session, PyObject **guard, PyObject **version)
{
    PyObject *plain = for_class_of(session, self->plain);
    *guard = plain == Py_True ? attribute(session, NAME_GUARD) : NULL;
    *version = NULL;
    Py_XDECREF(plain);
    if (*guard == NULL || !is_guard(*guard))
        return 0;
    *version = Py_NewRef(slot(*guard, VERSION));
    return is_still(*guard, *version) > 0;
}

static PyObject *
states_of(PyObject *session)
{
    PyObject *map = attribute(session, NAME_IDENTITY_MAP);
    PyObject *states = attribute(map, NAME_STATES);
    Py_XDECREF(map);
    if (states != NULL && !PyDict_Check(states))
        Py_CLEAR(states);
    return states;
}

/* -- get() */

/* The key of an object in the identity map, as a new reference; NULL, without an error,
   if it takes more to tell. */
static PyObject *
key_of(PyObject *entity, PyObject *ident)
{
    PyObject *manager = PyType_Check(entity) ? attribute(entity, NAME_MANAGER_OF_CLASS) : NULL;
    PyObject *mapper = has(manager, NAME_MAPPED, entity) ? attribute(manager, NAME_MAPPER) : NULL;
    Py_XDECREF(manager);
    PyObject *columns = attribute(mapper, NAME_PRIMARY_KEY), *key = NULL;
    Py_ssize_t count = PyTuple_CheckExact(ident) ? PyTuple_GET_SIZE(ident) : 1;
    if (columns != NULL && PyTuple_Check(columns) && PyTuple_GET_SIZE(columns) == count
        && has(mapper, NAME_INHERITS, Py_None) && has(mapper, NAME_ALWAYS_REFRESH, Py_False)) {
        PyObject *cls = attribute(mapper, NAME_IDENTITY_CLASS);
        if (cls != NULL)
            key = Py_BuildValue(PyTuple_CheckExact(ident) ? "NOO" : "N(O)O", cls, ident,
                                Py_None);
    }
    Py_XDECREF(columns);
    Py_XDECREF(mapper);
    return key;
}

/* The object of a state if nothing of it has to be loaded. */
static PyObject *
unexpired(PyObject *state)
{
    PyObject *find = has(state, NAME_EXPIRED, Py_False) ? attribute(state, NAME_OBJ) : NULL;
    PyObject *object = find == NULL ? NULL : PyObject_CallNoArgs(find);
    Py_XDECREF(find);
    if (object == Py_None)
        Py_CLEAR(object);
    return object;
}

static PyObject *
find_loaded(PyObject *session, PyObject *entity, PyObject *ident)
{
    PyObject *key = key_of(entity, ident);
    PyObject *states = key == NULL ? NULL : states_of(session);
    PyObject *state = states == NULL ? NULL : find(states, key);
    PyObject *object = state == NULL ? NULL : unexpired(state);
    Py_XDECREF(state);
    Py_XDECREF(states);
    Py_XDECREF(key);
    return object;
}

/* Whether all arguments by name are the defaults. */
static int
are_defaults(PyObject *defaults, PyObject *const *values, PyObject *names)
{
    Py_ssize_t count = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    for (Py_ssize_t which = 0; which < count; which++) {
        PyObject *name = PyTuple_GET_ITEM(names, which);
        if (PyDict_GetItemWithError(defaults, name) != values[which])
            return 0;
    }
    return 1;
}

/* get(session, entity, ident, ...) */
static PyObject *
get_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Look *self = (Look *)callable;
    PyObject *found = NULL, *guard = NULL, *version = NULL;
    if (PyVectorcall_NARGS(nargsf) == 3
        && PySet_Contains(self->types, (PyObject *)Py_TYPE(args[2])) == 1
        && are_defaults(self->defaults, args + 3, names)
        && may_look(self, args[0], &guard, &version)) {
        found = find_loaded(args[0], args[1], args[2]);
        if (found != NULL && is_still(guard, version) != 1)
            Py_CLEAR(found);
    }
    Py_XDECREF(guard);
    Py_XDECREF(version);
    if (found != NULL || is_interrupted())
        return found;
    return PyObject_Vectorcall(self->otherwise, args, nargsf, names);
}

/* -- in */

/* Whether the object of a state is pending or persistent in a session; -1 in doubt. */
static int
is_present(PyObject *session, PyObject *state)
{
    PyObject *added = attribute(session, NAME_NEW), *states = states_of(session);
    PyObject *key = attribute(state, NAME_KEY);
    int present = -1;
    if (added != NULL && PyDict_Check(added) && states != NULL && key != NULL) {
        present = PyDict_Contains(added, state);
        if (present == 0)
            present = PyDict_GetItemWithError(states, key) == state;
    }
    if (PyErr_Occurred())
        present = -1;
    Py_XDECREF(added);
    Py_XDECREF(states);
    Py_XDECREF(key);
    return present;
}

/* __contains__(session, instance) */
static PyObject *
contains_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Look *self = (Look *)callable;
    PyObject *guard = NULL, *version = NULL;
    int present = -1;
    if (PyVectorcall_NARGS(nargsf) == 2 && names == NULL
        && may_look(self, args[0], &guard, &version)) {
        PyObject *state = attribute(args[1], NAME_STATE);
        if (state != NULL)
            present = is_present(args[0], state);
        Py_XDECREF(state);
        if (present >= 0 && is_still(guard, version) != 1)
            present = -1;
    }
    Py_XDECREF(guard);
    Py_XDECREF(version);
    if (present >= 0)
        return PyBool_FromLong(present);
    if (is_interrupted())
        return NULL;
    return PyObject_Vectorcall(self->otherwise, args, nargsf, names);
}

static PyObject *
look_bind(PyObject *self, PyObject *session, PyObject *type)
{
    return session == NULL ? Py_NewRef(self) : PyMethod_New(self, session);
}

/* Look(plain, otherwise) is __contains__(); Look(plain, otherwise, defaults, types) is
   get(). */
static PyObject *
look_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *plain, *otherwise, *defaults = NULL, *types = NULL;
    if (!PyArg_ParseTuple(args, "O!O|O!O!:Look", &PyDict_Type, &plain, &otherwise,
                          &PyDict_Type, &defaults, &PyFrozenSet_Type, &types))
        return NULL;
    Look *self = (Look *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = types == NULL ? contains_call : get_call;
    self->plain = Py_NewRef(plain);
    self->otherwise = Py_NewRef(otherwise);
    self->defaults = Py_XNewRef(defaults);
    self->types = Py_XNewRef(types);
    return (PyObject *)self;
}

/* There are two of it, which last as long as the process. */
PyTypeObject look_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Look",
    .tp_doc = "Look(plain, otherwise[, defaults, types]): see looks.py",
    .tp_basicsize = sizeof(Look),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL
                | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = look_new,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Look, call),
    .tp_descr_get = look_bind,
};
