"""limits.md: every bound on what comes from outside, from the constants that hold it, with the test that shows it."""

from collections.abc import Sequence
from datetime import timedelta

from billing.api import CREDITS_MAX, PRICES_MAX
from billing.reports import CSV_AT_ONCE, CSV_UNREAD_MAX, CSV_UNREAD_PER_WORKSPACE_MAX
from billing.statements import DAYS_MAX, JSON_ROWS_MAX
from consent.import_csv import COLUMNS_MAX, ROW_LETTERS_MAX
from consent.imports import HELD_AT_ONCE, RUNNING_AT_ONCE
from consent.settings import Settings as ConsentSettings
from dispatcher.answers import RETRY_AFTER_MAX_SECONDS
from dispatcher.meta import ANSWER_BYTES_MAX, PAGE_BYTES_MAX, PAGES_MAX
from dispatcher.settings import Settings as DispatcherSettings
from dispatcher.sync import TEMPLATE_BYTES_MAX
from message_log.accounts import LOGINS_MAX
from message_log.api import LIMIT_MAX
from message_log.audience_api import RUNNING_MAX, UPLOADS_AT_ONCE
from message_log.audience_lines import FILE_BYTES_MAX, LINE_BYTES_MAX, LINES_MAX
from message_log.live import STREAMS_MAX, STREAMS_PER_READER_MAX
from message_log.login import FORM_FIELDS_MAX
from message_log.repair import REPAIRED_BYTES_MAX
from message_log.resend_store import PLAN_MAX
from reference_pages import GENERATED
from sendwhy import http
from sendwhy.evaluation import EVALUATE_BYTES_MAX, EVALUATE_MAX
from sendwhy.events import MAX_CONTENT_BYTES, MAX_HORIZON, MAX_METADATA_BYTES
from sendwhy.kafka import BATCH_MAX_RECORDS, PUBLISH_TIMEOUT_SECONDS
from sendwhy.stage import DEAD_LETTER_SHARE_BATCH_MIN, DEAD_LETTER_SHARE_MAX, STANDSTILL_SECONDS
from sendwhy.topics import MAX_DEAD_LETTER_BYTES, MAX_RECORD_BYTES, MAX_WEBHOOK_BYTES
from webhook_ingest import door
from webhook_ingest.api import SPAN_MAX
from webhook_ingest.fragments import DEPTH_MAX, ELEMENTS_MAX, FRAGMENT_BYTES_MAX
from webhook_ingest.room import PATIENCE_SECONDS

HTTP, DOOR = "libs/common/tests/test_http.py", "services/webhook-ingest/tests/test_door_clients.py"
BAD, FRAGMENTS = "tests/e2e/test_bad_inputs.py", "services/webhook-ingest/tests/test_fragments.py"
STAGE, IMPORTS = "libs/common/tests/test_stage.py", "services/consent/tests/test_imports.py"
CSV, META = "services/consent/tests/test_import_csv.py", "services/dispatcher/tests/test_meta.py"
LIVE, SYNC = "services/message-log/tests/test_live.py", "services/dispatcher/tests/test_sync.py"
LEDGER = "services/billing/tests/test_statements.py"
REPORTS = "services/billing/tests/test_reports.py"
AUDIENCE = "services/message-log/tests/test_audience.py"
KNOCKS = "services/webhook-ingest/tests/test_app.py"
# No test of its own goes beyond it.
UNTRIED = ""
# What, how much, what happens beyond it, the test that shows it.
Rows = Sequence[tuple[str, str, str, str]]


def _bytes(count: int) -> str:
    for unit, size in (("MB", 2**20), ("KB", 2**10)):
        if count >= size and count % size == 0:
            return f"{count // size:,} {unit}"
    return f"{count:,} bytes"


def _span(seconds: float) -> str:
    return f"{seconds:g} s"


def _default(settings: type[ConsentSettings | DispatcherSettings], name: str) -> float:
    default: float = settings.model_fields[name].default
    return default


def _most(count: int, what: str) -> str:
    return f"{count:,} {what}"


