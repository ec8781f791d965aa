"""What becomes of a waiting message at this moment. Pure: values in, values out, time as an argument.

`evaluate` runs every gate and keeps each verdict with its evidence; `decide` is the first that doesn't pass.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Any

from rapidfuzz import fuzz, process
from sendwhy.events import (
    ContactUpdated,
    Evidence,
    Gate,
    MarketingState,
    MetaError,
    Origin,
    OriginKind,
    Purpose,
    Reason,
    SendFunded,
    TemplateContent,
    event_id_of,
    reason,
)
from sendwhy.privacy import ERASURE, is_alias
from sendwhy.reasons import ReasonCode, reason_for_meta
from sendwhy.values import value_class

from dispatcher.blame import aside_until
from dispatcher.rests import Rest, Shared
from dispatcher.templates import mismatches

WINDOW = timedelta(hours=24)
WINDOW_BELIEF = timedelta(seconds=10)
# What a person wrote before an answer was asked for may still lie on webhook.received, or on its way from Meta.
WEBHOOK_TRAVELS = timedelta(seconds=2)
SYNC_INTERVAL = timedelta(minutes=1)
LOOK_AT_HELD = timedelta(minutes=1)
NEAREST_NAMES = 3
AUTHENTICATION_TTL = timedelta(minutes=10)
RECEIPT_SLACK = timedelta(minutes=2)
MARKETING = "MARKETING"
# Who cancelled a message, where nobody is named.
CAMPAIGN = "campaign"
UPSTREAM = "upstream"


class Lane(IntEnum):
    """Who goes first: people who wait for an answer or a code, then orders, then marketing."""

    CONVERSATION = 0
    TRANSACTIONAL = 1
    MARKETING = 2


class Waiting(StrEnum):
    """What a message waits for. The value stands in the queue table and in the metrics."""

    TURN = "turn"
    PAUSED = "paused"
    HOLD = "hold"
    THROTTLE = "throttle"
    PAIR = "pair"
    TIER = "tier"
    CAP = "cap"
    RETRY = "retry"
    RATE = "rate"
    WINDOW = "window"
    SYNC = "sync"
    REPAIR = "repair"
    # What became of its call; it stands only in what is told of a message.
    OUTCOME = "outcome"

    @classmethod
    def _missing_(cls, _value: object) -> "Waiting":
        """A cause that a newer version stored: it is looked at again in its turn."""
        return cls.TURN


class Stops(StrEnum):
    """What a hold stops: everything, or only what a business begins, which is a template outside a window."""

    ALL = "all"
    BUSINESS_INITIATED = "business_initiated"


@value_class
class Unread:
    """Since when a sender's number or templates can't be read from Meta, and why. `code`: Meta's, where it refused."""

    since: datetime
    why: str
    code: int | None = None

    @property
    def cause(self) -> ReasonCode:
        """What keeps a message from its template: where Meta refuses the token a new one helps, and no waiting."""
        refused = self.code is not None and reason_for_meta(self.code) is ReasonCode.SENDER_CREDENTIALS_REJECTED
        return ReasonCode.SENDER_CREDENTIALS_REJECTED if refused else ReasonCode.TEMPLATE_NOT_APPROVED

    @property
    def evidence(self) -> Evidence:
        return {"sync_failed_since": _text(self.since), "sync_error": self.why, "sync_error_code": self.code}


@value_class
class Sender:
    """`tier_key`: under what the people whom it reaches are counted; numbers that share a portfolio share it. `rest`:
    known to its driver alone, while Meta lets nobody call. `hold_replies_from`: until then a hold that spares replies
    stops them too."""

    sender_id: str
    workspace_id: str
    waba_id: str
    portfolio_id: str
    tier_key: str
    quality: str | None = None
    paused_at: datetime | None = None
    hold: Reason | None = None
    hold_stops: Stops = Stops.ALL
    hold_since: datetime | None = None
    hold_until: datetime | None = None
    hold_replies_from: datetime | None = None
    templates_synced_at: datetime | None = None
    messaging_limit: int | None = None
    messages_per_second: int = 80
    rest: Rest | None = None
    unread: Unread | None = None


@value_class
class Template:
    name: str
    language: str
    status: str
    category: str
    components: Sequence[Mapping[str, Any]] = ()
    rejected_reason: str | None = None
    said_by: str = "sync"
    said_at: datetime | None = None
    ttl_seconds: int | None = None


