"""Access tokens: at rest, and as they go with a call.

At rest they are encrypted. Fernet binds no context, so workspace and sender stand inside what is encrypted: a
ciphertext that was moved to another row is refused.
"""

import hashlib
import hmac
from dataclasses import dataclass, field

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import BaseModel, SecretStr
from sendwhy.settings import Secrets

# Shorter ones are words: to strike them out of what Meta says would hide nothing and spoil it.
SCRUBBED_LENGTH_MIN = 8


class TokenUnreadable(Exception):
    """The stored token was encrypted with another key, or for another sender."""


class _Sealed(BaseModel):
    workspace_id: str
    sender_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Access:
    """What a call to Meta goes with: the token and, where we know the app's secret, the proof that the call comes from
    the app's own servers (Meta, "Secure requests")."""

    token: str = field(repr=False)
    proof: str | None = field(default=None, repr=False)

    def scrubbed(self, answer: bytes) -> bytes:
        """Meta's answer without our secrets: "Malformed access token EAA…" would carry them into events."""
        for secret in (self.token, self.proof):
            if secret is not None and len(secret) >= SCRUBBED_LENGTH_MIN and secret.encode() in answer:
                answer = answer.replace(secret.encode(), b"***")
        return answer


def token_tag(token: str) -> str:
    """The same for senders that share a token, and tells nothing of it: Meta's tokens are far too long to be tried
    out, so that this needs no key, which would have to stay the same when the others are rotated."""
    return hashlib.sha256(b"sendwhy token\0" + token.encode()).hexdigest()[:32]


class TokenVault:
    """`keys`: Fernet keys, the newest first. `app_secrets`: per app, the newest first."""

    def __init__(self, keys: SecretStr, app_secrets: Secrets | None = None) -> None:
        fernets = [Fernet(key.strip()) for key in keys.get_secret_value().split(",")]
        self._newest, self._fernet = fernets[0], MultiFernet(fernets)
        self._app_secrets = app_secrets or {}

    def seal(self, workspace_id: str, sender_id: str, token: str) -> bytes:
        sealed = _Sealed(workspace_id=workspace_id, sender_id=sender_id, token=token)
        return self._newest.encrypt(sealed.model_dump_json().encode())

    def open(self, workspace_id: str, sender_id: str, sealed: bytes) -> str:
        try:
            opened = _Sealed.model_validate_json(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise TokenUnreadable(sender_id) from None
        if (opened.workspace_id, opened.sender_id) != (workspace_id, sender_id):
            raise TokenUnreadable(sender_id)
        return opened.token

    def is_newest(self, sealed: bytes) -> bool:
        """Whether the newest key alone opens it, so that the others can go."""
        try:
            self._newest.decrypt(sealed)
        except InvalidToken:
            return False
        return True

    def access(self, token: str, app_id: str | None) -> Access:
        secrets = self._app_secrets.get(app_id or "")
        proof = hmac.digest(secrets[0], token.encode(), "sha256").hex() if secrets else None
        return Access(token, proof)
