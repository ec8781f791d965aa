"""docs/ is what the code says, links lead somewhere, and the published contract is only ever added to."""

import json
import os
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # no stubs
import pytest
from kept_contract import Promises, breaks, promises

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATE: dict[str, Any] = runpy.run_path(str(DOCS / "generate.py"))
GENERATED: dict[Path, str] = GENERATE["files"]()
CONTRACT_TEXTS = {path: text for path, text in GENERATED.items() if path.suffix == ".json"}
CONTRACTS = [path.relative_to(ROOT) for path in CONTRACT_TEXTS]
BASELINE = DOCS / "contracts" / "baseline.json"
# What a change is compared with beside the last release: a branch, or the commit before it.
BASE = os.environ.get("SENDWHY_CONTRACT_BASE", "HEAD")


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_generated_file_is_current(path: Path) -> None:
    assert path.read_text() == GENERATED[path], "run: python docs/generate.py"


def test_every_setting_is_explained_and_nothing_else() -> None:
    fields = {name for kind in GENERATE["SETTINGS"].values() for name in kind.model_fields}
    assert set(GENERATE["MEANINGS"]) == fields


def test_event_schemas_are_valid() -> None:
    schemas = json.loads((DOCS / "contracts" / "asyncapi.json").read_text())["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def contract_at(base: str, path: Path) -> Promises:
    """The promises of a contract in another commit; skips where that has none."""
    shown = subprocess.run(["git", "show", f"{base}:{path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        pytest.skip(f"{base} has no {path}")
    return promises(json.loads(shown.stdout))


@pytest.mark.parametrize("path", CONTRACTS, ids=str)
def test_contract_is_only_added_to(path: Path) -> None:
    assert list(breaks(contract_at(BASE, path), promises(json.loads((ROOT / path).read_text())))) == []


def test_what_the_last_release_promised_is_kept() -> None:
    baseline: dict[str, Promises] = json.loads(BASELINE.read_text())
    now = {str(path.relative_to(DOCS / "contracts")): json.loads(text) for path, text in CONTRACT_TEXTS.items()}
    assert baseline.keys() <= now.keys()
    assert [found for name, old in baseline.items() for found in breaks(old, promises(now[name]))] == []


def thing(**fields: Any) -> dict[str, Any]:
    return {"components": {"schemas": {"Thing": {"properties": fields, "required": []}}}}


def route(*parameters: dict[str, Any], **body: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": body}}
    return {"paths": {"/v1/x": {"post": {"parameters": list(parameters), "requestBody": {"content": content}}}}}


TEXT = {"type": "string"}
MUST = {"properties": {"a": TEXT}, "required": ["a"]}
Q = {"in": "query", "name": "q", "schema": TEXT}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (thing(a=TEXT), thing(a=TEXT, b=TEXT), []),
        (thing(a=TEXT), thing(), ["field Thing.a is gone"]),
        (thing(a=TEXT), thing(a={"type": "integer"}), ["field Thing.a was retyped"]),
        (thing(a=TEXT), thing(a={"anyOf": [TEXT, {"type": "null"}]}), []),
        (thing(a={"type": "array", "items": TEXT}), thing(a=TEXT), ["field Thing.a was retyped"]),
        (thing(a=TEXT), {"$defs": {"Thing": {**MUST}}}, ["field Thing.a is newly required"]),
        ({"title": "Thing", **MUST}, thing(a=TEXT), []),
        (
            {"$defs": {"Colour": {"enum": ["RED"]}}},
            {"$defs": {"Colour": {"enum": ["BLUE"]}}},
            ["value Colour.RED is gone"],
        ),
        ({"paths": {"/v1/x": {"get": {}}}}, {"paths": {}}, ["route GET /v1/x is gone"]),
        ({"channels": {"a": {}}}, {"channels": {}}, ["topic a is gone"]),
        (route(), route(Q), []),
        (route(Q), route(), ["field POST /v1/x query q is gone"]),
        (route(), route({**Q, "required": True}), ["field POST /v1/x query q is newly required"]),
        (route(), route(**MUST), ["field POST /v1/x application/json.a is newly required"]),
        ({"paths": {}}, route(**MUST), []),
    ],
)
def test_breaks_are_seen(old: dict[str, Any], new: dict[str, Any], expected: list[str]) -> None:
    assert list(breaks(promises(old), promises(new))) == expected


def pages() -> list[Path]:
    folders = ("docs", "deploy", "services", "tools", "libs", "demo")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.md")]
    return [*ROOT.glob("*.md"), *found]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-").lower() for heading in headings}, (
                target
            )


def test_decisions_have_the_one_form() -> None:
    records = sorted((DOCS / "adr").glob("*.md"))
    assert [path.name[:4] for path in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    for path in records:
        text = path.read_text()
        assert re.match(rf"# {int(path.name[:4])}\. .+\n\nStatus: accepted · Date: \d{{4}}-\d\d-\d\d\n", text), path
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences", "Alternatives", "Enforced by"], path
