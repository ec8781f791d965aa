"""Who may do what: bearer tokens with a role for a workspace or all (contract.md, "HTTP")."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from sendwhy.events import WORKSPACE_ID


class Role(IntEnum):
    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Token:
    """A token's rights. `name` is safe to show: the first 8 hex digits of the token's SHA-256."""

    name: str
    role: Role
    workspace: str

    def may(self, role: Role, workspace: str) -> bool:
        return self.sees(workspace) and self.role >= role

    def sees(self, workspace: str) -> bool:
        return self.workspace in ("*", workspace)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def parse_tokens(text: str) -> Mapping[str, Token]:
    """API_TOKENS (`token:role:workspace`, comma-separated) by the tokens' SHA-256. Raises ValueError."""
    tokens: dict[str, Token] = {}
    for position, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
        token, _, rest = entry.partition(":")
        role, _, workspace = rest.partition(":")
        if role.upper() not in Role.__members__ or not workspace or len(token) < 8:
            raise ValueError(f"entry {position} must read token:role:workspace (viewer, operator or admin; * for all)")
        if workspace != "*" and not re.fullmatch(WORKSPACE_ID, workspace):
            raise ValueError(f"entry {position} names a workspace that can't be: 1 to 64 of A-Z a-z 0-9 _ -, or *")
        digest = _digest(token)
        tokens[digest] = Token(digest[:8], Role[role.upper()], workspace)
    return tokens


def find_token(tokens: Mapping[str, Token], given: str) -> Token | None:
    """The token's rights; compares with every known one in constant time."""
    digest = _digest(given)
    found = None
    for known, token in tokens.items():
        if hmac.compare_digest(known, digest):
            found = token
    return found
