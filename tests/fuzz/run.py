"""All fuzzers one after the other, each for a bounded time: `make fuzz ARGS="--seconds 60 --only webhooks,csv"`.

Guided by coverage (guided.py): webhooks, statuses, events, csv, phones, words. Against the API of a running stack, by
its OpenAPI (api.py): api, only with `--stack`. Prints what each did; with `--publish` docs/fuzzing.json keeps it.
Ends with 1 where something broke; its input and the call that repeats it stand above.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
PUBLISHED = HERE.parents[1] / "docs" / "fuzzing.json"
GUIDED = ("webhooks", "statuses", "events", "csv", "phones", "words")
# Above what a target may take itself: its own imports and the last input.
GRACE_SECONDS = 300
COMMIT = ["git", "rev-parse", "--short", "HEAD"]


@dataclass(frozen=True)
class Run:
    """What a fuzzer did. `edges`: places of our code reached, as its coverage counts them."""

    seconds: int
    executions: int
    edges: int | None
    kept: int | None
    broke: bool
    commit: str
    on: str


def guided(target: str, seconds: int) -> Run:
    command = [sys.executable, str(HERE / "guided.py"), target, "--seconds", str(seconds)]
    output, code, took = _told(command, seconds + GRACE_SECONDS)
    return Run(
        took,
        _last(r"stat::number_of_executed_units: (\d+)", output) or 0,
        _last(r"cov: (\d+)", output),
        _last(r"corp: (\d+)/", output),
        code != 0,
        *_here(),
    )


def api(stack: Path, seconds: int) -> Run:
    command = [sys.executable, str(HERE / "api.py"), str(stack), "--seconds", str(seconds)]
    output, code, took = _told(command, seconds + 3 * GRACE_SECONDS)
    return Run(took, _last(r"(\d+) calls", output) or 0, _last(r"(\d+) operations", output), None, code != 0, *_here())


def _told(command: list[str], patience: int) -> tuple[str, int, int]:
    """Output, exit code and seconds of a fuzzer; what broke is shown."""
    began = time.monotonic()
    # A fuzzer is the last that a busy machine should work for.
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=patience, preexec_fn=lambda: os.nice(10)
        )
    except subprocess.TimeoutExpired:
        print(f"hangs: {' '.join(command)}")
        return "", 1, patience
    output = ended.stdout + ended.stderr
    if ended.returncode:
        print(output[-6000:])
        print(f"ended with {ended.returncode}: {' '.join(command)}")
    return output, ended.returncode, round(time.monotonic() - began)


def _last(pattern: str, output: str) -> int | None:
    found = re.findall(pattern, output)
    return int(found[-1]) if found else None


def _here() -> tuple[str, str]:
    commit = subprocess.run(COMMIT, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    return commit or "unknown", f"{datetime.now(UTC):%Y-%m-%d}"


def publish(runs: Mapping[str, Run]) -> None:
    known = json.loads(PUBLISHED.read_text()) if PUBLISHED.exists() else {}
    PUBLISHED.write_text(json.dumps(known | {name: asdict(run) for name, run in runs.items()}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="how long each may take (default 60)")
    parser.add_argument("--only", default="", help=f"some of {', '.join((*GUIDED, 'api'))}, comma-separated")
    parser.add_argument("--stack", type=Path, help="the stack.json of a running `sendwhy up`, for api")
    parser.add_argument("--publish", action="store_true", help="keep the figures in docs/fuzzing.json")
    asked = parser.parse_args()
    targets: dict[str, Callable[[], Run]] = {
        target: (lambda target=target: guided(target, asked.seconds))  # type: ignore[misc]
        for target in GUIDED
    }
    if asked.stack:
        targets["api"] = lambda: api(asked.stack, asked.seconds)
    wanted = asked.only.split(",") if asked.only else list(targets)
    if unknown := set(wanted) - set(targets):
        parser.error(f"not to be run here: {', '.join(sorted(unknown))} (api needs --stack)")
    runs: dict[str, Run] = {}
    for name in wanted:
        run = runs[name] = targets[name]()
        reached = f"{run.edges:,} {'operations' if name == 'api' else 'edges'}" if run.edges else "nothing counted"
        word = "BROKE" if run.broke else "held"
        print(f"{name:10} {word}: {run.executions:,} inputs in {run.seconds} s, {reached}", flush=True)
    if asked.publish:
        publish(runs)
    return int(any(run.broke for run in runs.values()))


if __name__ == "__main__":
    sys.exit(main())
