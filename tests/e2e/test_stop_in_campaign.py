"""STOPs against a throttled campaign of 2,000, while consent and dispatcher are killed: nothing marketing leaves for a
person after the dispatcher knew of their STOP, and what had not left is rejected with the STOP as evidence.

"Knew" is the strictest moment that shows outside: the dispatcher's consumer group has committed the offset behind the
contact.updated that says UNSUBSCRIBED. It commits only after its own transaction, and the offsets are read only after
that, so a call to Meta later than this moment was started by a dispatcher that knew.
"""

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from outside import Json, Outside, now_text, until

PEOPLE = 2_000
STOPS = 150
CAMPAIGN = "black-friday"
PER_MINUTE = 1_800
SECONDS_OF_STOPS = 15.0
TOPICS = ("send.rejected", "send.recalled", "send.funded", "status.updated", "contact.updated")
DISPATCHER_HEARS, DISPATCHER_QUEUES = "sendwhy-dispatcher.contact.updated", "sendwhy-dispatcher.send.funded"
# Marked as in flight when the dispatcher was killed, and not called yet, or cut: nobody knows, and it is told later. At
# this pace few are on their way at once.
UNKNOWN, UNKNOWN_AT_MOST = "SEND_OUTCOME_UNKNOWN", 20


def _text(body: str) -> Json:
    return {"message": {"type": "text", "text": {"body": body}}}


# The ways out: words, a quick reply of a template, a button that the workspace named, WhatsApp's own control.
WAYS = [
    *map(_text, ("STOP", "Stop 🙏", "¡BAJA!", "darme de baja, por favor", "СТОП", "fuera")),
    {"message": {"type": "button", "button": {"payload": "17", "text": "Stop promotions"}}},
    {
        "message": {
            "type": "interactive",
            "interactive": {"type": "button_reply", "button_reply": {"id": "PREF_0", "title": "Ya no"}},
        }
    },
    {"marketing": "stop"},
]
OWN = {"stop": ["Fuera"], "stop_buttons": ["pref-0"]}


async def kill(user: Outside, *services: str) -> None:
    """kill -9 at once, and wait until each is back."""
    pids = {service: user.stack["pids"][service][0] for service in services}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    await asyncio.gather(*(_back(user, service, pid) for service, pid in pids.items()))


async def _back(user: Outside, service: str, pid: int) -> None:
    async def back() -> bool:
        # stack.json may be rewritten at this very moment, and the service may not listen yet.
        if pid in user.stack["pids"][service]:
            return False
        try:
            return (await user.http.get(user.at(service, "/readyz"))).status_code == 200
        except OSError:
            return False
        except Exception as error:
            if type(error).__module__.startswith("httpx"):
                return False
            raise

    await until(back, f"{service} is back")


@dataclass
class Ear:
    """What the topics told of one workspace while it was open, and when the dispatcher had heard it."""

    workspace: str
    events: dict[str, list[Json]] = field(default_factory=lambda: defaultdict(list))
    # (partition, offset) of the contact.updated by which each contact is unsubscribed, and when the group was past it.
    stops: dict[str, tuple[int, int]] = field(default_factory=dict)
    known_at: dict[str, datetime] = field(default_factory=dict)
    funded: list[TopicPartition] = field(default_factory=list)

    def hear(self, record: Any) -> None:
        if record.value is None:
            return
        event = json.loads(record.value)
        request = event.get("request") or event.get("funded", {}).get("request") or event
        if request["workspace_id"] != self.workspace:
            return
        self.events[record.topic].append(event)
        if record.topic == "contact.updated" and event["marketing_state"] == "UNSUBSCRIBED":
            self.stops.setdefault(event["contact_id"], (record.partition, record.offset))

    def note_known(self, committed: dict[int, int]) -> None:
        now = datetime.now(UTC)
        for contact_id, (partition, offset) in self.stops.items():
            if contact_id not in self.known_at and committed.get(partition, 0) > offset:
                self.known_at[contact_id] = now

    def of(self, topic: str) -> dict[str, list[Json]]:
        """Events by message."""
        found: dict[str, list[Json]] = defaultdict(list)
        for event in self.events[topic]:
            request = event.get("request") or event.get("funded", {}).get("request") or event
            found[request["message_id"]].append(event)
        return found


