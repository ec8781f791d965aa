"""Every metric in one table: name, kind, labels, meaning. Dashboards and rules are tested against it.

Labels never hold a message, contact, phone, template or campaign: reasons and codes are bounded by the catalogue.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from sendwhy.reasons import CATALOGUE, Service


class Metric(StrEnum):
    REQUESTS = "sendwhy_requests_total"
    REJECTED = "sendwhy_messages_rejected_total"
    FAILED = "sendwhy_messages_failed_total"
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
    PRICING_DIFFERENCES = "sendwhy_pricing_differences_total"
    PROJECTION_LAG_SECONDS = "sendwhy_projection_lag_seconds"
    CONSUMER_LAG = "sendwhy_consumer_lag_messages"
    LAST_PROGRESS = "sendwhy_last_progress_timestamp_seconds"
    COMMIT_FAILURES = "sendwhy_commit_failures_total"
    DEAD_LETTERS = "sendwhy_dead_letters_total"
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


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)

METRICS: Mapping[Metric, MetricSpec] = MappingProxyType(
    {
        Metric.REQUESTS: MetricSpec(
            "send requests read, by origin and result (accepted, duplicate, invalid)", ("origin_kind", "result")
        ),
        Metric.REJECTED: MetricSpec("messages that Meta never took, by who said so and why", ("service", "reason")),
        Metric.FAILED: MetricSpec("messages that Meta took and gave up, or that stayed silent", ("service", "reason")),
        Metric.STATUS_UPDATES: MetricSpec(
            "statuses from webhooks, by effect (yes, stale, unknown_message, corrected by a replay)",
            ("status", "applied"),
        ),
        Metric.STAGE_SECONDS: MetricSpec("from a record's arrival in Kafka to our commit", ("stage",), _SECONDS),
        Metric.STAGE_BATCH: MetricSpec("records in one batch", ("stage",), (1, 5, 10, 50, 100, 250, 500)),
        Metric.STAGE_FAILURES: MetricSpec("batches that failed and are tried again", ("stage", "error")),
        Metric.WEBHOOK_ACK_SECONDS: MetricSpec("from a webhook's first byte to our answer", ("source",), _SECONDS),
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
        Metric.PRICING_DIFFERENCES: MetricSpec(
            "messages whose pricing by Meta differs from our charge (category, charged_but_free,"
            " billed_but_not_charged)",
            ("kind",),
        ),
        Metric.PROJECTION_LAG_SECONDS: MetricSpec("age of the last event that the message log applied"),
        Metric.CONSUMER_LAG: MetricSpec("records not yet handled", ("stage",)),
        Metric.LAST_PROGRESS: MetricSpec("when a consumer last finished a batch or found nothing to do", ("stage",)),
        Metric.COMMIT_FAILURES: MetricSpec("offset commits that Kafka refused", ("stage",)),
        Metric.DEAD_LETTERS: MetricSpec("records put aside with their error", ("topic", "error")),
        Metric.PRODUCER_REBUILDS: MetricSpec("producers replaced after a terminal error"),
        Metric.UNPUBLISHED: MetricSpec("events of ours that wait for the sweep to publish them"),
        Metric.ERASURES_UNFINISHED: MetricSpec(
            "people whose erasure some service has not reported within 10 minutes of the order"
        ),
        Metric.BUILD_INFO: MetricSpec("always 1", ("service", "version")),
    }
)


class Metrics:
    """One service's metrics, in a registry of their own.

    The counters of the service's own reasons start at 0: else rates would miss the first failure.
    """

    def __init__(self, service: Service) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.service = service
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._made: dict[Metric, Any] = {name: self._make(name, spec) for name, spec in METRICS.items()}
        for code, info in CATALOGUE.items():
            if service in info.services:
                self.inc(Metric.REJECTED, 0, service=service, reason=code)
                self.inc(Metric.FAILED, 0, service=service, reason=code)
        self.set(Metric.BUILD_INFO, 1, service=service, version="0.1.0")

    def _make(self, name: Metric, spec: MetricSpec) -> Counter | Gauge | Histogram:
        if spec.buckets:
            return Histogram(name, spec.meaning, spec.labels, registry=self.registry, buckets=spec.buckets)
        kind = Counter if name.endswith("_total") else Gauge
        return kind(name, spec.meaning, spec.labels, registry=self.registry)

    def _child(self, name: Metric, labels: Mapping[str, str]) -> Any:
        return self._made[name].labels(**labels) if METRICS[name].labels else self._made[name]

    def bound(self, name: Metric, **labels: str) -> Any:
        """The counter or histogram of these labels, to keep where microseconds count (looking it up takes four)."""
        return self._child(name, labels)

    def inc(self, name: Metric, amount: float = 1, **labels: str) -> None:
        self._child(name, labels).inc(amount)

    def set(self, name: Metric, value: float, **labels: str) -> None:
        self._child(name, labels).set(value)

    def replace(self, name: Metric, values: Iterable[tuple[Mapping[str, str], float]]) -> None:
        """Set a gauge's whole picture: label sets that are not in `values` disappear."""
        self._made[name].clear()
        for labels, value in values:
            self._child(name, labels).set(value)

    def observe(self, name: Metric, *values: float, **labels: str) -> None:
        observe = self._child(name, labels).observe
        for value in values:
            observe(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)
