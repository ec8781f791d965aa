"""Diagnostics and the test message over HTTP, on real PostgreSQL; the other services are one small server, some of them
silent."""

import asyncio
import csv
import io
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from fastapi import APIRouter, FastAPI, Request
from message_log import (
    api,
    diagnostics_api,
    diagnostics_pages,
    journey_api,
    journey_pages,
    login_pages,
    message_pages,
    store,
)
from message_log.checks import Group, KafkaFacts
from message_log.freshness import Freshness
from message_log.journey import new_id
from message_log.live import Streams
from message_log.pages import Pages, static_file
from message_log.probes import Probes
from message_log.services import OtherServices
from message_log.settings import MessageLogSettings
from message_log.store import SenderRow
from message_log_builders import (
    ADMIN,
    OPERATOR,
    PRIVACY_KEY,
    STRANGER,
    TOKENS,
    VIEWER,
    WORKSPACE,
    after,
    consented,
    rejected,
    requested,
    status,
)
from pages_desk import SENDER, Desk, Dispatcher, Runtime, serving, template
from people_desk import HEALTH, SCRIPT, SENDER_TOLD
from pydantic import HttpUrl, SecretStr
from sendwhy import problems
from sendwhy.acting import Acting
from sendwhy.events import Origin, OriginKind, SendRequested, Status, To
from sendwhy.metrics import Metrics
from sendwhy.postgres import connect_pool
from sendwhy.reasons import ReasonCode, Service
from sendwhy.topics import TOPICS

pytestmark = pytest.mark.postgres
HOME, API = f"/w/{WORKSPACE}/diagnostics", f"/v1/workspaces/{WORKSPACE}"
FORM = f"{HOME}/test-message"
PHONE = "+525512345678"
KAFKA = KafkaFacts(
    datetime.now(UTC),
    brokers=1,
    topics=frozenset(str(topic) for topic in TOPICS),
    groups=[Group(service, "send.requested", 3) for service in Service],
)
SYNC: dict[str, Any] = {**HEALTH["sync"], "synced_at": None}  # type: ignore[dict-item]
HEALTH_TOLD = {**HEALTH, "sync": SYNC}
SUBSCRIPTION: dict[str, Any] = {
    "token": "refused",
    "app_id": None,
    "asked_at": "2026-11-22T10:00:00Z",
    "error": SCRIPT,
    "subscribed": None,
    "apps": [],
}


@dataclass
class Services:
    """Answers by path; one of `silent` never answers, until the test ends."""

    answers: dict[str, tuple[int, Any]]
    silent: set[str] = field(default_factory=set)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self, acting: Acting) -> FastAPI:
        app = FastAPI()

        @app.api_route("/{service}/{path:path}", methods=["GET"])
        async def any_path(service: str, path: str, request: Request) -> Any:
            token = acting.read(request.headers.get("authorization", "").removeprefix("Bearer "))
            path = path.removeprefix(f"v1/workspaces/{WORKSPACE}/")
            self.asked.append((f"{service} {path}", token.role.name if token else None))
            if service in self.silent:
                await self.over.wait()
            found, body = self.answers.get(f"{service} {path}", (200 if path in ("livez", "readyz") else 404, {}))
            return body if found < 400 else problems.problem_response(found, body.get("detail", "no"))

        return app


@dataclass
class Opened(Desk):
    services: Any = None
    kafka: Callable[[], KafkaFacts] = lambda: KAFKA


@asynccontextmanager
async def open_desk(database_url: str) -> AsyncIterator[Opened]:
    pool = await connect_pool(database_url, service="diagnostics-test", size=4)
    async with pool.acquire() as connection:
        await store.set_senders(connection, [SenderRow(SENDER, WORKSPACE, "300", 1, True, after(0))], [])
    keys = SecretStr(Fernet.generate_key().decode())
    services = Services(
        {
            "dispatcher senders": (200, [SENDER_TOLD]),
            f"dispatcher senders/{SENDER}/health": (200, HEALTH_TOLD),
            f"dispatcher senders/{SENDER}/subscription": (200, SUBSCRIPTION),
            "webhook-ingest webhooks/silence": (200, {"items": []}),
        }
    )
    async with serving(services.app(Acting(keys))) as url:
        settings = MessageLogSettings(
            kafka_bootstrap_servers="kafka.internal:9092",
            database_url=SecretStr(database_url),
            privacy_key=SecretStr(PRIVACY_KEY),
            api_tokens=SecretStr(TOKENS),
            acting_key=keys,
            consent_url=HttpUrl(f"{url}/consent"),
            billing_url=HttpUrl("http://127.0.0.1:1/billing"),
            dispatcher_url=HttpUrl(f"{url}/dispatcher"),
            webhook_ingest_url=HttpUrl(f"{url}/webhook-ingest"),
        )
        others = OtherServices(settings, Metrics(Service.MESSAGE_LOG))
        desk = Opened(pool, FastAPI(), Dispatcher(), services)
        _install(desk, await Runtime.over(pool), settings, others)
        yield desk
        services.over.set()
        await others.close()
    await pool.close()


