/* Running one operation: what run() and look() in operations.py say, compiled.

   Whatever takes more than the usual steps is left to those two from the start, with
   nothing changed.  In what is done here a signal can only come where Python code is
   called: nothing is between being let in and the operation, or between its end and
   the way out. */

#include "parts.h"

/* function(*first, *args), for some more arguments before the others. */
static PyObject *
call_with(PyObject *function, PyObject *const *first, Py_ssize_t more, Args args)
{
    Py_ssize_t given = args.names == NULL ? 0 : PyTuple_GET_SIZE(args.names);
    Py_ssize_t count = more + args.count;
    PyObject *few[10], **all = few;
    if (count + given > (Py_ssize_t)Py_ARRAY_LENGTH(few)) {
        all = PyMem_New(PyObject *, count + given);
        if (all == NULL)
            return PyErr_NoMemory();
    }
    memcpy(all, first, more * sizeof(PyObject *));
    memcpy(all + more, args.args, (args.count + given) * sizeof(PyObject *));
    PyObject *result = PyObject_Vectorcall(function, all, count, args.names);
    if (all != few)
        PyMem_Free(all);
    return result;
}

PyObject *
run_in_python(Runner *self, PyObject *guard, PyObject *access, PyObject *function,
              Args args)
{
    PyObject *first[] = {guard, access, function};
    return call_with(self->in_python, first, 3, args);
}

static PyObject *
look_in_python(Runner *self, PyObject *guard, PyObject *function, Args args)
{
    PyObject *first[] = {guard, function};
    return call_with(self->look, first, 2, args);
}

/* Note whose work it is, if that is not noted; the result, or NULL with an error. */
static PyObject *
note_work(Runner *self, PyObject *guard, PyObject *access, PyObject *me,
          PyObject *result)
{
    if (result == NULL || access != self->write || slot(guard, WORKER) == me)
        return result;
    PyObject *note = Py_NewRef(slot(guard, NOTE_WORK));
    PyObject *noted = PyObject_CallOneArg(note, me);
    Py_DECREF(note);
    if (noted == NULL)
        Py_CLEAR(result);
    Py_XDECREF(noted);
    return result;
}

/* Like _run_within(). */
static PyObject *
run_within(Runner *self, PyObject *guard, PyObject *me, PyObject *access,
           PyObject *function, Args args)
{
    if (access != self->read && access != self->load)
        set_slot(guard, MAY_OPEN, Py_False);
    return note_work(self, guard, access, me, call(function, args));
}

/* Call it up to twice, for an interrupt may come at its first line; 0 if it came to
   its end at once, else -1 with an error. */
static int
call_until_done(PyObject *function, PyObject *const *args, Py_ssize_t count)
{
    PyObject *type, *error, *traceback;
    PyObject *done = PyObject_Vectorcall(function, args, count, NULL);
    if (done != NULL) {
        Py_DECREF(done);
        return 0;
    }
    PyErr_Fetch(&type, &error, &traceback);
    done = PyObject_Vectorcall(function, args, count, NULL);
    Py_XDECREF(done);
    PyErr_Restore(type, error, traceback);
    return -1;
}

/* Tell the guard that the operation raised, while the error is kept. */
static void
note_failure(Runner *self, PyObject *guard, PyObject *me, PyObject *held)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    PyObject *args[] = {guard, me, held, error};
    if (call_until_done(self->note_failure, args, 4) == 0) {
        PyErr_Restore(type, error, traceback);
        return;
    }
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
}

/* The same of what takes more; an interrupt leaves it to be done again. */
static int
leave_in_python(Runner *self, PyObject *guard, PyObject *me, PyObject *held)
{
    PyObject *type, *error, *traceback, *args[] = {guard, me, held};
    PyObject *left = PyObject_VectorcallMethod(name_of[NAME_LEAVE], args, 2, NULL);
    if (left != NULL) {
        Py_DECREF(left);
        return 0;
    }
    PyErr_Fetch(&type, &error, &traceback);
    if (call_until_done(self->leave_again, args, 3) < 0) {
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(traceback);
        return -1;
    }
    PyErr_Restore(type, error, traceback);
    return -1;
}

/* Let it out; 0, or -1 with an error in the place of the present one, if any. */
static int
leave(Runner *self, PyObject *guard, PyObject *me, PyObject *held)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    if (leave_at_once(guard, me) || leave_in_python(self, guard, me, held) == 0) {
        PyErr_Restore(type, error, traceback);
        return 0;
    }
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return -1;
}

