"""The faults by name (reliability-security.md, section b): whom each can hit, how it is done and how it is taken back.

Each is a coroutine that does it, lasts for its time and takes it back. Named moments of a protocol (dies-after-commit
and its kin) are met on the wire (points.py); finer ones, between any two statements of a send, are tests/chaos' affair.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import kafka_faults
import postgres_faults
import psutil
from field import Field
from local_stack.services import SERVICES
from outside import until
from points import cut, dies
from relay import Moment
from rig import Rig
from toxiproxy import BOTH, link_name
from workload import META_SETTINGS

Strike = Callable[[Field, str], Awaitable[None]]


def _nothing_missing(_rig: Rig) -> str:
    return ""


@dataclass(frozen=True)
class Scenario:
    """`targets`: whom it can hit. `seconds`: the shortest and the longest that it lasts. `hides`: Meta's answers can
    get lost by it. `lacks`: why it can't be done on this machine, or empty. `loses`: it destroys what was acknowledged,
    and the judge must say so."""

    name: str
    targets: Callable[[Rig], list[str]]
    strike: Strike
    seconds: tuple[float, float] = (4, 10)
    hides: bool = False
    lacks: Callable[[Rig], str] = _nothing_missing
    loses: bool = False
    alone: bool = False
    """Not together with others: it needs the system whole, or leaves nothing for another to hit."""


# --- processes ---


async def killed(on: Field, target: str) -> None:
    """kill -9 of one replica; its supervisor starts it again."""
    old = on.rig.pid(target)
    on.rig.signal(target, signal.SIGKILL)
    await on.last()
    await on.rig.replaced(target, old)


async def service_gone(on: Field, target: str) -> None:
    """kill -9 of all replicas of a service, and none comes back for the while."""
    async with on.gone(target):
        await on.last()


async def stopped(on: Field, target: str) -> None:
    """SIGSTOP of a replica past its session's end: another takes over, and it wakes as a zombie."""
    on.rig.signal(target, signal.SIGSTOP)
    try:
        await on.last()
    finally:
        on.rig.signal(target, signal.SIGCONT)


async def service_frozen(on: Field, target: str) -> None:
    """SIGSTOP of all replicas of a service."""
    names = on.rig.processes(target)
    for name in names:
        on.rig.signal(name, signal.SIGSTOP)
    try:
        await on.last()
    finally:
        for name in names:
            on.rig.signal(name, signal.SIGCONT)


async def coming_and_going(on: Field, target: str) -> None:
    """A replica that dies again and again, as soon as it is back: its groups rebalance all the time."""

    async for _ in on.again_and_again(2, 4):
        old = on.rig.pid(target)
        on.rig.signal(target, on.chance.choice([signal.SIGKILL, signal.SIGTERM]))
        await on.rig.replaced(target, old)


async def starved(on: Field, target: str) -> None:
    """A replica gets a twentieth of a core: it is stopped most of the time, and goes on a little in between."""
    loop = asyncio.get_running_loop()
    end = loop.time() + on.seconds
    try:
        while loop.time() < end:
            on.rig.signal(target, signal.SIGSTOP)
            await asyncio.sleep(19 * STARVED_TURN_SECONDS)
            on.rig.signal(target, signal.SIGCONT)
            await asyncio.sleep(STARVED_TURN_SECONDS)
    finally:
        on.rig.signal(target, signal.SIGCONT)


async def no_descriptors(on: Field, target: str) -> None:
    """A replica can open no more files and sockets, and every connection of its lines is cut."""
    process = psutil.Process(on.rig.pid(target))
    usual = process.rlimit(psutil.RLIMIT_NOFILE)
    # Below what is open already is no error: only new ones are refused.
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() // 2, usual[1]))
    try:
        for link in on.rig.links:
            if link.client == target:
                await on.rig.proxies.cut(link.name)
        await on.last()
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_NOFILE, usual)


async def in_flight_flood(on: Field, _target: str) -> None:
    """Meta is slow, so that much is in flight, and both dispatchers are killed with it."""
    await on.rig.sim("PUT", "/settings", META_SETTINGS | {"latency_ms": 2_000})
    try:
        await asyncio.sleep(on.seconds / 2)
        for name in on.rig.processes("dispatcher"):
            on.rig.signal(name, signal.SIGKILL)
        await on.last()
    finally:
        await usual_meta(on)


