/* The states of objects of shared sessions, and what a load does with them at each
   row: see identity.py and session.py.

   A state changes its class when it comes to a shared session.  That takes a while, and
   slows it down for good; so it has the class from the start where that can be told. */

#include "usual.h"

/* Whether the next state that is made is likely one of a shared session: the last thing
   that a load does before is to look for the object in the identity map.  If another
   thread comes in between, a state has the other class, which does no harm. */
int expects_guarded_state;

/* Makes the states of new objects of a class, or changes the class of one. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyTypeObject *plain;
    PyTypeObject *guarded;
    PyObject *notice; /* Adder only: called with the manager of one that is plain */
} States;

/* Set an attribute to a new reference, which may be NULL; 0, or -1 with an error. */
static int
set_to_new(PyObject *thing, enum name name, PyObject *value)
{
    int failed = value == NULL ? -1 : PyObject_SetAttr(thing, name_of[name], value);
    Py_XDECREF(value);
    return failed;
}

/* What cleans up behind the object of a state. */
static PyObject *
reference_for(PyObject *state, PyObject *object)
{
    PyObject *clean_up = get_attribute(state, NAME_CLEAN_UP);
    PyObject *reference = clean_up == NULL ? NULL : PyWeakref_NewRef(object, clean_up);
    Py_XDECREF(clean_up);
    return reference;
}

/* Like InstanceState.__init__(). */
static int
init_state(PyObject *state, PyObject *object, PyObject *manager)
{
    if (set_to_new(state, NAME_MAPPED, get_attribute(object, NAME_CLASS)) < 0
        || PyObject_SetAttr(state, name_of[NAME_MANAGER], manager) < 0
        || set_to_new(state, NAME_OBJ, reference_for(state, object)) < 0
        || set_to_new(state, NAME_COMMITTED_STATE, PyDict_New()) < 0)
        return -1;
    return set_to_new(state, NAME_EXPIRED_ATTRIBUTES, PySet_New(NULL));
}

/* maker(instance, manager) */
static PyObject *
maker_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    States *self = (States *)callable;
    PyTypeObject *type = expects_guarded_state ? self->guarded : self->plain;
    expects_guarded_state = 0;
    if (PyVectorcall_NARGS(nargsf) != 2 || names != NULL)
        return PyObject_Vectorcall((PyObject *)type, args, nargsf, names);
    PyObject *nothing = PyTuple_New(0);
    PyObject *state = nothing == NULL ? NULL : type->tp_new(type, nothing, NULL);
    Py_XDECREF(nothing);
    if (state != NULL && init_state(state, args[0], args[1]) < 0)
        Py_CLEAR(state);
    return state;
}

static int
guard_state(States *self, PyObject *state)
{
    if (PyObject_SetAttr(state, name_of[NAME_CLASS], (PyObject *)self->guarded) < 0)
        return -1;
    PyObject *manager = get_attribute(state, NAME_MANAGER);
    if (manager == NULL)
        return -1;
    PyObject *noticed = PyObject_CallOneArg(self->notice, manager);
    Py_DECREF(manager);
    Py_XDECREF(noticed);
    return noticed == NULL ? -1 : 0;
}

/* Like in SQLAlchemy: map._dict[key] = state; state._instance_dict = map._wr. */
int
put_into_map(PyObject *map, PyObject *state, PyObject *key)
{
    PyObject *states = get_attribute(map, NAME_STATES);
    if (states == NULL)
        return -1;
    int failed = PyDict_Check(states) ? PyDict_SetItem(states, key, state)
                                      : PyObject_SetItem(states, key, state);
    Py_DECREF(states);
    PyObject *reference = failed ? NULL : get_attribute(map, NAME_REFERENCE);
    if (reference == NULL)
        return -1;
    failed = PyObject_SetAttr(state, name_of[NAME_MAP_OF_STATE], reference);
    Py_DECREF(reference);
    return failed;
}