CONNECTIONS: Rows = (
    ("head of a request", _bytes(http.HEAD_BYTES_MAX), "closed", BAD),
    ("time for a head", _span(http.HEAD_TIMEOUT_SECONDS), "closed", HTTP),
    ("time for a body, unless it comes", _span(http.BODY_TIMEOUT_SECONDS), "closed", HTTP),
    ("slowest body", f"{_bytes(http.BODY_BYTES_PER_SECOND_MIN)}/s", "closed", HTTP),
    ("bytes on the wire for a byte of body", f"{http.WIRE_BYTES_PER_BODY_BYTE}", "closed", HTTP),
    ("requests that wait on one connection", str(http.PIPELINED_MAX), "400", HTTP),
    (
        "connections of a process",
        f"{http.CONNECTIONS_MAX:,}",
        "the one idle, or not reading its answer, for longest is closed, else 503",
        HTTP,
    ),
    ("a body, unless the path says otherwise", _bytes(http.BODY_BYTES_MAX), "413", BAD),
    ("all bodies that a process holds", _bytes(http.HELD_BYTES_MAX), "503, Retry-After", HTTP),
    ("Idempotency-Key", "128 visible characters", "422", BAD),
)
KAFKA: Rows = (
    ("a record", _bytes(MAX_RECORD_BYTES), "Kafka refuses it", STAGE),
    (
        "a dead letter, with its record's bytes",
        _bytes(MAX_DEAD_LETTER_BYTES),
        "none is larger",
        "services/webhook-ingest/tests/test_payloads.py",
    ),
    ("content of a request", _bytes(MAX_CONTENT_BYTES), "INVALID_REQUEST", BAD),
    ("metadata of a request", _bytes(MAX_METADATA_BYTES), "INVALID_REQUEST", BAD),
    ("send_at and expires_at after requested_at", f"{MAX_HORIZON.days} days", "INVALID_REQUEST", BAD),
    ("records of a batch", f"{BATCH_MAX_RECORDS}", "the next batch", STAGE),
    (
        "bad records of a batch",
        f"{DEAD_LETTER_SHARE_MAX:.0%} of {DEAD_LETTER_SHARE_BATCH_MIN} or more",
        "the stage stops and tries again: that is a bad deploy",
        UNTRIED,
    ),
    (
        "a consumer that stands still",
        _span(STANDSTILL_SECONDS),
        "the process ends with code 70",
        "tests/faults/test_faults.py",
    ),
    ("time for a produce", _span(PUBLISH_TIMEOUT_SECONDS), "the batch is repeated", "tests/faults/test_faults.py"),
)
WEBHOOKS: Rows = (
    ("a webhook's body", _bytes(MAX_WEBHOOK_BYTES), "413", BAD),
    ("deliveries inside at once", f"{door.INSIDE_MAX:,}", "503, Retry-After", DOOR),
    ("their bytes together", _bytes(door.INSIDE_BYTES_MAX), "503, Retry-After", DOOR),
    ("a slow body that others wait for", _span(PATIENCE_SECONDS), "503, Retry-After", DOOR),
    ("time for Kafka to take it", _span(door.ACK_TIMEOUT_SECONDS), "503, Retry-After", KNOCKS),
    ("refused deliveries that are kept", f"{door.REFUSED_PER_SECOND}/s, the first 2 KB", "counted", KNOCKS),
    ("depth of an element", f"{DEPTH_MAX}", "dead letter of that element", FRAGMENTS),
    ("an element", _bytes(FRAGMENT_BYTES_MAX), "dead letter of that element", FRAGMENTS),
    ("elements of a body", f"{ELEMENTS_MAX:,}", "dead letter of the body", FRAGMENTS),
    ("span of a replay", f"{SPAN_MAX // timedelta(hours=1)} h", "422", BAD),
)
SERVICES: Rows = (
    ("page of a list", f"{LIMIT_MAX} rows", "422", BAD),
    ("body of evaluate", f"{_bytes(EVALUATE_BYTES_MAX)}, {_most(EVALUATE_MAX, 'requests')}", "413, 422", UNTRIED),
    ("credits of a top-up", f"{CREDITS_MAX:,}", "422", BAD),
    ("prices at once", f"{PRICES_MAX:,}", "422", BAD),
    ("span of a statement", f"{DAYS_MAX} days", "422", BAD),
    ("rows of a statement as JSON", f"{JSON_ROWS_MAX:,}", "422; CSV has no bound", LEDGER),
    ("statements as CSV that are written at once", str(CSV_AT_ONCE), "503, Retry-After", UNTRIED),
    (
        "those of a workspace that are not read to their end",
        str(CSV_UNREAD_PER_WORKSPACE_MAX),
        "503, Retry-After",
        REPORTS,
    ),
    ("those of all workspaces", str(CSV_UNREAD_MAX), "503, Retry-After", UNTRIED),
    ("file of contacts", _bytes(int(_default(ConsentSettings, "import_bytes_max"))), "413", IMPORTS),
    ("files of contacts at once", f"{RUNNING_AT_ONCE} run, {HELD_AT_ONCE} wait", "503, Retry-After", UNTRIED),
    ("columns of a file", f"{COLUMNS_MAX:,}", "422", BAD),
    ("letters of a row", f"{ROW_LETTERS_MAX:,}", "that row is refused", CSV),
    ("file of an audience check", f"{_bytes(FILE_BYTES_MAX)}, {_most(LINES_MAX, 'lines')}", "413, 422", UNTRIED),
    ("files of audience checks that are read at once", str(UPLOADS_AT_ONCE), "503, Retry-After", AUDIENCE),
    ("a line of it", _bytes(LINE_BYTES_MAX), "that line is broken", AUDIENCE),
    ("checks and plans of a workspace at once", str(RUNNING_MAX), "429, Retry-After", UNTRIED),
    (
        "messages of a plan to send again",
        f"{PLAN_MAX:,}",
        "the newest ones",
        "services/message-log/tests/test_resend.py",
    ),
    ("a repaired dead letter", _bytes(REPAIRED_BYTES_MAX), "422", "services/message-log/tests/test_repair.py"),
    ("fields of a form", str(FORM_FIELDS_MAX), "the form is taken as empty", UNTRIED),
    (
        "logins with a password at once",
        str(LOGINS_MAX),
        "503, Retry-After",
        "services/message-log/tests/test_accounts.py",
    ),
    ("live streams of a token or a session", str(STREAMS_PER_READER_MAX), "429, Retry-After", LIVE),
    ("live streams of a process", str(STREAMS_MAX), "503, Retry-After", LIVE),
)
META_ANSWERS: Rows = (
    ("time for a connection", _span(_default(DispatcherSettings, "meta_connect_timeout_seconds")), "tried again", META),
    ("time for an answer", _span(_default(DispatcherSettings, "meta_read_timeout_seconds")), "outcome unknown", META),
    ("calls in flight of a replica", f"{_default(DispatcherSettings, 'calls_in_flight_max'):g}", "they wait", META),
    ("an answer to a call", _bytes(ANSWER_BYTES_MAX), "outcome unknown", META),
    ("a page of templates", _bytes(PAGE_BYTES_MAX), "the sync fails and says so", UNTRIED),
    ("a template's components", _bytes(TEMPLATE_BYTES_MAX), "as one that can't be read", SYNC),
    ("pages of templates", str(PAGES_MAX), "the sync is told as incomplete", SYNC),
    ("Retry-After that is heeded", _span(RETRY_AFTER_MAX_SECONDS), "cut to that", META),
)


