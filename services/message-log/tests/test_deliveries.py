"""What the log finds in a delivery: what webhook-ingest reads, this finds too."""

import json
from typing import Any

import pytest
from message_log.deliveries import Part, parts_of

STATUS = {"id": "wamid.A", "status": "sent", "biz_opaque_callback_data": "sw1:acme:m-1"}
FOUND = Part("status sent", None, "1001", "301", "wamid.A", "m-1", named_workspace_id="acme")


def raw(statuses: Any, number: Any = "1001", note: str = "") -> bytes:
    value = {"metadata": {"phone_number_id": number, "note": note}, "statuses": statuses}
    return json.dumps({"entry": [{"id": "301", "changes": [{"field": "messages", "value": value}]}]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        raw([STATUS]),
        b"\xef\xbb\xbf" + raw([STATUS]),
        raw([STATUS], note="\ud83d"),
        raw([STATUS], note="NOTE").replace(b"NOTE", b"a\tb"),
        raw([STATUS], note="NOTE").replace(b"NOTE", b"\xff"),
        raw(STATUS),
        raw([STATUS], number=1001),
        raw([STATUS], number=" 1001\n"),
    ],
)
def test_a_status_is_found_however_its_delivery_is_written(body: bytes) -> None:
    assert parts_of(body) == [FOUND]


@pytest.mark.parametrize("number", [True, -1, 1.5, 10**30, None, [], {}])
def test_what_is_no_id_names_no_sender(number: Any) -> None:
    assert [part.sender_id for part in parts_of(raw([STATUS], number))] == [None]


def test_what_is_no_json_is_one_unreadable_part() -> None:
    assert parts_of(b"{") == [Part("unreadable")]
