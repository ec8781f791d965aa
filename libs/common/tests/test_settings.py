import json
import logging
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sendwhy.access import Role, find_token, parse_tokens
from sendwhy.kafka import connection_options, make_broker
from sendwhy.logs import SELDOM_SECONDS, Seldom, describe, mask
from sendwhy.settings import KafkaSettings, ServiceSettings, load

GOOD = {
    "SENDWHY_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "SENDWHY_DATABASE_URL": "postgresql://u:secret-password@127.0.0.1/x",
    "SENDWHY_API_TOKENS": "swk_0123456789:admin:*",
}
PROGRAM = "from sendwhy.settings import ServiceSettings, load; print(load(ServiceSettings))"


def run(environment: dict[str, str | None]) -> "subprocess.CompletedProcess[str]":
    base = {name: value for name, value in os.environ.items() if not name.startswith("SENDWHY_")}
    merged = {name: value for name, value in (base | environment).items() if value is not None}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=merged, capture_output=True, text=True, timeout=60, check=False
    )


BAD = [
    ("SENDWHY_KAFKA_BOOTSTRAP_SERVERS", None),
    ("SENDWHY_DATABASE_URL", None),
    ("SENDWHY_DATABASE_URL", "mysql://u:secret-password@h/x"),
    ("SENDWHY_HTTP_PORT", "99999"),
    ("SENDWHY_API_TOKENS", None),
    ("SENDWHY_API_TOKENS", "secret-password"),
    ("SENDWHY_API_TOKENS", "secret-password:emperor:*"),
    ("SENDWHY_KAFKA_SECURITY_PROTOCOL", "TELEPATHY"),
    ("SENDWHY_KAFKA_SSL_CAFILE", "/no/such/file"),
]