def _install(desk: Opened, runtime: Any, settings: MessageLogSettings, services: OtherServices) -> None:
    app = desk.app
    app.state.tokens, app.state.acting = settings.tokens, Acting(settings.acting_key)
    problems.install(app)
    freshness, streams = Freshness(Metrics(Service.MESSAGE_LOG)), Streams()

    async def look() -> KafkaFacts:
        return desk.kafka()

    probes = Probes(runtime, services, freshness, look, seconds=2.0)
    app.include_router(api.routes(runtime, settings, streams))
    app.include_router(diagnostics_api.routes(probes))
    app.include_router(journey_api.routes(runtime, settings))
    pages = Pages(runtime, settings, freshness, services, streams)
    router = APIRouter(route_class=pages.route_class())
    for group in (login_pages, message_pages, journey_pages):
        group.install(router, pages)
    diagnostics_pages.install(router, pages, probes)
    router.add_api_route("/static/{path:path}", static_file, methods=["GET"])
    app.include_router(router)


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Opened]:
    async with open_desk(migrated_database) as opened:
        await opened.know(
            template("hello_world", "UTILITY", "Hello"), template("order_update", "UTILITY", "Order {{1}} is here")
        )
        yield opened


def by_id(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {check["id"]: check for check in answer.json()["checks"]}


async def test_all_checks_are_asked_with_the_readers_own_rights_and_told(desk: Opened) -> None:
    async with desk.browser(ADMIN) as browser:
        page = (await browser.get(HOME)).text
    assert {role for path, role in desk.services.asked if not path.endswith(("livez", "readyz"))} == {"ADMIN"}
    # billing is not there, the others are; the number's token is refused, in Meta's words as text.
    assert "doesn’t answer: ConnectError" in page
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)" in page
    found = by_id(await desk.get("diagnostics", ADMIN))
    assert found["alive:billing"]["result"] == "failed"
    assert found["database:billing"]["result"] == "unasked"
    assert {found[name]["result"] for name in ("kafka", "alive:consent", "database:message-log", "clocks")} == {"ok"}
    assert found[f"token:{SENDER}"]["result"] == found[f"templates:{SENDER}"]["result"] == "failed"


@pytest.mark.parametrize("token", [VIEWER, OPERATOR])
async def test_the_insides_of_the_installation_are_for_its_admins(desk: Opened, token: str) -> None:
    desk.kafka = lambda: KafkaFacts(datetime.now(UTC), fault="kafka.internal:9092 is gone")
    found = by_id(await desk.get("diagnostics", token))
    assert [name for name, check in found.items() if check["area"] == "installation"] == ["installation"]
    assert found["installation"]["seen"] == "Something does not work."
    async with desk.browser(token) as browser:
        page = (await browser.get(HOME)).text
        table = (await browser.get(f"{HOME}.csv")).text
    assert not [word for word in ("9092", "internal:", "billing", "ConnectError") if word in page.lower() + table]
    assert (await desk.get("diagnostics", STRANGER)).status_code == 404


async def test_one_that_hangs_hangs_nothing_and_is_told_as_not_answered(desk: Opened) -> None:
    desk.services.silent = {"dispatcher", "consent"}
    found = by_id(await desk.get("diagnostics", ADMIN))
    assert "no answer within" in found["alive:consent"]["seen"]
    assert (found["numbers"]["result"], found["silence"]["result"]) == ("unasked", "ok")
    assert "did not answer within" in found["numbers"]["seen"]


async def test_many_who_look_ask_the_installation_once(desk: Opened) -> None:
    await asyncio.gather(*(desk.get("diagnostics", token) for token in (ADMIN, VIEWER, OPERATOR)))
    assert [path for path, _ in desk.services.asked].count("consent livez") == 1


async def test_a_token_of_ones_own_asks_with_it_and_the_csv_is_safe(desk: Opened) -> None:
    desk.services.answers[f"dispatcher senders/{SENDER}/subscription"] = (200, SUBSCRIPTION | {"error": "=1+1"})
    answer = await desk.get("diagnostics.csv", ADMIN)
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(answer.text))}
    assert rows[f"token:{SENDER}"]["seen"] == "'=1+1"
    assert rows["alive:billing"]["result"] == "failed"


