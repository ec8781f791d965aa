"""Millions of rows of a message log, made inside PostgreSQL in the shape that the real fold writes (for log_pages.py).

The states are folded from real events by the log's own code, once for each fate of a message, and become formats that
PostgreSQL fills in for each row. The rows come in the order of time, as they would have come. What is chosen for a row
depends on its number alone, so that two runs make the same log.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from message_log import store
from message_log.decide import fold, tells
from message_log.store import bytes_of
from sendwhy.events import (
    ContactUpdated,
    MarketingState,
    MetaError,
    Origin,
    OriginKind,
    Purpose,
    Resolved,
    Scope,
    SendConsented,
    SendHeld,
    SendRejected,
    SendRequested,
    Status,
    StatusUpdated,
    TemplateUpdated,
    To,
    Wire,
    reason,
)
from sendwhy.reasons import ReasonCode, Service

# Four of five messages belong to HUGE, whose numbers are what is measured.
HUGE, SMALL = "huge", 9
BIG_CAMPAIGN, RUNNING_CAMPAIGN, AUTOMATION = "black-friday", "running", "welcome"
SENDERS = ("100000000000701", "100000000000702", "100000000000703")
WABA = "200000000000700"
DAYS = 30
CONTACTS = 1_000_000
# Of so many messages the events stand in the log, the latest: what one page reads doesn't depend on how many there are.
WITH_EVENTS = 100_000
CONNECTIONS, CHUNK = 3, 100_000
RARE = ReasonCode.RECIPIENT_IN_META_EXPERIMENT
_FAILURES: tuple[tuple[ReasonCode, Service, int], ...] = (
    (ReasonCode.CUSTOMER_IS_NOT_OPTED_IN, Service.CONSENT, 40),
    (ReasonCode.CUSTOMER_IS_MISSING_CALLING_CODE, Service.CONSENT, 10),
    (ReasonCode.INSUFFICIENT_CREDITS, Service.BILLING, 15),
    (ReasonCode.RECIPIENT_NOT_ON_WHATSAPP, Service.WEBHOOK_INGEST, 25),
    (ReasonCode.MARKETING_CAP_REACHED, Service.WEBHOOK_INGEST, 20),
    (ReasonCode.NO_DELIVERY_RECEIPT, Service.WEBHOOK_INGEST, 8),
    (ReasonCode.EXPIRED_BEFORE_SENDING, Service.DISPATCHER, 2),
)
_RECEIPTS: tuple[tuple[tuple[Status, ...], int], ...] = (
    ((Status.ACCEPTED,), 5),
    ((Status.ACCEPTED, Status.SENT), 75),
    ((Status.ACCEPTED, Status.SENT, Status.DELIVERED), 350),
    ((Status.ACCEPTED, Status.SENT, Status.DELIVERED, Status.READ), 450),
)

# What stands in the formats' places, by number: %1$s is the phone, and so on.
_T0 = datetime(2026, 1, 1, 12, 0, 1, tzinfo=UTC)
_TIMES = [_T0 + timedelta(minutes=n) for n in range(5)]
_PLACES = (
    "+999000000001",
    "@contact@",
    "@wamid@",
    "@template@",
    "999999999999999",
    '{"kind":"api"}',
    "@message@",
    "@workspace@",
)


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a message. `formats`: of its state, then of its events as JSON."""

    weight: int
    outcome: str
    code: str | None
    service: str | None
    state: str
    events: list[tuple[str, str, str]]


def _request() -> SendRequested:
    content: dict[str, Any] = {
        "type": "template",
        "template": {"name": "@template@", "language": {"code": "es_MX"}, "components": []},
    }
    return SendRequested(
        message_id="m",
        workspace_id="w",
        to=To(contact_id="@contact@"),
        origin=Origin(kind=OriginKind.API),
        content=content,
        requested_at=_TIMES[0],
        metadata={"order": "4711"},
    )