async def rolling(on: Field, _target: str) -> None:
    """A new release: every replica is ended by SIGTERM and started anew, one at a time in each service."""

    async def roll(service: str) -> None:
        for name in on.rig.processes(service):
            old = on.rig.pid(name)
            on.rig.signal(name, signal.SIGTERM)
            await on.rig.replaced(name, old)
            await on.rig.ready(name)

    await on.last()
    await asyncio.gather(*(roll(service) for service in SERVICES))


async def stack_killed(on: Field, _target: str) -> None:
    """kill -9 of the supervisor; everything dies with it, and starts again on what is left."""
    await on.rig.kill_stack()
    await on.last()


async def clock_jump(on: Field, target: str) -> None:
    """A replica's clock is hours off (libfaketime; its monotonic clock isn't)."""
    where = on.rig.state_dir / "control" / f"{target}.clock"
    where.write_text("+0\n")
    on.rig.control.tell(
        target,
        {
            "LD_PRELOAD": FAKETIME,
            "FAKETIME_TIMESTAMP_FILE": str(where),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        },
    )
    try:
        await _restarted(on, target)
        await on.rig.ready(target)
        where.write_text(on.chance.choice(["+2h", "-2h", "+30d"]) + "\n")
        await on.last()
    finally:
        on.rig.control.forget(target)
    await _restarted(on, target)


async def _restarted(on: Field, target: str) -> None:
    old = on.rig.pid(target)
    on.rig.signal(target, signal.SIGKILL)
    await on.rig.replaced(target, old)


STARVED_TURN_SECONDS = 0.02
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


def _without_faketime(_rig: Rig) -> str:
    return "" if Path(FAKETIME).exists() else "libfaketime is missing: apt-get install faketime"


# --- Meta ---


async def usual_meta(on: Field) -> None:
    await on.rig.sim("PUT", "/settings", META_SETTINGS)


def meta(what: str, **changes: Any) -> Strike:
    """Meta as these settings of the simulator have it."""

    async def strike(on: Field, _target: str) -> None:
        await on.rig.sim("PUT", "/settings", META_SETTINGS | changes)
        try:
            await on.last()
        finally:
            await usual_meta(on)

    strike.__doc__ = what
    return strike


async def meta_down(on: Field, _target: str) -> None:
    """Every connection to Meta is cut, and refused for the while. Its own controls are away too."""
    with contextlib.suppress(httpx.HTTPError):
        await on.rig.sim("POST", "/down", {"seconds": on.seconds})
    await on.last()

    async def answers() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return (await on.rig.http.get(f"{on.rig.meta_url}/_sim/scenarios")).is_success
        return False

    await until(answers, "the simulator is back", 60)


CUTS = {
    "reset_after_acceptance": 0.1,
    "reset_before_acceptance": 0.05,
    "close_after_acceptance": 0.1,
    "half_header": 0.1,
    "half_body": 0.1,
    "junk_answer": 0.05,
}
STORM = {"batch": 1, "reorder": 0.5, "double": 1, "delay_ms": [0, 3_000]}


# --- the network ---


async def partitioned(on: Field, target: str) -> None:
    """Cut and refused."""
    await on.rig.proxies.refuse(target)
    try:
        await on.last()
    finally:
        await on.rig.proxies.accept(target)


async def black_hole(on: Field, target: str) -> None:
    """Nothing arrives either way, and the connections stay open."""
    for stream in BOTH:
        await on.rig.proxies.poison(target, "timeout", stream, timeout=0)
    try:
        await on.last()
    finally:
        for stream in BOTH:
            await on.rig.proxies.clean(target, "timeout", stream)


async def one_way(on: Field, target: str) -> None:
    """Requests pass, answers don't."""
    await on.rig.proxies.poison(target, "timeout", "downstream", timeout=0)
    try:
        await on.last()
    finally:
        await on.rig.proxies.clean(target, "timeout", "downstream")


async def slow_line(on: Field, target: str) -> None:
    """200 ± 100 ms each way."""
    for stream in BOTH:
        await on.rig.proxies.poison(target, "latency", stream, latency=200, jitter=100)
    try:
        await on.last()
    finally:
        for stream in BOTH:
            await on.rig.proxies.clean(target, "latency", stream)


