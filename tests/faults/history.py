"""What a fault run leaves behind, as files: whoever makes a run writes them, judge.py reads them, nothing else passes
between the two. Imports nothing of Sendwhy's own: the checker must not share the mistakes of what it checks.

A run is a folder:

    run.json               Run: seed, commit, command, times, bounds
    journal.jsonl          one Entry a line, written and flushed before and after each action (Journal)
    topics/<topic>.jsonl   Record: every record of every public topic from its first offset
    calls.jsonl            the simulator's GET /_sim/calls, as it is
    webhooks.jsonl         the simulator's GET /_sim/webhooks, as it is
    api/<what>-<workspace>.json
                           last reads: `messages` (items of message-log's list, all pages), `queue`, `account`, `ledger`
                           (items, all pages), `senders` (list)
    rebuilt/messages-<workspace>.json
                           the same list of a message-log rebuilt from the topics into an empty database
    lags.json              list of Lag: where each consumer group ended
    metrics/*.txt          /metrics of each process at the end
    logs/*.log             standard output and error of each process

Whoever starts an action writes its `…Began` first. An `…Ended` that is missing means: nobody knows what came of it.
"""

import base64
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Json = dict[str, Any]
TOPICS = (
    "send.requested",
    "send.consented",
    "send.funded",
    "send.rejected",
    "send.held",
    "send.recalled",
    "send.cancelled",
    "status.updated",
    "webhook.received",
    "webhook.refused",
    "message.received",
    "customer.updated",
    "template.reported",
    "sender.reported",
    "contact.updated",
    "template.updated",
    "sender.updated",
    "account.updated",
    "person.erasing",
    "person.erased",
    "dead.letters",
)


class Entry(BaseModel):
    """`at` and `n` (the place in the journal) are set when it is written. Unknown fields are kept."""

    model_config = ConfigDict(extra="allow")

    at: datetime | None = None
    n: int = 0

    @property
    def when(self) -> datetime:
        assert self.at is not None, "an entry that was never written"
        return self.at


# --- the workload ---


class PublishBegan(Entry):
    """A record is handed to the producer. `what`: request; planted, a bad record (see Planted); or other."""

    kind: Literal["publish.began"] = "publish.began"
    action: str
    topic: str
    value_sha256: str
    what: Literal["request", "planted", "other"] = "request"
    workspace_id: str | None = None
    message_id: str | None = None


class PublishEnded(Entry):
    """`acknowledged` by all replicas, at that place; or failed, which may mean that it is there nevertheless."""

    kind: Literal["publish.ended"] = "publish.ended"
    action: str
    outcome: Literal["acknowledged", "failed"]
    partition: int | None = None
    offset: int | None = None
    error: str | None = None


class Planted(Entry):
    """A bad record that must end in dead.letters, byte for byte; where it is, once its publish was acknowledged.
    `dead_letters`: how many (a webhook with two unreadable elements makes two)."""

    kind: Literal["planted"] = "planted"
    topic: str
    value_sha256: str
    why: str
    partition: int | None = None
    offset: int | None = None
    dead_letters: int = 1


class HttpBegan(Entry):
    """A call of a service's API by the workload. `what` names it for people."""

    kind: Literal["http.began"] = "http.began"
    action: str
    service: str
    method: str
    path: str
    what: str = ""


class HttpEnded(Entry):
    """`status` None: no answer. `body`: of answers from 400 on, at most 4 kB."""

    kind: Literal["http.ended"] = "http.ended"
    action: str
    status: int | None
    error: str | None = None
    body: str | None = None


class TopUpBegan(Entry):
    """A repeat has the key of what it repeats."""

    kind: Literal["topup.began"] = "topup.began"
    action: str
    workspace_id: str
    credits: int
    idempotency_key: str


class TopUpEnded(Entry):
    kind: Literal["topup.ended"] = "topup.ended"
    action: str
    status: int | None
    error: str | None = None


class WebhookBegan(Entry):
    """A webhook that the workload itself posts (the simulator's own are in webhooks.jsonl). `what`: valid, duplicate,
    replayed (an old one again), unsigned, wrong-signature, too-large, rubbish (signed, but no JSON)."""

    kind: Literal["webhook.began"] = "webhook.began"
    action: str
    sha256: str
    size: int
    what: str
    url: str = ""


class WebhookEnded(Entry):
    kind: Literal["webhook.ended"] = "webhook.ended"
    action: str
    status: int | None
    error: str | None = None


class Contact(Entry):
    """A person of the workload, as it was put. `phone` in international form."""

    kind: Literal["contact"] = "contact"
    workspace_id: str
    contact_id: str
    phone: str
    marketing_state: str = "SUBSCRIBED"


