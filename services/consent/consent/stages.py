"""What consent does with each topic's batch. Stages that change contacts read all into `Change`s and share one path."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from sendwhy.erasure import keep_erasures_waiting
from sendwhy.events import (
    CustomerUpdated,
    Evidence,
    MarketingState,
    MessageReceived,
    SendConsented,
    SenderUpdated,
    SendRecalled,
    SendRejected,
    SendRequested,
    Status,
    StatusUpdated,
    TemplateUpdated,
)
from sendwhy.metrics import Metric, Metrics
from sendwhy.postgres import Connection, Decision, MessageKey, decisions_of
from sendwhy.privacy import ERASURE, redacted, redacted_request
from sendwhy.reasons import ReasonCode, Service
from sendwhy.requests import Completed, Invalid, complete
from sendwhy.stage import Parse, Record, Unreadable, dead_letter
from sendwhy.topics import Outgoing, Topic, contact_key, outgoing, tombstone

from consent import erasures, keyword_store, people, store
from consent.contacts import OWN_ID_LENGTH, UNSUBSCRIBED, Book, Change, Contact, Entry, Mark, Origin, Word, latest
from consent.decide import (
    Facts,
    answer_recall,
    decide,
    keep_until,
    not_opted_in,
    rejected,
)
from consent.fields import Fields
from consent.keywords import judge, proof_of
from consent.phones import phone_of_wa_id, read_phone
from consent.refusals import Unusable, first_usable, legible, refuse
from consent.settings import Settings
from consent.words import NOTHING_OWN, Keyword, Own

CONSENT_STEP, RECALL_STEP = "consent", "recall"
_ORIGINS = {"delete": Origin.DELETED, "redact": Origin.REDACT}
_ASKED_BY_SHOPS = ("redact", "data_request", "shop_redact")
_STOPPED = ReasonCode.RECIPIENT_STOPPED_MARKETING.encode()


@dataclass
class Surroundings:
    """Facts of one batch, by request. A sender that no copy names yet leaves the category unknown."""

    contacts: Mapping[Mark, list[Contact]]
    defaults: Mapping[str, str] = field(default_factory=dict)
    wabas: Mapping[tuple[str, str], str] = field(default_factory=dict)
    categories: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    believed_workspaces: frozenset[str] = frozenset()
    shop_countries: Mapping[str, str] = field(default_factory=dict)
    remembered: Mapping[Mark, Word] = field(default_factory=dict)

    def of(self, request: SendRequested) -> Facts:
        workspace = request.workspace_id
        sender_id = request.sender_id or self.defaults.get(workspace)
        waba = self.wabas.get((workspace, sender_id)) if sender_id else None
        template = request.template_id
        category = self.categories.get((waba, *template)) if waba and template else None
        named = self.named(request)
        contact = self._reached(request, named)
        return Facts(
            contact=contact,
            named=named,
            standing=contact.word if contact else None,
            veto=self._veto(request, named),
            sender_id=sender_id,
            category=category.upper() if category else None,
            may_say_transactional=workspace in self.believed_workspaces,
            shop_country=self.shop_countries.get(workspace),
        )

    def contact_of(self, request: SendRequested) -> Contact | None:
        """Whom the message reaches: the contact named; where that one has no phone, the one that the phone given
        belongs to, since the dispatcher finds what waits for whoever says STOP by this contact."""
        return self._reached(request, self.named(request))

    def _reached(self, request: SendRequested, named: Contact | None) -> Contact | None:
        if named is None or named.fields.phone is not None:
            return named
        return self._likeliest(phone_marks_of(request)) or named

    def named(self, request: SendRequested) -> Contact | None:
        """The contact named; by phone alone, the one whose source keeps it, before one that a message made."""
        return self._likeliest(marks_of_request(request))

    def _likeliest(self, marks: Iterable[Mark]) -> Contact | None:
        found = [contact for mark in marks for contact in self.contacts.get(mark, ())]
        if len(found) == 1:
            return found[0]
        return min(found, key=people.by_likelihood, default=None)

    def _veto(self, request: SendRequested, named: Contact | None) -> Word | None:
        """The no of whoever has the phone given, where that is used; else the one of who is named without a phone."""
        if named is not None and named.fields.phone is not None:
            return None
        marks = phone_marks_of(request)
        holders = [contact for mark in marks for contact in self.contacts.get(mark, ())]
        firm = latest(*(one.person.firm for one in holders), *map(self.remembered.get, marks))
        if firm is not None and firm.state == UNSUBSCRIBED:
            return firm
        return named.word if named and holders and named.word.state != MarketingState.SUBSCRIBED else None


def marks_of_request(request: SendRequested) -> tuple[Mark, ...]:
    if request.to.contact_id is not None:
        return (Mark(request.workspace_id, "contact", request.to.contact_id),)
    return phone_marks_of(request)


def _marks_of_recalled(event: SendRecalled) -> tuple[Mark, ...]:
    """Whose state took it out, whom it was to reach, and whom it names."""
    workspace, resolved = event.workspace_id, event.funded.resolved
    names = (event.contact.contact_id, resolved.contact_id, event.funded.request.to.contact_id)
    contacts = [Mark(workspace, "contact", name) for name in dict.fromkeys(names) if name]
    phone = read_phone(resolved.phone).phone if resolved.phone else None
    return (*contacts, *((Mark(workspace, "phone", phone.key),) if phone else ()))


def phone_marks_of(request: SendRequested) -> tuple[Mark, ...]:
    """The phone that the request itself gives, if it can be read."""
    reading = read_phone(request.to.phone) if request.to.phone else None
    return (Mark(request.workspace_id, "phone", reading.phone.key),) if reading and reading.phone else ()


async def surroundings_of(
    connection: Connection, tagger: store.Tagger, requests: Sequence[SendRequested], believed_workspaces: frozenset[str]
) -> Surroundings:
    """Everything that the batch's requests are judged by: one query a table, and one more for phones that requests
    give of people of whom none is stored."""
    asked = {mark for one in requests for mark in marks_of_request(one)}
    found = await people.with_phones_of_persons(connection, await store.contacts_named(connection, asked))
    contacts: dict[Mark, list[Contact]] = {}
    own_ids_asked = any(len(mark.value) == OWN_ID_LENGTH for mark in asked)
    for contact in found:
        marks = {*contact.marks, *contact.own_ids} if own_ids_asked else set(contact.marks)
        for mark in marks & asked:
            contacts.setdefault(mark, []).append(contact)
    remembered = await _add_given_phones(connection, tagger, requests, contacts)
    workspaces = {request.workspace_id for request in requests}
    templates = {template for request in requests if (template := request.template_id) is not None}
    senders = await store.senders_of(connection, workspaces, templates)
    return Surroundings(
        contacts=contacts,
        defaults=senders.defaults,
        wabas=senders.wabas,
        categories=senders.categories,
        believed_workspaces=believed_workspaces,
        shop_countries=await _shop_countries(connection, requests, found),
        remembered=remembered,
    )


async def _add_given_phones(
    connection: Connection,
    tagger: store.Tagger,
    requests: Sequence[SendRequested],
    contacts: dict[Mark, list[Contact]],
) -> Mapping[Mark, Word]:
    """Where a request's own phone is used: add who has it, and return the words kept of it beside any contact."""
    known = Surroundings(contacts)
    given: set[Mark] = set()
    others: set[Mark] = set()
    for request in requests:
        if (named := known.named(request)) is None or named.fields.phone is None:
            given.update(phone_marks_of(request))
            others.update(phone_marks_of(request) if request.to.contact_id is not None else ())
    # Those that another request names by phone alone are there already.
    if others := {mark for mark in others if mark not in contacts}:
        for contact in await store.contacts_of(connection, others):
            for mark in others.intersection(contact.marks):
                contacts.setdefault(mark, []).append(contact)
    memories = await store.memories_of(connection, tagger, given) if given else {}
    return {mark: memory.word for mark, memory in memories.items() if memory.word is not None}