def _consented() -> SendConsented:
    return SendConsented(
        event_id=UUID(int=1),
        occurred_at=_TIMES[1],
        request=_request(),
        resolved=Resolved(
            contact_id="@contact@", phone="+999000000001", country="MX", calling_code="52", purpose=Purpose.MARKETING
        ),
        needs_subscription=True,
        send_at=_TIMES[0],
        expires_at=_TIMES[0] + timedelta(days=2),
    )


def _status(status: Status, number: int, why: ReasonCode | None = None) -> StatusUpdated:
    is_first = status is Status.ACCEPTED
    meta = MetaError(code=131000, title="Something of Meta's", details="What Meta says of it, in a sentence or two.")
    return StatusUpdated(
        event_id=UUID(int=2 + number),
        occurred_at=_TIMES[min(number + 2, 4)],
        observed_at=_TIMES[min(number + 2, 4)],
        message_id="m",
        workspace_id="w",
        sender_id="999999999999999",
        provider_message_id="@wamid@",
        service=Service.DISPATCHER if is_first else Service.WEBHOOK_INGEST,
        status=status,
        reason=reason(why, f"Meta said so ({why}).", {"code": 131000}, meta) if why else None,
        to=To(contact_id="@contact@", phone="+999000000001") if is_first else None,
        origin=Origin(kind=OriginKind.API) if is_first else None,
        metadata={"order": "4711"} if is_first else None,
    )


def _fates() -> Iterator[Fate]:
    yield _fate(0, [_request(), _consented()])
    yield _fate(0, [_request(), _consented(), _held()])
    for receipts, weight in _RECEIPTS:
        events: list[Wire] = [_request(), _consented()]
        yield _fate(weight, [*events, *(_status(status, n) for n, status in enumerate(receipts))])
    for code, service, weight in _FAILURES:
        yield _fate(weight, _failed(code, service))
    yield _fate(0, _failed(RARE, Service.WEBHOOK_INGEST))


def _held() -> SendHeld:
    return SendHeld(
        event_id=UUID(int=8),
        occurred_at=_TIMES[2],
        workspace_id="w",
        message_id="m",
        sender_id="999999999999999",
        cause=ReasonCode.MESSAGING_LIMIT_REACHED,
        scope=Scope(kind="message", id="m"),
        since=_TIMES[2],
        until=datetime(2099, 1, 1, tzinfo=UTC),
    )


def _failed(code: ReasonCode, service: Service) -> list[Wire]:
    if service is Service.WEBHOOK_INGEST:
        accepted = _status(Status.ACCEPTED, 0)
        return [_request(), _consented(), accepted, _status(Status.FAILED, 1, code)]
    rejected = SendRejected(
        event_id=UUID(int=9),
        occurred_at=_TIMES[1],
        message_id="m",
        workspace_id="w",
        to=To(contact_id="@contact@", phone="+999000000001"),
        origin=Origin(kind=OriginKind.API),
        service=service,
        reason=reason(code, f"Because of {code}.", {"marketing_state": "UNSUBSCRIBED"}),
    )
    return [_request(), rejected]


def _fate(weight: int, events: Sequence[Wire]) -> Fate:
    told = [(event, tells(event, _TIMES[min(n, 4)])) for n, event in enumerate(events)]
    state = fold(each for _, each in told if each is not None)
    verdict = state.verdict
    return Fate(
        weight,
        state.outcome,
        verdict.reason.code if verdict else None,
        verdict.service if verdict else None,
        _format(bytes_of(state).decode()),
        [(*_kind_of(event), _format(event.to_json().decode())) for event in events],
    )


def _kind_of(event: Wire) -> tuple[str, str]:
    match event:
        case SendRequested():
            return "upstream", "requested"
        case SendConsented():
            return "consent", "consented"
        case SendHeld():
            return "dispatcher", "held"
        case SendRejected():
            return event.service, "rejected"
        case StatusUpdated():
            return event.service, event.status
    raise AssertionError(event)