@value_class
class Message:
    """A row of the queue. `queued_at` is when its send.funded was stored in Kafka, `trace` the traceparent that came
    with it, `told` the waits that were told. `unreadable`: why this version can't read it; what is in `funded` then is
    what could be salvaged."""

    funded: SendFunded
    sender_id: str
    lane: Lane
    queued_at: datetime
    attempts: int = 0
    tries: tuple[Mapping[str, Any], ...] = ()
    waiting_for: Waiting = Waiting.TURN
    waiting_since: datetime | None = None
    told: frozenset[Waiting] = frozenset()
    campaign_paused_at: datetime | None = None
    cancelled_by: str | None = None
    unreadable: str | None = None
    trace: bytes | None = None

    @property
    def key(self) -> tuple[str, str]:
        request = self.funded.request
        return request.workspace_id, request.message_id

    def waited(self, now: datetime) -> float:
        """Seconds since it was to go out: since the request, or the moment that it named."""
        asked = self.funded.request.requested_at or self.queued_at
        return max(0.0, (now - max(asked, self.funded.send_at)).total_seconds())

    @property
    def address(self) -> str:
        """The person's number, else their user id: what windows, caps, pairs and limits are counted by."""
        return self.funded.resolved.address or ""

    @property
    def template(self) -> TemplateContent | None:
        return self.funded.request.template

    @property
    def is_erased(self) -> bool:
        return is_alias(self.funded.resolved.contact_id)


@value_class
class Tier:
    """The portfolio's messaging limit: unique people in a moving 24 h, as counted at `at`. `limit` None: unlimited."""

    limit: int | None = None
    used: int = 0
    already_reached: bool = False
    room_at: datetime | None = None
    at: datetime | None = None

    @property
    def places(self) -> int:
        """How many more people may be reached now."""
        return sys.maxsize if self.limit is None else max(0, self.limit - self.used)


@value_class
class Facts:
    """What is known at this moment about one message. `pair_wait` None: only another replica knows.
    `nearest`: of a template that isn't found, the account's that may have been meant.
    `contact`: the state that asks to be judged; `is_contact`: the person is one, whatever their state.
    `throttled`: its campaign lets no more go now, but perhaps from `slot_at` on. `listing_incomplete`: why there may be
    more templates than Meta's last list told."""

    sender: Sender | None
    template: Template | None = None
    nearest: Sequence[str] = ()
    listing_incomplete: str | None = None
    window_opened_at: datetime | None = None
    free_entry_at: datetime | None = None
    inbound_read_until: datetime | None = None
    contact: ContactUpdated | None = None
    is_contact: bool = False
    capped_until: datetime | None = None
    throttled: bool = False
    slot_at: datetime | None = None
    pair_wait: timedelta | None = timedelta()
    tier: Tier = field(default_factory=Tier)
    quality_policy: str = "block"


@value_class
class Send:
    """It may go now. `counts_for_tier`: outside a window, so the person counts for the portfolio's limit."""

    counts_for_tier: bool


@value_class
class Wait:
    """It waits for `waiting_for` and is looked at again at `until` (None: until somebody repairs something)."""

    waiting_for: Waiting
    cause: ReasonCode
    until: datetime | None


@value_class
class Reject:
    reason: Reason


@value_class
class Recall:
    contact: ContactUpdated


Verdict = Send | Wait | Reject | Recall


@value_class
class Check:
    """One gate's verdict; `otherwise` says what follows where it didn't pass."""

    gate: str
    passed: bool | None
    evidence: Evidence = field(default_factory=dict)
    otherwise: Wait | Reject | Recall | None = None

    def to_gate(self) -> Gate:
        why = self.otherwise.reason if isinstance(self.otherwise, Reject) else None
        if isinstance(self.otherwise, Wait):
            return Gate(gate=self.gate, passed=self.passed, evidence=self.evidence | _waits(self.otherwise))
        if isinstance(self.otherwise, Recall):
            detail = f"marketing_state is {self.otherwise.contact.marketing_state}"
            why = reason(ReasonCode.CUSTOMER_IS_NOT_OPTED_IN, detail, self.evidence)
        return Gate(gate=self.gate, passed=self.passed, reason=why, evidence=self.evidence)


