"""billing over HTTP (contract.md, "HTTP"): accounts, top-ups, adjustments, the ledger, prices, and whether requests
would be funded."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AfterValidator, Field, StringConstraints
from sendwhy.evaluation import Evaluate, EvaluateRequest, check_rights
from sendwhy.events import Gate, Line, MessageId, Moment, Price, Resolved, SendRequested, Wire
from sendwhy.http import (
    Admin,
    AnyToken,
    Body,
    Caller,
    Cursor,
    IdempotencyKey,
    Operator,
    Viewer,
    body_schema,
    cursor_of,
    json_body,
    once,
)
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.problems import Problem
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.topics import outgoing

from billing import books, store
from billing.decide import Account, BelowZero, Entry, Kind, OriginKey, PriceRow, Tally, adjust, evaluate, top_up
from billing.reports import numbers_of, report_routes
from billing.stages import Priceable, note_alerts, prices_for

CREDITS_MAX = 1_000_000_000
PRICES_MAX = 2_000
ACQUIRE_SECONDS = 10

Text = Annotated[Line, StringConstraints(min_length=1, max_length=200)]
Book = Callable[[Account], tuple[Account, Entry]]


def _not_zero(credits: int) -> int:
    if credits == 0:
        raise ValueError("must not be 0")
    return credits


class TopUp(Body):
    credits: Annotated[int, Field(ge=1, le=CREDITS_MAX)]
    reference: Text


class Adjustment(Body):
    credits: Annotated[int, Field(ge=-CREDITS_MAX, le=CREDITS_MAX), AfterValidator(_not_zero)]
    reason: Text


class PriceSet(Body):
    """A price in whole credits, for one calling code (digits) or null for all that have none of their own."""

    category: Literal["marketing", "utility", "authentication", "service"]
    calling_code: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,2}$")] | None = None
    credits: Annotated[int, Field(ge=0, le=1_000_000)]
    valid_from: Moment


PriceSets = Annotated[list[PriceSet], Field(max_length=PRICES_MAX, title="prices")]


class AccountAnswer(Wire):
    """`reserved`: credits already taken off the balance for messages that have no receipt yet. `low_balance_percent`:
    the lowest threshold (20, 10, 0 % of the last top-up) reached since that top-up."""

    workspace_id: str
    balance: int
    reserved: int
    version: int
    last_top_up: int | None
    low_balance_percent: int | None


class BookedAnswer(AccountAnswer):
    entry: store.LedgerEntry


class LedgerAnswer(Wire):
    items: list[store.LedgerEntry]
    next_cursor: str | None


class PricesAnswer(Wire):
    items: list[PriceSet]
    next_cursor: None = None


class Result(Wire):
    """`message_id` is null where the request names none, `resolved` where it names nobody or can't be used."""

    message_id: str | None
    gates: list[Gate]
    resolved: Resolved | None


class EvaluateAnswer(Wire):
    results: list[Result]


def _json_only(request: Request) -> None:
    """Bodies are JSON. Who names no content type means JSON; who names another one made a mistake."""
    named = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method in ("POST", "PUT") and named not in ("", "application/json"):
        raise Problem(415, "The body must be JSON.", errors={"Content-Type": "must be application/json"})


def routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[Depends(_json_only)])
    _account_routes(router, runtime)
    _ledger_routes(router, runtime)
    _price_routes(router, runtime)
    _evaluate_routes(router, runtime)
    report_routes(router, runtime)
    return router


