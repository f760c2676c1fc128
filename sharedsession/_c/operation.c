/* A method that is an operation: what guarded() in operations.py makes, compiled.

   As a part of an operation that runs already, which most calls are, it is called
   right away. */

#include "usual.h"
#include <structmember.h>

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    Runner *runner;
    PyObject *access;
    PyObject *function;  /* the method; or NULL if `line` tells */
    PyObject *line;      /* by class: the base that has the method, or NULL */
    PyObject *name;      /* of the method in that base */
    Py_ssize_t which;    /* argument that has the guard, */
    PyObject *parameter; /* by this name if it is given so, or NULL */
    PyObject *path;      /* a tuple: the names of attributes that lead from there, */
    PyObject *only_step; /* if there is one only, borrowed, or NULL */
    PyObject *table;     /* of guards by what is found there; or NULL: it is the guard */
    PyObject *finder;    /* called with the argument in the place of all that, or NULL */
    char is_called;      /* whether what is found is called, and returns the guard */
    char is_refused;     /* whether it is not in a read section, whatever it is part of */
    int usual;           /* which of the methods in usual.h it is, or none */
    PyObject *dict;
} Operation;

static PyObject *
walk(PyObject *path, PyObject *thing)
{
    PyObject *found = Py_NewRef(thing);
    for (Py_ssize_t step = 0; found != NULL && step < PyTuple_GET_SIZE(path); step++)
        Py_SETREF(found, PyObject_GetAttr(found, PyTuple_GET_ITEM(path, step)));
    return found;
}

/* The guard of an object, or None; a new reference, or NULL with an error. */
static PyObject *
find_guard(Operation *self, PyObject *thing)
{
    if (self->finder != NULL)
        return PyObject_CallOneArg(self->finder, thing);
    PyObject *found = self->only_step != NULL ? PyObject_GetAttr(thing, self->only_step)
                                              : walk(self->path, thing);
    if (found == NULL)
        return NULL;
    if (self->is_called)
        Py_SETREF(found, PyObject_CallNoArgs(found));
    if (self->table != NULL) {
        Py_SETREF(found, find(self->table, found));
        if (found == NULL && !PyErr_Occurred())
            return Py_NewRef(Py_None);
    }
    return found;
}

/* The method itself, as a new reference. */
static PyObject *
find_function(Operation *self, PyObject *thing)
{
    if (self->line == NULL)
        return Py_NewRef(self->function);
    PyObject *base = for_class_of(thing, self->line);
    if (base == NULL)
        return NULL;
    PyObject *function = PyObject_GetAttr(base, self->name);
    Py_DECREF(base);
    return function;
}

/* Whether the asker only reads; -1 with an error. */
static int
reads_only(PyObject *guard)
{
    if (!is_read(guard))
        return 0;
    PyObject *said = PyObject_CallMethodNoArgs(guard, name_of[NAME_READS_ONLY]);
    int only = said == NULL ? -1 : PyObject_IsTrue(said);
    Py_XDECREF(said);
    return only;
}

/* Whether *me* may call it as a part of what it does; -1 with an error. */
static int
is_part(Operation *self, PyObject *guard, PyObject *me)
{
    if (slot(guard, RUNNING) != me)
        return 0;
    if (self->access == self->runner->read)
        return slot(guard, VERSION) == Py_None;
    if (self->access == self->runner->load)
        return 1;
    if (slot(guard, MAY_OPEN) != Py_False)
        return 0;
    if (self->access != self->runner->write)
        return 1;
    int only = slot(guard, WORKER) == me ? reads_only(guard) : 1;
    return only < 0 ? only : !only;
}

static PyObject *
call_part(Operation *self, PyObject *function, Args args)
{
    PyObject *value = self->usual ? do_as_usual(self->usual, args) : NULL;
    return value != NULL || PyErr_Occurred() ? value : call(function, args);
}

/* As a part of a write, whose work it is may have to be noted anew. */
static PyObject *
call_write(Operation *self, PyObject *guard, PyObject *me, PyObject *function,
           Args args)
{
    PyObject *result = call(function, args);
    if (result == NULL || slot(guard, WORKER) == me)
        return result;
    PyObject *note = Py_NewRef(slot(guard, NOTE_WORK));
    PyObject *noted = PyObject_CallOneArg(note, me);
    Py_DECREF(note);
    Py_XDECREF(noted);
    if (noted == NULL)
        Py_CLEAR(result);
    return result;
}

static PyObject *
call_guarded(Operation *self, PyObject *guard, PyObject *function, Args args)
{
    if (self->is_refused) {
        int only = reads_only(guard);
        if (only > 0)
            return PyObject_CallMethodNoArgs(guard, name_of[NAME_REFUSE_WRITE]);
        if (only < 0)
            return NULL;
    }
    PyObject *me = ask(guard);
    if (me == NULL)
        return NULL;
    int part = is_part(self, guard, me);
    PyObject *result = NULL;
    if (part > 0 && self->access == self->runner->write)
        result = call_write(self, guard, me, function, args);
    else if (part > 0)
        result = call_part(self, function, args);
    if (part == 0)
        result = self->access == self->runner->read
                     ? look_at(self->runner, guard, function, args)
                     : run_operation_as(self->runner, guard, me, self->access, function,
                                        args);
    Py_DECREF(me);
    return result;
}

/* The argument that has the guard, borrowed, or NULL. */
static PyObject *
find_thing(Operation *self, Args args)
{
    if (args.count > self->which)
        return args.args[self->which];
    return self->parameter == NULL ? NULL : argument(args, self->parameter);
}

