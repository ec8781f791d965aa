"""Whose a delivery is: its number and the app say that signed it, in whatever order the two become known; and whose
templates are."""

from itertools import combinations_with_replacement
from typing import Any

import asyncpg
import pytest
from message_log import contact_queries, inbox_queries, queries, store, webhook_queries
from message_log.deliveries import Part
from message_log.projection import write_senders, write_states
from message_log.store import SenderRow, WebhookRow
from message_log.webhook_queries import WebhookFilters
from message_log_builders import after, event_id, registered
from pages_desk import template
from sendwhy.events import SenderUpdated, TemplateUpdated
from sendwhy.stage import Record
from sendwhy.topics import Topic

pytestmark = pytest.mark.postgres
NUMBER, ACCOUNT, OTHER_NUMBER, OTHER_ACCOUNT = "1001", "waba-1", "6666", "waba-6"
ANY = WebhookFilters()

# What comes: the app that signed, the number, the account, the workspace that it names itself.
Delivery = tuple[str, str | None, str, str | None]
DELIVERIES: dict[str, Delivery] = {
    "own": ("700", NUMBER, ACCOUNT, "acme"),
    "own, that names none": ("700", NUMBER, ACCOUNT, None),
    "own account's": ("700", None, ACCOUNT, None),
    "own account's, that names it": ("700", None, ACCOUNT, "acme"),
    "another app's": ("666", NUMBER, ACCOUNT, "acme"),
    "another app's, that names none": ("666", NUMBER, ACCOUNT, None),
    "another app's of the account": ("666", None, ACCOUNT, "acme"),
    "another number's": ("666", OTHER_NUMBER, OTHER_ACCOUNT, "acme"),
    "nobody's number's": ("700", "9999", ACCOUNT, "acme"),
}
OWN = {name: "acme" for name in DELIVERIES if name.startswith("own")}


def number(workspace: str, version: int, app: str | None, waba: str = ACCOUNT) -> SenderRow:
    return SenderRow(NUMBER, workspace, waba, version, True, None, app)


OTHERS = SenderRow(OTHER_NUMBER, "evil", OTHER_ACCOUNT, 1, True, None, "666")
# Of numbers: what is told, one after the other (a name: gone), and whose the deliveries are in the end.
TOLD: dict[str, tuple[list[SenderRow | str], dict[str, str]]] = {
    "nothing": ([], {}),
    "registered": ([OTHERS, number("acme", 1, "700")], OWN),
    "its app told later": ([number("acme", 1, "500"), number("acme", 2, "700")], OWN),
    "its app told wrongly in the end": ([number("acme", 1, "700"), number("acme", 2, "500")], {}),
    "its app never told": (
        [number("acme", 1, None)],
        OWN | {name: "acme" for name in DELIVERIES if name.startswith("another app's")},
    ),
    "moved": (
        [number("acme", 1, "700"), number("globex", 2, "700")],
        {"own, that names none": "globex", "own account's": "globex"},
    ),
    "moved, and back": (
        [number("acme", 1, "700"), number("globex", 2, "700"), number("acme", 3, "700")],
        OWN,
    ),
    "in another account": (
        [number("acme", 1, "700"), number("acme", 2, "700", "waba-2")],
        dict.fromkeys(("own", "own, that names none"), "acme"),
    ),
    "gone": ([number("acme", 1, "700"), NUMBER], {}),
}


def webhook(name: str) -> WebhookRow:
    app, sender_id, waba_id, named = DELIVERIES[name]
    message_id = None if named is None else "m-1"
    part = Part("status sent", None, sender_id, waba_id, "wamid.A", message_id, named)
    return WebhookRow(event_id(name), after(0), "meta", app, None, 2, b"{}", (part,))


async def tell(connection: asyncpg.Connection, one: SenderRow | str) -> None:
    rows, gone = ([], [one]) if isinstance(one, str) else ([one], [])
    await store.set_senders(connection, rows, gone)


async def whose(connection: asyncpg.Connection) -> dict[str, str]:
    names = {event_id(name): name for name in DELIVERIES}
    rows = await connection.fetch("select webhook_id, workspace_id from webhook_part where workspace_id is not null")
    return {names[row["webhook_id"]]: row["workspace_id"] for row in rows}