async def lossy_line(on: Field, target: str) -> None:
    """Connections end in the middle, again and again: a third of them within 300 ms each, by RST."""
    await on.rig.proxies.poison(target, "reset_peer", "downstream", share=0.3, timeout=300)
    await on.rig.proxies.poison(target, "slicer", "upstream", average_size=200, size_variation=100, delay=500)
    try:
        await on.last()
    finally:
        await on.rig.proxies.clean(target, "reset_peer", "downstream")
        await on.rig.proxies.clean(target, "slicer", "upstream")


async def cut_again_and_again(on: Field, target: str) -> None:
    """Every connection ends, and a new one is accepted at once."""
    async for _ in on.again_and_again(0.3, 2):
        await on.rig.proxies.cut(target)


# --- bad records ---


async def poison_burst(on: Field, _target: str) -> None:
    """Thirty bad records at once, of all kinds."""
    await on.workload.plant_many(30)
    await on.last()


# --- the list ---


def services(_rig: Rig) -> list[str]:
    return list(SERVICES)


def processes(rig: Rig) -> list[str]:
    return rig.processes()


def publishing(rig: Rig) -> list[str]:
    """Those that publish all the time: the message log reads."""
    return [name for name in rig.processes() if not name.startswith("message-log")]


def dispatchers(rig: Rig) -> list[str]:
    return rig.processes("dispatcher")


def only(name: str) -> Callable[[Rig], list[str]]:
    return lambda _rig: [name]


def lines_to(*servers: str) -> Callable[[Rig], list[str]]:
    def lines(rig: Rig) -> list[str]:
        return [link.name for link in rig.links if link.server in servers]

    return lines


def no_small_disk(rig: Rig) -> str:
    return rig.no_small_disk


