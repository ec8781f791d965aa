"""The reason catalogue: every way a message can end without blue ticks, in one table.

Pages, API, CLI, docs, metric labels and dashboards all read it. Codes, names and Meta's numbers follow
reasons.md; what Meta's numbers mean follows Meta's page "Error codes" (copy of September 2026).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Service(StrEnum):
    CONSENT = "consent"
    BILLING = "billing"
    DISPATCHER = "dispatcher"
    WEBHOOK_INGEST = "webhook-ingest"
    MESSAGE_LOG = "message-log"


class Recoverable(StrEnum):
    """What has to happen before the same person can be reached; the contract's `recoverable`."""

    NEVER = "never"
    AFTER_CONSENT = "after_consent"
    AFTER_FIX = "after_fix"
    AFTER_TOPUP = "after_topup"
    AFTER_WAIT = "after_wait"
    BY_TEMPLATE = "by_template"
    UNKNOWN = "unknown"


class ReasonCode(StrEnum):
    CUSTOMER_IS_NOT_OPTED_IN = "CUSTOMER_IS_NOT_OPTED_IN"
    CUSTOMER_IS_MISSING_CALLING_CODE = "CUSTOMER_IS_MISSING_CALLING_CODE"
    PHONE_NUMBER_IMPOSSIBLE = "PHONE_NUMBER_IMPOSSIBLE"
    CONTACT_HAS_NO_PHONE = "CONTACT_HAS_NO_PHONE"
    INVALID_REQUEST = "INVALID_REQUEST"
    INSUFFICIENT_CREDITS = "INSUFFICIENT_CREDITS"
    OUTSIDE_24_HOUR_WINDOW = "OUTSIDE_24_HOUR_WINDOW"
    TEMPLATE_NOT_APPROVED = "TEMPLATE_NOT_APPROVED"
    TEMPLATE_PARAMETERS_MISMATCH = "TEMPLATE_PARAMETERS_MISMATCH"
    TEMPLATE_POLICY_VIOLATION = "TEMPLATE_POLICY_VIOLATION"
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"
    MESSAGING_LIMIT_REACHED = "MESSAGING_LIMIT_REACHED"
    QUALITY_RATING_TOO_LOW = "QUALITY_RATING_TOO_LOW"
    SENDER_NOT_AVAILABLE = "SENDER_NOT_AVAILABLE"
    SENDER_CREDENTIALS_REJECTED = "SENDER_CREDENTIALS_REJECTED"
    META_PAYMENT_ISSUE = "META_PAYMENT_ISSUE"
    RECIPIENT_NOT_ON_WHATSAPP = "RECIPIENT_NOT_ON_WHATSAPP"
    RECIPIENT_PROBABLY_BLOCKED_SENDER = "RECIPIENT_PROBABLY_BLOCKED_SENDER"
    SENDER_BLOCKED_RECIPIENT = "SENDER_BLOCKED_RECIPIENT"
    NO_DELIVERY_RECEIPT = "NO_DELIVERY_RECEIPT"
    RECIPIENT_STOPPED_MARKETING = "RECIPIENT_STOPPED_MARKETING"
    MARKETING_CAP_REACHED = "MARKETING_CAP_REACHED"
    RECIPIENT_IN_META_EXPERIMENT = "RECIPIENT_IN_META_EXPERIMENT"
    RECIPIENT_NOT_ALLOWED = "RECIPIENT_NOT_ALLOWED"
    MEDIA_FAILED = "MEDIA_FAILED"
    INVALID_CONTENT = "INVALID_CONTENT"
    TEMPORARY_FAILURE = "TEMPORARY_FAILURE"
    EXPIRED_BEFORE_SENDING = "EXPIRED_BEFORE_SENDING"
    SEND_OUTCOME_UNKNOWN = "SEND_OUTCOME_UNKNOWN"
    CANCELLED = "CANCELLED"
    META_ERROR = "META_ERROR"


