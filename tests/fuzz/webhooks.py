"""Fuzz the reading of webhooks, guided by coverage, for a bounded time: no exception may escape, and every element is
accounted for.

Needs atheris, which the set-up leaves out:

    .uv/bin/uv sync --frozen --all-packages --inexact --group fuzz
    .venv/bin/python tests/fuzz/webhooks.py --seconds 60

Starts from Meta's examples. Prints what broke it with the input's file, and exits with 77 then.
"""

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("atheris is missing: .uv/bin/uv sync --frozen --all-packages --inexact --group fuzz")

with atheris.instrument_imports(include=["webhook_ingest"]):
    from webhook_ingest import customers, fragments, values
    from webhook_ingest.decide import sort_out, status_event
    from webhook_ingest.elements import Delivery, StatusTold, Unreadable

AT = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
EXAMPLES = Path(__file__).parents[1] / "e2e" / "meta-examples.jsonl"
TOPICS = ("customers/update", "customers/redact", "customers/data_request", "shop/redact", "orders/paid")


def read_one(raw: bytes) -> None:
    """The first byte says whose webhook it is, and of which topic; the rest is the body."""
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
    told = sort_out(elements, {}, frozenset({"acme"}))
    kept = len(told.told) + len(told.reports) + len(told.unclaimed) + len(told.foreign)
    dead = sum(isinstance(element, Unreadable) for element in reading.elements)
    # Of two that say the very same one is kept.
    assert kept + dead <= len(elements)
    assert (kept + dead > 0) == bool(elements)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="how long (default 60)")
    seconds = parser.parse_args().seconds
    assert {customers.__name__, values.__name__} <= set(sys.modules)
    with tempfile.TemporaryDirectory(prefix="sendwhy-fuzz-") as folder:
        for number, line in enumerate(EXAMPLES.read_text().splitlines()):
            (Path(folder) / str(number)).write_bytes(b"\x0f" + json.dumps(json.loads(line)["payload"]).encode())
        options = [f"-max_total_time={seconds}", "-max_len=8192", "-rss_limit_mb=1024", "-timeout=10", "-verbosity=0"]
        atheris.Setup([sys.argv[0], folder, *options, "-print_final_stats=1"], read_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
