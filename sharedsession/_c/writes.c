/* Setting an attribute, as one operation: what writes.py says in Python, compiled. */

#include "parts.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    Runner *runner;
    PyObject *state_key;     /* of the object's state in its dictionary */
    PyObject *guards;        /* by the number of the session */
    PyObject *set;           /* called with the state, the dictionary and the value */
    PyObject *otherwise;     /* called like this object if there is no state */
} Write;

/* Set it, inside the guard if there is one. */
static PyObject *
set_value(Write *self, PyObject *state, PyObject *values, PyObject *value)
{
    PyObject *all[] = {state, values, value, Py_None};
    Args args = {all, 4, NULL};
    PyObject *guard = guard_of_state(self->guards, state);
    if (guard == NULL && PyErr_Occurred())
        return NULL;
    if (guard == NULL)
        return call(self->set, args);
    PyObject *write = self->runner->write;
    PyObject *done = run_operation(self->runner, guard, write, self->set, args);
    Py_DECREF(guard);
    return done;
}

/* __set__(attribute, instance, value) */
static PyObject *
write_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Write *self = (Write *)callable;
    PyObject *state = NULL, *values = NULL, *done = NULL;
    /* Who calls may have it from a class that it goes away with meanwhile. */
    Py_INCREF(self);
    if (PyVectorcall_NARGS(nargsf) == 3 && names == NULL)
        values = PyObject_GenericGetDict(args[1], NULL);
    if (values != NULL)
        state = find(values, self->state_key);
    if (state != NULL)
        done = set_value(self, state, values, args[2]);
    else if (!PyErr_Occurred())
        done = PyObject_Vectorcall(self->otherwise, args, nargsf, names);
    Py_XDECREF(state);
    Py_XDECREF(values);
    Py_DECREF(self);
    return done;
}

static PyObject *
write_bind(PyObject *self, PyObject *attribute, PyObject *type)
{
    return attribute == NULL ? Py_NewRef(self) : PyMethod_New(self, attribute);
}

static PyObject *
write_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *runner, *state_key, *guards, *set, *otherwise;
    if (!PyArg_ParseTuple(args, "O!UO!OO:Write", &runner_type, &runner, &state_key,
                          &PyDict_Type, &guards, &set, &otherwise))
        return NULL;
    Write *self = (Write *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = write_call;
    self->runner = (Runner *)Py_NewRef(runner);
    self->state_key = Py_NewRef(state_key);
    PyUnicode_InternInPlace(&self->state_key);
    self->guards = Py_NewRef(guards);
    self->set = Py_NewRef(set);
    self->otherwise = Py_NewRef(otherwise);
    return (PyObject *)self;
}

/* No tp_clear: every cycle goes through a class, which can be cleared. */
static int
write_traverse(Write *self, visitproc visit, void *arg)
{
    Py_VISIT(self->runner);
    Py_VISIT(self->guards);
    Py_VISIT(self->set);
    Py_VISIT(self->otherwise);
    return 0;
}

static void
write_dealloc(Write *self)
{
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->runner);
    Py_DECREF(self->state_key);
    Py_DECREF(self->guards);
    Py_DECREF(self->set);
    Py_DECREF(self->otherwise);
    PyObject_GC_Del(self);
}

PyTypeObject write_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Write",
    .tp_doc = "Write(runner, state_key, guards, set, otherwise): see writes.py",
    .tp_basicsize = sizeof(Write),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL
                | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = write_new,
    .tp_dealloc = (destructor)write_dealloc,
    .tp_traverse = (traverseproc)write_traverse,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Write, call),
    .tp_descr_get = write_bind,
};
