"""What the API answers about messages and webhooks (contract.md, "One message"); pages show the same values."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import asyncpg
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError
from sendwhy.access import Role
from sendwhy.events import Moment, Reason, Status
from sendwhy.reasons import ReasonCode, Service

from message_log.decide import SCHEDULED, MessageState, Verdict
from message_log.store import state_of

ShownStatus = Literal["sending", "waiting", "sent", "delivered", "read", "failed"]

_JSON: TypeAdapter[Any] = TypeAdapter(JsonValue)
_HEADERS = TypeAdapter(dict[str, str])
# Seven digits or more, however they are written, that are not a date: "from" and "to" name times too.
_PHONE = re.compile(r"(?!\d{4}-\d\d-\d\d)(?:\D*\d){7}")
# Where phone numbers stand in our events and in Meta's and Shopify's fragments.
_PHONE_FIELDS = frozenset(
    {"phone", "phone_given", "wa_id", "from", "to", "recipient_id", "input", "display_phone_number", "user_id"}
)


class WaitingView(BaseModel):
    """`cause` is a reason's code; `until` null: until somebody repairs it. `scheduled`: nothing holds it, the request
    asked for the moment `until`; its cause is what it would end with if it never went. `expires_at`: it fails then if
    it still waits; null where its call went out, or while its request isn't known."""

    cause: str
    since: Moment
    until: Moment | None
    scheduled: bool = False
    expires_at: Moment | None = None


class ToView(BaseModel):
    contact_id: str | None
    phone: str | None


class MessageView(BaseModel):
    """A message as it stands. `service` said the reason, `reason_url` explains it. `phone` is masked for viewers."""

    message_id: str
    workspace_id: str
    status: ShownStatus
    service: str | None
    reason: Reason | None
    waiting: WaitingView | None
    to: ToView
    origin: dict[str, JsonValue] | None
    purpose: str | None
    template: str | None
    language: str | None
    sender_id: str | None
    provider_message_id: str | None
    requested_at: Moment
    updated_at: Moment
    times: dict[Status, Moment]
    metadata: dict[str, JsonValue]
    url: str
    reason_url: str | None = None


class EventView(BaseModel):
    """One event of a timeline: the event's own fields as they came (phones masked for viewers), and these beside
    them. `note`: an error about it. Without fields of its own it was erased with its person, or is no JSON."""

    model_config = ConfigDict(extra="allow")

    at: Moment
    service: str
    kind: str
    event_id: UUID
    note: str | None


class SentAgain(BaseModel):
    """A repeat of a message; `by` whom and `at` when, where it was asked for here."""

    message_id: str
    by: str | None = None
    at: Moment | None = None


class MessageDetail(MessageView):
    """`resend_of`: the message that this one repeats."""

    events: list[EventView]
    webhooks: list["WebhookLink"]
    resend_of: str | None = None
    sent_again_as: list[SentAgain] = []


class WebhookLink(BaseModel):
    webhook_id: UUID
    received_at: Moment
    kind: str
    signature: str = "right"


class MadeView(BaseModel):
    """The event that came of a part. `kind`: a status, or message.received."""

    event_id: UUID
    kind: str
    at: Moment


class PartView(BaseModel):
    """`made` is null where no event of it is known here: always so for parts that are no status and no message."""

    kind: str
    sender_id: str | None
    waba_id: str | None
    provider_message_id: str | None
    message_id: str | None
    made: MadeView | None = None


class WebhookView(BaseModel):
    """A delivery. `refused`: why it was not taken, null where it was. `answer`: the HTTP status that the sender got;
    `signature`: right, wrong or missing."""

    webhook_id: UUID
    received_at: Moment
    source: str
    app: str | None
    refused: str | None
    size: int
    answer: int
    signature: str


class WebhookItem(WebhookView):
    kinds: list[str]


class WebhookDetail(WebhookView):
    """`headers`: what the door noted beside the delivery; the sender's own are not kept. `body` only for those who see
    all workspaces: one delivery may hold several tenants' people."""

    headers: dict[str, str]
    parts: list[PartView]
    body: str | None


def mask(phone: str | None) -> str | None:
    """+525512345678 as "+5255••••5678": enough to recognise, too little to call."""
    if phone is None:
        return None
    digits = "".join(each for each in phone if each in "0123456789")
    shown = digits[:4] if len(digits) >= 11 else digits[:2]
    plus = "+" if phone.strip().startswith("+") else ""
    return f"{plus}{shown}••••{digits[-4:]}" if len(digits) >= 8 else "••••"


