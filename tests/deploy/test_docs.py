"""docs/ is what the code says, links lead somewhere, and the published contract is only ever added to."""

import json
import os
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import build_site
import jsonschema  # type: ignore[import-untyped]  # no stubs
import pytest
from kept_contract import Promises, breaks, promises
from sendwhy.events import SendRequested

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATE: dict[str, Any] = runpy.run_path(str(DOCS / "generate.py"))
BASELINE = DOCS / "contracts" / "baseline.json"
OF_THE_RELEASE = {BASELINE, DOCS / "contracts" / "release.json"}
CONTRACTS = [path.relative_to(ROOT) for path in sorted({*(DOCS / "contracts").rglob("*.json")} - OF_THE_RELEASE)]
# What a change is compared with beside the last release: a branch, or the commit before it.
BASE = os.environ.get("SENDWHY_CONTRACT_BASE", "HEAD")


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    """What each generated file must hold. Not made at import: each process that collects tests would do it."""
    made: dict[Path, str] = GENERATE["files"]()
    return made


def test_generated_files_are_current(generated: dict[Path, str]) -> None:
    old = [str(path.relative_to(ROOT)) for path, text in generated.items() if path.read_text() != text]
    assert old == [], "run: python docs/generate.py"
    assert {path.relative_to(ROOT) for path in generated if path.suffix == ".json"} == set(CONTRACTS)


def test_every_setting_is_explained_and_nothing_else() -> None:
    fields = {name for kind in GENERATE["SETTINGS"].values() for name in kind.model_fields}
    assert set(GENERATE["MEANINGS"]) == fields


def test_the_contract_names_every_setting_that_must_be_given() -> None:
    contract = (DOCS / "contract.md").read_text()
    needed = {
        name.upper()
        for kind in GENERATE["SETTINGS"].values()
        for name, field in kind.model_fields.items()
        if field.is_required()
    }
    assert "PRIVACY_KEY" in needed
    assert not [name for name in needed if f"`{name}`" not in contract]


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


