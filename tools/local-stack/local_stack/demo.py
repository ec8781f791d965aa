"""The `demo` workspace that `sendwhy up` has ready (contract.md, "The local stack"). Repeats change nothing."""

from __future__ import annotations

from typing import Any

import httpx

from local_stack.errors import StackError
from local_stack.services import DEMO_WORKSPACE, META_APP_ID

SENDER_ID = "100000000000001"
WABA_ID = "200000000000001"
PORTFOLIO_ID = "300000000000001"
CREDITS = 10_000


def _template(name: str, category: str, language: str, text: str, example: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {"type": "BODY", "text": text}
    if example is not None:
        body["example"] = {"body_text": [[example]]}
    return {
        "name": name,
        "language": language,
        "status": "APPROVED",
        "category": category,
        "parameter_format": "POSITIONAL",
        "components": [body],
    }


TEMPLATES = [
    _template("hello_world", "UTILITY", "en_US", "Welcome and congratulations! This is a test message.", None),
    _template("order_update", "UTILITY", "en_US", "Your order {{1}} is on its way to you.", "4711"),
    _template("autumn_sale", "MARKETING", "en_US", "Hello {{1}}, our autumn sale has begun.", "Inés"),
    _template("autumn_sale", "MARKETING", "es_MX", "Hola {{1}}, empezó nuestra venta de otoño.", "Inés"),
]


def simulator_seed(*, access_token: str, app_secret: str, webhook_url: str) -> dict[str, Any]:
    """The account and the number, for `python -m meta_simulator --seed`."""
    account = {"portfolio_id": PORTFOLIO_ID, "messaging_limit": 1000, "templates": TEMPLATES}
    number = {
        "waba_id": WABA_ID,
        "display_phone_number": "+1 555 010 0001",
        "access_token": access_token,
        "app_id": META_APP_ID,
        "app_secret": app_secret,
        "webhook_url": webhook_url,
        "quality_rating": "GREEN",
        "messages_per_second": 80,
    }
    return {"accounts": {WABA_ID: account}, "numbers": {SENDER_ID: number}}


async def make_workspace(
    client: httpx.AsyncClient, dispatcher_url: str, billing_url: str, *, access_token: str
) -> None:
    """The default sender and the credits; `client` carries the admin token. Raises StackError if refused."""
    sender = {
        "access_token": access_token,
        "waba_id": WABA_ID,
        "portfolio_id": PORTFOLIO_ID,
        "app_id": META_APP_ID,
        "default": True,
    }
    path = f"v1/workspaces/{DEMO_WORKSPACE}"
    await _call(client, "PUT", f"{dispatcher_url}/{path}/senders/{SENDER_ID}", sender, key="demo-sender")
    top_up = {"credits": CREDITS, "reference": "demo"}
    await _call(client, "POST", f"{billing_url}/{path}/top-ups", top_up, key="demo-credits")


async def _call(client: httpx.AsyncClient, method: str, url: str, body: dict[str, Any], key: str) -> None:
    try:
        answer = await client.request(method, url, json=body, headers={"Idempotency-Key": key})
    except httpx.TransportError as error:
        raise StackError(f"{method} {url} failed: {error!r}") from error
    if answer.is_error:
        raise StackError(f"{method} {url} was answered {answer.status_code}: {answer.text[:500]}")
