import pytest
from consent.words import START_WORDS, STOP_WORDS, TYPED_STOP_WORDS, Keyword, bare, keyword_in
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    "text",
    [
        *(
            "STOP",
            "stop",
            " Stop. ",
            "STOP!!!",
            "stop\n",
            "“Stop”",
            "Stop 🙏",
            "STOP ❤️",
            "S\u200bTOP",
            "ＳＴＯＰ",
            "*STOP*",
        ),
        *("Opt-out", "opt out", "UNSUBSCRIBE", "Stop  promotions", "cancel", "END"),
        *("BAJA", "Darme de baja", "¡Alto!", "PARAR", "Désabonner", "ARRET", "abmelden", "Basta!", "СТОП", "إيقاف"),
        *("रोकें", "बंद करें", "退订", "配信停止", "수신거부", "iptal", "İPTAL", "berhenti", "הסר"),
    ],
)
def test_opt_outs(text: str) -> None:
    assert keyword_in(text, typed=True) == Keyword.STOP


@pytest.mark.parametrize("text", ["START", "unstop", "Alta", "s’abonner", "Opt in!", "подписаться", "订阅"])
def test_opt_ins(text: str) -> None:
    assert keyword_in(text, typed=True) == Keyword.START


@pytest.mark.parametrize(
    "text",
    [
        *("please don't stop", "don't stop", "stop by tomorrow?", "bus stop", "Can you stop the delivery?", "non stop"),
        *("start over", "when do you start", "no", "yes", "", " ", "🛑", "...", "stopp it", "STOP " * 40, None),
        *("no pares", "sin parar", "la baja temporada", "cancel my order"),
    ],
)
def test_sentences_and_noise_say_nothing(text: str | None) -> None:
    assert keyword_in(text, typed=True) is None


@pytest.mark.parametrize("text", ["Cancel", "Cancelar", "End", "Quit", "İptal"])
def test_a_cancel_button_is_no_opt_out(text: str) -> None:
    assert keyword_in(text, typed=False) is None
    assert keyword_in("Stop promotions", typed=False) == Keyword.STOP


def test_no_word_means_both() -> None:
    stops = {bare(word) for table in (STOP_WORDS, TYPED_STOP_WORDS) for words in table.values() for word in words}
    starts = {bare(word) for words in START_WORDS.values() for word in words}
    assert not stops & starts
    assert all(stops | starts)
    assert len(STOP_WORDS) >= 20


@given(st.text(max_size=100))
def test_any_text_can_be_looked_up(text: str) -> None:
    assert bare(bare(text)) == bare(text)
    keyword_in(text, typed=True)
