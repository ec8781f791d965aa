"""Everything that is known of one message as one JSON file, for a support case."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, JsonValue
from sendwhy import http
from sendwhy.events import Moment
from sendwhy.http import Caller
from sendwhy.reasons import CATALOGUE, Service
from sendwhy.service import Runtime

from message_log import api, charges, dead_letters, webhook_api
from message_log.charges import Charge
from message_log.dead_letters import DeadLetterView
from message_log.services import OtherServices, path_of
from message_log.settings import MessageLogSettings
from message_log.story import tries_of
from message_log.view import MessageDetail, Viewer, WebhookDetail

WEBHOOKS_MAX = 50


class ReasonText(BaseModel):
    """The catalogue's words on a reason."""

    title: str
    meaning: str
    causes: list[str]
    what_to_do: str
    prevention: str


class Bundle(BaseModel):
    """A message with its events, tries, raw webhooks and credit entries. Phones are masked for viewers; raw bodies are
    null except for admins of all workspaces. `charge` is billing's, or {"missing": why}."""

    made_at: Moment
    made_by: str
    message: MessageDetail
    reason_explained: ReasonText | None
    tries: list[dict[str, JsonValue]]
    webhooks: list[WebhookDetail]
    charge: dict[str, Any]
    dead_letters: list[DeadLetterView]


async def make(runtime: Runtime, caller: Caller, message_id: str, viewer: Viewer, charge: Charge) -> Bundle:
    message = await api.load_message(runtime, caller.workspace, message_id, viewer)
    everything = api.sees_everything(caller)
    ids = [link.webhook_id for link in message.webhooks[:WEBHOOKS_MAX]]
    webhooks = [
        await webhook_api.load_webhook(runtime, caller.workspace, str(one), everything=everything) for one in ids
    ]
    async with runtime.within(api.scope_of(caller)) as connection:
        letters = await dead_letters.list_dead_letters(connection, caller, message_id=message_id)
    return Bundle(
        made_at=datetime.now(UTC),
        made_by=caller.token.name,
        message=message,
        reason_explained=_explained(message),
        tries=tries_of(message),
        webhooks=_of_this_message(webhooks, message),
        charge=charge.as_json(),
        dead_letters=[dead_letters.view(row) for row in letters.rows],
    )


def _of_this_message(webhooks: Sequence[WebhookDetail], message: MessageDetail) -> list[WebhookDetail]:
    """The deliveries with only the parts about this message: a delivery may be about many people."""
    wamid = message.provider_message_id

    def is_its(part: Any) -> bool:
        return part.message_id == message.message_id or (wamid is not None and part.provider_message_id == wamid)

    return [one.model_copy(update={"parts": [part for part in one.parts if is_its(part)]}) for one in webhooks]


def _explained(message: MessageDetail) -> ReasonText | None:
    if message.reason is None:
        return None
    info = CATALOGUE[message.reason.code]
    return ReasonText(
        title=info.title,
        meaning=info.meaning,
        causes=list(info.causes),
        what_to_do=info.what_to_do,
        prevention=info.prevention,
    )


def answer_of(bundle: Bundle) -> Response:
    """As a file to download."""
    name = f"sendwhy-{bundle.message.workspace_id}-{bundle.message.message_id.replace(':', '_')}.json"
    headers = {"cache-control": "no-store", "content-disposition": f'attachment; filename="{name}"'}
    return Response(bundle.model_dump_json(indent=2), media_type="application/json", headers=headers)


def routes(runtime: Runtime, settings: MessageLogSettings, services: OtherServices) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["messages"])

    @router.get("/messages/{message_id}/bundle", response_model=Bundle)
    async def bundle(request: Request, caller: http.Viewer, message_id: str) -> Response:
        """Everything that is known of a message as one file; billing is asked with the caller's own token."""
        viewer = api.viewer_for(request, caller, settings)
        await api.load_message(runtime, caller.workspace, message_id, viewer)
        path = path_of(caller.workspace, "messages", message_id, "charge")
        asked = services.get(Service.BILLING, path, request.headers.get("authorization", ""))
        charge = await charges.charge_of(asked, sees_phones=viewer.sees_phones)
        return answer_of(await make(runtime, caller, message_id, viewer, charge))

    return router
