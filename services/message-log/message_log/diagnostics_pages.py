"""The page of checks, each with its remedy."""

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from message_log import diagnostics_api
from message_log.language import ENGLISH, speaking
from message_log.login import Reader
from message_log.pages import Pages
from message_log.probes import Probes


def install(router: APIRouter, pages: Pages, probes: Probes) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/diagnostics")
    async def show(reader: Reader = reader_dependency) -> Response:
        told = await diagnostics_api.diagnose(probes, reader.caller, reader.authorization)
        return pages.render("diagnostics.html", reader=reader, section="diagnostics", told=told)

    @router.get("/w/{w}/diagnostics.csv")
    async def export(reader: Reader = reader_dependency) -> StreamingResponse:
        with speaking(ENGLISH):
            told = await diagnostics_api.diagnose(probes, reader.caller, reader.authorization)
        return diagnostics_api.csv_of(reader.caller, told)
