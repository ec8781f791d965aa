"""What silence means, of a message and of a number: pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sendwhy.events import Evidence, Reason, Status, StatusUpdated, event_id_of, reason
from sendwhy.reasons import ReasonCode, Service

from webhook_ingest.decide import RANK_DELIVERED, RANK_SENT, Message

# Fewer unanswered messages prove nothing of a number: Meta may hold one back for hours to look at a template's quality.
UNANSWERED_MIN = 5
# webhook.received is read within a second; beyond this we can't tell who is late.
READ_WITHIN = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Awaited:
    """A message whose receipt is or was awaited, as `silence` looks at it."""

    wamid: str
    rank: int
    failed: bool
    accepted_at: datetime
    deadline: datetime | None
    delivered_at: datetime | None


def silence(overdue: Awaited, history: Sequence[Awaited], now: datetime, blocked_after: int) -> Reason:
    """Why no receipt came, from the person's other messages of the same sender.

    Meta never tells of a block. It is inferred where an earlier message was delivered, and this is at least the
    `blocked_after`th in a row that stays at sent beyond its deadline, with nothing delivered since.
    """
    deadline = overdue.deadline or now
    status = "sent" if overdue.rank >= RANK_SENT else "accepted"
    evidence: Evidence = {"inferred": True, "status": status, "deadline": deadline.isoformat()}
    delivered = [entry for entry in history if entry.rank >= RANK_DELIVERED]
    last = max((entry for entry in delivered), key=lambda entry: entry.accepted_at, default=None)
    silent = [
        entry
        for entry in history
        if (last is None or entry.accepted_at > last.accepted_at)
        and entry.accepted_at <= overdue.accepted_at
        and _is_silent(entry, now)
    ]
    in_a_row = _is_silent(overdue, now) and len(silent) >= blocked_after
    if last is None or last.accepted_at > overdue.accepted_at or not in_a_row:
        detail = f"No delivery receipt came until {deadline:%Y-%m-%d %H:%M} UTC; Meta gives no cause."
        return reason(ReasonCode.NO_DELIVERY_RECEIPT, detail, {**evidence, "silent_messages": len(silent)})
    at = last.delivered_at or last.accepted_at
    detail = (
        f"Probably blocked: messages were delivered until {at:%Y-%m-%d %H:%M} UTC,"
        f" the last {len(silent)} stay at sent. Meta never tells of a block."
    )
    return reason(
        ReasonCode.RECIPIENT_PROBABLY_BLOCKED_SENDER,
        detail,
        {
            **evidence,
            "silent_messages": len(silent),
            "silent_since": min(entry.accepted_at for entry in silent).isoformat(),
            "last_delivered_at": at.isoformat(),
        },
    )


def _is_silent(entry: Awaited, now: datetime) -> bool:
    return entry.rank == RANK_SENT and not entry.failed and entry.deadline is not None and entry.deadline <= now


def silence_event(message: Message, overdue: Awaited, why: Reason, now: datetime) -> StatusUpdated:
    return StatusUpdated(
        event_id=event_id_of(f"{message.sender_id}/{message.wamid}", "no_receipt"),
        occurred_at=overdue.deadline or now,
        observed_at=now,
        message_id=message.message_id,
        workspace_id=message.workspace_id,
        sender_id=message.sender_id,
        provider_message_id=message.wamid,
        service=Service.WEBHOOK_INGEST,
        status=Status.FAILED,
        reason=why,
    )


class Cause(StrEnum):
    """Why a number is silent."""

    INGEST_LAGS = "ingest_lags"
    SIGNATURE_REFUSED = "signature_refused"
    META_LATE = "meta_late"
    SUBSCRIPTION_GONE = "subscription_gone"
    NOTHING_ARRIVES = "nothing_arrives"


WHAT_TO_DO: Mapping[Cause, str] = {
    Cause.INGEST_LAGS: "Our own parsing half is behind: its lag on webhook.received. Nothing is lost; add a replica.",
    Cause.SIGNATURE_REFUSED: "Webhooks about the number come, and are not believed: compare META_APP_SECRETS, and the"
    " number's app_id at the dispatcher, with the app that Meta posts with.",
    Cause.META_LATE: "Meta posts its statuses late: look at Meta's status page. Receipts come by themselves.",
    Cause.SUBSCRIPTION_GONE: "Nothing comes about this number, while others are heard of: subscribe the app to the"
    " number's account again (POST /{waba_id}/subscribed_apps), and look for an overridden webhook address.",
    Cause.NOTHING_ARRIVES: "Nothing comes about any number: look at the door's address, certificate and network, at the"
    " app's subscription, and at Meta's status page.",
}


@dataclass(frozen=True, slots=True)
class SenderFacts:
    """What is known of a number. `waiting` messages were accepted longer than the patience ago and nothing at all was
    heard of them; `unanswered` are those of them accepted since the number was last heard of, the first at
    `unanswered_since`. `late`: how old the freshest status was when it came last. `read_until`: up to when
    webhook.received has been read. `refused_at`: a webhook that names the number and was not believed. `others_at`:
    when any other number was heard of."""

    now: datetime
    waiting: int
    unanswered: int
    unanswered_since: datetime | None
    heard_at: datetime | None
    late: timedelta | None
    read_until: datetime
    refused_at: datetime | None
    others_at: datetime | None


@dataclass(frozen=True, slots=True)
class SenderSilence:
    cause: Cause
    since: datetime
    evidence: Evidence


def silence_of_sender(facts: SenderFacts, patience: timedelta) -> SenderSilence | None:
    """Whether a number is silent that should not be, since when, and whose fault it is; None if all is well.

    Silent: enough messages were taken by Meta longer than `patience` ago, and no webhook about the number came since;
    or such as come tell of what is older than `patience`. While we are behind ourselves nobody else is blamed.
    """
    since = facts.unanswered_since
    is_quiet = facts.unanswered >= UNANSWERED_MIN and since is not None
    is_late = (
        facts.waiting >= UNANSWERED_MIN
        and facts.late is not None
        and facts.late > patience
        and facts.heard_at is not None
        and facts.heard_at > facts.now - patience
    )
    if not is_quiet and not is_late:
        return None
    begun = since if is_quiet and since is not None else facts.now - (facts.late or patience)
    cause = _cause(facts, begun, is_late=is_late)
    evidence: Evidence = {
        "waiting_messages": facts.waiting,
        "unanswered_messages": facts.unanswered,
        "heard_at": _iso(facts.heard_at),
        "late_seconds": None if facts.late is None else round(facts.late.total_seconds()),
        "read_until": _iso(facts.read_until),
        "refused_at": _iso(facts.refused_at),
        "others_heard_at": _iso(facts.others_at),
    }
    return SenderSilence(cause, begun, evidence)


def _cause(facts: SenderFacts, begun: datetime, *, is_late: bool) -> Cause:
    if facts.now - facts.read_until > READ_WITHIN:
        return Cause.INGEST_LAGS
    if is_late:
        return Cause.META_LATE
    if facts.refused_at is not None and facts.refused_at >= begun:
        return Cause.SIGNATURE_REFUSED
    if facts.others_at is not None and facts.others_at >= begun:
        return Cause.SUBSCRIPTION_GONE
    return Cause.NOTHING_ARRIVES


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
