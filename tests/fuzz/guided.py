"""Fuzz one reader of what comes from outside, guided by coverage, for a bounded time. tests/fuzz/run.py runs them all.

    .venv/bin/python tests/fuzz/guided.py webhooks --seconds 60

Needs atheris (the group fuzz). Starts from good examples. Prints what broke it with the input's file, and exits with 77
then.
"""

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    sys.exit("atheris is missing: make fuzz installs it")

with atheris.instrument_imports(include=["webhook_ingest", "consent", "sendwhy"]):
    from consent import import_csv
    from consent.fields import Fields
    from consent.import_columns import UnreadableFile
    from consent.phones import read_phone
    from consent.words import button_keyword, keyword_in
    from pydantic import ValidationError
    from sendwhy import events
    from webhook_ingest import fragments
    from webhook_ingest.decide import sort_out, status_event, status_record
    from webhook_ingest.elements import Delivery, StatusTold, Unreadable

AT = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
EXAMPLES = Path(__file__).parents[1] / "e2e" / "meta-examples.jsonl"
TOPICS = ("customers/update", "customers/redact", "customers/data_request", "shop/redact", "orders/paid")
STATUS = (
    b'{"object":"w","entry":[{"id":"1","changes":[{"field":"messages","value":{"metadata":{"phone_number_id":"12345"},'
    b'"statuses":[%s]}}]}]}'
)
MODELS = [
    model
    for model in vars(events).values()
    if isinstance(model, type) and issubclass(model, events.Event | events.SendRequested) and model is not events.Event
]


def read_webhook(raw: bytes) -> None:
    """The first byte says whose webhook it is, and of which topic; the rest is the body. Every element is accounted
    for."""
    choice = raw[0] % 16 if raw else 0
    is_shop = choice < len(TOPICS)
    topic = TOPICS[choice] if is_shop else ""
    place = Delivery("shopify" if is_shop else "meta", "acme", raw[1:], AT, 0, 0, topic)
    try:
        reading = fragments.read(place)
    except ValueError:
        # The whole body goes to dead.letters.
        return
    elements = [(place, element) for element in reading.elements]
    for element in reading.elements:
        if isinstance(element, StatusTold):
            status_event(element, AT, "acme", "m-1").to_json()
        elif not isinstance(element, Unreadable):
            type(element.event).model_validate_json(element.event.to_json())
            element.origin.alone()
    told = sort_out(elements, {}, {}, frozenset({"acme"}))
    kept = len(told.told) + len(told.reports) + len(told.unclaimed) + len(told.foreign)
    dead = sum(isinstance(element, Unreadable) for element in reading.elements)
    # Of two that say the very same one is kept.
    assert kept + dead <= len(elements)
    assert (kept + dead > 0) == bool(elements)


def read_status(raw: bytes) -> None:
    """One element of `statuses`: what it becomes can be read by whoever reads status.updated."""
    try:
        reading = fragments.read(Delivery("meta", "1", STATUS % raw, AT, 0, 0, ""))
    except ValueError:
        return
    for element in reading.elements:
        if isinstance(element, StatusTold):
            event = status_event(element, AT, "acme", "m-1")
            assert events.StatusUpdated.model_validate_json(event.to_json()) == event
            assert status_record(element, AT, "acme", "m-1", None).value == event.to_json()


def read_event(raw: bytes) -> None:
    """The first byte says which event; what is read is written as the same event."""
    if not raw:
        return
    model = MODELS[raw[0] % len(MODELS)]
    try:
        event = model.model_validate_json(raw[1:])
    except ValidationError:
        return
    written = event.to_json()
    assert model.model_validate_json(written).to_json() == written
    if isinstance(event, events.SendRequested):
        event.expiry(AT)
        assert event.template_id is None or event.template is not None


def read_file(raw: bytes) -> None:
    """A file of contacts: each row once, read or refused."""
    try:
        layout = import_csv.examine(io.BytesIO(raw), {})
    except UnreadableFile:
        return
    numbers: list[int] = []
    for batch in import_csv.read_batches(io.BytesIO(raw), layout):
        numbers += [row.number for row in batch.rows] + [refused.number for refused in batch.refused]
    assert len(numbers) == len(set(numbers))


