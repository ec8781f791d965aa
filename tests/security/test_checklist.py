"""docs/security-checklist.md names tests: each exists, and each row has one, or says why not."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security-checklist.md"
NAMED = re.compile(r"`([\w./-]+\.py)::(\w+)`")
ASVS = re.compile(r"(\d{1,2}\.\d{1,2}\.\d{1,2})(, \d{1,2}\.\d{1,2}\.\d{1,2})*")


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [row for row in cells if row[0] not in ("threat", "---")]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_a_row_says_what_is_done_and_which_tests_hold_it(row: list[str]) -> None:
    _, done, asvs, tests = row
    assert done
    assert not asvs or ASVS.fullmatch(asvs)
    named = NAMED.findall(tests)
    assert named or tests.startswith("No test: ")
    for path, name in named:
        found = re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
        assert found is not None, f"{path} has no {name}"


def test_no_threat_was_lost() -> None:
    assert len(rows()) >= 31
