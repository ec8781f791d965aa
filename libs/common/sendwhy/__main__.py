"""`python -m sendwhy topics`: create Kafka's topics, a deploy step."""

import asyncio
import sys

from sendwhy import logs
from sendwhy.connections import CannotStart, SystemExitAgain, ask_kafka, once_kafka_serves, reach
from sendwhy.kafka import create_topics
from sendwhy.settings import KafkaSettings, SystemExit2, load


async def make(settings: KafkaSettings) -> None:
    created = await create_topics(settings)
    print(f"{len(created)} topics created", file=sys.stderr)  # noqa: T201 - a command's answer


async def main() -> None:
    settings = load(KafkaSettings)
    logs.set_up("topics", settings.replica)
    await reach("Kafka", lambda: ask_kafka(settings))
    try:
        await once_kafka_serves(lambda: make(settings), settings.kafka_security_protocol)
    except CannotStart as refusal:
        raise SystemExitAgain(refusal.line) from None


if sys.argv[1:] != ["topics"]:
    raise SystemExit2("usage: python -m sendwhy topics")
asyncio.run(main())
