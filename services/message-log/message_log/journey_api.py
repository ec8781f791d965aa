"""One message's stages under /v1, for whoever follows it."""

from datetime import UTC, datetime

from fastapi import APIRouter, Request
from sendwhy import http
from sendwhy.problems import Problem
from sendwhy.service import Runtime

from message_log import api, journey, words
from message_log.journey import Journey
from message_log.language import told as translated
from message_log.settings import MessageLogSettings
from message_log.view import MessageDetail, Viewer


def routes(runtime: Runtime, settings: MessageLogSettings) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["diagnostics"])

    @router.get("/messages/{message_id}/stages")
    async def read(request: Request, caller: http.Viewer, message_id: str) -> Journey:
        """Where a message is on its way, stage by stage with times, and, when it makes no progress, where it hangs and
        what to look at. A test message has a first answer before the log has it."""
        viewer = api.viewer_for(request, caller, settings)
        _, told = await follow(runtime, caller.workspace, message_id, viewer)
        return told

    return router


async def follow(
    runtime: Runtime, workspace: str, message_id: str, viewer: Viewer
) -> tuple[MessageDetail | None, Journey]:
    """The message, None while the log has nothing of it, and its stages; 404 for one that nobody knows."""
    now = datetime.now(UTC)
    try:
        message = await api.load_message(runtime, workspace, message_id, viewer)
    except Problem:
        told = journey.unseen(message_id, viewer.url(workspace, message_id), now)
        if told is None:
            raise
        return None, told
    return message, journey.of_message(message, now, _todo(message))


def _todo(message: MessageDetail) -> str | None:
    if message.reason is None:
        return words.wait_todo(message.waiting) if message.waiting else None
    info = words.reason_info(message.reason.code)
    return translated(info.what_to_do) if info else None
