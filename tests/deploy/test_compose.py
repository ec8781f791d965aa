"""docker-compose.yml without Docker: its schema, its wiring, and every environment against its service's Settings."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import yaml
from billing.settings import BillingSettings
from consent.settings import Settings as ConsentSettings
from dispatcher.settings import Settings as DispatcherSettings
from message_log.settings import MessageLogSettings
from meta_simulator.bodies import Seed
from sendwhy.settings import PREFIX, KafkaSettings
from webhook_ingest.settings import Settings as WebhookIngestSettings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
BIN = Path(sys.executable).parent
SETTINGS: Mapping[str, type[KafkaSettings]] = {
    "sendwhy": KafkaSettings,
    "consent": ConsentSettings,
    "billing": BillingSettings,
    "dispatcher": DispatcherSettings,
    "webhook_ingest": WebhookIngestSettings,
    "message_log": MessageLogSettings,
}


def with_defaults(text: str) -> str:
    """Compose's `${NAME:-default}` as it reads where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


MODEL: dict[str, Any] = yaml.safe_load(with_defaults(COMPOSE.read_text()))
SERVICES: dict[str, dict[str, Any]] = MODEL["services"]
OURS = {name: spec for name, spec in SERVICES.items() if spec.get("command", [""])[0] in SETTINGS}


def secret_file(name: str) -> Path:
    return ROOT / str(MODEL["secrets"][name]["file"])


def test_follows_the_compose_specification() -> None:
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_dockerfile_has_no_findings() -> None:
    done = subprocess.run(
        [BIN / "hadolint", ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", OURS)
def test_environment_is_what_the_service_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = OURS[name]
    kind = SETTINGS[spec["command"][0]]
    for variable in [variable for variable in os.environ if variable.startswith(PREFIX)]:
        monkeypatch.delenv(variable)
    for variable, value in spec["environment"].items():
        setting = variable.removeprefix(PREFIX).removesuffix("_FILE").lower()
        assert setting in kind.model_fields, f"{name} knows no {variable}"
        if value is None:
            continue
        if variable.endswith("_FILE"):
            secret = Path(value).name
            assert value == f"/run/secrets/{secret}"
            assert secret in spec["secrets"], f"{name} may not read {secret}"
            value = str(secret_file(secret))
        monkeypatch.setenv(variable, str(value))
    kind()
    assert {Path(value).name for variable, value in spec["environment"].items() if variable.endswith("_FILE")} == set(
        spec.get("secrets", [])
    )


def test_every_service_migrates_before_it_serves() -> None:
    serving = {name: spec for name, spec in OURS.items() if spec["command"][1] == "serve"}
    assert len(serving) == len(SETTINGS) - 1
    for name, spec in serving.items():
        needs = spec["depends_on"]
        assert needs["topics"] == needs[f"migrate-{name}"] == {"condition": "service_completed_successfully"}
        migration = SERVICES[f"migrate-{name}"]
        assert migration["environment"] == spec["environment"]
        assert migration["command"] == [spec["command"][0], "migrate"]


def test_addresses_name_services_of_the_file() -> None:
    for spec in OURS.values():
        for variable, value in spec["environment"].items():
            inside = variable.endswith("_URL") and variable not in ("SENDWHY_META_GRAPH_URL", "SENDWHY_PUBLIC_URL")
            if inside:
                assert urlsplit(value).hostname in SERVICES
        assert spec["environment"]["SENDWHY_KAFKA_BOOTSTRAP_SERVERS"] == "kafka:9092"


def test_only_this_machine_can_reach_a_port() -> None:
    ports = [port for spec in SERVICES.values() for port in spec.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_images_of_others_are_pinned() -> None:
    for name, spec in SERVICES.items():
        if "build" not in spec:
            assert re.search(r":v?\d", spec["image"]), name


def test_what_a_service_depends_on_runs_in_its_profiles() -> None:
    for name, spec in SERVICES.items():
        for needed in spec.get("depends_on", {}):
            profiles = set(SERVICES[needed].get("profiles", []))
            assert profiles <= set(spec.get("profiles", [])), f"{name} depends on {needed}"


def test_simulator_signs_with_the_secret_that_ingest_believes() -> None:
    seed = Seed.model_validate_json((ROOT / "deploy" / "simulator" / "seed.json").read_bytes())
    (number,) = seed.numbers.values()
    assert f"{number.app_id}:{number.app_secret}" == secret_file("meta_app_secrets").read_text().strip()
    assert urlsplit(number.webhook_url or "").hostname in SERVICES


def test_dev_secrets_say_what_they_are() -> None:
    folder = ROOT / "deploy" / "dev-secrets"
    told = (folder / "README.md").read_text()
    for file in folder.iterdir():
        if file.suffix == ".md":
            continue
        assert file.name in told or f"{file.name.rpartition('_url_')[0]}_url_*" in told
        assert "development-only" in file.read_text() or file.name in ("acting_key", "token_encryption_key")


def test_each_service_has_an_image_of_its_own_package() -> None:
    for name, spec in SERVICES.items():
        if "build" not in spec:
            continue
        member = spec["build"]["args"]["SERVICE"]
        assert spec["image"] == f"sendwhy-{member}", name
        assert any((ROOT / folder / member / "pyproject.toml").exists() for folder in ("services", "tools"))


@pytest.fixture
def made_databases(postgres_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The addresses of the databases that deploy/postgres/databases.sh has made, by service."""
    from local_stack.postgres import binary

    names = sorted(name for name in SETTINGS if name != "sendwhy")
    place = urlsplit(postgres_url)
    script = tmp_path / "databases.sh"
    original = (ROOT / "deploy" / "postgres" / "databases.sh").read_text()
    script.write_text(original.replace("/run/secrets/", f"{ROOT / 'deploy' / 'dev-secrets'}/"))
    environment = {
        "PATH": f"{binary('psql').parent}:{os.environ['PATH']}",
        "PGHOST": place.hostname or "",
        "PGPORT": str(place.port),
        "PGPASSWORD": place.password or "",
    }
    asyncio.run(drop(postgres_url, names))
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield {
        name: urlsplit(secret_file(f"database_url_{name}").read_text().strip())
        ._replace(netloc=f"{name}:development-only-{name}@{place.hostname}:{place.port}")
        .geturl()
        for name in names
    }
    asyncio.run(drop(postgres_url, names))


async def drop(superuser: str, names: list[str]) -> None:
    connection = await asyncpg.connect(superuser)
    for name in names:
        await connection.execute(f"drop database if exists {name} with (force)")
        await connection.execute(f"drop role if exists {name}")
    await connection.close()


@pytest.mark.postgres
def test_each_role_owns_its_database_enters_no_other_and_makes_none(made_databases: dict[str, str]) -> None:
    async def look() -> None:
        for name, url in made_databases.items():
            connection = await asyncpg.connect(url)
            await connection.execute("create table mine (id int)")
            for more in ("create role another", "create database another", "alter role current_user superuser"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(more)
            await connection.close()
            other = urlsplit(url)._replace(path=f"/{next(each for each in made_databases if each != name)}").geturl()
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await asyncpg.connect(other)

    asyncio.run(look())
