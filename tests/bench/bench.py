"""The speed of the whole system on this machine: `make bench`, options in ARGS.

    make bench                                        a burst, half load, and a burst without flushing: two minutes
    make bench ARGS="--rate 1000 --seconds 600"       sustained: ten minutes at 1,000 messages a second
    make bench ARGS="compare before.json after.json"
    make bench ARGS="growth --quick"                  a message's cost by batch, backlog, workspaces, numbers, campaigns
    make bench ARGS=idle                              what everything takes while nothing is sent, by numbers
    make bench ARGS=bare                              what the system's shape takes without Sendwhy in it, and with it
    make bench ARGS=starts                            how soon services are ready, and what they hold then

`sendwhy up` starts one of each service, Kafka and PostgreSQL with the settings that users have; a generator publishes
send requests, and a lean Meta answers each after 50 ms and posts its three statuses, signed. A message is done when the
log shows it as read. Figures are printed and written, never asserted; where others use the machine too, CPU per message
tells more than messages a second.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bare
import growth
import idle
import psutil
import report
import starts
from limits import limits
from phases import WARM_UP, Phase, Result, Runner
from processes import best_loop_ms
from system import Shape, running

OUT = Path(".state/bench")


def phases(options: argparse.Namespace) -> list[Phase]:
    """What is run after the warm-up."""
    if options.rate:
        sustained = Phase("sustained", int(options.rate * options.seconds), options.rate)
        return [sustained] if options.flush == "on" else _each(sustained, options.flush)
    bursts = _each(Phase("burst", options.messages), options.flush)
    half = Phase("half load", int(options.half_rate * options.seconds), options.half_rate)
    return [bursts[0], half, *bursts[1:]]


def _each(phase: Phase, flush: str) -> list[Phase]:
    unflushed = replace(phase, name=f"{phase.name}, not flushed", flushed=False)
    return {"on": [phase], "off": [unflushed], "both": [phase, unflushed]}[flush]


async def whole(options: argparse.Namespace) -> dict[str, Any]:
    replicas = {name: int(count) for name, count in (one.split("=") for one in options.replicas)}
    shape = Shape(options.contacts, options.senders, options.latency, options.batch, replicas)
    results: list[Result] = []
    report.console.print("starting the system …")
    async with running(shape) as system:
        runner = Runner(system, shape)
        for phase in [WARM_UP, *phases(options)]:
            pace = f"{phase.rate:,.0f} messages/s" if phase.rate else "as fast as it goes"
            report.console.print(f"{phase.name}: {phase.messages:,} messages, {pace} …")
            results.append(await runner.run(phase))
            if results[-1].missing:
                report.console.print(
                    f"[red]{results[-1].missing} are missing: what follows would be mixed with them[/red]"
                )
                break
        raw = await limits(system) if options.limits else []
        restarted = system.restarted()
    told = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": report.command(options.arguments),
        "commit": _commit(),
        "machine": _machine(),
        "shape": asdict(shape),
        "restarted": restarted,
        "phases": [result.to_json() for result in results],
        "limits": [asdict(limit) for limit in raw],
    }
    _write(options, told)
    return told


def _machine() -> dict[str, Any]:
    return {
        "cpus": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "python_loop_ms": round(best_loop_ms(), 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 1),
    }


def _commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _write(options: argparse.Namespace, told: dict[str, Any]) -> None:
    path = options.out or OUT / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    report.write(path, told)
    report.plot(told, path.with_suffix(".svg"))
    if options.publish:
        report.publish(options.publish, report.summary(told))
        report.plot(told, report.PUBLISHED / f"{options.publish}.svg")


def _publish_if_asked(arguments: list[str], told: Any) -> None:
    """Of a bench that is asked for by its name, with or without --publish behind it."""
    if arguments[1:2] == ["--publish"]:
        name = arguments[0]
        report.publish(name, {"machine": _machine(), "commit": _commit(), name: told})


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=15_000, help="in a burst (15,000)")
    parser.add_argument("--half-rate", type=float, default=500, help="messages/s at half load (500)")
    parser.add_argument("--rate", type=float, help="instead of bursts and half load: messages/s, sustained")
    parser.add_argument("--seconds", type=float, default=20, help="of the half load, or of --rate (20)")
    parser.add_argument(
        "--flush", choices=("both", "on", "off"), help="webhook.received before the answer (bursts: both)"
    )
    parser.add_argument("--batch", type=int, default=1, help="statuses that Meta may put into one POST (1)")
    parser.add_argument("--latency", type=float, default=50, help="ms until Meta answers (50)")
    parser.add_argument("--contacts", type=int, default=20_000, help="people, who are written to in turn (20,000)")
    parser.add_argument("--senders", type=int, default=2, help="numbers of 1,000 messages/s each (2)")
    parser.add_argument("--replicas", action="append", default=[], help="as of `sendwhy up`: billing=2")
    parser.add_argument("--no-limits", dest="limits", action="store_false", help="without what the libraries do alone")
    parser.add_argument("--out", type=Path, help="JSON, with an SVG beside it (.state/bench/…)")
    parser.add_argument("--publish", help="also write docs/performance/<name>.json and .svg, for docs/performance.md")
    options = parser.parse_args(arguments)
    options.flush = options.flush or ("on" if options.rate else "both")
    return options


def main(arguments: list[str]) -> None:
    match arguments[:1]:
        case ["compare"]:
            if len(arguments) != 3:
                sys.exit("compare BEFORE.json AFTER.json: two files that `make bench` has written")
            report.compare(*(json.loads(Path(name).read_text()) for name in arguments[1:]))
        case ["growth"]:
            growth.command(arguments[1:])
        case ["idle"]:
            resting = asyncio.run(idle.idle())
            idle.show(resting)
            _publish_if_asked(arguments, idle.told(resting))
        case ["bare"]:
            compared = asyncio.run(bare.bare())
            bare.show(compared)
            _publish_if_asked(arguments, asdict(compared))
        case ["starts"]:
            found = asyncio.run(starts.starts())
            starts.show(found)
            _publish_if_asked(arguments, starts.told(found))
        case _:
            options = parse(arguments)
            options.arguments = arguments
            report.show(asyncio.run(whole(options)))


if __name__ == "__main__":
    main(sys.argv[1:])