def read_number(raw: bytes) -> None:
    """A phone, its calling code and country: a number or a fault, and a number is read as itself."""
    phone, code, country, *_ = [*raw.decode(errors="replace").split("\n", 2), "", ""]
    reading = read_phone(phone, code or None)
    assert (reading.phone is None) == (reading.fault is not None)
    if reading.phone is not None:
        assert read_phone(reading.phone.e164).phone == reading.phone
    with suppress(ValidationError):
        Fields(phone, country or None, code or None).suggestion(country or None)


def read_word(raw: bytes) -> None:
    """What a person says, and a button: the same judgement with blanks around it."""
    text = raw.decode(errors="replace")
    assert keyword_in(text) == keyword_in(f" {text} ")
    button_keyword(text, text)


@dataclass(frozen=True)
class Target:
    read: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


def _payloads() -> Iterator[Any]:
    for line in EXAMPLES.read_text().splitlines():
        yield json.loads(line)["payload"]


def _statuses() -> Iterator[bytes]:
    for payload in _payloads():
        for entry in payload["entry"]:
            for change in entry["changes"]:
                yield from (json.dumps(one).encode() for one in change["value"].get("statuses", ()))


def _events() -> Iterator[bytes]:
    request = {
        "message_id": "m-1", "workspace_id": "acme", "to": {"contact_id": "c1", "phone": "+525512345678"},
        "origin": {"kind": "campaign", "id": "x"}, "metadata": {"a": 1}, "requested_at": "2026-11-22T10:00:00Z",
        "content": {"type": "template", "template": {"name": "t", "language": {"code": "en"}}},
        "event_id": "6d0d0c4e-1f0b-5a7e-9a53-0d5d6b0f2c11", "occurred_at": "2026-11-22T10:00:00Z",
        "observed_at": "2026-11-22T10:00:00Z", "status": "sent", "service": "billing", "sender_id": "12345",
        "contact_id": "c1", "version": 1, "waba_id": "1", "name": "t", "language": "en",
    }  # fmt: skip
    body = json.dumps(request | {"request": request}).encode()
    yield from (bytes([number]) + body for number in range(len(MODELS)))


def _given(*several: str) -> Callable[[], Iterator[bytes]]:
    return lambda: iter([one.encode() for one in several])


HEAD = "contact_id,phone,phone_country_code,name,marketing_state,source,proof\n"
TARGETS: Mapping[str, Target] = {
    "webhooks": Target(read_webhook, lambda: (b"\x0f" + json.dumps(one).encode() for one in _payloads())),
    "statuses": Target(read_status, _statuses),
    "events": Target(read_event, _events),
    "csv": Target(
        read_file,
        _given(HEAD + 'c1,+525512345678,MX,"Inés, la",SUBSCRIBED,import,form\n', "sep=;\nID;Tel\n1;0170 123\n"),
    ),
    "phones": Target(read_number, _given("+525512345678", "55 1234 5678\n52\nMX", "(0170) 12 34-56\n\nDE", "+55 11 9")),
    "words": Target(read_word, _given("STOP", "Baja!", "ＳＴＯＰ", "alta por favor", "إيقاف", "s.t.o.p")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="how long (default 60)")
    asked = parser.parse_args()
    target = TARGETS[asked.target]
    with tempfile.TemporaryDirectory(prefix="sendwhy-fuzz-") as folder:
        for number, seed in enumerate(target.seeds()):
            (Path(folder) / str(number)).write_bytes(seed)
        # No -timeout: its alarm ended the process without a word on a busy machine. run.py waits for no endless input.
        options = [f"-max_total_time={asked.seconds}", "-max_len=8192", "-rss_limit_mb=1024"]
        atheris.Setup([sys.argv[0], folder, *options, "-print_final_stats=1"], target.read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
