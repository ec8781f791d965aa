"""What the topics may hold, of every kind that the log reads; folding it in some order; and all that came out."""

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from random import Random
from typing import Any

import asyncpg
from message_log.erasures import People
from message_log.progress import Progress
from message_log.projection import is_joint, parser_of, write_of
from message_log.rebuild import DERIVED
from message_log.settings import MessageLogSettings
from message_log_builders import PRIVACY_KEY, WORKSPACE, after, consented, event_id, held, rejected, requested, status
from pydantic import SecretStr, ValidationError
from sendwhy.events import (
    AccountUpdated,
    ContactUpdated,
    CustomerUpdated,
    Inbound,
    MarketingState,
    MessageReceived,
    MetaError,
    PersonErased,
    PersonErasing,
    Price,
    Scope,
    SendCancelled,
    SenderReported,
    SenderUpdated,
    SendFunded,
    SendRecalled,
    Status,
    TemplateReported,
    TemplateUpdated,
    To,
    Wire,
    reason,
)
from sendwhy.metrics import Metrics
from sendwhy.privacy import Tagger
from sendwhy.reasons import ReasonCode, Service
from sendwhy.stage import Record
from sendwhy.topics import TOPICS, Outgoing, Topic, contact_key, outgoing, template_key, tombstone

R, S = ReasonCode, Status
SENDERS = ("415566778899001", "415566778899002")
WABA = "300"
_SETTINGS = MessageLogSettings(
    kafka_bootstrap_servers="nowhere:9092",
    database_url=SecretStr("postgresql://nowhere"),
    api_tokens=SecretStr(""),
    privacy_key=SecretStr(PRIVACY_KEY),
)
PEOPLE = People(_SETTINGS)
PROGRESS = Progress(Metrics(Service.MESSAGE_LOG))


def everything(seed: int, workspace: str = WORKSPACE) -> list[Outgoing]:
    """Records of all kinds, in the order in which each topic has them."""
    chance = Random(seed)
    events: list[Wire] = []
    for number in range(8):
        events += _of_message(
            chance, workspace, f"r{seed}-{number}", f"shopify:{number % 4}", f"+52551234567{number % 4}"
        )
    events += [*_senders(workspace), *_templates(), *_people(chance, workspace)]
    records = [outgoing(event, source="test") for event in events]
    chance.shuffle(records)
    gone = [
        tombstone(Topic.TEMPLATE_UPDATED, template_key(WABA, "gone", "es_MX")),
        tombstone(Topic.CONTACT_UPDATED, contact_key(workspace, "shopify:1")),
    ]
    return [*records, *gone, *_raw(workspace, f"r{seed}-0"), *_unreadable(workspace)]


def _of_message(chance: Random, workspace: str, name: str, contact: str, phone: str) -> list[Wire]:
    ids: dict[str, Any] = {"message_id": name, "workspace_id": workspace}
    to = To(contact_id=contact, phone=phone)
    wamid = f"wamid.{name}"
    let_pass = consented(**ids, to=to)
    let_pass = let_pass.model_copy(
        update={"resolved": let_pass.resolved.model_copy(update={"contact_id": contact, "phone": phone})}
    )
    funded = SendFunded(
        **dict(let_pass) | {"event_id": event_id(f"funded {name}"), "price": Price(credits=1, category="marketing")}
    )
    receipts = [status(word, n, provider_message_id=wamid, **ids) for n, word in enumerate(S) if word is not S.FAILED]
    meta = reason(R.RECIPIENT_NOT_ON_WHATSAPP, "Meta says 131026", {"phone": phone}, MetaError(code=131026))
    own: list[Wire] = [
        requested(to=to, **ids),
        requested(to=to, metadata={"order": "4712"}, **ids),
        let_pass,
        funded,
        held(R.RATE_LIMIT_EXCEEDED, 2, 90, scope=Scope(kind="message", id=name), **ids),
        held(R.MESSAGING_LIMIT_REACHED, 5, scope=Scope(kind="message", id=name), **ids),
        rejected(R.INVALID_REQUEST, to=to, **ids),
        rejected(R.CUSTOMER_IS_NOT_OPTED_IN, 4, to=to, **ids),
        rejected(R.SEND_OUTCOME_UNKNOWN, 6, Service.DISPATCHER, to=to, **ids),
        *receipts,
        status(S.FAILED, 7, R.NO_DELIVERY_RECEIPT, provider_message_id=wamid, **ids),
        status(S.FAILED, 8, provider_message_id=wamid, **ids).model_copy(update={"reason": meta}),
        status(S.DELIVERED, 9, message_id=None, workspace_id=None, provider_message_id=wamid),
        SendCancelled(workspace_id=workspace, message_id=name, by="somebody"),
    ]
    return chance.sample(own, chance.randint(1, len(own)))


