"""authorisation.md: who may call what, from authorisation.toml. tests/security asks the running apps the same."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reference_pages import GENERATED, METHODS

TABLE = Path(__file__).with_name("authorisation.toml")
ROLES = ("viewer", "operator", "admin")
SPECIAL = {
    "each": "viewer, in every workspace that the body names; a foreign one: 404",
    "everything": "admin of all workspaces; anybody else: 403",
}

Needs = Mapping[str, Mapping[str, str]]


def needs() -> Needs:
    """By service and route ("GET /v1/…"): the least role, or a word of SPECIAL."""
    told = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {
        service: {route: role for role, routes in by_role.items() for route in routes}
        for service, by_role in told.items()
    }


def routes_of(openapi: Mapping[str, Any]) -> list[str]:
    """Those that ask for a token: the door for webhooks asks for a signature."""
    return [
        f"{method.upper()} {path}"
        for path, methods in openapi["paths"].items()
        for method in methods
        if method in METHODS and path.startswith("/v1/")
    ]


def page(openapis: Mapping[str, Mapping[str, Any]]) -> str:
    """`openapis` by service; every route of theirs must stand in the table, and no other."""
    told = needs()
    parts = [f"## {service}\n\n{_table(told[service], routes_of(openapi))}" for service, openapi in openapis.items()]
    rows = "\n".join(f"| {name} | {meaning} |" for name, meaning in _WHO)
    return f"""{GENERATED}
# Who may call what

Every route of every service, and the answer to whoever calls it. The roles are declared in `docs/authorisation.toml`; a
test (`tests/security/test_authorisation.py`) calls each route of the running apps as each of these and compares, and
fails for a route that stands nowhere in it.

| who | answer |
|---|---|
{rows}

A token has one role, in one workspace or in all (`*`); a higher role may all that a lower one may. In the tables,
**yes** means that the role is let in: what the answer is then depends on the request.

Beside `/v1`, every service has `/livez`, `/readyz`, `/metrics` and `/openapi.json` without a token: they are for the
network of the installation. webhook-ingest's `/webhooks/…` are for Meta and shops, who sign what they send.
message-log's pages need a log-in: without one they lead to `/login`, another workspace's are 404, and a form that comes
from another site is 403.

{chr(10).join(parts)}"""


_WHO = (
    ("no token, a wrong one, one that has expired", "401, with `WWW-Authenticate: Bearer`"),
    ("a token of another workspace, whatever its role", "404, the same as for a workspace that doesn't exist"),
    ("a token of the workspace, or of all, whose role is too small", "403, naming the role that is needed"),
)


def _table(told: Mapping[str, str], routes: Sequence[str]) -> str:
    return "\n".join(["| route | viewer | operator | admin |", "|---|---|---|---|", *_rows(told, routes), ""])


def _rows(told: Mapping[str, str], routes: Sequence[str]) -> Iterator[str]:
    for route in routes:
        need = told[route]
        if need in SPECIAL:
            yield f"| `{route}` | {SPECIAL[need]} | | |"
        else:
            cells = ["yes" if ROLES.index(role) >= ROLES.index(need) else "403" for role in ROLES]
            yield f"| `{route}` | {' | '.join(cells)} |"
