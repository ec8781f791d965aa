"""A file of send requests, line by line: what is a request of this workspace, and what is wrong with the others. Pure
but for reading the file."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from pydantic import ValidationError
from sendwhy.events import SendRequested
from sendwhy.stage import fields_of

from message_log.audience import Outcome, Verdict

LINES_MAX = 100_000
LINE_BYTES_MAX = 512 * 1024
FILE_BYTES_MAX = 64 * 1024 * 1024
AT_ONCE = 500
_MARK = b"\xef\xbb\xbf"


class TooManyLines(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Line:
    """`number` counts from 1, as an editor does. `verdict`: what is known of it before any service is asked."""

    number: int
    body: bytes
    message_id: str | None = None
    verdict: Verdict | None = None


def request_of(body: bytes) -> SendRequested:
    """Raises ValidationError."""
    return SendRequested.model_validate_json(body)


@dataclass(slots=True)
class Reading:
    """The lines of one file, in pieces. Raises TooManyLines."""

    file: IO[bytes]
    workspace: str
    _seen: dict[str, int] = field(default_factory=dict)

    def pieces(self) -> Iterator[list[Line]]:
        piece: list[Line] = []
        for number, body in self._bodies():
            piece.append(self._line(number, body))
            if len(piece) == AT_ONCE:
                yield piece
                piece = []
        if piece:
            yield piece

    def _bodies(self) -> Iterator[tuple[int, bytes]]:
        """The lines that hold something, each cut off where it is too long."""
        number = found = 0
        while body := self.file.readline(LINE_BYTES_MAX + 1):
            number += 1
            rest = body
            while not rest.endswith(b"\n") and (rest := self.file.readline(LINE_BYTES_MAX)):
                pass
            body = body.removeprefix(_MARK) if number == 1 else body
            if body.strip():
                found += 1
                if found > LINES_MAX:
                    raise TooManyLines
                yield number, body.rstrip(b"\r\n")

    def _line(self, number: int, body: bytes) -> Line:
        if len(body) > LINE_BYTES_MAX:
            why = f"The line is longer than {LINE_BYTES_MAX // 1024} KB."
            return Line(number, body[:1024], verdict=Verdict(Outcome.BROKEN, "line", detail=why))
        try:
            request = request_of(body)
        except ValidationError as error:
            # The line itself says no more than its fields do; a hostile one may be anything.
            named, _, detail = fields_of(error)[0].partition(": ")
            return Line(number, body, verdict=Verdict(Outcome.BROKEN, "line", field=_text(named), detail=_text(detail)))
        if request.workspace_id != self.workspace:
            detail = f"It names the workspace {request.workspace_id}, and this is {self.workspace}."
            return Line(number, body, verdict=Verdict(Outcome.BROKEN, "workspace", field="workspace_id", detail=detail))
        first = self._seen.setdefault(request.message_id, number)
        if first != number:
            detail = f"Line {first:,} has this message_id already; Sendwhy takes what comes first."
            return Line(number, body, request.message_id, Verdict(Outcome.REPEATED, detail=detail))
        return Line(number, body, request.message_id)


def _text(told: str) -> str:
    """As PostgreSQL can hold it."""
    return told.replace("\x00", "").encode(errors="replace").decode()[:500]
