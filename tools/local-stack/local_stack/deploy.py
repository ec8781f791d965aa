"""The deploy steps of all services in this process: `python -m <service> migrate` for each would take five times
as long as all steps together, for the imports. So does this module's import: see `Stack._deploy`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import asyncpg
from aiokafka.errors import KafkaError
from sendwhy import kafka, postgres
from sendwhy.settings import KafkaSettings

from local_stack.errors import StackError
from local_stack.services import module_of


async def create_topics(bootstrap: str) -> None:
    # Not from the environment: the caller's own SENDWHY_KAFKA_ settings are of another Kafka.
    settings = KafkaSettings.model_construct(kafka_bootstrap_servers=bootstrap, replica="sendwhy-up")
    try:
        await kafka.create_topics(settings)
    except (KafkaError, TimeoutError) as error:
        raise StackError(f"the topics could not be created: {error!r}") from error


async def migrate(service: str, url: str) -> None:
    spec = importlib.util.find_spec(module_of(service))
    if spec is None or spec.origin is None:
        raise StackError(f"{service} is not installed; run `make setup`")
    try:
        await postgres.migrate(url, Path(spec.origin).parent / "migrations")
    except (RuntimeError, asyncpg.PostgresError, OSError) as error:
        raise StackError(f"{service}'s migrations could not be applied: {error}") from error
