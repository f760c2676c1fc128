/* Executing a statement: what statements.py, rows.py, session.py and connections.py say
   about the usual ones, compiled. */

#include "parts.h"
#include <structmember.h>

/* What is known of statements and their results. */
typedef struct {
    PyObject_HEAD
    Runner *runner;
    PyObject *kinds;         /* by class of statement: True if it is a SELECT, False if
                                it is text; others are not there */
    PyObject *texts;         /* by text: what executing it does */
    PyObject *access_of;     /* for all others, and for what is not there yet */
    PyTypeObject *result;    /* of what has rows of the database */
    PyTypeObject *strategy;  /* of how they come, usually */
    PyTypeObject *in_memory; /* the same for rows that are here */
    PyObject *handle_error;  /* called with a result, its cursor and an error */
    PyObject *log_unclosed;  /* called with a connection and the error of a cursor */
    PyTypeObject *objects;   /* of results that make objects of such rows */
    PyObject *promise_objects, *make_objects; /* if the rows are here */
    PyObject *settle, *settle_within;         /* for all other results */
} Statements;

/* -- what a statement does */

/* Whether options are there, and have none of two names; 0 also if in doubt. */
static int
have_neither(PyObject *options, enum name one, enum name other)
{
    if (options == NULL || options == Py_None)
        return 1;
    if (!PyDict_Check(options))
        return 0;
    if (PyDict_GET_SIZE(options) == 0)
        return 1;
    int found = PyDict_Contains(options, name_of[one]);
    if (found == 0)
        found = PyDict_Contains(options, name_of[other]);
    return found == 0;
}

/* Whether those of a query are sure not to overwrite what is loaded. */
static int
load_only(PyObject *options)
{
    if (options == NULL || !PyDict_Check(options))
        return options == NULL || options == Py_None;
    PyObject *loads = PyDict_GetItemWithError(options, name_of[NAME_LOAD_OPTIONS]);
    if (loads == NULL && PyErr_Occurred())
        return 0;
    int plain = loads == NULL || has(loads, NAME_OPTION_POPULATE, Py_False);
    return plain && have_neither(options, NAME_POPULATE_EXISTING, NAME_POPULATE_EXISTING);
}

/* What executing the statement does, as a borrowed reference; NULL for any that is not
   usual, or not known yet, perhaps with an error. */
static PyObject *
known_access(Statements *self, PyObject *statement, PyObject *options)
{
    PyObject *kind = PyDict_GetItemWithError(self->kinds, (PyObject *)Py_TYPE(statement));
    if (kind == Py_False) {
        PyObject *text = attribute(statement, NAME_TEXT);
        PyObject *access = text == NULL ? NULL : PyDict_GetItemWithError(self->texts, text);
        Py_XDECREF(text);
        if (access != self->runner->load)
            return access;
    }
    else if (kind != Py_True)
        return NULL;
    PyObject *own = attribute(statement, NAME_OWN_OPTIONS);
    int plain = own != NULL && have_neither(own, NAME_POPULATE_EXISTING, NAME_POPULATE_EXISTING);
    Py_XDECREF(own);
    return plain && load_only(options) ? self->runner->load : NULL;
}

/* The same for any statement; a new reference, or NULL with an error. */
static PyObject *
access_of(Statements *self, PyObject *statement, PyObject *options)
{
    PyObject *access = known_access(self, statement, options);
    if (access != NULL)
        return Py_NewRef(access);
    if (is_interrupted())
        return NULL;
    PyObject *args[] = {statement, options == NULL ? Py_None : options};
    return PyObject_Vectorcall(self->access_of, args, 2, NULL);
}

/* -- its result */

/* Whether the rows of a result are all that is to be fetched, and now. */
static int
is_usual(Statements *self, PyObject *result)
{
    PyObject *strategy = attribute(result, NAME_CURSOR_STRATEGY);
    int usual = strategy != NULL && Py_IS_TYPE(strategy, self->strategy)
                && has(result, NAME_YIELD_PER, Py_None);
    Py_XDECREF(strategy);
    PyObject *context = usual ? attribute(result, NAME_CONTEXT) : NULL;
    PyObject *options = context == NULL ? NULL : attribute(context, NAME_EXECUTION_OPTIONS);
    usual = options != NULL && have_neither(options, NAME_OPTION_STREAM, NAME_OPTION_YIELD);
    Py_XDECREF(options);
    Py_XDECREF(context);
    return usual;
}

