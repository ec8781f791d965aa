"""bad-inputs.md, from the tables that tests/e2e/test_bad_inputs.py throws at a whole Sendwhy."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "e2e"))

from bad_calls import BODIES, CALLS, FOREIGN, HOSTILE, IN_PATHS, IN_QUERIES
from bad_inputs import Bad
from bad_records import EVENTS, MUTANTS, REQUESTS, TOMBSTONES
from bad_webhooks import META, SHOPIFY, WIRE
from reference_pages import GENERATED

Rows = Sequence[tuple[str, str]]
REFUSAL = "4xx and a problem document, or an answer that is right all the same; never a 5xx"


def _of(several: Iterable[Bad]) -> Rows:
    return [(one.name, one.told) for one in several]


def _all(names: Iterable[str], told: str) -> Rows:
    return [(name, told) for name in names]


DOORS: Sequence[tuple[str, str, Rows]] = (
    ("send.requested", "Each between two good requests, on one partition.", _of(REQUESTS)),
    (
        "Every other topic",
        "Each in every partition of every topic that a service reads (3 MB: in one of each service); messages before"
        " and after go their whole way.",
        [*_of(EVENTS), *_of(TOMBSTONES), *_all(MUTANTS, "dead letter where it can't be read or stored")],
    ),
    (
        "Meta's webhooks",
        "Each between two good messages of a person; signed rightly where nothing else is said.",
        _of(META),
    ),
    ("The door's socket", "Each before a good webhook.", _of(WIRE)),
    ("Shopify's webhooks", "Each between two good customers.", _of(SHOPIFY)),
    ("The APIs", "By an admin; every refusal is a problem document that names the field.", _of(CALLS)),
    (
        "Every route of the APIs, and every page",
        "Bodies for each route that takes JSON; the others, a few each, for each part of a path and each parameter that"
        " OpenAPI names, and for the pages.",
        [
            *_all((f"{name}, as body" for name, _ in BODIES), "4xx and a problem document"),
            *_all((f"{name}, in a path" for name, _ in IN_PATHS), REFUSAL),
            *_all((f"{name}, in a query" for name, _ in IN_QUERIES), REFUSAL),
        ],
    ),
    (
        "Forms of the pages",
        "With a session, for each form.",
        _all((name for name, _ in FOREIGN), "403; nothing changes"),
    ),
    (
        "Texts that pages show",
        "As names, campaigns, automations, metadata, messages of people and dead letters, on every page in Chromium.",
        _all((f"`{text}`" for text in HOSTILE), "shown as text: no script runs, htmx does nothing, nothing is fetched"),
    ),
)
# Doors that need no whole Sendwhy: what each is, and the tables of its tests.
ELSEWHERE = (
    ("Bytes, JSON and elements of webhooks", "services/webhook-ingest/tests/test_fragments.py"),
    ("Any payload at all (hypothesis)", "services/webhook-ingest/tests/test_payloads.py"),
    ("Slow, half and many clients at the door", "services/webhook-ingest/tests/test_door_clients.py"),
    ("Slow, half and many clients of every service", "libs/common/tests/test_http.py"),
    ("Meta's answers, cut at every byte, endless or junk", "services/dispatcher/tests/test_meta.py"),
    ("Meta's answers: what they say", "services/dispatcher/tests/test_answers.py"),
    ("Meta's lists of templates and numbers", "services/dispatcher/tests/test_sync.py"),
    ("CSV files of contacts", "services/consent/tests/test_import_csv.py"),
    ("Phone numbers", "services/consent/tests/test_phones.py"),
    ("Amounts, prices and questions to billing", "services/billing/tests/test_reports.py"),
    ("Repaired dead letters", "services/message-log/tests/test_repair.py"),
    ("Hostile names on every page and in every export", "services/message-log/tests/test_browser_pages.py"),
    ("Settings", "libs/common/tests/test_settings.py"),
    ("Answers of the services to commands", "tools/cli/tests/test_commands.py"),
    ("Bad records while servers fail (invariant I5)", "tests/faults/poison.py"),
)


def page() -> str:
    entries = "\n".join(_door(*door) for door in DOORS)
    elsewhere = "\n".join(f"| {what} | [{path}](../{path}) |" for what, path in ELSEWHERE)
    return f"""{GENERATED}
# Bad inputs, door by door

{sum(len(rows) for _, _, rows in DOORS)} kinds of input that no honest system sends, and what becomes of each.
[tests/e2e/test_bad_inputs.py](../tests/e2e/test_bad_inputs.py) throws them at a whole Sendwhy in CI and asserts for
all: **no answer is a 5xx, no partition stops** (every consumer group has read every topic to its end afterwards), **and
the good neighbours before and after come through**. "Dead letter" means: in `dead.letters` with its bytes and the
error, and on the page Dead letters; an alert tells of them.

{entries}
## Tested with one service, or with one function

| input | tests |
|---|---|
{elsewhere}

"""


def _door(name: str, how: str, rows: Rows) -> str:
    lines = "\n".join(f"| {_cell(what)} | {_cell(told)} |" for what, told in rows)
    return f"## {name}: {len(rows)}\n\n{how}\n\n| input | what happens |\n|---|---|\n{lines}\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