def test_what_the_last_release_promised_is_kept(generated: dict[Path, str]) -> None:
    baseline: dict[str, Promises] = json.loads(BASELINE.read_text())
    contracts = {path: text for path, text in generated.items() if path.suffix == ".json"}
    now = {str(path.relative_to(DOCS / "contracts")): json.loads(text) for path, text in contracts.items()}
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


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=lambda page: page.name)
def test_requests_in_guides_fit_their_schema(page: Path) -> None:
    schema = json.loads((DOCS / "contracts" / "schemas" / "send.requested.json").read_text())
    bodies = re.findall(r"^```json\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    for body in bodies:
        jsonschema.Draft202012Validator(schema).validate(json.loads(body))
        SendRequested.model_validate_json(body)
    assert bodies or "schema only" not in page.read_text() or page.name == "use-the-schemas.md"


@pytest.mark.parametrize("page", [*(DOCS / "how-to").glob("*.md"), DOCS / "tutorial.md"], ids=lambda page: page.name)
def test_guides_name_settings_and_commands_that_exist(page: Path) -> None:
    text, known = page.read_text(), "\n".join((DOCS / name).read_text() for name in ("settings.md", "commands.md"))
    for setting in re.findall(r"SENDWHY_[A-Z_]+[A-Z]", text):
        assert setting in known, setting
    assert unknown_commands(text) == []


def test_pages_of_the_message_log_name_commands_that_exist() -> None:
    templates = (ROOT / "services" / "message-log" / "message_log" / "templates").glob("*.html")
    assert [told for page in templates for told in unknown_commands(page.read_text())] == []


def unknown_commands(text: str) -> list[str]:
    known = (DOCS / "commands.md").read_text()
    named = re.findall(r"(?<!-m )sendwhy ((?:(?:contacts|credits|senders|campaigns) )?[a-z-]+)", text)
    return [command for command in named if f"\n## sendwhy {command}\n" not in known]


def test_the_readme_leaves_the_tutorial_its_message_ids_its_contact_and_its_phone() -> None:
    """Both are followed on the same `.state`, and an id, or somebody's consent, counts only once."""
    readme, tutorial = (ROOT / "README.md").read_text(), (DOCS / "tutorial.md").read_text()
    named = set(re.findall(r'sendwhy why ([\w-]+)$|contacts/(\w+)|"phone": "(\+\d+)"', readme, re.MULTILINE))
    ours = {name for groups in named for name in groups if name}
    assert len(ours) == 4
    assert [name for name in ours if re.search(rf"(?<!\w){re.escape(name)}\b", tutorial)] == []


def exists_in_the_repository(path: str) -> bool:
    return path in ("docs/reasons.md", "docs/how-to/find-why.md", "ARCHITECTURE.md", "deploy/README.md", "Makefile")


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("docs/how-to/find-why.md", "[a](../reasons.md#x)", "[a](../reasons.md#x)"),
        ("docs/reasons.md", "[a](../ARCHITECTURE.md)", "[a](explanation/architecture.md)"),
        ("ARCHITECTURE.md", "[a](docs/reasons.md)", "[a](../reasons.md)"),
        ("docs/reasons.md", "[a](../deploy/README.md)", "[a](deploy/README.md)"),
        ("docs/reasons.md", "[a](../Makefile)", "a (`Makefile` in the repository)"),
        ("docs/reasons.md", "[`make`](../Makefile)", "`make`"),
        ("docs/reasons.md", "[a](https://x.test/y.md) [b](#c)", "[a](https://x.test/y.md) [b](#c)"),
        ("docs/reasons.md", "```\n[a](b.md)\n```\n", "```\n[a](b.md)\n```\n"),
    ],
)
def test_the_site_sets_links_anew(page: str, text: str, expected: str) -> None:
    assert build_site.relinked(text, page, exists_in_the_repository) == expected


def test_the_site_refuses_a_link_that_leads_nowhere() -> None:
    with pytest.raises(build_site.BrokenSiteError, match=r"gone\.md"):
        build_site.relinked("[a](gone.md)", "docs/reasons.md", exists_in_the_repository)


def test_faults_of_a_built_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<script src="https://cdn.test/x.js"></script><a href="b.html#here">1</a><a href="b.html#there">2</a>'
        '<a href="gone.html">3</a><a href="/b.html">4</a><a href="https://x.test/">5</a><p id="p"><a href="#p">6</a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>')
    assert sorted(build_site.faults(tmp_path)) == [
        "index.html loads https://cdn.test/x.js from outside",
        "index.html: b.html#there has no such place there",
        "index.html: gone.html leads nowhere",
    ]


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


@pytest.mark.parametrize("service", sorted(path.name for path in (ROOT / "services").iterdir()))
def test_a_services_readme_names_its_tables(service: str) -> None:
    """Partitions stand for their table."""
    readme = (ROOT / "services" / service / "README.md").read_text()
    made = "\n".join(path.read_text() for path in (ROOT / "services" / service).glob("*/migrations/*.sql"))
    tables = set(re.findall(r"^create (?:unlogged )?table (\w+) \(", made, re.MULTILINE))
    tables -= set(re.findall(r"^drop table (?:if exists )?(\w+)", made, re.MULTILINE))
    assert tables
    assert [table for table in sorted(tables) if not re.search(rf"\b{table}\b", readme)] == []


def test_decisions_have_the_one_form() -> None:
    records = sorted((DOCS / "adr").glob("*.md"))
    assert [path.name[:4] for path in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    for path in records:
        text = path.read_text()
        assert re.match(rf"# {int(path.name[:4])}\. .+\n\nStatus: accepted · Date: \d{{4}}-\d\d-\d\d\n", text), path
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences", "Alternatives", "Enforced by"], path
