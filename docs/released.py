"""What the last release was: contracts/release.json, which only a release rewrites (`docs/generate.py --release`).

The commit by which its sources are found, and the migrations that stand in databases out there, with their digests.
"""

import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / "docs" / "contracts" / "release.json"


def migrations() -> dict[str, Path]:
    """All migrations, as package/file, in the order in which each database gets them."""
    folders = [ROOT / "libs" / "common" / "sendwhy", *sorted((ROOT / "services").glob("*/*/migrations"))]
    folders = [folder if folder.name == "migrations" else folder / "migrations" for folder in folders]
    return {f"{file.parents[1].name}/{file.name}": file for folder in folders for file in sorted(folder.glob("*.sql"))}


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def release() -> dict[str, object]:
    """As release.json has it, of what is checked out now."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {"commit": head.stdout.strip(), "migrations": {name: digest(file) for name, file in migrations().items()}}
