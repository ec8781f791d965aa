"""A small run that never was: one message of each kind, made as a Sendwhy without faults would leave it behind. The
judge's tests spoil one thing in it at a time."""

import copy
import hashlib
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import NAMESPACE_DNS, uuid5

from history import (
    Bounds,
    Canary,
    Contact,
    Entry,
    FaultBegan,
    FaultEnded,
    Healed,
    History,
    HttpBegan,
    HttpEnded,
    Journal,
    Json,
    Lag,
    Planted,
    PublishBegan,
    PublishEnded,
    Quiesced,
    Record,
    Recovered,
    Run,
    Said,
    Sender,
    TopUpBegan,
    TopUpEnded,
    WebhookBegan,
    WebhookEnded,
    write_api,
    write_lags,
    write_records,
    write_run,
)

BEGAN = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
WORKSPACE, SENDER = "acme", "415566778899001"
TOKEN = "EAAtoken-that-no-log-may-hold"
REFUSAL = {"error": {"code": 131056, "message": "(#131056) pair rate limit hit"}}


def moment(at: float) -> str:
    return (BEGAN + timedelta(seconds=at)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def phone_of(number: int) -> str:
    return f"+525512340{number:03d}"


class Making:
    """Times are seconds since the beginning."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.topics: dict[str, list[Record]] = {}
        self.calls: list[Json] = []
        self.webhooks: list[Json] = []
        self.ledger: list[Json] = []
        self.messages: list[Json] = []
        self.texts = {"logs/dispatcher~1.log": '{"event": "driving sender", "sender": "415566778899001"}\n'}
        self.actions = 0
        self.balance = 0

    # --- what is written ---

    def enter(self, at: float, entry: Entry) -> None:
        entry.at = BEGAN + timedelta(seconds=at)
        self.entries.append(entry)
        entry.n = len(self.entries)

    def action(self) -> str:
        self.actions += 1
        return f"a{self.actions}"

    def publish(
        self, topic: str, at: float, value: bytes | None, key: str = "k", headers: dict[str, str] | None = None
    ) -> Record:
        records = self.topics.setdefault(topic, [])
        told = tuple((name, text.encode()) for name, text in (headers or {}).items())
        ms = int((BEGAN.timestamp() + at) * 1000)
        records.append(Record(topic, 0, len(records), ms, key.encode(), value, told))
        return records[-1]

    def tell(self, topic: str, at: float, name: str, **event: object) -> Json:
        """An event with the id that follows from `name`."""
        told = {"event_id": str(uuid5(NAMESPACE_DNS, f"{topic}/{name}")), "occurred_at": moment(at), **event}
        self.publish(topic, at, json.dumps(told).encode())
        return told

    def book(self, kind: str, amount: int, message_id: str | None = None) -> None:
        self.balance += amount
        version = len(self.ledger) + 1
        entry = {"version": version, "kind": kind, "amount": amount, "balance_after": self.balance}
        self.ledger.append(entry | {"message_id": message_id})
        state = {"workspace_id": WORKSPACE, "version": version, "balance": self.balance}
        self.tell("account.updated", version / 1000, str(version), **state)

    # --- the way of a message ---

    def request(self, number: int, at: float, *, origin: str = "api") -> Json:
        message_id = f"m{number}"
        request = {
            "message_id": message_id,
            "workspace_id": WORKSPACE,
            "to": {"contact_id": f"c{number}", "phone": phone_of(number)},
            "origin": {"kind": origin, "id": "autumn"},
            "content": {"type": "text", "text": {"body": "Hello"}},
            "requested_at": moment(at),
        }
        value = json.dumps(request).encode()
        action, digest = self.action(), hashlib.sha256(value).hexdigest()
        self.enter(at, Contact(workspace_id=WORKSPACE, contact_id=f"c{number}", phone=phone_of(number)))
        self.enter(
            at,
            PublishBegan(
                action=action,
                topic="send.requested",
                value_sha256=digest,
                workspace_id=WORKSPACE,
                message_id=message_id,
            ),
        )
        where = self.publish("send.requested", at, value)
        self.enter(at + 0.01, PublishEnded(action=action, outcome="acknowledged", partition=0, offset=where.offset))
        return request

    def fund(self, number: int, at: float, *, origin: str = "api") -> None:
        request = self.request(number, at, origin=origin)
        self.tell("send.consented", at + 0.1, f"m{number}", request=request)
        self.tell("send.funded", at + 0.2, f"m{number}", request=request)
        self.book("reserve", -1, f"m{number}")

    def call(self, number: int, at: float, *, answer: Json | None = None, status: int | None = 200) -> str:
        """A call that is taken, refused by `answer`, or (status None) taken and not answered."""
        wamid = f"wamid.{number}"
        taken = {"messages": [{"id": wamid}]}
        self.calls.append(
            {
                "at": moment(at),
                "method": "POST",
                "path": f"/v25.0/{SENDER}/messages",
                "phone_number_id": SENDER,
                "biz_opaque_callback_data": f"sw1:{WORKSPACE}:m{number}",
                "to": phone_of(number)[1:],
                "whole": True,
                "http_status": status,
                "answered_at": None if status is None else moment(at + 0.05),
                "wamid": None if answer else wamid,
                "body": {"type": "template"},
                "answer": None if status is None else answer or taken,
            }
        )
        return wamid

    def status(self, number: int, at: float, status: str, *, service: str = "webhook-ingest", **more: object) -> None:
        wamid = f"wamid.{number}"
        if service == "webhook-ingest":
            element = {"id": wamid, "status": status, "timestamp": "1790000000"}
            self.webhook(at, {"statuses": [element]})
        told = {"message_id": f"m{number}", "workspace_id": WORKSPACE, "sender_id": SENDER, "service": service}
        told |= {"provider_message_id": wamid, "status": status, "observed_at": moment(at + 0.1)}
        self.tell("status.updated", at + 0.1, f"m{number}/{status}", **told, **more)

    def take(self, number: int, at: float) -> None:
        self.call(number, at)
        self.status(number, at, "accepted", service="dispatcher")

    def reject(self, number: int, at: float, code: str, service: str, **evidence: object) -> None:
        told = {"message_id": f"m{number}", "workspace_id": WORKSPACE, "service": service}
        self.tell("send.rejected", at, f"m{number}/{code}", **told, reason={"code": code, "evidence": evidence})

    def webhook(self, at: float, value: Json) -> Json:
        """Posted by the simulator, answered 503 and then 200."""
        told = {"messaging_product": "whatsapp", "metadata": {"phone_number_id": SENDER}, **value}
        body = {"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [{"value": told}]}]}
        raw = json.dumps(body).encode()
        digest = hashlib.sha256(raw).hexdigest()
        tries = [{"at": moment(at - 1), "http_status": 503, "sha256": digest}]
        tries.append({"at": moment(at), "http_status": 200, "sha256": digest})
        self.webhooks.append({"at": moment(at), "tries": tries, "body": body})
        self.publish("webhook.received", at, raw, headers={"source": "meta"})
        return body

    def show(self, number: int, status: str, code: str | None = None, waiting: Json | None = None) -> None:
        reason = None if code is None else {"code": code}
        one = {"message_id": f"m{number}", "status": status, "reason": reason, "waiting": waiting, "url": "http://x"}
        self.messages.append(one)

    def plant(self, at: float) -> None:
        value = b'{"message_id": "half'
        digest, action = hashlib.sha256(value).hexdigest(), self.action()
        self.enter(at, PublishBegan(action=action, topic="send.requested", value_sha256=digest, what="planted"))
        where = self.publish("send.requested", at, value)
        self.enter(at, PublishEnded(action=action, outcome="acknowledged", partition=0, offset=where.offset))
        self.enter(at, Planted(topic="send.requested", value_sha256=digest, why="half a request", offset=where.offset))
        headers = {"service": "consent", "topic": "send.requested", "partition": "0", "offset": str(where.offset)}
        self.publish("dead.letters", at + 1, value, headers=headers | {"error": "unreadable: body: Invalid JSON"})

    def forge(self, at: float) -> None:
        action = self.action()
        self.enter(at, WebhookBegan(action=action, sha256="f0" * 32, size=2, what="wrong-signature"))
        self.enter(at, WebhookEnded(action=action, status=401))

    def say(self, number: int, word: Literal["stop", "start"], at: float) -> None:
        wamid = f"wamid.said.{word}.{number}"
        who = {"workspace_id": WORKSPACE, "contact_id": f"c{number}"}
        self.enter(
            at,
            Said(workspace_id=WORKSPACE, contact_id=f"c{number}", phone=phone_of(number), word=word, wamid=wamid),
        )
        self.webhook(at + 0.5, {"messages": [{"id": wamid, "from": phone_of(number)[1:], "text": {"body": word}}]})
        self.tell("message.received", at + 0.6, wamid, workspace_id=WORKSPACE, wamid=wamid, phone=phone_of(number))
        state = "UNSUBSCRIBED" if word == "stop" else "SUBSCRIBED"
        version = 1 + sum(1 for record in self.topics.get("contact.updated", ()) if f"c{number}" in str(record.value))
        told = {"version": version, "marketing_state": state, "since": moment(at), "source": "stop_reply"}
        self.tell("contact.updated", at + 0.7, f"c{number}/{version}", **who, **told)

    # --- the whole ---

    def run(self) -> Run:
        bounds = Bounds(stop=5, unknown_outcome=20, call_timeout=5)
        ended = BEGAN + timedelta(seconds=300)
        return Run(seed=1, began_at=BEGAN, ended_at=ended, workspaces=[WORKSPACE], bounds=bounds)

    def lags(self) -> list[Lag]:
        ends = Counter({topic: len(records) for topic, records in self.topics.items()})
        return [Lag(group="sendwhy-x", topic=topic, partition=0, committed=end, end=end) for topic, end in ends.items()]

    def history(self) -> History:
        return History(
            run=self.run(),
            entries=self.entries,
            topics=dict(self.topics.items()),
            calls=self.calls,
            webhooks=self.webhooks,
            api={
                "messages": {WORKSPACE: self.messages},
                "ledger": {WORKSPACE: self.ledger[::-1]},
                "account": {WORKSPACE: {"balance": self.balance}},
            },
            rebuilt={"messages": {WORKSPACE: copy.deepcopy(self.messages)}},
            lags=self.lags(),
            texts=self.texts,
        )

    def write(self, folder: Path) -> None:
        write_run(folder, self.run())
        with Journal(folder) as journal:
            for entry in self.entries:
                at = entry.at
                journal.write(entry)
                entry.at = at
        for topic, records in self.topics.items():
            write_records(folder, topic, records)
        for name, lines in (("calls", self.calls), ("webhooks", self.webhooks)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_lags(folder, self.lags())
        write_api(folder, "messages", WORKSPACE, self.messages)
        write_api(folder, "ledger", WORKSPACE, self.ledger)
        write_api(folder, "account", WORKSPACE, {"balance": self.balance})
        write_api(folder, "messages", WORKSPACE, self.messages, rebuilt=True)
        for name, text in self.texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def good_run() -> Making:
    one = Making()
    sender = Sender(workspace_id=WORKSPACE, sender_id=SENDER, portfolio_id="p1", messages_per_second=80)
    one.enter(0, sender.model_copy(update={"messaging_limit": 2000}))
    one.enter(0, Canary(name="access token", value=TOKEN))
    one.enter(0, TopUpBegan(action="t1", workspace_id=WORKSPACE, credits=100, idempotency_key="first"))
    one.enter(1, TopUpEnded(action="t1", status=None, error="ReadTimeout"))
    one.enter(2, TopUpBegan(action="t2", workspace_id=WORKSPACE, credits=100, idempotency_key="first"))
    one.enter(3, TopUpEnded(action="t2", status=200))
    one.enter(3, HttpBegan(action="h1", service="consent", method="PUT", path="/v1/workspaces/acme/contacts/c1"))
    one.enter(3, HttpEnded(action="h1", status=503, body='{"title": "The database doesn\'t answer"}'))
    one.book("top_up", 100)
    _read(one, 1)
    _refused_and_delivered(one, 2)
    _not_opted_in(one, 3)
    _failed_later(one, 4)
    _waiting(one, 5)
    _unknown(one, 6)
    _unknown_then_receipt(one, 7)
    _stopped(one, 8)
    one.plant(40)
    one.forge(41)
    one.enter(100, Healed())
    one.enter(130, Recovered(ready_seconds=4, lag_zero_seconds=9, bound_seconds=60))
    one.enter(140, Quiesced())
    return one


def _read(one: Making, number: int) -> None:
    one.fund(number, 10)
    one.take(number, 11)
    for status in ("sent", "read", "delivered"):
        one.status(number, 12, status)
    one.book("capture", 0, f"m{number}")
    one.show(number, "read")


def _refused_and_delivered(one: Making, number: int) -> None:
    one.fund(number, 10)
    one.call(number, 11, answer=REFUSAL, status=400)
    one.take(number, 15)
    one.status(number, 16, "failed", reason={"code": "MESSAGE_UNDELIVERABLE"})
    one.status(number, 17, "delivered")
    one.book("release", 1, f"m{number}")
    one.book("recapture", -1, f"m{number}")
    one.show(number, "delivered")


def _not_opted_in(one: Making, number: int) -> None:
    one.request(number, 10, origin="campaign")
    one.reject(number, 11, "CUSTOMER_IS_NOT_OPTED_IN", "consent")
    one.show(number, "failed", "CUSTOMER_IS_NOT_OPTED_IN")


def _failed_later(one: Making, number: int) -> None:
    one.fund(number, 10)
    one.take(number, 11)
    one.status(number, 12, "sent")
    one.status(number, 13, "failed", reason={"code": "RECIPIENT_NOT_ON_WHATSAPP"})
    one.book("capture", 0, f"m{number}")
    one.book("refund", 1, f"m{number}")
    one.show(number, "failed", "RECIPIENT_NOT_ON_WHATSAPP")


def _waiting(one: Making, number: int) -> None:
    one.fund(number, 10)
    waiting = {"cause": "RATE_LIMIT_EXCEEDED", "since": moment(11), "until": moment(4000)}
    one.show(number, "waiting", waiting=waiting)


def _unknown(one: Making, number: int) -> None:
    """The dispatcher is killed while the call is out."""
    one.enter(20, FaultBegan(fault="f1", scenario="dies-after-request", target="dispatcher", may_hide_answers=True))
    one.fund(number, 20)
    one.call(number, 21)
    one.enter(25, FaultEnded(fault="f1"))
    one.reject(number, 45, "SEND_OUTCOME_UNKNOWN", "dispatcher", called_at=moment(20.9))
    one.book("release", 1, f"m{number}")
    one.show(number, "failed", "SEND_OUTCOME_UNKNOWN")


def _unknown_then_receipt(one: Making, number: int) -> None:
    """Meta takes the message and says nothing; its webhook comes late."""
    one.fund(number, 30)
    one.call(number, 31, status=None)
    one.reject(number, 52, "SEND_OUTCOME_UNKNOWN", "dispatcher", called_at=moment(31))
    one.book("release", 1, f"m{number}")
    one.status(number, 60, "accepted", service="dispatcher")
    one.status(number, 60, "sent")
    one.book("recapture", -1, f"m{number}")
    one.show(number, "sent")


def _stopped(one: Making, number: int) -> None:
    one.fund(number, 32, origin="campaign")
    one.take(number, 33)
    one.status(number, 34, "delivered")
    one.book("capture", 0, f"m{number}")
    one.show(number, "delivered")
    one.say(number, "start", 33)
    one.say(number, "stop", 35)
    one.enter(
        36,
        Said(
            workspace_id=WORKSPACE,
            contact_id=f"c{number}",
            phone=phone_of(number),
            word="start",
            wamid=f"wamid.said.start.{number}",
            repeat=True,
        ),
    )
