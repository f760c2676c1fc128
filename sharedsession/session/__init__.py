"""The shared session, its transactions and its sections.

``session`` defines the classes.  ``recovery`` rolls back what other owners left broken,
and ``losses`` records which owners have work in the transaction.
"""
