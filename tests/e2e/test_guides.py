"""Guides, as a newcomer would follow them: each block is run, what a page shows is seen.

They publish under fixed ids, so a stack on which they have run before hears nothing new.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK_SECONDS = 120
# A row of a timeline: which rows are there yet, and in which order, depends on how far the message log has read.
ROW = "+"
# READ may still be DELIVERED.
DELIVERED = re.compile(r"✓✓ \w+")
# What differs from run to run: numbers, times, addresses.
VARIES = re.compile(r"\d+(?:\\?[.:]\d+)*")


@dataclass(frozen=True)
class Step:
    """Something to run, and the lines that a page shows below it."""

    language: str
    text: str
    shown: tuple[str, ...] = ()


def steps(page: str) -> Iterator[Step]:
    """The blocks of a page that are to be run: bash, python. `console` is what a reader does once, by hand."""
    blocks = BLOCK.findall((DOCS / page).read_text())
    for index, (language, text) in enumerate(blocks):
        if language in ("bash", "python"):
            following = blocks[index + 1] if index + 1 < len(blocks) else ("", "")
            shown = following[1].splitlines() if following[0] == "text" else []
            yield Step(language, text, tuple(line for line in shown if not line.startswith(ROW)))


def pattern_of(line: str) -> str:
    """A shown line as a pattern: numbers are any number, blanks any blanks, `…` anything."""
    numbers = VARIES.sub(r"[\\d.:]+", re.escape(DELIVERED.sub("✓✓ …", line.strip())))
    return re.sub(r"(?:\\ )+", r"\\s+", numbers).replace("…", ".*?")


def missing(shown: tuple[str, ...], said: str) -> list[str]:
    """The shown lines that were not said, in this order."""
    # What the terminal is too narrow for goes on in the next line.
    rest, left = " ".join(said.split()), []
    for line in shown:
        found = re.search(pattern_of(line), rest)
        if found is None:
            left.append(line)
        else:
            rest = rest[found.end() :]
    return left


@pytest.fixture
def desk(stack_file: Path, tmp_path: Path) -> Path:
    """A folder in which the repository's commands stand where the pages have them, beside the running stack's."""
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    (tmp_path / ".state").symlink_to(stack_file.parent)
    return tmp_path


def run(step: Step, folder: Path) -> str:
    kafka = json.loads((folder / ".state" / "stack.json").read_text())["kafka"]
    environment = os.environ | {"SENDWHY_KAFKA_BOOTSTRAP_SERVERS": kafka, "PYTHONWARNINGS": "error"}
    command = ["bash", "-c", step.text] if step.language == "bash" else [sys.executable, "-c", step.text]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=BLOCK_SECONDS, check=False
    )
    # `why` ends with 1 for a failed message, as it says; nothing else may fail.
    asks_why = "sendwhy why" in step.text
    assert done.returncode == 0 or (asks_why and done.returncode == 1), f"{step.text}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.stack
@pytest.mark.parametrize("page", ["tutorial.md", "how-to/connect-python.md", "how-to/recover-a-campaign.md"])
def test_a_page_does_what_it_says(page: str, desk: Path) -> None:
    for step in steps(page):
        said = run(step, desk)
        assert missing(step.shown, said) == [], f"{step.text}\nsaid:\n{said}"


def test_pages_have_steps_and_their_lines_are_looked_for() -> None:
    assert len(list(steps("tutorial.md"))) >= 6
    assert sum(bool(step.shown) for step in steps("tutorial.md")) >= 4
    assert missing(("ready after 21.0 s: .state", "m-1  …  done"), "ready after 3.25 s: .state\nm-7 at last done") == []
    assert missing(("first-1: read",), "first-2: sent") == ["first-1: read"]
