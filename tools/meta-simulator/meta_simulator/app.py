"""The application: Meta's paths under any version, and the simulator's controls."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from meta_simulator.bodies import Seed
from meta_simulator.controls import control_routes
from meta_simulator.graph import get_node, get_numbers, get_templates, recorded
from meta_simulator.sending import post_message
from meta_simulator.webhooks import Receivers
from meta_simulator.world import World

_NODE = "/v{major:int}.{minor:int}/{node}"


def make_app(seed: Seed) -> Starlette:
    receivers = Receivers()
    world = World(receivers)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with receivers:
            world.seed(seed)
            yield

    async def send(request: Request) -> Response:
        return await post_message(world, request)

    routes = [
        Route(f"{_NODE}/messages", send, methods=["POST"]),
        Route(f"{_NODE}/message_templates", recorded(world, get_templates), methods=["GET"]),
        Route(f"{_NODE}/phone_numbers", recorded(world, get_numbers), methods=["GET"]),
        Route(_NODE, recorded(world, get_node), methods=["GET"]),
        *control_routes(world),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error})


def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else ""
    if request.url.path.startswith("/_sim/"):
        return JSONResponse({"error": detail}, status)
    message = f"Unknown path components: {request.url.path}"
    return JSONResponse({"error": {"message": message, "type": "OAuthException", "code": 2500}}, status)