def _waits(wait: Wait) -> Evidence:
    until = _text(wait.until) if wait.until else None
    return {"waits_for": wait.waiting_for.value, "cause": wait.cause.value, "until": until}


def campaign_of(origin: Origin) -> str | None:
    """The campaign whose pause, throttle or end the message heeds: an automation may have the same id, and goes on."""
    return origin.id if origin.kind is OriginKind.CAMPAIGN else None


def erased_contact(workspace_id: str, alias: str, erased_at: datetime) -> ContactUpdated:
    """The state of an erased person, by which consent answers that a message was not sent."""
    return ContactUpdated(
        event_id=event_id_of(alias, "erased"),
        occurred_at=erased_at,
        workspace_id=workspace_id,
        contact_id=alias,
        version=0,
        marketing_state=MarketingState.UNSUBSCRIBED,
        since=erased_at,
        source=ERASURE,
    )


def lane_of(purpose: Purpose, category: str | None) -> Lane:
    if purpose is Purpose.CONVERSATION or category == "AUTHENTICATION":
        return Lane.CONVERSATION
    is_marketing = purpose is Purpose.MARKETING or category == MARKETING
    return Lane.MARKETING if is_marketing else Lane.TRANSACTIONAL


def decide(message: Message, facts: Facts, now: datetime) -> Verdict:
    """The first gate that doesn't pass; `Send` if all pass."""
    if message.is_erased:
        # It was out when its person was erased, and came back to be tried again.
        return Recall(erased_contact(message.funded.workspace_id, message.funded.resolved.contact_id or "", now))
    checks = _of_unreadable(message, facts, now) if message.unreadable else evaluate(message, facts, now)
    for check in checks:
        if check.otherwise is not None:
            return check.otherwise
    return Send(counts_for_tier=message.template is not None and not _window_is_open(facts, now))


def evaluate(message: Message, facts: Facts, now: datetime) -> list[Check]:
    """Every gate, in the order in which an operator would want to hear of them."""
    sender = facts.sender
    if sender is None:
        return [_no_sender(message)]
    return [
        Check("sender", True, {"sender_id": sender.sender_id}),
        _cancelled(message),
        _expiry(message, facts, sender, now),
        subscription(message, facts),
        _quality(message, facts, sender),
        _template(message, facts, sender, now),
        _parameters(message, facts),
        _window(message, facts, now),
        _paused(message, sender),
        _hold(message, facts, sender, now),
        _cap(message, facts, now),
        _throttle(facts),
        _pair(facts, now),
        _tier(message, facts, now),
    ]


def wait_for_repair(message: Message, now: datetime) -> Wait:
    """Our own code can't handle it: it stands aside, so that its neighbours go on, and a better version sends it."""
    since = message.waiting_since if message.waiting_for is Waiting.REPAIR else None
    return Wait(Waiting.REPAIR, ReasonCode.EXPIRED_BEFORE_SENDING, aside_until(since, now))


def _of_unreadable(message: Message, facts: Facts, now: datetime) -> list[Check]:
    readable = Check("readable", None, {"unreadable": message.unreadable}, wait_for_repair(message, now))
    sender = facts.sender
    return [_cancelled(message), *([_expiry(message, facts, sender, now)] if sender else []), readable]


def _no_sender(message: Message) -> Check:
    named = message.funded.request.sender_id
    detail = (
        f"No sender {named} is set up for this workspace" if named else "This workspace has no default sender set up"
    )
    evidence: Evidence = {"sender_id": named}
    return Check("sender", False, evidence, Reject(reason(ReasonCode.SENDER_NOT_AVAILABLE, detail, evidence)))


def _cancelled(message: Message) -> Check:
    by = message.cancelled_by
    return Check("cancelled", True) if by is None else Check("cancelled", False, {"by": by}, Reject(cancellation(by)))


def cancellation(by: str) -> Reason:
    """`by`: who withdrew the message, or `CAMPAIGN` where that was its campaign."""
    detail = "Its campaign was cancelled" if by == CAMPAIGN else f"The message was cancelled by {by}"
    return reason(ReasonCode.CANCELLED, detail, {"by": by})


def _expiry(message: Message, facts: Facts, sender: Sender, now: datetime) -> Check:
    evidence: Evidence = {"expires_at": _text(message.funded.expires_at)}
    if now < message.funded.expires_at:
        return Check("expiry", True, evidence)
    return Check(
        "expiry", False, evidence, Reject(expired(message, sender.hold, sender.rest, facts.tier, sender.unread))
    )


