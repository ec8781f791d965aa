"""Asks all that the checks need to know, at once and each within its own short time: one that hangs is `unasked`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from sendwhy.http import Caller
from sendwhy.logs import describe
from sendwhy.postgres import TRANSIENT_ERRORS, Connection, time_of
from sendwhy.problems import Problem
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.settings import PREFIX

from message_log import diagnostics_queries, kafka_probe
from message_log.checks import Answered, InstallationFacts, KafkaFacts, OwnFacts, ServiceFacts
from message_log.freshness import Freshness
from message_log.language import gettext as _
from message_log.language import lazy
from message_log.language import told as translated
from message_log.services import OtherServices, path_of
from message_log.told import Told, with_times
from message_log.workspace_checks import SenderFacts, StoredFacts, WorkspaceFacts

ASK_SECONDS = 4.0
SENDERS_LOOKED_AT = 20
# Everybody's page asks the same of the installation: one answer does for all who look within this time.
INSTALLATION_HOLDS_SECONDS = 3.0
OTHERS = tuple(service for service in Service if service is not Service.MESSAGE_LOG)

FAULTS: tuple[type[BaseException], ...] = (*TRANSIENT_ERRORS, TimeoutError)

T = TypeVar("T")
Look = Callable[[], Awaitable[KafkaFacts]]


class Probes:
    """`seconds`: how long one answer is waited for."""

    def __init__(
        self,
        runtime: Runtime,
        services: OtherServices,
        freshness: Freshness,
        look_at_kafka: Look | None = None,
        *,
        seconds: float = ASK_SECONDS,
    ) -> None:
        self._seconds = seconds
        self._runtime, self._services, self._freshness = runtime, services, freshness
        self._look_at_kafka = look_at_kafka or (lambda: kafka_probe.look(runtime.settings))
        self._looking: asyncio.Task[InstallationFacts] | None = None
        self._looked_at = 0.0

    async def installation(self) -> InstallationFacts:
        looking = self._looking
        is_news = looking is not None and (
            not looking.done() or time.monotonic() - self._looked_at < INSTALLATION_HOLDS_SECONDS
        )
        if looking is None or not is_news:
            looking = self._looking = asyncio.create_task(self._installation())
        return await asyncio.shield(looking)

    async def _installation(self) -> InstallationFacts:
        kafka, own, services = await asyncio.gather(
            self._look_at_kafka(), self._own(), asyncio.gather(*(self._health(service) for service in OTHERS))
        )
        self._looked_at = time.monotonic()
        return InstallationFacts(kafka, own, services)

    async def _own(self) -> OwnFacts:
        now = datetime.now(UTC)
        behind = self._freshness.as_of().behind_seconds
        try:
            async with asyncio.timeout(self._seconds), self._runtime.pool.acquire() as connection:
                asked = datetime.now(UTC)
                told = await time_of(connection)
                answered = datetime.now(UTC)
        except FAULTS as error:
            return OwnFacts(now, lazy("It doesn’t answer (%(why)s).", why=describe(error)), None, behind)
        return OwnFacts(now, None, (told - (asked + (answered - asked) / 2)).total_seconds(), behind)

    async def _health(self, service: Service) -> ServiceFacts:
        now, started = datetime.now(UTC), time.monotonic()
        if not self._services.has_address(service):
            return ServiceFacts(service, now, has_address=False)
        (live, answer), (ready, _unused) = await asyncio.gather(
            self._probe(service, "/livez"), self._probe(service, "/readyz")
        )
        seconds = time.monotonic() - started
        ahead = None if answer is None else _clock_ahead(answer, now, datetime.now(UTC))
        return ServiceFacts(service, now, True, live, ready, seconds, ahead)

    async def _probe(self, service: Service, path: str) -> tuple[Answered, httpx.Response | None]:
        try:
            async with asyncio.timeout(self._seconds):
                answer = await self._services.probe(service, path)
        except TimeoutError:
            return Answered(fault=lazy("no answer within %(seconds)s s", seconds=round(self._seconds))), None
        except httpx.HTTPError as error:
            return Answered(fault=describe(error)), None
        return Answered(answer.status_code, "" if answer.is_success else _detail(answer)), answer

    async def workspace(self, caller: Caller, authorization: str | None, *, sees_everything: bool) -> WorkspaceFacts:
        """Of one workspace, with the rights of who asks (`authorization`; None: other services can't be asked)."""

        async def ask(service: Service, *parts: str) -> Told:
            return await self._ask(authorization, service, path_of(caller.workspace, *parts))

        async def sender_facts(sender: dict[str, Any]) -> SenderFacts:
            place = ("senders", str(sender["sender_id"]))
            return SenderFacts(
                sender,
                *await asyncio.gather(
                    ask(Service.DISPATCHER, *place, "health"), ask(Service.DISPATCHER, *place, "subscription")
                ),
            )

        async def numbers() -> tuple[Told, Sequence[SenderFacts]]:
            senders = await ask(Service.DISPATCHER, "senders")
            listed = senders.body or []
            return senders, await asyncio.gather(*(sender_facts(one) for one in listed[:SENDERS_LOOKED_AT]))

        scope = None if sees_everything else caller.workspace

        async def read(connection: Connection) -> StoredFacts:
            return await diagnostics_queries.stored_facts(connection, caller.workspace, sees_everything=sees_everything)

        (senders, looked_at), silence, stored = await asyncio.gather(
            numbers(), ask(Service.WEBHOOK_INGEST, "webhooks", "silence"), self._read(scope, read)
        )
        more = max(0, len(senders.body or []) - SENDERS_LOOKED_AT)
        return WorkspaceFacts(caller.workspace, datetime.now(UTC), senders, looked_at, more, silence, stored)

    async def _ask(self, authorization: str | None, service: Service, path: str) -> Told:
        if authorization is None:
            name = f"{PREFIX}ACTING_KEY"
            fault = _("%(name)s is not set, so other services can’t be asked for you.", name=name)
            return Told(fault=fault, status=503)
        try:
            answer = await self._services.get(service, path, authorization, seconds=self._seconds)
        except Problem as problem:
            return Told(fault=translated(str(problem.detail)), status=problem.status_code)
        if not answer.is_good:
            return Told(fault=answer.refusal, status=answer.status)
        return Told(body=with_times(answer.body))

    async def _read(self, workspace: str | None, act: Callable[[Connection], Awaitable[T]]) -> T | None:
        try:
            async with asyncio.timeout(self._seconds), self._runtime.within(workspace) as connection:
                return await act(connection)
        except FAULTS:
            return None


def _clock_ahead(answer: httpx.Response, asked: datetime, answered: datetime) -> float | None:
    """How far the clock of who answered is ahead of ours, 0 where it says a second in which we waited for it.

    The header Date has whole seconds, and servers write it once a second: what it says is up to 2 s old."""
    try:
        told = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return None
    if told > answered.timestamp():
        return told - answered.timestamp()
    return min(0.0, told + 2.0 - asked.timestamp())


def _detail(answer: httpx.Response) -> str:
    try:
        told = answer.json()
    except ValueError:
        return ""
    return str(told.get("detail", "")) if isinstance(told, dict) else ""