def page() -> str:
    return f"""{GENERATED}
# Limits

Every queue, loop, body and wait that somebody outside can fill has a bound. MB and KB are 1,048,576 and 1,024 bytes.
What a process holds at most for all who call it at once: {_bytes(http.HELD_BYTES_MAX)} of bodies, and
{_bytes(http.CONNECTIONS_MAX * 64 * 1024)} of buffers ({http.CONNECTIONS_MAX:,} connections, 64 KB each); webhook-ingest
{_bytes(door.INSIDE_BYTES_MAX)} of webhooks besides.

{_table("Connections and bodies, of every service", CONNECTIONS)}
{_table("Records", KAFKA)}
{_table("Webhooks", WEBHOOKS)}
{_table("APIs and pages", SERVICES)}
{_table("Meta's answers", META_ANSWERS)}
Slow clients: every service closes them alike ([test_http.py](../{HTTP})), and the door besides makes room for who comes
fast ([test_door_clients.py](../{DOOR})).

A contact of whom only a WhatsApp user id is known is written to by that id (Meta's `recipient`, in place of `to`);
authentication templates need a number, so consent says CONTACT_HAS_NO_PHONE. What they write under the id alone opens
their 24 h window, and stands in their thread. A user id belongs to one Meta business portfolio: a number of another one
gets Meta's refusal. A request names a contact: who is nobody's becomes one by consent's PUT (`user_id`), or by an
answer in the inbox. A user id that Meta changes (`user_changed_user_id`) is somebody new here until a contact is told
of it.

A test "–" is one that is still to be written. Which bounds can be set: [settings.md](settings.md).
"""


def _table(title: str, rows: Rows) -> str:
    lines = "\n".join(f"| {what} | {limit} | {beyond} | {_shown(test)} |" for what, limit, beyond, test in rows)
    return f"## {title}\n\n| what | at most | beyond | test |\n|---|---|---|---|\n{lines}\n"


def _shown(test: str) -> str:
    return f"[{test.rsplit('/', 1)[-1]}](../{test})" if test else "–"
