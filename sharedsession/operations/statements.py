"""Tell statements that only read from statements that write."""

from __future__ import annotations

import enum
import functools
import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm.context import FromStatement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import iterate

from ..guard.access import LOAD, STATEMENT, Access
from ..internals import orm

#: What may stand before the first word.  MySQL executes the comments "/*! ... */".
_BEFORE = r"(?:[\s(]|--[^\n]*\n|/\*(?!!).*?\*/)*"
_CHANGES = re.compile(
    rf"{_BEFORE}(INSERT|UPDATE|DELETE|REPLACE|MERGE|WITH|CREATE|DROP|ALTER|TRUNCATE)\b",
    re.IGNORECASE | re.DOTALL,
)
_UNDOES = re.compile(
    _BEFORE + r"(ROLLBACK|ABORT)(\s+(WORK|TRANSACTION))?[\s;]*$",
    re.IGNORECASE | re.DOTALL,
)
_READS = re.compile(_BEFORE + r"(SELECT|VALUES)\b", re.IGNORECASE | re.DOTALL)


def access_of(statement: Any, options: Any = None) -> Access:
    """Return ``LOAD`` if *statement* is known to only read, otherwise ``STATEMENT``.

    Text is known to read if SELECT or VALUES is its first word after comments.  Text
    that begins with WITH counts as a write, because it may be an UPDATE.  A SELECT with
    ``populate_existing`` counts as a write, because it overwrites loaded values.

    :param options: the execution options of the call, or ``None``.
    """
    cls: Any = type(statement)
    kind = _kind_of(cls)
    if kind is _Kind.STRING:
        return _access_of_text(statement)
    if kind is _Kind.TEXT:
        known_kinds[cls] = False
        return _access_of_text(statement.text)
    if kind is _Kind.SELECT:
        known_kinds[cls] = True
    if kind is _Kind.AROUND_ANOTHER:
        return access_of(statement.element, options)
    if kind is _Kind.OTHER:
        return STATEMENT
    if kind is _Kind.BY_ITSELF and not getattr(statement, "is_select", False):
        return STATEMENT
    return STATEMENT if _overwrites(statement, options) else LOAD


class _Kind(enum.Enum):
    STRING = enum.auto()
    TEXT = enum.auto()
    AROUND_ANOTHER = enum.auto()
    SELECT = enum.auto()
    BY_ITSELF = enum.auto()  # depends on the statement, for example a lambda
    OTHER = enum.auto()


@functools.lru_cache(1024)
def _kind_of(cls: type) -> _Kind:
    if issubclass(cls, str):
        return _Kind.STRING
    if issubclass(cls, sa.TextClause):
        return _Kind.TEXT
    if issubclass(cls, (FromStatement, sa.TextualSelect)):
        return _Kind.AROUND_ANOTHER
    if issubclass(cls, FunctionElement):
        return _Kind.SELECT
    by_class = {True: _Kind.SELECT, False: _Kind.OTHER}
    is_select = getattr(cls, "is_select", None)
    return by_class[is_select] if isinstance(is_select, bool) else _Kind.BY_ITSELF


def _access_of_text(text: str) -> Access:
    access = known_texts.get(text)
    if access is None:
        if len(known_texts) >= 1024:
            known_texts.clear()
        access = known_texts[text] = LOAD if _READS.match(text) else STATEMENT
    return access


#: The access of each known text.
known_texts: dict[str, Access] = {}
#: True for classes whose statements are always SELECTs, False for classes of texts.
known_kinds: dict[type, bool] = {}


def is_known_change(statement: Any) -> bool:
    """Whether *statement* certainly changes data.

    False for BEGIN, SAVEPOINT and SET: SQLAlchemy, or an event listener, executes these
    as a part of any operation that needs a transaction first.
    """
    if isinstance(statement, sa.TextClause):
        statement = statement.text
    if isinstance(statement, str):
        return _CHANGES.match(statement) is not None
    return isinstance(statement, (sa.UpdateBase, sa.DDLElement))


def undoes_all(statement: Any) -> bool:
    """Whether *statement* is a ROLLBACK of the whole transaction, in text."""
    text = getattr(statement, "text", statement)
    return isinstance(text, str) and _UNDOES.match(text) is not None


def has_changes_within(statement: Any) -> bool:
    """Whether *statement* has an INSERT, UPDATE or DELETE in it, such as a CTE."""
    if not isinstance(statement, sa.ClauseElement):
        return False
    return any(isinstance(each, sa.UpdateBase) for each in iterate(statement))


def _overwrites(statement: Any, options: Any) -> bool:
    own = orm.options_of_statement(statement)
    if own and own.get("populate_existing"):
        return True
    if not options:
        return False
    return bool(options.get("populate_existing")) or orm.query_overwrites(options)
