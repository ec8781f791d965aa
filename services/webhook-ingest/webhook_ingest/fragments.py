"""What a delivery's body says, element by element: pure and tolerant.

A body may hold several entries, changes and elements (Meta: up to 1,000); one that can't be read never costs its
neighbours. Facts about Meta's fields: its webhook reference, copies of September 2026.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Literal

from pydantic import JsonValue, TypeAdapter, ValidationError
from sendwhy.events import (
    EARLIEST,
    LATEST,
    CustomerUpdated,
    Event,
    Inbound,
    MessageReceived,
    MetaError,
    Reason,
    SenderReported,
    Status,
    TemplateReported,
    event_id_of,
    reason,
)
from sendwhy.reasons import ReasonCode, reason_for_meta

ELEMENTS_MAX = 20_000
FRAGMENT_BYTES_MAX = 1024 * 1024
DEPTH_MAX = 64
TEXT_LENGTH_MAX = 64 * 1024
WAMID_LENGTH_MAX = 512
DETAIL_LENGTH_MAX = 500
ERROR_CODE_MAX = 2**31
# Meta's clock and ours: beyond this a time ahead of ours is a mistake, and must not outrank what comes later.
AHEAD_MAX = timedelta(days=1)
# Seconds reach this in the year 5138, milliseconds did in 1973.
MILLISECONDS_FROM = 10**11

Fragment = dict[str, JsonValue]
ARRAYS = ("statuses", "messages", "calls", "user_preferences", "errors")
SHARED_KEYS = frozenset({"messaging_product", "metadata", "contacts"})
TOLD_STATUSES = {status.value: status for status in Status if status is not Status.ACCEPTED}
MESSAGE_TYPES = frozenset(
    {
        "text", "image", "video", "audio", "document", "sticker", "location", "contacts", "reaction", "button",
        "interactive", "order", "system", "unsupported",
    }
)  # fmt: skip
TEMPLATE_FIELDS = frozenset(
    {
        "message_template_status_update", "message_template_quality_update", "message_template_components_update",
        "template_category_update",
    }
)  # fmt: skip
KNOWN_FIELDS = TEMPLATE_FIELDS | {
    "account_alerts", "account_review_update", "account_update", "automatic_events", "business_capability_update",
    "business_username_update", "calls", "history", "messages", "partner_solutions", "payment_configuration_update",
    "phone_number_name_update", "phone_number_quality_update", "security", "smb_app_state_sync",
    "smb_message_echoes", "user_preferences",
}  # fmt: skip
SHOPIFY_ACTIONS: Mapping[str, Literal["update", "delete"]] = {
    "customers/create": "update",
    "customers/update": "update",
    "customers/delete": "delete",
}
# Mandatory for every app: they name a customer within their own object, or none.
SHOPIFY_PRIVACY_ACTIONS: Mapping[str, Literal["redact", "data_request", "shop_redact"]] = {
    "customers/redact": "redact",
    "customers/data_request": "data_request",
    "shop/redact": "shop_redact",
}

_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
_CALLBACK = re.compile(r"sw1:([A-Za-z0-9_\-]{1,64}):([A-Za-z0-9._:\-]{1,128})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_NUL = re.compile("\x00")
# An escaped backslash, a pair of surrogates, a lone one, or NUL: in this order, so that each stands for itself.
_ESCAPES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u(?:[dD][89a-fA-F][0-9a-fA-F]{2}|0000))"
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One signed POST. `signer` is the app's id (Meta) or the workspace (Shopify), `at` when Kafka stored it,
    `topic` and `event_id` Shopify's; partition and offset are where it stands on webhook.received."""

    source: Literal["meta", "shopify"]
    signer: str
    body: bytes
    at: datetime
    partition: int
    offset: int
    topic: str = ""
    trace: bytes | None = None
    event_id: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an element stood: enough to write a webhook that holds it alone."""

    waba: str
    number: str | None
    field: str
    shared: Fragment
    key: str
    item: JsonValue

    def alone(self) -> bytes:
        value: Fragment = {"messaging_product": "whatsapp", **self.shared, self.key: [self.item]}
        entry: Fragment = {"id": self.waba, "changes": [{"field": self.field, "value": value}]}
        return _JSON.dump_json({"object": "whatsapp_business_account", "entry": [entry]})


@dataclass(frozen=True, slots=True)
class StatusTold:
    """One element of `statuses`. `callback` is (workspace_id, message_id) of our own biz_opaque_callback_data."""

    origin: Origin
    wamid: str
    status: Status
    occurred_at: datetime
    callback: tuple[str, str] | None
    reason: Reason | None
    pricing: Fragment | None


@dataclass(frozen=True, slots=True)
class Report:
    """Anything else: an event that still lacks its workspace; `cause` is a name that a repeat keeps."""

    origin: Origin
    cause: str
    event: Event

    @property
    def is_personal(self) -> bool:
        """Whether it is worth nothing without the workspace that it belongs to."""
        return isinstance(self.event, MessageReceived | CustomerUpdated)


@dataclass(frozen=True, slots=True)
class Unreadable:
    fragment: bytes
    error: str


Element = StatusTold | Report | Unreadable


@dataclass(frozen=True, slots=True)
class Reading:
    """A body's elements, and how often it held something that Sendwhy doesn't know (field, status, type, code)."""

    elements: tuple[Element, ...]
    unknown: Counter[str]


def read(delivery: Delivery) -> Reading:
    """Read a body. Raises ValueError where it is not even JSON of the outer shape."""
    if delivery.source == "shopify":
        return _read_shopify(delivery)
    return _MetaReader(delivery.at).read(delivery.body)


def json_of(body: bytes) -> JsonValue:
    """The body as JSON. Raises ValueError.

    NUL, which PostgreSQL refuses, and lone surrogates, which no UTF-8 can hold, become U+FFFD: one bad character in
    one text must not cost the whole delivery. The raw bytes stay on webhook.received as they came.
    """
    if b"\\u" in body:
        body = _ESCAPES.sub(lambda match: rb"\ufffd" if match.group(1) else match.group(), body)
    try:
        return _JSON.validate_json(body)
    except ValidationError:
        mended = body.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    try:
        return _JSON.validate_json(mended)
    except ValidationError as error:
        raise ValueError(error.errors(include_input=False)[0]["msg"]) from None


def moment_of(value: JsonValue, observed: datetime) -> datetime:
    """Meta's time: seconds as text or number, milliseconds at times. What can't be a time is when we observed it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return observed
    try:
        seconds = float(value) / (1000 if float(value) >= MILLISECONDS_FROM else 1)
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return observed
    return moment if EARLIEST <= moment <= min(LATEST, observed + AHEAD_MAX) else observed


