"""What an accountant asks over HTTP, of the running service."""

import asyncio
from typing import Any, cast
from urllib.parse import urlencode

import httpx
import pytest
from billing import store
from billing.decide import PriceRow
from billing.reports import CSV_UNREAD_PER_WORKSPACE_MAX
from billing.stages import on_sender, on_template
from billing_desk import NOW, TEMPLATE, Desk, consented, record, rejected, sender, status, template
from billing_service import Service, fields
from sendwhy.events import Origin, OriginKind, Resolved, SendConsented, Status, StatusUpdated
from sendwhy.http import cursor_of
from sendwhy.reasons import ReasonCode
from sendwhy.reasons import Service as Who

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.asyncio(loop_scope="module")]

REGULAR = {"billable": True, "pricing_model": "PMP", "type": "regular", "category": "service"}


def priced(message_id: str, said: Status, workspace: str, **pricing: Any) -> StatusUpdated:
    return status(message_id, said, workspace).model_copy(update={"pricing": REGULAR | pricing})


async def charge(service: Service, workspace: str, message_id: str = "m") -> Any:
    answer = await service.get(workspace, f"messages/{message_id}/charge")
    assert answer.status_code == 200, answer.text
    return answer.json()


META = (Status.FAILED, ReasonCode.META_ERROR)
# What is told, what the message costs then, its state, and what the last sentence says.
LIVES: list[tuple[str, list[Any], int, str, list[str]]] = [
    ("waiting", [], 2, "reserved", ["2 credits were taken off the balance and held, before"]),
    ("read", [Status.SENT, Status.READ], 2, "captured", ["became the charge: Meta told that it was sent."]),
    ("read at once", [Status.READ], 2, "captured", ["became the charge: Meta told that it was read."]),
    ("failed", [Status.SENT, META], 0, "refunded", ["given back: Meta told that the message failed after all (", ")."]),
    ("failed at once", [META], 0, "released", ["held were given back: Meta told that the message failed (", ")."]),
    ("rejected", [ReasonCode.TEMPLATE_NOT_APPROVED], 0, "released", ["the message was not sent (Template"]),
    ("recalled", [ReasonCode.CUSTOMER_IS_NOT_OPTED_IN], 0, "released", ["not sent (Customer is not opted in)."]),
    ("cancelled", [ReasonCode.CANCELLED], 0, "released", ["the message was not sent (Cancelled"]),
    ("expired", [ReasonCode.EXPIRED_BEFORE_SENDING], 0, "released", ["the message was not sent (Expired"]),
    (
        "unknown",
        [ReasonCode.SEND_OUTCOME_UNKNOWN],
        0,
        "released",
        ["nobody knows whether the message was sent ("],
    ),
    (
        "late",
        [ReasonCode.SEND_OUTCOME_UNKNOWN, Status.DELIVERED],
        2,
        "recaptured",
        ["taken again: Meta told that it was"],
    ),
    ("silent", [Status.SENT, (Status.FAILED, ReasonCode.NO_DELIVERY_RECEIPT)], 2, "captured", ["it was sent."]),
    (
        "waived",
        [ReasonCode.CANCELLED, "spend", Status.SENT],
        0,
        "waived",
        ["Nothing was taken: Meta told that it was sent"],
    ),
]


