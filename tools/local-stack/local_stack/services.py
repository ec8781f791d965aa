"""Which services there are, and what each is told by its environment (contract.md, "Settings")."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local_stack.errors import WrongUseError
from local_stack.state import StateDir

PREFIX = "SENDWHY_"
SERVICES = ("consent", "billing", "dispatcher", "webhook-ingest", "message-log")
DEMO_WORKSPACE = "demo"
META_APP_ID = "400000000000001"
# Where each process listens and stores is the stack's own affair; everything else the caller may set.
WIRING = ("KAFKA_", "DATABASE_URL", "HTTP_", "REPLICA")


def module_of(service: str) -> str:
    return service.replace("-", "_")


@dataclass(frozen=True)
class Credentials:
    """What the services are told to believe, and what stack.json says of it."""

    api_tokens: str
    admin_token: str
    meta_app_secrets: str
    meta_app_secret: str
    meta_verify_token: str
    shopify_webhook_secrets: str
    shopify_secret: str
    token_encryption_key: str
    privacy_key: str
    acting_key: str


def settings_of_caller(environment: Mapping[str, str]) -> dict[str, str]:
    """The caller's SENDWHY_ settings without the prefix; SENDWHY_X_FILE is read and given as X."""
    settings: dict[str, str] = {}
    for variable, value in environment.items():
        name = variable.removeprefix(PREFIX)
        if name == variable or name.startswith(WIRING):
            continue
        if name.endswith("_FILE"):
            name = name.removesuffix("_FILE")
            if PREFIX + name in environment:
                continue
            value = _read(variable, value)
        settings[name] = value
    return settings


def make_credentials(state: StateDir, caller: Mapping[str, str]) -> Credentials:
    """The caller's credentials and, beside them, the ones of this state directory."""
    admin_token = state.secret("admin_token")
    meta_app_secret = state.secret("meta_app_secret", lambda: os.urandom(16).hex())
    shopify = dict(_pairs(caller.get("SHOPIFY_WEBHOOK_SECRETS", "")))
    shopify.setdefault(DEMO_WORKSPACE, state.secret("shopify_secret"))
    return Credentials(
        api_tokens=_joined(caller.get("API_TOKENS", ""), f"{admin_token}:admin:*"),
        admin_token=admin_token,
        meta_app_secrets=_joined(caller.get("META_APP_SECRETS", ""), f"{META_APP_ID}:{meta_app_secret}"),
        meta_app_secret=meta_app_secret,
        meta_verify_token=caller.get("META_VERIFY_TOKEN") or state.secret("meta_verify_token"),
        shopify_webhook_secrets=",".join(f"{workspace}:{secret}" for workspace, secret in shopify.items()),
        shopify_secret=shopify[DEMO_WORKSPACE],
        token_encryption_key=state.secret("token_encryption_key", _fernet_key),
        privacy_key=state.secret("privacy_key"),
        acting_key=state.secret("acting_key", _fernet_key),
    )


def environment(
    credentials: Credentials, meta_url: str, service_urls: Mapping[str, str], caller: Mapping[str, str]
) -> dict[str, str]:
    """What all services are told alike. The caller's settings win where both speak of the same."""
    urls = {f"{module_of(name).upper()}_URL": url for name, url in service_urls.items()}
    settings = {
        **urls,
        "META_GRAPH_URL": meta_url,
        "META_VERIFY_TOKEN": credentials.meta_verify_token,
        "TOKEN_ENCRYPTION_KEY": credentials.token_encryption_key,
        "PRIVACY_KEY": credentials.privacy_key,
        "ACTING_KEY": credentials.acting_key,
        # Nobody distributes requests here, so nobody has to learn of an end before it comes.
        "DRAIN_SECONDS": "0",
        **caller,
        "API_TOKENS": credentials.api_tokens,
        "META_APP_SECRETS": credentials.meta_app_secrets,
        "SHOPIFY_WEBHOOK_SECRETS": credentials.shopify_webhook_secrets,
    }
    # Without the rest of the caller's environment a Python may not find its libraries or its home.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return inherited | {PREFIX + name: value for name, value in settings.items()}


def _pairs(text: str) -> list[tuple[str, str]]:
    entries = (entry.strip().partition(":") for entry in text.split(",") if entry.strip())
    return [(name, value) for name, _, value in entries]


def _joined(*lists: str) -> str:
    return ",".join(part for part in lists if part)


def _read(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise WrongUseError(f"{variable}: {error.strerror}: {path}") from error


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()
