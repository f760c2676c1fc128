/* Setting a plain value: set_scalar() in alchemy.py, compiled, and of the first change
   too. */

#include "usual.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *key;       /* of the attribute */
    PyObject *dispatch;  /* of its events */
    PyObject *otherwise; /* called with the same arguments for all that is not usual */
} ValueSetter;

/* Whether an attribute is that very object; -1 with an error. */
static int
is_attribute(PyObject *thing, enum name name, PyObject *wanted)
{
    PyObject *found = get_attribute(thing, name);
    Py_XDECREF(found);
    return found == NULL ? -1 : found == wanted;
}

/* Whether nobody has to be told of it; -1 with an error. */
static int
nobody_cares(ValueSetter *self)
{
    if (PyDict_GET_SIZE(usual.watched) != 0)
        return 0;
    int is_lazy = is_attribute(self->dispatch, NAME_ACTIVE_HISTORY, Py_False);
    return is_lazy <= 0 ? is_lazy : nobody_hears(self->dispatch, NAME_SET);
}

/* Whether a state has no identity map that it would have to be counted in; -1 with an
   error. */
static int
is_in_no_map(PyObject *state)
{
    PyObject *map = get_attribute(state, NAME_MAP_OF_STATE);
    if (map == NULL)
        return -1;
    int none = PyMethod_Check(map) && PyMethod_GET_FUNCTION(map) == usual.no_map;
    Py_DECREF(map);
    return none;
}

/* Whether the object of a state is there, and not only a copy of it; -1 with an error. */
static int
has_object(PyObject *state)
{
    PyObject *reference = get_attribute(state, NAME_OBJ);
    PyObject *object = reference == NULL ? NULL : PyObject_CallNoArgs(reference);
    Py_XDECREF(reference);
    Py_XDECREF(object);
    return object == NULL ? -1 : object != Py_None;
}

/* What a change makes of the state; -1 with an error. */
enum change { UNUSUAL, FIRST_OF_TRANSIENT, COUNTED };

static int
kind_of_change(PyObject *state)
{
    int is_forgetful = is_attribute(state, NAME_LAST_KNOWN_VALUES, Py_None);
    if (is_forgetful <= 0)
        return is_forgetful;
    int is_modified = is_attribute(state, NAME_MODIFIED, Py_True);
    int is_free = is_modified < 0 ? -1 : is_attribute(state, NAME_SESSION_ID, Py_None);
    if (is_free < 0)
        return -1;
    if (is_modified && is_free)
        return COUNTED;
    if (is_free) {
        int is_alone = is_in_no_map(state);
        return is_alone <= 0 ? is_alone : has_object(state);
    }
    int is_weak = is_modified ? is_attribute(state, NAME_STRONG_OBJECT, Py_None) : 1;
    return is_weak < 0 ? -1 : is_weak ? UNUSUAL : COUNTED;
}

/* Keep the value from before among the changes; 0, or -1 with an error. */
static int
note_change(ValueSetter *self, PyObject *committed, PyObject *values)
{
    int noted = PyDict_Contains(committed, self->key);
    if (noted != 0)
        return noted < 0 ? -1 : 0;
    PyObject *before = find(values, self->key);
    if (before == NULL && PyErr_Occurred())
        return -1;
    int failed = PyDict_SetItem(committed, self->key, before ? before : usual.no_value);
    Py_XDECREF(before);
    return failed;
}

/* Set it, if that is usual: 1, or 0 if it is not, or -1 with an error. */
static int
set_as_usual(ValueSetter *self, PyObject *state, PyObject *values, PyObject *value)
{
    int usual_case = value == usual.dont_set || !PyDict_Check(values) ? 0
                                                                      : nobody_cares(self);
    if (usual_case <= 0)
        return usual_case;
    int change = kind_of_change(state);
    if (change <= 0)
        return change;
    PyObject *committed = get_attribute(state, NAME_COMMITTED_STATE);
    if (committed == NULL)
        return -1;
    int failed = note_change(self, committed, values);
    if (!failed && change == FIRST_OF_TRANSIENT)
        failed = PyObject_SetAttr(state, name_of[NAME_MODIFIED], Py_True);
    if (!failed)
        failed = PyDict_SetItem(values, self->key, value);
    Py_DECREF(committed);
    return failed ? -1 : 1;
}

/* setter(state, values, value, initiator) */
static PyObject *
value_setter_call(PyObject *callable, PyObject *const *args, size_t nargsf,
                  PyObject *names)
{
    ValueSetter *self = (ValueSetter *)callable;
    int done = 0;
    if (PyVectorcall_NARGS(nargsf) == 4 && names == NULL)
        done = set_as_usual(self, args[0], args[1], args[2]);
    if (done < 0)
        return NULL;
    if (done)
        Py_RETURN_NONE;
    return PyObject_Vectorcall(self->otherwise, args, nargsf, names);
}

static PyObject *
value_setter_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *key, *dispatch, *otherwise;
    if (!PyArg_ParseTuple(args, "UOO:ValueSetter", &key, &dispatch, &otherwise))
        return NULL;
    ValueSetter *self = (ValueSetter *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = value_setter_call;
    self->key = Py_NewRef(key);
    self->dispatch = Py_NewRef(dispatch);
    self->otherwise = Py_NewRef(otherwise);
    return (PyObject *)self;
}

/* No tp_clear: every cycle goes through a class, which can be cleared. */
static int
value_setter_traverse(ValueSetter *self, visitproc visit, void *arg)
{
    Py_VISIT(self->dispatch);
    Py_VISIT(self->otherwise);
    return 0;
}

static void
value_setter_dealloc(ValueSetter *self)
{
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->key);
    Py_DECREF(self->dispatch);
    Py_DECREF(self->otherwise);
    PyObject_GC_Del(self);
}

PyTypeObject value_setter_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.ValueSetter",
    .tp_doc = "ValueSetter(key, dispatch, otherwise): see writes.py",
    .tp_basicsize = sizeof(ValueSetter),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = value_setter_new,
    .tp_dealloc = (destructor)value_setter_dealloc,
    .tp_traverse = (traverseproc)value_setter_traverse,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(ValueSetter, call),
};
