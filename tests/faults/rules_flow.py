"""I4 to I7: what came in is there, moves on, is told once and tells no secret."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from facts import RECEIPTS, UNREADABLE, DeadLetter, Facts, Place, digits, read_json, sha256
from history import Canary, Contact, HttpEnded, Json, Planted, Sender
from verdict import Finding

RAW = "webhook.received"
UNSIGNED = ("unsigned", "wrong-signature")
# What a repeat may say otherwise: when it was seen.
TIMES = frozenset({"event_id", "occurred_at", "observed_at"})
_DIGITS = re.compile(r"\d{8,}")
_SPELLING = re.compile(r"(?<=\d)[ ().\-\u2011]{1,2}(?=\d)")


# --- I4 ---


def webhook(facts: Facts, finding: Finding) -> None:
    """Every POST answered 200 is on webhook.received byte for byte, and each of its elements was told or put aside;
    what was not signed was neither answered 200 nor kept."""
    signed = {one.sha256 for one in facts.deliveries if one.what not in UNSIGNED}
    for one in facts.deliveries:
        finding.count("POSTs")
        if one.what in UNSIGNED and one.sha256 not in signed:
            kept = one.sha256 in facts.raw
            finding.expect(one.status != 200 and not kept, "was taken unsigned", one.sha256[:16], status=one.status)
        elif one.status == 200:
            finding.count("answered 200")
            finding.expect(one.sha256 in facts.raw, "was answered 200, and is not in Kafka", one.sha256[:16], at=one.at)
    _elements(facts, finding)


def _elements(facts: Facts, finding: Finding) -> None:
    numbers = {one.sender_id for one in facts.history.of(Sender)}
    aside = {letter.of for letter in facts.dead}
    for record in facts.history.records(RAW):
        place = (record.topic, record.partition, record.offset)
        body = read_json(record.value)
        if place in aside or record.header("source") != b"meta":
            continue
        if body is None:
            finding.violate("can't be read, and was not put aside", place)
            continue
        for number, kind, element in _parts(body):
            if numbers and number not in numbers:
                continue
            wamid, status = element.get("id"), element.get("status")
            if kind == "statuses" and status not in (*RECEIPTS, "failed"):
                continue
            finding.count(kind)
            told = status in facts.by_wamid.get(str(wamid), ()) if kind == "statuses" else wamid in facts.inbound
            finding.expect(told, f"an element of {kind} was never told", wamid, status=status, place=place)


def _parts(body: Json) -> Iterator[tuple[str, str, Json]]:
    """(number, array, element) of the arrays that are told one by one."""
    for entry in body.get("entry") or ():
        for change in _objects(entry.get("changes") if isinstance(entry, dict) else ()):
            value = change.get("value")
            if not isinstance(value, dict):
                continue
            number = str((value.get("metadata") or {}).get("phone_number_id"))
            for kind in ("statuses", "messages"):
                yield from ((number, kind, each) for each in _objects(value.get(kind)))


def _objects(value: Any) -> Iterator[Json]:
    return (each for each in value if isinstance(each, dict)) if isinstance(value, list) else iter(())


# --- I5 ---


def flow(facts: Facts, finding: Finding) -> None:
    """Lag 0 on every partition; each planted bad record is in dead.letters with its bytes, place and error; nothing
    else is."""
    for lag in facts.history.lags or ():
        finding.count("partitions")
        where = f"{lag.group} {lag.topic}/{lag.partition}"
        finding.expect(lag.lag == 0, f"lag {lag.lag}", where, committed=lag.committed, end=lag.end)
    places = _planted_places(facts)
    letters: dict[Place, list[DeadLetter]] = defaultdict(list)
    for letter in facts.dead:
        letters[letter.of].append(letter)
    for planted in facts.history.of(Planted):
        # What Kafka didn't take is nowhere.
        for place in places[planted.value_sha256]:
            finding.count("planted records")
            found = {(letter.service, letter.value) for letter in letters.get(place, ())}
            what = f"{len(found)} of {planted.dead_letters} dead letters"
            finding.expect(len(found) >= planted.dead_letters, what, planted.why, place=place)
    known = {place for each in places.values() for place in each}
    for place, found_there in letters.items():
        finding.count("dead letters", len(found_there))
        finding.expect(place in known, "is in dead.letters, and nobody planted it", place, error=found_there[0].error)
        for letter in found_there:
            _whole(facts, finding, letter)


def _planted_places(facts: Facts) -> dict[str, set[Place]]:
    """By digest, where the planted records stand: as their publisher knows, or found by their bytes."""
    places: dict[str, set[Place]] = defaultdict(set)
    by_topic: dict[str, set[str]] = defaultdict(set)
    for planted in facts.history.of(Planted):
        by_topic[planted.topic].add(planted.value_sha256)
    for topic, digests in by_topic.items():
        for record in facts.history.records(topic):
            if (digest := sha256(record.value)) in digests:
                places[digest].add((topic, record.partition, record.offset))
    return places


def _whole(facts: Facts, finding: Finding, letter: DeadLetter) -> None:
    finding.expect(bool(letter.error) and bool(letter.service), "a dead letter without error or service", letter.of)
    is_same = sha256(letter.value) == facts.digests.get(letter.of)
    if letter.of[0] == RAW and not is_same:
        # One element of a delivery: as a delivery of its own, or its bytes.
        finding.expect(bool(letter.value), "a dead letter without bytes", letter.of, at=letter.place)
        return
    finding.expect(is_same, "a dead letter with other bytes", letter.of, at=letter.place, size=len(letter.value))


# --- I6 ---


def silence(facts: Facts, finding: Finding) -> None:
    """No canary in a log, metric, error body or dead letter's error; no full phone of the workload, however spelled."""
    canaries = facts.history.of(Canary)
    phones = {digits(one.phone) for one in facts.history.of(Contact)}
    phones |= {digits(one.value) for one in canaries if one.name.startswith("phone")}
    phones = {phone for phone in phones if len(phone) >= 8}
    secrets = [one for one in canaries if not one.name.startswith("phone")]
    for name, text in _texts(facts):
        finding.count("looks", len(secrets) + len(phones))
        for canary in secrets:
            at = text.find(canary.value)
            finding.expect(at < 0, f"{canary.name} is told", name, at=at)
        for phone in phones & set(_runs(text, {len(phone) for phone in phones})):
            finding.violate("a full phone number is told", name, phone=f"…{phone[-4:]}")


