"""One import, from the file that came to its end."""

from dataclasses import dataclass
from datetime import datetime
from typing import IO
from uuid import UUID

from sendwhy.http import Caller

from consent.import_changes import Cause
from consent.import_csv import Layout


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that has come whole. `digest` names its content, `request_digest` that and what was asked."""

    file: IO[bytes]
    digest: bytes
    request_digest: bytes


@dataclass(frozen=True, slots=True)
class Job:
    """One import; `key` is its Idempotency-Key."""

    import_id: UUID
    caller: Caller
    upload: Upload
    layout: Layout
    started_at: datetime
    key: str | None

    @property
    def cause(self) -> Cause:
        return Cause(self.caller.workspace, self.upload.digest, self.caller.token.name)
