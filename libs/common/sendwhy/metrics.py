"""Every metric in one table: name, kind, labels, meaning. Dashboards and rules are tested against it.

Labels never hold a message, contact, phone, template or campaign: `LABELS` names every label there may be, with the
most values that one process may give it, and tests count the series of a running stack against that.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from types import MappingProxyType
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from sendwhy.buckets import Buckets
from sendwhy.reasons import CATALOGUE, Service


class Metric(StrEnum):
    REQUESTS = "sendwhy_requests_total"
    REJECTED = "sendwhy_messages_rejected_total"
    FAILED = "sendwhy_messages_failed_total"
    STEPS = "sendwhy_message_steps_total"
    FAILURES = "sendwhy_message_failures_total"
    SENDER_FAILURES = "sendwhy_sender_failures_total"
    REQUEST_TO_DECISION_SECONDS = "sendwhy_request_to_decision_seconds"
    REQUEST_TO_META_SECONDS = "sendwhy_request_to_meta_seconds"
    OUTCOME_LATE_SECONDS = "sendwhy_outcome_after_expiry_seconds"
    OUTCOMES_OVERDUE = "sendwhy_outcomes_overdue"
    OUTCOME_OVERDUE_SECONDS = "sendwhy_outcome_overdue_oldest_seconds"
    WEBHOOK_TO_VISIBLE_SECONDS = "sendwhy_webhook_to_visible_seconds"
    STATUS_UPDATES = "sendwhy_status_updates_total"
    STAGE_SECONDS = "sendwhy_stage_seconds"
    STAGE_BATCH = "sendwhy_stage_batch_records"
    STAGE_FAILURES = "sendwhy_stage_failures_total"
    WEBHOOK_ACK_SECONDS = "sendwhy_webhook_ack_seconds"
    WEBHOOK_DELIVERIES = "sendwhy_webhook_deliveries_total"
    WEBHOOK_UNKNOWN = "sendwhy_webhook_unknown_total"
    WEBHOOK_ERRORS = "sendwhy_webhook_errors_total"
    QUEUE_MESSAGES = "sendwhy_queue_messages"
    QUEUE_OLDEST_SECONDS = "sendwhy_queue_oldest_age_seconds"
    META_CALL_SECONDS = "sendwhy_meta_call_seconds"
    META_CALLS_IN_FLIGHT = "sendwhy_meta_calls_in_flight"
    META_ERRORS = "sendwhy_meta_errors_total"
    HOLDS = "sendwhy_holds"
    SYNC_FAILURES = "sendwhy_sync_failures_total"
    TOKENS_TO_SEAL = "sendwhy_tokens_to_seal_anew"
    STOP_TO_LAST_SECONDS = "sendwhy_stop_to_last_message_seconds"
    RECEIPTS_MISSING = "sendwhy_receipts_missing_messages"
    RECEIPTS_MISSING_SHARE = "sendwhy_receipts_missing_ratio"
    RECEIPTS_OLDEST_SECONDS = "sendwhy_receipts_oldest_age_seconds"
    SENDERS_SILENT = "sendwhy_senders_silent"
    BALANCE_MISMATCH = "sendwhy_credits_balance_mismatch"
    LOW_BALANCE_ALERTS = "sendwhy_low_balance_alerts_total"
    CREDITS = "sendwhy_credits"
    CREDITS_BOOKED = "sendwhy_credits_booked_total"
    ACCOUNTS_LOW = "sendwhy_accounts_low"
    PRICING_DIFFERENCES = "sendwhy_pricing_differences_total"
    PROJECTION_LAG_SECONDS = "sendwhy_projection_lag_seconds"
    CONSUMER_LAG = "sendwhy_consumer_lag_messages"
    GROUP_LAG = "sendwhy_group_lag_messages"
    GROUP_LAG_SECONDS = "sendwhy_group_lag_seconds"
    GROUP_MEMBERS = "sendwhy_group_members"
    GROUP_LAG_READ = "sendwhy_group_lag_read_timestamp_seconds"
    HTTP_REQUESTS = "sendwhy_http_requests_total"
    HTTP_SECONDS = "sendwhy_http_request_seconds"
    SERVICE_CALL_SECONDS = "sendwhy_service_call_seconds"
    DATABASE_CONNECTIONS = "sendwhy_database_connections"
    LAST_PROGRESS = "sendwhy_last_progress_timestamp_seconds"
    COMMIT_FAILURES = "sendwhy_commit_failures_total"
    DEAD_LETTERS = "sendwhy_dead_letters_total"
    RECORDS_MISSED = "sendwhy_records_missed_total"
    PRODUCER_REBUILDS = "sendwhy_producer_rebuilds_total"
    UNPUBLISHED = "sendwhy_unpublished_events"
    ERASURES_UNFINISHED = "sendwhy_erasures_unfinished"
    BUILD_INFO = "sendwhy_build_info"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """`buckets` (seconds or records) make it a histogram; else the name's ending says counter or gauge."""

    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def series_max(self) -> int:
        """The most series that one process may export of it."""
        sets = 1
        for label in self.labels:
            sets *= LABELS[label]
        return min(sets, LABEL_SETS_MAX) * (len(self.buckets) + 3 if self.buckets else 1)