async def _shop_countries(
    connection: Connection, requests: Sequence[SendRequested], contacts: Iterable[Contact]
) -> Mapping[str, str]:
    """Asked for only where a number may lack its calling code."""
    national = {one.workspace_id for one in requests if one.to.phone and not one.to.phone.startswith("+")}
    national |= {one.key.workspace_id for one in contacts if one.fields.phone and one.fields.e164 is None}
    return await store.shop_countries_of(connection, national) if national else {}


def refuse_erased(completed: Completed, earlier: erasures.Earlier, now: datetime) -> SendRejected:
    """The answer to a request that was there before its person was erased: it names nobody any more."""
    request = redacted_request(completed.request, earlier.alias)
    word = Word(UNSUBSCRIBED, earlier.at, ERASURE)
    evidence: Evidence = {"marketing_state": word.state.value, "since": earlier.at.isoformat(), "source": ERASURE}
    cause = f"{request.workspace_id}/{request.message_id}"
    return rejected(request, not_opted_in(word, evidence), cause=cause, sender_id=request.sender_id, now=now)


class Stages:
    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._believed = settings.believed_workspaces
        self._tagger = store.Tagger(settings.privacy_key.get_secret_value())
        self._metrics = metrics

    async def on_requested(
        self, connection: Connection, records: Sequence[Record[SendRequested]]
    ) -> Sequence[Outgoing]:
        """Decide each request once; a repeat gets what was decided, an invalid one leaves its id free."""
        now = datetime.now(UTC)
        keys = [(record.event.workspace_id, record.event.message_id) for record in records]
        await keep_erasures_waiting(connection, {workspace for workspace, _ in keys})
        standing = await decisions_of(connection, CONSENT_STEP, keys)
        fresh: dict[MessageKey, tuple[Record[SendRequested], Completed]] = {}
        unusable: list[Unusable] = []
        results: Counter[tuple[str, str]] = Counter()
        for key, record in zip(keys, records, strict=True):
            result = "duplicate"
            completed, is_first = complete(record.event, record.at), key not in standing and key not in fresh
            if isinstance(completed, Invalid):
                unusable.append(Unusable(record, record.event, completed, is_first=is_first))
                result = "invalid" if is_first else result
            elif is_first:
                fresh[key] = (record, completed)
                result = "accepted"
            results[record.event.origin.kind, result] += 1
        for (origin_kind, result), count in results.items():
            self._metrics.inc(Metric.REQUESTS, count, origin_kind=origin_kind, result=result)
        refusals = await refuse(connection, self._tagger, self._metrics, unusable, now)
        refused = [(refusals[one.step], self._put_aside(one)) for one in unusable if one.step in refusals]
        decided = await self._decide(connection, fresh, now)
        answers = {**standing, **decided}
        told = (answers[key] for key in dict.fromkeys(keys) if key in answers)
        return _told([*(record for pair in refused for record in pair), *told])

    async def _decide(
        self,
        connection: Connection,
        fresh: Mapping[MessageKey, tuple[Record[SendRequested], Completed]],
        now: datetime,
    ) -> dict[MessageKey, Outgoing]:
        if not fresh:
            return {}
        requests = [completed.request for _, completed in fresh.values()]
        around = await surroundings_of(connection, self._tagger, requests, self._believed)
        facts = {key: around.of(completed.request) for key, (_, completed) in fresh.items()}
        erased = await self._erased_before(connection, fresh, facts)
        decisions: list[Decision] = []
        for_whom: list[tuple[MessageKey, Iterable[Mark], datetime]] = []
        codes: dict[MessageKey, ReasonCode] = {}
        for key, (record, completed) in fresh.items():
            known, earlier = facts[key], erased.get(key)
            event = decide(completed, known, now) if earlier is None else refuse_erased(completed, earlier, now)
            if isinstance(event, SendRejected):
                codes[key] = event.reason.code
            prune_after = keep_until(completed.expires_at, now)
            decisions.append(_decision(key, CONSENT_STEP, event, record.trace, prune_after))
            # Also who is named without the phone: either one's erasure takes the message.
            whom = [contact.id_mark for contact in (known.contact, known.named) if contact is not None]
            marks = dict.fromkeys(whom) or marks_of_request(completed.request)
            for_whom.append((key, marks if earlier is None else (), prune_after))
        await erasures.order_late(connection, [(*key, earlier) for key, earlier in erased.items()], now)
        return await self._keep(connection, decisions, for_whom, codes)

    async def _erased_before(
        self,
        connection: Connection,
        fresh: Mapping[MessageKey, tuple[Record[SendRequested], Completed]],
        facts: Mapping[MessageKey, Facts],
    ) -> dict[MessageKey, erasures.Earlier]:
        """Requests that lay in Kafka when their person was erased, by whichever name they know them."""
        nobodys = {
            key: (*marks_of_request(completed.request), *phone_marks_of(completed.request))
            for key, (_, completed) in fresh.items()
            if facts[key].contact is None
        }
        asked = {mark for marks in nobodys.values() for mark in marks}
        if not asked:
            return {}
        known = await erasures.erasures_of(connection, self._tagger, asked)
        found = {key: erasures.erased_since(fresh[key][0].at, marks, known) for key, marks in nobodys.items()}
        return {key: earlier for key, earlier in found.items() if earlier is not None}

    async def _keep(
        self,
        connection: Connection,
        decisions: Sequence[Decision],
        for_whom: Sequence[tuple[MessageKey, Iterable[Mark], datetime]],
        codes: Mapping[MessageKey, ReasonCode],
    ) -> dict[MessageKey, Outgoing]:
        """Store decisions; where another replica was first, its decision is the answer."""
        step = decisions[0].step
        added = await store.add_decided(connection, self._tagger, decisions, for_whom)
        answers = {(one.workspace_id, one.message_id): one.outgoing for one in decisions}
        if late := answers.keys() - added:
            answers |= await decisions_of(connection, step, late)
        for code, count in Counter(codes[key] for key in codes if key in added).items():
            self._metrics.inc(Metric.REJECTED, count, service=Service.CONSENT, reason=code)
        return answers

    def _put_aside(self, one: Unusable) -> Outgoing:
        """The dead letter of a request that can be parsed and yet not be used; the stage makes those of the others."""
        self._metrics.inc(Metric.DEAD_LETTERS, topic=one.record.topic, error="invalid")
        return dead_letter(one.record, service=Service.CONSENT, error=f"invalid: {'; '.join(one.invalid.fields)}")

    async def on_unreadable(
        self, connection: Connection, unreadable: Sequence[Unreadable], readable: Sequence[Record[SendRequested]]
    ) -> Sequence[Outgoing]:
        """Tell of requests that can't be read, as far as their ids can and nothing was decided under them before, also
        by what of the batch can be read."""
        for _ in unreadable:
            self._metrics.inc(Metric.REQUESTS, origin_kind="unknown", result="invalid")
        found = [(told, entry) for entry in unreadable if (told := legible(entry.record)) is not None]
        if not found:
            return []
        keys = [(told.workspace_id, told.message_id) for told, _ in found]
        await keep_erasures_waiting(connection, {workspace for workspace, _ in keys})
        standing = await decisions_of(connection, CONSENT_STEP, keys)
        earlier = first_usable(readable, keys)
        unusable = []
        for key, (told, entry) in zip(keys, found, strict=True):
            offset = entry.record.offset
            is_first = key not in standing and earlier.get((key, entry.record.partition), offset) >= offset
            unusable.append(Unusable(entry.record, told, Invalid(entry.fields), is_first=is_first))
        refusals = await refuse(connection, self._tagger, self._metrics, unusable, datetime.now(UTC))
        return _told(refusals[one.step] for one in unusable if one.step in refusals)

    async def on_recalled(self, connection: Connection, records: Sequence[Record[SendRecalled]]) -> Sequence[Outgoing]:
        """Every recalled message is rejected; this is its second decision."""
        now = datetime.now(UTC)
        keys = [(record.event.workspace_id, record.event.message_id) for record in records]
        await keep_erasures_waiting(connection, {workspace for workspace, _ in keys})
        marks_of = [_marks_of_recalled(record.event) for record in records]
        known = await erasures.erasures_of(connection, self._tagger, {mark for marks in marks_of for mark in marks})
        answers = await decisions_of(connection, RECALL_STEP, keys)
        defaults = (await store.senders_of(connection, {workspace for workspace, _ in keys}, ())).defaults
        decisions: dict[MessageKey, Decision] = {}
        for_whom: list[tuple[MessageKey, Iterable[Mark], datetime]] = []
        for key, record, marks in zip(keys, records, marks_of, strict=True):
            if key in answers or key in decisions:
                continue
            recalled = record.event
            # Their erasure took the message while this lay in Kafka; all services were told.
            earlier = erasures.erased_since(record.at, marks, known)
            if earlier is not None:
                recalled = recalled.model_copy(update={"funded": redacted(recalled.funded, earlier.alias)})
            prune_after = keep_until(recalled.funded.expires_at, now)
            answer = answer_recall(recalled, defaults.get(recalled.workspace_id), now)
            decisions[key] = _decision(key, RECALL_STEP, answer, record.trace, prune_after)
            for_whom.append((key, marks if earlier is None else (), prune_after))
        if decisions:
            codes = dict.fromkeys(decisions, ReasonCode.CUSTOMER_IS_NOT_OPTED_IN)
            answers |= await self._keep(connection, list(decisions.values()), for_whom, codes)
        return _told(answers[key] for key in dict.fromkeys(keys))

    async def on_message(
        self, connection: Connection, records: Sequence[Record[MessageReceived]]
    ) -> Sequence[Outgoing]:
        worded = {record.event.workspace_id for record in records if record.event.text or record.event.payload}
        owns = await keyword_store.owns_of(connection, filter(None, worded)) if worded else {}
        changes = [heard(one.event, owns.get(one.event.workspace_id or "", NOTHING_OWN)) for one in records]
        arrived = {one.event.wamid: one.event.observed_at or one.at for one in records}
        return await self._change(connection, [change for change in changes if change is not None], arrived)

    async def on_customer(
        self, connection: Connection, records: Sequence[Record[CustomerUpdated]]
    ) -> Sequence[Outgoing]:
        # Without a workspace it is of a number that nobody had registered, and who signed it may be anybody:
        # webhook-ingest tells it again once it knows whose the number is, and that this app may speak for it.
        events = [(one.event.workspace_id, one.event) for one in records if one.event.workspace_id is not None]
        changes = [change for workspace, event in events if (change := told(event, workspace)) is not None]
        arrived = {str(one.event.event_id): one.event.observed_at or one.at for one in records}
        published = await self._change(connection, changes, arrived)
        if asked := [(workspace, event) for workspace, event in events if event.action in _ASKED_BY_SHOPS]:
            await erasures.note_requests(connection, self._tagger, asked)
        return published

    async def on_stopped(
        self, connection: Connection, records: Sequence[Record[StatusUpdated | SendRejected | None]]
    ) -> Sequence[Outgoing]:
        """Failures by error 131050: the person used WhatsApp's own stop control."""
        stops = {
            (event.workspace_id, event.message_id): event
            for record in records
            if (event := record.event) is not None and event.workspace_id and event.message_id
        }
        if not stops:
            return []
        consented = await decisions_of(connection, CONSENT_STEP, stops)
        changes = [
            stopped(SendConsented.model_validate_json(record.value), stops[key])
            for key, record in consented.items()
            if record.topic == Topic.SEND_CONSENTED and record.value
        ]
        arrived = {str(event.event_id): _observed(event) for event in stops.values()}
        return await self._change(connection, changes, arrived)

    async def _change(
        self, connection: Connection, changes: Sequence[Change], arrived: Mapping[str, datetime]
    ) -> list[Outgoing]:
        """Apply changes to contacts and tell the state of all that they touch; `arrived`: when, by the cause.

        Most messages change nothing: only those that do wait for the workspace's lock.
        """
        if not changes:
            return []
        now = datetime.now(UTC)
        links = [change for change in changes if change.origin == Origin.LINK]
        if len(links) == len(changes) and not await self._would_link(connection, links, now):
            return []
        await store.lock_workspaces(connection, {change.workspace_id for change in changes})
        book = await store.open_book(connection, self._tagger, changes, now)
        for change in changes:
            book.apply(change)
        await store.save_book(connection, self._tagger, book)
        return with_arrivals(told_by(book), book.history.values(), arrived)

    async def _would_link(self, connection: Connection, links: Sequence[Change], now: datetime) -> bool:
        book = await store.open_book(connection, self._tagger, links, now)
        for change in links:
            book.apply(change)
        return bool(book.changed() or book.changed_memories())

    async def on_sender(
        self, connection: Connection, records: Sequence[Record[SenderUpdated | None]]
    ) -> Sequence[Outgoing]:
        await store.save_senders(connection, _latest_states(records))
        return []

    async def on_template(
        self, connection: Connection, records: Sequence[Record[TemplateUpdated | None]]
    ) -> Sequence[Outgoing]:
        await store.save_templates(connection, _latest_states(records))
        return []


