"""Tests the test: runs the fault harness with a bug planted, until the judge finds it, and writes down what it took.

.venv/bin/python tests/faults/prove.py retry-on-ambiguous no-sweep
.venv/bin/python tests/faults/prove.py --all
.venv/bin/python tests/faults/prove.py --together mark-after-call no-sweep      # both in one run
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bugs import BUGS, Bug, bug, planted
from history import History
from judge import judge

HERE = Path(__file__).parent
PUBLISHED = HERE.parents[1] / "docs" / "planted-bugs.json"
# A message that a bug has lost will never have its outcome: no use waiting long for it.
QUIET_SECONDS = 120
RUN_SECONDS = 1500
STOP_SECONDS = 15
# Where the load alone provokes the bug, what strikes must be harmless.
HARMLESS = "meta-slow"


@dataclass
class Proof:
    """`found`: the expected invariants that were broken, with how often; `other`: what else was; `fault`: how a run
    without a verdict ended. `runs`: until found, or all of them. `beside`: bugs that were planted in the same runs.
    `began_at`, `seed`, `commit`: of the last run."""

    bug: str
    what: str
    scenarios: list[str]
    expected: list[str]
    runs: int = 0
    minutes: float = 0.0
    found: dict[str, int] = field(default_factory=dict)
    other: dict[str, int] = field(default_factory=dict)
    first: str = ""
    fault: str = ""
    beside: list[str] = field(default_factory=list)
    began_at: str = ""
    seed: int = 0
    commit: str = ""

    @property
    def is_red(self) -> bool:
        return bool(self.found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="BUG")
    parser.add_argument("--all", action="store_true", help="every bug")
    parser.add_argument("--publish", action="store_true", help="into docs/planted-bugs.json, beside what stands there")
    parser.add_argument(
        "--together", action="store_true", help="all in the same runs: saves time; no two may break the same invariant"
    )
    parser.add_argument(
        "--tries", type=int, default=3, help="runs, each with another seed, before a bug counts as missed"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, help="how many (default: each scenario twice)")
    parser.add_argument("--rate", type=float, default=15, help="requests a second")
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sendwhy-proofs")
    return parser.parse_args()


def prove(group: Sequence[Bug], told: argparse.Namespace) -> list[Proof]:
    scenarios = sorted({name for one in group for name in one.scenarios if name}) or [HARMLESS]
    names = [one.name for one in group]
    proofs = [
        Proof(one.name, one.what, scenarios, list(one.invariants), beside=[name for name in names if name != one.name])
        for one in group
    ]
    began = time.monotonic()
    for seed in range(told.seed, told.seed + told.tries):
        left = [proof for proof in proofs if not proof.is_red]
        if left:
            _run(group, told, left, seed)
    for proof in proofs:
        proof.minutes = round((time.monotonic() - began) / 60, 1)
    return proofs


def _run(group: Sequence[Bug], told: argparse.Namespace, proofs: Sequence[Proof], seed: int) -> None:
    folder = told.folder / f"{'+'.join(one.name for one in group)}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    fault = ""
    with tempfile.TemporaryDirectory(prefix="sendwhy-bug-") as place:
        # PostgreSQL's and other users read it too.
        Path(place).chmod(0o755)
        path = str(planted(group, Path(place)))
        pace, calm = min(one.pace for one in group), max(one.calm for one in group)
        options = [
            "--seed",
            str(seed),
            "--scenarios",
            ",".join(proofs[0].scenarios),
            "--faults",
            str(told.faults or 2 * len(proofs[0].scenarios)),
        ]
        options += ["--rate", str(told.rate), "--people", str(told.people), "--replicas", str(told.replicas)]
        options += ["--pace", str(pace), "--stop-seconds", str(STOP_SECONDS), *(["--pause", str(calm)] if calm else [])]
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
                fault = f"no end within {RUN_SECONDS} s"
    if not (folder / "topics").exists():
        lines = (folder / "run.log").read_text(errors="replace").strip().splitlines()
        fault = fault or f"no verdict: {lines[-1] if lines else 'nothing was said'}"
    for proof in proofs:
        proof.runs += 1
        proof.fault = fault
        if not fault:
            _read(History.read(folder), proof)


def _read(history: History, proof: Proof) -> None:
    run, verdict = history.run, judge(history)
    proof.began_at, proof.seed, proof.commit = run.began_at.isoformat(timespec="seconds"), run.seed, run.commit
    for finding in verdict.findings:
        if finding.violations:
            where = proof.found if finding.invariant in proof.expected else proof.other
            where[finding.invariant] = len(finding.violations)
            if finding.invariant in proof.expected and not proof.first:
                proof.first = f"{finding.violations[0].subject}: {finding.violations[0].what}"


def groups_of(chosen: Sequence[Bug], *, together: bool) -> list[list[Bug]]:
    """What is planted at once. Raises ValueError where it could not be told which bug was found."""
    if not together:
        return [[one] for one in chosen]
    broken = [name for one in chosen for name in one.invariants]
    if twice := sorted({name for name in broken if broken.count(name) > 1}):
        raise ValueError(f"more than one of these bugs breaks {', '.join(twice)}")
    return [list(chosen)]


def table(proofs: list[Proof]) -> str:
    rows = ["| bug | provoked by | found by (violations) | also broken | beside | runs |", "|---|---|---|---|---|---|"]
    for one in proofs:
        found = ", ".join(f"{name} ({count})" for name, count in one.found.items()) or one.fault or "**not found**"
        other = ", ".join(f"{name} ({count})" for name, count in one.other.items())
        rows.append(
            f"| {one.bug} | {', '.join(one.scenarios)} | {found} | {other} | {', '.join(one.beside)} | {one.runs} |"
        )
    return "\n".join(rows)


def publish(proofs: Sequence[Proof]) -> None:
    """In the order of bugs.py; what was not found replaces nothing."""
    kept = {one["bug"]: one for one in json.loads(PUBLISHED.read_bytes())} if PUBLISHED.exists() else {}
    kept |= {one.bug: asdict(one) for one in proofs if one.is_red or one.bug not in kept}
    PUBLISHED.write_text(json.dumps([kept[one.name] for one in BUGS if one.name in kept], indent=1) + "\n")


def main() -> int:
    told = parse()
    chosen = list(BUGS) if told.all else [bug(name) for name in told.names]
    proofs: list[Proof] = []
    for group in groups_of(chosen, together=told.together):
        for one in group:
            print(f"{one.name}: {one.what}", flush=True)
        for last in prove(group, told):
            proofs.append(last)
            print(f"  {last.bug}: {'red' if last.is_red else 'NOT FOUND'} after {last.runs} runs, {last.minutes} min")
            print(f"    {last.first or last.fault}", flush=True)
        (told.folder / "proofs.json").write_text(json.dumps([asdict(each) for each in proofs], indent=1) + "\n")
    if told.publish:
        publish(proofs)
    print(table(proofs))
    return 0 if all(one.is_red for one in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