def _senders(workspace: str) -> list[Wire]:
    scopes = (("sender", SENDERS[0]), ("account", WABA), ("campaign", "black-friday"), ("template", "autumn_sale"))
    holds = [
        held(
            R.TEMPORARY_FAILURE,
            seconds,
            500,
            message_id=None,
            workspace_id=workspace,
            scope=Scope.model_validate({"kind": kind, "id": id}),
        )
        for kind, id in scopes
        for seconds in (10, 20)
    ]
    senders = [
        SenderUpdated(
            event_id=event_id(f"sender {workspace} {sender} {version}"),
            occurred_at=after(15 + version),
            sender_id=sender,
            workspace_id=workspace,
            version=version,
            waba_id=WABA,
            default=sender == SENDERS[0],
            paused=version == 1,
            app_id=None if version == 1 else "400",
            synced_at=None if version == 1 else after(16),
        )
        for sender in SENDERS
        for version in (1, 2)
    ]
    told = SenderReported(event_id=event_id("reported"), occurred_at=after(1), waba_id=WABA, field="x", raw={})
    account = [
        AccountUpdated(
            event_id=event_id(f"account {workspace} {version}"),
            occurred_at=after(version),
            workspace_id=workspace,
            version=version,
            balance=version,
        )
        for version in (1, 2, 3)
    ]
    return [*holds, *senders, told, *account]


def _templates() -> list[Wire]:
    known = [
        TemplateUpdated(
            event_id=event_id(f"template {name} {version}"),
            occurred_at=after(version),
            waba_id=WABA,
            name=name,
            language="es_MX",
            version=version,
            status="APPROVED",
            category="MARKETING",
            parameter_format="POSITIONAL",
            components=[],
            said_by="meta",
            said_at=after(version),
        )
        for name in ("autumn_sale", "gone")
        for version in (1, 2)
    ]
    told = TemplateReported(event_id=event_id("template told"), occurred_at=after(1), waba_id=WABA, field="x", raw={})
    return [*known, told]


def _people(chance: Random, workspace: str) -> list[Wire]:
    """Four contacts, of whom the second is erased, what they wrote, and what was told of them. Each was told of, and
    wrote, before the erasure and after it."""
    events: list[Wire] = []
    for number in range(4):
        contact, phone = f"shopify:{number}", f"+52551234567{number}"
        for seconds in (20, 120):
            told = event_id(f"{workspace} {contact} {seconds}")
            text = Inbound.TEXT if seconds == 20 else chance.choice([Inbound.TEXT, Inbound.OTHER])
            events += [
                _contact(workspace, contact, phone, seconds),
                MessageReceived(
                    event_id=told,
                    occurred_at=after(seconds),
                    workspace_id=workspace,
                    sender_id=SENDERS[number % 2],
                    wamid=f"wamid.in.{number}.{seconds}",
                    phone=phone.removeprefix("+"),
                    user_id=f"MX.{number}",
                    kind=text,
                    text="hola" if text is Inbound.TEXT else None,
                    raw={},
                ),
            ]
        events.append(_customer(workspace, contact, phone))
    tags = Tagger(PRIVACY_KEY).of_person(workspace, contact_id="shopify:1", phone="+525512345671")
    order = PersonErasing(
        event_id=event_id(f"order {workspace}"),
        occurred_at=after(100),
        workspace_id=workspace,
        erasure_id=event_id(f"erasure {workspace}"),
        erased_at=after(100),
        tags=[tag.hex() for tag in tags],
        message_ids=[f"r{seed}-{number}" for seed in range(5) for number in (1, 5)],
    )
    done = PersonErased(
        event_id=event_id("erased by consent"),
        occurred_at=after(101),
        workspace_id=workspace,
        erasure_id=order.erasure_id,
        order_id=order.event_id,
        service=Service.CONSENT,
        tables=[],
    )
    return [*events, order, done]


