"""What can become of a message, one entry for each case of a send that a client must survive.

`case` is the number in the list of 84 cases of the notes on Meta's API. A scenario is data: how the call
is answered, and which webhooks follow, each at a named delay of its recipient (`sent`, `delivered`, ...).
"""

import json
from dataclasses import dataclass, replace
from typing import Any

from meta_simulator.errors import Json, Refusal, error_webhook, unknown_object
from meta_simulator.wire import Fault

ALWAYS = None


@dataclass(frozen=True, slots=True)
class Status:
    """One status webhook. `errors` None leaves the key out."""

    at: str
    status: str
    errors: tuple[Json, ...] | None = None
    pricing: bool = False
    conversation: bool = False
    milliseconds: bool = False
    user_id_only: bool = False
    stray: bool = False


@dataclass(frozen=True, slots=True)
class ValueErrors:
    """A webhook with an error of the system and no message id."""

    at: str
    code: int


@dataclass(frozen=True, slots=True)
class Preference:
    """The recipient stops or resumes marketing messages."""

    at: str
    value: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The recipient writes a text, which opens the window."""

    at: str
    text: str


@dataclass(frozen=True, slots=True)
class TemplateDropped:
    """Quality RED and PAUSED webhooks for the template of the message; it is then paused for everyone."""

    at: str


@dataclass(frozen=True, slots=True)
class PlayCase:
    """A case that is no answer to a send is played at the number that wrote (cases.py)."""

    at: str
    name: str


Effect = Status | ValueErrors | Preference | Reply | TemplateDropped | PlayCase


def _failed(*codes: int, at: str = "sent") -> Status:
    return Status(at, "failed", tuple(error_webhook(code) for code in codes))


SENT = Status("sent", "sent", pricing=True)
DELIVERED = Status("delivered", "delivered", pricing=True)
READ = Status("read", "read")
STREAM: tuple[Effect, ...] = (SENT, DELIVERED, READ)


@dataclass(frozen=True, slots=True)
class Scenario:
    """`times`: for how many calls the refusal or failure lasts; afterwards the recipient is `ok`.
    `per_message` counts them for each message instead of each recipient.
    `marketing_only`: other messages are `ok`. `holds`: how many times delays_ms.held Meta keeps it back."""

    name: str
    case: int | None
    says: str
    refusal: Refusal | None = None
    times: int | None = ALWAYS
    per_message: bool = False
    marketing_only: bool = False
    http_status: int | None = None
    raw: bytes | Json | list[Any] | None = None
    fault: Fault | None = None
    taken: bool = True
    message_status: str | None = "accepted"
    holds: float = 0
    wa_id: str = "same"
    status_first: bool = False
    capped_hours: float | None = None
    in_turn: tuple[Refusal, ...] = ()
    effects: tuple[Effect, ...] = STREAM
    by_control: bool = False
    needs: tuple[str, ...] = ("phone",)

    @property
    def raw_bytes(self) -> bytes:
        if self.raw is None or isinstance(self.raw, bytes):
            return self.raw or b""
        return json.dumps(self.raw).encode()

    def lasting(self, times: int) -> "Scenario":
        return replace(self, times=times)

    def at_try(self, tried: int) -> "Scenario":
        """What the try after `tried` others gets."""
        return replace(self, refusal=self.in_turn[tried % len(self.in_turn)]) if self.in_turn else self


def _answer(case: int, refusal: Refusal, says: str, times: int | None = ALWAYS) -> Scenario:
    name = f"answer_{refusal.code}" + (f"_{refusal.subcode}" if refusal.subcode else "")
    return Scenario(name, case, says, refusal, times, taken=False)


def _failing(case: int, code: int, says: str) -> Scenario:
    return Scenario(f"failed_{code}", case, says, effects=(_failed(code),))


_HTML = (
    b"<!DOCTYPE html><html><head><title>Error</title></head><body><h1>Sorry, something went wrong.</h1></body></html>"
)
_STRING_ERROR: Json = {
    "error": {
        "message": "(#131009) Parameter value is not valid",
        "type": "OAuthException",
        "code": 131009,
        "error_data": "The parameter value is not valid.",
    }
}
_ERROR_WITH_200: Json = {
    "error": {
        "message": "(#131000) Something went wrong",
        "type": "OAuthException",
        "code": 131000,
        "error_data": {"messaging_product": "whatsapp", "details": "Something went wrong."},
        "fbtrace_id": "AzErrorWith200",
    }
}
_UNKNOWN_CODE: Json = {
    "code": 139999,
    "title": "Some future error",
    "message": "Some future error",
    "error_data": {"details": "A code no table knows."},
}
_BARE_ERROR: Json = {"code": 131026, "title": "Message undeliverable", "message": "Message undeliverable"}

_IN_TURN = (Refusal(131016), Refusal(2), Refusal(131000))

_ANSWERS = (
    Scenario("ok", 45, "accepted, then sent, delivered, read"),
    Scenario("no_message_status", 1, "the answer has no message_status, even for a template", message_status=None),
    Scenario("accepted", 2, "message_status accepted, as for every template"),
    Scenario(
        "held_for_quality",
        3,
        "message_status held_for_quality_assessment, then the usual statuses",
        message_status="held_for_quality_assessment",
    ),
    Scenario("message_status_paused", 4, "message_status paused, then the usual statuses", message_status="paused"),
    Scenario("wa_id_differs", 5, "wa_id and recipient_id differ from the number written to", wa_id="other"),
    Scenario(
        "user_id_answer",
        6,
        "no wa_id, but a user_id; the statuses name the user id only",
        wa_id="none",
        effects=(
            Status("sent", "sent", pricing=True, user_id_only=True),
            Status("delivered", "delivered", pricing=True, user_id_only=True),
            Status("read", "read", user_id_only=True),
        ),
    ),
    _answer(7, Refusal(190), "token not valid"),
    _answer(8, Refusal(10), "permission never given"),
    _answer(8, Refusal(200), "permission removed"),
    _answer(9, unknown_object("of this number"), "unknown number id"),
    _answer(10, Refusal(100), "parameter not supported"),
    _answer(11, Refusal(131008), "parameter missing"),
    _answer(12, Refusal(131009), "parameter value not valid"),
    _answer(13, Refusal(131021), "recipient is the sender"),
    _answer(14, Refusal(132000), "number of template parameters"),
    _answer(15, Refusal(132001), "template not found, 404"),
    _answer(16, Refusal(132012), "template parameter format"),
    _answer(16, Refusal(132018), "template parameter not sendable"),
    _answer(17, Refusal(132015), "template paused"),
    _answer(18, Refusal(132016), "template disabled"),
    _answer(19, Refusal(130429), "throughput, passes after 2 calls", times=2),
    _answer(20, Refusal(131056), "pair rate, passes after 2 calls", times=2),
    Scenario(
        "temporary_then_ok",
        21,
        "131016, 2, 131000 in turn for the first 2 tries of each message, then accepted",
        times=2,
        per_message=True,
        taken=False,
        in_turn=_IN_TURN,
    ),
    Scenario("temporary_always", None, "131016, 2, 131000 in turn, for ever", taken=False, in_turn=_IN_TURN),
    _answer(21, Refusal(131057), "maintenance, passes after 2 calls", times=2),
    _answer(21, Refusal(131016), "service unavailable, passes after 2 calls", times=2),
    _answer(21, Refusal(2), "overloaded, passes after 2 calls", times=2),
    _answer(21, Refusal(133004), "server down, passes after 2 calls", times=2),
    _answer(22, Refusal(368), "blocked for a policy violation"),
    _answer(22, Refusal(131031), "account locked"),
)

_TRANSPORT = (
    Scenario("timeout_after_acceptance", 23, "taken, never answered; statuses follow", fault=Fault.HANG),
    Scenario("timeout_before_acceptance", 24, "never answered and not taken", fault=Fault.HANG, taken=False),
    Scenario("reset_after_acceptance", 25, "taken, connection reset; statuses follow", fault=Fault.RESET),
    Scenario("reset_before_acceptance", 25, "whole body read, reset, not taken", fault=Fault.RESET, taken=False),
    Scenario("close_after_acceptance", 25, "taken, connection closed without an answer", fault=Fault.CLOSE),
    Scenario("half_header", 25, "taken, closed in the middle of a header", fault=Fault.HALF_HEADER),
    Scenario("half_body", 25, "taken, closed in the middle of the answer", fault=Fault.HALF_BODY),
    Scenario("junk_answer", 25, "taken, answered with bytes that are not HTTP", fault=Fault.JUNK),
    Scenario("drip", 25, "taken, answered with a byte each quarter of a second", fault=Fault.DRIP),
    Scenario("html_502", 26, "502 with HTML, not taken", http_status=502, raw=_HTML, taken=False),
    Scenario("html_503", 26, "503 with HTML, not taken", http_status=503, raw=_HTML, taken=False),
    Scenario("html_502_taken", 26, "502 with HTML, but taken; statuses follow", http_status=502, raw=_HTML),
    Scenario("error_with_200", 27, "200 with an error object", http_status=200, raw=_ERROR_WITH_200, taken=False),
    Scenario("junk_with_200", 27, "200 with a body that is not JSON; taken", http_status=200, raw=b"OK"),
    Scenario(
        "error_data_string",
        28,
        "error_data is a string, no fbtrace_id",
        http_status=400,
        raw=_STRING_ERROR,
        taken=False,
    ),
)

_FAILURES = (
    _failing(29, 131026, "not on WhatsApp"),
    _failing(30, 131047, "window closed"),
    _failing(31, 131049, "ecosystem engagement"),
    _failing(32, 131050, "stopped marketing"),
    _failing(33, 130472, "experiment"),
    _failing(34, 131042, "payment"),
    _failing(35, 131031, "account locked"),
    _failing(36, 131053, "media link answered 404"),
    Scenario(
        "failed_132015",
        37,
        "held, then dropped because the template was paused",
        message_status="held_for_quality_assessment",
        holds=1,
        effects=(_failed(132015),),
    ),
    _failing(38, 131048, "spam"),
    _failing(39, 131000, "unknown fault"),
    Scenario(
        "value_errors_130429", 40, "130429 in value.errors, and no status", effects=(ValueErrors("sent", 130429),)
    ),
    Scenario("failed_unknown_code", 41, "a code no table knows", effects=(Status("sent", "failed", (_UNKNOWN_CODE,)),)),
    Scenario(
        "failed_without_details",
        42,
        "131026 without details and href",
        effects=(Status("sent", "failed", (_BARE_ERROR,)),),
    ),
    Scenario("failed_without_errors", 43, "failed with no errors", effects=(Status("sent", "failed"),)),
    Scenario("failed_after_sent", 44, "sent, then failed 131026", effects=(SENT, _failed(131026, at="delivered"))),
)

_STREAMS = (
    Scenario("read_without_delivered", 46, "sent, then read", effects=(SENT, READ)),
    Scenario(
        "reversed",
        47,
        "read, delivered, sent",
        effects=(
            Status("sent", "read"),
            Status("delivered", "delivered", pricing=True),
            Status("read", "sent", pricing=True),
        ),
    ),
    Scenario("doubled", 48, "each status twice", effects=(SENT, SENT, DELIVERED, DELIVERED, READ, READ)),
    Scenario(
        "delivered_and_failed",
        49,
        "delivered and failed together (several devices)",
        effects=(SENT, DELIVERED, _failed(131026, at="delivered")),
    ),
    Scenario(
        "failed_then_delivered",
        50,
        "failed, then delivered (set delays_ms.delivered to hours)",
        effects=(_failed(131026), DELIVERED),
    ),
    Scenario("status_before_answer", 51, "the sent webhook is posted before the answer", status_first=True),
    Scenario(
        "unknown_wamid",
        52,
        "the usual, and a status for a wamid nobody knows",
        effects=(*STREAM, Status("delivered", "delivered", stray=True)),
    ),
    Scenario("sent_then_silence", 53, "sent, then nothing (blocked)", effects=(SENT,)),
    Scenario("accepted_then_silence", 53, "accepted, then nothing", effects=()),
    Scenario(
        "unknown_status",
        54,
        "sent, then a status nobody knows, then read",
        effects=(SENT, Status("delivered", "warmed_up"), READ),
    ),
    Scenario(
        "milliseconds",
        55,
        "timestamps in milliseconds",
        effects=(
            Status("sent", "sent", pricing=True, milliseconds=True),
            Status("delivered", "delivered", pricing=True, milliseconds=True),
            Status("read", "read", milliseconds=True),
        ),
    ),
    Scenario(
        "pricing_on_read",
        56,
        "pricing on read instead of delivered",
        effects=(SENT, Status("delivered", "delivered"), Status("read", "read", pricing=True)),
    ),
    Scenario(
        "v23_conversation",
        57,
        "the shape up to v23, with conversation",
        effects=(
            Status("sent", "sent", pricing=True, conversation=True),
            Status("delivered", "delivered", pricing=True, conversation=True),
            READ,
        ),
    ),
    Scenario(
        "user_id_only",
        58,
        "no recipient_id, only recipient_user_id",
        effects=(
            Status("sent", "sent", pricing=True, user_id_only=True),
            Status("delivered", "delivered", pricing=True, user_id_only=True),
            Status("read", "read", user_id_only=True),
        ),
    ),
)

_PEOPLE = (
    Scenario(
        "held_then_released",
        59,
        "held for delays_ms.held (2,000), then released",
        message_status="held_for_quality_assessment",
        holds=1,
    ),
    Scenario(
        "held_then_dropped",
        60,
        "held, then the template goes RED and PAUSED (for everyone) and the message fails 132015",
        message_status="held_for_quality_assessment",
        holds=1,
        effects=(TemplateDropped("sent"), _failed(132015)),
    ),
    Scenario(
        "held_until_budget_ends",
        61,
        "held without a signal for twice delays_ms.held, then released",
        message_status="held_for_quality_assessment",
        holds=2,
    ),
    Scenario(
        "replies",
        62,
        "after reading, the person answers, which opens the window",
        effects=(*STREAM, Reply("read", "Is the blue one in stock?")),
    ),
    Scenario(
        "wrong_131047_then_ok",
        65,
        "131047 once although the window is open; the second try works",
        times=1,
        effects=(_failed(131047),),
    ),
    Scenario(
        "stops_after_delivery",
        66,
        "the person stops marketing after delivery: the next marketing fails 131050, utility goes",
        effects=(*STREAM, Preference("delivered", "stop")),
        times=1,
    ),
    Scenario(
        "stops_then_resumes",
        67,
        "stop after delivery, resume after reading",
        effects=(*STREAM, Preference("delivered", "stop"), Preference("read", "resume")),
        times=1,
    ),
    Scenario(
        "stops_after_acceptance",
        68,
        "the stop comes after the answer and before the message could go: failed 131050",
        effects=(Preference("sent", "stop"), _failed(131050, at="delivered")),
        times=1,
    ),
    Scenario(
        "marketing_cap",
        71,
        "131049 for every marketing message for 24 h from the first, others go",
        marketing_only=True,
        capped_hours=24,
        effects=(_failed(131049),),
    ),
)


def _case(name: str, case: int, says: str, *needs: str) -> Scenario:
    return Scenario(name, case, says, by_control=True, needs=needs, effects=(*STREAM, PlayCase("read", name)))


# No answer to a send. A recipient may have them too: the case is then played once a message was read.
_CASES = (
    _case("window_opens", 62, "the person writes now", "phone"),
    _case("window_renewed_at_23_h_59", 63, "the person wrote 23 h 59 min ago, and writes again", "phone"),
    _case("window_closed_at_24_h", 64, "the person wrote 24 h ago", "phone"),
    _case("marketing_stopped", 66, "the person stops marketing by WhatsApp's own control", "phone"),
    _case("marketing_resumed", 67, "the person resumes marketing", "phone"),
    _case("messaging_limit_reached", 69, "the portfolio's limit falls to what its numbers reached together"),
    _case("messaging_limit_raised", 70, "the portfolio's limit rises by a step, told by business_capability_update"),
    _case("account_restricted", 72, "violation, and restriction for `seconds`: sends get 368 meanwhile"),
    _case("account_disabled", 72, "disabled for `seconds`, then reinstated: sends get 131031 meanwhile"),
    _case("template_paused", 73, "quality RED, then PAUSED: sends get 132015"),
    _case("template_unpaused", 73, "quality GREEN, then APPROVED again"),
    _case("template_disabled", 73, "DISABLED: sends get 132016"),
    _case("template_category_moved", 74, "notice of the move to MARKETING, and the move after `seconds`"),
    _case("throughput_upgrade", 75, "131057 for `seconds`, then 1,000 a second, told by phone_number_quality_update"),
    _case("pin_reset", 76, "somebody asks to reset the two-step PIN"),
    _case("verification", 77, "Meta's GET with the right `verify_token` and with a wrong one", "verify_token"),
    _case("signatures", 78, "a status signed right, wrong, not at all, and with `old_secret`; posted once each"),
    _case("escaped_body", 79, "unicode and slashes escaped: a re-serialised body breaks its signature", "phone"),
    _case("batch_of_1000", 80, "1,000 texts in one POST of nearly 3 MB"),
    _case("webhook_unanswered", 81, "a text whose first `times` answers get lost, so that it is repeated", "phone"),
    _case("webhook_never_answered", 81, "a text that is repeated for 7 days, whatever is answered", "phone"),
    _case("concurrent_webhooks", 82, "statuses at 3 times the number's rate for `seconds` (real); tells latencies"),
    _case("several_in_one_post", 83, "several entries, changes, fields and elements in one POST", "phone"),
    _case("unknown_field_and_type", 84, "a field, a message type and a key that nobody knows", "phone"),
)

SCENARIOS: dict[str, Scenario] = {
    each.name: each for each in (*_ANSWERS, *_TRANSPORT, *_FAILURES, *_STREAMS, *_PEOPLE, *_CASES)
}
OK = SCENARIOS["ok"]

# Several scenarios of one case: the first has the number.
BY_SUFFIX: dict[str, Scenario] = {
    f"9{each.case:03d}": each for each in reversed(SCENARIOS.values()) if each.case is not None
}


def listing() -> list[Json]:
    """What GET /_sim/scenarios tells: name, case, the four last digits that choose it (or null), how it is played."""
    suffixes = {scenario.name: suffix for suffix, scenario in BY_SUFFIX.items()}
    rows = [_row(each, suffixes.get(each.name)) for each in SCENARIOS.values()]
    rows.append(_row(Scenario("answer", None, "any http_status and body; times: n"), None))
    rows.append(_row(Scenario("failed", None, "any errors in a failed status; times: n"), None))
    return rows


def _row(scenario: Scenario, suffix: str | None) -> Json:
    return {
        "name": scenario.name,
        "case": scenario.case,
        "number_suffix": suffix,
        "play": f"POST /_sim/cases/{scenario.name}" if scenario.by_control else "PUT /_sim/recipients/{phone}",
        "needs": list(scenario.needs),
        "says": scenario.says,
    }
