"""The campaign of tests/chaos at any size: every answer of Meta's at random, two replicas, one killed, one frozen.

    .venv/bin/python tests/chaos/run.py --messages 50000

Prints what became of the messages by reason, and what must not have happened (exit code 1 if anything did).
"""

import argparse
import asyncio
import random
import sys

from campaign import Campaign
from rich.console import Console
from rich.table import Table
from rig import Verdict, rig

console = Console()


def show(verdict: Verdict) -> None:
    total = sum(verdict.table.values())
    table = Table("outcome", "messages", "share", title=f"{total:,} messages, {verdict.calls:,} calls to Meta")
    for name, count in verdict.table.most_common():
        table.add_row(name, f"{count:,}", f"{count / total:.2%}")
    console.print(table)
    console.print(f"{len(verdict.violations)} violations")
    for one in verdict.violations[:50]:
        console.print(one)


async def main(messages: int, per_second: int, seed: int) -> int:
    async with rig() as one:
        verdict = await Campaign(one, messages, per_second, seed, console.print).run()
    show(verdict)
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--per-second", type=int, default=80, help="of each of the four senders")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.messages, arguments.per_second, arguments.seed)))
