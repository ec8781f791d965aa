"""What a set of answers makes of a check, and its remedy: Kafka, databases, services, lag, clocks. Pure.

`workspace_checks` has those of one workspace; `probes` asks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel
from sendwhy.events import Moment
from sendwhy.reasons import Service
from sendwhy.settings import PREFIX
from sendwhy.topics import TOPICS

from message_log.language import decimal, lazy, ngettext
from message_log.language import gettext as _
from message_log.words import duration

PROJECTION_LATE_SECONDS = 15.0
PROJECTION_LOST_SECONDS = 300.0
# Records that wait at one moment are no fault: a campaign's start is thousands. They are read at some hundred a second.
LAG_MUCH = 5_000
# HTTP tells a clock in whole seconds, and may tell the second before.
CLOCK_EXACT_SECONDS = 3.0
CLOCK_WRONG_SECONDS = 30.0


class Result(StrEnum):
    """The worst last. `unasked`: whoever knows it could not be asked."""

    OK = "ok"
    UNASKED = "unasked"
    WARNING = "warning"
    FAILED = "failed"


_RANK = {result: rank for rank, result in enumerate(Result)}
Area = Literal["installation", "numbers", "messages"]


class Check(BaseModel):
    """One check as of `at`. `seen`: what was found, with figures; `why` it matters; `remedy`, `link` (a page's path)
    and `command`: what to do, null where nothing is to do."""

    id: str
    area: Area
    title: str
    about: str | None = None
    result: Result
    seen: str
    at: Moment
    why: str
    remedy: str | None = None
    link: str | None = None
    command: str | None = None


def worst(checks: Iterable[Check]) -> Result:
    return max((check.result for check in checks), key=_RANK.__getitem__, default=Result.OK)


def in_order(checks: Iterable[Check]) -> list[Check]:
    """What needs somebody first."""
    return sorted(checks, key=lambda check: -_RANK[check.result])


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group: of which service, on which topic, how many records wait for it."""

    service: str
    topic: str
    waiting: int


@dataclass(frozen=True, slots=True)
class KafkaFacts:
    """`fault`: why there are no topics; `lag_fault`: why there are no groups."""

    at: datetime
    seconds: float = 0.0
    brokers: int = 0
    fault: str | None = None
    topics: frozenset[str] = frozenset()
    groups: Sequence[Group] = ()
    lag_fault: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """What a service's health address answered; `status` None: nothing, for `fault`."""

    status: int | None = None
    detail: str = ""
    fault: str = ""

    @property
    def is_good(self) -> bool:
        return self.status is not None and self.status < 400


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """`has_address`: whether its *_URL is set; `clock_ahead`: of ours, in seconds."""

    service: Service
    at: datetime
    has_address: bool = True
    live: Answered = Answered()
    ready: Answered = Answered()
    seconds: float = 0.0
    clock_ahead: float | None = None


@dataclass(frozen=True, slots=True)
class OwnFacts:
    """Of this service: what its database answered, and how far its log is behind."""

    at: datetime
    database_fault: str | None = None
    database_clock_ahead: float | None = None
    behind_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class InstallationFacts:
    kafka: KafkaFacts
    own: OwnFacts
    services: Sequence[ServiceFacts] = field(default_factory=tuple)


_ALIVE_WHY: Mapping[Service, str] = {
    Service.CONSENT: lazy(
        "It decides whether a person may be written to; without it new messages stay at the beginning."
    ),
    Service.BILLING: lazy("It reserves the credits of each message; without it messages stop after consent."),
    Service.DISPATCHER: lazy("It calls Meta; without it nothing leaves."),
    Service.WEBHOOK_INGEST: lazy(
        "It takes Meta’s webhooks; without it ticks and STOPs come late, when Meta repeats them."
    ),
    Service.MESSAGE_LOG: lazy("It shows what became of each message, here."),
}
_LOG_HINT = lazy(
    "Read the last lines of its log and start it again; docs/runbook.md, “ServiceDown”, has the usual causes."
)
_KAFKA_NOT_ASKED = lazy("Kafka could not be asked")


def installation_checks(facts: InstallationFacts) -> list[Check]:
    found = [*kafka_checks(facts.kafka), own_database(facts.own)]
    for service in facts.services:
        found += [alive(service), database(service)]
    found += [lag(service, facts.kafka) for service in Service]
    return [*found, projection(facts.own), clocks(facts.own, facts.services)]


def in_short(checks: Sequence[Check], at: datetime) -> Check:
    """All of the installation's checks as one plain word, for those whom its insides don't concern."""
    result = worst(checks)
    seen = {
        Result.OK: _("It works."),
        Result.UNASKED: _("Part of it could not be asked just now."),
        Result.WARNING: _("It works, and something needs a look."),
        Result.FAILED: _("Something does not work."),
    }[result]
    return Check(
        id="installation",
        area="installation",
        title=_("Sendwhy itself"),
        result=result,
        seen=seen,
        at=at,
        why=_("Kafka, the databases and the services carry every message."),
        remedy=None
        if result is Result.OK
        else _("Tell whoever runs this Sendwhy; an admin of all workspaces sees what."),
    )


def kafka_checks(facts: KafkaFacts) -> list[Check]:
    return [_kafka_answers(facts), _topics_exist(facts)]


def _kafka_answers(facts: KafkaFacts) -> Check:
    check = Check(
        id="kafka",
        area="installation",
        title=_("Kafka answers"),
        result=Result.OK,
        seen=ngettext(
            "%(num)s broker, answered in %(span)s",
            "%(num)s brokers, answered in %(span)s",
            facts.brokers,
            span=duration(facts.seconds),
        ),
        at=facts.at,
        why=_(
            "All services talk over Kafka: without it nothing is sent and no receipt is told;"
            " nothing is lost meanwhile."
        ),
    )
    if facts.fault is None:
        return check
    name = f"{PREFIX}KAFKA_BOOTSTRAP_SERVERS"
    remedy = _("Start Kafka, or mend %(name)s and its security; services go on by themselves.", name=name)
    return check.model_copy(update={"result": Result.FAILED, "seen": str(facts.fault), "remedy": remedy})


def _topics_exist(facts: KafkaFacts) -> Check:
    check = Check(
        id="topics",
        area="installation",
        title=_("All topics exist"),
        result=Result.OK,
        seen=_("%(there)s of %(all)s", there=len(TOPICS), all=len(TOPICS)),
        at=facts.at,
        why=_("A service that misses a topic stands still, or its events go nowhere."),
    )
    if facts.fault is not None:
        return check.model_copy(update={"result": Result.UNASKED, "seen": str(_KAFKA_NOT_ASKED)})
    missing = sorted(set(TOPICS) - facts.topics)
    if not missing:
        return check
    told = {
        "result": Result.FAILED,
        "seen": _(
            "%(there)s of %(all)s; missing: %(missing)s",
            there=len(TOPICS) - len(missing),
            all=len(TOPICS),
            missing=", ".join(missing),
        ),
        "remedy": _("Create them with the deploy step; it makes what is missing and changes nothing else."),
        "command": "python -m sendwhy topics",
    }
    return check.model_copy(update=told)


def alive(facts: ServiceFacts) -> Check:
    """Whether a service lives, its consumers move, and it reaches what it needs."""
    check = Check(
        id=f"alive:{facts.service}",
        area="installation",
        title=_("Service is alive"),
        about=facts.service,
        result=Result.OK,
        seen=_("answered in %(span)s; its consumers move", span=duration(facts.seconds)),
        at=facts.at,
        why=str(_ALIVE_WHY[facts.service]),
    )
    if not facts.has_address:
        name = f"{PREFIX}{facts.service.replace('-', '_').upper()}_URL"
        told = {
            "result": Result.UNASKED,
            "seen": _("%(name)s is not set", name=name),
            "remedy": _("Give %(name)s to message-log.", name=name),
        }
    elif facts.live.status is None:
        seen = _("doesn’t answer: %(why)s", why=facts.live.fault)
        told = {"result": Result.FAILED, "seen": seen, "remedy": str(_LOG_HINT)}
    elif not facts.live.is_good:
        told = {
            "result": Result.FAILED,
            "seen": facts.live.detail or _("answered %(status)s", status=facts.live.status),
            "remedy": _("It ends itself and is started again; if that repeats, its log says what it can’t get past."),
        }
    elif _misses(facts, "kafka"):
        remedy = _("Where Kafka is down, mend that: the service goes on by itself. Else: %(hint)s", hint=_LOG_HINT)
        told = {"result": Result.FAILED, "seen": _("It can’t reach Kafka."), "remedy": remedy}
    else:
        told = {}
    return check.model_copy(update=told)


def _misses(facts: ServiceFacts, what: str) -> bool:
    return facts.ready.status is not None and not facts.ready.is_good and what in facts.ready.detail.lower()


def database(facts: ServiceFacts) -> Check:
    """As /readyz of the service says."""
    check = _database(facts.service, facts.at)
    if not facts.has_address or facts.ready.status is None:
        seen = _("%(service)s could not be asked", service=facts.service)
        return check.model_copy(update={"result": Result.UNASKED, "seen": seen})
    if _misses(facts, "database"):
        told = {"result": Result.FAILED, "seen": _("It can’t reach its database."), "remedy": _database_remedy()}
        return check.model_copy(update=told)
    if not facts.ready.is_good and not _misses(facts, "kafka"):
        seen = _("%(path)s answered %(status)s", path="/readyz", status=facts.ready.status)
        return check.model_copy(update={"result": Result.UNASKED, "seen": seen})
    return check


def own_database(facts: OwnFacts) -> Check:
    check = _database(Service.MESSAGE_LOG, facts.at)
    if facts.database_fault is None:
        return check
    told = {"result": Result.FAILED, "seen": str(facts.database_fault), "remedy": _database_remedy()}
    return check.model_copy(update=told)


def _database(service: Service, at: datetime) -> Check:
    return Check(
        id=f"database:{service}",
        area="installation",
        title=_("Database answers"),
        about=service,
        result=Result.OK,
        seen=_("answered"),
        at=at,
        why=_("A service without its database decides nothing; events wait for it in Kafka."),
    )


def _database_remedy() -> str:
    name = f"{PREFIX}DATABASE_URL"
    return _("Start PostgreSQL, or mend %(name)s; look for a full disk and for too many connections.", name=name)


def lag(service: Service, kafka: KafkaFacts) -> Check:
    """How much waits for a service's consumers, from outside of them."""
    groups = [group for group in kafka.groups if group.service == service]
    waiting = sum(group.waiting for group in groups)
    check = Check(
        id=f"lag:{service}",
        area="installation",
        title=_("What waits in Kafka"),
        about=service,
        result=Result.OK,
        seen=_what_waits(groups),
        at=kafka.at,
        why=_("What a consumer has not read yet has not happened: a STOP, a request, a receipt."),
    )
    told: dict[str, object] = {}
    if kafka.fault is not None or kafka.lag_fault is not None:
        told = {"result": Result.UNASKED, "seen": str(kafka.lag_fault or _KAFKA_NOT_ASKED)}
    elif not groups:
        seen = _("no consumer group of it is known")
        told = {"result": Result.UNASKED, "seen": seen, "remedy": str(_LOG_HINT)}
    elif waiting > LAG_MUCH:
        remedy = _("Look again in a minute: if it grows, add a replica, or see in its log what it can’t get past.")
        told = {"result": Result.WARNING, "remedy": remedy}
    return check.model_copy(update=told)


def _what_waits(groups: Sequence[Group]) -> str:
    records = sum(group.waiting for group in groups)
    waiting = ngettext("%(num)s record waits", "%(num)s records wait", records)
    topics = ngettext("in %(num)s topic", "in %(num)s topics", len(groups))
    most = max(groups, key=lambda group: group.waiting, default=None)
    if most is None or not most.waiting:
        return _("%(waiting)s %(topics)s", waiting=waiting, topics=topics)
    return _(
        "%(waiting)s %(topics)s, %(most)s of them in %(topic)s",
        waiting=waiting,
        topics=topics,
        most=decimal(most.waiting),
        topic=most.topic,
    )


def projection(facts: OwnFacts) -> Check:
    behind = facts.behind_seconds
    result = (
        Result.OK
        if behind <= PROJECTION_LATE_SECONDS
        else Result.WARNING
        if behind <= PROJECTION_LOST_SECONDS
        else Result.FAILED
    )
    remedy = _("Look at message-log’s own log for what it repeats; nothing is lost, events wait in Kafka for 14 days.")
    return Check(
        id="projection",
        area="installation",
        title=_("These pages are up to date"),
        about=Service.MESSAGE_LOG,
        result=result,
        seen=_("%(span)s behind", span=duration(behind)),
        at=facts.at,
        why=_("A page that is behind shows a message as it stood."),
        remedy=None if result is Result.OK else remedy,
    )


def clocks(own: OwnFacts, services: Sequence[ServiceFacts]) -> Check:
    """The largest difference from this service's clock, of those that could be read."""
    read: dict[str, float] = {one.service: one.clock_ahead for one in services if one.clock_ahead is not None}
    if own.database_clock_ahead is not None:
        read[_("message-log’s database")] = own.database_clock_ahead
    check = Check(
        id="clocks",
        area="installation",
        title=_("Clocks agree"),
        result=Result.OK,
        seen=ngettext(
            "%(num)s clock within %(seconds)s s of message-log’s",
            "%(num)s clocks within %(seconds)s s of message-log’s",
            len(read),
            seconds=decimal(CLOCK_EXACT_SECONDS),
        ),
        at=own.at,
        why=_("Windows, expiry and the order of a person’s words are reckoned by these clocks."),
    )
    if not read:
        return check.model_copy(update={"result": Result.UNASKED, "seen": _("no clock could be read")})
    name, ahead = max(read.items(), key=lambda pair: abs(pair[1]))
    if abs(ahead) <= CLOCK_EXACT_SECONDS:
        return check
    span = duration(abs(ahead))
    is_ahead = _("%(name)s is %(span)s ahead of message-log", name=name, span=span)
    return check.model_copy(
        update={
            "result": Result.FAILED if abs(ahead) > CLOCK_WRONG_SECONDS else Result.WARNING,
            "seen": is_ahead if ahead > 0 else _("%(name)s is %(span)s behind message-log", name=name, span=span),
            "remedy": _("Let an NTP client (chrony, systemd-timesyncd) keep the time on every machine."),
            "command": "timedatectl status",
        }
    )
