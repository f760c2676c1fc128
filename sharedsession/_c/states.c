/* The states of objects of shared sessions, and what a load does with them at each
   row: see states.py.

   A state changes its class when it comes to a shared session.  That takes a while, and
   slows it down for good; so it has the class from the start where that can be told. */

#include "parts.h"

static PyObject *class_name, *dict_name, *manager_name, *map_name, *reference_name;

int
init_states(void)
{
    class_name = PyUnicode_InternFromString("__class__");
    dict_name = PyUnicode_InternFromString("_dict");
    manager_name = PyUnicode_InternFromString("manager");
    map_name = PyUnicode_InternFromString("_instance_dict");
    reference_name = PyUnicode_InternFromString("_wr");
    return class_name == NULL || dict_name == NULL || manager_name == NULL
                   || map_name == NULL || reference_name == NULL
               ? -1
               : 0;
}

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

/* maker(instance, manager) */
static PyObject *
maker_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    States *self = (States *)callable;
    PyTypeObject *type = expects_guarded_state ? self->guarded : self->plain;
    expects_guarded_state = 0;
    return PyObject_Vectorcall((PyObject *)type, args, nargsf, names);
}

static int
guard_state(States *self, PyObject *state)
{
    if (PyObject_SetAttr(state, class_name, (PyObject *)self->guarded) < 0)
        return -1;
    PyObject *manager = PyObject_GetAttr(state, manager_name);
    if (manager == NULL)
        return -1;
    PyObject *noticed = PyObject_CallOneArg(self->notice, manager);
    Py_DECREF(manager);
    Py_XDECREF(noticed);
    return noticed == NULL ? -1 : 0;
}

/* Like in SQLAlchemy: map._dict[key] = state; state._instance_dict = map._wr. */
static int
add(PyObject *map, PyObject *state, PyObject *key)
{
    PyObject *states = PyObject_GetAttr(map, dict_name);
    if (states == NULL)
        return -1;
    int failed = PyDict_Check(states) ? PyDict_SetItem(states, key, state)
                                      : PyObject_SetItem(states, key, state);
    Py_DECREF(states);
    PyObject *reference = failed ? NULL : PyObject_GetAttr(map, reference_name);
    if (reference == NULL)
        return -1;
    failed = PyObject_SetAttr(state, map_name, reference);
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
    if (add(args[0], args[1], args[2]) < 0)
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
    .tp_doc = "Maker(plain, guarded): see states.py",
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
    .tp_doc = "Adder(plain, guarded, notice): see states.py",
    .tp_basicsize = sizeof(States),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL
                | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = states_new,
    .tp_dealloc = (destructor)states_dealloc,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(States, call),
    .tp_descr_get = adder_bind,
};

/* hold_more(values, collections, mutable): whether there is a collection among the
   values of an object, or one that tracks its own changes. */
PyObject *
hold_more(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    PyObject *key, *value;
    Py_ssize_t place = 0;
    if (count != 3 || !PyDict_Check(args[0]) || !PyAnySet_Check(args[1])
        || !PyType_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "hold_more() takes a dict, a set, a class");
        return NULL;
    }
    while (PyDict_Next(args[0], &place, &key, &value)) {
        /* Names of attributes are strings, which are compared without a call. */
        int is_collection = PyUnicode_CheckExact(key) ? PySet_Contains(args[1], key) : 0;
        if (is_collection < 0)
            return NULL;
        if (is_collection || PyObject_TypeCheck(value, (PyTypeObject *)args[2]))
            Py_RETURN_TRUE;
    }
    Py_RETURN_FALSE;
}
