"""Who may call what: every route of every service as every kind of caller, against docs/authorisation.toml."""

import re
from collections.abc import Iterator

import httpx
import pytest
from authorisation import ROLES, needs, routes_of
from cryptography.fernet import Fernet
from houses import ACTING_KEY, NOBODYS, OTHER, OWN, House, token_of
from sendwhy.access import Role
from sendwhy.reasons import Service

pytestmark = [pytest.mark.postgres, pytest.mark.asyncio(loop_scope="session")]

# One of each: things that nobody has.
NAMES = {
    "id": "100000000000009",
    "message_id": "nobodys-message",
    "contact_id": "nobodys-contact",
    "contact": "nobodys-contact",
    "campaign": "nobodys-campaign",
    "automation": "nobodys-automation",
    **dict.fromkeys(
        ("import_id", "erasure_id", "event_id", "webhook_id", "dead_letter_id", "audience_id"),
        "6d0d0c4e-1f0b-5a7e-9a53-0d5d6b0f2c11",
    ),
    "sender_id": "100000000000009",
    "name": "nobody",
}
UUIDS = ("/audience-checks/", "/send-again/", "/audience/")
UNKNOWN_WORKSPACE = "The workspace was not found"
OPEN = {"/livez", "/readyz", "/metrics", "/openapi.json"}


def path_of(route: str, workspace: str) -> str:
    path = route.partition(" ")[2].replace("{w}", workspace)
    names = NAMES | ({"id": NAMES["event_id"]} if any(part in path for part in UUIDS) else {})
    return re.sub(r"\{(\w+)(:\w+)?\}", lambda found: names[found[1]], path)


async def ask(house: House, route: str, token: str | None, workspace: str = OWN) -> httpx.Response:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return await house.client.request(route.partition(" ")[0], path_of(route, workspace), headers=headers)


def fault(answer: httpx.Response, expected: int | None) -> str | None:
    """What is wrong with an answer; `expected` None: whoever asked must have been let in."""
    if expected is not None:
        is_right = answer.status_code == expected and answer.headers["content-type"] == "application/problem+json"
        return None if is_right else f"{answer.status_code} where {expected} is due: {answer.text[:200]}"
    # 503: another service, Kafka or Meta would have been asked.
    is_let_in = answer.status_code not in (401, 403, 405) and (answer.status_code < 500 or answer.status_code == 503)
    if not is_let_in or (answer.status_code == 404 and UNKNOWN_WORKSPACE in answer.text):
        return f"{answer.status_code} although the role may: {answer.text[:200]}"
    return None


def sealed_long_ago() -> str:
    told = b'{"name": "somebody", "role": 3, "workspace": "*"}'
    return Fernet(ACTING_KEY).encrypt_at_time(told, 1_700_000_000).decode()


def cells(need: str) -> Iterator[tuple[str, str | None, int | None]]:
    """Every kind of caller: what they are, their token, and the answer that is due."""
    least = Role[need.upper()]
    for name, token in (("nobody", None), ("a wrong token", "x" * 32), ("one that has expired", sealed_long_ago())):
        yield name, token, 401
    for role in Role:
        for workspace in (OWN, "*"):
            yield f"{role.name} of {workspace}", token_of(role, workspace), None if role >= least else 403
        yield f"{role.name} of {OTHER}", token_of(role, OTHER), 404


async def test_every_route_answers_every_caller_as_the_table_says(house: House) -> None:
    told, wrong, asked = needs()[house.service], [], 0
    assert sorted(routes_of(house.app.openapi())) == sorted(told), "docs/authorisation.toml has other routes"
    for route, need in told.items():
        if need not in ROLES:
            continue
        for who, token, expected in cells(need):
            found = fault(await ask(house, route, token), expected)
            wrong += [f"{route} as {who}: {found}"] if found else []
            asked += 1
    assert not wrong, "\n".join(wrong)
    print(f"{house.service}: {asked} calls")


async def test_head_is_answered_as_get(house: House) -> None:
    reads = [route for route, need in needs()[house.service].items() if need in ROLES and route.startswith("GET /v1")]
    for route in ["GET /livez", *reads]:
        for token in (None, token_of(Role.VIEWER, OTHER), token_of(Role.ADMIN, OWN)):
            got, head = await ask(house, route, token), await ask(house, route.replace("GET", "HEAD", 1), token)
            assert (head.status_code, head.content) == (got.status_code, b""), route


async def test_a_list_begins_at_an_empty_cursor(house: House) -> None:
    paths = house.app.openapi()["paths"].items()
    lists = [
        f"GET {path}?cursor="
        for path, operations in paths
        if any(one["name"] == "cursor" for one in operations.get("get", {}).get("parameters", []))
    ]
    assert lists
    for route in lists:
        answer = await ask(house, route, token_of(Role.ADMIN, "*"))
        # 503: another service would have been asked.
        assert answer.status_code in (200, 404, 503), f"{route}: {answer.text}"