_EXPIRED_AS: Mapping[Waiting, ReasonCode] = {
    Waiting.THROTTLE: ReasonCode.RATE_LIMIT_EXCEEDED,
    Waiting.PAIR: ReasonCode.RATE_LIMIT_EXCEEDED,
    Waiting.RATE: ReasonCode.RATE_LIMIT_EXCEEDED,
    Waiting.TIER: ReasonCode.MESSAGING_LIMIT_REACHED,
    Waiting.CAP: ReasonCode.MARKETING_CAP_REACHED,
    Waiting.RETRY: ReasonCode.TEMPORARY_FAILURE,
    Waiting.SYNC: ReasonCode.TEMPLATE_NOT_APPROVED,
    Waiting.WINDOW: ReasonCode.OUTSIDE_24_HOUR_WINDOW,
}
# As `results` keeps how a try ended (`answers.Action`).
_WAITED_AFTER: Mapping[Waiting, str] = {
    Waiting.PAIR: "pair",
    Waiting.RATE: "pace",
    Waiting.RETRY: "retry",
    Waiting.SYNC: "syncing",
}
_WAITED_FOR: Mapping[Waiting, str] = {
    Waiting.TURN: "its turn",
    Waiting.PAUSED: "an operator to resume",
    Waiting.HOLD: "the sender to become available",
    Waiting.THROTTLE: "the campaign's throttle",
    Waiting.PAIR: "Meta's pace for messages to one person",
    Waiting.RATE: "the number's pace",
    Waiting.TIER: "room in the messaging limit",
    Waiting.CAP: "24 h after Meta's marketing cap",
    Waiting.RETRY: "the next try",
    Waiting.SYNC: "the templates to be read from Meta",
    Waiting.WINDOW: "news of the person's last message",
    Waiting.REPAIR: "a version of Sendwhy that can handle it (see the dispatcher's log)",
}


_SPENT: Mapping[Shared, str] = {
    Shared.NUMBER: "the number's calls",
    Shared.ACCOUNT: "the calls of the account, which its numbers share",
    Shared.APP: "the calls of the app, which its numbers share",
}


def expired(
    message: Message,
    hold: Reason | None = None,
    rest: Rest | None = None,
    tier: Tier | None = None,
    unread: Unread | None = None,
) -> Reason:
    """Why a message that ran out of time failed: what it waited for is its reason. `tier` as it is at the end."""
    kept = _kept_by(message, hold, rest)
    if kept is not None:
        return _expired_in_rest(message, kept)
    if unread is not None and message.waiting_for is Waiting.SYNC and _said_at_last(message) is None:
        return _expired_unread(message, unread)
    code = _EXPIRED_AS.get(message.waiting_for, ReasonCode.EXPIRED_BEFORE_SENDING)
    if message.waiting_for in (Waiting.HOLD, Waiting.TURN) and hold is not None:
        code = hold.code
    if hold is not None and code is hold.code and message.waiting_for is not Waiting.RETRY:
        return _expired_in_hold(message, hold)
    detail = f"It waited for {_WAITED_FOR[message.waiting_for]} until it expired at {_text(message.funded.expires_at)}"
    if message.waiting_for is Waiting.RETRY:
        detail = f"All {message.attempts} tries failed until it expired at {_text(message.funded.expires_at)}"
    limit = _tier_evidence(tier) if message.waiting_for is Waiting.TIER and tier and tier.limit is not None else {}
    return reason(code, detail, _waited(message) | limit, _said_at_last(message))


def _expired_in_hold(message: Message, hold: Reason) -> Reason:
    detail = f"It waited for {_WAITED_FOR[Waiting.HOLD]} until it expired at {_text(message.funded.expires_at)}"
    held: Evidence = {"hold": {"detail": hold.detail, **hold.evidence}}
    return reason(hold.code, f"{detail}. {hold.detail}", _waited(message) | held, hold.meta)


def _expired_unread(message: Message, unread: Unread) -> Reason:
    detail = (
        f"It waited for {_WAITED_FOR[Waiting.SYNC]} until it expired at {_text(message.funded.expires_at)}."
        f" That fails since {_text(unread.since)}: {unread.why}"
    )
    meta = None if unread.code is None else MetaError(code=unread.code)
    return reason(unread.cause, detail, _waited(message) | unread.evidence, meta)


