"""fuzzing.md, from what `make fuzz ARGS="--publish"` has written to docs/fuzzing.json."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from reference_pages import GENERATED

ROOT = Path(__file__).parents[1]
FIGURES: TypeAdapter[Mapping[str, Mapping[str, Any]]] = TypeAdapter(Mapping[str, Mapping[str, Any]])
WHAT = {
    "webhooks": "a body of Meta's or Shopify's: no exception, every element accounted for",
    "statuses": "one status: what it becomes is readable to all who read status.updated",
    "events": "each event of each topic: what is read is written as the same event",
    "csv": "a file of contacts: each row once, read or refused",
    "phones": "a phone, calling code and country: a number or a fault, and a number is read as itself",
    "words": "what a person says: STOP or not, whatever blanks are around it",
    "api": "every operation of every service's OpenAPI, with a token of each role: no 5xx, answers as OpenAPI says",
}
_PROPERTY = re.compile(r"^ *@given\(", re.MULTILINE)
# What was found on the way here; each has a test since.
FOUND = (
    (
        "bad inputs in every path and query",
        "the page of a contact, and the API's automations, answered 500 for an id of more than 256 letters or with NUL",
        "404",
    ),
    (
        "bad inputs in every path and query",
        "templates.csv, senders.csv and ledger.csv took a parameter `name` by mistake and answered 500 to any",
        "it isn't read",
    ),
    (
        "the table of limits",
        "2,048 connections could make a process hold 2 GB of bodies (32 GB of evaluate's) before a token was asked",
        "128 MB together, then 503",
    ),
    (
        "the table of limits",
        "a chunked body that is too large was 400 instead of 413 where FastAPI reads it",
        "413 everywhere",
    ),
    ("the table of limits", "one token could take all live streams of a process", "20 each, then 429"),
    (
        "schemathesis",
        "OpenAPI told of refusals as FastAPI's own document; they are problem documents",
        "told as they are, for all 4xx",
    ),
    (
        "schemathesis",
        "replaying one delivery answered 500 where the span named began in the year 170",
        "422, as for all moments outside 2000 to 2100",
    ),
    (
        "schemathesis",
        "the 405 of a path with several methods told one of them",
        "all of them",
    ),
)


def page() -> str:
    figures = FIGURES.validate_json((ROOT / "docs" / "fuzzing.json").read_bytes())
    rows = "\n".join(_row(name, figures[name]) for name in WHAT if name in figures)
    found = "\n".join(f"| {by} | {what} | {mended} |" for by, what, mended in FOUND)
    places = _properties()
    return f"""{GENERATED}
# Fuzzing

| fuzzer | inputs | seconds | reached | held | commit, day |
|---|--:|--:|--:|---|---|
{rows}

Guided by coverage (atheris), from good examples; "reached" counts edges of our code. {_of_api(figures)}
Run with the lowest priority on a machine that did much else: the seconds say little.

{_meanings(figures)}

To run them: `make fuzz ARGS="--seconds 60"`; for the API besides `--stack .state/stack.json`, of a stack that nobody
needs. What breaks one is printed with its input.

In CI, hypothesis tries {sum(places.values())} properties in {len(places)} test files, each with 100 inputs of its own
making unless the test says otherwise (8 to 400), and [bad inputs](bad-inputs.md) come through every door.

## What was found, and mended

| by | what | now |
|---|---|---|
{found}
"""


def _row(name: str, run: Mapping[str, Any]) -> str:
    unit = "operations" if name == "api" else "edges"
    held = "no" if run["broke"] else "yes"
    return (
        f"| {name} | {run['executions']:,} | {run['seconds']:,} | {run['edges'] or 0:,} {unit} | {held}"
        f" | {run['commit']}, {run['on']} |"
    )


def _of_api(figures: Mapping[str, Any]) -> str:
    if "api" in figures:
        return "The API's is schemathesis; there it counts operations."
    return "The API's, schemathesis, has no complete run yet."


def _meanings(figures: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {what}." for name, what in WHAT.items() if name in figures)


def _properties() -> dict[Path, int]:
    """How many properties each test file has."""
    files = (path for part in ("libs", "services", "tools", "tests") for path in (ROOT / part).rglob("test_*.py"))
    counts = {path: len(_PROPERTY.findall(path.read_text())) for path in files}
    return {path: count for path, count in counts.items() if count}
