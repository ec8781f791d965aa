"""The demo's data, and what becomes of every request in it."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sendwhy.events import SendRequested
from sendwhy.reasons import CATALOGUE, ReasonCode

ROOT = Path(__file__).parents[2]
DATA = ROOT / "demo"
SENDWHY = Path(sys.executable).with_name("sendwhy")
DEMO_SECONDS = 540


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def make_data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_data", DATA / "make_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_data"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def requests() -> list[dict[str, Any]]:
    return [body for path in sorted((DATA / "requests").iterdir()) for body in lines(path)]


def test_the_files_are_what_make_data_makes(make_data: ModuleType) -> None:
    made = dict(make_data.make())
    there = {str(path.relative_to(DATA)) for pattern in ("*.json", "*.jsonl", "*.csv") for path in DATA.rglob(pattern)}
    assert set(made) == there
    for name, content in made.items():
        assert (DATA / name).read_bytes() == content, f"run demo/make_data.py: {name} differs"


def test_every_request_has_one_expected_outcome() -> None:
    ids = [body["message_id"] for body in requests()]
    assert sorted(ids) == sorted(row["message_id"] for row in lines(DATA / "expected.jsonl"))
    assert len(set(ids)) == len(ids)


def test_every_reason_of_the_catalogue_comes_out_said_by_who_says_it() -> None:
    said = {(row["reason"], row["service"]) for row in lines(DATA / "expected.jsonl") if row["reason"]}
    assert {reason for reason, _ in said} == set(ReasonCode)
    assert all(service in CATALOGUE[ReasonCode(reason)].services for reason, service in said)


def test_the_campaign_has_500_recipients_in_several_countries() -> None:
    campaign = lines(DATA / "requests" / "campaign.jsonl")
    assert len({body["to"]["contact_id"] for body in campaign}) == 500
    assert len({body["metadata"]["segment"] for body in campaign}) >= 8


def test_the_requests_are_readable_but_for_the_two_that_are_not() -> None:
    for body in requests():
        if body["message_id"] not in ("order-4720", "order-4721"):
            SendRequested.model_validate_json(json.dumps(body))


@pytest.fixture
def demo(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    arguments = ["--exit", "--report", str(tmp_path / "out.json"), "--state-dir", str(tmp_path / "state")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SENDWHY_")}
    running = subprocess.Popen([SENDWHY, "demo", *arguments], cwd=ROOT, env=environment, start_new_session=True)
    yield running
    if running.poll() is None:
        running.send_signal(signal.SIGTERM)
        running.wait(60)


@pytest.mark.stack
@pytest.mark.timeout(DEMO_SECONDS + 60)
def test_every_request_ends_as_its_data_make_it(demo: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    assert demo.wait(DEMO_SECONDS) == 0
    told = {row["message_id"]: row for row in json.loads((tmp_path / "out.json").read_bytes())}
    expected = {row["message_id"]: row for row in lines(DATA / "expected.jsonl")}
    differing = {name: (row, told.get(name)) for name, row in expected.items() if told.get(name) != row}
    assert not differing, Counter(str(pair[1]) for pair in differing.values())
    assert told.keys() == expected.keys()