def _contact(workspace: str, contact: str, phone: str, seconds: float) -> ContactUpdated:
    return ContactUpdated(
        event_id=event_id(f"contact {workspace} {contact} {seconds}"),
        occurred_at=after(seconds),
        workspace_id=workspace,
        contact_id=contact,
        version=int(seconds),
        phone=phone,
        name="Inés O'Hara",
        marketing_state=MarketingState.SUBSCRIBED,
        since=after(seconds),
        source="import",
    )


def _customer(workspace: str, contact: str, phone: str) -> CustomerUpdated:
    return CustomerUpdated(
        event_id=event_id(f"customer {workspace} {contact}"),
        occurred_at=after(30),
        source="shopify",
        action="update",
        workspace_id=workspace,
        contact_id=contact,
        phone=phone,
    )


def recalled(workspace: str = WORKSPACE) -> SendRecalled:
    let_pass = consented(message_id="recalled", workspace_id=workspace)
    funded = SendFunded(**dict(let_pass) | {"price": Price(credits=1, category="marketing")})
    contact = _contact(workspace, "shopify:7712", "+525512345678", 50)
    return SendRecalled(event_id=event_id("recalled"), occurred_at=after(60), funded=funded, contact=contact)


def _raw(workspace: str, message_id: str) -> list[Outgoing]:
    """Deliveries: of a message, of a number, and of an account alone; a shop's, one that was refused, and one of
    somebody else's app."""

    def meta(value: dict[str, Any], field: str = "messages") -> bytes:
        change = {"field": field, "value": value}
        body = {"object": "whatsapp_business_account", "entry": [{"id": WABA, "changes": [change]}]}
        return json.dumps(body).encode()

    callback = f"sw1:{workspace}:{message_id}"
    told = {"id": f"wamid.{message_id}", "status": "sent", "biz_opaque_callback_data": callback}
    number = {"phone_number_id": SENDERS[1]}
    headers = (("source", b"meta"), ("app_id", b"400"))
    foreign = (("source", b"meta"), ("app_id", b"666"))
    shop = (("source", b"shopify"), ("workspace_id", workspace.encode()))
    return [
        Outgoing(Topic.WEBHOOK_RECEIVED, b"k", meta({"metadata": number, "statuses": [told]}), headers),
        Outgoing(Topic.WEBHOOK_RECEIVED, b"k", meta({"metadata": number, "statuses": [told]}), foreign),
        Outgoing(Topic.WEBHOOK_RECEIVED, b"k", meta({"metadata": number, "messages": [{"id": "wamid.in"}]}), headers),
        Outgoing(Topic.WEBHOOK_RECEIVED, b"k", meta({"event": "APPROVED"}, "message_template_status_update"), headers),
        Outgoing(Topic.WEBHOOK_RECEIVED, b"k", b'{"id": 7712}', shop),
        Outgoing(Topic.WEBHOOK_REFUSED, b"k", b"junk", (*headers, ("cause", b"signature"), ("size", b"4"))),
    ]


