"""A run as one picture (SVG). Apart from the tables, since only `make bench` installs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Texts stay texts, and two drawings of the same figures are the same bytes.
mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "sendwhy", "font.size": 9}


def draw(told: Mapping[str, Any], path: Path) -> None:
    phases = told["phases"][1:]
    figure = Figure(figsize=(14, 9), layout="constrained")
    figure.suptitle(f"{told['command']}  ·  {told['commit']}  ·  {told['machine']['cpus']} cores")
    progress, cpu, memory, steps = figure.subplots(2, 2).flat
    _progress(progress, phases)
    _cpu(cpu, phases)
    _memory(memory, phases[0])
    _steps(steps, phases)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _progress(axes: Any, phases: list[Any]) -> None:
    for phase in phases:
        # The generator takes a moment to start.
        seconds, counts = zip(*[(at, count) for at, count in phase["progress"] if at >= 0], strict=True)
        axes.plot(seconds, counts, label=f"{phase['name']}: {phase['messages_per_second']:,.0f}/s")
    axes.set(title="Messages with their final status in the log", xlabel="seconds since the first request")
    axes.legend()


def _cpu(axes: Any, phases: list[Any]) -> None:
    left = [0.0] * len(phases)
    names = [f"{phase['name']}\n{phase['cpu_us_all']:,.0f} µs" for phase in phases]
    for process in phases[0]["cpu_us"]:
        widths = [phase["cpu_us"][process] for phase in phases]
        axes.barh(names, widths, left=left, label=process)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(title="CPU µs per message")
    axes.invert_yaxis()
    axes.legend(fontsize=7)


def _memory(axes: Any, phase: Any) -> None:
    for process in phase["memory"][0][1]:
        axes.plot([at for at, _ in phase["memory"]], [sizes[process] for _, sizes in phase["memory"]], label=process)
    axes.set(title=f"MB of memory, {phase['name']}", xlabel="seconds", ylim=(0, None))
    axes.legend(fontsize=7)


def _steps(axes: Any, phases: list[Any]) -> None:
    phase = next((one for one in phases if one["rate"]), phases[0])
    rows = {name: ms for name, ms in phase["steps"].items() if ms}
    for quantile in ("p99", "p90", "p50"):
        axes.barh(list(rows), [ms[quantile] for ms in rows.values()], label=quantile)
    axes.set(title=f"ms, {phase['name']}", xscale="log")
    axes.invert_yaxis()
    axes.legend()


def draw_growth(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """CPU µs per message, to scale, against each axis, which is logarithmic: flat is good."""
    axes_of = list(dict.fromkeys(point["axis"] for point in points))
    figure = Figure(figsize=(4 * len(axes_of), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(axes_of), squeeze=False)[0], axes_of, strict=True):
        own = [point for point in points if point["axis"] == name]
        at, scales = [point["at"] for point in own], [point["scaled"] / point["total"] for point in own]
        lines = {service: [point["stages"].get(service, 0) for point in own] for service in own[0]["stages"]}
        lines["PostgreSQL"] = [point["postgres"] for point in own]
        for label, costs in lines.items():
            axes.plot(at, [cost * scale for cost, scale in zip(costs, scales, strict=True)], marker=".", label=label)
        axes.plot(at, [point["scaled"] for point in own], marker="o", color="black", label="all")
        axes.set(title=f"CPU µs per message, to scale, by {name}", xscale="log", ylim=(0, None))
        axes.legend(fontsize=7)
    figure.savefig(path, format="svg", metadata={"Date": None})