/* What the strategy makes of an error of the driver: another error, as a rule. */
static void
handle_error(Statements *self, PyObject *result, PyObject *cursor)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    PyObject *args[] = {result, cursor, error};
    PyObject *handled = PyObject_Vectorcall(self->handle_error, args, 3, NULL);
    if (handled != NULL) {
        Py_DECREF(handled);
        PyErr_Restore(type, error, traceback);
        return;
    }
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
}

/* Log the error that a cursor was closed with, as its connection does. */
static PyObject *
log_unclosed(Statements *self, PyObject *result)
{
    PyObject *type, *error, *traceback, *logged = NULL;
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return NULL;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    PyObject *connection = get_attribute(result, NAME_CONNECTION);
    PyObject *args[] = {connection, error};
    if (connection != NULL)
        logged = PyObject_Vectorcall(self->log_unclosed, args, 2, NULL);
    Py_XDECREF(connection);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return logged;
}

/* What a result does when its rows are at an end: it closes its cursor. */
static int
close_cursor(Statements *self, PyObject *result, PyObject *cursor)
{
    if (PyObject_SetAttr(result, name_of[NAME_CURSOR], Py_None) < 0)
        return -1;
    PyObject *closed = PyObject_CallMethodNoArgs(cursor, name_of[NAME_CLOSE]);
    if (closed == NULL)
        closed = log_unclosed(self, result);
    if (closed == NULL)
        return -1;
    Py_DECREF(closed);
    return PyObject_SetAttr(result, name_of[NAME_SOFT_CLOSED], Py_True);
}

/* A strategy for rows that are here, in a list that may be somebody else's. */
static PyObject *
in_memory(Statements *self, PyObject *rows)
{
    int is_ours = PyList_CheckExact(rows) && Py_REFCNT(rows) == 1;
    PyObject *buffer = is_ours ? Py_NewRef(rows) : PySequence_List(rows);
    if (buffer == NULL)
        return NULL;
    PyObject *strategy = NULL;
    if (PyList_Reverse(buffer) == 0)
        strategy = PyType_GenericAlloc(self->in_memory, 0);
    if (strategy != NULL
        && (PyObject_SetAttr(strategy, name_of[NAME_ROW_BUFFER], buffer) < 0
            || PyObject_SetAttr(strategy, name_of[NAME_DESCRIPTION], Py_None) < 0))
        Py_CLEAR(strategy);
    Py_DECREF(buffer);
    return strategy;
}

/* Fetch all rows, and have the result deal them out. */
static int
fetch_rows(Statements *self, PyObject *result)
{
    PyObject *cursor = get_attribute(result, NAME_CURSOR), *strategy = NULL;
    if (cursor == NULL)
        return -1;
    PyObject *rows = PyObject_CallMethodNoArgs(cursor, name_of[NAME_FETCHALL]);
    if (rows == NULL || close_cursor(self, result, cursor) < 0)
        handle_error(self, result, cursor);
    else
        strategy = in_memory(self, rows);
    Py_XDECREF(rows);
    Py_DECREF(cursor);
    if (strategy == NULL)
        return -1;
    int failed = PyObject_SetAttr(result, name_of[NAME_CURSOR_STRATEGY], strategy);
    Py_DECREF(strategy);
    return failed;
}

/* Whether a result makes objects of rows that are all here. */
static int
has_rows_for_objects(Statements *self, PyObject *result)
{
    if (!Py_IS_TYPE(result, self->objects))
        return 0;
    PyObject *raw = attribute(result, NAME_RAW);
    int has_rows = raw != NULL && PyObject_TypeCheck(raw, self->result)
                   && has(raw, NAME_SOFT_CLOSED, Py_True);
    Py_XDECREF(raw);
    return has_rows;
}

/* Whether the rows of a result are here, and its cursor is closed. */
static int
is_settled(Statements *self, PyObject *result)
{
    return PyObject_TypeCheck(result, self->result) && has(result, NAME_SOFT_CLOSED, Py_True);
}

/* Like settle() in rows.py, or settle_within(); takes the reference to the result, which
   may be NULL. */
