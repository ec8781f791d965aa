"""Dashboards and alerts against the table of metrics: what they ask for exists, and what they promise is written."""

import json
import re
import runpy
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import promql_parser
import pytest
import yaml
from dispatcher.answers import RULES as RULES_OF_META
from dispatcher.answers import Action
from message_log.queries import Filters
from sendwhy.metrics import METRICS, Metric, Metrics
from sendwhy.reasons import CATALOGUE, ReasonCode, Service

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = {path.name: json.loads(path.read_text()) for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}
PANELS = [pytest.param(panel, id=panel["title"]) for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]]
RULE_FILES: list[str] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["rule_files"]
ALL_RULES: list[dict[str, Any]] = [
    rule
    for name in RULE_FILES
    for group in yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    for rule in group["rules"]
]
RULES = [rule for rule in ALL_RULES if "alert" in rule]
RECORDS = [rule for rule in ALL_RULES if "record" in rule]
ALERTS = [pytest.param(rule, id=f"{rule['alert']}-{rule['labels']['severity']}") for rule in RULES]
# What Prometheus adds to every series.
TARGET_LABELS = frozenset({"job", "instance"})
OTHERS = {
    "up": TARGET_LABELS,
    "process_start_time_seconds": TARGET_LABELS,
    "process_resident_memory_bytes": TARGET_LABELS,
    "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
    **{rule["record"]: frozenset(rule["labels"]) for rule in RECORDS},
}


# What they say is that something doesn't answer, or was refused; how often changes nothing.
WITHOUT_A_NUMBER = ("ServiceDown", "ServiceMissing", "SenderCredentialsRejected", "BatchesFail", "LagUnknown")
# No list of messages shows anything of what they are about.
WITHOUT_MESSAGES = ("ErasureUnfinished", "LagUnknown", "DatabasePoolFull", "HttpFails")


@dataclass(frozen=True)
class Selector:
    """One metric in a query: the labels it is narrowed by, the values that it asks for by their names, and the function
    it stands in, if any."""

    metric: str
    labels: frozenset[str]
    values: frozenset[tuple[str, str]]
    function: str | None


def resolved(expression: str) -> str:
    """An expression as Grafana sends it."""
    return re.sub(r"\$__(rate_interval|range|interval)", "1m", expression).replace("$service", ".*")


def selectors(node: Any, function: str | None = None) -> Iterator[Selector]:
    if isinstance(node, promql_parser.VectorSelector):
        matchers = node.matchers.matchers
        values = frozenset((each.name, value) for each in matchers for value in each.value.split("|"))
        yield Selector(node.name or "", frozenset(matcher.name for matcher in matchers), values, function)
    elif isinstance(node, promql_parser.MatrixSelector):
        yield from selectors(node.vector_selector, function)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from selectors(argument, node.func.name)
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from selectors(node.lhs, function)
        yield from selectors(node.rhs, function)
    elif isinstance(node, promql_parser.AggregateExpr | promql_parser.ParenExpr | promql_parser.SubqueryExpr):
        yield from selectors(node.expr, function)


def grouped_by(node: Any) -> Iterator[str]:
    """The labels that an expression keeps, or matches on."""
    modifier = getattr(node, "modifier", None)
    if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
        yield from modifier.labels
    for name in ("lhs", "rhs", "expr"):
        if (child := getattr(node, name, None)) is not None:
            yield from grouped_by(child)
    for argument in getattr(node, "args", ()):
        yield from grouped_by(argument)


def labels_of(metric: str) -> frozenset[str]:
    """The labels a series of that name has. Fails for a name that no service exports."""
    if metric in OTHERS:
        return OTHERS[metric]
    histogram = re.sub(r"_(bucket|count|sum)$", "", metric)
    if histogram != metric and histogram in set(Metric) and METRICS[Metric(histogram)].buckets:
        extra = frozenset({"le"}) if metric.endswith("_bucket") else frozenset[str]()
        return TARGET_LABELS | frozenset(METRICS[Metric(histogram)].labels) | extra
    assert metric in set(Metric), f"{metric} is in no table"
    assert not METRICS[Metric(metric)].buckets, f"{metric} is a histogram"
    return TARGET_LABELS | frozenset(METRICS[Metric(metric)].labels)