def _format(text: str) -> str:
    """JSON of the placeholders as a format of PostgreSQL."""
    text = text.replace("%", "%%").replace('"kind":"api","id":null,"name":null,"node_id":null', '"kind":"api"')
    text = text.replace('"message_id":"m"', '"message_id":"@message@"').replace('"id":"m"', '"id":"@message@"')
    text = text.replace('"workspace_id":"w"', '"workspace_id":"@workspace@"')
    text = text.replace('{"kind":"api","enrollment_id":null,"thread_id":null,"agent":null}', '{"kind":"api"}')
    for place, token in enumerate(_PLACES, start=1):
        text = text.replace(token, f"%{place}$s")
    for place, moment in enumerate(_TIMES, start=len(_PLACES) + 1):
        milliseconds = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for spelling in (moment.isoformat(), moment.isoformat().replace("+00:00", "Z"), milliseconds):
            text = text.replace(spelling, f"%{place}$s")
    return text


# What a row is, by its number: when, whose, from where, for whom. `u1`, `u2`: what is chosen by chance, 0 to 999,999.
_CHOSEN = """
select c.*,
       case when c.kind in ('campaign', 'automation') then
           case when c.u1 % 10 < 8 then 'huge' else 'shop-' || c.u1 % 9 end
            else case when c.u3 % 10 < 8 then 'huge' else 'shop-' || c.u3 % 9 end end as workspace_id,
       case c.kind when 'campaign' then case when c.days between 19 and 25 then 'black-friday'
                                             when c.days > 29.5 then 'running'
                                             else 'week-' || floor(c.days * 2)::int end
                   when 'automation' then (array['welcome', 'cart', 'review'])[1 + c.u2 % 3] end as origin_id,
       case c.kind when 'automation' then 'node-' || c.u2 % 4 end as node_id,
       case c.kind when 'campaign' then 'offer_' || floor(c.days / 2)::int % 12
                   when 'automation' then (array['welcome', 'cart', 'review'])[1 + c.u2 % 3] || '_' || c.u2 % 4
                   when 'api' then (array['order_paid', 'order_sent', 'otp'])[1 + c.u2 % 3] end as template,
       case when c.kind = 'campaign' then '100000000000701' when c.kind = 'inbox' then '100000000000703'
            else '100000000000702' end as sender_id,
       (array['52', '52', '52', '52', '52', '52', '52', '57', '54', '1'])[1 + c.contact % 10] as calling_code
from (
    select n, $start$::timestamptz + n * $step$::interval as at, n * $days$.0 / $count$ as days,
           (hashint8extended(n, 1) & 1048575)::int % 1000000 as u1,
           (hashint8extended(n, 2) & 1048575)::int % 1000000 as u2,
           (hashint8extended(n, 3) & 1048575)::int % 1000000 as u3,
           (hashint8extended(n, 4) & 1048575)::int % $contacts$ as contact,
           case when (hashint8extended(n, 5) & 1023) < 660 then 'campaign'
                when (hashint8extended(n, 5) & 1023) < 820 then 'automation'
                when (hashint8extended(n, 5) & 1023) < 1000 then 'api' else 'inbox' end as kind
    from generate_series($first$::bigint, $last$, 10) n
) c
"""
# Ten messages one after the other share a fate, and differ in whom they went to: formats are dear.
_FILL = """
insert into message (workspace_id, message_id, state, at, updated_at, left_at, outcome, reason, service, origin_kind,
    origin_id, node_id, contact_id, phone, calling_code, sender_id, template, purpose, wamid, waiting_cause,
    waiting_since, waiting_until)
with base as materialized (
    select c.*, f.outcome, f.code, f.service, f.held,
           format(f.state, '+' || chr(1), chr(2), chr(3), c.template, c.sender_id,
                  jsonb_strip_nulls(jsonb_build_object('kind', c.kind, 'id', c.origin_id, 'name', initcap(c.origin_id),
                                                       'node_id', c.node_id)),
                  '', c.workspace_id, to_char(c.at, $iso$), to_char(c.at + interval '1 s', $iso$),
                  to_char(c.at + interval '3 s', $iso$), to_char(c.at + interval '9 s', $iso$),
                  to_char(c.at + interval '30 s', $iso$)) as state
    from ($chosen$) c join fate f on f.slot = case
        when c.u3 < 5 then 1002
        when c.origin_id = 'running' then case when c.u2 % 10 < 6 then 1000 + c.u2 % 2 else 200 end
        else c.u3 % 1000 end
), ten as (
    select b.*, b.at + k * $step$::interval as told_at, md5((b.n + k)::text) as hash,
           (b.contact + k * 99991) % $contacts$ as whom
    from base b cross join generate_series(0, 9) k
), r as (
    select *, 'wamid.HBgN' || hash as its_wamid, calling_code || (5500000000 + whom)::text as phone,
           'c' || whom as contact_id
    from ten
)
select workspace_id, hash,
       convert_to(replace(replace(replace(state, chr(1), phone), chr(2), contact_id), chr(3), its_wamid), 'UTF8'),
       told_at, told_at + interval '30 s', case when outcome <> 'open' then told_at + interval '3 s' end, outcome, code,
       service, kind, origin_id, node_id, contact_id, phone, calling_code, sender_id, template,
       case kind when 'api' then 'transactional' when 'inbox' then 'conversation' else 'marketing' end,
       case when outcome <> 'open' and coalesce(service, 'webhook-ingest') = 'webhook-ingest' then its_wamid end,
       case when held then 'MESSAGING_LIMIT_REACHED' end, case when held then told_at end,
       case when held then timestamptz '2099-01-01' end
from r
""".replace("$chosen$", _CHOSEN)
_ISO = '\'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\''

