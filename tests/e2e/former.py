"""The last release's services, installed from this repository's history into an environment of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "docs" / "contracts" / "release.json"
INSTALLED = ROOT / ".state" / "releases"
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "uv.lock", "libs", "services", "tools")


def former_python() -> str:
    """The interpreter with the last release in it. Skips where this clone has no such commit and can't fetch it."""
    commit = json.loads(RELEASE.read_text())["commit"]
    if not _has(commit):
        _run("git", "fetch", "--quiet", "--depth=1", "origin", commit, check=False)
    if not _has(commit):
        pytest.skip(
            f"the last release ({RELEASE.relative_to(ROOT)}: {commit[:12]}) is not in this shallow clone, and its"
            " services can't be run: git fetch --unshallow; tests/deploy/test_migrations.py judges without it"
        )
    home = INSTALLED / commit
    python = home / ".venv" / "bin" / "python"
    if not (home / "complete").exists():
        _install(commit, home)
    return str(python)


def _install(commit: str, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    archive = subprocess.Popen(["git", "archive", commit, *SOURCES], cwd=ROOT, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(home)], stdin=archive.stdout, check=True)
    assert archive.wait() == 0
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    sync = [str(ROOT / ".uv" / "bin" / "uv"), "sync", "--frozen", "--all-packages", "--no-dev", "--quiet"]
    sync += ["--python", sys.executable]
    # What it needs lies in uv's cache, unless its dependencies were others.
    for how in (["--offline"], []):
        if subprocess.run([*sync, *how], cwd=home, env=environment, check=False).returncode == 0:
            (home / "complete").touch()
            return
    raise AssertionError(f"the last release can't be installed in {home}")


def _has(commit: str) -> bool:
    return _run("git", "cat-file", "-e", f"{commit}^{{commit}}", check=False) == 0


def _run(*command: str, check: bool) -> int:
    return subprocess.run(command, cwd=ROOT, check=check, capture_output=True).returncode
