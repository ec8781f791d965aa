"""docs/ is what the code says, links lead somewhere, and the published contract is only ever added to."""

import json
import os
import re
import runpy
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # no stubs
import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATE: dict[str, Any] = runpy.run_path(str(DOCS / "generate.py"))
GENERATED: dict[Path, str] = GENERATE["files"]()
CONTRACTS = [path.relative_to(ROOT) for path in GENERATED if path.suffix == ".json"]
# What a change is compared with; in CI the commit before it, or the branch it goes to.
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


def schemas_in(contract: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = contract.get("components", {}).get("schemas", {})
    return found


def types_in(schema: Any) -> frozenset[str]:
    """The alternatives that a field's schema allows, as words: its type, reference or constant."""
    if not isinstance(schema, dict):
        return frozenset({str(schema)})
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return frozenset().union(*(types_in(each) for each in alternatives))
    if "$ref" in schema:
        return frozenset({schema["$ref"]})
    if schema.get("type") == "array":
        return frozenset(f"list of {each}" for each in types_in(schema.get("items", {})))
    return frozenset({str(schema.get("type", "anything"))})


def breaks(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What a consumer or caller of `old` would stumble over in `new`: things gone, retyped, or newly required."""
    for path, methods in old.get("paths", {}).items():
        for method in set(methods) - set(new["paths"].get(path, {})):
            yield f"{method.upper()} {path} is gone"
    for name in set(old.get("channels", {})) - set(new.get("channels", {})):
        yield f"topic {name} is gone"
    for name, schema in schemas_in(old).items():
        if name in schemas_in(new):
            yield from _schema_breaks(name, schema, schemas_in(new)[name])


def _schema_breaks(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for field, schema in old.get("properties", {}).items():
        if field not in new.get("properties", {}):
            yield f"{name}.{field} is gone"
        elif not types_in(schema) <= types_in(new["properties"][field]):
            yield f"{name}.{field} was retyped"
    for field in set(new.get("required", ())) - set(old.get("required", ())):
        if field in old.get("properties", {}):
            yield f"{name}.{field} is newly required"
    for value in set(old.get("enum", ())) - set(new.get("enum", ())):
        yield f"{name} no longer knows {value}"


@pytest.mark.parametrize("path", CONTRACTS, ids=str)
def test_contract_is_only_added_to(path: Path) -> None:
    shown = subprocess.run(["git", "show", f"{BASE}:{path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        pytest.skip(f"{BASE} has no {path}")
    assert list(breaks(json.loads(shown.stdout), json.loads((ROOT / path).read_text()))) == []


def thing(**fields: Any) -> dict[str, Any]:
    return {"components": {"schemas": {"Thing": {"properties": fields, "required": []}}}}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (thing(a={"type": "string"}), thing(a={"type": "string"}, b={"type": "string"}), []),
        (thing(a={"type": "string"}), thing(), ["Thing.a is gone"]),
        (thing(a={"type": "string"}), thing(a={"type": "integer"}), ["Thing.a was retyped"]),
        (thing(a={"type": "string"}), thing(a={"anyOf": [{"type": "string"}, {"type": "null"}]}), []),
        (thing(a={"type": "array", "items": {"type": "string"}}), thing(a={"type": "string"}), ["Thing.a was retyped"]),
        ({"paths": {"/v1/x": {"get": {}}}}, {"paths": {}}, ["GET /v1/x is gone"]),
        ({"channels": {"a": {}}}, {"channels": {}}, ["topic a is gone"]),
    ],
)
def test_breaks_are_seen(old: dict[str, Any], new: dict[str, Any], expected: list[str]) -> None:
    assert list(breaks(old, new)) == expected


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
