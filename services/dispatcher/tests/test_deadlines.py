"""How long a receipt is waited for: as long as Meta tries, by the template's own time to live, and somewhat longer."""

import json
from datetime import timedelta
from typing import Any

import pytest
from dispatcher import queue_store, store
from dispatcher.clock import utc_now
from dispatcher.decide import AUTHENTICATION_TTL, RECEIPT_SLACK, receipt_deadline
from dispatcher.stages import Stages
from dispatcher.sync import read_template
from dispatcher_cases import NOW, SENDER, TEMPLATE
from dispatcher_desk import Desk, record
from sendwhy.events import Status, StatusUpdated, event_id_of
from sendwhy.postgres import unpublished
from sendwhy.reasons import Service
from sendwhy.topics import Topic

MOST = timedelta(days=30)


@pytest.mark.parametrize(
    ("category", "template_seconds", "lasts"),
    [
        (None, None, MOST),
        ("MARKETING", None, MOST),
        ("UTILITY", None, MOST),
        ("AUTHENTICATION", None, AUTHENTICATION_TTL + RECEIPT_SLACK),
        ("AUTHENTICATION", 900, timedelta(seconds=900) + RECEIPT_SLACK),
        ("AUTHENTICATION", 30, timedelta(seconds=30) + RECEIPT_SLACK),
        ("AUTHENTICATION", -1, MOST),
        ("UTILITY", 30, timedelta(seconds=30) + RECEIPT_SLACK),
        ("UTILITY", -1, MOST),
        ("UTILITY", 2_592_000, MOST),
        # Meta heeds it on its marketing endpoint alone.
        ("MARKETING", 43_200, MOST),
    ],
)
def test_a_receipt_is_waited_for_as_long_as_meta_tries(
    category: str | None, template_seconds: int | None, lasts: timedelta
) -> None:
    assert receipt_deadline(NOW, category, MOST, template_seconds) == NOW + lasts
    assert receipt_deadline(NOW, category, timedelta(seconds=5), template_seconds) == NOW + timedelta(seconds=5)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        *((900, 900), ("900", 900), (-1, -1), ("-1", -1)),
        *((None, None), (0, None), (29, None), (2_592_001, None)),
        *((True, None), (30.5, None), ("soon", None), ("9" * 5000, None), ("\u0663\u0660", None), ([30], None)),
    ],
)
def test_a_time_to_live_is_read_or_not_told(told: Any, seconds: int | None) -> None:
    entry = {"name": "code", "language": "es", "status": "APPROVED", "message_send_ttl_seconds": told}
    row = read_template("300", entry, NOW)
    assert row is not None
    assert row.template.ttl_seconds == seconds


@pytest.mark.postgres
async def test_a_message_that_only_a_webhook_told_of_has_its_templates_deadline(desk: Desk) -> None:
    desk.stages = Stages(desk, _Settings(), desk, utc_now)  # type: ignore[arg-type]
    words = {"name": TEMPLATE.name, "language": TEMPLATE.language, "status": "APPROVED", "category": "UTILITY"}
    row = read_template("300", words | {"message_send_ttl_seconds": 30}, utc_now())
    assert row is not None
    await store.save_templates(desk.connection, "300", [row])
    await desk.queue("m1")
    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    await desk.claim(fence)
    await queue_store.take_over(desk.connection, SENDER.sender_id)
    receipt = StatusUpdated(
        event_id=event_id_of("m1", "sent"),
        occurred_at=NOW,
        observed_at=NOW,
        message_id="m1",
        workspace_id="acme",
        sender_id=SENDER.sender_id,
        provider_message_id="wamid.1",
        service=Service.WEBHOOK_INGEST,
        status=Status.SENT,
    )
    await desk.stages.on_statuses(desk.connection, [record(Topic.STATUS_UPDATED, receipt)])
    (told,) = (await unpublished(desk.connection, older_than_seconds=-1, limit=10)).values()
    accepted = json.loads(told.value or b"")
    deadline = NOW + timedelta(seconds=30) + RECEIPT_SLACK
    assert accepted["receipt_deadline"].startswith(deadline.strftime("%Y-%m-%dT%H:%M:%S"))
    assert accepted["template_category"] == "UTILITY"


class _Settings:
    receipt_ttl_seconds = 30 * 86400
    privacy_key = Desk.settings.privacy_key