def values_from_the_start() -> dict[tuple[str, str], set[str]]:
    """By series and label: what services count from 0 on, since they know all that there can be."""
    found: dict[tuple[str, str], set[str]] = {}
    for family in (family for service in Service for family in Metrics(service).registry.collect()):
        for sample in family.samples:
            for label, value in sample.labels.items():
                found.setdefault((sample.name, label), set()).add(value)
    return found


KNOWN_VALUES = values_from_the_start()


def check_names(expression: str) -> None:
    tree = promql_parser.parse(resolved(expression))
    found = list(selectors(tree))
    assert found
    for selector in found:
        assert selector.labels <= labels_of(selector.metric), selector
        for label, value in selector.values:
            known_values = KNOWN_VALUES.get((selector.metric, label), {value})
            assert value in known_values or not re.fullmatch(r"\w+", value), f"{value} is no {label}: {selector}"
    known = frozenset().union(*(labels_of(selector.metric) for selector in found))
    assert set(grouped_by(tree)) <= known, expression


def test_dashboards_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "deploy" / "grafana"
    monkeypatch.syspath_prepend(str(folder))
    made = runpy.run_path(str(folder / "make_dashboards.py"))["files"]()
    for path, text in made.items():
        assert path.read_text() == text, "run: python deploy/grafana/make_dashboards.py"
    assert set((folder / "dashboards").glob("*.json")) == set(made)


def test_rules_of_the_promises_are_current() -> None:
    script = runpy.run_path(str(PROMETHEUS / "make_slo.py"))
    assert script["FILE"].read_text() == script["text"](), "run: python deploy/prometheus/make_slo.py"
    for promise in script["PROMISES"]:
        assert promise.seconds in METRICS[Metric(promise.histogram)].buckets, "a promise is counted at a bucket's edge"


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_dashboard_is_provisioned_not_edited(dashboard: dict[str, Any]) -> None:
    assert dashboard["editable"] is False
    assert len(dashboard["panels"]) <= 12
    kinds = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert kinds["datasource"]["type"] == "datasource"
    assert all(variable["refresh"] == 2 for variable in kinds.values() if variable["type"] == "query")
    for annotation in dashboard["annotations"]["list"]:
        check_names(annotation["expr"])
    assert dashboard["annotations"]["list"]
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)


def test_panels_link_to_pages_that_there_are() -> None:
    """Each failure leads to the Messages page with its reason and time, by the page's own names for its filters."""
    links = {
        link["url"]
        for dashboard in DASHBOARDS.values()
        for panel in dashboard["panels"]
        for link in panel["fieldConfig"]["defaults"].get("links", ())
    }
    pages = "".join(path.read_text() for path in (ROOT / "services/message-log/message_log").glob("*_pages.py"))
    for link in links:
        path, _, query = link.removeprefix("${pages}").partition("?")
        assert f'"/w/{{w}}{path}"' in pages, link
        assert set(re.findall(r"(\w+)=", query)) <= {"status", "reason", "from", "to"}
    assert any("reason=${__field.labels.reason}" in link and "from=${__from:date:iso}" in link for link in links)


@pytest.mark.parametrize("panel", PANELS)
def test_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


@pytest.mark.parametrize("panel", PANELS)
def test_panel_asks_for_what_there_is(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        check_names(target["expr"])
        legend = re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))
        assert set(legend) <= set(grouped_by(promql_parser.parse(resolved(target["expr"]))))


@pytest.mark.parametrize("panel", PANELS)
def test_nothing_to_show_is_a_line_at_0_and_a_line_at_0_is_nothing(panel: dict[str, Any]) -> None:
    """A renamed metric has no data either; and what is chosen for being 0 must be drawn as something else."""
    for target in panel["targets"]:
        assert not re.search(r"== 0( or vector\(0\))?$", target["expr"])
        assert panel["type"] == "table" or not re.search(r"> 0\)?$", target["expr"])


def test_what_every_process_exports_is_asked_of_ours_alone() -> None:
    """Prometheus may scrape a whole cluster."""
    everybodys = {"up", "process_start_time_seconds", "process_resident_memory_bytes"}
    asked = [
        selector
        for dashboard in DASHBOARDS.values()
        for query in [
            *dashboard["annotations"]["list"],
            *(each for one in dashboard["panels"] for each in one["targets"]),
        ]
        for selector in selectors(promql_parser.parse(resolved(query["expr"])))
        if selector.metric in everybodys
    ]
    assert {selector.metric for selector in asked} == everybodys
    assert all({("job", str(service)) for service in Service} <= selector.values for selector in asked)


