"""critical_section() and read_section() as decorators and blocks; units of work."""

from __future__ import annotations

from typing import Any, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from sharedsession import (
    LockTimeout,
    SharedSession,
    SharedSessionError,
    UpgradeError,
    critical_section,
    guard_of,
    read_section,
    shared_session,
)

from ..support.models import Address, User
from ..support.threads import Worker, inside, passes


def names(session: Any) -> set[str]:
    return set(session.scalars(sa.select(User.name)))


# -- targets


@pytest.mark.parametrize("what", ["session", "registry", "object", "function"])
def test_targets(engine: sa.Engine, lock: str, what: str) -> None:
    registry = shared_session(sessionmaker(engine, class_=SharedSession, lock=lock))
    session = registry()
    user = session.get_one(User, 1)
    target = {
        "session": session,
        "registry": registry,
        "object": user,
        "function": lambda: session,
    }[what]
    with critical_section(target) as entered:
        assert entered is session
        assert session.guard.held == "exclusive"
    with read_section(target):
        assert session.guard.held is not None
        with pytest.raises(UpgradeError):
            user.name = "new"

    @critical_section(target)
    def held(argument: int, *, keyword: int) -> Any:
        """Its text."""
        return session.guard.held, argument, keyword

    assert held(1, keyword=2) == ("exclusive", 1, 2)
    assert held.__doc__ == "Its text."
    assert session.guard.held is None
    session.close()


def test_what_has_no_guard(engine: sa.Engine, session: Any) -> None:
    for target in (User(), lambda: User()):
        with pytest.raises(SharedSessionError, match="attached to no session"):
            critical_section(target).__enter__()
    with Session(engine) as plain:
        user = plain.get_one(User, 1)
        for target in (plain, user):
            with pytest.raises(SharedSessionError, match="share"):
                critical_section(target).__enter__()
        assert guard_of(plain) is guard_of(user) is guard_of(User()) is None
    for target in (7, "name", object(), User):
        with pytest.raises(SharedSessionError):
            critical_section(target).__enter__()
    assert guard_of(7) is None
    assert guard_of(session) is session.guard is guard_of(session.get(User, 1))


# -- what is decorated


class Importer:
    def __init__(self, session: Any) -> None:
        self.session = session

    @critical_section("session")
    def run(self) -> Any:
        return self.session.guard.held

    @read_section("session")
    def look(self) -> Any:
        with pytest.raises(UpgradeError):
            self.session.add(User())
        return self.session.guard.held

    @critical_section("nothing")
    def wrong(self) -> None: ...


def test_methods(session: Any) -> None:
    importer = Importer(session)
    assert importer.run() == "exclusive"
    assert importer.look() is not None
    with pytest.raises(SharedSessionError, match="'nothing'"):
        importer.wrong()
    with pytest.raises(SharedSessionError, match="decorate methods"):
        critical_section("session").__enter__()


def test_classmethods_and_staticmethods(session: Any) -> None:
    class Service:
        shared = session

        @critical_section("shared")
        @classmethod
        def of_class(cls) -> Any:
            return cls.shared.guard.held

        @classmethod
        @critical_section("shared")
        def of_class_too(cls) -> Any:
            return cls.shared.guard.held

        @critical_section(session)
        @staticmethod
        def static() -> Any:
            return session.guard.held

    assert Service.of_class() == Service().of_class_too() == "exclusive"
    assert Service.static() == "exclusive"


def test_generators_hold_it_while_they_are_open(session: Any) -> None:
    @critical_section(session)
    def numbers() -> Iterator[int]:
        yield 1
        yield 2

    generator = numbers()
    assert session.guard.held is None
    assert next(generator) == 1
    other = Worker(lambda: session.add(User()))
    assert not passes(other, session.guard)
    # Whoever takes the next step takes the section over, and leaves it at the end.
    assert Worker(lambda: list(generator)).result() == [2]
    other.result()
    closed = numbers()
    next(closed)
    closed.close()
    assert session.guard.held is None
    forgotten = numbers()
    next(forgotten)
    del forgotten
    assert session.guard.held is None