def reason_of(errors: JsonValue) -> tuple[Reason, bool]:
    """The reason for a `failed` by its first error with a code, and whether the code is new to the catalogue."""
    entries = [entry for entry in _list(errors) if isinstance(entry, dict)]
    first = next((entry for entry in entries if _code(entry) is not None), entries[0] if entries else None)
    if first is None:
        return reason(ReasonCode.META_ERROR, "Meta says that the message failed, and gives no cause."), False
    meta = _meta_error(first)
    code = reason_for_meta(meta.code, subcode=meta.subcode)
    told = meta.details or meta.title or "no text"
    others: list[JsonValue] = [_code(entry) for entry in entries[:10] if entry is not first]
    evidence: Fragment = {"other_codes": others} if others else {}
    detail = f"Meta: {told}" + (f" (code {meta.code})" if meta.code is not None else "")
    return reason(code, detail, evidence, meta), meta.code is not None and code is ReasonCode.META_ERROR


def _meta_error(entry: Fragment) -> MetaError:
    data = entry.get("error_data")
    details = data.get("details") if isinstance(data, dict) else data
    subcode = entry.get("error_subcode")
    return MetaError(
        code=_code(entry),
        title=_line(entry.get("title") or entry.get("message"), DETAIL_LENGTH_MAX),
        details=_line(details or entry.get("details"), DETAIL_LENGTH_MAX),
        subcode=subcode if isinstance(subcode, int) and abs(subcode) < ERROR_CODE_MAX else None,
    )