@pytest.mark.parametrize("panel", PANELS)
def test_counters_are_read_as_rates(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        for selector in selectors(promql_parser.parse(resolved(target["expr"]))):
            counts = selector.metric.endswith(("_total", "_bucket", "_count", "_sum"))
            assert counts == (selector.function in ("rate", "increase")), selector
            assert "le" not in selector.labels or selector.metric.endswith("_bucket")
        windows = re.findall(r"\[(.+?)\]", target["expr"])
        assert set(windows) <= {"$__rate_interval", "$__range"}


@pytest.mark.parametrize("rule", ALERTS)
def test_alert_asks_for_what_there_is(rule: dict[str, Any]) -> None:
    check_names(rule["expr"])
    used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    tree = promql_parser.parse(rule["expr"])
    assert used <= set(grouped_by(tree)) or rule["alert"] in ("ServiceDown", "ServiceMissing")


@pytest.mark.parametrize("rule", RECORDS, ids=lambda rule: f"{rule['record']}-{rule['labels']['slo']}")
def test_record_asks_for_what_there_is(rule: dict[str, Any]) -> None:
    check_names(rule["expr"])
    assert re.fullmatch(r"[a-z]+:sendwhy_[a-z_]+:[a-z_]+\d+[mhd]", rule["record"]), "level:metric:operations"


@pytest.mark.parametrize("rule", ALERTS)
def test_alert_has_words_and_a_section_of_the_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    urls = {"runbook_url", "dashboard_url"} | (set() if rule["alert"] in WITHOUT_MESSAGES else {"messages_url"})
    assert set(rule["annotations"]) == {"summary", "description", *urls}
    assert "$value" in rule["annotations"]["summary"] or rule["alert"] in WITHOUT_A_NUMBER
    assert f"{rule['annotations']['dashboard_url'].removeprefix('/d/')}.json" in DASHBOARDS
    filters = dict(parse_qsl(rule["annotations"].get("messages_url", "/").removeprefix("/?")))
    assert Filters.model_validate(filters).model_dump(exclude_none=True) == filters
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    (section,) = re.findall(rf"^## {rule['alert']}\n(.+?)(?=^## |\Z)", runbook, re.MULTILINE | re.DOTALL)
    assert "**Noticed:**" in section
    assert "**First:**" in section


def test_runbook_has_no_section_without_an_alert() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert sections == list(dict.fromkeys(rule["alert"] for rule in RULES))


def test_what_the_runbook_quotes_is_there_to_be_found() -> None:
    """Panels by their titles, lines of logs, metrics: somebody searches for them at night."""
    runbook = " ".join((ROOT / "docs" / "runbook.md").read_text().split())
    sources = [*(ROOT / "libs").rglob("*.py"), *(ROOT / "services").rglob("*.py")]
    said = "\n".join(path.read_text() for path in sources if "tests" not in path.parts) + json.dumps(
        list(DASHBOARDS.values())
    )
    quoted = [words for words in re.findall(r'"([^"]+)"', runbook) if " " in words]
    assert len(quoted) > 10
    assert [words for words in quoted if words not in said] == []
    named = re.findall(r"`(sendwhy_[a-z_]+)", runbook)
    assert [name for name in named if name not in set(Metric)] == []


def test_credentials_alert_asks_for_a_hold_of_that_cause() -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == "SenderCredentialsRejected"]
    assert re.findall(r'cause="(\w+)"', rule["expr"]) == [ReasonCode.SENDER_CREDENTIALS_REJECTED]
    credentials = CATALOGUE[ReasonCode.SENDER_CREDENTIALS_REJECTED].meta_codes | set(range(200, 300))
    assert {RULES_OF_META[code].action for code in credentials} == {Action.HOLD}


def test_prometheus_scrapes_every_service_by_its_name() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert jobs == {str(service): [f"{service}:8080"] for service in Service}


def test_prometheus_reads_rules_and_configuration(promtool: Path) -> None:
    for arguments in (["check", "rules", *RULE_FILES], ["check", "config", "prometheus.yml"]):
        done = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Case:
    """Series by name, one value every 15 s from minute 0, and whether the alert fires at minute `at`."""

    alert: str
    series: dict[str, str]
    at: str
    fires: bool
    severity: str | None = None


