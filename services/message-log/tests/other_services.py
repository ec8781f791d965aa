"""The other services as the pages ask them: a small server on a real socket that answers what a test wants."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from cryptography.fernet import Fernet
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import SecretStr
from sendwhy.access import Token
from sendwhy.acting import Acting

ACTING_KEY = Fernet.generate_key().decode()


@dataclass(frozen=True)
class Asked:
    """A request that came: `who` acts, by the token that was sealed for them or, None, by one of their own."""

    method: str
    path: str
    query: str
    who: Token | None
    body: bytes


@dataclass
class Others:
    """`answers` by "METHOD /path", where the body may be a function of what was asked; anything else is 404."""

    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def app(self) -> FastAPI:
        app = FastAPI()
        acting = Acting(SecretStr(ACTING_KEY))

        @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])
        async def answer(path: str, request: Request) -> Response:
            who = acting.read(request.headers.get("authorization", "").removeprefix("Bearer "))
            asked = Asked(request.method, f"/{path}", request.url.query, who, await request.body())
            self.asked.append(asked)
            status, body = self.answers.get(f"{request.method} /{path}", (404, {"detail": "Not found"}))
            body = body(asked) if callable(body) else body
            return PlainTextResponse(body, status) if isinstance(body, str) else JSONResponse(body, status)

        return app


@contextmanager
def others_serving() -> Iterator[Others]:
    others = Others()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    others.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(others.app(), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield others
    finally:
        server.should_exit = True
        thread.join()
