"""What Meta's webhooks say, element by element: pure and tolerant.

A body may hold several entries, changes and elements (Meta: up to 1,000); one that can't be read never costs its
neighbours. Facts about Meta's fields: its webhook reference, copies of September 2026.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from pydantic import JsonValue, ValidationError
from sendwhy.events import (
    EARLIEST,
    CustomerUpdated,
    Event,
    Inbound,
    MessageReceived,
    Reason,
    SenderReported,
    Status,
    TemplateReported,
    event_id_of,
)
from sendwhy.lenient import identifier, json_of, line
from sendwhy.moments import told_time
from sendwhy.reasons import ReasonCode

from webhook_ingest.customers import read_shopify
from webhook_ingest.elements import (
    USER_ID,
    Delivery,
    Element,
    Origin,
    Reading,
    Report,
    StatusTold,
    Unreadable,
    callback_of,
    report_of,
    understood,
)
from webhook_ingest.usual import receipt_of
from webhook_ingest.values import (
    DETAIL_LENGTH_MAX,
    JSON,
    WAMID_LENGTH_MAX,
    Fragment,
    error_entries,
    has_new_error_keys,
    is_at_most,
    list_of,
    moment_of,
    object_of,
    phone_of,
    reason_of,
    text_of,
    untold_errors,
    wamid_of,
)

ELEMENTS_MAX = 20_000
FRAGMENT_BYTES_MAX = 1024 * 1024
# What can't be read is kept whole: no part of a body of 3 MB is longer than this once it is written as JSON again.
UNREADABLE_BYTES_MAX = 4 * 1024 * 1024
DEPTH_MAX = 64
SMALL_BODY_BYTES_MAX = FRAGMENT_BYTES_MAX // 8

ARRAYS = ("statuses", "messages", "calls", "user_preferences", "errors", "message_echoes", "history", "state_sync")
BODY_KEYS, ENTRY_KEYS = frozenset({"object", "entry"}), frozenset({"id", "time", "changes"})
CHANGE_KEYS = frozenset({"field", "value"})
SHARED_KEYS = frozenset({"messaging_product", "metadata", "contacts"})
VALUE_KEYS = SHARED_KEYS.union(ARRAYS)
TOLD_STATUSES = {status.value: status for status in Status if status is not Status.ACCEPTED}
OTHER_STATUS_TYPES = ("call", "payment")
STATUS_KEYS = frozenset(
    {
        "id", "status", "timestamp", "biz_opaque_callback_data", "errors", "pricing", "conversation", "type",
        "recipient_id", "recipient_user_id", "recipient_type", "recipient_participant_id",
        "recipient_participant_user_id", "recipient_identity_key_hash", "recipient_parent_user_id",
        "parent_recipient_user_id", "recipient_participant_parent_user_id",
    }
)  # fmt: skip
PLAIN_KEYS = STATUS_KEYS - {"errors"}
MESSAGE_TYPES = frozenset(
    {
        "text", "image", "video", "audio", "document", "sticker", "location", "contacts", "reaction", "button",
        "interactive", "order", "system", "unsupported", "edit", "revoke",
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
    "smb_message_echoes", "user_preferences", "flows", "group_lifecycle_update", "group_participants_update",
    "group_settings_update", "group_status_update", "messaging_handovers", "standby",
}  # fmt: skip

_NUMBER = re.compile("[0-9]{1,20}")
_USER_ID = re.compile(USER_ID)
NOTHING: Counter[Any] = Counter()


def read(delivery: Delivery) -> Reading:
    """Read a body. Raises ValueError where it is not even JSON of the outer shape."""
    if delivery.source == "shopify":
        return read_shopify(delivery)
    receipt = receipt_of(delivery.body, delivery.at, _rewritten)
    return read_any(delivery) if receipt is None else Reading((receipt,), NOTHING, NOTHING)


def read_any(delivery: Delivery) -> Reading:
    """Read a body of Meta's element by element. Raises ValueError."""
    return _MetaReader(delivery.at).read(delivery.body)


def _rewritten(body: bytes) -> bytes:
    """Of a body with one element, which has been read: that element's `Origin.alone`."""
    return next(
        element.origin.alone()
        for element in _MetaReader(EARLIEST).read(body).elements
        if isinstance(element, StatusTold)
    )


