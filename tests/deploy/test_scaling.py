"""The scaling guide's arithmetic, and that its figures are of the tables, topics and readers that there are."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import scaling
from sendwhy.topics import EVENT_RETENTION_DAYS, TOPICS

ROOT = Path(__file__).parents[2]
FIGURES = scaling.load()
CASE = scaling.Case(1000)


def test_it_counts_as_by_hand() -> None:
    own = {"cpu_us": 500, "postgres_cpu_us": 100, "kafka_cpu_us": 50, "memory_mib": 64}
    figures = {
        "services": {"consent": own | {"wal_bytes": 16 * 2**10, "wal_fsyncs": 0.01}},
        "topics": {
            "send.requested": {"bytes": 1000, "records": 1, "readers": ["consent"]},
            "contact.updated": {"bytes": 2**10, "records": 1, "readers": []},
        },
        "tables": {"consent": {"decision": {"heap": 6000, "indexes": 2192}, "outbox": {"heap": 1}}},
    }
    found = scaling.size(figures, scaling.Case(100_000, contacts=3 * 2**20, busy_share=0.5))
    (consent,) = found.services
    assert consent.replicas == 100_000 * 500e-6 / 0.5
    assert consent.database_cores == 100_000 * 100e-6 / 0.5
    assert consent.database_disk_gib == pytest.approx(8192 * 47 * 86_400 * 50_000 / 2**30)
    assert consent.write_operations == pytest.approx(100_000 * (0.01 + 1 + 8193 / 8192))
    assert found.kafka.partitions == {"send.requested": 102, "contact.updated": 6}, "in multiples of six"
    assert found.kafka.in_mb_per_second == 100_000 * 1000 * 3 / 1e6
    assert found.kafka.out_mb_per_second == 100_000 * (1000 + 2 * 1000) / 1e6
    assert found.kafka.disk_gib == pytest.approx(3 * (1000 * 14 * 86_400 * 50_000 / 2**30 + 3))
    assert found.meta_numbers == 1250


def test_disk_grows_with_the_rate_and_replicas_never_fall_below_two() -> None:
    small, large = (scaling.size(FIGURES, replace(CASE, rate=rate, contacts=0)) for rate in (1, 100))
    assert large.disk_gib == pytest.approx(100 * small.disk_gib)
    assert {one.replicas for one in small.services} == {2}
    assert all(one.replicas >= 2 for one in large.services)


@pytest.mark.parametrize("rate", [10, 1_000, 100_000])
def test_each_replica_of_a_consumer_has_a_partition(rate: float) -> None:
    found = scaling.size(FIGURES, scaling.Case(rate))
    replicas = {one.name: one.replicas for one in found.services}
    for topic, partitions in found.kafka.partitions.items():
        assert partitions >= max(replicas[name] for name in FIGURES["topics"][topic]["readers"])


def test_the_figures_are_of_what_there_is() -> None:
    """Else they are older than a topic, a reader or a table: measure anew (scaling.json names the command)."""
    apps = runpy.run_path(str(ROOT / "docs" / "generate.py"))["apps"]()
    for topic, told in FIGURES["topics"].items():
        read_by = {str(name) for name, app in apps.items() if topic in {s.topic for s in app.state.runtime.stages}}
        assert set(told["readers"]) == read_by, topic
    assert set(FIGURES["topics"]) <= {str(topic) for topic in TOPICS}
    assert set(FIGURES["services"]) == {str(name) for name in apps}
    for service in FIGURES["services"]:
        assert all(value > 0 for value in FIGURES["services"][service].values()), service
        tables = FIGURES["tables"][service]
        folder = ROOT / "services" / service / service.replace("-", "_") / "migrations"
        files = [*folder.glob("*.sql"), *(ROOT / "libs/common/sendwhy/migrations").glob("*.sql")]
        made = set(re.findall(r"create table (\w+)", "\n".join(file.read_text() for file in files)))
        assert set(tables) <= made
        assert all(scaling.kept_as(service, name) in (None, *scaling.Kept) for name in tables)


def test_what_is_assumed_is_what_the_code_has() -> None:
    settings = runpy.run_path(str(ROOT / "docs" / "generate.py"))["MessageLogSettings"].model_fields
    assert CASE.kafka_days == EVENT_RETENTION_DAYS
    assert CASE.retention_days == settings["event_retention_days"].default
    assert CASE.webhook_days == settings["webhook_retention_days"].default
    assert CASE.partitions_min == max(spec.partitions for spec in TOPICS.values())


def test_the_command_takes_every_assumption() -> None:
    case = scaling.case_of(["--rate", "250", "--retention-days", "30", "--core-price", "20"])
    assert case == scaling.Case(250, retention_days=30, core_price=20)
    assert "price a month" in scaling.report(scaling.size(FIGURES, case))
