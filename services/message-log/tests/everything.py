"""A workspace in which every page has something to show, most of it hostile: what stands in somebody else's words is a
script, a picture that fails, or a formula. And the addresses of every page, by its route."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import people_desk as told
from message_log_builders import after, consented, event_id, held, rejected, requested, status
from other_services import Asked
from pydantic import TypeAdapter
from sendwhy.events import (
    ContactUpdated,
    Inbound,
    MarketingState,
    MessageReceived,
    MetaError,
    Origin,
    OriginKind,
    SenderUpdated,
    Status,
    TemplateUpdated,
    To,
    Wire,
    reason,
)
from sendwhy.reasons import ReasonCode, Service
from sendwhy.topics import Outgoing, Topic, outgoing

WORKSPACE = "everything"
HOME, API = f"/w/{WORKSPACE}", f"/v1/workspaces/{WORKSPACE}"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
FORMULA = "=cmd()|'/c calc'!A1"
CONTACT, PHONE, SENDER, WABA = told.CONTACT, told.PHONE, told.SENDER, told.WABA
# What a campaign may be called that is out to break an address as well.
EVIL_ID = f"a/b?c=d#{EVIL}"
R = ReasonCode
NOW = datetime.now(UTC)


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


def _requests() -> list[Wire]:
    sale = Origin(kind=OriginKind.CAMPAIGN, id="black-friday", name="Black Friday")
    evil = Origin(kind=OriginKind.CAMPAIGN, id=EVIL_ID, name=FORMULA)
    robot = Origin(kind=OriginKind.AUTOMATION, id=EVIL, name=EVIL, node_id=EVIL)
    agent = Origin(kind=OriginKind.INBOX, thread_id=CONTACT, agent=EVIL)
    hostile = {"type": "template", "template": {"name": EVIL, "language": {"code": "en_US"}}}
    given: dict[str, Any] = {"workspace_id": WORKSPACE}
    why = reason(
        R.META_ERROR,
        EVIL,
        {EVIL: [EVIL, FORMULA], "tries": [{"at": "2026-11-22T10:00:01.000Z", "result": "retry", "detail": EVIL}]},
        MetaError(code=131000, http_status=500, title=EVIL, details=EVIL),
    )
    failure = rejected(R.META_ERROR, service=Service.DISPATCHER, message_id="e-1", origin=evil, **given)
    at = {"requested_at": ago(minutes=5)}
    return [
        *(requested(message_id=f"bf-{n}", origin=sale, **given, **at) for n in range(6)),
        *(rejected(R.CUSTOMER_IS_NOT_OPTED_IN, message_id=f"bf-{n}", origin=sale, **given) for n in range(3)),
        rejected(R.INSUFFICIENT_CREDITS, service=Service.BILLING, message_id="bf-3", origin=sale, **given),
        held(R.MESSAGING_LIMIT_REACHED, message_id="bf-4", until=9e8, **given),
        consented(message_id="bf-5", **given),
        status(Status.ACCEPTED, seconds=4, message_id="bf-5", **given),
        status(Status.READ, seconds=5, message_id="bf-5", **given),
        requested(
            message_id="e-1", to=To(contact_id=EVIL, phone="+15550001"), origin=evil, content=hostile,
            metadata={"order": EVIL, EVIL: {EVIL: FORMULA}}, **given, **at,
        ),
        failure.model_copy(update={"reason": why}),
        requested(message_id="a-1", origin=robot, **given, **at),
        rejected(R.INSUFFICIENT_CREDITS, service=Service.BILLING, message_id="a-1", origin=robot, **given),
        requested(message_id="in-1", origin=agent, content={"type": "text", "text": {"body": EVIL}}, **given, **at),
        rejected(R.INSUFFICIENT_CREDITS, service=Service.BILLING, message_id="in-1", origin=agent, **given),
    ]  # fmt: skip


def _contact(contact_id: str, name: str, phone: str | None, given: str) -> ContactUpdated:
    return ContactUpdated(
        event_id=event_id(f"everything contact {contact_id}"), occurred_at=after(0), workspace_id=WORKSPACE,
        contact_id=contact_id, version=1, phone=phone, phone_given=given, name=name, source=EVIL, proof=EVIL,
        marketing_state=MarketingState.UNSUBSCRIBED, since=after(0),
    )  # fmt: skip


def _wrote(name: str, text: str, phone: str, at: datetime) -> MessageReceived:
    return MessageReceived(
        event_id=event_id(f"everything {name}"), occurred_at=at, workspace_id=WORKSPACE, sender_id=SENDER,
        wamid=f"wamid.{name}", phone=phone, profile_name=EVIL, kind=Inbound.TEXT, text=text, raw={},
    )  # fmt: skip


def _states() -> list[Wire]:
    template = TemplateUpdated(
        event_id=event_id("everything template"), occurred_at=after(0), waba_id=WABA, name="order_update",
        language="en_US", version=1, status="APPROVED", category="UTILITY", parameter_format="POSITIONAL",
        components=[{"type": "BODY", "text": f"Order {{{{1}}}} {EVIL}"}], said_by=EVIL, said_at=after(0),
    )  # fmt: skip
    sender = SenderUpdated(
        event_id=event_id("everything sender"), occurred_at=after(0), sender_id=SENDER, workspace_id=WORKSPACE,
        version=1, waba_id=WABA, default=True, display_phone_number=EVIL, paused=False, synced_at=after(0),
    )  # fmt: skip
    return [
        sender,
        template,
        _contact(CONTACT, "Inés", PHONE, "55 1234 5678"),
        _contact(EVIL, FORMULA, None, EVIL),
        _wrote("known", EVIL, "5215512345678", ago(minutes=1)),
        _wrote("stranger", FORMULA, "4915100000000", ago(hours=1)),
    ]


def _raw() -> list[Outgoing]:
    """A delivery, a refused one and a dead letter, with the same in their bytes and their headers."""
    value = {
        "metadata": {"phone_number_id": SENDER, "display_phone_number": EVIL},
        "statuses": [{"id": "wamid.HBgM1", "status": EVIL, "biz_opaque_callback_data": f"sw1:{WORKSPACE}:bf-5"}],
    }
    body = TypeAdapter(dict[str, Any]).dump_json(
        {"entry": [{"id": WABA, "changes": [{"field": "messages", "value": value}]}], "evil": EVIL}
    )
    evil = EVIL.encode()
    headers = (("source", b"meta"), ("app_id", evil), ("received_at", evil), ("delivery_id", evil))
    letter = TypeAdapter(dict[str, Any]).dump_json({"workspace_id": WORKSPACE, "message_id": "e-dead", "note": EVIL})
    return [
        Outgoing(Topic.WEBHOOK_RECEIVED, b"k", body, headers),
        Outgoing(Topic.WEBHOOK_REFUSED, b"k", evil, (("source", b"meta"), ("cause", evil), ("size", b"12"))),
        Outgoing(
            Topic.DEAD_LETTERS,
            b"k",
            letter,
            (("service", b"consent"), ("topic", b"send.requested"), ("error", FORMULA.encode())),
        ),
    ]


def records() -> Sequence[Outgoing]:
    return [*_raw(), *(outgoing(event, source="test") for event in [*_states(), *_requests()])]


_PREFIX = {"consent": "/consent", "dispatcher": "/dispatcher", "billing": ""}
_STATEMENT = {
    "from_day": "2026-11-01", "to_day": "2026-12-01", "zone": "UTC", "by": ["day"], "opening_balance": 10,
    "closing_balance": 7, "totals": {"messages": 3, "net": -3},
    "rows": [{"day": FORMULA, "messages": 3, "net": -3}],
}  # fmt: skip
_CAMPAIGN: dict[str, Any] = {
    "per_minute": 600, "per_day": 20_000, "slots_today": 4, "paused_at": None, "cancelled_at": None,
    "day_start": after(0).isoformat(),
    "waiting": [{"waiting_for": EVIL, "messages": 3, "oldest": after(0).isoformat()}],
}  # fmt: skip


def answers() -> dict[str, tuple[int, Any]]:
    """What the other services say, by method and path as `other_services.Others` is asked."""
    said: dict[str, Any] = dict(told.ANSWERS)
    for contact in (CONTACT, EVIL):
        of = f"consent contacts/{contact}"
        said[of] = (200, told.PERSON | {"contact_id": contact, "name": EVIL, "phone_fault": None, "proof": EVIL})
        said[f"{of}/history"] = said[f"consent contacts/{CONTACT}/history"]
        said[f"{of}/suggestion"] = (200, {"suggestion": None})
    for campaign in ("black-friday", EVIL_ID):
        said[f"dispatcher campaigns/{campaign}"] = (200, _CAMPAIGN)
    said["dispatcher senders"] = (200, [told.SENDER_TOLD | {"display_phone_number": EVIL}])
    said[f"dispatcher senders/{SENDER}/subscription"] = (200, _SUBSCRIPTION)
    said["dispatcher queue"] = (200, {"items": [{"lane": EVIL, **_CAMPAIGN["waiting"][0]}]})
    said["billing statements"] = (200, _STATEMENT)
    said["billing statements.csv"] = (200, f"line,origin_id\r\nrow,{EVIL_ID}\r\n")
    made: dict[str, tuple[int, Any]] = {}
    for name, answer in said.items():
        service, _, what = name.partition(" ")
        place = "/v1/evaluate" if what == "evaluate" else f"{API}/{what}"
        made[f"{'POST' if what == 'evaluate' else 'GET'} {_PREFIX[service]}{place}"] = answer
    for service in _PREFIX:
        path = f"POST {_PREFIX[service]}/v1/evaluate"
        made[path] = (200, partial(_judged, service, made[path][1]["results"][0]))
    silent = {"sender_id": SENDER, "since": after(0).isoformat(), "what_to_do": EVIL}
    made[f"GET {API}/webhooks/silence"] = (200, {"items": [silent]})
    return made


_SUBSCRIPTION: dict[str, Any] = {
    "token": "refused", "app_id": EVIL, "asked_at": after(0).isoformat(), "error": EVIL, "subscribed": False,
    "apps": [{"app_id": EVIL, "name": EVIL, "override_url": f"javascript:alert(1)//{EVIL}"}],
}  # fmt: skip


def _judged(service: str, one: Any, asked: Asked) -> Any:
    """As `one` of each that is asked about; of many, consent stops the first in hostile words, and others wait."""
    requests = TypeAdapter(dict[str, Any]).validate_json(asked.body)["requests"]
    results = [one | {"message_id": each["message_id"]} for each in requests]
    why = reason(R.CUSTOMER_IS_NOT_OPTED_IN, EVIL).model_dump(mode="json")
    wait = {"waits_for": EVIL, "cause": EVIL, "until": None}
    if len(results) > 1 and service == "consent":
        results[0] = results[0] | {"gates": [told.gate("marketing_state", False, reason=why)]}
    if len(results) > 1 and service == "dispatcher":
        results[0] = results[0] | {"gates": [told.gate("hold", False, evidence=wait)]}
    return {"results": results}


def audience_file() -> bytes:
    """What is checked: requests that go, wait and fail, one twice, one of elsewhere, and what is no request."""
    names = ("f-1", "f-2", "f-3", "f-4", "f-4", "bf-0")
    lines: list[dict[str, Any]] = [
        {
            "message_id": name,
            "workspace_id": WORKSPACE,
            "to": {"contact_id": EVIL, "phone": PHONE},
            "origin": {"kind": "campaign", "id": EVIL_ID, "name": FORMULA},
            "content": {"type": "template", "template": {"name": EVIL, "language": {"code": "en_US"}}},
        }
        for name in names
    ]
    broken = {"message_id": EVIL, EVIL: EVIL}
    dump = TypeAdapter(dict[str, Any]).dump_json
    return b"\n".join(dump(one) for one in [*lines, lines[0] | {"workspace_id": EVIL}, broken])


Ask = Callable[[str], Any]


def _one(*parts: str) -> str:
    return "/".join([HOME, *(quote(part, safe="") for part in parts)])


def pages(ask: Ask) -> dict[str, list[str]]:
    """Every page by its route, with what it can show; `ask` answers a path of the API. A new page needs a line."""
    webhooks = [one["webhook_id"] for one in ask(f"{API}/webhooks")["items"][:1]]
    webhooks += [one["webhook_id"] for one in ask(f"{API}/webhooks?refused=true")["items"][:1]]
    letter = ask(f"{API}/dead-letters?message_id=e-dead")["items"][0]["dead_letter_id"]
    stranger = event_id("everything stranger")
    evil = urlencode({"campaign": EVIL_ID, "template": EVIL, "status": "failed", "range": "all"})
    audience = ask(f"{API}/audience-checks")["items"][0]["id"]
    again = ask(f"{API}/send-again")["items"][0]["id"]
    w = "/w/{w}"
    return {
        "/": ["/"],
        "/login": ["/login?next=%2F"],
        "/reasons": ["/reasons"],
        "/reasons/{code}": ["/reasons/RECIPIENT_NOT_ON_WHATSAPP"],
        f"{w}/messages": [f"{HOME}/messages?range=all", f"{HOME}/messages?{evil}", f"{HOME}/messages?q=nobody"],
        f"{w}/messages/{{message_id}}": [_one("messages", one) for one in ("e-1", "bf-0", "bf-4", "bf-5")],
        f"{w}/campaigns": [f"{HOME}/campaigns", f"{HOME}/campaigns?{urlencode({'q': EVIL + 'x'})}"],
        f"{w}/campaigns/{{campaign:path}}": [_one("campaigns", one) for one in ("black-friday", EVIL_ID)],
        f"{w}/automations": [f"{HOME}/automations"],
        f"{w}/automations/{{automation:path}}": [_one("automations", EVIL)],
        f"{w}/inbox": [f"{HOME}/inbox"],
        f"{w}/inbox/with/{{contact:path}}": [_one("inbox", "with", CONTACT) + "?template=order_update/en_US"],
        f"{w}/inbox/from/{{event_id}}": [_one("inbox", "from", str(stranger))],
        f"{w}/contacts": [f"{HOME}/contacts", f"{HOME}/contacts?q=nobody"],
        f"{w}/contacts/{{contact_id:path}}": [_one("contacts", CONTACT), _one("contacts", EVIL)],
        f"{w}/credits": [f"{HOME}/credits"],
        f"{w}/credits/statement": [f"{HOME}/credits/statement"],
        f"{w}/templates": [f"{HOME}/templates"],
        f"{w}/senders": [f"{HOME}/senders"],
        f"{w}/senders/{{sender_id}}": [_one("senders", SENDER)],
        f"{w}/webhooks": [f"{HOME}/webhooks", f"{HOME}/webhooks?wamid=none"],
        f"{w}/webhooks/{{webhook_id}}": [_one("webhooks", one) for one in webhooks],
        f"{w}/webhook-replay": [f"{HOME}/webhook-replay"],
        f"{w}/dead-letters": [f"{HOME}/dead-letters"],
        f"{w}/dead-letters/{{dead_letter_id}}": [_one("dead-letters", letter)],
        f"{w}/audience": [f"{HOME}/audience"],
        f"{w}/audience/{{audience_id}}": [_one("audience", audience)],
        f"{w}/send-again": [f"{HOME}/send-again?range=all", f"{HOME}/send-again?{evil}", f"{HOME}/send-again?q=nobody"],
        f"{w}/send-again/{{audience_id}}": [_one("send-again", again)],
        f"{w}/diagnostics": [f"{HOME}/diagnostics"],
        f"{w}/diagnostics/test-message": [
            f"{HOME}/diagnostics/test-message?{urlencode({'template': key})}" for key in ("order_update/en_US", "text")
        ],
        f"{w}/diagnostics/test-message/{{message_id}}": [
            _one("diagnostics", "test-message", one) for one in ("e-1", "bf-4", "bf-5", "bf-0")
        ],
        f"{w}/people": [f"{HOME}/people"],
        f"{w}/audit": [f"{HOME}/audit"],
    }


def exports(ask: Ask) -> dict[str, str]:
    """By route as well: what is downloaded."""
    audience = ask(f"{API}/audience-checks")["items"][0]["id"]
    again = ask(f"{API}/send-again")["items"][0]["id"]
    return _EXPORTS | {
        "/w/{w}/audience/{audience_id}/lines.csv": _one("audience", audience, "lines.csv"),
        "/w/{w}/audience/{audience_id}/lines.jsonl": _one("audience", audience, "lines.jsonl"),
        "/w/{w}/send-again/{audience_id}/lines.csv": _one("send-again", again, "lines.csv"),
    }


_EXPORTS: dict[str, str] = {
    "/w/{w}/diagnostics.csv": f"{HOME}/diagnostics.csv",
    "/w/{w}/messages.csv": f"{HOME}/messages.csv?range=all",
    "/w/{w}/messages/{message_id}/bundle": _one("messages", "e-1", "bundle"),
    "/w/{w}/campaigns.csv": f"{HOME}/campaigns.csv",
    "/w/{w}/automations.csv": f"{HOME}/automations.csv",
    "/w/{w}/inbox.csv": f"{HOME}/inbox.csv",
    "/w/{w}/contacts.csv": f"{HOME}/contacts.csv",
    "/w/{w}/ledger.csv": f"{HOME}/ledger.csv",
    "/w/{w}/credits/statement.csv": f"{HOME}/credits/statement.csv",
    "/w/{w}/templates.csv": f"{HOME}/templates.csv",
    "/w/{w}/senders.csv": f"{HOME}/senders.csv",
    "/w/{w}/webhooks.csv": f"{HOME}/webhooks.csv",
    "/w/{w}/dead-letters.csv": f"{HOME}/dead-letters.csv",
}