async def test_what_the_log_itself_knows(desk: Opened) -> None:
    await desk.tell(requested(), status(Status.ACCEPTED))
    await desk.tell(requested(message_id="bf-2"), rejected(ReasonCode.INSUFFICIENT_CREDITS, message_id="bf-2"))
    found = by_id(await desk.get("diagnostics", ADMIN))
    assert (found["receipts"]["result"], "bf-1" in found["receipts"]["seen"]) == ("failed", True)
    assert found["receipts"]["link"] == f"/w/{WORKSPACE}/messages/bf-1"
    assert (found["webhooks"]["result"], found["dead-letters"]["result"]) == ("warning", "ok")


def key_of(page: str) -> str:
    found = re.search(r'name="key" value="([^"]+)"', page)
    assert found is not None
    return found[1]


async def test_a_test_message_is_handed_over_once_noted_and_followed_at_its_own_page(desk: Opened) -> None:
    async with desk.browser(OPERATOR) as browser:
        page = (await browser.get(FORM)).text
        assert "real message" in page
        form = {"key": key_of(page), "template": "hello_world/en_US", "phone": "+52 (55) 1234-5678", "sender": SENDER}
        answers = [await browser.post(FORM, data=form) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [303, 303]
        assert len({answer.headers["location"] for answer in answers}) == 1
        place = answers[0].headers["location"]
        watched = (await browser.get(place)).text
    (record,) = await desk.outbox()
    sent = SendRequested.model_validate_json(record.value)
    assert (sent.to, sent.sender_id, sent.origin.kind) == (To(phone=PHONE), SENDER, OriginKind.TEST)
    assert place == f"{FORM}/{sent.message_id}"
    assert "it is not in the log yet" in watched
    assert '<noscript><meta http-equiv="refresh"' in watched
    async with desk.pool.acquire() as connection:
        noted = await connection.fetch("select action, target, result from audit")
    assert [tuple(row) for row in noted] == [("send test message", sent.message_id, "to +5255••••5678")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phone": "5512345678"}, "Write the phone number with +"),
        ({"phone": SCRIPT}, "Write the phone number with +"),
        ({"phone": ""}, "Write the phone number with +"),
        ({"template": "order_update/en_US"}, "Fill in"),
        ({"template": "nothing/en_US"}, "Choose a template"),
        ({"template": "text", "text": " "}, "Write a text"),
        ({"template": "text", "text": "x" * 4097}, "Write a text"),
    ],
)
async def test_a_form_that_says_too_little_sends_nothing(desk: Opened, change: dict[str, str], words: str) -> None:
    async with desk.browser(OPERATOR) as browser:
        answer = await browser.post(FORM, data={"template": "hello_world/en_US", "phone": PHONE} | change)
    assert (answer.status_code, words in answer.text, SCRIPT in answer.text) == (422, True, False)
    assert await desk.outbox() == []


async def test_a_viewer_sees_the_form_locked_and_may_not_send(desk: Opened) -> None:
    form = {"template": "hello_world/en_US", "phone": PHONE}
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(FORM)).text
        assert "This needs the role operator" in page
        assert re.search(r"<button type=\"submit\" disabled[^>]*>Send it and watch", page)
        assert (await browser.post(FORM, data=form)).status_code == 403
    async with desk.browser(OPERATOR) as browser:
        assert (await browser.post(FORM, data=form, headers={"sec-fetch-site": "cross-site"})).status_code == 403
    async with desk.browser(STRANGER) as browser:
        assert (await browser.get(FORM)).status_code == 404
    assert await desk.outbox() == []


async def test_the_stages_of_a_message_are_told_until_its_reason(desk: Opened) -> None:
    name = new_id(after(0), "0a0b0c0d")
    given: dict[str, Any] = {"message_id": name, "origin": Origin(kind=OriginKind.TEST), "to": To(phone=PHONE)}
    assert (await desk.get(f"messages/{name}/stages", VIEWER)).status_code == 404
    await desk.tell(requested(**given), consented(**given))
    told = (await desk.get(f"messages/{name}/stages", VIEWER)).json()
    assert [stage["state"] for stage in told["stages"]] == ["done", "done", "here"] + ["ahead"] * 5
    assert (told["hang"]["place"], told["ended"]) == ("billing", False)
    async with desk.browser(VIEWER) as browser:
        assert "It makes no progress" in (await browser.get(f"{FORM}/{name}")).text
        failure = rejected(ReasonCode.INSUFFICIENT_CREDITS, service=Service.BILLING, **given)
        evil = failure.reason.model_copy(update={"detail": SCRIPT})
        await desk.tell(failure.model_copy(update={"reason": evil}))
        partial = {"hx-request": "true", "hx-request-type": "partial"}
        page = (await browser.get(f"{FORM}/{name}", headers=partial)).text
    assert page.lstrip().startswith("<section")
    assert ("Insufficient credits" in page, "Top up" in page, SCRIPT in page) == (True, True, False)
    assert "data-over" in page
    assert (await desk.get(f"messages/{name}/stages", STRANGER)).status_code == 404
