"""A send.requested that can be read: its times filled in, or why it can't be used all the same (contract.md). Pure."""

from datetime import datetime

from sendwhy.events import MAX_HORIZON, Reason, SendRequested, reason
from sendwhy.reasons import ReasonCode
from sendwhy.values import value_class


@value_class
class Completed:
    """A request with its times filled in."""

    request: SendRequested
    send_at: datetime
    expires_at: datetime


@value_class
class Invalid:
    """`fields` as "field: what is wrong"."""

    fields: tuple[str, ...]

    @property
    def reason(self) -> Reason:
        # What is wrong with fields together stands under "body", which names nothing to a person.
        told = "; ".join(line.removeprefix("body: ") for line in self.fields)
        detail = f"The request can't be used: {told}"
        return reason(ReasonCode.INVALID_REQUEST, detail, {"fields": list(self.fields)})


def complete(request: SendRequested, arrived_at: datetime) -> Completed | Invalid:
    """Fill in requested_at, send_at and expires_at (contract.md); `arrived_at` is Kafka's time of the record."""
    requested_at = request.requested_at or arrived_at
    # Upstream's clock may be ahead of ours: that makes nobody wait.
    send_at = request.send_at or min(requested_at, arrived_at)
    latest_moment = requested_at + MAX_HORIZON
    expires_at = request.expiry(arrived_at)
    wrong = [
        f"{name}: must be at most {MAX_HORIZON.days} days after requested_at"
        for name, moment in (("send_at", send_at), ("expires_at", expires_at))
        if moment > latest_moment
    ]
    if requested_at > arrived_at + MAX_HORIZON:
        wrong.append(f"requested_at: lies more than {MAX_HORIZON.days} days ahead")
    if expires_at < send_at:
        wrong.append(f"expires_at: must not be before {'send_at' if request.send_at else 'requested_at'}")
    if wrong:
        return Invalid(tuple(wrong))
    if request.requested_at is None:
        request = request.model_copy(update={"requested_at": requested_at})
    return Completed(request, send_at, expires_at)
