"""The question of POST /v1/evaluate, the same wherever `resolved` is passed on to (contract.md, "HTTP")."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import Field, model_validator

from sendwhy.events import Moment, Resolved, SendRequested
from sendwhy.http import Body

EVALUATE_PATH = "/v1/evaluate"
EVALUATE_MAX = 1_000
EVALUATE_BYTES_MAX = 16 * 1024 * 1024
# A question about "now" takes a while to arrive; what lies further back is a question about history.
NOW_TOLERANCE = timedelta(minutes=1)


class EvaluateRequest(SendRequested):
    resolved: Resolved | None = None


class Evaluate(Body):
    """`resolved` is what consent answered: beside the requests in their order, or within each request."""

    requests: Annotated[list[EvaluateRequest], Field(max_length=EVALUATE_MAX)]
    resolved: list[Resolved | None] | None = None
    at: Moment | None = None

    @model_validator(mode="after")
    def _resolved_belongs_to_the_requests(self) -> "Evaluate":
        if self.resolved is not None and len(self.resolved) != len(self.requests):
            raise ValueError("resolved must be as long as requests")
        return self

    def each_resolved(self) -> Sequence[Resolved | None]:
        beside = self.resolved or [None] * len(self.requests)
        return [request.resolved or other for request, other in zip(self.requests, beside, strict=True)]

    def asks_of_the_past(self, now: datetime) -> bool:
        return self.at is not None and self.at < now - NOW_TOLERANCE