def _account_routes(router: APIRouter, runtime: Runtime) -> None:
    @router.get("/workspaces/{w}/account")
    async def get_account(caller: Viewer) -> AccountAnswer:
        """The balance and what is reserved; a workspace that was never seen has balance 0."""
        async with runtime.within(caller.workspace, wait_seconds=ACQUIRE_SECONDS) as connection:
            known = await store.accounts(connection, [caller.workspace])
        return AccountAnswer(**asdict(known.get(caller.workspace, Account(caller.workspace))))

    @router.post("/workspaces/{w}/top-ups", openapi_extra=body_schema(TopUp), response_model=BookedAnswer)
    async def post_top_up(
        caller: Operator, body: Annotated[TopUp, json_body(TopUp)], request: Request, key: IdempotencyKey = None
    ) -> Response:
        """Add credits. Needs an Idempotency-Key: a repeat without one would add them twice."""
        if key is None:
            raise Problem(400, "A top-up needs an Idempotency-Key.", errors={"Idempotency-Key": "is missing"})

        def book(account: Account) -> tuple[Account, Entry]:
            return top_up(account, body.credits, reference=body.reference, actor=caller.token.name)

        return await _write(runtime, request, caller, key, book)

    @router.post("/workspaces/{w}/adjustments", openapi_extra=body_schema(Adjustment), response_model=BookedAnswer)
    async def post_adjustment(
        caller: Admin, body: Annotated[Adjustment, json_body(Adjustment)], request: Request, key: IdempotencyKey = None
    ) -> Response:
        """Correct the balance by hand, up or down; 409 where it would go below zero."""

        def book(account: Account) -> tuple[Account, Entry]:
            booked = adjust(account, body.credits, why=body.reason, actor=caller.token.name)
            if isinstance(booked, BelowZero):
                detail = f"The balance is {booked.balance} credits: {booked.credits} would bring it below zero."
                raise Problem(409, detail, errors={"credits": "would bring the balance below zero"})
            return booked

        return await _write(runtime, request, caller, key, book)


async def _write(runtime: Runtime, request: Request, caller: Caller, key: str | None, book: Book) -> Response:
    async with runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection, connection.transaction():

        async def act() -> tuple[int, bytes]:
            booked = await _book(runtime, connection, caller.workspace, book)
            await _refuse_late_repeat(connection, key, booked)
            return 200, booked.to_json()

        answer = await once(connection, request, caller, key, act)
    runtime.publish_soon()
    return answer


async def _refuse_late_repeat(connection: Connection, key: str | None, booked: BookedAnswer) -> None:
    if key is None:
        return
    before = await books.note_booking(connection, booked.workspace_id, key, booked.version, at=booked.entry.at)
    if before is not None:
        detail = f"This Idempotency-Key booked entry {before.version} at {before.at:%Y-%m-%d %H:%M} UTC already."
        raise Problem(409, detail, errors={"Idempotency-Key": "was used before"})


async def _book(runtime: Runtime, connection: Connection, workspace: str, book: Book) -> BookedAnswer:
    accounts = await store.lock_or_open_accounts(connection, [workspace])
    account, entry = book(accounts[workspace])
    at = datetime.now(UTC)
    await store.add_entries(connection, [entry], at=at)
    await store.save_accounts(connection, [account])
    await note_alerts(connection, runtime.metrics, [(accounts[workspace], account, [entry])], at=at)
    events = await store.account_events(connection, [workspace])
    await add_to_outbox(connection, [(event.event_id, outgoing(event, source=Service.BILLING)) for event in events])
    [booked] = await store.ledger_page(connection, workspace, before=account.version + 1, limit=1)
    return BookedAnswer(**asdict(account), entry=booked)


