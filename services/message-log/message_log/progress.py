"""What the projection's changes count as: steps reached, failures by whom and why, and how long the decision took.

Each message counts once for each step, whatever comes twice or in another order: a change of its state is what counts.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sendwhy import plain
from sendwhy.events import SendFunded, SendRejected, Status, StatusUpdated, Wire
from sendwhy.metrics import SENDERS_MAX, FirstFew, Metric, Metrics
from sendwhy.reasons import Service
from sendwhy.stage import Record

from message_log.decide import MessageState, Verdict

_RECEIPTS = (Status.ACCEPTED, Status.SENT, Status.DELIVERED, Status.READ)
_FUNDED, _STATUSES = (SendFunded, plain.Funded), (StatusUpdated, plain.Receipt)
_GATES = (Service.CONSENT, Service.BILLING)


def steps_of(state: MessageState | None) -> frozenset[str]:
    """The steps that a message has reached. A receipt stands for those before it, whose own may never come."""
    if state is None:
        return frozenset()
    return _steps(state.requested_last is not None, state.passed, state.receipt, state.verdict is not None)


@cache
def _steps(is_requested: bool, is_passed: bool, receipt: Status | None, is_failed: bool) -> frozenset[str]:
    steps = (("requested", is_requested), ("passed", is_passed), ("failed", is_failed))
    reached = {name for name, is_reached in steps if is_reached}
    if receipt is not None:
        highest = Status.READ if receipt is Status.PLAYED else receipt
        reached |= {status.value for status in _RECEIPTS[: _RECEIPTS.index(highest) + 1]}
    return frozenset(reached)


def new_failure(before: MessageState | None, after: MessageState) -> Verdict | None:
    """The failure that stands now, if the message had not failed before: a better reason for it is no second one."""
    return after.verdict if before is None or before.verdict is None else None


def decides(event: Wire | plain.Plain) -> bool:
    """Whether billing lets the message pass by it, or a gate refuses it."""
    return isinstance(event, _FUNDED) or (isinstance(event, SendRejected) and event.service in _GATES)


def decision_seconds(decided_at: datetime | None, told: MessageState, after: MessageState) -> float | None:
    """From the request's arrival to what decided, both by Kafka's clock.

    None where nothing did, for consent's later word on a message that had passed it, and before the request is known.
    """
    is_later = after.passed and told.rejected is not None and told.rejected.service is Service.CONSENT
    if after.requested_last is None or decided_at is None or is_later:
        return None
    return max(0.0, (decided_at - after.first_at).total_seconds())


def knows_if_late(state: MessageState | None) -> bool:
    return state is not None and "expires_at" in state.facts and state.left_at is not None


def seconds_late(state: MessageState) -> float | None:
    """By how much it missed its expiry when Meta took it or it failed: 0 before that. None while one isn't known."""
    left_at, expires_at = state.left_at, state.expires_at
    if left_at is None or expires_at is None:
        return None
    return max(0.0, (left_at - expires_at).total_seconds())


class Progress:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._name = FirstFew(SENDERS_MAX)

    def note(
        self, told: MessageState, decided_at: datetime | None, before: MessageState | None, after: MessageState
    ) -> None:
        """`told` is what a batch said of the message, which made `after` of `before`; `decided_at`: see `decides`."""
        origin = after.known("origin")
        kind = str(origin["kind"]) if isinstance(origin, dict) and "kind" in origin else "unknown"
        reached, had = steps_of(after), steps_of(before)
        if reached is not had:
            for step in reached - had:
                self._metrics.inc(Metric.STEPS, step=step, origin_kind=kind)
        failure = new_failure(before, after)
        if failure is not None:
            code, sender = failure.reason.code, after.known("sender_id")
            self._metrics.inc(Metric.FAILURES, service=failure.service, reason=code, origin_kind=kind)
            self._metrics.inc(Metric.SENDER_FAILURES, sender=self._name(str(sender)) if sender else "none", reason=code)
        if not knows_if_late(before) and (late := seconds_late(after)) is not None:
            self._metrics.observe(Metric.OUTCOME_LATE_SECONDS, late)
        seconds = decision_seconds(decided_at, told, after)
        if seconds is not None:
            self._metrics.observe(Metric.REQUEST_TO_DECISION_SECONDS, seconds)

    def visible(self, records: Sequence[Record[Any]]) -> None:
        """After the commit."""
        self._metrics.observe(Metric.WEBHOOK_TO_VISIBLE_SECONDS, *seconds_until(datetime.now(UTC), records))


def seconds_until(now: datetime, records: Sequence[Record[Any]]) -> Iterator[float]:
    """Of statuses from webhooks: how long ago their webhook came."""
    for record in records:
        event = record.event
        if isinstance(event, _STATUSES) and event.service is Service.WEBHOOK_INGEST:
            yield max(0.0, (now - event.observed_at).total_seconds())