/* _add_unpresent(identity_map, state, key) */
static PyObject *
adder_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    States *self = (States *)callable;
    if (PyVectorcall_NARGS(nargsf) != 3 || names != NULL) {
        PyErr_SetString(PyExc_TypeError, "_add_unpresent() takes a state and a key");
        return NULL;
    }
    if (Py_IS_TYPE(args[1], self->plain) && guard_state(self, args[1]) < 0)
        return NULL;
    if (put_into_map(args[0], args[1], args[2]) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
adder_bind(PyObject *self, PyObject *map, PyObject *type)
{
    return map == NULL ? Py_NewRef(self) : PyMethod_New(self, map);
}

static PyObject *
states_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *plain, *guarded, *notice = Py_None;
    if (!PyArg_ParseTuple(args, "O!O!|O:States", &PyType_Type, &plain, &PyType_Type,
                          &guarded, &notice))
        return NULL;
    States *self = (States *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = type == &adder_type ? adder_call : maker_call;
    self->plain = (PyTypeObject *)Py_NewRef(plain);
    self->guarded = (PyTypeObject *)Py_NewRef(guarded);
    self->notice = Py_NewRef(notice);
    return (PyObject *)self;
}

/* What it refers to lasts as long as the process. */
static void
states_dealloc(States *self)
{
    Py_DECREF(self->plain);
    Py_DECREF(self->guarded);
    Py_DECREF(self->notice);
    Py_TYPE(self)->tp_free(self);
}

PyTypeObject maker_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Maker",
    .tp_doc = "Maker(plain, guarded): see identity.py",
    .tp_basicsize = sizeof(States),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = states_new,
    .tp_dealloc = (destructor)states_dealloc,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(States, call),
};

PyTypeObject adder_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Adder",
    .tp_doc = "Adder(plain, guarded, notice): see identity.py",
    .tp_basicsize = sizeof(States),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL
                | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = states_new,
    .tp_dealloc = (destructor)states_dealloc,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(States, call),
    .tp_descr_get = adder_bind,
};

/* -- an object that comes to a session */

/* The _after_attach() of a session. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyTypeObject *plain;     /* the class of states, and what it is changed to */
    PyObject *guarded;
    PyTypeObject *manager;   /* of classes that have their values in their __dict__ */
    PyTypeObject *mutable;   /* the class of values that track their own changes */
    PyObject *adopt_values;  /* called with the names of collections, and the values */
    PyObject *line;          /* by class of session: the base that has the method */
    PyObject *session;       /* the base whose method is done here */
    PyObject *in_python;     /* the method, for objects of other classes */
} Adopter;

/* Whether a value tracks its own changes, which no value of a built-in type does. */
static int
is_mutable(PyObject *value, PyTypeObject *mutable)
{
    return (Py_TYPE(value)->tp_flags & Py_TPFLAGS_HEAPTYPE)
           && PyObject_TypeCheck(value, mutable);
}

/* Whether there is a collection among the values, or one that tracks its changes; -1
   with an error. */
static int
hold_more(PyObject *values, PyObject *collections, PyTypeObject *mutable)
{
    PyObject *key, *value;
    Py_ssize_t place = 0;
    int has_collections = PySet_GET_SIZE(collections) != 0;
    while (PyDict_Next(values, &place, &key, &value)) {
        if (is_mutable(value, mutable))
            return 1;
        /* Names of attributes are strings, which are compared without a call. */
        int found = has_collections && PyUnicode_CheckExact(key)
                        ? PySet_Contains(collections, key)
                        : 0;
        if (found != 0)
            return found;
    }
    return 0;
}

static int
adopt_values(Adopter *self, PyObject *manager, PyObject *values)
{
    PyObject *names = get_attribute(manager, NAME_COLLECTION_NAMES);
    if (names == NULL)
        return -1;
    int more = 1;
    if (PyDict_Check(values) && PyAnySet_Check(names))
        more = hold_more(values, names, self->mutable);
    if (more > 0) {
        PyObject *args[] = {names, values};
        PyObject *done = PyObject_Vectorcall(self->adopt_values, args, 2, NULL);
        Py_XDECREF(done);
        more = done == NULL ? -1 : 0;
    }
    Py_DECREF(names);
    return more;
}

/* Guard a state, and what its object holds. */
static int
adopt(Adopter *self, PyObject *manager, PyObject *state, PyObject *object)
{
    if (Py_IS_TYPE(state, self->plain)
        && PyObject_SetAttr(state, name_of[NAME_CLASS], self->guarded) < 0)
        return -1;
    PyObject *values = PyObject_GenericGetDict(object, NULL);
    int failed = values == NULL ? -1 : adopt_values(self, manager, values);
    Py_XDECREF(values);
    return failed;
}

/* Whether it is an object without a key, and nobody has to be told of it; -1 with an
   error. */
