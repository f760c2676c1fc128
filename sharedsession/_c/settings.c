/* Setting an attribute of a session: what its __setattr__() does in session.py, compiled.
   SQLAlchemy sets many, few of which are settings. */

#include "parts.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *settings;  /* the names of those that are set under the guard */
    PyObject *line;      /* by class of session: the base whose method comes next */
    PyObject *in_python; /* the method, for these, and for a base that has its own */
} Setter;

/* Whether nothing but the session's dictionary is concerned; -1 with an error. */
static int
is_plain(Setter *self, PyObject *session, PyObject *name)
{
    int is_setting = PySet_Contains(self->settings, name);
    if (is_setting != 0)
        return is_setting < 0 ? -1 : 0;
    PyObject *base = for_class_of(session, self->line);
    Py_XDECREF(base);
    return base == NULL ? -1 : base == (PyObject *)&PyBaseObject_Type;
}

/* __setattr__(session, name, value) */
static PyObject *
setter_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Setter *self = (Setter *)callable;
    int plain = 0;
    if (PyVectorcall_NARGS(nargsf) == 3 && names == NULL)
        plain = is_plain(self, args[0], args[1]);
    if (plain < 0)
        return NULL;
    if (!plain)
        return PyObject_Vectorcall(self->in_python, args, nargsf, names);
    if (PyObject_GenericSetAttr(args[0], args[1], args[2]) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
setter_bind(PyObject *self, PyObject *session, PyObject *type)
{
    return session == NULL ? Py_NewRef(self) : PyMethod_New(self, session);
}

static PyObject *
setter_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *settings, *line, *in_python;
    if (!PyArg_ParseTuple(args, "O!OO:Setter", &PyFrozenSet_Type, &settings, &line,
                          &in_python))
        return NULL;
    Setter *self = (Setter *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = setter_call;
    self->settings = Py_NewRef(settings);
    self->line = Py_NewRef(line);
    self->in_python = Py_NewRef(in_python);
    return (PyObject *)self;
}

/* There is one of it, which lasts as long as the process. */
PyTypeObject setter_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Setter",
    .tp_doc = "Setter(settings, line, in_python): see session.py",
    .tp_basicsize = sizeof(Setter),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL
                | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = setter_new,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Setter, call),
    .tp_descr_get = setter_bind,
};
