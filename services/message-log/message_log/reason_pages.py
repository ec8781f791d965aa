"""The pages of the catalogue: /reasons and /reasons/{code}, addresses that stay. They hold nothing of anybody, so no
login is needed: a link to one can be given to whoever asks."""

from fastapi import APIRouter, Response

from message_log import words
from message_log.language import told
from message_log.pages import Pages


def install(router: APIRouter, pages: Pages) -> None:
    @router.get("/reasons")
    async def reasons() -> Response:
        return pages.render("reasons.html", unknown=None)

    @router.get("/reasons/{code}")
    async def reason(code: str) -> Response:
        info = words.reason_info(code)
        if info is None:
            return pages.render("reasons.html", status=404, unknown=code)
        meta = ", ".join(map(told, info.meta_told()))
        return pages.render("reason.html", code=code, info=info, services=sorted(info.services), meta=meta)