def without_another_try(message: Message, next_at: datetime) -> Reason:
    """Why a message fails as soon as it is certain that it does: its next try would come when it has expired, and
    nothing brings that nearer."""
    count = f"{message.attempts} {'try' if message.attempts == 1 else 'tries'}"
    detail = (
        f"After {count} it would wait for {_WAITED_FOR[message.waiting_for]} until {_text(next_at)},"
        f" and it expires at {_text(message.funded.expires_at)}"
    )
    evidence = _waited(message) | {"next_try_at": _text(next_at)}
    return reason(_EXPIRED_AS[message.waiting_for], detail, evidence, _said_at_last(message))


def _said_at_last(message: Message) -> MetaError | None:
    """What Meta answered to the last try, where it is that answer's wait which lasted too long."""
    last = message.tries[-1] if message.tries else {}
    if last.get("result") != _WAITED_AFTER.get(message.waiting_for):
        return None
    meta = MetaError.model_validate(last)
    return None if meta == MetaError() else meta


def _kept_by(message: Message, hold: Reason | None, rest: Rest | None) -> Rest | None:
    """The rest behind which it stood in line, or out of which it was to be tried again."""
    in_line = message.waiting_for is Waiting.RATE or (message.waiting_for is Waiting.TURN and hold is None)
    return rest if rest is not None and in_line and rest.kept_waiting(message.funded.expires_at) else None


def _expired_in_rest(message: Message, rest: Rest) -> Reason:
    code = f" (code {rest.meta.code})" if rest.meta and rest.meta.code is not None else ""
    detail = (
        f"Meta counted too many calls{code}: {_SPENT[rest.limit]}. Nobody called from {_text(rest.since)} until"
        f" {_text(rest.until)}, and it expired at {_text(message.funded.expires_at)}"
    )
    limited: Evidence = {
        "waited_for": Waiting.RATE.value,
        "waiting_since": _text(message.waiting_since or max(rest.since, message.queued_at)),
        "limit": rest.limit.value,
        "limited_since": _text(rest.since),
        "limited_until": _text(rest.until),
    }
    return reason(ReasonCode.RATE_LIMIT_EXCEEDED, detail, _waited(message) | limited, rest.meta)


def _waited(message: Message) -> Evidence:
    return {
        "expires_at": _text(message.funded.expires_at),
        "waited_for": message.waiting_for.value,
        "waiting_since": _text(message.waiting_since) if message.waiting_since else None,
        "attempts": message.attempts,
        "tries": [dict(one) for one in message.tries],
    }


def subscription(message: Message, facts: Facts) -> Check:
    """What consent judged may have changed meanwhile, and only here the template's category is known for sure."""
    contact = facts.contact
    disguised = not message.funded.needs_subscription and facts.template is not None
    needed = message.funded.needs_subscription or (disguised and _category(facts) == MARKETING)
    if contact is None and not facts.is_contact and needed and disguised:
        # Consent asked for no subscription, so nobody has ever seen one.
        contact = _nobody(message)
    if not needed or contact is None or not withdraws(contact, message):
        return Check("marketing_state", True, {"needed": needed})
    evidence: Evidence = {"marketing_state": contact.marketing_state.value, "since": _text(contact.since)}
    return Check("marketing_state", False, evidence, Recall(contact))


def names_of(message: Message) -> list[str]:
    """The contact that the message goes to, and the one that the request names, where that is another."""
    names = (message.funded.resolved.contact_id, message.funded.request.to.contact_id)
    return list(dict.fromkeys(name for name in names if name))


def withdraws(contact: ContactUpdated, message: Message) -> bool:
    """Whether this state takes a message that needs a subscription out: not if consent judged by a later one, since
    contact.updated may come after send.funded."""
    is_judged = message.funded.needs_subscription and contact.contact_id == message.funded.resolved.contact_id
    judged = message.funded.contact_version if is_judged else None
    return contact.marketing_state is not MarketingState.SUBSCRIBED and (judged or 0) <= contact.version


def _category(facts: Facts) -> str | None:
    return facts.template.category if facts.template else None


def _is_marketing(message: Message, facts: Facts) -> bool:
    """By what it was sent for, or by what its template is now: Meta may move a template while its messages wait."""
    return message.lane is Lane.MARKETING or _category(facts) == MARKETING