SASL = {
    "SENDWHY_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "SENDWHY_KAFKA_SASL_USERNAME": "consent",
    "SENDWHY_KAFKA_SASL_PASSWORD": "secret-password",
}
# Together with SASL's settings: what changes, and the setting that is named.
BAD_TOGETHER: list[tuple[dict[str, str | None], str]] = [
    ({"SENDWHY_KAFKA_SASL_USERNAME": None}, "SENDWHY_KAFKA_SASL_USERNAME is missing"),
    ({"SENDWHY_KAFKA_SASL_PASSWORD": None}, "SENDWHY_KAFKA_SASL_PASSWORD is missing"),
    ({"SENDWHY_KAFKA_SASL_PASSWORD": ""}, "SENDWHY_KAFKA_SASL_PASSWORD is missing"),
    ({"SENDWHY_KAFKA_SASL_MECHANISM": "GSSAPI"}, "SENDWHY_KAFKA_SASL_MECHANISM"),
    # Whoever sets a password or a certificate expects it to protect something.
    ({"SENDWHY_KAFKA_SECURITY_PROTOCOL": None}, "SENDWHY_KAFKA_SECURITY_PROTOCOL is PLAINTEXT"),
    ({"SENDWHY_KAFKA_SECURITY_PROTOCOL": "SSL"}, "SENDWHY_KAFKA_SECURITY_PROTOCOL is SSL"),
    (
        {"SENDWHY_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "SENDWHY_KAFKA_SSL_CAFILE": __file__},
        "SENDWHY_KAFKA_SSL_CAFILE is set",
    ),
    ({"SENDWHY_KAFKA_SSL_CAFILE": __file__}, "SENDWHY_KAFKA_SSL_CAFILE can't be read"),
    ({"SENDWHY_KAFKA_SSL_CERTFILE": __file__}, "SENDWHY_KAFKA_SSL_CERTFILE can't be used"),
    ({"SENDWHY_KAFKA_SSL_KEYFILE": __file__}, "SENDWHY_KAFKA_SSL_CERTFILE is missing"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_TOGETHER)
def test_settings_of_kafka_that_do_not_fit_are_named(
    changes: dict[str, str | None], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (GOOD | SASL | changes).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        load(ServiceSettings)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1
    assert "secret-password" not in told


def test_a_password_for_kafka_may_stand_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("secret-password\n")
    for name, value in (GOOD | SASL).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SENDWHY_KAFKA_SASL_PASSWORD")
    monkeypatch.setenv("SENDWHY_KAFKA_SASL_PASSWORD_FILE", str(tmp_path / "password"))
    settings = load(ServiceSettings)
    assert connection_options(settings)["sasl_plain_password"] == "secret-password"
    assert "secret-password" not in repr(settings)


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
@pytest.mark.parametrize("mechanism", [None, "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_consumers_of_the_framework_connect_as_our_own_clients_do(protocol: str, mechanism: str | None) -> None:
    user = {"kafka_sasl_username": "u", "kafka_sasl_password": SecretStr("p"), "kafka_sasl_mechanism": mechanism}
    settings = KafkaSettings.model_validate(
        {
            "kafka_bootstrap_servers": "127.0.0.1:1",
            "kafka_security_protocol": protocol,
            "kafka_ssl_check_hostname": False,
            **(user if protocol.startswith("SASL") else {}),
        }
    )
    ours = connection_options(settings)
    theirs = dict(make_broker(settings)._connection_kwargs)
    context = theirs.pop("ssl_context", None)
    assert (context is not None) == ("ssl_context" in ours) == protocol.endswith("SSL")
    if context is not None:
        assert not context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
    compared = ("security_protocol", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password")
    assert {name: theirs.get(name) for name in compared if name in ours and protocol != "PLAINTEXT"} == {
        name: ours[name] for name in compared if name in ours and protocol != "PLAINTEXT"
    }


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_wrong_setting_ends_the_process_with_one_line_that_names_it(name: str, value: str | None) -> None:
    ended = run({**GOOD, name: value})
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert name in ended.stderr
    assert "secret-password" not in ended.stderr


def test_a_setting_may_stand_in_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://from-a-file/x\n")
    ended = run({**GOOD, "SENDWHY_DATABASE_URL": None, "SENDWHY_DATABASE_URL_FILE": str(secret)})
    assert ended.returncode == 0, ended.stderr
    assert "from-a-file" not in ended.stdout


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"\xff\xfe")
    ended = run({**GOOD, "SENDWHY_DATABASE_URL": None, "SENDWHY_DATABASE_URL_FILE": str(tmp_path / "junk")})
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "SENDWHY_DATABASE_URL_FILE" in ended.stderr


def test_a_missing_file_is_named() -> None:
    ended = run({**GOOD, "SENDWHY_DATABASE_URL": None, "SENDWHY_DATABASE_URL_FILE": "/no/such/file"})
    assert ended.returncode == 2
    assert "SENDWHY_DATABASE_URL_FILE" in ended.stderr


def test_a_token_has_a_role_in_its_workspaces() -> None:
    tokens = parse_tokens("viewer-token:viewer:acme, admin-token:admin:*")
    viewer, admin = find_token(tokens, "viewer-token"), find_token(tokens, "admin-token")
    assert viewer is not None
    assert admin is not None
    assert viewer.may(Role.VIEWER, "acme")
    assert not viewer.may(Role.OPERATOR, "acme")
    assert not viewer.sees("other")
    assert admin.may(Role.ADMIN, "anything")
    assert find_token(tokens, "viewer-tokem") is None
    assert "viewer-token" not in repr(tokens)


@pytest.mark.parametrize("workspace", ["a b", "acme!", "w" * 65, "**"])
def test_a_token_of_a_workspace_that_cannot_be_is_refused(workspace: str) -> None:
    with pytest.raises(ValueError, match="entry 1 names a workspace"):
        parse_tokens(f"viewer-token:viewer:{workspace}")


MASKED = [
    ("to +52 55 1234 5678 at once", "5678"),
    ("phone=525512345678", "5512345678"),
    ("(+4915112345678)", "151123456"),
    ("Authorization: Bearer EAAGm0PX4ZCpsBA", "EAAGm0"),
    ("GET /x?access_token=EAAGm0PX&limit=1", "EAAGm0PX"),
    ("hub.verify_token=hunter2hunter2", "hunter2"),
    ("sha256=deadbeefdeadbeef", "deadbeef"),
    ("postgresql://u:pa55word@h/x", "pa55word"),
]


@pytest.mark.parametrize(("text", "secret"), MASKED)
def test_nothing_that_looks_like_a_phone_or_a_secret_is_logged(text: str, secret: str) -> None:
    assert secret not in mask(text)


@given(st.integers(10**7, 10**15 - 1))
def test_no_run_of_digits_as_long_as_a_phone_survives(number: int) -> None:
    assert str(number) not in mask(f"told {number} twice")


def test_an_exception_is_told_without_its_words() -> None:
    error = ValueError("+525512345678")
    error.__cause__ = KeyError("token")
    assert describe(error) == "ValueError < KeyError"


CANARY = """
import logging, structlog
from sendwhy.logs import set_up
log = set_up("test")
log.info("x", phone="+525512345678", nested={"token": "Bearer EAAcanary"}, number=525512345678)
logging.getLogger("foreign").warning("sent to %s", "+525512345678")
try:
    raise ValueError("row (+525512345678, EAAcanary)")
except ValueError as error:
    log.error("failed", exc_info=error)
    logging.getLogger("foreign").exception("failed too")
"""


def test_canaries_in_no_log_line_also_with_tracebacks() -> None:
    ended = subprocess.run([sys.executable, "-c", CANARY], capture_output=True, text=True, timeout=60, check=True)
    assert len(ended.stderr.splitlines()) == 4
    assert "5512345678" not in ended.stderr
    assert "EAAcanary" not in ended.stderr
    assert "ValueError" in ended.stderr
    assert logging.getLogger("foreign").handlers == []


UNCAUGHT = """
from sendwhy.logs import set_up
set_up("test")
raise ValueError("Key (phone)=(+525512345678) exists, EAAcanary") from KeyError("+525512345678")
"""


def test_an_error_that_nobody_catches_ends_the_process_without_its_words() -> None:
    ended = subprocess.run([sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, timeout=60, check=False)
    (line,) = ended.stderr.splitlines()
    told = json.loads(line)
    assert (ended.returncode, told["level"], told["error"]) == (1, "critical", "ValueError < KeyError")
    assert "5678" not in line
    assert "EAAcanary" not in line


def test_what_a_library_repeats_is_told_once_in_a_while() -> None:
    now = 100.0
    seldom = Seldom(lambda: now)

    def told(name: str, *arguments: object) -> str | None:
        line = logging.LogRecord(name, logging.ERROR, "", 0, "failed fetch from %s: %s", arguments, None)
        return line.getMessage() if seldom.filter(line) else None

    assert told("aiokafka.client", 1, ValueError("away")) == "failed fetch from 1: away"
    assert told("aiokafka.client", 1, ValueError("away")) is None
    assert told("aiokafka.client", 2, ValueError("gone")) is None
    # Another kind of error, another place, and all that isn't a library's.
    assert told("aiokafka.client", 1, KeyError("x")) == "failed fetch from 1: 'x'"
    assert told("aiokafka.consumer", 1, ValueError("away")) is not None
    assert [told("sendwhy", 1, 2), told("sendwhy", 1, 2)] == ["failed fetch from 1: 2"] * 2
    now += SELDOM_SECONDS
    assert told("aiokafka.client", 1, ValueError("away")) == "failed fetch from 1: away [said 3 times in 10 s]"
    assert told("aiokafka.client", 1, ValueError("away")) is None
