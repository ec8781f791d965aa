"""Row-level security makes no page slower: what the message log reads is planned alike for the owner, whom no policy
binds, and for the reader (ADR 41). Of an index whose operator might tell of rows that it sees, it would be kept off."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import pytest
from houses import OWN, House, open_house
from message_log import (
    campaign_queries,
    cells,
    contact_queries,
    counts,
    diagnostics_queries,
    inbox_queries,
    queries,
    resend_store,
    volume,
    webhook_queries,
)
from message_log.contact_queries import ContactFilters
from message_log.queries import Filters
from message_log.view import Viewer
from message_log.webhook_queries import WebhookFilters
from sendwhy.access import Role
from sendwhy.events import OriginKind
from sendwhy.postgres import Connection
from sendwhy.reasons import Service

pytestmark = pytest.mark.postgres

NOW = datetime.now(UTC)
# Policies look things up in them, and they are small: a row a number, and fifty a workspace.
SMALL = {"sender", "audience"}
# In PostgreSQL's own units: a policy looks each of a page's rows up, some ten apiece. An index that was kept off costs
# tens of times as much with these thousands of rows.
TIMES_AS_DEAR, COST_OF_POLICIES = 2.0, 600.0

Ask = Callable[[Connection], Any]


@dataclass(frozen=True)
class Plan:
    """`whole`: tables that are read through."""

    cost: float
    whole: frozenset[str]


@dataclass
class Explaining:
    """Runs statements, and keeps how each was planned."""

    connection: Any
    plans: dict[str, Plan] = field(default_factory=dict)

    async def fetch(self, statement: str, *values: Any) -> Any:
        await self._explain(statement, values)
        return await self.connection.fetch(statement, *values)

    async def fetchrow(self, statement: str, *values: Any) -> Any:
        await self._explain(statement, values)
        return await self.connection.fetchrow(statement, *values)

    async def fetchval(self, statement: str, *values: Any) -> Any:
        await self._explain(statement, values)
        return await self.connection.fetchval(statement, *values)

    async def _explain(self, statement: str, values: tuple[Any, ...]) -> None:
        told = await self.connection.fetchval(f"explain (format json) {statement}", *values)
        plan = json.loads(told)[0]["Plan"]
        self.plans[" ".join(statement.split())] = Plan(plan["Total Cost"], frozenset(_read_through(plan)))


def _read_through(node: dict[str, Any]) -> Iterator[str]:
    if node["Node Type"] == "Seq Scan":
        yield node["Relation Name"]
    for part in node.get("Plans", ()):
        yield from _read_through(part)


_FILL = """
insert into message (workspace_id, message_id, state, at, updated_at, outcome, reason, service, origin_kind, origin_id,
                     node_id, contact_id, phone, sender_id, template, wamid, waiting_cause, waiting_since, calling_code,
                     left_at, resend_of)
select w, w || '-' || n, '{"first_at": "2026-11-22T10:00:00Z", "updated_at": "2026-11-22T10:00:00Z"}',
       now() - n * interval '10 minutes', now(),
       (array['open', 'accepted', 'sent', 'delivered', 'read', 'failed'])[n % 6 + 1],
       case when n % 6 = 5 then 'INSUFFICIENT_CREDITS' end, 'billing',
       (array['campaign', 'automation', 'inbox', 'api'])[n % 4 + 1], 'o-' || n % 5, 'node-' || n % 3, 'c-' || n % 900,
       '52155' || lpad((n % 900)::text, 8, '0'), '100', 'sale', 'wamid.' || w || n,
       case when n % 12 = 0 then 'SENDER_PAUSED' end, now(), '52', now(),
       case when n % 50 = 0 then w || '-' || n + 1 end
from generate_series(1, 6000) n, unnest(array['acme', 'globex', 'initech']) w;
insert into event (event_id, occurred_at, workspace_id, message_id, wamid, service, kind, note, body)
select gen_random_uuid(), at, workspace_id, case when n % 10 > 0 then message_id end, wamid, 'billing',
       case when n % 40 = 0 then 'dead_letter' else 'funded' end, 'send.funded: wrong', '{}'
from (select *, row_number() over () as n from message) m;
insert into known_state (topic, key, version, workspace_id, phone, body, name)
select 'contact.updated', w || '/c-' || n, 1, w, '52155' || lpad(n::text, 8, '0'), '{}', 'ines ' || n
from generate_series(1, 3000) n, unnest(array['acme', 'globex', 'initech']) w;
insert into known_state (topic, key, version, body)
select 'template.updated', '300/t-' || n || '/es', 1, '{}' from generate_series(1, 50) n;
insert into sender (sender_id, workspace_id, waba_id, version, is_default)
select w || '-1', w, '300', 1, true from unnest(array['acme', 'globex', 'initech']) w;
insert into inbound (event_id, workspace_id, sender_id, phone, wamid, at, kind, text)
select gen_random_uuid(), w, w || '-1', '52155' || lpad((n % 900)::text, 8, '0'), 'wamid.in' || n,
       now() - n * interval '1 minute', 'text', 'hola'
from generate_series(1, 3000) n, unnest(array['acme', 'globex', 'initech']) w;
insert into webhook (webhook_id, received_at, source, size)
select gen_random_uuid(), now() - n * interval '1 minute', 'meta', 100 from generate_series(1, 6000) n;
insert into webhook_part (webhook_id, received_at, position, kind, workspace_id, sender_id, wamid, message_id)
select webhook_id, received_at, 0, 'status sent', w, w || '-1', 'wamid.' || w || n,
       case when n % 3 > 0 then w || '-' || n end
from (select *, row_number() over () as n,
             (array['acme', 'globex', 'initech'])[1 + random() * 2] as w from webhook) found;
