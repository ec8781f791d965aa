"""A workspace's own keywords: what may stand there, and what an operator sees of the person's own words."""

import pytest
from consent.keywords import SHOWN_TEXT_MAX, Keywords, faults_in, judge, proof_of
from consent.words import NOTHING_OWN, Keyword
from consent_desk import message
from sendwhy.events import Inbound


@pytest.mark.parametrize(
    ("keywords", "fields"),
    [
        (Keywords(), []),
        (Keywords(stop=("fuera", "T"), start=("sí quiero",), ignore=("baja", "alta")), []),
        (Keywords(stop=("alta",), start_buttons=("pref 1",), stop_buttons=("pref 0", "Cancel")), []),
        (Keywords(stop=("fuera", "!!!")), ["stop.1"]),
        (Keywords(start=("🙂",), ignore=("\u200b",), stop_buttons=("_",)), ["start.0", "stop_buttons.0", "ignore.0"]),
        (Keywords(stop=("Listo",), start=("¡LISTO!",)), ["stop.0"]),
        (Keywords(stop=("x",), ignore=("a", "X.")), ["stop.0"]),
        (Keywords(start=("vale",), ignore=("VALE",)), ["start.0"]),
        (Keywords(stop_buttons=("PREF_1",), start_buttons=("pref-1",)), ["stop_buttons.0"]),
        (Keywords(ignore=("baja", "STOP", "opt-out", "Cancel")), ["ignore.1", "ignore.2", "ignore.3"]),
        (Keywords(start=("Stop",), start_buttons=("unsubscribe",)), ["start.0", "start_buttons.0"]),
        (Keywords(start=("baja", "iptal", "dừng")), ["start.0", "start.1"]),
    ],
)
def test_what_cannot_be_is_named(keywords: Keywords, fields: list[str]) -> None:
    assert list(faults_in(keywords)) == fields


@pytest.mark.parametrize(
    ("kind", "text", "payload", "judged"),
    [
        (Inbound.TEXT, "STOP", None, (Keyword.STOP, "stop_reply")),
        (Inbound.TEXT, "start", None, (Keyword.START, "start_reply")),
        (Inbound.BUTTON, "No more", "stop", (Keyword.STOP, "stop_button")),
        (Inbound.INTERACTIVE, "Start", "1", (Keyword.START, "start_button")),
        (Inbound.TEXT, "no", "stop", (None, "None_reply")),
        (Inbound.OTHER, "stop", "stop", (None, "")),
        (Inbound.CALL, "stop", None, (None, "")),
    ],
)
def test_which_messages_are_judged(
    kind: Inbound, text: str, payload: str | None, judged: tuple[Keyword | None, str]
) -> None:
    assert judge(message(text, 0, kind=kind, payload=payload), NOTHING_OWN) == judged


@pytest.mark.parametrize(
    ("text", "judged"), [("STOP", (Keyword.STOP, "stop_reply")), ("start", (None, "")), ("hello", (None, "None_reply"))]
)
def test_a_stop_counts_wherever_it_is_said_and_consent_is_given_to_nobody_in_a_group(
    text: str, judged: tuple[Keyword | None, str]
) -> None:
    assert judge(message(text, 0, raw={"type": "text", "group_id": "Y2FwaV9ncm91cDox"}), NOTHING_OWN) == judged


def test_the_proof_has_the_persons_own_words() -> None:
    assert proof_of(message("¡Baja!\n🙏", 1, wamid="wamid.7")) == 'wamid.7 "¡Baja! 🙏"'
    tapped = message("No more", 1, wamid="wamid.8", kind=Inbound.BUTTON, payload="PREF_0")
    assert proof_of(tapped) == 'wamid.8 "No more" payload PREF_0'
    long = proof_of(message("stop " * 1000, 1, wamid="wamid.9"))
    assert len(long) < SHOWN_TEXT_MAX + 20
