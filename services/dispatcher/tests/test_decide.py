"""Every gate of the dispatcher, as tables of cases."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from dispatcher.decide import (
    Facts,
    Lane,
    Message,
    Recall,
    Reject,
    Send,
    Stops,
    Tier,
    Unread,
    Wait,
    Waiting,
    decide,
    evaluate,
    expired,
    lane_of,
    nearest_names,
)
from dispatcher_cases import FACTS, NOW, SENDER, TEMPLATE, contact, message, template_content, text_content
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.events import MarketingState, MetaError, Purpose, reason
from sendwhy.reasons import CATALOGUE, ReasonCode, Service

FREE = message(text_content(), purpose=Purpose.CONVERSATION)
FREE_FACTS = replace(FACTS, template=None)
HOUR = timedelta(hours=1)


def sender(**changes: Any) -> Facts:
    return replace(FACTS, sender=replace(SENDER, **changes))


def template(**changes: Any) -> Facts:
    return replace(FACTS, template=replace(TEMPLATE, **changes))


REJECTED = [
    ("no sender", message(), Facts(sender=None), ReasonCode.SENDER_NOT_AVAILABLE),
    ("red number, marketing", message(), sender(quality="RED"), ReasonCode.QUALITY_RATING_TOO_LOW),
    ("cancelled while it waited", message(cancelled_by="upstream"), FACTS, ReasonCode.CANCELLED),
    ("template pending", message(), template(status="PENDING"), ReasonCode.TEMPLATE_NOT_APPROVED),
    ("template rejected", message(), template(status="REJECTED"), ReasonCode.TEMPLATE_NOT_APPROVED),
    ("template paused", message(), template(status="PAUSED"), ReasonCode.TEMPLATE_NOT_APPROVED),
    ("a state we don't know", message(), template(status="BEWITCHED"), ReasonCode.TEMPLATE_NOT_APPROVED),
    ("variable not mapped", message(template_content()), FACTS, ReasonCode.TEMPLATE_PARAMETERS_MISMATCH),
    ("variable empty", message(template_content(" ")), FACTS, ReasonCode.TEMPLATE_PARAMETERS_MISMATCH),
    ("never wrote", FREE, FREE_FACTS, ReasonCode.OUTSIDE_24_HOUR_WINDOW),
    (
        "window closed this second",
        FREE,
        replace(FREE_FACTS, window_opened_at=NOW - 24 * HOUR),
        ReasonCode.OUTSIDE_24_HOUR_WINDOW,
    ),
]


@pytest.mark.parametrize(("name", "waiting", "facts", "code"), REJECTED, ids=[case[0] for case in REJECTED])
def test_rejected_with_a_reason_of_ours(name: str, waiting: Message, facts: Facts, code: ReasonCode) -> None:
    verdict = decide(waiting, facts, NOW)
    assert isinstance(verdict, Reject)
    assert verdict.reason.code is code
    assert Service.DISPATCHER in CATALOGUE[code].services
    assert verdict.reason.detail


WAITING = [
    ("before the first sync", message(), sender(templates_synced_at=None), Waiting.SYNC),
    ("paused sender", message(), sender(paused_at=NOW), Waiting.PAUSED),
    ("paused campaign", message(campaign_paused_at=NOW), FACTS, Waiting.PAUSED),
    ("marketing cap", message(), replace(FACTS, capped_until=NOW + HOUR), Waiting.CAP),
    ("throttle", message(), replace(FACTS, throttled=True, slot_at=NOW + HOUR), Waiting.THROTTLE),
    ("pair", message(), replace(FACTS, pair_wait=timedelta(seconds=6)), Waiting.PAIR),
    ("tier used up", message(), replace(FACTS, tier=Tier(limit=5, used=5)), Waiting.TIER),
    ("window not yet believed closed", FREE, replace(FREE_FACTS, inbound_read_until=None), Waiting.WINDOW),
    (
        "template not found, synced long before it came",
        message(),
        replace(FACTS, template=None),
        Waiting.SYNC,
    ),
]


@pytest.mark.parametrize(("name", "waiting", "facts", "cause"), WAITING, ids=[case[0] for case in WAITING])
def test_waits_for_a_cause(name: str, waiting: Message, facts: Facts, cause: Waiting) -> None:
    verdict = decide(waiting, facts, NOW)
    assert isinstance(verdict, Wait)
    assert verdict.waiting_for is cause


SENT = [
    ("all is well", message(), FACTS, True),
    ("nobody's copy of the contact yet", message(), replace(FACTS, contact=None), True),
    ("red number, but policy off", message(), replace(sender(quality="RED"), quality_policy="off"), True),
    ("red number, conversation", FREE, replace(sender(quality="RED"), template=None, window_opened_at=NOW), False),
    ("window open", FREE, replace(FREE_FACTS, window_opened_at=NOW - 23 * HOUR), False),
    ("tier used up, but this person counts already", message(), replace(FACTS, tier=Tier(5, 5, True)), True),
    ("tier used up, within a window", message(), replace(FACTS, tier=Tier(5, 5), window_opened_at=NOW), False),
    ("hold that is over", message(), sender(hold=None, hold_until=NOW), True),
]


@pytest.mark.parametrize(("name", "waiting", "facts", "counts"), SENT, ids=[case[0] for case in SENT])
def test_goes(name: str, waiting: Message, facts: Facts, counts: bool) -> None:
    assert decide(waiting, facts, NOW) == Send(counts_for_tier=counts)


def test_a_stop_recalls_marketing_and_leaves_conversation() -> None:
    stopped = contact(MarketingState.UNSUBSCRIBED)
    assert decide(message(), replace(FACTS, contact=stopped), NOW) == Recall(stopped)
    talking = replace(FREE_FACTS, contact=stopped, window_opened_at=NOW)
    assert isinstance(decide(FREE, talking, NOW), Send)


def test_a_marketing_template_needs_a_subscription_whatever_it_calls_itself() -> None:
    disguised = message(purpose=Purpose.TRANSACTIONAL)
    stopped = contact(MarketingState.UNSUBSCRIBED)
    assert decide(disguised, replace(FACTS, contact=stopped), NOW) == Recall(stopped)


def test_nobodys_contact_gets_no_marketing_template_by_another_name() -> None:
    disguised = message(purpose=Purpose.TRANSACTIONAL)
    stranger = replace(disguised, funded=disguised.funded.model_copy(update={"contact_version": None}))
    verdict = decide(stranger, replace(FACTS, contact=None), NOW)
    assert isinstance(verdict, Recall)
    assert verdict.contact.marketing_state is MarketingState.UNKNOWN


def test_a_state_older_than_the_one_consent_judged_by_recalls_nothing() -> None:
    stopped = contact(MarketingState.UNSUBSCRIBED, version=2)
    again = message()
    again = replace(again, funded=again.funded.model_copy(update={"contact_version": 3}))
    assert isinstance(decide(again, replace(FACTS, contact=stopped), NOW), Send)


def test_a_gate_that_recalls_says_why() -> None:
    stopped = contact(MarketingState.UNSUBSCRIBED)
    gates = {check.gate: check.to_gate() for check in evaluate(message(), replace(FACTS, contact=stopped), NOW)}
    why = gates["marketing_state"].reason
    assert why is not None
    assert why.code is ReasonCode.CUSTOMER_IS_NOT_OPTED_IN


@pytest.mark.parametrize("stops", Stops)
@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("is_template", [True, False])
def test_a_hold_of_what_a_business_begins_lets_replies_go(stops: Stops, is_open: bool, is_template: bool) -> None:
    why = reason(ReasonCode.SENDER_NOT_AVAILABLE, "restricted")
    held = sender(hold=why, hold_until=NOW + timedelta(days=2), hold_stops=stops)
    facts = replace(held, window_opened_at=NOW - timedelta(hours=1) if is_open else None)
    one = message(template_content("Inés") if is_template else text_content(), purpose=Purpose.TRANSACTIONAL)
    verdict = decide(one, facts, NOW + timedelta(minutes=1))
    if not is_template and not is_open:
        assert isinstance(verdict, Reject)
    elif stops is Stops.BUSINESS_INITIATED and is_open:
        assert isinstance(verdict, Send)
    else:
        assert isinstance(verdict, Wait)
        assert verdict.waiting_for is Waiting.HOLD


def test_a_reply_waits_only_for_what_stops_replies() -> None:
    why, soon = reason(ReasonCode.SENDER_NOT_AVAILABLE, "restricted"), NOW + timedelta(seconds=20)
    held = sender(
        hold=why,
        hold_until=NOW + timedelta(days=30),
        hold_stops=Stops.BUSINESS_INITIATED,
        hold_replies_from=soon,
    )
    facts = replace(held, window_opened_at=NOW - timedelta(hours=1))
    reply = message(text_content(), purpose=Purpose.TRANSACTIONAL)
    assert decide(reply, facts, NOW) == Wait(Waiting.HOLD, ReasonCode.SENDER_NOT_AVAILABLE, soon)
    assert isinstance(decide(reply, facts, soon), Send)
    begun = decide(message(template_content("Inés"), purpose=Purpose.TRANSACTIONAL), held, soon)
    assert isinstance(begun, Wait)
    assert begun.waiting_for is Waiting.HOLD


def test_only_a_whole_list_tells_that_a_template_is_absent() -> None:
    facts = replace(sender(templates_synced_at=NOW), template=None, listing_incomplete="a page is missing")
    verdict = decide(message(template_content("Inés", name="autum_sale")), facts, NOW)
    assert isinstance(verdict, Wait)
    assert verdict.waiting_for is Waiting.SYNC


def test_a_template_not_found_offers_the_nearest_names() -> None:
    wanted = message(template_content("Inés", name="autum_sale"))
    assert wanted.template is not None
    nearest = nearest_names(wanted.template, [(name, "en_US") for name in ("order_update", "autumn_sale")])
    assert nearest == ["autumn_sale (en_US)"]
    facts = replace(sender(templates_synced_at=NOW), template=None, nearest=nearest)
    verdict = decide(wanted, facts, NOW)
    assert isinstance(verdict, Reject)
    assert verdict.reason.evidence["status"] == "NOT_FOUND"
    assert verdict.reason.evidence["nearest"] == nearest


def test_the_window_is_believed_closed_after_ten_seconds_at_most() -> None:
    facts = replace(FREE_FACTS, inbound_read_until=None)
    assert isinstance(decide(FREE, facts, NOW + timedelta(seconds=9)), Wait)
    assert isinstance(decide(FREE, facts, NOW + timedelta(seconds=10)), Reject)


EXPIRED = [
    (Waiting.THROTTLE, ReasonCode.RATE_LIMIT_EXCEEDED),
    (Waiting.PAIR, ReasonCode.RATE_LIMIT_EXCEEDED),
    (Waiting.RATE, ReasonCode.RATE_LIMIT_EXCEEDED),
    (Waiting.TIER, ReasonCode.MESSAGING_LIMIT_REACHED),
    (Waiting.RETRY, ReasonCode.TEMPORARY_FAILURE),
    (Waiting.PAUSED, ReasonCode.EXPIRED_BEFORE_SENDING),
    (Waiting.TURN, ReasonCode.EXPIRED_BEFORE_SENDING),
    (Waiting.CAP, ReasonCode.MARKETING_CAP_REACHED),
]


@pytest.mark.parametrize(("cause", "code"), EXPIRED)
def test_what_it_waited_for_is_why_it_expired(cause: Waiting, code: ReasonCode) -> None:
    why = expired(message(waiting_for=cause, waiting_since=NOW))
    assert why.code is code
    assert why.evidence["waited_for"] == cause.value


SAID_LAST = [
    (Waiting.RETRY, "retry", 131016),
    (Waiting.PAIR, "pair", 131056),
    (Waiting.RATE, "pace", 130429),
    (Waiting.SYNC, "syncing", 134101),
]


@pytest.mark.parametrize(("cause", "result", "code"), SAID_LAST)
def test_where_meta_made_it_wait_meta_is_quoted(cause: Waiting, result: str, code: int) -> None:
    words = {"title": "Too soon", "details": "Wait.", "fbtrace_id": "F1"}
    tries = ({"result": "retry", "code": 131000}, {"result": result, "code": code, "http_status": 400, **words})
    said = MetaError(code=code, title="Too soon", details="Wait.", http_status=400, fbtrace_id="F1")
    assert expired(message(waiting_for=cause, waiting_since=NOW, tries=tries)).meta == said
    # Our own pace after it, or a call that never reached Meta, is no word of Meta's.
    assert expired(message(waiting_for=Waiting.THROTTLE, waiting_since=NOW, tries=tries)).meta is None
    unheard = ({"result": result, "code": None, "http_status": None, "detail": "connection refused"},)
    assert expired(message(waiting_for=cause, waiting_since=NOW, tries=unheard)).meta is None


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (10, ReasonCode.SENDER_CREDENTIALS_REJECTED),
        (190, ReasonCode.SENDER_CREDENTIALS_REJECTED),
        (200, ReasonCode.SENDER_CREDENTIALS_REJECTED),
        (100, ReasonCode.TEMPLATE_NOT_APPROVED),
        (None, ReasonCode.TEMPLATE_NOT_APPROVED),
    ],
)
@pytest.mark.parametrize("synced_at", [None, NOW - timedelta(days=1)])
def test_where_no_templates_can_be_read_a_message_says_why(
    code: int | None, told: ReasonCode, synced_at: datetime | None
) -> None:
    unread = Unread(NOW - HOUR, "Meta refused: No rights", code)
    facts = replace(sender(templates_synced_at=synced_at, unread=unread), template=None)
    verdict = decide(message(), facts, NOW)
    assert isinstance(verdict, Wait)
    assert (verdict.waiting_for, verdict.cause) == (Waiting.SYNC, told)
    waited = message(waiting_for=Waiting.SYNC)
    late = decide(waited, facts, waited.funded.expires_at)
    assert isinstance(late, Reject)
    assert late.reason.code is told
    assert late.reason.detail.endswith(": Meta refused: No rights")
    assert late.reason.evidence["sync_error"] == "Meta refused: No rights"
    assert late.reason.meta == (None if code is None else MetaError(code=code))
    # What Meta said of this very message counts for more.
    syncing = message(waiting_for=Waiting.SYNC, tries=({"result": "syncing", "code": 134101},))
    assert expired(syncing, unread=unread).code is ReasonCode.TEMPLATE_NOT_APPROVED
    # And what waited for something else did not wait for templates.
    assert expired(message(waiting_for=Waiting.PAIR), unread=unread).code is ReasonCode.RATE_LIMIT_EXCEEDED


def test_tries_that_ran_out_of_time_are_all_counted_and_the_last_are_shown() -> None:
    tries = tuple({"result": "retry", "code": 131016, "at": str(number)} for number in range(20))
    why = expired(message(waiting_for=Waiting.RETRY, waiting_since=NOW, attempts=576, tries=tries))
    assert why.code is ReasonCode.TEMPORARY_FAILURE
    assert why.detail.startswith("All 576 tries failed")
    assert why.evidence["attempts"] == 576
    assert why.evidence["tries"] == [dict(one) for one in tries]


def test_a_hold_gives_its_own_reason_when_the_message_expires() -> None:
    hold = reason(ReasonCode.META_PAYMENT_ISSUE, "Meta says so", {"held": "account 300"})
    why = expired(message(waiting_for=Waiting.HOLD), hold)
    assert why.code is ReasonCode.META_PAYMENT_ISSUE
    assert why.detail.endswith(". Meta says so")
    assert why.evidence["hold"] == {"detail": "Meta says so", "held": "account 300"}
    # In an outage what waits keeps its turn.
    down = reason(ReasonCode.TEMPORARY_FAILURE, "Meta doesn't answer")
    told = expired(message(waiting_for=Waiting.TURN), down)
    assert told.code is ReasonCode.TEMPORARY_FAILURE
    assert "waited for the sender to become available" in told.detail
    assert expired(message(waiting_for=Waiting.TURN)).code is ReasonCode.EXPIRED_BEFORE_SENDING


def test_a_driver_that_finds_it_expired_gives_the_holds_reason_too() -> None:
    held = sender(hold=reason(ReasonCode.META_PAYMENT_ISSUE, "Meta says so"), hold_until=NOW)
    waited = message(waiting_for=Waiting.HOLD)
    verdict = decide(waited, held, waited.funded.expires_at)
    assert isinstance(verdict, Reject)
    assert verdict.reason.code is ReasonCode.META_PAYMENT_ISSUE


@given(st.integers(min_value=0, max_value=10**6))
def test_nothing_is_sent_at_or_after_its_expiry(late: int) -> None:
    waiting = message()
    verdict = decide(waiting, FACTS, waiting.funded.expires_at + timedelta(seconds=late))
    assert isinstance(verdict, Reject)


@given(
    st.sampled_from([case[1] for case in REJECTED + WAITING]), st.sampled_from([case[2] for case in REJECTED + WAITING])
)
def test_decide_is_the_first_gate_that_does_not_pass(waiting: Message, facts: Facts) -> None:
    checks = evaluate(waiting, facts, NOW)
    first = next((check.otherwise for check in checks if check.otherwise is not None), None)
    verdict = decide(waiting, facts, NOW)
    assert verdict == first if first is not None else isinstance(verdict, Send)
    assert all((check.passed is True) == (check.otherwise is None) for check in checks)


def test_lanes() -> None:
    assert lane_of(Purpose.CONVERSATION, None) is Lane.CONVERSATION
    assert lane_of(Purpose.TRANSACTIONAL, "AUTHENTICATION") is Lane.CONVERSATION
    assert lane_of(Purpose.TRANSACTIONAL, "UTILITY") is Lane.TRANSACTIONAL
    assert lane_of(Purpose.MARKETING, "MARKETING") is Lane.MARKETING
