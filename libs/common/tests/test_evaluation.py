"""How the requests of POST /v1/evaluate are read: each for itself, as the stage reads one."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_core import to_json
from sendwhy.access import Role, Token
from sendwhy.evaluation import Evaluate, EvaluateRequest, check_rights, name_of, refused
from sendwhy.problems import Problem
from sendwhy.requests import Invalid

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
GOOD: dict[str, Any] = {
    "message_id": "m-1",
    "workspace_id": "acme",
    "to": {"contact_id": "shopify:7712"},
    "origin": {"kind": "campaign", "id": "black-friday"},
    "content": {"type": "text", "text": {"body": "hi"}},
    "requested_at": "2026-11-22T10:00:00Z",
}
RESOLVED: dict[str, Any] = {"contact_id": "shopify:7712", "phone": "+525512345678", "purpose": "marketing"}
LATER = (NOW + timedelta(days=31)).isoformat()
ODD: list[tuple[dict[str, Any], list[str]]] = [
    ({"message_id": "no spaces"}, ["message_id"]),
    ({"message_id": 7}, ["message_id"]),
    ({"to": {}}, ["to"]),
    ({"to": {"phone": 52}, "purpose": "spam"}, ["to.phone", "purpose"]),
    ({"expires_at": "2026-11-22T09:59:59Z"}, ["expires_at"]),
    ({"requested_at": None, "send_at": LATER}, ["send_at", "expires_at"]),
    ({"requested_at": LATER}, ["requested_at"]),
    ({"send_at": LATER}, ["send_at"]),
    ({"send_at": LATER, "expires_at": LATER}, ["send_at", "expires_at"]),
    ({"content": {"type": "template", "template": {"name": "a", "language": "en"}}}, ["content.template.language"]),
    ({"resolved": {}}, ["resolved.purpose"]),
]


def asked(**body: Any) -> list[EvaluateRequest | Invalid]:
    return Evaluate.model_validate_json(to_json(body)).read(NOW)


@pytest.mark.parametrize(("change", "fields"), ODD, ids=lambda case: str(case)[:40])
def test_a_request_that_cannot_be_used_spoils_no_other(change: dict[str, Any], fields: list[str]) -> None:
    first, odd, last = asked(requests=[GOOD, GOOD | change, GOOD])
    assert isinstance(first, EvaluateRequest)
    assert first == last
    assert isinstance(odd, Invalid)
    gate = refused(odd)
    assert gate.reason is not None
    assert (gate.gate, gate.passed, gate.reason.code) == ("request", False, "INVALID_REQUEST")
    assert gate.evidence == gate.reason.evidence == {"fields": list(odd.fields)}
    assert [line.partition(":")[0] for line in odd.fields] == fields


def test_what_consent_resolved_is_read_within_a_request_or_beside_it() -> None:
    requests = [GOOD | {"resolved": RESOLVED}, GOOD, GOOD, GOOD]
    beside = [None, RESOLVED, None, {"purpose": "spam"}]
    within, other, none, odd = asked(requests=requests, resolved=beside)
    assert isinstance(within, EvaluateRequest)
    assert within.resolved is not None
    assert within.resolved.phone == "+525512345678"
    assert within == other
    assert isinstance(none, EvaluateRequest)
    assert none.resolved is None
    assert isinstance(odd, Invalid)


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"requests": 7},
        {"requests": [7]},
        {"requests": [GOOD, None]},
        {"requests": [GOOD] * 1001},
        {"requests": [GOOD], "resolved": []},
        {"requests": [GOOD], "at": "yesterday"},
    ],
    ids=lambda body: str(body)[:40],
)
def test_only_what_is_no_list_of_objects_is_refused_as_a_whole(body: Any) -> None:
    with pytest.raises(ValidationError):
        Evaluate.model_validate_json(to_json(body))


def test_every_workspace_that_is_named_is_checked_also_by_a_request_that_cannot_be_used() -> None:
    token = Token("t", Role.VIEWER, "acme")
    check_rights(token, [GOOD, {"workspace_id": 7}, {}])
    with pytest.raises(Problem, match="workspace"):
        check_rights(token, [GOOD, {"workspace_id": "other", "to": 7}])


def test_a_message_is_named_as_far_as_it_names_itself() -> None:
    assert [name_of({"message_id": name}) for name in ("m-1", "no spaces", 7, None)] == ["m-1", "no spaces", None, None]


def test_a_refusal_names_fields_and_not_the_body() -> None:
    refused = Invalid(("body: send_at must be at most 30 days after requested_at", "to: Field required")).reason
    assert (
        refused.detail
        == "The request can't be used: send_at must be at most 30 days after requested_at; to: Field required"
    )
    assert refused.evidence == {
        "fields": ["body: send_at must be at most 30 days after requested_at", "to: Field required"]
    }
