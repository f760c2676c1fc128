"""Reading a loaded attribute without a lock.

What comes in between two steps of a read comes from a key of the object's dictionary
that has the same hash, because the lookup of the value then calls its ``__eq__``.
"""

from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace

import pytest

from sharedsession.guard.access import EXCLUSIVE
from sharedsession.guard.guard import Guard
from sharedsession.guard.turn import Turn
from sharedsession.internals.orm import STATE_KEY
from sharedsession.objects.guards import guards_by_session
from sharedsession.objects.reading import getter_of

KINDS = [getter_of]

NUMBER = -1  # of no session
OTHERWISE = object()
VALUE = object()


class Intruder:
    """A key that does something when a dictionary compares it with that of a value."""

    def __init__(self, key):
        self._hash = hash(key)
        self.do = lambda: None

    def __hash__(self):
        return self._hash

    def __eq__(self, other):
        self.do()
        return False


class Reading:
    """An attribute called ``key``, and an object of a guarded session."""

    def __init__(self, make):
        self.calls = []
        getter = make("key", self._otherwise)
        attribute_class = type(
            "Attribute", (), {"__get__": getter, "__set__": lambda *args: None}
        )
        self.attribute = attribute_class()
        self.cls = type("Mapped", (), {"key": self.attribute})
        self.guard = guards_by_session[NUMBER] = Guard()
        self.object = self.cls()
        self.values = self.object.__dict__
        self.values[STATE_KEY] = SimpleNamespace(session_id=NUMBER)

    def _otherwise(self, attribute, instance, owner):
        self.calls.append((attribute, instance, owner))
        return OTHERWISE

    def intrude(self, do):
        """Have *do* called in the middle of each read."""
        intruder = Intruder("key")
        self.values[intruder] = None
        self.values["key"] = VALUE
        intruder.do = do


@pytest.fixture(params=KINDS)
def reading(request):
    yield Reading(request.param)
    guards_by_session.pop(NUMBER, None)


def change(guard):
    guard.last_version += 1
    guard.version = guard.last_version


def test_what_is_loaded_is_looked_at(reading):
    reading.values["key"] = VALUE
    assert reading.object.key is VALUE
    assert reading.calls == []


@pytest.mark.parametrize("number", [None, NUMBER - 1])
def test_without_a_guard_too(reading, number):
    reading.values[STATE_KEY].session_id = number
    reading.values["key"] = VALUE
    assert reading.object.key is VALUE


def test_the_class_has_the_attribute_itself(reading):
    assert reading.cls.key is reading.attribute


def test_it_can_be_asked_like_any_descriptor(reading):
    reading.values["key"] = VALUE
    getter = reading.attribute.__get__
    assert getter(reading.object, reading.cls) is VALUE
    assert getter(None, reading.cls) is reading.attribute
    with pytest.raises(TypeError):
        getter(reading.object, reading.cls, "one more")


@pytest.mark.parametrize("missing", ["key", STATE_KEY])
def test_what_is_not_there_is_read_otherwise(reading, missing):
    reading.values["key"] = VALUE
    del reading.values[missing]
    assert reading.object.key is OTHERWISE
    assert reading.calls == [(reading.attribute, reading.object, reading.cls)]


def test_without_a_guard_what_is_not_there_is_read_otherwise(reading):
    del guards_by_session[NUMBER]
    assert reading.object.key is OTHERWISE


def test_beside_an_operation_it_is_read_otherwise(reading):
    reading.values["key"] = VALUE
    reading.guard.version = None
    assert reading.object.key is OTHERWISE


@pytest.mark.parametrize("right", ["running", "turn"])
def test_inside_it_is_looked_at(reading, right):
    reading.values["key"] = VALUE
    reading.guard.version = None
    me = reading.guard.current_owner()
    mine = me if right == "running" else Turn(me, EXCLUSIVE, None)
    setattr(reading.guard, right, mine)
    assert reading.object.key is VALUE
    assert reading.calls == []
    found = []
    stranger = threading.Thread(target=lambda: found.append(reading.object.key))
    stranger.start()
    stranger.join()
    assert found == [OTHERWISE]


def test_who_only_reads_is_told_first_what_there_is_to_tell(reading):
    reading.values["key"] = VALUE
    reading.guard.version = None
    reading.guard.turn = Turn(reading.guard.current_owner(), EXCLUSIVE, None)
    reading.guard.attention = True
    assert reading.object.key is OTHERWISE


def test_a_change_in_between_makes_it_be_read_otherwise(reading):
    reading.intrude(lambda: change(reading.guard))
    assert reading.object.key is OTHERWISE


def test_a_change_that_has_begun_in_between_does_so_too(reading):
    reading.intrude(lambda: setattr(reading.guard, "version", None))
    assert reading.object.key is OTHERWISE


@pytest.mark.parametrize("right", ["running", "turn"])
def test_the_end_of_its_section_in_between_does_so_too(reading, right):
    reading.guard.version = None
    me = reading.guard.current_owner()
    mine = me if right == "running" else Turn(me, EXCLUSIVE, None)
    setattr(reading.guard, right, mine)
    reading.intrude(lambda: setattr(reading.guard, right, None))
    assert reading.object.key is OTHERWISE


def test_something_else_in_between_does_not(reading):
    seen = []
    reading.intrude(lambda: seen.append(True))
    assert reading.object.key is VALUE
    assert seen


def test_its_guard_may_go_away_in_between(reading):
    gone = weakref.ref(reading.guard)

    def drop():
        guards_by_session.pop(NUMBER, None)
        reading.guard = None
        gc.collect()

    reading.intrude(drop)
    assert reading.object.key is VALUE
    gc.collect()
    assert gone() is None


def test_its_value_may_go_away_in_between(reading):
    reading.intrude(lambda: reading.values.clear())
    assert reading.object.key is OTHERWISE


def test_an_error_in_between_is_raised(reading):
    def fail():
        raise ZeroDivisionError

    reading.intrude(fail)
    with pytest.raises(ZeroDivisionError):
        reading.object.key


def test_an_error_of_who_is_asked_is_raised(reading):
    def fail():
        raise ZeroDivisionError

    reading.values["key"] = VALUE
    reading.guard.current_owner, reading.guard.version = fail, None
    with pytest.raises(ZeroDivisionError):
        reading.object.key


@pytest.mark.parametrize("make", KINDS)
def test_it_keeps_nothing_alive(make):
    reading = Reading(make)
    value = reading.values["key"] = Intruder("")
    for _ in range(3):
        reading.object.key
    found = [weakref.ref(it) for it in (value, reading.cls, reading.guard)]
    del value, reading, guards_by_session[NUMBER]
    gc.collect()
    assert [find() for find in found] == [None] * 3


@pytest.mark.parametrize("make", KINDS)
def test_it_may_go_away_itself_in_between(make):
    reading, other = Reading(make), Reading(make)
    reading.values["key"] = VALUE
    reading.guard.version = None
    plain_asker = reading.guard.current_owner
    guards_by_session[NUMBER] = reading.guard

    def asker():
        # What happens to an attribute whose implementation is another one now.
        reading.attribute.__class__ = type(other.attribute)
        gc.collect()
        junk = [bytearray(b"x" * size) for size in range(300)]
        assert junk
        return plain_asker()

    reading.guard.current_owner = asker
    try:
        assert reading.object.key is OTHERWISE
    finally:
        del guards_by_session[NUMBER]
