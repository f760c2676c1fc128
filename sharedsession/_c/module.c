/* The module sharedsession._compiled. */

#include "usual.h"

static PyMethodDef functions[] = {
    {"know_guard", know_guard, METH_VARARGS, "Find the slots of the class of guards."},
    {"know_usual", know_usual, METH_VARARGS, "Learn what the usual cases are told by."},
    {"let_go", (PyCFunction)(void (*)(void))let_go, METH_FASTCALL, "End a hold."},
    {"values_of_state", values_of_state, METH_O, "The values of a state's object."},
    {"take", (PyCFunction)(void (*)(void))take, METH_FASTCALL, "Begin a hold."},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sharedsession._compiled",
    .m_doc = "What is compiled: see compiled.py.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__compiled(void)
{
    if (init_names() < 0 || init_guard() < 0)
        return NULL;
    PyTypeObject *types[] = {
        &adder_type, &adopter_type, &asker_type, &at_hand_type, &execute_type,
        &look_type, &maker_type, &operation_type, &read_type, &runner_type,
        &setter_type, &statements_type, &value_setter_type, &write_type,
    };
    PyObject *made = PyModule_Create(&definition);
    for (size_t which = 0; made != NULL && which < Py_ARRAY_LENGTH(types); which++)
        if (PyModule_AddType(made, types[which]) < 0)
            Py_CLEAR(made);
    /* For the tests: those that SQLAlchemy has to have. */
    PyObject *names = made == NULL ? NULL : all_names();
    if (names != NULL && PyModule_AddObjectRef(made, "NAMES", names) < 0)
        Py_CLEAR(made);
    if (names == NULL)
        Py_CLEAR(made);
    Py_XDECREF(names);
    return made;
}