def _texts(facts: Facts) -> Iterator[tuple[str, str]]:
    yield from facts.history.texts.items()
    for one in facts.history.of(HttpEnded):
        if one.body:
            yield f"the answer to {one.action}", one.body
    for letter in facts.dead:
        yield f"the error of dead letter {letter.place}", letter.error


def _runs(text: str, lengths: set[int]) -> Iterator[str]:
    """Every run of digits of these lengths, with what people put between digits taken out."""
    for run in set(_DIGITS.findall(text)) | set(_DIGITS.findall(_SPELLING.sub("", text))):
        for length in lengths:
            for start in range(len(run) - length + 1):
                yield run[start : start + length]


# --- I7 ---


def same_event(facts: Facts, finding: Finding) -> None:
    """One event_id has one content, everywhere and for ever; and one thing that happened has one event_id."""
    contents: dict[str, tuple[str, bytes]] = {}
    ids: dict[bytes, str] = {}
    for topic in facts.history.topics:
        if topic in ("send.requested", "dead.letters", RAW, "webhook.refused"):
            continue
        for record in facts.history.records(topic):
            event = read_json(record.value)
            if event is None or "event_id" not in event or sha256(record.value) in facts.planted:
                continue
            finding.count("events")
            event_id = event["event_id"]
            place = (record.partition, record.offset)
            first, content = contents.setdefault(event_id, (topic, _digest(record.value or b"")))
            finding.expect(first == topic, f"its event_id is also in {first}", f"{topic} {event_id}", place=place)
            is_same = first != topic or content == _digest(record.value or b"")
            finding.expect(is_same, "one event_id, another content", f"{topic} {event_id}", place=place)
            for name in _names(topic, event):
                known = ids.setdefault(_digest(json.dumps(name).encode()), event_id)
                finding.expect(known == event_id, "one thing, another event_id", name[:4], ids=[known, event_id])


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=12).digest()


def _names(topic: str, event: Json) -> Iterable[tuple[str, ...]]:
    """What an event is about, so that a repeat has the same name; none where that can't be told from outside."""
    if topic in ("send.consented", "send.funded"):
        request = event["request"]
        return [(topic, request["workspace_id"], request["message_id"])]
    if topic == "send.rejected":
        if event["reason"]["code"] == UNREADABLE:
            # It leaves the id free: each broken request is told of its own.
            return ()
        return [(topic, event["workspace_id"], event["message_id"], event["service"], event["reason"]["code"])]
    if topic in ("status.updated", "message.received"):
        return [(topic, _content(event))]
    if topic == "contact.updated":
        return [(topic, event["workspace_id"], event["contact_id"], str(event["version"]))]
    if topic == "account.updated":
        return [(topic, event["workspace_id"], str(event["version"]))]
    return ()


def _content(event: Json) -> str:
    return json.dumps({name: value for name, value in event.items() if name not in TIMES}, sort_keys=True)
