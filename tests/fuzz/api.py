"""Fuzz the API of every service of a running stack by its OpenAPI, with a token of each role: no answer is a 5xx, and
what is answered is what OpenAPI says.

    export SENDWHY_API_TOKENS=a-viewers-token:viewer:*,an-operators-token:operator:*
    .venv/bin/sendwhy up --state-dir .state/fuzz
    .venv/bin/python tests/fuzz/api.py .state/fuzz/stack.json --seconds 300

Without SENDWHY_API_TOKENS only as admin. It writes what it likes: never point it at a stack that anybody needs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Not allow_header_conformance: what is asked for as /contacts/suggestions is a contact's name, too.
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"
# A stream of events has no end, and schemathesis writes no NDJSON.
LEFT_OUT = ("/v1/workspaces/{w}/events", "/v1/workspaces/{w}/audience-checks")


def tokens_of(stack: dict[str, str]) -> dict[str, str]:
    """A token by role."""
    several = [entry.strip().split(":") for entry in os.environ.get("SENDWHY_API_TOKENS", "").split(",") if entry]
    return {role: token for token, role, *_ in several} | {"admin": stack["admin_token"]}


def fuzz(url: str, token: str, seconds: int, report: Path) -> bool:
    """Whether it held."""
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json", "--max-time", str(seconds)),
        *(
            "--header",
            f"Authorization: Bearer {token}",
            "--checks",
            CHECKS,
            *(word for path in LEFT_OUT for word in ("--exclude-path", path)),
        ),
        *("--warnings", "off", "--suppress-health-check", "all"),
        *("--phases", "coverage,fuzzing", "--request-timeout", "60", "--generation-database", "none"),
        *("--continue-on-failure", "--no-color", "--report", "ndjson", "--report-ndjson-path", str(report)),
    ]
    return subprocess.run(command, check=False).returncode == 0


def calls_in(report: Path) -> tuple[int, set[str]]:
    """How many calls a report tells of, and of which operations."""
    calls, operations = 0, set()
    for line in report.read_text().splitlines():
        told = json.loads(line).get("ScenarioFinished", {})
        recorder = told.get("recorder", {})
        calls += len(recorder.get("interactions", {}))
        if recorder.get("label"):
            operations.add(recorder["label"])
    return calls, operations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("stack", type=Path, help="the stack.json of a running `sendwhy up`")
    parser.add_argument("--seconds", type=int, default=300, help="for all services and roles together (default 300)")
    asked = parser.parse_args()
    stack = json.loads(asked.stack.read_text())
    tokens = tokens_of(stack)
    each = max(2, asked.seconds // (len(tokens) * len(stack["services"])))
    held, calls = True, 0
    operations: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for role, token in tokens.items():
            for service, url in stack["services"].items():
                print(f"--- {service} as {role}", flush=True)
                report = Path(folder) / f"{service}-{role}.ndjson"
                held &= fuzz(url, token, each, report)
                more, reached = calls_in(report)
                calls, operations = calls + more, operations | {f"{service} {label}" for label in reached}
    print(f"{calls} calls of {len(operations)} operations")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
