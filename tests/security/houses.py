"""The five services as their own wiring makes them, each on a database of its own, answering in this process: no
Kafka, no socket, no timer runs."""

import importlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
from cryptography.fernet import Fernet
from fastapi import FastAPI
from generate import SETTINGS
from pydantic import SecretStr
from sendwhy.access import Role
from sendwhy.postgres import migrate
from sendwhy.reasons import Service
from sendwhy.service import Runtime

OWN, OTHER, NOBODYS = "acme", "globex", "nobodys"
PACKAGES = {service: service.replace("-", "_") for service in Service}
ACTING_KEY = Fernet.generate_key().decode()


def token_of(role: Role, workspace: str) -> str:
    return f"{role.name.lower()}-of-{'all' if workspace == '*' else workspace}"


TOKENS = {token_of(role, workspace): (role, workspace) for role in Role for workspace in (OWN, OTHER, "*")}


def migrations_of(service: Service) -> Path:
    package = importlib.import_module(PACKAGES[service])
    return Path(package.__file__ or "").parent / "migrations"


@dataclass(frozen=True)
class House:
    service: Service
    app: FastAPI
    client: httpx.AsyncClient
    database_url: str

    @property
    def runtime(self) -> Runtime:
        runtime: Runtime = self.app.state.runtime
        return runtime


@asynccontextmanager
async def database(superuser: str, service: Service) -> AsyncIterator[str]:
    """With the service's tables, owned by a user who may do nothing else, as deploy/postgres/databases.sh makes it."""
    name = f"{PACKAGES[service]}_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(superuser)
    await connection.execute(f"create role {name} login password 'secret'")
    await connection.execute(f"create role {name}_api nologin")
    await connection.execute(f"grant {name}_api to {name}")
    await connection.execute(f"create database {name} owner {name}")
    place = urlsplit(superuser)
    url = place._replace(netloc=f"{name}:secret@{place.hostname}:{place.port}", path=f"/{name}").geturl()
    try:
        await migrate(url, migrations_of(service))
        yield url
    finally:
        await connection.execute(f"drop database {name} with (force)")
        await connection.execute(f"drop role {name}, {name}_api")
        await connection.close()


def as_superuser(superuser: str, database_url: str) -> str:
    """The superuser's address of a service's database."""
    return urlsplit(superuser)._replace(path=urlsplit(database_url).path).geturl()


@asynccontextmanager
async def open_house(superuser: str, service: Service, **settings: Any) -> AsyncIterator[House]:
    """`settings`: others than a house has."""
    async with database(superuser, service) as url:
        app = importlib.import_module(f"{PACKAGES[service]}.app").make_app(_settings(service, url, settings))
        # Endless answers end at once.
        app.state.is_ending = lambda: True
        transport = httpx.ASGITransport(app)
        async with (
            app.state.runtime.connected(),
            httpx.AsyncClient(transport=transport, base_url="http://house", timeout=30) as client,
        ):
            yield House(service, app, client, url)


def _settings(service: Service, url: str, others: dict[str, Any]) -> Any:
    given: dict[str, Any] = {
        # Nothing listens there.
        "kafka_bootstrap_servers": "127.0.0.1:1",
        "database_url": SecretStr(url),
        "api_tokens": SecretStr(",".join(f"{t}:{role.name.lower()}:{w}" for t, (role, w) in TOKENS.items())),
        "acting_key": SecretStr(ACTING_KEY),
        "privacy_key": SecretStr("0123456789abcdef"),
        "token_encryption_key": SecretStr(Fernet.generate_key().decode()),
        "meta_graph_url": "http://127.0.0.1:1",
        "meta_app_secrets": SecretStr("1:12345678"),
        "meta_verify_token": SecretStr("12345678"),
    } | others
    kind = SETTINGS[service]
    return kind(**{name: value for name, value in given.items() if name in kind.model_fields})