static PyObject *
call_found(Operation *self, PyObject *thing, Args args)
{
    PyObject *guard = find_guard(self, thing);
    if (guard == NULL)
        return NULL;
    PyObject *result = NULL, *function = find_function(self, thing);
    if (function != NULL && is_guard(guard))
        result = call_guarded(self, guard, function, args);
    else if (function != NULL && guard != Py_None)
        result = run_in_python(self->runner, guard, self->access, function, args);
    else if (function != NULL)
        result = call_part(self, function, args);
    Py_XDECREF(function);
    Py_DECREF(guard);
    return result;
}

static PyObject *
operation_call(PyObject *callable, PyObject *const *args, size_t nargsf,
               PyObject *names)
{
    Operation *self = (Operation *)callable;
    Args all = {args, PyVectorcall_NARGS(nargsf), names};
    PyObject *thing = find_thing(self, all);
    if (thing == NULL) {
        PyErr_Format(PyExc_TypeError, "%S() misses an argument", self->name);
        return NULL;
    }
    /* Who calls may have it from a class that it goes away with meanwhile. */
    Py_INCREF(self);
    PyObject *result = call_found(self, thing, all);
    Py_DECREF(self);
    return result;
}

static PyObject *
operation_bind(PyObject *self, PyObject *thing, PyObject *type)
{
    return thing == NULL ? Py_NewRef(self) : PyMethod_New(self, thing);
}

static PyObject *
none_as_null(PyObject *thing)
{
    return thing == Py_None ? NULL : Py_NewRef(thing);
}

static PyObject *
operation_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    static char *keywords[] = {"runner", "access", "function", "name", "line", "which",
                               "parameter", "path", "table", "is_called", "finder", "is_refused",
                               "usual", NULL};
    PyObject *runner, *access, *function, *name, *line, *path, *table, *finder,
        *parameter;
    Py_ssize_t which;
    int is_called, is_refused, usual;
    if (!PyArg_ParseTupleAndKeywords(
            args, names, "O!OOUOnOO!OpOpi:Operation", keywords, &runner_type, &runner,
            &access, &function, &name, &line, &which, &parameter, &PyTuple_Type, &path, &table,
            &is_called, &finder, &is_refused, &usual))
        return NULL;
    if (table != Py_None && !PyDict_Check(table)) {
        PyErr_SetString(PyExc_TypeError, "the table of guards is a dictionary");
        return NULL;
    }
    Operation *self = (Operation *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = operation_call;
    self->runner = (Runner *)Py_NewRef(runner);
    self->access = Py_NewRef(access);
    self->function = Py_NewRef(function);
    self->name = Py_NewRef(name);
    self->line = none_as_null(line);
    self->which = which;
    self->parameter = none_as_null(parameter);
    self->path = Py_NewRef(path);
    self->only_step = PyTuple_GET_SIZE(path) == 1 ? PyTuple_GET_ITEM(path, 0) : NULL;
    self->table = none_as_null(table);
    self->finder = none_as_null(finder);
    self->is_called = is_called;
    self->is_refused = is_refused;
    self->usual = usual;
    return (PyObject *)self;
}

static int
operation_traverse(Operation *self, visitproc visit, void *arg)
{
    Py_VISIT(self->runner);
    Py_VISIT(self->function);
    Py_VISIT(self->line);
    Py_VISIT(self->table);
    Py_VISIT(self->finder);
    Py_VISIT(self->dict);
    return 0;
}

static void
operation_dealloc(Operation *self)
{
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->runner);
    Py_DECREF(self->access);
    Py_DECREF(self->function);
    Py_DECREF(self->name);
    Py_XDECREF(self->line);
    Py_XDECREF(self->parameter);
    Py_DECREF(self->path);
    Py_XDECREF(self->table);
    Py_XDECREF(self->finder);
    Py_XDECREF(self->dict);
    PyObject_GC_Del(self);
}

static PyObject *
operation_signature(Operation *self, void *unused)
{
    PyObject *inspect = PyImport_ImportModule("inspect");
    if (inspect == NULL)
        return NULL;
    PyObject *found = PyObject_CallMethod(inspect, "signature", "O", self->function);
    Py_DECREF(inspect);
    return found;
}

/* Whether a call would only call the method, as a part of what runs already, and do
   nothing afterwards; -1 with an error. */
static int
only_calls(Operation *self, PyObject *guard)
{
    if (guard == Py_None)
        return 1;
    if (self->access == self->runner->write || !is_guard(guard)
        || (self->is_refused && is_read(guard)))
        return 0;
    PyObject *me = ask(guard);
    int part = me == NULL ? -1 : is_part(self, guard, me);
    Py_XDECREF(me);
    return part;
}

static PyObject *
operation_as_part(Operation *self, PyObject *thing)
{
    PyObject *guard = find_guard(self, thing);
    int part = guard == NULL ? -1 : only_calls(self, guard);
    Py_XDECREF(guard);
    if (part < 0)
        return NULL;
    return part ? find_function(self, thing) : Py_NewRef(Py_None);
}

static PyMethodDef operation_methods[] = {
    {"as_part", (PyCFunction)operation_as_part, METH_O,
     "The method itself, if calling that would do for an object; else None."},
    {NULL},
};

static PyGetSetDef operation_properties[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict},
    {"__signature__", (getter)operation_signature},
    {NULL},
};

PyTypeObject operation_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Operation",
    .tp_basicsize = sizeof(Operation),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL
                | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = operation_new,
    .tp_dealloc = (destructor)operation_dealloc,
    .tp_traverse = (traverseproc)operation_traverse,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Operation, call),
    .tp_descr_get = operation_bind,
    .tp_dictoffset = offsetof(Operation, dict),
    .tp_getset = operation_properties,
    .tp_methods = operation_methods,
};
