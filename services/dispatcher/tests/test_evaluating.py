"""POST /v1/evaluate answers what the driver would decide: the same rows, the same world, the same verdicts."""

import ast
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dispatcher
import pytest
from dispatcher import claims, holding, people_store, queue_store, store, tier_store
from dispatcher.allowances import Allowance
from dispatcher.answers import HoldScope
from dispatcher.clock import utc_now
from dispatcher.decide import Message, Send, Verdict, Wait, lane_of
from dispatcher.evaluating import Evaluation
from dispatcher.holds import Refusal
from dispatcher.queue_store import NewMessage
from dispatcher.store import NewSender, TemplateRow
from dispatcher.windows import Window
from dispatcher_cases import PHONE, SENDER, TEMPLATE, contact, funded, template_content, text_content
from sendwhy.access import Role, Token
from sendwhy.evaluation import Evaluate
from sendwhy.events import MarketingState, Purpose, Resolved, reason
from sendwhy.postgres import Connection, connect_pool
from sendwhy.reasons import ReasonCode
from test_driver import VAULT, World

HOUR = timedelta(hours=1)
OTHER = "+447700900142"
Change = Callable[[Connection, World], Awaitable[None]]


@pytest.fixture
async def world(migrated_database: str) -> AsyncIterator[World]:
    pool = await connect_pool(migrated_database, service="dispatcher-test")
    new = NewSender(SENDER.sender_id, "acme", "300", "200", None, True, VAULT.seal("acme", SENDER.sender_id, "token"))
    async with pool.acquire() as connection:
        await store.put_sender(connection, new, utc_now())
        await save_template(connection)
        await store.mark_synced(connection, "acme", "300", utc_now() - HOUR)
        await connection.execute("update sender set messaging_limit = 2")
    yield World(migrated_database, pool)
    await pool.close()


async def save_template(connection: Connection, **changes: Any) -> None:
    template = replace(TEMPLATE, said_at=utc_now() - HOUR, **changes)
    await store.save_templates(connection, "300", [TemplateRow("300", template, "POSITIONAL", None, None, 1)])


def waiting() -> list[Message]:
    """A campaign to three people, one of them twice, news, a misfit, an unknown template, and two replies."""
    now = utc_now()
    offers = [(PHONE, "a"), (OTHER, "b"), (PHONE, "a"), ("+447700900143", "c")]
    several = [("marketing", template_content("Ines"), phone, contact_id) for phone, contact_id in offers]
    several += [
        ("transactional", template_content("4711"), "+447700900144", "d"),
        ("transactional", template_content(), "+447700900145", "e"),
        ("transactional", template_content("x", name="autum_sale"), "+447700900146", "f"),
        ("conversation", text_content(), PHONE, "a"),
        ("conversation", text_content(), OTHER, "b"),
    ]
    messages = []
    for number, (purpose, content, phone, contact_id) in enumerate(several):
        life = {"send_at": now - HOUR, "expires_at": now + HOUR}
        resolved = Resolved(contact_id=contact_id, phone=phone, purpose=Purpose(purpose))
        one = funded(content, purpose=Purpose(purpose), message_id=f"m-{number}").model_copy(
            update=life | {"resolved": resolved, "contact_version": None}
        )
        messages.append(
            Message(one, SENDER.sender_id, lane_of(Purpose(purpose), None), now - timedelta(seconds=number))
        )
    return messages


async def as_it_is(_connection: Connection, _world: World) -> None: ...


async def held(connection: Connection, _world: World) -> None:
    why = reason(ReasonCode.META_PAYMENT_ISSUE, "Meta says so")
    told = Refusal(why, "Meta", utc_now(), utc_now() + HOUR)
    await holding.hold_sender(connection, SENDER.sender_id, HoldScope.SENDER, told, utc_now(), token_tag=None)


async def paused(connection: Connection, _world: World) -> None:
    await store.set_paused(connection, SENDER.sender_id, utc_now())


async def campaign_paused(connection: Connection, _world: World) -> None:
    await queue_store.pause_campaign(connection, "acme", "black-friday", utc_now())


async def red(connection: Connection, _world: World) -> None:
    await connection.execute("update sender set quality = 'RED'")


async def capped(connection: Connection, _world: World) -> None:
    await connection.execute("insert into marketing_cap values ('acme', $1, $2)", PHONE, utc_now() + HOUR)


async def stopped(connection: Connection, _world: World) -> None:
    gone = contact(MarketingState.UNSUBSCRIBED).model_copy(update={"contact_id": "elsewhere"})
    await people_store.save_contacts(connection, [gone])


async def throttled(connection: Connection, _world: World) -> None:
    await queue_store.put_throttle(connection, "acme", "black-friday", 1, 2)


async def reached(connection: Connection, _world: World) -> None:
    await tier_store.add_reached(connection, "acme/200", [OTHER, "+1"], utc_now() - HOUR)


async def unlimited(connection: Connection, _world: World) -> None:
    await connection.execute("update sender set messaging_limit = null")


async def written(connection: Connection, _world: World) -> None:
    await people_store.open_windows(connection, {(SENDER.sender_id, PHONE): Window(utc_now() - HOUR)})


async def template_paused(connection: Connection, _world: World) -> None:
    await save_template(connection, status="PAUSED")


