/* Reading a loaded attribute without a lock: what reads.py says in Python, compiled.

   Nothing here decides anything that is not decided there.  Whatever is not the usual
   case (nothing loaded, no state, somebody changing things) is left to `otherwise`, a
   Python function.

   An object that is looked at between two calls that may run Python code is held by a
   reference of its own: what the dictionaries hold may go away meanwhile. */

#include "parts.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *key;        /* of the attribute in the dictionary of its object */
    PyObject *state_key;  /* of the object's state there */
    PyObject *guards;     /* by the number of the session */
    PyObject *otherwise;  /* called like this object if a look is not enough */
} Read;

static PyObject *
look_in_version(Read *self, PyObject *guard, PyObject *values, PyObject *version)
{
    PyObject *value = find(values, self->key);
    if (value != NULL && slot(guard, VERSION) != version)
        Py_CLEAR(value);
    return value;
}

static PyObject *
look_inside(Read *self, PyObject *guard, PyObject *values)
{
    PyObject *me = ask(guard);
    if (me == NULL)
        return NULL;
    PyObject *value = NULL;
    if (is_mine(guard, me))
        value = find(values, self->key);
    if (value != NULL && !is_mine(guard, me))
        Py_CLEAR(value);
    Py_DECREF(me);
    return value;
}

/* The value, if nothing can have changed while it was looked at. */
static PyObject *
look(Read *self, PyObject *guard, PyObject *values)
{
    PyObject *version = Py_NewRef(slot(guard, VERSION));
    PyObject *value = version == Py_None
                          ? look_inside(self, guard, values)
                          : look_in_version(self, guard, values, version);
    Py_DECREF(version);
    return value;
}

/* The value of the attribute of the object whose dictionary is `values`. */
static PyObject *
read_loaded(Read *self, PyObject *values)
{
    PyObject *state = find(values, self->state_key);
    if (state == NULL)
        return NULL;
    PyObject *guard = guard_of_state(self->guards, state);
    Py_DECREF(state);
    if (guard == NULL)
        return PyErr_Occurred() ? NULL : find(values, self->key);
    PyObject *value = is_guard(guard) ? look(self, guard, values) : NULL;
    Py_DECREF(guard);
    return value;
}

/* __get__(attribute, instance, owner) */
static PyObject *
read_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Read *self = (Read *)callable;
    PyObject *value = NULL;
    int is_usual = PyVectorcall_NARGS(nargsf) == 3 && names == NULL;
    if (is_usual && args[1] == Py_None)
        return Py_NewRef(args[0]);
    /* Who calls may have it from a class that it goes away with meanwhile. */
    Py_INCREF(self);
    if (is_usual) {
        PyObject *values = PyObject_GenericGetDict(args[1], NULL);
        if (values != NULL) {
            value = read_loaded(self, values);
            Py_DECREF(values);
        }
    }
    if (value == NULL && !PyErr_Occurred())
        value = PyObject_Vectorcall(self->otherwise, args, nargsf, names);
    Py_DECREF(self);
    return value;
}

static PyObject *
read_bind(PyObject *self, PyObject *attribute, PyObject *type)
{
    return attribute == NULL ? Py_NewRef(self) : PyMethod_New(self, attribute);
}

static PyObject *
read_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *key, *state_key, *guards, *otherwise;
    if (!PyArg_ParseTuple(args, "UUO!O:Read", &key, &state_key, &PyDict_Type, &guards,
                          &otherwise))
        return NULL;
    Read *self = (Read *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = read_call;
    self->key = Py_NewRef(key);
    self->state_key = Py_NewRef(state_key);
    PyUnicode_InternInPlace(&self->key);
    PyUnicode_InternInPlace(&self->state_key);
    self->guards = Py_NewRef(guards);
    self->otherwise = Py_NewRef(otherwise);
    return (PyObject *)self;
}

/* No tp_clear: every cycle goes through a class, which can be cleared. */
static int
read_traverse(Read *self, visitproc visit, void *arg)
{
    Py_VISIT(self->guards);
    Py_VISIT(self->otherwise);
    return 0;
}

static void
read_dealloc(Read *self)
{
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->key);
    Py_DECREF(self->state_key);
    Py_DECREF(self->guards);
    Py_DECREF(self->otherwise);
    PyObject_GC_Del(self);
}

PyTypeObject read_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Read",
    .tp_doc = "Read(key, state_key, guards, otherwise): see reads.py",
    .tp_basicsize = sizeof(Read),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL
                | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = read_new,
    .tp_dealloc = (destructor)read_dealloc,
    .tp_traverse = (traverseproc)read_traverse,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Read, call),
    .tp_descr_get = read_bind,
};
