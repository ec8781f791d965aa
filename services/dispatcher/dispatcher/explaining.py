"""What we know of a message beside Meta's refusal of it: the evidence that our own refusal for the same cause gives.
Few are refused so, and only for them anything is looked up."""

from dataclasses import replace

from sendwhy.events import Evidence
from sendwhy.postgres import Connection
from sendwhy.reasons import ReasonCode

from dispatcher import facts_store, store
from dispatcher.answers import OUTSIDE_WINDOW, NotTaken, Outcome
from dispatcher.decide import Message, names_of, nearest_names, not_found, window_evidence
from dispatcher.facts import window_of
from dispatcher.templates import expected_names, given_names
from dispatcher.windows import spelled_of

NO_SUCH_TEMPLATE = 132001


async def explained(connection: Connection, message: Message, outcome: Outcome | None) -> Outcome | None:
    """The outcome, with that evidence where Meta refused the message for good; Meta's own words stand."""
    if not isinstance(outcome, NotTaken) or outcome.waiting_for is not None or outcome.reason.meta is None:
        return outcome
    if outcome.reason.code is ReasonCode.TEMPLATE_PARAMETERS_MISMATCH:
        known = await _of_parameters(connection, message)
    else:
        known = await _known(connection, message, outcome.reason.meta.code)
    if not known:
        return outcome
    why = outcome.reason.model_copy(update={"evidence": {**known, **outcome.reason.evidence}})
    return replace(outcome, reason=why)


async def _known(connection: Connection, message: Message, code: int | None) -> Evidence:
    if code not in (OUTSIDE_WINDOW, NO_SUCH_TEMPLATE):
        return {}
    row = (await store.senders(connection, [message.sender_id])).get(message.sender_id)
    if row is None:
        return {}
    if code == OUTSIDE_WINDOW:
        found = await facts_store.known(
            connection, row.sender, addresses=[message.address], contact_ids=names_of(message)
        )
        window = window_of(message, found, spelled_of(message.funded.resolved))
        return window_evidence(window.opened_at if window else None, window.free_entry_at if window else None)
    wanted = message.template
    if wanted is None:
        return {}
    names = await store.template_names(connection, row.sender.waba_id)
    return not_found(wanted, nearest_names(wanted, names), row.sender.templates_synced_at)


async def _of_parameters(connection: Connection, message: Message) -> Evidence:
    """What the template takes, as far as is known, beside what the call gave: our own gate found nothing wrong, so
    Meta's template may have changed since it was read."""
    wanted = message.template
    row = (await store.senders(connection, [message.sender_id])).get(message.sender_id)
    if wanted is None or row is None:
        return {}
    named = await store.templates_named(connection, row.sender.waba_id, [wanted.name])
    known = named.get((wanted.name, wanted.language.code))
    expected = expected_names(known.template.components) if known else None
    return {"template": wanted.name, "expected": expected or None, "given": given_names(wanted.components) or None}  # type: ignore[dict-item]
