"""Everything the simulator knows: accounts, numbers, people, windows, and what went to and fro."""

import asyncio
import base64
import json
import random
import secrets
import time
import zlib
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from meta_simulator.bodies import Account, Delays, Inbound, Number, Recipient, Seed, Settings, Template
from meta_simulator.clock import Clock
from meta_simulator.errors import Json
from meta_simulator.limits import PairRate, Throughput, UniqueRecipients
from meta_simulator.messages import digits, is_user_id
from meta_simulator.poster import Poster
from meta_simulator.scenarios import BY_SUFFIX, OK, SCENARIOS, Scenario, Status
from meta_simulator.webhooks import Outbox, Webhook

BOOKS_KEEP = 200_000
WINDOW_SECONDS = 86_400.0
OVERTAKEN_SECONDS = 3.0


@dataclass(slots=True)
class Call:
    """One HTTP call to Meta's paths. `whole`: the request body was read to its end. `answered_at`: when the answer was
    given to the network; None where there was none."""

    method: str
    path: str
    phone_number_id: str | None = None
    body: bytes = b""
    is_json: bool = False
    whole: bool = True
    to: str | None = None
    callback_data: str | None = None
    http_status: int | None = None
    answer: bytes | None = None
    wamid: str | None = None
    at: float = field(default_factory=time.time)
    answered_at: float | None = None

    def answered(self, http_status: int, answer: bytes) -> None:
        self.http_status, self.answer, self.answered_at = http_status, answer, time.time()


@dataclass(slots=True)
class Line:
    """A number at Meta's side: its settings, its throughput, its webhooks on their way."""

    id: str
    number: Number
    throughput: Throughput
    outbox: Outbox
    display: str = ""
    maintenance_until: float = 0.0

    @property
    def metadata(self) -> Json:
        return {"display_phone_number": self.display, "phone_number_id": self.id}


@dataclass(slots=True)
class Person:
    """A recipient with a scenario. `tries` counts calls, under "" or each message's callback data."""

    scenario: Scenario
    delays: Delays = field(default_factory=Delays)
    tries: dict[str, int] = field(default_factory=dict)
    capped_since: float | None = None

    def count_try(self, key: str) -> int:
        """How many came before."""
        tried = self.tries.get(key, 0)
        self.tries[key] = tried + 1
        return tried


@dataclass(slots=True)
class Message:
    """A message Meta took."""

    wamid: str
    line: Line
    to: str
    wa_id: str | None
    category: str
    callback_data: str | None
    template: Template | None
    delays: Delays

    @property
    def user_id(self) -> str:
        return self.to if "." in self.to else f"GB.7041552{self.to}"


USUAL = Person(OK)


