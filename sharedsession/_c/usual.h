/* What methods of SQLAlchemy do in the usual case, in their place. */

#ifndef SHAREDSESSION_USUAL_H
#define SHAREDSESSION_USUAL_H

#include "parts.h"

/* What they tell by, once know_usual() was called. */
typedef struct {
    PyObject *no_value, *no_result;  /* found instead of a value */
    PyObject *no_history;            /* of an attribute about which nothing is known */
    long callables_ok, init_ok, with_pending; /* flags of get() and get_history() */
    PyTypeObject *no_listeners;      /* the class of an event's listeners if there are none */
    PyObject *dont_set;              /* a value that is none */
    PyObject *no_map;                /* what a state has for its map if it is in none */
    PyObject *watched;               /* the guards for which changes are noted, a dict */
    PyObject *of_base;               /* what SQLAlchemy's module orm.base has, by name */
} Usual;

extern Usual usual;

PyObject *know_usual(PyObject *module, PyObject *args);
PyObject *values_of_state(PyObject *module, PyObject *state);

/* The methods; the numbers are those in operations.py.  The first are of attributes, the
   others of identity maps: some take nothing else, some one thing. */
enum { NONE_OF_THEM,
       GET_OF_ATTRIBUTE, HISTORY_OF_VALUE, HISTORY_OF_COLLECTION,
       LEN_OF_MAP, IS_MAP_MODIFIED, STATES_OF_MAP,
       GET_OF_MAP, CONTAINS_OF_MAP, HAS_MAP_STATE, REPLACE_OF_MAP };

/* What the method returns, as a new reference; NULL, perhaps without an error, if it is
   to be called. */
PyObject *do_as_usual(int method, Args args);

/* Whether there are no listeners to an event; -1 with an error. */
int nobody_hears(PyObject *dispatch, enum name event);

#endif
