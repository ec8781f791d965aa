"""The whole service on real Kafka and PostgreSQL: what other services publish comes out of the API."""

import csv
import io
from datetime import timedelta
from typing import Any

import httpx
import pytest
from message_log_builders import (
    OPERATOR,
    PRIVACY_KEY,
    STRANGER,
    T0,
    VIEWER,
    WORKSPACE,
    after,
    consented,
    event_id,
    held,
    registered,
    rejected,
    requested,
    status,
)
from sendwhy.events import (
    ContactUpdated,
    Inbound,
    MarketingState,
    MessageReceived,
    Origin,
    OriginKind,
    PersonErasing,
    Scope,
    SenderUpdated,
    Status,
    To,
    Wire,
)
from sendwhy.privacy import ERASURE, Tagger
from sendwhy.reasons import ReasonCode
from sendwhy.topics import Outgoing, Topic, contact_key, outgoing, tombstone

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
MessageLog = Any  # conftest's class: pytest imports that module under a name of its own
R, S = ReasonCode, Status
HOME = f"/v1/workspaces/{WORKSPACE}"


def sent(*events: Wire) -> list[Outgoing]:
    return [outgoing(event, source="test") for event in events]


def message_in(answer: Any, message_id: str) -> Any:
    return next((each for each in answer["items"] if each["message_id"] == message_id), None)


def test_one_message_has_the_shape_of_the_contract(message_log: MessageLog) -> None:
    name = "shape-1"
    told = [requested(message_id=name), consented(message_id=name), rejected(R.INSUFFICIENT_CREDITS, message_id=name)]
    message_log.publish(sent(*told, *told[1:]))
    message = message_log.wait_for(f"{HOME}/messages/{name}", lambda m: len(m["events"]) == 3)
    assert message["message_id"] == name
    assert message["status"] == "failed"
    assert message["reason"]["code"] == "INSUFFICIENT_CREDITS"
    assert message["service"] == "consent"
    assert message["waiting"] is None
    assert message["to"] == {"contact_id": "shopify:7712", "phone": "+525512345678"}
    assert message["origin"] == {"kind": "campaign", "id": "black-friday", "name": "Black Friday"}
    assert message["sender_id"] is None
    assert message["provider_message_id"] is None
    assert message["metadata"] == {"order": "4711"}
    assert {event["kind"] for event in message["events"]} == {"requested", "consented", "rejected"}
    assert all(event["at"].endswith("Z") and event["service"] for event in message["events"])
    assert message["url"] == f"{message_log.url}/w/{WORKSPACE}/messages/{name}"
    assert message["reason_url"] == f"{message_log.url}/reasons/INSUFFICIENT_CREDITS"


def test_receipts_that_come_in_any_order_end_read(message_log: MessageLog) -> None:
    words = [S.READ, S.ACCEPTED, S.DELIVERED, S.SENT]
    message_log.publish(sent(*(status(word, message_id="ticks-1") for word in words)))
    message = message_log.wait_for(f"{HOME}/messages/ticks-1", lambda m: len(m["events"]) == 4)
    assert message["status"] == "read"
    assert set(message["times"]) == {"accepted", "sent", "delivered", "read"}
    assert message["provider_message_id"] == "wamid.HBgM1"


def test_unknown_and_foreign_messages_are_404(message_log: MessageLog) -> None:
    message_log.publish(sent(requested(message_id="mine-1")))
    message_log.wait_for(f"{HOME}/messages/mine-1")
    for path, token in ((f"{HOME}/messages/nobody", OPERATOR), (f"{HOME}/messages/mine-1", STRANGER)):
        answer = message_log.get(path, token)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
    assert message_log.get("/v1/workspaces/other/messages/mine-1", STRANGER).status_code == 404
    assert httpx.get(f"{message_log.url}{HOME}/messages/mine-1", trust_env=False).status_code == 401


def test_a_viewer_sees_no_full_phone_number(message_log: MessageLog) -> None:
    message_log.publish(sent(requested(message_id="masked-1"), consented(message_id="masked-1")))
    message_log.wait_for(f"{HOME}/messages/masked-1", lambda m: len(m["events"]) == 2)
    answer = message_log.get(f"{HOME}/messages/masked-1", VIEWER)
    assert answer.json()["to"]["phone"] == "+5255••••5678"
    assert "5512345678" not in answer.text
    assert "5512345678" not in message_log.get(f"{HOME}/messages", VIEWER).text


