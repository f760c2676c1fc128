"""Which statements only read."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from sharedsession.guard.access import LOAD, STATEMENT
from sharedsession.operations.statements import (
    access_of,
    has_changes_within,
    is_known_change,
    undoes_all,
)

from ..support.models import User

SELECT = sa.select(User)
INSERT = sa.insert(User).values(name="new")

READS = [
    "select 1",
    "  (SELECT 1)",
    "values (1)",
    "/* a */ -- b\n /*+ c */ (select 1)",
    sa.text("select 1"),
    sa.text("select id, name from user").columns(User.id, User.name),
    SELECT,
    sa.union(SELECT, SELECT),
    sa.values(sa.column("n", sa.Integer), name="v").data([(1,)]).select(),
    sa.func.now(),
    SELECT.from_statement(sa.text("select * from user")),
    sa.lambda_stmt(lambda: SELECT),
    sa.lambda_stmt(lambda: SELECT).spoil(),
]
CHANGES = [
    "insert into user values (1)",
    "with x as (select 1) update user set name = ''",
    "pragma user_version = 1",
    "/* select */ delete from user",
    "/*! delete from user; */ select 1",
    sa.text("delete from user"),
    INSERT,
    sa.update(User).values(name="new"),
    sa.delete(User),
    SELECT.from_statement(INSERT.returning(User)),
    SELECT.execution_options(populate_existing=True),
    sa.lambda_stmt(lambda: INSERT),
    sa.lambda_stmt(lambda: INSERT).spoil(),
    sa.DDL("select 1"),
]


@pytest.mark.parametrize("statement", READS, ids=str)
def test_what_only_reads(statement):
    assert access_of(statement) is LOAD
    assert not is_known_change(statement)


@pytest.mark.parametrize("statement", CHANGES, ids=str)
def test_what_may_change_something(statement):
    assert access_of(statement) is STATEMENT


def test_options_of_the_execution_count_too():
    assert access_of(SELECT, {"populate_existing": True}) is STATEMENT
    assert access_of(SELECT, {"populate_existing": False}) is LOAD


def test_classes_of_an_application_are_what_they_derive_from():
    class Text(str):
        pass

    class Select(sa.Select):
        inherit_cache = True

    assert access_of(Text("select 1")) is LOAD
    assert access_of(Text("drop table user")) is STATEMENT
    assert access_of(Select(User)) is LOAD


def test_what_is_no_statement_at_all_changes_something_as_far_as_is_known():
    assert access_of(object()) is STATEMENT


def test_a_change_within_a_select_is_found():
    changed = INSERT.returning(User.id).cte()
    assert has_changes_within(sa.select(changed.c.id))
    assert not has_changes_within(SELECT)
    assert not has_changes_within("select 1")


@pytest.mark.parametrize("text", ["rollback", " Rollback ; ", "abort", "ROLLBACK WORK"])
def test_what_undoes_all(text):
    assert undoes_all(text) and undoes_all(sa.text(text))


@pytest.mark.parametrize(
    "statement",
    ["rollback to savepoint a", "select 'rollback'", SELECT, INSERT],
    ids=str,
)
def test_what_undoes_not_all(statement):
    assert not undoes_all(statement)
