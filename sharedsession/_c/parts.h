/* The types that the module is made of. */

#ifndef SHAREDSESSION_PARTS_H
#define SHAREDSESSION_PARTS_H

#include "guard.h"

extern PyTypeObject adder_type, adopter_type, asker_type, at_hand_type, execute_type, look_type,
    maker_type, operation_type, read_type, runner_type, setter_type, statements_type,
    value_setter_type, write_type;

extern int expects_guarded_state;

/* What _add_unpresent() of an identity map does; 0, or -1 with an error. */
int put_into_map(PyObject *map, PyObject *state, PyObject *key);

/* Who asks, as a new reference, if `asker` is an Asker. */
PyObject *current_owner(PyObject *asker);

/* The guard of the object that has that state, as a new reference; NULL, perhaps
   without an error. */
static inline PyObject *
guard_of_state(PyObject *guards, PyObject *state)
{
    PyObject *number = get_attribute(state, NAME_SESSION_ID);
    if (number == NULL)
        return NULL;
    PyObject *guard = find(guards, number);
    Py_DECREF(number);
    return guard;
}

/* What a dictionary by class, which may have to find it out, has for an object; a new
   reference.  Of a dictionary's subclass the interpreter does not ask the quick way. */
static inline PyObject *
for_class_of(PyObject *thing, PyObject *by_class)
{
    PyObject *found = find(by_class, (PyObject *)Py_TYPE(thing));
    if (found != NULL || PyErr_Occurred())
        return found;
    return PyObject_GetItem(by_class, (PyObject *)Py_TYPE(thing));
}

/* What run() and look() in operations.py are made of. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *in_python;   /* run(), for all that is not usual */
    PyObject *look;        /* look(), likewise */
    PyObject *own_error;   /* the class of this library's errors */
    PyObject *note_failure;
    PyObject *leave_again; /* after an interrupt */
    PyObject *read, *load, *write; /* accesses */
} Runner;

/* The arguments of a call. */
typedef struct {
    PyObject *const *args;
    Py_ssize_t count; /* of those by position */
    PyObject *names;  /* of the others, or NULL */
} Args;

/* The argument of that name, borrowed, or NULL. */
static inline PyObject *
argument(Args args, PyObject *name)
{
    Py_ssize_t count = args.names == NULL ? 0 : PyTuple_GET_SIZE(args.names);
    for (Py_ssize_t which = 0; which < count; which++)
        if (PyUnicode_Compare(PyTuple_GET_ITEM(args.names, which), name) == 0)
            return args.args[args.count + which];
    return NULL;
}

/* Like run(guard, access, function, ...), if `me` is who asks. */
PyObject *run_operation_as(Runner *self, PyObject *guard, PyObject *me,
                           PyObject *access, PyObject *function, Args args);
PyObject *run_operation(Runner *self, PyObject *guard, PyObject *access,
                        PyObject *function, Args args);

/* The same for all that is not usual. */
PyObject *run_in_python(Runner *self, PyObject *guard, PyObject *access,
                        PyObject *function, Args args);

/* Whether nothing can have changed since there was that version; -1 with an error. */
int is_still(PyObject *guard, PyObject *version);

/* Like look(guard, function, ...). */
PyObject *look_at(Runner *self, PyObject *guard, PyObject *function, Args args);

static inline PyObject *
call(PyObject *function, Args args)
{
    return PyObject_Vectorcall(function, args.args, args.count, args.names);
}

#endif
