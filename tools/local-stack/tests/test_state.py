"""Ports, secrets, the lock, logs and the services' environment."""

from __future__ import annotations

import os
import random
import signal
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from local_stack.errors import StackError, WrongUseError
from local_stack.janitor import Janitor
from local_stack.process import Command, Process, ProcessEndedError
from local_stack.services import SERVICES, environment, make_credentials, settings_of_caller
from local_stack.state import PORTS, StateDir
from local_stack.supervisor import Options


def test_ports_are_remembered_while_free(tmp_path: Path) -> None:
    first = StateDir(tmp_path).ports("kafka", "postgres")
    assert StateDir(tmp_path).ports("kafka", "postgres") == first
    assert len(set(first.values())) == 2
    assert all(port in PORTS for port in first.values())


def test_a_taken_port_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    first = StateDir(tmp_path).ports("kafka", "postgres")
    with socket.create_server(("127.0.0.1", first["kafka"])):
        second = StateDir(tmp_path).ports("kafka", "postgres")
    assert second["kafka"] != first["kafka"]
    assert second["postgres"] == first["postgres"]


def _chosen_elsewhere(directory: Path, *, seed: int) -> int:
    """By a process of its own, which draws as another with the same seed does."""
    asking = (
        f"import random; from local_stack.state import *; random.seed({seed});"
        f" print(StateDir(Path({str(directory)!r})).ports('kafka')['kafka'])"
    )
    answer = subprocess.run([sys.executable, "-c", asking], check=True, capture_output=True, text=True)
    return int(answer.stdout)


def test_a_chosen_port_is_nobody_elses_before_its_server_listens(tmp_path: Path) -> None:
    random.seed(7)
    mine = StateDir(tmp_path / "mine").ports("kafka")
    assert _chosen_elsewhere(tmp_path / "other", seed=7) != mine["kafka"]
    random.seed(7)
    assert StateDir(tmp_path / "a third").ports("kafka") != mine
    assert StateDir(tmp_path / "mine").ports("kafka") == mine


def test_a_port_that_another_process_chose_for_the_directory_is_kept(tmp_path: Path) -> None:
    mine = StateDir(tmp_path).ports("kafka")
    assert _chosen_elsewhere(tmp_path, seed=8) == mine["kafka"]


def test_a_port_is_free_again_once_its_process_has_ended(tmp_path: Path) -> None:
    chosen = [_chosen_elsewhere(tmp_path / directory, seed=9) for directory in ("one", "other")]
    assert chosen[0] == chosen[1]


