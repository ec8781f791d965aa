"""What may pass an audit and for how long, and an SBOM that follows from the lock file."""

import json
import runpy
from datetime import date
from pathlib import Path
from typing import Any

import pytest

SUPPLY = Path(__file__).parents[2] / "deploy" / "supply"
AUDIT: dict[str, Any] = runpy.run_path(str(SUPPLY / "audit.py"))
SBOM: dict[str, Any] = runpy.run_path(str(SUPPLY / "sbom.py"))
TODAY = date(2026, 11, 26)
ENTRY = '[[advisory]]\nid = "GHSA-1"\n'


def test_the_list_of_exceptions_holds_today() -> None:
    _, faults = AUDIT["allowed"]((SUPPLY / "allowed.toml").read_text(), date.today())  # noqa: DTZ011 - a day will do
    assert faults == []


@pytest.mark.parametrize(
    ("text", "ids", "fault"),
    [
        ("", [], None),
        (ENTRY + 'reason = "never called"\nuntil = 2026-11-27', ["GHSA-1"], None),
        (ENTRY + 'reason = "never called"\nuntil = 2026-11-26', [], "look at it again"),
        (ENTRY + 'reason = "never called"', [], "a date"),
        (ENTRY + 'reason = "never called"\nuntil = "2026-11-27"', [], "a date"),
        (ENTRY + "until = 2026-11-27", [], "a reason"),
    ],
)
def test_an_exception_needs_a_reason_and_ends(text: str, ids: list[str], fault: str | None) -> None:
    found, faults = AUDIT["allowed"](text, TODAY)
    assert found == ids
    assert [fault in one for one in faults] == ([True] if fault else [])


@pytest.mark.parametrize(
    ("code", "told", "strict", "exit_code", "word"),
    [
        (0, "Found no known vulnerabilities", False, 0, "no known"),
        (1, "GHSA-1 in x 1.0", False, 1, "see above"),
        (2, "cause: error sending request for url (https://api.osv.dev)", False, 0, "NOT DONE"),
        (2, "cause: error sending request for url (https://api.osv.dev)", True, 1, "NOT DONE"),
        (2, "error: the lock file is broken", False, 1, "see above"),
    ],
)
def test_a_service_that_is_away_is_told_and_never_taken_for_a_good_answer(
    code: int, told: str, strict: bool, exit_code: int, word: str
) -> None:
    found, line = AUDIT["verdict"](code, told, strict=strict)
    assert (found, word in line) == (exit_code, True)


def test_one_lock_file_gives_one_sbom() -> None:
    def made(lock: bytes, moment: str) -> Any:
        bom = {"serialNumber": f"urn:uuid:{moment}", "metadata": {"timestamp": moment}, "components": [{"purl": "x"}]}
        return json.loads(SBOM["settled"](bom, lock))

    assert made(b"a", "now") == made(b"a", "later")
    assert made(b"a", "now")["serialNumber"] != made(b"b", "now")["serialNumber"]
