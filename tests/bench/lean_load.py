"""Publishes send requests at a rate, or as fast as Kafka takes them: a process of its own, as lean as it gets.

Message number n asks for contact n modulo the number of contacts, by sender n modulo the number of senders. Records are
put into batches for their partitions here, since aiokafka's own way costs more for each of them than all the rest;
neighbours share a partition, so that a moment's requests are one batch. The moments at which requests were due go to a
file as doubles (unix seconds): those of the plan where there is a rate, so that a late generator can't hide.
"""

import argparse
import asyncio
import json
import time
from array import array
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from aiokafka import AIOKafkaProducer
from sendwhy.topics import TOPICS, Topic

WORKSPACE = "bench"
FIRST_SENDER = 100000000000700
# Each tick is a question that Kafka answers; a request waits half of it.
TICK_SECONDS = 0.05
BURST = 3_000
NEIGHBOURS = 60
BATCH_BYTES = 256 * 1024


def sender_id(number: int) -> str:
    return str(FIRST_SENDER + number)


def contact_id(number: int) -> str:
    return f"c{10_000_000 + number}"


def phone(number: int) -> str:
    return f"+5255{10_000_000 + number}"


def _request(campaign: str) -> bytes:
    """A request with places for message, sender, contact and moment."""
    template = {
        "name": "autumn_sale",
        "language": {"code": "es_MX"},
        "components": [{"type": "body", "parameters": [{"type": "text", "text": "Inés"}]}],
    }
    body = {
        "message_id": "m%d",
        "workspace_id": WORKSPACE,
        "sender_id": "%b",
        "to": {"contact_id": "%b"},
        "origin": {"kind": "campaign", "id": campaign, "name": "Bench"},
        "content": {"type": "template", "template": template},
        "requested_at": "%b",
        "metadata": {"order": "4711"},
    }
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


class Load:
    def __init__(self, producer: AIOKafkaProducer, options: argparse.Namespace) -> None:
        self._producer, self._options = producer, options
        self._body = _request(options.campaign)
        self._senders = [sender_id(number).encode() for number in range(options.senders)]
        self._contacts = [contact_id(number).encode() for number in range(options.contacts)]
        self.moments = array("d")

    async def run(self) -> None:
        first, count, rate = self._options.first, self._options.count, self._options.rate
        started, sent = time.time(), 0
        while sent < count:
            due = min(count, int((time.time() - started) * rate) + 1) if rate else min(count, sent + BURST)
            for number in range(sent, due):
                self.moments.append(started + number / rate if rate else time.time())
            acknowledgements = await self._publish(range(first + sent, first + due))
            if rate:
                await asyncio.sleep(TICK_SECONDS)
            else:
                await asyncio.gather(*acknowledgements)
            sent = due
        await self._producer.flush()

    async def _publish(self, numbers: range) -> list[asyncio.Future[Any]]:
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").encode()
        batches: list[tuple[int, Any]] = []
        current: dict[int, Any] = {}
        for number in numbers:
            contact = number % len(self._contacts)
            partition, key = contact // NEIGHBOURS % self._options.partitions, self._contacts[contact]
            body = self._body % (number, self._senders[number % len(self._senders)], key, moment)
            # A batch that is full takes nothing more.
            while partition not in current or current[partition].append(key=key, value=body, timestamp=None) is None:
                current[partition] = self._producer.create_batch()
                batches.append((partition, current[partition]))
        topic = Topic.SEND_REQUESTED
        return [await self._producer.send_batch(batch, topic, partition=partition) for partition, batch in batches]


async def main(options: argparse.Namespace) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=options.bootstrap, acks="all", max_batch_size=BATCH_BYTES)
    async with producer:
        load, before = Load(producer, options), time.process_time()
        await load.run()
    print(json.dumps({"cpu": time.process_time() - before}), flush=True)
    await asyncio.to_thread(options.moments.write_bytes, load.moments.tobytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=0, help="requests a second; 0: as fast as Kafka takes them")
    parser.add_argument("--contacts", type=int, default=1_000)
    parser.add_argument("--senders", type=int, default=1)
    parser.add_argument("--campaign", default="bench")
    parser.add_argument("--moments", type=Path, required=True)
    parser.set_defaults(partitions=TOPICS[Topic.SEND_REQUESTED].partitions)
    uvloop.run(main(parser.parse_args()))