_EVENTS = """
insert into event (event_id, occurred_at, workspace_id, message_id, wamid, service, kind, body)
select md5(m.message_id || e.position)::uuid, m.at + e.position * interval '2 s', m.workspace_id, m.message_id,
       case when e.position > 1 then m.wamid end, e.service, e.kind,
       convert_to(format(e.body, '+' || m.phone, m.contact_id, m.wamid, m.template, m.sender_id,
                         jsonb_build_object('kind', m.origin_kind, 'id', m.origin_id)::text, m.message_id,
                         m.workspace_id, to_char(m.at, $iso$), to_char(m.at + interval '1 s', $iso$),
                         to_char(m.at + interval '3 s', $iso$), to_char(m.at + interval '9 s', $iso$),
                         to_char(m.at + interval '30 s', $iso$)), 'UTF8')
from (select * from message order by at desc limit $with_events$) m
join fate_event e on e.outcome = m.outcome and e.code is not distinct from m.reason
"""
_WEBHOOKS = """
with made as (
    insert into webhook (webhook_id, received_at, source, app, size, body, headers)
    select md5(m.message_id || s.status)::uuid, m.at + s.after, 'meta', '1', 512,
           convert_to(repeat('{"object":"whatsapp_business_account"}', 12), 'UTF8'), '{"app_id": "1"}'
    from (select * from message where wamid is not null order by at desc limit $with_events$) m
    cross join (values ('sent', interval '3 s'), ('delivered', interval '9 s')) s(status, after)
    on conflict do nothing
)
insert into webhook_part (webhook_id, received_at, position, kind, workspace_id, sender_id, waba_id, wamid, message_id)
select md5(m.message_id || s.status)::uuid, m.at + s.after, 0, 'status ' || s.status, m.workspace_id, m.sender_id,
       $waba$, m.wamid, m.message_id
from (select * from message where wamid is not null order by at desc limit $with_events$) m
cross join (values ('sent', interval '3 s'), ('delivered', interval '9 s')) s(status, after)
on conflict do nothing
"""
_DEAD = """
insert into event (event_id, occurred_at, workspace_id, message_id, service, kind, note, body)
select md5('dead' || n)::uuid, now() - n * interval '7 min', 'huge', null, 'consent', 'dead_letter',
       'status.updated: unreadable: occurred_at: must have a zone', convert_to('{"workspace_id": "huge"}', 'UTF8')
from generate_series(1, 5000) n
"""
_INBOUND = """
insert into inbound (event_id, workspace_id, sender_id, phone, wamid, at, kind, text)
select md5('inbound' || n)::uuid, 'huge', '100000000000703',
       '52' || lpad((5500000000 + (n * 7919::bigint) % 100000)::text, 10, '0'), 'wamid.in' || n,
       now() - n * interval '8 s', 'text', 'Hola, ¿dónde está mi pedido ' || n || '?'
from generate_series(1, $inbound$) n
"""
_CODES = """
insert into calling_code_seen
select distinct w, c from unnest(array['huge', 'shop-1']) w, unnest(array['52', '57', '54', '1']) c
"""
_CONTACTS = """
insert into known_state (topic, key, version, workspace_id, phone, body, name)
select 'contact.updated', 'huge/c' || n, 1, 'huge', p.phone,
       convert_to(format($contact$, n, '+' || p.phone, p.name), 'UTF8'), lower(p.name)
from generate_series(0, $contacts$ - 1) n cross join lateral (
    select (array['52', '52', '52', '52', '52', '52', '52', '57', '54', '1'])[1 + n % 10]
               || lpad((5500000000 + n)::text, 10, '0') as phone,
           (array['Maria', 'Jose', 'Guadalupe', 'Juan', 'Luis', 'Ines', 'Ana', 'Carlos'])[1 + n % 8] || ' '
               || (array['Hernandez', 'Garcia', 'Lopez', 'Martinez', 'Ruiz', 'Ortega'])[1 + n / 8 % 6] || ' x'
               || md5((n / 3)::text) as name) p
"""