@asynccontextmanager
async def listening(user: Outside) -> AsyncIterator[Ear]:
    ear = Ear(user.workspace)
    kafka = user.stack["kafka"]
    topics = AIOKafkaConsumer(*TOPICS, bootstrap_servers=kafka, auto_offset_reset="latest", enable_auto_commit=False)
    group = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=DISPATCHER_HEARS, enable_auto_commit=False)
    await topics.start()
    await group.start()
    await asyncio.gather(*(topics.position(place) for place in topics.assignment()))
    ear.funded = [place for place in topics.assignment() if place.topic == "send.funded"]

    async def hear() -> None:
        while True:
            for records in (await topics.getmany(timeout_ms=50, max_records=2_000)).values():
                for record in records:
                    ear.hear(record)

    async def watch() -> None:
        places = [
            TopicPartition("contact.updated", number) for number in topics.partitions_for_topic("contact.updated")
        ]
        while True:
            offsets = [await group.committed(place) for place in places]
            ear.note_known({place.partition: offset or 0 for place, offset in zip(places, offsets, strict=True)})
            await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(hear()), asyncio.create_task(watch())]
    try:
        yield ear
        assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await topics.stop()
        await group.stop()


async def test_nothing_leaves_after_the_dispatcher_knew_of_a_stop(user: Outside) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    began = time.monotonic()
    phones = {f"c{number}": user.person() for number in range(PEOPLE)}
    await user.set_up(credits=PEOPLE, per_second=500)
    await user.ok("PUT", "dispatcher", f"/throttles/{CAMPAIGN}", {"per_minute": PER_MINUTE})
    await user.ok("PUT", "consent", "/keywords", OWN)
    await user.contacts(phones.items())
    print(f"{time.monotonic() - began:.1f} s: imported")
    since = now_text()
    stopping = chance.sample(sorted(phones), STOPS)
    stops = [(chance.uniform(0, SECONDS_OF_STOPS), phones[name], chance.choice(WAYS)) for name in stopping]
    kills = [(chance.uniform(1, SECONDS_OF_STOPS / 3), service) for service in ("consent", "dispatcher")]
    async with listening(user) as ear:
        requests = [user.request(f"m-{name}", name, origin={"kind": "campaign", "id": CAMPAIGN}) for name in phones]
        await asyncio.gather(
            user.publish(*requests),
            *(later(moment, kill(user, service)) for moment, service in kills),
            *(later(moment, say(user, phone, way)) for moment, phone, way in stops),
        )
        print(f"{time.monotonic() - began:.1f} s: all STOPs are said")

        async def all_known() -> bool:
            judged = ear.of("send.funded").keys() | ear.of("send.rejected").keys()
            return len(ear.known_at) == STOPS and len(judged) == PEOPLE

        await until(all_known, "the dispatcher knows of every STOP", 180)
        print(f"{time.monotonic() - began:.1f} s: the dispatcher knows of every STOP")
        # What it reads after the cancel is cancelled, STOP or not.
        await until(lambda: has_queued(user, ear.funded), "the dispatcher has read every message")
        await user.ok("POST", "dispatcher", f"/campaigns/{CAMPAIGN}/cancel")

        async def all_told() -> bool:
            told = ear.of("send.rejected").keys() | ear.of("status.updated").keys()
            return len(told) >= PEOPLE - UNKNOWN_AT_MOST and recalled(ear) <= ear.of("send.rejected").keys()

        await until(all_told, "every message has its outcome")
        print(f"{time.monotonic() - began:.1f} s: every message has its outcome")
        judge(ear, await campaign_calls(user, since), set(stopping))
        await judge_histogram(user)