static int
is_told_to_nobody(PyObject *session, PyObject *state)
{
    if (!has(state, NAME_KEY, Py_None))
        return PyErr_Occurred() ? -1 : 0;
    PyObject *dispatch = get_attribute(session, NAME_DISPATCH);
    int quiet = dispatch == NULL ? -1 : nobody_hears(dispatch, NAME_AFTER_ATTACH_EVENT);
    if (quiet > 0)
        quiet = nobody_hears(dispatch, NAME_TRANSIENT_TO_PENDING);
    Py_XDECREF(dispatch);
    return quiet;
}

/* Keep the object of a state with changes; 0, or -1 with an error. */
static int
keep_modified(PyObject *state, PyObject *object)
{
    if (!has(state, NAME_MODIFIED, Py_True))
        return PyErr_Occurred() ? -1 : 0;
    if (!has(state, NAME_STRONG_OBJECT, Py_None))
        return PyErr_Occurred() ? -1 : 0;
    return PyObject_SetAttr(state, name_of[NAME_STRONG_OBJECT], object);
}

/* _after_attach() of a Session, if nobody has to be told. */
static PyObject *
attach_quietly(PyObject *session, PyObject *state, PyObject *object)
{
    PyObject *number = get_attribute(session, NAME_HASH_KEY);
    if (number == NULL)
        return NULL;
    int failed = PyObject_SetAttr(state, name_of[NAME_SESSION_ID], number);
    Py_DECREF(number);
    if (failed || keep_modified(state, object) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
attach_as(PyObject *base, PyObject *const *args)
{
    PyObject *function = get_attribute(base, NAME_AFTER_ATTACH);
    if (function == NULL)
        return NULL;
    PyObject *result = PyObject_Vectorcall(function, args, 3, NULL);
    Py_DECREF(function);
    return result;
}

/* The same of the class behind the session's. */
static PyObject *
attach(Adopter *self, PyObject *const *args)
{
    PyObject *base = for_class_of(args[0], self->line);
    if (base == NULL)
        return NULL;
    int quiet = base == self->session ? is_told_to_nobody(args[0], args[1]) : 0;
    PyObject *result = NULL;
    if (quiet > 0)
        result = attach_quietly(args[0], args[1], args[2]);
    else if (quiet == 0)
        result = attach_as(base, args);
    Py_DECREF(base);
    return result;
}

/* _after_attach(session, state, object) */
static PyObject *
adopter_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Adopter *self = (Adopter *)callable;
    if (PyVectorcall_NARGS(nargsf) != 3 || names != NULL)
        return PyObject_Vectorcall(self->in_python, args, nargsf, names);
    PyObject *guard = get_attribute(args[0], NAME_GUARD);
    PyObject *manager = guard == NULL ? NULL : get_attribute(args[1], NAME_MANAGER);
    PyObject *result = NULL;
    if (manager != NULL && !Py_IS_TYPE(manager, self->manager))
        result = PyObject_Vectorcall(self->in_python, args, nargsf, names);
    else if (manager != NULL
             && (guard == Py_None || adopt(self, manager, args[1], args[2]) == 0))
        result = attach(self, args);
    Py_XDECREF(manager);
    Py_XDECREF(guard);
    return result;
}

static PyObject *
adopter_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *plain, *guarded, *manager, *mutable, *adopt_values, *line, *session,
        *in_python;
    if (!PyArg_ParseTuple(args, "O!O!O!O!OOOO:Adopter", &PyType_Type, &plain,
                          &PyType_Type, &guarded, &PyType_Type, &manager, &PyType_Type,
                          &mutable, &adopt_values, &line, &session, &in_python))
        return NULL;
    Adopter *self = (Adopter *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = adopter_call;
    self->plain = (PyTypeObject *)Py_NewRef(plain);
    self->guarded = Py_NewRef(guarded);
    self->manager = (PyTypeObject *)Py_NewRef(manager);
    self->mutable = (PyTypeObject *)Py_NewRef(mutable);
    self->adopt_values = Py_NewRef(adopt_values);
    self->line = Py_NewRef(line);
    self->session = Py_NewRef(session);
    self->in_python = Py_NewRef(in_python);
    return (PyObject *)self;
}

/* There is one of it, which lasts as long as the process. */
PyTypeObject adopter_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Adopter",
    .tp_doc = "Adopter(plain, guarded, manager, mutable, adopt_values, line, session,"
              " in_python): see session.py",
    .tp_basicsize = sizeof(Adopter),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL
                | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = adopter_new,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Adopter, call),
    .tp_descr_get = adder_bind,
};