class Said(Entry):
    """A person says STOP or START. `wamid`: of the person's message, where the simulator's answer or the body told it.
    `repeat`: an old webhook posted again. When its webhook was answered 200 is in the books of who posted it."""

    kind: Literal["said"] = "said"
    workspace_id: str
    contact_id: str
    phone: str
    word: Literal["stop", "start"]
    wamid: str | None = None
    sha256: str | None = None
    repeat: bool = False


# --- what the judge must know ---


class Sender(Entry):
    """A number of Meta's and what it may. `messaging_limit` None: unlimited."""

    kind: Literal["sender"] = "sender"
    workspace_id: str
    sender_id: str
    portfolio_id: str
    messages_per_second: int
    messaging_limit: int | None = None


class Canary(Entry):
    """What no log, metric, error body or dead letter's error text may hold. `name` says what it is."""

    kind: Literal["canary"] = "canary"
    name: str
    value: str


# --- the nemesis ---


class FaultBegan(Entry):
    """`fault` is its id. `scenario`: its name in the list of scenarios. `target`: what it hits, as dispatcher/0, kafka,
    postgres, dispatcher->meta. `may_hide_answers`: Meta's answers, or what was noted of them, can get lost by it."""

    kind: Literal["fault.began"] = "fault.began"
    fault: str
    scenario: str
    target: str
    parameters: Json = Field(default_factory=dict)
    may_hide_answers: bool = False


class FaultEnded(Entry):
    """Injected and taken back. `error`: it could not be injected as meant, and doesn't count."""

    kind: Literal["fault.ended"] = "fault.ended"
    fault: str
    error: str | None = None


class Healed(Entry):
    """All faults are taken back; nothing new is published from here on."""

    kind: Literal["healed"] = "healed"


class Recovered(Entry):
    """After healing (`what` heal) or a fault (its id). None: never, within what was waited."""

    kind: Literal["recovered"] = "recovered"
    what: str = "heal"
    ready_seconds: float | None
    lag_zero_seconds: float | None
    bound_seconds: float


class Quiesced(Entry):
    """Lag 0 and no wait overdue; from here on only reads."""

    kind: Literal["quiesced"] = "quiesced"
    reached: bool = True
    detail: str = ""


class Checked(Entry):
    """What only the rig can see, and found: `count` things looked at, `violations` as texts."""

    kind: Literal["checked"] = "checked"
    invariant: str
    what: str
    count: int
    violations: list[str] = Field(default_factory=list)


class Note(Entry):
    kind: Literal["note"] = "note"
    text: str


AnyEntry = Annotated[
    PublishBegan
    | PublishEnded
    | Planted
    | HttpBegan
    | HttpEnded
    | TopUpBegan
    | TopUpEnded
    | WebhookBegan
    | WebhookEnded
    | Contact
    | Said
    | Sender
    | Canary
    | FaultBegan
    | FaultEnded
    | Healed
    | Recovered
    | Quiesced
    | Checked
    | Note,
    Field(discriminator="kind"),
]
_ENTRY: TypeAdapter[AnyEntry] = TypeAdapter(AnyEntry)


class Bounds(BaseModel):
    """What the judge holds the run against; the settings of the run shorten them. Seconds."""

    stop: float = 30
    """From the 200 to the STOP's webhook to the last marketing call to that person, whatever happens meanwhile."""
    stop_calm: float = 15
    """The same, counted from the end of the last fault and the recovery from it where that is later."""
    unknown_outcome: float = 600
    """SENDWHY_UNKNOWN_OUTCOME_SECONDS of the run."""
    call_timeout: float = 30
    """The longest that the dispatcher waits for Meta's answer."""
    clock: float = 2
    """By how much times of two processes on one machine, and their roundings, may differ."""


