"""Look for known vulnerabilities in all that uv.lock pins: `make audit`. Exit 1 where there are some, or where an
exception in allowed.toml has expired; 0, and a plain word, where the advisory service (OSV) can't be reached.

`--strict` makes that an error too: for a release, from a machine with internet.
"""

import subprocess
import sys
import tomllib
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMMAND = [str(ROOT / ".uv" / "bin" / "uv"), "audit", "--frozen", "--preview-features", "audit-command"]
# What uv says where nobody answers; it ends with 2 then.
UNREACHABLE = "error sending request for url"


def allowed(text: str, today: date) -> tuple[list[str], list[str]]:
    """The ids that may pass, and what is wrong with the list: an entry without a reason, or one that has expired."""
    ids, faults = [], []
    for entry in tomllib.loads(text).get("advisory", []):
        name, until = entry.get("id", "an entry without id"), entry.get("until")
        if not entry.get("reason") or type(until) is not date:
            faults.append(f"{name}: needs a reason and a date `until`")
        elif until <= today:
            faults.append(f"{name}: was let pass until {until}; look at it again")
        else:
            ids.append(name)
    return ids, faults


def verdict(code: int, told: str, *, strict: bool) -> tuple[int, str]:
    """Exit code and last line, by how uv ended."""
    if code == 0:
        return 0, "audit: no known vulnerability"
    if UNREACHABLE in told:
        return int(strict), "audit: NOT DONE: the advisory service api.osv.dev can't be reached from this machine"
    return 1, "audit: see above; mend it, or let it pass for a while in deploy/supply/allowed.toml"


def main(arguments: Sequence[str]) -> int:
    ids, faults = allowed((HERE / "allowed.toml").read_text(), datetime.now(UTC).date())
    if faults:
        print("\n".join(["audit: deploy/supply/allowed.toml:", *faults]))
        return 1
    ignored: list[Any] = [part for one in ids for part in ("--ignore", one)]
    ended = subprocess.run([*COMMAND, *ignored], cwd=ROOT, capture_output=True, text=True, check=False)
    told = ended.stdout + ended.stderr
    code, line = verdict(ended.returncode, told, strict="--strict" in arguments)
    print(f"{told}{line}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
