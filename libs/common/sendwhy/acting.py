"""How the pages act on the services for the person in front of them: a short-lived bearer token that names the person
and carries their rights, sealed with a key that all services share.

A page never has a right of its own: what a viewer may not do by API, the viewer's page can't do either, and the other
service writes the person's name into its history.
"""

import time

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import BaseModel, SecretStr, ValidationError

from sendwhy.access import Role, Token

LIFE_SECONDS = 60


class _Sealed(BaseModel):
    name: str
    role: Role
    workspace: str


class Acting:
    """Seals and reads acting tokens. `keys`: Fernet keys, the newest first; without any, nobody can act."""

    def __init__(self, keys: SecretStr | None) -> None:
        given = [] if keys is None else [key.strip() for key in keys.get_secret_value().split(",") if key.strip()]
        self._fernet = MultiFernet([Fernet(key) for key in given]) if given else None

    @property
    def is_possible(self) -> bool:
        return self._fernet is not None

    def seal(self, token: Token) -> str:
        """A bearer token with these rights for the next 60 s. Only where `is_possible`."""
        assert self._fernet is not None
        sealed = _Sealed(name=token.name, role=token.role, workspace=token.workspace)
        return self._fernet.encrypt_at_time(sealed.model_dump_json().encode(), int(time.time())).decode()

    def read(self, given: str) -> Token | None:
        """Whose it is, or None if it is none of ours or too old."""
        if self._fernet is None:
            return None
        try:
            sealed = _Sealed.model_validate_json(self._fernet.decrypt(given.encode(), ttl=LIFE_SECONDS))
        except (InvalidToken, ValidationError, UnicodeEncodeError):
            return None
        return Token(sealed.name, sealed.role, sealed.workspace)