@pytest.mark.parametrize(("told", "credits", "state", "says"), [life[1:] for life in LIVES], ids=[x[0] for x in LIVES])
async def test_why_a_message_was_charged(
    service: Service, beside: Desk, workspace: str, told: list[Any], credits: int, state: str, says: list[str]
) -> None:
    row = {"category": "service", "calling_code": "52", "credits": 2, "valid_from": "2026-11-01T00:00:00Z"}
    await service.put_prices(workspace, [row])
    await service.top_up(workspace, 2)
    await beside.fund(consented("m", workspace))
    for one in told:
        if one == "spend":
            balance = (await service.get(workspace, "account")).json()["balance"]
            await service.post(workspace, "adjustments", {"credits": -balance, "reason": "spent"})
        elif isinstance(one, ReasonCode):
            await beside.tell(rejected("m", one, workspace))
        else:
            said, code = one if isinstance(one, tuple) else (one, None)
            await beside.tell(status("m", said, workspace, code))
    answer = await charge(service, workspace)
    assert (answer["credits"], answer["state"], answer["message_id"]) == (credits, state, "m")
    assert answer["summary"].startswith("2 credits are held" if state == "reserved" else "This message costs")
    assert ("(No delivery receipt" in answer["summary"]) == (state == "reserved")
    assert answer["price"] == {
        "credits": 2,
        "category": "service",
        "calling_code": "52",
        "country": "MX",
        "assumed": False,
        "default": False,
        "row": row | {"valid_from": "2026-11-01T00:00:00.000Z"},
        "explanation": f"A service message to +52 {'costs' if state == 'reserved' else 'cost'} 2 credits"
        " by the price of service for +52, valid from 2026-11-01 00:00 UTC.",
    }
    last = answer["entries"][-1]
    assert all(part in last["explanation"] for part in says), last
    assert -sum(entry["amount"] for entry in answer["entries"]) == credits
    first = answer["entries"][0]["cause"]
    assert first == {
        "kind": "send.consented",
        "status": None,
        "id": str(consented("m", workspace).event_id),
        "reason": None,
    }


async def test_a_cause_names_event_status_and_reason(service: Service, beside: Desk, workspace: str) -> None:
    await service.top_up(workspace, 1)
    await beside.fund(consented("m", workspace))
    failure = status("m", Status.FAILED, workspace, ReasonCode.META_ERROR)
    await beside.tell(failure)
    [_, released] = (await charge(service, workspace))["entries"]
    assert released["cause"] == {
        "kind": "status.updated",
        "status": "failed",
        "id": str(failure.event_id),
        "reason": "META_ERROR",
    }


async def test_a_refused_message_was_not_charged_and_says_with_which_figures(
    service: Service, beside: Desk, workspace: str
) -> None:
    await service.top_up(workspace, 1)
    await beside.fund(consented("paid", workspace), consented("poor", workspace))
    answer = await charge(service, workspace, "poor")
    assert (answer["state"], answer["credits"], answer["entries"], answer["price"]) == ("not_charged", 0, [], None)
    assert answer["refusal"]["code"] == "INSUFFICIENT_CREDITS"
    assert answer["refusal"]["evidence"] == {
        "balance": 0,
        "price": 1,
        "shortfall": 1,
        "currency": "credits",
        "scope": {"origin": {"kind": "campaign", "id": "black-friday"}, "funded": 1, "refused": 1},
    }
    assert "1 short" in answer["summary"]


async def test_a_message_that_billing_never_saw_is_not_found(service: Service, beside: Desk, workspace: str) -> None:
    await service.top_up(workspace, 1)
    await beside.fund(consented("m", workspace))
    assert (await service.get(workspace, "messages/other/charge")).status_code == 404
    assert (await service.get("elsewhere", "messages/m/charge")).status_code == 404
    assert (await service.get(workspace, "messages/m/charge", "foreign-token")).status_code == 404


async def test_after_a_top_up_nothing_is_retried(service: Service, beside: Desk, workspace: str) -> None:
    await beside.fund(consented("m", workspace))
    await service.top_up(workspace, 10)
    again = await beside.fund(consented("m", workspace))
    assert b"INSUFFICIENT_CREDITS" in (again[0].value or b"")
    assert (await charge(service, workspace))["state"] == "not_charged"
    kinds = [entry["kind"] for entry in (await service.get(workspace, "ledger")).json()["items"]]
    assert kinds == ["top_up"]


def to_country(message_id: str, workspace: str, calling_code: str | None, country: str | None) -> SendConsented:
    event = consented(message_id, workspace)
    resolved = Resolved(calling_code=calling_code, country=country, purpose=event.resolved.purpose)
    return event.model_copy(update={"resolved": resolved})


async def test_a_price_that_no_row_gave_is_the_default(service: Service, beside: Desk, workspace: str) -> None:
    await service.top_up(workspace, 5)
    await beside.fund(to_country("m", workspace, "1", "CA"), to_country("n", workspace, "7", None))
    price = (await charge(service, workspace))["price"]
    assert (price["default"], price["row"], price["country"]) == (True, None, "CA")
    assert price["explanation"].endswith("since no price covered it: 1 credit is the default.")
    assert (await charge(service, workspace, "n"))["price"]["country"] is None


