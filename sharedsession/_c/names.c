/* The names of what is looked for in objects of Python classes: see names.h. */

#include "names.h"

PyObject *name_of[NAMES];

int
init_names(void)
{
#define X(name, text) text,
    static const char *const texts[NAMES] = {EACH_NAME(X)};
#undef X
    for (int which = 0; which < NAMES; which++)
        if ((name_of[which] = PyUnicode_InternFromString(texts[which])) == NULL)
            return -1;
    return 0;
}

PyObject *
all_names(void)
{
    PyObject *names = PyTuple_New(NAMES);
    for (int which = 0; names != NULL && which < NAMES; which++)
        PyTuple_SET_ITEM(names, which, Py_NewRef(name_of[which]));
    return names;
}