def _code(entry: Fragment) -> int | None:
    code = entry.get("code")
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) <= 10:
        code = int(code)
    is_number = isinstance(code, int) and not isinstance(code, bool)
    return code if is_number and isinstance(code, int) and abs(code) < ERROR_CODE_MAX else None


@dataclass(slots=True)
class _MetaReader:
    """Reads one body; `observed` stands in for times that are missing or wrong."""

    observed: datetime
    unknown: Counter[str] = field(default_factory=Counter)
    left: int = ELEMENTS_MAX

    def read(self, body: bytes) -> Reading:
        whole = json_of(body)
        entries = whole.get("entry") if isinstance(whole, dict) else None
        if not isinstance(entries, list):
            raise ValueError("the body is no object with a list `entry`")
        return Reading(tuple(self._of_entries(entries)), self.unknown)

    def _of_entries(self, entries: list[JsonValue]) -> Iterator[Element]:
        for entry in entries:
            self._spend()
            if not isinstance(entry, dict) or not isinstance(entry.get("changes"), list):
                yield self._unreadable(entry, "an entry without a list `changes`")
                continue
            for change in _list(entry["changes"]):
                yield from self._of_change(entry, change)

    def _of_change(self, entry: Fragment, change: JsonValue) -> Iterator[Element]:
        self._spend()
        value = change.get("value") if isinstance(change, dict) else None
        if not isinstance(change, dict) or not isinstance(value, dict):
            yield self._unreadable(change, "a change without an object `value`")
            return
        place = _Change(entry, _line(change.get("field"), 128) or "unknown", value)
        told = [key for key in ARRAYS if key in value]
        for key in told:
            items = value[key]
            for item in items if isinstance(items, list) else [items]:
                yield self._guarded(self._readers[key], place, key, item)
        rest = {key: part for key, part in value.items() if key not in told and key not in SHARED_KEYS}
        if not told:
            yield self._guarded(_MetaReader._report, place, place.field, value)
        elif rest:
            self.unknown["field"] += 1
            yield self._guarded(_MetaReader._left_over, place, place.field, rest)

    def _guarded(self, reader: "_Reader", place: "_Change", key: str, item: JsonValue) -> Element:
        self._spend()
        try:
            if not isinstance(item, dict):
                raise ValueError("no object")
            if not _is_at_most(item, DEPTH_MAX):
                raise ValueError(f"more than {DEPTH_MAX} levels deep")
            if len(_JSON.dump_json(item)) > FRAGMENT_BYTES_MAX:
                raise ValueError(f"more than {FRAGMENT_BYTES_MAX} bytes")
            return reader(self, place, key, item)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            what = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        except ValueError as error:
            what = str(error)
        return self._unreadable(item, f"{key}: {what}")

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooManyElements(f"the body holds more than {ELEMENTS_MAX} elements")

    def _unreadable(self, fragment: JsonValue, error: str) -> Unreadable:
        return Unreadable(_JSON.dump_json(fragment)[:FRAGMENT_BYTES_MAX], error)

    def _status(self, place: "_Change", key: str, item: Fragment) -> Element:
        status = TOLD_STATUSES.get(str(item.get("status")).lower())
        if status is None or place.field == "calls":
            self.unknown["status"] += 1
            return self._as_report(place, key, item)
        why, is_new = reason_of(item.get("errors")) if status is Status.FAILED else (None, False)
        self.unknown["code"] += is_new
        callback = _CALLBACK.fullmatch(str(item.get("biz_opaque_callback_data")))
        pricing = item.get("pricing")
        return StatusTold(
            origin=place.origin(key, item),
            wamid=_wamid(item),
            status=status,
            occurred_at=moment_of(item.get("timestamp"), self.observed),
            callback=(callback[1], callback[2]) if callback else None,
            reason=why,
            pricing=pricing if isinstance(pricing, dict) else None,
        )

    def _message(self, place: "_Change", key: str, item: Fragment) -> Element:
        kind = _line(item.get("type"), 64)
        self.unknown["type"] += kind not in MESSAGE_TYPES
        body = item.get(kind or "")
        inbound, text, payload = _said(kind, body if isinstance(body, dict) else {})
        return self._received(place, key, item, (inbound, text, payload), kind="received")

    def _call(self, place: "_Change", key: str, item: Fragment) -> Element:
        if item.get("direction") == "BUSINESS_INITIATED":
            return self._as_report(place, key, item)
        event = _line(item.get("event"), 64) or ""
        return self._received(place, key, item, (Inbound.CALL, None, None), kind=f"call/{event}")

    def _received(
        self,
        place: "_Change",
        key: str,
        item: Fragment,
        said: tuple[Inbound, str | None, str | None],
        *,
        kind: str,
    ) -> Report:
        wamid = _wamid(item)
        contact = place.contact(item.get("from"), item.get("from_user_id"))
        profile, context = _object(contact.get("profile")), _object(item.get("context"))
        inbound, text, payload = said
        cause = f"{place.number}/{wamid}/{kind}"
        event = MessageReceived(
            event_id=event_id_of(cause, ""),
            occurred_at=moment_of(item.get("timestamp"), self.observed),
            sender_id=place.number or "",
            wamid=wamid,
            phone=_phone(item.get("from") or contact.get("wa_id")),
            user_id=_line(item.get("from_user_id") or contact.get("user_id"), 128),
            profile_name=_line(profile.get("name"), 256),
            kind=inbound,
            text=text,
            payload=payload,
            context_wamid=_line(context.get("id"), WAMID_LENGTH_MAX),
            observed_at=self.observed,
            raw=item,
        )
        return Report(place.origin(key, item, contact), cause, event)

    def _preference(self, place: "_Change", key: str, item: Fragment) -> Element:
        wish = str(item.get("value")).lower()
        if wish not in ("stop", "resume") or item.get("category", "marketing_messages") != "marketing_messages":
            self.unknown["type"] += 1
            return self._as_report(place, key, item)
        contact = place.contact(item.get("wa_id"), item.get("user_id"))
        phone = _phone(item.get("wa_id") or contact.get("wa_id"))
        user_id = _line(item.get("user_id") or contact.get("user_id"), 128)
        if phone is None and user_id is None:
            raise ValueError("neither wa_id nor user_id")
        at = moment_of(item.get("timestamp"), self.observed)
        cause = f"{place.number}/{phone or user_id}/{wish}/{at.timestamp()}"
        event = CustomerUpdated(
            event_id=event_id_of(cause, ""),
            occurred_at=at,
            source="meta",
            action="stop" if wish == "stop" else "resume",
            sender_id=place.number,
            phone=phone,
            user_id=user_id,
            name=_line(_object(contact.get("profile")).get("name"), 256),
            detail=_line(item.get("detail"), DETAIL_LENGTH_MAX),
            observed_at=self.observed,
            raw=item,
        )
        return Report(place.origin(key, item, contact), cause, event)

    def _as_report(self, place: "_Change", key: str, item: Fragment) -> Report:
        """An element that tells of no message of ours: a fragment about the number, under its array's name."""
        return self._fragment(place, key, item, key)

    def _left_over(self, place: "_Change", key: str, item: Fragment) -> Report:
        return self._fragment(place, key, item, place.field)

    def _report(self, place: "_Change", key: str, item: Fragment) -> Report:
        # A change of `messages` without any array that we know is as new to us as an unknown field.
        is_known = place.field in KNOWN_FIELDS and place.field not in ("messages", "user_preferences", "calls")
        self.unknown["field"] += not is_known
        return self._fragment(place, key, item, place.field)

    def _fragment(self, place: "_Change", key: str, item: Fragment, name: str) -> Report:
        # Meta gives no id of a delivery: a repeat is known by its bytes and the entry's time.
        digest = hashlib.sha256(_JSON.dump_json(item)).hexdigest()
        cause = f"{place.waba}/{place.number}/{name}/{place.time or self.observed.timestamp()}/{digest}"
        event_id, at = event_id_of(cause, "reported"), moment_of(place.time, self.observed)
        event: Event
        if name in TEMPLATE_FIELDS:
            event = TemplateReported(
                event_id=event_id,
                occurred_at=at,
                waba_id=place.waba,
                name=_line(item.get("message_template_name"), 512),
                language=_line(item.get("message_template_language"), 16),
                field=name,
                raw=item,
            )
        else:
            event = SenderReported(
                event_id=event_id,
                occurred_at=at,
                waba_id=place.waba,
                sender_id=place.number,
                display_phone_number=_line(item.get("display_phone_number"), 32) or place.display,
                field=name,
                raw=item,
            )
        return Report(place.origin(key, item), cause, event)

    _readers: ClassVar[Mapping[str, "_Reader"]] = {
        "statuses": _status,
        "messages": _message,
        "calls": _call,
        "user_preferences": _preference,
        "errors": _as_report,
    }