async def test_metas_change_of_category_changes_the_next_price_not_the_past(
    service: Service, beside: Desk, workspace: str
) -> None:
    await service.top_up(workspace, 100)
    prices = [
        {"category": name, "credits": credits, "valid_from": "2026-01-01T00:00:00Z"}
        for name, credits in [("utility", 2), ("marketing", 7)]
    ]
    await service.put_prices(workspace, prices)
    ours = sender(f"{abs(hash(workspace)) % 10**12:012d}", workspace, waba=workspace, default=True)
    key = f"{workspace}/sale/en_US"
    await beside.run(on_sender, [record(ours, key=ours.sender_id)])
    paid = {}
    for version, category in enumerate(["UTILITY", "MARKETING"], start=1):
        await beside.run(on_template, [record(template(workspace, "sale", category, version=version), key=key)])
        await beside.fund(consented(f"m{version}", workspace, content=TEMPLATE))
        paid[category] = await charge(service, workspace, f"m{version}")
    assert [(paid[name]["credits"], paid[name]["price"]["category"]) for name in ("UTILITY", "MARKETING")] == [
        (2, "utility"),
        (7, "marketing"),
    ]
    assert await charge(service, workspace, "m1") == paid["UTILITY"]
    await service.put_prices(workspace, [])
    assert await charge(service, workspace, "m2") == paid["MARKETING"]


async def differences(service: Service, workspace: str, **params: Any) -> list[tuple[str, str]]:
    answer = await service.get(workspace, "pricing-differences", **params)
    assert answer.status_code == 200, answer.text
    return [(item["message_id"], item["kind"]) for item in answer.json()["items"]]


async def test_metas_pricing_is_kept_and_differences_are_listed(service: Service, beside: Desk, workspace: str) -> None:
    await service.top_up(workspace, 100)
    names = ("equal", "category", "free", "waived", "failed", "silent")
    await beside.fund(*(consented(name, workspace) for name in names))
    free = {"type": "free_customer_service", "billable": False}
    await beside.tell(
        priced("equal", Status.SENT, workspace),
        priced("category", Status.SENT, workspace, category="marketing"),
        priced("free", Status.DELIVERED, workspace, **free),
        priced("failed", Status.SENT, workspace),
    )
    await beside.tell(status("failed", Status.FAILED, workspace, ReasonCode.META_ERROR))
    # A receipt beats a rejection, a failure beats `sent`, delivered beats that, but no message is charged a third time.
    await beside.tell(rejected("waived", ReasonCode.SEND_OUTCOME_UNKNOWN, workspace))
    await beside.tell(priced("waived", Status.SENT, workspace))
    await beside.tell(status("waived", Status.FAILED, workspace, ReasonCode.META_ERROR))
    expected = [("free", "charged_but_free"), ("category", "category")]
    assert sorted(await differences(service, workspace)) == sorted(expected)
    await beside.tell(priced("waived", Status.DELIVERED, workspace))
    expected = [("waived", "billed_but_not_charged"), *expected]
    for _repeat in range(2):
        assert sorted(await differences(service, workspace)) == sorted(expected)
        await beside.tell(
            priced("waived", Status.DELIVERED, workspace), priced("free", Status.DELIVERED, workspace, **free)
        )
    answer = await charge(service, workspace, "free")
    assert answer["pricing_differences"] == ["charged_but_free"]
    assert answer["meta_pricing"] == {
        "category": "service",
        "type": "free_customer_service",
        "pricing_model": "PMP",
        "billable": False,
        "told_with": "delivered",
    }
    assert (await charge(service, workspace, "silent"))["meta_pricing"] is None
    assert await differences(service, workspace, kind="category") == [("category", "category")]


async def test_a_difference_that_no_longer_stands_is_not_listed(service: Service, beside: Desk, workspace: str) -> None:
    await service.top_up(workspace, 100)
    await beside.fund(consented("m", workspace))
    await beside.tell(priced("m", Status.SENT, workspace, type="free_entry_point"))
    assert await differences(service, workspace) == [("m", "charged_but_free")]
    assert (await charge(service, workspace))["pricing_differences"] == ["charged_but_free"]
    await beside.tell(priced("m", Status.DELIVERED, workspace))
    assert await differences(service, workspace) == []
    assert (await charge(service, workspace))["pricing_differences"] == []


