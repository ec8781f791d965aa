"""What panels are made of: queries by their kind, and Grafana's builders with our defaults."""

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, table, timeseries
from grafana_foundation_sdk.builders.dashboard import DashboardLink
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import DashboardLinkType, DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from sendwhy.reasons import Service

# Prometheus may have other targets than ours.
OURS = f'{{job=~"{"|".join(Service)}"}}'
DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
PER_MINUTE = "suffix:/min"
# The pages of one workspace, as people reach them: a variable of every dashboard.
PAGES = "${pages}"
_TIMES = "from=${__from:date:iso}&to=${__to:date:iso}"
MESSAGES = f"{PAGES}/messages?status=failed&{_TIMES}"
OF_REASON = f"{MESSAGES}&reason=${{__field.labels.reason}}"
CAMPAIGNS = f"{PAGES}/campaigns?{_TIMES}"

Query = tuple[str, str]


def per_minute(metric: str, by: str = "") -> str:
    """A counter's pace; what happens once an hour is a small number, not nothing."""
    return f"60 * sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def within(metric: str, by: str = "", *, window: str = "$__range", ago: str = "") -> str:
    """How many in the chosen time."""
    offset = f" offset {ago}" if ago else ""
    return f"sum{f' by ({by})' if by else ''} (increase({metric}[{window}]{offset}))"


def quantile(share: float, histogram: str, by: str = "", *, where: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({histogram}_bucket{where}[$__rate_interval])))"


def ratio(part: str, whole: str) -> str:
    """A share, 0 where nothing happened; at most 1, although what ends now may have begun before."""
    return f"clamp_max({part} / ({whole} > 0), 1) or vector(0)"


def target(expression: str, ref: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(ref).expr(expression).datasource(DATASOURCE)


def link(title: str, url: str) -> DashboardLink:
    return DashboardLink(title).type(DashboardLinkType.LINK).url(url).target_blank(True)


def lines(
    title: str,
    description: str,
    unit: str,
    queries: str | Sequence[Query],
    legend: str = "",
    *,
    stacked: bool = False,
    links: Sequence[Query] = (),
) -> Any:
    """A graph over time of one query with its `legend`, or of several (query, legend). `links`: (title, address)."""
    stacking = StackingMode.NORMAL if stacked else StackingMode.NONE
    panel = (
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
    )
    asked = [(queries, legend)] if isinstance(queries, str) else queries
    for letter, (expression, name) in zip("ABCDEF", asked, strict=False):
        panel = panel.with_target(target(expression, letter).legend_format(name).range())
    return panel.data_links([link(*one) for one in links]) if links else panel


def ranking(title: str, description: str, unit: str, expression: str, *, links: Sequence[Query] = ()) -> Any:
    """A table of the chosen time, the largest first."""
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .decimals(0)
        .with_target(target(f"sort_desc({expression})").instant().format(PromQueryFormat.TABLE))
    )
    return panel.data_links([link(*one) for one in links]) if links else panel