def _ledger_routes(router: APIRouter, runtime: Runtime) -> None:
    @router.get("/workspaces/{w}/ledger")
    async def get_ledger(
        caller: Viewer,
        message_id: MessageId | None = None,
        kind: Kind | None = None,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> LedgerAnswer:
        """Entries, the latest first."""
        before = None if cursor is None else numbers_of(cursor, 1)[0]
        async with runtime.within(caller.workspace, wait_seconds=ACQUIRE_SECONDS) as connection:
            items = await store.ledger_page(
                connection, caller.workspace, before=before, message_id=message_id, kind=kind, limit=limit + 1
            )
        shown = items[:limit]
        return LedgerAnswer(items=shown, next_cursor=cursor_of(str(shown[-1].version)) if len(items) > limit else None)


def _price_routes(router: APIRouter, runtime: Runtime) -> None:
    @router.put("/workspaces/{w}/prices", openapi_extra=body_schema(PriceSets), response_model=PricesAnswer)
    async def put_prices(
        caller: Admin,
        request: Request,
        prices: Annotated[list[PriceSet], json_body(PriceSets)],
        key: IdempotencyKey = None,
    ) -> Response:
        """Replace the workspace's price list. What is booked keeps the price that it was booked with."""
        _refuse_repeats(prices)
        async with runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection, connection.transaction():

            async def act() -> tuple[int, bytes]:
                rows = [
                    PriceRow(price.category, price.calling_code, price.credits, price.valid_from) for price in prices
                ]
                await store.replace_prices(connection, caller.workspace, rows)
                return 200, (await _prices(connection, caller.workspace)).to_json()

            return await once(connection, request, caller, key, act)

    @router.get("/workspaces/{w}/prices")
    async def get_prices(caller: Viewer) -> PricesAnswer:
        """The price list; whatever it doesn't name costs 1 credit."""
        async with runtime.within(caller.workspace, wait_seconds=ACQUIRE_SECONDS) as connection:
            return await _prices(connection, caller.workspace)


async def _prices(connection: Connection, workspace: str) -> PricesAnswer:
    rows = await store.prices_of(connection, [workspace])
    return PricesAnswer(items=[PriceSet.model_validate(asdict(row)) for row in rows.get(workspace, ())])


def _refuse_repeats(prices: Iterable[PriceSet]) -> None:
    seen: dict[tuple[str, str | None, datetime], int] = {}
    for position, price in enumerate(prices):
        first = seen.setdefault((price.category, price.calling_code, price.valid_from), position)
        if first != position:
            raise Problem(422, "Two prices contradict each other.", errors={str(position): f"repeats price {first}"})


def _evaluate_routes(router: APIRouter, runtime: Runtime) -> None:
    @router.post("/evaluate", openapi_extra=body_schema(Evaluate))
    async def post_evaluate(token: AnyToken, body: Annotated[Evaluate, json_body(Evaluate)]) -> EvaluateAnswer:
        """Which requests the balance would cover, one after the other. Nothing is stored or charged."""
        check_rights(token, body.requests)
        now = datetime.now(UTC)
        asked = body.read(now)
        requests = [one for one in asked if isinstance(one, EvaluateRequest)]
        priceable = [Priceable(one, one.resolved, one.requested_at or body.at or now) for one in requests]
        async with runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            prices = [quote.price for quote in await prices_for(connection, priceable)]
            accounts = await store.accounts(connection, {one.workspace_id for one in requests})
            tallies = await store.tallies_of(connection, ((r.workspace_id, _origin(r)) for r in requests))
        if body.asks_of_the_past(now):
            judged = [_unknown(*one) for one in zip(requests, prices, strict=True)]
        else:
            balances = {name: row.balance for name, row in accounts.items()}
            judged = _in_turn(requests, prices, balances, tallies)
        return EvaluateAnswer(results=body.answers(asked, judged, Result))


def _origin(request: SendRequested) -> OriginKey:
    return request.origin.kind, request.origin.id


def _in_turn(
    requests: Iterable[EvaluateRequest],
    prices: Iterable[Price],
    balances: dict[str, int],
    tallies: store.Tallies,
) -> list[Result]:
    """Each request is judged on what the ones before it leave."""
    results = []
    for request, price in zip(requests, prices, strict=True):
        workspace, origin = request.workspace_id, _origin(request)
        balance, counted = balances.get(workspace, 0), tallies.setdefault(workspace, {})
        tally = counted.get(origin, Tally())
        gates = evaluate(price, balance, origin, tally)
        passed = all(gate.passed for gate in gates)
        if passed:
            balances[workspace] = balance - price.credits
        counted[origin] = Tally(tally.funded + passed, tally.refused + (not passed))
        results.append(Result(message_id=request.message_id, gates=gates, resolved=request.resolved))
    return results


def _unknown(request: EvaluateRequest, price: Price) -> Result:
    gate = Gate(gate="credits", passed=None, evidence={"price": price.credits, "currency": "credits"})
    return Result(message_id=request.message_id, gates=[gate], resolved=request.resolved)
