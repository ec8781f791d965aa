"""All pages in this process, on a real database and without Kafka; consent,
billing and dispatcher are one small server on a real socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
from cryptography.fernet import Fernet
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from message_log import (
    contact_api,
    store,
)
from message_log.app import install_pages
from message_log.audience_api import Desk as AudienceDesk
from message_log.audience_job import Audiences
from message_log.checks import KafkaFacts
from message_log.decide import fold, tells
from message_log.freshness import Freshness
from message_log.language import lazy
from message_log.live import Streams
from message_log.pages import Pages
from message_log.probes import Probes
from message_log.services import OtherServices
from message_log.store import KnownState, SenderRow
from message_log_builders import WORKSPACE, after
from pages_desk import Runtime, serving, settings_of_desk
from pydantic import SecretStr
from sendwhy import problems
from sendwhy.acting import Acting
from sendwhy.events import ContactUpdated, MarketingState, TemplateUpdated, Wire
from sendwhy.metrics import Metrics
from sendwhy.postgres import connect_pool
from sendwhy.reasons import Service
from sendwhy.topics import Topic

SAME_SITE = {"sec-fetch-site": "same-origin"}
SENDER, WABA = "415566778899001", "300"
CONTACT, PHONE = "shopify:7712", "+525512345678"


@dataclass(frozen=True)
class Asked:
    service: str
    method: str
    path: str
    body: Any
    role: str | None
    key: str | None
    query: dict[str, str]


@dataclass
class Others:
    """Answers by `service path`, as (status, JSON or a text); 404 is the rest. `asked`: by whom."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def app(self, acting: Acting) -> FastAPI:
        app = FastAPI()

        @app.api_route("/{service}/{path:path}", methods=["GET", "POST", "PUT"])
        async def any_path(service: str, path: str, request: Request) -> Any:
            given = request.headers["authorization"].removeprefix("Bearer ")
            token = acting.read(given)
            path = path.removeprefix("v1/").removeprefix(f"workspaces/{WORKSPACE}/")
            body = await request.json() if await request.body() else None
            role = token.role.name if token else given
            key = request.headers.get("idempotency-key")
            self.asked.append(Asked(service, request.method, path, body, role, key, dict(request.query_params)))
            status, answer = self.answers.get(f"{service} {path}", (404, {"detail": "Nothing of that name"}))
            answer = answer(request) if callable(answer) else answer
            if status >= 400:
                return problems.problem_response(status, answer["detail"], answer.get("errors"))
            return PlainTextResponse(answer) if isinstance(answer, str) else answer

        return app

    def writes(self) -> list[Asked]:
        return [one for one in self.asked if one.method != "GET" and one.path != "evaluate"]