class Run(BaseModel):
    """run.json."""

    model_config = ConfigDict(extra="allow")

    seed: int
    commit: str = ""
    command: str = ""
    began_at: datetime
    ended_at: datetime | None = None
    workspaces: list[str] = Field(default_factory=list)
    scenarios: list[str] = Field(default_factory=list)
    settings: dict[str, str] = Field(default_factory=dict)
    bounds: Bounds = Field(default_factory=Bounds)
    planted_bug: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a topic. `timestamp` in ms since 1970 (Kafka's, of its arrival)."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    def header(self, name: str) -> bytes | None:
        return next((value for known, value in self.headers if known == name), None)

    def to_line(self) -> str:
        return json.dumps(
            {
                "partition": self.partition,
                "offset": self.offset,
                "timestamp": self.timestamp,
                "key": _encoded(self.key),
                "headers": [[name, _encoded(value)] for name, value in self.headers],
                "value": _encoded(self.value),
            }
        )

    @classmethod
    def of_line(cls, topic: str, line: str) -> "Record":
        read = json.loads(line)
        headers = tuple((name, _decoded(value) or b"") for name, value in read["headers"])
        where = (read["partition"], read["offset"], read["timestamp"])
        return cls(topic, *where, _decoded(read["key"]), _decoded(read["value"]), headers)


class Lag(BaseModel):
    """`committed` None: the group never committed there. `begin`: the partition's first offset."""

    group: str
    topic: str
    partition: int
    committed: int | None
    begin: int = 0
    end: int

    @property
    def lag(self) -> int:
        return self.end - (self.begin if self.committed is None else self.committed)


def _encoded(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _decoded(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


class Journal:
    """Writes entries. Each is with the kernel when `write` returns: it survives the death of the writer, not of the
    machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "journal.jsonl").open("ab", buffering=0)
        self._numbers = itertools.count(1)

    def write(self, entry: Entry) -> Entry:
        """The entry as it stands in the journal."""
        entry.at, entry.n = datetime.now(UTC), next(self._numbers)
        self._file.write(entry.model_dump_json().encode() + b"\n")
        return entry

    def action(self) -> str:
        """A new id for an action."""
        return f"a{next(self._actions)}"

    @cached_property
    def _actions(self) -> "itertools.count[int]":
        return itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def write_run(folder: Path, run: Run) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(run.model_dump_json(indent=1) + "\n")


def write_records(folder: Path, topic: str, records: Iterable[Record]) -> int:
    """How many."""
    (folder / "topics").mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / "topics" / f"{topic}.jsonl").open("w") as file:
        for record in records:
            file.write(record.to_line() + "\n")
            count += 1
    return count


def write_lags(folder: Path, lags: Iterable[Lag]) -> None:
    (folder / "lags.json").write_text(json.dumps([lag.model_dump() for lag in lags], indent=0) + "\n")


def write_api(folder: Path, what: str, workspace: str, told: Any, *, rebuilt: bool = False) -> None:
    into = folder / ("rebuilt" if rebuilt else "api")
    into.mkdir(parents=True, exist_ok=True)
    (into / f"{what}-{workspace}.json").write_text(json.dumps(told) + "\n")


_E = TypeVar("_E", bound=Entry)


@dataclass(frozen=True)
class _RecordsOfFile:
    path: Path

    def __iter__(self) -> Iterator[Record]:
        return (Record.of_line(self.path.stem, line) for line in _lines(self.path))


@dataclass(frozen=True)
class _JsonOfFile:
    path: Path

    def __iter__(self) -> Iterator[Json]:
        return (json.loads(line) for line in _lines(self.path))


@dataclass
class History:
    """All that a run left. What wasn't recorded is empty, and None where empty would say something else. What is large
    is read anew each time that it is gone through, and never held whole."""

    run: Run
    entries: list[Entry] = field(default_factory=list)
    topics: dict[str, Iterable[Record]] = field(default_factory=dict)
    calls: Iterable[Json] = ()
    webhooks: Iterable[Json] = ()
    api: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By what (messages, queue, account, ledger, senders) and workspace."""
    rebuilt: dict[str, dict[str, Any]] | None = None
    lags: list[Lag] | None = None
    texts: dict[str, str] = field(default_factory=dict)
    """Logs and metrics, by file."""

    def records(self, topic: str) -> Iterable[Record]:
        return self.topics.get(topic, ())

    def of(self, kind: type[_E]) -> list[_E]:
        return [entry for entry in self.entries if isinstance(entry, kind)]

    @classmethod
    def read(cls, folder: Path) -> "History":
        rebuilt = _read_api(folder / "rebuilt")
        lags = folder / "lags.json"
        return cls(
            run=Run.model_validate_json((folder / "run.json").read_bytes()),
            entries=[_ENTRY.validate_json(line) for line in _lines(folder / "journal.jsonl")],
            topics={path.stem: _RecordsOfFile(path) for path in sorted((folder / "topics").glob("*.jsonl"))},
            calls=_JsonOfFile(folder / "calls.jsonl"),
            webhooks=_JsonOfFile(folder / "webhooks.jsonl"),
            api=_read_api(folder / "api"),
            rebuilt=rebuilt or None,
            lags=[Lag.model_validate(each) for each in json.loads(lags.read_bytes())] if lags.exists() else None,
            texts={
                str(path.relative_to(folder)): path.read_text(errors="replace")
                for name in ("logs/*.log", "metrics/*.txt")
                for path in sorted(folder.glob(name))
            },
        )


def _read_api(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        what, _, workspace = path.stem.partition("-")
        found[what][workspace] = json.loads(path.read_bytes())
    return dict(found)


def _lines(path: Path) -> Iterator[str]:
    """None of a file that isn't there. A last line that was cut off by the writer's death is left out."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            if line.endswith("\n") and line != "\n":
                yield line