class World:
    """`keep`: of how many calls, and of how many webhooks, the books tell; the oldest are forgotten."""

    def __init__(self, keep: int = BOOKS_KEEP) -> None:
        self.poster = Poster()
        self.clock = Clock()
        self.settings = Settings()
        self.accounts: dict[str, Account] = {}
        self.lines: dict[str, Line] = {}
        self.calls: deque[Call] = deque(maxlen=keep)
        self.webhooks: deque[Webhook] = deque(maxlen=keep)
        self.pairs = PairRate()
        self.playing: set[asyncio.Task[None]] = set()
        self.go_down: Callable[[float], Coroutine[Any, Any, None]] | None = None
        self._templates: dict[tuple[str, str, str], Template] = {}
        self._accounts_of: dict[str, set[str]] = {}
        self._people: dict[str, Person] = {}
        self._windows: dict[tuple[str, str], float] = {}
        self._stopped: set[tuple[str, str]] = set()
        self._reached: dict[str, UniqueRecipients] = {}
        self._blocked: dict[str, tuple[int, float]] = {}

    # accounts and numbers

    def seed(self, seed: Seed) -> None:
        self.set_settings(seed.settings)
        for waba_id, account in seed.accounts.items():
            self.set_account(waba_id, account)
        for number_id, number in seed.numbers.items():
            self.set_number(number_id, number)
        for phone, recipient in seed.recipients.items():
            self.set_recipient(phone, recipient)

    def set_settings(self, settings: Settings) -> None:
        self.settings = settings
        self.clock.rescale(settings.time_scale)
        for line in self.lines.values():
            line.outbox.batch = settings.webhooks.batch

    def set_account(self, waba_id: str, account: Account) -> None:
        before = self.accounts.get(waba_id)
        self.accounts[waba_id] = account
        self._templates = {key: kept for key, kept in self._templates.items() if key[0] != waba_id}
        for template in account.templates:
            key = (waba_id, template.name, template.language)
            template.id = template.id or str(7_000_000_000_000_000 + zlib.crc32("/".join(key).encode()))
            self._templates[key] = template
        if before and before.messaging_limit != account.messaging_limit:
            limit = account.messaging_limit or "UNLIMITED"
            value = {"max_daily_conversations_per_business": limit, "max_phone_numbers_per_waba": 25}
            self.tell_account(waba_id, "business_capability_update", value)

    def set_number(self, number_id: str, number: Number) -> None:
        line = self.lines.get(number_id)
        if line is None:
            line = Line(
                number_id,
                number,
                Throughput(number.messages_per_second),
                Outbox(self.poster, self.clock, self.settings.webhooks.batch),
            )
            self.lines[number_id] = line
        if line.number.messages_per_second != number.messages_per_second:
            line.throughput = Throughput(number.messages_per_second)
        line.number, line.display = number, digits(number.display_phone_number)
        self._accounts_of = {}
        for each in self.lines.values():
            if each.number.access_token:
                self._accounts_of.setdefault(each.number.access_token, set()).add(each.number.waba_id)
        line.outbox.url, line.outbox.secret = number.webhook_url, number.app_secret

    def lines_of(self, waba_id: str) -> list[Line]:
        return [line for line in self.lines.values() if line.number.waba_id == waba_id]

    def account_of(self, line: Line) -> Account:
        return self.accounts.get(line.number.waba_id) or Account()

    def block(self, waba_id: str, code: int, seconds: float) -> None:
        """All sends of the account are refused with that code, for so long."""
        self._blocked[waba_id] = (code, self.clock.now() + seconds)

    def refusing_code(self, line: Line) -> int | None:
        """Why this number takes nothing at all at the moment."""
        now = self.clock.now()
        if now < line.maintenance_until:
            return 131057
        code, until = self._blocked.get(line.number.waba_id, (0, 0.0))
        return code if now < until else None

    def may_see(self, token: str | None, waba_id: str) -> bool:
        return waba_id in self._accounts_of.get(token or "", ())

    def knows(self, token: str | None) -> bool:
        return bool(token) and token in self._accounts_of

    def template(self, waba_id: str, name: str, language: str) -> Template | None:
        return self._templates.get((waba_id, name, language))

    # people

    def set_recipient(self, phone: str, recipient: Recipient) -> None:
        self._people[digits(phone)] = Person(_scenario_of(recipient), recipient.delays_ms)

    def person(self, to: str) -> Person:
        person = self._people.get(to)
        if person is None and self.settings.suffixes and to[-4:] in BY_SUFFIX:
            person = self._people[to] = Person(BY_SUFFIX[to[-4:]])
        return person or USUAL

    def random_answer(self) -> str | None:
        """The HTTP status or scenario this call gets by `settings.answers`, if any."""
        if not self.settings.answers:
            return None
        point = random.random()
        for name, share in self.settings.answers.items():
            point -= share
            if point < 0:
                return name
        return None

    def open_window(self, line: Line, phone: str, seconds_ago: float = 0) -> None:
        opened = self.clock.now() - seconds_ago
        pair = (line.id, phone)
        self._windows[pair] = max(opened, self._windows.get(pair, opened))

    def window_is_open(self, line: Line, phone: str) -> bool:
        opened = self._windows.get((line.id, phone))
        return opened is not None and self.clock.now() < opened + WINDOW_SECONDS

    def set_preference(self, line: Line, phone: str, value: str) -> None:
        person = (line.number.waba_id, phone)
        if value == "stop":
            self._stopped.add(person)
        else:
            self._stopped.discard(person)

    def has_stopped(self, line: Line, phone: str) -> bool:
        return (line.number.waba_id, phone) in self._stopped

    def within_messaging_limit(self, line: Line, to: str) -> bool:
        account = self.account_of(line)
        reached = self._reached.setdefault(account.portfolio_id or line.number.waba_id, UniqueRecipients())
        return reached.take(to, account.messaging_limit, self.clock.now())

    def reached(self, portfolio: str) -> int:
        """How many people the portfolio reached in 24 h."""
        people = self._reached.get(portfolio)
        return people.count(self.clock.now()) if people else 0

    def reach(self, portfolio: str, to: str) -> None:
        self._reached.setdefault(portfolio, UniqueRecipients()).take(to, None, self.clock.now())

    # webhooks

    def tell(self, line: Line, webhook: Webhook) -> None:
        """Post a webhook, as `settings.webhooks` has it."""
        webhook.url = line.number.webhook_url
        self.webhooks.append(webhook)
        if not self.account_of(line).subscribed:
            return
        how = self.settings.webhooks
        if how.is_usual:
            line.outbox.put(webhook)
            return
        for _ in range(2 if random.random() < how.double else 1):
            seconds = random.uniform(*how.delay_ms) / 1000
            if random.random() < how.reorder:
                seconds += random.uniform(0.1, OVERTAKEN_SECONDS)
            self.clock.later(seconds, line.outbox.put, webhook)

    def tell_messages(self, line: Line, value: Json, webhook_field: str = "messages") -> None:
        self.tell(line, self.make_webhook(line, value, webhook_field))

    def entry(self, line: Line, value: Json, webhook_field: str = "messages") -> Json:
        """`value` is without messaging_product and metadata."""
        whole = {"messaging_product": "whatsapp", "metadata": line.metadata, **value}
        return {"id": line.number.waba_id, "changes": [{"value": whole, "field": webhook_field}]}

    def make_webhook(self, line: Line, value: Json, webhook_field: str = "messages") -> Webhook:
        """A webhook of a number; `value` is without messaging_product and metadata."""
        entry = written(self.entry(line, value, webhook_field))
        statuses = value.get("statuses")
        if not statuses:
            return Webhook(entry, webhook_field)
        return Webhook(entry, webhook_field, statuses[0]["status"], statuses[0].get("biz_opaque_callback_data"))

    def tell_account(self, waba_id: str, webhook_field: str, value: Json) -> int:
        """Post a webhook of an account, once to each address its numbers have. Answers how many."""
        entry = written(
            {"id": waba_id, "time": int(time.time()), "changes": [{"value": value, "field": webhook_field}]}
        )
        by_url = {line.number.webhook_url: line for line in self.lines_of(waba_id) if line.number.webhook_url}
        for line in by_url.values():
            self.tell(line, Webhook(entry, webhook_field))
        return len(by_url)

    def hear(self, inbound: Inbound) -> str:
        """A person writes, or uses the stop control. Answers the wamid, "" for the control."""
        line = self.lines[inbound.phone_number_id]
        contacts = [{"profile": {"name": inbound.name}, **_named(inbound.sender)}]
        at = int(time.time() - inbound.seconds_ago)
        if inbound.marketing:
            self.prefer(line, inbound.sender, inbound.marketing)
        if inbound.message is None:
            return ""
        wamid = inbound.message.get("id") or make_wamid(inbound.sender, inbound=True)
        sender = "from_user_id" if is_user_id(inbound.sender) else "from"
        message = {sender: inbound.sender, "id": wamid, "timestamp": str(at), **inbound.message}
        is_system = message.get("type") == "system"
        # Of a changed number or a message taken back WhatsApp tells; a group has a window of its own.
        if not is_system and message.get("type") != "revoke" and "group_id" not in message:
            self.open_window(line, inbound.sender, inbound.seconds_ago)
        who = {} if is_system else {"contacts": contacts}
        self.tell_messages(line, {**who, "messages": [message]})
        return str(wamid)

    def prefer(self, line: Line, person: str, value: str) -> None:
        self.set_preference(line, person, value)
        preference = {
            **_named(person),
            "detail": f"User requested to {value} marketing messages",
            "category": "marketing_messages",
            "value": value,
            "timestamp": int(time.time()),
        }
        contacts = [{"profile": {"name": "Ines Calder"}, **_named(person)}]
        self.tell_messages(line, {"contacts": contacts, "user_preferences": [preference]}, "user_preferences")


