"""The dispatcher's settings (contract.md, "Settings")."""

from typing import Literal

from cryptography.fernet import Fernet
from pydantic import Field, SecretStr, field_validator
from sendwhy.settings import PrivacySettings, Secrets, parse_secrets


class Settings(PrivacySettings):
    meta_graph_url: str = Field(default="https://graph.facebook.com", pattern=r"^https?://[^\s/]+[^\s]*$")
    meta_api_version: str = Field(default="v25.0", pattern=r"^v\d+\.\d+$")
    token_encryption_key: SecretStr
    meta_app_secrets: SecretStr = SecretStr("")
    unknown_outcome_seconds: int = Field(default=600, ge=1)
    receipt_ttl_seconds: int = Field(default=30 * 24 * 3600, ge=1)
    meta_connect_timeout_seconds: float = Field(default=5, gt=0)
    meta_read_timeout_seconds: float = Field(default=30, gt=0)
    # Each is a connection: below the 1,024 open files that a process may have by default.
    calls_in_flight_max: int = Field(default=800, ge=1, le=5000)
    quality_policy: Literal["block", "warn", "off"] = "block"

    @field_validator("token_encryption_key")
    @classmethod
    def _keys_can_be_used(cls, keys: SecretStr) -> SecretStr:
        try:
            for key in keys.get_secret_value().split(","):
                Fernet(key.strip())
        except ValueError:
            raise ValueError("must hold one or more Fernet keys, comma-separated, the newest first") from None
        return keys

    @field_validator("meta_app_secrets")
    @classmethod
    def _app_secrets_can_be_read(cls, secrets: SecretStr) -> SecretStr:
        parse_secrets(secrets.get_secret_value(), "app_id")
        return secrets

    @property
    def app_secrets(self) -> Secrets:
        return parse_secrets(self.meta_app_secrets.get_secret_value(), "app_id")
