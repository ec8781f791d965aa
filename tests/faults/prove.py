"""Tests the test: runs the fault harness with a bug planted, until the judge finds it, and writes down what it took.

.venv/bin/python tests/faults/prove.py retry-on-ambiguous no-sweep
.venv/bin/python tests/faults/prove.py --all
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bugs import BUGS, Bug, bug, planted
from history import History
from judge import judge

HERE = Path(__file__).parent
# A message that a bug has lost will never have its outcome: no use waiting long for it.
QUIET_SECONDS = 120
RUN_SECONDS = 1500
# Where the load alone provokes the bug, what strikes must be harmless.
HARMLESS = "meta-slow"


@dataclass
class Proof:
    """`found`: the expected invariants that were broken, with how often; `other`: what else was; `fault`: how a run
    without a verdict ended. `runs`: until found, or all of them."""

    bug: str
    scenarios: list[str]
    expected: list[str]
    runs: int = 0
    minutes: float = 0.0
    found: dict[str, int] = field(default_factory=dict)
    other: dict[str, int] = field(default_factory=dict)
    first: str = ""
    fault: str = ""

    @property
    def is_red(self) -> bool:
        return bool(self.found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="BUG")
    parser.add_argument("--all", action="store_true", help="every bug")
    parser.add_argument(
        "--tries", type=int, default=3, help="runs, each with another seed, before a bug counts as missed"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=3)
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sendwhy-proofs")
    return parser.parse_args()


def prove(one: Bug, told: argparse.Namespace) -> Proof:
    scenarios = sorted({name or HARMLESS for name in one.scenarios})
    proof = Proof(one.name, scenarios, list(one.invariants))
    began = time.monotonic()
    while proof.runs < told.tries and not proof.is_red:
        proof.runs += 1
        _run(one, told, proof, told.seed + proof.runs - 1)
    proof.minutes = round((time.monotonic() - began) / 60, 1)
    return proof


def _run(one: Bug, told: argparse.Namespace, proof: Proof, seed: int) -> None:
    folder = told.folder / f"{one.name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sendwhy-bug-") as place:
        # PostgreSQL's and other users read it too.
        Path(place).chmod(0o755)
        path = str(planted(one, Path(place)))
        options = ["--seed", str(seed), "--scenarios", ",".join(proof.scenarios), "--faults", str(told.faults)]
        options += ["--rate", str(one.rate), "--people", str(told.people), "--replicas", str(told.replicas)]
        options += ["--no-rebuild", "--quiet-seconds", str(QUIET_SECONDS), "--folder", str(folder)]
        command = [sys.executable, str(HERE / "run.py"), *options]
        with (folder / "run.log").open("wb") as log:
            try:
                subprocess.run(
                    command,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"PYTHONPATH": path},
                    timeout=RUN_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                proof.fault = f"no end within {RUN_SECONDS} s"
    _read(folder, proof)


def _read(folder: Path, proof: Proof) -> None:
    """From the run's own files: what the harness prints is for people."""
    if not (folder / "topics").exists():
        lines = (folder / "run.log").read_text(errors="replace").strip().splitlines()
        proof.fault = proof.fault or f"no verdict: {lines[-1] if lines else 'nothing was said'}"
        return
    verdict = judge(History.read(folder))
    for finding in verdict.findings:
        if finding.violations:
            where = proof.found if finding.invariant in proof.expected else proof.other
            where[finding.invariant] = len(finding.violations)
            if finding.invariant in proof.expected and not proof.first:
                proof.first = str(finding.violations[0])[:400]


def table(proofs: list[Proof]) -> str:
    rows = ["| bug | provoked by | found by (violations) | also broken | runs |", "|---|---|---|---|---|"]
    for one in proofs:
        found = ", ".join(f"{name} ({count})" for name, count in one.found.items()) or one.fault or "**not found**"
        other = ", ".join(f"{name} ({count})" for name, count in one.other.items())
        rows.append(f"| {one.bug} | {', '.join(one.scenarios)} | {found} | {other} | {one.runs} |")
    return "\n".join(rows)


def main() -> int:
    told = parse()
    chosen = list(BUGS) if told.all else [bug(name) for name in told.names]
    proofs: list[Proof] = []
    for one in chosen:
        print(f"{one.name}: {one.what}", flush=True)
        proofs.append(prove(one, told))
        last = proofs[-1]
        print(f"  {'red' if last.is_red else 'NOT FOUND'} after {last.runs} runs, {last.minutes} min", flush=True)
        print(f"  {last.first or last.fault}", flush=True)
        (told.folder / "proofs.json").write_text(json.dumps([asdict(each) for each in proofs], indent=1) + "\n")
    print(table(proofs))
    return 0 if all(one.is_red for one in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