static PyObject *
settled(Statements *self, int within, PyObject *guard, PyObject *result)
{
    if (result == NULL)
        return NULL;
    if (PyObject_TypeCheck(result, self->result)) {
        int is_usual_one = is_usual(self, result); /* by its strategy it is not settled */
        if (is_usual_one && fetch_rows(self, result) < 0)
            Py_CLEAR(result);
        if (is_usual_one || is_settled(self, result))
            return result;
    }
    PyObject *args[] = {guard, result}, *settle, *done;
    int has_objects = has_rows_for_objects(self, result);
    if (is_interrupted()) {
        Py_DECREF(result);
        return NULL;
    }
    if (!has_objects) {
        settle = within ? self->settle_within : self->settle;
        done = PyObject_Vectorcall(settle, args, 2, NULL);
        Py_DECREF(result);
        return done;
    }
    settle = within ? self->make_objects : self->promise_objects;
    done = PyObject_Vectorcall(settle, args, 2, NULL);
    if (done == NULL)
        Py_CLEAR(result);
    Py_XDECREF(done);
    return result;
}

static PyObject *
statements_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *runner, *kinds, *texts, *access, *result, *strategy, *in_memory, *objects,
        *handle, *log, *promise, *make, *settle, *settle_within;
    if (!PyArg_ParseTuple(args, "O!O!O!OO!O!O!OOO!OOOO:Statements", &runner_type, &runner,
                          &PyDict_Type, &kinds, &PyDict_Type, &texts, &access,
                          &PyType_Type, &result, &PyType_Type, &strategy, &PyType_Type,
                          &in_memory,
                          &handle, &log, &PyType_Type, &objects, &promise, &make, &settle,
                          &settle_within))
        return NULL;
    Statements *self = (Statements *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->runner = (Runner *)Py_NewRef(runner);
    self->kinds = Py_NewRef(kinds);
    self->texts = Py_NewRef(texts);
    self->access_of = Py_NewRef(access);
    self->result = (PyTypeObject *)Py_NewRef(result);
    self->strategy = (PyTypeObject *)Py_NewRef(strategy);
    self->in_memory = (PyTypeObject *)Py_NewRef(in_memory);
    self->handle_error = Py_NewRef(handle);
    self->log_unclosed = Py_NewRef(log);
    self->objects = (PyTypeObject *)Py_NewRef(objects);
    self->promise_objects = Py_NewRef(promise);
    self->make_objects = Py_NewRef(make);
    self->settle = Py_NewRef(settle);
    self->settle_within = Py_NewRef(settle_within);
    return (PyObject *)self;
}

/* There is one of it, which lasts as long as the process. */
PyTypeObject statements_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Statements",
    .tp_doc = "Statements(runner, kinds, texts, access_of, result, strategy, in_memory,"
              " handle_error, log_unclosed, objects, promise_objects, make_objects, settle,"
              " settle_within): see execution.py",
    .tp_basicsize = sizeof(Statements),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = statements_new,
};

/* -- methods that execute one */

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    Statements *statements;
    PyObject *function;  /* what is called inside: the method, or by class of session */
    PyObject *otherwise; /* the method in Python, for all that is not usual */
    PyObject *alone;     /* of a session: function and settle(), as one function, */
    PyObject *within;    /* and function and settle_within() */
} Execute;

/* function(session, ...) and settle(), inside the operation. */
static PyObject *
step(Execute *self, int within, PyObject *const *args, size_t nargsf, PyObject *names)
{
    PyObject *function = for_class_of(args[0], self->function);
    if (function == NULL)
        return NULL;
    PyObject *result = PyObject_Vectorcall(function, args, nargsf, names);
    Py_DECREF(function);
    if (result == NULL || is_settled(self->statements, result))
        return result;
    PyObject *guard = get_attribute(args[0], NAME_GUARD);
    if (guard == NULL) {
        Py_DECREF(result);
        return NULL;
    }
    result = settled(self->statements, within, guard, result);
    Py_DECREF(guard);
    return result;
}

static PyObject *
alone_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Execute *self = (Execute *)callable;
    return step(self, 0, args, nargsf, names);
}

static PyObject *
within_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Execute *self = (Execute *)callable;
    return step(self, 1, args, nargsf, names);
}

/* A statement that some session executes now, and that changes nothing; borrowed.  Whoever
   puts one here takes away what is here at the end, so that what is here is alive. */
static PyObject *loading;

