"""Where Meta refuses a message for what we know more of, its reason has the evidence of our own refusal."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from dispatcher import facts, store
from dispatcher.answers import NotTaken, Taken, not_taken
from dispatcher.clock import utc_now
from dispatcher.decide import Message, Reject, decide
from dispatcher.explaining import explained
from dispatcher.store import TemplateRow
from dispatcher_cases import PHONE, SENDER, TEMPLATE, funded, message, template_content, text_content
from dispatcher_desk import Desk
from sendwhy.events import MetaError, Purpose

pytestmark = pytest.mark.postgres
WRONG_NAME = message(template_content(name="autum_sale"), purpose=Purpose.TRANSACTIONAL)
REPLY = message(text_content(), purpose=Purpose.CONVERSATION)


def refused(code: int) -> NotTaken:
    return not_taken(MetaError(code=code, details="as Meta says"), attempt=1, jitter=0.0)


async def own_refusal(desk: Desk, one: Message) -> Any:
    row = (await store.senders(desk.connection, [SENDER.sender_id]))[SENDER.sender_id]
    known = (await facts.load(desk.connection, row.sender, [one], "block"))[one.key]
    verdict = decide(one, replace(known, inbound_read_until=utc_now()), utc_now())
    assert isinstance(verdict, Reject)
    return verdict.reason


@pytest.mark.parametrize(("code", "one"), [(131047, REPLY), (132001, WRONG_NAME)], ids=["window", "template"])
@pytest.mark.parametrize("is_known", [True, False])
async def test_metas_refusal_has_the_evidence_of_ours(desk: Desk, code: int, one: Message, *, is_known: bool) -> None:
    life = {"send_at": utc_now(), "expires_at": utc_now() + timedelta(hours=9)}
    queued = replace(one, funded=one.funded.model_copy(update=life), queued_at=utc_now() - timedelta(minutes=5))
    await desk.connection.execute("update sender set templates_synced_at = clock_timestamp()")
    if is_known:
        row = TemplateRow("300", replace(TEMPLATE, said_at=utc_now()), "POSITIONAL", None, None, 1)
        await store.save_templates(desk.connection, "300", [row])
        opened = utc_now() - timedelta(hours=30)
        window = "insert into conversation_window values ($1, $2, $3, $3)"
        await desk.connection.execute(window, SENDER.sender_id, PHONE, opened)
    ours, told = await own_refusal(desk, queued), await explained(desk.connection, queued, refused(code))
    assert isinstance(told, NotTaken)
    assert (told.reason.code, told.reason.detail) == (ours.code, f"Meta says: as Meta says (code {code})")
    assert told.reason.evidence == {**ours.evidence, "attempt": 1}
    assert not is_known or told.reason.evidence.get("nearest", True)


@pytest.mark.parametrize("is_known", [True, False])
async def test_parameters_that_meta_refuses_stand_beside_what_the_template_takes(desk: Desk, *, is_known: bool) -> None:
    if is_known:
        row = TemplateRow("300", replace(TEMPLATE, said_at=utc_now()), "POSITIONAL", None, None, 1)
        await store.save_templates(desk.connection, "300", [row])
    one = message(template_content("Ines", "noon"), purpose=Purpose.TRANSACTIONAL)
    told = await explained(desk.connection, one, refused(132000))
    assert isinstance(told, NotTaken)
    expected = {"body": "1"} if is_known else None
    evidence = {"template": "autumn_sale", "expected": expected, "given": {"body": "1, 2"}, "attempt": 1}
    assert told.reason.evidence == evidence
    # What Meta counted is what Meta's template takes.
    words = "number of localizable_params (2) does not match the expected number of params (3)"
    counted = not_taken(MetaError(code=132000, details=words), attempt=1, jitter=0.0)
    told = await explained(desk.connection, one, counted)
    assert isinstance(told, NotTaken)
    assert (told.reason.evidence["expected"], told.reason.evidence["given"]) == (3, 2)


async def test_what_may_have_been_meant_is_looked_for_once_for_all_that_name_it(desk: Desk) -> None:
    await desk.connection.execute("update sender set templates_synced_at = clock_timestamp()")
    row = (await store.senders(desk.connection, [SENDER.sender_id]))[SENDER.sender_id]
    wrong = template_content(name="autum_sale")
    several = [replace(WRONG_NAME, funded=funded(wrong, message_id=f"m-{number}")) for number in range(2)]
    template = TemplateRow("300", replace(TEMPLATE, said_at=utc_now()), "POSITIONAL", None, None, 1)
    await store.save_templates(desk.connection, "300", [template])
    known = await facts.load(desk.connection, row.sender, several, "block")
    one, other = (known[message.key].nearest for message in several)
    assert one == ["autumn_sale (es_MX)"]
    assert one is other


@pytest.mark.parametrize("outcome", [Taken("wamid.1"), None, refused(131026), refused(131016), refused(80007)])
async def test_nothing_is_looked_up_for_what_ended_otherwise(desk: Desk, outcome: Any) -> None:
    nowhere: Any = None
    assert await explained(nowhere, REPLY, outcome) is outcome