async def has_queued(user: Outside, funded: list[TopicPartition]) -> bool:
    kafka = user.stack["kafka"]
    async with AIOKafkaConsumer(bootstrap_servers=kafka, group_id=DISPATCHER_QUEUES, enable_auto_commit=False) as group:
        ends = await group.end_offsets(funded)
        return all([(await group.committed(place) or 0) >= ends[place] for place in funded])


async def later(seconds: float, then: Coroutine[Any, Any, None]) -> None:
    await asyncio.sleep(seconds)
    await then


async def say(user: Outside, phone: str, way: Json) -> None:
    await user.sim("POST", "/inbound", {"phone_number_id": user.sender_id, "from": phone} | way)


async def campaign_calls(user: Outside, since: str) -> dict[str, list[Json]]:
    answer = await user.sim("GET", f"/calls?since={since}")
    mine = f"sw1:{user.workspace}:"
    found: dict[str, list[Json]] = defaultdict(list)
    for line in answer.text.splitlines():
        call = json.loads(line)
        if (call["biz_opaque_callback_data"] or "").startswith(mine):
            found[call["biz_opaque_callback_data"].removeprefix(mine)].append(call)
    return found


def recalled(ear: Ear) -> set[str]:
    return set(ear.of("send.recalled"))


def judge(ear: Ear, calls: dict[str, list[Json]], stopping: set[str]) -> None:
    rejected = ear.of("send.rejected")
    ends: Counter[str] = Counter()
    for message_id in sorted(rejected.keys() | ear.of("send.funded").keys()):
        name = message_id.removeprefix("m-")
        made, told = calls.get(message_id, []), rejected.get(message_id, [])
        assert len(made) <= 1, (message_id, made)
        assert len({event["event_id"] for event in told}) <= 1, told
        if made and name in stopping:
            assert datetime.fromisoformat(made[0]["at"]) <= ear.known_at[name], (message_id, made, ear.known_at[name])
        end = told[0]["reason"]["code"] if told else UNKNOWN
        if made and end == UNKNOWN:
            # Cut by a kill, or told by a receipt that came after it was given up.
            end = "sent" if made[0]["wamid"] else UNKNOWN
        assert not made or end in ("sent", UNKNOWN), (message_id, made, told)
        allowed = {"sent", UNKNOWN, "CUSTOMER_IS_NOT_OPTED_IN" if name in stopping else "CANCELLED"}
        assert end in allowed, (message_id, told)
        if end == "CUSTOMER_IS_NOT_OPTED_IN":
            assert told[0]["service"] == "consent"
            evidence = told[0]["reason"]["evidence"]
            assert evidence["marketing_state"] == "UNSUBSCRIBED"
            assert evidence["source"] in ("stop_reply", "stop_button", "user_preferences")
        ends[f"{'stopped' if name in stopping else 'others'}: {end}"] += 1
    print(dict(ends), f"{len(recalled(ear))} recalled")
    assert recalled(ear) <= {f"m-{name}" for name in stopping}
    assert sum(ends.values()) == PEOPLE
    assert ends[f"stopped: {UNKNOWN}"] + ends[f"others: {UNKNOWN}"] <= UNKNOWN_AT_MOST
    # Else nothing was put to the test: some must have been on their way, some must have left.
    assert recalled(ear)
    assert ends["others: sent"] > 0


async def judge_histogram(user: Outside) -> None:
    """The dispatcher that is there now has measured the STOPs since its start: each once."""
    metrics = (await user.http.get(user.at("dispatcher", "/metrics"))).text
    lines = [line.split() for line in metrics.splitlines() if line.startswith("sendwhy_stop_to_last_message_seconds_")]
    told = {name: float(value) for name, value in lines}
    count = told["sendwhy_stop_to_last_message_seconds_count"]
    total = told["sendwhy_stop_to_last_message_seconds_sum"]
    print(f"{count:.0f} STOPs measured, {total / max(count, 1):.3f} s in the mean")
    assert count > 0
    assert total > 0
