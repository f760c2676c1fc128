/* Who asks: what current_owner() in owners.py says in Python, compiled. */

#include "parts.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *owners;    /* by the identifier of the thread */
    PyObject *introduce; /* called for a thread that is not among them */
    /* The last one that asked, borrowed: forget() comes before it goes. */
    uintptr_t last_thread;
    PyObject *last;
} Asker;

/* Compilers that say they have it may fail to compile it, for other processors too. */
#if defined(__linux__) && defined(__x86_64__) && defined(__clang__)
#if __clang_major__ >= 14
#define HAS_THREAD_POINTER
#endif
#elif defined(__linux__) && defined(__x86_64__) && defined(__GNUC__)
#if __GNUC__ >= 11
#define HAS_THREAD_POINTER
#endif
#endif

/* A number that no two threads have at a time; the quickest there is. */
static inline uintptr_t
this_thread(void)
{
#ifdef HAS_THREAD_POINTER
    return (uintptr_t)__builtin_thread_pointer();
#else
    return (uintptr_t)PyThread_get_thread_ident();
#endif
}

PyObject *
current_owner(PyObject *asker)
{
    Asker *self = (Asker *)asker;
    uintptr_t thread = this_thread();
    if (self->last != NULL && self->last_thread == thread)
        return Py_NewRef(self->last);
    PyObject *key = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    if (key == NULL)
        return NULL;
    PyObject *owner = find(self->owners, key);
    Py_DECREF(key);
    if (owner == NULL)
        return PyErr_Occurred() ? NULL : PyObject_CallNoArgs(self->introduce);
    self->last_thread = thread;
    self->last = owner;
    return owner;
}

static PyObject *
asker_call(PyObject *asker, PyObject *const *args, size_t nargsf, PyObject *names)
{
    if (PyVectorcall_NARGS(nargsf) == 0 && names == NULL)
        return current_owner(asker);
    PyErr_SetString(PyExc_TypeError, "current_owner() takes no arguments");
    return NULL;
}

static PyObject *
asker_forget(PyObject *self, PyObject *unused)
{
    ((Asker *)self)->last = NULL;
    Py_RETURN_NONE;
}

static PyObject *
asker_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *owners, *introduce;
    if (!PyArg_ParseTuple(args, "O!O:Asker", &PyDict_Type, &owners, &introduce))
        return NULL;
    Asker *self = (Asker *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = asker_call;
    self->owners = Py_NewRef(owners);
    self->introduce = Py_NewRef(introduce);
    return (PyObject *)self;
}

static int
asker_traverse(Asker *self, visitproc visit, void *arg)
{
    Py_VISIT(self->owners);
    Py_VISIT(self->introduce);
    return 0;
}

static void
asker_dealloc(Asker *self)
{
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->owners);
    Py_DECREF(self->introduce);
    PyObject_GC_Del(self);
}

static PyMethodDef asker_methods[] = {
    {"forget", asker_forget, METH_NOARGS, "Forget who asked last: it may be gone."},
    {NULL},
};

PyTypeObject asker_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Asker",
    .tp_doc = "Asker(owners, introduce): see owners.py",
    .tp_basicsize = sizeof(Asker),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = asker_new,
    .tp_dealloc = (destructor)asker_dealloc,
    .tp_traverse = (traverseproc)asker_traverse,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Asker, call),
    .tp_methods = asker_methods,
};
