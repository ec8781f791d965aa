"""Audience checks and plans to send again in this process, on a real database; consent, billing and dispatcher are
small servers that judge as the real ones do: what one request takes, the next of the same call has not."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from cryptography.fernet import Fernet
from fastapi import APIRouter, FastAPI, Request
from message_log import api, audience_api, audience_pages, dead_letters, login_pages, message_pages
from message_log.audience_api import Desk as AudienceDesk
from message_log.audience_job import Audiences
from message_log.freshness import Freshness
from message_log.live import Streams
from message_log.pages import Pages
from message_log.services import OtherServices
from message_log.settings import MessageLogSettings
from message_log_builders import WORKSPACE
from pages_desk import Desk, Dispatcher, Runtime, serving, settings_of_desk
from pydantic import SecretStr
from sendwhy import problems
from sendwhy.acting import Acting
from sendwhy.events import Gate, Purpose, Resolved, reason
from sendwhy.metrics import Metrics
from sendwhy.postgres import connect_pool
from sendwhy.reasons import ReasonCode, Service

R = ReasonCode
_PEOPLE = itertools.count(1)
Json = dict[str, Any]


@dataclass
class Deciders:
    """What the three services know. `stopped`: contacts who opted out; `waits`: the dispatcher holds all. `down`: who
    answers 500. `asked`: by service, how many requests each call had, and with which role."""

    balance: int = 1_000_000
    price: int = 1
    limit: int | None = None
    used: int = 0
    stopped: set[str] = field(default_factory=set)
    unapproved: set[str] = field(default_factory=set)
    waits: bool = False
    down: set[str] = field(default_factory=set)
    asked: list[tuple[str, int, str | None]] = field(default_factory=list)
    before: Callable[[], None] = lambda: None

    def app(self, acting: Acting) -> FastAPI:
        app = FastAPI()
        judges = {"consent": self._consent, "billing": self._billing, "dispatcher": self._dispatcher}

        @app.post("/{service}/v1/evaluate")
        async def evaluate(service: str, request: Request) -> Any:
            token = acting.read(request.headers["authorization"].removeprefix("Bearer "))
            body = await request.json()
            self.asked.append((service, len(body["requests"]), token.role.name if token else None))
            self.before()
            if service in self.down:
                return problems.problem_response(500, "It is down")
            told = zip(body["requests"], body.get("resolved") or [None] * len(body["requests"]), strict=True)
            return {"results": judges[service](list(told))}

        return app

    def _consent(self, told: list[tuple[Json, Any]]) -> list[Json]:
        results = []
        for request, _ in told:
            contact = request["to"].get("contact_id")
            failed = reason(R.CUSTOMER_IS_NOT_OPTED_IN, "They said STOP") if contact in self.stopped else None
            gate = Gate(gate="marketing_state", passed=failed is None, reason=failed)
            resolved = Resolved(contact_id=contact, phone=request["to"].get("phone"), purpose=Purpose.MARKETING)
            results.append(_result(request, [gate], resolved.model_dump(mode="json")))
        return results

    def _billing(self, told: list[tuple[Json, Any]]) -> list[Json]:
        results, left = [], self.balance
        for request, resolved in told:
            evidence: Json = {"balance": left, "price": self.price}
            is_funded = left >= self.price
            left -= self.price * is_funded
            short = None if is_funded else reason(R.INSUFFICIENT_CREDITS, "short", evidence)
            gate = Gate(gate="credits", passed=is_funded, reason=short, evidence=evidence)
            results.append(_result(request, [gate], resolved))
        return results

    def _dispatcher(self, told: list[tuple[Json, Any]]) -> list[Json]:
        results, used, reached = [], self.used, set()
        for request, resolved in told:
            gates = [Gate(gate="sender", passed=True, evidence={"sender_id": "415566778899001"})]
            if request["content"].get("template", {}).get("name") in self.unapproved:
                why = reason(R.TEMPLATE_NOT_APPROVED, "It is PAUSED")
                gates.append(Gate(gate="template", passed=False, reason=why))
            if self.waits:
                wait: Json = {"waits_for": "paused", "cause": "EXPIRED_BEFORE_SENDING", "until": None}
                gates.append(Gate(gate="paused", passed=False, evidence=wait))
            gates.append(Gate(gate="pair", passed=None, evidence={"known_by": "another replica"}))
            full = self.limit is not None and used >= self.limit and resolved["phone"] not in reached
            evidence: Json = {"used": used, "limit": self.limit}
            if full:
                evidence |= {"waits_for": "tier", "cause": "MESSAGING_LIMIT_REACHED", "until": None}
            gates.append(Gate(gate="tier", passed=not full, evidence=evidence))
            if all(gate.passed is not False for gate in gates) and resolved["phone"] not in reached:
                used += 1
                reached.add(resolved["phone"])
            results.append(_result(request, gates, resolved))
        return results


def _result(request: Json, gates: list[Gate], resolved: Any) -> Json:
    told = [gate.model_dump(mode="json") for gate in gates]
    return {"message_id": request["message_id"], "gates": told, "resolved": resolved}


@dataclass
class Audience(Desk):
    deciders: Deciders
    audiences: Audiences

    @asynccontextmanager
    async def client(self, token: str) -> AsyncIterator[httpx.AsyncClient]:
        """The API of the workspace with this token."""
        headers = {"authorization": f"Bearer {token}"}
        transport, base = httpx.ASGITransport(self.app), f"http://log/v1/workspaces/{WORKSPACE}"
        async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as client:
            yield client

    async def done(self, client: httpx.AsyncClient, path: str) -> Json:
        """The view once its run has ended."""
        async with asyncio.timeout(120):
            while True:
                view: Json = (await client.get(path)).json()
                if view["state"] not in ("running", "sending"):
                    return view
                await asyncio.sleep(0.02)


def jsonl(*requests: Json) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in requests)


def line(message_id: str, contact: str | None = None, **changes: Any) -> Json:
    """A request as a file has it."""
    return {
        "message_id": message_id,
        "workspace_id": WORKSPACE,
        "to": {"contact_id": contact or f"c-{message_id}", "phone": f"+52155{next(_PEOPLE):08}"},
        "origin": {"kind": "campaign", "id": "sale"},
        "content": {"type": "template", "template": {"name": "autumn_sale", "language": {"code": "en_US"}}},
    } | changes


@asynccontextmanager
async def open_audience(database_url: str) -> AsyncIterator[Audience]:
    pool = await connect_pool(database_url, service="audience-test", size=4)
    keys = SecretStr(Fernet.generate_key().decode())
    deciders = Deciders()
    async with serving(deciders.app(Acting(keys))) as url:
        settings = settings_of_desk(
            database_url,
            keys,
            consent_url=f"{url}/consent",
            billing_url=f"{url}/billing",
            dispatcher_url=f"{url}/dispatcher",
        )
        services = OtherServices(settings, Metrics(Service.MESSAGE_LOG))
        runtime: Any = await Runtime.over(pool)
        audiences = Audiences(runtime, services, try_again_seconds=0.01)
        app = _app(runtime, settings, services, AudienceDesk(runtime, audiences))
        yield Audience(pool, app, Dispatcher(), deciders, audiences)
        await audiences.close()
        await services.close()
    await pool.close()


def _app(runtime: Any, settings: MessageLogSettings, services: OtherServices, desk: AudienceDesk) -> FastAPI:
    app = FastAPI()
    app.state.tokens, app.state.acting = settings.tokens, Acting(settings.acting_key)
    problems.install(app)
    app.include_router(audience_api.routes(settings, desk))
    app.include_router(api.routes(runtime, settings, Streams()))
    app.include_router(dead_letters.routes(runtime))
    pages = Pages(runtime, settings, Freshness(Metrics(Service.MESSAGE_LOG)), services, Streams())
    router = APIRouter(route_class=pages.route_class())
    for group in (login_pages, message_pages):
        group.install(router, pages)
    audience_pages.install(router, pages, desk)
    app.include_router(router)
    return app
