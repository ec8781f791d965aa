"""What a set of answers makes of a check: tables."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from message_log import checks, kafka_probe, workspace_checks
from message_log.checks import (
    Answered,
    Group,
    InstallationFacts,
    KafkaFacts,
    OwnFacts,
    Result,
    ServiceFacts,
    in_order,
    in_short,
    installation_checks,
    worst,
)
from message_log.language import speaking
from message_log.told import Told, with_times
from message_log.workspace_checks import SenderFacts, StoredFacts, WorkspaceFacts
from page_texts import PSEUDO, pseudo_language
from sendwhy.reasons import Service
from sendwhy.settings import KafkaSettings
from sendwhy.topics import TOPICS, Topic

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
OK, WARNING, FAILED, UNASKED = Result.OK, Result.WARNING, Result.FAILED, Result.UNASKED
UP, DOWN = Answered(200), Answered(fault="ConnectError")
ALL_TOPICS = frozenset(str(topic) for topic in TOPICS)


def group(waiting: int) -> Group:
    return Group("consent", "send.requested", waiting)


def kafka(**told: Any) -> KafkaFacts:
    groups = [Group(service, "send.requested", 0) for service in Service]
    return replace(KafkaFacts(NOW, 0.012, 1, topics=ALL_TOPICS, groups=groups), **told)


def service(**told: Any) -> ServiceFacts:
    return replace(ServiceFacts(Service.CONSENT, NOW, live=UP, ready=UP, clock_ahead=0.0), **told)


def own(**told: Any) -> OwnFacts:
    return replace(OwnFacts(NOW, database_clock_ahead=0.0), **told)


NOT_READY = Answered(503, "Not ready: database")
CASES: list[tuple[str, Callable[[], checks.Check], Result, str]] = [
    ("kafka", lambda: checks.kafka_checks(kafka())[0], OK, "1 broker"),
    ("kafka gone", lambda: checks.kafka_checks(KafkaFacts(NOW, fault="gone"))[0], FAILED, "gone"),
    ("topics unknown", lambda: checks.kafka_checks(KafkaFacts(NOW, fault="gone"))[1], UNASKED, "could not be asked"),
    ("topics", lambda: checks.kafka_checks(kafka())[1], OK, f"{len(TOPICS)} of {len(TOPICS)}"),
    (
        "topic missing",
        lambda: checks.kafka_checks(kafka(topics=ALL_TOPICS - {"send.held"}))[1],
        FAILED,
        "missing: send.held",
    ),
    ("alive", lambda: checks.alive(service()), OK, "its consumers move"),
    ("down", lambda: checks.alive(service(live=DOWN, ready=DOWN)), FAILED, "ConnectError"),
    (
        "stands still",
        lambda: checks.alive(service(live=Answered(503, "Consumers stand still: x"))),
        FAILED,
        "stand still: x",
    ),
    ("no address", lambda: checks.alive(service(has_address=False)), UNASKED, "SENDWHY_CONSENT_URL is not set"),
    (
        "no kafka there",
        lambda: checks.alive(service(ready=Answered(503, "Not ready: kafka"))),
        FAILED,
        "can’t reach Kafka",
    ),
    ("database", lambda: checks.database(service()), OK, "answered"),
    ("no database", lambda: checks.database(service(ready=NOT_READY)), FAILED, "can’t reach its database"),
    ("database, no kafka", lambda: checks.database(service(ready=Answered(503, "Not ready: kafka"))), OK, "answered"),
    ("database, service down", lambda: checks.database(service(ready=DOWN)), UNASKED, "consent could not be asked"),
    ("database, something else", lambda: checks.database(service(ready=Answered(500, ""))), UNASKED, "500"),
    ("own database", lambda: checks.own_database(own()), OK, "answered"),
    ("own database down", lambda: checks.own_database(own(database_fault="no")), FAILED, "no"),
    (
        "lag",
        lambda: checks.lag(Service.CONSENT, kafka(groups=[group(7)])),
        OK,
        "7 records wait in 1 topic, 7 of them in send",
    ),
    ("much lag", lambda: checks.lag(Service.CONSENT, kafka(groups=[group(5_001)])), WARNING, "5,001 records"),
    ("no group", lambda: checks.lag(Service.CONSENT, kafka(groups=[])), UNASKED, "no consumer group"),
    ("lag not told", lambda: checks.lag(Service.CONSENT, kafka(groups=[], lag_fault="slow")), UNASKED, "slow"),
    ("lag, kafka gone", lambda: checks.lag(Service.CONSENT, KafkaFacts(NOW, fault="gone")), UNASKED, "Kafka could not"),
    ("fresh", lambda: checks.projection(own(behind_seconds=15)), OK, "behind"),
    ("behind", lambda: checks.projection(own(behind_seconds=16)), WARNING, "16.0 s behind"),
    ("far behind", lambda: checks.projection(own(behind_seconds=600)), FAILED, "10 min behind"),
    ("clocks", lambda: checks.clocks(own(), [service(clock_ahead=-2.9)]), OK, "2 clocks within 3 s"),
    ("a clock ahead", lambda: checks.clocks(own(), [service(clock_ahead=8)]), WARNING, "consent is 8.0 s ahead of"),
    ("a clock behind", lambda: checks.clocks(own(database_clock_ahead=-40), []), FAILED, "database is 40.0 s behind"),
    (
        "no clock",
        lambda: checks.clocks(own(database_clock_ahead=None), [service(clock_ahead=None)]),
        UNASKED,
        "no clock",
    ),
]


@pytest.mark.parametrize(("name", "make", "result", "words"), CASES, ids=[case[0] for case in CASES])
def test_what_the_installations_answers_say(
    name: str, make: Callable[[], checks.Check], result: Result, words: str
) -> None:
    check = make()
    assert (check.result, words in check.seen) == (result, True), check.seen
    assert check.why.endswith(".")
    assert check.at == NOW
    if result in (WARNING, FAILED):
        assert check.remedy


def test_others_than_the_installations_admins_get_one_plain_word() -> None:
    facts = InstallationFacts(KafkaFacts(NOW, fault="kafka-3.internal:9092 is gone"), own(), [service(live=DOWN)])
    found = installation_checks(facts)
    short = in_short(found, NOW)
    assert (short.result, short.command, short.link) == (FAILED, None, None)
    assert not any(word in short.model_dump_json() for word in ("internal", "9092", "consent", "SENDWHY_", "Connect"))
    fine = InstallationFacts(kafka(), own(), [service()])
    assert in_short(installation_checks(fine), NOW).remedy is None


def test_the_worst_comes_first_and_stands_for_all() -> None:
    found = [make() for _, make, *_ in CASES]
    assert worst(found) is FAILED
    assert worst([]) is OK
    assert [check.result for check in in_order(found)] == sorted(
        (check.result for check in found), key=[FAILED, WARNING, UNASKED, OK].index
    )


SENDER: dict[str, Any] = {"sender_id": "15550100", "display_phone_number": None, "waba_id": "300"}
APP = {"app_id": "400", "name": "Ours", "override_url": None}
VALID = {"token": "valid", "app_id": "400", "subscribed": True, "apps": [APP], "asked_at": NOW, "error": None}
REFUSED = VALID | {"token": "refused", "subscribed": None, "apps": [], "error": "Meta refused: Expired (code 190)"}
SYNC: dict[str, Any] = {
    "synced_at": NOW - timedelta(minutes=5),
    "failed": None,
    "last": {"templates": 3, "changes": [], "more": 0, "changed_at": None, "incomplete": None},
}
HOLD = {"cause": {"detail": "Expired (code 190)"}, "since": NOW, "until": NOW}
UNPAID = {"code": "META_PAYMENT_ISSUE", "detail": "Unpaid"}
STOP = {"stops": "all", "detail": "An operator paused the number"}
BROKEN = {"since": NOW, "error": "Meta refused: Expired (code 190)"}
SILENT = {"sender_id": "15550100", "since": NOW, "what_to_do": "Subscribe the app."}


def workspace(
    subscription: Any = VALID, sync: Any = SYNC, stops: Any = (), hold: Any = None, **told: Any
) -> WorkspaceFacts:
    asked = subscription if isinstance(subscription, Told) else Told(body=subscription)
    one = SenderFacts(SENDER, Told(body={"sync": sync, "stopped_by": list(stops), "hold": hold}), asked)
    facts = WorkspaceFacts("acme", NOW, Told(body=[SENDER]), [one], 0, Told(body={"items": []}), StoredFacts())
    return replace(facts, **told)


def stored(**told: Any) -> WorkspaceFacts:
    return workspace(stored=StoredFacts(**told))


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


MUTE = Told(fault="dispatcher did not answer within 4 s.", status=503)
OVER = VALID | {"apps": [APP | {"override_url": "https://door.example/x"}]}
OTHER = VALID | {"subscribed": False, "apps": [APP | {"app_id": "9", "name": None}]}
LAST: dict[str, Any] = SYNC["last"]
CHANGED = SYNC | {"last": LAST | {"changes": [{}], "more": 2, "changed_at": NOW}}
WORKSPACE_CASES: list[tuple[str, WorkspaceFacts, Result, str]] = [
    ("token:15550100", workspace(), OK, "Meta took it just now (2026-11-26 12:00:00 UTC)"),
    ("token:15550100", workspace(REFUSED), FAILED, "code 190"),
    ("token:15550100", workspace(REFUSED | {"token": "unreadable"}), FAILED, "present keys"),
    ("token:15550100", workspace(REFUSED | {"token": "unknown", "error": "HTTP 502"}), UNASKED, "HTTP 502"),
    ("token:15550100", workspace(MUTE), UNASKED, "4 s"),
    ("token:15550100", workspace(MUTE, SYNC | {"failed": BROKEN}), UNASKED, "code 190"),
    ("subscription:15550100", workspace(), OK, "app 400 (Ours)"),
    ("subscription:15550100", workspace(OVER), OK, "door.example"),
    ("subscription:15550100", workspace(OTHER), FAILED, "by app 9, not by app 400"),
    ("subscription:15550100", workspace(OTHER | {"apps": []}), FAILED, "no app at all"),
    ("subscription:15550100", workspace(REFUSED), UNASKED, "could not be asked"),
    ("subscription:15550100", workspace(MUTE), UNASKED, "4 s"),
    ("templates:15550100", workspace(), OK, "3 templates read 5 min ago"),
    ("templates:15550100", workspace(sync=CHANGED), OK, "3 differences found"),
    ("templates:15550100", workspace(sync=SYNC | {"failed": BROKEN}), FAILED, "It has failed since"),
    ("templates:15550100", workspace(sync=SYNC | {"synced_at": None}), WARNING, "Not yet"),
    ("templates:15550100", workspace(sync=SYNC | {"synced_at": ago(hours=3)}), WARNING, "3 h ago"),
    ("templates:15550100", workspace(sync=SYNC | {"last": LAST | {"incomplete": "more pages"}}), WARNING, "more pages"),
    ("stopped:15550100", workspace(), OK, "would go"),
    ("stopped:15550100", workspace(stops=[STOP]), FAILED, "paused"),
    ("stopped:15550100", workspace(hold=HOLD), WARNING, "next message tries whether it still holds: Expired"),
    ("stopped:15550100", workspace(hold=HOLD | {"cause": UNPAID}), FAILED, "still holds: Unpaid"),
    ("stopped:15550100", workspace(stops=[STOP], hold=HOLD), FAILED, "paused"),
    ("stopped:15550100", workspace(stops=[STOP | {"stops": "templates"}], hold=HOLD | {"cause": UNPAID}), FAILED, ""),
    ("stopped:15550100", workspace(stops=[STOP | {"stops": "marketing"}]), WARNING, "paused"),
    ("numbers", workspace(senders=Told(body=[]), looked_at=[]), FAILED, "none"),
    ("numbers", workspace(senders=MUTE, looked_at=[]), UNASKED, "4 s"),
    ("numbers", workspace(senders_more=3), OK, "3 numbers were not"),
    ("silence", workspace(), OK, "something is heard"),
    ("silence", workspace(silence=Told(body={"items": [SILENT]})), FAILED, "15550100 since"),
    ("silence", workspace(silence=MUTE), UNASKED, "4 s"),
    ("webhooks", stored(), OK, "None has come yet"),
    ("webhooks", stored(webhook_at=ago(days=9)), OK, "9 d ago"),
    ("webhooks", stored(webhook_at=ago(hours=1), accepted_at=ago(hours=2)), OK, "1 h ago"),
    ("webhooks", stored(webhook_at=ago(days=9), accepted_at=ago(minutes=5)), OK, "9 d ago"),
    ("webhooks", stored(webhook_at=ago(days=9), accepted_at=ago(minutes=11)), WARNING, "nothing came since"),
    ("webhooks", stored(accepted_at=ago(minutes=11)), WARNING, "None has come yet"),
    ("receipts", stored(), OK, "None waits"),
    ("receipts", stored(unheard=("m-1", ago(minutes=14)), unheard_count=1), OK, "1 message waits"),
    ("receipts", stored(unheard=("m-1", ago(hours=2)), unheard_count=2), WARNING, "2 messages wait"),
    ("receipts", stored(unheard=("m-1", ago(hours=25)), unheard_count=1), FAILED, "m-1"),
    ("dead-letters", stored(), OK, "None."),
    (
        "dead-letters",
        stored(dead_letters=2, dead_letter_at=ago(minutes=3)),
        WARNING,
        "2 wait; the latest came 3 min ago",
    ),
    ("dead-letters", stored(dead_letters=1000, dead_letter_at=NOW), WARNING, "At least 1,000"),
    *((name, workspace(stored=None), UNASKED, "database") for name in ("webhooks", "receipts", "dead-letters")),
]


@pytest.mark.parametrize(("name", "facts", "result", "words"), WORKSPACE_CASES)
def test_what_a_workspaces_answers_say(name: str, facts: WorkspaceFacts, result: Result, words: str) -> None:
    (check,) = (one for one in workspace_checks.workspace_checks(facts) if one.id == name)
    assert (check.result, words in check.seen) == (result, True), check.seen
    if result in (WARNING, FAILED):
        assert check.remedy
        assert check.link or check.command


# What others say of themselves, as it is.
SAID = {"gone", "slow", "no", "Consumers stand still: x", "HTTP 502", REFUSED["error"], MUTE.fault, STOP["detail"]}
SAID |= {SILENT["what_to_do"]}


def test_what_checks_say_stands_in_the_catalogue(tmp_path: Path) -> None:
    with speaking(pseudo_language(tmp_path)[PSEUDO]):
        found = [make() for _, make, *_ in CASES]
        for _, facts, *_ in WORKSPACE_CASES:
            found += workspace_checks.workspace_checks(facts)
        found += [in_short([check], NOW) for check in found]
    texts = {text for check in found for text in (check.title, check.seen, check.why, check.remedy) if text}
    assert [text for text in texts - SAID if not re.fullmatch("⟦.*⟧", text)] == []


def test_times_in_a_services_answer_are_read_as_the_checks_want_them() -> None:
    told = with_times({"synced_at": "2026-11-26T12:00:00Z", "failed": {"since": "2026-11-26T12:00:00Z"}})
    assert told["synced_at"] == told["failed"]["since"] == NOW


def test_every_topic_of_ours_is_asked_for() -> None:
    assert set(ALL_TOPICS) == {topic.value for topic in Topic}


async def test_a_kafka_that_is_not_there_is_an_answer_too() -> None:
    found = await kafka_probe.look(KafkaSettings(kafka_bootstrap_servers="127.0.0.1:1"))
    assert found.fault is not None
    assert [check.result for check in checks.kafka_checks(found)] == [FAILED, UNASKED]
