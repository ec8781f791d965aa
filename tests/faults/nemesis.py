"""A run: warm-up, faults by a schedule that its seed makes, heal, quiet, a last look, the verdict."""

import asyncio
import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from aiokafka.errors import KafkaError
from field import Field
from gather import Quiet, gather, keep_logs, rebuild_the_log
from history import (
    Bounds,
    Checked,
    FaultBegan,
    FaultEnded,
    Healed,
    History,
    Journal,
    Json,
    Note,
    Quiesced,
    Recovered,
    Run,
    write_run,
)
from judge import judge
from rig import SETTINGS, Rig
from scenarios import SCENARIOS, Scenario
from verdict import Verdict
from workload import PER_SECOND, WORKSPACES, Workload

WARM_UP_SECONDS = 8.0
CALM_SAMPLES = 4
# What a request leads to, each counted in every group that reads it; and for how long some of it may be under way.
RECORDS_PER_REQUEST = 30
CALM_SECONDS = 4
# A machine that can't keep up from the start gets no larger one: it gets pauses.
CALM_SECONDS_AT_MOST = 6
RECOVERY_SECONDS = 600.0
# A machine that is busy with other things catches up only without new requests.
PATIENCE_SECONDS = 60.0
PAUSE_SECONDS = (0.5, 3.0)
# A STOP may come while the longest fault and the recovery from it last.
STOP_SECONDS = 400.0
QUIET_SECONDS = 900.0
POLL_SECONDS = 0.5
FRONTS = ("webhook-ingest", "billing")


@dataclass(frozen=True)
class Plan:
    """`minutes`: how long faults go on; or `faults`: how many. `pairs`: the share that strikes two at a time.
    `brief`: each fault lasts as short as it may."""

    seed: int
    scenarios: tuple[str, ...]
    minutes: float
    faults: int | None = None
    rate: float = 30.0
    pace: int = PER_SECOND
    """Messages a second that each number may."""
    people: int = 120
    replicas: int = 2
    pairs: float = 0.0
    rebuild: bool = True
    brief: bool = False
    pause_seconds: tuple[float, float] = PAUSE_SECONDS
    stop_seconds: float = 30.0
    """From a STOP's 200 to the last marketing call to that person, while no fault is near."""
    quiet_seconds: float = QUIET_SECONDS
    """After healing, until every message has its outcome."""


@dataclass(frozen=True)
class Blow:
    """A fault that the schedule wants: whom it hits is chosen where the system is known."""

    number: int
    scenario: Scenario
    chance: random.Random

    @property
    def id(self) -> str:
        return f"f{self.number}"


def schedule(plan: Plan) -> Iterator[list[Blow]]:
    """What strikes, turn by turn, for ever: each scenario once before any comes again. Each blow has a chance of its
    own, so that a seed makes the same blows however long each of them took."""
    order = random.Random(plan.seed)
    number = 0
    while True:
        round_of = order.sample(plan.scenarios, len(plan.scenarios))
        while round_of:
            names = [round_of.pop(0)]
            if plan.pairs > order.random() and not SCENARIOS[names[0]].alone:
                others = [name for name in round_of if not SCENARIOS[name].alone]
                names += others[:1]
                round_of = [name for name in round_of if name not in names]
            turn = []
            for name in names:
                number += 1
                turn.append(Blow(number, SCENARIOS[name], random.Random(f"{plan.seed}/{number}")))
            yield turn


