from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_log.decide import CLOCK_SKEW, SCHEDULED, MessageState, Outcome, Wait, erased, fold, merge, tells
from message_log.store import bytes_of, state_of
from message_log_builders import T0, after, consented, event_id, held, rejected, requested, status
from sendwhy.events import MetaError, Status, Wire, reason
from sendwhy.reasons import ReasonCode, Service

R, S = ReasonCode, Status
UNKNOWN = rejected(R.SEND_OUTCOME_UNKNOWN, service=Service.DISPATCHER)
NOT_OPTED_IN = rejected(R.CUSTOMER_IS_NOT_OPTED_IN)
INVALID = rejected(R.INVALID_REQUEST)
NOT_ON_WHATSAPP = status(S.FAILED, code=R.RECIPIENT_NOT_ON_WHATSAPP)
ACCEPTED, SENT, DELIVERED, READ, PLAYED = (
    status(word, seconds) for seconds, word in enumerate((S.ACCEPTED, S.SENT, S.DELIVERED, S.READ, S.PLAYED), start=3)
)
EVENTS: list[Wire] = [
    requested(),
    requested(send_at=after(7200)),
    consented(),
    held(R.RATE_LIMIT_EXCEEDED),
    held(R.MESSAGING_LIMIT_REACHED, seconds=9),
    UNKNOWN,
    NOT_OPTED_IN,
    INVALID,
    NOT_ON_WHATSAPP,
    status(S.FAILED, seconds=8, code=R.NO_DELIVERY_RECEIPT),
    status(S.FAILED, code=R.META_ERROR, observed_at=after(9)),
    ACCEPTED,
    SENT,
    DELIVERED,
    READ,
    PLAYED,
]


def state_after(events: list[Any], at: Any = T0) -> MessageState:
    states = [tells(event, at) for event in events]
    return fold([state for state in states if state is not None])


@pytest.mark.parametrize(
    ("events", "outcome", "code"),
    [
        ([requested()], Outcome.OPEN, None),
        ([requested(), consented()], Outcome.OPEN, None),
        ([requested(), NOT_OPTED_IN], Outcome.FAILED, R.CUSTOMER_IS_NOT_OPTED_IN),
        ([ACCEPTED], Outcome.ACCEPTED, None),
        ([ACCEPTED, SENT], Outcome.SENT, None),
        ([READ, SENT, DELIVERED], Outcome.READ, None),
        ([PLAYED], Outcome.READ, None),
        ([SENT, NOT_ON_WHATSAPP], Outcome.FAILED, R.RECIPIENT_NOT_ON_WHATSAPP),
        ([DELIVERED, NOT_ON_WHATSAPP], Outcome.DELIVERED, None),
        ([UNKNOWN], Outcome.FAILED, R.SEND_OUTCOME_UNKNOWN),
        ([UNKNOWN, ACCEPTED], Outcome.ACCEPTED, None),
        ([UNKNOWN, NOT_ON_WHATSAPP], Outcome.FAILED, R.RECIPIENT_NOT_ON_WHATSAPP),
        ([INVALID], Outcome.FAILED, R.INVALID_REQUEST),
        ([INVALID, requested(), consented()], Outcome.OPEN, None),
        ([INVALID, NOT_OPTED_IN], Outcome.FAILED, R.CUSTOMER_IS_NOT_OPTED_IN),
    ],
)
def test_what_stands(events: list[Wire], outcome: Outcome, code: ReasonCode | None) -> None:
    state = state_after(events)
    assert state.outcome is outcome
    assert (state.verdict.reason.code if state.verdict else None) == code


def test_an_invalid_request_stands_against_what_it_was_said_of_and_not_against_a_later_one() -> None:
    told = tells(INVALID, T0)
    same = tells(requested(), INVALID.occurred_at)
    later = tells(requested(), INVALID.occurred_at + 2 * CLOCK_SKEW)
    assert told is not None
    assert same is not None
    assert later is not None
    assert merge(told, same).outcome is Outcome.FAILED
    assert merge(told, later).outcome is Outcome.OPEN


def test_what_meta_said_beats_what_was_inferred() -> None:
    meta = reason(R.RECIPIENT_NOT_ON_WHATSAPP, "Meta says 131026", meta=MetaError(code=131026))
    said = status(S.FAILED, seconds=1).model_copy(update={"reason": meta})
    inferred = status(S.FAILED, seconds=100, code=R.NO_DELIVERY_RECEIPT)
    verdict = state_after([said, inferred]).verdict
    assert verdict is not None
    assert verdict.reason.code is R.RECIPIENT_NOT_ON_WHATSAPP