async def test_without_a_token_nothing_is_looked_at(house: House) -> None:
    """Also where a route would forget to ask: not the body, not the query, not which routes there are."""
    for path in ("/v1/evaluate", f"/v1/workspaces/{OWN}/no/such/route?limit=wrong", "/v1/"):
        answer = await house.client.post(path, content=b"{", headers={"content-type": "application/json"})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path


async def test_a_foreign_workspace_answers_as_one_that_does_not_exist(house: House) -> None:
    for route, need in needs()[house.service].items():
        if need in ROLES:
            admin = token_of(Role.ADMIN, OTHER)
            foreign, missing = await ask(house, route, admin), await ask(house, route, admin, NOBODYS)
            assert (foreign.status_code, foreign.content) == (missing.status_code, missing.content), route


async def test_a_judgement_is_for_those_who_see_every_workspace_in_it(house: House) -> None:
    if "POST /v1/evaluate" not in needs()[house.service]:
        return

    async def judge(token: str | None, *workspaces: str) -> int:
        requests = [
            {
                "message_id": f"m-{number}",
                "workspace_id": workspace,
                "to": {"phone": "+525512345678"},
                "origin": {"kind": "api"},
                "content": {"type": "text", "text": {"body": "Hola"}},
                "requested_at": "2026-11-22T10:00:00Z",
            }
            for number, workspace in enumerate(workspaces)
        ]
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return (await house.client.post("/v1/evaluate", json={"requests": requests}, headers=headers)).status_code

    assert await judge(None, OWN) == 401
    assert await judge(token_of(Role.VIEWER, OWN), OWN) == 200
    assert await judge(token_of(Role.VIEWER, "*"), OWN, OTHER) == 200
    assert await judge(token_of(Role.ADMIN, OTHER), OWN) == 404
    assert await judge(token_of(Role.ADMIN, OWN), OWN, OTHER) == 404


async def test_what_belongs_to_nobody_is_for_admins_of_all(house: House) -> None:
    for route in (route for route, need in needs()[house.service].items() if need == "everything"):
        assert (await ask(house, route, None)).status_code == 401
        for role in Role:
            for workspace in (OWN, "*"):
                may = (role, workspace) == (Role.ADMIN, "*")
                answer = await ask(house, route, token_of(role, workspace))
                assert answer.status_code == (200 if may else 403), f"{route} as {role} of {workspace}"


def other_routes(house: House) -> list[tuple[str, str]]:
    """Those that stand in no OpenAPI document, as method and path."""
    known = set(routes_of(house.app.openapi()))
    found = []
    for included in house.app.routes:
        for route in getattr(getattr(included, "original_router", None), "routes", [included]):
            for method in sorted((getattr(route, "methods", None) or set()) - {"HEAD"}):
                path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
                found += [(method, path)] if f"{method} {path}" not in known else []
    return found


async def test_no_route_stands_beside_the_documents_but_pages(house: House) -> None:
    """A page is for who is logged in and may see its workspace. What it does beyond that goes by the same roles: on
    other services with the person's own rights (ADR 24)."""
    pages = [(method, path) for method, path in other_routes(house) if path not in OPEN]
    if house.service is not Service.MESSAGE_LOG:
        assert not pages
        return
    unguarded = {path for _, path in pages if "{w}" not in path}
    assert unguarded == {"/", "/login", "/language", "/logout", "/reasons", "/reasons/{code}", "/static/{path}"}
    in_workspace = [(method, path) for method, path in pages if "{w}" in path]
    assert len(in_workspace) > 50

    async def ask_page(method: str, path: str, workspace: str, site: str = "same-origin") -> httpx.Response:
        headers = {"sec-fetch-site": site}
        return await house.client.request(method, path_of(f"{method} {path}", workspace), headers=headers)

    for method, path in in_workspace:
        answer = await ask_page(method, path, OWN)
        assert (answer.status_code, answer.headers["location"][:6]) == (303, "/login"), path
    login = {"token": token_of(Role.ADMIN, OTHER)}
    assert (await house.client.post("/login", data=login, headers={"sec-fetch-site": "none"})).status_code == 303
    for method, path in in_workspace:
        answers = [await ask_page(method, path, workspace) for workspace in (OWN, NOBODYS)]
        assert [answer.status_code for answer in answers] == [404, 404], path
    for method, path in pages:
        if method == "POST":
            # 404 where the person or thing is looked for first: nothing was done either.
            foreign = await ask_page(method, path, OTHER, "cross-site")
            assert foreign.status_code in (403, 404), f"{path} takes other sites' forms"
    house.client.cookies.clear()
