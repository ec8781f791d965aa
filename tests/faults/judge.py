"""The outside checker: `python tests/faults/judge.py FOLDER` judges a run by what it left behind (history.py), against
the invariants I1 to I15. It knows contract.md and the simulator's books, and nothing of Sendwhy's code."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facts import GOOD, INFERRED, UNKNOWN_OUTCOME, UNREADABLE, Facts, Key, clock, gather, seconds
from history import Checked, FaultBegan, History, Json, Planted, PublishBegan, PublishEnded, Recovered
from rules_flow import flow, same_event, silence, webhook
from rules_meta import consent, honest_count, once, pace, stop_seconds
from rules_money import money
from verdict import Finding, Verdict

Rule = tuple[str, str, Callable[[Facts, Finding], None], tuple[str, ...]]
# Which fields of a message differ between two reads of the same state.
ADDRESSES = frozenset({"url"})


def complete(facts: Facts, finding: Finding) -> None:
    """Each request that Kafka has got reached one outcome, or stands in the message API with cause, since and until."""
    _published(facts, finding)
    shown = messages_of(facts.history)
    for key, request in facts.requests.items():
        finding.count("requests")
        rejections = [one for one in facts.rejections.get(key, ()) if one.code != UNREADABLE]
        accepted = [one for one in facts.statuses.get(key, ()) if one.status == "accepted"]
        ids = [(one.event_id, one.code) for one in rejections]
        finding.expect(len(rejections) <= 1, "has more than one rejection", key, rejections=ids)
        finding.expect(len(accepted) <= 1, "has more than one accepted", key, ids=[one.event_id for one in accepted])
        if rejections or accepted:
            continue
        if facts.told(key):
            finding.violate("has receipts, but no accepted", key, statuses=sorted(facts.told(key)))
            continue
        _stands_waiting(facts, finding, key, shown.get(key), request.expires_at)


def _published(facts: Facts, finding: Finding) -> None:
    ended = {one.action: one for one in facts.history.of(PublishEnded)}
    for began in facts.history.of(PublishBegan):
        end = ended.get(began.action)
        if end is None or end.outcome != "acknowledged" or began.topic != "send.requested":
            continue
        finding.count("acknowledged publishes")
        place = (began.topic, -1 if end.partition is None else end.partition, -1 if end.offset is None else end.offset)
        found = facts.digests.get(place)
        finding.expect(
            found == began.value_sha256,
            "was acknowledged by Kafka, and is not in the topic",
            (began.workspace_id, began.message_id),
            partition=end.partition,
            offset=end.offset,
            acknowledged_at=end.at,
        )


def _stands_waiting(facts: Facts, finding: Finding, key: Key, shown: Json | None, expires_at: float | None) -> None:
    where = facts.requests[key].place
    if shown is None or shown["status"] != "waiting":
        status = None if shown is None else shown["status"]
        finding.violate("has no outcome and isn't shown as waiting", key, shown=status, request=where)
        return
    finding.count("waiting")
    waiting = shown.get("waiting") or {}
    until = seconds(waiting.get("until"))
    named = bool(waiting.get("cause")) and bool(waiting.get("since"))
    finding.expect(named, "waits without saying for what or since when", key, waiting=waiting)
    if until is not None:
        late = facts.ended > until + facts.history.run.bounds.clock
        finding.expect(not late, "still waits after its until", key, waiting=waiting, read_at=clock(facts.ended))
        beyond = expires_at is not None and until > expires_at + facts.history.run.bounds.clock
        finding.expect(not beyond, "waits beyond its expiry", key, waiting=waiting)


def messages_of(history: History) -> dict[Key, Json]:
    return {
        (workspace, one["message_id"]): one
        for workspace, items in history.api.get("messages", {}).items()
        for one in items
    }


def ladder(facts: Facts, finding: Finding) -> None:
    """The log shows for each message the status that the contract's reading rule gives."""
    for key, shown in messages_of(facts.history).items():
        if key not in facts.requests and key not in facts.statuses:
            continue
        expected = facts.standing(key)
        if expected is None or expected == "accepted":
            continue
        expected = "read" if expected == "played" else expected
        finding.count("messages shown")
        finding.expect(
            shown["status"] == expected,
            f"is shown as {shown['status']}, and stands as {expected}",
            key,
            told=sorted(facts.told(key)),
            rejected=[one.code for one in facts.rejections.get(key, ())] or None,
        )