def _named(person: str) -> Json:
    """A person who has taken a username is told of by their user id alone (Meta, "Business-scoped user IDs")."""
    return {"user_id": person} if is_user_id(person) else {"wa_id": person}


def _scenario_of(recipient: Recipient) -> Scenario:
    if recipient.scenario == "answer":
        raw = recipient.body.encode() if isinstance(recipient.body, str) else recipient.body
        return Scenario(
            "answer",
            None,
            "",
            times=recipient.times,
            http_status=recipient.http_status,
            raw={} if raw is None else raw,
            taken=False,
        )
    if recipient.scenario == "failed":
        effects = (Status("sent", "failed", tuple(recipient.errors)),)
        return Scenario("failed", None, "", times=recipient.times, effects=effects)
    known = SCENARIOS[recipient.scenario]
    return known if recipient.times is None else known.lasting(recipient.times)


_ENCODER = json.JSONEncoder(separators=(",", ":"))


def written(entry: Json) -> bytes:
    r"""As Meta writes it, unicode as \uXXXX and slashes escaped: whoever signs a re-serialised body finds out."""
    return _ENCODER.encode(entry).replace("/", "\\/").encode()


def make_wamid(phone: str, *, inbound: bool = False) -> str:
    """Built like Meta's samples: the phone in clear, a direction, a random hex id."""
    key = secrets.token_hex(10 if inbound else 9).upper().encode()
    direction = b"\x12" if inbound else b"\x11"
    who = phone.encode(errors="replace")[:60]
    parts = (b"\x1c\x18", bytes([len(who)]), who, b"\x15\x02\x00", direction, b"\x18", bytes([len(key)]), key, b"\x00")
    return "wamid." + base64.b64encode(b"".join(parts)).decode()
