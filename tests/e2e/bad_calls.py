"""Bad calls of the APIs and pages, each by somebody who may; and odd values that every path and query gets in turn."""

from bad_inputs import BadCall, Json, dumped, nested

CONTACT: Json = {"phone": "+525512345678", "marketing_state": "SUBSCRIBED", "source": "import", "proof": "form 17"}
SENDER: Json = {"access_token": "t", "waba_id": "301122334455667", "portfolio_id": "p", "app_id": "1", "default": False}
REQUEST: Json = {
    "message_id": "m-1",
    "to": {"contact_id": "c1"},
    "origin": {"kind": "api"},
    "content": {"type": "text", "text": {"body": "hi"}},
}
NAMED = "422, and names the field"
HEAD = b"contact_id,phone,marketing_state,source,proof\n"

# Every body that a route takes as JSON gets these; all are 4xx and a problem document.
BODIES = [
    ("an empty body", b""),
    ("text that is no JSON", b"not json"),
    ("a list", b"[7]"),
    ("null", b"null"),
    (
        "every field of the wrong type",
        b'{"credits": true, "access_token": 7, "per_minute": "x", "marketing_state": {}}',
    ),
    ("NUL and a number beyond all floats", b'{"a": "\\u0000", "credits": 1e400}'),
    ("half of a surrogate pair", b'{"name": "\\ud800"}'),
    ("lists 5,000 deep", b"[" * 5000),
    ("objects 50,000 deep", nested(50_000).encode()),
    ("bytes that are no UTF-8", b"\xff\xfe\x00"),
    ("a number of 5,000 digits", b'{"credits": ' + b"9" * 5000 + b"}"),
]
# What stands in for each part of a path, and for each parameter of a query, of every route of every service.
IN_PATHS = [
    ("NUL", "%00"),
    ("bytes that are no UTF-8", "%ff%fe"),
    ("a path upwards, escaped", "%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
    ("an escape that is none", "%zz%"),
    ("SQL", "'%20or%201=1;--"),
    ("markup", "%3Cscript%3Ealert(1)%3C%2Fscript%3E"),
    ("4,000 characters", "x" * 4000),
    ("a line end, for a header of one's own", "%0d%0aset-cookie:%20a=b"),
    ("half of a surrogate pair", "%ed%a0%80"),
    ("an id of nobody", "00000000-0000-0000-0000-000000000000"),
]
IN_QUERIES = [
    ("NUL", "%00"),
    ("bytes that are no UTF-8", "%ff"),
    ("nothing", ""),
    ("a number of 400 digits", "9" * 400),
    ("a negative number", "-1"),
    ("SQL", "'%20or%201=1;--"),
    ("a pattern of SQL and of regular expressions", "%25_(((((a+)+)+)+$"),
    ("a time of the year 9999 with a zone of 99 hours", "9999-12-31T23:59:59%2B99:00"),
    ("an object", "%7B%22a%22%3A%5B%5D%7D"),
    ("a cursor of somebody else's making", "eyJhIjoxfQ"),
]


def put(name: str, change: Json, contact: str = "c-bad") -> BadCall:
    return BadCall(name, NAMED, "consent", "PUT", f"/contacts/{contact}", 422, CONTACT | change)


def top_up(name: str, credits: object) -> BadCall:
    body = b'{"credits": ' + (credits if isinstance(credits, bytes) else dumped(credits)) + b', "reference": "r"}'
    return BadCall(name, NAMED, "billing", "POST", "/top-ups", 422, body)


def asked(name: str, query: str, path: str = "/messages", service: str = "message-log") -> BadCall:
    return BadCall(name, NAMED, service, "GET", f"{path}?{query}", 422)


def listed(name: str, told: str, body: bytes, status: int = 200) -> BadCall:
    headers = {"content-type": "text/csv"}
    return BadCall(name, told, "consent", "POST", "/contacts/import", status, body, headers)


CALLS = [
    put("a phone that is a number", {"phone": 525512345678}),
    put("NUL in a name", {"name": "a\0b"}),
    put("a state of nobody's", {"marketing_state": "MAYBE"}),
    put("a field that isn't there (mass assignment)", {"version": 99, "workspace_id": "other"}),
    put("consent without a proof's text", {"proof": {"a": 1}}),
    put("a name of 10 KB", {"name": "x" * 10_000}),
    put("half of a surrogate pair in a name", {"name": "\ud800"}),
    BadCall("a contact id of 129 characters", "422", "consent", "PUT", "/contacts/" + "c" * 129, 422, CONTACT),
    BadCall("an Idempotency-Key of 129 characters", "422", "consent", "PUT", "/contacts/c-bad", 422, CONTACT,
            {"idempotency-key": "k" * 129}),
    BadCall("an Idempotency-Key of blanks", "422", "consent", "PUT", "/contacts/c-bad", 422, CONTACT,
            {"idempotency-key": "a b"}),
    asked("a history at 30 February", "at=2026-02-30T00:00:00Z", "/contacts/c1/history", "consent"),
    listed("an empty file", "422", b"", 422),
    listed("a file with a head only", "200; no row", HEAD),
    listed("a picture instead of a file", "422", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, 422),
    listed("a row with NUL", "200; that row is refused and told, the others go in", HEAD + b"n\0ul,+525512345678,,,\n"),
    listed("a quote that never ends", "200; that row is refused and told", HEAD + b'"q,+525512345678,SUBSCRIBED,x,y\n'),
    listed("a cell of 200 KB", "200; that row is refused and told",
           HEAD + b"c," + b"5" * 200_000 + b",SUBSCRIBED,import,form\n"),
    listed("formulas", "200; kept as text, and text in every export",
           HEAD + b"=1+1,+525512345679,SUBSCRIBED,@import,\"=cmd|' /C calc'!A1\"\n"),
    listed("1,001 columns", "422", HEAD[:-1] + b"".join(b",c%d" % number for number in range(996)) + b"\n", 422),
    top_up("credits that are `true`", True),
    top_up("credits as a text", "100"),
    top_up("a fraction of a credit", 0.5),
    top_up("no credits at all", 0),
    top_up("negative credits", -5),
    top_up("credits beyond all numbers", b"1e400"),
    top_up("a credit more than a thousand million", 1_000_000_001),
    top_up("credits of 30 digits", 10**30),
    top_up("NaN credits", b"NaN"),
    BadCall("a price from the year 9999", NAMED, "billing", "PUT", "/prices", 422,
            [{"category": "marketing", "credits": 1, "valid_from": "9999-12-31T23:59:59Z"}]),
    asked("a statement of a zone that is none", "from=2026-11-01&to=2026-12-01&by=day&zone=../../etc/passwd",
          "/statements", "billing"),
    asked("a statement over 8,000 years", "from=0001-01-01&to=9999-12-31&by=day", "/statements", "billing"),
    asked("a statement over 401 days", "from=2025-01-01&to=2026-02-06&by=day", "/statements", "billing"),
    BadCall("2,001 prices at once", NAMED, "billing", "PUT", "/prices", 422,
            [{"category": "marketing", "credits": 1, "valid_from": "2026-11-22T10:00:00Z"}] * 2001),
    asked("a page of 501 rows", "limit=501", "/ledger", "billing"),
    asked("a ledger's page of a million rows", "limit=1000000", "/ledger", "billing"),
    BadCall("a sender id of letters", "422", "dispatcher", "PUT", "/senders/our-shop", 422, SENDER),
    BadCall("an access token with a line end (a header of one's own)", NAMED, "dispatcher", "PUT", "/senders/1234567",
            422, SENDER | {"access_token": "a\r\nx-evil: 1"}),
    BadCall("a path as account", NAMED, "dispatcher", "PUT", "/senders/1234567", 422, SENDER | {"waba_id": "1/../2"}),
    BadCall("no messages a minute", NAMED, "dispatcher", "PUT", "/throttles/sale", 422, {"per_minute": 0}),
    BadCall("a pace of 10^20", NAMED, "dispatcher", "PUT", "/throttles/sale", 422, {"per_minute": 10**20}),
    asked("a status of nobody's", "status=teleported"),
    asked("a reason of nobody's", "reason=BAD_LUCK"),
    asked("a time that is a word", "from=yesterday"),
    asked("a page of a million rows", "limit=1000000"),
    asked("a page of no rows", "limit=0"),
    asked("a cursor that is cut off", "cursor=bm90"),
    asked("a cursor with NUL", "cursor=AAAA"),
    asked("a cursor with SQL", "cursor=JyBvciAxPTE7LS0"),
    BadCall("a request for another workspace", NAMED, "message-log", "POST", "/messages", 422,
            REQUEST | {"workspace_id": "somebody-else"}),
    BadCall("a request without anybody in it", NAMED, "message-log", "POST", "/messages", 422, REQUEST | {"to": {}}),
    BadCall("a request that calls itself by Meta's callback", NAMED, "message-log", "POST", "/messages", 422,
            REQUEST | {"message_id": "sw1:acme:m 1"}),
    BadCall("an audience of no JSON", "202; every line is told as broken", "message-log", "POST", "/audience-checks",
            202, b"\xff\xfe\n\0\n[[[[\n{}\n", {"content-type": "application/x-ndjson"}),
    BadCall("a plan confirmed that nobody made", "404", "message-log", "POST",
            "/send-again/00000000-0000-0000-0000-000000000000/confirm", 404, {"messages": 1, "credits": 1}),
    BadCall("a dead letter put back that isn't there", "404", "message-log", "POST",
            "/dead-letters/00000000-0000-0000-0000-000000000000/resubmit", 404, {"body": "{}"}),
    BadCall("a replay of 100 years", NAMED, "webhook-ingest", "POST", "/webhooks/replay", 422,
            {"from": "1926-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}),
    BadCall("a replay of one delivery since the year 170", NAMED, "webhook-ingest", "POST", "/webhooks/replay", 422,
            {"from": "0170-10-26T03:52:38Z", "to": "1930-08-12T14:30:14Z", "delivery_id": "0" * 64}),
    BadCall("a replay that ends before it begins", NAMED, "webhook-ingest", "POST", "/webhooks/replay", 422,
            {"from": "2026-11-22T10:00:00Z", "to": "2026-11-22T09:00:00Z"}),
    BadCall("a replay of a delivery whose digest is none", NAMED, "webhook-ingest", "POST", "/webhooks/replay", 422,
            {"delivery_id": "../../x"}),
    BadCall("a method that the path hasn't", "405", "consent", "PATCH", "/contacts/c1", 405, {}),
    BadCall("JSON that calls itself a form", "422", "consent", "PUT", "/contacts/c-form", 422, CONTACT,
            {"content-type": "application/x-www-form-urlencoded"}),
    BadCall("a body of 5 MB", "413", "consent", "PUT", "/contacts/c-bad", 413, b'{"a": "' + b"x" * 5_000_000 + b'"}'),
    BadCall("a packed body", "400: nothing is unpacked", "consent", "PUT", "/contacts/c-bad", 400, b"\x1f\x8b\x08" + b"\0" * 50,
            {"content-encoding": "gzip"}),
    BadCall("a token of 8 KB", "401", "consent", "GET", "/contacts/c1", 401, None, {"authorization": "Bearer " + "x" * 8000}),
    BadCall("a token with letters that are no ASCII", "401", "consent", "GET", "/contacts/c1", 401, None,
            {"authorization": "Bearer tökén"}),
    BadCall("a password instead of a token", "401", "consent", "GET", "/contacts/c1", 401, None, {"authorization": "Basic eDp5"}),
    BadCall("a token in the address", "401", "consent", "GET", "/contacts/c1?access_token=ADMIN", 401, None, {"authorization": ""}),
    BadCall("another one's range of bytes", "the whole answer, or 404", "message-log", "GET", "/messages/none", 404, None,
            {"range": "bytes=0-18446744073709551615"}),
]  # fmt: skip

# Pages as a browser asks for them, logged in; below /w/{workspace}, but for whole paths.
PAGES = [
    "/messages", "/messages/ID", "/campaigns", "/campaigns/ID", "/automations", "/automations/ID", "/inbox",
    "/inbox/with/ID", "/inbox/from/ID", "/contacts", "/contacts/ID", "/credits", "/credits/statement", "/templates",
    "/senders", "/senders/ID", "/webhooks", "/webhooks/ID", "/dead-letters", "/dead-letters/ID", "/audience",
    "/audience/ID", "/diagnostics", "/people",
]  # fmt: skip
PAGE_PARAMETERS = ("q", "status", "reason", "cursor", "range", "from", "to", "campaign", "contact", "phone", "limit")
FORMS = ["/logout", "/language", "/w/WORKSPACE/messages/m-1/cancel", "/w/WORKSPACE/people", "/w/WORKSPACE/diagnostics"]
FOREIGN = [
    ("a form from another site, by Fetch Metadata", {"sec-fetch-site": "cross-site"}),
    ("a form from a neighbour's site", {"sec-fetch-site": "same-site"}),
    ("a form from another Origin", {"origin": "https://evil.example"}),
    ("a form from a file (Origin: null)", {"origin": "null"}),
    ("a form without any word of where it comes from", {}),
    ("a form whose Origin begins as ours", {"origin": "BASE.evil.example"}),
]
# What pages show must stay text, also for htmx: each would do something if it were markup.
HOSTILE = [
    "<script>pwned()</script>",
    "<img src=/pwned onerror=pwned()>",
    '"><svg onload=pwned()>',
    '<div hx-get="/pwned" hx-trigger="load">',
    '<div hx-on:click="pwned()" hx-swap-oob="true" id="main">',
    "<a href='javascript:pwned()'>x</a>",
    "{{ 7 * 7 }}${7*7}",
    "</textarea></title><base href=//evil.example>",
    "<form action=/logout method=post><button>x",
    "<style>@import '/pwned'</style>",
]
