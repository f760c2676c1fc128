"""Blocks, joining, work that others lost, and failures that are not one's own."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, InvalidRequestError, PendingRollbackError

from sharedsession import SharedSession, WorkLostError

from ..support.models import Address, User
from ..support.threads import Worker, passes, wait_for


def names(session: Any) -> set[str]:
    return set(session.scalars(sa.select(User.name)))


def in_thread(function: Any, name: str = "other") -> Any:
    return Worker(function, name=name).result()


# -- blocks keep the guard


@pytest.mark.parametrize("block", ["begin", "begin_nested", "no_autoflush"])
def test_blocks_keep_others_out(session: Any, block: str) -> None:
    found = getattr(session, block)
    with found if block == "no_autoflush" else found():
        other = Worker(lambda: session.add(User(name="other")))
        assert not passes(other, session.guard)
    other.result()
    assert session.guard.held is None


def test_a_block_that_raises_gives_the_guard_back(session: Any) -> None:
    with pytest.raises(ZeroDivisionError), session.begin():
        session.add(User(name="new"))
        raise ZeroDivisionError
    assert session.guard.held is None
    assert "new" not in names(session)


def test_sessionmaker_begin(session: Any, lock: str) -> None:
    maker = sa.orm.sessionmaker(session.bind, class_=SharedSession, lock=lock)
    with maker.begin() as other:
        other.add(User(name="made"))
        assert other.guard.held == "exclusive"
    assert other.guard.held is None
    assert "made" in names(session)


# -- begin() joins what somebody else's work autobegan


def test_begin_joins_what_another_thread_autobegan(session: Any) -> None:
    in_thread(lambda: session.add(User(name="other")))
    with session.begin() as transaction:
        assert transaction is session.get_transaction()
        session.add(User(name="mine"))
    session.rollback()
    assert {"other", "mine"} <= names(session)


def test_begin_raises_for_what_this_thread_autobegan(session: Any) -> None:
    session.add(User())
    with pytest.raises(InvalidRequestError, match="already begun"):
        session.begin()
    assert session.guard.held is None


def test_a_block_begins_anew_if_its_transaction_was_ended(session: Any) -> None:
    transaction = session.begin()
    in_thread(session.commit)
    with transaction:
        session.add(User(name="mine"))
    assert not session.in_transaction()
    assert "mine" in names(session)


# -- with session: the last one out closes


def test_the_last_one_out_closes(session: Any) -> None:
    inside, leave = threading.Event(), threading.Event()

    def use() -> None:
        with session:
            inside.set()
            wait_for(leave)

    other = Worker(use)
    wait_for(inside)
    with session:
        user = session.get(User, 1)
    assert user in session
    leave.set()
    other.result()
    assert user in session  # this thread's fixture is inside a block of its own
    session.__exit__(None, None, None)
    assert user not in session


def test_threads_that_ended_in_a_block_do_not_count(session: Any) -> None:
    in_thread(session.__enter__)
    with session:
        user = session.get(User, 1)
    assert user not in session


def test_one_thread_closes_at_each_exit_as_ever(session: Any) -> None:
    with session:
        with session:
            user = session.get(User, 1)
        assert user not in session


# -- work that others threw away


@pytest.mark.parametrize("end", ["rollback", "close", "reset", "invalidate"])
def test_who_loses_work_is_told_once(session: Any, end: str) -> None:
    session.add(User(name="mine"))
    in_thread(getattr(session, end))
    with pytest.raises(WorkLostError) as caught:
        session.add(User(name="again"))
    message = str(caught.value)
    assert "'MainThread'" in message and "'other'" in message
    assert isinstance(caught.value, PendingRollbackError)
    session.add(User(name="again"))
    session.commit()
    assert "again" in names(session) and "mine" not in names(session)


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_ones_own_end_clears_it(session: Any, end: str) -> None:
    session.add(User(name="mine"))
    in_thread(session.rollback)
    getattr(session, end)()
    session.add(User(name="again"))


def test_who_ends_it_and_who_only_read_is_not_told(session: Any) -> None:
    session.get(User, 1)
    in_thread(lambda: session.add(User(name="other")))
    session.rollback()
    session.get(User, 1)


def test_flushing_somebodys_work_does_not_make_it_ones_own(session: Any) -> None:
    in_thread(lambda: session.add(User(name="other")), name="author")
    assert "other" in names(session)  # autoflush
    in_thread(session.rollback, name="third")
    names(session)


def test_committed_work_is_nobodys_loss(session: Any) -> None:
    session.add(User(name="mine"))
    in_thread(session.commit)
    in_thread(session.rollback)
    assert "mine" in names(session)


@pytest.mark.parametrize("change", ["attribute", "collection", "mutable", "execute"])
def test_every_kind_of_work_counts(session: Any, change: str) -> None:
    user = session.get(User, 1)
    if change == "attribute":
        user.name = "new"
    elif change == "collection":
        user.addresses.append(Address())
    elif change == "mutable":
        user.data["new"] = 1
    else:
        session.execute(sa.update(User).values(name="new"))
    in_thread(session.rollback)
    with pytest.raises(WorkLostError):
        session.get(User, 1)


def test_a_savepoint_loses_its_own_work_only(session: Any) -> None:
    session.add(User(name="before"))

    def roll_back_to_savepoint() -> None:
        savepoint = session.begin_nested()
        session.add(User(name="within"))
        savepoint.rollback()

    in_thread(roll_back_to_savepoint)
    session.commit()
    assert "before" in names(session) and "within" not in names(session)


def test_work_in_a_released_savepoint_is_the_transactions(session: Any) -> None:
    with session.begin_nested():
        session.add(User(name="within"))
    in_thread(session.rollback)
    with pytest.raises(WorkLostError):
        session.get(User, 1)


def test_a_dead_thread_is_not_told(session: Any) -> None:
    in_thread(lambda: session.add(User(name="dead")))
    session.rollback()
    assert not session.guard.attention


# -- failures that are not one's own


def fail_to_flush(session: Any) -> None:
    session.add(Address(email="ann@0"))
    with pytest.raises(IntegrityError):
        session.flush()


def test_the_failing_thread_has_to_roll_back_as_ever(session: Any) -> None:
    fail_to_flush(session)
    with pytest.raises(PendingRollbackError) as caught:
        session.get(User, 1)
    assert not isinstance(caught.value, WorkLostError)
    session.rollback()
    assert session.get(User, 1) is not None


def test_anothers_failure_is_rolled_back_by_the_next_one(session: Any) -> None:
    in_thread(lambda: fail_to_flush(session))
    assert session.get(User, 1) is not None


def test_who_lost_work_by_anothers_failure_is_told(session: Any) -> None:
    session.add(User(name="mine"))
    in_thread(lambda: fail_to_flush(session), name="failing")
    with pytest.raises(WorkLostError, match="'failing'.*IntegrityError"):
        session.get(User, 1)
    assert session.get(User, 1) is not None


def test_who_rolls_back_for_another_is_told_of_its_own_loss(session: Any) -> None:
    session.add(Address(email="ann@0"))  # fails when the other one flushes it

    def commit() -> None:
        with pytest.raises(IntegrityError):
            session.commit()

    in_thread(commit, name="failing")
    with pytest.raises(WorkLostError, match="'failing'"):
        session.get(User, 1)


def test_a_late_rollback_spares_the_work_of_others(session: Any) -> None:
    failed, go_on = threading.Event(), threading.Event()

    def fail_and_roll_back_late() -> None:
        fail_to_flush(session)
        failed.set()
        wait_for(go_on)
        session.rollback()

    failing = Worker(fail_and_roll_back_late)
    wait_for(failed)
    session.add(User(name="mine"))
    go_on.set()
    failing.result()
    session.commit()
    assert "mine" in names(session)


def test_a_failed_commit_leaves_nobody_a_prepared_session(
    session: Any, engine: sa.Engine
) -> None:
    def fail_to_commit() -> None:
        session.add(User(name="failing"))
        session.flush()

        @sa.event.listens_for(engine, "commit", once=True)
        def fail(connection: Any) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            session.commit()

    in_thread(fail_to_commit)
    session.add(User(name="mine"))
    session.commit()
    assert "mine" in names(session)


# -- threads that end in the middle


def test_a_thread_that_ends_in_a_section_commits_nothing_by_halves(
    session: Any,
) -> None:
    kept = []

    def leave_open() -> None:
        section = session.critical_section()
        kept.append(section)
        section.__enter__()
        session.get(User, 1).name = "half done"
        session.flush()

    in_thread(leave_open, name="gone")
    session.commit()
    session.close()
    assert "half done" not in names(session)


def test_others_lose_their_work_with_it_and_are_told(session: Any) -> None:
    session.add(User(name="mine"))
    kept = []

    def leave_open() -> None:
        section = session.critical_section()
        kept.append(section)
        section.__enter__()
        session.get(User, 1).name = "half done"

    in_thread(leave_open, name="gone")
    with pytest.raises(WorkLostError, match="'gone'.*without finishing"):
        session.commit()
