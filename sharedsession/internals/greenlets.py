"""Greenlets, which SQLAlchemy's asyncio needs and the rest of this library does not."""

from __future__ import annotations

import sys
from typing import Any, Callable

from sqlalchemy.util import concurrency as _concurrency


def in_greenlet() -> bool:
    """Whether ``await_only()`` works, because the caller is in ``greenlet_spawn()``."""
    return bool(_concurrency.in_greenlet())


def await_only(awaitable: Any) -> Any:
    return _concurrency.await_only(awaitable)


async def greenlet_spawn(function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    """Call *function* in a greenlet, where it may use :func:`await_only`."""
    return await _concurrency.greenlet_spawn(function, *args, **kw)


def current_greenlet() -> Any:
    """Return the current greenlet; ``None`` if greenlet was never imported."""
    greenlet = sys.modules.get("greenlet")
    return None if greenlet is None else greenlet.getcurrent()
