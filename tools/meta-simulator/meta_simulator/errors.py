"""Meta's error codes as its answers and webhooks word them.

HTTP statuses are those of Meta's page of December 2025; where no page gives one, 400.
"""

import secrets
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

HREF = "/documentation/business-messaging/whatsapp/support/error-codes"


@dataclass(frozen=True, slots=True)
class ErrorCode:
    title: str
    details: str
    http_status: int = 400
    type: str = "OAuthException"


_WAIT = "Please try again in a few minutes."
_TOO_MANY = "there were too many messages sent from this phone number in a short period of time"
_ECOSYSTEM = "This message was not delivered to maintain healthy ecosystem engagement."
_STOPPED = (
    "Unable to deliver the message. This recipient has chosen to stop receiving marketing messages "
    "on WhatsApp from your business"
)

CODES: dict[int, ErrorCode] = {
    2: ErrorCode("Service temporarily unavailable", "The service is down or overloaded.", 503),
    10: ErrorCode("Application does not have permission for this action", "Permission not granted or removed.", 403),
    100: ErrorCode("Invalid parameter", "The request holds a parameter that is not supported or misspelt."),
    190: ErrorCode("Invalid OAuth access token - Cannot parse access token", "The token is not valid.", 401),
    200: ErrorCode("You do not have the necessary permissions", "Permission not granted or removed.", 403),
    368: ErrorCode(
        "Temporarily blocked for policies violations",
        "The account is restricted or disabled for violating a platform policy.",
        403,
    ),
    130429: ErrorCode("Rate limit hit", f"Message failed to send because {_TOO_MANY}"),
    130472: ErrorCode(
        "User's number is part of an experiment",
        "Failed to send message because this user's phone number is part of an experiment",
    ),
    131000: ErrorCode("Something went wrong", "Message failed to send due to an unknown error.", 500),
    131008: ErrorCode("Required parameter is missing", "The request is missing a required parameter."),
    131009: ErrorCode("Parameter value is not valid", "One or more parameter values are invalid."),
    131016: ErrorCode("Service unavailable", "A service is temporarily unavailable.", 500),
    131021: ErrorCode("Recipient cannot be sender", "The recipient's and the sender's phone numbers are the same."),
    131026: ErrorCode("Message undeliverable", "Message Undeliverable."),
    131031: ErrorCode("Business Account locked", "Business account has been locked.", 403),
    131042: ErrorCode(
        "Business eligibility payment issue",
        "Message failed to send because there was an error related to your payment method.",
    ),
    131047: ErrorCode(
        "Re-engagement message",
        "Message failed to send because more than 24 hours have passed since the customer last replied to this number.",
    ),
    131048: ErrorCode(
        "Spam rate limit hit",
        "Message failed to send because there are restrictions on how many messages can be sent from "
        "this phone number.",
    ),
    131049: ErrorCode(
        _ECOSYSTEM,
        "In order to maintain a healthy ecosystem engagement, the message failed to be delivered.",
    ),
    131050: ErrorCode(_STOPPED, _STOPPED),
    131053: ErrorCode(
        "Media upload error",
        "Downloading media from weblink failed with http code 404, status message Not Found",
    ),
    131056: ErrorCode(
        "(Business Account, Consumer Account) pair rate limit hit",
        "Message failed to send because there were too many messages sent from this phone number to the "
        "same phone number in a short period of time.",
    ),
    131057: ErrorCode("Account in maintenance mode", "The account is in maintenance mode.", 500),
    131062: ErrorCode(
        "Business-scoped user ID recipients are not supported",
        "Business-scoped User ID (BSUID) recipients are not supported for this message.",
    ),
    132000: ErrorCode(
        "Number of parameters does not match the expected number of params",
        "body: number of localizable_params (0) does not match the expected number of params (1)",
    ),
    132001: ErrorCode("Template name does not exist in the translation", "The template does not exist.", 404),
    132005: ErrorCode("Translated text too long", "The hydrated text of the template is too long."),
    132012: ErrorCode(
        "Parameter format does not match format in the created template",
        "body: Format mismatch, expected TEXT, received UNKNOWN",
    ),
    132015: ErrorCode(
        "Template is paused",
        "Template is paused due to low quality so it cannot be sent in a template message.",
    ),
    132016: ErrorCode(
        "Template is disabled",
        "Template was paused too many times due to low quality and is now permanently disabled.",
    ),
    132018: ErrorCode(
        "There was an issue with the parameters in your template",
        "Param text cannot have new-line/tab characters or more than 4 consecutive spaces",
    ),
    133004: ErrorCode("Server Temporarily Unavailable", f"The server is unavailable. {_WAIT}", 503),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error Meta answers at once; a `bare` one has no error_data."""

    code: int
    details: str | None = None
    subcode: int | None = None
    message: str | None = None
    type: str | None = None
    bare: bool = False

    @property
    def http_status(self) -> int:
        return CODES[self.code].http_status


def error_answer(refusal: Refusal) -> Json:
    """The body of an HTTP answer: `{"error": {message, type, code, error_data, fbtrace_id}}`."""
    known = CODES[refusal.code]
    error: Json = {
        "message": refusal.message or f"(#{refusal.code}) {known.title}",
        "type": refusal.type or known.type,
        "code": refusal.code,
    }
    if refusal.subcode is not None:
        error["error_subcode"] = refusal.subcode
    if refusal.code not in (190, 10, 200) and refusal.subcode is None and not refusal.bare:
        error["error_data"] = {
            "messaging_product": "whatsapp",
            "details": refusal.details or known.details,
        }
    error["fbtrace_id"] = "A" + secrets.token_urlsafe(16)
    return {"error": error}


def error_webhook(code: int) -> Json:
    """One element of `errors` in a webhook."""
    known = CODES[code]
    return {
        "code": code,
        "title": known.title,
        "message": known.title,
        "error_data": {"details": known.details},
        "href": HREF,
    }


def unknown_object(object_id: str) -> Refusal:
    return Refusal(
        100,
        subcode=33,
        type="GraphMethodException",
        message=f"Unsupported request. Object with ID '{object_id}' does not exist, cannot be loaded due "
        "to missing permissions, or does not support this operation.",
    )