def told_by(book: Book) -> list[Outgoing]:
    """The records that tell what a batch did: erasures (a last state, then the tombstone), then whole states."""
    records: list[Outgoing] = []
    for erased in book.erased.values():
        records.append(outgoing(erased.to_event(), source=Service.CONSENT))
        if erased.key not in book.contacts:
            records.append(tombstone(Topic.CONTACT_UPDATED, contact_key(*erased.key)))
    return records + [outgoing(event, source=Service.CONSENT) for event in book.events()]


def with_arrivals(
    records: Iterable[Outgoing], history: Iterable[Entry], arrived: Mapping[str, datetime]
) -> list[Outgoing]:
    """The records, those of people who just opted out with the time their webhook came (header `received_at`): from
    it the dispatcher counts how long a STOP takes."""
    stops: dict[bytes, datetime] = {}
    for entry in history:
        if entry.said.own and entry.said.state == UNSUBSCRIBED and entry.cause in arrived:
            key, at = contact_key(*entry.key).encode(), arrived[entry.cause]
            stops[key] = min(at, stops.get(key, at))
    return [
        replace(one, headers=(*one.headers, ("received_at", stops[one.key].isoformat().encode())))
        if one.key in stops and one.value is not None
        else one
        for one in records
    ]


def _observed(event: StatusUpdated | SendRejected) -> datetime:
    return event.observed_at if isinstance(event, StatusUpdated) else event.occurred_at


