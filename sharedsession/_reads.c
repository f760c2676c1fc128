/* Reading a loaded attribute without a lock: what reads.py says in Python, compiled.

   Nothing here decides anything that is not decided there.  Whatever is not the usual
   case (nothing loaded, no state, somebody changing things) is left to `otherwise`, a
   Python function.

   An object that is looked at between two calls that may run Python code is held by a
   reference of its own: what the dictionaries hold may go away meanwhile. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *key;        /* of the attribute in the dictionary of its object */
    PyObject *state_key;  /* of the object's state there */
    PyObject *guards;     /* by the number of the session */
    PyObject *slots[5];   /* of a guard's class, in the order below */
    PyObject *otherwise;  /* called like this object if a look is not enough */
} Read;

enum { VERSION, RUNNING, INSIDE, OWNER, ATTENTION };

static PyObject *session_id_name, *asker_name;

/* The value in a dictionary, as a new reference; NULL, perhaps without an error. */
static PyObject *
find(PyObject *dictionary, PyObject *key)
{
    return Py_XNewRef(PyDict_GetItemWithError(dictionary, key));
}

/* What a slot of the guard holds, as a new reference. */
static PyObject *
get(Read *self, PyObject *guard, int which)
{
    PyMemberDescrObject *slot = (PyMemberDescrObject *)self->slots[which];
    PyObject *found = *(PyObject **)((char *)guard + slot->d_member->offset);
    return Py_NewRef(found == NULL ? Py_None : found);
}

/* Whether a slot of the guard holds that very object. */
static int
has(Read *self, PyObject *guard, int which, PyObject *thing)
{
    PyObject *found = get(self, guard, which);
    Py_DECREF(found);
    return found == thing;
}

/* Like Monitor.is_mine(), if `me` is who asks. */
static int
is_mine(Read *self, PyObject *guard, PyObject *me)
{
    return has(self, guard, RUNNING, me) || has(self, guard, INSIDE, me)
           || (has(self, guard, OWNER, me) && has(self, guard, ATTENTION, Py_False));
}

static PyObject *
look_in_version(Read *self, PyObject *guard, PyObject *values, PyObject *version)
{
    PyObject *value = find(values, self->key);
    if (value != NULL && !has(self, guard, VERSION, version))
        Py_CLEAR(value);
    return value;
}

static PyObject *
look_inside(Read *self, PyObject *guard, PyObject *values)
{
    PyObject *asker = PyObject_GetAttr(guard, asker_name);
    if (asker == NULL)
        return NULL;
    PyObject *me = PyObject_CallNoArgs(asker);
    Py_DECREF(asker);
    if (me == NULL)
        return NULL;
    PyObject *value = NULL;
    if (is_mine(self, guard, me))
        value = find(values, self->key);
    if (value != NULL && !is_mine(self, guard, me))
        Py_CLEAR(value);
    Py_DECREF(me);
    return value;
}

/* The value, if nothing can have changed while it was looked at. */
static PyObject *
look(Read *self, PyObject *guard, PyObject *values)
{
    PyObject *version = get(self, guard, VERSION);
    PyObject *value = version == Py_None
                          ? look_inside(self, guard, values)
                          : look_in_version(self, guard, values, version);
    Py_DECREF(version);
    return value;
}

/* The value of the attribute of the object whose dictionary is `values`. */
static PyObject *
read_loaded(Read *self, PyObject *values)
{
    PyObject *state = find(values, self->state_key);
    if (state == NULL)
        return NULL;
    PyObject *number = PyObject_GetAttr(state, session_id_name);
    Py_DECREF(state);
    if (number == NULL)
        return NULL;
    PyObject *guard = find(self->guards, number);
    Py_DECREF(number);
    if (guard == NULL)
        return PyErr_Occurred() ? NULL : find(values, self->key);
    PyObject *value = NULL;
    if (PyObject_TypeCheck(guard, PyDescr_TYPE(self->slots[VERSION])))
        value = look(self, guard, values);
    Py_DECREF(guard);
    return value;
}

