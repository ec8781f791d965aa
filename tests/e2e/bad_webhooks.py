"""Bad webhooks: what is signed and can't be read, what is signed wrongly, and what isn't HTTP as Meta speaks it.

NUMBER and WABA stand for the number and the account of the workspace under test.
"""

import gzip
import json
from collections.abc import Callable
from typing import Any

from bad_inputs import BadBytes, BadPost, dumped, nested

APPLIED = "200; what can be read of it is applied"
UNREAD = "200, kept as it came; dead letter"
UNSIGNED = "401; nothing is read of it"
MANY = 25_000


def body(*values: Any, **change: Any) -> bytes:
    changes = [{"field": "messages", "value": value} for value in values]
    entry = {"id": "WABA", "changes": changes} | change
    return dumped({"object": "whatsapp_business_account", "entry": [entry]})


def value(**arrays: Any) -> dict[str, Any]:
    return {"messaging_product": "whatsapp", "metadata": {"phone_number_id": "NUMBER"}, **arrays}


def inbound(mark: str, **change: Any) -> dict[str, Any]:
    """A person's text message."""
    message = {"id": f"wamid.{mark}", "from": "525512349999", "timestamp": "1763805600", "type": "text"}
    return message | {"text": {"body": mark}} | change


def status(mark: str, **change: Any) -> dict[str, Any]:
    told = {"id": f"wamid.{mark}", "status": "sent", "timestamp": "1763805600", "recipient_id": "525512349999"}
    return told | change


def said(**change: Any) -> Callable[[str], bytes]:
    return lambda mark: body(value(messages=[inbound(mark, **change)]))


def told(**change: Any) -> Callable[[str], bytes]:
    return lambda mark: body(value(statuses=[status(mark, **change)]))


def beside(item: Any) -> Callable[[str], bytes]:
    """A status that can't be read, by its mark, between two that can."""
    given = json.dumps(item)
    return lambda mark: body(
        value(statuses=[status(mark + "-a"), json.loads(given.replace("MARK", mark)), status(mark + "-b")])
    )


def raw(text: str) -> Callable[[str], bytes]:
    return lambda mark: text.replace("MARK", mark).encode()


