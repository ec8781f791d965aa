"""What a delivery's body is read into."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import field
from datetime import datetime
from typing import Literal

from pydantic import JsonValue
from sendwhy.events import CustomerUpdated, Event, MessageReceived, Reason, Status
from sendwhy.reasons import ReasonCode
from sendwhy.values import value_class

from webhook_ingest.values import JSON, Fragment, object_of

READING_BYTES = 16
# Meta's shape of a user id, no longer than what is kept of one that comes with a message: the two are compared.
USER_ID = r"[A-Z]{2}\.[A-Za-z0-9.]{1,125}"
_CALLBACK = re.compile(r"sw1:([A-Za-z0-9_\-]{1,64}):([A-Za-z0-9._:\-]{1,128})")


@value_class
class Delivery:
    """One signed POST. `signer` is the app's id (Meta) or the workspace (Shopify), `at` when Kafka stored it,
    `topic` and `event_id` Shopify's; partition and offset are where it stands on webhook.received."""

    source: Literal["meta", "shopify"]
    signer: str
    body: bytes
    at: datetime
    partition: int
    offset: int
    topic: str = ""
    trace: bytes | None = None
    event_id: str = ""

    @property
    def place(self) -> tuple[int, int]:
        return self.partition, self.offset


@value_class
class Origin:
    """Where an element stood: enough to write a webhook that holds it alone. `key` is the array's name, or "" where
    the element stood in none; `time` the entry's, which Meta gives to most fields."""

    waba: str
    number: str | None
    field: str
    shared: Fragment
    key: str
    item: JsonValue
    time: str | None = None

    def alone(self) -> bytes:
        told: Fragment = {self.key: [self.item]} if self.key else object_of(self.item)
        # What stood in no array may be the whole value, and reads as another one with more in it.
        is_whole = not self.key and (self.number is None or "metadata" in told)
        value = told if is_whole else {"messaging_product": "whatsapp", **self.shared, **told}
        at: Fragment = {} if self.time is None else {"time": self.time}
        entry: Fragment = {"id": self.waba, **at, "changes": [{"field": self.field, "value": value}]}
        return JSON.dump_json({"object": "whatsapp_business_account", "entry": [entry]})


@value_class
class Whole:
    """The origin of a body's only element; `rewritten` makes of the body what `Origin.alone` would."""

    waba: str
    number: str
    field: str
    body: bytes
    rewritten: Callable[[bytes], bytes]

    def alone(self) -> bytes:
        return self.rewritten(self.body)


@value_class
class StatusTold:
    """One element of `statuses`. `callback` is (workspace_id, message_id) of our own biz_opaque_callback_data;
    `reading` stands for all that was understood but the time and the person: a repeat has the same, whenever it comes.
    `link` is (phone, user id) of the one person whom the message reached, where Meta names them by both."""

    origin: Origin | Whole
    wamid: str
    status: Status
    occurred_at: datetime
    callback: tuple[str, str] | None
    reading: bytes
    reason: Reason | None = None
    pricing: Fragment | None = None
    conversation: Fragment | None = None
    extra: Fragment | None = None
    link: tuple[str, str] | None = None


@value_class
class Report:
    """Anything else: an event that still lacks its workspace; `cause` is a name that a repeat keeps, and that tells
    apart what was understood."""

    origin: Origin
    cause: str
    event: Event

    @property
    def is_personal(self) -> bool:
        """Whether it is worth nothing without the workspace that it belongs to."""
        return isinstance(self.event, MessageReceived | CustomerUpdated)


@value_class
class Unreadable:
    fragment: bytes
    error: str


Element = StatusTold | Report | Unreadable


@value_class
class Reading:
    """A body's elements; how often it held something that Sendwhy doesn't know (field, status, type, code); and the
    errors told beside any status, by place (value, element) and reason."""

    elements: tuple[Element, ...]
    unknown: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, ReasonCode]] = field(default_factory=Counter)


def callback_of(told: str) -> tuple[str, str] | None:
    """(workspace_id, message_id) of our own biz_opaque_callback_data."""
    found = _CALLBACK.fullmatch(told)
    return None if found is None else (found[1], found[2])


def understood(why: Reason | None, rest: Iterable[Fragment | None]) -> bytes:
    """What stands for the reading of a status: for its reason, and for pricing, conversation and what else it holds.
    Not for its time: the same status told again a second later, or by another device, is a repeat."""
    return digest_of((b"" if why is None else why.to_json(), JSON.dump_json(list(rest))))


def digest_of(parts: Iterable[bytes]) -> bytes:
    return hashlib.blake2b(b"\n".join(parts), digest_size=READING_BYTES).digest()


def report_of(origin: Origin, cause: str, event: Event, told_at: datetime | None) -> Report:
    """A report whose name holds what was understood; not `occurred_at`, which may be when we observed it."""
    content = event.model_dump_json(exclude={"event_id", "occurred_at", "observed_at"}).encode()
    told = b"" if told_at is None else told_at.isoformat().encode()
    return Report(origin, f"{cause}/{digest_of((told, content)).hex()}", event)