async def test_a_difference_says_how_the_charge_stands_now(service: Service, beside: Desk, workspace: str) -> None:
    await service.top_up(workspace, 100)
    await beside.fund(consented("m", workspace))
    await beside.tell(priced("m", Status.SENT, workspace, category="utility"))
    await beside.tell(status("m", META[0], workspace, META[1]))
    (item,) = (await service.get(workspace, "pricing-differences")).json()["items"]
    assert (item["kind"], item["is_charged"]) == ("category", False)


async def test_lists_are_paged(service: Service, beside: Desk, workspace: str) -> None:
    await service.top_up(workspace, 5)
    names = [f"m{n}" for n in range(5)]
    await beside.fund(*(consented(name, workspace) for name in names))
    await beside.tell(*(priced(name, Status.SENT, workspace, category="utility") for name in names))
    lists: list[tuple[str, str, list[Any]]] = [
        ("pricing-differences", "message_id", names),
        ("alerts", "threshold", [0, 10, 20]),
    ]
    for path, field, expected in lists:
        seen: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            page = (await service.get(workspace, path, limit=1, **cursor)).json()
            seen += [item[field] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert sorted(seen) == expected, path


async def test_alerts_come_once_a_top_up_whatever_comes_back_in_between(
    service: Service, beside: Desk, workspace: str
) -> None:
    await service.top_up(workspace, 100)

    async def adjust(credits: int) -> None:
        answer = await service.post(workspace, "adjustments", {"credits": credits, "reason": "x"})
        assert answer.status_code == 200

    async def told() -> list[tuple[int, int]]:
        items = (await service.get(workspace, "alerts")).json()["items"]
        return [(item["threshold"], item["balance"]) for item in items]

    await adjust(-79)
    assert await told() == []
    await beside.fund(consented("a", workspace))
    assert await told() == [(20, 20)]
    await beside.tell(rejected("a", ReasonCode.CANCELLED, workspace))
    await adjust(-2)
    assert await told() == [(20, 20)]
    await beside.fund(*(consented(f"b{n}", workspace) for n in range(19)))
    assert await told() == [(0, 0), (10, 10), (20, 20)]
    again = await service.top_up(workspace, 10, key="again")
    assert again.json()["low_balance_percent"] is None
    await adjust(-9)
    assert await told() == [(10, 1), (20, 1), (0, 0), (10, 10), (20, 20)]
    metrics = (await service.http.get("/metrics")).text
    assert 'sendwhy_low_balance_alerts_total{percent="0"}' in metrics
    assert 'sendwhy_pricing_differences_total{kind="charged_but_free"}' in metrics


@pytest.mark.parametrize(
    ("path", "body"), [("top-ups", {"credits": 7, "reference": "r"}), ("adjustments", {"credits": 7, "reason": "r"})]
)
async def test_a_repeat_books_nothing_even_after_its_answer_was_pruned(
    service: Service, beside: Desk, workspace: str, path: str, body: Any
) -> None:
    first = await service.post(workspace, path, body, key="k")
    assert (await service.post(workspace, path, body, key="k")).json() == first.json()
    await beside.pool.execute("delete from idempotency_key where workspace_id = $1", workspace)
    late = await service.post(workspace, path, body, key="k")
    assert (late.status_code, fields(late)) == (409, {"Idempotency-Key"})
    assert late.json()["detail"].startswith("This Idempotency-Key booked entry 1 at ")
    account = (await service.get(workspace, "account")).json()
    assert (account["balance"], account["version"]) == (7, 1)


async def test_a_statement_as_json_and_csv(service: Service, beside: Desk, workspace: str) -> None:
    await service.top_up(workspace, 10)
    await beside.fund(consented("a", workspace), consented("b", workspace))
    await beside.tell(status("a", Status.READ, workspace))
    asked = {"from": "2026-01-01", "to": "2027-01-01", "by": "campaign,country", "zone": "Europe/Berlin"}
    # The range must hold the moment of the test: entries are dated by the clock.
    account = (await service.get(workspace, "ledger", limit=1)).json()["items"][0]["at"]
    asked |= {"from": f"{account[:4]}-01-01", "to": f"{int(account[:4]) + 1}-01-02"}
    told = (await service.get(workspace, "statements", **asked)).json()
    assert (told["opening_balance"], told["closing_balance"], told["zone"]) == (0, 8, "Europe/Berlin")
    assert (told["totals"]["net"], told["totals"]["top_ups"], told["totals"]["messages"]) == (8, 10, 2)
    [messages, top_up] = told["rows"]
    assert messages == {
        "origin_kind": "campaign",
        "origin_id": "black-friday",
        "country": "MX",
        "messages": 2,
        "reserved": 2,
        "captured": 1,
        "released": 0,
        "refunded": 0,
        "recaptured": 0,
        "waived": 0,
        "top_ups": 0,
        "adjustments": 0,
        "net": -2,
    }
    assert (top_up["origin_kind"], top_up["net"]) == (None, 10)
    by_path = await service.get(workspace, "statements.csv", **asked)
    headers = {"authorization": "Bearer viewer-token", "accept": "text/csv"}
    by_header = await service.http.get(f"/v1/workspaces/{workspace}/statements", params=asked, headers=headers)
    assert by_path.headers["content-type"] == by_header.headers["content-type"] == "text/csv; charset=utf-8"
    assert by_path.text == by_header.text
    lines = by_path.text.splitlines()
    assert lines[0].startswith("line,origin_kind,origin_id,country,messages,reserved,")
    assert [line.split(",")[0] for line in lines] == ["line", "opening", "row", "row", "total", "closing"]
    assert lines[-1].endswith(",8")


async def test_statements_that_nobody_reads_to_their_end_are_bounded(service: Service, workspace: str) -> None:
    app = cast(httpx.ASGITransport, service.http._transport).app
    goes_on, begun = asyncio.Event(), asyncio.Queue[int]()
    query = urlencode(DAYS | {"by": "day"}).encode()
    headers = [(b"authorization", b"Bearer viewer-token"), (b"accept", b"text/csv")]

    async def read_slowly(path: str) -> None:
        scope = {"type": "http", "method": "GET", "path": path, "query_string": query, "headers": headers}
        scope |= {"http_version": "1.1", "scheme": "http", "server": ("b", 80), "root_path": ""}
        told: list[Any] = [{"type": "http.request"}]

        async def receive() -> Any:
            return told.pop() if told else await asyncio.Future()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                begun.put_nowait(message["status"])
            await goes_on.wait()

        await app(scope, receive, send)

    async def ask(name: str, of: str = workspace) -> int:
        return (await service.get(of, name, **DAYS)).status_code

    async with asyncio.TaskGroup() as readers:
        for name in ("statements", "statements.csv") * (CSV_UNREAD_PER_WORKSPACE_MAX // 2):
            readers.create_task(read_slowly(f"/v1/workspaces/{workspace}/{name}"))
            assert await begun.get() == 200
        refused = await service.get(workspace, "statements.csv", **DAYS)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert (await ask("statements"), await ask("statements.csv", f"{workspace}-2")) == (200, 200)
        goes_on.set()
    assert await ask("statements.csv") == 200


DAYS = {"from": "2026-11-01", "to": "2026-12-01"}


@pytest.mark.parametrize(
    ("path", "params", "wrong"),
    [
        ("statements", {}, {"from", "to"}),
        ("statements", DAYS | {"from": "2026-11-31"}, {"from"}),
        ("statements", DAYS | {"from": "1.11.2026"}, {"from"}),
        ("statements", DAYS | {"from": "1793491200"}, {"from"}),
        ("statements", DAYS | {"from": "1999-12-31"}, {"from"}),
        ("statements", DAYS | {"to": "2026-11-01"}, {"to"}),
        ("statements", DAYS | {"to": "2026-10-01"}, {"to"}),
        ("statements", DAYS | {"to": "2028-01-01"}, {"to"}),
        ("statements", DAYS | {"zone": "Mars/Olympus"}, {"zone"}),
        ("statements", DAYS | {"zone": "../../etc/passwd"}, {"zone"}),
        ("statements", DAYS | {"zone": "Europe/Berlin\x00"}, {"zone"}),
        ("statements", DAYS | {"zone": ""}, {"zone"}),
        ("statements", DAYS | {"zone": "localtime"}, {"zone"}),
        ("statements", {"from": "2000-01-01", "to": "2001-01-02", "zone": "Pacific/Kiritimati"}, {"from"}),
        ("statements", DAYS | {"by": "week"}, {"by"}),
        ("statements", DAYS | {"by": "day,day"}, {"by"}),
        ("statements", DAYS | {"by": ""}, {"by"}),
        ("statements", DAYS | {"campaign": "a\x00"}, {"campaign"}),
        ("statements", DAYS | {"campaign": ""}, {"campaign"}),
        ("statements", DAYS | {"groupby": "day"}, {"groupby"}),
        ("statements.csv", DAYS | {"zone": "nowhere"}, {"zone"}),
        ("statements.csv", {"to": "2026-12-01"}, {"from"}),
        ("alerts", {"cursor": "?"}, {"cursor"}),
        ("alerts", {"cursor": "MQ"}, {"cursor"}),
        ("alerts", {"cursor": "x" * 65}, {"cursor"}),
        ("alerts", {"limit": 0}, {"limit"}),
        ("alerts", {"limit": "true"}, {"limit"}),
        ("alerts", {"limit": 10**40}, {"limit"}),
        ("pricing-differences", {"cursor": "AAAA"}, {"cursor"}),
        ("pricing-differences", {"cursor": "MS4y"}, {"cursor"}),
        ("pricing-differences", {"kind": "x"}, {"kind"}),
        ("pricing-differences", {"limit": 501}, {"limit"}),
        ("pricing-differences", {"message_id": "no spaces"}, {"message_id"}),
        ("ledger", {"message_id": "a\x00"}, {"message_id"}),
        ("ledger", {"limit": "1.5"}, {"limit"}),
        ("messages/a%00b/charge", {}, {"message_id"}),
        ("messages/no spaces/charge", {}, {"message_id"}),
        (f"messages/{'x' * 129}/charge", {}, {"message_id"}),
    ],
)
async def test_odd_questions_are_refused_by_name(
    service: Service, workspace: str, path: str, params: Any, wrong: set[str]
) -> None:
    answer = await service.get(workspace, path, **params)
    assert (answer.status_code, fields(answer)) == (422, wrong), answer.text


TOP_UP = b'{"credits": 1, "reference": "r"}'


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "code", "wrong"),
    [
        ("POST", "top-ups", TOP_UP, {}, 400, {"Idempotency-Key"}),
        ("POST", "top-ups", TOP_UP, {"idempotency-key": "a b"}, 422, {"Idempotency-Key"}),
        ("POST", "top-ups", TOP_UP, {"idempotency-key": "x" * 129}, 422, {"Idempotency-Key"}),
        ("POST", "top-ups", TOP_UP, {"idempotency-key": "k", "content-type": "text/csv"}, 415, {"Content-Type"}),
        ("POST", "adjustments", TOP_UP, {"content-type": "application/xml"}, 415, {"Content-Type"}),
        ("PUT", "prices", b"[]", {"content-type": "text/plain"}, 415, {"Content-Type"}),
        ("POST", "adjustments", b"", {}, 422, {"body"}),
        ("POST", "adjustments", b"[]", {}, 422, {"body"}),
        ("POST", "adjustments", b'{"credits": 1}', {}, 422, {"reason"}),
        ("POST", "adjustments", b'{"credits": true, "reason": "r"}', {}, 422, {"credits"}),
        ("POST", "adjustments", b'{"credits": 1e3, "reason": "r"}', {}, 422, {"credits"}),
        ("POST", "adjustments", b'{"credits": -1000000001, "reason": "r"}', {}, 422, {"credits"}),
        ("POST", "adjustments", b'{"credits": 1%s, "reason": "r"}' % (b"0" * 40), {}, 422, {"credits"}),
        ("POST", "adjustments", b'{"credits": 1, "reason": "\\u0000"}', {}, 422, {"reason"}),
        ("POST", "adjustments", b'{"credits": 1, "reason": 7}', {}, 422, {"reason"}),
        ("POST", "adjustments", b'{"credits": 1, "reason": "r", "x": 1}', {}, 422, {"x"}),
        ("PUT", "prices", b"{}", {}, 422, {"body"}),
        ("PUT", "prices", b"[1]", {}, 422, {"0"}),
        ("PUT", "prices", b"[%s]" % b",".join([b"{}"] * 2001), {}, 422, {"body"}),
        ("PUT", "prices", b'[{"category": "utility", "credits": 1}]', {}, 422, {"0.valid_from"}),
    ],
)
async def test_odd_bodies_are_refused_by_name(
    service: Service,
    workspace: str,
    method: str,
    path: str,
    content: bytes,
    headers: dict[str, str],
    code: int,
    wrong: set[str],
) -> None:
    answer = await service.ask(method, f"/v1/workspaces/{workspace}/{path}", content=content, **headers)
    assert (answer.status_code, fields(answer)) == (code, wrong), answer.text
    assert (await service.get(workspace, "account")).json()["version"] == 0


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"{}", {"requests"}),
        (b'{"requests": 1}', {"requests"}),
        (b'{"requests": [], "at": "yesterday"}', {"at"}),
        (b'{"requests": [], "at": 1}', {"at"}),
        (b'{"requests": [], "on": "2026-01-01T00:00:00Z"}', {"on"}),
        (b'{"requests": [], "resolved": {}}', {"resolved"}),
        (b'{"requests": [1, "a"]}', {"requests.0", "requests.1"}),
    ],
)
async def test_odd_questions_to_evaluate_are_refused_by_name(service: Service, content: bytes, wrong: set[str]) -> None:
    answer = await service.ask("POST", "/v1/evaluate", content=content)
    assert answer.status_code == 422
    assert wrong <= fields(answer)