# 0.25 s, 2 s, 5 s and 900 s are the promises' limits (deploy/prometheus/make_slo.py): a burn rate needs an edge there.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
_WAITS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 600, 3600, 6 * 3600, 24 * 3600)
_ANSWERS = (0.05, 0.25, 1, 5)
_LATE = (0, 10, 60, 300, 900, 3600, 24 * 3600)
SENDERS_MAX = 50
OTHER = "other"

METRICS: Mapping[Metric, MetricSpec] = MappingProxyType(
    {
        Metric.REQUESTS: MetricSpec(
            "send requests read, by origin and result (accepted, duplicate, invalid)", ("origin_kind", "result")
        ),
        Metric.REJECTED: MetricSpec("messages that Meta never took, by who said so and why", ("service", "reason")),
        Metric.FAILED: MetricSpec("messages that Meta took and gave up, or that stayed silent", ("service", "reason")),
        Metric.STEPS: MetricSpec(
            "messages that reached a step, as the message log sees it (requested, passed: consent let it go on,"
            " accepted, sent, delivered, read, failed)",
            ("step", "origin_kind"),
        ),
        Metric.FAILURES: MetricSpec(
            "messages that failed, as the message log sees it, by who said so, why, and what asked for the message",
            ("service", "reason", "origin_kind"),
        ),
        Metric.SENDER_FAILURES: MetricSpec(
            f"messages that failed, by sender (Meta's phone number id): the first {SENDERS_MAX} that fail since the"
            " start by name, then other; none: refused before a sender was chosen",
            ("sender", "reason"),
        ),
        Metric.REQUEST_TO_DECISION_SECONDS: MetricSpec(
            "from a request's arrival in Kafka to its refusal by consent or billing, or to billing's word that it may"
            " go; the dispatcher's time isn't in it",
            (),
            _SECONDS,
        ),
        Metric.REQUEST_TO_META_SECONDS: MetricSpec(
            "from requested_at, or send_at if that is later, to the first call to Meta", ("lane",), _WAITS
        ),
        Metric.OUTCOME_LATE_SECONDS: MetricSpec(
            "from a message's expires_at to its outcome (Meta took it, or it failed), by the clock of who decided; 0:"
            " the outcome came before",
            (),
            _LATE,
        ),
        Metric.OUTCOMES_OVERDUE: MetricSpec(
            "messages without outcome 15 minutes after their expires_at, of what the message log has read; must be 0"
        ),
        Metric.OUTCOME_OVERDUE_SECONDS: MetricSpec(
            "for how long the oldest of those has been past its expires_at; 0: there is none"
        ),
        Metric.WEBHOOK_TO_VISIBLE_SECONDS: MetricSpec(
            "from a status webhook's arrival to the message log's commit", (), _SECONDS
        ),
        Metric.STATUS_UPDATES: MetricSpec(
            "statuses from webhooks, by effect (yes, stale, unknown_message, corrected by a replay)",
            ("status", "applied"),
        ),
        Metric.STAGE_SECONDS: MetricSpec("from a record's arrival in Kafka to our commit", ("stage",), _SECONDS),
        Metric.STAGE_BATCH: MetricSpec("records in one batch", ("stage",), (1, 5, 10, 50, 100, 250, 500)),
        Metric.STAGE_FAILURES: MetricSpec("batches that failed and are tried again", ("stage", "error")),
        Metric.WEBHOOK_ACK_SECONDS: MetricSpec("from a webhook's first byte to our 200", ("source",), _SECONDS),
        Metric.WEBHOOK_DELIVERIES: MetricSpec(
            "webhook deliveries, by answer"
            " (received, refused, unavailable, overloaded, too_large, encoded, malformed, cut)",
            ("source", "result"),
        ),
        Metric.WEBHOOK_UNKNOWN: MetricSpec(
            "things in webhooks that Sendwhy doesn't know yet (field, status, type, code, sender)", ("kind",)
        ),
        Metric.WEBHOOK_ERRORS: MetricSpec(
            "errors that Meta told beside any message's status, by place (value, element) and what they mean",
            ("place", "reason"),
        ),
        Metric.QUEUE_MESSAGES: MetricSpec(
            "messages that wait in the dispatcher, by what for (in_flight: Meta's answer; unknown: a sign whether Meta"
            " took it)",
            ("lane", "waiting_for"),
        ),
        Metric.QUEUE_OLDEST_SECONDS: MetricSpec("age of the oldest waiting message", ("lane",)),
        Metric.META_CALL_SECONDS: MetricSpec(
            "calls to Meta, by outcome (taken, refused, unknown)", ("outcome",), _SECONDS
        ),
        Metric.META_CALLS_IN_FLIGHT: MetricSpec("calls to Meta that are out at this moment"),
        Metric.META_ERRORS: MetricSpec("errors that Meta answered, by code and what was done", ("code", "action")),
        Metric.HOLDS: MetricSpec(
            "holds that stand, by cause and by what is held (sender, token, account, portfolio)", ("cause", "scope")
        ),
        Metric.SYNC_FAILURES: MetricSpec(
            "numbers and templates that could not be read from Meta (refused, unreachable, token, database)", ("cause",)
        ),
        Metric.TOKENS_TO_SEAL: MetricSpec(
            "stored tokens that the newest key didn't seal (older_key: it is still needed; unreadable: by any of ours)",
            ("state",),
        ),
        Metric.STOP_TO_LAST_SECONDS: MetricSpec(
            "from a STOP's webhook to the moment from which no marketing message to that person starts", (), _SECONDS
        ),
        Metric.RECEIPTS_MISSING: MetricSpec("messages that Meta took and whose delivery receipt is still awaited"),
        Metric.RECEIPTS_MISSING_SHARE: MetricSpec(
            "share of each sender's latest 10,000 messages, accepted 10 minutes to 24 hours ago, without final receipt"
        ),
        Metric.RECEIPTS_OLDEST_SECONDS: MetricSpec("age of the oldest message whose delivery receipt is still awaited"),
        Metric.SENDERS_SILENT: MetricSpec(
            "numbers of which nothing is heard although Meta took their messages, by cause (ingest_lags,"
            " signature_refused, meta_late, subscription_gone, nothing_arrives)",
            ("cause",),
        ),
        Metric.BALANCE_MISMATCH: MetricSpec(
            "accounts whose balance, reservations or number of entries differ from their ledger; must be 0"
        ),
        Metric.LOW_BALANCE_ALERTS: MetricSpec(
            "accounts that reached a threshold (20, 10, 0 %) of their last top-up, once each a top-up", ("percent",)
        ),
        Metric.CREDITS: MetricSpec("credits of all workspaces together (balance, reserved)", ("state",)),
        Metric.CREDITS_BOOKED: MetricSpec(
            "credits moved, by kind of ledger entry (reserve, capture, release, refund, recapture, waive, top_up,"
            " adjustment)",
            ("entry",),
        ),
        Metric.ACCOUNTS_LOW: MetricSpec(
            "workspaces that reached a threshold (20, 10, 0 %) of their last top-up since; each counts at its lowest",
            ("percent",),
        ),
        Metric.PRICING_DIFFERENCES: MetricSpec(
            "messages whose pricing by Meta differs from our charge (category, charged_but_free,"
            " billed_but_not_charged)",
            ("kind",),
        ),
        Metric.PROJECTION_LAG_SECONDS: MetricSpec("age of the last event that the message log applied"),
        Metric.CONSUMER_LAG: MetricSpec("records not yet handled", ("stage",)),
        Metric.GROUP_LAG: MetricSpec(
            "records that a consumer group has not committed, read from Kafka by the message log: it stays when the"
            " consumer dies",
            ("group", "topic"),
        ),
        Metric.GROUP_LAG_SECONDS: MetricSpec(
            "for how long the oldest of those has waited, to 15 s, at most since the message log's start",
            ("group", "topic"),
        ),
        Metric.GROUP_MEMBERS: MetricSpec("processes that Kafka counts in a consumer group", ("group", "topic")),
        Metric.GROUP_LAG_READ: MetricSpec("when the message log last read all groups' lag from Kafka"),
        Metric.HTTP_REQUESTS: MetricSpec(
            "answered requests by the route's template and the status' class; the webhooks' door counts its own",
            ("method", "route", "status_class"),
        ),
        Metric.HTTP_SECONDS: MetricSpec("from a request's head to the answer's head", ("route",), _ANSWERS),
        Metric.SERVICE_CALL_SECONDS: MetricSpec(
            "calls of the message log's pages to another service (answered, refused: 4xx, failed)",
            ("service", "result"),
            _ANSWERS,
        ),
        Metric.DATABASE_CONNECTIONS: MetricSpec(
            "connections of this process' pool (busy, idle, unopened); none left but busy: everybody waits", ("state",)
        ),
        Metric.LAST_PROGRESS: MetricSpec("when a consumer last finished a batch or found nothing to do", ("stage",)),
        Metric.COMMIT_FAILURES: MetricSpec("offset commits that Kafka refused", ("stage",)),
        Metric.DEAD_LETTERS: MetricSpec("records put aside with their error", ("topic", "error")),
        Metric.RECORDS_MISSED: MetricSpec("records that Kafka deleted by their age before we read them", ("stage",)),
        Metric.PRODUCER_REBUILDS: MetricSpec("producers replaced after a terminal error"),
        Metric.UNPUBLISHED: MetricSpec("events of ours that wait for the sweep to publish them"),
        Metric.ERASURES_UNFINISHED: MetricSpec(
            "people whose erasure some service has not reported within 10 minutes of the order"
        ),
        Metric.BUILD_INFO: MetricSpec("always 1", ("service", "version")),
    }
)