def heard(event: MessageReceived, own: Own = NOTHING_OWN) -> Change | None:
    """What a person's message says of their consent; else only which phone and user id belong together."""
    person = _person_fields(event.phone, event.user_id, event.profile_name)
    if event.workspace_id is None or not (person.phone or person.user_id):
        return None
    keyword, source = judge(event, own)
    if keyword is None and not (person.phone and person.user_id):
        return None
    word = None
    if keyword is not None:
        state = UNSUBSCRIBED if keyword == Keyword.STOP else MarketingState.SUBSCRIBED
        word = Word(state, event.occurred_at, source, proof_of(event), own=True)
    return Change(
        workspace_id=event.workspace_id,
        cause=event.wamid,
        at=event.occurred_at,
        by="meta",
        origin=Origin.PERSON if word else Origin.LINK,
        fields=person,
        word=word,
        firm=word is not None,
    )


def _person_fields(wa_id: str | None, user_id: str | None, name: str | None = None) -> Fields:
    """A person as Meta names them."""
    phone = phone_of_wa_id(wa_id) if wa_id else None
    return Fields(phone=phone.e164 if phone else None, user_id=user_id, name=name)


def told(event: CustomerUpdated, workspace: str) -> Change | None:
    """What a shop, Meta's own stop control or a receipt tells of a person."""
    if event.action in ("stop", "resume"):
        return _preference(event, workspace)
    if event.action == "link":
        return _link(event, workspace)
    if event.contact_id is None or event.action == "data_request":
        return None
    state = event.marketing_state
    return Change(
        workspace_id=workspace,
        cause=str(event.event_id),
        at=event.occurred_at,
        by=event.source,
        origin=_ORIGINS.get(event.action, Origin.SYNC),
        contact_id=event.contact_id,
        fields=Fields(
            phone=event.phone,
            country_code=event.phone_country_code,
            calling_code=event.phone_calling_code,
            user_id=event.user_id,
            name=event.name,
            language=event.language,
            address_country=event.address_country,
        ),
        word=Word(state, event.occurred_at, event.source, event.detail) if state else None,
    )


