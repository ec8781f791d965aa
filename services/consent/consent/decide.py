"""The decision on one send request: run every gate, and take the first that fails. Pure."""

from collections.abc import Mapping
from dataclasses import field, replace
from datetime import datetime, timedelta
from types import MappingProxyType

from sendwhy.events import (
    PURPOSE_BY_ORIGIN,
    Evidence,
    Gate,
    MarketingState,
    Purpose,
    Reason,
    Resolved,
    SendConsented,
    SendRecalled,
    SendRejected,
    SendRequested,
    event_id_of,
    reason,
)
from sendwhy.reasons import ReasonCode, Service
from sendwhy.requests import Completed
from sendwhy.values import value_class

from consent.contacts import Contact, Word
from consent.fields import Fields
from consent.phones import PhoneFault, Reading, place_of_user_id, read_phone

_AUTHENTICATION = "AUTHENTICATION"
_BELIEVED_CATEGORIES = frozenset({"UTILITY", _AUTHENTICATION})
_SOURCES_IN_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "stop_reply": "replied STOP",
        "stop_button": "tapped an opt-out button",
        "start_reply": "replied START",
        "start_button": "tapped an opt-in button",
        "user_preferences": "used WhatsApp's own stop control",
        "error_131050": "Meta says they stopped marketing messages",
        "erasure": "was erased",
        "unknown": "nobody has told of their consent",
    }
)


@value_class
class Facts:
    """What is known around one request. `contact`: whom it reaches; `named`: whom it names. `standing`: the consent
    word to judge by; `is_past`: it is that of an earlier moment, of which nobody knows the phone. `veto`: a no that
    outweighs it, as of the people who have the phone that a request gives for a contact without one. `category` is the
    template's, in Meta's capitals."""

    contact: Contact | None = None
    named: Contact | None = None
    standing: Word | None = None
    veto: Word | None = None
    sender_id: str | None = None
    category: str | None = None
    may_say_transactional: bool = False
    shop_country: str | None = None
    is_past: bool = False


@value_class
class Judged:
    """One gate's verdict; `passed` is None where it can't know. A plain value: four are made for every message."""

    gate: str
    passed: bool | None
    reason: Reason | None = None
    evidence: Evidence = field(default_factory=dict)

    def to_gate(self) -> Gate:
        return Gate(gate=self.gate, passed=self.passed, reason=self.reason, evidence=self.evidence)


@value_class
class Verdict:
    """All gates, in the order in which they decide, and what was found out on the way."""

    gates: tuple[Judged, ...]
    resolved: Resolved
    needs_subscription: bool

    @property
    def failure(self) -> Reason | None:
        return next((gate.reason for gate in self.gates if gate.passed is False), None)


def purpose_of(request: SendRequested, facts: Facts) -> Purpose:
    """The purpose to judge by. A campaign's own word that it isn't marketing needs a template and a permission."""
    usual = PURPOSE_BY_ORIGIN[request.origin.kind]
    said = request.purpose or usual
    if usual == Purpose.MARKETING and said != Purpose.MARKETING:
        believed = facts.may_say_transactional and facts.category in _BELIEVED_CATEGORIES
        return said if believed else Purpose.MARKETING
    return said


@value_class
class _Found:
    """What the gates judge by. `given`: the number as it was given."""

    given: str | None
    reading: Reading | None
    needed: bool
    resolved: Resolved


def _find(request: SendRequested, facts: Facts) -> _Found:
    """The number judged is the contact's; the request's own only where none is stored. Where there is none at all, it
    goes to the contact's WhatsApp user id, if Meta sends such content there."""
    contact = facts.contact
    purpose = purpose_of(request, facts)
    needed = purpose == Purpose.MARKETING or facts.category == "MARKETING"
    stored = contact.fields if contact else None
    given = stored.phone if stored and stored.phone else request.to.phone
    reading = (stored.reading if stored and stored.phone else None) or (read_phone(given) if given else None)
    phone = reading.phone if reading else None
    user_id = stored.user_id if stored and reading is None and facts.category != _AUTHENTICATION else None
    place = (phone.country, phone.calling_code) if phone else place_of_user_id(user_id) if user_id else None
    resolved = Resolved.of_checked(
        contact_id=contact.key.contact_id if contact else request.to.contact_id,
        phone=phone.e164 if phone else None,
        user_id=user_id,
        country=place[0] if place else None,
        calling_code=place[1] if place else None,
        purpose=purpose,
    )
    return _Found(given, reading, needed, resolved)


def evaluate(request: SendRequested, facts: Facts) -> Verdict:
    """Run all gates."""
    found = _find(request, facts)
    gates = (
        _marketing_state(facts, found.resolved.purpose, needed=found.needed),
        _phone_known(request, facts, found),
        _calling_code(facts, found),
        _phone_possible(facts, found),
    )
    return Verdict(gates, found.resolved, found.needed)


def _passes_all(found: _Found, facts: Facts) -> bool:
    """Whether `evaluate` says that every gate passes, told without making them: of nearly all messages they do."""
    word = facts.veto or facts.standing
    is_wanted = not found.needed or (word is not None and word.state == MarketingState.SUBSCRIBED)
    return is_wanted and not facts.is_past and found.resolved.address is not None


def _marketing_state(facts: Facts, purpose: Purpose, *, needed: bool) -> Judged:
    word = facts.veto or facts.standing
    evidence: Evidence = {
        "marketing_state": (word.state if word else MarketingState.UNKNOWN).value,
        "since": _seconds(word.at) if word else None,
        "source": word.source if word else "unknown",
    }
    if not needed or (word and word.state == MarketingState.SUBSCRIBED):
        return Judged("marketing_state", True, evidence=evidence | {"needed": needed, "purpose": purpose.value})
    return _failed("marketing_state", not_opted_in(word, evidence))


