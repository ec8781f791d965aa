"""Faults over the whole system, by a seed, for as long as told; a verdict at the end, exit code 1 on a violation.

    .venv/bin/python tests/faults/run.py --minutes 10 --seed 7
    .venv/bin/python tests/faults/run.py --faults 1 --scenarios pg-frozen --replicas 1 --rate 10   # a quick look

The same seed makes the same faults on the same targets in the same order.
"""

import argparse
import asyncio
import logging
import random
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
# The user from outside and the balancer; behind our own folder.
sys.path.append(str(HERE.parent / "e2e"))

from nemesis import PAUSE_SECONDS, QUIET_SECONDS, Nemesis, Plan  # noqa: E402 - only now can they be found
from scenarios import SCENARIOS  # noqa: E402
from workload import PER_SECOND  # noqa: E402

console = Console(highlight=False, soft_wrap=True)
RUNS = HERE.parents[1] / ".state" / "faults"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long faults go on (default 10)")
    parser.add_argument("--faults", type=int, help="how many, instead of --minutes")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--scenarios", default="all", help="comma-separated; all: those that lose nothing")
    parser.add_argument("--pairs", type=float, default=0.3, help="share of turns in which two strike at once")
    parser.add_argument("--brief", action="store_true", help="each fault lasts as short as it may")
    parser.add_argument(
        "--pause", type=float, help="seconds of calm after each turn (default: up to 3), for what is promised in calm"
    )
    parser.add_argument("--rate", type=float, default=30, help="requests a second")
    parser.add_argument("--pace", type=int, default=PER_SECOND, help="messages a second that each number may")
    parser.add_argument("--people", type=int, default=120, help="of each of the four workspaces")
    parser.add_argument("--replicas", type=int, default=2, choices=(1, 2, 3))
    parser.add_argument("--stop-seconds", type=float, default=30, help="bound from a STOP to the last call, in calm")
    parser.add_argument(
        "--quiet-seconds", type=float, default=QUIET_SECONDS, help="bound from healing to an outcome of every message"
    )
    parser.add_argument("--no-rebuild", action="store_true", help="don't make the message log anew at the end (I13)")
    parser.add_argument("--folder", type=Path, help="where the run is written (default .state/faults/<time>-<seed>)")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    return parser.parse_args()


def show_scenarios() -> None:
    table = Table("scenario", "what", "seconds")
    for one in SCENARIOS.values():
        what = (one.strike.__doc__ or "").strip().split("\n")[0]
        table.add_row(one.name, what, f"{one.seconds[0]:.0f} to {one.seconds[1]:.0f}")
    console.print(table)


def main() -> int:
    told = parse()
    if told.list:
        show_scenarios()
        return 0
    names = tuple(name for name, one in SCENARIOS.items() if not one.loses)
    if told.scenarios != "all":
        names = tuple(told.scenarios.split(","))
        if unknown := sorted(set(names) - SCENARIOS.keys()):
            console.print(f"--scenarios: there is no {', '.join(unknown)}; --list names them")
            return 2
    # What the load's and the checker's own client says of a broker that is away, we did ourselves.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    folder = told.folder or RUNS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{told.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        seed=told.seed,
        scenarios=names,
        minutes=told.minutes,
        faults=told.faults,
        rate=told.rate,
        pace=told.pace,
        people=told.people,
        replicas=told.replicas,
        pairs=told.pairs,
        rebuild=not told.no_rebuild,
        brief=told.brief,
        pause_seconds=PAUSE_SECONDS if told.pause is None else (told.pause, told.pause),
        stop_seconds=told.stop_seconds,
        quiet_seconds=told.quiet_seconds,
    )
    console.print(f"seed {told.seed}, into {folder}")
    # Not below the run's folder: PostgreSQL's user must get in.
    state_dir = Path(tempfile.mkdtemp(prefix="sendwhy-faults-"))
    try:
        verdict = asyncio.run(Nemesis(plan, folder, state_dir, console.print).run())
    finally:
        shutil.rmtree(state_dir, ignore_errors=True)
    console.print(verdict.table(), markup=False)
    console.print(f"the run, with result.json: {folder}")
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    sys.exit(main())