async def utility(connection: Connection, _world: World) -> None:
    await save_template(connection, category="UTILITY")


async def in_a_burst(_connection: Connection, world: World) -> None:
    pairs = world.driver._pairs
    for _ in range(45):
        pairs.take(PHONE, 0.0)
    pairs._bursts[PHONE] = (pairs._bursts[PHONE][0], 10.0**9)


WORLDS: list[Change] = [
    as_it_is, held, paused, campaign_paused, red, capped, stopped, throttled, reached, unlimited, written,
    template_paused, utility, in_a_burst,
]  # fmt: skip


@pytest.mark.postgres
@pytest.mark.parametrize("change", WORLDS, ids=[change.__name__ for change in WORLDS])
async def test_evaluate_and_the_driver_agree(world: World, change: Change) -> None:
    async with world.pool.pool.acquire() as connection, connection.transaction():
        await change(connection, world)
        messages = [NewMessage(one, one.funded.request.origin.id, "waiting", None) for one in waiting()]
        await queue_store.add_messages(connection, messages)
        now = utc_now()
        row = (await store.senders(connection, [SENDER.sender_id]))[SENDER.sender_id]
        due = await claims.lock_due(connection, SENDER.sender_id, now, limit=100)
        assert len(due) == len(messages)
        evaluation = Evaluation(world, world.settings, lambda _: world.driver.pairs(), utc_now, lambda: 100.0)  # type: ignore[arg-type]
        judged = await evaluation.judge(connection, [one.message for one in due], now)
        known_of = await world.driver._facts(connection, row, due, now)
        throttles = await claims.read_throttles(connection, "acme", ["black-friday"], now)
        allowance = Allowance(100, world.driver._pairs, throttles, lambda: 100.0)
        await allowance.load_tier(connection, row.sender, due, now)
        verdicts = {one.message.key: allowance.judge(one, known_of[one.message.key], now) for one in due}
    for one, (_, checks) in zip(due, judged, strict=True):
        mine: Verdict = next((check.otherwise for check in checks if check.otherwise), Send(counts_for_tier=True))
        told = verdicts[one.message.key]
        if isinstance(told, Send):
            assert isinstance(mine, Send)
        elif isinstance(told, Wait) and isinstance(mine, Wait) and change in (in_a_burst, throttled):
            # The clocks of the two differ, and a driver opens a throttled line anew; the cause is the same.
            assert (told.waiting_for, told.cause) == (mine.waiting_for, mine.cause)
        else:
            assert mine == told
    kinds = {type(verdict).__name__ for verdict in verdicts.values()}
    assert change is not as_it_is or kinds == {"Send", "Wait", "Recall"}
    assert change is not utility or "Reject" in kinds


async def campaign_cancelled(connection: Connection, _world: World) -> None:
    await queue_store.cancel_campaign(connection, "acme", "black-friday", utc_now())


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["campaign", "automation"])
@pytest.mark.parametrize(
    ("change", "gate"), [(campaign_paused, "paused"), (campaign_cancelled, "cancelled"), (throttled, "throttle")]
)
async def test_what_stops_a_campaign_stops_nothing_else_of_its_id(
    world: World, change: Change, gate: str, kind: str
) -> None:
    async with world.pool.pool.acquire() as connection:
        await change(connection, world)
    asked = funded(origin={"kind": kind, "id": "black-friday"}).request.model_dump(mode="json") | {"requested_at": None}
    body = Evaluate.model_validate_json(json.dumps({"requests": [asked, asked]}))
    evaluation = Evaluation(world, world.settings, lambda _: None, utc_now, lambda: 100.0)  # type: ignore[arg-type]
    *_, last = (await evaluation.evaluate(Token("t", Role.VIEWER, "acme"), body)).results
    stopped = {one.gate for one in last.gates if one.passed is False}
    assert stopped == ({gate} if kind == "campaign" else set())


@pytest.mark.postgres
@pytest.mark.parametrize("moment", [None, "2026-01-01T00:00:00Z"])
async def test_evaluate_answers_each_request_for_itself(world: World, moment: str | None) -> None:
    good = funded(template_content("Ines"), message_id="good").request.model_dump(mode="json")
    odd = [good | {"message_id": "no spaces"}, {"workspace_id": "acme"}]
    body = Evaluate.model_validate_json(json.dumps({"requests": [good, *odd, good], "at": moment}))
    evaluation = Evaluation(world, world.settings, lambda _: None, utc_now, lambda: 100.0)  # type: ignore[arg-type]
    results = (await evaluation.evaluate(Token("t", Role.VIEWER, "acme"), body)).results
    assert [one.message_id for one in results] == ["good", "no spaces", None, "good"]
    assert [[gate.gate for gate in one.gates] == ["request"] for one in results] == [False, True, True, False]
    assert {gate.reason.code for one in results[1:3] for gate in one.gates if gate.reason} == {"INVALID_REQUEST"}


def test_only_calls_to_meta_leave_the_dispatcher() -> None:
    """No address that a message names is ever fetched: one module has an HTTP client, and knows Meta's address."""
    clients = {"httpx", "httpx_aiohttp", "aiohttp", "requests", "urllib3", "urllib.request"}
    for module in Path(dispatcher.__file__).parent.glob("*.py"):
        tree = ast.parse(module.read_text())
        imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert module.name == "meta.py" or not imported & clients, module.name