REJECTED = 'sendwhy_messages_rejected_total{job="dispatcher",reason="SEND_OUTCOME_UNKNOWN",service="dispatcher"}'
TOKEN = 'sendwhy_holds{job="dispatcher",cause="SENDER_CREDENTIALS_REJECTED",scope="token"}'
UNPAID = 'sendwhy_holds{job="dispatcher",cause="META_PAYMENT_ISSUE",scope="account"}'
HELD = 'sendwhy_queue_messages{job="dispatcher",lane="marketing",waiting_for="hold"}'
PAUSED = 'sendwhy_queue_messages{job="dispatcher",lane="marketing",waiting_for="paused"}'
KEPT = 'sendwhy_webhook_deliveries_total{job="webhook-ingest",source="meta",result="received"}'
LOST = 'sendwhy_webhook_deliveries_total{job="webhook-ingest",source="meta",result="unavailable"}'
DEAD = 'sendwhy_dead_letters_total{job="consent",topic="send.requested",error="unreadable"}'
MISSED = 'sendwhy_records_missed_total{job="consent",stage="send.requested"}'
SILENT = 'sendwhy_senders_silent{job="webhook-ingest",cause="subscription_gone"}'
WITHOUT = 'sendwhy_receipts_missing_ratio{job="webhook-ingest"}'
AWAITED = 'sendwhy_receipts_missing_messages{job="webhook-ingest"}'
LAG = 'sendwhy_consumer_lag_messages{job="billing",stage="send.consented"}'
DONE = 'sendwhy_stage_batch_records_count{job="billing",stage="send.consented"}'
# Four readings, then it is down, then its consumer has joined and asked for nothing yet.
ENDS_ITSELF = "0x8 " + "7x3 _ 0 " * 15
RETRIED = 'sendwhy_stage_failures_total{job="billing",stage="send.consented",error="TypeError"}'
LOW = 'sendwhy_low_balance_alerts_total{job="billing"'
JOBS = ("consent", "billing", "dispatcher", "webhook-ingest", "message-log")
AGE = 'sendwhy_group_lag_seconds{job="message-log",group="sendwhy-billing.send.consented",topic="send.consented"}'
MEMBERS = 'sendwhy_group_members{job="message-log",group="sendwhy-billing.send.consented",topic="send.consented"}'
READ_AT = 'sendwhy_group_lag_read_timestamp_seconds{job="message-log"}'
POOL = 'sendwhy_database_connections{job="billing",instance="a",state='
HTTP = 'sendwhy_http_requests_total{job="message-log",method="GET",route="/w/{w}/messages",status_class='


def promised(histogram: str, seconds: str, in_time: str, all_of_them: str) -> dict[str, str]:
    """What a promise's histogram counts: within its limit, and in all."""
    return {f'{histogram}_bucket{{job="a",le="{seconds}"}}': in_time, f'{histogram}_count{{job="a"}}': all_of_them}


def promise_cases(alert: str, histogram: str, seconds: str) -> list[Case]:
    """All late for an hour: page. A few percent of many: ticket. Few late ones, or none: nothing."""
    late, slow = (
        promised(histogram, seconds, "0x480", "0+5x480"),
        promised(histogram, seconds, "0+95x480", "0+100x480"),
    )
    few = promised(histogram, seconds, "0x480", "0 1 2 3x478")
    return [
        Case(alert, late, "70m", fires=True, severity="page"),
        Case(alert, few, "70m", fires=False),
        Case(alert, promised(histogram, seconds, "0+5x480", "0+5x480"), "70m", fires=False),
        Case(alert, slow, "70m", fires=True, severity="ticket"),
    ]


