"""Signatures and settings."""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_webhooks import APP, OTHER_APP, OTHER_SECRET, SECRET, signature
from pydantic import ValidationError
from sendwhy.settings import parse_secrets
from webhook_ingest.door import meta_signer, shopify_is_signed
from webhook_ingest.settings import Settings

SECRETS = parse_secrets(f"{APP}:an-older-secret,{APP}:{SECRET}, {OTHER_APP}:{OTHER_SECRET}", "app_id")
BODY = '{"text":"Gr\\u00fc\\u00dfe \\/ üß"}'.encode()


@pytest.mark.parametrize(
    ("secret", "app"), [(SECRET, APP), ("an-older-secret", APP), (OTHER_SECRET, OTHER_APP), ("nobodys-secret", None)]
)
def test_a_signature_names_its_app(secret: str, app: str | None) -> None:
    assert meta_signer(SECRETS, BODY, signature(BODY, secret).encode()) == app


@pytest.mark.parametrize(
    "given_header",
    [
        "",
        "sha256=",
        signature(BODY)[:-1],
        signature(BODY) + "0",
        signature(BODY).upper(),
        signature(BODY).removeprefix("sha256="),
        "sha1=" + hmac.new(SECRET.encode(), BODY, hashlib.sha1).hexdigest(),
        " " + signature(BODY),
        "sha256=ÿ€",
    ],
)
def test_signatures_of_the_wrong_form(given_header: str) -> None:
    assert meta_signer(SECRETS, BODY, given_header.encode()) is None


@given(st.binary(min_size=1, max_size=200), st.data())
def test_one_changed_bit_of_the_body_is_noticed(raw: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(raw) * 8 - 1))
    changed = bytearray(raw)
    changed[position // 8] ^= 1 << position % 8
    assert meta_signer(SECRETS, raw, signature(raw).encode()) == APP
    assert meta_signer(SECRETS, bytes(changed), signature(raw).encode()) is None


@given(st.integers(0, 71 * 8 - 1))
def test_one_changed_bit_of_the_signature_is_noticed(position: int) -> None:
    changed = bytearray(signature(BODY).encode())
    changed[position // 8] ^= 1 << position % 8
    assert meta_signer(SECRETS, BODY, bytes(changed)) is None


def test_shopifys_signature() -> None:
    right = base64.b64encode(hmac.new(b"old-secret", BODY, hashlib.sha256).digest())
    assert shopify_is_signed([b"new-secret", b"old-secret"], BODY, right)
    assert not shopify_is_signed([b"new-secret"], BODY, right)
    assert not shopify_is_signed([b"old-secret"], BODY + b" ", right)
    assert not shopify_is_signed([b"old-secret"], BODY, b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"meta_app_secrets": ""},
        {"meta_app_secrets": " , "},
        {"meta_app_secrets": "12345"},
        {"meta_app_secrets": "12345:short"},
        {"meta_app_secrets": ":a-long-secret"},
        {"meta_verify_token": ""},
        {"shopify_webhook_secrets": "acme"},
        {"shopify_webhook_secrets": "a b:a-long-secret"},
        {"blocked_after_silent_messages": 1},
    ],
)
def test_settings_that_would_believe_anybody_are_refused(changes: dict[str, str]) -> None:
    right = {
        "kafka_bootstrap_servers": "127.0.0.1:1",
        "database_url": "postgresql://x",
        "api_tokens": "",
        "meta_app_secrets": f"{APP}:{SECRET}",
        "meta_verify_token": "a-verify-token",
        "privacy_key": "a key of tests only",
    }
    Settings.model_validate(right)
    with pytest.raises(ValidationError):
        Settings.model_validate(right | changes)
