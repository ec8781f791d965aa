"""Writes dashboards/*.json: `python deploy/grafana/make_dashboards.py`. tests/deploy holds them current and true."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boards import BOARDS
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    TextBoxVariable,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableRefresh,
    VariableSort,
)
from panels import DATASOURCE, OURS

FOLDER = Path(__file__).parent / "dashboards"
WIDTH, HEIGHT = 12, 8
PAGES = "http://127.0.0.1:8080/w/demo"
# What happened, as lines across every graph: name, query, colour.
ANNOTATIONS = (
    # A new pod has a name of its own, and so no start before this one that it could differ from.
    ("Starts of services", f"time() - process_start_time_seconds{OURS} < 60", "blue"),
    ("Alerts that page", 'ALERTS{alertstate="firing", severity="page"}', "red"),
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
    others = DashboardLink("Dashboards").type(DashboardLinkType.DASHBOARDS).tags(["sendwhy"]).keep_time(True)
    made = (
        Dashboard(title)
        .uid(slug(title))
        .tags(["sendwhy"])
        .readonly()
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(others)
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(service)
        .with_variable(TextBoxVariable("pages").label("Workspace's pages").default_value(PAGES))
    )
    for name, expression, colour in ANNOTATIONS:
        made = made.annotation(
            AnnotationQuery().name(name).datasource(DATASOURCE).expr(expression).icon_color(colour).enable(True)
        )
    for number, panel in enumerate(panels, start=1):
        made = made.with_panel(panel.id(number).datasource(DATASOURCE).span(WIDTH).height(HEIGHT))
    return made


def slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def files() -> dict[Path, str]:
    """What each file must hold."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    built = [dashboard(*make()).build() for make in BOARDS]
    return {FOLDER / f"{slug(model.title or '')}.json": encoder.encode(model) + "\n" for model in built}


def write() -> None:
    made = files()
    for path in set(FOLDER.glob("*.json")) - set(made):
        path.unlink()
    for path, text in made.items():
        path.write_text(text)


if __name__ == "__main__":
    write()