/* _execute_internal(session, statement, ...) */
static PyObject *
session_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Execute *self = (Execute *)callable;
    Args all = {args, PyVectorcall_NARGS(nargsf), names};
    PyObject *guard = all.count < 2 ? NULL : attribute(args[0], NAME_GUARD);
    if (guard == NULL || !Py_IS_TYPE(guard, guard_type) || is_read(guard)) {
        Py_XDECREF(guard);
        if (is_interrupted())
            return NULL;
        return PyObject_Vectorcall(self->otherwise, args, nargsf, names);
    }
    PyObject *options = argument(all, name_of[NAME_EXECUTION_OPTIONS]);
    PyObject *access = access_of(self->statements, args[1], options), *result = NULL;
    PyObject *me = access == NULL ? NULL : ask(guard);
    if (me != NULL) {
        PyObject *step = slot(guard, RUNNING) == me ? self->within : self->alone;
        Runner *runner = self->statements->runner;
        loading = access == runner->load ? args[1] : NULL;
        result = run_operation_as(runner, guard, me, access, step, all);
        loading = NULL;
    }
    Py_XDECREF(me);
    Py_XDECREF(access);
    Py_DECREF(guard);
    return result;
}

/* The guard of a connection, as a new reference; NULL, perhaps without an error. */
static PyObject *
guard_of_connection(PyObject *connection)
{
    PyObject *find = attribute(connection, NAME_GUARD_OF_CONNECTION);
    PyObject *guard = find == NULL ? NULL : PyObject_CallNoArgs(find);
    Py_XDECREF(find);
    if (guard == Py_None)
        Py_CLEAR(guard);
    return guard;
}

/* Whether it is a part of an operation that allows for it, and no window opens; 0 also
   with an error. */
static int
is_allowed(Statements *self, PyObject *guard, PyObject *statement)
{
    if (!Py_IS_TYPE(guard, guard_type) || is_read(guard)
        || slot(guard, MAY_OPEN) != Py_False)
        return 0;
    PyObject *me = ask(guard);
    if (me == NULL)
        return 0;
    int running = slot(guard, RUNNING) == me, noted = slot(guard, WORKER) == me;
    Py_DECREF(me);
    return running
           && (noted || statement == loading
               || known_access(self, statement, NULL) == self->runner->load);
}

/* execute(connection, statement, ...) */
static PyObject *
connection_call(PyObject *callable, PyObject *const *args, size_t nargsf,
                PyObject *names)
{
    Execute *self = (Execute *)callable;
    PyObject *result = NULL, *guard = NULL;
    if (PyVectorcall_NARGS(nargsf) >= 2)
        guard = guard_of_connection(args[0]);
    int allowed = guard != NULL && is_allowed(self->statements, guard, args[1]);
    if (!allowed && !is_interrupted())
        result = PyObject_Vectorcall(self->otherwise, args, nargsf, names);
    else if (allowed)
        result = settled(self->statements, 1, guard,
                         PyObject_Vectorcall(self->function, args, nargsf, names));
    Py_XDECREF(guard);
    return result;
}

static PyObject *
execute_bind(PyObject *self, PyObject *thing, PyObject *type)
{
    return thing == NULL ? Py_NewRef(self) : PyMethod_New(self, thing);
}

static PyObject *
make_execute(PyTypeObject *type, vectorcallfunc call, PyObject *statements,
             PyObject *function, PyObject *otherwise)
{
    Execute *self = (Execute *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = call;
    self->statements = (Statements *)Py_NewRef(statements);
    self->function = Py_NewRef(function);
    self->otherwise = Py_NewRef(otherwise);
    return (PyObject *)self;
}

/* Execute(statements, function, otherwise) of a connection; of a session if the function
   is one for each class of sessions. */
static PyObject *
execute_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *statements, *function, *otherwise;
    if (!PyArg_ParseTuple(args, "O!OO:Execute", &statements_type, &statements, &function,
                          &otherwise))
        return NULL;
    if (!PyDict_Check(function))
        return make_execute(type, connection_call, statements, function, otherwise);
    PyObject *made = make_execute(type, session_call, statements, function, otherwise);
    if (made == NULL)
        return NULL;
    Execute *self = (Execute *)made;
    self->alone = make_execute(type, alone_call, statements, function, Py_None);
    self->within = make_execute(type, within_call, statements, function, Py_None);
    if (self->alone == NULL || self->within == NULL)
        Py_CLEAR(made);
    return made;
}

static int
execute_traverse(Execute *self, visitproc visit, void *arg)
{
    Py_VISIT(self->function);
    Py_VISIT(self->otherwise);
    Py_VISIT(self->alone);
    Py_VISIT(self->within);
    return 0;
}

