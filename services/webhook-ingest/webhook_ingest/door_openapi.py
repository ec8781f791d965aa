"""What OpenAPI tells of the door, which answers before all routes (ADR 22)."""

from typing import Any

from sendwhy.problems import PROBLEM
from sendwhy.topics import MAX_WEBHOOK_BYTES

from webhook_ingest.door import META_PATH, SHOPIFY_PATH

_UNSIGNED: dict[str, Any] = {"description": "No right signature over exactly these bytes, or two of them"}
_LATER: dict[str, Any] = {"Retry-After": {"description": "In seconds", "schema": {"type": "integer"}}}
_TAKEN: dict[str, Any] = {"description": "Kafka has the delivery"}


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": PROBLEM}


def _given(name: str, place: str, what: str, *, required: bool = True) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "description": what, "schema": {"type": "string"}}


def _post(summary: str, description: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "description": f"{description} Only 503 asks for a repeat.",
        "parameters": list(parameters),
        "requestBody": {
            "required": True,
            "description": f"At most {MAX_WEBHOOK_BYTES} bytes, as they were signed.",
            "content": {"application/json": {"schema": {"type": "object", "additionalProperties": True}}},
        },
        "responses": {
            "200": _TAKEN,
            "400": _problem("A header that may come once came twice, or a Transfer-Encoding but chunked"),
            "401": _UNSIGNED,
            "413": _problem("Longer than is taken"),
            "415": _problem("It came with a Content-Encoding"),
            "503": _problem("Kafka didn't take it in time, or too many are inside: send it again")
            | {"headers": _LATER},
        },
    }


DOOR: dict[str, Any] = {
    META_PATH: {
        "get": {
            "summary": "Meta's verification of the address",
            "description": "Answered with the challenge, where the token is the one that Meta's form was given.",
            "parameters": [
                _given("hub.mode", "query", "`subscribe`"),
                _given("hub.verify_token", "query", "as set by SENDWHY_META_VERIFY_TOKEN"),
                _given("hub.challenge", "query", "what is answered"),
            ],
            "responses": {
                "200": {"description": "The challenge", "content": {"text/plain": {"schema": {"type": "string"}}}},
                "403": {"description": "Another token or mode, or a challenge that is too long"},
            },
        },
        "post": _post(
            "A webhook of Meta's",
            "Answered once Kafka has it.",
            _given("X-Hub-Signature-256", "header", "`sha256=` and the HMAC with a secret of the app"),
        ),
    },
    f"{SHOPIFY_PATH}{{workspace_id}}": {
        "post": _post(
            "A webhook of a workspace's shop",
            "Answered once Kafka has it. A workspace that nobody knows answers as a wrong signature does.",
            _given("workspace_id", "path", "whose shop it is"),
            _given("X-Shopify-Hmac-Sha256", "header", "the HMAC in base64 with a secret of the workspace's"),
            _given("X-Shopify-Topic", "header", "as `customers/update`", required=False),
            _given("X-Shopify-Event-Id", "header", "by which repeats are dropped", required=False),
        ),
    },
}
