"""ASGI middleware that makes each request one owner, in whatever threads it runs."""

from __future__ import annotations

from typing import Any, Awaitable, Callable, MutableMapping

from .guard.party import one_owner

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class RequestOwner:
    """Like :func:`sharedsession.one_owner` around each request of an application.

    Frameworks run the parts of one request in different threads: FastAPI enters a
    ``def`` dependency in one worker thread, calls the route in another, and leaves the
    dependency in a third.  With this middleware all of these threads are one owner, and
    a route is inside the block that its dependency entered::

        app = FastAPI()
        app.add_middleware(RequestOwner)

        def get_session():
            with session.begin():
                yield session

    Without it the route would wait for its own dependency.

    :param app: the ASGI application; each of its requests and websockets becomes one
      owner, its lifespan does not.
    """

    def __init__(self, app: _App) -> None:
        self.app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        with one_owner(f"{scope.get('method', 'websocket')} {scope['path']}"):
            await self.app(scope, receive, send)
