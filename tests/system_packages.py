"""Installs what tests need and PyPI doesn't have, where that may be: Chromium, Prometheus and faketime, from Debian's
packages.

Elsewhere it says what is missing: the tests that need it are then skipped, which people see and which fails in CI.
"""

import os
import shutil
import subprocess
import sys

PACKAGES = {"chromium": "chromium", "prometheus": "prometheus", "promtool": "prometheus", "faketime": "faketime"}


def main() -> int:
    missing = sorted({package for command, package in PACKAGES.items() if shutil.which(command) is None})
    if missing and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        install(missing)
        missing = sorted({package for command, package in PACKAGES.items() if shutil.which(command) is None})
    if missing:
        print(f"missing: {', '.join(missing)}; the tests that need them are skipped", file=sys.stderr)
    return 1 if missing and os.environ.get("CI") else 0


def install(packages: list[str]) -> None:
    print(f"installing {', '.join(packages)} with apt-get", file=sys.stderr)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    quiet = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    subprocess.run([*quiet, "update"], env=environment, check=False, stdout=subprocess.DEVNULL)
    subprocess.run(
        [*quiet, "install", "-y", "--no-install-recommends", *packages],
        env=environment,
        check=False,
        stdout=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    sys.exit(main())