def test_generators_get_and_give_values(session: Any) -> None:
    @critical_section(session)
    def echo() -> Any:
        got = yield "first"
        try:
            yield got
        except KeyError:
            return "returned"

    generator = echo()
    assert next(generator) == "first"
    assert generator.send("sent") == "sent"
    with pytest.raises(StopIteration) as stopped:
        generator.throw(KeyError())
    assert stopped.value.value == "returned"
    assert session.guard.held is None


def test_what_cannot_be_decorated(session: Any) -> None:
    with pytest.raises(SharedSessionError, match="coroutine"):

        @critical_section(session)
        async def coroutine() -> None: ...

    with pytest.raises(SharedSessionError, match="functions"):
        critical_section(session)(7)  # type: ignore[type-var]


def test_options(session: Any) -> None:
    with pytest.raises(ValueError, match="'commit', 'savepoint'"):
        critical_section(session, transaction="rollback")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout"):
        critical_section(session, timeout=-1)

    @critical_section(session, timeout=0.01)
    def quick() -> None: ...

    with inside(session.critical_section):
        with pytest.raises(LockTimeout):
            quick()
    quick()


def test_blocks_are_entered_once(session: Any) -> None:
    block = critical_section(session)
    with pytest.raises(SharedSessionError, match="nothing to release"):
        block.__exit__(None, None, None)
    with block:
        with pytest.raises(SharedSessionError, match="entered already"):
            block.__enter__()
    assert session.guard.held is None


# -- units of work


def test_a_unit_commits(session: Any) -> None:
    with critical_section(session, transaction="commit"):
        session.add(User(name="unit"))
    assert not session.in_transaction()
    session.rollback()
    assert "unit" in names(session)


def test_a_savepoint_does_not(session: Any) -> None:
    session.add(User(name="before"))
    with critical_section(session, transaction="savepoint"):
        session.add(User(name="unit"))
    assert {"unit", "before"} <= names(session)
    session.rollback()
    assert not {"unit", "before"} & names(session)


@pytest.mark.parametrize("transaction", ["commit", "savepoint"])
def test_a_unit_that_raises_undoes_its_own_work_only(
    session: Any, transaction: Any
) -> None:
    Worker(lambda: session.add(User(name="other"))).result()
    with pytest.raises(ZeroDivisionError):
        with critical_section(session, transaction=transaction):
            session.add(User(name="unit"))
            session.flush()
            raise ZeroDivisionError
    assert session.guard.held is None
    session.commit()
    assert "other" in names(session) and "unit" not in names(session)


def test_a_unit_whose_flush_fails_undoes_its_own_work_only(session: Any) -> None:
    Worker(lambda: session.add(User(name="other"))).result()
    with pytest.raises(IntegrityError):
        with critical_section(session, transaction="commit"):
            session.add(Address(email="ann@0"))
    assert session.guard.held is None
    session.commit()
    assert "other" in names(session)


def test_a_unit_that_raises_leaves_no_transaction_of_its_own(session: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        with critical_section(session, transaction="commit"):
            session.add(User(name="unit"))
            raise ZeroDivisionError
    assert not session.in_transaction()


def test_an_inner_unit_waits_for_the_outer_one(session: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        with critical_section(session, transaction="commit"):
            with critical_section(session, transaction="commit"):
                session.add(User(name="inner"))
            raise ZeroDivisionError
    assert "inner" not in names(session)
    with critical_section(session, transaction="commit"):
        with critical_section(session, transaction="commit"):
            session.add(User(name="inner"))
    session.rollback()
    assert "inner" in names(session)


def test_a_unit_as_a_decorator(session: Any) -> None:
    @critical_section(session, transaction="commit")
    def rename(name: str) -> str:
        session.get(User, 1).name = name
        return name

    assert rename("new") == "new"
    session.rollback()
    assert "new" in names(session)


@pytest.mark.parametrize("transaction", ["commit", "savepoint"])
def test_a_unit_of_work_without_a_guard_is_one_still(
    engine: sa.Engine, transaction: Any
) -> None:
    with SharedSession(engine, lock="off") as session:
        with critical_section(session, transaction=transaction):
            session.add(User(name="done"))
        with pytest.raises(ZeroDivisionError):
            with critical_section(session, transaction=transaction):
                session.add(User(name="undone"))
                1 / 0
        names = session.scalars(sa.select(User.name)).all()
        assert "done" in names and "undone" not in names