def test_a_hold_of_a_sender_shows_on_its_undecided_messages_until_the_sender_is_free(message_log: MessageLog) -> None:
    workspace, sender = "held", "415566778899009"
    ids: dict[str, Any] = {"workspace_id": workspace, "sender_id": sender}
    hold = held(R.SENDER_CREDENTIALS_REJECTED, message_id=None, scope=Scope(kind="sender", id=sender), **ids)
    message_log.publish(sent(requested(message_id="open-1", **ids), status(S.SENT, message_id="done-1", **ids), hold))
    home = f"/v1/workspaces/{workspace}/messages"
    open_1 = message_log.wait_for(f"{home}/open-1", lambda m: m["status"] == "waiting")
    assert open_1["waiting"]["cause"] == "SENDER_CREDENTIALS_REJECTED"
    assert message_log.wait_for(f"{home}/done-1")["status"] == "sent"
    assert [m["message_id"] for m in message_log.get(f"{home}?status=waiting").json()["items"]] == ["open-1"]
    free = SenderUpdated(
        event_id=event_id("free"), occurred_at=after(60), version=2, waba_id="301", default=False, **ids
    )
    message_log.publish(sent(free))
    assert message_log.wait_for(f"{home}/open-1", lambda m: m["status"] == "sending")["waiting"] is None


def test_a_message_waits_for_what_it_was_held_for_until_that_time_has_passed(message_log: MessageLog) -> None:
    forever = held(R.RATE_LIMIT_EXCEEDED, message_id="wait-1", until=10 * 365 * 86400)
    over = held(R.RATE_LIMIT_EXCEEDED, message_id="wait-2", until=10)
    over = over.model_copy(update={"since": T0 - timedelta(days=900), "until": T0 - timedelta(days=899)})
    message_log.publish(sent(forever, over))
    assert message_log.wait_for(f"{HOME}/messages/wait-1")["status"] == "waiting"
    assert message_log.wait_for(f"{HOME}/messages/wait-2")["status"] == "sending"


def test_filters_cursor_and_campaign_agree(message_log: MessageLog) -> None:
    workspace = "filters"
    origin = Origin(kind=OriginKind.CAMPAIGN, id="spring")
    other = Origin(kind=OriginKind.AUTOMATION, id="welcome", node_id="n1")
    given: dict[str, Any] = {"workspace_id": workspace, "origin": origin}
    events: list[Wire] = [requested(message_id=f"f-{n}", **given) for n in range(5)]
    events += [rejected(R.CUSTOMER_IS_NOT_OPTED_IN, message_id=f"f-{n}", **given) for n in (0, 1)]
    events += [rejected(R.INSUFFICIENT_CREDITS, message_id="f-2", **given)]
    events += [requested(message_id="w-1", workspace_id=workspace, origin=other)]
    message_log.publish(sent(*events))
    home = f"/v1/workspaces/{workspace}"

    def ids(query: str) -> set[str]:
        return {each["message_id"] for each in message_log.get(f"{home}/messages?{query}").json()["items"]}

    message_log.wait_for(f"{home}/messages?status=failed", lambda a: len(a["items"]) == 3)
    message_log.wait_for(f"{home}/messages", lambda a: len(a["items"]) == 6)
    assert ids("reason=CUSTOMER_IS_NOT_OPTED_IN") == {"f-0", "f-1"}
    assert ids("campaign=spring&reason!=CUSTOMER_IS_NOT_OPTED_IN") == {"f-2", "f-3", "f-4"}
    assert ids("origin=automation") == {"w-1"} == ids("automation=welcome")
    assert ids("phone=%2B52+55+1234+5678&template=autumn_sale&status=sending") == {"f-3", "f-4", "w-1"}
    assert ids("q=f-3") == {"f-3"} == ids("q=f-3&contact=shopify:7712")
    assert ids("from=2100-01-01T00:00:00Z") == set() == ids("sender=1")
    # A day begins at midnight, UTC.
    assert ids("from=2100-01-01") == set() == ids("to=2000-01-02")
    assert ids("from=2000-01-02&to=2100-01-01") == ids("")
    seen: list[str] = []
    path = f"{home}/messages?limit=2"
    while path:
        page = message_log.get(path).json()
        seen += [each["message_id"] for each in page["items"]]
        path = f"{home}/messages?limit=2&cursor={page['next_cursor']}" if page["next_cursor"] else ""
    assert len(seen) == 6 == len(set(seen))
    campaign = message_log.get(f"{home}/campaigns/spring").json()
    assert campaign["total"] == 5
    assert campaign["by_status"]["failed"] == 3
    most = campaign["by_reason"][0]
    assert (most["reason"], most["service"], most["count"]) == ("CUSTOMER_IS_NOT_OPTED_IN", "consent", 2)
    automation = message_log.get(f"{home}/automations/welcome").json()
    assert automation["nodes"][0]["node_id"] == "n1"
    assert automation["nodes"][0]["by_status"]["sending"] == 1
    assert message_log.get(f"{home}/campaigns/none").status_code == 404


