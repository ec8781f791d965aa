"""Settings from the environment: SENDWHY_NAME, or SENDWHY_NAME_FILE for a file that holds the value (contract.md)."""

import os
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Self, TypeVar

from pydantic import Field, FilePath, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from sendwhy.access import Token, parse_tokens
from sendwhy.acting import Acting

PREFIX = "SENDWHY_"


def named(field: str) -> str:
    """The environment variable of a field."""
    return f"{PREFIX}{field.upper()}"


class _FileSource(EnvSettingsSource):
    """Reads SENDWHY_X_FILE where SENDWHY_X is not set, so that secrets need not stand in the environment."""

    def get_field_value(self, _field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{PREFIX}{field_name.upper()}_FILE")
        if path is None:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except OSError as error:
            raise SystemExit2(f"{PREFIX}{field_name.upper()}_FILE: {error.strerror}: {path}") from error
        except UnicodeDecodeError as error:
            raise SystemExit2(f"{PREFIX}{field_name.upper()}_FILE: is no UTF-8 text: {path}") from error


class SystemExit2(SystemExit):
    """A wrong setting: one line on stderr, exit code 2."""

    def __init__(self, line: str) -> None:
        print(f"sendwhy: {line}", file=sys.stderr)  # noqa: T201 - before any logger exists
        super().__init__(2)


_KAFKA_CREDENTIALS = (
    *("kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password"),
    *("kafka_ssl_cafile", "kafka_ssl_certfile", "kafka_ssl_keyfile", "kafka_ssl_key_password"),
)


class KafkaSettings(BaseSettings):
    """How to reach Kafka."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    kafka_bootstrap_servers: str = Field(min_length=3)
    kafka_security_protocol: str = Field(default="PLAINTEXT", pattern="^(PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)$")
    kafka_sasl_mechanism: str | None = Field(default=None, pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$")
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_ssl_cafile: FilePath | None = None
    kafka_ssl_check_hostname: bool = True
    kafka_ssl_certfile: FilePath | None = None
    kafka_ssl_keyfile: FilePath | None = None
    kafka_ssl_key_password: SecretStr | None = None
    replica: str = "0"

    @model_validator(mode="after")
    def _fit_the_protocol(self) -> Self:
        """A password or a certificate that the protocol doesn't use is a mistake: somebody meant a safer one."""
        protocol = self.kafka_security_protocol
        set_ones = [name for name in _KAFKA_CREDENTIALS if getattr(self, name)]
        for kind, is_used in (("sasl", protocol.startswith("SASL")), ("ssl", protocol.endswith("SSL"))):
            unused = [name for name in set_ones if name.startswith(f"kafka_{kind}_") and not is_used]
            if unused:
                raise ValueError(f"{named(unused[0])} is set, and {named('kafka_security_protocol')} is {protocol}")
        if protocol.startswith("SASL"):
            for name in ("kafka_sasl_username", "kafka_sasl_password"):
                if name not in set_ones:
                    raise ValueError(f"{named(name)} is missing, and {named('kafka_security_protocol')} is {protocol}")
        self.kafka_ssl_context()
        return self

    def kafka_ssl_context(self) -> ssl.SSLContext | None:
        """Whom to believe, and our own certificate, as the files are now. Raises ValueError with the wrong one."""
        if not self.kafka_security_protocol.endswith("SSL"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.kafka_ssl_cafile)
        except OSError:
            raise ValueError(f"{named('kafka_ssl_cafile')} can't be read as certificates in PEM") from None
        context.check_hostname = self.kafka_ssl_check_hostname
        if self.kafka_ssl_certfile is None:
            if self.kafka_ssl_keyfile is not None:
                raise ValueError(f"{named('kafka_ssl_certfile')} is missing beside {named('kafka_ssl_keyfile')}")
            return context
        password = self.kafka_ssl_key_password
        try:
            # Never None: OpenSSL would ask for it at the terminal.
            secret = password.get_secret_value() if password else ""
            context.load_cert_chain(self.kafka_ssl_certfile, self.kafka_ssl_keyfile, secret)
        except OSError:
            raise ValueError(
                f"{named('kafka_ssl_certfile')} can't be used: it needs a certificate in PEM, with its own key there or"
                f" in {named('kafka_ssl_keyfile')}, opened by {named('kafka_ssl_key_password')} if that is locked"
            ) from None
        return context

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _FileSource(settings_cls)


class ServiceSettings(KafkaSettings):
    """What every service needs. `api_tokens`: empty is somebody's decision that nobody may use /v1, missing is a
    mistake. `acting_key`: the same in all of them, so that the pages can act for a person."""

    database_url: SecretStr
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8080, ge=0, le=65535)
    drain_seconds: float = Field(default=3, ge=0, le=60)
    api_tokens: SecretStr
    acting_key: SecretStr | None = None

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://")
        return url

    @field_validator("api_tokens")
    @classmethod
    def _tokens_can_be_read(cls, tokens: SecretStr) -> SecretStr:
        parse_tokens(tokens.get_secret_value())
        return tokens

    @field_validator("acting_key")
    @classmethod
    def _acting_keys_can_be_used(cls, keys: SecretStr | None) -> SecretStr | None:
        try:
            Acting(keys)
        except ValueError:
            raise ValueError("must hold one or more Fernet keys, comma-separated, the newest first") from None
        return keys

    @property
    def tokens(self) -> Mapping[str, Token]:
        return parse_tokens(self.api_tokens.get_secret_value())


class PrivacySettings(ServiceSettings):
    """Of the services that know an erased person again: the same `privacy_key` for all of them (privacy.py)."""

    privacy_key: SecretStr = Field(min_length=16)


Secrets = Mapping[str, tuple[bytes, ...]]
SECRET_LENGTH_MIN = 8


def parse_secrets(text: str, owner: str) -> Secrets:
    """`owner:secret`, comma-separated, several secrets per owner while rotating, in that order. Raises ValueError."""
    secrets: dict[str, tuple[bytes, ...]] = {}
    for position, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
        name, _, secret = entry.partition(":")
        if not name or len(secret) < SECRET_LENGTH_MIN:
            raise ValueError(f"entry {position} must read {owner}:secret ({SECRET_LENGTH_MIN} characters or more)")
        secrets[name] = (*secrets.get(name, ()), secret.encode())
    return MappingProxyType(secrets)


S = TypeVar("S", bound=BaseSettings)


def load(kind: type[S]) -> S:
    """The settings from the environment, or exit code 2 with one line that names the first wrong one."""
    try:
        return kind()
    except ValidationError as error:
        refuse(error)


def refuse(error: ValidationError) -> NoReturn:
    first = error.errors(include_input=False, include_url=False)[0]
    what = "is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        # About several settings together: the message names them.
        raise SystemExit2(what)
    name = named("_".join(str(part) for part in first["loc"]))
    raise SystemExit2(f"{name} {what} (or set {name}_FILE)")
