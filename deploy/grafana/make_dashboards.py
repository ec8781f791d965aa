"""Writes dashboards/*.json: `python deploy/grafana/make_dashboards.py`. tests/deploy holds them current and true.

Each panel answers a question that somebody asks while messages fail. Twelve at most; the first row answers the title.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, table, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableRefresh, VariableSort
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent / "dashboards"
DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
PER_MINUTE = "suffix:/min"
WIDTH, HEIGHT = 12, 8


def failures(by: str, function: str, window: str) -> str:
    """A message fails by a rejection (Meta never took it) or later; both counters know every reason from the start."""
    counters = (f"sendwhy_messages_{kind}_total" for kind in ("rejected", "failed"))
    return " + ".join(f'sum by ({by}) ({function}({name}{{service=~"$service"}}[{window}]))' for name in counters)


def per_minute(metric: str, by: str) -> str:
    return f"60 * sum by ({by}) (rate({metric}[$__rate_interval]))"


def target(expression: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id("A").expr(expression).datasource(DATASOURCE)


def lines(title: str, description: str, unit: str, expression: str, legend: str, *, stacked: bool = False) -> Any:
    stacking = StackingMode.NORMAL if stacked else StackingMode.NONE
    return (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .min(0)
        .fill_opacity(30 if stacked else 5)
        .stacking(common.StackingConfig().mode(stacking))
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .with_target(target(expression).legend_format(legend).range())
    )


def ranking(title: str, description: str, unit: str, expression: str) -> Any:
    return (
        table.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .decimals(0)
        .with_target(target(expression).instant().format(PromQueryFormat.TABLE))
    )


def why_messages_fail() -> Dashboard:
    by_reason = failures("reason", "rate", "$__rate_interval")
    by_service = failures("service", "rate", "$__rate_interval")
    top = f"sort_desc({failures('reason, service', 'increase', '$__range')} > 0)"
    return dashboard(
        "Why messages fail",
        [
            lines(
                "Failures by reason",
                "Messages that ended without blue ticks, by the reason that the person on the Messages page sees.",
                PER_MINUTE,
                f"60 * ({by_reason}) > 0",
                "{{reason}}",
                stacked=True,
            ),
            ranking(
                "Top reasons",
                "Reasons in the chosen time, most frequent first. `sendwhy explain REASON` tells what to do.",
                "short",
                top,
            ),
            lines(
                "Failures by service",
                "Who said no: consent, billing or dispatcher before Meta; dispatcher or webhook-ingest on Meta's word.",
                PER_MINUTE,
                f"60 * ({by_service})",
                "{{service}}",
                stacked=True,
            ),
            lines(
                "Waiting, by cause",
                "Messages in the dispatcher's queue, by what they wait for. Those that expire fail with that cause.",
                "short",
                "sum by (waiting_for) (max by (lane, waiting_for) (sendwhy_queue_messages))",
                "{{waiting_for}}",
                stacked=True,
            ),
            lines(
                "Requests",
                "Send requests read from Kafka. Duplicates change nothing; invalid ones name their fields.",
                PER_MINUTE,
                per_minute("sendwhy_requests_total", "result"),
                "{{result}}",
            ),
            lines(
                "Sent, delivered, read",
                "Statuses from Meta's webhooks that moved a message forward.",
                PER_MINUTE,
                per_minute('sendwhy_status_updates_total{applied="yes"}', "status"),
                "{{status}}",
            ),
            lines(
                "Calls to Meta, by outcome",
                "taken: Meta has it. refused: Meta said no. unknown: nobody knows, and it is not sent again.",
                PER_MINUTE,
                per_minute("sendwhy_meta_call_seconds_count", "outcome"),
                "{{outcome}}",
            ),
            lines(
                "Errors that Meta answered",
                "By Meta's code and by what the dispatcher does about it (retry, pace, pair, hold, reject).",
                PER_MINUTE,
                per_minute("sendwhy_meta_errors_total", "code, action"),
                "{{code}} {{action}}",
            ),
            lines(
                "Webhook answers, 99th percentile",
                "From a webhook's first byte to our answer. Meta expects 250 ms in the median, 1 s for 99 %.",
                "s",
                "histogram_quantile(0.99,"
                " sum by (le, source) (rate(sendwhy_webhook_ack_seconds_bucket[$__rate_interval])))",
                "{{source}}",
            ),
            lines(
                "Webhook deliveries, by answer",
                "received: kept in Kafka. refused: signature. unavailable or overloaded: 503, the sender repeats it.",
                PER_MINUTE,
                per_minute("sendwhy_webhook_deliveries_total", "result"),
                "{{result}}",
            ),
            lines(
                "Consumer lag",
                "Records that wait for a service. A line that stands while others move is a stage that stands still.",
                "short",
                "sum by (job, stage) (sendwhy_consumer_lag_messages)",
                "{{job}} ← {{stage}}",
            ),
            lines(
                "Dead letters",
                "Records put aside because they can't be read or stored. Their bytes are on dead.letters.",
                PER_MINUTE,
                per_minute("sendwhy_dead_letters_total", "job, topic, error"),
                "{{job}} ← {{topic}}: {{error}}",
            ),
        ],
    )


def what_must_hold() -> Dashboard:
    seconds = "sum by (le) (rate(sendwhy_stop_to_last_message_seconds_bucket[$__rate_interval]))"
    return dashboard(
        "What must hold",
        [
            lines(
                "A STOP until nothing more leaves, 99th percentile",
                "From the arrival of a STOP's webhook to the moment from which no marketing message to that person"
                " starts. Seconds are normal; minutes mean that webhook-ingest, consent or dispatcher lags.",
                "s",
                f"histogram_quantile(0.99, {seconds})",
                "99 %",
            ),
            lines(
                "A STOP until nothing more leaves, median",
                "The same for half of all STOPs.",
                "s",
                f"histogram_quantile(0.5, {seconds})",
                "50 %",
            ),
            lines(
                "STOPs",
                "Opt-outs of people that took effect: replies, buttons, WhatsApp's own stop control, error 131050.",
                PER_MINUTE,
                "60 * sum(rate(sendwhy_stop_to_last_message_seconds_count[$__rate_interval]))",
                "STOPs",
            ),
            lines(
                "Accounts whose balance differs from their ledger",
                "Must be 0: each balance is the sum of its ledger's entries.",
                "short",
                "max(sendwhy_credits_balance_mismatch)",
                "accounts",
            ),
            lines(
                "Events of ours that wait to be published",
                "Written with their cause and published by the sweep; more than a few for minutes: Kafka refuses them.",
                "short",
                "max by (job) (sendwhy_unpublished_events)",
                "{{job}}",
            ),
            lines(
                "Receipts still awaited",
                "Messages that Meta took and of which nothing was heard since; after their deadline they fail.",
                "short",
                "max(sendwhy_receipts_missing_messages)",
                "messages",
            ),
            lines(
                "Share of messages without final receipt",
                "Of those accepted 10 minutes to 24 hours ago. Some phones are off; more is a template or a block.",
                "percentunit",
                "max(sendwhy_receipts_missing_ratio)",
                "share",
            ),
            lines(
                "Age of the oldest awaited receipt",
                "Ends at the message's own deadline: 30 days at most, minutes for an authentication template.",
                "s",
                "max(sendwhy_receipts_oldest_age_seconds)",
                "age",
            ),
        ],
    )


def senders_and_meta() -> Dashboard:
    return dashboard(
        "Senders and Meta",
        [
            lines(
                "Holds, by cause and by what is held",
                "A sender, token, account or portfolio that Meta refuses: its messages wait. Senders tells since when.",
                "short",
                "sum by (cause, scope) (max by (cause, scope) (sendwhy_holds)) or vector(0)",
                "{{cause}}: {{scope}}",
                stacked=True,
            ),
            lines(
                "Silent numbers, by cause",
                "Meta took their messages and nothing is heard. …/webhooks/silence says which, and what to do.",
                "short",
                "max by (cause) (sendwhy_senders_silent)",
                "{{cause}}",
            ),
            lines(
                "Syncs that failed",
                "Numbers and templates that could not be read from Meta. What was read before stands until then.",
                PER_MINUTE,
                per_minute("sendwhy_sync_failures_total", "cause"),
                "{{cause}}",
            ),
            lines(
                "Tokens that the newest key didn't seal",
                "older_key: the older key is still needed. unreadable: no key of ours opens them; PUT their senders.",
                "short",
                "max by (state) (sendwhy_tokens_to_seal_anew)",
                "{{state}}",
            ),
        ],
    )


def dashboard(title: str, panels: Sequence[Any]) -> Dashboard:
    service = (
        QueryVariable("service")
        .label("Service")
        .datasource(DATASOURCE)
        .query("label_values(sendwhy_build_info, service)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )
    made = (
        Dashboard(title)
        .uid(slug(title))
        .tags(["sendwhy"])
        .readonly()
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(service)
    )
    for number, panel in enumerate(panels, start=1):
        made = made.with_panel(panel.id(number).datasource(DATASOURCE).span(WIDTH).height(HEIGHT))
    return made


def slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def files() -> dict[Path, str]:
    """What each file must hold."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    built = [make().build() for make in (why_messages_fail, what_must_hold, senders_and_meta)]
    return {FOLDER / f"{slug(model.title or '')}.json": encoder.encode(model) + "\n" for model in built}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
