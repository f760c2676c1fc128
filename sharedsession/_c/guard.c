/* A guard, as what is compiled sees it: see guard.h. */

#include "parts.h"
#include <structmember.h>
#include <time.h>

PyTypeObject *guard_type;
Py_ssize_t slot_offsets[SLOTS];

static const char *const slot_names[SLOTS] = {
    "asker", "attention", "checks_askers", "clock", "forsaken", "gate", "_has_gate",
    "holds", "inside", "last_version", "_loader", "_lock", "_longest_hold", "may_open",
    "_mutex", "note_work", "_owner", "reading", "restricted", "rests_until", "running",
    "since", "sole", "unsettled", "version", "window", "worker",
};

static PyTypeObject *lock_type;
static PyObject *closed, *zero, *monotonic;

static PyObject *
import(const char *module, const char *name)
{
    PyObject *imported = PyImport_ImportModule(module);
    PyObject *found = imported == NULL ? NULL : PyObject_GetAttrString(imported, name);
    Py_XDECREF(imported);
    return found;
}

int
init_guard(void)
{
    zero = PyLong_FromLong(0);
    lock_type = (PyTypeObject *)import("_thread", "LockType");
    monotonic = lock_type == NULL ? NULL : import("time", "monotonic");
    return monotonic == NULL ? -1 : 0;
}

static int
find_slot(PyObject *cls, const char *name, Py_ssize_t *offset)
{
    PyObject *member = PyObject_GetAttrString(cls, name);
    if (member == NULL)
        return -1;
    PyMemberDescrObject *descriptor = (PyMemberDescrObject *)member;
    int fits = Py_IS_TYPE(member, &PyMemberDescr_Type)
               && descriptor->d_member->type == T_OBJECT_EX;
    if (fits)
        *offset = descriptor->d_member->offset;
    else
        PyErr_Format(PyExc_TypeError, "%s is no slot of a guard's class", name);
    Py_DECREF(member);
    return fits ? 0 : -1;
}

/* know_guard(cls, closed): find the slots of the class of guards.

   `closed` is in the gate if the monitor decides. */
PyObject *
know_guard(PyObject *module, PyObject *args)
{
    PyObject *cls, *in_gate;
    Py_ssize_t offsets[SLOTS];
    if (!PyArg_ParseTuple(args, "O!O:know_guard", &PyType_Type, &cls, &in_gate))
        return NULL;
    for (int which = 0; which < SLOTS; which++)
        if (find_slot(cls, slot_names[which], &offsets[which]) < 0)
            return NULL;
    memcpy(slot_offsets, offsets, sizeof offsets);
    Py_XSETREF(guard_type, (PyTypeObject *)Py_NewRef(cls));
    Py_XSETREF(closed, Py_NewRef(in_gate));
    Py_RETURN_NONE;
}

PyObject *
ask(PyObject *guard)
{
    PyObject *asker = slot(guard, ASKER);
    if (Py_IS_TYPE(asker, &asker_type))
        return current_owner(asker);
    Py_INCREF(asker);
    PyObject *me = PyObject_CallNoArgs(asker);
    Py_DECREF(asker);
    return me;
}

/* Whether a deque is empty; 0 also if that cannot be told. */
static int
is_empty(PyObject *deque)
{
    Py_ssize_t size = PyObject_Size(deque);
    if (size < 0)
        PyErr_Clear();
    return size == 0;
}

static int
is_in_by_gate(PyObject *guard, PyObject *me)
{
    PyObject *gate = slot(guard, GATE);
    return PyDict_CheckExact(gate) && PyDict_GetItemWithError(gate, zero) == me;
}

/* Whether a dictionary has so many entries; 0 also for another kind of it. */
static int
has_entries(PyObject *dictionary, Py_ssize_t count)
{
    return PyDict_CheckExact(dictionary) && PyDict_GET_SIZE(dictionary) == count;
}

/* Put something into the gate, if it is open to *me*. */
static int
pass_gate(PyObject *guard, PyObject *me, PyObject *thing)
{
    int is_known = slot(guard, SOLE) == me || slot(guard, CHECKS_ASKERS) == Py_False;
    if (!is_known || !has_entries(slot(guard, GATE), 0))
        return 0;
    if (PyDict_SetItem(slot(guard, GATE), zero, thing) < 0) {
        PyErr_Clear(); /* out of memory, and the dictionary is as it was */
        return 0;
    }
    return 1;
}

