"""One call is one operation: how it runs inside the guard, and what it does there.

``operation`` runs a function as an operation.  ``tables`` lists all operations, and
``wrap`` and ``inplace`` replace SQLAlchemy's methods and classes by them.
"""