@dataclass(frozen=True, slots=True)
class ReasonInfo:
    """One row of the catalogue. `meta_codes` are single numbers; `meta_rules` tells what `reason_for_meta` does beside
    them."""

    title: str
    services: frozenset[Service]
    meaning: str
    causes: tuple[str, ...]
    what_to_do: str
    prevention: str
    recoverable: Recoverable
    waiting_helps: bool
    also_known_as: tuple[str, ...] = ()
    meta_codes: frozenset[int] = frozenset()
    meta_rules: tuple[str, ...] = ()

    def meta_told(self) -> tuple[str, ...]:
        """Meta's codes and rules, as people read them."""
        return *map(str, sorted(self.meta_codes)), *self.meta_rules


_CONSENT = frozenset({Service.CONSENT})
_BILLING = frozenset({Service.BILLING})
_DISPATCHER = frozenset({Service.DISPATCHER})
_INGEST = frozenset({Service.WEBHOOK_INGEST})
_BOTH = frozenset({Service.DISPATCHER, Service.WEBHOOK_INGEST})

_R = ReasonCode
CATALOGUE: Mapping[ReasonCode, ReasonInfo] = MappingProxyType(
    {
        _R.CUSTOMER_IS_NOT_OPTED_IN: ReasonInfo(
            title="Customer is not opted in",
            services=_CONSENT,
            meaning="The person's marketing_state was not SUBSCRIBED at the moment of sending. UNSUBSCRIBED: they"
            " opted out. NOT_SUBSCRIBED or UNKNOWN: they never agreed.",
            causes=(
                "They replied STOP between planning and sending.",
                "They were imported without proof of consent.",
                "The audience has no consent rule.",
            ),
            what_to_do="Nothing for this message: it was rightly not sent. Don't resend it unless the person agrees;"
            " if they did, import the contact with its proof.",
            prevention="Add a consent rule to the audience and check what the import says about consent.",
            recoverable=Recoverable.AFTER_CONSENT,
            waiting_helps=False,
        ),
        _R.CUSTOMER_IS_MISSING_CALLING_CODE: ReasonInfo(
            title="Customer is missing a calling code",
            services=_CONSENT,
            meaning="The stored number lacks its country's calling code, so it may belong to anybody"
            " (5512345678 instead of +525512345678).",
            causes=(
                "The checkout asked for a phone without a prefix.",
                "The phone field is not set to the international form.",
                "A list was imported with national numbers.",
            ),
            what_to_do="Compare phone, phone_country_code and phone_calling_code; correct the number where it comes from"
            " (in Shopify, not here: the next sync would overwrite it); Shopify's customers/update brings it over."
            " Or accept the suggested calling code, one by one or for all of one country: a sync of the same number"
            " keeps it.",
            prevention="Make the checkout and the import store international numbers.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=False,
        ),
        _R.PHONE_NUMBER_IMPOSSIBLE: ReasonInfo(
            title="Phone number is impossible",
            services=_CONSENT,
            meaning="No such number can exist: wrong length, unknown calling code, or a range that holds no mobiles.",
            causes=("A typing error.", "Digits lost or added by a spreadsheet.", "A landline-only range."),
            what_to_do="Correct the number at its source.",
            prevention="Validate numbers when they are entered.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=False,
            also_known_as=("Invalid WhatsApp number",),
        ),
        _R.CONTACT_HAS_NO_PHONE: ReasonInfo(
            title="Contact has no phone number",
            services=_CONSENT,
            meaning="The contact is known and their number isn't, or only a WhatsApp user id is known and this content"
            " (an authentication template) needs a number.",
            causes=("The shop never asked for a phone.", "The person writes under a WhatsApp username."),
            what_to_do="Add the number at its source, or reach the person by another channel.",
            prevention="Ask for a phone number where people agree to messages.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=False,
        ),
        _R.INVALID_REQUEST: ReasonInfo(
            title="Request is invalid",
            services=_CONSENT,
            meaning="The send request can't be read or is incomplete; the evidence names the fields.",
            causes=("A field is missing or has the wrong type.", "A value is out of its bounds."),
            what_to_do="Fix the upstream system and send the corrected request; it may use the same message_id.",
            prevention="Validate requests against the published schema before sending them.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=False,
        ),
        _R.INSUFFICIENT_CREDITS: ReasonInfo(
            title="Insufficient credits",
            services=_BILLING,
            meaning="The balance did not cover the price of this message; the evidence has balance, price and"
            " shortfall, and as scope how many messages of this campaign (or other origin) were funded and refused so"
            " far, this one included. Whoever came first went out.",
            causes=("The credits are used up.", "A campaign is larger than the balance."),
            what_to_do="Top up or raise the plan, then weigh a follow-up. Nothing is retried by itself, failed automation"
            " messages neither.",
            prevention="Watch the low-balance alerts; check an audience before a campaign.",
            recoverable=Recoverable.AFTER_TOPUP,
            waiting_helps=False,
        ),
        _R.OUTSIDE_24_HOUR_WINDOW: ReasonInfo(
            title="Outside the 24-hour window",
            services=_BOTH,
            meaning="A free-form message more than 24 h after the person last wrote or called; the evidence says when"
            " the window closed.",
            causes=(
                "An agent replied too late.",
                "An automation sends free-form text without a recent message.",
            ),
            what_to_do="Send an approved template, or wait until the person writes.",
            prevention="Answer within 24 h; use templates in automations.",
            recoverable=Recoverable.BY_TEMPLATE,
            waiting_helps=False,
            also_known_as=("Session window closed", "Outside 24-hour window, no template used"),
            meta_codes=frozenset({131047}),
        ),
        _R.TEMPLATE_NOT_APPROVED: ReasonInfo(
            title="Template is not approved",
            services=_BOTH,
            meaning="The template can't be used: the evidence says whether it is NOT_FOUND (nearest names are offered),"
            " PENDING, REJECTED (with Meta's reason), PAUSED (until when) or DISABLED.",
            causes=(
                "Name or language differs from what Meta has.",
                "Meta's review is not finished, or refused it.",
                "Meta paused or disabled it for low quality.",
            ),
            what_to_do="NOT_FOUND: correct the name or the language. PENDING: wait for Meta's review. REJECTED: edit the"
            " template and submit it again. PAUSED: wait for the pause to end, or edit it. DISABLED: write a new one."
            " Once it is APPROVED, sending resumes by itself; resend failed messages.",
            prevention="Pick templates from the synced list and watch their quality.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=True,
            also_known_as=("Template not found or not approved",),
            meta_codes=frozenset({132001, 132015, 132016, 134101, 134102}),
        ),
        _R.TEMPLATE_PARAMETERS_MISMATCH: ReasonInfo(
            title="Template parameters don't match",
            services=_BOTH,
            meaning="Count, names, format or length of the variables don't fit the template; the evidence shows expected"
            " against given.",
            causes=(
                "A variable is not mapped.",
                "The template was edited and the mapping was not.",
                "A value is empty.",
            ),
            what_to_do="Map the variables as the evidence lists them and send again.",
            prevention="Check the mapping whenever a template changes.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=False,
            also_known_as=("template variables not mapped",),
            meta_codes=frozenset({132000, 132005, 132008, 132012, 132018}),
        ),
        _R.TEMPLATE_POLICY_VIOLATION: ReasonInfo(
            title="Template violates Meta's policy",
            services=_BOTH,
            meaning="Meta blocked the content or the flow of this template.",
            causes=("Content against Meta's policy.", "A flow that Meta blocked or throttled."),
            what_to_do="Read Meta's details, change the content or the flow, have it reviewed again.",
            prevention="Check content against Meta's policy before submitting.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=False,
            meta_codes=frozenset({132007, 132068, 132069}),
        ),
        _R.RATE_LIMIT_EXCEEDED: ReasonInfo(
            title="Rate limit exceeded",
            services=_BOTH,
            meaning="Too fast for the number (per second), for one person (pair), for the app or for the account."
            " Normally the message just waits; it fails only when it expired meanwhile.",
            causes=(
                "A campaign larger than the number can carry in its time.",
                "A campaign larger than its own throttle lets out before its messages expire.",
                "Many messages to one person at once.",
            ),
            what_to_do="If it waited for the campaign's own throttle, raise that or give the messages more time before"
            " they expire. Else slow the campaign (throttle per minute and day) or spread it over numbers. Then resend.",
            prevention="Set a throttle and an expiry that fit the size of the campaign.",
            recoverable=Recoverable.AFTER_WAIT,
            waiting_helps=True,
            also_known_as=("Rate limit hit",),
            meta_codes=frozenset({4, 613, 80007, 130429, 131056}),
        ),
        _R.MESSAGING_LIMIT_REACHED: ReasonInfo(
            title="Messaging limit reached",
            services=_BOTH,
            meaning="The unique people that this business portfolio may reach in a moving 24 h are used up; the evidence"
            " shows used, limit and when room returns.",
            causes=(
                "A campaign above the portfolio's tier.",
                "Several numbers of one portfolio at work together.",
            ),
            what_to_do="Wait until room returns, or raise the tier with Meta; then resend what failed.",
            prevention="Plan campaigns within the tier.",
            recoverable=Recoverable.AFTER_WAIT,
            waiting_helps=True,
            also_known_as=("messaging tier",),
            meta_codes=frozenset({131064}),
        ),
        _R.QUALITY_RATING_TOO_LOW: ReasonInfo(
            title="Quality rating too low",
            services=_BOTH,
            meaning="The number is red, or limited for spam: too many people blocked or reported it.",
            causes=("Messages people did not want.", "Too many messages.", "Lists without real opt-in."),
            what_to_do="Pause marketing from this number until its rating recovers (Meta looks at 7 days).",
            prevention="Better content, lower frequency, real opt-in.",
            recoverable=Recoverable.AFTER_WAIT,
            waiting_helps=True,
            also_known_as=("Quality rating prevents sending",),
            meta_codes=frozenset({131048}),
        ),
        _R.SENDER_NOT_AVAILABLE: ReasonInfo(
            title="Sender is not available",
            services=_BOTH,
            meaning="The sending number is unknown, not registered, locked or restricted; the evidence says until when,"
            " if Meta told.",
            causes=(
                "No number is set up for this workspace.",
                "Meta restricted or locked the account.",
                "A PIN is wrong.",
            ),
            what_to_do="Look at the sender's page: set it up, register it, or appeal in Meta's Business Manager.",
            prevention="Watch account_update alerts.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=True,
            meta_codes=frozenset({33, 368, 130497, 131031, 131037, 131045, 131063, 133010}),
            meta_rules=("100 with subcode 33",),
        ),
        _R.SENDER_CREDENTIALS_REJECTED: ReasonInfo(
            title="Sender's credentials were rejected",
            services=_BOTH,
            meaning="Meta refused the access token: expired, withdrawn or without permission. The sender is held.",
            causes=(
                "The token expired.",
                "A permission was taken away.",
                "The app was removed from the business.",
            ),
            what_to_do="Store a new token for the sender; waiting messages then go out by themselves. Resend failed ones.",
            prevention="Use a system user's token that doesn't expire.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=True,
            meta_codes=frozenset({0, 3, 10, 104, 190, 131005}),
            meta_rules=("200 to 299",),
        ),
        _R.META_PAYMENT_ISSUE: ReasonInfo(
            title="Meta can't charge the business",
            services=_BOTH,
            meaning="Meta could not charge the business account for messages. The sender is held.",
            causes=(
                "No valid payment method.",
                "The credit line is used up.",
                "Payment terms were not accepted.",
            ),
            what_to_do="Repair the payment settings in Meta's Business Manager, then resume the sender: waiting messages go"
            " out by themselves. Resend failed ones.",
            prevention="Keep a valid payment method and a credit line with room.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=True,
            meta_codes=frozenset({131042, 134011}),
        ),
        _R.RECIPIENT_NOT_ON_WHATSAPP: ReasonInfo(
            title="Recipient is not on WhatsApp",
            services=_BOTH,
            meaning="The number can exist and can't be reached on WhatsApp. Meta doesn't say which of the causes it is.",
            causes=(
                "The country code is wrong.",
                "The number was deactivated lately.",
                "The person has not accepted WhatsApp's terms.",
                "Their app is too old.",
            ),
            what_to_do="Look the number up in WhatsApp's own contacts and correct it at its source.",
            prevention="Confirm numbers when people sign up.",
            recoverable=Recoverable.NEVER,
            waiting_helps=False,
            also_known_as=("Invalid WhatsApp number", "Recipient phone number not on WhatsApp"),
            meta_codes=frozenset({131026}),
        ),
        _R.RECIPIENT_PROBABLY_BLOCKED_SENDER: ReasonInfo(
            title="Recipient has probably blocked this number",
            services=_INGEST,
            meaning="An inference, since Meta hides blocks: earlier messages were delivered, and the last several stay at"
            " sent beyond their time to live.",
            causes=(
                "The person blocked the business number.",
                "Less likely: their phone has been off ever since.",
            ),
            what_to_do="Nothing can be sent until they unblock; ask them by another channel.",
            prevention="Send less, and only what people asked for.",
            recoverable=Recoverable.UNKNOWN,
            waiting_helps=False,
            also_known_as=("User has blocked this number",),
        ),
        _R.SENDER_BLOCKED_RECIPIENT: ReasonInfo(
            title="The business blocked this person",
            services=_BOTH,
            meaning="The business itself has this person on its block list.",
            causes=("Somebody blocked the person in WhatsApp Manager.",),
            what_to_do="Unblock the person, if that is right, and send again.",
            prevention="Keep audiences free of people you blocked.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=False,
            meta_codes=frozenset({130403}),
        ),
        _R.NO_DELIVERY_RECEIPT: ReasonInfo(
            title="No delivery receipt",
            services=_INGEST,
            meaning="WhatsApp took the message, and no receipt came within its time to live. Meta gives no cause.",
            causes=("The phone was off for long.", "A block.", "A country that Meta doesn't serve."),
            what_to_do="Try another channel, or again later.",
            prevention="Leave out people who have not received anything for weeks.",
            recoverable=Recoverable.UNKNOWN,
            waiting_helps=False,
        ),
        _R.RECIPIENT_STOPPED_MARKETING: ReasonInfo(
            title="Recipient stopped marketing messages",
            services=_BOTH,
            meaning="The person used WhatsApp's own control to stop marketing from this business; they are unsubscribed"
            " here too.",
            causes=("They tapped stop in WhatsApp.",),
            what_to_do="Nothing: respect it.",
            prevention="Send less, and only what people asked for.",
            recoverable=Recoverable.AFTER_CONSENT,
            waiting_helps=False,
            meta_codes=frozenset({131050}),
        ),
        _R.MARKETING_CAP_REACHED: ReasonInfo(
            title="Meta's marketing cap is reached",
            services=_BOTH,
            meaning="Meta limits the marketing messages that one person gets (and delivers none to US numbers).",
            causes=("The person got many marketing messages lately.", "A US number."),
            what_to_do="Send this person no marketing again within 24 h; weigh a utility template or another channel.",
            prevention="Lower the frequency; leave US numbers out of marketing.",
            recoverable=Recoverable.AFTER_WAIT,
            waiting_helps=True,
            meta_codes=frozenset({131049}),
        ),
        _R.RECIPIENT_IN_META_EXPERIMENT: ReasonInfo(
            title="Recipient is in an experiment of Meta's",
            services=_BOTH,
            meaning="Meta withholds marketing from a test group; the same answer comes on every try.",
            causes=("Meta put this number into the group.",),
            what_to_do="It goes through once the person writes; or use a utility template where it is one.",
            prevention="None.",
            recoverable=Recoverable.UNKNOWN,
            waiting_helps=False,
            meta_codes=frozenset({130472}),
        ),
        _R.RECIPIENT_NOT_ALLOWED: ReasonInfo(
            title="Recipient is not allowed",
            services=_BOTH,
            meaning="Meta doesn't let this sender write to this recipient.",
            causes=(
                "The recipient is the sender's own number.",
                "A test number may only write to its own list.",
                "This content needs a phone number, not a user id.",
                "The recipient's identity changed.",
            ),
            what_to_do="Read Meta's details; choose another recipient or add them to the test list.",
            prevention="Use a production number.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=False,
            meta_codes=frozenset({131021, 131030, 131062, 137000}),
        ),
        _R.MEDIA_FAILED: ReasonInfo(
            title="Media failed",
            services=_BOTH,
            meaning="Meta couldn't fetch or didn't accept the media; the evidence has the link's HTTP code, if Meta told.",
            causes=("The link is gone or needs a login.", "Wrong type or too large."),
            what_to_do="Open the link without a login, check type and size, send again.",
            prevention="Upload media to Meta and send its id.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=False,
            meta_codes=frozenset({131052, 131053}),
        ),
        _R.INVALID_CONTENT: ReasonInfo(
            title="Content is invalid",
            services=_BOTH,
            meaning="Meta says that a part of the message is missing, wrong or unsupported; its details say which.",
            causes=("A field is missing or wrong.", "A type that Meta doesn't support."),
            what_to_do="Correct what Meta's details name and send again.",
            prevention="Send a test message first.",
            recoverable=Recoverable.AFTER_FIX,
            waiting_helps=False,
            meta_codes=frozenset({100, 131008, 131009, 131051, 131055, 134100, 135000}),
            meta_rules=("any other from 132000 to 132999",),
        ),
        _R.TEMPORARY_FAILURE: ReasonInfo(
            title="Temporary failure",
            services=_BOTH,
            meaning="Every try within the message's life failed for a passing cause; the evidence has each try.",
            causes=("Meta or the network was down or overloaded.",),
            what_to_do="Look at Meta's status page, then resend.",
            prevention="Give messages an expiry that outlives short outages.",
            recoverable=Recoverable.AFTER_WAIT,
            waiting_helps=True,
            also_known_as=("transient network or API errors",),
            meta_codes=frozenset({1, 2, 131000, 131016, 131036, 131057, 133004}),
            meta_rules=("any other with HTTP 5xx",),
        ),
        _R.EXPIRED_BEFORE_SENDING: ReasonInfo(
            title="Expired before sending",
            services=_DISPATCHER,
            meaning="The message's latest moment passed while it waited; the evidence says what for.",
            causes=("An operator paused it.", "Our own downtime.", "The request came late."),
            what_to_do="Resend it, if it still makes sense.",
            prevention="Give messages an expiry that fits.",
            recoverable=Recoverable.AFTER_WAIT,
            waiting_helps=False,
        ),
        _R.SEND_OUTCOME_UNKNOWN: ReasonInfo(
            title="Outcome of the send is unknown",
            services=_DISPATCHER,
            meaning="The call to Meta may or may not have been taken, and no receipt came. It is never repeated by"
            " itself, so that nobody gets it twice.",
            causes=(
                "The connection broke after the request left.",
                "Sendwhy was stopped in the middle of the call.",
            ),
            what_to_do="Ask the person or look at their chat, then resend by hand.",
            prevention="None; a late receipt still corrects it.",
            recoverable=Recoverable.UNKNOWN,
            waiting_helps=False,
        ),
        _R.CANCELLED: ReasonInfo(
            title="Cancelled",
            services=_DISPATCHER,
            meaning="An operator or the upstream system withdrew the message before it was sent.",
            causes=("A cancel for the message or its campaign.",),
            what_to_do="Nothing.",
            prevention="None.",
            recoverable=Recoverable.NEVER,
            waiting_helps=False,
        ),
        _R.META_ERROR: ReasonInfo(
            title="Error from Meta",
            services=_BOTH,
            meaning="Meta answered with a code that this catalogue doesn't know yet; code, title and details are shown as"
            " they came.",
            causes=("A new code of Meta's.",),
            what_to_do="Look the code up on Meta's page of error codes.",
            prevention="None; it is counted, so that the catalogue can learn it.",
            recoverable=Recoverable.UNKNOWN,
            waiting_helps=False,
            also_known_as=("Meta API error code",),
            meta_rules=("any other",),
        ),
    }
)