int
come_in_at_once(PyObject *guard, PyObject *me)
{
    if (!pass_gate(guard, me, me))
        return 0;
    set_slot(guard, VERSION, Py_None);
    set_slot(guard, RUNNING, me);
    return 1;
}

/* Whether nobody is at a step under the mutex; 0 also for a mutex of another kind. */
static int
is_at_rest(PyObject *guard)
{
    PyObject *mutex = slot(guard, MUTEX);
    if (Py_TYPE(mutex) != lock_type)
        return 0;
    PyObject *locked = PyObject_CallMethodNoArgs(mutex, name_of[NAME_LOCKED]);
    if (locked == NULL)
        PyErr_Clear();
    Py_XDECREF(locked);
    return locked == Py_False;
}

int
go_on_at_once(PyObject *guard, PyObject *me)
{
    if (!is_at_rest(guard) || !is_empty(slot(guard, FORSAKEN)))
        return 0;
    if (slot(guard, OWNER) != me && slot(guard, LOADER) != me)
        return 0;
    set_slot(guard, RUNNING, me);
    return 1;
}

/* What time.monotonic() says, without the call; -1 where that may be another clock. */
static double
monotonic_seconds(void)
{
#ifdef __linux__
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) == 0)
        return ((long long)now.tv_sec * 1000000000 + now.tv_nsec) / 1e9;
#endif
    return -1;
}

PyObject *
read_clock(PyObject *guard)
{
    PyObject *clock = slot(guard, CLOCK);
    double seconds = clock == monotonic ? monotonic_seconds() : -1;
    if (seconds >= 0)
        return PyFloat_FromDouble(seconds);
    Py_INCREF(clock);
    PyObject *now = PyObject_CallNoArgs(clock);
    Py_DECREF(clock);
    return now;
}

/* What the clock says; -1 if it is not one that does nothing else. */
static double
read_seconds(PyObject *guard)
{
    double at_once = slot(guard, CLOCK) == monotonic ? monotonic_seconds() : -1;
    if (at_once >= 0)
        return at_once;
    PyObject *now = PyCFunction_Check(slot(guard, CLOCK)) ? read_clock(guard) : NULL;
    double seconds = now != NULL && PyFloat_CheckExact(now) ? PyFloat_AS_DOUBLE(now) : -1;
    PyErr_Clear();
    Py_XDECREF(now);
    return seconds;
}

static double
as_seconds(PyObject *number)
{
    return PyFloat_CheckExact(number) ? PyFloat_AS_DOUBLE(number) : -1;
}

/* Like Monitor._note_hold(), at that time. */
static int
note_hold(PyObject *guard, double now)
{
    if (slot(guard, SINCE) == Py_None)
        return 1;
    double since = as_seconds(slot(guard, SINCE));
    PyObject *held = since < 0 ? NULL : PyFloat_FromDouble(now - since);
    if (held == NULL) {
        PyErr_Clear();
        return 0;
    }
    if (now - since > as_seconds(slot(guard, LONGEST_HOLD)))
        set_slot(guard, LONGEST_HOLD, held);
    Py_DECREF(held);
    set_slot(guard, SINCE, Py_None);
    return 1;
}

/* The number after the last version, as a new reference. */
static PyObject *
next_version(PyObject *guard)
{
    PyObject *last = slot(guard, LAST_VERSION);
    long long number = PyLong_CheckExact(last) ? PyLong_AsLongLong(last) : -1;
    return number < 0 ? NULL : PyLong_FromLongLong(number + 1);
}

static void
open_gate(PyObject *guard)
{
    /* It keeps what memory it has, unlike one that is cleared. */
    if (PyDict_DelItem(slot(guard, GATE), zero) < 0)
        PyErr_Clear();
}

/* Nobody is in any more; 0 if there is no memory for a new version. */
static int
open_up(PyObject *guard)
{
    PyObject *version = next_version(guard);
    if (version == NULL) {
        PyErr_Clear();
        return 0;
    }
    set_slot(guard, RUNNING, Py_None);
    set_slot(guard, INSIDE, Py_None);
    set_slot(guard, WINDOW, Py_None);
    set_slot(guard, OWNER, Py_None);
    set_slot(guard, LAST_VERSION, version);
    int is_unsettled = slot(guard, UNSETTLED) != Py_False;
    set_slot(guard, VERSION, is_unsettled ? Py_None : version);
    Py_DECREF(version);
    open_gate(guard);
    return 1;
}

