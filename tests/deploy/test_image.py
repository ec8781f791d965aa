"""The Dockerfile's own `uv sync` lines, run here: what an image holds is enough to run its commands."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
IGNORED = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().split()
MEMBERS = {
    "consent": "migrations/0001_consent.sql",
    "billing": "migrations/0001_billing.sql",
    "dispatcher": "migrations/0001_dispatcher.sql",
    "webhook-ingest": "migrations/0001_receipts.sql",
    "message-log": "migrations/0001_message_log.sql",
    "meta-simulator": "__main__.py",
}


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


@pytest.fixture(scope="session")
def new_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache without our own wheels: from an older one uv would take them with old code in them."""
    return tmp_path_factory.mktemp("uv-cache")


@pytest.mark.parametrize("member", MEMBERS)
def test_image_runs_its_command(member: str, tmp_path: Path, new_cache: Path) -> None:
    environment = os.environ | {"UV_PROJECT_ENVIRONMENT": str(tmp_path / "app"), "UV_PYTHON_DOWNLOADS": "never"}
    dependencies, whole = sync_lines(member)
    subprocess.run([uv(), *dependencies, "-q"], cwd=ROOT, env=environment, check=True)
    subprocess.run([uv(), *whole, "-q"], cwd=ROOT, env=environment | {"UV_CACHE_DIR": str(new_cache)}, check=True)

    module = member.replace("-", "_")
    (installed,) = (tmp_path / "app").glob(f"lib/python*/site-packages/{module}")
    assert (installed / MEMBERS[member]).exists()
    command = ["--help"] if member == "meta-simulator" else ["serve"]
    bare = {name: value for name, value in os.environ.items() if not name.startswith("SENDWHY_")}
    done = subprocess.run(
        [tmp_path / "app" / "bin" / "python", "-m", module, *command],
        cwd=tmp_path,
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    if member == "meta-simulator":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 2, done.stderr
        assert "SENDWHY_KAFKA_BOOTSTRAP_SERVERS is missing" in done.stderr