# No JSON of the outer shape: the whole delivery is put aside.
BODIES = [
    BadPost("text that is no JSON", UNREAD, raw("MARK"), is_aside=True),
    BadPost("an empty body", UNREAD, raw("")),
    BadPost("half of a JSON text", UNREAD, raw('{"mark": "MARK", "entry": [{'), is_aside=True),
    BadPost("null", UNREAD, raw("null")),
    BadPost("a list", UNREAD, raw('["MARK"]'), is_aside=True),
    BadPost("an object without entries", UNREAD, raw('{"object": "MARK"}'), is_aside=True),
    BadPost("entries that are an object", UNREAD, raw('{"object": "MARK", "entry": {}}'), is_aside=True),
    BadPost("entries that are texts", UNREAD, raw('{"object": "x", "entry": ["MARK"]}'), is_aside=True),
    BadPost("lists 100,000 deep", UNREAD, lambda mark: nested(100_000, mark).encode(), is_aside=True),
    BadPost("UTF-16", UNREAD, lambda mark: f'{{"mark": "{mark}"}}'.encode("utf-16")),
    BadPost("random bytes", UNREAD, lambda mark: bytes(range(256)) + mark.encode(), is_aside=True),
    BadPost("a number of 5,000 digits", APPLIED,
            lambda mark: said()(mark).replace(b'"field"', b'"size": ' + b"9" * 5000 + b', "field"')),
    BadPost(f"{MANY:,} elements in one body", UNREAD,
            lambda mark: dumped({"object": mark, "entry": [{"id": "1", "changes": [{}] * MANY}]}), is_aside=True),
    BadPost("3 MB of blanks and a body", APPLIED, lambda mark: b" " * 3_000_000 + said()(mark)),
    BadPost("a text message of 2 MB", UNREAD, lambda mark: said(text={"body": mark + "x" * 2_000_000})(mark), is_aside=True),
    BadPost("of another product", APPLIED, raw('{"object": "page", "entry": [{"id": "1", "changes": [{"field": '
            '"feed", "value": {"mark": "MARK"}}]}]}')),
    BadPost("of an account that nobody here has", "200; kept for the operator (unclaimed)",
            lambda mark: body(value(statuses=[status(mark)]), id="1").replace(b"NUMBER", b"1000000001")),
]  # fmt: skip
# Of one element that can't be read only that one is put aside.
ELEMENTS = [
    BadPost("a status that is a text", UNREAD, beside("MARK"), is_aside=True),
    BadPost("a status without an id", UNREAD, beside({"status": "sent", "note": "MARK"}), is_aside=True),
    BadPost("a status with a number as id", UNREAD, beside({"id": 7, "status": "sent", "note": "MARK"}), is_aside=True),
    BadPost("a wamid of 600 characters", UNREAD, beside({"id": "w" * 600, "status": "sent", "n": "MARK"}), is_aside=True),
    BadPost("NUL in a wamid", APPLIED, beside({"id": "wamid.\0", "status": "sent", "note": "MARK"})),
    BadPost("a status of tomorrow", APPLIED, told(status="teleported")),
    BadPost("`accepted`, which Meta never says", APPLIED, told(status="accepted")),
    BadPost("a time that is a word", APPLIED, told(timestamp="soon")),
    BadPost("a time in the year 33658", APPLIED, told(timestamp="1000000000000")),
    BadPost("a time before 1970", APPLIED, told(timestamp="-5")),
    BadPost("a time of 400 digits", APPLIED, told(timestamp="9" * 400)),
    BadPost("errors that are a text", APPLIED, told(status="failed", errors="broken")),
    BadPost("an error code of 31 digits", APPLIED, told(status="failed", errors=[{"code": 10**30}])),
    BadPost("`true` as error code", APPLIED, told(status="failed", errors=[{"code": True}])),
    BadPost("another workspace's callback data", APPLIED, told(biz_opaque_callback_data="sw1:demo:early-3")),
    BadPost("callback data that are none", APPLIED, told(biz_opaque_callback_data={"sw1": ["\0"]})),
    BadPost("a price that is a text", APPLIED, told(pricing="free", conversation=7)),
    BadPost("a status 60 deep", UNREAD, told(note=json.loads("[" * 70 + "]" * 70)), is_aside=True),
    BadPost("NUL in what a person says", APPLIED, said(text={"body": "a\0b"})),
    BadPost("half of a surrogate pair in what a person says", APPLIED, said(text={"body": "a\ud800b"})),
    BadPost("markup with hx-get in what a person says", APPLIED,
            said(text={"body": '<img src=x onerror=alert(1)><div hx-get="/logout" hx-trigger="load">'})),
    BadPost("a formula in what a person says", APPLIED, said(text={"body": "=HYPERLINK(\"http://x\")"})),
    BadPost("a text that is a list", APPLIED, said(text=["STOP"])),
    BadPost("a message of a kind of tomorrow", APPLIED, said(type="hologram", hologram={})),
    BadPost("a message whose kind is a number", APPLIED, said(type=7)),
    BadPost("a message from nobody", UNREAD, lambda mark: said(**{"from": None})(mark)),
    BadPost("a message from a word", APPLIED, lambda mark: said(**{"from": "the moon"})(mark)),
    BadPost("a STOP from a number of 400 digits", APPLIED,
            lambda mark: said(**{"from": "5" * 400}, text={"body": "STOP"})(mark)),
    BadPost("a STOP from the year 2286", APPLIED, said(timestamp="9999999999", text={"body": "STOP"})),
    BadPost("a template's event without a name", APPLIED, lambda mark: dumped({"object": "w", "entry": [{"id": "WABA",
            "changes": [{"field": "message_template_status_update", "value": {"event": "PAUSED", "note": mark}}]}]})),
    BadPost("a quality of 10 KB", APPLIED, lambda mark: dumped({"object": "w", "entry": [{"id": "WABA", "changes": [
            {"field": "phone_number_quality_update", "value": {"event": mark + "x" * 10_000, "current_limit": []}}]}]})),
    BadPost("a field of tomorrow", APPLIED, lambda mark: dumped({"object": "w", "entry": [{"id": "WABA", "changes": [
            {"field": "telepathy", "value": {"mark": mark}}]}]})),
]  # fmt: skip
SIGNATURES = [
    BadPost("no signature", UNSIGNED, said(), 401, lambda right: None),
    BadPost("an empty signature", UNSIGNED, said(), 401, lambda right: ""),
    BadPost("`sha256=` and nothing", UNSIGNED, said(), 401, lambda right: "sha256="),
    BadPost("64 zeros", UNSIGNED, said(), 401, lambda right: "sha256=" + "0" * 64),
    BadPost("its last digit is missing", UNSIGNED, said(), 401, lambda right: right[:-1]),
    BadPost("a digit too many", UNSIGNED, said(), 401, lambda right: right + "0"),
    BadPost("the last bit flipped", UNSIGNED, said(), 401, lambda right: right[:-1] + f"{int(right[-1], 16) ^ 1:x}"),
    BadPost("capitals", UNSIGNED, said(), 401, lambda right: right.upper()),
    BadPost("without `sha256=`", UNSIGNED, said(), 401, lambda right: right.removeprefix("sha256=")),
    BadPost("SHA-1", UNSIGNED, said(), 401, lambda right: "sha1=" + "0" * 40),
    BadPost("two signatures in one header", UNSIGNED, said(), 401, lambda right: f"{right}, {right}"),
    BadPost("letters that are no ASCII", UNSIGNED, said(), 401, lambda right: "sha256=" + "é" * 32),
    BadPost("a signature of 8 KB", UNSIGNED, said(), 401, lambda right: "sha256=" + "a" * 8192),
]
FRAMES = [
    BadPost("one byte over 3 MB", "413 before it is read", lambda mark: b"x" * (3 * 1024 * 1024 + 1), 413),
    BadPost("a packed body that unfolds to 50 MB", "415; nothing is unpacked",
            lambda _: gzip.compress(b"[" * 50_000_000), 415, headers={"content-encoding": "gzip"}),
    BadPost("an unknown encoding", "415", said(), 415, headers={"content-encoding": "br, identity"}),
    BadPost("a content type of forms", APPLIED, said(), 200, headers={"content-type": "application/x-www-form-urlencoded"}),
    BadPost("a Host that isn't ours", APPLIED, said(), 200, headers={"host": "evil.example:1@localhost"}),
    BadPost("an order to forward elsewhere", APPLIED, said(), 200,
            headers={"x-forwarded-host": "evil.example", "x-forwarded-for": "127.0.0.1", "x-http-method-override": "DELETE"}),
]  # fmt: skip
META = [*BODIES, *ELEMENTS, *SIGNATURES, *FRAMES]

