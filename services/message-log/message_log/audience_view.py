"""What is shown of many requests that were judged together: the same values in pages, API and CSV."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from asyncpg import Record
from pydantic import BaseModel, JsonValue, TypeAdapter
from sendwhy.events import Moment
from sendwhy.postgres import Connection
from sendwhy.problems import not_found

from message_log import audience_store as stored
from message_log import words
from message_log.audience import Outcome, credits_needed, group_name
from message_log.eligibility import without_numbers
from message_log.language import gettext as _
from message_log.language import lazy, told
from message_log.view import Viewer

PATHS = {"file": "audience-checks", "again": "send-again"}
PAGES = {"file": "audience", "again": "send-again"}
State = Literal["running", "judged", "cancelled", "failed", "interrupted", "sending", "sent", "stopped"]
_FACTS: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


@dataclass(frozen=True, slots=True)
class Words:
    title: str
    meaning: str
    what_to_do: str | None = None


# By outcome, or by outcome and why; failures and waits have the catalogue's.
_WORDS: Mapping[str, Words] = {
    "goes": Words(lazy("Would go now"), lazy("Every gate lets them pass, and the credits are there.")),
    "broken.line": Words(
        lazy("No request"), lazy("The line can’t be read as a send request."), lazy("Correct the field that is named.")
    ),
    "broken.workspace": Words(
        lazy("Of another workspace"),
        lazy("The line names another workspace than this one."),
        lazy("Check it in its own workspace."),
    ),
    "repeated": Words(
        lazy("Repeated in the file"),
        lazy("An earlier line has the same message_id, so nothing would be sent for this one."),
        lazy("Give each message an id of its own, or leave the line out."),
    ),
    "used": Words(
        lazy("Id was used already"),
        lazy("A message has this id; Sendwhy answers a repeat with what stands, and sends nothing."),
        lazy("Give a new message a new id."),
    ),
    "excluded.never": Words(lazy("Can never be sent"), lazy("Their reason can’t be repaired, so they are left out.")),
    "excluded.erased": Words(lazy("Person was erased"), lazy("Whom they were for is not known any more.")),
    "excluded.not_kept": Words(
        lazy("What they said is not kept any more"),
        lazy("Events go after some time."),
        lazy("Ask for these messages anew."),
    ),
    "excluded.not_failed": Words(
        lazy("Have not failed after all"), lazy("A late receipt came, or they are under way.")
    ),
    "excluded.sent_again": Words(
        lazy("Sent again already"), lazy("A repeat of each is on its way, has arrived, or stands in this list itself.")
    ),
    "excluded.uncertain": Words(
        lazy("May have been delivered"),
        lazy("Nobody knows whether WhatsApp took them, so a repeat may reach the person twice."),
        lazy("Look at each one, and send it again from its own page."),
    ),
}


class Example(BaseModel):
    """`line`: its number in the file, or in the list of messages."""

    line: int
    message_id: str | None
    field: str | None
    detail: str | None


class GroupView(BaseModel):
    """Lines that have the same outcome for the same reason. `credits`: what they would take if they went, without
    those that were sent again, of which there are `sent`. Times are those of a wait's end, as far as it is known."""

    group: str
    outcome: Outcome
    why: str | None
    cause: str | None
    service: str | None
    title: str
    meaning: str
    what_to_do: str | None
    count: int
    credits: int
    sent: int
    until_first: Moment | None
    until_last: Moment | None
    example: Example | None


class CreditsView(BaseModel):
    """`going`: for what would go now. `needed`: for all that only credits could stop. `balance` null: not known."""

    going: int
    needed: int
    balance: int | None
    short: int


class PeopleView(BaseModel):
    """The messaging limit of a portfolio: `used` in the last 24 h before, `taken` by what would go, `left` after it."""

    portfolio: str
    limit: int
    used: int
    taken: int
    left: int


class AudienceView(BaseModel):
    """`lines` of the file, or messages of the plan (of `matched` that match the list); `judged` of them. `faults`: why
    a service could not be asked; its gates are nobody's pass. `told`: how it ended, where that needs words."""

    id: UUID
    kind: Literal["file", "again"]
    state: State
    name: str
    by: str
    created_at: Moment
    expires_at: Moment
    judged_at: Moment | None
    lines: int
    matched: int
    judged: int
    going: int
    sent: int
    groups: list[GroupView]
    credits: CreditsView
    people: list[PeopleView]
    faults: dict[str, str]
    told: str | None
    url: str

    @property
    def runs(self) -> bool:
        return self.state in ("running", "sending")

    @property
    def sendable(self) -> bool:
        return self.kind == "again" and self.state in ("judged", "stopped") and self.going > 0

    def of(self, *outcomes: str) -> list[GroupView]:
        return [one for one in self.groups if one.outcome in outcomes]

    def count_of(self, *outcomes: str) -> int:
        return sum(one.count for one in self.of(*outcomes))