@pytest.mark.parametrize(
    "query", ["status=blue", "reason=NOPE", "from=yesterday", "cursor=%00", "cursor=!!", "limit=501"]
)
def test_a_wrong_filter_is_named(message_log: MessageLog, query: str) -> None:
    answer = message_log.get(f"{HOME}/messages?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"]


def test_a_formula_in_an_export_is_no_formula(message_log: MessageLog) -> None:
    workspace = "csv"
    to = To(contact_id="=HYPERLINK(1)", phone="+525512345678")
    message_log.publish(sent(requested(message_id="c-1", workspace_id=workspace, to=to)))
    message_log.wait_for(f"/v1/workspaces/{workspace}/messages/c-1")
    answer = message_log.get(f"/v1/workspaces/{workspace}/messages.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert rows[0]["message_id"] == "c-1"
    assert rows[0]["contact_id"].startswith("'=")


def test_a_request_over_http_travels_once(message_log: MessageLog) -> None:
    body = {"to": {"phone": "+525512345678"}, "content": {"type": "text", "text": {"body": "Hola"}}}
    headers = {"Idempotency-Key": "k-1"}
    answers = [message_log.post(f"{HOME}/messages", OPERATOR, json=body, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    message = message_log.wait_for(f"{HOME}/messages/{answers[0].json()['message_id']}")
    assert message["origin"] == {"kind": "api"}
    assert answers[0].json()["url"] == message["url"]
    assert message_log.post(f"{HOME}/messages", OPERATOR, json={**body, "x": 1}, headers=headers).status_code == 409
    assert message_log.post(f"{HOME}/messages", VIEWER, json=body).status_code == 403


def test_a_wrong_request_over_http_names_its_fields(message_log: MessageLog) -> None:
    answer = message_log.post(f"{HOME}/messages", OPERATOR, json={"to": {}, "content": {"type": "fax"}})
    assert answer.status_code == 422
    assert {error["field"] for error in answer.json()["errors"]} == {"to", "content"}
    foreign = {"workspace_id": "other", "to": {"phone": "1234567"}, "content": {"type": "text", "text": {}}}
    assert message_log.post(f"{HOME}/messages", OPERATOR, json=foreign).status_code == 422


def test_raw_deliveries_are_linked_and_shown_to_whom_they_belong(message_log: MessageLog) -> None:
    callback, number = f"sw1:{WORKSPACE}:hook-1", "415566778890020"
    body = (
        '{"object":"whatsapp_business_account","entry":[{"id":"301","changes":[{"field":"messages","value":{'
        f'"metadata":{{"phone_number_id":"{number}"}},"statuses":[{{"id":"wamid.hook","status":"delivered",'
        f'"biz_opaque_callback_data":"{callback}"}}]}}}}]}}]}}'
    ).encode()
    headers = (("source", b"meta"), ("app_id", b"400"))
    junk = Outgoing(Topic.WEBHOOK_RECEIVED, b"k", b"\x00 not json", headers)
    message_log.publish(
        [
            Outgoing(Topic.WEBHOOK_RECEIVED, b"k", body, headers),
            junk,
            *sent(registered(number), requested(message_id="hook-1")),
        ]
    )
    message = message_log.wait_for(f"{HOME}/messages/hook-1", lambda m: m["webhooks"])
    link = message["webhooks"][0]["webhook_id"]
    own = message_log.get(f"{HOME}/webhooks/{link}", VIEWER).json()
    assert own["parts"][0]["message_id"] == "hook-1"
    assert own["parts"][0]["kind"] == "status delivered"
    assert own["body"] is None
    assert message_log.get(f"{HOME}/webhooks/{link}").json()["body"] == body.decode()
    assert message_log.get(f"/v1/workspaces/other/webhooks/{link}", STRANGER).status_code == 404
    kinds = [each["kinds"] for each in message_log.get(f"{HOME}/webhooks").json()["items"]]
    assert ["status delivered"] in kinds
    assert ["unreadable"] in kinds
    assert ["unreadable"] not in [each["kinds"] for each in message_log.get(f"{HOME}/webhooks", VIEWER).json()["items"]]


def test_a_thread_has_both_directions_and_goes_with_its_person(message_log: MessageLog) -> None:
    workspace, contact = "threads", "c-1"
    to = To(contact_id=contact, phone="+447700900142")
    person = ContactUpdated(
        event_id=event_id("contact"),
        occurred_at=T0,
        workspace_id=workspace,
        contact_id=contact,
        version=1,
        phone="+447700900142",
        marketing_state=MarketingState.SUBSCRIBED,
        since=T0,
        source="import",
    )
    written = MessageReceived(
        event_id=event_id("inbound"),
        occurred_at=after(30),
        workspace_id=workspace,
        sender_id="415566778899001",
        wamid="wamid.in",
        phone="447700900142",
        kind=Inbound.TEXT,
        text="Is it blue?",
        raw={},
    )
    message_log.publish(sent(person, requested(message_id="t-1", workspace_id=workspace, to=to), written))
    home = f"/v1/workspaces/{workspace}"
    thread = message_log.wait_for(f"{home}/threads/{contact}", lambda a: len(a["items"]) == 2)
    assert {entry["direction"] for entry in thread["items"]} == {"in", "out"}
    message_log.publish(erasure_of(person, "t-1"))
    erased = message_log.wait_for(f"{home}/messages/t-1", lambda m: m["to"]["phone"] is None)
    assert erased["metadata"] == {}
    assert "447700900142" not in str(erased)
    assert erased["to"]["contact_id"] is None
    message_log.wait_for(f"{home}/threads/{contact}", status=404)


def erasure_of(person: ContactUpdated, *message_ids: str) -> list[Outgoing]:
    """What consent publishes of a person's erasure: the last state, the tombstone, and the order."""
    workspace, contact, at = person.workspace_id, person.contact_id, after(40)
    state = ContactUpdated(
        event_id=event_id("the last state"),
        occurred_at=at,
        workspace_id=workspace,
        contact_id=contact,
        version=person.version + 1,
        marketing_state=MarketingState.UNSUBSCRIBED,
        since=at,
        source=ERASURE,
    )
    order = PersonErasing(
        event_id=event_id("the order"),
        occurred_at=at,
        workspace_id=workspace,
        erasure_id=event_id("the erasure"),
        erased_at=at,
        tags=[tag.hex() for tag in Tagger(PRIVACY_KEY).of_person(workspace, contact_id=contact, phone=person.phone)],
        message_ids=list(message_ids),
    )
    return [*sent(state), tombstone(Topic.CONTACT_UPDATED, contact_key(workspace, contact)), *sent(order)]


def test_an_export_that_would_have_a_gap_is_none(message_log: MessageLog) -> None:
    path = f"{HOME}/contacts/shopify:7712/export"
    answer = message_log.get(path, OPERATOR)
    assert answer.status_code == 503
    assert "The export can't be made: consent" in answer.json()["detail"]
    assert message_log.get(path, VIEWER).status_code == 403
    assert message_log.get(path, STRANGER).status_code == 404


def test_what_nobody_can_read_stands_in_no_ones_way(message_log: MessageLog) -> None:
    letters = [
        Outgoing(Topic.SEND_REQUESTED, b"k", b'{"message_id":"bad-1","workspace_id":"acme"}'),
        Outgoing(Topic.SEND_REQUESTED, None, b"\xff"),
        Outgoing(Topic.SEND_REQUESTED, b"k", None),
        Outgoing(Topic.STATUS_UPDATED, None, b"[]"),
        Outgoing(Topic.DEAD_LETTERS, None, b"", (("service", b"\x00\xff"),)),
    ]
    message_log.publish([*letters, *sent(status(S.SENT, message_id="after-bad"), requested(message_id="after-bad"))])
    message = message_log.wait_for(f"{HOME}/messages/after-bad", lambda m: len(m["events"]) == 2)
    assert message["status"] == "sent"
    assert message_log.get(f"{HOME}/messages/bad-1").status_code == 404


def test_the_stream_tells_of_changes_and_goes_on_after_a_break(message_log: MessageLog) -> None:
    workspace = "live"
    url = f"{message_log.url}/v1/workspaces/{workspace}/events"

    began: list[str | None] = []

    def first_event(last_id: str | None, then: list[Outgoing], query: str = "") -> dict[str, str]:
        headers = {"authorization": "Bearer admin-token-1"} | ({"last-event-id": last_id} if last_id else {})
        with httpx.stream("GET", url + query, headers=headers, timeout=20, trust_env=False) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            began.append(answer.headers.get("last-event-id"))
            message_log.publish(then)
            event: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                event[name] = value
                if not line and "data" in event:
                    return event
        raise AssertionError("the stream ended")

    one = first_event(None, sent(requested(message_id="l-1", workspace_id=workspace)))
    assert '"message_id":"l-1"' in one["data"].replace(" ", "")
    message_log.publish(sent(requested(message_id="l-2", workspace_id=workspace)))
    message_log.wait_for(f"/v1/workspaces/{workspace}/messages/l-2")
    two = first_event(one["id"], [])
    assert '"message_id":"l-2"' in two["data"].replace(" ", "")
    # Whoever was cut off before the first message goes on from where the stream began.
    assert '"message_id":"l-1"' in first_event(began[0], [])["data"].replace(" ", "")
    assert began[1:] == [None, None]
    message_log.publish(sent(requested(message_id="l-3", workspace_id=workspace)))
    message_log.wait_for(f"/v1/workspaces/{workspace}/messages/l-3")
    filtered = first_event(one["id"], [], "?q=l-3")
    assert '"message_id":"l-3"' in filtered["data"].replace(" ", "")
