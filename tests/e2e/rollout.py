"""Two of every service, and a new release: each replica is ended by SIGTERM and started again, one after the other in
every service at once, while requests come in steadily. Judged by what Meta's simulator and the topics tell.

At any size, against a stack that runs in another terminal:

    SENDWHY_DRAIN_SECONDS=3 .venv/bin/sendwhy up --empty --replicas consent=2 --replicas billing=2 \\
        --replicas dispatcher=2 --replicas webhook-ingest=2 --replicas message-log=2
    .venv/bin/python tests/e2e/rollout.py --stack .state/stack.json --rounds 5 --per-second 40
"""

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from balancer import Balancer
from outside import Json, Outside, highest, outside, until

SERVICES = ["consent", "billing", "dispatcher", "webhook-ingest", "message-log"]
WORKSPACES = 4
PEOPLE = 40
# One workspace runs out of them on the way.
CREDITS = [10_000, 10_000, 10_000, 25]
SETTINGS = {
    "answers": {"answer_131016": 0.03, "failed_131026": 0.05},
    "webhooks": {"reorder": 0.1, "double": 0.2, "delay_ms": [0, 200]},
}
BEAT_SECONDS = 0.2
_WORKED = re.compile(r"^sendwhy_stage_batch_records_count\S* ([\d.e+]+)$", re.MULTILINE)


@dataclass
class Verdict:
    """`violations`: what must not happen; `outcomes`: messages by status and reason; `posts`: webhooks by answer."""

    violations: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    posts: Counter[int | None] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)


