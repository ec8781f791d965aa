"""The table of metrics: what may stand in a label, and that a flood makes no more series than it allows."""

import re

import pytest
from fastapi import APIRouter, FastAPI
from httpx import ASGITransport, AsyncClient
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from sendwhy.measured import Measured
from sendwhy.metrics import LABELS, METRICS, OTHER, FirstFew, Metric, Metrics, MetricSpec
from sendwhy.reasons import CATALOGUE, Service
from sendwhy.topics import Topic

PERSONAL = {"message", "message_id", "contact", "contact_id", "phone", "wamid", "template", "campaign", "workspace"}


@pytest.mark.parametrize("metric", Metric)
def test_a_metric_is_named_by_the_conventions_and_bounded(metric: Metric) -> None:
    spec = METRICS[metric]
    assert re.fullmatch(r"sendwhy_[a-z_]+", metric)
    assert set(spec.labels) <= LABELS.keys() - PERSONAL
    assert spec.series_max <= 4000
    assert not spec.buckets or metric.endswith(("_seconds", "_records"))
    assert list(spec.buckets) == sorted(spec.buckets)


def test_the_bounds_hold_for_what_is_closed() -> None:
    assert LABELS["stage"] >= len(Topic)
    assert LABELS["topic"] >= len(Topic)
    assert LABELS["reason"] == len(CATALOGUE)
    assert LABELS.keys() == {label for spec in METRICS.values() for label in spec.labels}


@pytest.mark.parametrize("service", Service)
def test_a_new_service_starts_within_the_bounds(service: Service) -> None:
    metrics = Metrics(service)
    assert {metric: count for metric, count in metrics.counted() if count > METRICS[metric].series_max} == {}


def test_a_services_own_failures_are_counted_from_zero() -> None:
    value = Metrics(Service.MESSAGE_LOG).registry.get_sample_value
    for code, info in CATALOGUE.items():
        for service in info.services:
            labels = {"service": service, "reason": code, "origin_kind": "campaign"}
            assert value(Metric.FAILURES, labels) == 0


def test_only_the_first_few_have_a_name() -> None:
    name = FirstFew(2)
    assert [name(one) for one in ("a", "b", "c", "a", "d", "b")] == ["a", "b", OTHER, "a", OTHER, "b"]


def test_a_histogram_counts_its_buckets_as_series() -> None:
    assert MetricSpec("m", ("percent",), (1.0, 2.0)).series_max == 3 * 5


async def test_requests_are_counted_by_template_whatever_paths_come() -> None:
    metrics, app = Metrics(Service.CONSENT), FastAPI()
    inner, outer = APIRouter(), APIRouter(prefix="/v1")

    @inner.get("/things/{thing}")
    async def get(thing: str) -> str:
        return thing

    @inner.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    outer.include_router(inner, prefix="/w/{w}")
    app.include_router(outer)
    app.add_middleware(Measured, metrics=metrics)
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://here") as client:
        for number in range(30):
            await client.get(f"/v1/w/acme/things/{number}")
            await client.get(f"/made-up/{number}")
            await client.request(f"MADEUP{number}", "/v1/w/acme/things/1")
        await client.get("/v1/w/acme/broken")

    def count(method: str, route: str, status_class: str) -> float | None:
        labels = {"method": method, "route": route, "status_class": status_class}
        return metrics.registry.get_sample_value(Metric.HTTP_REQUESTS, labels)

    assert count("GET", "/v1/w/{w}/things/{thing}", "2xx") == 30
    assert count("GET", OTHER, "4xx") == 30
    assert count(OTHER, "/v1/w/{w}/things/{thing}", "4xx") == 30
    assert count("GET", "/v1/w/{w}/broken", "5xx") == 1
    assert dict(metrics.counted())[Metric.HTTP_REQUESTS] == 4


@given(st.lists(st.floats(0, 400), max_size=30))
def test_a_histogram_is_told_as_prometheus_own_is(seconds: list[float]) -> None:
    metrics, theirs = Metrics(Service.BILLING), CollectorRegistry()
    spec = METRICS[Metric.STAGE_SECONDS]
    histogram = Histogram(Metric.STAGE_SECONDS, spec.meaning, spec.labels, registry=theirs, buckets=spec.buckets)
    metrics.observe(Metric.STAGE_SECONDS, *seconds, stage="send.consented")
    for each in seconds:
        histogram.labels(stage="send.consented").observe(each)
    if not seconds:
        histogram.labels(stage="send.consented")
    mine = [
        line for line in metrics.text().decode().splitlines() if Metric.STAGE_SECONDS in line and "_sum" not in line
    ]
    wanted = generate_latest(theirs).decode().splitlines()
    assert mine == [line for line in wanted if "_sum" not in line]
    total = metrics.registry.get_sample_value(f"{Metric.STAGE_SECONDS}_sum", {"stage": "send.consented"})
    assert total == pytest.approx(sum(seconds))
