"""The last release's services, installed from this repository's history into an environment of their own.

As a program it says whether this clone has that history: where it hasn't, conftest.py leaves test_upgrade.py out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "docs" / "contracts" / "release.json"
INSTALLED = ROOT / ".state" / "releases"
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "uv.lock", "libs", "services", "tools")


def commit_of_release() -> str:
    commit: str = json.loads(RELEASE.read_text())["commit"]
    return commit


def is_in_history() -> bool:
    found = subprocess.run(
        ["git", "cat-file", "-e", f"{commit_of_release()}^{{commit}}"], cwd=ROOT, check=False, capture_output=True
    )
    return found.returncode == 0


def former_python() -> str:
    """The interpreter with the last release in it."""
    commit = commit_of_release()
    home = INSTALLED / commit
    python = home / ".venv" / "bin" / "python"
    if not (home / "complete").exists():
        _install(commit, home)
    return str(python)


def _install(commit: str, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["git", "archive", commit, *SOURCES], cwd=ROOT, stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "-x", "-C", str(home)], stdin=archive.stdout, check=True)
    assert archive.returncode == 0
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    sync = [str(ROOT / ".uv" / "bin" / "uv"), "sync", "--frozen", "--all-packages", "--no-dev", "--quiet"]
    sync += ["--python", sys.executable]
    # What it needs lies in uv's cache, unless its dependencies were others.
    for how in (["--offline"], []):
        if subprocess.run([*sync, *how], cwd=home, env=environment, check=False).returncode == 0:
            (home / "complete").touch()
            return
    raise AssertionError(f"the last release can't be installed in {home}")


if __name__ == "__main__" and not is_in_history():
    print(
        f"NOT RUN: tests/e2e/test_upgrade.py. The last release's commit {commit_of_release()[:12]}"
        f" ({RELEASE.relative_to(ROOT)}) is not in this clone's history: git fetch --unshallow."
        " tests/deploy/test_migrations.py judges without it."
    )
