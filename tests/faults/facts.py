"""A run's history, gone through once and sorted by message: what the rules of judge.py look at. Only what contract.md
says of topics, and what the simulator's books tell."""

import hashlib
import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from history import (
    FaultBegan,
    FaultEnded,
    History,
    Json,
    Planted,
    Record,
    Recovered,
    WebhookBegan,
    WebhookEnded,
)

Key = tuple[str, str]
"""(workspace_id, message_id)."""
Place = tuple[str, int, int]
"""(topic, partition, offset)."""
GOOD = ("accepted", "sent", "delivered", "read", "played")
DELIVERED = ("delivered", "read", "played")
RECEIPTS = ("sent", *DELIVERED)
UNKNOWN_OUTCOME = "SEND_OUTCOME_UNKNOWN"
UNREADABLE = "INVALID_REQUEST"
# Concluded from silence, not told by Meta: no money goes back for these.
INFERRED = ("NO_DELIVERY_RECEIPT", "RECIPIENT_PROBABLY_BLOCKED_SENDER")
MARKETING_ORIGINS = ("campaign", "automation")
_SEND = re.compile(r"/\d+/messages$")
_CALLBACK = re.compile(r"sw1:([^:]+):(.+)")


def seconds(text: str | None) -> float | None:
    """Unix seconds of an RFC 3339 moment."""
    return None if text is None else datetime.fromisoformat(text).timestamp()


def clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sha256(value: bytes | None) -> str:
    return hashlib.sha256(value or b"").hexdigest()


def read_json(value: bytes | None) -> Json | None:
    """An object, or None."""
    try:
        read = json.loads(value or b"")
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


@dataclass(frozen=True, slots=True)
class Seen:
    """An event in a topic, where it stands first; `at` is when Kafka got it."""

    event_id: str
    place: Place
    at: float


@dataclass(frozen=True, slots=True)
class Request(Seen):
    """A readable send.requested."""

    purpose: str
    contact_id: str | None
    phone: str | None
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class Rejection(Seen):
    code: str
    service: str
    called_at: float | None


@dataclass(frozen=True, slots=True)
class StatusTold(Seen):
    """`deadline`: until when `accepted` says that a receipt is awaited."""

    status: str
    service: str
    wamid: str | None
    code: str | None
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Call:
    """A POST of a message to the simulator. `refused`: Meta's own error object was the answer."""

    at: float
    answered_at: float | None
    sender_id: str
    to: str | None
    whole: bool
    http_status: int | None
    refused: bool
    wamid: str | None
    is_template: bool

    @property
    def may_be_taken(self) -> bool:
        """Its request was read to its end, and no answer says for sure that it wasn't taken."""
        return self.whole and not self.refused

    def told(self) -> Json:
        return {
            "at": clock(self.at),
            "whole": self.whole,
            "http_status": self.http_status,
            "refused": self.refused,
            "wamid": self.wamid,
        }


@dataclass(frozen=True, slots=True)
class Delivery:
    """A POST of a webhook, by the simulator or the workload. `status` None: no answer came."""

    sha256: str
    at: float
    status: int | None
    what: str = "simulator"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    place: Place
    of: Place
    service: str
    error: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    id: str
    scenario: str
    target: str
    began: float
    ended: float
    over: float
    """When all had recovered from it."""
    may_hide_answers: bool

    def touches(self, since: float, until: float) -> bool:
        return self.began <= until and since <= self.ended