def _nobody(message: Message) -> ContactUpdated:
    """The state of a person whom nobody has as a contact: they never agreed to anything."""
    resolved = message.funded.resolved
    return ContactUpdated(
        event_id=event_id_of("/".join(message.key), "nobody"),
        occurred_at=message.queued_at,
        workspace_id=message.funded.workspace_id,
        contact_id=resolved.contact_id or message.funded.message_id,
        version=0,
        phone=resolved.phone,
        user_id=resolved.user_id,
        marketing_state=MarketingState.UNKNOWN,
        since=message.queued_at,
        source="unknown",
    )


def _quality(message: Message, facts: Facts, sender: Sender) -> Check:
    evidence: Evidence = {"quality_rating": sender.quality, "policy": facts.quality_policy}
    red = sender.quality == "RED" and _is_marketing(message, facts)
    if not red or facts.quality_policy != "block":
        return Check("quality", True, evidence)
    detail = f"The number's quality rating is RED, and marketing is blocked while it is (policy {facts.quality_policy})"
    return Check("quality", False, evidence, Reject(reason(ReasonCode.QUALITY_RATING_TOO_LOW, detail, evidence)))


def _template(message: Message, facts: Facts, sender: Sender, now: datetime) -> Check:
    wanted = message.template
    if wanted is None:
        return Check("template", True)
    if sender.templates_synced_at is None:
        return _waits_for_sync(sender, now, {})
    if facts.template is None:
        return _template_not_found(message, facts, sender, now)
    template = facts.template
    evidence: Evidence = {
        "template": template.name,
        "language": template.language,
        "status": template.status,
        "said_by": template.said_by,
        "said_at": _text(template.said_at) if template.said_at else None,
    }
    if template.rejected_reason:
        evidence["rejected_reason"] = template.rejected_reason
    if template.status == "APPROVED":
        return Check("template", True, evidence)
    why = f" ({template.rejected_reason})" if template.rejected_reason else ""
    detail = f"Template {template.name} ({template.language}) is {template.status}{why}"
    return Check("template", False, evidence, Reject(reason(ReasonCode.TEMPLATE_NOT_APPROVED, detail, evidence)))


def _waits_for_sync(sender: Sender, now: datetime, evidence: Evidence) -> Check:
    cause = ReasonCode.TEMPLATE_NOT_APPROVED
    if sender.unread is not None:
        cause, evidence = sender.unread.cause, evidence | sender.unread.evidence
    return Check("template", None, evidence, Wait(Waiting.SYNC, cause, now + timedelta(seconds=1)))


def nearest_names(wanted: TemplateContent, known: Iterable[tuple[str, str]]) -> list[str]:
    """Of an account's templates, by name and language, those that may have been meant."""
    names = [f"{name} ({language})" for name, language in known]
    asked = f"{wanted.name} ({wanted.language.code})"
    # Of the plainest kind: others take some 20 ms for the 6,000 templates that an account may have.
    found = process.extract(asked, names, scorer=fuzz.ratio, limit=NEAREST_NAMES, score_cutoff=55)
    return [name for name, _score, _index in found]


def not_found(wanted: TemplateContent, nearest: Sequence[str], synced_at: datetime | None) -> Evidence:
    """Of a template that isn't there, whether our list or Meta itself says so."""
    return {
        "status": "NOT_FOUND",
        "template": wanted.name,
        "language": wanted.language.code,
        "nearest": list(nearest),
        "synced_at": _text(synced_at) if synced_at else None,
    }


def _template_not_found(message: Message, facts: Facts, sender: Sender, now: datetime) -> Check:
    wanted = message.template
    assert wanted is not None
    assert sender.templates_synced_at is not None
    evidence = not_found(wanted, facts.nearest, sender.templates_synced_at)
    fresh = sender.templates_synced_at >= message.queued_at or now - sender.templates_synced_at < SYNC_INTERVAL
    if not fresh:
        return _waits_for_sync(sender, now, evidence)
    if facts.listing_incomplete is not None:
        # Only a whole list tells what isn't there; a new one is read every minute while anybody waits for it.
        evidence |= {"status": "UNKNOWN", "list_incomplete": facts.listing_incomplete}
        wait = Wait(Waiting.SYNC, ReasonCode.TEMPLATE_NOT_APPROVED, now + SYNC_INTERVAL)
        return Check("template", None, evidence, wait)
    hint = f"; nearest: {', '.join(facts.nearest)}" if facts.nearest else ""
    detail = f"Meta has no template {wanted.name} in {wanted.language.code} for this account{hint}"
    return Check("template", False, evidence, Reject(reason(ReasonCode.TEMPLATE_NOT_APPROVED, detail, evidence)))