def not_opted_in(word: Word | None, evidence: Evidence) -> Reason:
    if word is None:
        detail = "marketing_state is UNKNOWN: no contact is known for this recipient"
    else:
        by = _SOURCES_IN_WORDS.get(word.source, f"source: {word.source}")
        detail = f"marketing_state is {word.state} since {_seconds(word.at)} ({by})"
    return reason(ReasonCode.CUSTOMER_IS_NOT_OPTED_IN, detail, evidence)


def _phone_known(request: SendRequested, facts: Facts, found: _Found) -> Judged:
    """Whether a number is known, or else a user id that serves."""
    if facts.is_past:
        return _unknown("phone_known")
    contact = facts.contact
    evidence: Evidence = {
        "contact_id": contact.key.contact_id if contact else request.to.contact_id,
        "user_id": contact.fields.user_id if contact else None,
    }
    if found.reading is not None or found.resolved.user_id is not None:
        return Judged("phone_known", True, evidence=evidence)
    if contact is None:
        detail = "the contact is not known here, and the request names no phone"
    elif contact.fields.user_id is not None:
        evidence["template_category"] = facts.category
        detail = (
            "only a WhatsApp user id is known of this contact, and Meta sends authentication templates to numbers only"
        )
    else:
        detail = "no phone number is stored for this contact, and the request names none"
    return _failed("phone_known", reason(ReasonCode.CONTACT_HAS_NO_PHONE, detail, evidence))


def _calling_code(facts: Facts, found: _Found) -> Judged:
    given, reading = found.given, found.reading
    if facts.is_past or reading is None:
        return _without_number("calling_code", facts, found)
    stored = facts.contact.fields if facts.contact else Fields()
    evidence: Evidence = {
        "phone": given,
        "phone_country_code": stored.country_code,
        "phone_calling_code": stored.calling_code,
    }
    if reading.fault != PhoneFault.MISSING_CALLING_CODE:
        return Judged("calling_code", True, evidence=evidence)
    detail, suggestion = reading.detail, replace(stored, phone=given).suggestion(facts.shop_country)
    evidence["suggestion"] = None
    if suggestion is not None:
        detail += f"; perhaps +{suggestion.calling_code} ({suggestion.text})"
        evidence["suggestion"] = {
            "calling_code": suggestion.calling_code,
            "phone": suggestion.phone,
            "ground": suggestion.text,
        }
    return _failed("calling_code", reason(ReasonCode.CUSTOMER_IS_MISSING_CALLING_CODE, detail, evidence))


def _phone_possible(facts: Facts, found: _Found) -> Judged:
    given, reading = found.given, found.reading
    if facts.is_past or reading is None or reading.fault == PhoneFault.MISSING_CALLING_CODE:
        return _without_number("phone_possible", facts, found)
    if reading.phone is not None:
        return Judged("phone_possible", True, evidence={"phone": reading.phone.e164})
    detail = f"no such phone number can exist: {reading.detail}"
    return _failed("phone_possible", reason(ReasonCode.PHONE_NUMBER_IMPOSSIBLE, detail, {"phone": given}))


def _without_number(gate: str, facts: Facts, found: _Found) -> Judged:
    """What goes to a user id needs no number; of anything else nobody can tell."""
    user_id = found.resolved.user_id
    if facts.is_past or user_id is None:
        return _unknown(gate)
    return Judged(gate, True, evidence={"user_id": user_id})


def _failed(gate: str, why: Reason) -> Judged:
    return Judged(gate, False, why, why.evidence)


def _unknown(gate: str) -> Judged:
    return Judged(gate, None)


def decide(completed: Completed, facts: Facts, now: datetime) -> SendConsented | SendRejected:
    """What becomes of a request: the first failing gate rejects it."""
    request = completed.request
    cause = f"{request.workspace_id}/{request.message_id}"
    found = _find(request, facts)
    failure = None if _passes_all(found, facts) else evaluate(request, facts).failure
    if failure is not None:
        return rejected(request, failure, cause=cause, sender_id=facts.sender_id, now=now)
    return SendConsented.of_checked(
        event_id=event_id_of(cause, "send.consented"),
        occurred_at=now,
        request=request,
        resolved=found.resolved,
        contact_version=facts.contact.version if facts.contact else None,
        needs_subscription=found.needed,
        send_at=completed.send_at,
        expires_at=completed.expires_at,
    )


def rejected(request: SendRequested, why: Reason, *, cause: str, sender_id: str | None, now: datetime) -> SendRejected:
    return SendRejected(
        event_id=event_id_of(cause, "send.rejected"),
        occurred_at=now,
        message_id=request.message_id,
        workspace_id=request.workspace_id,
        sender_id=request.sender_id or sender_id,
        to=request.to,
        origin=request.origin,
        service=Service.CONSENT,
        reason=why,
        metadata=request.metadata,
    )


def answer_recall(recalled: SendRecalled, default_sender: str | None, now: datetime) -> SendRejected:
    """A message that was taken out of the queue because of the state that the dispatcher sent along."""
    contact = recalled.contact
    word = Word(contact.marketing_state, contact.since, contact.source)
    evidence: Evidence = {
        "marketing_state": contact.marketing_state.value,
        "since": _seconds(contact.since),
        "source": contact.source,
    }
    return rejected(
        recalled.funded.request,
        not_opted_in(word, evidence),
        cause=f"{recalled.workspace_id}/{recalled.message_id}/recall",
        sender_id=default_sender,
        now=now,
    )


def keep_until(expires_at: datetime, now: datetime) -> datetime:
    """How long a decision must be remembered: longer than Kafka may replay the request or Meta send receipts."""
    return max(expires_at, now) + timedelta(days=45)


def _seconds(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
