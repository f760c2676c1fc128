"""The shared session, its transactions and its sections.

``session`` has the classes, ``recovery`` the record of whose work a transaction has.
"""
