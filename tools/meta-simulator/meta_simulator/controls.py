"""The simulator's own paths, /_sim/...: what tests set up, cause and ask for."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from meta_simulator.accounts import change_template
from meta_simulator.bodies import (
    Account,
    Body,
    CasePlay,
    Event,
    Inbound,
    Number,
    Outage,
    Recipient,
    Settings,
    TemplatePatch,
)
from meta_simulator.cases import Unplayable, play_case, verify
from meta_simulator.errors import Json
from meta_simulator.messages import digits, read_json
from meta_simulator.scenarios import SCENARIOS, listing
from meta_simulator.webhooks import Webhook
from meta_simulator.world import Call, World, written

LINES_AT_ONCE = 500
ANSWER_SECONDS = 0.05

_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")

_B = TypeVar("_B", bound=Body)
_Handler = Callable[[World, Request], Awaitable[Response]]


class Unreadable(HTTPException):
    def __init__(self, detail: str, status_code: int = 422) -> None:
        super().__init__(status_code, detail)


async def _read(request: Request, model: type[_B]) -> _B:
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise Unreadable("; ".join(wrong)) from error


async def put_account(world: World, request: Request) -> Response:
    world.set_account(request.path_params["waba_id"], await _read(request, Account))
    return JSONResponse({"success": True})


async def put_number(world: World, request: Request) -> Response:
    world.set_number(request.path_params["number_id"], await _read(request, Number))
    return JSONResponse({"success": True})


async def put_recipient(world: World, request: Request) -> Response:
    recipient = await _read(request, Recipient)
    check_scenario(recipient)
    if not digits(request.path_params["phone"]):
        raise Unreadable("the path names no phone")
    world.set_recipient(request.path_params["phone"], recipient)
    return JSONResponse({"success": True})


def check_scenario(recipient: Recipient) -> None:
    name = recipient.scenario
    if name not in SCENARIOS and name not in ("answer", "failed"):
        raise Unreadable(f"scenario: {name!r} is none of those at GET /_sim/scenarios")


async def get_scenarios(_world: World, _request: Request) -> Response:
    return JSONResponse(listing())


async def patch_template(world: World, request: Request) -> Response:
    path = request.path_params
    patch = await _read(request, TemplatePatch)
    template = world.template(path["waba_id"], path["name"], path["language"])
    if template is None:
        raise Unreadable("no such template", 404)
    change_template(world, path["waba_id"], template, patch)
    return JSONResponse(template.model_dump())


async def post_inbound(world: World, request: Request) -> Response:
    inbound = await _read(request, Inbound)
    if inbound.phone_number_id not in world.lines:
        raise Unreadable(f"no number {inbound.phone_number_id}", 404)
    if inbound.message is None and inbound.marketing is None:
        raise Unreadable("message or marketing is missing")
    return JSONResponse({"success": True, "id": world.hear(inbound)})


async def put_settings(world: World, request: Request) -> Response:
    settings = await _read(request, Settings)
    wrong = [name for name in settings.answers if name not in SCENARIOS and not _is_http_status(name)]
    if wrong:
        raise Unreadable(f"answers: neither an HTTP status nor a scenario: {', '.join(wrong)}")
    world.set_settings(settings)
    return JSONResponse(settings.model_dump())


def _is_http_status(name: str) -> bool:
    return name.isdecimal() and 200 <= int(name) <= 599


async def post_event(world: World, request: Request) -> Response:
    event = await _read(request, Event)
    if event.body is not None:
        return _post_body(world, event)
    if not event.waba_id or not event.field or event.value is None:
        raise Unreadable("waba_id, field and value, or phone_number_id and body, are needed")
    posted = world.tell_account(event.waba_id, event.field, event.value)
    if not posted:
        raise Unreadable(f"account {event.waba_id} has no number with a webhook_url", 404)
    return JSONResponse({"success": True, "posted": posted})


def _post_body(world: World, event: Event) -> Response:
    """Bytes as given (a string) or as Meta would write them (an object)."""
    line = world.lines.get(event.phone_number_id or "")
    if line is None or event.body is None:
        raise Unreadable(f"no number {event.phone_number_id}", 404)
    body = event.body.encode() if isinstance(event.body, str) else written(event.body)
    webhook = Webhook(
        None, event.field or "", own_body=body, signature=event.signature, secret=event.secret, is_json=None
    )
    world.tell(line, webhook)
    return JSONResponse({"success": True, "posted": 1})


async def post_verify(world: World, request: Request) -> Response:
    line = world.lines.get(request.path_params["number_id"])
    if line is None or line.number.webhook_url is None:
        raise Unreadable("no such number, or it has no webhook_url", 404)
    try:
        token = read_json(await request.body())["verify_token"]
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable("verify_token is missing") from error
    return JSONResponse(await verify(world, line, str(token)))


async def post_case(world: World, request: Request) -> Response:
    """Play a case now, or for the next send to `phone`."""
    name = request.path_params["name"]
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise Unreadable(f"{name!r} is none of those at GET /_sim/scenarios", 404)
    play = await _read(request, CasePlay)
    if play.phone_number_id not in world.lines:
        raise Unreadable(f"no number {play.phone_number_id}", 404)
    head: Json = {"success": True, "case": scenario.case}
    if not scenario.by_control:
        if play.phone is None:
            raise Unreadable("phone: this case needs one")
        world.set_recipient(play.phone, Recipient(scenario=name, delays_ms=play.delays_ms))
        return JSONResponse(head | {"waits_for": f"a send to {play.phone}"})
    try:
        return JSONResponse(head | await play_case(world, name, play))
    except Unplayable as error:
        raise Unreadable(str(error)) from error


async def post_down(world: World, request: Request) -> Response:
    outage = await _read(request, Outage)
    go_down = world.go_down
    if go_down is None:
        raise Unreadable("this server can't go down", 501)

    async def soon() -> None:
        # After this answer, which would be cut too.
        await asyncio.sleep(ANSWER_SECONDS)
        await go_down(outage.seconds)

    task = asyncio.create_task(soon())
    world.playing.add(task)
    task.add_done_callback(world.playing.discard)
    return JSONResponse({"success": True}, headers={"connection": "close"})


async def get_calls(world: World, request: Request) -> Response:
    return _lines(request, world.calls, _call_line)


async def get_webhooks(world: World, request: Request) -> Response:
    return _lines(request, world.webhooks, _webhook_line)


_Kept = TypeVar("_Kept", Call, Webhook)


def _lines(request: Request, kept: Iterable[_Kept], line: Callable[[_Kept], bytes]) -> Response:
    since = _since(request.query_params.get("since"))
    wanted = request.query_params.get("biz_opaque_callback_data")
    chosen = [each for each in kept if each.at >= since and wanted in (None, each.callback_data)]

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(chosen), LINES_AT_ONCE):
            await asyncio.sleep(0)
            yield b"".join(line(each) for each in chosen[start : start + LINES_AT_ONCE])

    return StreamingResponse(chunks(), media_type="application/jsonl")


def _since(text: str | None) -> float:
    """Unix seconds or RFC 3339."""
    if not text:
        return 0.0
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as error:
        raise Unreadable("since: neither RFC 3339 nor unix seconds") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _call_line(call: Call) -> bytes:
    head: Json = {
        "at": _when(call.at),
        "method": call.method,
        "path": call.path,
        "phone_number_id": call.phone_number_id,
        "biz_opaque_callback_data": call.callback_data,
        "to": call.to,
        "whole": call.whole,
        "http_status": call.http_status,
        "answered_at": call.answered_at and _when(call.answered_at),
        "wamid": call.wamid,
    }
    return _line(head, body=_as_json(call.body, call.is_json), answer=_as_json(call.answer or b""))


def _webhook_line(webhook: Webhook) -> bytes:
    head: Json = {
        "at": _when(webhook.at),
        "url": webhook.url,
        "field": webhook.field,
        "biz_opaque_callback_data": webhook.callback_data,
        "status": webhook.status,
        "tries": [
            {"at": _when(at), "http_status": http_status, "sha256": sha256} for at, http_status, sha256 in webhook.tries
        ],
        "delivered": webhook.delivered,
        "batch": webhook.batch,
    }
    return _line(head, body=_as_json(webhook.body, webhook.is_json))


def _line(head: Json, **parts: bytes) -> bytes:
    tail = b"".join(b',"%b":%b' % (name.encode(), part) for name, part in parts.items())
    return json.dumps(head).encode()[:-1] + tail + b"}\n"


def _as_json(raw: bytes, is_json: bool | None = None) -> bytes:
    """JSON as it stands, on one line; other bytes as a JSON string."""
    if not raw:
        return b"null"
    if is_json or (is_json is None and _is_json(raw)):
        return raw.translate(_ONE_LINE)
    return json.dumps(raw.decode(errors="replace")).encode()


def _is_json(raw: bytes) -> bool:
    try:
        read_json(raw)
    except ValueError:
        return False
    return True


def control_routes(world: World) -> list[Route]:
    def route(path: str, handler: _Handler, method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            return await handler(world, request)

        return Route(f"/_sim{path}", endpoint, methods=[method])

    return [
        route("/accounts/{waba_id}", put_account, "PUT"),
        route("/numbers/{number_id}", put_number, "PUT"),
        route("/recipients/{phone}", put_recipient, "PUT"),
        route("/scenarios", get_scenarios, "GET"),
        route("/templates/{waba_id}/{name}/{language}", patch_template, "PATCH"),
        route("/inbound", post_inbound, "POST"),
        route("/cases/{name}", post_case, "POST"),
        route("/settings", put_settings, "PUT"),
        route("/down", post_down, "POST"),
        route("/events", post_event, "POST"),
        route("/verify/{number_id}", post_verify, "POST"),
        route("/calls", get_calls, "GET"),
        route("/webhooks", get_webhooks, "GET"),
    ]
