"""For tests, ours and others': a simulator and a receiver of its webhooks in this process, on free ports."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from meta_simulator.__main__ import make_server
from meta_simulator.bodies import Seed

SECRET = "app secret"
TOKEN = "token of acme"
NUMBER = "415566778899001"
WABA = "301122334455667"
TEMPLATES = [
    {
        "name": "hello_world",
        "language": "en_US",
        "category": "UTILITY",
        "components": [{"type": "BODY", "text": "Hello"}],
    },
    {
        "name": "autumn_sale",
        "language": "en_US",
        "category": "MARKETING",
        "components": [{"type": "BODY", "text": "Sale for {{1}}"}],
    },
]


@dataclass
class Receiver:
    """Our side of the webhooks. Answers the statuses of `plan` in turn, then 200."""

    url: str = ""
    plan: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    signatures: list[str | None] = field(default_factory=list)
    came: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def hook(self, request: Request) -> Response:
        if request.method == "GET":
            right = request.query_params.get("hub.verify_token") == "right"
            challenge = request.query_params["hub.challenge"]
            return PlainTextResponse(challenge if right else "no", 200 if right else 403)
        body = await request.body()
        status = self.plan.pop(0) if self.plan else 200
        async with self.came:
            self.bodies.append(body)
            self.signatures.append(request.headers.get("x-hub-signature-256"))
            self.came.notify_all()
        return Response(status_code=status)

    async def until(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(60), self.came:
            await self.came.wait_for(enough)

    def values(self) -> list[Any]:
        return [json.loads(body)["entry"][0]["changes"][0]["value"] for body in self.bodies]

    def statuses(self) -> list[Any]:
        return [status for value in self.values() for status in value.get("statuses", [])]

    async def status(self, name: str) -> Any:
        """The first status of that name, waited for."""
        await self.until(lambda: any(each["status"] == name for each in self.statuses()))
        return next(each for each in self.statuses() if each["status"] == name)

    def is_signed(self, index: int, secret: str = SECRET) -> bool:
        right = hmac.new(secret.encode(), self.bodies[index], hashlib.sha256).hexdigest()
        return self.signatures[index] == f"sha256={right}"


@dataclass
class Meta:
    """The simulator under test, and how to talk to it."""

    client: httpx.AsyncClient
    receiver: Receiver
    port: int

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self.client.request(method, f"/_sim/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def settings(self, **settings: Any) -> None:
        await self.control("PUT", "settings", {"latency_ms": 0, **settings})

    async def number(self, number: str = NUMBER, **changes: Any) -> None:
        body = {
            "waba_id": WABA,
            "display_phone_number": "+1 555 701 0123",
            "access_token": TOKEN,
            "app_secret": SECRET,
            "webhook_url": self.receiver.url,
        }
        await self.control("PUT", f"numbers/{number}", body | changes)

    async def post(self, body: Any, number: str = NUMBER, token: str = TOKEN) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return await self.client.post(f"/v25.0/{number}/messages", json=body, headers=headers)

    async def send(self, to: str, text: str = "Hi", **more: Any) -> httpx.Response:
        return await self.post(
            {"messaging_product": "whatsapp", "to": to, "type": "text", "text": {"body": text}, **more}
        )

    async def send_template(self, to: str, name: str = "hello_world", **more: Any) -> httpx.Response:
        number = more.pop("number", NUMBER)
        return await self.post(template_body(to, name, **more), number)

    async def get(self, path: str, token: str = TOKEN) -> httpx.Response:
        return await self.client.get(f"/v25.0/{path}", headers={"Authorization": f"Bearer {token}"})

    async def lines(self, what: str, **filters: str) -> list[Any]:
        answer = await self.client.get(f"/_sim/{what}", params=filters)
        return [json.loads(line) for line in answer.text.splitlines()]

    async def line(self, what: str, fits: Callable[[Any], bool]) -> Any:
        """The first call or webhook that fits, waited for."""
        async with asyncio.timeout(60):
            while True:
                for line in await self.lines(what):
                    if fits(line):
                        return line


def template_body(to: str, name: str = "hello_world", **more: Any) -> dict[str, Any]:
    texts = ["Ines"] if name == "autumn_sale" else []
    components = [{"type": "body", "parameters": [{"type": "text", "text": text} for text in texts]}]
    template = {"name": name, "language": {"code": "en_US"}, "components": components}
    return {"messaging_product": "whatsapp", "to": to, "type": "template", "template": template, **more}


class Beside(uvicorn.Server):
    """Leaves the signals to the other server, which ends when it ends: the last of two would put back the first's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(*servers: uvicorn.Server) -> AsyncIterator[list[int]]:
    """The ports at which they serve. They end together: each takes a moment to notice that it should."""
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    async with asyncio.timeout(60):
        while not all(server.started for server in servers):  # noqa: ASYNC110 - uvicorn tells of its start by this flag only
            await asyncio.sleep(0.01)
    yield [server.servers[0].sockets[0].getsockname()[1] for server in servers]
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*tasks)


@asynccontextmanager
async def running_meta() -> AsyncIterator[Meta]:
    receiver = Receiver()
    app = Starlette(routes=[Route("/hook", receiver.hook, methods=["GET", "POST"])])
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    async with serving(Beside(config), make_server(Seed(), "127.0.0.1", 0)) as (hook_port, port):
        receiver.url = f"http://127.0.0.1:{hook_port}/hook"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client:
            meta = Meta(client, receiver, port)
            await meta.settings()
            await meta.control("PUT", f"accounts/{WABA}", {"templates": TEMPLATES})
            await meta.number()
            yield meta
