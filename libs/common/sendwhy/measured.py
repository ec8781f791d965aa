"""ASGI middleware: counts what a service answers, by the route's template. A path itself would name messages and
people, and anybody could make up new ones."""

import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sendwhy.metrics import OTHER, Metric, Metrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Measured:
    """Until the answer's head: a stream may go on for hours. An exception is the 500 that becomes of it further out."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        is_answered = False

        async def note(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start" and not is_answered:
                is_answered = True
                self._count(scope, message["status"], time.monotonic() - started)
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception:
            if not is_answered:
                self._count(scope, 500, time.monotonic() - started)
            raise

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else OTHER
        route = route_of(scope)
        self._metrics.inc(Metric.HTTP_REQUESTS, method=method, route=route, status_class=f"{status // 100}xx")
        self._metrics.observe(Metric.HTTP_SECONDS, seconds, route=route)


def route_of(scope: Scope) -> str:
    """The template of the route that a request was led to, with the prefixes of its routers; `other` where none was."""
    context: Any = scope.get("fastapi", {}).get("effective_route_context")
    path = getattr(context, "path", None) or getattr(scope.get("route"), "path", None)
    return OTHER if path is None else str(path)