def one_verdict(facts: Facts, finding: Finding) -> None:
    """Never rejected and taken by Meta, except for an unknown outcome that a late receipt resolves; no call begins once
    a rejection is out; and nobody gives a receipt up before its deadline."""
    slack = facts.history.run.bounds.clock
    _given_up(facts, finding, slack)
    finding.count("messages", len(facts.requests))
    for key, rejections in facts.rejections.items():
        told_at = min((one.at for one in rejections if one.code != UNREADABLE), default=float("inf"))
        late = [call.told() for call in facts.calls.get(key, ()) if call.at > told_at + slack]
        finding.expect(
            not late, "is called after its rejection", key, calls=late, rejections=[one.code for one in rejections]
        )
        codes = sorted({one.code for one in rejections} - {UNREADABLE, UNKNOWN_OUTCOME})
        if not codes:
            continue
        told = facts.told(key) & set(GOOD)
        taken = [call.told() for call in facts.calls.get(key, ()) if call.may_be_taken]
        finding.expect(not told, "was rejected, and Meta took it", key, codes=codes, statuses=sorted(told))
        finding.expect(not taken, "was rejected, and a call may have been taken", key, codes=codes, calls=taken)


def _given_up(facts: Facts, finding: Finding, slack: float) -> None:
    for key, told in facts.statuses.items():
        deadline = max((one.deadline for one in told if one.deadline is not None), default=None)
        for one in told:
            if one.code in INFERRED and deadline is not None:
                finding.count("receipts given up")
                is_due = one.at + slack >= deadline
                until = clock(deadline)
                finding.expect(
                    is_due, "its receipt was given up before its deadline", key, at=clock(one.at), until=until
                )


def cause_first(facts: Facts, finding: Finding) -> None:
    """No call without an earlier send.funded, no step of the way without the step before it, no receipt without a call
    and no accepted without one that may be taken."""
    slack = facts.history.run.bounds.clock
    for name, later, earlier in (
        ("send.consented", facts.consented, facts.requests),
        ("send.funded", facts.funded, facts.consented),
    ):
        for key, seen in later.items():
            finding.count(name)
            cause = earlier.get(key)
            is_first = cause is not None and cause.at <= seen.at + slack
            finding.expect(is_first, f"{name} without what leads to it", key, place=seen.place, at=clock(seen.at))
    for key, call in facts.all_calls():
        finding.count("calls")
        funded = facts.funded.get(key)
        is_first = funded is not None and funded.at <= call.at + slack
        finding.expect(is_first, "was called before it was funded", key, call=call.told())
    for call_without in facts.strays:
        finding.violate("a call without our callback data", call_without["to"], at=call_without["at"])
    for key, told in facts.statuses.items():
        finding.count("messages with statuses")
        has_call = any(call.may_be_taken for call in facts.calls.get(key, ()))
        finding.expect(has_call, "has statuses, and no call that may be taken", key, told=sorted(facts.told(key)))
        wamids = {one.wamid for one in told}
        finding.expect(len(wamids) == 1, "has statuses of several wamids", key, wamids=sorted(map(str, wamids)))
    for key in [*facts.rejections, *facts.statuses]:
        finding.expect(key in facts.requests or key not in facts.funded, "has an outcome, and no request", key)