_BY_META_CODE: Mapping[int, ReasonCode] = MappingProxyType(
    {number: code for code, info in CATALOGUE.items() for number in info.meta_codes}
)


# What a code means with a subcode of its own.
BY_SUBCODE: Mapping[tuple[int, int], ReasonCode] = MappingProxyType({(100, 33): ReasonCode.SENDER_NOT_AVAILABLE})


def reason_for_meta(code: int | None, *, subcode: int | None = None, http_status: int | None = None) -> ReasonCode:
    """The reason for an error that Meta told, by its number (Meta: decide on the code, never on the title).

    Subcode 33 of code 100 means that the sending number's id is unknown or not visible. `http_status` only tells
    an unlisted code of a 5xx answer, which Meta may take back, from any other.
    """
    if code is None:
        return ReasonCode.META_ERROR
    if subcode is not None and (known := BY_SUBCODE.get((code, subcode))):
        return known
    if known := _BY_META_CODE.get(code):
        return known
    if 200 <= code <= 299:
        return ReasonCode.SENDER_CREDENTIALS_REJECTED
    if 132000 <= code <= 132999:
        return ReasonCode.INVALID_CONTENT
    if http_status is not None and http_status >= 500:
        return ReasonCode.TEMPORARY_FAILURE
    return ReasonCode.META_ERROR


