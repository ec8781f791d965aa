"""A Prometheus beside a running stack, and what it says afterwards of the time in which the stack ran."""

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
STEP_SECONDS = 5
SCRAPE_SECONDS = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Series:
    labels: Mapping[str, str]
    values: tuple[float, ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in self.labels.items() if name != "__name__")
        numbers = [value for value in self.values if value == value]
        if not numbers:
            return f"{{{shown}}} NaN"
        return f"{{{shown}}} first {numbers[0]:g}, highest {max(numbers):g}, last {numbers[-1]:g}"


class Past:
    """Queries over the time from the stack's start to its end."""

    def __init__(self, address: str, start: float, end: float) -> None:
        self._address, self.start, self.end = address, start, end

    def query(self, expression: str) -> list[Series]:
        """Each series' values, one every few seconds. Raises AssertionError for a query that Prometheus refuses."""
        asked = {"query": expression, "start": self.start, "end": self.end, "step": STEP_SECONDS}
        url = f"{self._address}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                found = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        return [Series(one["metric"], tuple(float(value) for _, value in one["values"])) for one in found]


def resolved(expression: str) -> str:
    """An expression as Grafana sends it for a short time range."""
    return re.sub(r"\$__(rate_interval|range|interval)", "30s", expression).replace("$service", ".*")


def selectors(node: Any) -> Iterator[str]:
    """Every selector of series in a query, with what it is narrowed by."""
    if isinstance(node, promql_parser.VectorSelector):
        signs = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}
        narrowed = ",".join(
            f'{one.name}{signs[str(one.op).rpartition(".")[2]]}"{one.value}"' for one in node.matchers.matchers
        )
        yield f"{node.name}{{{narrowed}}}" if narrowed else str(node.name)
        return
    children = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "vector_selector")]
    for child in [*children, *getattr(node, "args", ())]:
        if child is not None:
            yield from selectors(child)


@contextmanager
def prometheus_of(binary: Path, stack: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """The repository's own configuration, with the stack's addresses and a shorter interval."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    seconds = f"{SCRAPE_SECONDS}s"
    config["global"] = {"scrape_interval": seconds, "scrape_timeout": seconds, "evaluation_interval": seconds}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [stack["services"][job["job_name"]].removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(binary),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def stack_of(file: Path, demo: "subprocess.Popen[bytes]", within_seconds: float) -> Mapping[str, Any]:
    """The demo's stack.json, as soon as it is there."""
    deadline = time.monotonic() + within_seconds
    while not file.exists():
        assert demo.poll() is None, "the demo ended before its stack was ready"
        assert time.monotonic() < deadline, "the demo's stack is not ready"
        time.sleep(0.2)
    told: Mapping[str, Any] = json.loads(file.read_text())
    return told