def test_a_failure_that_is_read_better_later_replaces_the_former_reading() -> None:
    first = status(S.FAILED).model_copy(
        update={"reason": reason(R.META_ERROR, "Meta: new (code 139999)", meta=MetaError(code=139999))}
    )
    better = status(S.FAILED, event_id=event_id("read better")).model_copy(
        update={
            "reason": reason(R.TEMPLATE_NOT_APPROVED, "Meta: paused", meta=MetaError(code=139999)),
            "observed_at": after(86_400),
        }
    )
    for order in ([first, better], [better, first], [better, first, better]):
        verdict = state_after(order).verdict
        assert verdict is not None
        assert verdict.reason.code is R.TEMPLATE_NOT_APPROVED


def test_what_consent_resolved_beats_what_was_asked_for() -> None:
    state = state_after([requested(sender_id=None), consented(), SENT])
    assert state.known("contact_id") == "shopify:7712"
    assert state.known("purpose") == "marketing"
    assert state.known("sender_id") == "415566778899001"
    assert state.known("template") == "autumn_sale"
    assert state.known("wamid") == "wamid.HBgM1"


SCHEDULED_FOR = Wait(SCHEDULED, T0, after(3600))
PACED = held(R.RATE_LIMIT_EXCEEDED, 2, 60)
PACED_IN_TIME = held(R.RATE_LIMIT_EXCEEDED, 3600, 3660)
STOPPED = held(R.SENDER_NOT_AVAILABLE, 2)


@pytest.mark.parametrize(
    ("events", "waits"),
    [
        ([requested()], None),
        ([requested(send_at=T0)], None),
        ([requested(send_at=after(3600))], SCHEDULED_FOR),
        ([requested(send_at=after(3600)), PACED], SCHEDULED_FOR),
        ([requested(send_at=after(3600)), PACED_IN_TIME], Wait(R.RATE_LIMIT_EXCEEDED, after(3600), after(3660))),
        ([requested(send_at=after(3600)), STOPPED], Wait(R.SENDER_NOT_AVAILABLE, after(2), None)),
        ([requested(), PACED], Wait(R.RATE_LIMIT_EXCEEDED, after(2), after(60))),
        ([consented().model_copy(update={"send_at": after(3600)})], SCHEDULED_FOR),
    ],
)
def test_a_message_waits_for_its_own_time_or_for_what_holds_it_longer(events: list[Wire], waits: Wait | None) -> None:
    assert state_after(events).waits == waits


def test_a_wait_is_over_at_its_moment() -> None:
    assert SCHEDULED_FOR.holds(after(3599))
    assert not SCHEDULED_FOR.holds(after(3600))
    assert Wait(R.SENDER_NOT_AVAILABLE, T0, None).holds(after(9e6))


def test_of_two_requests_the_first_in_the_log_stands() -> None:
    first, second = tells(requested(), after(1)), tells(requested(metadata={"order": "4712"}), after(2))
    assert first is not None
    assert second is not None
    assert merge(second, first).known("metadata") == {"order": "4711"}


def test_an_erased_person_stays_erased_whatever_comes_later() -> None:
    state = merge(merge(state_after([requested()]), erased(after(5))), state_after([consented(), ACCEPTED]))
    assert state.known("phone") is None
    assert state.known("metadata") is None
    assert state.known("template") == "autumn_sale"


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3)), min_size=1), st.randoms(use_true_random=False))
def test_any_order_and_any_repeats_end_the_same(events: list[tuple[Wire, int]], random: Any) -> None:
    states = [state for event, second in events if (state := tells(event, after(second))) is not None]
    shuffled = [*states, *random.choices(states, k=random.randint(0, 5))]
    random.shuffle(shuffled)
    assert fold(shuffled) == fold(states)


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3)), min_size=1), st.randoms(use_true_random=False))
def test_an_erasure_ends_the_same_wherever_it_comes(events: list[tuple[Wire, int]], random: Any) -> None:
    states = [state for event, second in events if (state := tells(event, after(second))) is not None]
    states.append(erased(after(2)))
    shuffled = random.sample(states, len(states))
    assert fold(shuffled) == fold(states)
    left = bytes_of(fold(shuffled)).decode()
    assert not [one for one in ("5512345678", "shopify:7712", "4711") if one in left]


@given(st.lists(st.sampled_from(EVENTS), min_size=1))
def test_a_state_survives_storage(events: list[Wire]) -> None:
    state = state_after(events)
    assert state_of(bytes_of(state)) == state
