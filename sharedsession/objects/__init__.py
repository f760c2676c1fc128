"""The objects attached to a guarded session, guarded in place, without wrappers.

``attributes`` guards the attributes and states of all mapped classes, ``collections``
the values that can change in place.
"""
