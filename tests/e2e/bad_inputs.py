"""Bad inputs, door by door, as one table: what comes in, and what must happen. docs/bad-inputs.md is made of it.

`test_bad_inputs.py` throws them at a whole running Sendwhy, each between good neighbours.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
# What may become of a record of send.requested, as docs/bad-inputs.md words it.
ASIDE = "dead letter"
REFUSED = "dead letter, and send.rejected INVALID_REQUEST"
GOES = "harmless: goes out, and is read"


@dataclass(frozen=True)
class Bad:
    """`name`: the input in words; `told`: what happens, in words."""

    name: str
    told: str


@dataclass(frozen=True)
class BadRecord(Bad):
    """A record of send.requested, made of a good request; None is a tombstone."""

    make: Callable[[Json], bytes | None]
    headers: tuple[tuple[str, bytes], ...] = ()
    key: bytes | None = b"c1"
    timestamp_ms: int | None = None


@dataclass(frozen=True)
class BadEvent(Bad):
    """A record that comes in every partition of every topic; `make` gets a mark to know it again by."""

    make: Callable[[bytes], bytes | None]
    headers: tuple[tuple[str, bytes], ...] = ()
    key: bytes | None = b"rubbish"
    # So large that one partition of each topic has to do.
    is_large: bool = False


@dataclass(frozen=True)
class BadPost(Bad):
    """A webhook: its body, made of a mark, and the answer's status. `sign` changes the right signature."""

    make: Callable[[str], bytes]
    status: int = 200
    sign: Callable[[str], str | None] = field(default=lambda right: right)
    headers: Mapping[str, str] = field(default_factory=dict)
    is_aside: bool = False


@dataclass(frozen=True)
class BadBytes(Bad):
    """What comes to the door's socket, and how the answer begins; b"" where the connection is closed instead.
    `{…}` are filled in: path, body, length, signature."""

    wire: bytes
    answer: bytes


@dataclass(frozen=True)
class BadCall(Bad):
    """A call of an API with an admin's rights: body bytes or JSON, and the status of the answer."""

    service: str
    method: str
    path: str
    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def nested(depth: int, mark: str = "") -> str:
    return f'{{"mark": "{mark}", "deep": ' + "[" * depth + "]" * depth + "}"
