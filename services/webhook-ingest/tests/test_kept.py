"""What was answered 200 is never lost: Kafka frozen and killed, the service killed, all under load."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from ingest_service import Ingest
from ingest_webhooks import callback, sender, signature, status, statuses
from sendwhy.events import StatusUpdated
from sendwhy.kafka import create_topics
from sendwhy.settings import KafkaSettings
from sendwhy.topics import Topic

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
NUMBER = "100000000000201"
SENDERS = 8
PAUSE_SECONDS = 0.02


class Meta:
    """Posts webhooks one after the other, on several lines at once, and each again until it is answered 200."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/webhooks/meta"
        self._numbers, self._lock = count(), threading.Lock()
        self._ends = threading.Event()
        self.taken: list[bytes] = []
        self.answers: Counter[int] = Counter()
        self._lines = [threading.Thread(target=self._line) for _ in range(SENDERS)]

    @contextmanager
    def posting(self) -> Iterator[None]:
        for line in self._lines:
            line.start()
        try:
            yield
        finally:
            self._ends.set()
            for line in self._lines:
                line.join()

    def _line(self) -> None:
        with httpx.Client(trust_env=False, timeout=30) as http:
            while not self._ends.is_set():
                with self._lock:
                    number = next(self._numbers)
                told = status("delivered", f"wamid.kept.{number}", **callback(f"kept-{number}"))
                raw = statuses(told, number=NUMBER, waba=f"9{NUMBER}")
                while (answer := self._post(http, raw)) != 200:
                    time.sleep(PAUSE_SECONDS)
                    if answer == 0 and self._ends.is_set():
                        return
                with self._lock:
                    self.taken.append(raw)
                time.sleep(PAUSE_SECONDS)

    def _post(self, http: httpx.Client, raw: bytes) -> int:
        try:
            code = http.post(self._url, content=raw, headers={"x-hub-signature-256": signature(raw)}).status_code
        except httpx.TransportError:
            # The service is just being killed.
            code = 0
        with self._lock:
            self.answers[code] += 1
        return code

    def takes_more(self, service: Ingest) -> None:
        """Wait until more of it is taken."""
        before = len(self.taken)
        service.wait_for(lambda: len(self.taken) > before + 5 * SENDERS)


@pytest.mark.timeout(300)
def test_nothing_that_was_answered_200_is_lost(own_kafka: Any, fresh_database: str, tmp_path: Path) -> None:
    kafka, run = own_kafka
    run(create_topics(KafkaSettings(kafka_bootstrap_servers=kafka.bootstrap)))
    service = Ingest(kafka.bootstrap, fresh_database, tmp_path / "out.log")
    service.start(os.environ)
    try:
        service.publish([sender(NUMBER)])
        meta = Meta(service.url)
        with meta.posting():
            meta.takes_more(service)

            kafka.process.signal(signal.SIGSTOP)
            service.wait_for(lambda: meta.answers[503] > 0)
            kafka.process.signal(signal.SIGCONT)
            meta.takes_more(service)

            refused = meta.answers[503]
            kafka.process.signal(signal.SIGKILL)
            run(kafka.process.wait())
            service.wait_for(lambda: meta.answers[503] > refused)
            run(kafka.start())
            meta.takes_more(service)

            for _ in range(2):
                time.sleep(random.uniform(0, 0.3))
                service.kill()
                service.start(os.environ)
                meta.takes_more(service)
        assert set(meta.answers) <= {0, 200, 503}
        kept = Counter(record.value for record in service.records(Topic.WEBHOOK_RECEIVED))
        assert [raw for raw in meta.taken if raw not in kept] == []
        expected = {f"kept-{number}" for number in range(len(meta.taken))}
        assert expected <= service.wait_for(lambda: told if len(told := _told(service)) >= len(meta.taken) else None)
    finally:
        service.stop()


def _told(service: Ingest) -> set[str]:
    """The messages of which the service has told; each always by the same event."""
    events = [StatusUpdated.model_validate_json(record.value) for record in service.records(Topic.STATUS_UPDATED)]
    by_message = {(event.message_id, event.event_id) for event in events}
    assert len(by_message) == len({message_id for message_id, _ in by_message})
    return {message_id for message_id, _ in by_message if message_id}
