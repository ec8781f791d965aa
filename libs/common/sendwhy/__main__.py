"""`python -m sendwhy topics`: create Kafka's topics, a deploy step."""

import asyncio
import sys

from sendwhy import logs
from sendwhy.connections import ask_kafka, reach
from sendwhy.kafka import create_topics
from sendwhy.settings import KafkaSettings, SystemExit2, load

if sys.argv[1:] != ["topics"]:
    raise SystemExit2("usage: python -m sendwhy topics")
settings = load(KafkaSettings)
logs.set_up("topics", settings.replica)
asyncio.run(reach("Kafka", lambda: ask_kafka(settings)))
created = asyncio.run(create_topics(settings))
print(f"{len(created)} topics created", file=sys.stderr)  # noqa: T201 - a command's answer
