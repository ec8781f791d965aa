"""A campaign with every answer of Meta's at random, two replicas, one killed and one frozen on the way."""

import asyncio
import contextlib
import json
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from rig import Account, Dispatcher, Rig, Verdict, judge, until

SENDERS = 4
# Shares of calls. All that Meta can answer, or leave out, has a row: the rest (about two thirds) is taken.
ANSWERS = {
    # passing
    "answer_131016": 0.02,
    "answer_2": 0.02,
    "answer_133004": 0.01,
    "temporary_always": 0.02,
    "answer_130429": 0.002,
    "answer_131056": 0.01,
    # the message's own fault
    "answer_100": 0.01,
    "answer_131008": 0.01,
    "answer_131009": 0.01,
    "answer_131021": 0.01,
    "answer_132000": 0.01,
    "answer_132001": 0.01,
    "answer_132012": 0.01,
    "answer_132018": 0.01,
    "answer_132015": 0.01,
    "answer_132016": 0.01,
    "error_with_200": 0.01,
    "error_data_string": 0.01,
    # the sender's
    "answer_190": 0.0005,
    "answer_10": 0.0005,
    "answer_100_33": 0.0005,
    "answer_368": 0.0005,
    "answer_131031": 0.0005,
    # nobody knows
    "timeout_after_acceptance": 0.003,
    "timeout_before_acceptance": 0.003,
    "reset_after_acceptance": 0.01,
    "reset_before_acceptance": 0.01,
    "close_after_acceptance": 0.01,
    "half_header": 0.01,
    "half_body": 0.01,
    "junk_answer": 0.01,
    "drip": 0.002,
    "html_502": 0.01,
    "html_502_taken": 0.01,
    "html_503": 0.01,
    "junk_with_200": 0.01,
}


@dataclass
class Campaign:
    """`per_second`: of each of the senders."""

    rig: Rig
    messages: int
    per_second: int
    seed: int
    say: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)

    async def run(self) -> Verdict:
        self._say(f"seed {self.seed}")
        replicas = [await self._start(name) for name in "ab"]
        for one in replicas:
            await self.rig.ready(one)
        accounts = [await self.rig.account(replicas[0], per_second=self.per_second) for _ in range(SENDERS)]
        await self.rig.sim("PUT", "/settings", {"latency_ms": 20, "answers": ANSWERS})
        operator = asyncio.create_task(self._repair(accounts, replicas))
        try:
            await self._publish(accounts)
            self._say(f"{self.messages} are published")
            await self._reach(accounts, 0.2)
            replicas[0] = await self._kill(replicas[0])
            await self._reach(accounts, 0.5)
            await self._freeze(replicas[1], accounts)
            await self._reach(accounts, 0.9)
            replicas[0].signal(signal.SIGTERM)
            await replicas[0].gone()
            replicas[0] = await self.rig.ready(await self._start("a"))
            await until(lambda: self._is_settled(accounts), "all settled or put off", 120 + self.messages / 50, 0.5)
        finally:
            operator.cancel()
            await asyncio.gather(operator, return_exceptions=True)
        self._say("settled")
        await self.rig.stop(*replicas)
        await self._all_told()
        return await judge(self.rig, *accounts)

    def _say(self, told: str) -> None:
        self.say(f"{time.monotonic() - self.began:.0f} s: {told}")

    async def _start(self, name: str) -> Dispatcher:
        return await self.rig.start(name, unknown_outcome_seconds=10)

    async def _publish(self, accounts: list[Account]) -> None:
        each = self.messages // SENDERS
        for account in accounts:
            events = [account.funded(number) for number in range(each)]
            # Kafka tells some of them twice.
            chance = random.Random(self.seed)
            await self.rig.publish([*events, *chance.sample(events, each // 20)])

    async def _done(self, accounts: list[Account]) -> int:
        states = await self.rig.states(*accounts)
        return states["accepted"] + states["rejected"] + states["unknown"]

    async def _reach(self, accounts: list[Account], share: float) -> None:
        async def reached() -> bool:
            return await self._done(accounts) >= share * self.messages

        await until(reached, f"{share:.0%} are called", 120 + self.messages / 50, 0.5)
        self._say(f"{share:.0%}: {dict(await self.rig.states(*accounts))}")

    async def _kill(self, victim: Dispatcher) -> Dispatcher:
        victim.signal(signal.SIGKILL)
        await victim.gone()
        self._say(f"{victim.name} was killed")
        return await self.rig.ready(await self._start(victim.name))

    async def _freeze(self, victim: Dispatcher, accounts: list[Account]) -> None:
        """Until somebody else has taken over, and for a while longer."""
        before = sum([await self.rig.fence(account) for account in accounts])
        victim.signal(signal.SIGSTOP)

        async def is_replaced() -> bool:
            return sum([await self.rig.fence(account) for account in accounts]) > before

        try:
            await until(is_replaced, "the frozen one is replaced", 60)
            await asyncio.sleep(2)
        finally:
            victim.signal(signal.SIGCONT)
        self._say(f"{victim.name} was frozen, and replaced")

    async def _repair(self, accounts: list[Account], replicas: list[Dispatcher]) -> None:
        """What an operator does about a hold: puts the token again, or repairs the account and resumes. An outage's
        hold has to end by itself."""
        while True:
            await asyncio.sleep(0.2)
            for account in accounts:
                (row,) = await self.rig.sql("select hold from sender where sender_id = $1", account.sender_id)
                code = json.loads(row["hold"])["code"] if row["hold"] else "TEMPORARY_FAILURE"
                for one in replicas if code != "TEMPORARY_FAILURE" else ():
                    # Who is asked may be dead or frozen just now.
                    with contextlib.suppress(httpx.TransportError):
                        if code == "SENDER_CREDENTIALS_REJECTED":
                            await self.rig.put_sender(one, account, seconds=3)
                        else:
                            await self.rig.resume_sender(one, account, seconds=3)
                        break

    async def _is_settled(self, accounts: list[Account]) -> bool:
        """Nothing is out, and what waits does so for more than some seconds."""
        rows = await self.rig.sql(
            "select count(*) as n, count(*) filter (where state in ('in_flight', 'unknown')"
            " or state = 'waiting' and not_before < now() + interval '10 s') as open"
            " from message where workspace_id = any($1::text[])",
            [one.workspace for one in accounts],
        )
        return bool(rows[0]["n"] == self.messages // SENDERS * SENDERS and not rows[0]["open"])

    async def _all_told(self) -> None:
        """What was committed just before the end is told by the next process."""
        last = await self.rig.ready(await self._start("a"))

        async def is_told() -> bool:
            return not await self.rig.sql("select from outbox limit 1")

        await until(is_told, "all is told", 60)
        await self.rig.stop(last)
