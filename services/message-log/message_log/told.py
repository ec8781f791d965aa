"""What a page shows of another service: its answer, or why there is none, so that the rest of the page stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sendwhy.problems import Problem
from sendwhy.reasons import Service

from message_log.language import told as translated
from message_log.login import Reader
from message_log.pages import Pages
from message_log.services import PART_SECONDS


@dataclass(frozen=True, slots=True)
class Told:
    """`fault`: why there is no `body`; `status` with it, 404 where the service knows nothing of it."""

    body: Any = None
    fault: str | None = None
    status: int = 200


async def told_by(
    pages: Pages,
    reader: Reader,
    service: Service,
    *parts: str,
    asked: Sequence[tuple[str, str]] = (),
    seconds: float = PART_SECONDS,
) -> Told:
    try:
        answer = await pages.ask(reader, service, *parts, asked=asked, seconds=seconds)
    except Problem as problem:
        return Told(fault=translated(str(problem.detail)), status=problem.status_code)
    if not answer.is_good:
        return Told(fault=answer.refusal, status=answer.status)
    return Told(body=with_times(answer.body))


def with_times(value: Any, name: str = "") -> Any:
    """JSON with the times in it as times: what a field named …at, since, until or measured says."""
    if isinstance(value, dict):
        return {key: with_times(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [with_times(each, name) for each in value]
    if isinstance(value, str) and (name in ("at", "since", "until") or name.endswith(("_at", "_since", "_until"))):
        return _moment(value)
    return value


def _moment(text: str) -> Any:
    try:
        told = datetime.fromisoformat(text)
    except ValueError:
        return text
    return told if told.tzinfo else told.replace(tzinfo=UTC)
