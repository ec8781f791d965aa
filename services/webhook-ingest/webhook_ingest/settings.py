"""This service's settings, read once at start."""

import re

from pydantic import Field, SecretStr, field_validator
from sendwhy.events import WORKSPACE_ID
from sendwhy.settings import SECRET_LENGTH_MIN, PrivacySettings, Secrets, parse_secrets


class Settings(PrivacySettings):
    """`blocked_after_silent_messages`: so many in a row at sent, beyond their deadlines, look like a block.
    `silent_after_seconds`: messages that Meta took, and of which nothing is heard for so long, make a number silent."""

    meta_app_secrets: SecretStr
    meta_verify_token: SecretStr = Field(min_length=SECRET_LENGTH_MIN)
    shopify_webhook_secrets: SecretStr = SecretStr("")
    blocked_after_silent_messages: int = Field(default=3, ge=3, le=20)
    silent_after_seconds: int = Field(default=600, ge=60, le=86_400)

    @field_validator("meta_app_secrets")
    @classmethod
    def _app_secrets_can_be_read(cls, secrets: SecretStr) -> SecretStr:
        if not parse_secrets(secrets.get_secret_value(), "app_id"):
            raise ValueError("is empty: without a secret no webhook can be believed")
        return secrets

    @field_validator("shopify_webhook_secrets")
    @classmethod
    def _shopify_secrets_can_be_read(cls, secrets: SecretStr) -> SecretStr:
        for workspace in parse_secrets(secrets.get_secret_value(), "workspace"):
            if not re.fullmatch(WORKSPACE_ID, workspace):
                raise ValueError("names a workspace that can't be: 1 to 64 of A-Z a-z 0-9 _ -")
        return secrets

    @property
    def app_secrets(self) -> Secrets:
        return parse_secrets(self.meta_app_secrets.get_secret_value(), "app_id")

    @property
    def shopify_secrets(self) -> Secrets:
        return parse_secrets(self.shopify_webhook_secrets.get_secret_value(), "workspace")
