"""I3: the ledger, as billing's API tells it, against what became of each message."""

from collections import defaultdict
from itertools import pairwise

from facts import DELIVERED, INFERRED, Facts, Key, read_json
from history import Json, TopUpBegan, TopUpEnded
from verdict import Finding

SIGNS = {"reserve": -1, "capture": 0, "release": 1, "refund": 1, "recapture": -1, "waive": 0}


def money(facts: Facts, finding: Finding) -> None:
    """Every prefix of the balance ≥ 0; balance = sum; each kind at most once a message; and at rest what was charged
    is what a receipt stands for."""
    entries_of: dict[Key, list[Json]] = defaultdict(list)
    for workspace, ledger in facts.history.api.get("ledger", {}).items():
        entries = sorted(ledger, key=lambda entry: entry["version"])
        _sums(finding, workspace, entries, facts.history.api.get("account", {}).get(workspace))
        _top_ups(facts, finding, workspace, entries)
        _told(facts, finding, workspace, entries)
        for entry in entries:
            if entry["message_id"] is not None:
                entries_of[workspace, entry["message_id"]].append(entry)
    for key, entries in entries_of.items():
        finding.count("charged messages")
        _kinds(finding, key, entries)
        _at_rest(facts, finding, key, {entry["kind"] for entry in entries})
    if facts.history.api.get("ledger"):
        for key, seen in facts.funded.items():
            finding.expect(key in entries_of, "was funded without a reservation", key, place=seen.place)


def _sums(finding: Finding, workspace: str, entries: list[Json], account: Json | None) -> None:
    balance = 0
    for entry in entries:
        finding.count("entries")
        balance += entry["amount"]
        told = {"version": entry["version"], "kind": entry["kind"], "message": entry["message_id"]}
        finding.expect(balance >= 0, f"the balance fell to {balance}", workspace, **told)
        finding.expect(balance == entry["balance_after"], f"balance_after is not the sum {balance}", workspace, **told)
    for one, other in pairwise(entries):
        finding.expect(
            other["version"] == one["version"] + 1, "an entry is missing or doubled", workspace, after=one["version"]
        )
    if account is not None:
        finding.expect(
            account["balance"] == balance,
            "the balance is not the sum of the ledger",
            workspace,
            account=account,
            sum=balance,
        )


def _top_ups(facts: Facts, finding: Finding, workspace: str, entries: list[Json]) -> None:
    """One credit for each key that was answered 2xx, and none without a key that was tried."""
    ended = {one.action: one.status or 0 for one in facts.history.of(TopUpEnded)}
    tried = [one for one in facts.history.of(TopUpBegan) if one.workspace_id == workspace]
    if not tried:
        return
    keys = {one.idempotency_key: one.credits for one in tried}
    answered = {one.idempotency_key for one in tried if 200 <= ended.get(one.action, 0) < 300}
    finding.count("top-ups", len(keys))
    booked = [entry["amount"] for entry in entries if entry["kind"] == "top_up"]
    told = {"answered": len(answered), "booked": len(booked), "tried": len(keys)}
    is_right = len(answered) <= len(booked) <= len(keys)
    finding.expect(is_right, "top-ups were lost or booked twice", workspace, **told)


def _told(facts: Facts, finding: Finding, workspace: str, entries: list[Json]) -> None:
    """The last state in account.updated is the ledger's."""
    last: Json | None = None
    for record in facts.history.records("account.updated"):
        event = read_json(record.value)
        if event is not None and event["workspace_id"] == workspace:
            finding.expect(event["balance"] >= 0, "account.updated tells a negative balance", workspace, event=event)
            last = event if last is None or event["version"] > last["version"] else last
    if "account.updated" in facts.history.topics and entries:
        told = None if last is None else (last["version"], last["balance"])
        expected = (entries[-1]["version"], entries[-1]["balance_after"])
        finding.expect(
            told == expected, "account.updated didn't tell the last entry", workspace, told=told, ledger=expected
        )


def _kinds(finding: Finding, key: Key, entries: list[Json]) -> None:
    kinds = [entry["kind"] for entry in entries]
    finding.expect(len(kinds) == len(set(kinds)), "a kind of entry is booked twice", key, kinds=kinds)
    finding.expect(kinds[0] == "reserve", "is booked before its reservation", key, kinds=kinds)
    price = -entries[0]["amount"]
    for entry in entries:
        expected = SIGNS.get(entry["kind"], 0) * price
        finding.expect(entry["amount"] == expected, f"{entry['kind']} of {entry['amount']}, price {price}", key)
    both = {"capture", "release"} <= set(kinds)
    finding.expect(not both, "is captured and released", key, kinds=kinds)


def _at_rest(facts: Facts, finding: Finding, key: Key, kinds: set[str]) -> None:
    told = facts.told(key)
    taken = len(kinds & {"reserve", "recapture"}) - len(kinds & {"release", "refund"})
    settled = "capture" in kinds or "recapture" in kinds
    failed = any(one.status == "failed" and one.code not in INFERRED for one in facts.statuses.get(key, ()))
    evidence = {"kinds": sorted(kinds), "told": sorted(told)}
    if told & set(DELIVERED) or ("sent" in told and not failed):
        fine = (taken == 1 and settled) or "waive" in kinds
        finding.expect(fine, "has a receipt, and is neither charged nor waived", key, **evidence)
    elif failed:
        finding.expect(taken == 0, "Meta failed it, and it is charged", key, **evidence)
    elif facts.rejections.get(key):
        # Given up, and taken after all, but not received yet: what was released stays so until the receipt.
        codes = [one.code for one in facts.rejections[key]]
        is_open = "accepted" in told and not settled
        finding.expect(
            taken == 0 or is_open, "is rejected, and its credits aren't released", key, codes=codes, **evidence
        )
    else:
        finding.expect(taken == 1 and not settled, "is open, and not just reserved", key, **evidence)
