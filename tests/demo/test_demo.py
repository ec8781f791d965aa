"""The demo's data, and what becomes of every request in it."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import promql_parser
import pytest
import yaml
from live import PROMETHEUS, Past, prometheus_of, resolved, selectors, stack_of
from sendwhy.events import SendRequested
from sendwhy.metrics import LABELS, METRICS, Metric
from sendwhy.reasons import CATALOGUE, ReasonCode

ROOT = Path(__file__).parents[2]
DATA = ROOT / "demo"
SENDWHY = Path(sys.executable).with_name("sendwhy")
DEMO_SECONDS = 540
# What is rightly empty in a demo that goes well, and why.
EMPTY_PANELS = {
    "Starts of services": "Prometheus may be there more than a minute after all have started",
    "Alerts that page": "whether one fires in two minutes depends on the machine",
}
EMPTY_SELECTORS = {
    "sendwhy_stage_failures_total": "no batch failed; its error is known only then",
    'sendwhy_http_requests_total{status_class="5xx",route!~"/readyz|/livez"}': "no answer was a 5xx",
}
# The demo's few STOPs may all come between two scrapes, and then there is no rate to record.
RARE = 'slo="stop"'


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def make_data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_data", DATA / "make_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_data"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def requests() -> list[dict[str, Any]]:
    return [body for path in sorted((DATA / "requests").iterdir()) for body in lines(path)]


def test_the_files_are_what_make_data_makes(make_data: ModuleType) -> None:
    made = dict(make_data.make())
    there = {str(path.relative_to(DATA)) for pattern in ("*.json", "*.jsonl", "*.csv") for path in DATA.rglob(pattern)}
    assert set(made) == there
    for name, content in made.items():
        assert (DATA / name).read_bytes() == content, f"run demo/make_data.py: {name} differs"


def test_every_request_has_one_expected_outcome() -> None:
    ids = [body["message_id"] for body in requests()]
    assert sorted(ids) == sorted(row["message_id"] for row in lines(DATA / "expected.jsonl"))
    assert len(set(ids)) == len(ids)


def test_every_reason_of_the_catalogue_comes_out_said_by_who_says_it() -> None:
    said = {(row["reason"], row["service"]) for row in lines(DATA / "expected.jsonl") if row["reason"]}
    assert {reason for reason, _ in said} == set(ReasonCode)
    assert all(service in CATALOGUE[ReasonCode(reason)].services for reason, service in said)


def test_the_campaign_has_500_recipients_in_several_countries() -> None:
    campaign = lines(DATA / "requests" / "campaign.jsonl")
    assert len({body["to"]["contact_id"] for body in campaign}) == 500
    assert len({body["metadata"]["segment"] for body in campaign}) >= 8


def test_the_requests_are_readable_but_for_the_two_that_are_not() -> None:
    for body in requests():
        if body["message_id"] not in ("order-4720", "order-4721"):
            SendRequested.model_validate_json(json.dumps(body))


@dataclass(frozen=True)
class Ran:
    """A demo that has ended: its exit code, what it reported, and what Prometheus saw of it, where there is one."""

    code: int
    report: Path
    past: Past | None


@pytest.fixture(scope="module")
def ran() -> Iterator[Ran]:
    # Not pytest's own folder: PostgreSQL's user must get in, and another pytest that starts shuts it out again.
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-demo-"))
    arguments = ["--exit", "--report", str(folder / "out.json"), "--state-dir", str(folder / "state")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SENDWHY_")}
    running = subprocess.Popen([SENDWHY, "demo", *arguments], cwd=ROOT, env=environment, start_new_session=True)
    binary = shutil.which("prometheus")
    try:
        if binary is None:
            yield Ran(running.wait(DEMO_SECONDS), folder / "out.json", None)
            return
        stack = stack_of(folder / "state" / "stack.json", running, DEMO_SECONDS)
        started = time.time()
        with prometheus_of(Path(binary), stack, folder) as address:
            code = running.wait(DEMO_SECONDS)
            yield Ran(code, folder / "out.json", Past(address, started, time.time()))
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
            running.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def past(ran: Ran, prometheus: Path) -> Past:
    """What Prometheus saw; skipped where there is none."""
    assert prometheus
    assert ran.past is not None
    return ran.past


@pytest.mark.stack
@pytest.mark.timeout(DEMO_SECONDS + 60)
def test_every_request_ends_as_its_data_make_it(ran: Ran) -> None:
    assert ran.code == 0
    told = {row["message_id"]: row for row in json.loads(ran.report.read_bytes())}
    expected = {row["message_id"]: row for row in lines(DATA / "expected.jsonl")}
    differing = {name: (row, told.get(name)) for name, row in expected.items() if told.get(name) != row}
    assert not differing, Counter(str(pair[1]) for pair in differing.values())
    assert told.keys() == expected.keys()


# --- what Prometheus saw of it ---


@pytest.mark.stack
def test_every_query_of_every_panel_has_data(past: Past) -> None:
    """Printed with -s, or into the file that SENDWHY_TEST_PANELS names, so that panels can be looked at as data."""
    empty: list[str] = []
    shown: list[str] = []
    for path in sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        shown.append(f"# {dashboard['title']}")
        asked = [(panel["title"], target) for panel in dashboard["panels"] for target in panel["targets"]]
        asked += [(annotation["name"], annotation) for annotation in dashboard["annotations"]["list"]]
        for title, target in asked:
            found = past.query(resolved(target["expr"]))
            shown += [f"## {title} {target.get('legendFormat', '')}", *(f"   {series}" for series in found)]
            if not found and title not in EMPTY_PANELS:
                empty.append(f"{dashboard['title']}: {title}: {target['expr']}")
    print("\n".join(shown))
    if file := os.environ.get("SENDWHY_TEST_PANELS"):
        Path(file).write_text("\n".join(shown))
    assert not empty


@pytest.mark.stack
def test_every_rule_selects_series_that_there_are(past: Past) -> None:
    missing: list[str] = []
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    for name in config["rule_files"]:
        for group in yaml.safe_load((PROMETHEUS / name).read_text())["groups"]:
            for rule in group["rules"]:
                past.query(rule["expr"])
                missing += [
                    f"{rule.get('alert') or rule['record']}: {selector}"
                    for selector in sorted(set(selectors(promql_parser.parse(rule["expr"]))))
                    if selector not in EMPTY_SELECTORS and RARE not in selector and not past.query(selector)
                ]
    assert not missing


@pytest.mark.stack
def test_what_prometheus_counted_is_what_happened(past: Past) -> None:
    """Of the services whose word stands as it was said first; a receipt may correct the others."""
    counted = {
        (series.labels["reason"], series.labels["service"]): series.values[-1]
        for series in past.query("sum by (reason, service) (sendwhy_message_failures_total) > 0")
        if series.labels["service"] in ("consent", "billing")
    }
    rows = lines(DATA / "expected.jsonl")
    expected = Counter((row["reason"], row["service"]) for row in rows if row["service"] in ("consent", "billing"))
    assert counted == expected


@pytest.mark.stack
def test_a_record_of_every_promise_is_written(past: Past) -> None:
    promises = {series.labels["slo"] for series in past.query("slo:sendwhy_budget_burn:ratio_rate1h")}
    assert promises | {"stop"} == {"webhooks", "decisions", "truth", "outcomes", "stop"}


@pytest.mark.stack
def test_no_label_grows_with_the_load(past: Past) -> None:
    """Each label holds no more values than the table allows, and none that names a message, a person or a campaign."""
    counts: Counter[tuple[str, Metric]] = Counter()
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for series in past.query('{__name__=~"sendwhy_.+"}'):
        name = re.sub(r"_(bucket|count|sum)$", "", series.labels["__name__"])
        metric = Metric(name if name in set(Metric) else series.labels["__name__"])
        counts[series.labels["instance"], metric] += 1
        for label in METRICS[metric].labels:
            values[series.labels["instance"], label].add(series.labels[label])
    assert not {key: count for key, count in counts.items() if count > METRICS[key[1]].series_max}
    assert not {key: found for key, found in values.items() if len(found) > LABELS[key[1]]}
    asked = requests()
    forbidden = {body["message_id"] for body in asked} | {str(body["to"].get("contact_id")) for body in asked}
    forbidden |= {str(body["to"].get("phone")) for body in asked} | {str(body["origin"].get("id")) for body in asked}
    forbidden |= {str(body["content"].get("template", {}).get("name")) for body in asked}
    assert not set().union(*values.values()) & (forbidden - {"None"})
    assert len(values) > 50
