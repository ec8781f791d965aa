"""What a page may do is what its person may do, and only for a minute."""

import time

from cryptography.fernet import Fernet
from pydantic import SecretStr
from sendwhy.access import Role, Token
from sendwhy.acting import LIFE_SECONDS, Acting

KEY, OLD = Fernet.generate_key().decode(), Fernet.generate_key().decode()
ANA = Token("ana", Role.OPERATOR, "acme")


def test_a_service_reads_who_acts_and_nothing_else() -> None:
    ours = Acting(SecretStr(KEY))
    assert ours.read(ours.seal(ANA)) == ANA
    for given in ("", "nonsense", "\udcff", Fernet(KEY).encrypt(b"{}").decode(), Acting(SecretStr(OLD)).seal(ANA)):
        assert ours.read(given) is None


def test_a_key_can_be_rotated() -> None:
    assert Acting(SecretStr(f"{KEY},{OLD}")).read(Acting(SecretStr(OLD)).seal(ANA)) == ANA


def test_an_old_one_is_worth_nothing() -> None:
    body = b'{"name": "ana", "role": 2, "workspace": "acme"}'
    then = int(time.time()) - LIFE_SECONDS - 1
    assert Acting(SecretStr(KEY)).read(Fernet(KEY).encrypt_at_time(body, then).decode()) is None


def test_without_a_key_nobody_acts() -> None:
    nobody = Acting(None)
    assert not nobody.is_possible
    assert nobody.read(Acting(SecretStr(KEY)).seal(ANA)) is None