# By Meta's codes: what state the template is in, as the gates of our own name it.
_TEMPLATE_STATUSES: Mapping[int, str] = MappingProxyType({132001: "NOT_FOUND", 132015: "PAUSED", 132016: "DISABLED"})
# Also "HTTP status code 403".
_LINK_ANSWERED = re.compile(r"\b(?:http code|http status|status code)\s*[:=]?\s*(\d{3})\b", re.IGNORECASE)
_PARAMETERS_COUNTED = re.compile(r"\((\d{1,4})\) does not match the expected number of params \((\d{1,4})\)")


def evidence_for_meta(code: int | None, details: str | None) -> dict[str, str | int]:
    """What Meta's code and `error_data.details` prove beside themselves, by the names that our own gates give it:
    `status` of a template, `given` and `expected` parameters, `link_http_code` of media that Meta fetched. Empty where
    they say nothing of the kind: Meta may change its sentences."""
    told = details or ""
    if code is not None and (status := _TEMPLATE_STATUSES.get(code)):
        return {"status": status}
    if code == 132000 and (counted := _PARAMETERS_COUNTED.search(told)):
        return {"given": int(counted[1]), "expected": int(counted[2])}
    if code in (131052, 131053) and (answered := _LINK_ANSWERED.search(told)):
        return {"link_http_code": int(answered[1])}
    return {}
