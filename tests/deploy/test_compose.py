"""docker-compose.yml without Docker: its schema, its wiring, and every environment against its service's Settings."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import yaml
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from billing.settings import BillingSettings
from composed import COMPOSE, DOCKERFILE, IMAGE_PORT, MODEL, ROOT, SERVICES, instruction, is_once, secret_file
from consent.settings import Settings as ConsentSettings
from dispatcher.settings import Settings as DispatcherSettings
from local_stack.kafka_files import KAFKA_VERSION
from message_log.settings import MessageLogSettings
from meta_simulator.bodies import Seed
from pydantic_core import PydanticUndefined
from sendwhy.settings import PREFIX, KafkaSettings
from sendwhy.topics import TOPICS
from webhook_ingest.settings import Settings as WebhookIngestSettings

BIN = Path(sys.executable).parent
SETTINGS: Mapping[str, type[KafkaSettings]] = {
    "sendwhy": KafkaSettings,
    "consent": ConsentSettings,
    "billing": BillingSettings,
    "dispatcher": DispatcherSettings,
    "webhook_ingest": WebhookIngestSettings,
    "message_log": MessageLogSettings,
}


OURS = {name: spec for name, spec in SERVICES.items() if spec.get("command", [""])[0] in SETTINGS}


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


def test_dependencies_can_be_met() -> None:
    for name, spec in SERVICES.items():
        for needed, how in spec.get("depends_on", {}).items():
            other = SERVICES[needed]
            if how["condition"] == "service_completed_successfully":
                assert is_once(other), f"{name} waits for {needed}, which never ends"
            else:
                assert how["condition"] == "service_healthy"
                assert "healthcheck" in other or ("build" in other and not is_once(other)), f"{needed} has no health"


def test_every_container_is_bounded_and_can_become_no_more() -> None:
    for name, spec in SERVICES.items():
        assert spec["cap_drop"] == ["ALL"], name
        assert spec["security_opt"] == ["no-new-privileges:true"], name
        assert spec["logging"]["options"].keys() == {"max-size", "max-file"}, name
        # Two cores are what deploy/README.md asks for; Docker starts nothing with more than there are.
        assert 0 < spec["cpus"] <= 2, name
        assert spec["pids_limit"] > 0, name
        assert re.fullmatch(r"[1-9]\d*[mg]", spec["mem_limit"]), name
        assert spec["restart"] in ("unless-stopped", "on-failure:5"), name
        assert "privileged" not in spec, name
        assert all(":size=" in folder for folder in spec.get("tmpfs", [])), f"{name} may fill its memory"
        # Kafka and PostgreSQL write their own configuration at the start.
        assert spec.get("read_only", False) is (name not in ("kafka", "postgres")), name
        if not is_once(spec):
            assert "stop_grace_period" in spec or name == "grafana", name
    assert not any("cap_add" in spec for name, spec in SERVICES.items() if name != "postgres")


def test_long_running_containers_tell_their_health() -> None:
    for name, spec in SERVICES.items():
        if not is_once(spec) and "build" not in spec:
            assert {"test", "timeout", "interval", "start_period"} <= spec["healthcheck"].keys(), name


def test_nothing_is_declared_in_vain_or_missing() -> None:
    used = {name for spec in SERVICES.values() for name in spec.get("secrets", [])}
    assert used == MODEL["secrets"].keys()
    mounts = [volume.split(":") for spec in SERVICES.values() for volume in spec.get("volumes", [])]
    assert {source for source, *_ in mounts if not source.startswith(".")} == MODEL["volumes"].keys()
    for source, _target, *mode in mounts:
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert mode == ["ro"], f"{source} can be written to"
    assert all(secret_file(name).exists() for name in MODEL["secrets"])


def mounted(name: str, path: str) -> Path:
    """The file of this repository that the container `name` sees as `path`."""
    for volume in SERVICES[name]["volumes"]:
        source, target = str(volume).split(":")[:2]
        if source.startswith(".") and (path == target or path.startswith(f"{target}/")):
            return ROOT / source / path.removeprefix(target).lstrip("/")
    raise AssertionError(f"{name} sees nothing of ours at {path}")


def test_paths_in_containers_are_files_of_ours() -> None:
    (config,) = (word.partition("=")[2] for word in SERVICES["prometheus"]["command"] if "config.file" in word)
    scraping = yaml.safe_load(mounted("prometheus", config).read_text())
    for rules in scraping["rule_files"]:
        assert mounted("prometheus", f"{Path(config).parent}/{rules}").is_file()
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted("grafana", home).is_file()
    provisioning = mounted("grafana", "/etc/grafana/provisioning")
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "sendwhy.yml").read_text())["providers"]
    assert list(mounted("grafana", provider["options"]["path"]).glob("*.json"))
    seed = SERVICES["meta-simulator"]["command"][-1]
    assert mounted("meta-simulator", seed).is_file()


def test_ports_are_those_at_which_something_listens() -> None:
    listening = {name: {IMAGE_PORT} for name, spec in OURS.items() if not is_once(spec)}
    simulator = SERVICES["meta-simulator"]["command"]
    listening["meta-simulator"] = {simulator[simulator.index("--port") + 1]}
    broker = SERVICES["kafka"]["environment"]
    listening["kafka"] = {part.rpartition(":")[2] for part in broker["KAFKA_LISTENERS"].split(",")}
    told = [part.rpartition("://")[2] for part in broker["KAFKA_ADVERTISED_LISTENERS"].split(",")]
    assert f"kafka:{told[0].rpartition(':')[2]}" == told[0]
    # Prometheus' and Grafana's own ports, which their health checks ask too.
    listening |= {"prometheus": {"9090"}, "grafana": {"3000"}}
    for name, spec in SERVICES.items():
        for port in spec.get("ports", []):
            assert port.rpartition(":")[2] in listening[name], name
    addresses = re.findall(r"http://([a-z-]+):(\d+)", COMPOSE.read_text() + _told_elsewhere())
    assert {host for host, _ in addresses} >= {"consent", "meta-simulator", "prometheus"}
    for host, port in [*addresses, *(target.split(":") for target in _scraped().values()), *map(_place, told[:1])]:
        assert port in listening[host], f"nothing listens at {host}:{port}"
    assert f"EXPOSE {IMAGE_PORT}\n" in DOCKERFILE
    assert f"127.0.0.1:{IMAGE_PORT}/" in instruction("HEALTHCHECK")[-1]
    for name in ("prometheus", "grafana", "meta-simulator"):
        (port,) = listening[name]
        assert f"http://127.0.0.1:{port}/" in SERVICES[name]["healthcheck"]["test"][-1]


def _told_elsewhere() -> str:
    folder = ROOT / "deploy"
    files = [folder / "README.md", folder / "simulator" / "seed.json", *folder.glob("grafana/provisioning/*/*.yml")]
    return "\n".join(file.read_text() for file in files)


def _place(address: str) -> list[str]:
    return address.split(":")


def _scraped() -> dict[str, str]:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    return {job["job_name"]: job["static_configs"][0]["targets"][0] for job in config["scrape_configs"]}


def test_prometheus_asks_every_service_under_its_name() -> None:
    serving = {name for name, spec in OURS.items() if spec["command"][1:] == ["serve"]}
    assert {name: target.partition(":")[0] for name, target in _scraped().items()} == {name: name for name in serving}


def test_the_readme_names_the_ports_that_are_open() -> None:
    table = "".join(re.findall(r"^\| [\d, ]+ \|", (ROOT / "deploy" / "README.md").read_text(), re.MULTILINE))
    open_ports = {port.split(":")[1] for spec in SERVICES.values() for port in spec.get("ports", [])}
    assert set(re.findall(r"\d+", table)) == open_ports


def test_what_a_person_may_set_is_read_by_somebody() -> None:
    """`${NAME:-default}`: a setting with the default that the code has, or explained at the head of the file."""
    told = re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE.read_text())
    head = COMPOSE.read_text().partition("\nname:")[0]
    for name, default in told:
        setting = name.removeprefix(PREFIX).lower()
        kinds = [kind for kind in SETTINGS.values() if setting in kind.model_fields]
        assert kinds or name in head, f"nobody reads {name}"
        defaults = {kind.model_fields[setting].default for kind in kinds} - {PydanticUndefined, None}
        assert not defaults or default.rstrip("/") in {str(each).rstrip("/") for each in defaults}, name
    assert {name for name, _ in told} >= {"SENDWHY_SECRETS_DIR", "SENDWHY_META_GRAPH_URL"}


def test_topics_that_deployment_names_exist() -> None:
    """Anything that reads like one of ours, `noun.participle`, in every file that operators run and in the contract."""
    contract = ROOT / "docs" / "contract.md"
    files = [COMPOSE, *(ROOT / "deploy").rglob("*.yml"), *(ROOT / "deploy").rglob("*.md"), ROOT / "docs" / "runbook.md"]
    text = "\n".join(file.read_text() for file in [*files, contract])
    named = set(re.findall(r"\b[a-z]+\.(?:[a-z]+ed|letters|erasing)\b", text))
    assert named
    assert named <= {str(topic) for topic in TOPICS}
    assert {topic for topic in TOPICS if str(topic) not in contract.read_text()} == set(), "the contract tells of each"


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


@pytest.mark.kafka
def test_the_broker_knows_its_settings(kafka_bootstrap: str) -> None:
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    written = {name.removeprefix("KAFKA_").lower().replace("_", ".") for name in SERVICES["kafka"]["environment"]}

    async def known() -> set[str]:
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
        await admin.start()
        try:
            (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, "1")])
        finally:
            await admin.close()
        return {entry[0] for resource in answer.resources for entry in resource[4]}

    # Java's, which the image's script reads.
    assert written - asyncio.run(known()) == {"heap.opts"}


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