insert into calling_code_seen values ('acme', '52'), ('globex', '52');
"""


async def _fill(house: House) -> None:
    async with house.runtime.pool.acquire() as connection:
        await connection.execute(_FILL)
        await cells.add_up(connection)
        await connection.execute("analyze")


def _asked_of(name: str, one: Filters) -> dict[str, Ask]:
    return {
        f"list {name}": lambda c: queries.list_messages(c, OWN, one, limit=50),
        f"count {name}": lambda c: cells.total(c, OWN, one),
        f"volume {name}": lambda c: volume.measure(c, OWN, one, NOW),
        f"reasons {name}": lambda c: cells.by_reason(c, OWN, one),
        f"meant {name}": lambda c: queries.meant(c, OWN, one),
        f"live {name}": lambda c: queries.changes_after(c, OWN, one, (1, ""), 200),
        f"again {name}": lambda c: resend_store.matching(c, OWN, one),
    }


def _asked() -> dict[str, Ask]:
    """What pages and API read, by what it is."""
    viewer, since = Viewer(Role.OPERATOR, "http://log"), NOW - timedelta(days=30)
    campaign, automation = OriginKind.CAMPAIGN, OriginKind.AUTOMATION
    filters = {
        "all": Filters(),
        "failed": Filters(status="failed"),
        "waiting": Filters(status="waiting"),
        "sending": Filters(status="sending"),
        "reason": Filters(reason="INSUFFICIENT_CREDITS"),  # type: ignore[arg-type]
        "campaign": Filters(campaign="o-1"),
        "country": Filters(country="52"),
        "contact": Filters(contact="c-7"),
        "phone": Filters(phone="+5215500000007"),
        "template": Filters(template="sale", status="read"),
        "span": Filters.model_validate({"from": since, "to": NOW}),
        "an id": Filters(q="acme-77"),
        "a name": Filters(q="ines 77"),
        "a number": Filters(q="+5215500000077"),
    }
    asked = {key: ask for name, one in filters.items() for key, ask in _asked_of(name, one).items()}
    return asked | {
        "message": lambda c: queries.read_message(c, OWN, "acme-77"),
        "events": lambda c: queries.events_of(c, OWN, "acme-77", "wamid.acme77", "acme-1"),
        "deliveries": lambda c: queries.webhooks_of(c, OWN, "acme-77", "wamid.acme77", "acme-1"),
        "repeats": lambda c: resend_store.links_of(c, OWN, "acme-50"),
        "sent again": lambda c: resend_store.sent_again(c, OWN, ["acme-50", "acme-100"]),
        "families": lambda c: resend_store.families(c, OWN, ["acme-50", "acme-100"]),
        "requests": lambda c: resend_store.requests_of(c, OWN, ["acme-50", "acme-100"]),
        "campaigns": lambda c: campaign_queries.list_groups(c, OWN, campaign),
        "campaign": lambda c: campaign_queries.read_group(c, OWN, campaign, "o-0"),
        "course": lambda c: campaign_queries.left_lately(c, OWN, campaign, "o-0", NOW),
        "over time": lambda c: campaign_queries.over_time(c, OWN, campaign, "o-0"),
        "failures": lambda c: campaign_queries.failures_of(c, OWN, campaign, "o-0"),
        "waits": lambda c: campaign_queries.waits_of(c, OWN, campaign, "o-0"),
        "latest failed": lambda c: campaign_queries.latest_failed(c, OWN, campaign, "o-0", 20),
        "nodes": lambda c: campaign_queries.nodes_of(c, OWN, "o-1"),
        "people": lambda c: campaign_queries.people_of(c, OWN, "o-1", cursor=None, limit=50),
        "automations": lambda c: campaign_queries.list_groups(c, OWN, automation, q="o"),
        "contact": lambda c: inbox_queries.contact_called(c, OWN, "c-7"),
        "written": lambda c: queries.inbound_of(c, OWN, ["5215500000007"], cursor=None, limit=50),
        "contacts": lambda c: contact_queries.list_contacts(c, OWN, ContactFilters(), viewer),
        "contacts by name": lambda c: contact_queries.list_contacts(c, OWN, ContactFilters(q="ines"), viewer),
        "templates": lambda c: contact_queries.sendable(c, OWN),
        "countries": lambda c: counts.countries_seen(c, OWN),
        "webhooks": lambda c: webhook_queries.list_webhooks(c, OWN, WebhookFilters(), everything=False),
        "replay": lambda c: webhook_queries.count_parts(c, OWN, NOW - timedelta(days=1), NOW),
        "checks": lambda c: diagnostics_queries.stored_facts(c, OWN, sees_everything=False),
    }


@pytest.fixture
async def filled(postgres_url: str) -> AsyncIterator[House]:
    async with open_house(postgres_url, Service.MESSAGE_LOG) as house:
        await _fill(house)
        yield house


async def test_no_page_is_planned_worse_for_the_reader(filled: House) -> None:
    worse = []
    for name, ask in _asked().items():
        async with filled.runtime.pool.acquire() as connection, connection.transaction():
            await connection.execute("select set_config('sendwhy.workspace', $1, true)", OWN)
            owner = Explaining(connection)
            await ask(cast(asyncpg.Connection, owner))
        async with filled.runtime.within(OWN) as connection:
            reader = Explaining(connection)
            await ask(cast(asyncpg.Connection, reader))
        for statement, before in owner.plans.items():
            after = reader.plans[statement]
            is_dearer = after.cost > TIMES_AS_DEAR * before.cost + COST_OF_POLICIES
            if after.whole - before.whole - SMALL or is_dearer:
                worse.append(f"{name}: {after} instead of {before} for {statement[:300]}")
    assert not worse, "\n".join(worse)