@dataclass(slots=True)
class _MetaReader:
    """Reads one body; `observed` stands in for times that are missing or wrong."""

    observed: datetime
    unknown: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, ReasonCode]] = field(default_factory=Counter)
    left: int = ELEMENTS_MAX
    is_small: bool = False

    def read(self, body: bytes) -> Reading:
        whole = json_of(body)
        # No element of it can be too deep or too large then, however long its numbers become when they are written out.
        self.is_small = len(body) <= SMALL_BODY_BYTES_MAX and body.count(b"{") + body.count(b"[") <= DEPTH_MAX
        entries = whole.get("entry") if isinstance(whole, dict) else None
        if not isinstance(whole, dict) or not isinstance(entries, list):
            raise ValueError("the body is no object with a list `entry`")
        elements: list[Element] = []
        try:
            for element in self._of_entries(entries):
                elements.append(element)
        except TooManyElements as error:
            elements.append(Unreadable(body, str(error)))
        if not whole.keys() <= BODY_KEYS:
            elements.append(self._besides({}, whole, "body", BODY_KEYS))
        return Reading(tuple(elements), self.unknown, self.errors)

    def _of_entries(self, entries: list[JsonValue]) -> Iterator[Element]:
        for entry in entries:
            self._spend()
            if not isinstance(entry, dict) or not isinstance(entry.get("changes"), list):
                yield self._unreadable(entry, "an entry without a list `changes`")
                continue
            for change in list_of(entry["changes"]):
                yield from self._of_change(entry, change)
            if not entry.keys() <= ENTRY_KEYS:
                yield self._besides(entry, entry, "entry", ENTRY_KEYS)

    def _besides(self, entry: Fragment, level: Fragment, name: str, known: frozenset[str]) -> Element:
        """What a level holds beside the keys that we know: Meta may put anything there tomorrow."""
        rest: Fragment = {key: part for key, part in level.items() if key not in known}
        self.unknown["field"] += 1
        return self._guarded(_MetaReader._left_over, _Change(entry, name, {}), name, rest)

    def _of_change(self, entry: Fragment, change: JsonValue) -> Iterator[Element]:
        self._spend()
        value = change.get("value") if isinstance(change, dict) else None
        if not isinstance(change, dict) or not isinstance(value, dict):
            self.unknown["field"] += isinstance(change, dict) and line(change.get("field"), 128) not in KNOWN_FIELDS
            yield self._unreadable(change, "a change without an object `value`")
            return
        place = _Change(entry, line(change.get("field"), 128) or "unknown", value)
        # Null is as good as absent.
        told = {key: _several(value[key]) for key in ARRAYS if value.get(key) is not None}
        if failed := _failed_by_its_value(told):
            told |= {"statuses": [failed], "errors": []}
        for key, several in told.items():
            if len(several) > self.left:
                # It alone: its neighbours are read.
                yield self._unreadable(value[key], f"{key}: more than the {ELEMENTS_MAX} elements that a body may hold")
                continue
            for item in several:
                yield self._guarded(self._readers[key], place, key, item)
        if not told:
            yield self._guarded(_MetaReader._report, place, place.field, value)
        elif not value.keys() <= VALUE_KEYS:
            rest: Fragment = {key: part for key, part in value.items() if key not in VALUE_KEYS}
            self.unknown["field"] += 1
            yield self._guarded(_MetaReader._left_over, place, place.field, rest)
        if not change.keys() <= CHANGE_KEYS:
            yield self._besides(entry, change, "change", CHANGE_KEYS)

    def _guarded(self, reader: "_Reader", place: "_Change", key: str, item: JsonValue) -> Element:
        self._spend()
        try:
            if not isinstance(item, dict):
                raise ValueError("no object")
            if not self.is_small:
                _bounded(item)
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
        return Unreadable(JSON.dump_json(fragment)[:UNREADABLE_BYTES_MAX], error)

    def _status(self, place: "_Change", key: str, item: Fragment) -> Element:
        status = TOLD_STATUSES.get((line(item.get("status"), 64) or "").lower())
        # A call or a payment that failed is no message that failed, although it bears the message's id.
        if status is None or place.field == "calls" or item.get("type") in OTHER_STATUS_TYPES:
            self.unknown["status"] += 1
            return self._as_report(place, key, item)
        why = self._why(item) if status is Status.FAILED else None
        pricing, conversation = _whole_object(item, "pricing"), _whole_object(item, "conversation")
        extra = self._extra(item, failed=status is Status.FAILED)
        # Meta's words beside what is read of them don't tell two statuses apart: a repeat may have a trace of its own.
        reading = understood(why, (pricing, conversation, extra))
        return StatusTold(
            origin=place.origin(key, item),
            wamid=wamid_of(item),
            status=status,
            occurred_at=moment_of(item.get("timestamp"), self.observed),
            callback=callback_of(str(item.get("biz_opaque_callback_data"))),
            reading=reading,
            reason=why,
            pricing=pricing,
            conversation=conversation,
            extra=(extra if why is None else self._with_errors(extra, item.get("errors"))) or None,
            link=_link(item) if status is Status.DELIVERED else None,
        )

    def _why(self, item: Fragment) -> Reason:
        # A lone one under the name that Meta's answers to calls have for it is no less a cause.
        why, is_new = reason_of(item.get("errors") or item.get("error"))
        self.unknown["code"] += is_new
        return why

    def _extra(self, item: Fragment, *, failed: bool) -> Fragment:
        """What a status holds that Sendwhy doesn't know, and what stands where something else belongs."""
        if item.keys() <= PLAIN_KEYS and _is_fine(item.get("pricing")) and _is_fine(item.get("conversation")):
            return {}
        extra = {name: part for name, part in item.items() if name not in STATUS_KEYS}
        self.unknown["field"] += bool(extra)
        return extra | _odd_parts(item, failed=failed)

    def _with_errors(self, extra: Fragment, errors: JsonValue) -> Fragment:
        """With the errors of a `failed` as they came, where its reason tells less."""
        if not error_entries(errors):
            return extra
        self.unknown["field"] += has_new_error_keys(errors)
        untold = untold_errors(errors)
        return extra if untold is None else {**extra, "errors": untold}

    def _message(self, place: "_Change", key: str, item: Fragment) -> Element:
        kind = line(item.get("type"), 64)
        self.unknown["type"] += kind not in MESSAGE_TYPES
        body = item.get(kind or "")
        inbound, text, payload = _said(kind, body if isinstance(body, dict) else {})
        return self._received(place, key, item, (inbound, text, payload), kind="received")

    def _call(self, place: "_Change", key: str, item: Fragment) -> Element:
        if item.get("direction") == "BUSINESS_INITIATED":
            return self._as_report(place, key, item)
        event = line(item.get("event"), 64) or ""
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
        wamid = wamid_of(item)
        contact = place.contact(item.get("from"), item.get("from_user_id"))
        profile, context = object_of(contact.get("profile")), object_of(item.get("context"))
        inbound, text, payload = said
        cause = f"{place.number}/{wamid}/{kind}"
        event = MessageReceived(
            event_id=event_id_of(cause, ""),
            occurred_at=moment_of(item.get("timestamp"), self.observed),
            sender_id=place.number or "",
            wamid=wamid,
            phone=phone_of(item.get("from") or contact.get("wa_id")),
            user_id=line(item.get("from_user_id") or contact.get("user_id"), 128),
            profile_name=line(profile.get("name"), 256),
            kind=inbound,
            text=text,
            payload=payload,
            context_wamid=line(context.get("id"), WAMID_LENGTH_MAX),
            free_entry_point=bool(object_of(item.get("referral"))) or None,
            reason=self._error_beside(item, "element"),
            observed_at=self.observed,
            raw=item,
        )
        return report_of(place.origin(key, item, contact), cause, event, told_time(item.get("timestamp")))

    def _preference(self, place: "_Change", key: str, item: Fragment) -> Element:
        wish = (line(item.get("value"), 64) or "").lower()
        # A wish that names no category is about marketing, the only one there is.
        category = line(item.get("category"), 64) or "marketing_messages"
        if wish not in ("stop", "resume") or category.lower() != "marketing_messages":
            self.unknown["type"] += 1
            return self._as_report(place, key, item)
        contact = place.contact(item.get("wa_id"), item.get("user_id"))
        phone = phone_of(item.get("wa_id") or contact.get("wa_id"))
        user_id = line(item.get("user_id") or contact.get("user_id"), 128)
        if phone is None and user_id is None:
            raise ValueError("neither wa_id nor user_id")
        told, at = told_time(item.get("timestamp")), moment_of(item.get("timestamp"), self.observed)
        # By the time as told, which a repeat keeps: one that can't be is replaced by when we observed it.
        cause = f"{place.number}/{phone or user_id}/{wish}/{(told or at).timestamp()}"
        event = CustomerUpdated(
            event_id=event_id_of(cause, ""),
            occurred_at=at,
            source="meta",
            action="stop" if wish == "stop" else "resume",
            sender_id=place.number,
            phone=phone,
            user_id=user_id,
            name=line(object_of(contact.get("profile")).get("name"), 256),
            detail=line(item.get("detail"), DETAIL_LENGTH_MAX),
            observed_at=self.observed,
            raw=item,
        )
        return report_of(place.origin(key, item, contact), cause, event, told)

    def _as_report(self, place: "_Change", key: str, item: Fragment) -> Report:
        """An element that tells of no message of ours: a fragment about the number, under its array's name."""
        return self._fragment(place, (key, item), key, self._error_beside(item, "element"))

    def _error(self, place: "_Change", key: str, item: Fragment) -> Report:
        """What Meta could not do, and for no message that it names: about the number (130429), or a media file."""
        return self._fragment(place, (key, item), key, self._error_beside({"errors": [item]}, "value"))

    def _left_over(self, place: "_Change", _key: str, item: Fragment) -> Report:
        return self._fragment(place, ("", item), place.field)

    def _part(self, place: "_Change", key: str, item: Fragment) -> Report:
        """An element of what other software did on the number, or of what was there before."""
        return self._fragment(place, (key, item), place.field, self._error_beside(item, "element"))

    def _report(self, place: "_Change", _key: str, item: Fragment) -> Report:
        # A change of `messages` without any array that we know is as new to us as an unknown field.
        is_known = place.field in KNOWN_FIELDS and place.field not in ("messages", "user_preferences", "calls")
        self.unknown["field"] += not is_known
        return self._fragment(place, ("", item), place.field)

    def _error_beside(self, item: Fragment, where: str) -> Reason | None:
        """The reason by an element's own `errors`, which belong to no status of ours."""
        if not error_entries(item.get("errors")):
            return None
        why, is_new = reason_of(item["errors"])
        self.unknown["code"] += is_new
        self.errors[where, why.code] += 1
        return why

    def _fragment(self, place: "_Change", part: tuple[str, Fragment], name: str, why: Reason | None = None) -> Report:
        """`part` is an array's name and its element, or "" and what stood in no array."""
        key, item = part
        # Meta gives no id of a delivery: a repeat is known by its bytes and the entry's time.
        digest = hashlib.sha256(JSON.dump_json(item)).hexdigest()
        cause = f"{place.waba}/{place.number}/{name}/{place.time or self.observed.timestamp()}/{digest}"
        at = moment_of(place.time, self.observed)
        event: Event
        if name in TEMPLATE_FIELDS or "message_template_id" in item or "message_template_name" in item:
            event = TemplateReported(
                event_id=event_id_of(cause, "reported"),
                occurred_at=at,
                waba_id=place.waba,
                name=line(item.get("message_template_name"), 512),
                language=line(item.get("message_template_language"), 16),
                field=_template_field(name, item),
                raw=item,
            )
        else:
            event = SenderReported(
                event_id=event_id_of(cause, "reported"),
                occurred_at=at,
                waba_id=place.waba,
                sender_id=place.number,
                display_phone_number=line(item.get("display_phone_number"), 32) or place.display,
                field=name,
                reason=why,
                raw=item,
            )
        return report_of(place.origin(key, item), cause, event, told_time(place.time))

    _readers: ClassVar[Mapping[str, "_Reader"]] = {
        "statuses": _status,
        "messages": _message,
        "calls": _call,
        "user_preferences": _preference,
        "errors": _error,
        "message_echoes": _part,
        "history": _part,
        "state_sync": _part,
    }


