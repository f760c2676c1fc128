"""A session for threads in the cells of a notebook, which runs them in its own loop."""

from __future__ import annotations

import asyncio
from typing import Any, Iterator

import pytest
import sqlalchemy as sa
from IPython.core.interactiveshell import InteractiveShell

from sharedsession import SharedSession, SharedSessionError

from ..support.threads import Worker, wait_until


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def contended(session: Any, shell: InteractiveShell, cell: str) -> Any:
    """The outcome of a cell that needs its turn while another thread is inside."""
    shell.user_ns["session"] = session

    def hold() -> None:
        with session.critical_section():
            wait_until(lambda: session.guard.waiting or outcome)

    async def kernel() -> None:
        code = shell.transform_cell(cell)
        outcome.append(await shell.run_cell_async(cell, transformed_cell=code))

    outcome: list[Any] = []
    holder = Worker(hold)
    wait_until(lambda: session.guard.owner is holder)
    asyncio.run(kernel())
    holder.result()
    return outcome[0]


def test_a_cell_waits_for_its_turn(engine: sa.Engine, shell: InteractiveShell) -> None:
    with SharedSession(engine) as session:
        session.connection()
        contended(session, shell, "session.connection()").raise_error()


CELLS = {
    "it awaits": "(await asyncio.sleep(0), session.connection())",
    "in a coroutine": "async def use(): session.connection()\nawait use()",
    "in a callback": (
        "loop = asyncio.get_running_loop(); done = loop.create_future()\n"
        "def use():\n"
        "    try: done.set_result(session.connection())\n"
        "    except Exception as error: done.set_exception(error)\n"
        "loop.call_soon(use); await done"
    ),
}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_a_cell_that_shares_its_loop_does_not_stop_it(
    engine: sa.Engine, shell: InteractiveShell, cell: str
) -> None:
    with SharedSession(engine) as session:
        session.connection()
        outcome = contended(session, shell, f"import asyncio\n{cell}")
        with pytest.raises(SharedSessionError, match="asyncio.to_thread"):
            outcome.raise_error()
