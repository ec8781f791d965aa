"""The application: Meta's paths under any version, and the simulator's controls."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from meta_simulator.bodies import Seed
from meta_simulator.controls import control_routes
from meta_simulator.graph import get_node, get_numbers, get_subscribed_apps, get_templates, recorded
from meta_simulator.sending import post_message
from meta_simulator.world import World

_NODE = "/v{major:int}.{minor:int}/{node}"
_SEND = re.compile(r"/v\d+\.\d+/([^/]+)/messages")


def make_app(world: World, seed: Seed) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        world.seed(seed)
        yield
        world.poster.close()

    routes = [
        Route(f"{_NODE}/message_templates", recorded(world, get_templates), methods=["GET"]),
        Route(f"{_NODE}/subscribed_apps", recorded(world, get_subscribed_apps), methods=["GET"]),
        Route(f"{_NODE}/phone_numbers", recorded(world, get_numbers), methods=["GET"]),
        Route(_NODE, recorded(world, get_node), methods=["GET"]),
        *control_routes(world),
    ]
    others = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error})
    return _SendsFirst(world, others)


class _SendsFirst:
    """Sends go past Starlette's routing and middleware, which cost as much as the judgement itself."""

    def __init__(self, world: World, others: ASGIApp) -> None:
        self._world, self._others = world, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _SEND.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if path is None:
            await self._others(scope, receive, send)
            return
        response = await post_message(self._world, Request(scope, receive), path[1])
        await response(scope, receive, send)


def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else ""
    if request.url.path.startswith("/_sim/"):
        return JSONResponse({"error": detail}, status)
    message = f"Unknown path components: {request.url.path}"
    return JSONResponse({"error": {"message": message, "type": "OAuthException", "code": 2500}}, status)
