"""Access tokens at rest. Fernet binds no context, so workspace and sender stand inside what is encrypted: a
ciphertext that was moved to another row is refused.
"""

import hashlib

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import BaseModel, SecretStr


class TokenUnreadable(Exception):
    """The stored token was encrypted with another key, or for another sender."""


class _Sealed(BaseModel):
    workspace_id: str
    sender_id: str
    token: str


def token_tag(token: str) -> str:
    """The same for senders that share a token, and tells nothing of it: Meta's tokens are far too long to be tried
    out, so that this needs no key, which would have to stay the same when the others are rotated."""
    return hashlib.sha256(b"sendwhy token\0" + token.encode()).hexdigest()[:32]


class TokenVault:
    def __init__(self, keys: SecretStr) -> None:
        self._fernet = MultiFernet([Fernet(key.strip()) for key in keys.get_secret_value().split(",")])

    def seal(self, workspace_id: str, sender_id: str, token: str) -> bytes:
        sealed = _Sealed(workspace_id=workspace_id, sender_id=sender_id, token=token)
        return self._fernet.encrypt(sealed.model_dump_json().encode())

    def open(self, workspace_id: str, sender_id: str, sealed: bytes) -> str:
        try:
            opened = _Sealed.model_validate_json(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise TokenUnreadable(sender_id) from None
        if (opened.workspace_id, opened.sender_id) != (workspace_id, sender_id):
            raise TokenUnreadable(sender_id)
        return opened.token