CASES = [
    *promise_cases("WebhooksBreakPromise", "sendwhy_webhook_ack_seconds", "0.25"),
    Case(
        "WebhooksBreakPromise",
        promised("sendwhy_webhook_ack_seconds", "0.25", "0x480", "0x480") | {LOST: "0+1x480"},
        "70m",
        fires=True,
        severity="page",
    ),
    # Six answered 503 in the last hour, once each: no 10 bad ones.
    Case(
        "WebhooksBreakPromise",
        promised("sendwhy_webhook_ack_seconds", "0.25", "0x480", "0x480") | {LOST: "0x230 0+1x6 6x240"},
        "60m",
        fires=False,
    ),
    *promise_cases("DecisionsBreakPromise", "sendwhy_request_to_decision_seconds", "5.0"),
    *promise_cases("PagesBreakPromise", "sendwhy_webhook_to_visible_seconds", "2.0"),
    *promise_cases("OutcomesBreakPromise", "sendwhy_outcome_after_expiry_seconds", "900.0"),
    *promise_cases("StopsBreakPromise", "sendwhy_stop_to_last_message_seconds", "5.0"),
    Case("ServiceMissing", {f'up{{job="{job}"}}': "1x60" for job in JOBS[1:]}, "10m", fires=True),
    Case("ServiceMissing", {f'up{{job="{job}"}}': "0x60" for job in JOBS}, "10m", fires=False),
    Case("ConsumerLags", {AGE: "0+15x60"}, "14m", fires=True),
    Case("ConsumerLags", {AGE: "0+15x10 0x50"}, "14m", fires=False),
    Case("ConsumerGroupEmpty", {MEMBERS: "2x8 0x60"}, "8m", fires=True),
    Case("ConsumerGroupEmpty", {MEMBERS: "2x8 0x4 2x60"}, "8m", fires=False),
    Case("LagUnknown", {READ_AT: "0+15x8 120x60"}, "9m", fires=True),
    Case("LagUnknown", {'up{job="message-log"}': "1x60"}, "9m", fires=True),
    Case("LagUnknown", {READ_AT: "0+15x60"}, "9m", fires=False),
    Case("DatabasePoolFull", {f'{POOL}"busy"}}': "10x60", f'{POOL}"idle"}}': "0x60"}, "9m", fires=True),
    Case("DatabasePoolFull", {f'{POOL}"busy"}}': "9x60", f'{POOL}"idle"}}': "1x60"}, "9m", fires=False),
    Case("HttpFails", {f'{HTTP}"5xx"}}': "0+1x80", f'{HTTP}"2xx"}}': "0+5x80"}, "18m", fires=True),
    Case("HttpFails", {f'{HTTP}"5xx"}}': "0+1x80", f'{HTTP}"2xx"}}': "0+99x80"}, "18m", fires=False),
    Case("ServiceDown", {'up{job="consent",instance="a"}': "1x4 0x40"}, "10m", fires=True),
    Case("ServiceDown", {'up{job="consent",instance="a"}': "1x4 0x3 1x40"}, "10m", fires=False),
    Case("SenderCredentialsRejected", {TOKEN: "_x8 1x40"}, "5m", fires=True),
    Case("SenderCredentialsRejected", {TOKEN: "1x600"}, "140m", fires=True),
    Case("SenderCredentialsRejected", {TOKEN: "1x20 _x40"}, "12m", fires=False),
    Case("SenderCredentialsRejected", {UNPAID: "1x60"}, "5m", fires=False),
    Case("MessagesHeld", {HELD: "3x60"}, "12m", fires=True),
    Case("MessagesHeld", {PAUSED: "3x60"}, "12m", fires=False),
    Case("OutcomeUnknown", {REJECTED: "0x8 1x40"}, "5m", fires=True),
    Case("OutcomeUnknown", {REJECTED: "0x8 _x80 3x40"}, "24m", fires=True),
    Case("OutcomeUnknown", {REJECTED: "1x120"}, "20m", fires=False),
    Case("OutcomesOverdue", {'sendwhy_outcomes_overdue{job="message-log"}': "0x8 1x40"}, "8m", fires=True),
    Case("OutcomesOverdue", {'sendwhy_outcomes_overdue{job="message-log"}': "0x8 1x8 0x40"}, "8m", fires=False),
    Case("WebhooksTurnedAway", {LOST: "_x8 1x40"}, "4m", fires=True),
    Case("WebhooksTurnedAway", {KEPT: "0+9x40"}, "4m", fires=False),
    Case("SenderIsSilent", {SILENT: "0x8 1x40"}, "6m", fires=True),
    Case("SenderIsSilent", {SILENT: "0x8 1x3 0x40"}, "6m", fires=False),
    Case("ReceiptsMissing", {WITHOUT: "0.9x100", AWAITED: "40x100"}, "20m", fires=True),
    Case("ReceiptsMissing", {WITHOUT: "0.2x100", AWAITED: "40x100"}, "20m", fires=False),
    Case("ReceiptsMissing", {WITHOUT: "1x100", AWAITED: "2x100"}, "20m", fires=False),
    Case("DeadLetters", {DEAD: "_x8 1x40"}, "5m", fires=True),
    Case("DeadLetters", {DEAD: "1x120"}, "25m", fires=False),
    Case("RecordsMissed", {MISSED: "_x8 7x40"}, "5m", fires=True),
    Case("RecordsMissed", {MISSED: "0x120"}, "25m", fires=False),
    Case("ConsumerStandsStill", {LAG: "0x8 7x60", DONE: "9x80"}, "15m", fires=True),
    Case("ConsumerStandsStill", {LAG: "0x8 7x60"}, "15m", fires=True),
    Case("ConsumerStandsStill", {LAG: ENDS_ITSELF}, "15m", fires=True),
    Case("ConsumerStandsStill", {LAG: "0x8 7 0x60", DONE: "_x9 1x60"}, "7m", fires=False),
    Case("ConsumerStandsStill", {LAG: "0x8 7x60", DONE: "9+1x80"}, "15m", fires=False),
    Case("BatchesFail", {RETRIED: "0+1x80"}, "15m", fires=True),
    Case("BatchesFail", {RETRIED: "0x20 2x60"}, "15m", fires=False),
    Case("EventsUnpublished", {'sendwhy_unpublished_events{job="billing"}': "3x60"}, "10m", fires=True),
    Case("EventsUnpublished", {'sendwhy_unpublished_events{job="billing"}': "0x9 3x2 0x49"}, "10m", fires=False),
    Case("BalanceMismatch", {'sendwhy_credits_balance_mismatch{job="billing"}': "0x8 1x40"}, "5m", fires=True),
    Case("BalanceMismatch", {'sendwhy_credits_balance_mismatch{job="billing"}': "0x60"}, "5m", fires=False),
    Case("CreditsRunLow", {f'{LOW},percent="10"}}': "0x8 1x40"}, "5m", fires=True),
    Case("CreditsRunLow", {f'{LOW},percent="0"}}': "1x240 2x20"}, "62m", fires=True),
    Case("CreditsRunLow", {f'{LOW},percent="0"}}': "_x8 1x40"}, "5m", fires=True),
    Case("CreditsRunLow", {f'{LOW},percent="20"}}': "0x8 1x40"}, "5m", fires=False),
    Case("CreditsRunLow", {f'{LOW},percent="0"}}': "0x8 1x400"}, "80m", fires=False),
    Case("PagesAreOld", {'sendwhy_projection_lag_seconds{job="message-log"}': "90x60"}, "10m", fires=True),
    Case("PagesAreOld", {'sendwhy_projection_lag_seconds{job="message-log"}': "9x60"}, "10m", fires=False),
    Case("ErasureUnfinished", {'sendwhy_erasures_unfinished{job="consent"}': "1x160"}, "35m", fires=True),
    Case("ErasureUnfinished", {'sendwhy_erasures_unfinished{job="consent"}': "1x80 0x80"}, "35m", fires=False),
]


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    assert {case.alert for case in CASES if case.fires} == {case.alert for case in CASES if not case.fires}
    assert {case.alert for case in CASES} == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize(("file", "every"), [("rules.yml", "1m"), ("slo.yml", "10m")])
def test_alerts_fire_and_stay_silent(promtool: Path, tmp_path: Path, file: str, every: str) -> None:
    assert file in RULE_FILES
    own = (PROMETHEUS / file).read_text()
    cases = [case for case in CASES if f"alert: {case.alert}\n" in own]
    asked = {
        "rule_files": [str(PROMETHEUS / file)],
        "evaluation_interval": every,
        "group_eval_order": [group["name"] for group in yaml.safe_load(own)["groups"]],
        "tests": _as_tests(cases),
    }
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(asked))
    command = [str(promtool), "test", "rules", str(tmp_path / "cases.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _as_tests(cases: Sequence[Case]) -> list[dict[str, Any]]:
    firing = 'count by (alertname) (ALERTS{alertname="%s",alertstate="firing",severity=~"%s"})'
    return [
        {
            "name": f"{case.alert} {case.series}",
            "interval": "15s",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": firing % (case.alert, case.severity or ".+"),
                    "eval_time": case.at,
                    "exp_samples": [{"labels": f'{{alertname="{case.alert}"}}', "value": 1}] if case.fires else [],
                }
            ],
        }
        for case in cases
    ]
