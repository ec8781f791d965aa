"""Writes slo.yml: `python deploy/prometheus/make_slo.py`. What Sendwhy promises, and when somebody is called because
the promise is about to be broken: burn rates over two windows each, as in Google's SRE workbook, chapter 5.

A budget is what a promise may miss in 28 days. Burning it 14.4 times as fast for an hour uses up 2 % of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent / "slo.yml"
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
# At night one slow webhook of two is no alert.
BAD_EVENTS_MIN = 10


@dataclass(frozen=True)
class Promise:
    """Of all that `histogram` counts, `share` lies within `seconds`. `turned_away`: a counter of what was not even
    done, and so is in no histogram. `feel`: what people notice; `messages`: the filter that shows some of them."""

    slo: str
    alert: str
    histogram: str
    seconds: float
    share: float
    what: str
    feel: str
    dashboard: str
    messages: str
    turned_away: str | None = None

    @property
    def percent(self) -> str:
        """As 99.99%, or 99.0%."""
        digits = f"{self.share * 100:.6g}"
        return f"{digits if '.' in digits else f'{digits}.0'}%"

    def all(self, function: str, window: str) -> str:
        kept = f"sum({function}({self.histogram}_count[{window}]))"
        return f"{kept} + {self._lost(function, window)}" if self.turned_away else kept

    def bad(self, function: str, window: str) -> str:
        within = f'{self.histogram}_bucket{{le="{float(self.seconds)}"}}'
        return f"{self.all(function, window)} - sum({function}({within}[{window}]))"

    def burn(self, window: str) -> str:
        return (
            f"clamp_max(({self.bad('rate', window)}) / (({self.all('rate', window)}) > 0), 1)"
            f" / {round(1 - self.share, 6)}"
        )

    def _lost(self, function: str, window: str) -> str:
        return f"(sum({function}({self.turned_away}[{window}])) or vector(0))"


PROMISES = (
    Promise(
        "webhooks",
        "WebhooksBreakPromise",
        "sendwhy_webhook_ack_seconds",
        0.25,
        0.999,
        "webhooks answered within 250 ms",
        "Ticks come late; Meta slows down a subscription that answers late.",
        "webhooks",
        "status=sent",
        'sendwhy_webhook_deliveries_total{result=~"unavailable|overloaded"}',
    ),
    Promise(
        "decisions",
        "DecisionsBreakPromise",
        "sendwhy_request_to_decision_seconds",
        5,
        0.99,
        "requests decided within 5 s",
        "Messages stay at ⏳ longer than people wait for a code.",
        "delivery-funnel",
        "status=sending",
    ),
    Promise(
        "truth",
        "PagesBreakPromise",
        "sendwhy_webhook_to_visible_seconds",
        2,
        0.99,
        "statuses on the page within 2 s",
        "People see ✓ where the phone has shown ✓✓ for a while.",
        "webhooks",
        "status=sent",
    ),
    Promise(
        "outcomes",
        "OutcomesBreakPromise",
        "sendwhy_outcome_after_expiry_seconds",
        900,
        0.9999,
        "outcomes told within 15 minutes of the expiry",
        "Messages stay at ⏳ although nothing more can become of them; whoever waits to send something else waits too.",
        "delivery-funnel",
        "status=sending",
    ),
    Promise(
        "stop",
        "StopsBreakPromise",
        "sendwhy_stop_to_last_message_seconds",
        5,
        0.999,
        "nothing sent 5 s after a STOP",
        "People get marketing after their STOP, and report it to Meta.",
        "credits-and-consent",
        "status=delivered",
    ),
)


@dataclass(frozen=True)
class Burn:
    """Call somebody if the budget burns `factor` times as fast over the long window, and still does."""

    factor: float
    long: str
    short: str


SEVERITIES = {
    "page": (Burn(14.4, "1h", "5m"), Burn(6, "6h", "30m")),
    "ticket": (Burn(3, "1d", "2h"), Burn(1, "3d", "6h")),
}


def records(promise: Promise) -> Iterator[str]:
    labels = f"        labels: {{slo: {promise.slo}}}\n"
    for window in WINDOWS:
        yield f"      - record: slo:sendwhy_budget_burn:ratio_rate{window}\n"
        yield f"        expr: {promise.burn(window)}\n{labels}"
    for window in sorted({burn.long for burns in SEVERITIES.values() for burn in burns}):
        yield f"      - record: slo:sendwhy_bad_events:increase{window}\n"
        yield f"        expr: {promise.bad('increase', window)}\n{labels}"


def alert(promise: Promise, severity: str, burns: tuple[Burn, ...]) -> str:
    slo = f'{{slo="{promise.slo}"}}'
    either = "\n          or\n".join(
        f"          (slo:sendwhy_budget_burn:ratio_rate{burn.long}{slo} > {burn.factor}\n"
        f"           and slo:sendwhy_budget_burn:ratio_rate{burn.short}{slo} > {burn.factor}\n"
        f"           and slo:sendwhy_bad_events:increase{burn.long}{slo} > {BAD_EVENTS_MIN})"
        for burn in burns
    )
    times = '{{ $value | printf "%.1f" }}'
    return f"""
      - alert: {promise.alert}
        expr: |
{either}
        labels: {{severity: {severity}}}
        annotations:
          summary: '{promise.what}: the budget of {promise.percent} burns {times} times too fast'
          description: {promise.feel}
          runbook_url: docs/runbook.md#{promise.alert.lower()}
          dashboard_url: /d/{promise.dashboard}
          messages_url: /?{promise.messages}
"""


def text() -> str:
    head = "# Generated by make_slo.py from its table of promises; change that instead.\ngroups:\n"
    recorded = "  - name: sendwhy-promises\n    rules:\n" + "".join(
        line for promise in PROMISES for line in records(promise)
    )
    alerts = "\n  - name: sendwhy-promise-alerts\n    rules:" + "".join(
        alert(promise, severity, burns) for promise in PROMISES for severity, burns in SEVERITIES.items()
    )
    return head + recorded + alerts


if __name__ == "__main__":
    FILE.write_text(text())
