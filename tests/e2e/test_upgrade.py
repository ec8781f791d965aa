"""An upgrade as it happens: the last release's services on the new tables, beside new ones, then the other way round.

Half of the services are the old ones, then the other half: each reads what the other release writes, and the new
migrations are under all of it. At last the dispatcher is rolled back, with messages of the new one in its queue.
"""

import shutil
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from former import former_python
from held_stack import HeldStack
from local_stack.services import SERVICES
from outside import Outside, outside, until

FIRST_HALF = ("consent", "dispatcher", "message-log")
EXPECTED = {
    "goes": ("read", None),
    "fails": ("failed", "RECIPIENT_NOT_ON_WHATSAPP"),
    "said-no": ("failed", "CUSTOMER_IS_NOT_OPTED_IN"),
    "nobody": ("failed", "CUSTOMER_IS_NOT_OPTED_IN"),
}


@pytest.fixture
async def stack() -> AsyncIterator[HeldStack]:
    python = former_python()
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-upgrade-"))
    held = HeldStack(folder / "state")
    held.pythons = dict.fromkeys(FIRST_HALF, python)
    try:
        await held.start()
        yield held
    finally:
        await held.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.stack
@pytest.mark.timeout(600)
async def test_the_last_release_works_beside_this_one_in_every_order(stack: HeldStack) -> None:
    old = stack.pythons["consent"]
    async with outside(stack.file) as user:
        await user.set_up()
        await campaign(user, "one")
        await wait_for_later(user, "from-the-old-one")

        await stack.end_services()
        stack.pythons = {service: old for service in SERVICES if service not in FIRST_HALF}
        await stack.serve()
        await go_on(user, "from-the-old-one")
        await campaign(user, "two")
        await wait_for_later(user, "from-the-new-one")

        await stack.end_services(["dispatcher"])
        stack.pythons["dispatcher"] = old
        await stack.serve(["dispatcher"])
        await go_on(user, "from-the-new-one")

        assert await user.records("dead.letters") == []
        entries = await user.ledger()
        assert sum(entry["amount"] for entry in entries) == await user.balance()
        calls = [row["biz_opaque_callback_data"] for row in await user.calls()]
        assert len(calls) == len(set(calls)) == 6


async def campaign(user: Outside, name: str) -> None:
    """One message of each kind: its way over all services, a webhook's failure, a STOP."""
    phones = {who: user.person() for who in ("goes", "fails", "said-no")}
    await user.contacts((f"{name}-{who}", phone) for who, phone in phones.items())
    await user.sim("PUT", f"/recipients/{phones['fails']}", {"scenario": "failed_131026"})
    stop = {"phone_number_id": user.sender_id, "from": phones["said-no"].removeprefix("+")}
    await user.sim("POST", "/inbound", stop | {"message": {"type": "text", "text": {"body": "STOP"}}})

    async def stopped() -> bool:
        contact = await user.ok("GET", "consent", f"/contacts/{name}-said-no")
        return bool(contact["marketing_state"] == "UNSUBSCRIBED")

    await until(stopped, "the STOP is heard")
    await user.publish(*(user.request(f"{name}-{who}", f"{name}-{who}") for who in EXPECTED))
    found = await user.settled([f"{name}-{who}" for who in EXPECTED])
    assert found == {f"{name}-{who}": outcome for who, outcome in EXPECTED.items()}


async def wait_for_later(user: Outside, message_id: str) -> None:
    """A message that stands in the dispatcher's queue, stored by the release that runs."""
    await user.ok("POST", "dispatcher", f"/senders/{user.sender_id}/pause")
    await user.contacts([(message_id, user.person())])
    later = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    await user.publish(user.request(message_id, message_id, expires_at=later))
    await user.settled_as([message_id], "waiting")


async def go_on(user: Outside, message_id: str) -> None:
    await user.ok("POST", "dispatcher", f"/senders/{user.sender_id}/resume")
    assert await user.settled([message_id]) == {message_id: ("read", None)}