@dataclass
class Rollout:
    """`per_second`: requests of all workspaces together; `rounds`: how often every replica is replaced."""

    stack_file: Path
    rounds: int
    per_second: float
    say: Callable[[str], None]
    verdict: Verdict = field(default_factory=Verdict)
    began: float = field(default_factory=time.monotonic)

    async def run(self) -> Verdict:
        stack = json.loads(self.stack_file.read_text())
        async with AsyncExitStack() as opened:
            fronts = {
                service: await opened.enter_async_context(Balancer(stack["replicas"][service]).listening())
                for service in SERVICES
            }
            users = [await opened.enter_async_context(outside(self.stack_file)) for _ in range(WORKSPACES)]
            await users[0].sim("PUT", "/settings", SETTINGS)
            for user, credits in zip(users, CREDITS, strict=True):
                hook = f"{fronts['webhook-ingest'].url}/webhooks/meta"
                await user.set_up(credits=credits, webhook_url=hook)
                await user.contacts([(f"c{number}", user.person()) for number in range(PEOPLE)])
            self._say("set up")
            sent = await self._roll_under_load(users, fronts)
            self._say(f"rolled, {sum(map(len, sent))} requests are published")
            for user, ids in zip(users, sent, strict=True):
                await self._judge(user, ids)
            self._say("judged")
        return self.verdict

    def _say(self, told: str) -> None:
        self.say(f"{time.monotonic() - self.began:.0f} s: {told}")

    async def _roll_under_load(self, users: list[Outside], fronts: dict[str, Balancer]) -> list[list[str]]:
        sent: list[list[str]] = [[] for _ in users]
        steady = asyncio.create_task(self._publish(users, sent))
        asking = [
            asyncio.create_task(self._ask(users[0], f"{fronts[service].url}/v1/workspaces/{users[0].workspace}{path}"))
            for service, path in {
                "consent": "/contacts/c1",
                "billing": "/account",
                "dispatcher": f"/senders/{users[0].sender_id}",
                "webhook-ingest": "/webhooks/unmatched",
                "message-log": "/messages?limit=5",
            }.items()
        ]
        try:
            await until(lambda: self._all_work(users[0]), "all replicas work")
            self._say("every replica has worked")
            for _ in range(self.rounds):
                await asyncio.gather(*(self._roll(users[0], service) for service in SERVICES))
                # Those that are new, too.
                await until(lambda: self._all_work(users[0]), "all replicas work")
                self._say("every replica is a new one and has worked")
        finally:
            for task in (steady, *asking):
                task.cancel()
            ended = await asyncio.gather(steady, *asking, return_exceptions=True)
        self.verdict.violations += [repr(one) for one in ended if isinstance(one, Exception)]
        return sent

    async def _publish(self, users: list[Outside], sent: list[list[str]]) -> None:
        number = 0
        while True:
            due = self.per_second * BEAT_SECONDS
            for user, ids in zip(users, sent, strict=True):
                new = [f"m{number + each}" for each in range(round(due / len(users)) or 1)]
                # Noted first: a cancelled publish may have happened.
                ids += new
                await asyncio.shield(user.publish(*(user.request(one, f"c{int(one[1:]) % PEOPLE}") for one in new)))
            number += len(new)
            await asyncio.sleep(BEAT_SECONDS)

    async def _ask(self, user: Outside, url: str) -> None:
        """Somebody who reads, on kept connections, without a second try."""
        bearer = {"authorization": f"Bearer {user.stack['admin_token']}"}
        async with httpx.AsyncClient(timeout=30, headers=bearer) as http:
            while True:
                try:
                    told = str((await http.get(url)).status_code)
                except httpx.TransportError as error:
                    told = repr(error)
                self.verdict.asked[told] += 1
                if told != "200":
                    self.verdict.violations.append(f"{url} was answered {told}")
                await asyncio.sleep(BEAT_SECONDS / 2)

    async def _all_work(self, user: Outside) -> bool:
        """Whether every process has handled records of some topic."""
        urls = [url for service in SERVICES for url in user.stack["replicas"][service]]
        texts = await asyncio.gather(*(user.http.get(f"{url}/metrics") for url in urls))
        return all(sum(map(float, _WORKED.findall(text.text))) > 0 for text in texts)

    async def _roll(self, user: Outside, service: str) -> None:
        for number, url in enumerate(user.stack["replicas"][service]):
            old = user.stack["pids"][service][number]
            os.kill(old, signal.SIGTERM)

            async def is_new(number: int = number, url: str = url, old: int = old) -> bool:
                if user.stack["pids"][service][number] == old:
                    return False
                try:
                    return (await user.http.get(f"{url}/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(is_new, f"{service} {number} is back", 300)

    # --- what came of it ---

    async def _judge(self, user: Outside, ids: list[str]) -> None:
        rejected, statuses = await self._ended(user, ids)
        self._posts_are_good(await self._webhooks(user))
        taken = Counter(_message_of(call) for call in await user.calls() if call["http_status"] == 200)
        told_by_meta = await self._told_by_meta(user)
        logged = await user.settled(ids, good="read")
        for one in ids:
            self._judge_message(user, one, rejected.get(one, []), statuses.get(one, []), taken[one])
            if one not in rejected and (logged[one][0], highest(statuses.get(one, []))) != (told_by_meta.get(one),) * 2:
                self._wrong(user, one, f"Meta says {told_by_meta.get(one)}, the log {logged[one]}")
            self.verdict.outcomes[f"{logged[one][0]} {logged[one][1] or ''}".strip()] += 1
        strangers = taken.keys() - set(ids)
        if strangers:
            self.verdict.violations.append(f"{user.workspace}: nobody asked for {sorted(strangers)}")
        await self._ledger_sums_up(user, taken, {one for one in ids if logged[one][0] == "failed"})

    def _wrong(self, user: Outside, message_id: str, what: str) -> None:
        self.verdict.violations.append(f"{user.workspace} {message_id}: {what}")

    async def _ended(self, user: Outside, ids: list[str]) -> tuple[dict[str, list[Json]], dict[str, list[Json]]]:
        """Wait until each message has an outcome; rejections and statuses by message."""
        rejected: dict[str, list[Json]] = {}
        statuses: dict[str, list[Json]] = {}

        async def all_ended() -> bool:
            rejected.clear()
            statuses.clear()
            rejected.update(_by_message(await user.events("send.rejected")))
            statuses.update(_by_message(await user.events("status.updated")))
            ended = {one for one, events in statuses.items() if highest(events) in ("read", "failed")}
            return ended | rejected.keys() >= set(ids)

        await until(all_ended, "each message has its outcome", 120 + len(ids) / 20)
        return rejected, statuses

    def _judge_message(self, user: Outside, one: str, rejected: list[Json], statuses: list[Json], taken: int) -> None:
        if (
            len({event["event_id"] for event in rejected})
            + len({event["event_id"] for event in statuses if event["status"] == "accepted"})
            != 1
        ):
            self._wrong(user, one, f"its outcomes: {rejected + statuses}")
        if taken != (0 if rejected else 1):
            self._wrong(user, one, f"Meta took it {taken} times")
        codes = {event["reason"]["code"] for event in rejected}
        if codes - {"INSUFFICIENT_CREDITS"}:
            self._wrong(user, one, f"rejected: {codes}")

    async def _webhooks(self, user: Outside) -> list[Json]:
        """The simulator's book of what it posted, once all is delivered."""
        found: list[Json] = []

        async def all_delivered() -> bool:
            answer = await user.sim("GET", "/webhooks")
            found[:] = [json.loads(line) for line in answer.text.splitlines()]
            return all(one["delivered"] for one in found)

        await until(all_delivered, "each webhook is delivered")
        mine = f"sw1:{user.workspace}:"
        return [one for one in found if (one["biz_opaque_callback_data"] or "").startswith(mine)]

    def _posts_are_good(self, webhooks: list[Json]) -> None:
        for webhook in webhooks:
            answers = [one["http_status"] for one in webhook["tries"]]
            self.verdict.posts.update(answers)
            if set(answers) - {200, 503}:
                self.verdict.violations.append(f"webhook posts were answered {answers}")

    async def _told_by_meta(self, user: Outside) -> dict[str, str | None]:
        told = defaultdict(list)
        for webhook in await self._webhooks(user):
            told[_message_of(webhook)].append({"status": webhook["status"]})
        return {one: highest(events) for one, events in told.items()}

    async def _ledger_sums_up(self, user: Outside, taken: Counter[str], failed: set[str]) -> None:
        async def is_settled() -> bool:
            account = await user.ok("GET", "billing", "/account")
            captured = [entry for entry in await user.ledger() if entry["kind"] == "capture"]
            return account["reserved"] == 0 and len(captured) >= len(taken.keys() - failed)

        await until(is_settled, "every message is paid for or given back")
        entries = await user.ledger()
        kinds = Counter((entry["message_id"], entry["kind"]) for entry in entries if entry["message_id"])
        twice = [each for each, times in kinds.items() if times > 1]
        balance = await user.balance()
        paid: Counter[str] = Counter()
        for entry in entries:
            if entry["message_id"]:
                paid[entry["message_id"]] -= entry["amount"]
        wrong = [one for one, amount in paid.items() if amount != (1 if one in taken.keys() - failed else 0)]
        if twice or wrong or sum(entry["amount"] for entry in entries) != balance or balance < 0:
            self.verdict.violations.append(f"{user.workspace}'s ledger: {twice=} {wrong=} {balance=}")


def _message_of(row: Json) -> str:
    return str(row["biz_opaque_callback_data"]).split(":", 2)[2]


def _by_message(events: list[Json]) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = defaultdict(list)
    for event in events:
        found[event["message_id"]].append(event)
    return dict(found)


async def main(stack_file: Path, rounds: int, per_second: float) -> int:
    verdict = await Rollout(stack_file, rounds, per_second, print).run()
    print(dict(verdict.outcomes), f"webhooks: {dict(verdict.posts)}, requests: {dict(verdict.asked)}")
    print(f"{len(verdict.violations)} violations", *verdict.violations[:50], sep="\n")
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", type=Path, default=Path(".state/stack.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-second", type=float, default=40)
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.stack, arguments.rounds, arguments.per_second)))
