"""Makes the demo's data (README.md says what each file is): always the same, so that they can be committed.

    python demo/make_data.py [folder]

Nobody's data: names are drawn from lists, numbers from the ranges of phonenumbers' examples, and nothing is ever sent
to anybody but the simulator. Each fault is made on purpose, and the outcome that it must have is noted beside it.
"""

import base64
import csv
import io
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import phonenumbers
from phonenumbers import PhoneNumberFormat, PhoneNumberType

Json = dict[str, Any]

BASE = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
SEED = 20261122
WEEK_MS = 7 * 24 * 3600 * 1000

SHOP, EMPTY = "demo", "demo-empty"
MAIN, OUTLET, NEW, OLD_TOKEN, UNPAID, EMPTYS = (f"10000000000000{n}" for n in range(1, 7))
WABA = {
    MAIN: "200000000000001",
    OUTLET: "200000000000001",
    NEW: "200000000000003",
    OLD_TOKEN: "200000000000004",
    UNPAID: "200000000000005",
    EMPTYS: "200000000000006",
}
NAMES_OF_NUMBERS = {
    MAIN: "Casa Lumbre",
    OUTLET: "Casa Lumbre Outlet",
    NEW: "Casa Lumbre Norte",
    OLD_TOKEN: "Casa Lumbre Repairs",
    UNPAID: "Casa Lumbre Events",
    EMPTYS: "Velas & Co",
}
NOBODYS_SENDER = "100000000000099"
CREDITS_LEFT, PRICE, BOUGHT = 1, 2, 100


@dataclass(frozen=True)
class Country:
    """`language` is the template language that the shop uses for it."""

    code: str
    calling_code: str
    people: int
    language: str
    first_names: str
    last_names: str


COUNTRIES = (
    Country("MX", "52", 108, "es_MX", "Inés Mateo Ximena Diego Renata Emiliano", "Ortega Ríos Villalobos Cárdenas"),
    Country("BR", "55", 90, "pt_BR", "Joana Caio Luana Thiago Beatriz Rafael", "Siqueira Moraes Teixeira Prado"),
    Country("ES", "34", 60, "es", "Lucía Hugo Carmen Álvaro Noa Iker", "Navarro Iglesias Ferrer Sáez"),
    Country("DE", "49", 50, "de", "Lena Jonas Mia Finn Greta Moritz", "Brandt Seidel Krüger Vogt"),
    Country("GB", "44", 50, "en_US", "Amelia Oscar Freya Callum Isla Rhys", "Whitmore Ashdown Carver Doyle"),
    Country("IN", "91", 40, "en_US", "Aarav Diya Kabir Meera Rohan Anika", "Menon Kulkarni Bose Saxena"),
    Country("CO", "57", 26, "es_MX", "Valentina Samuel Mariana Tomás", "Quintero Arango Mejía"),
    Country("AR", "54", 20, "es_MX", "Martina Bautista Delfina Lautaro", "Peralta Funes Ibarra"),
    Country("ID", "62", 20, "id", "Putri Bayu Citra Rizky", "Wibowo Santoso Hartono"),
    Country("ZA", "27", 15, "en_US", "Thandi Pieter Lerato Sipho", "Naidoo Botha Dlamini"),
    Country("NG", "234", 14, "en_US", "Chidi Amara Tunde Ngozi", "Okafor Adeyemi Bello"),
    # The French template is called "fr" at Meta; the shop's list says "fr_FR".
    Country("FR", "33", 7, "fr_FR", "Camille Hugo Manon", "Lefèvre Garnier"),
)


@dataclass(frozen=True)
class Outcome:
    status: str
    service: str | None = None
    reason: str | None = None


def rejected_by(service: str, reason: str) -> Outcome:
    return Outcome("failed", service, reason)


READ, DELIVERED = Outcome("read"), Outcome("delivered")
NOT_OPTED_IN = rejected_by("consent", "CUSTOMER_IS_NOT_OPTED_IN")
NO_CALLING_CODE = rejected_by("consent", "CUSTOMER_IS_MISSING_CALLING_CODE")
IMPOSSIBLE = rejected_by("consent", "PHONE_NUMBER_IMPOSSIBLE")
NO_PHONE = rejected_by("consent", "CONTACT_HAS_NO_PHONE")
INVALID = rejected_by("consent", "INVALID_REQUEST")
NO_CREDITS = rejected_by("billing", "INSUFFICIENT_CREDITS")
WINDOW_CLOSED = rejected_by("dispatcher", "OUTSIDE_24_HOUR_WINDOW")
NOT_APPROVED = rejected_by("dispatcher", "TEMPLATE_NOT_APPROVED")
NOT_MAPPED = rejected_by("dispatcher", "TEMPLATE_PARAMETERS_MISMATCH")
NO_RECEIPT = rejected_by("webhook-ingest", "NO_DELIVERY_RECEIPT")
UNKNOWN_OUTCOME = rejected_by("dispatcher", "SEND_OUTCOME_UNKNOWN")
NOBODYS_CODE = 139999