@dataclass
class Nemesis:
    """`say` tells people how far it is."""

    plan: Plan
    folder: Path
    state_dir: Path
    say: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)
    recoveries: list[Json] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    _calm: int = 0

    def __post_init__(self) -> None:
        self._run_of = Run(
            seed=self.plan.seed,
            commit=commit(),
            command=" ".join(sys.argv),
            began_at=datetime.now(UTC),
            workspaces=[f"faults-{number}" for number in range(1, WORKSPACES + 1)],
            scenarios=list(self.plan.scenarios),
            settings=SETTINGS,
            bounds=Bounds(
                stop=STOP_SECONDS,
                stop_calm=self.plan.stop_seconds,
                unknown_outcome=float(SETTINGS["UNKNOWN_OUTCOME_SECONDS"]),
                call_timeout=float(SETTINGS["META_READ_TIMEOUT_SECONDS"]),
            ),
        )

    async def run(self) -> Verdict:
        write_run(self.folder, self._run_of)
        rig = Rig(self.state_dir, self.plan.replicas)
        with Journal(self.folder) as self._journal:
            try:
                await rig.start()
                self._say("the system is ready")
                async with rig.balanced(FRONTS):
                    await self._run(rig)
            finally:
                await rig.stop()
                keep_logs(rig, self.folder)
        self._say("judging")
        verdict = judge(History.read(self.folder))
        self._write_result(verdict)
        return verdict

    def _say(self, told: str) -> None:
        self.say(f"{time.monotonic() - self.began:6.0f} s  {told}")

    async def _run(self, rig: Rig) -> None:
        load = Workload(rig, self._journal, self.plan.seed, self.plan.rate, self.plan.people, self.plan.pace)
        await load.set_up()
        load.start()
        self._say(f"{self.plan.rate:.0f} requests a second begin")
        try:
            await self._warm_up(rig)
            await self._strike(rig, load)
        finally:
            await load.stop()
        await rig.proxies.reset()
        self._journal.write(Healed())
        self._say(f"healed; {_told(load)}")
        await self._settle(rig, load)
        self._run_of.ended_at = datetime.now(UTC)
        write_run(self.folder, self._run_of)
        await gather(rig, load.tenants, self.folder)
        if self.plan.rebuild:
            await self._rebuild(rig, load)
        await load.close()
        self._counts = dict(load.counts)

    async def _rebuild(self, rig: Rig, load: Workload) -> None:
        try:
            await rebuild_the_log(rig, load.tenants, self.folder)
        except AssertionError as late:
            # All else is to be judged nonetheless.
            self._journal.write(Checked(invariant="I13", what="rebuilds", count=1, violations=[str(late)]))

    async def _warm_up(self, rig: Rig) -> None:
        """Also finds out how much lag is usual under this load, on this machine."""
        lags: list[int] = []
        while len(lags) < CALM_SAMPLES:
            await asyncio.sleep(WARM_UP_SECONDS / CALM_SAMPLES)
            # Of a machine that is busy with other things Kafka may not answer in time.
            with contextlib.suppress(KafkaError, TimeoutError, OSError):
                lags.append(await rig.lag())
        a_second = RECORDS_PER_REQUEST * self.plan.rate
        self._calm = int(min(2 * max(lags), CALM_SECONDS_AT_MOST * a_second) + CALM_SECONDS * a_second)
        self._say(f"warm; a lag of up to {self._calm} counts as none")

    async def _strike(self, rig: Rig, load: Workload) -> None:
        end = time.monotonic() + self.plan.minutes * 60
        for turn in schedule(self.plan):
            done = turn[0].number > (self.plan.faults or float("inf"))
            if done or (self.plan.faults is None and time.monotonic() > end):
                return
            blows = [blow for blow in turn if not self._lacks(blow.scenario, rig)]
            load.check()
            await asyncio.gather(*(self._blow(blow, rig, load) for blow in blows))
            if blows:
                await self._recover(rig, blows, load)
                await asyncio.sleep(blows[0].chance.uniform(*self.plan.pause_seconds))

    def _lacks(self, scenario: Scenario, rig: Rig) -> bool:
        why = scenario.lacks(rig)
        if why and scenario.name not in self.skipped:
            self.skipped[scenario.name] = why
            self._say(f"[skipped] {scenario.name}: {why}")
        return bool(why)

    async def _blow(self, blow: Blow, rig: Rig, load: Workload) -> None:
        target = blow.chance.choice(blow.scenario.targets(rig))
        shortest, longest = blow.scenario.seconds
        seconds = blow.chance.uniform(shortest, shortest if self.plan.brief else longest)
        self._journal.write(
            FaultBegan(
                fault=blow.id,
                scenario=blow.scenario.name,
                target=target,
                parameters={"seconds": round(seconds, 1)},
                may_hide_answers=blow.scenario.hides,
            )
        )
        self._say(f"{blow.id} {blow.scenario.name} {target}, {seconds:.0f} s")
        error = None
        try:
            await blow.scenario.strike(Field(rig, load, blow.chance, seconds), target)
        except Exception as failure:  # noqa: BLE001 - whatever it is, the fault was not as meant, and the run goes on
            error = f"{type(failure).__name__}: {str(failure)[:500]}"
            self._say(f"{blow.id} went wrong: {error}")
        self._journal.write(FaultEnded(fault=blow.id, error=error))

    async def _recover(self, rig: Rig, blows: Sequence[Blow], load: Workload) -> None:
        """Until all are ready and the lag is the usual one; tells how long that took."""
        began = time.monotonic()
        ready, caught_up = await self._caught_up(rig, load, began)
        load.go_on()
        for blow in blows:
            self._journal.write(
                Recovered(what=blow.id, ready_seconds=ready, lag_zero_seconds=caught_up, bound_seconds=RECOVERY_SECONDS)
            )
            self.recoveries.append({"fault": blow.id, "ready_seconds": ready, "lag_seconds": caught_up})
        took = "not" if caught_up is None else f"after {caught_up:.1f} s"
        self._say(f"recovered {took}; {_told(load)}")

    async def _caught_up(self, rig: Rig, load: Workload, began: float) -> tuple[float | None, float | None]:
        """After how many seconds all were ready, and the lag the usual one."""
        ready = None
        while (passed := time.monotonic() - began) < RECOVERY_SECONDS:
            if ready is None and await rig.all_ready():
                ready = time.monotonic() - began
            with contextlib.suppress(KafkaError, TimeoutError, OSError):
                if ready is not None and await rig.lag() <= self._calm:
                    return ready, time.monotonic() - began
            if passed > PATIENCE_SECONDS and load.pause():
                self._journal.write(Note(text="no requests until the lag is the usual one"))
                self._say("no requests until the lag is the usual one: this machine has no time to catch up")
            await asyncio.sleep(POLL_SECONDS)
        return ready, None

    async def _settle(self, rig: Rig, load: Workload) -> None:
        began = time.monotonic()
        ready = None
        # A process that never comes back is for the judge to tell.
        with contextlib.suppress(AssertionError):
            await rig.ready()
            ready = time.monotonic() - began
        left = await Quiet(rig, load.tenants, self._say).wait(self.plan.quiet_seconds)
        quiet = None if left else time.monotonic() - began
        self._journal.write(
            Recovered(ready_seconds=ready, lag_zero_seconds=quiet, bound_seconds=self.plan.quiet_seconds)
        )
        self._journal.write(Quiesced(reached=not left, detail=left))
        self._say(f"quiet after {quiet:.0f} s" if quiet is not None else f"not quiet: {left}")

    def _write_result(self, verdict: Verdict) -> None:
        history = History.read(self.folder)
        ended = {one.fault: one for one in history.of(FaultEnded)}
        recovered = {one["fault"]: one for one in self.recoveries}
        faults = [
            {
                "id": began.fault,
                "scenario": began.scenario,
                "target": began.target,
                "began_at": began.when.isoformat(timespec="milliseconds"),
                "seconds": (ended[began.fault].when - began.when).total_seconds() if began.fault in ended else None,
                "error": ended[began.fault].error if began.fault in ended else "never ended",
                "ready_seconds": recovered.get(began.fault, {}).get("ready_seconds"),
                "recovered_seconds": recovered.get(began.fault, {}).get("lag_seconds"),
            }
            for began in history.of(FaultBegan)
        ]
        result = {
            "seed": self.plan.seed,
            "commit": self._run_of.commit,
            "command": self._run_of.command,
            "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
            "began_at": self._run_of.began_at.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.began),
            "rate": self.plan.rate,
            "replicas": self.plan.replicas,
            "faults": faults,
            "skipped": self.skipped,
            "workload": self._counts,
            "verdict": verdict.to_json(),
        }
        (self.folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def _told(load: Workload) -> str:
    counts = load.counts
    return (
        f"{counts['requests']:,} requests, {counts['repeated']:,} repeats, {counts['planted']} bad records,"
        f" {counts['failed']} not acknowledged, {load.under_way} under way"
    )


def commit() -> str:
    here = Path(__file__).parent
    done = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()
