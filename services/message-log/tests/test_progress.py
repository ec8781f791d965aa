"""What the projection's changes count as."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise, permutations
from typing import Any
from uuid import uuid4

import pytest
from message_log.decide import Fact, MessageState, Verdict, Waiting, merge
from message_log.group_lag import GROUPS, Behind, Ends, Reading, Span, behind
from message_log.progress import Progress, decides, decision_seconds, steps_of
from sendwhy.events import SendRejected, Status, reason
from sendwhy.metrics import METRICS, OTHER, SENDERS_MAX, Metric, Metrics
from sendwhy.reasons import ReasonCode, Service

START = datetime(2026, 11, 22, 10, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def fact(value: Any) -> Fact:
    return Fact(rank=1, at=START, value=value)


def requested(sender: str = "1") -> MessageState:
    facts = {"origin": fact({"kind": "campaign", "id": "sale"}), "sender_id": fact(sender)}
    return MessageState.at(START, facts=facts, requested_last=START)


def passed(seconds: float = 1) -> MessageState:
    return MessageState.at(after(seconds), passed=True)


def receipt(status: Status, seconds: float = 2) -> MessageState:
    return MessageState.at(after(seconds), times={status: after(seconds)}, passed=True)


def refused(service: Service, code: ReasonCode, seconds: float = 3) -> MessageState:
    verdict = Verdict(service=service, at=after(seconds), event_id=uuid4(), reason=reason(code, "because"))
    return MessageState.at(after(seconds), rejected=verdict)


def fed(*told: MessageState) -> Metrics:
    metrics = Metrics(Service.MESSAGE_LOG)
    progress = Progress(metrics)
    state: MessageState | None = None
    for one in told:
        before, state = state, one if state is None else merge(state, one)
        progress.note(one, None, before, state)
    return metrics


def count(metrics: Metrics, step: str) -> float:
    kinds = ("campaign", "unknown")
    found = [metrics.registry.get_sample_value(Metric.STEPS, {"step": step, "origin_kind": kind}) for kind in kinds]
    return sum(value or 0 for value in found)


@pytest.mark.parametrize(
    "told", list(permutations([requested(), passed(), receipt(Status.ACCEPTED), receipt(Status.READ)]))
)
def test_each_step_counts_once_in_any_order(told: tuple[MessageState, ...]) -> None:
    metrics = fed(*told)
    reached = ("requested", "passed", "accepted", "sent", "delivered", "read")
    assert [count(metrics, step) for step in reached] == [1] * 6
    assert count(metrics, "failed") == 0


def test_a_receipt_stands_for_those_before_it() -> None:
    ladder = [steps_of(receipt(status)) for status in (Status.ACCEPTED, Status.SENT, Status.DELIVERED, Status.READ)]
    assert all(lower < higher for lower, higher in pairwise(ladder))
    assert steps_of(receipt(Status.PLAYED)) == steps_of(receipt(Status.READ))


def test_a_failure_counts_by_who_why_and_what_asked_and_once() -> None:
    told = refused(Service.CONSENT, ReasonCode.CUSTOMER_IS_NOT_OPTED_IN)
    metrics = fed(requested("77"), told, told)
    labels = {"service": "consent", "reason": "CUSTOMER_IS_NOT_OPTED_IN"}
    value = metrics.registry.get_sample_value
    assert value(Metric.FAILURES, labels | {"origin_kind": "campaign"}) == 1
    assert value(Metric.SENDER_FAILURES, {"sender": "77", "reason": "CUSTOMER_IS_NOT_OPTED_IN"}) == 1


def test_a_flood_of_senders_makes_no_flood_of_series() -> None:
    metrics = Metrics(Service.MESSAGE_LOG)
    progress = Progress(metrics)
    for number in range(2000):
        code = list(ReasonCode)[number % len(ReasonCode)]
        before, told = requested(str(number)), refused(Service.DISPATCHER, code)
        progress.note(told, None, before, merge(before, told))
    series = dict(metrics.counted())
    assert {metric: n for metric, n in series.items() if n > METRICS[metric].series_max} == {}
    named = [
        sample.labels["sender"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == Metric.SENDER_FAILURES
    ]
    assert len(set(named)) == SENDERS_MAX + 1
    assert OTHER in named


DECISIONS = [
    pytest.param(passed(4), after(4), 4.0, id="billing let it pass"),
    pytest.param(refused(Service.CONSENT, ReasonCode.CONTACT_HAS_NO_PHONE), after(3), 3.0, id="a gate refused it"),
    pytest.param(passed(1), None, None, id="consent let it pass: billing is still to say"),
]


@pytest.mark.parametrize(("told", "decided_at", "seconds"), DECISIONS)
def test_a_decision_is_the_first_gates_refusal_or_the_place_in_the_queue(
    told: MessageState, decided_at: datetime | None, seconds: float | None
) -> None:
    assert decision_seconds(decided_at, told, merge(requested(), told)) == seconds
    assert decision_seconds(decided_at, told, told) is None, "the request is not known"


def test_a_recalled_message_was_decided_before() -> None:
    told = refused(Service.CONSENT, ReasonCode.CUSTOMER_IS_NOT_OPTED_IN, 3600)
    state = merge(merge(requested(), passed()), told)
    assert decision_seconds(after(3600), told, state) is None


@pytest.mark.parametrize(
    ("service", "is_decision"), [(Service.CONSENT, True), (Service.BILLING, True), (Service.DISPATCHER, False)]
)
def test_gates_decide_and_the_dispatcher_refuses_later(service: Service, is_decision: bool) -> None:
    event = SendRejected(
        event_id=uuid4(),
        occurred_at=START,
        message_id="m1",
        workspace_id="acme",
        service=service,
        reason=reason(ReasonCode.META_ERROR, "because"),
    )
    assert decides(event) is is_decision


def expiring(seconds: float) -> MessageState:
    return MessageState.at(START, facts={"expires_at": fact(after(seconds).isoformat())}, requested_last=START)


@pytest.mark.parametrize(("expires", "late"), [(600, 0.0), (1, 1.0), (-30, 32.0)])
@pytest.mark.parametrize("ends", [receipt(Status.ACCEPTED), refused(Service.DISPATCHER, ReasonCode.META_ERROR, 2)])
def test_an_outcome_counts_once_by_how_much_it_missed_the_messages_expiry(
    ends: MessageState, expires: float, late: float
) -> None:
    for told in permutations([expiring(expires), ends, receipt(Status.READ, 3)]):
        value = fed(*told).registry.get_sample_value
        assert value(f"{Metric.OUTCOME_LATE_SECONDS}_count") == 1
        if told[2] is not ends or ends.rejected is None:
            assert value(f"{Metric.OUTCOME_LATE_SECONDS}_sum") in (late, late + 1), "a later receipt may come first"


def test_without_an_outcome_nothing_counts() -> None:
    for told in ([expiring(1), passed()], [receipt(Status.READ)]):
        assert fed(*told).registry.get_sample_value(f"{Metric.OUTCOME_LATE_SECONDS}_count") == 0


def test_waiting_is_no_step() -> None:
    held = Waiting(cause=ReasonCode.RATE_LIMIT_EXCEEDED, since=START, event_id=uuid4())
    assert steps_of(MessageState.at(START, waiting=held)) == set()


# --- the lag of all groups ---

GROUP = next(iter(GROUPS))


def test_a_group_whose_members_died_lags_more_and_more() -> None:
    ends = {0: Ends()}
    ends[0].note(0, 10)
    told = []
    for now, end in ((15.0, 10), (30.0, 12), (45.0, 12), (60.0, 20)):
        ends[0].note(now, end)
        told.append(behind(Reading(GROUP, {0: 10}, members=0), {0: Span(0, end)}, ends, now))
    assert told == [Behind(0, 0.0), Behind(2, 0.0), Behind(2, 15.0), Behind(10, 30.0)]
    assert behind(Reading(GROUP, {0: 12}, members=1), {0: Span(0, 20)}, ends, 75.0) == Behind(8, 15.0), "it goes on"


def test_a_group_that_committed_nothing_is_behind_by_all() -> None:
    ends = {0: Ends(), 1: Ends()}
    ends[0].note(0, 3)
    ends[1].note(0, 4)
    assert behind(Reading(GROUP, {}, members=1), {0: Span(0, 3), 1: Span(0, 4)}, ends, 5.0) == Behind(7, 5.0)


@pytest.mark.parametrize("committed", [{}, {0: 4}])
def test_what_kafka_has_deleted_waits_for_nobody(committed: dict[int, int]) -> None:
    ends = {0: Ends()}
    ends[0].note(0, 9)
    assert behind(Reading(GROUP, committed, members=1), {0: Span(9, 9)}, ends, 500.0) == Behind(0, 0.0)
    ends[0].note(500, 10)
    assert behind(Reading(GROUP, committed, members=1), {0: Span(9, 10)}, ends, 505.0) == Behind(1, 5.0)


def test_a_commit_newer_than_the_end_is_no_negative_lag() -> None:
    ends = {0: Ends()}
    ends[0].note(0, 3)
    assert behind(Reading(GROUP, {0: 9}, members=1), {0: Span(0, 3)}, ends, 5.0) == Behind(0, 0.0)