class TooManyElements(ValueError):
    pass


class _Change:
    """One change of one entry: what its elements share."""

    def __init__(self, entry: Fragment, name: str, value: Fragment) -> None:
        self.field = name
        self.waba = identifier(entry.get("id")) or ""
        self.time = entry.get("time")
        metadata = object_of(value.get("metadata"))
        number = identifier(metadata.get("phone_number_id")) or ""
        self.number = number if _NUMBER.fullmatch(number) else None
        self.display = line(metadata.get("display_phone_number"), 32)
        self._contacts: list[Fragment] = []
        self._by_id: dict[str, Fragment] = {}
        if "contacts" in value:
            self._know(list_of(value["contacts"]))

    def _know(self, contacts: list[JsonValue]) -> None:
        self._contacts = [contact for contact in contacts if isinstance(contact, dict)]
        for contact in self._contacts:
            for given in (contact.get("wa_id"), contact.get("user_id")):
                if known := identifier(given):
                    self._by_id.setdefault(known, contact)

    def contact(self, phone: JsonValue, user_id: JsonValue) -> Fragment:
        """The person in `contacts` with that phone or business-scoped id; the only one there if neither tells."""
        asked = [known for given in (phone, user_id) if (known := identifier(given))]
        if not asked and len(self._contacts) == 1:
            return self._contacts[0]
        return next((self._by_id[known] for known in asked if known in self._by_id), {})

    def origin(self, key: str, item: Fragment, contact: Fragment | None = None) -> Origin:
        shared: Fragment = {"metadata": {"display_phone_number": self.display, "phone_number_id": self.number}}
        if contact:
            called = line(object_of(contact.get("profile")).get("name"), 256)
            ids: Fragment = {name: identifier(contact.get(name)) for name in ("wa_id", "user_id")}
            shared["contacts"] = [{"profile": {"name": called}, **ids}]
        return Origin(self.waba, self.number, self.field, shared, key, item, identifier(self.time))