# Every label there may be, and how many values one process gives it at most. What bounds it: a closed list in the code
# (reasons, topics, Meta's codes in the dispatcher's table, route templates, classes of exceptions), or a cap.
LABELS: Mapping[str, int] = MappingProxyType(
    {
        "action": 8,
        "applied": 4,
        "cause": len(CATALOGUE) + 4,
        "code": 200,
        "entry": 8,
        "error": 40,
        "group": 60,
        "kind": 8,
        "lane": 3,
        "method": 8,
        "origin_kind": 6,
        "outcome": 3,
        "percent": 3,
        "place": 2,
        "reason": len(CATALOGUE),
        "result": 9,
        "route": 200,
        "scope": 5,
        "sender": SENDERS_MAX + 2,
        "service": len(Service),
        "source": 2,
        "stage": 25,
        "state": 8,
        "status": 8,
        "status_class": 5,
        "step": 7,
        "topic": 25,
        "version": 1,
        "waiting_for": 16,
    }
)
# Beside the product of its labels' bounds, which most pairs never fill.
LABEL_SETS_MAX = 600

_ORIGINS = ("campaign", "automation", "inbox", "api", "test")
# What a service counts from 0 on: `rate` and `increase` don't see a series' first value.
_STARTS: Mapping[Metric, tuple[Service, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        Metric.REQUESTS: (Service.CONSENT, (_ORIGINS, ("accepted", "duplicate", "invalid"))),
        Metric.STATUS_UPDATES: (
            Service.WEBHOOK_INGEST,
            (("sent", "delivered", "read", "played", "failed"), ("yes", "stale", "unknown_message")),
        ),
        Metric.WEBHOOK_DELIVERIES: (
            Service.WEBHOOK_INGEST,
            (
                ("meta", "shopify"),
                ("received", "refused", "unavailable", "overloaded", "too_large", "encoded", "malformed", "cut"),
            ),
        ),
        Metric.WEBHOOK_ACK_SECONDS: (Service.WEBHOOK_INGEST, (("meta", "shopify"),)),
        Metric.WEBHOOK_UNKNOWN: (Service.WEBHOOK_INGEST, (("field", "status", "type", "code", "sender"),)),
        Metric.META_CALL_SECONDS: (Service.DISPATCHER, (("taken", "refused", "unknown"),)),
        Metric.REQUEST_TO_META_SECONDS: (Service.DISPATCHER, (("conversation", "transactional", "marketing"),)),
        Metric.STEPS: (
            Service.MESSAGE_LOG,
            (("requested", "passed", "accepted", "sent", "delivered", "read", "failed"), _ORIGINS),
        ),
        Metric.CREDITS_BOOKED: (
            Service.BILLING,
            (("reserve", "capture", "release", "refund", "recapture", "waive", "top_up", "adjustment"),),
        ),
    }
)


