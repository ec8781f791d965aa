"""What consent takes from its own topics after a restored backup: its decisions, and what it knew of contacts."""

from collections.abc import Sequence
from typing import Any

import pytest
from consent.contacts import Key
from consent.recovering import adopt, learn, states
from consent_desk import TAGGER, Desk, contact_in, customer, message, record, request
from sendwhy.events import ContactUpdated, MarketingState, SendConsented, SendRejected
from sendwhy.postgres import unpublished
from sendwhy.stage import Record
from sendwhy.topics import Outgoing, Topic

pytestmark = pytest.mark.postgres
INES = Key("acme", "shopify:7712")


def told(published: Sequence[Outgoing]) -> list[Record[Any]]:
    """As they stand in the topics."""
    return [record(None, one.topic, one.value, one.key) for one in published]


async def lost(desk: Desk, *events: Any) -> list[Record[Any]]:
    """What consent told in a life of which this database knows nothing."""
    async with desk.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        published: list[Outgoing] = []
        for event in events:
            act = desk.stages.on_message if isinstance(event, type(message("", 0))) else desk.stages.on_customer
            if isinstance(event, type(request())):
                act = desk.stages.on_requested  # type: ignore[assignment]
            published += await act(connection, [record(event)])
        await transaction.rollback()
    return told(published)


async def recover(desk: Desk, records: Sequence[Record[Any]]) -> int:
    async with desk.pool.acquire() as connection, connection.transaction():
        return await learn(connection, TAGGER, states(records))


async def heard_of(desk: Desk) -> list[ContactUpdated]:
    async with desk.pool.acquire() as connection:
        rows = await unpublished(connection, older_than_seconds=-1, limit=100)
    values = [one.value for one in rows.values() if one.topic == Topic.CONTACT_UPDATED and one.value]
    return [ContactUpdated.model_validate_json(value) for value in values]


async def test_a_no_that_came_after_the_backup_stands_and_is_told_with_a_version_of_its_own(desk: Desk) -> None:
    await desk.tell(customer())
    records = await lost(desk, customer(2, marketing_state="UNSUBSCRIBED", phone="+525512345679"))
    assert [await recover(desk, records) for _ in range(2)] == [1, 0]
    before = ContactUpdated.model_validate_json(records[-1].value or b"")
    [after] = await heard_of(desk)
    assert (after.marketing_state, after.phone) == (MarketingState.UNSUBSCRIBED, "+525512345679")
    assert after.version == before.version + 1
    # What was a yes before can't undo it.
    await desk.tell(customer(1))
    assert contact_in(await desk.tell(customer(3, name="Inés"))).marketing_state is MarketingState.UNSUBSCRIBED


async def test_who_became_known_after_the_backup_is_known(desk: Desk) -> None:
    assert await recover(desk, await lost(desk, customer())) == 1
    [published] = await desk.request(request())
    assert published.topic == Topic.SEND_CONSENTED


async def test_a_decision_stands_as_it_was_told_whatever_has_become_of_the_person(desk: Desk) -> None:
    await desk.tell(customer())
    [before] = await lost(desk, request())
    await desk.tell(message("STOP", 1))
    async with desk.pool.acquire() as connection, connection.transaction():
        event = SendConsented.model_validate_json(before.value or b"")
        assert await adopt(connection, TAGGER, [(before, event)]) == 1
        assert await adopt(connection, TAGGER, [(before, event)]) == 0
    assert [one.value for one in await desk.request(request())] == [before.value]


async def test_what_could_not_be_read_was_no_decision(desk: Desk) -> None:
    records = await lost(desk, request(send_at="2026-11-22T12:00:00Z", expires_at="2026-11-21T12:00:00Z"))
    [invalid] = [one for one in records if one.topic == Topic.SEND_REJECTED]
    event = SendRejected.model_validate_json(invalid.value or b"")
    async with desk.pool.acquire() as connection, connection.transaction():
        assert await adopt(connection, TAGGER, [(invalid, event)]) == 0


async def test_who_was_erased_after_the_backup_is_erased_again(desk: Desk) -> None:
    await desk.tell(customer())
    records = await lost(desk, customer(1, action="delete"))
    assert states(records) == {INES: None}
    assert await recover(desk, records) == 1
    assert await desk.pool.fetchval("select count(*) from contact") == 0