async def test_evaluate_judges_a_thousand_in_turn_with_one_query_a_table(
    service: Service, beside: Desk, workspace: str
) -> None:
    await service.top_up(workspace, 600)
    origins = [Origin(kind=OriginKind.CAMPAIGN, id=name) for name in ("a", "b")]
    await beside.fund(consented("before", workspace, origin=origins[0]))
    requests = [
        consented(f"m{n}", workspace, origin=origins[n % 2]).request.model_dump(mode="json") for n in range(1000)
    ]
    answer = await service.evaluate({"requests": requests})
    gates = [result["gates"][0] for result in answer.json()["results"]]
    assert [gate["passed"] for gate in gates] == [True] * 599 + [False] * 401
    assert (gates[0]["evidence"]["balance"], gates[-1]["evidence"]["balance"]) == (599, 0)
    assert gates[-2]["reason"]["evidence"]["scope"] == {
        "origin": {"kind": "campaign", "id": "a"},
        "funded": 301,
        "refused": 200,
    }
    assert gates[-1]["reason"]["evidence"]["scope"]["funded"] == 299
    assert gates[0]["evidence"]["scope"] == {"origin": {"kind": "campaign", "id": "a"}, "funded": 1, "refused": 0}
    assert (await service.get(workspace, "account")).json()["version"] == 2