/* __get__(attribute, instance, owner) */
static PyObject *
read_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Read *self = (Read *)callable;
    PyObject *value = NULL;
    int is_usual = PyVectorcall_NARGS(nargsf) == 3 && names == NULL;
    if (is_usual && args[1] == Py_None)
        return Py_NewRef(args[0]);
    /* Who calls may have it from a class that it goes away with meanwhile. */
    Py_INCREF(self);
    if (is_usual) {
        PyObject *values = PyObject_GenericGetDict(args[1], NULL);
        if (values != NULL) {
            value = read_loaded(self, values);
            Py_DECREF(values);
        }
    }
    if (value == NULL && !PyErr_Occurred())
        value = PyObject_Vectorcall(self->otherwise, args, nargsf, names);
    Py_DECREF(self);
    return value;
}

static PyObject *
read_bind(PyObject *self, PyObject *attribute, PyObject *type)
{
    return attribute == NULL ? Py_NewRef(self) : PyMethod_New(self, attribute);
}

/* Whether all are slots, which hold an object each, of one class. */
static int
are_slots(PyObject *const *slots)
{
    for (int which = VERSION; which <= ATTENTION; which++) {
        if (!Py_IS_TYPE(slots[which], &PyMemberDescr_Type)
            || PyDescr_TYPE(slots[which]) != PyDescr_TYPE(slots[VERSION])
            || ((PyMemberDescrObject *)slots[which])->d_member->type != T_OBJECT_EX) {
            PyErr_SetString(PyExc_TypeError, "slots of a guard's class are needed");
            return 0;
        }
    }
    return 1;
}

static PyObject *
read_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *key, *state_key, *guards, *slots[5], *otherwise;
    if (!PyArg_ParseTuple(args, "UUO!(OOOOO)O:Read", &key, &state_key, &PyDict_Type,
                          &guards, &slots[VERSION], &slots[RUNNING], &slots[INSIDE],
                          &slots[OWNER], &slots[ATTENTION], &otherwise)
        || !are_slots(slots))
        return NULL;
    Read *self = (Read *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = read_call;
    self->key = Py_NewRef(key);
    self->state_key = Py_NewRef(state_key);
    PyUnicode_InternInPlace(&self->key);
    PyUnicode_InternInPlace(&self->state_key);
    self->guards = Py_NewRef(guards);
    for (int which = VERSION; which <= ATTENTION; which++)
        self->slots[which] = Py_NewRef(slots[which]);
    self->otherwise = Py_NewRef(otherwise);
    return (PyObject *)self;
}

/* No tp_clear: every cycle goes through a class, which can be cleared. */
static int
read_traverse(Read *self, visitproc visit, void *arg)
{
    Py_VISIT(self->guards);
    Py_VISIT(self->otherwise);
    return 0;
}

static void
read_dealloc(Read *self)
{
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->key);
    Py_DECREF(self->state_key);
    Py_DECREF(self->guards);
    for (int which = VERSION; which <= ATTENTION; which++)
        Py_DECREF(self->slots[which]);
    Py_DECREF(self->otherwise);
    PyObject_GC_Del(self);
}

static PyTypeObject read_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._reads.Read",
    .tp_doc = "Read(key, state_key, guards, slots, otherwise): see reads.py",
    .tp_basicsize = sizeof(Read),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL
                | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = read_new,
    .tp_dealloc = (destructor)read_dealloc,
    .tp_traverse = (traverseproc)read_traverse,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Read, call),
    .tp_descr_get = read_bind,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sharedsession._reads",
    .m_doc = "Reading loaded attributes, compiled: see reads.py.",
    .m_size = -1,
};

PyMODINIT_FUNC
PyInit__reads(void)
{
    session_id_name = PyUnicode_InternFromString("session_id");
    asker_name = PyUnicode_InternFromString("asker");
    if (session_id_name == NULL || asker_name == NULL || PyType_Ready(&read_type) < 0)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddObjectRef(made, "Read", (PyObject *)&read_type) < 0)
        Py_CLEAR(made);
    return made;
}