def read_model(facts: Facts, finding: Finding) -> None:
    """A message-log rebuilt from the topics into an empty database shows the same."""
    for workspace, items in (facts.history.rebuilt or {}).get("messages", {}).items():
        rebuilt = {one["message_id"]: one for one in items}
        live = {one["message_id"]: one for one in facts.history.api.get("messages", {}).get(workspace, ())}
        for message_id in rebuilt.keys() | live.keys():
            finding.count("messages compared")
            differing = _differences(live.get(message_id), rebuilt.get(message_id))
            finding.expect(not differing, "differs when rebuilt", (workspace, message_id), live_and_rebuilt=differing)


def _differences(live: Json | None, rebuilt: Json | None) -> dict[str, list[Any]]:
    if live is None or rebuilt is None:
        return {"message": [live and live["status"], rebuilt and rebuilt["status"]]}
    names = (live.keys() | rebuilt.keys()) - ADDRESSES
    return {name: [live.get(name), rebuilt.get(name)] for name in sorted(names) if live.get(name) != rebuilt.get(name)}


def recovery(facts: Facts, finding: Finding) -> None:
    """After each fault and after healing, ready and without lag within the bound, by itself: the rig takes back its
    faults and no more."""
    for one in facts.history.of(Recovered):
        finding.count("recoveries")
        for what, took in (("ready", one.ready_seconds), ("lag 0", one.lag_zero_seconds)):
            in_time = took is not None and took <= one.bound_seconds
            told = "never" if took is None else f"after {took:.1f} s"
            finding.expect(in_time, f"{what} {told}, within {one.bound_seconds:.0f} s wanted", one.what, at=one.at)


# With each what it must have looked at to say anything.
RULES: tuple[Rule, ...] = (
    ("I1", "complete", complete, ("acknowledged publishes", "requests")),
    ("I2", "once", once, ("calls",)),
    ("I3", "money", money, ("entries", "charged messages")),
    ("I4", "webhook", webhook, ("answered 200", "statuses")),
    ("I5", "flow", flow, ("partitions", "planted records")),
    ("I6", "silence", silence, ("looks",)),
    ("I7", "same event", same_event, ("events",)),
    ("I8", "ladder", ladder, ("messages shown",)),
    ("I9", "one verdict", one_verdict, ("messages",)),
    ("I10", "cause first", cause_first, ("send.funded", "calls", "messages with statuses")),
    ("I11", "pace", pace, ("calls",)),
    ("I12", "consent", consent, ("STOPs",)),
    ("I13", "read model", read_model, ("messages compared",)),
    ("I14", "recovery", recovery, ("recoveries",)),
    ("I15", "honest count", honest_count, ("calls",)),
)


def judge(history: History) -> Verdict:
    facts = gather(history)
    findings = []
    for invariant, title, rule, wanted in RULES:
        finding = Finding(invariant, title, wanted)
        rule(facts, finding)
        for checked in history.of(Checked):
            if checked.invariant == invariant:
                finding.count(checked.what, checked.count)
                for told in checked.violations:
                    finding.violate(told, checked.what, at=checked.at)
        findings.append(finding)
    return Verdict(findings, figures(facts))


def figures(facts: Facts) -> Json:
    standing = Counter(facts.standing(key) or "waiting" for key in facts.requests)
    return {
        "messages": len(facts.requests),
        "calls": sum(map(len, facts.calls.values())),
        "webhooks": sum(len(records) for records in facts.raw.values()),
        "faults": len(facts.faults),
        "scenarios": dict(Counter(one.scenario for one in facts.faults)),
        "not injected": len(facts.history.of(FaultBegan)) - len(facts.faults),
        "planted": len(facts.history.of(Planted)),
        "outcomes": dict(standing),
        "stop_seconds": stop_seconds(facts),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    verdict = judge(History.read(folder))
    (folder / "verdict.json").write_text(json.dumps(verdict.to_json(), indent=1) + "\n")
    result = folder / "result.json"
    if result.exists():
        told = json.loads(result.read_bytes()) | {"verdict": verdict.to_json()}
        result.write_text(json.dumps(told, indent=1) + "\n")
    print(verdict.table())
    print(f"\nthe whole verdict: {folder / 'verdict.json'}")
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    sys.exit(main())