@pytest.mark.parametrize("case", TOLD)
async def test_whose_a_delivery_is_doesnt_depend_on_what_was_read_first(
    connection: asyncpg.Connection, case: str
) -> None:
    """The deliveries come in halves, each at every place between what is told of numbers; and once more in the end."""
    told, expected = TOLD[case]
    halves = [[webhook(name) for name in list(DELIVERIES)[half::2]] for half in (0, 1)]
    stored = []
    for places in combinations_with_replacement(range(len(told) + 1), 2):
        await connection.execute("truncate webhook, webhook_part, sender")
        for step in range(len(told) + 1):
            for place, half in zip(places, halves, strict=True):
                if place == step:
                    await store.add_webhooks(connection, half)
            if step < len(told):
                await tell(connection, told[step])
        await store.add_webhooks(connection, [*halves[1], *halves[0]])
        assert await whose(connection) == expected, places
        stored.append(sorted(map(repr, await connection.fetch("select * from webhook_part"))))
    assert all(one == stored[0] for one in stored)


async def test_what_is_signed_by_another_app_shows_nowhere_in_a_workspace(connection: asyncpg.Connection) -> None:
    """Neither in its list, nor at the message that it names; those who see everything see that it came."""
    own = event_id("own")
    await store.add_webhooks(connection, [webhook(name) for name in DELIVERIES])
    for one in TOLD["registered"][0]:
        await tell(connection, one)
    listed = await webhook_queries.list_webhooks(connection, "acme", ANY, everything=False)
    assert {row["webhook_id"] for row in listed.rows} == {event_id(name) for name in OWN}
    linked = await queries.webhooks_of(connection, "acme", "m-1", "wamid.A", NUMBER)
    assert {row["webhook_id"] for row in linked} == {event_id(name) for name in OWN}
    forged = str(event_id("another app's"))
    assert await webhook_queries.read_webhook(connection, "acme", forged, everything=False) is None
    for key, message_id in ((forged, None), (str(own), "m-1")):
        seen = await webhook_queries.read_webhook(connection, "acme", key, everything=True)
        assert seen is not None
        assert [part["message_id"] for part in seen[1]] == [message_id]


async def test_rows_from_before_stay_where_they_were(connection: asyncpg.Connection) -> None:
    """Of these it isn't noted what they name, but that where they stand is what they named."""
    await store.add_webhooks(connection, [webhook("own")])
    await connection.execute("update webhook_part set workspace_id = 'acme', named_workspace_id = null")
    await tell(connection, number("acme", 1, "700"))
    assert await whose(connection) == {"own": "acme"}
    await tell(connection, number("globex", 2, "700"))
    assert await whose(connection) == {}
    await tell(connection, number("acme", 3, "700"))
    assert await whose(connection) == {"own": "acme"}


def told(event: SenderUpdated | TemplateUpdated, topic: Topic, key: str) -> Record[Any]:
    return Record(event, topic, 0, event.version, after(50), key.encode(), event.to_json(), ())


async def test_templates_are_shown_to_whom_meta_has_shown_their_account(connection: asyncpg.Connection) -> None:
    """Anybody may name another's account in the PUT of a number of their own."""
    claim: dict[str, Any] = {"workspace_id": "evil", "synced_at": None}
    numbers = [registered("1001"), registered("6666", **claim)]
    secret = template("secret_launch", "MARKETING", "Soon", waba="301")
    await write_states(connection, [told(secret, Topic.TEMPLATE_UPDATED, "301/secret_launch/en_US")])
    await write_senders(connection, [told(one, Topic.SENDER_UPDATED, one.sender_id) for one in numbers])
    for workspace, names in (("acme", ["secret_launch"]), ("evil", [])):
        assert await queries.templates_of(connection, workspace) == names
        assert [one.name for one in await inbox_queries.templates_of(connection, workspace)] == names
        assert [one.name for one in (await contact_queries.sendable(connection, workspace)).templates] == names
    proven = registered("6666", workspace_id="evil", version=2)
    await write_senders(connection, [told(proven, Topic.SENDER_UPDATED, "6666")])
    assert await queries.templates_of(connection, "evil") == ["secret_launch"]
