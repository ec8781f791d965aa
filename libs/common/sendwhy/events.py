"""Every event that travels over Kafka, as frozen pydantic models (contract.md, "Kafka").

Consumers ignore fields that they don't know, so that adding one never needs a joint deploy. Times are aware and
within `EARLIEST`..`LATEST`, so that arithmetic on them can't overflow and PostgreSQL can hold them.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache, cached_property, lru_cache
from hashlib import sha1
from typing import Annotated, Any, Literal, Self
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StringConstraints,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import to_json

from sendwhy.reasons import CATALOGUE, ReasonCode, Recoverable, Service, evidence_for_meta

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
MAX_HORIZON = timedelta(days=30)
CONTENT_TYPES = frozenset(
    {
        "text",
        "template",
        "image",
        "video",
        "audio",
        "document",
        "sticker",
        "interactive",
        "location",
        "contacts",
    }
)
MAX_CONTENT_BYTES = 256 * 1024
MAX_METADATA_BYTES = 2 * 1024
# The contract asks for digits: a short number is one that nobody has. Meta's ids have 64 bits, so 20 digits at most.
SENDER_ID = r"^[0-9]{1,20}$"
COMPONENTS_MAX = 64

_NAMESPACE = UUID("6f1f0f0a-6d1c-5b8e-9c55-0a1d7b4c2e77")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_LINE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def event_id_of(cause: str, kind: str) -> UUID:
    """The id of the event that `cause` (an event's id, or any name that a repeat keeps) leads to.

    The same cause and kind give the same id, so a repeated input re-emits the same event and consumers drop it.
    """
    return UUID(int=int.from_bytes(_digest(cause, kind)))


def event_id_text(cause: str, kind: str) -> str:
    """`event_id_of` as its text, for what is written and not read: in half of the time."""
    digits = _digest(cause, kind).hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _digest(cause: str, kind: str) -> bytearray:
    # As uuid5 makes it, in half of its time: some ten are made on a message's way.
    digest = bytearray(sha1(_NAMESPACE.bytes + f"{cause}/{kind}".encode(), usedforsecurity=False).digest()[:16])
    # Version and variant (RFC 9562).
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return digest


def _in_bounds(moment: datetime) -> datetime:
    # Whatever its offset, a moment of these years is within; to compare it takes twice as long as all the rest.
    is_within = EARLIEST.year < moment.year < LATEST.year - 1
    if not is_within and not EARLIEST <= moment <= LATEST:
        raise ValueError(f"must lie between {EARLIEST:%Y} and {LATEST:%Y}")
    return moment.astimezone(UTC)


def _no_control_characters(text: str) -> str:
    if _NO_LINE.search(text) is None:
        return text
    # PostgreSQL refuses NUL in text; other control characters only ever hide something from a reader.
    if _CONTROL.search(text):
        raise ValueError("must not contain control characters")
    # Half of a UTF-16 pair: Python's JSON parser lets it through, and no UTF-8 can hold it.
    raise ValueError("must not contain surrogates, which are no characters")


def _json_size_at_most(limit: int) -> AfterValidator:
    def check(value: Any) -> Any:
        if len(to_json(value)) > limit:
            raise ValueError(f"must be at most {limit} bytes of JSON")
        return value

    return AfterValidator(check)


# A batch's records have one time, and what was told of them a few.
@lru_cache(1024)
def milliseconds(moment: datetime) -> str:
    """A time as events have it."""
    in_utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return in_utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[
    AwareDatetime,
    AfterValidator(_in_bounds),
    PlainSerializer(milliseconds, return_type=str, when_used="json"),
]
_ONE_LINE = AfterValidator(_no_control_characters)
# Lengths stand before it: behind a function of Python's, pydantic checks them in Python too.
Line = Annotated[str, _ONE_LINE]
MessageId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:\-]{1,128}$")]
WORKSPACE_ID = r"^[A-Za-z0-9_\-]{1,64}$"
WorkspaceId = Annotated[str, StringConstraints(pattern=WORKSPACE_ID)]
SenderId = Annotated[str, StringConstraints(pattern=SENDER_ID)]
ContactId = Annotated[str, StringConstraints(min_length=1, max_length=128), _ONE_LINE]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256), _ONE_LINE]
Wamid = Annotated[str, StringConstraints(min_length=1, max_length=512), _ONE_LINE]
Metadata = Annotated[dict[str, JsonValue], _json_size_at_most(MAX_METADATA_BYTES)]
Evidence = dict[str, JsonValue]


class Wire(BaseModel):
    """What all models on the wire share: frozen; strict, since pydantic would turn `true` into 1 and `12` into "12"."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    def to_json(self) -> bytes:
        return self.__pydantic_serializer__.to_json(self)

    @classmethod
    def of_checked(cls, **fields: Any) -> Self:
        """An event of values that each were checked before, in a quarter of the time; times are in UTC.
        (`model_construct` takes longer than validation.)"""
        made = cls.__new__(cls)
        object.__setattr__(made, "__dict__", {**_defaults(cls), **fields})
        object.__setattr__(made, "__pydantic_fields_set__", set(fields))
        object.__setattr__(made, "__pydantic_extra__", None)
        object.__setattr__(made, "__pydantic_private__", None)
        return made


@cache
def _defaults(model: type[Wire]) -> dict[str, Any]:
    """All fields in their order, which is that of the JSON; none of those without a default may be left out."""
    return {name: field.get_default() for name, field in model.model_fields.items()}


class Event(Wire):
    event_id: UUID
    occurred_at: Moment


class MarketingState(StrEnum):
    SUBSCRIBED = "SUBSCRIBED"
    UNSUBSCRIBED = "UNSUBSCRIBED"
    NOT_SUBSCRIBED = "NOT_SUBSCRIBED"
    UNKNOWN = "UNKNOWN"


class Purpose(StrEnum):
    MARKETING = "marketing"
    TRANSACTIONAL = "transactional"
    CONVERSATION = "conversation"


class OriginKind(StrEnum):
    CAMPAIGN = "campaign"
    AUTOMATION = "automation"
    INBOX = "inbox"
    API = "api"
    TEST = "test"


PURPOSE_BY_ORIGIN: Mapping[OriginKind, Purpose] = {
    OriginKind.CAMPAIGN: Purpose.MARKETING,
    OriginKind.AUTOMATION: Purpose.MARKETING,
    OriginKind.INBOX: Purpose.CONVERSATION,
    OriginKind.API: Purpose.TRANSACTIONAL,
    OriginKind.TEST: Purpose.TRANSACTIONAL,
}
LIFE_BY_ORIGIN: Mapping[OriginKind, timedelta] = {
    OriginKind.CAMPAIGN: timedelta(hours=48),
    OriginKind.AUTOMATION: timedelta(hours=24),
    OriginKind.INBOX: timedelta(minutes=15),
    OriginKind.API: timedelta(hours=24),
    OriginKind.TEST: timedelta(minutes=5),
}


GENERATED_ID_PREFIX = "wa-"


def generated_contact_id(workspace_id: str, name: str) -> ContactId:
    """The contact_id of somebody whom nobody else has named, by their number's key or their WhatsApp user id."""
    return f"{GENERATED_ID_PREFIX}{uuid5(NAMESPACE_URL, f'sendwhy:{workspace_id}/{name}')}"


class To(Wire):
    """Whom a message is for: contact_id, phone (as the upstream system has it), or both."""

    contact_id: ContactId | None = None
    phone: Annotated[str, StringConstraints(min_length=1, max_length=64), _ONE_LINE] | None = None

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if self.contact_id is None and self.phone is None:
            raise ValueError("needs contact_id or phone")
        return self


class Origin(Wire):
    """What asked for the message. Which of the optional fields are set depends on `kind` (contract.md)."""

    kind: OriginKind
    id: Name | None = None
    name: Name | None = None
    node_id: Name | None = None
    enrollment_id: Name | None = None
    thread_id: Name | None = None
    agent: Name | None = None


def _content_is_of_its_type(content: dict[str, JsonValue]) -> dict[str, JsonValue]:
    kind = content.get("type")
    if not isinstance(kind, str) or kind not in CONTENT_TYPES:
        raise ValueError(f"type must be one of {', '.join(sorted(CONTENT_TYPES))}")
    body = content.get(kind)
    if not isinstance(body, dict | list) or isinstance(body, list) != (kind == "contacts"):
        raise ValueError(f"needs an object named {kind}" if kind != "contacts" else "needs a list named contacts")
    if kind == "template" and not _is_plain_template(body):
        _TEMPLATE.validate_python({"template": body})
    return content


def _is_plain_template(body: Any) -> bool:
    """Whether nothing is wrong with a template, as far as that can be told in a fifth of the model's time."""
    name, language, components = body.get("name"), body.get("language"), body.get("components", [])
    return (
        _is_line(name, 1, 512)
        and isinstance(language, dict)
        and _is_line(language.get("code"), 2, 16)
        and isinstance(components, list)
        and len(components) <= COMPONENTS_MAX
        and {*map(type, components)} <= {dict}
    )


def _is_line(text: Any, least: int, most: int) -> bool:
    return type(text) is str and least <= len(text) <= most and _NO_LINE.search(text) is None


class _Language(Wire):
    code: Annotated[str, StringConstraints(min_length=2, max_length=16), _ONE_LINE]


class TemplateContent(Wire):
    """The `template` object of Meta's message: only what Sendwhy itself reads of it."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=512), _ONE_LINE]
    language: _Language
    components: list[dict[str, JsonValue]] = Field(default_factory=list, max_length=COMPONENTS_MAX)


# By its name, so that an error says where in the content it is.
_TEMPLATE = TypeAdapter(dict[Literal["template"], TemplateContent])

Content = Annotated[
    dict[str, JsonValue], AfterValidator(_content_is_of_its_type), _json_size_at_most(MAX_CONTENT_BYTES)
]


class SendRequested(Wire):
    """A request as upstream systems publish it; the one event without event_id (contract.md, send.requested)."""

    message_id: MessageId
    workspace_id: WorkspaceId
    sender_id: SenderId | None = None
    to: To
    origin: Origin
    purpose: Purpose | None = None
    content: Content
    requested_at: Moment | None = None
    send_at: Moment | None = None
    expires_at: Moment | None = None
    resend_of: MessageId | None = None
    metadata: Metadata = Field(default_factory=dict)

    @field_validator("metadata", mode="before")
    @classmethod
    def _none_for_null(cls, told: JsonValue) -> JsonValue:
        """As with all other fields that may be left out, null says the same."""
        return {} if told is None else told

    @field_validator("send_at", "expires_at")
    @classmethod
    def _within_the_horizon(cls, moment: Moment | None, info: ValidationInfo) -> Moment | None:
        requested_at = info.data.get("requested_at")
        if moment is not None and requested_at is not None and moment > requested_at + MAX_HORIZON:
            raise ValueError(f"must be at most {MAX_HORIZON.days} days after requested_at")
        return moment

    def expiry(self, arrived_at: datetime) -> datetime:
        """From when on it isn't sent any more: as it says, or by its origin; `arrived_at` is Kafka's time of it."""
        requested_at = self.requested_at or arrived_at
        begins = max(requested_at, self.send_at or requested_at)
        return self.expires_at or min(begins + LIFE_BY_ORIGIN[self.origin.kind], requested_at + MAX_HORIZON)

    @property
    def template_id(self) -> tuple[str, str] | None:
        """The template's name and language, read from the content as it is: that was checked when it was parsed."""
        if self.content["type"] != "template":
            return None
        body: Any = self.content["template"]
        return body["name"], body["language"]["code"]

    @cached_property
    def template(self) -> TemplateContent | None:
        # Cached: every gate that looks at a template asks for it. Not validated: the content was, as a whole.
        if self.content["type"] != "template":
            return None
        body: Any = self.content["template"]
        language = _Language.model_construct(code=body["language"]["code"])
        return TemplateContent.model_construct(
            name=body["name"], language=language, components=body.get("components", [])
        )


class MetaError(Wire):
    """What Meta said, word for word: of an HTTP answer's `error` or of a webhook's `errors[]`."""

    code: int | None = None
    title: str | None = None
    details: str | None = None
    subcode: int | None = None
    http_status: int | None = None
    fbtrace_id: str | None = None


class Reason(Wire):
    """Why a message failed. `title` comes from the catalogue; `detail` is one sentence on this very message."""

    code: ReasonCode
    title: str
    detail: str
    evidence: Evidence = Field(default_factory=dict)
    recoverable: Recoverable
    meta: MetaError | None = None


def reason(code: ReasonCode, detail: str, evidence: Evidence | None = None, meta: MetaError | None = None) -> Reason:
    """A reason with title and `recoverable` as the catalogue has them; what Meta's error proves joins the evidence."""
    info = CATALOGUE[code]
    proven = {} if meta is None else evidence_for_meta(meta.code, meta.details)
    return Reason(
        code=code,
        title=info.title,
        detail=detail,
        evidence={**proven, **(evidence or {})},
        recoverable=info.recoverable,
        meta=meta,
    )


class Resolved(Wire):
    """What consent found out about a request: `phone` in E.164, `country` as ISO 3166 letters. `user_id`: WhatsApp's
    (BSUID), set only where it goes there because no phone is known."""

    contact_id: ContactId | None = None
    phone: str | None = None
    user_id: str | None = None
    country: str | None = None
    calling_code: str | None = None
    purpose: Purpose

    @property
    def address(self) -> str | None:
        """Where Meta is to send it: the phone, else the user id."""
        return self.phone or self.user_id

    @property
    def is_by_user_id(self) -> bool:
        return not self.phone and self.user_id is not None


class SendConsented(Event):
    """A request that consent let pass. `send_at`, `expires_at` and `request.requested_at` are always filled in."""

    request: SendRequested
    resolved: Resolved
    contact_version: int | None = None
    needs_subscription: bool
    send_at: Moment
    expires_at: Moment

    @property
    def workspace_id(self) -> str:
        return self.request.workspace_id

    @property
    def message_id(self) -> str:
        return self.request.message_id


class Price(Wire):
    """Whole credits; `assumed` when the template's category was not known and the dearest one was taken."""

    credits: Annotated[int, Field(ge=0, le=1_000_000)]
    category: str
    calling_code: str | None = None
    assumed: bool = False


class SendFunded(SendConsented):
    price: Price


class SendRejected(Event):
    message_id: MessageId
    workspace_id: WorkspaceId
    sender_id: SenderId | None = None
    to: To | None = None
    origin: Origin | None = None
    service: Service
    reason: Reason
    metadata: Metadata = Field(default_factory=dict)


class Status(StrEnum):
    ACCEPTED = "accepted"
    SENT = "sent"
    DELIVERED = "delivered"
    READ = "read"
    PLAYED = "played"
    FAILED = "failed"


class StatusUpdated(Event):
    """`occurred_at` is Meta's time, `observed_at` ours. `to`, `origin`, `metadata` and `receipt_deadline` only with
    `accepted`. `message_id` is null while a wamid is not known to be ours. `conversation` as Meta's versions up to 23
    tell it; `extra`: what its element held besides that Sendwhy doesn't know."""

    observed_at: Moment
    message_id: MessageId | None = None
    workspace_id: WorkspaceId | None = None
    sender_id: SenderId | None = None
    provider_message_id: Wamid | None = None
    service: Service
    status: Status
    reason: Reason | None = None
    pricing: dict[str, JsonValue] | None = None
    conversation: dict[str, JsonValue] | None = None
    extra: dict[str, JsonValue] | None = None
    to: To | None = None
    origin: Origin | None = None
    metadata: Metadata | None = None
    receipt_deadline: Moment | None = None
    template_category: str | None = None


class Scope(Wire):
    """What a hold covers: one message, or a sender, template, campaign or account with its id."""

    kind: Literal["message", "sender", "template", "campaign", "account"]
    id: Name


class SendHeld(Event):
    workspace_id: WorkspaceId
    message_id: MessageId | None = None
    sender_id: SenderId | None = None
    cause: ReasonCode
    scope: Scope
    since: Moment
    until: Moment | None = None


class ContactUpdated(Event):
    """A contact's whole state; `version` grows with every change, consumers keep the highest. Contacts with the same
    `person_id` are records of one person and have the same consent."""

    workspace_id: WorkspaceId
    contact_id: ContactId
    version: int
    phone: str | None = None
    phone_given: str | None = None
    phone_country_code: str | None = None
    phone_calling_code: str | None = None
    user_id: str | None = None
    name: str | None = None
    person_id: str | None = None
    external_ids: list[str] = Field(default_factory=list)
    language: str | None = None
    address_country: str | None = None
    marketing_state: MarketingState
    since: Moment
    source: str
    proof: str | None = None


class SendRecalled(Event):
    """A message that the dispatcher took out of its queue because the person is no longer subscribed."""

    funded: SendFunded
    contact: ContactUpdated

    @property
    def workspace_id(self) -> str:
        return self.funded.workspace_id

    @property
    def message_id(self) -> str:
        return self.funded.message_id


class SendCancelled(Wire):
    """A withdrawal, by anyone allowed: of one message (it may come before its request), of a campaign with all that
    comes later, or of what waits at a sender."""

    workspace_id: WorkspaceId
    message_id: MessageId | None = None
    campaign_id: Name | None = None
    sender_id: SenderId | None = None
    by: Name | None = None
    note: Name | None = None
    occurred_at: Moment | None = None

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if sum(one is not None for one in (self.message_id, self.campaign_id, self.sender_id)) != 1:
            raise ValueError("must name exactly one of message_id, campaign_id and sender_id")
        return self


class Inbound(StrEnum):
    TEXT = "text"
    BUTTON = "button"
    INTERACTIVE = "interactive"
    CALL = "call"
    OTHER = "other"


class MessageReceived(Event):
    """A message (or call) from a person; `occurred_at` is Meta's message time, `observed_at` when its webhook came.
    `free_entry_point`: it came by an ad or a page's button (null: not told). `reason`: by Meta's error in it (a type or
    a media file that can't be had). `raw` is Meta's own fragment."""

    workspace_id: WorkspaceId | None = None
    sender_id: SenderId
    wamid: Wamid
    phone: str | None = None
    user_id: str | None = None
    profile_name: str | None = None
    kind: Inbound
    text: str | None = None
    payload: str | None = None
    context_wamid: str | None = None
    free_entry_point: bool | None = None
    reason: Reason | None = None
    observed_at: Moment | None = None
    raw: dict[str, JsonValue]

    @property
    def is_said_to_us(self) -> bool:
        """Whether the person said it, to this number alone: it opens their window and stands in their thread. Not what
        WhatsApp tells of them (a changed number, a message taken back), nor what they say to a group, which has a
        window of its own (Meta, "Groups API Pricing")."""
        told = self.raw
        return (
            told.get("type") not in ("system", "revoke")
            and told.get("group_id") is None
            and told.get("direction") != "BUSINESS_INITIATED"
        )


class CustomerUpdated(Event):
    """What a shop or Meta told about a person. Shopify: the fields of its customer; Meta: `user_preferences`,
    with `observed_at`, when its webhook came; and `link`: by its status `delivered`, which user id belongs to a phone.

    Shopify's mandatory webhooks: `redact` (erase this customer), `data_request` (they ask for their data), and
    `shop_redact`, which names no customer: the shop has uninstalled the app.
    """

    source: Literal["shopify", "meta"]
    action: Literal["update", "delete", "stop", "resume", "link", "redact", "data_request", "shop_redact"]
    workspace_id: WorkspaceId | None = None
    sender_id: SenderId | None = None
    contact_id: ContactId | None = None
    phone: str | None = None
    user_id: str | None = None
    phone_country_code: str | None = None
    phone_calling_code: str | None = None
    name: str | None = None
    language: str | None = None
    address_country: str | None = None
    marketing_state: MarketingState | None = None
    detail: str | None = None
    observed_at: Moment | None = None
    raw: dict[str, JsonValue] = Field(default_factory=dict)


class TemplateReported(Event):
    """A fragment of Meta's about a template: `field` of the webhook and its `value`."""

    waba_id: str
    name: str | None = None
    language: str | None = None
    field: str
    raw: dict[str, JsonValue]


class SenderReported(Event):
    """A fragment of Meta's about a number, an account or a portfolio: `field` of the webhook and its `value`.

    An error that Meta told for no message (`value.errors`) has the field `errors` and the `reason` that it stands for.
    """

    waba_id: str
    sender_id: str | None = None
    display_phone_number: str | None = None
    field: str
    reason: Reason | None = None
    raw: dict[str, JsonValue]


class TemplateUpdated(Event):
    """A template's whole state as the dispatcher knows it. `status` in Meta's capitals."""

    waba_id: str
    name: str
    language: str
    version: int
    status: str
    category: str
    parameter_format: str
    components: list[dict[str, JsonValue]]
    quality: str | None = None
    rejected_reason: str | None = None
    said_by: str
    said_at: Moment
    synced_at: Moment | None = None


class SenderUpdated(Event):
    """A sender's whole state, without its token."""

    sender_id: SenderId
    workspace_id: WorkspaceId
    version: int
    waba_id: str
    portfolio_id: str | None = None
    app_id: str | None = None
    default: bool
    display_phone_number: str | None = None
    quality: str | None = None
    messages_per_second: int | None = None
    messaging_limit: int | None = None
    hold: dict[str, JsonValue] | None = None
    paused: bool = False
    synced_at: Moment | None = None


class AccountUpdated(Event):
    """A workspace's credit account; `last_entry` is the ledger entry that led to it."""

    workspace_id: WorkspaceId
    version: int
    balance: int
    last_top_up: int | None = None
    low_balance_percent: int | None = None
    last_entry: dict[str, JsonValue] | None = None


class PersonErasing(Event):
    """consent's order to all services to erase a person; the event's id is the order's.

    Nothing in it is personal: `tags` are keyed (privacy.py), of the contact ids, of the phone's spellings (digits) and
    of WhatsApp user ids. `message_ids` are the messages that consent decided for them. What happened after
    `erased_at` belongs to a new acquaintance and stays. A large erasure is several orders.
    """

    workspace_id: WorkspaceId
    erasure_id: UUID
    erased_at: Moment
    tags: list[str] = Field(max_length=1000)
    message_ids: list[MessageId] = Field(max_length=1000)


class ErasedRows(Wire):
    """What an order did to one table. `kept` needs a `ground`; `until` is when it goes at the latest."""

    table: str
    act: Literal["erased", "blurred", "recalled", "kept"]
    rows: int
    ground: str | None = None
    until: Moment | None = None


class PersonErased(Event):
    """One service's report on one order."""

    workspace_id: WorkspaceId
    erasure_id: UUID
    order_id: UUID
    service: Service
    tables: list[ErasedRows]


class Gate(Wire):
    """One gate's verdict in an answer of POST /v1/evaluate. `passed` is null where the gate can't know."""

    gate: str
    passed: bool | None
    reason: Reason | None = None
    evidence: Evidence = Field(default_factory=dict)