def _parameters(message: Message, facts: Facts) -> Check:
    wanted = message.template
    if wanted is None or facts.template is None:
        return Check("parameters", True)
    found = mismatches(facts.template.components, wanted.components)
    if not found:
        return Check("parameters", True)
    first = found[0]
    evidence: Evidence = {"template": wanted.name, "mismatches": found}  # type: ignore[dict-item]
    detail = (
        f"{first['component']}: {first['problem']}, expected {_words(first['expected'])},"
        f" given {_words(first['given'])}"
    )
    rejected = Reject(reason(ReasonCode.TEMPLATE_PARAMETERS_MISMATCH, detail, evidence))
    return Check("parameters", False, evidence, rejected)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {item}" for name, item in value.items())
    return (", ".join(str(item) for item in value) or "nothing") if isinstance(value, list) else str(value)


def _window_is_open(facts: Facts, now: datetime) -> bool:
    return facts.window_opened_at is not None and now < facts.window_opened_at + WINDOW


def window_evidence(opened_at: datetime | None, free_entry_at: datetime | None) -> Evidence:
    """Of a window, whether our books or Meta itself say that it is closed."""
    evidence: Evidence = {
        "last_message_at": _text(opened_at) if opened_at else None,
        "closed_at": _text(opened_at + WINDOW) if opened_at else None,
    }
    if free_entry_at is not None:
        # Free of charge for 72 h once we answer, but no longer a window: Meta, "Pricing", free entry points.
        evidence["free_entry_point_at"] = _text(free_entry_at)
    return evidence


def _window(message: Message, facts: Facts, now: datetime) -> Check:
    opened = facts.window_opened_at
    evidence = window_evidence(opened, facts.free_entry_at)
    if message.template is not None or _window_is_open(facts, now):
        return Check("window", True, evidence)
    requested = message.funded.request.requested_at or message.queued_at
    wanted = min(requested + WEBHOOK_TRAVELS, now)
    heard = facts.inbound_read_until is not None and facts.inbound_read_until >= wanted
    if not heard and now < message.queued_at + WINDOW_BELIEF:
        until = min(now + timedelta(seconds=1), message.queued_at + WINDOW_BELIEF)
        return Check("window", None, evidence, Wait(Waiting.WINDOW, ReasonCode.OUTSIDE_24_HOUR_WINDOW, until))
    detail = (
        f"The window closed at {_text(opened + WINDOW)}, 24 h after the person's last message"
        if opened
        else "The person has never written to this number"
    )
    return Check("window", False, evidence, Reject(reason(ReasonCode.OUTSIDE_24_HOUR_WINDOW, detail, evidence)))


def in_the_past(message: Message, facts: Facts, at: datetime, check: Check) -> Gate:
    """A gate for a moment that is over. What looks at what stands now can't tell; the window can where the last
    message that we know came before that moment: no other has moved it since."""
    if check.gate == "expiry":
        return check.to_gate()
    opened = facts.window_opened_at
    if check.gate == "window" and (message.template is not None or (opened is not None and opened <= at)):
        judged = _window(message, replace(facts, inbound_read_until=at), at)
        return judged.to_gate()
    return Gate(gate=check.gate, passed=None)


def _paused(message: Message, sender: Sender) -> Check:
    since = message.campaign_paused_at or sender.paused_at
    if since is None:
        return Check("paused", True)
    what = "campaign" if message.campaign_paused_at else "sender"
    wait = Wait(Waiting.PAUSED, ReasonCode.EXPIRED_BEFORE_SENDING, None)
    return Check("paused", False, {"paused": what, "since": _text(since)}, wait)


def _is_held(sender: Sender, now: datetime) -> bool:
    return sender.hold is not None and (sender.hold_until is None or now < sender.hold_until)


def spares_replies(sender: Sender, now: datetime) -> bool:
    """Whether it is held, but not for those who answer a person."""
    goes = sender.hold_replies_from is None or sender.hold_replies_from <= now
    return _is_held(sender, now) and sender.hold_stops is Stops.BUSINESS_INITIATED and goes


