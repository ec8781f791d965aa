"""`sendwhy send`: publishes the lines of a file on send.requested, as an upstream system would."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from sendwhy.connections import ask_kafka
from sendwhy.kafka import connection_options
from sendwhy.settings import KafkaSettings
from sendwhy.topics import MAX_RECORD_BYTES, Topic

from sendwhy_cli.errors import CommandError, Exit


@dataclass
class Sent:
    """What became of the lines. `unreadable` ones are published too: Sendwhy puts them on dead.letters."""

    acknowledged: int = 0
    unreadable: int = 0
    too_large: int = 0
    failed: int = 0
    seconds: float = 0.0


def key_of(line: bytes) -> bytes | None:
    """The record's key: the contact's id or the phone. None where the line is no request; raises nothing."""
    try:
        to = json.loads(line)["to"]
        key = to.get("contact_id") or to.get("phone")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return key.encode(errors="replace") if isinstance(key, str) else None


async def publish(kafka: str | KafkaSettings, lines: Iterable[bytes], on_line: Callable[[int], None]) -> Sent:
    """Publishes each line that isn't blank; `on_line` hears its length. Returns when Kafka has acknowledged all.

    `kafka` is a local stack's `host:port`, or the settings of another one. Raises CommandError if it can't be reached.
    """
    sent, started = Sent(), time.monotonic()
    settings = KafkaSettings.model_construct(kafka_bootstrap_servers=kafka) if isinstance(kafka, str) else kafka
    producer = AIOKafkaProducer(
        **connection_options(settings),
        enable_idempotence=True,
        linger_ms=5,
        max_batch_size=256 * 1024,
        max_request_size=MAX_RECORD_BYTES,
    )
    try:
        try:
            await producer.start()
            for line in lines:
                await _send(producer, line.strip(), sent)
                on_line(len(line))
        finally:
            await producer.stop()
    except KafkaError as error:
        why = await ask_kafka(settings) or error
        raise CommandError(
            Exit.UNREACHABLE,
            f"Kafka at {settings.kafka_bootstrap_servers}: {why}; {sent.acknowledged} requests were acknowledged, and"
            " sending the file again changes nothing for them",
        ) from error
    sent.seconds = time.monotonic() - started
    return sent


async def _send(producer: AIOKafkaProducer, line: bytes, sent: Sent) -> None:
    if not line:
        return
    key = key_of(line)
    try:
        acknowledged = await producer.send(Topic.SEND_REQUESTED, line, key=key)
    except MessageSizeTooLargeError:
        sent.too_large += 1
        return
    sent.unreadable += key is None

    def count(future: Any) -> None:
        if future.cancelled() or future.exception() is not None:
            sent.failed += 1
        else:
            sent.acknowledged += 1

    acknowledged.add_done_callback(count)
