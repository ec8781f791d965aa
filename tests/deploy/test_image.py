"""The Dockerfile's own `uv sync` lines, run here, and on what they make every container of the compose file as written:
entrypoint, command, environment, secrets, user and health check; only hosts, ports and paths are others."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from composed import BUILT, DOCKERFILE, IMAGE_PORT, MODEL, ROOT, SERVICES, Container, is_once, secret_file
from local_stack.kafka import Kafka
from sendwhy.topics import TOPICS

IGNORED = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().split()
READY_SECONDS = 300
LONG = [name for name, spec in BUILT.items() if not is_once(spec)]
DATABASES = ["consent", "billing", "dispatcher", "webhook_ingest", "message_log"]


def uv() -> str:
    found = shutil.which("uv", path=f"{ROOT / '.uv' / 'bin'}:{os.environ['PATH']}")
    if found is None:
        message = "uv is not installed (make setup)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def sync_lines(member: str) -> list[list[str]]:
    lines = re.findall(r"uv (sync .+)", DOCKERFILE)
    return [line.replace('"sendwhy-${SERVICE}"', f"sendwhy-{member}").split() for line in lines]


def test_uv_is_the_one_that_wrote_the_lock_file() -> None:
    (pinned,) = re.findall(r"uv==([\d.]+)", DOCKERFILE)
    assert f"UV_VERSION := {pinned}\n" in (ROOT / "Makefile").read_text()


def test_build_context_holds_the_whole_workspace() -> None:
    assert IGNORED[IGNORED.index("*") :][1:6] == ["!pyproject.toml", "!uv.lock", "!libs", "!services", "!tools"]


@pytest.fixture(scope="module")
def kafka_bootstrap(_run: Callable[[Any], Any]) -> Iterator[str]:
    """A broker of its own: the databases are new here, and the groups of other tests' services have read far."""
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-test-"))
    kafka = Kafka(folder)
    _run(kafka.start())
    yield kafka.bootstrap
    _run(kafka.stop())
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Path]]:
    """By member of the workspace, the /app of its image."""
    # Not pytest's own folder: the containers' user must get in. The cache is a new one: from an older one uv would take
    # our own wheels with old code in them.
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-images-"))
    folder.chmod(0o755)
    members = {spec["build"]["args"]["SERVICE"] for spec in BUILT.values()}
    for member in members:
        app = folder / member / "app"
        app.parent.mkdir()
        (app.parent / "bytecode").mkdir()
        (app.parent / "bytecode").chmod(0o777)
        environment = os.environ | {"UV_PROJECT_ENVIRONMENT": str(app), "UV_PYTHON_DOWNLOADS": "never"}
        dependencies, whole = sync_lines(member)
        subprocess.run([uv(), *dependencies, "-q"], cwd=ROOT, env=environment, check=True)
        cache = {"UV_CACHE_DIR": str(folder / "cache")}
        subprocess.run([uv(), *whole, "-q"], cwd=ROOT, env=environment | cache, check=True)
    yield {member: folder / member / "app" for member in members}
    shutil.rmtree(folder)


def free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def places(
    images: dict[str, Path],
    kafka_bootstrap: str,
    made_databases: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """What stands here for the hosts, ports and paths of the compose file."""
    secrets = next(iter(images.values())).parent / "secrets"
    secrets.mkdir()
    for name in MODEL["secrets"]:
        (secrets / name).write_text(secret_file(name).read_text())
    for name, url in made_databases.items():
        (secrets / f"database_url_{name}").write_text(url)
    ports = dict(zip(LONG, map(str, free_ports(len(LONG))), strict=True))
    (seed,) = (volume.split(":")[:2] for volume in SERVICES["meta-simulator"]["volumes"])
    return {
        SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split("//")[1].split(",")[0]: kafka_bootstrap,
        "/run/secrets": str(secrets),
        seed[1]: str(ROOT / seed[0]),
        "8090": ports["meta-simulator"],
        **{f"http://{name}:{IMAGE_PORT}": f"http://127.0.0.1:{ports[name]}" for name in LONG},
        **{f"port of {name}": port for name, port in ports.items() if name != "meta-simulator"},
    }


def needed(name: str) -> list[str]:
    """The one-shot steps before it, the first ones first."""
    before = [other for other in SERVICES[name].get("depends_on", {}) if other in BUILT]
    return [step for other in before for step in (*needed(other), other)]


@pytest.fixture(scope="module")
def composed(images: dict[str, Path], places: dict[str, str]) -> Iterator[dict[str, Container]]:
    """All containers, as `docker compose --profile simulator up` starts them."""
    made = {name: Container(name, images[spec["build"]["args"]["SERVICE"]], places) for name, spec in BUILT.items()}
    steps = dict.fromkeys(step for name in LONG for step in needed(name))
    assert set(made) == {*steps, *LONG}
    started: list[Container] = []
    try:
        for wave in (steps, LONG):
            for name in wave:
                made[name].start()
                started.append(made[name])
            for name in steps:
                assert made[name].wait(READY_SECONDS) == 0, f"{name}: {made[name].log}"
        yield made
    finally:
        for container in started:
            container.ask_to_end()
        for container in started:
            container.end()


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.timeout(900)
def test_the_step_for_topics_makes_them_all(composed: dict[str, Container], kafka_bootstrap: str) -> None:
    assert composed

    async def look() -> set[str]:
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
        await admin.start()
        try:
            return set(await admin.list_topics())
        finally:
            await admin.close()

    assert set(TOPICS) <= asyncio.run(look())


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LONG)
def test_container_comes_up_as_written(name: str, composed: dict[str, Container]) -> None:
    container = composed[name]
    deadline = time.monotonic() + READY_SECONDS
    while not container.is_healthy():
        assert time.monotonic() < deadline, f"{name} is not healthy:\n{container.log}"
        time.sleep(0.2)


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.timeout(900)
def test_containers_end_in_good_order_within_their_grace(composed: dict[str, Container]) -> None:
    for name in LONG:
        composed[name].ask_to_end()
    ends = {name: composed[name].end() for name in LONG}
    # 0, or by the signal once all is closed.
    assert set(ends.values()) <= {0, -15}, ends
    for name in LONG:
        assert "Traceback" not in composed[name].log, name
