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
        f"{me.name}, at {me.where()}, came into a task's section that it was not "
        "started in, and would wait for its end, which may wait for this thread. "
        f"{state} Nothing was changed. Start the thread's work with "
        "asyncio.to_thread(), which tells that it belongs to the section, or wait "
        "for the section's end first."
    )


def in_section(me: Owner, state: str) -> ConcurrentAccessError:
    return ConcurrentAccessError(
        f"{me.name}, at {me.where()}, came into another task's section with what "
        f"is not awaited, so it cannot wait for the end. {state} Nothing "
        "was changed. Do it in session.run_sync(), or enter 'async with "
        "session.critical_section()' first; attributes can be awaited, too, by "
        "AsyncAttrs.awaitable_attrs."
    )


def beside(me: Owner, state: str) -> ConcurrentAccessError:
    return ConcurrentAccessError(
        f"{me.name}, at {me.where()}, did what is not awaited, so it cannot wait, "
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