def _unreadable(workspace: str) -> list[Outgoing]:
    """A record put aside twice, as by a service that read its topic anew; and one that says nothing of itself."""
    body = json.dumps({"workspace_id": workspace, "message_id": "r0-1"}).encode()
    headers = (
        ("service", b"consent"),
        ("topic", b"send.requested"),
        ("partition", b"2"),
        ("offset", b"17"),
        ("error", b"unreadable: to: missing"),
    )
    letter = Outgoing(Topic.DEAD_LETTERS, b"k", body, headers)
    return [letter, letter, Outgoing(Topic.DEAD_LETTERS, None, b"\xff", ())]


Place = tuple[Topic, int]
Queues = dict[Place, deque[Record[Any]]]


def placed(sent: Iterable[Outgoing]) -> Queues:
    """The records where Kafka would have put them: by their key in a partition, with growing offsets and times."""
    queues: Queues = defaultdict(deque)
    for number, one in enumerate(sent):
        partition = sum(one.key or b"") % TOPICS[one.topic].partitions
        queue = queues[(one.topic, partition)]
        at = after(200 + number / 10)
        queue.append(Record(None, one.topic, partition, len(queue), at, one.key, one.value, one.headers))
    return queues


async def fold(connection: asyncpg.Connection, queues: Queues, chance: Random) -> None:
    """Read the topics as they come: each partition in its order, in batches of any size, now and then twice; those that
    are written jointly now and then with others."""
    left = {place: deque(queue) for place, queue in queues.items()}
    while left:
        place = chance.choice(sorted(left))
        places = [place]
        if is_joint(place[0]):
            places += [
                other for other in sorted(left) if is_joint(other[0]) and other != place and chance.random() < 0.2
            ]
        batches = {place: _taken(left, place, chance) for place in places}
        for _ in range(chance.choice([1, 1, 2])):
            await _handle(connection, place[0], [record for batch in batches.values() for record in batch])


def _taken(left: dict[Place, deque[Record[None]]], place: Place, chance: Random) -> list[Record[None]]:
    queue = left[place]
    batch = [queue.popleft() for _ in range(min(len(queue), chance.randint(1, 6)))]
    if not queue:
        del left[place]
    return batch


async def _handle(connection: asyncpg.Connection, topic: Topic, batch: Sequence[Record[None]]) -> None:
    """`topic`: of one of the records, and of all if they aren't written jointly."""
    good = [parsed for record in batch if (parsed := _parsed(record)) is not None]
    async with connection.transaction():
        if topic is Topic.PERSON_ERASING:
            for record in good:
                await PEOPLE.erase(connection, record.event)
        elif good:
            await write_of(topic, PEOPLE, PROGRESS)(connection, good)


def _parsed(record: Record[None]) -> Record[Any] | None:
    try:
        event = parser_of(record.topic)(record)
    except ValidationError:
        return None
    return Record(
        event, record.topic, record.partition, record.offset, record.at, record.key, record.value, record.headers
    )


# Serials of the writing, and cells that are summed below.
_LEFT_OUT = ("changed_by",)


async def dump(connection: asyncpg.Connection) -> dict[str, list[Any]]:
    """All that is derived from the topics, in an order of its own."""
    found: dict[str, list[Any]] = {}
    for table in DERIVED:
        rows = await connection.fetch(f"select * from {table}")
        found[table] = sorted(
            ({name: _plain(value) for name, value in row.items() if name not in _LEFT_OUT} for row in rows), key=repr
        )
    cells = await connection.fetch(
        "select workspace_id, hour, outcome, reason, service, origin_kind, origin_id, sender_id, template,"
        " calling_code, sum(count)::int as count"
        " from (select * from message_cell union all select * from message_cell_change) c"
        " group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 having sum(count) <> 0"
    )
    found["cells"] = sorted((dict(row) for row in cells), key=repr)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            # Bodies of other tests are nested as deep as they may be.
            return value
    return value