@dataclass
class Person:
    """Somebody on the shop's list, as they are; `phone` in E.164."""

    contact_id: str
    country: Country
    name: str
    phone: str

    @property
    def first_name(self) -> str:
        return self.name.split()[0]

    @property
    def wa_id(self) -> str:
        return self.phone.removeprefix("+")

    @property
    def national(self) -> str:
        return self._format(PhoneNumberFormat.NATIONAL)

    @property
    def spaced(self) -> str:
        return self._format(PhoneNumberFormat.INTERNATIONAL)

    def _format(self, style: int) -> str:
        return phonenumbers.format_number(phonenumbers.parse(self.phone), style)


@dataclass
class Demo:
    """All the data, as they come to be."""

    rng: random.Random = field(default_factory=lambda: random.Random(SEED))
    contacts: dict[str, list[list[str]]] = field(default_factory=lambda: {SHOP: [], EMPTY: []})
    requests: dict[str, list[Json]] = field(default_factory=dict)
    webhooks: dict[str, list[Json]] = field(default_factory=dict)
    customers: list[Json] = field(default_factory=list)
    recipients: dict[str, Json] = field(default_factory=dict)
    expected: list[tuple[str, Outcome]] = field(default_factory=list)
    _phones: set[str] = field(default_factory=set)

    def person(self, country: Country | None = None) -> Person:
        country = country or self.rng.choice(COUNTRIES[:6])
        name = f"{self.rng.choice(country.first_names.split())} {self.rng.choice(country.last_names.split())}"
        return Person(f"shopify:{7001 + len(self._phones)}", country, name, self._phone(country))

    def _phone(self, country: Country) -> str:
        """A number near the country's example number."""
        example = phonenumbers.example_number_for_type(country.code, PhoneNumberType.MOBILE)
        assert example is not None, country
        digits = phonenumbers.format_number(example, PhoneNumberFormat.E164)
        while True:
            phone = f"{digits[:-5]}{self.rng.randrange(100_000):05}"
            if phone not in self._phones and phonenumbers.is_valid_number(phonenumbers.parse(phone)):
                self._phones.add(phone)
                return phone

    def contact(self, person: Person, workspace: str = SHOP, **faults: str) -> None:
        """A row of the list, as good as can be but for `faults`."""
        row = {
            "contact_id": person.contact_id,
            "phone": person.phone,
            "phone_country_code": person.country.code,
            "phone_calling_code": person.country.calling_code,
            "name": person.name,
            "marketing_state": "SUBSCRIBED",
            "source": "checkout",
            "proof": f"checkbox at order {self.rng.randrange(10_000, 99_999)}",
        } | faults
        self.contacts[workspace].append(list(row.values()))

    def subscriber(self, country: Country | None = None, workspace: str = SHOP) -> Person:
        person = self.person(country)
        self.contact(person, workspace)
        return person

    def request(self, file: str, message_id: str, outcome: Outcome, **fields: Any) -> None:
        body: Json = {"message_id": message_id, "workspace_id": SHOP} | fields
        body.setdefault("requested_at", at())
        self.requests.setdefault(file, []).append(body)
        self.expected.append((message_id, outcome))

    def behave(self, person: Person, scenario: str = "ok", **more: Any) -> None:
        """How Meta treats this person (tools/meta-simulator, PUT /_sim/recipients)."""
        self.recipients[person.wa_id] = {"scenario": scenario, **more}

    def hear(self, file: str, field_name: str, value: Json) -> None:
        change = {"value": value, "field": field_name}
        webhook = {"object": "whatsapp_business_account", "entry": [{"id": WABA[MAIN], "changes": [change]}]}
        self.webhooks.setdefault(file, []).append(webhook)

    def writes(self, file: str, person: Person, text: str, seconds_ago: int = 0) -> str:
        """The person writes to the main number; returns the wamid."""
        wamid = "wamid." + base64.b64encode(self.rng.randbytes(30)).decode()
        message: Json = {"from": person.wa_id, "id": wamid, "timestamp": unix(-seconds_ago)}
        message |= {"type": "text", "text": {"body": text}}
        self.hear(file, "messages", from_person(person) | {"messages": [message]})
        return wamid


