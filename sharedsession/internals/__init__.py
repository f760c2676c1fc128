"""The private API of SQLAlchemy that this library uses, all in this package.

Each name says why the library needs it.  Tests check the assumptions, therefore a
release of SQLAlchemy that breaks one of them shows up as a failing test.  If 2.0 and
2.1 use two names for the same thing, this package looks up both, once.
"""