_Reader = Callable[[_MetaReader, _Change, str, Fragment], Element]


def _bounded(item: Fragment) -> None:
    """Raises ValueError for what is too deep or too large."""
    if not is_at_most(item, DEPTH_MAX):
        raise ValueError(f"more than {DEPTH_MAX} levels deep")
    if len(JSON.dump_json(item)) > FRAGMENT_BYTES_MAX:
        raise ValueError(f"more than {FRAGMENT_BYTES_MAX} bytes")


def _said(kind: str | None, body: Fragment) -> tuple[Inbound, str | None, str | None]:
    """Kind, text and payload of an inbound message, by its type and the object of that name."""
    if kind == "text":
        return Inbound.TEXT, text_of(body.get("body")), None
    if kind == "button":
        return Inbound.BUTTON, text_of(body.get("text")), text_of(body.get("payload"))
    if kind == "interactive":
        reply = object_of(body.get(line(body.get("type"), 64) or ""))
        return Inbound.INTERACTIVE, text_of(reply.get("title") or reply.get("body")), text_of(reply.get("id"))
    if kind == "edit":
        # What the person says now, in a message of its own: a STOP written over a typing error is a STOP.
        edited = object_of(body.get("message"))
        new = line(edited.get("type"), 64)
        return _said(new, object_of(edited.get(new or "")))
    return Inbound.OTHER, None, None