_HEAD = b"POST {path} HTTP/1.1\r\nHost: a\r\nX-Hub-Signature-256: {signature}\r\n"
_WHOLE = b"Content-Length: {length}\r\n\r\n{body}"
WIRE = [
    BadBytes("PUT", "405", b"PUT {path} HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 405"),
    BadBytes("DELETE", "405", b"DELETE {path} HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 405"),
    BadBytes("TRACE", "405", b"TRACE {path} HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 405"),
    BadBytes("a method that is none", "400", b"BREW {path} HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400"),
    BadBytes("a challenge without the token", "403", b"GET {path}?hub.mode=subscribe&hub.challenge=1 HTTP/1.1\r\n"
             b"Host: a\r\n\r\n", b"HTTP/1.1 403"),
    BadBytes("a challenge of 2 KB", "403", b"GET {path}?hub.challenge=" + b"1" * 2048 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
             b"HTTP/1.1 403"),
    BadBytes("a token that is no UTF-8", "403", b"GET {path}?hub.mode=subscribe&hub.verify_token=%ff%00 HTTP/1.1\r\n"
             b"Host: a\r\n\r\n", b"HTTP/1.1 403"),
    BadBytes("two lengths", "400", _HEAD + b"Content-Length: 1\r\n" + _WHOLE, b"HTTP/1.1 400"),
    BadBytes("a length and chunks (request smuggling)", "400",
             _HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /livez HTTP/1.1\r\n\r\n",
             b"HTTP/1.1 400"),
    BadBytes("a packed transfer", "400", _HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"HTTP/1.1 400"),
    BadBytes("a negative length", "400", _HEAD + b"Content-Length: -1\r\n\r\n", b"HTTP/1.1 400"),
    BadBytes("a length of 30 digits", "400", _HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", b"HTTP/1.1 400"),
    BadBytes("a length of 3 MB and a byte", "413", _HEAD + b"Content-Length: 3145729\r\n\r\n", b"HTTP/1.1 413"),
    BadBytes("a chunk that isn't as long as it says", "400",
             _HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{body}\r\n0\r\n\r\n", b"HTTP/1.1 400"),
    BadBytes("two signatures, one of them right", "401",
             _HEAD + b"X-Hub-Signature-256: sha256=00\r\n" + _WHOLE, b"HTTP/1.1 401"),
    BadBytes("a signature for another body", "401", _HEAD + b"Content-Length: 2\r\n\r\n{}", b"HTTP/1.1 401"),
    BadBytes("100 KB of headers", "closed", _HEAD + b"X: " + b"x" * 100_000 + b"\r\n" + _WHOLE, b""),
    BadBytes("a header folded over two lines", "400", _HEAD + b"X: a\r\n b\0c\r\n" + _WHOLE, b"HTTP/1.1 400"),
    BadBytes("no HTTP at all", "400", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello, TLS\r\n\r\n", b"HTTP/1.1 400"),
    BadBytes("HTTP/2 by prior knowledge", "400", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 400"),
    BadBytes("a body that breaks off", "nothing is kept, nobody is answered", _HEAD + b"Content-Length: 500\r\n\r\n{", b""),
    BadBytes("a path out of the door", "404", b"POST /webhooks/meta/../shopify/demo HTTP/1.1\r\nHost: a\r\n\r\n",
             b"HTTP/1.1 404"),
    BadBytes("a whole address as path", "404", b"POST http://evil.example/webhooks/ HTTP/1.1\r\nHost: a\r\n\r\n",
             b"HTTP/1.1 404"),
]  # fmt: skip


def customer(**change: Any) -> Callable[[str], bytes]:
    return lambda mark: dumped({"id": 880_000_000_000 + int(mark.rpartition("-")[2]), "note": mark} | change)


def topic(name: str) -> dict[str, str]:
    return {"x-shopify-topic": name}


SHOPIFY = [
    BadPost("text that is no JSON", UNREAD, raw("MARK"), is_aside=True),
    BadPost("an empty body", UNREAD, raw("")),
    BadPost("a list", UNREAD, raw('["MARK"]'), is_aside=True),
    BadPost("a customer without an id", UNREAD, raw('{"note": "MARK"}'), is_aside=True),
    BadPost("a customer whose id is a text", APPLIED, customer(id="7 or 1=1")),
    BadPost("a customer whose id is 10^400", UNREAD, raw('{"id": 1' + "0" * 400 + ', "note": "MARK"}'), is_aside=True),
    BadPost("a phone that is a list", APPLIED, customer(phone=["+525512345678"])),
    BadPost("a phone of 10 KB", APPLIED, customer(phone="5" * 10_000)),
    BadPost("NUL and half of a surrogate pair in names", APPLIED, customer(first_name="a\0b", last_name="\ud800")),
    BadPost("markup and a formula as names", APPLIED,
            customer(first_name="<script>alert(1)</script>", last_name="=cmd|' /C calc'!A1")),
    BadPost("addresses that are a number", APPLIED, customer(addresses=7, default_address="home")),
    BadPost("a consent that is a text", APPLIED, customer(sms_marketing_consent="yes", updated_at="yesterday")),
    BadPost("an empty topic", "200; counted as unknown", customer(), headers=topic("")),
    BadPost("a topic of tomorrow", "200; counted as unknown", customer(), headers=topic("customers/teleport")),
    BadPost("a topic of 8 KB that is no text", "200; counted as unknown", customer(), headers=topic("x" * 8000)),
    BadPost("an erasure of nobody", UNREAD, raw('{"shop_domain": "MARK", "customer": null}'),
            headers=topic("customers/redact"), is_aside=True),
    BadPost("Meta's form of a signature", UNSIGNED, customer(), 401, lambda right: "sha256=" + right),
    BadPost("no signature", UNSIGNED, customer(), 401, lambda right: None),
    BadPost("a signature's padding cut off", UNSIGNED, customer(), 401, lambda right: right.rstrip("=")),
    BadPost("the signature in hex", UNSIGNED, customer(), 401, lambda right: right.encode().hex()),
    BadPost("one byte over 3 MB", "413", lambda mark: b"x" * (3 * 1024 * 1024 + 1), 413),
]  # fmt: skip
