"""What a workspace says of itself, over HTTP: the shop's country, a ground for suggesting calling codes."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from sendwhy.events import Moment
from sendwhy.http import Body, IdempotencyKey, Operator, Viewer
from sendwhy.postgres import Connection
from sendwhy.service import Runtime

from consent import store
from consent.api import Desk


class SettingsBody(Body):
    """`shop_country` in ISO 3166 letters; null: not known."""

    shop_country: Annotated[str, Field(pattern="^[A-Za-z]{2}$")] | None


class SettingsView(BaseModel):
    workspace_id: str
    shop_country: str | None
    updated_by: str | None
    updated_at: Moment | None


def routes(runtime: Runtime, desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}/settings")

    @router.get("", response_model=SettingsView)
    async def get_settings(caller: Viewer) -> SettingsView:
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            return await _view(connection, caller.workspace)

    @router.put("", response_model=SettingsView)
    async def put_settings(
        caller: Operator, body: SettingsBody, request: Request, key: IdempotencyKey = None
    ) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            country = body.shop_country.upper() if body.shop_country else None
            await store.save_setting(connection, caller.workspace, country, caller.token.name)
            return 200, (await _view(connection, caller.workspace)).model_dump_json().encode()

        return await desk.once(request, caller, key, act)

    return router


async def _view(connection: Connection, workspace: str) -> SettingsView:
    row = await store.setting_of(connection, workspace)
    return SettingsView(
        workspace_id=workspace,
        shop_country=row["shop_country"] if row else None,
        updated_by=row["updated_by"] if row else None,
        updated_at=row["updated_at"] if row else None,
    )
