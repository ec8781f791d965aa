import pytest
from cryptography.fernet import Fernet
from dispatcher.tokens import TokenUnreadable, TokenVault
from pydantic import SecretStr


def vault(*keys: bytes) -> TokenVault:
    return TokenVault(SecretStr(",".join(key.decode() for key in keys)))


def test_a_token_opens_for_its_own_sender_only() -> None:
    one = vault(Fernet.generate_key())
    sealed = one.seal("acme", "100", "EAAtoken")
    assert b"EAAtoken" not in sealed
    assert one.open("acme", "100", sealed) == "EAAtoken"
    for workspace, sender in (("acme", "101"), ("evil", "100")):
        with pytest.raises(TokenUnreadable):
            one.open(workspace, sender, sealed)


def test_a_rotated_key_still_opens_what_the_former_sealed() -> None:
    old, new = Fernet.generate_key(), Fernet.generate_key()
    sealed = vault(old).seal("acme", "100", "EAAtoken")
    assert vault(new, old).open("acme", "100", sealed) == "EAAtoken"
    with pytest.raises(TokenUnreadable):
        vault(new).open("acme", "100", sealed)