async def fill(database: str, count: int, inbound: int) -> None:
    """Some connections at once, since each is busy with one core. `message` is not logged: what is written in a run of
    the benchmark is little, and with its log ten million rows would be written twice."""
    connection = await asyncpg.connect(database)
    await _prepare(connection)
    indexes = await _drop_indexes(connection)
    await connection.execute("alter table message set unlogged; alter table message disable trigger user")
    await _at_once(database, [_filled(_FILL, count, first) for first in range(0, count, CHUNK)])
    await _at_once(database, indexes)
    await connection.execute("alter table message add primary key using index message_pkey")
    await connection.execute("alter table message enable trigger user; select count_cells()")
    today = datetime.now(UTC).date()
    await store.keep_partitions(connection, dict.fromkeys(store.PARTITIONED, 90), today)
    contact = _CONTACTS.replace("$contact$", _sql(_contact_format()))
    rest = [_EVENTS, _WEBHOOKS, contact, _INBOUND.replace("$inbound$", str(inbound)), _DEAD, _CODES]
    await _at_once(database, ["vacuum analyze message", *(_filled(script, count) for script in rest)])
    await store.keep_partitions(connection, dict.fromkeys(store.PARTITIONED, 90), today)
    await connection.execute("drop table fate, fate_event")
    tables = ("message_cell", "message_hour", "event", "webhook", "webhook_part", "inbound", "known_state")
    await _at_once(database, [f"vacuum analyze {table}" for table in tables])
    await connection.close()


async def _at_once(database: str, scripts: Sequence[str]) -> None:
    waiting = iter(scripts)

    async def work() -> None:
        connection = await asyncpg.connect(database)
        for script in waiting:
            await connection.execute(script)
        await connection.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