static void
execute_dealloc(Execute *self)
{
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->statements);
    Py_DECREF(self->function);
    Py_DECREF(self->otherwise);
    Py_XDECREF(self->alone);
    Py_XDECREF(self->within);
    PyObject_GC_Del(self);
}

PyTypeObject execute_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.Execute",
    .tp_doc = "Execute(statements, function, otherwise): see execution.py",
    .tp_basicsize = sizeof(Execute),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL
                | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = execute_new,
    .tp_dealloc = (destructor)execute_dealloc,
    .tp_traverse = (traverseproc)execute_traverse,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Execute, call),
    .tp_descr_get = execute_bind,
};

/* -- the connection that a transaction has already */

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *active;    /* the state of a transaction in which there is no more to it */
    PyObject *otherwise;
} AtHand;

/* The one around a transaction that is a part of a flush, and has no connections; NULL
   for another kind. */
static PyObject *
transaction_around(PyObject *transaction)
{
    if (!has(transaction, NAME_NESTED, Py_False))
        return NULL;
    PyObject *parent = attribute(transaction, NAME_PARENT);
    if (parent == Py_None)
        Py_CLEAR(parent);
    return parent;
}

/* The connection of that engine, as a new reference; NULL for none, or in doubt. */
static PyObject *
connection_of(PyObject *transaction, PyObject *engine)
{
    PyObject *known = attribute(transaction, NAME_CONNECTIONS), *connection = NULL;
    if (known != NULL && PyDict_Check(known)) {
        PyObject *entry = PyDict_GetItemWithError(known, engine);
        if (entry != NULL && PyTuple_Check(entry) && PyTuple_GET_SIZE(entry) > 0)
            connection = Py_NewRef(PyTuple_GET_ITEM(entry, 0));
    }
    Py_XDECREF(known);
    return connection;
}

/* A guard of tasks may have to refuse, and so has to be asked. */
static int
has_guard_of_threads(PyObject *transaction)
{
    PyObject *session = attribute(transaction, NAME_SESSION);
    PyObject *guard = attribute(session, NAME_GUARD);
    int found = guard != NULL && Py_IS_TYPE(guard, guard_type);
    Py_XDECREF(session);
    Py_XDECREF(guard);
    return found;
}

static PyObject *
connection_at_hand(AtHand *self, PyObject *transaction, PyObject *engine)
{
    PyObject *connection = NULL;
    Py_INCREF(transaction);
    while (transaction != NULL && connection == NULL && !PyErr_Occurred()
           && has(transaction, NAME_STATE_OF_TRANSACTION, self->active)) {
        connection = connection_of(transaction, engine);
        if (connection == NULL)
            Py_SETREF(transaction, transaction_around(transaction));
    }
    Py_XDECREF(transaction);
    PyObject *guard = connection == NULL ? NULL : guard_of_connection(connection);
    if (guard == NULL)
        Py_CLEAR(connection);
    Py_XDECREF(guard);
    return connection;
}

/* _connection_for_bind(transaction, engine, options) */
static PyObject *
at_hand_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    AtHand *self = (AtHand *)callable;
    PyObject *connection = NULL;
    if (PyVectorcall_NARGS(nargsf) == 3 && names == NULL
        && (args[2] == Py_None
            || (PyDict_Check(args[2]) && PyDict_GET_SIZE(args[2]) == 0))
        && has_guard_of_threads(args[0]))
        connection = connection_at_hand(self, args[0], args[1]);
    if (connection != NULL || is_interrupted())
        return connection;
    return PyObject_Vectorcall(self->otherwise, args, nargsf, names);
}

static PyObject *
at_hand_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *active, *otherwise;
    if (!PyArg_ParseTuple(args, "OO:AtHand", &active, &otherwise))
        return NULL;
    AtHand *self = (AtHand *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = at_hand_call;
    self->active = Py_NewRef(active);
    self->otherwise = Py_NewRef(otherwise);
    return (PyObject *)self;
}

/* There is one of it, which lasts as long as the process. */
PyTypeObject at_hand_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedsession._compiled.AtHand",
    .tp_doc = "AtHand(active, otherwise): see transactions.py",
    .tp_basicsize = sizeof(AtHand),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL
                | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = at_hand_new,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(AtHand, call),
    .tp_descr_get = execute_bind,
};