def words_of(outcome: str, why: str | None, cause: str | None, service: str | None) -> Words:
    if outcome == Outcome.UNKNOWN:
        meaning = _("%(service)s could not be asked, or can’t tell: that is never a pass.", service=service)
        return Words(_("Not known: %(service)s", service=service), meaning, _("Judge again once it answers."))
    if outcome == Outcome.WAITS:
        info = words.reason_info(cause or "")
        stay = _("They stay in the queue until they expire.")
        if why == "paused":
            return Words(_("Would wait: paused"), stay, _("Resume what is paused."))
        title = _("Would wait for %(what)s", what=words.waiting_for(why or ""))
        return Words(title, told(info.meaning) if info else stay, told(info.what_to_do) if info else None)
    failure = words.reason_info(why or "") if outcome == Outcome.FAILS else None
    if failure is not None:
        return Words(told(failure.title), told(failure.meaning), told(failure.what_to_do))
    found = _WORDS.get(group_name(outcome, why, None)) or _WORDS.get(outcome) or Words(why or outcome, "")
    return Words(str(found.title), str(found.meaning), str(found.what_to_do) if found.what_to_do else None)


_ORDER = {outcome: place for place, outcome in enumerate(Outcome)}


def _group(row: Record, example: Record | None, *, sees_phones: bool) -> GroupView:
    said = words_of(row["outcome"], row["why"], row["cause"], row["service"])
    shown = None
    if example is not None:
        detail = example["detail"]
        shown = Example(
            line=example["number"],
            message_id=example["message_id"],
            field=example["field"],
            detail=detail if sees_phones or not detail else without_numbers(detail),
        )
    return GroupView(
        group=group_name(row["outcome"], row["why"], row["cause"]),
        example=shown,
        title=said.title,
        meaning=said.meaning,
        what_to_do=said.what_to_do,
        **{
            name: row[name]
            for name in (
                *("outcome", "why", "cause", "service", "count"),
                *("credits", "sent", "until_first", "until_last"),
            )
        },
    )


def _credits(groups: Sequence[GroupView], balance: int | None) -> CreditsView:
    needed = credits_needed([(one.outcome, one.why, one.credits) for one in groups])
    going = sum(one.credits for one in groups if one.outcome is Outcome.GOES)
    return CreditsView(
        going=going, needed=needed, balance=balance, short=0 if balance is None else max(0, needed - balance)
    )


async def read(connection: Connection, workspace: str, audience_id: UUID, kind: str) -> Record:
    """Its row. Raises Problem 404 where the workspace has none of that kind."""
    row = await stored.read(connection, workspace, audience_id)
    if row is None or row["kind"] != kind:
        raise not_found("The audience check") if kind == "file" else not_found("The plan")
    return row


async def load(connection: Connection, workspace: str, audience_id: UUID, kind: str, viewer: Viewer) -> AudienceView:
    row = await read(connection, workspace, audience_id, kind)
    found = await stored.groups(connection, audience_id)
    examples = await stored.examples(connection, audience_id, [each["first"] for each in found])
    groups = [_group(each, examples.get(each["first"]), sees_phones=viewer.sees_phones) for each in found]
    groups.sort(key=lambda one: (_ORDER[one.outcome], -one.count, one.group))
    return view_of(row, groups, viewer)


def view_of(row: Record, groups: Sequence[GroupView], viewer: Viewer) -> AudienceView:
    facts: Any = _FACTS.validate_json(row["facts"])
    sent = sum(one.sent for one in groups)
    return AudienceView(
        id=row["audience_id"],
        kind=row["kind"],
        state="interrupted" if row["is_silent"] else "running" if row["state"] == "new" else row["state"],
        name=row["name"] if viewer.sees_phones or row["kind"] == "file" else "",
        by=row["by_name"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        judged_at=row["judged_at"],
        lines=row["lines"],
        matched=row["matched"],
        judged=sum(one.count for one in groups),
        going=sum(one.count for one in groups if one.outcome is Outcome.GOES) - sent,
        sent=sent,
        groups=list(groups),
        credits=_credits(groups, facts.get("balance")),
        people=[PeopleView(**each) for each in facts.get("people", [])],
        faults=facts.get("faults", {}),
        told=row["told"],
        url=viewer.page(row["workspace_id"], PAGES[row["kind"]], str(row["audience_id"])),
    )


COLUMNS = (
    *("line", "message_id", "contact_id", "phone", "outcome", "reason", "title", "detail", "field"),
    *("what_to_do", "until", "credits", "service", "sent_as"),
)


def cells_of(row: Record, to: Mapping[str, Any]) -> list[Any]:
    """A line as COLUMNS. `to`: whom the request is for, as far as it can be read."""
    said = words_of(row["outcome"], row["why"], row["cause"], row["service"])
    until: datetime | None = row["until"]
    return [
        row["number"],
        row["message_id"],
        to.get("contact_id"),
        to.get("phone"),
        row["outcome"],
        row["cause"] or row["why"],
        said.title,
        row["detail"],
        row["field"],
        said.what_to_do,
        until.isoformat() if until else None,
        row["credits"],
        row["service"],
        row["sent_as"],
    ]