@dataclass
class Facts:
    history: History
    requests: dict[Key, Request] = field(default_factory=dict)
    consented: dict[Key, Seen] = field(default_factory=dict)
    funded: dict[Key, Seen] = field(default_factory=dict)
    rejections: dict[Key, list[Rejection]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[Key, list[StatusTold]] = field(default_factory=lambda: defaultdict(list))
    by_wamid: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Statuses that were told of each wamid."""
    inbound: set[str] = field(default_factory=set)
    """wamids in message.received."""
    calls: dict[Key, list[Call]] = field(default_factory=lambda: defaultdict(list))
    strays: list[Json] = field(default_factory=list)
    """Sends without callback data of ours."""
    deliveries: list[Delivery] = field(default_factory=list)
    raw: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    """webhook.received by the SHA-256 of the body, without its value."""
    dead: list[DeadLetter] = field(default_factory=list)
    digests: dict[Place, str] = field(default_factory=dict)
    """SHA-256 of the values of send.requested and of every record that a dead letter names."""
    faults: list[Fault] = field(default_factory=list)
    planted: dict[str, Planted] = field(default_factory=dict)
    heard: set[str] = field(default_factory=set)
    """Phones that wrote to us: their windows are open."""

    @property
    def workspaces(self) -> set[str]:
        return set(self.history.run.workspaces)

    @property
    def ended(self) -> float:
        return (self.history.run.ended_at or self.history.run.began_at).timestamp()

    def all_calls(self) -> Iterator[tuple[Key, Call]]:
        for key, calls in self.calls.items():
            for call in calls:
                yield key, call

    def told(self, key: Key) -> set[str]:
        return {one.status for one in self.statuses.get(key, ())}

    def standing(self, key: Key) -> str | None:
        """The status that stands, by contract.md's "How to read them"; None: nothing was told."""
        told = self.told(key)
        best = next((status for status in reversed(GOOD) if status in told), None)
        if best in DELIVERED:
            return best
        if "failed" in told:
            return "failed"
        rejected = {one.code for one in self.rejections.get(key, ())} - {UNREADABLE}
        if rejected - ({UNKNOWN_OUTCOME} if best else set()):
            return "failed"
        return best

    def calm_since(self, at: float) -> float:
        """The end of the last trouble before that moment; the moment itself within one."""
        return max((min(one.over, at) for one in self.faults if one.began <= at), default=0.0)

    def faults_at(self, since: float, until: float, *, hiding: bool = False) -> list[Fault]:
        return [one for one in self.faults if one.touches(since, until) and (one.may_hide_answers or not hiding)]


def gather(history: History) -> Facts:
    facts = Facts(history)
    facts.planted = {one.value_sha256: one for one in history.of(Planted)}
    facts.faults = list(_faults(history))
    _gather_raw(facts)
    _gather_dead(facts)
    _gather_requests(facts)
    _gather_judged(facts)
    _gather_told(facts)
    _gather_calls(facts)
    facts.deliveries = list(_deliveries(history))
    return facts


def _faults(history: History) -> Iterator[Fault]:
    ended = {one.fault: one for one in history.of(FaultEnded)}
    recovered = {one.what: one for one in history.of(Recovered)}
    last = history.run.ended_at or datetime.max.replace(tzinfo=UTC)
    for one in history.of(FaultBegan):
        end = ended.get(one.fault)
        if end is not None and end.error is not None:
            continue
        until = (last if end is None else end.when).timestamp()
        after = recovered.get(one.fault)
        over = until if after is None else max(until, after.when.timestamp())
        yield Fault(one.fault, one.scenario, one.target, one.when.timestamp(), until, over, one.may_hide_answers)


def _place(record: Record) -> Place:
    return record.topic, record.partition, record.offset


def _seen(record: Record, event: Json) -> tuple[str, Place, float]:
    return str(event.get("event_id")), _place(record), record.timestamp / 1000


def _events(facts: Facts, topic: str) -> Iterator[tuple[Record, Json]]:
    """Events of the run's workspaces; of all where none is named. Without what the workload planted there."""
    planted = {digest for digest, one in facts.planted.items() if one.topic == topic}
    for record in facts.history.records(topic):
        event = read_json(record.value)
        if event is None or (planted and sha256(record.value) in planted):
            continue
        workspace = event.get("workspace_id") or _object(event.get("request")).get("workspace_id")
        if not facts.workspaces or workspace is None or workspace in facts.workspaces:
            yield record, event


def _gather_raw(facts: Facts) -> None:
    for record in facts.history.records("webhook.received"):
        bare = Record(record.topic, record.partition, record.offset, record.timestamp, record.key, None, record.headers)
        facts.raw[sha256(record.value)].append(bare)


def _gather_dead(facts: Facts) -> None:
    for record in facts.history.records("dead.letters"):
        told = {name: value.decode(errors="replace") for name, value in record.headers}
        place = (told.get("topic", ""), _integer(told.get("partition")), _integer(told.get("offset")))
        letter = DeadLetter(_place(record), place, told.get("service", ""), told.get("error", ""), record.value or b"")
        facts.dead.append(letter)
    wanted = {letter.of for letter in facts.dead}
    for topic in {place[0] for place in wanted}:
        for record in facts.history.records(topic):
            if _place(record) in wanted:
                facts.digests[_place(record)] = sha256(record.value)


def _integer(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else -1


def _gather_requests(facts: Facts) -> None:
    for record, event in _events(facts, "send.requested"):
        workspace, message_id = event.get("workspace_id"), event.get("message_id")
        if not isinstance(workspace, str) or not isinstance(message_id, str):
            continue
        to, origin = _object(event.get("to")), _object(event.get("origin"))
        purpose = event.get("purpose") or ("marketing" if origin.get("kind") in MARKETING_ORIGINS else "other")
        request = Request(
            *_seen(record, event), str(purpose), to.get("contact_id"), to.get("phone"), seconds(event.get("expires_at"))
        )
        _keep_earliest(facts.requests, (workspace, message_id), request)
    for record in facts.history.records("send.requested"):
        facts.digests[_place(record)] = sha256(record.value)


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _gather_judged(facts: Facts) -> None:
    for topic, into in (("send.consented", facts.consented), ("send.funded", facts.funded)):
        for record, event in _events(facts, topic):
            request = _object(event.get("request"))
            _keep_earliest(into, (request["workspace_id"], request["message_id"]), Seen(*_seen(record, event)))


S = TypeVar("S", bound=Seen)
K = TypeVar("K")


def _keep_earliest(into: dict[K, S], key: K, seen: S) -> None:
    """A topic is read partition by partition, and once partitions were added a repeat may stand on an earlier one."""
    known = into.get(key)
    if known is None or seen.at < known.at:
        into[key] = seen


def _gather_told(facts: Facts) -> None:
    rejections: dict[tuple[Key, str], Rejection] = {}
    for record, event in _events(facts, "send.rejected"):
        why = event["reason"]
        called_at = seconds(_object(why.get("evidence")).get("called_at"))
        rejection = Rejection(*_seen(record, event), why["code"], event["service"], called_at)
        _keep_earliest(rejections, ((event["workspace_id"], event["message_id"]), rejection.event_id), rejection)
    for (key, _), rejection in rejections.items():
        facts.rejections[key].append(rejection)
    statuses: dict[tuple[Key, str], StatusTold] = {}
    for record, event in _events(facts, "status.updated"):
        wamid = event.get("provider_message_id")
        if wamid and event["service"] != "dispatcher":
            facts.by_wamid[wamid].add(event["status"])
        if event.get("message_id") is None:
            continue
        code = _object(event.get("reason")).get("code")
        deadline = seconds(event.get("receipt_deadline"))
        status = StatusTold(*_seen(record, event), event["status"], event["service"], wamid, code, deadline)
        _keep_earliest(statuses, ((event["workspace_id"], event["message_id"]), status.event_id), status)
    for (key, _), status in statuses.items():
        facts.statuses[key].append(status)
    for _, event in _events(facts, "message.received"):
        facts.inbound.add(event["wamid"])
        if event.get("phone"):
            facts.heard.add(digits(event["phone"]))


def digits(phone: str | None) -> str:
    return "".join(character for character in phone or "" if character.isdigit())


def is_refusal(http_status: int | None, answer: Any) -> bool:
    """Meta's own error object, with a code: surely not taken (meta-cloud-api.md). Without a code only a 4xx is."""
    error = answer.get("error") if isinstance(answer, dict) and not answer.get("messages") else None
    if http_status is None or not error:
        return False
    code = error.get("code") if isinstance(error, dict) else None
    return code is not None or 400 <= http_status < 500


def _gather_calls(facts: Facts) -> None:
    for told in facts.history.calls:
        body = _object(told.get("body"))
        if told["method"] != "POST" or not _SEND.search(told["path"]) or body.get("status") == "read":
            continue
        match = _CALLBACK.fullmatch(told.get("biz_opaque_callback_data") or "")
        if match is None:
            if told["whole"]:
                facts.strays.append(told)
            continue
        at = seconds(told["at"])
        assert at is not None
        facts.calls[match[1], match[2]].append(
            Call(
                at,
                seconds(told.get("answered_at")),
                str(told["phone_number_id"]),
                told["to"],
                bool(told["whole"]),
                told["http_status"],
                is_refusal(told["http_status"], told["answer"]),
                told["wamid"],
                body.get("type") == "template",
            )
        )
    for calls in facts.calls.values():
        calls.sort(key=lambda call: call.at)


def _deliveries(history: History) -> Iterator[Delivery]:
    told: set[tuple[str, float]] = set()
    for webhook in history.webhooks:
        for one in webhook["tries"]:
            at = seconds(one["at"])
            assert at is not None
            # The updates of one POST share its tries.
            if (one["sha256"], at) not in told:
                told.add((one["sha256"], at))
                yield Delivery(one["sha256"], at, one["http_status"])
    ended = {one.action: one for one in history.of(WebhookEnded)}
    for began in history.of(WebhookBegan):
        end = ended.get(began.action)
        at = (began if end is None else end).when.timestamp()
        yield Delivery(began.sha256, at, None if end is None else end.status, began.what)


def busiest(times: Iterable[float], window: float) -> tuple[int, float]:
    """The most moments in any window of that many seconds, and where it begins."""
    ordered = sorted(times)
    best, at = 0, 0.0
    for index, moment in enumerate(ordered):
        count = bisect_right(ordered, moment + window) - index
        if count > best:
            best, at = count, moment
    return best, at