class TooManyElements(ValueError):
    pass


class _Change:
    """One change of one entry: what its elements share."""

    def __init__(self, entry: Fragment, name: str, value: Fragment) -> None:
        self.field = name
        self.waba = _identifier(entry.get("id")) or ""
        self.time = entry.get("time")
        metadata = _object(value.get("metadata"))
        number = _identifier(metadata.get("phone_number_id")) or ""
        self.number = number if re.fullmatch("[0-9]{5,20}", number) else None
        self.display = _line(metadata.get("display_phone_number"), 32)
        self._contacts = [contact for contact in _list(value.get("contacts")) if isinstance(contact, dict)]
        self._by_id: dict[str, Fragment] = {}
        for contact in self._contacts:
            for known in (contact.get("wa_id"), contact.get("user_id")):
                if isinstance(known, str):
                    self._by_id.setdefault(known, contact)

    def contact(self, phone: JsonValue, user_id: JsonValue) -> Fragment:
        """The person in `contacts` with that phone or business-scoped id; the only one there if neither tells."""
        asked = [known for known in (phone, user_id) if isinstance(known, str) and known]
        if not asked and len(self._contacts) == 1:
            return self._contacts[0]
        return next((self._by_id[known] for known in asked if known in self._by_id), {})

    def origin(self, key: str, item: Fragment, contact: Fragment | None = None) -> Origin:
        shared: Fragment = {"metadata": {"display_phone_number": self.display, "phone_number_id": self.number}}
        if contact:
            name = _line(_object(contact.get("profile")).get("name"), 256)
            ids: Fragment = {key: _line(contact.get(key), 128) for key in ("wa_id", "user_id")}
            shared["contacts"] = [{"profile": {"name": name}, **ids}]
        return Origin(self.waba, self.number, self.field, shared, key, item)