async def test_prices_are_those_of_the_day_of_the_request(service: Service, beside: Desk, workspace: str) -> None:
    await service.top_up(workspace, 50)
    async with beside.pool.acquire() as connection, connection.transaction():
        rows = [PriceRow("service", None, 3, NOW.replace(month=1)), PriceRow("service", None, 5, NOW)]
        await store.replace_prices(connection, workspace, rows)
    await beside.fund(consented("old", workspace, requested_at=NOW.replace(month=6)), consented("new", workspace))
    assert [(await charge(service, workspace, name))["credits"] for name in ("old", "new")] == [3, 5]


async def test_no_phone_is_in_the_books(service: Service, beside: Desk, workspace: str) -> None:
    await service.top_up(workspace, 5)
    inbox = Origin(kind=OriginKind.INBOX, thread_id="+525512345678", agent="Inés")
    await beside.fund(consented("m", workspace, origin=inbox), consented("n", workspace))
    await beside.tell(priced("m", Status.READ, workspace, category="utility"), status("n", Status.SENT, workspace))
    await beside.tell(rejected("n", ReasonCode.CANCELLED, workspace, service=Who.CONSENT))
    for table in ("ledger", "charge", "tally", "alert", "pricing_difference", "turnover"):
        text = await beside.pool.fetchval(f"select coalesce(string_agg(t::text, ' '), '') from {table} t")
        assert "5512345678" not in text, table
        assert "Inés" not in text, table


async def test_a_cursor_of_any_size_is_no_error_of_ours(service: Service, workspace: str) -> None:
    answer = await service.get(workspace, "alerts", cursor=cursor_of("1.3000000000"))
    assert (answer.status_code, answer.json()["items"]) == (200, [])
