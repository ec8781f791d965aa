"""A run's figures as tables and a plot, and two runs beside each other."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sizes import total

console = Console(width=140)
Told = Mapping[str, Any]
# Not Sendwhy's: what offers the load, and who answers it.
BESIDE = ("meta", "load")
BIG_BYTES = 20
PUBLISHED = Path("docs/performance")


def summary(told: Told) -> dict[str, Any]:
    """Without what only the plot needs; memory as first, last and most MB by process."""
    phases = []
    for phase in told["phases"]:
        kept = {name: value for name, value in phase.items() if name not in ("progress", "memory", "cpu")}
        phases.append(kept | {"memory": _memory_of(phase), "cores": sum(phase["cpu"].values()) / phase["seconds"]})
    return {**told, "phases": phases}


def _memory_of(phase: Told) -> dict[str, list[int]]:
    sizes = [by_name for _, by_name in phase["memory"]]
    return {
        name: [round(sizes[0][name]), round(sizes[-1][name]), round(max(one[name] for one in sizes))]
        for name in sizes[0]
    }


def command(arguments: Sequence[str]) -> str:
    """As somebody else would give it: where the figures go is another matter."""
    arguments = [one for place, one in enumerate(arguments) if "--out" not in arguments[max(0, place - 1) : place + 1]]
    return f'make bench ARGS="{" ".join(arguments)}"' if arguments else "make bench"


def show(told: Told) -> None:
    machine = told["machine"]
    console.print(f"{told['command']}   commit {told['commit']}, {told['made']}, {machine['cpus']} cores, ", end="")
    console.print(f"Python {machine['python']} ({machine['python_loop_ms']} ms a loop), ", end="")
    console.print(f"load average at the end {machine['load']}")
    if told["restarted"]:
        console.print(f"[red]died meanwhile: {', '.join(told['restarted'])}: these figures are worth nothing[/red]")
    measured = told["phases"][1:]
    for table in (_paces(measured), _cpu(measured), *(_steps(phase) for phase in measured), _memory(measured)):
        console.print(table)
    for store in ("PostgreSQL", "Kafka"):
        console.print(_bytes(measured[0], store))
    if told["limits"]:
        console.print(_limits(told))


def _paces(phases: Iterable[Told]) -> Table:
    columns = ("phase", "messages", "s", "messages/s", "webhooks/s", "answers p50", "p99", "over 1 s", "missing")
    table = Table(*columns, "refused", "called twice", "load", title="From the first request to the last final status")
    for phase in phases:
        answers = phase["answers"]
        table.add_row(
            phase["name"] + (f" ({phase['rate']:,.0f}/s)" if phase["rate"] else ""),
            f"{phase['messages']:,}",
            f"{phase['seconds']:,.1f}",
            f"{phase['messages_per_second']:,.0f}",
            f"{phase['webhooks'] / phase['seconds']:,.0f}",
            f"{answers.get('p50', 0):,.0f} ms",
            f"{answers.get('p99', 0):,.0f} ms",
            f"{phase['slow_answers']:.2%}",
            str(phase["missing"]),
            str(phase["refused"]),
            str(phase["doubled_calls"]),
            "{:.0f} → {:.0f}".format(*phase["load"]),
        )
    return table


def _cpu(phases: Sequence[Told]) -> Table:
    table = Table("process", *(phase["name"] for phase in phases), title="CPU µs per message (share)")
    for name in phases[0]["cpu_us"]:
        table.add_row(name, *(f"{p['cpu_us'][name]:,.0f} ({p['cpu_us'][name] / p['cpu_us_all']:.0%})" for p in phases))
    table.add_section()
    table.add_row("all", *(f"{phase['cpu_us_all']:,.0f}" for phase in phases))
    own = [sum(us for name, us in phase["cpu_us"].items() if name not in BESIDE) for phase in phases]
    table.add_row(f"all but {' and '.join(BESIDE)}", *(f"{us:,.0f}" for us in own))
    table.add_row("cores used", *(f"{sum(phase['cpu'].values()) / phase['seconds']:.2f}" for phase in phases))
    return table


def _steps(phase: Told) -> Table:
    table = Table("step", "p50", "p90", "p99", "max", title=f"ms: {phase['name']}")
    for name, ms in phase["steps"].items():
        table.add_row(name, *(f"{value:,.0f}" for value in ms.values()))
    return table


def _memory(phases: Sequence[Told]) -> Table:
    """Of each process at each phase's beginning and end, and at most."""
    table = Table("process", *(phase["name"] for phase in phases), title="Memory in MB: first → last (most)")
    memories = [_memory_of(phase) for phase in phases]
    for name in memories[0]:
        table.add_row(name, *("{:,} → {:,} ({:,})".format(*memory[name]) for memory in memories))
    return table


def _bytes(phase: Told, store: str) -> Table:
    sizes = phase["bytes"][store]
    table = Table("where", "bytes", title=f"Bytes per message in {store}, {phase['name']}")
    for name, size in sizes.items():
        if size >= BIG_BYTES:
            table.add_row(name, f"{size:,.0f}")
    table.add_section()
    table.add_row("all", f"{total(sizes):,.0f}")
    return table


def _limits(told: Told) -> Table:
    """How many messages/s the first phase had for each that the library alone could do."""
    pace = told["phases"][1]["messages_per_second"]
    table = Table(
        "alone", "a second", "CPU µs each", "of it", title=f"Raw limits, and {pace:,.0f} messages/s as a part"
    )
    for limit in told["limits"]:
        share = f"{pace / limit['each']:.1%}"
        table.add_row(limit["name"], f"{limit['each']:,.0f}", f"{limit['cpu_us']:,.1f}", share)
    return table


def compare(before: Told, after: Told) -> None:
    console.print(f"{before['commit']} ({before['command']}) → {after['commit']} ({after['command']})")
    earlier = {phase["name"]: phase for phase in before["phases"]}
    for phase in after["phases"][1:]:
        if phase["name"] in earlier:
            console.print(_compared(earlier[phase["name"]], phase))


def _compared(before: Told, after: Told) -> Table:
    table = Table("figure", "before", "after", "change", title=after["name"])
    rows = [("messages/s", before["messages_per_second"], after["messages_per_second"])]
    rows += [(f"CPU µs: {name}", before["cpu_us"].get(name, 0), us) for name, us in after["cpu_us"].items()]
    rows += [("CPU µs: all", before["cpu_us_all"], after["cpu_us_all"])]
    for name, ms in after["steps"].items():
        rows += [(f"ms {q}: {name}", before["steps"].get(name, {}).get(q, 0), ms.get(q, 0)) for q in ("p50", "p99")]
    for store, sizes in after["bytes"].items():
        rows.append((f"bytes: {store}", total(before["bytes"].get(store, {})), total(sizes)))
    for name, one, other in rows:
        table.add_row(name, f"{one:,.0f}", f"{other:,.0f}", f"{other / one - 1:+.0%}" if one else "")
    return table


def plot(told: Told, path: Path) -> None:
    """What came through, CPU, memory and steps as one picture; where matplotlib isn't installed none is made."""
    try:
        from plots import draw
    except ModuleNotFoundError:
        console.print("no plot: `make bench` installs matplotlib")
        return
    draw(told, path)
    console.print(f"plotted: {path}")


def write(path: Path, told: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")
    console.print(f"written: {path}")


def publish(name: str, told: Any) -> None:
    """For docs/performance.md, which docs/generate.py makes of it."""
    write(PUBLISHED / f"{name}.json", told)
