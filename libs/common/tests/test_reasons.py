import ast
from pathlib import Path

import pytest
import sendwhy
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.events import MetaError, reason
from sendwhy.reasons import CATALOGUE, ReasonCode, Service, evidence_for_meta, reason_for_meta

ROOT = Path(sendwhy.__file__).parents[3]


def test_every_reason_is_in_the_catalogue() -> None:
    assert set(CATALOGUE) == set(ReasonCode)


@pytest.mark.parametrize("code", ReasonCode)
def test_every_reason_says_what_it_means_and_what_to_do(code: ReasonCode) -> None:
    info = CATALOGUE[code]
    assert info.title
    assert info.services
    assert info.causes
    for text in (info.meaning, info.what_to_do, info.prevention):
        assert text.endswith(".")


def test_a_code_of_metas_belongs_to_one_reason() -> None:
    told = [number for info in CATALOGUE.values() for number in info.meta_codes]
    assert len(told) == len(set(told))


# reasons.md lists these among Meta's codes.
RULES = {
    ReasonCode.SENDER_NOT_AVAILABLE: ("100 with subcode 33", (100, 33, None)),
    ReasonCode.SENDER_CREDENTIALS_REJECTED: ("200 to 299", (250, None, None)),
    ReasonCode.INVALID_CONTENT: ("any other from 132000 to 132999", (132500, None, None)),
    ReasonCode.TEMPORARY_FAILURE: ("any other with HTTP 5xx", (424242, None, 500)),
    ReasonCode.META_ERROR: ("any other", (424242, None, 400)),
}


@pytest.mark.parametrize("code", ReasonCode)
def test_a_rule_beside_metas_codes_is_told_and_holds(code: ReasonCode) -> None:
    rule, answer = RULES.get(code, (None, None))
    assert CATALOGUE[code].meta_rules == ((rule,) if rule else ())
    assert CATALOGUE[code].meta_told()[len(CATALOGUE[code].meta_codes) :] == CATALOGUE[code].meta_rules
    if answer:
        number, subcode, status = answer
        assert reason_for_meta(number, subcode=subcode, http_status=status) is code


def test_a_reason_of_our_own_gates_is_said_by_one_service() -> None:
    for code, info in CATALOGUE.items():
        heard = info.meta_codes or code is ReasonCode.META_ERROR
        assert heard or len(info.services) == 1, code


META = [
    (190, None, None, ReasonCode.SENDER_CREDENTIALS_REJECTED),
    (200, None, None, ReasonCode.SENDER_CREDENTIALS_REJECTED),
    (299, None, None, ReasonCode.SENDER_CREDENTIALS_REJECTED),
    (100, None, None, ReasonCode.INVALID_CONTENT),
    (100, 33, None, ReasonCode.SENDER_NOT_AVAILABLE),
    (131026, None, None, ReasonCode.RECIPIENT_NOT_ON_WHATSAPP),
    (132001, None, 404, ReasonCode.TEMPLATE_NOT_APPROVED),
    (132999, None, None, ReasonCode.INVALID_CONTENT),
    (424242, None, 400, ReasonCode.META_ERROR),
    (424242, None, 503, ReasonCode.TEMPORARY_FAILURE),
    (None, None, None, ReasonCode.META_ERROR),
]


@pytest.mark.parametrize(("code", "subcode", "status", "expected"), META)
def test_metas_codes(code: int | None, subcode: int | None, status: int | None, expected: ReasonCode) -> None:
    assert reason_for_meta(code, subcode=subcode, http_status=status) is expected


@pytest.mark.parametrize(
    ("code", "details", "evidence"),
    [
        (132001, None, {"status": "NOT_FOUND"}),
        (132015, "Template is paused due to low quality", {"status": "PAUSED"}),
        (132016, "", {"status": "DISABLED"}),
        (
            132000,
            "body: number of localizable_params (0) does not match the expected number of params (1)",
            {"given": 0, "expected": 1},
        ),
        (132000, "body: other words", {}),
        (
            131053,
            "Downloading media from weblink failed with HTTP code 404, status message Not Found",
            {"link_http_code": 404},
        ),
        (131053, "Media download failed, HTTP status code 403", {"link_http_code": 403}),
        (131052, "http status 403", {"link_http_code": 403}),
        (131053, "status code: 410", {"link_http_code": 410}),
        (131053, "Http Status=500.", {"link_http_code": 500}),
        (131053, "HTTP code:404", {"link_http_code": 404}),
        (131053, "Unsupported type (code 12345)", {}),
        (131053, "status 403", {}),
        (131052, "http code 40", {}),
        (131026, "http code 404", {}),
        (None, "http code 404", {}),
    ],
)
def test_what_metas_error_proves_is_evidence(code: int | None, details: str | None, evidence: dict[str, str]) -> None:
    assert evidence_for_meta(code, details) == evidence
    told = reason(reason_for_meta(code), "Meta said so", {"attempt": 2}, MetaError(code=code, details=details))
    assert told.evidence == {**evidence, "attempt": 2}


@given(st.integers())
def test_any_code_has_a_reason_that_who_hears_it_may_say(code: int) -> None:
    heard = {Service.DISPATCHER, Service.WEBHOOK_INGEST}
    assert heard <= CATALOGUE[reason_for_meta(code)].services


def reasons_named_in(package: str) -> set[str]:
    """The ReasonCode members that a service's code names."""
    folder = ROOT / "services" / package / package.replace("-", "_")
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in folder.glob("*.py")]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ReasonCode"
    }


# Named without being said: what a service reads in others' events, or what a message waits for.
READ_ONLY = {
    "consent": {"RECIPIENT_STOPPED_MARKETING"},
    "billing": {"INVALID_REQUEST", "NO_DELIVERY_RECEIPT", "RECIPIENT_PROBABLY_BLOCKED_SENDER", "SEND_OUTCOME_UNKNOWN"},
    # What consent will say of a recalled message, shown by POST /v1/evaluate.
    "dispatcher": {"CUSTOMER_IS_NOT_OPTED_IN"},
    "message-log": set(ReasonCode.__members__),
}


@pytest.mark.parametrize("service", [service for service in Service if service is not Service.MESSAGE_LOG])
def test_a_service_says_only_its_own_reasons(service: Service) -> None:
    named = reasons_named_in(service) - READ_ONLY.get(service, set())
    own = {code.name for code, info in CATALOGUE.items() if service in info.services}
    assert named <= own
