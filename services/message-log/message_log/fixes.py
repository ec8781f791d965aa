"""Where the cause of a failure or a wait is repaired: pages of ours, as far as they exist. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from sendwhy.events import OriginKind
from sendwhy.reasons import ReasonCode

from message_log.language import lazy
from message_log.pages import SECTIONS
from message_log.view import MessageView

_R = ReasonCode
_CONTACT = ("contacts", lazy("Look at the contact"))
_CREDITS = ("credits", lazy("Top up"))
_TEMPLATES = ("templates", lazy("Look at the template"))
_SENDERS = ("senders", lazy("Look at the number"))
_CAMPAIGNS = ("campaigns", lazy("Look at the campaign"))
_WHERE: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        (
            _R.CUSTOMER_IS_NOT_OPTED_IN,
            _R.CUSTOMER_IS_MISSING_CALLING_CODE,
            _R.PHONE_NUMBER_IMPOSSIBLE,
            _R.CONTACT_HAS_NO_PHONE,
            _R.RECIPIENT_NOT_ON_WHATSAPP,
            _R.RECIPIENT_PROBABLY_BLOCKED_SENDER,
            _R.SENDER_BLOCKED_RECIPIENT,
            _R.NO_DELIVERY_RECEIPT,
            _R.RECIPIENT_STOPPED_MARKETING,
            _R.MARKETING_CAP_REACHED,
            _R.RECIPIENT_NOT_ALLOWED,
            _R.OUTSIDE_24_HOUR_WINDOW,
        ),
        _CONTACT,
    ),
    _R.INSUFFICIENT_CREDITS: _CREDITS,
    **dict.fromkeys(
        (_R.TEMPLATE_NOT_APPROVED, _R.TEMPLATE_PARAMETERS_MISMATCH, _R.TEMPLATE_POLICY_VIOLATION), _TEMPLATES
    ),
    **dict.fromkeys(
        (
            _R.MESSAGING_LIMIT_REACHED,
            _R.QUALITY_RATING_TOO_LOW,
            _R.SENDER_NOT_AVAILABLE,
            _R.SENDER_CREDENTIALS_REJECTED,
            _R.META_PAYMENT_ISSUE,
        ),
        _SENDERS,
    ),
    _R.RATE_LIMIT_EXCEEDED: _CAMPAIGNS,
    _R.EXPIRED_BEFORE_SENDING: _CAMPAIGNS,
}


@dataclass(frozen=True, slots=True)
class Fix:
    label: str
    path: str


def why_of(message: MessageView) -> str | None:
    """The code of what there is to repair or to wait for; None where there is nothing to do: before its own time, and
    as long as a receipt may still tell what became of its call."""
    if message.reason:
        return message.reason.code
    waiting = message.waiting
    if waiting is None or waiting.scheduled or waiting.cause == _R.SEND_OUTCOME_UNKNOWN:
        return None
    return waiting.cause


def fixes_of(message: MessageView) -> list[Fix]:
    """Where to go for this message's reason, or for what it waits for; none where no page of ours repairs it."""
    there = {path for path, _, _ in SECTIONS}
    return [_fix(section, label, message) for section, label in _places(message) if section in there]


def _places(message: MessageView) -> Sequence[tuple[str, str]]:
    code = why_of(message)
    is_campaign = (message.origin or {}).get("kind") == OriginKind.CAMPAIGN
    if message.reason is None and code == _R.EXPIRED_BEFORE_SENDING:
        # A pause: its event says of what, and a number's waits of each look like a campaign's.
        return (_SENDERS, _CAMPAIGNS) if is_campaign else (_SENDERS,)
    found = _WHERE.get(code or "")
    if found == _CAMPAIGNS and not is_campaign:
        # Nothing paces or pauses it but its number.
        return [_SENDERS]
    return [found] if found else []


def _fix(section: str, label: str, message: MessageView) -> Fix:
    thing = _thing(section, message)
    home = f"/w/{quote(message.workspace_id, safe='')}/{section}"
    return Fix(label, f"{home}/{quote(thing, safe='')}" if thing else home)


def _thing(section: str, message: MessageView) -> str | None:
    """Which contact, number or campaign it is about; templates and credits have one page for all."""
    origin = message.origin or {}
    found = {"contacts": message.to.contact_id, "senders": message.sender_id, "campaigns": origin.get("id")}
    thing = found.get(section)
    return thing if isinstance(thing, str) else None