ALL_LINES = lines_to("kafka", "postgres", "meta")
# As long as it takes until the moment comes.
AT_ONCE = (0.0, 0.0)
META = only(link_name("dispatcher", "meta"))

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("replica-killed", processes, killed, (1, 4), hides=True),
        Scenario("service-gone", services, service_gone, (4, 15), hides=True),
        Scenario("zombie-stage", processes, stopped, (15, 30), hides=True),
        Scenario("service-frozen", services, service_frozen, (5, 20), hides=True),
        Scenario("driver-asleep", dispatchers, stopped, (20, 45), hides=True),
        Scenario("rebalance-storm", processes, coming_and_going, (15, 30), hides=True),
        Scenario("in-flight-flood", only("dispatcher"), in_flight_flood, (4, 8), hides=True),
        Scenario("rolling-restart", only("all"), rolling, (0, 1), hides=True, alone=True),
        Scenario("stack-killed", only("all"), stack_killed, (1, 2), hides=True, alone=True),
        Scenario("cpu-starved", processes, starved, (10, 30), hides=True),
        Scenario("no-descriptors", processes, no_descriptors, (5, 15), hides=True),
        Scenario("clock-jump", processes, clock_jump, (5, 15), hides=True, lacks=_without_faketime),
        Scenario("broker-crash", only("kafka"), kafka_faults.crash, (1, 3)),
        Scenario("broker-crash-loop", only("kafka"), kafka_faults.crash_loop, (10, 25)),
        Scenario("broker-frozen", only("kafka"), kafka_faults.frozen, (8, 25)),
        Scenario("kafka-down-at-ingest", only("kafka"), kafka_faults.gone, (10, 75)),
        Scenario("offsets-lost", kafka_faults.resettable, kafka_faults.offsets_lost, (1, 2), hides=True),
        Scenario("partitions-added", kafka_faults.growing, kafka_faults.partitions_added, (1, 2)),
        Scenario("broker-power-cut", only("kafka"), kafka_faults.tail_cut, (1, 2), loses=True, alone=True),
        Scenario("pg-crash", only("postgres"), postgres_faults.crash, (1, 3), hides=True),
        Scenario("pg-crash-loop", only("postgres"), postgres_faults.crash_loop, (10, 25), hides=True),
        Scenario("pg-frozen", only("postgres"), postgres_faults.frozen, (5, 25), hides=True),
        Scenario("pg-terminated", only("postgres"), postgres_faults.terminated, (5, 10), hides=True),
        Scenario("two-drivers", only("dispatcher->postgres"), postgres_faults.locks_lost, (5, 10), hides=True),
        Scenario("pg-locked", only("postgres"), postgres_faults.locked, (5, 20), hides=True),
        Scenario("pg-no-connections", only("postgres"), postgres_faults.no_connections, (8, 20), hides=True),
        Scenario("pg-disk-full", only("postgres"), postgres_faults.disk_full, (8, 15), hides=True, lacks=no_small_disk),
        Scenario("nack-while-moving", services, postgres_faults.nack_while_moving, (5, 10), hides=True),
        Scenario(
            "meta-cuts",
            META,
            meta(
                "Half of the answers are cut off, broken or never begun, mostly after Meta has taken the message.",
                answers=CUTS,
            ),
            (5, 15),
            hides=True,
        ),
        Scenario(
            "meta-late",
            META,
            meta("A third are taken and never answered.", answers={"timeout_after_acceptance": 0.3}),
            (5, 12),
            hides=True,
        ),
        Scenario(
            "meta-silent",
            META,
            meta("A third are neither taken nor answered.", answers={"timeout_before_acceptance": 0.3}),
            (5, 12),
            hides=True,
        ),
        Scenario(
            "meta-drip", META, meta("A third are answered byte by byte.", answers={"drip": 0.3}), (5, 12), hides=True
        ),
        Scenario(
            "meta-refuses",
            META,
            meta("Four of five are refused with 503 and Meta's error object.", answers={"503": 0.8}),
            (5, 15),
        ),
        Scenario(
            "meta-429",
            META,
            meta("Four of five are refused for pace.", answers={"429": 0.8}, retry_after_seconds=1),
            (5, 15),
        ),
        Scenario(
            "meta-502-html",
            META,
            meta("Half are answered by a proxy's page.", answers={"html_502": 0.5}),
            (5, 12),
            hides=True,
        ),
        Scenario("meta-slow", META, meta("Each answer takes 1.5 s.", latency_ms=1_500), (5, 15)),
        Scenario("meta-down", META, meta_down, (5, 20), hides=True),
        Scenario(
            "status-first",
            META,
            meta("Webhooks come before the call's answer.", answers={"status_before_answer": 1}),
            (5, 12),
        ),
        Scenario(
            "shuffle-storm",
            META,
            meta("Every webhook comes twice, alone, late and in any order.", webhooks=STORM),
            (5, 15),
        ),
        Scenario("net-slow", ALL_LINES, slow_line, (5, 15), hides=True),
        Scenario("net-lossy", ALL_LINES, lossy_line, (5, 15), hides=True),
        Scenario("one-way", ALL_LINES, one_way, (5, 25), hides=True),
        Scenario("black-hole", ALL_LINES, black_hole, (5, 25), hides=True),
        Scenario("partitioned", ALL_LINES, partitioned, (5, 20), hides=True),
        Scenario("cut-again", ALL_LINES, cut_again_and_again, (5, 15), hides=True),
        Scenario("poison-record", only("kafka"), poison_burst, (1, 3)),
        *(
            Scenario(name, targets, dies(moment, what), AT_ONCE, hides=True)
            for name, targets, moment, what in (
                ("dies-before-commit", processes, Moment.COMMIT_ASKED, "kill -9 as it sends a COMMIT."),
                ("dies-after-commit", processes, Moment.COMMIT_ANSWERED, "kill -9 once its COMMIT is answered."),
                ("dies-before-publish", publishing, Moment.PUBLISH_ASKED, "kill -9 as it publishes."),
                ("dies-mid-publish", publishing, Moment.PUBLISH_ANSWERED, "kill -9 once a batch is acknowledged."),
                ("dies-before-offset-commit", processes, Moment.OFFSETS_ASKED, "kill -9 as it commits offsets."),
            )
        ),
        Scenario(
            "commit-answer-lost",
            processes,
            cut(Moment.COMMIT_ASKED, "The line ends behind a COMMIT, before its answer."),
            (5, 10),
            hides=True,
        ),
        Scenario(
            "publish-answer-lost",
            publishing,
            cut(Moment.PUBLISH_ASKED, "The line ends behind a batch, before it is acknowledged."),
            (5, 10),
        ),
        Scenario(
            "dies-before-call",
            dispatchers,
            dies(Moment.CALL_ASKED, "kill -9 as it calls Meta."),
            AT_ONCE,
            hides=True,
        ),
        Scenario(
            "dies-after-request",
            dispatchers,
            dies(Moment.CALL_ASKED, "kill -9 once Meta has the whole call.", passes=True),
            AT_ONCE,
            hides=True,
        ),
        Scenario(
            "dies-after-answer",
            dispatchers,
            dies(Moment.CALL_ANSWERED, "kill -9 as Meta's answer arrives."),
            AT_ONCE,
            hides=True,
        ),
    )
}