class FirstFew:
    """A label's value for something of which there may be any number: the first ones by their name, then `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(name)
        return name


class Metrics:
    """One service's metrics, in a registry of their own.

    Counters whose labels are known beforehand start at 0: else rates would miss the first failure.
    """

    def __init__(self, service: Service) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.service = service
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        # A series is looked up several times for each message.
        self._children: dict[tuple[Any, ...], Any] = {}
        self._made: dict[Metric, Any] = {name: self._make(name, spec) for name, spec in METRICS.items()}
        for code, info in CATALOGUE.items():
            if service in info.services:
                self.inc(Metric.REJECTED, 0, service=service, reason=code)
                self.inc(Metric.FAILED, 0, service=service, reason=code)
            if service is Service.MESSAGE_LOG:
                for speaker, origin_kind in product(info.services, _ORIGINS):
                    self.inc(Metric.FAILURES, 0, service=speaker, reason=code, origin_kind=origin_kind)
        for metric, (counts, values) in _STARTS.items():
            if service is counts:
                for labels in product(*values):
                    self.bound(metric, **dict(zip(METRICS[metric].labels, labels, strict=True)))
        self.set(Metric.BUILD_INFO, 1, service=service, version="0.1.0")

    def _make(self, name: Metric, spec: MetricSpec) -> Counter | Gauge | Buckets:
        if spec.buckets:
            histogram = Buckets(name, spec.meaning, spec.labels, spec.buckets)
            self.registry.register(histogram)
            return histogram
        kind = Counter if name.endswith("_total") else Gauge
        return kind(name, spec.meaning, spec.labels, registry=self.registry)

    def _child(self, name: Metric, labels: Mapping[str, str]) -> Any:
        key = (name, *labels.items())
        child = self._children.get(key)
        if child is None:
            made = self._made[name]
            child = made if not METRICS[name].labels and not isinstance(made, Buckets) else made.labels(**labels)
            self._children[key] = child
        return child

    def bound(self, name: Metric, **labels: str) -> Any:
        """The counter or histogram of these labels, to keep where microseconds count."""
        return self._child(name, labels)

    def inc(self, name: Metric, amount: float = 1, **labels: str) -> None:
        self._child(name, labels).inc(amount)

    def set(self, name: Metric, value: float, **labels: str) -> None:
        self._child(name, labels).set(value)

    def replace(self, name: Metric, values: Iterable[tuple[Mapping[str, str], float]]) -> None:
        """Set a gauge's whole picture: label sets that are not in `values` disappear."""
        self._made[name].clear()
        self._children = {key: child for key, child in self._children.items() if key[0] is not name}
        for labels, value in values:
            self._child(name, labels).set(value)

    def observe(self, name: Metric, *values: float, **labels: str) -> None:
        self._child(name, labels).observe(*values)

    def told(self, name: Metric) -> dict[tuple[str, ...], float]:
        """A gauge's present values, by the values of its labels. The registry would collect all metrics for each."""
        samples = (sample for family in self._made[name].collect() for sample in family.samples)
        return {tuple(sample.labels[label] for label in METRICS[name].labels): sample.value for sample in samples}

    def counted(self) -> Iterator[tuple[Metric, int]]:
        """How many series there are of each metric."""
        for name, made in self._made.items():
            yield name, sum(len(family.samples) for family in made.collect())

    def text(self) -> bytes:
        return generate_latest(self.registry)
