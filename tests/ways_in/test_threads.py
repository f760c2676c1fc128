"""Every way in meets the guard: the matrix that is made of ``ways_in``."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from sharedsession import ConcurrentAccessError
from sharedsession.guard.access import READ

from ..conftest import make_world
from ..support.threads import Worker, passes, wait_for, wait_until
from .table import WAYS, Way

every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)

# Some ways leave a transaction half done on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]


def try_in_thread(way: Way, world: Any, prepared: Any) -> Worker:
    return Worker(lambda: way.go(world, prepared), name="other")


@every_way
@pytest.mark.parametrize("lock", ["rlock", "rw"])
def test_waits_for_a_critical_section(engine: sa.Engine, lock: str, way: Way) -> None:
    world = make_world(engine, lock)
    prepared = way.prepare(world)
    guard = world.session.guard
    with world.session.critical_section():
        other = try_in_thread(way, world, prepared)
        assert not passes(other, guard)
    other.result()
    wait_until(lambda: guard.owner is None)  # what it left open ends with its thread


@every_way
@pytest.mark.unguarded
def test_control_a_plain_session_lets_everybody_in(engine: sa.Engine, way: Way) -> None:
    world = make_world(engine, "off")
    if "critical_section(obj)" in way.name or not way.alone:
        pytest.skip("only with a guard")
    prepared = way.prepare(world)
    inside = world.session.critical_section()
    with inside:
        other = try_in_thread(way, world, prepared)
        wait_for(other.done)
    other.result()


@every_way
def test_passes_beside_a_read_section_if_it_reads(engine: sa.Engine, way: Way) -> None:
    world = make_world(engine, "rw")
    prepared = way.prepare(world)
    guard = world.session.guard
    with world.session.read_section():
        other = try_in_thread(way, world, prepared)
        reads = way.access is READ or "read_section" in way.name
        assert passes(other, guard) is reads
    other.result()


@every_way
def test_detect_raises_instead_of_waiting(engine: sa.Engine, way: Way) -> None:
    world = make_world(engine, "detect")
    prepared = way.prepare(world)
    with world.session.critical_section():
        other = try_in_thread(way, world, prepared)
        with pytest.raises(ConcurrentAccessError, match="'other'.*MainThread"):
            other.result()
    if way.alone:
        way.go(world, prepared)


@every_way
def test_confine_raises_from_a_second_thread(engine: sa.Engine, way: Way) -> None:
    world = make_world(engine, "confine")
    prepared = way.prepare(world)
    other = try_in_thread(way, world, prepared)
    with pytest.raises(ConcurrentAccessError, match="MainThread.*'other'"):
        other.result()
    if way.alone:
        way.go(world, prepared)


def test_every_public_method_of_the_tables_has_a_row() -> None:
    """A method that is guarded but has no row is not shown to be."""
    from sharedsession.operations.tables import CONNECTION, IDENTITY_MAP, SESSION

    rows = " ".join(way.name for way in WAYS)
    special = {"__contains__", "__iter__", "__exit__", "__getitem__", "__len__"}
    # Two-phase transactions need a database that has them; see test_databases.
    special |= {name for name in CONNECTION if "twophase" in name}
    special |= {"commit_prepared", "rollback_prepared"}
    for prefix, table, owner in (
        ("session", SESSION, Session),
        ("connection", CONNECTION, sa.Connection),
        ("identity_map", IDENTITY_MAP, None),
    ):
        for name, access in table.items():
            if access is None or name in special or name.startswith("_"):
                continue
            if owner is None or hasattr(owner, name):
                assert f"{prefix}.{name}" in rows, f"{prefix}.{name} has no row"
