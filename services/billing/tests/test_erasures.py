"""Erasure in billing: decisions name nobody any more, and the money stays."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from billing.erasures import erase
from billing_desk import NOW, TEMPLATE, Desk, consented, record, rejected, status
from sendwhy.erasure import on_erasing
from sendwhy.events import PersonErased, PersonErasing, SendFunded, Status, To
from sendwhy.privacy import is_alias
from sendwhy.reasons import ReasonCode, Service

pytestmark = pytest.mark.postgres
PERSON: dict[str, Any] = {"to": To(contact_id="shopify:7712", phone="+525512345678"), "content": TEMPLATE}
CANARIES = ("5512345678", "shopify:7712", '"4711"')


def order(*message_ids: str) -> PersonErasing:
    return PersonErasing(
        event_id=uuid4(),
        occurred_at=NOW,
        workspace_id="w",
        erasure_id=uuid4(),
        erased_at=NOW + timedelta(hours=1),
        tags=["00" * 16],
        message_ids=list(message_ids),
    )


async def bodies(desk: Desk) -> str:
    return str(await desk.pool.fetch("select body from decision"))


async def test_decisions_are_kept_without_their_person_and_the_ledger_as_it_is(desk: Desk) -> None:
    await desk.give(2)
    await desk.fund(*(consented(f"m{number}", **PERSON) for number in range(3)))
    before = await desk.booked("m0")
    given = order("m0", "m1", "m2")
    handle = on_erasing(Service.BILLING, erase)
    told = await desk.run(handle, [record(given)])
    report = PersonErased.model_validate_json(told[0].value or b"")
    assert {(one.table, one.act): one.rows for one in report.tables} == {
        ("decision", "blurred"): 3,
        ("ledger", "kept"): 2,
    }
    assert await desk.run(handle, [record(given)]) == told
    assert not [one for one in CANARIES if one in await bodies(desk)]
    # A repeat still tells the dispatcher of the message whose credits are reserved.
    again = await desk.fund(consented("m0", **PERSON))
    assert is_alias(SendFunded.model_validate_json(again[0].value or b"").resolved.contact_id)
    await desk.tell(status("m0", Status.SENT))
    await desk.tell(rejected("m1", ReasonCode.CUSTOMER_IS_NOT_OPTED_IN, service=Service.CONSENT))
    assert await desk.booked("m0") == [*before, ("capture", 0)]
    assert await desk.balance() == 1


async def test_what_was_consented_before_and_comes_later_is_funded_without_its_person(desk: Desk) -> None:
    await desk.give(1)
    await desk.run(on_erasing(Service.BILLING, erase), [record(order("late"))])
    told = await desk.fund(consented("late", **PERSON))
    event = SendFunded.model_validate_json(told[0].value or b"")
    assert is_alias(event.resolved.contact_id)
    assert not [one for one in CANARIES if one in str(told)]
    assert not [one for one in CANARIES if one in await bodies(desk)]
    assert await desk.booked("late") == [("reserve", -1)]
