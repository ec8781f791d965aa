"""What may become of a dead letter."""

import json
from typing import Any
from uuid import UUID

import pytest
from message_log.repair import REPAIRED_BYTES_MAX, Repaired, is_for_admins_of_all, repaired, why_not
from message_log_builders import WORKSPACE, consented, requested, status
from sendwhy.events import SendRequested, Status, StatusUpdated
from sendwhy.topics import Topic

LETTER = UUID(int=7)
GOOD = requested().to_json().decode()


def test_a_repaired_request_goes_back_under_its_own_key() -> None:
    made = repaired(Topic.SEND_REQUESTED, LETTER, GOOD, WORKSPACE)
    assert isinstance(made, Repaired)
    assert made.record.topic is Topic.SEND_REQUESTED
    assert made.record.key == b"shopify:7712"
    assert SendRequested.model_validate_json(made.record.value or b"") == requested()


def test_a_repaired_event_has_a_new_id_that_the_same_repair_has_too() -> None:
    told = status(Status.DELIVERED)
    text = told.to_json().decode()
    once, again = (repaired(Topic.STATUS_UPDATED, LETTER, text, None) for _ in range(2))
    assert isinstance(once, Repaired)
    assert once == again
    event = StatusUpdated.model_validate_json(once.record.value or b"")
    assert event.event_id == once.event_id != told.event_id
    other = repaired(Topic.STATUS_UPDATED, LETTER, text.replace('"delivered"', '"read"'), None)
    assert isinstance(other, Repaired)
    assert other.event_id != once.event_id


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "body"),
        ("{", "body"),
        ("[]", "body"),
        (json.dumps(json.loads(GOOD) | {"to": {}}), "to"),
        (json.dumps(json.loads(GOOD) | {"workspace_id": "other"}), "workspace_id"),
        (json.dumps(json.loads(GOOD) | {"metadata": {"x": "\ud800"}}), "body"),
        (" " * REPAIRED_BYTES_MAX + GOOD, "body"),
    ],
)
def test_what_is_still_wrong_is_named(text: str, field: str) -> None:
    wrong: Any = repaired(Topic.SEND_REQUESTED, LETTER, text, WORKSPACE)
    assert isinstance(wrong, dict)
    assert field in wrong


def test_a_workspace_speaks_for_itself_only() -> None:
    nobodys = status(Status.READ, workspace_id=None, message_id=None).to_json().decode()
    assert repaired(Topic.STATUS_UPDATED, LETTER, nobodys, WORKSPACE) == {"workspace_id": f"must be {WORKSPACE}"}
    assert isinstance(repaired(Topic.STATUS_UPDATED, LETTER, nobodys, None), Repaired)


@pytest.mark.parametrize("topic", list(Topic))
def test_nothing_gets_past_consent_and_billing_by_hand(topic: Topic) -> None:
    past_the_gates = topic in (Topic.SEND_CONSENTED, Topic.SEND_FUNDED, Topic.SEND_RECALLED)
    whole_states = topic.endswith("t.updated") or topic in (Topic.SENDER_UPDATED, Topic.TEMPLATE_UPDATED)
    if past_the_gates or whole_states or topic.startswith(("webhook.", "person.", "dead.")):
        assert why_not(topic)
    else:
        assert why_not(topic) is None
        assert is_for_admins_of_all(topic) == (topic is not Topic.SEND_REQUESTED)


def test_what_came_from_nowhere_goes_nowhere() -> None:
    assert why_not("unknown")


def test_an_event_of_another_topic_is_not_taken_for_a_request() -> None:
    assert isinstance(repaired(Topic.SEND_REQUESTED, LETTER, consented().to_json().decode(), WORKSPACE), dict)