def _filled(script: str, count: int, first: int = 0) -> str:
    start = datetime.now(UTC) - timedelta(days=DAYS)
    values = {
        "$start$": f"'{start.isoformat()}'",
        "$step$": f"'{timedelta(days=DAYS) / count / timedelta(microseconds=1):.3f} microseconds'",
        "$days$": str(DAYS),
        "$count$": str(count),
        "$contacts$": str(min(CONTACTS, count)),
        "$first$": str(first),
        "$last$": str(min(first + CHUNK, count) - 1),
        "$iso$": _ISO,
        "$with_events$": str(min(WITH_EVENTS, count)),
        "$waba$": f"'{WABA}'",
    }
    for name, value in values.items():
        script = script.replace(name, value)
    return script


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


async def _prepare(connection: asyncpg.Connection) -> None:
    """The fates by slot, one of a thousand; and the numbers, templates and one hold."""
    fates = list(_fates())
    slots = [n for n, fate in enumerate(fates) for _ in range(fate.weight)]
    special = [*slots[:1000], 0, 1, len(fates) - 1]
    assert len(special) == 1003, len(special)
    await connection.execute(
        "create unlogged table fate"
        " (slot int primary key, state text, outcome text, code text, service text, held bool);"
        "create unlogged table fate_event (outcome text, code text, position int, service text, kind text, body text)"
    )
    rows = [(slot, *_columns(fates[n]), n == 1) for slot, n in enumerate(special)]
    await connection.copy_records_to_table("fate", records=rows)
    told = {(fate.outcome, fate.code): fate for fate in fates}
    await connection.copy_records_to_table(
        "fate_event",
        records=[(*key, n, *event) for key, fate in told.items() for n, event in enumerate(fate.events)],
    )
    await connection.execute("analyze fate")
    senders = [store.SenderRow(one, HUGE, WABA, 1, n == 0, None) for n, one in enumerate(SENDERS)]
    await store.set_senders(connection, senders, [])
    now = datetime.now(UTC)
    hold = store.HoldRow(HUGE, "template", f"{WABA}/otp/es_MX", UUID(int=5), now, "TEMPLATE_NOT_APPROVED", now, None)
    await store.set_holds(connection, [hold])
    templates = [f"offer_{n}" for n in range(12)] + ["order_paid", "order_sent", "otp"]
    states = [store.KnownState(f"{WABA}/{name}/es_MX", 1, None, None, _template(name)) for name in templates]
    await store.set_states(connection, "template.updated", states)


def _columns(fate: Fate) -> tuple[Any, ...]:
    return fate.state, fate.outcome, fate.code, fate.service


def _template(name: str) -> bytes:
    now = datetime.now(UTC)
    return TemplateUpdated(
        event_id=UUID(int=3),
        occurred_at=now,
        waba_id=WABA,
        name=name,
        language="es_MX",
        version=1,
        status="APPROVED",
        category="MARKETING",
        parameter_format="POSITIONAL",
        components=[{"type": "BODY", "text": "Hola"}],
        said_by="meta",
        said_at=now,
    ).to_json()


def _contact_format() -> str:
    told = ContactUpdated(
        event_id=UUID(int=4),
        occurred_at=_T0,
        workspace_id=HUGE,
        contact_id="@contact@",
        version=1,
        phone="@phone@",
        phone_given="@phone@",
        name="@name@",
        marketing_state=MarketingState.SUBSCRIBED,
        since=_T0,
        source="import",
    )
    text = json.dumps(json.loads(told.to_json())).replace("%", "%%")
    return text.replace("@contact@", "c%1$s").replace("@phone@", "%2$s").replace("@name@", "%3$s")


async def _drop_indexes(connection: asyncpg.Connection) -> list[str]:
    """All of `message`; returns how to make them again. Made at the end, they take a third of the time: a key of chance
    is written all over its index, most of which is not in memory."""
    rows = await connection.fetch("select indexname, indexdef from pg_indexes where tablename = 'message'")
    await connection.execute("alter table message drop constraint message_pkey")
    for row in rows:
        await connection.execute(f"drop index if exists {row['indexname']}")
    return [row["indexdef"] for row in rows]
