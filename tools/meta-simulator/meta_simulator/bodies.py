"""The bodies of the simulator's own controls, and what it keeps of them."""

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from meta_simulator.components import Plan, plan_of
from meta_simulator.errors import Json
from meta_simulator.messages import digits, is_user_id


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


Id = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]
# As webhooks name them: the number's digits, or WhatsApp's user id.
Person = Annotated[
    str, BeforeValidator(lambda value: value if is_user_id(str(value)) else digits(str(value))), Field(min_length=1)
]
Phone = Annotated[str, BeforeValidator(lambda value: digits(str(value))), Field(min_length=1)]


class Template(Body):
    id: Id = ""
    name: str
    language: str = "en_US"
    status: str = "APPROVED"
    category: str = "UTILITY"
    parameter_format: str = "POSITIONAL"
    components: list[Json] | None = None
    quality_score: str = "GREEN"
    rejected_reason: str = "NONE"
    message_send_ttl_seconds: int | None = None

    @cached_property
    def plan(self) -> Plan | None:
        """What a call must bring; None where anything goes."""
        return None if self.components is None else plan_of(self.components)


class Account(Body):
    portfolio_id: Id | None = None
    name: str = "Simulated business"
    messaging_limit: int | None = Field(default=None, ge=1)
    templates: list[Template] = []
    # Whether the apps of its numbers get its webhooks.
    subscribed: bool = True


class Number(Body):
    waba_id: Id
    display_phone_number: str = "+1 555 010 0000"
    verified_name: str = "Simulated business"
    access_token: str | None = None
    app_id: Id | None = None
    app_secret: str = ""
    webhook_url: str | None = None
    quality_rating: Literal["GREEN", "YELLOW", "RED", "UNKNOWN"] = "GREEN"
    messages_per_second: PositiveFloat = 80
    throughput_level: Literal["STANDARD", "HIGH"] | PositiveInt | None = None
    """What a GET tells; None: by `messages_per_second`. A number stands for a rate that no level's name stands for."""
    require_appsecret_proof: bool = False


class Delays(Body):
    """Milliseconds after the answer."""

    sent: float = Field(default=100, ge=0)
    delivered: float = Field(default=300, ge=0)
    read: float = Field(default=600, ge=0)
    held: float = Field(default=2000, ge=0)

    def seconds(self, slot: str) -> float:
        return float(getattr(self, slot)) / 1000


class Recipient(Body):
    scenario: str = "ok"
    delays_ms: Delays = Delays()
    times: int | None = Field(default=None, ge=0)
    http_status: int = Field(default=400, ge=200, le=599)
    body: Json | list[Any] | str | None = None
    errors: list[Json] = []


class TemplatePatch(Body):
    status: str | None = None
    reason: str | None = None
    category: str | None = None
    quality_score: str | None = None


class Inbound(Body):
    """A message from a person, or `marketing` to stop or resume marketing by WhatsApp's own control."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    phone_number_id: Id
    sender: Person = Field(alias="from")
    message: Json | None = None
    marketing: Literal["stop", "resume"] | None = None
    name: str = "Ines Calder"
    seconds_ago: float = Field(default=0, ge=0)


class TemplateName(Body):
    name: str
    language: str = "en_US"


class CasePlay(Body):
    """What a case may need: for how many (simulated) `seconds` its state lasts, how many tries it takes (`times`)."""

    phone_number_id: Id
    phone: Phone | None = None
    template: TemplateName | None = None
    seconds: float | None = Field(default=None, gt=0, le=30 * 86_400)
    times: int = Field(default=2, ge=1, le=1000)
    verify_token: str | None = None
    old_secret: str | None = None
    delays_ms: Delays = Delays()


Share = Annotated[float, Field(ge=0, le=1)]


class Posting(Body):
    """How webhooks come: up to `batch` updates in a POST, each delayed by a time between the two of `delay_ms`, and
    shares of them held back so that later ones overtake, or posted twice."""

    batch: int = Field(default=1, ge=1, le=1000)
    reorder: Share = 0
    double: Share = 0
    delay_ms: tuple[Annotated[float, Field(ge=0, le=86_400_000)], Annotated[float, Field(ge=0, le=86_400_000)]] = (0, 0)

    @model_validator(mode="after")
    def _is_a_span(self) -> Self:
        if self.delay_ms[0] > self.delay_ms[1]:
            raise ValueError("delay_ms: the shortest delay comes first")
        return self

    @property
    def is_usual(self) -> bool:
        return not self.reorder and not self.double and not self.delay_ms[1]


class Settings(Body):
    """`time_scale`: simulated seconds per second, for delays, retries, windows, pair rate and caps, not for
    `latency_ms` and throughput. `answers`: shares of calls answered by an HTTP status or a scenario.
    `retry_after_seconds`: the header Retry-After of answers about a rate (null: none)."""

    latency_ms: float = Field(default=50, ge=0)
    time_scale: float = Field(default=1, gt=0)
    answers: dict[str, Share] = {}
    suffixes: bool = False
    retry_after_seconds: int | None = Field(default=None, ge=0, le=86_400)
    webhooks: Posting = Posting()

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if sum(self.answers.values()) > 1 + 1e-9:
            raise ValueError("answers: the shares add up to more than 1")
        return self


class Outage(Body):
    """For how many (real) seconds every connection is refused, the controls' too."""

    seconds: float = Field(gt=0, le=3600)


class Event(Body):
    """A webhook made by hand: `field` and `value` of an account, or a whole `body` for a number."""

    waba_id: Id | None = None
    phone_number_id: Id | None = None
    field: str | None = None
    value: Json | None = None
    body: Json | str | None = None
    signature: Literal["right", "wrong", "missing"] = "right"
    secret: str | None = None


class Seed(Body):
    """The bodies of the PUTs, by their ids."""

    accounts: dict[str, Account] = {}
    numbers: dict[str, Number] = {}
    recipients: dict[str, Recipient] = {}
    settings: Settings = Settings()
