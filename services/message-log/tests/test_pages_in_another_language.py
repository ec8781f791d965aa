"""Each page of a desk with data, in a language that marks what the catalogue says: all else on it is data."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pages_desk
import pytest
from fastapi.routing import APIRoute
from message_log import accounts, audience_store, store
from message_log.audience import Outcome, Verdict
from message_log.audience_lines import Line
from message_log.audience_store import New
from message_log.deliveries import Part
from message_log.journey import new_id
from message_log.store import EventRow, WebhookRow
from message_log_builders import ADMIN, VIEWER, WORKSPACE, after, event_id, held, rejected, requested, status
from page_texts import PSEUDO, outside_the_catalogue, pseudo_language
from people_desk import ANSWERS, CONTACT, RESOLVED, SCRIPT, SENDER, Desk, contact, gate, gates, open_desk, template
from sendwhy.access import Role
from sendwhy.events import MetaError, Origin, OriginKind, Status, To, reason
from sendwhy.reasons import ReasonCode, Service

pytestmark = pytest.mark.postgres
HOME = f"/w/{WORKSPACE}"
R = ReasonCode
SALE = Origin(kind=OriginKind.CAMPAIGN, id="sale", name="Sale")
CART = Origin(kind=OriginKind.AUTOMATION, id="cart", name="Cart", node_id="welcome")
WEBHOOK, REFUSED, LETTER, STRANGERS = (event_id(name) for name in ("webhook", "refused", "letter", "strangers"))
FILE, AGAIN, STOPPED, SILENT = (event_id(name) for name in ("file", "again", "stopped", "silent"))
TRAVELS = ("s-0", "s-2", "s-3", "s-5", "s-6", "s-7", "s-8", "s-9", new_id(datetime.now(UTC), "0a1b2c3d"))
KEPT: dict[str, Any] = {
    "campaign_id": "sale",
    "paused_at": None,
    "cancelled_at": None,
    "per_minute": 600,
    "per_day": 1000,
    "day_start": None,
    "slots_today": 10,
    "waiting": [{"waiting_for": "throttle", "messages": 7, "oldest": after(0).isoformat()}],
}
STATEMENT = {
    "from_day": "2026-11-01",
    "to_day": "2026-12-01",
    "zone": "UTC",
    "by": ["campaign"],
    "opening_balance": 10,
    "closing_balance": 7,
    "rows": [{"origin_kind": "campaign", "origin_id": "sale", "messages": 3, "net": -3}],
    "totals": {"messages": 3, "net": -3},
}
SUBSCRIPTION = {
    "token": "valid",
    "app_id": "400",
    "asked_at": "2026-11-22T10:00:00Z",
    "error": None,
    "subscribed": False,
    "apps": [{"app_id": "401", "name": "=app=", "override_url": "=url="}],
}
SILENCE = {"sender_id": SENDER, "since": "2026-11-22T10:00:00Z", "what_to_do": "=todo="}
CHARGE = {
    "summary": "=summary=",
    "price": {"explanation": "=explanation="},
    "entries": [{"at": "2026-11-22T10:00:00Z", "kind": "reserve", "amount": -1, "explanation": "=explanation="}],
}

EVERY_OUTCOME = [
    Verdict(Outcome.GOES, credits=1),
    Verdict(Outcome.WAITS, "tier", R.MESSAGING_LIMIT_REACHED, Service.DISPATCHER, until=after(60), credits=1),
    Verdict(Outcome.WAITS, "tier", R.MESSAGING_LIMIT_REACHED, Service.DISPATCHER, until=after(90), credits=1),
    Verdict(Outcome.WAITS, "hold", R.META_PAYMENT_ISSUE, Service.DISPATCHER, credits=1),
    Verdict(Outcome.WAITS, "paused", R.EXPIRED_BEFORE_SENDING, Service.DISPATCHER, credits=1),
    Verdict(Outcome.FAILS, R.CUSTOMER_IS_NOT_OPTED_IN, service=Service.CONSENT, detail="=detail="),
    Verdict(Outcome.FAILS, R.INSUFFICIENT_CREDITS, service=Service.BILLING, detail="=detail=", credits=9),
    Verdict(Outcome.UNKNOWN, Service.BILLING, service=Service.BILLING, detail="=detail="),
    Verdict(Outcome.BROKEN, "line", field="=field=", detail="=detail="),
    Verdict(Outcome.BROKEN, "workspace", field="workspace_id", detail="=detail="),
    Verdict(Outcome.REPEATED, detail="=detail="),
    Verdict(Outcome.USED, detail="=detail="),
    *(
        Verdict(Outcome.EXCLUDED, why, detail="=detail=")
        for why in ("never", "erased", "not_kept", "not_failed", "sent_again", "uncertain")
    ),
]
GOING = [Verdict(Outcome.GOES, credits=1), Verdict(Outcome.GOES, credits=1), *EVERY_OUTCOME]

PAGES = [
    *("messages", "messages?range=all", "messages?range=all&status=failed", "messages?range=all&q=zzz"),
    *("messages?from=2026-11-22T00:00:00Z", "messages?range=all&origin=inbox&status=failed"),
    *(f"messages/{name}" for name in ("s-0", "s-2", "s-3", "s-7", "s-8")),
    *("campaigns", "campaigns?q=zzz", "campaigns/sale", "campaigns/sale?done=pause", "automations", "automations/cart"),
    *("inbox", f"inbox/with/{CONTACT}", f"inbox/from/{STRANGERS}", f"inbox/with/{CONTACT}?template=autumn_sale/es_MX"),
    *("contacts", "contacts?q=zzz", f"contacts/{CONTACT}", f"contacts/{CONTACT}?template=-"),
    *("credits", "credits?kind=reserve", "credits?done=7", "credits/statement?by=campaign"),
    *("templates", "senders", f"senders/{SENDER}", "webhooks", "webhooks?wamid=zzz", f"webhooks/{WEBHOOK}"),
    *(f"webhooks/{REFUSED}", "webhook-replay", "dead-letters", "dead-letters?topic=send.held"),
    *("audience", f"audience/{FILE}", f"send-again/{AGAIN}", f"send-again/{STOPPED}", f"audience/{SILENT}"),
    *("send-again?range=all", "send-again?q=zzz", "diagnostics", "diagnostics/test-message"),
    *("diagnostics/test-message?template=text", *(f"diagnostics/test-message/{name}" for name in TRAVELS)),
    *(f"dead-letters/{LETTER}", "people", "audit", "messages/none", "messages?status=wrong", "webhook-replay?from=x"),
]
# Words of the data above, ids, codes, and what a person types; nothing that a page says.
DATA = re.compile(
    r"Sendwhy|UTC|acme|shopify:\d+|Inés|Sale|Cart|sale|cart|welcome|s-\d|[a-f0-9]{8}(-[a-f0-9]{4}){3}-[a-f0-9]{12}"
    r"|[A-Z]+(_[A-Z]+)+|because of( it)?|autumn_sale|order_update|es_MX|en_US|wamid(\.…|\.\w+|\.)?|send\.\w+|consent\b"
    r"|billing|dispatcher|webhook-ingest|message-log|Europe/Berlin|English|Esperanto|operator-1|=\w+=|meta\b|MX\b"
    r"|<script>alert\(1\)</script>|import(/\d)*|Consent\b|Billing|Dispatcher|[a-f0-9]{8}\b|form 17|Hola|tu código es"
    r"|test-\d{8}T\d{6}Z|to \+5255|zzz|(status|webhook|message|customer|template|sender|contact|account|person)\.[a-z]+"
    r"|to: Field required|unreadable|status delivered|message text|\bname\b|phone|HTTP"
)
# Names in other systems' words, where they stand alone.
NAMES = frozenset(
    {
        *("upstream", "order", "Undeliverable", "waits for", "tier", "es", "Token", "status", "APPROVED", "PAUSED"),
        *("Account update", "warned", "source"),
    }
)


@pytest.fixture
async def desk(migrated_database: str, tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(migrated_database) as desk:
        desk.pages.languages = pseudo_language(tmp_path)
        desk.others.answers = ANSWERS | {
            "dispatcher campaigns/sale": (200, KEPT),
            "dispatcher queue": (200, {"items": [KEPT["waiting"][0] | {"lane": "campaign"}]}),
            "dispatcher evaluate": gates(
                gate("template"), gate("tier", passed=False, evidence={"waits_for": "tier"}), gate("pair", passed=None)
            ),
            "billing evaluate": gates(gate("credits", passed=False, reason={
                "code": "INSUFFICIENT_CREDITS", "title": "Insufficient credits", "detail": SCRIPT, "evidence": {},
                "recoverable": "after_topup", "meta": None,
            }), resolved=RESOLVED),
            "billing statements": (200, STATEMENT),
            f"dispatcher senders/{SENDER}/subscription": (200, SUBSCRIPTION),
            "webhook-ingest webhooks/silence": (200, {"items": [SILENCE]}),
            **{f"billing messages/s-{n}/charge": (200, CHARGE) for n in (0, 2, 3)},
        }  # fmt: skip
        await fill(desk)
        yield desk


async def fill(desk: Desk) -> None:
    tell = pages_desk.Desk(desk.pool, desk.app, pages_desk.Dispatcher())
    meta = MetaError(code=131026, title="Undeliverable", details="=meta=", http_status=400)
    failed = reason(R.RECIPIENT_NOT_ON_WHATSAPP, "because of it", {"tries": [{"result": "retry", "code": 1}]}, meta)
    await tell.tell(
        *(requested(message_id=f"s-{n}", origin=SALE) for n in range(10)),
        rejected(R.INSUFFICIENT_CREDITS, 2, Service.BILLING, message_id="s-0", origin=SALE),
        rejected(R.CUSTOMER_IS_NOT_OPTED_IN, 3, message_id="s-1", origin=SALE),
        status(Status.FAILED, 9, R.RECIPIENT_NOT_ON_WHATSAPP, message_id="s-2").model_copy(update={"reason": failed}),
        status(Status.ACCEPTED, 8, message_id="s-3"),
        status(Status.READ, 63, message_id="s-3"),
        status(Status.DELIVERED, 61, message_id="s-6"),
        status(Status.ACCEPTED, 62, message_id="s-7"),
        held(R.MESSAGING_LIMIT_REACHED, 5, until=9e8, message_id="s-8"),
        held(R.TEMPLATE_NOT_APPROVED, 5, message_id="s-9"),
        requested(message_id="a-1", origin=CART, to=To(contact_id=CONTACT, phone=None)),
        rejected(R.INSUFFICIENT_CREDITS, 10, Service.BILLING, message_id="a-1", origin=CART),
    )
    await tell.wrote(
        pages_desk.wrote("Inés", timedelta(minutes=5)),
        pages_desk.wrote("Inés", timedelta(minutes=9), phone="4915112345678").model_copy(
            update={"event_id": STRANGERS}
        ),
    )
    await desk.know(contact(), template())
    parts = (Part("status delivered", WORKSPACE, SENDER, None, "wamid.HBgM1", "s-3"),)
    letter = EventRow(
        LETTER, after(1), WORKSPACE, "s-1", None, "consent", "dead_letter", b"{}", "send.held: unreadable"
    )
    async with desk.pool.acquire() as connection, connection.transaction():
        await store.add_webhooks(
            connection,
            [
                WebhookRow(WEBHOOK, after(1), "meta", "400", None, 2, b"{}", parts, {"source": "meta"}),
                WebhookRow(REFUSED, after(2), "meta", None, "signature is wrong", 2, b"{}", ()),
            ],
        )
        await store.add_events(connection, [letter])
        await plan(connection, FILE, "file", EVERY_OUTCOME, "judged", None)
        await plan(connection, AGAIN, "again", GOING, "running", None)
        await plan(connection, STOPPED, "again", GOING, "stopped", "=told=")
        await plan(connection, SILENT, "file", GOING, "new", None)
        await connection.execute("update audience set created_at = $1 where audience_id = $2", after(0), SILENT)
        await accounts.save(connection, "operator-1", "a long password", {WORKSPACE: Role.OPERATOR}, "operator-1")
        await accounts.note(connection, WORKSPACE, "operator-1", "pause campaign", "sale", "done")


async def plan(
    connection: Any, audience_id: UUID, kind: str, verdicts: list[Verdict], state: str, told: str | None
) -> None:
    await audience_store.add(connection, New(audience_id, WORKSPACE, kind, "=name=", "operator-1", 30))
    await audience_store.add_lines(
        connection, audience_id, [Line(n, b"{}", f"s-{n % 10}", one) for n, one in enumerate(verdicts)]
    )
    await audience_store.count_lines(connection, audience_id)
    facts = {
        "balance": 5 if told else None,
        "people": [{"portfolio": "=p=", "limit": 1000, "used": 9, "taken": 1, "left": 990}],
        "faults": {"billing": "=fault="},
    }
    if state == "new":
        return
    run = await audience_store.claim(connection, WORKSPACE, audience_id, "running", ["new"])
    if state != "running" and run is not None:
        await audience_store.end(connection, audience_id, run["run"], state, facts=facts, told=told, judged_at=after(9))


def faults(page: str) -> list[tuple[str, str]]:
    return [(where, rest) for where, text in outside_the_catalogue(page) if (rest := said(text))]


def said(text: str) -> str:
    rest = "" if text.strip(" ·:") in NAMES else DATA.sub("", text)
    return rest if re.search(r"[^\W\d_]{2,}", rest) else ""


async def test_whatever_a_page_says_stands_in_the_catalogue(desk: Desk) -> None:
    found: dict[str, Any] = {}
    for token in (ADMIN, VIEWER):
        async with desk.browser(token) as browser:
            browser.headers["accept-language"] = PSEUDO
            browser.base_url = httpx.URL("http://log")
            for path in ("/", "/login", *(f"{HOME}/{one}" for one in PAGES)):
                answer = await browser.get(path)
                assert answer.status_code < 500, path
                if answer.status_code != 303:
                    assert f'<html lang="{PSEUDO}">' in answer.text
                    found |= {f"{token} {path}": wrong for wrong in [faults(answer.text)] if wrong}
    assert found == {}


async def test_no_page_is_left_out(desk: Desk) -> None:
    """A new page stands in PAGES too, so that its texts are seen."""
    shown = [path.partition("?")[0] for path in PAGES]
    for route in desk.app.routes:
        path = getattr(route, "path", "")
        if isinstance(route, APIRoute) and path.startswith("/w/{w}/") and "GET" in (route.methods or ()):
            if path.endswith((".csv", ".live", "/bundle")):
                continue
            assert any(route.path_regex.match(f"{HOME}/{one}") for one in shown), path


async def test_the_chosen_language_is_kept_and_the_switch_shows_only_where_there_is_a_choice(desk: Desk) -> None:
    async with desk.browser(VIEWER) as browser:
        where = f"http://log{HOME}/messages?range=all"
        assert 'action="/language"' in (await browser.get(where)).text
        answer = await browser.post("http://log/language", data={"language": PSEUDO}, headers={"referer": where})
        assert (answer.status_code, answer.headers["location"]) == (303, f"{HOME}/messages?range=all")
        assert "⟦Messages⟧" in (await browser.get(where)).text
        foreign = {"referer": "https://elsewhere.example/x", "sec-fetch-site": "cross-site"}
        assert (await browser.post("http://log/language", data={"language": "en"}, headers=foreign)).status_code == 403
        away = await browser.post(
            "http://log/language", data={"language": "xx"}, headers={"referer": "http://e.example//e.x/w/"}
        )
        assert (away.headers["location"], "set-cookie" in away.headers) == ("/", False)
        assert "⟦Messages⟧" in (await browser.get(where)).text
        desk.pages.languages = {"en": desk.pages.languages["en"]}
        page = (await browser.get(where)).text
        assert 'action="/language"' not in page
        assert '<html lang="en">' in page


async def test_programs_are_told_english(desk: Desk) -> None:
    async with desk.browser(VIEWER) as browser:
        browser.headers["accept-language"] = PSEUDO
        assert "⟦" not in (await browser.get(f"http://log{HOME}/messages.csv?range=all")).text
        assert "⟦" not in (await browser.get(f"http://log{HOME}/contacts.csv")).text
        assert "⟦" not in (await browser.get(f"http://log{HOME}/diagnostics.csv")).text
    async with desk.browser(ADMIN) as browser:
        browser.headers["accept-language"] = PSEUDO
        assert "⟦" not in (await browser.get(f"http://log{HOME}/audience/{FILE}/lines.csv")).text
    async with httpx.AsyncClient(transport=httpx.ASGITransport(desk.app), base_url="http://log") as client:
        headers = {"authorization": f"Bearer {VIEWER}", "accept-language": PSEUDO}
        for path in ("contacts", f"contacts/{CONTACT}/eligibility", "contacts/none/eligibility", "contacts?cursor=x"):
            assert "⟦" not in (await client.get(f"/v1/workspaces/{WORKSPACE}/{path}", headers=headers)).text


async def test_what_a_run_keeps_is_english_whoever_began_it(desk: Desk) -> None:
    desk.others.answers["consent evaluate"] = (500, {"detail": "It is down"})
    line = {"message_id": "f-1", "workspace_id": WORKSPACE, "to": {"contact_id": CONTACT}, "origin": {"kind": "api"}}
    line["content"] = {"type": "text", "text": {"body": "Hi"}}
    async with desk.browser(ADMIN) as browser:
        browser.headers["accept-language"] = PSEUDO
        answer = await browser.post("audience", files={"file": ("=name=", json.dumps(line))})
        assert answer.status_code == 303, answer.text
        made = answer.headers["location"].rpartition("/")[2]
        async with asyncio.timeout(120):
            while (row := await _read(desk, UUID(made)))["judged_at"] is None:
                await asyncio.sleep(0.02)
        assert "consent answered 500" in row["facts"]
        assert "⟦" not in row["facts"]
        assert "⟦Not known: consent⟧" in (await browser.get(f"audience/{made}")).text


async def _read(desk: Desk, audience_id: UUID) -> Any:
    async with desk.pool.acquire() as connection:
        return await audience_store.read(connection, WORKSPACE, audience_id)