/* Let out the one who is in, if there is nothing to see to. */
static int
go_out(PyObject *guard)
{
    double now = read_seconds(guard);
    return now >= 0 && now < as_seconds(slot(guard, RESTS_UNTIL))
           && is_empty(slot(guard, FORSAKEN)) && note_hold(guard, now)
           && open_up(guard);
}

int
leave_at_once(PyObject *guard, PyObject *me)
{
    if (slot(guard, INSIDE) == me) {
        PyObject *holds = slot(guard, HOLDS);
        if (!PyDict_CheckExact(holds) || PyDict_GET_SIZE(holds) == 0)
            return 0;
        set_slot(guard, RUNNING, Py_None);
        return 1;
    }
    return is_in_by_gate(guard, me) && go_out(guard);
}

/* take(guard, hold): begin a hold, like Guard._take(), if nobody is in and there is
   nothing to see to; whether it did. */
PyObject *
take(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    PyObject *guard = count == 2 ? args[0] : Py_None, *now = NULL;
    if (Py_IS_TYPE(guard, guard_type) && slot(guard, ATTENTION) == Py_False
        && has_entries(slot(guard, GATE), 0) && has_entries(slot(guard, HOLDS), 0)
        && PyCFunction_Check(slot(guard, CLOCK)))
        now = read_clock(guard);
    PyObject *me = now == NULL ? NULL : get_attribute(args[1], NAME_OWNER_OF_HOLD);
    PyObject *number = me == NULL ? NULL : get_attribute(args[1], NAME_NUMBER);
    PyObject *what = number == NULL ? NULL : get_attribute(args[1], NAME_WHAT);
    int taken = what != NULL && pass_gate(guard, me, closed);
    if (taken && PyDict_SetItem(slot(guard, HOLDS), number, what) < 0) {
        open_gate(guard);
        taken = 0;
    }
    if (taken) {
        set_slot(guard, VERSION, Py_None);
        set_slot(guard, SINCE, now);
        set_slot(guard, OWNER, me);
        set_slot(guard, INSIDE, me);
    }
    PyErr_Clear();
    Py_XDECREF(now);
    Py_XDECREF(me);
    Py_XDECREF(number);
    Py_XDECREF(what);
    return PyBool_FromLong(taken);
}

/* Whether a hold is the last thing that its owner has, and nobody waits. */
static int
is_last(PyObject *guard, PyObject *owner, PyObject *number)
{
    PyObject *holds = slot(guard, HOLDS);
    return slot(guard, OWNER) == owner && slot(guard, INSIDE) == owner
           && slot(guard, RUNNING) == Py_None && slot(guard, LOADER) == Py_None
           && slot(guard, HAS_GATE) == Py_True && slot(guard, LOCK) == Py_None
           && !is_read(guard) && has_entries(slot(guard, GATE), 1)
           && has_entries(holds, 1)
           && PyDict_Contains(holds, number) == 1 && is_at_rest(guard);
}

/* let_go(guard, hold): end a hold, like Monitor.let_go(), if it is open and the last
   thing that its owner has, and nobody waits; whether it did. */
PyObject *
let_go(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    PyObject *guard = count == 2 ? args[0] : Py_None, *open = NULL;
    if (Py_IS_TYPE(guard, guard_type))
        open = get_attribute(args[1], NAME_IS_OPEN);
    PyObject *owner = open == Py_True ? get_attribute(args[1], NAME_OWNER_OF_HOLD) : NULL;
    PyObject *number = owner == NULL ? NULL : get_attribute(args[1], NAME_NUMBER);
    int gone = number != NULL && is_last(guard, owner, number) && go_out(guard);
    if (gone) {
        PyDict_Clear(slot(guard, HOLDS));
        gone = PyObject_SetAttr(args[1], name_of[NAME_IS_OPEN], Py_False) == 0;
    }
    PyErr_Clear();
    Py_XDECREF(open);
    Py_XDECREF(owner);
    Py_XDECREF(number);
    return PyBool_FromLong(gone);
}