def masked(value: Any) -> Any:
    """A JSON value with the phone numbers in it masked."""
    if isinstance(value, list):
        return [masked(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: mask(each) if name in _PHONE_FIELDS and isinstance(each, str) and _PHONE.match(each) else masked(each)
        for name, each in value.items()
    }


class Viewer:
    """Makes views for one reader: `role` decides on phone numbers, `base` is where the pages are reached."""

    def __init__(self, role: Role, base: str) -> None:
        self.sees_phones = role >= Role.OPERATOR
        self._base = base.rstrip("/")

    def phone(self, phone: str | None) -> str | None:
        return phone if self.sees_phones else mask(phone)

    def _reason(self, why: Reason) -> Reason:
        return why if self.sees_phones else why.model_copy(update={"evidence": masked(why.evidence)})

    def page(self, workspace: str, *parts: str) -> str:
        """The address of a page of the workspace; parts are quoted already."""
        return "/".join([self._base, "w", workspace, *parts])

    def url(self, workspace: str, message_id: str) -> str:
        return f"{self._base}/w/{workspace}/messages/{message_id}"

    def fields(self, row: asyncpg.Record) -> dict[str, Any]:
        state = state_of(row["state"])
        verdict = state.verdict
        return {
            "message_id": row["message_id"],
            "workspace_id": row["workspace_id"],
            "status": row["status"],
            "service": verdict.service if verdict else None,
            "reason": self._reason(verdict.reason) if verdict else None,
            "waiting": _waiting(row, state),
            "to": ToView(contact_id=state.known("contact_id"), phone=self.phone(state.known("phone"))),
            "origin": state.known("origin"),
            "purpose": state.known("purpose"),
            "template": state.known("template"),
            "language": state.known("language"),
            "sender_id": state.known("sender_id"),
            "provider_message_id": state.known("wamid"),
            "requested_at": _requested_at(state),
            "updated_at": state.updated_at,
            "times": _times(state, verdict),
            "metadata": state.known("metadata") or {},
            "url": self.url(row["workspace_id"], row["message_id"]),
            "reason_url": f"{self._base}/reasons/{verdict.reason.code}" if verdict else None,
        }

    def message(self, row: asyncpg.Record) -> MessageView:
        return MessageView(**self.fields(row))

    def detail(
        self, row: asyncpg.Record, events: Sequence[asyncpg.Record], webhooks: Sequence[asyncpg.Record]
    ) -> MessageDetail:
        links = [
            WebhookLink(webhook_id=w["webhook_id"], received_at=w["received_at"], kind=w["kind"]) for w in webhooks
        ]
        ordered = sorted(events, key=timeline_order)
        return MessageDetail(**self.fields(row), events=[self.event(each) for each in ordered], webhooks=links)

    def event(self, row: asyncpg.Record) -> EventView:
        found = read_json(row["body"])
        told = found if isinstance(found, dict) else {}
        own = {
            "at": row["occurred_at"],
            "service": row["service"],
            "kind": row["kind"],
            "event_id": row["event_id"],
            "note": row["note"],
        }
        return EventView(**((told if self.sees_phones else masked(told)) | own))


_SECOND = timedelta(seconds=1)
_STATUS_STEPS = {status.value: step for step, status in enumerate(Status)}


def timeline_order(event: asyncpg.Record | Mapping[str, Any]) -> tuple[datetime, int]:
    """Meta tells whole seconds: what it dates 10:00:02 happened before 10:00:03, after our own 10:00:02.8 or not."""
    at: datetime = event["occurred_at"]
    is_metas = event["service"] == Service.WEBHOOK_INGEST and at.microsecond == 0
    return (at + _SECOND if is_metas else at, _STATUS_STEPS.get(event["kind"], -1))


def read_json(body: bytes | None) -> Any:
    """The value, or None where there is none or it can't be read."""
    try:
        return None if body is None else _JSON.validate_json(body)
    except ValidationError:
        return None


def read_moment(told: Any) -> datetime | None:
    """A time as our events write it, or None."""
    try:
        return datetime.fromisoformat(told) if isinstance(told, str) else None
    except ValueError:
        return None


def webhook_fields(row: asyncpg.Record) -> dict[str, Any]:
    told = {name: row[name] for name in ("webhook_id", "received_at", "source", "app", "refused", "size")}
    refused = row["refused"]
    return told | {"answer": 401 if refused else 200, "signature": _signature(refused)}


def _signature(refused: str | None) -> str:
    """What the door found: it takes nothing unsigned, and refuses for no other cause than the signature."""
    return "right" if refused is None else "missing" if "missing" in refused else "wrong"


def webhook_detail(row: asyncpg.Record, parts: Sequence[asyncpg.Record], *, with_body: bool) -> WebhookDetail:
    body = row["body"].decode(errors="replace") if with_body and row["body"] is not None else None
    shown = [
        PartView(
            kind=part["kind"],
            sender_id=part["sender_id"],
            waba_id=part["waba_id"],
            provider_message_id=part["wamid"],
            message_id=part["message_id"],
            made=MadeView(event_id=part["made_id"], kind=part["made_kind"], at=part["made_at"])
            if part["made_id"]
            else None,
        )
        for part in parts
    ]
    headers = _HEADERS.validate_json(row["headers"] or "{}")
    return WebhookDetail(**webhook_fields(row), headers=headers, parts=shown, body=body)


def _waiting(row: asyncpg.Record, state: MessageState) -> WaitingView | None:
    if row["status"] != "waiting":
        return None
    cause, scheduled = cause_of(row["wait_cause"])
    expires_at = None if cause == ReasonCode.SEND_OUTCOME_UNKNOWN else state.expires_at
    return WaitingView(
        cause=cause, since=row["wait_since"], until=row["wait_until"], scheduled=scheduled, expires_at=expires_at
    )


def cause_of(stored: str) -> tuple[str, bool]:
    """A wait's cause as a reason's code, and whether it is the request's own time."""
    return (ReasonCode.EXPIRED_BEFORE_SENDING.value, True) if stored == SCHEDULED else (stored, False)


def _requested_at(state: MessageState) -> datetime:
    told = state.known("requested_at")
    return state.first_at if told is None else datetime.fromisoformat(told)


def _times(state: MessageState, verdict: Verdict | None) -> dict[Status, datetime]:
    return state.times | ({Status.FAILED: verdict.at} if verdict else {})