@dataclass
class Desk:
    pool: asyncpg.Pool
    app: FastAPI
    others: Others
    pages: Pages

    @asynccontextmanager
    async def browser(self, token: str) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://log", headers=SAME_SITE) as client:
            assert (await client.post("/login", data={"token": token})).status_code == 303
            client.base_url = httpx.URL(f"http://log/w/{WORKSPACE}/")
            yield client

    async def get(self, path: str, token: str, **asked: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://log") as client:
            return await client.get(f"/v1/workspaces/{WORKSPACE}/{path}", headers=headers, params=asked)

    async def know(self, *states: ContactUpdated | TemplateUpdated) -> None:
        async with self.pool.acquire() as connection:
            for state in states:
                if isinstance(state, ContactUpdated):
                    phone = state.phone.strip("+") if state.phone else None
                    key = f"{state.workspace_id}/{state.contact_id}"
                    row = KnownState(key, state.version, state.workspace_id, phone, state.to_json())
                    await store.set_states(connection, Topic.CONTACT_UPDATED, [row])
                else:
                    key = f"{state.waba_id}/{state.name}/{state.language}"
                    row = KnownState(key, state.version, None, None, state.to_json())
                    await store.set_states(connection, Topic.TEMPLATE_UPDATED, [row])

    async def tell(self, *events: Wire) -> None:
        told: dict[tuple[str, str], list[Any]] = {}
        for event in events:
            at = getattr(event, "occurred_at", None) or after(0)
            if (state := tells(event, at)) is not None:
                told.setdefault((event.workspace_id, event.message_id), []).append(state)  # type: ignore[attr-defined]
        async with self.pool.acquire() as connection, connection.transaction():
            await store.fold_messages(connection, {key: fold(states) for key, states in told.items()})


def contact(contact_id: str = CONTACT, **given: Any) -> ContactUpdated:
    fields: dict[str, Any] = {
        "event_id": uuid4(),
        "occurred_at": after(0),
        "workspace_id": WORKSPACE,
        "contact_id": contact_id,
        "version": 1,
        "phone": PHONE,
        "phone_given": PHONE,
        "name": "Inés",
        "marketing_state": MarketingState.SUBSCRIBED,
        "since": after(0),
        "source": "import",
    }
    return ContactUpdated(**(fields | given))


def template(name: str = "autumn_sale", category: str = "MARKETING", waba: str = WABA) -> TemplateUpdated:
    return TemplateUpdated(
        event_id=uuid4(),
        occurred_at=after(0),
        waba_id=waba,
        name=name,
        language="es_MX",
        version=1,
        status="APPROVED",
        category=category,
        parameter_format="POSITIONAL",
        components=[{"type": "BODY", "text": "Hola {{1}}, tu código es {{2}}"}],
        said_by="meta",
        said_at=after(0),
    )


@asynccontextmanager
async def open_desk(database_url: str) -> AsyncIterator[Desk]:
    pool = await connect_pool(database_url, service="people-test", size=4)
    async with pool.acquire() as connection:
        await store.set_senders(connection, [SenderRow(SENDER, WORKSPACE, WABA, 1, True, after(0))], [])
    keys = SecretStr(Fernet.generate_key().decode())
    others = Others()
    async with serving(others.app(Acting(keys))) as url:
        settings = settings_of_desk(
            database_url,
            keys,
            consent_url=f"{url}/consent",
            billing_url=f"{url}/billing",
            dispatcher_url=f"{url}/dispatcher",
            webhook_ingest_url=f"{url}/webhook-ingest",
        )
        services = OtherServices(settings, Metrics(Service.MESSAGE_LOG))
        runtime: Any = await Runtime.over(pool)
        pages = Pages(runtime, settings, Freshness(Metrics(Service.MESSAGE_LOG)), services, Streams())
        yield Desk(pool, _app(pages), others, pages)
        await services.close()
    await pool.close()


def _app(pages: Pages) -> FastAPI:
    app = FastAPI()
    app.state.tokens, app.state.acting = pages.settings.tokens, Acting(pages.settings.acting_key)
    problems.install(app)
    app.include_router(contact_api.routes(pages.runtime, pages.settings, pages.services))
    desk = AudienceDesk(pages.runtime, Audiences(pages.runtime, pages.services, try_again_seconds=0.01))
    install_pages(app, pages, desk, Probes(pages.runtime, pages.services, pages.freshness, _no_kafka, seconds=2.0))
    return app


async def _no_kafka() -> KafkaFacts:
    return KafkaFacts(datetime.now(UTC), fault=lazy("It can’t be reached: %(why)s.", why=SCRIPT))


# What the services answer, with a script wherever somebody else's words stand.
SCRIPT = "<script>alert(1)</script>"
RESOLVED = {"contact_id": CONTACT, "phone": PHONE, "country": "MX", "calling_code": "52", "purpose": "marketing"}
PERSON = {
    "contact_id": CONTACT,
    "external_ids": [CONTACT],
    "name": "Inés",
    "phone": PHONE,
    "phone_given": "55 1234 5678",
    "phone_fault": None,
    "phone_country_code": None,
    "phone_calling_code": "52",
    "user_id": None,
    "language": "es",
    "address_country": "MX",
    "marketing_state": "SUBSCRIBED",
    "since": "2026-11-20T08:00:00Z",
    "source": "import",
    "proof": "form 17",
    "updated_at": "2026-11-21T08:00:00Z",
}
SAID: dict[str, Any] = {
    "kind": "consent",
    "said": "SUBSCRIBED",
    "stood": "UNSUBSCRIBED",
    "at": "2026-11-20T08:00:00Z",
    "source": SCRIPT,
    "by": "import/7",
    "fields": [],
    "overwrote": None,
    "others": [],
    "proof": SCRIPT,
    "note": SCRIPT,
    "cause": "import/7/3",
}
ACCOUNT = {"balance": 1234567, "reserved": 3, "last_top_up": 2000000, "low_balance_percent": None}
ENTRY = {
    "version": 9,
    "at": "2026-11-22T10:00:00Z",
    "kind": "top_up",
    "amount": 5000,
    "balance_after": 1234567,
    "cause": SCRIPT,
    "cause_reason": None,
    "actor": "0a1b2c3d",
    "message_id": None,
    "category": None,
    "country": None,
}
SENDER_TOLD = {
    "sender_id": SENDER,
    "waba_id": WABA,
    "portfolio_id": "p-1",
    "app_id": None,
    "default": True,
    "display_phone_number": "+52 55 0000",
    "quality_rating": "RED",
    "messaging_limit": 1000,
    "messages_per_second": 80,
    "paused_at": "2026-11-22T10:00:00Z",
    "hold": {"code": "ACCESS_TOKEN_INVALID", "title": "Token", "detail": SCRIPT},
    "hold_since": "2026-11-22T09:00:00Z",
    "hold_until": None,
    "synced_at": None,
}
HEALTH = {
    "stopped_by": [
        {"gate": "paused", "stops": "all", "detail": SCRIPT, "since": "2026-11-22T10:00:00Z", "until": None}
    ],
    "quality": {"rating": "RED", "policy": "block"},
    "tier": {"portfolio_id": "p-1", "limit": 1000, "used": 990, "left": 10, "room_at": None},
    "throughput": {"allowed_per_second": 80, "sent_last_minute": 240},
    "sync": {
        "failed": {"since": "2026-11-22T09:00:00Z", "at": "2026-11-22T09:05:00Z", "error": SCRIPT},
        "last": {
            "templates": 3,
            "synced_at": "2026-11-22T08:00:00Z",
            "incomplete": None,
            "changed_at": "2026-11-22T08:00:00Z",
            "changes": [{"of": SCRIPT, "what": "status", "before": "APPROVED", "after": "PAUSED"}],
            "more": 2,
        },
    },
    "reports": [
        {"field": "account_update", "event": "WARNED", "detail": f"{SCRIPT} to {PHONE}", "at": "2026-11-22T09:00:00Z"}
    ],
}
TEMPLATE_TOLD = {
    "waba_id": WABA,
    "name": "autumn_sale",
    "language": "es_MX",
    "status": "REJECTED",
    "category": "MARKETING",
    "components": [{"type": "BODY", "text": SCRIPT}, {"type": "BUTTONS", "buttons": [{"type": "URL", "text": SCRIPT}]}],
    "quality": None,
    "rejected_reason": "PROMOTIONAL",
    "said_by": "meta",
    "said_at": "2026-11-22T10:00:00Z",
    "synced_at": None,
}


def gates(*told: dict[str, Any], resolved: Any = RESOLVED) -> tuple[int, Any]:
    return 200, {"results": [{"message_id": "m", "gates": list(told), "resolved": resolved}]}


def gate(name: str, passed: bool | None = True, **more: Any) -> dict[str, Any]:
    return {"gate": name, "passed": passed, "reason": None, "evidence": {}} | more


ANSWERS: dict[str, Any] = {
    f"consent contacts/{CONTACT}": (200, PERSON),
    f"consent contacts/{CONTACT}/history": (200, {"items": [SAID], "next_cursor": None}),
    f"consent contacts/{CONTACT}/suggestion": (200, {"suggestion": None}),
    "consent evaluate": gates(gate("marketing_state", evidence={"phone": PHONE})),
    "billing evaluate": gates(gate("credits")),
    "dispatcher evaluate": gates(gate("template"), gate("tier")),
    "billing account": (200, ACCOUNT),
    "billing ledger": (200, {"items": [ENTRY], "next_cursor": None}),
    "billing alerts": (200, {"items": [], "next_cursor": None}),
    "dispatcher senders": (200, [SENDER_TOLD]),
    f"dispatcher senders/{SENDER}": (200, SENDER_TOLD),
    f"dispatcher senders/{SENDER}/health": (200, HEALTH),
    "dispatcher templates": (200, {"items": [TEMPLATE_TOLD], "next_cursor": None}),
}
