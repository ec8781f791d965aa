"""Records that nobody can work with: unreadable, or readable and refused by PostgreSQL."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

Make = Callable[[random.Random, str], bytes]
# Above the door's 3 MB.
HOSTILE_BYTES = 3 * 2**20
NUL = {"a": "\0"}


@dataclass(frozen=True)
class Poison:
    """`dead_letters`: how many services must put it aside. `make` makes one that is marked as no other is."""

    topic: str
    why: str
    make: Make
    dead_letters: int = 1


def hostile_text(chance: random.Random, mark: str) -> bytes:
    return chance.choice([f"{{not json {mark}", f'{{"object": "x", "{mark}": [', f"\xff\xfe {mark}", mark]).encode()


def _junk(chance: random.Random, mark: str) -> bytes:
    return bytes(chance.randrange(256) for _ in range(chance.randrange(1, 200))) + mark.encode()


def _deep(_chance: random.Random, mark: str) -> bytes:
    return b'{"a":' * 3_000 + json.dumps(mark).encode()


def _list(_chance: random.Random, mark: str) -> bytes:
    return json.dumps([mark]).encode()


def _request(**changes: object) -> Make:
    def make(_chance: random.Random, mark: str) -> bytes:
        base: dict[str, object] = {
            # Not a readable id: it must lead to no send.rejected that nobody asked for.
            "workspace_id": "no such workspace!",
            "message_id": mark,
            "to": {"contact_id": "c1"},
            "origin": {"kind": "api"},
            "content": {"type": "text", "text": {"body": "x"}},
            "requested_at": datetime.now(UTC).isoformat(),
        }
        return json.dumps(base | changes).encode()

    return make


POISONS = (
    Poison("send.requested", "bytes that are no text", _junk),
    Poison("send.requested", "a list", _list),
    Poison("send.requested", "3,000 deep", _deep),
    Poison("send.requested", "a workspace that can't be", _request()),
    Poison(
        "send.requested", "a year 9999 and a NUL", _request(requested_at="9999-12-31T23:59:59Z", metadata={"a": "\0"})
    ),
    Poison("send.consented", "bytes that are no text", _junk),
    Poison("send.funded", "a list", _list),
    Poison("send.rejected", "bytes that are no text", _junk),
    Poison("status.updated", "a list", _list),
    Poison("message.received", "bytes that are no text", _junk),
    Poison("webhook.received", "bytes without a header", _junk),
    Poison("customer.updated", "a list", _list),
)
