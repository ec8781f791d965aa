"""I2, I11, I12, I15: what Meta's side saw, by the simulator's books."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from facts import UNKNOWN_OUTCOME, Call, Facts, Key, busiest, clock, digits, read_json
from history import Json, Said, Sender
from verdict import Finding

# Meta's own pair rate, and the burst that it forgives.
PAIR_SECONDS = 6.0
PAIR_BURST = 45
WINDOWS = (1.0, 5.0, 20.0)
BURST_SHARE = 0.05
# A busy machine delivers late what left in time: so many seconds' worth may arrive in one window.
JITTER_SECONDS = 1.0
# The dispatcher's patience begins before the simulator has read the call.
EARLIER_SECONDS = 0.5


def once(facts: Facts, finding: Finding) -> None:
    """No call after one that may have been taken."""
    for key, calls in facts.calls.items():
        finding.count("messages called")
        finding.count("calls", len(calls))
        first = next((index for index, call in enumerate(calls) if call.may_be_taken), None)
        is_last = first is None or first == len(calls) - 1
        finding.expect(is_last, "was called again after a possible acceptance", key, calls=[c.told() for c in calls])


def pace(facts: Facts, finding: Finding) -> None:
    """Never above a number's messages per second, one message per 6 s to one person (after a burst of 45), and the
    messaging limit of the portfolio. Not judged while the way to Meta was hit: what was held up arrives at once."""
    senders = {one.sender_id: one for one in facts.history.of(Sender)}
    calls: dict[str, list[Call]] = defaultdict(list)
    people: dict[str, set[str]] = defaultdict(set)
    for _, call in facts.all_calls():
        calls[call.sender_id].append(call)
        sender = senders.get(call.sender_id)
        if sender and call.may_be_taken and call.is_template and call.to and call.to not in facts.heard:
            people[sender.portfolio_id].add(call.to)
    for sender_id, sender in senders.items():
        steady = [call for call in calls.get(sender_id, ()) if not _way_is_hit(facts, call.at)]
        finding.count("calls", len(steady))
        _throughput(finding, sender, [call.at for call in steady])
        _pairs(finding, sender_id, steady)
    limits = {one.portfolio_id: one.messaging_limit for one in senders.values() if one.messaging_limit is not None}
    for portfolio, limit in limits.items():
        finding.count("people", len(people[portfolio]))
        reached = len(people[portfolio])
        finding.expect(reached <= limit, f"reached {reached} people, {limit} may be in 24 h", portfolio)


def _way_is_hit(facts: Facts, at: float) -> bool:
    return any("meta" in one.target for one in facts.faults_at(at - max(WINDOWS), at + JITTER_SECONDS))


def _throughput(finding: Finding, sender: Sender, times: list[float]) -> None:
    for window in WINDOWS:
        most, at = busiest(times, window)
        allowed = sender.messages_per_second * (window + JITTER_SECONDS) * (1 + BURST_SHARE) + 1
        finding.expect(
            most <= allowed,
            f"{most} calls in {window:.0f} s, at {sender.messages_per_second} a second",
            sender.sender_id,
            since=clock(at),
        )


def _pairs(finding: Finding, sender_id: str, calls: list[Call]) -> None:
    by_person: dict[str, list[float]] = defaultdict(list)
    for call in calls:
        if call.to and call.may_be_taken:
            by_person[call.to].append(call.at)
    for person, times in by_person.items():
        owed, last = 0.0, 0.0
        for at in sorted(times):
            owed = max(0.0, owed - (at - last) / PAIR_SECONDS) + 1
            last = at
            if owed > PAIR_BURST + 1 + JITTER_SECONDS / PAIR_SECONDS:
                finding.violate("too many messages to one person", f"{sender_id} → …{person[-4:]}", at=clock(at))
                break


@dataclass(frozen=True, slots=True)
class Stop:
    """A person's STOP. `at`: when its webhook was answered 200; `calls`: marketing to that person behind it, until they
    said START again."""

    who: tuple[str, str]
    at: float
    is_last_word: bool
    calls: list[tuple[Key, Call]]


def stops(facts: Facts) -> Iterator[Stop]:
    """Those whose webhook was taken."""
    words: dict[tuple[str, str], list[Said]] = defaultdict(list)
    for said in facts.history.of(Said):
        words[said.workspace_id, said.contact_id].append(said)
    answered = _answered_at(facts, {one.wamid for each in words.values() for one in each if one.wamid})
    marketing: dict[tuple[str, str], list[tuple[Key, Call]]] = defaultdict(list)
    for key, call in facts.all_calls():
        request = facts.requests.get(key)
        if request is not None and request.purpose == "marketing" and call.to:
            marketing[key[0], call.to].append((key, call))
    for who, told in words.items():
        own = [one for one in told if not one.repeat]
        for index, said in enumerate(own):
            at = _heard(facts, said, answered)
            if said.word != "stop" or at is None:
                continue
            again = next((one.when.timestamp() for one in own[index + 1 :] if one.word == "start"), float("inf"))
            calls = marketing.get((who[0], digits(said.phone)), ())
            yield Stop(who, at, said is own[-1], [(key, call) for key, call in calls if at < call.at < again])


def stop_seconds(facts: Facts) -> list[float]:
    """Of each STOP, from its 200 to the last marketing call; 0 where none followed. Ascending."""
    return sorted(max((round(call.at - one.at, 2) for _, call in one.calls), default=0.0) for one in stops(facts))


def consent(facts: Facts, finding: Finding) -> None:
    """No marketing call later than the bound after the 200 to the STOP's webhook; no repeated old START subscribes."""
    states = _contact_states(facts)
    bounds = facts.history.run.bounds
    for one in stops(facts):
        finding.count("STOPs")
        for key, call in one.calls:
            calm = max(one.at, facts.calm_since(call.at)) + bounds.stop_calm
            is_late = call.at > min(one.at + bounds.stop, calm)
            what = f"a marketing call {call.at - one.at:.1f} s after the STOP's 200"
            finding.expect(not is_late, what, key, stop_at=clock(one.at))
        if one.is_last_word:
            finding.count("last words")
            state = states.get(one.who)
            is_kept = state is not None and state["marketing_state"] != "SUBSCRIBED"
            finding.expect(is_kept, "is subscribed, though the person's last word is STOP", one.who, state=state)