def _hold(message: Message, facts: Facts, sender: Sender, now: datetime) -> Check:
    if not _is_held(sender, now):
        return Check("hold", True)
    assert sender.hold is not None
    evidence: Evidence = {
        "cause": sender.hold.code.value,
        "since": _text(sender.hold_since) if sender.hold_since else None,
        "until": _text(sender.hold_until) if sender.hold_until else None,
    }
    until = sender.hold_until
    if sender.hold_replies_from is not None:
        evidence["replies_from"] = _text(sender.hold_replies_from)
        until = sender.hold_replies_from
    if spares_replies(sender, now):
        evidence["stops"] = sender.hold_stops.value
        if message.template is None or _window_is_open(facts, now):
            return Check("hold", True, evidence)
        # Such a message is looked at among replies, and its person may write meanwhile.
        until = min(sender.hold_until or now + LOOK_AT_HELD, now + LOOK_AT_HELD)
    return Check("hold", False, evidence, Wait(Waiting.HOLD, sender.hold.code, until))


def _cap(message: Message, facts: Facts, now: datetime) -> Check:
    until = facts.capped_until
    if not _is_marketing(message, facts) or until is None or now >= until:
        return Check("marketing_cap", True)
    evidence: Evidence = {"until": _text(until)}
    if until >= message.funded.expires_at:
        # Certain already: nothing ends a cap but its time.
        expires_at = _text(message.funded.expires_at)
        detail = (
            f"Meta's marketing cap for this person lasts until {_text(until)}, and the message expires at {expires_at}"
        )
        evidence["expires_at"] = expires_at
        return Check(
            "marketing_cap", False, evidence, Reject(reason(ReasonCode.MARKETING_CAP_REACHED, detail, evidence))
        )
    return Check("marketing_cap", False, evidence, Wait(Waiting.CAP, ReasonCode.MARKETING_CAP_REACHED, until))


def _throttle(facts: Facts) -> Check:
    if not facts.throttled:
        return Check("throttle", True)
    wait = Wait(Waiting.THROTTLE, ReasonCode.RATE_LIMIT_EXCEEDED, facts.slot_at)
    return Check("throttle", False, {"slot_at": _text(facts.slot_at) if facts.slot_at else None}, wait)


def _pair(facts: Facts, now: datetime) -> Check:
    if facts.pair_wait is None:
        return Check("pair", None, {"known_by": "the replica that drives the number"})
    if not facts.pair_wait:
        return Check("pair", True)
    until = now + facts.pair_wait
    return Check("pair", False, {"until": _text(until)}, Wait(Waiting.PAIR, ReasonCode.RATE_LIMIT_EXCEEDED, until))


def _tier(message: Message, facts: Facts, now: datetime) -> Check:
    tier = facts.tier
    evidence: Evidence = {"used": tier.used, "limit": tier.limit}
    counts = message.template is not None and not _window_is_open(facts, now)
    if not counts or tier.limit is None or tier.already_reached or tier.used < tier.limit:
        return Check("tier", True, evidence)
    wait = Wait(Waiting.TIER, ReasonCode.MESSAGING_LIMIT_REACHED, tier.room_at)
    return Check("tier", False, _tier_evidence(tier), wait)


def _tier_evidence(tier: Tier) -> Evidence:
    return {"used": tier.used, "limit": tier.limit, "room_at": _text(tier.room_at) if tier.room_at else None}


def stands_still(sender: Sender, now: datetime) -> bool:
    """Nothing of this sender goes, whatever it is: its messages needn't be looked at."""
    return sender.paused_at is not None or (_is_held(sender, now) and not spares_replies(sender, now))


def receipt_deadline(
    accepted_at: datetime, category: str | None, ttl: timedelta, template_seconds: int | None = None
) -> datetime:
    """When a delivery receipt is given up: after 30 days, for authentication templates 10 minutes, or what the template
    sets (-1: 30 days), and some slack, as Meta tells nobody that it gave up (meta-cloud-api.md, 2.4). What a marketing
    template sets is meant for another endpoint than ours."""
    own = AUTHENTICATION_TTL if category == "AUTHENTICATION" else None
    if template_seconds is not None and category != MARKETING:
        own = timedelta(seconds=template_seconds) if template_seconds > 0 else None
    return accepted_at + (ttl if own is None else min(ttl, own + RECEIPT_SLACK))


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
