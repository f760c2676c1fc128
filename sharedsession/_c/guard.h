/* A guard, as what is compiled sees it: an object of a Python class with slots.

   Everything here is as good as under a lock: the interpreter's.  Steps between which
   no Python code can run are one step for all other threads, and for signals. */

#ifndef SHAREDSESSION_GUARD_H
#define SHAREDSESSION_GUARD_H

#include "names.h"
#include <stddef.h>

/* The slots that are used here, in the order of their names in guard.c. */
enum {
    ASKER, ATTENTION, CHECKS_ASKERS, CLOCK, FORSAKEN, GATE, HAS_GATE, HOLDS, INSIDE,
    LAST_VERSION, LOADER, LOCK, LONGEST_HOLD, MAY_OPEN, MUTEX, NOTE_WORK, OWNER, READING,
    RESTRICTED, RESTS_UNTIL, RUNNING, SINCE, SOLE, UNSETTLED, VERSION, WINDOW, WORKER,
    SLOTS
};

extern PyTypeObject *guard_type; /* NULL until know_guard() was called */
extern Py_ssize_t slot_offsets[SLOTS];

int init_guard(void);
PyObject *know_guard(PyObject *module, PyObject *args);
PyObject *take(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *let_go(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* Whether it has the slots, and be it a guard of tasks. */
static inline int
is_guard(PyObject *thing)
{
    return guard_type != NULL && PyObject_TypeCheck(thing, guard_type);
}

/* What a slot holds, as a borrowed reference: good until Python code runs. */
static inline PyObject *
slot(PyObject *guard, int which)
{
    PyObject *found = *(PyObject **)((char *)guard + slot_offsets[which]);
    return found == NULL ? Py_None : found;
}

static inline void
set_slot(PyObject *guard, int which, PyObject *value)
{
    PyObject **place = (PyObject **)((char *)guard + slot_offsets[which]);
    PyObject *before = *place;
    *place = Py_NewRef(value);
    Py_XDECREF(before);
}

/* The value in a dictionary, as a new reference; NULL, perhaps without an error. */
static inline PyObject *
find(PyObject *dictionary, PyObject *key)
{
    return Py_XNewRef(PyDict_GetItemWithError(dictionary, key));
}

/* Like Monitor.is_mine(), if `me` is who asks. */
static inline int
is_mine(PyObject *guard, PyObject *me)
{
    return slot(guard, RUNNING) == me || slot(guard, INSIDE) == me
           || (slot(guard, OWNER) == me && slot(guard, ATTENTION) == Py_False);
}

/* Whether anybody is in a section that only reads. */
static inline int
is_read(PyObject *guard)
{
    PyObject *reading = slot(guard, READING);
    return slot(guard, RESTRICTED) != Py_False || !PyDict_CheckExact(reading)
           || PyDict_GET_SIZE(reading) != 0;
}

/* Who asks, as a new reference. */
PyObject *ask(PyObject *guard);

/* Like Monitor.come_in(), go_on() and leave(), if none of their steps can take a call
   that waits or runs Python code; else 0, and nothing is changed. */
int come_in_at_once(PyObject *guard, PyObject *me);
int go_on_at_once(PyObject *guard, PyObject *me);
int leave_at_once(PyObject *guard, PyObject *me);

/* What its clock says, as a new reference. */
PyObject *read_clock(PyObject *guard);

#endif