def at(seconds: float = 0) -> str:
    return (BASE + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def unix(seconds: float = 0) -> str:
    return str(int((BASE + timedelta(seconds=seconds)).timestamp()))


def from_person(person: Person) -> Json:
    return {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": display_number(MAIN).strip("+").replace(" ", ""), "phone_number_id": MAIN},
        "contacts": [{"profile": {"name": person.name}, "wa_id": person.wa_id}],
    }


def display_number(number: str) -> str:
    return f"+1 555 010 000{number[-1]}"


def to_contact(person: Person) -> Json:
    return {"contact_id": person.contact_id}


def to_both(person: Person) -> Json:
    return {"contact_id": person.contact_id, "phone": person.phone}


def template(name: str, language: str, *values: str) -> Json:
    called: Json = {"name": name, "language": {"code": language}}
    if values:
        called["components"] = [{"type": "body", "parameters": [{"type": "text", "text": each} for each in values]}]
    return {"type": "template", "template": called}


def text(body: str) -> Json:
    return {"type": "text", "text": {"body": body}}


# --- the campaign of 500 ---

CAMPAIGN = {"kind": "campaign", "id": "autumn-sale-2026", "name": "Autumn sale"}


def spellings(person: Person) -> list[Json]:
    """Ways in which lists spell a number that can be read all the same."""
    code = person.country.calling_code
    plain = person.phone.removeprefix("+")
    known: Json = {"phone_calling_code": code}
    ways: list[Json] = [
        {"phone": person.phone, "phone_country_code": "", "phone_calling_code": ""},
        {"phone": person.spaced, "phone_calling_code": ""},
        {"phone": f"00{plain}", "phone_calling_code": ""},
        {"phone": f"tel:{person.spaced.replace(' ', '-')}", "phone_calling_code": ""},
        known | {"phone": plain},
    ]
    if person.country.code != "AR":  # 011 15-… reads differently from abroad
        ways += [known | {"phone": person.national}, {"phone": person.national, "phone_calling_code": f"+{code}"}]
    return ways


def without_calling_code(person: Person, turn: int) -> Json:
    blank = {"phone_calling_code": ""}
    return [
        {"phone": person.national, **blank},
        {"phone": person.national, **blank, "phone_country_code": ""},
        {"phone": person.wa_id, **blank},
    ][turn % 3]


def impossible(person: Person, turn: int) -> Json:
    return [
        {"phone": f"{float(person.wa_id):.5E}"},  # a spreadsheet took it for a number
        {"phone": f"{person.phone} WhatsApp"},
        {"phone": person.phone[:5]},
        {"phone": f"+999{person.phone[-9:]}", "phone_calling_code": "999"},
        {"phone": "n/a"},
        {"phone": f"{person.phone}/{person.phone[-4:-1]}1234567"},
    ][turn % 6]


Spoil = Callable[[Person, int], Json]


@dataclass(frozen=True)
class Group:
    """`people` of the campaign with one thing in common: a row of the list spoilt, or how Meta treats them."""

    people: int
    outcome: Outcome
    scenario: str | None = None
    spoil: Spoil | None = None
    more: Json = field(default_factory=dict)


def state(value: str, source: str) -> Spoil:
    return lambda _person, _turn: {"marketing_state": value, "source": source, "proof": ""}


GROUPS = (
    Group(14, NOT_OPTED_IN, spoil=state("UNSUBSCRIBED", "shop footer")),
    Group(9, NOT_OPTED_IN, spoil=state("NOT_SUBSCRIBED", "checkout")),
    Group(5, NOT_OPTED_IN, spoil=state("", "trade fair list")),
    Group(10, NO_CALLING_CODE, spoil=without_calling_code),
    Group(9, IMPOSSIBLE, spoil=impossible),
    Group(3, NO_PHONE, spoil=lambda *_: {"phone": ""}),
    Group(12, rejected_by("webhook-ingest", "RECIPIENT_NOT_ON_WHATSAPP"), "failed_131026"),
    Group(2, rejected_by("webhook-ingest", "RECIPIENT_NOT_ON_WHATSAPP"), "failed_without_details"),
    Group(1, rejected_by("webhook-ingest", "RECIPIENT_NOT_ON_WHATSAPP"), "failed_after_sent"),
    Group(4, rejected_by("webhook-ingest", "MARKETING_CAP_REACHED"), "failed_131049"),
    Group(2, rejected_by("webhook-ingest", "RECIPIENT_STOPPED_MARKETING"), "failed_131050"),
    Group(2, rejected_by("webhook-ingest", "RECIPIENT_IN_META_EXPERIMENT"), "failed_130472"),
    Group(2, rejected_by("webhook-ingest", "META_ERROR"), "failed_unknown_code"),
    Group(6, READ, "temporary_then_ok"),
    Group(2, UNKNOWN_OUTCOME, "html_502"),
    Group(1, UNKNOWN_OUTCOME, "reset_before_acceptance"),
    Group(2, NO_RECEIPT, "sent_then_silence"),
    Group(1, NO_RECEIPT, "accepted_then_silence"),
    # Shapes and orders that Meta's answers and webhooks also have, and that must not matter.
    Group(1, READ, "no_message_status"),
    Group(2, READ, "held_for_quality"),
    Group(2, READ, "held_then_released", more={"delays_ms": {"held": 1500}}),
    Group(2, READ, "wa_id_differs"),
    Group(1, READ, "user_id_answer"),
    Group(1, READ, "user_id_only"),
    Group(1, READ, "reset_after_acceptance"),
    Group(1, READ, "html_502_taken"),
    Group(1, READ, "junk_with_200"),
    Group(2, READ, "read_without_delivered"),
    Group(2, READ, "reversed"),
    Group(2, READ, "doubled"),
    Group(1, READ, "status_before_answer"),
    Group(1, READ, "unknown_wamid"),
    Group(1, READ, "unknown_status"),
    Group(1, READ, "milliseconds"),
    Group(1, READ, "v23_conversation"),
    Group(1, DELIVERED, "delivered_and_failed"),
    Group(1, DELIVERED, "failed_then_delivered", more={"delays_ms": {"sent": 100, "delivered": 900}}),
    Group(3, READ, "replies"),
)
REFUSED_ROWS, WITHOUT_NAME = 6, 4


def campaign(demo: Demo) -> None:
    people = [demo.person(country) for country in COUNTRIES for _ in range(country.people)]
    demo.rng.shuffle(people)
    french = [person for person in people if person.country.code == "FR"]
    others = iter([person for person in people if person.country.code != "FR"])
    fates: dict[str, Outcome] = {}
    for person in french:
        demo.contact(person)
        fates[person.contact_id] = NOT_APPROVED
    for group in GROUPS:
        for turn in range(group.people):
            fates[_of_group(demo, next(others), group, turn)] = group.outcome
    for turn in range(REFUSED_ROWS):
        fates[_refused_row(demo, next(others), turn)] = NOT_OPTED_IN
    nameless = {_nameless(demo, next(others)) for _ in range(WITHOUT_NAME)}
    fates |= dict.fromkeys(nameless, NOT_MAPPED)
    for person in others:
        fates[person.contact_id] = _receives(demo, person)
    demo.rng.shuffle(demo.contacts[SHOP])
    for number, person in enumerate(people, start=1):
        _campaign_request(demo, number, person, fates[person.contact_id], named=person.contact_id not in nameless)


def _of_group(demo: Demo, person: Person, group: Group, turn: int) -> str:
    demo.contact(person, **(group.spoil(person, turn) if group.spoil else {}))
    if group.scenario:
        demo.behave(person, group.scenario, **group.more)
    return person.contact_id


def _refused_row(demo: Demo, person: Person, turn: int) -> str:
    """Rows that an import can't take: nothing is known of these people afterwards."""
    if turn == 0:
        demo.contact(person)
        demo.contacts[SHOP][-1].insert(5, "Jr.")  # a comma in a name, without quotes
    else:
        spoilt: list[dict[str, str]] = [
            {"marketing_state": "yes"},
            {"phone_country_code": person.country.code * 2},
            {"contact_id": ""},
            {"name": "Jos\udce9 Nu\udcf1ez"},  # Latin-1 bytes in a file of UTF-8
            {"phone_calling_code": "n/a"},
        ]
        demo.contact(person, **spoilt[turn - 1])
    return person.contact_id


def _nameless(demo: Demo, person: Person) -> str:
    demo.contact(person, name="")
    return person.contact_id


def _receives(demo: Demo, person: Person) -> Outcome:
    """Most read it; some have read receipts off, or haven't looked yet. Some lists name a person twice."""
    demo.contact(person, **(demo.rng.choice(spellings(person)) if demo.rng.random() < 0.4 else {}))
    if demo.rng.random() < 0.02:
        demo.contacts[SHOP].append(demo.contacts[SHOP][-1])
    reads = demo.rng.random() < 0.7
    if not reads or demo.rng.random() < 0.3:
        sent = demo.rng.randrange(50, 400)
        delivered = sent + demo.rng.randrange(100, 1_500)
        read = delivered + demo.rng.randrange(200, 1_500) if reads else WEEK_MS
        demo.behave(person, delays_ms={"sent": sent, "delivered": delivered, "read": read})
    return READ if reads else DELIVERED


def _campaign_request(demo: Demo, number: int, person: Person, outcome: Outcome, *, named: bool) -> None:
    demo.request(
        "campaign.jsonl",
        f"as26-{number:04}",
        outcome,
        to=to_both(person) if outcome in (READ, DELIVERED) and number % 3 == 0 else to_contact(person),
        origin=CAMPAIGN,
        content=template("autumn_sale", person.country.language, person.first_name if named else ""),
        metadata={"segment": person.country.code.lower()},
    )


# --- automations ---


def automations(demo: Demo) -> None:
    welcomed = [demo.subscriber() for _ in range(16)]
    left = demo.person()
    demo.contact(left, marketing_state="UNSUBSCRIBED", source="shop footer", proof="")
    for turn, person in enumerate([*welcomed, left]):
        fate = NOT_OPTED_IN if person is left else READ
        _node(demo, "flow.jsonl", "welcome", person, "greeting", template("welcome", "en_US", person.first_name), fate)
        tips = template("care_tips", "en_US")
        _node(demo, "flow.jsonl", "welcome", person, "tips", tips, fate)
        if turn < 4:
            review = template("review_request", "en_US", person.first_name)
            _node(demo, "flow.jsonl", "welcome", person, "review", review, NOT_APPROVED)
    asks = [("cart_reminder", READ), ("cart_remainder", NOT_APPROVED), ("clearance", NOT_APPROVED)]
    asks += [("flash_friday", NOT_APPROVED), ("cart_reminder_v0", NOT_APPROVED)]
    for name, fate in asks:
        for _ in range(3):
            person = demo.subscriber()
            content = template(name, "en_US", person.first_name, "a lamp")
            _node(demo, "flow.jsonl", "cart-recovery", person, name, content, fate)
    for content in (template("cart_reminder", "en_US", "Greta"), template("cart_reminder", "en_US")):
        _node(demo, "flow.jsonl", "cart-recovery", demo.subscriber(), "cart_reminder", content, NOT_MAPPED)


def _node(demo: Demo, file: str, flow: str, person: Person, node: str, content: Json, outcome: Outcome) -> None:
    enrolled = f"{flow}-{person.contact_id.partition(':')[2]}"
    origin = {"kind": "automation", "id": flow, "name": flow.replace("-", " ").capitalize()}
    origin |= {"node_id": node, "enrollment_id": enrolled}
    demo.request(file, f"{enrolled}-{node}", outcome, to=to_contact(person), origin=origin, content=content)


# --- the inbox ---


def inbox(demo: Demo) -> None:
    asks = demo.subscriber(COUNTRIES[0])
    first = demo.writes("conversations.jsonl", asks, "Hola, ¿tienen la lámpara azul?")
    answers: list[Json] = [
        text("¡Hola! Sí, nos quedan tres. ¿Te mando una foto?") | {"context": {"message_id": first}},
        {"type": "image", "image": {"link": "https://shop.example/lamp-blue.jpg", "caption": "Lámpara azul, 30 cm"}},
        {"type": "interactive", "interactive": _buttons("¿La apartamos para ti?", "Sí, por favor", "No, gracias")},
    ]
    for number, content in enumerate(answers, start=1):
        _reply(demo, asks, number, content, READ)
    chatty = demo.subscriber(COUNTRIES[1])
    demo.writes("conversations.jsonl", chatty, "Qual o prazo de entrega?")
    demo.behave(chatty, "replies", times=1)
    _reply(demo, chatty, 1, text("De três a cinco dias úteis."), READ)
    unlucky = demo.subscriber(COUNTRIES[4])
    demo.writes("conversations.jsonl", unlucky, "Could you send me the manual?")
    demo.behave(unlucky, "failed_131053")
    manual = {"type": "document", "document": {"link": "https://shop.example/gone.pdf", "filename": "manual.pdf"}}
    _reply(demo, unlucky, 1, manual, rejected_by("webhook-ingest", "MEDIA_FAILED"))
    late = demo.subscriber(COUNTRIES[3])
    demo.writes("conversations.jsonl", late, "Ist die Lampe wieder da?", seconds_ago=26 * 3600)
    _reply(demo, late, 1, text("Ja, seit heute!"), WINDOW_CLOSED)
    _reply(demo, demo.subscriber(COUNTRIES[2]), 1, text("¿Qué tal la lámpara?"), WINDOW_CLOSED)


def _buttons(question: str, *labels: str) -> Json:
    replies = [{"type": "reply", "reply": {"id": f"b{n}", "title": label}} for n, label in enumerate(labels)]
    return {"type": "button", "body": {"text": question}, "action": {"buttons": replies}}


def _reply(demo: Demo, person: Person, number: int, content: Json, outcome: Outcome) -> None:
    thread = f"thread-{person.contact_id.partition(':')[2]}"
    origin = {"kind": "inbox", "thread_id": thread, "agent": "sofia@casa-lumbre.example"}
    demo.request("inbox.jsonl", f"{thread}-{number}", outcome, to=to_both(person), origin=origin, content=content)


# --- consent that changes on the way ---


def early_access(demo: Demo) -> None:
    """Planned for 20 s later; in the meantime one says STOP, one BAJA, one uses WhatsApp's own control."""
    keeps, stops, leaves, controls = (demo.subscriber(COUNTRIES[n]) for n in (4, 4, 0, 1))
    demo.writes("stop.jsonl", keeps, "please don't stop, I love these!")
    demo.writes("stop.jsonl", stops, "STOP")
    demo.writes("stop.jsonl", leaves, "Baja.")
    detail = "User requested to stop marketing messages"
    stop = {"wa_id": controls.wa_id, "detail": detail, "category": "marketing_messages", "value": "stop"}
    preference = stop | {"timestamp": int(unix())}
    demo.hear("stop.jsonl", "user_preferences", from_person(controls) | {"user_preferences": [preference]})
    for number, person in enumerate((keeps, stops, leaves, controls), start=1):
        demo.request(
            "early-access.jsonl",
            f"early-{number}",
            READ if person is keeps else NOT_OPTED_IN,
            to=to_contact(person),
            origin={"kind": "campaign", "id": "early-access", "name": "Early access"},
            content=template("autumn_sale", person.country.language, person.first_name),
            send_at=at(20),
        )


# --- what somebody puts right: each begins with a failure, and ends with another message that arrives ---


def harvest_fair(demo: Demo) -> None:
    """A campaign that is slowed to one a second; three say STOP while theirs wait."""
    origin = {"kind": "campaign", "id": "harvest-fair", "name": "Harvest fair"}
    for number in range(1, 19):
        person = demo.subscriber(COUNTRIES[4])
        leaves = number > 15
        if leaves:
            demo.writes("stop.jsonl", person, ("Unsubscribe", "STOP \U0001f6d1", "stop!!")[number - 16])
        demo.request(
            "harvest-fair.jsonl",
            f"harvest-{number}",
            NOT_OPTED_IN if leaves else READ,
            to=to_contact(person),
            origin=origin,
            content=template("autumn_sale", "en_US", person.first_name),
            send_at=at(20) if leaves else None,
        )


def mended(demo: Demo) -> None:
    """A number without calling code is corrected in the shop; credits are bought. What had failed stays failed."""
    person = demo.person(COUNTRIES[0])
    demo.contact(person, phone=person.national, phone_calling_code="")
    demo.customers.append(_shopify_customer(person))
    origin = {"kind": "campaign", "id": "lamp-care", "name": "Lamp care"}
    for number, outcome in ((1, NO_CALLING_CODE), (2, READ)):
        demo.request(
            f"lamp-care-{number}.jsonl",
            f"lamp-care-{number}",
            outcome,
            to=to_contact(person),
            origin=origin,
            content=template("autumn_sale", "es_MX", person.first_name),
        )
    broke = {"kind": "campaign", "id": "candle-night", "name": "Candle night"}
    for number in (6, 7):
        _offer(demo, "candle-night-2.jsonl", f"candle-{number}", READ, EMPTY, origin=broke, workspace_id=EMPTY)


def _shopify_customer(person: Person) -> Json:
    first, _, last = person.name.partition(" ")
    address = {"country_code": person.country.code, "phone": person.phone, "default": True}
    return {
        "id": int(person.contact_id.partition(":")[2]),
        "first_name": first,
        "last_name": last,
        "phone": person.phone,
        "updated_at": at(),
        "default_address": address,
    }


# --- limits: each begins in one file and is reached in the next ---


def limits(demo: Demo) -> None:
    preview = {"kind": "campaign", "id": "vip-preview", "name": "VIP preview"}
    rate = rejected_by("dispatcher", "RATE_LIMIT_EXCEEDED")
    _in_two_files(demo, "vip-preview", 2, 4, rate, origin=preview, sender_id=MAIN)
    north = {"kind": "campaign", "id": "hola-norte", "name": "Hola Norte"}
    tier = rejected_by("dispatcher", "MESSAGING_LIMIT_REACHED")
    _in_two_files(demo, "hola-norte", 3, 2, tier, origin=north, sender_id=NEW)
    outlet = {"kind": "campaign", "id": "outlet", "name": "Outlet days"}
    for number in (1, 2, 3):
        _offer(demo, "outlet.jsonl", f"outlet-{number}", _RED, origin=outlet, sender_id=OUTLET)
    broke = {"kind": "campaign", "id": "candle-night", "name": "Candle night"}
    for number in range(1, 6):
        _offer(demo, "candle-night.jsonl", f"candle-{number}", NO_CREDITS, EMPTY, origin=broke, workspace_id=EMPTY)


_RED = rejected_by("dispatcher", "QUALITY_RATING_TOO_LOW")


def _in_two_files(demo: Demo, name: str, good: int, late: int, reason: Outcome, **fields: Any) -> None:
    for number in range(1, good + 1):
        _offer(demo, f"{name}-1.jsonl", f"{name}-{number}", READ, **fields)
    for number in range(good + 1, good + late + 1):
        _offer(demo, f"{name}-2.jsonl", f"{name}-{number}", reason, expires_at=at(20), **fields)


def _offer(demo: Demo, file: str, message_id: str, outcome: Outcome, workspace: str = SHOP, **fields: Any) -> None:
    person = demo.subscriber(COUNTRIES[4], workspace)
    content = template("autumn_sale", "en_US", person.first_name)
    demo.request(file, message_id, outcome, to=to_contact(person), content=content, **fields)


def win_back(demo: Demo) -> Json:
    """The first message arrives, then three in a row stay at sent: what a block looks like. Returns the change."""
    person = demo.subscriber(COUNTRIES[1])
    blocked = rejected_by("webhook-ingest", "RECIPIENT_PROBABLY_BLOCKED_SENDER")
    origin = {"kind": "campaign", "id": "win-back", "name": "Win back"}
    for number, outcome in enumerate((READ, NO_RECEIPT, NO_RECEIPT, blocked)):
        demo.request(
            "win-back-2.jsonl" if number else "win-back-1.jsonl",
            f"win-back-{number + 1}",
            outcome,
            to=to_contact(person),
            origin=origin,
            content=template("autumn_sale", "pt_BR", person.first_name),
            send_at=at(3 * (number - 1)) if number > 1 else None,
        )
    return {person.wa_id: {"scenario": "sent_then_silence"}}


# --- single messages over the API ---


def api(demo: Demo) -> None:
    origin = {"kind": "api", "id": "orders"}
    unsubscribed = demo.person(COUNTRIES[3])
    demo.contact(unsubscribed, marketing_state="UNSUBSCRIBED", source="shop footer", proof="")

    def order(message_id: str, outcome: Outcome, scenario: str | None = None, **fields: Any) -> None:
        person = demo.person(COUNTRIES[4])
        if scenario:
            demo.behave(person, scenario, **fields.pop("answer", {}))
        body = {"to": {"phone": person.phone}, "origin": origin, "content": template("order_update", "en_US", "4711")}
        demo.request("api.jsonl", message_id, outcome, **(body | fields))

    order("order-4711", READ, to=to_contact(unsubscribed))  # an order is no marketing
    order("order-4712", READ, "temporary_then_ok")
    order("order-4713", rejected_by("dispatcher", "TEMPORARY_FAILURE"), "temporary_always", expires_at=at(30))
    order("order-4714", rejected_by("dispatcher", "INVALID_CONTENT"), "answer_131009")
    for number, (code, reason) in enumerate(_ANSWERS.items(), start=4715):
        answer = {"http_status": 400, "body": _error(code)}
        order(f"order-{number}", rejected_by("dispatcher", reason), "answer", answer=answer)
    order("order-4720", INVALID, to={})
    order("order-4721", INVALID, send_at=at(45 * 24 * 3600))
    order("order-4722", rejected_by("dispatcher", "SENDER_NOT_AVAILABLE"), sender_id=NOBODYS_SENDER)
    order("order-4723", rejected_by("dispatcher", "CANCELLED"), send_at=at(3600))
    credentials = rejected_by("dispatcher", "SENDER_CREDENTIALS_REJECTED")
    order("order-4724", credentials, "answer_190", sender_id=OLD_TOKEN, expires_at=at(20))
    payment = rejected_by("webhook-ingest", "META_PAYMENT_ISSUE")
    order("order-4725", payment, "failed_131042", sender_id=UNPAID)
    paused = {"kind": "campaign", "id": "spring-clearance", "name": "Spring clearance"}
    expired = rejected_by("dispatcher", "EXPIRED_BEFORE_SENDING")
    _offer(demo, "api.jsonl", "spring-1", expired, origin=paused, expires_at=at(15))


_ANSWERS = {
    130403: "SENDER_BLOCKED_RECIPIENT",
    131030: "RECIPIENT_NOT_ALLOWED",
    132007: "TEMPLATE_POLICY_VIOLATION",
    NOBODYS_CODE: "META_ERROR",
}
_WORDS = {
    130403: ("Business has blocked the user", "The business account has blocked this user."),
    131030: ("Recipient phone number not in allowed list", "Recipient phone number not in allowed list."),
    132007: ("Template format character policy violated", "The template's content violates a policy."),
    NOBODYS_CODE: ("Some other future error", "Another code that no table knows."),
}


def _error(code: int) -> Json:
    title, details = _WORDS[code]
    data = {"messaging_product": "whatsapp", "details": details}
    error = {"message": f"(#{code}) {title}", "type": "OAuthException", "code": code, "error_data": data}
    return {"error": error | {"fbtrace_id": f"Az{code}demo"}}


def test_message(demo: Demo) -> None:
    person = demo.person(COUNTRIES[0])
    content = template("hello_world", "en_US")
    demo.request("test.jsonl", "test-1", READ, to={"phone": person.phone}, origin={"kind": "test"}, content=content)


# --- Meta's side ---


def _template(name: str, category: str, language: str, body: str, *examples: str, **more: str) -> Json:
    part: Json = {"type": "BODY", "text": body}
    if examples:
        part["example"] = {"body_text": [list(examples)]}
    made = {"name": name, "language": language, "status": "APPROVED", "category": category}
    return made | {"parameter_format": "POSITIONAL", "components": [part]} | more


_SALE = {
    "en_US": "Hello {{1}}, our autumn sale has begun.",
    "es_MX": "Hola {{1}}, empezó nuestra venta de otoño.",
    "es": "Hola {{1}}, han empezado las rebajas de otoño.",
    "pt_BR": "Olá {{1}}, nossa liquidação de outono começou.",
    "de": "Hallo {{1}}, unser Herbstverkauf hat begonnen.",
    "id": "Halo {{1}}, obral musim gugur kami telah dimulai.",
    "fr": "Bonjour {{1}}, nos soldes d'automne ont commencé.",
}


def templates() -> list[Json]:
    sale = [_template("autumn_sale", "MARKETING", language, body, "Inés") for language, body in _SALE.items()]
    reminder = "Hi {{1}}, {{2}} is still in your cart."
    return [
        _template("hello_world", "UTILITY", "en_US", "Welcome and congratulations! This is a test message."),
        _template("order_update", "UTILITY", "en_US", "Your order {{1}} is on its way to you.", "4711"),
        *sale,
        _template("welcome", "MARKETING", "en_US", "Welcome {{1}}! Here is 10 % off your first order.", "Inés"),
        _template("care_tips", "MARKETING", "en_US", "Three tips to keep your lamp shining."),
        _template("review_request", "MARKETING", "en_US", "{{1}}, how do you like it?", "Inés", status="PENDING"),
        _template("cart_reminder", "MARKETING", "en_US", reminder, "Inés", "a lamp"),
        _template("cart_reminder_v0", "MARKETING", "en_US", reminder, "Inés", "a lamp", status="DISABLED"),
        _template("clearance", "MARKETING", "en_US", "{{1}}, the last of {{2}}.", "Inés", "the lamps"),
        _template("flash_friday", "MARKETING", "en_US", "{{1}}: {{2}} for an hour.", "Inés", "lamps", status="PENDING"),
    ]


def template_webhooks(demo: Demo) -> None:
    """Meta has paused one template and refused another."""
    for event, name, reason in (("PAUSED", "clearance", "NONE"), ("REJECTED", "flash_friday", "TAG_CONTENT_MISMATCH")):
        value = {"event": event, "message_template_id": 7_000_000_000_000_000 + len(name), "reason": reason}
        value |= {"message_template_name": name, "message_template_language": "en_US"}
        demo.hear("templates.jsonl", "message_template_status_update", value)


def meta(demo: Demo) -> Json:
    numbers = {
        number: {
            "waba_id": WABA[number],
            "display_phone_number": display_number(number),
            "verified_name": name,
            "quality_rating": "RED" if number == OUTLET else "GREEN",
            "messages_per_second": 80,
        }
        for number, name in NAMES_OF_NUMBERS.items()
        if number != MAIN  # `sendwhy up` has it ready
    }
    accounts = {
        waba: {"portfolio_id": f"3{waba[1:]}", "messaging_limit": 3 if waba == WABA[NEW] else 1000}
        | {"templates": templates()}
        for waba in sorted(set(WABA.values()))
    }
    return {"accounts": accounts, "numbers": numbers, "recipients": demo.recipients}


def workspaces() -> Json:
    def sender(number: str, *, default: bool = False) -> Json:
        waba = WABA[number]
        return {"id": number, "waba_id": waba, "portfolio_id": f"3{waba[1:]}", "default": default}

    price = {"category": "marketing", "calling_code": None, "credits": PRICE, "valid_from": at(-30 * 24 * 3600)}
    return {
        SHOP: {
            "contacts": "contacts.csv",
            "senders": [sender(number) for number in (OUTLET, NEW, OLD_TOKEN, UNPAID)],
            "throttles": {"vip-preview": {"per_day": 2}, "harvest-fair": {"per_minute": 60}},
            "paused_campaigns": ["spring-clearance"],
        },
        EMPTY: {
            "contacts": "contacts-empty.csv",
            "senders": [sender(EMPTYS, default=True)],
            "credits": CREDITS_LEFT,
            "prices": [price],
        },
    }


def plan(silence: Json) -> Json:
    """What happens, step by step. What needs an earlier message to have ended comes after a `wait`."""
    first = ["campaign", "early-access", "vip-preview-1", "hola-norte-1", "win-back-1", "candle-night"]
    first += ["harvest-fair", "lamp-care-1"]
    second = ["flow", "inbox", "test", "outlet", "vip-preview-2", "hola-norte-2", "win-back-2", "api"]
    second += ["lamp-care-2", "candle-night-2"]
    files = [[f"requests/{name}.jsonl" for name in names] for names in (first, second)]
    return {
        "base_time": at(),
        "steps": [
            {
                "title": "customers write, Meta reviews templates",
                "webhooks": ["webhooks/conversations.jsonl", "webhooks/templates.jsonl"],
            },
            {"title": "the campaign, and seven small ones", "requests": files[0]},
            {"title": "some change their mind", "webhooks": ["webhooks/stop.jsonl"], "wait": True},
            {
                "title": "a number is corrected in the shop, credits are bought",
                "customers": ["webhooks/customers.jsonl"],
                "top_ups": {EMPTY: BOUGHT},
            },
            {
                "title": "flows, inbox, orders, limits",
                "recipients": silence,
                "requests": files[1],
                "cancel": ["order-4723"],
                "wait": True,
            },
        ],
    }


# --- files ---

COLUMNS = ("contact_id", "phone", "phone_country_code", "phone_calling_code", "name", "marketing_state")
HEADER = [*COLUMNS, "source", "proof"]


def as_csv(rows: list[list[str]]) -> bytes:
    """As a spreadsheet writes it: a byte order mark, CRLF, and an empty line somewhere."""
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(HEADER)
    for number, row in enumerate(rows):
        writer.writerow(row)
        if number == 200:
            lines.write("\r\n")
    return b"\xef\xbb\xbf" + lines.getvalue().encode(errors="surrogateescape")


def as_jsonl(objects: list[Json]) -> bytes:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects).encode()


def as_json(value: Json) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def make() -> Iterator[tuple[str, bytes]]:
    """Every file's name and content."""
    demo = Demo()
    campaign(demo)
    automations(demo)
    inbox(demo)
    early_access(demo)
    limits(demo)
    silence = win_back(demo)
    api(demo)
    test_message(demo)
    harvest_fair(demo)
    mended(demo)
    template_webhooks(demo)
    yield "contacts.csv", as_csv(demo.contacts[SHOP])
    yield "contacts-empty.csv", as_csv(demo.contacts[EMPTY])
    for name, requests in demo.requests.items():
        yield f"requests/{name}", as_jsonl(requests)
    for name, webhooks in demo.webhooks.items():
        yield f"webhooks/{name}", as_jsonl(webhooks)
    yield "webhooks/customers.jsonl", as_jsonl(demo.customers)
    yield "meta.json", as_json(meta(demo))
    yield "workspaces.json", as_json(workspaces())
    yield "plan.json", as_json(plan(silence))
    outcomes = [{"message_id": name} | vars(outcome) for name, outcome in demo.expected]
    yield "expected.jsonl", as_jsonl(outcomes)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, content in make():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()