_Reader = Callable[[_MetaReader, _Change, str, Fragment], Element]


def _said(kind: str | None, body: Fragment) -> tuple[Inbound, str | None, str | None]:
    """Kind, text and payload of an inbound message, by its type and the object of that name."""
    if kind == "text":
        return Inbound.TEXT, _text(body.get("body")), None
    if kind == "button":
        return Inbound.BUTTON, _text(body.get("text")), _text(body.get("payload"))
    if kind == "interactive":
        reply = _object(body.get(_line(body.get("type"), 64) or ""))
        return Inbound.INTERACTIVE, _text(reply.get("title") or reply.get("body")), _text(reply.get("id"))
    return Inbound.OTHER, None, None


def _read_shopify(delivery: Delivery) -> Reading:
    action = SHOPIFY_ACTIONS.get(delivery.topic)
    whole = json_of(delivery.body)
    if not isinstance(whole, dict):
        raise ValueError("the body is no object")
    if delivery.topic in SHOPIFY_PRIVACY_ACTIONS:
        return _read_privacy_request(delivery, whole)
    if action is None:
        return Reading((), Counter({"field": 1}))
    customer = whole
    number = _identifier(customer.get("id"))
    if number is None:
        return Reading((Unreadable(delivery.body, f"{delivery.topic}: id: missing"),), Counter())
    cause = f"{delivery.signer}/{delivery.topic}/{hashlib.sha256(delivery.body).hexdigest()}"
    address = _object(customer.get("default_address"))
    event = CustomerUpdated(
        event_id=event_id_of(cause, delivery.signer),
        occurred_at=_shopify_time(customer.get("updated_at"), delivery.at),
        source="shopify",
        action=action,
        workspace_id=delivery.signer,
        contact_id=f"shopify:{number}",
        phone=_line(customer.get("phone") or address.get("phone"), 64),
        phone_country_code=_line(address.get("country_code"), 2),
        address_country=_line(address.get("country_code"), 2),
        language=_line(customer.get("locale"), 16),
        name=_line(" ".join(filter(None, (_line(customer.get(key), 128) for key in ("first_name", "last_name")))), 256),
        detail=delivery.topic,
    )
    origin = Origin("", None, delivery.topic, {}, "customer", None)
    return Reading((Report(origin, cause, event),), Counter())


