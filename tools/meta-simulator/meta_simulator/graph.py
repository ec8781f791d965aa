"""Meta's reading paths: a number, an account, its numbers and templates, page by page."""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from meta_simulator.access import BAD_TOKEN, check_proof, credentials
from meta_simulator.accounts import tier
from meta_simulator.bodies import Account, Template
from meta_simulator.errors import Json, Refusal, error_answer, unknown_object
from meta_simulator.world import Call, Line, World

PAGE = 25
PAGE_MAX = 1000


class Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


def get_node(world: World, request: Request) -> Response:
    """A number or an account, by its id."""
    node = request.path_params["node"]
    line = world.lines.get(node)
    if line:
        _may_see(world, request, line.number.waba_id, node)
        return JSONResponse(_pick(_number(world, line), request, "WhatsAppBusinessPhoneNumber", _NUMBER_BASICS))
    _may_see(world, request, node, node)
    account = world.accounts.get(node, Account())
    return JSONResponse(_pick(_account(node, account), request, "WhatsAppBusinessAccount", ("id", "name")))


def get_templates(world: World, request: Request) -> Response:
    node = request.path_params["node"]
    _may_see(world, request, node, node)
    templates = world.accounts.get(node, Account()).templates
    for name in ("name", "language", "status", "category"):
        wanted = request.query_params.get(name)
        templates = [each for each in templates if wanted in (None, str(getattr(each, name)))]
    return _page(request, [_template(each) for each in templates], "MessageTemplate")


def get_numbers(world: World, request: Request) -> Response:
    node = request.path_params["node"]
    _may_see(world, request, node, node)
    rows = [_number(world, line) for line in world.lines_of(node)]
    return _page(request, rows, "WhatsAppBusinessPhoneNumber", _NUMBER_BASICS)


def get_subscribed_apps(world: World, request: Request) -> Response:
    """The apps that get the account's webhooks."""
    node = request.path_params["node"]
    _may_see(world, request, node, node)
    is_subscribed = world.accounts.get(node, Account()).subscribed
    apps = dict.fromkeys(line.number.app_id for line in world.lines_of(node) if line.number.app_id and is_subscribed)
    told = [{"id": app, "name": f"App {app}", "link": f"https://www.facebook.com/games/?app_id={app}"} for app in apps]
    return JSONResponse({"data": [{"whatsapp_business_api_data": each} for each in told]})


Handler = Callable[[World, Request], Response]