def _several(items: JsonValue) -> list[JsonValue]:
    """The elements of an array; one may stand there without a list."""
    return items if isinstance(items, list) else [items]


def _failed_by_its_value(told: Mapping[str, list[JsonValue]]) -> Fragment | None:
    """A value's only status with the value's only error as its own, where it failed and has none: Meta's pages differ
    in where that stands. Of several nobody could tell which belongs to which. Written into the status, it is still
    there when that is read alone."""
    statuses, errors = told.get("statuses", ()), told.get("errors", ())
    if len(statuses) != 1 or len(errors) != 1 or not isinstance(errors[0], dict):
        return None
    lone = object_of(statuses[0])
    is_failed = (line(lone.get("status"), 64) or "").lower() == Status.FAILED
    return {**lone, "errors": [errors[0]]} if is_failed and not lone.get("errors") else None


def _whole_object(item: Fragment, name: str) -> Fragment | None:
    part = item.get(name)
    return part if isinstance(part, dict) else None


def _link(item: Fragment) -> tuple[str, str] | None:
    """Phone and user id of whom a message reached. A group's message names the group and one of its people."""
    phone, user_id = phone_of(item.get("recipient_id")), item.get("recipient_user_id")
    is_to_one = item.get("recipient_type") in (None, "individual")
    if phone is None or not is_to_one or not isinstance(user_id, str) or not _USER_ID.fullmatch(user_id):
        return None
    return phone, user_id


def _odd_parts(item: Fragment, *, failed: bool) -> Fragment:
    """What a status has where something else belongs: kept, since Meta tells it once."""
    odd: Fragment = {name: item[name] for name in ("pricing", "conversation") if not _is_fine(item.get(name))}
    errors = item.get("errors")
    if errors not in (None, [], {}) and not (failed and error_entries(errors)):
        odd["errors"] = errors
    return odd


def _is_fine(part: JsonValue) -> bool:
    return part is None or isinstance(part, dict)


def _template_field(name: str, item: Fragment) -> str:
    """Meta's own page shows a change of quality under the field of the status: the keys tell."""
    if "new_quality_score" in item:
        return "message_template_quality_update"
    return "template_category_update" if "new_category" in item or "correct_category" in item else name
