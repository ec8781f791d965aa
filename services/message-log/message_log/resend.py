"""Sending failed messages again: which of them, under which ids, and what the repeat asks for. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sendwhy.events import MAX_HORIZON, SendRequested, event_id_of
from sendwhy.reasons import CATALOGUE, ReasonCode, Recoverable

from message_log.audience import Outcome, Verdict

FAILED = "failed"
# So many of a hundred may have fallen out since the plan was looked at, and it is still the plan.
TOLERATED_PERCENT = 1


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed message. `is_only`: the plan is about this one alone, so somebody looked at it."""

    message_id: str
    reason: str | None
    is_erased: bool
    outcome: str = FAILED
    is_only: bool = False


def excluded(message: Failed) -> Verdict | None:
    """Why this message is never sent again from here, or None."""
    code = ReasonCode(message.reason) if message.reason else None
    if message.is_erased:
        return _excluded("erased", "Its person was erased, and with them whom it was for.")
    if message.outcome != FAILED:
        return _excluded("not_failed", f"It is {message.outcome} by now.")
    if code is not None and CATALOGUE[code].recoverable is Recoverable.NEVER:
        return _excluded("never", f"{CATALOGUE[code].title}: {CATALOGUE[code].what_to_do}")
    if code is ReasonCode.SEND_OUTCOME_UNKNOWN and not message.is_only:
        return _excluded("uncertain", "WhatsApp may have taken it: a repeat may reach the person twice.")
    return None


def not_kept() -> Verdict:
    return _excluded("not_kept", "What it was to say is past retention here; ask for it anew.")


def _excluded(why: str, detail: str) -> Verdict:
    return Verdict(Outcome.EXCLUDED, why, detail=detail)


@dataclass(frozen=True, slots=True)
class Member:
    """A message of a family: one message and all that repeat it, or that it repeats. `outcome` None: nobody knows it
    here, as where a request names a message that never was."""

    root: str
    message_id: str
    outcome: str | None


def sent_already(asked: Sequence[str], roots: Mapping[str, str], members: Iterable[Member]) -> dict[str, Verdict]:
    """Which of these messages are not to be sent again, since one of their family is on its way, has arrived, or goes
    in this plan. Of a family at most one goes: the one asked for last (`asked` has the oldest first)."""
    alive = {one.root: one.message_id for one in members if one.outcome not in (FAILED, None)}
    last = {roots.get(one, one): one for one in asked}
    found: dict[str, Verdict] = {}
    for one in asked:
        root = roots.get(one, one)
        if root in alive:
            found[one] = _excluded("sent_again", f"Of it and its repeats, {alive[root]} has not failed.")
        elif last[root] != one:
            found[one] = _excluded(
                "sent_again", f"It was sent again as {last[root]}, which failed and is in this list."
            )
    return found


def repeat_id(plan: UUID, message_id: str) -> str:
    """The same plan and message give the same id, so that no message of a plan goes twice."""
    return f"again-{event_id_of(f'{plan}/{message_id}', 'resend')}"


def repeat_of(old: SendRequested, plan: UUID, now: datetime) -> SendRequested:
    """The request anew. A time to send or to expire that is over is dropped: the repeat goes at once, and lives as long
    as one of its origin does. One that lies ahead is kept, within the horizon of a request of now."""
    horizon = now + MAX_HORIZON
    send_at = min(old.send_at, horizon) if old.send_at and old.send_at > now else None
    expires_at = min(old.expires_at, horizon) if old.expires_at and old.expires_at > (send_at or now) else None
    return old.model_copy(
        update={
            "message_id": repeat_id(plan, old.message_id),
            "requested_at": now,
            "send_at": send_at,
            "expires_at": expires_at,
            "resend_of": old.message_id,
        }
    )


@dataclass(frozen=True, slots=True)
class Sum:
    """So many messages for so many credits."""

    messages: int
    credits: int


def has_changed(planned: Sum, now: Sum) -> bool:
    """Whether what would go now is something else than what was confirmed: dearer, or noticeably fewer messages."""
    missing = planned.messages - now.messages
    return now.credits > planned.credits or missing > planned.messages * TOLERATED_PERCENT // 100 or not now.messages