def _read_privacy_request(delivery: Delivery, whole: Fragment) -> Reading:
    """A mandatory webhook. The customer's phone is told only where it helps to find whom to erase."""
    action = SHOPIFY_PRIVACY_ACTIONS[delivery.topic]
    customer = _object(whole.get("customer"))
    number = _identifier(customer.get("id"))
    if number is None and action != "shop_redact":
        return Reading((Unreadable(delivery.body, f"{delivery.topic}: customer.id: missing"),), Counter())
    cause = f"{delivery.signer}/{delivery.topic}/{hashlib.sha256(delivery.body).hexdigest()}"
    event = CustomerUpdated(
        event_id=event_id_of(cause, delivery.signer),
        occurred_at=delivery.at,
        source="shopify",
        action=action,
        workspace_id=delivery.signer,
        contact_id=f"shopify:{number}" if number else None,
        phone=_line(customer.get("phone"), 64) if action == "redact" else None,
        detail=delivery.topic,
    )
    return Reading((Report(Origin("", None, delivery.topic, {}, "customer", None), cause, event),), Counter())


def _shopify_time(value: JsonValue, observed: datetime) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else observed
    except ValueError:
        return observed
    is_fine = moment.tzinfo is not None and EARLIEST <= moment <= observed + AHEAD_MAX
    return moment.astimezone(UTC) if is_fine else observed


def _object(value: JsonValue) -> Fragment:
    return value if isinstance(value, dict) else {}


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _line(value: JsonValue, length: int) -> str | None:
    """A one-line text without control characters, cut to `length`; None for anything else."""
    return _CONTROL.sub(" ", value).strip()[:length] or None if isinstance(value, str) else None


def _text(value: JsonValue) -> str | None:
    return _NUL.sub("\ufffd", value)[:TEXT_LENGTH_MAX] if isinstance(value, str) else None


def _identifier(value: JsonValue) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 10**20 else None
    return _line(value, 64)


def _phone(value: JsonValue) -> str | None:
    digits = value.removeprefix("+") if isinstance(value, str) else ""
    return f"+{digits}" if re.fullmatch("[0-9]{5,20}", digits) else None


def _wamid(item: Fragment) -> str:
    wamid = item.get("id")
    if not isinstance(wamid, str) or not wamid or len(wamid) > WAMID_LENGTH_MAX or _CONTROL.search(wamid):
        raise ValueError("id: missing or no message id")
    return wamid


def _is_at_most(value: JsonValue, depth: int) -> bool:
    if depth == 0:
        return False
    if isinstance(value, dict):
        return all(_is_at_most(part, depth - 1) for part in value.values())
    return all(_is_at_most(part, depth - 1) for part in value) if isinstance(value, list) else True
