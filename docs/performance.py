"""The tables of performance.md, from what `make bench ARGS="… --publish"` has written to docs/performance/."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

PAGE = Path(__file__).with_suffix(".md")
FIGURES = Path(__file__).with_suffix("")
MARK = re.compile(r"(?<=<!-- table: )(\w+) (\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
# Steps that people ask for first; the others say where the time goes.
WHOLE_WAYS = ("request to Meta", "end to end")
NOT_RUN = "Not run yet.\n"
Told = Mapping[str, Any]
FIGURE: TypeAdapter[Any] = TypeAdapter(Any)


def page() -> str:
    """The page with its tables made anew; the text between them is as somebody has written it."""
    return MARK.sub(lambda mark: f"{mark[1]} {mark[2]}{mark[3]}{_table(mark[1], mark[2])}", PAGE.read_text())


def _table(name: str, kind: str) -> str:
    path = FIGURES / f"{name}.json"
    return TABLES[kind](FIGURE.validate_json(path.read_bytes())) if path.exists() else NOT_RUN


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _pace(told: Told) -> str:
    def rows() -> Iterator[list[str]]:
        for phase in told["phases"][1:]:
            name = f"{phase['name']}, {phase['rate']:,.0f}/s offered" if phase["rate"] else phase["name"]
            answers = phase["answers"]
            yield [
                name,
                f"{phase['messages']:,}",
                f"{phase['messages_per_second']:,.0f}",
                f"{phase['webhooks'] / phase['seconds']:,.0f}",
                f"{answers.get('p50', 0):,.0f} / {answers.get('p99', 0):,.0f} ms",
                f"{phase['slow_answers']:.2%}",
                f"{phase['cpu_us_all'] / 1000:,.2f} ms",
                f"{phase['missing']} / {phase['doubled_calls']}",
                "{:.0f} → {:.0f}".format(*phase["load"]),
            ]

    head = ("phase", "messages", "messages/s", "webhooks/s", "webhook answers p50 / p99", "over 1 s", "CPU a message")
    machine = told["machine"]
    where = (
        f"`{told['command']}`, commit {told['commit']}, {told['made']}, {machine['cpus']} cores, {machine['system']}, "
        f"Python {machine['python']}{_loop(machine)}."
    )
    died = f" **Died meanwhile: {', '.join(told['restarted'])}.**" if told["restarted"] else ""
    return f"{where}{died}\n\n{_rows((*head, 'missing / called twice', 'load average'), rows())}"


def _loop(machine: Told) -> str:
    return f" ({machine['python_loop_ms']} ms a loop)" if "python_loop_ms" in machine else ""


def _cpu(told: Told) -> str:
    phases = told["phases"][1:]
    rows = [
        [
            name,
            *(f"{phase['cpu_us'][name]:,.0f} ({phase['cpu_us'][name] / phase['cpu_us_all']:.0%})" for phase in phases),
        ]
        for name in phases[0]["cpu_us"]
    ]
    rows.append(["all", *(f"{phase['cpu_us_all']:,.0f}" for phase in phases)])
    return _rows(["process: CPU µs a message (share)", *(phase["name"] for phase in phases)], rows)


def _steps(told: Told) -> str:
    phase = next((one for one in told["phases"][1:] if one["rate"]), told["phases"][-1])
    rows = [[_emphasised(name), *(f"{ms:,.0f}" for ms in step.values())] for name, step in phase["steps"].items()]
    return _rows([f"ms at {phase['rate']:,.0f} messages/s", "p50", "p90", "p99", "max"], rows)


def _emphasised(name: str) -> str:
    return f"**{name}**" if name.startswith(WHOLE_WAYS) else name


def _memory(told: Told) -> str:
    phases = told["phases"][1:]
    rows = [
        [name, *("{:,} → {:,} ({:,})".format(*phase["memory"][name]) for phase in phases)]
        for name in phases[0]["memory"]
    ]
    return _rows(["MB: first → last (most)", *(phase["name"] for phase in phases)], rows)


def _bytes(told: Told) -> str:
    sizes = told["phases"][1]["bytes"]
    rows = []
    for store, by_name in sizes.items():
        rows += [[f"{store}: {name}", f"{size:,.0f}"] for name, size in by_name.items() if size >= 20]
        rows.append([f"**{store}, all**", f"**{sum(by_name.values()):,.0f}**"])
    return _rows(["bytes a message", ""], rows)


def _limits(told: Told) -> str:
    pace = told["phases"][1]["messages_per_second"]
    rows = [
        [limit["name"], f"{limit['each']:,.0f}", f"{limit['cpu_us']:,.1f}", f"{pace / limit['each']:.1%}"]
        for limit in told["limits"]
    ]
    return _rows(["alone", "a second", "CPU µs each", f"{pace:,.0f} messages/s are of it"], rows)


def _starts(told: Told) -> str:
    rows = [
        [one["service"], f"{one['seconds']:.2f}", f"{one['cpu']:.2f}", f"{one['megabytes']:.0f}"]
        for one in told["starts"]
    ]
    where = f"`make bench ARGS=starts`, commit {told['commit']}, load average {told['machine']['load']:.0f}."
    return f"{where}\n\n{_rows(['service', 'ready after s', 'CPU s until then', 'MB then'], rows)}"


def _idle(told: Told) -> str:
    found = told["idle"]
    rows = [[name, *(f"{one['cpu'][name]:,.0f}" for one in found)] for name in found[0]["cpu"]]
    rows.append(["all", *(f"{sum(one['cpu'].values()):,.0f}" for one in found)])
    rows.append(["ms a loop", *(f"{one['loop']:.0f}" for one in found)])
    head = ["CPU ms a second", *(f"numbers: {one['numbers']:,}" for one in found)]
    return f"`make bench ARGS=idle`, commit {told['commit']}.\n\n{_rows(head, rows)}"


def _bare(told: Told) -> str:
    found = told["bare"]
    both = (found["alone"], found["sendwhy"])
    names = [name for name in found["sendwhy"] if name in found["alone"]]
    rows = [[name, *(f"{cpu[name]:,.0f}" for cpu in both)] for name in names]
    rows.append(["**all**", *(f"**{sum(cpu.values()):,.0f}**" for cpu in both)])
    rows.append(["messages/s", *(f"{pace:,.0f}" for pace in found["pace"])])
    rows.append(["ms a loop, before and after", *(f"{a:.0f}, {b:.0f}" for a, b in pairwise(found["loop"]))])
    head = ["CPU µs a message", "the shape alone", "Sendwhy"]
    return f"`make bench ARGS=bare`, commit {told['commit']}.\n\n{_rows(head, rows)}"


def _growth(points: Sequence[Told]) -> str:
    return _costs([point for point in points if point["axis"] != "replicas"], {})


def _replicas(points: Sequence[Told]) -> str:
    of_replicas = [point for point in points if point["axis"] == "replicas"]
    return _costs(of_replicas, {"messages/s": lambda point: f"{point['pace']:,.0f}"}) if of_replicas else NOT_RUN


def _costs(points: Sequence[Told], more: Mapping[str, Callable[[Told], str]]) -> str:
    services = list(points[0]["stages"])
    rows = [
        [
            f"{point['axis']}: {point['at']:,}",
            *(f"{point['stages'].get(name, 0):,.0f}" for name in services),
            f"{point['postgres']:,.0f}",
            f"{point['total']:,.0f}",
            f"{point['loop']:.0f}",
            f"**{point['scaled']:,.0f}**",
            *(cell(point) for cell in more.values()),
        ]
        for point in points
    ]
    return _rows(["CPU µs a message", *services, "PostgreSQL", "all", "ms a loop", "**all, to scale**", *more], rows)


TABLES: Mapping[str, Callable[[Any], str]] = {
    "pace": _pace,
    "cpu": _cpu,
    "steps": _steps,
    "memory": _memory,
    "bytes": _bytes,
    "limits": _limits,
    "starts": _starts,
    "idle": _idle,
    "bare": _bare,
    "growth": _growth,
    "replicas": _replicas,
}
