"""The FastAPI example, and what becomes of it with a plain session."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession

from examples.fastapi_app import make_app

from ..support.aio import aio

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def answers(app: Any, count: int = 20) -> list[Any]:
    """So many requests at once."""
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as web:
            numbers = [1 + number % 2 for number in range(count)]
            found = await asyncio.gather(*(web.get(f"/orders/{n}") for n in numbers))
    return [response.json() for response in found]


@aio
async def test_a_request_finds_its_things_at_once(tmp_path: Path) -> None:
    app = make_app(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    rest = {"user": "ann", "offers": ["two for one"]}
    assert await answers(app) == [{"order": 1, **rest}, {"order": 2, **rest}] * 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@aio
async def test_control_with_a_plain_session_it_fails(tmp_path: Path) -> None:
    app = make_app(f"sqlite+aiosqlite:///{tmp_path}/shop.db", AsyncSession)
    with pytest.raises(InvalidRequestError, match="concurrent operations|in progress"):
        await answers(app, 3)