def test_a_secret_stays_and_is_its_owners_alone(tmp_path: Path) -> None:
    secret = StateDir(tmp_path).secret("token")
    assert StateDir(tmp_path).secret("token") == secret
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    names = [f"secret{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        secrets = dict(zip(names, threads.map(lambda name: StateDir(tmp_path).secret(name), names), strict=True))
    assert StateDir(tmp_path).read_json("secrets.json") == secrets


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00"])
def test_a_spoilt_file_is_named_and_not_overwritten(content: str, tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text(content)
    with pytest.raises(StackError, match=r"secrets\.json"):
        StateDir(tmp_path).secret("token")
    assert (tmp_path / "secrets.json").read_text() == content


def test_one_live_process_holds_a_directory(tmp_path: Path) -> None:
    held = StateDir(tmp_path).lock()
    with pytest.raises(WrongUseError, match=f"in use by process {os.getpid()}"):
        StateDir(tmp_path).lock()
    os.close(held)
    os.close(StateDir(tmp_path).lock())


@pytest.mark.parametrize("below", ["file", "file/state", "file/state/deeper", "x" * 300])
def test_a_directory_that_cannot_be_is_wrong_use(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(WrongUseError, match=r"--state-dir .* can't be used: "):
        StateDir(tmp_path / below)
    assert os.listdir(tmp_path) == ["file"]


async def test_a_process_that_ends_early_tells_its_last_words(tmp_path: Path) -> None:
    janitor = Janitor()
    process = Process(Command("early", [sys.executable, "-c", "print('no disk'); exit(3)"]), tmp_path, janitor)
    assert await process.wait() == 3
    with pytest.raises(ProcessEndedError, match=r"early ended with code 3(?s:.)*no disk"):
        process.check_alive()
    janitor.close()


async def test_a_process_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    source = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
    janitor = Janitor()
    process = Process(Command("deaf", [sys.executable, "-c", source]), tmp_path, janitor)
    while not process.log.read_text():
        process.check_alive()
    await process.stop(grace_seconds=0.1)
    assert process.exit_code == -signal.SIGKILL
    janitor.close()


async def test_logs_of_earlier_runs_are_kept_but_not_for_ever(tmp_path: Path) -> None:
    janitor = Janitor()
    for _ in range(5):
        assert await Process(Command("short", [sys.executable, "-c", ""]), tmp_path, janitor).wait() == 0
    janitor.close()
    assert sorted(os.listdir(tmp_path)) == ["short.log", "short.log.1", "short.log.2"]


def test_the_callers_settings_are_passed_on_and_win(tmp_path: Path) -> None:
    caller = settings_of_caller(
        {"SENDWHY_UNKNOWN_OUTCOME_SECONDS": "5", "SENDWHY_META_VERIFY_TOKEN": "mine", "HOME": "/"}
    )
    env = environment(make_credentials(StateDir(tmp_path), caller), "http://meta", {}, caller)
    assert env["SENDWHY_UNKNOWN_OUTCOME_SECONDS"] == "5"
    assert env["SENDWHY_META_VERIFY_TOKEN"] == "mine"
    assert env["SENDWHY_META_GRAPH_URL"] == "http://meta"


def test_the_callers_credentials_stand_beside_our_own(tmp_path: Path) -> None:
    caller = {"API_TOKENS": "theirs-long:viewer:acme", "SHOPIFY_WEBHOOK_SECRETS": "acme:a,demo:d"}
    credentials = make_credentials(StateDir(tmp_path), caller)
    assert credentials.api_tokens == f"theirs-long:viewer:acme,{credentials.admin_token}:admin:*"
    assert credentials.shopify_webhook_secrets == "acme:a,demo:d"
    assert credentials.shopify_secret == "d"


def test_a_setting_from_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    assert settings_of_caller({"SENDWHY_META_VERIFY_TOKEN_FILE": str(tmp_path / "token")}) == {
        "META_VERIFY_TOKEN": "from-file"
    }
    with pytest.raises(WrongUseError, match="SENDWHY_META_VERIFY_TOKEN_FILE: No such file"):
        settings_of_caller({"SENDWHY_META_VERIFY_TOKEN_FILE": str(tmp_path / "missing")})


def test_where_the_services_listen_and_store_is_not_the_callers_affair() -> None:
    wiring = {"SENDWHY_HTTP_PORT": "1", "SENDWHY_DATABASE_URL": "postgresql://elsewhere", "SENDWHY_REPLICA": "x"}
    wiring |= {"SENDWHY_KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "SENDWHY_KAFKA_SASL_PASSWORD_FILE": "/missing"}
    assert settings_of_caller(wiring) == {}


META_URLS = [
    "",
    "nonsense",
    "graph.facebook.com",
    "ftp://host",
    "http://",
    "http:///v1",
    "http://h:x",
    "http://[",
    "http://a b",
]


@pytest.mark.parametrize("url", META_URLS)
def test_a_meta_url_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(WrongUseError, match="--meta-url"):
        Options(tmp_path, meta_url=url)


@pytest.mark.parametrize("url", ["https://graph.facebook.com", "http://127.0.0.1:8080/", "http://[::1]:80"])
def test_a_meta_url_is_http_with_a_host(url: str, tmp_path: Path) -> None:
    assert Options(tmp_path, meta_url=url).meta_url == url


@pytest.mark.parametrize("replicas", [{"kafka": 2}, {"billing": 0}, {"billing": 17}, {"": 1}])
def test_impossible_replicas_are_refused(replicas: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(WrongUseError, match="--replicas"):
        Options(tmp_path, replicas)
    assert Options(tmp_path, dict.fromkeys(SERVICES, 2)).replicas["billing"] == 2