def _link(event: CustomerUpdated, workspace: str) -> Change | None:
    """Which phone and user id belong together, by a receipt: as by a message that names both."""
    person = _person_fields(event.phone, event.user_id)
    if not (person.phone and person.user_id):
        return None
    return Change(
        workspace_id=workspace,
        cause=str(event.event_id),
        at=event.occurred_at,
        by=event.source,
        origin=Origin.LINK,
        fields=person,
        note="Meta's receipt of a message named both the phone number and the WhatsApp user id",
    )


def _preference(event: CustomerUpdated, workspace: str) -> Change | None:
    person = _person_fields(event.phone, event.user_id, event.name)
    if not (person.phone or person.user_id) and event.contact_id is None:
        return None
    state = UNSUBSCRIBED if event.action == "stop" else MarketingState.SUBSCRIBED
    return Change(
        workspace_id=workspace,
        cause=str(event.event_id),
        at=event.occurred_at,
        by=event.source,
        origin=Origin.PERSON,
        contact_id=event.contact_id,
        fields=person,
        word=Word(state, event.occurred_at, "user_preferences", event.detail, own=True),
        firm=True,
    )


def stopped(consented: SendConsented, event: StatusUpdated | SendRejected) -> Change:
    """The opt-out that an error 131050 tells of: of who has the number, or the user id, that the message went to. The
    contact that it was for may have another one by now."""
    return Change(
        workspace_id=consented.workspace_id,
        cause=str(event.event_id),
        at=event.occurred_at,
        by="meta",
        origin=Origin.PERSON,
        fields=Fields(phone=consented.resolved.phone, user_id=consented.resolved.user_id),
        word=Word(UNSUBSCRIBED, event.occurred_at, "error_131050", consented.message_id, own=True),
        firm=True,
        note=f"Meta's error 131050 to message {consented.message_id}",
    )


def parse_stopped(model: type[StatusUpdated] | type[SendRejected]) -> Parse[Any]:
    """Reads only the records that could name the reason: the others, nearly all, cost nothing."""

    def parse(record: Record[None]) -> StatusUpdated | SendRejected | None:
        if not record.value or _STOPPED not in record.value:
            return None
        event = model.model_validate_json(record.value)
        why = event.reason
        failed = isinstance(event, SendRejected) or event.status == Status.FAILED
        return event if failed and why and why.code == ReasonCode.RECIPIENT_STOPPED_MARKETING else None

    return parse


def _decision(
    key: MessageKey, step: str, event: SendConsented | SendRejected, trace: bytes | None, prune_after: datetime
) -> Decision:
    record = outgoing(event, source=Service.CONSENT, trace=trace)
    return Decision(*key, step, event.event_id, record, prune_after)


def _told(records: Iterable[Outgoing]) -> list[Outgoing]:
    # An erased person's decisions have no body any more and are not told again.
    return [record for record in records if record.value is not None]


def _latest_states(records: Sequence[Record[Any]]) -> dict[str, Any]:
    return {(record.key or b"").decode(errors="replace"): record.event for record in records}
