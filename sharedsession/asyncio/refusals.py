"""The errors of a guard for tasks; *state* is what the guard says of itself."""

from __future__ import annotations

from ..errors import ConcurrentAccessError
from ..guard.owner import Owner


def to_wait(me: Owner, state: str) -> ConcurrentAccessError:
    return ConcurrentAccessError(
        f"{me.name}, at {me.where()}, would have to wait, and here it cannot: "
        f"this is not awaited. {state} Nothing was changed. Do it in "
        "session.run_sync(), or enter 'async with session.critical_section()' "
        "first."
    )


def thread_in_section(me: Owner, state: str) -> ConcurrentAccessError:
    return ConcurrentAccessError(
        f"{me.name}, at {me.where()}, would wait for the end of a task's section, but "
        "that section may be waiting for this thread, which was not started inside it. "
        f"{state} Nothing was changed. Start the thread's work inside the section with "
        "asyncio.to_thread(), so that it belongs to the section, or use the session "
        "after the section has ended."
    )


def in_section(me: Owner, state: str) -> ConcurrentAccessError:
    return ConcurrentAccessError(
        f"{me.name}, at {me.where()}, used a session while another task was in a "
        f"section of it. This call is not awaited and cannot wait. {state} Nothing "
        "was changed. Do it in session.run_sync(), or enter 'async with "
        "session.critical_section()' first; to read an attribute, you can also await "
        "it with AsyncAttrs.awaitable_attrs."
    )


def beside(me: Owner, state: str) -> ConcurrentAccessError:
    return ConcurrentAccessError(
        f"{me.name}, at {me.where()}, made a call that is not awaited and cannot wait, "
        f"while another task's operation was in flight. {state} Nothing "
        "was changed. Do it in session.run_sync(), or enter 'async with "
        "session.critical_section()' first."
    )


def to_lose(me: Owner, state: str) -> ConcurrentAccessError:
    return ConcurrentAccessError(
        f"{me.name}, at {me.where()}, changed a relationship while another task's "
        f"operation was in flight that would lose it. {state} Nothing was "
        "changed. Do it in session.run_sync(), or enter 'async with "
        "session.critical_section()' first."
    )
