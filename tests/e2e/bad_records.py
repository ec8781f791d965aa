"""Bad records: of send.requested, the door for upstream systems, and of all other topics."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from bad_inputs import ASIDE, GOES, REFUSED, BadEvent, BadRecord, Json, dumped, nested

Make = Callable[[Json], bytes | None]
TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def put(path: str, value: Any) -> Make:
    """The request with one field, named by its path, set to something else."""

    def make(request: Json) -> bytes:
        *parents, last = path.split(".")
        changed = json.loads(json.dumps(request))
        place = changed
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
        return dumped(changed)

    return make


def without(name: str) -> Make:
    return lambda request: dumped({key: value for key, value in request.items() if key != name})


def spliced(path: str, text: str) -> Make:
    """As `put`, with the value as JSON text that no honest writer makes."""
    return lambda request: (put(path, "@@")(request) or b"").replace(b'"@@"', text.encode())


def wrapped(change: Callable[[bytes], bytes]) -> Make:
    return lambda request: change(dumped(request))


def always(value: bytes | None) -> Make:
    return lambda _: value


def at(**ahead: float) -> str:
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat()


NUMBERLESS = f"{GOES}; echoed as null"
# Bytes that are no request at all: nothing can be told to anybody but the operator.
NO_REQUESTS = [
    BadRecord("no value at all (a tombstone)", ASIDE, always(None)),
    BadRecord("an empty value", ASIDE, always(b"")),
    BadRecord("blanks only", ASIDE, always(b" \r\n\t")),
    BadRecord("text that is no JSON", ASIDE, always(b"send it, please")),
    BadRecord("half of a JSON text", ASIDE, wrapped(lambda raw: raw[: len(raw) // 2])),
    BadRecord("two JSON texts in one record", ASIDE, wrapped(lambda raw: raw + raw)),
    BadRecord("a comma too many", ASIDE, wrapped(lambda raw: raw[:-1] + b",}")),
    BadRecord("a comment in JSON", ASIDE, wrapped(lambda raw: b"/* v2 */" + raw)),
    BadRecord("single quotes", ASIDE, wrapped(lambda raw: raw.replace(b'"', b"'"))),
    BadRecord("JSON's null", ASIDE, always(b"null")),
    BadRecord("a number", ASIDE, always(b"7")),
    BadRecord("a text", ASIDE, always(b'"send it"')),
    BadRecord("a list of requests", ASIDE, wrapped(lambda raw: b"[" + raw + b"]")),
    BadRecord("the request as JSON within a JSON text", ASIDE, wrapped(lambda raw: dumped(raw.decode()))),
    BadRecord("an empty object", ASIDE, always(b"{}")),
    BadRecord("UTF-16", ASIDE, wrapped(lambda raw: raw.decode().encode("utf-16"))),
    BadRecord("a byte order mark before UTF-8", ASIDE, wrapped(lambda raw: b"\xef\xbb\xbf" + raw)),
    BadRecord("Latin-1 in a name", ASIDE, wrapped(lambda raw: raw.replace(b"black-friday", b"In\xe9s"))),
    BadRecord("a packed body (gzip)", ASIDE, wrapped(gzip.compress)),
    BadRecord("a schema registry's five bytes before it", ASIDE, wrapped(lambda raw: b"\0\0\0\0\x07" + raw)),
    BadRecord("random bytes", ASIDE, always(bytes(range(256)))),
    BadRecord("lists 3,000 deep", ASIDE, spliced("metadata.deep", "[" * 3000 + "]" * 3000)),
    BadRecord("objects 3,000 deep", ASIDE, spliced("metadata.deep", '{"a":' * 3000 + "1" + "}" * 3000)),
    BadRecord("half of a surrogate pair in a text", ASIDE, spliced("metadata.note", r'"\ud83d"')),
    BadRecord("a number of 5,000 digits", ASIDE, spliced("metadata.n", "9" * 5000)),
]
# The two ids can't be read, so nobody can be answered.
NO_IDS = [
    BadRecord("no message_id", ASIDE, without("message_id")),
    BadRecord("a message_id that is null", ASIDE, put("message_id", None)),
    BadRecord("a message_id that is a number", ASIDE, put("message_id", 4711)),
    BadRecord("an empty message_id", ASIDE, put("message_id", "")),
    BadRecord("a message_id of 129 characters", ASIDE, put("message_id", "m" * 129)),
    BadRecord("a path as message_id", ASIDE, put("message_id", "../../etc/passwd")),
    BadRecord("a line end after the message_id", ASIDE, put("message_id", "m-1\n")),
    BadRecord("NUL in the message_id", ASIDE, put("message_id", "m\0")),
    BadRecord("an emoji as message_id", ASIDE, put("message_id", "🙂")),
    BadRecord("markup as message_id", ASIDE, put("message_id", "<script>alert(1)</script>")),
    BadRecord("SQL as message_id", ASIDE, put("message_id", "'; drop table decision; --")),
    BadRecord("no workspace_id", ASIDE, without("workspace_id")),
    BadRecord("a list as workspace_id", ASIDE, put("workspace_id", ["acme"])),
    BadRecord("a workspace_id with a slash", ASIDE, put("workspace_id", "acme/../other")),
    BadRecord("a workspace_id of 65 characters", ASIDE, put("workspace_id", "w" * 65)),
    BadRecord("`*`, which stands for all workspaces, as workspace_id", ASIDE, put("workspace_id", "*")),
]
WRONG_FIELDS = [
    BadRecord("a message_id that is given twice (the last one counts)", GOES, wrapped(
        lambda raw: b'{"message_id": "<other>", ' + raw[1:])),
    BadRecord("nobody in `to`", REFUSED, put("to", {})),
    BadRecord("`to` is null", REFUSED, put("to", None)),
    BadRecord("`to` is a phone", REFUSED, put("to", "+525512345678")),
    BadRecord("`to` is a list of people", REFUSED, put("to", [{"contact_id": "c1"}])),
    BadRecord("no `to`", REFUSED, without("to")),
    BadRecord("an empty contact_id", REFUSED, put("to.contact_id", "")),
    BadRecord("a contact_id of 129 characters", REFUSED, put("to.contact_id", "c" * 129)),
    BadRecord("NUL in the contact_id", REFUSED, put("to.contact_id", "c1\0")),
    BadRecord("a number as contact_id", REFUSED, put("to.contact_id", 7712)),
    BadRecord("a contact whom nobody knows", "CUSTOMER_IS_NOT_OPTED_IN", put("to.contact_id", "nobody-at-all")),
    BadRecord("SQL as contact_id", "CUSTOMER_IS_NOT_OPTED_IN", put("to.contact_id", "' or 1=1; --")),
    BadRecord("a phone that is a number", REFUSED, put("to.phone", 525512345678)),
    BadRecord("a phone of 65 characters", REFUSED, put("to.phone", "+" + "5" * 64)),
    BadRecord("a line end in a phone", REFUSED, put("to.phone", "+5255\n12345678")),
    BadRecord("no origin", REFUSED, without("origin")),
    BadRecord("an origin of no kind", REFUSED, put("origin.kind", "carrier pigeon")),
    BadRecord("an origin that is a text", REFUSED, put("origin", "campaign")),
    BadRecord("NUL in the campaign's name", REFUSED, put("origin.name", "Black\0Friday")),
    BadRecord("a campaign's name of 257 characters", REFUSED, put("origin.name", "x" * 257)),
    BadRecord("an unknown purpose", REFUSED, put("purpose", "spam")),
    BadRecord("`true` as purpose", REFUSED, put("purpose", True)),
    BadRecord("a campaign that calls itself transactional", "read as marketing: goes out", put("purpose", "transactional")),
    BadRecord("no content", REFUSED, without("content")),
    BadRecord("content of an unknown type", REFUSED, put("content", {"type": "hologram", "hologram": {}})),
    BadRecord("content whose type is a number", REFUSED, put("content.type", 7)),
    BadRecord("content without the object of its type", REFUSED, put("content", {"type": "text"})),
    BadRecord("a list where the text's object stands", REFUSED, put("content", {"type": "text", "text": ["hi"]})),
    BadRecord("an object where the list of contacts stands", REFUSED, put("content", {"type": "contacts", "contacts": {}})),
    BadRecord("a template without a language", REFUSED, put("content.template", {"name": "autumn_sale"})),
    BadRecord("a template whose language is a number", REFUSED, put("content.template.language", {"code": 7})),
    BadRecord("a template's name of 513 characters", REFUSED, put("content.template.name", "t" * 513)),
    BadRecord("65 components of a template", REFUSED, put("content.template.components", [{"type": "body"}] * 65)),
    BadRecord("components that are texts", REFUSED, put("content.template.components", ["body"])),
    BadRecord("components of no shape", "TEMPLATE_PARAMETERS_MISMATCH",
              put("content.template.components", [{"type": 7, "parameters": "x"}])),
    BadRecord("content of 300 KB", REFUSED, put("content", {"type": "text", "text": {"body": "x" * 300_000}})),
    BadRecord("content of 3 MB", REFUSED, put("content", {"type": "text", "text": {"body": "x" * 3_000_000}})),
    BadRecord("a sender_id of letters", REFUSED, put("sender_id", "our shop")),
    BadRecord("a sender_id that is a number", REFUSED, put("sender_id", 415566778899001)),
    BadRecord("a path as sender_id", REFUSED, put("sender_id", "123456/messages?access_token=x")),
    BadRecord("a number that belongs to nobody", "SENDER_NOT_AVAILABLE", put("sender_id", "99999999999")),
    BadRecord("requested_at without a zone", REFUSED, put("requested_at", "2026-11-22T10:00:00")),
    BadRecord("requested_at as a number", REFUSED, put("requested_at", 1_763_805_600)),
    BadRecord("requested_at in the year 1", REFUSED, put("requested_at", "0001-01-01T00:00:00Z")),
    BadRecord("requested_at in the year 9999", REFUSED, put("requested_at", "9999-12-31T23:59:59Z")),
    BadRecord("30 February", REFUSED, put("requested_at", "2026-02-30T10:00:00Z")),
    BadRecord("a zone of 99 hours", REFUSED, put("requested_at", "2026-11-22T10:00:00+99:00")),
    BadRecord("`tomorrow` as send_at", REFUSED, put("send_at", "tomorrow")),
    BadRecord("send_at in 31 days", REFUSED, put("send_at", at(days=31))),
    BadRecord("expires_at in 31 days", REFUSED, put("expires_at", at(days=31))),
    BadRecord("expires_at before it was sent", REFUSED, put("expires_at", "2026-01-01T00:00:00Z")),
    BadRecord("expires_at before send_at", REFUSED,
              lambda request: dumped(request | {"send_at": at(days=2), "expires_at": at(days=-1)})),
    BadRecord("resend_of of the wrong form", REFUSED, put("resend_of", "the last one")),
    BadRecord("metadata of 2 KB and a byte", REFUSED, put("metadata", {"x": "x" * 2048})),
    BadRecord("metadata that are a list", REFUSED, put("metadata", ["x"])),
    BadRecord("metadata that are null", GOES, put("metadata", None)),
    BadRecord("a number beyond all floats in metadata", NUMBERLESS, spliced("metadata.n", "1e400")),
    BadRecord("NaN in metadata", NUMBERLESS, spliced("metadata.n", "NaN")),
    BadRecord("NUL in metadata", GOES, put("metadata", {"note\0": "a\0b"})),
]  # fmt: skip
# Odd, and no reason to refuse anybody.
HARMLESS = [
    BadRecord("fields that nobody knows", GOES, put("loyalty_tier", {"gold": [True]})),
    BadRecord("a version of tomorrow", GOES, put("specversion", "9.0")),
    BadRecord("fields named as a language's own", GOES, put("__proto__", {"constructor": {"prototype": 1}})),
    BadRecord("a formula, markup and a text that turns round", GOES,
              put("origin.name", "=cmd|' /C calc'!A1 <script>alert(1)</script> \u202egnp.exe")),
    BadRecord("no key", GOES, wrapped(bytes), key=None),
    BadRecord("another person's key", GOES, wrapped(bytes), key=b"somebody-else"),
    BadRecord("a key of 100 KB that is no text", GOES, wrapped(bytes), key=b"\xff\0" * 50_000),
    BadRecord("a header of CloudEvents of tomorrow", GOES, wrapped(bytes),
              headers=(("ce_specversion", b"9.0"), ("ce_type", b"com.example.other.v9"))),
    BadRecord("one header many times", GOES, wrapped(bytes), headers=(("ce_id", b"1"),) * 200),
    BadRecord("a traceparent that is none", GOES, wrapped(bytes), headers=(("traceparent", b"\x1e\xff\x1f\0\n" * 1000),)),
    BadRecord("two traceparents", GOES, wrapped(bytes), headers=(("traceparent", TRACE),) * 2),
    BadRecord("an empty header", GOES, wrapped(bytes), headers=(("", b""), ("content-type", b"avro/binary"))),
    BadRecord("a header of 200 KB", GOES, wrapped(bytes), headers=(("x", b"x" * 200_000),)),
    BadRecord("headers of a dead letter", GOES, wrapped(bytes),
              headers=(("service", b"billing"), ("topic", b"dead.letters"), ("error", b"<b>"), ("partition", b"-1"))),
    BadRecord("a record's time of 1970", GOES, wrapped(bytes), timestamp_ms=0),
    BadRecord("a record's time of 2100", GOES, wrapped(bytes), timestamp_ms=4_102_444_800_000),
]  # fmt: skip
REQUESTS = [*NO_REQUESTS, *NO_IDS, *WRONG_FIELDS, *HARMLESS]

EVENT_TOLD = "dead letter of every service that decides on the topic"
EVENTS = [
    BadEvent("text that is no JSON", EVENT_TOLD, lambda mark: b"no json " + mark),
    BadEvent("an empty value", EVENT_TOLD, lambda _: b""),
    BadEvent("an object without a single known field", EVENT_TOLD, lambda mark: dumped({"mark": mark.decode()})),
    BadEvent("a list", EVENT_TOLD, lambda mark: dumped([mark.decode()])),
    BadEvent("null", EVENT_TOLD, lambda _: b"null"),
    BadEvent("every field of the wrong type", EVENT_TOLD, lambda mark: dumped(
        {"mark": mark.decode(), "event_id": "x", "occurred_at": 7, "message_id": 7, "workspace_id": None,
         "request": [], "reason": "why", "status": {}, "to": None, "sender_id": {}, "contact_id": [], "version": "1"})),
    BadEvent("a time in the year 9999 and ids of NULs", EVENT_TOLD, lambda mark: dumped(
        {"mark": mark.decode(), "event_id": "\0" * 36, "occurred_at": "9999-12-31T23:59:59Z",
         "message_id": "\0", "workspace_id": "\0", "sender_id": "\0", "contact_id": "\0", "waba_id": "\0"})),
    BadEvent("lists 3,000 deep", EVENT_TOLD, lambda mark: nested(3000, mark.decode()).encode()),
    BadEvent("bytes that are no UTF-8", EVENT_TOLD, lambda mark: b"\xff\xfe" + mark),
    BadEvent("half of a surrogate pair", EVENT_TOLD, lambda mark: b'{"note": "\\ud800", "mark": "' + mark + b'"}'),
    BadEvent("3 MB", EVENT_TOLD, lambda mark: dumped({"mark": mark.decode(), "x": "x" * 3_000_000}), is_large=True),
    BadEvent("headers that are none of ours", EVENT_TOLD, lambda mark: b"headers " + mark,
             headers=(("ce_id", b"\xff"), ("traceparent", b"\0"), ("received_at", b"yesterday"), ("source", b"\xff"))),
]  # fmt: skip
TOMBSTONES = [
    BadEvent(f"a tombstone whose key is {name}", "nothing is deleted; or a dead letter", lambda _: None, key=key)
    for name, key in (
        ("a word", b"rubbish"),
        ("empty", b""),
        ("no UTF-8", b"\xff\xff"),
        ("a slash", b"/"),
        ("five parts", b"a/b/c/d/e"),
        ("two NULs", b"\0/\0"),
        ("10 KB long", b"x" * 10_000),
    )
]

# Each field of a real event of every topic is in turn one of these.
MUTANTS: dict[str, Any] = {
    "a field that is null": None,
    "a number where none belongs": 7,
    "`true`": True,
    "NUL in any text": "\0",
    "half of a surrogate pair in any text": "\ud800",
    "a list": [],
    "an empty object": {},
    "a number of 401 digits": 10**400,
    "a time of the year 9999": "9999-12-31T23:59:59Z",
    "70,000 characters": "x" * 70_000,
    "lists in lists": [[[[]]]],
}
