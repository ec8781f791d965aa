"""The checks of a workspace, and of the installation for whom it concerns, under /v1 and for the page."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sendwhy import http
from sendwhy.events import Moment
from sendwhy.http import Caller
from sendwhy.sheets import csv_text

from message_log.api import csv_response, sees_everything
from message_log.checks import Check, Result, in_order, in_short, installation_checks, worst
from message_log.probes import Probes
from message_log.workspace_checks import workspace_checks

_COLUMNS = ("id", "area", "title", "about", "result", "seen", "at", "why", "remedy", "command")


class Diagnostics(BaseModel):
    """All checks as of `at`, what needs somebody first; `result` is the worst. Only an admin of all workspaces gets the
    installation's one by one; for others they are one plain word."""

    at: Moment
    result: Result
    counts: dict[Result, int]
    checks: list[Check]


async def diagnose(probes: Probes, caller: Caller, authorization: str | None) -> Diagnostics:
    in_full = sees_everything(caller)
    facts, looked = await asyncio.gather(
        probes.workspace(caller, authorization, sees_everything=in_full), probes.installation()
    )
    installation = installation_checks(looked)
    if not in_full:
        installation = [in_short(installation, looked.own.at)]
    found = [*in_order(installation), *in_order(workspace_checks(facts))]
    counts = {result: sum(check.result is result for check in found) for result in Result}
    return Diagnostics(at=datetime.now(UTC), result=worst(found), counts=counts, checks=found)


def routes(probes: Probes) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["diagnostics"])

    @router.get("/diagnostics")
    async def read(request: Request, caller: http.Viewer) -> Diagnostics:
        """Checks of Kafka, databases, services, lag and clocks, of each number's token, subscription and templates, and
        of what came of the messages; each with what was seen and its remedy. Whoever doesn't answer in time is
        `unasked`."""
        return await diagnose(probes, caller, request.headers["authorization"])

    @router.get("/diagnostics.csv", response_class=StreamingResponse)
    async def export(request: Request, caller: http.Viewer) -> StreamingResponse:
        return csv_of(caller, await diagnose(probes, caller, request.headers["authorization"]))

    return router


def csv_of(caller: Caller, told: Diagnostics) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        yield csv_text([_COLUMNS])
        rows = (check.model_dump(mode="json") for check in told.checks)
        yield csv_text([[row[name] for name in _COLUMNS] for row in rows])

    return csv_response("diagnostics", caller, lines())