def recorded(world: World, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        call = Call(request.method, request.url.path, request.path_params["node"])
        world.calls.append(call)
        try:
            response = handler(world, request)
        except Refused as refused:
            response = JSONResponse(error_answer(refused.refusal), refused.refusal.http_status)
        call.answered(response.status_code, bytes(response.body))
        return response

    return answer


def _may_see(world: World, request: Request, waba_id: str, node: str) -> None:
    who = credentials(request)
    if not world.knows(who.token):
        raise Refused(BAD_TOKEN)
    if not world.may_see(who.token, waba_id):
        raise Refused(unknown_object(node))
    if wrong := check_proof(world, who, waba_id):
        raise Refused(wrong)


_NUMBER_BASICS = (
    "id",
    "verified_name",
    "code_verification_status",
    "display_phone_number",
    "quality_rating",
    "platform_type",
    "throughput",
    "webhook_configuration",
)


def _number(world: World, line: Line) -> Json:
    number = line.number
    account = world.accounts.get(number.waba_id, Account())
    rate = number.messages_per_second
    limit = tier(account.messaging_limit)
    return {
        "id": line.id,
        "verified_name": number.verified_name,
        "code_verification_status": "VERIFIED",
        "display_phone_number": number.display_phone_number,
        "quality_rating": number.quality_rating,
        "quality_score": {"score": number.quality_rating},
        "platform_type": "CLOUD_API",
        "throughput": {"level": number.throughput_level or ("HIGH" if rate >= 1000 else "STANDARD")},
        "webhook_configuration": {"application": number.webhook_url or ""},
        "account_mode": "LIVE",
        "name_status": "APPROVED",
        "status": "CONNECTED",
        "is_official_business_account": False,
        "is_pin_enabled": True,
        "messaging_limit_tier": limit,
        "whatsapp_business_manager_messaging_limit": limit,
        "whatsapp_business_account": {"id": number.waba_id, "name": account.name},
        "health_status": {
            "can_send_message": "AVAILABLE",
            "entities": [
                {"entity_type": "PHONE_NUMBER", "id": line.id, "can_send_message": "AVAILABLE"},
                {"entity_type": "WABA", "id": number.waba_id, "can_send_message": "AVAILABLE"},
            ],
        },
    }


def _account(waba_id: str, account: Account) -> Json:
    portfolio = {"id": account.portfolio_id or waba_id, "name": account.name}
    return {
        "id": waba_id,
        "name": account.name,
        "currency": "USD",
        "timezone_id": "1",
        "message_template_namespace": f"ns_{waba_id}",
        "account_review_status": "APPROVED",
        "business_verification_status": "verified",
        "status": "ACTIVE",
        "owner_business_info": portfolio,
        "on_behalf_of_business_info": portfolio,
        "whatsapp_business_manager_messaging_limit": tier(account.messaging_limit),
        "health_status": {
            "can_send_message": "AVAILABLE",
            "entities": [{"entity_type": "WABA", "id": waba_id, "can_send_message": "AVAILABLE"}],
        },
    }


def _template(template: Template) -> Json:
    row = template.model_dump()
    row["components"] = template.components or []
    row["quality_score"] = {"score": template.quality_score}
    return row


def _pick(row: Json, request: Request, node_type: str, basics: tuple[str, ...] = ()) -> Json:
    """The fields asked for by `fields=a,b{c}`, or the basic ones."""
    asked = re.sub(r"[{(][^{}()]*[)}]", "", request.query_params.get("fields", ""))
    names = [name.partition(".")[0].strip() for name in asked.split(",") if name.strip()]
    unknown = next((name for name in names if name not in row), None)
    if unknown is not None:
        message = f"(#100) Tried accessing nonexisting field ({unknown}) on node type ({node_type})"
        raise Refused(Refusal(100, message=message))
    chosen = names or list(basics) or list(row)
    return {name: row[name] for name in dict.fromkeys([*chosen, "id"]) if name in row}


def _page(request: Request, rows: list[Json], node_type: str, basics: tuple[str, ...] = ()) -> Response:
    start, limit = _after(request), _limit(request)
    part = rows[start : start + limit]
    answer: Json = {"data": [_pick(row, request, node_type, basics) for row in part]}
    if part:
        end = start + len(part)
        answer["paging"] = {"cursors": {"before": _cursor(start), "after": _cursor(end)}}
        if end < len(rows):
            query = {**request.query_params, "limit": str(limit), "after": _cursor(end)}
            answer["paging"]["next"] = f"{request.url.replace(query=urlencode(query))}"
    return JSONResponse(answer)


def _limit(request: Request) -> int:
    asked = request.query_params.get("limit", str(PAGE))
    if not asked.isdecimal() or not 1 <= int(asked) <= PAGE_MAX:
        raise Refused(Refusal(100, message="(#100) Param limit must be a positive number of at most 1000"))
    return int(asked)


def _cursor(position: int) -> str:
    return base64.urlsafe_b64encode(f"at:{position}".encode()).decode()


def _after(request: Request) -> int:
    cursor = request.query_params.get("after")
    if not cursor:
        return 0
    try:
        return int(base64.urlsafe_b64decode(cursor).decode().removeprefix("at:"))
    except (binascii.Error, ValueError) as error:
        raise Refused(Refusal(100, message="(#100) Invalid cursor")) from error