/* What comes first, once *me* is in; 0, or -1 with an error. */
static int
begin(PyObject *guard, PyObject *me, PyObject *access)
{
    PyObject *now = read_clock(guard);
    if (now == NULL)
        return -1;
    set_slot(guard, SINCE, now);
    Py_DECREF(now);
    if (slot(guard, ATTENTION) == Py_False)
        return 0;
    PyObject *args[] = {guard, me, access};
    PyObject *done = PyObject_VectorcallMethod(name_of[NAME_ATTEND_TO], args, 3, NULL);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* The numbers of what is held now, as a tuple or a list. */
static PyObject *
numbers_held(PyObject *guard)
{
    PyObject *holds = slot(guard, HOLDS);
    if (PyDict_CheckExact(holds) && PyDict_GET_SIZE(holds) == 0)
        return PyTuple_New(0);
    /* The collector may take some away meanwhile. */
    return PyDict_Check(holds) ? PyDict_Keys(holds) : PySequence_Tuple(holds);
}

static PyObject *
run_alone(Runner *self, PyObject *guard, PyObject *me, PyObject *access,
          PyObject *function, Args args)
{
    PyObject *held = numbers_held(guard);
    if (held == NULL)
        return NULL;
    int came_in = 0;
    int is_in = slot(guard, INSIDE) == me ? go_on_at_once(guard, me)
                                          : (came_in = come_in_at_once(guard, me));
    if (!is_in) {
        Py_DECREF(held);
        return run_in_python(self, guard, access, function, args);
    }
    PyObject *result = NULL;
    if (!came_in || begin(guard, me, access) == 0) {
        int may = access == self->load && slot(guard, CHECKS_ASKERS) == Py_False;
        set_slot(guard, MAY_OPEN, may ? Py_True : Py_False);
        result = note_work(self, guard, access, me, call(function, args));
    }
    if (result == NULL)
        note_failure(self, guard, me, held);
    if (leave(self, guard, me, held) < 0)
        Py_CLEAR(result);
    Py_DECREF(held);
    return result;
}

PyObject *
run_operation_as(Runner *self, PyObject *guard, PyObject *me, PyObject *access,
                 PyObject *function, Args args)
{
    /* A guard of tasks has steps of its own. */
    if (!Py_IS_TYPE(guard, guard_type))
        return run_in_python(self, guard, access, function, args);
    if (slot(guard, RUNNING) == me && (access != self->write || !is_read(guard)))
        return run_within(self, guard, me, access, function, args);
    if (slot(guard, RUNNING) == me || slot(guard, WINDOW) == me)
        return run_in_python(self, guard, access, function, args);
    return run_alone(self, guard, me, access, function, args);
}

PyObject *
run_operation(Runner *self, PyObject *guard, PyObject *access, PyObject *function,
              Args args)
{
    PyObject *me = is_guard(guard) ? ask(guard) : NULL;
    if (me == NULL)
        return PyErr_Occurred() ? NULL
                                : run_in_python(self, guard, access, function, args);
    PyObject *result = run_operation_as(self, guard, me, access, function, args);
    Py_DECREF(me);
    return result;
}

int
is_still(PyObject *guard, PyObject *version)
{
    if (slot(guard, VERSION) != version)
        return 0;
    if (version != Py_None)
        return 1;
    PyObject *me = ask(guard);
    if (me == NULL)
        return -1;
    int mine = is_mine(guard, me);
    Py_DECREF(me);
    return mine;
}

/* Whether what came of a look counts, and be it an error, which is kept if so. */
static int
counts(Runner *self, PyObject *guard, PyObject *version, PyObject *found)
{
    PyObject *type, *error, *traceback;
    if (found == NULL
        && (!PyErr_ExceptionMatches(PyExc_Exception) /* an interrupt, none of the look's */
            || PyErr_ExceptionMatches(self->own_error)))
        return 1;
    PyErr_Fetch(&type, &error, &traceback);
    int still = is_still(guard, version);
    if (still > 0) {
        PyErr_Restore(type, error, traceback);
        return 1;
    }
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return still;
}

PyObject *
look_at(Runner *self, PyObject *guard, PyObject *function, Args args)
{
    PyObject *version = Py_NewRef(slot(guard, VERSION)), *found = NULL;
    int good = is_still(guard, version);
    if (good > 0) {
        found = call(function, args);
        good = counts(self, guard, version, found);
        if (good <= 0)
            Py_CLEAR(found);
    }
    Py_DECREF(version);
    return good != 0 ? found : look_in_python(self, guard, function, args);
}

/* run(guard, access, function, ...) */
static PyObject *
runner_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Runner *self = (Runner *)callable;
    Py_ssize_t count = PyVectorcall_NARGS(nargsf);
    if (count < 3 || !is_guard(args[0]))
        return PyObject_Vectorcall(self->in_python, args, nargsf, names);
    Args others = {args + 3, count - 3, names};
    return run_operation(self, args[0], args[1], args[2], others);
}

static PyObject *
runner_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *in_python, *look, *own_error, *note_failure, *leave_again;
    PyObject *read, *load, *write;
    if (!PyArg_ParseTuple(args, "OOOOO(OOO):Runner", &in_python, &look, &own_error,
                          &note_failure, &leave_again, &read, &load, &write))
        return NULL;
    Runner *self = (Runner *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = runner_call;
    self->in_python = Py_NewRef(in_python);
    self->look = Py_NewRef(look);
    self->own_error = Py_NewRef(own_error);
    self->note_failure = Py_NewRef(note_failure);
    self->leave_again = Py_NewRef(leave_again);
    self->read = Py_NewRef(read);
    self->load = Py_NewRef(load);
    self->write = Py_NewRef(write);
    return (PyObject *)self;
}

static int
runner_traverse(Runner *self, visitproc visit, void *arg)
{
    Py_VISIT(self->in_python);
    Py_VISIT(self->look);
    Py_VISIT(self->note_failure);
    Py_VISIT(self->leave_again);
    return 0;
}

static void
runner_dealloc(Runner *self)
{
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->in_python);
    Py_DECREF(self->look);
    Py_DECREF(self->own_error);
    Py_DECREF(self->note_failure);
    Py_DECREF(self->leave_again);
    Py_DECREF(self->read);
    Py_DECREF(self->load);
    Py_DECREF(self->write);
    PyObject_GC_Del(self);
}

PyTypeObject runner_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Runner",
    .tp_doc = "Runner(run, look, own_error, note_failure, leave_again, accesses): see"
              " operations.py",
    .tp_basicsize = sizeof(Runner),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = runner_new,
    .tp_dealloc = (destructor)runner_dealloc,
    .tp_traverse = (traverseproc)runner_traverse,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Runner, call),
};