def _contact_states(facts: Facts) -> dict[tuple[str, str], Json]:
    states: dict[tuple[str, str], Json] = {}
    for record in facts.history.records("contact.updated"):
        event = read_json(record.value)
        if event is None:
            continue
        key = (event["workspace_id"], event["contact_id"])
        if key not in states or event["version"] >= states[key]["version"]:
            states[key] = {name: event[name] for name in ("version", "marketing_state", "since", "source")}
    return states


def _answered_at(facts: Facts, wamids: set[str]) -> dict[str, float]:
    """When the webhook that carries a person's message was first answered 200."""
    found: dict[str, float] = {}
    by_digest = {one.sha256: one.at for one in reversed(facts.deliveries) if one.status == 200}
    for webhook in facts.history.webhooks:
        for wamid in _inbound_wamids(webhook.get("body")) & wamids:
            times = [by_digest[one["sha256"]] for one in webhook["tries"] if one["sha256"] in by_digest]
            if times:
                found[wamid] = min([*times, found.get(wamid, times[0])])
    return found


def _inbound_wamids(body: object) -> set[str]:
    if not isinstance(body, dict):
        return set()
    return {
        message["id"]
        for entry in body.get("entry", ())
        for change in entry.get("changes", ())
        if isinstance(change.get("value"), dict)
        for message in change["value"].get("messages", ())
        if isinstance(message, dict) and isinstance(message.get("id"), str)
    }


def _heard(facts: Facts, said: Said, answered: dict[str, float]) -> float | None:
    if said.wamid in answered:
        return answered[said.wamid or ""]
    times = [one.at for one in facts.deliveries if said.sha256 and one.sha256 == said.sha256 and one.status == 200]
    return min(times, default=None)


def honest_count(facts: Facts, finding: Finding) -> None:
    """Each unknown outcome has a call that nobody could know of: its answer got lost or said nothing, or a fault hit
    the dispatcher, its database or its way to Meta while it was out."""
    bounds = facts.history.run.bounds
    finding.count("calls", sum(map(len, facts.calls.values())))
    for key, rejections in facts.rejections.items():
        for one in rejections:
            if one.code != UNKNOWN_OUTCOME:
                continue
            finding.count("unknown outcomes")
            calls = facts.calls.get(key, [])
            if any(_says_nothing(call, bounds.call_timeout - EARLIER_SECONDS) for call in calls):
                continue
            began = one.called_at or one.at - bounds.unknown_outcome
            # The one call that this is about is marked before it starts, and what it came to is noted after it.
            since, until = began - bounds.clock, began + bounds.call_timeout + bounds.clock
            finding.expect(
                bool(facts.faults_at(since, until, hiding=True)),
                "its outcome is called unknown, and nothing was in the way",
                key,
                called_at=one.called_at and clock(one.called_at),
                calls=[call.told() for call in calls],
            )


def _says_nothing(call: Call, in_time: float) -> bool:
    """Neither an acceptance nor a refusal came back, or too late: the simulator may be starved too."""
    if not call.whole or call.answered_at is None or call.answered_at - call.at > in_time:
        return True
    return not call.refused and not (call.http_status == 200 and call.wamid)
