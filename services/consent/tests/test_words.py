"""The table of STOP and START words, and what whole messages say."""

import unicodedata
from collections import defaultdict

import pytest
from consent.words import (
    COURTESIES,
    ENTRIES,
    SOURCES,
    Entry,
    Keyword,
    Own,
    bare,
    button_keyword,
    keyword_in,
    said_by,
    spelled,
)
from hypothesis import given
from hypothesis import strategies as st

STOP, START = Keyword.STOP, Keyword.START
LANGUAGES_AT_LEAST = 25

# What people answer all day, in the languages of the table. None of it may change anybody's consent.
WORDS = """
yes yeah yep y no nope n ok okay k sure fine done hi hello thanks sí si claro vale dale no hola sim não nao s td blz kk
oui non ouais ja nein jo nee doch passt nej nei joo kyllä ei en tak nie dobrze ano ne dobře áno igen nem da nu bine не
да добре dobro taip jā nē нет ладно хорошо так ні ναι όχι εντάξει evet hayır tamam olur نعم لا حسنا بله خیر آره نه باشه
ہاں نہیں כן לא בסדר हाँ हां नहीं haan nahi accha acha theek হ্যাঁ না ya tidak baik oke oo hindi sige có không đúng dung
dùng vâng dạ ใช่ ไม่ ครับ ค่ะ 是 不是 好 好的 不要 不用 はい いいえ 結構です 네 아니요 예 좋아요 ndiyo hapana sawa
1 2 10 12:30 5€ 👍 🙏 ❤️ 🛑 🚫 ... ? ! please bitte merci high low size resume join begin more help info back next
"""
PHRASES = [
    *("thank you", "no thanks", "no thank you", "no, gracias", "de acuerdo", "nada más", "no más", "eso es todo"),
    *(
        "tudo bem",
        "não, obrigado",
        "d'accord",
        "non merci",
        "ça marche",
        "nein danke",
        "alles klar",
        "ठीक है",
        "ঠিক আছে",
    ),
]


def test_many_languages_have_both() -> None:
    stops = {entry.language for entry in ENTRIES if entry.keyword is STOP and not entry.typed}
    starts = {entry.language for entry in ENTRIES if entry.keyword is START}
    assert stops == starts
    assert len(stops) >= LANGUAGES_AT_LEAST


def test_every_word_has_its_source() -> None:
    phrases = {(entry.language, entry.phrase) for entry in ENTRIES}
    for entry in ENTRIES:
        base = entry.source.removeprefix("form of ")
        if base != entry.source:
            assert (entry.language, base) in phrases, entry
            assert base != entry.phrase, entry
        else:
            assert entry.source in SOURCES or entry.source == "own" or entry.source.startswith("own: "), entry
    assert {entry.source for entry in ENTRIES} >= set(SOURCES)


def test_no_word_means_both_and_none_stands_twice() -> None:
    by_form: dict[str, list[Entry]] = defaultdict(list)
    for entry in ENTRIES:
        by_form[entry.form].append(entry)
    for form, entries in by_form.items():
        assert len(form) > 1, entries
        assert len({(entry.keyword, entry.typed) for entry in entries}) == 1, entries
        assert len({entry.language for entry in entries}) == len(entries), entries


def test_every_word_says_what_it_stands_for() -> None:
    for entry in ENTRIES:
        assert keyword_in(entry.phrase) is entry.keyword, entry
        assert button_keyword(None, entry.phrase) is (None if entry.typed else entry.keyword), entry


def test_no_everyday_answer_says_anything() -> None:
    assert {
        text for text in [*WORDS.split(), *PHRASES, *COURTESIES] if keyword_in(text) or button_keyword(text, text)
    } == set()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "STOP",
            "stop",
            " Stop. ",
            "STOP!!!",
            "stop\n",
            "\n\nstop",
            "“Stop”",
            '"stop"',
            "(stop)",
            "Stop 🙏",
            "STOP ❤️",
        ),
        *(
            "🛑 STOP 🛑",
            "🤬🤬 stop",
            "👎🏽 stop",
            "S\u200bTOP",
            "ＳＴＯＰ",
            "*STOP*",
            "_stop_",
            "stop" + "!" * 200,
            "𝐒𝐓𝐎𝐏",
        ),
        *("S T O P", "S.T.O.P.", "s-t-o-p", "STOP STOP STOP", "stop, stop", "Stop?", "¿Stop?", "- stop", "STOP..."),
        *("please stop", "Stop please!", "pls stop", "STOP, thanks", "thank you, stop", "stop por favor"),
        *(
            "Opt-out",
            "opt out",
            "OPT_OUT",
            "UNSUBSCRIBE",
            "Stop  promotions",
            "cancel",
            "END",
            "Quit.",
            "Don’t text me",
        ),
        *("BAJA", "baja por favor", "Darme de baja", "¡Alto!", "PARAR", "Quiero darme de baja, gracias", "salir"),
        *(
            "No quiero recibir más mensajes",
            "desuscribanme",
            "SAIR",
            "sair por favor",
            "Descadastrar",
            "nao me envie mais mensagens",
        ),
        *("Désabonner", "desabonner", "ARRET", "arrêtez svp", "STOP PUB", "désabonnez moi s'il vous plaît", "Arrête!"),
        *("abmelden", "Bitte abmelden", "STOPP", "Keine Werbung mehr!", "Ich möchte mich abmelden"),
        *("Basta!", "disiscrivimi per favore", "afmelden bedankt", "Avanmäl", "AVANMAL", "afmeld mig"),
        *(
            "meld meg av takk",
            "LOPETA",
            "wypisz mnie proszę",
            "odhlásit odběr",
            "odhlasit odber",
            "leiratkozás",
            "ÁLLJ",
        ),
        *(
            "Dezabonează-mă",
            "dezaboneaza ma",
            "отпишете ме",
            "Odjavi me molim",
            "Одјави ме",
            "atsisakau",
            "atrakstīties",
        ),
        *("iptal", "İPTAL", "IPTAL", "İptal", "abonelikten çık", "ABONELİKTEN ÇIK", "ABONELIKTEN CIK", "dur"),
        *(
            "СТОП",
            "Отпишите меня, пожалуйста",
            "отписаться!",
            "Відписатися",
            "ΔΙΑΚΟΠΗ",
            "διακοπή",
            "διακοπη",
            "Διαγράψτε με",
        ),
        *(
            "إيقاف",
            "ايقاف",
            "أيقاف",
            "إيقــــاف",
            "إِيقَاف",
            "\u200fإيقاف\u200f",
            "إلغاء الاشتراك",
            "الغاء الإشتراك",
            "توقّف",
        ),
        *("لغو اشتراک", "لغو اشتراك", "میسج بند کریں", "הסר", "הָסֵר", "הסירו אותי בבקשה", "\u202bהסר\u202c"),
        *("रोकें", "बंद करें", "बन्द करें", "कृपया मैसेज बंद करें", "band karo", "বন্ধ করুন", "berhenti", "Tolong hentikan"),
        *(
            "itigil na po",
            "dừng",
            "DỪNG LẠI",
            "du\u031b\u0300ng",
            "Hủy đăng ký",
            "huy dang ky",
            "หยุด",
            "หยุดค่ะ",
            "ยกเลิก",
        ),
        *(
            "退订",
            "退訂",
            "退订，谢谢",
            "取消订阅。",
            "停止",
            "配信停止",
            "配信停止、お願いします",
            "ｽﾄｯﾌﾟ",
            "수신거부",
            "그만",
            "komesha",
        ),
    ],
)
def test_opt_outs(text: str) -> None:
    assert keyword_in(text) is STOP


@pytest.mark.parametrize("label", ["Unsubscribe from Promos", "Unsubscribe from All", "Stop promotions"])
def test_the_buttons_that_metas_own_examples_show_are_opt_outs_by_themselves(label: str) -> None:
    assert button_keyword(label, label) is STOP
    assert keyword_in(label) is STOP


@pytest.mark.parametrize(
    "text",
    [
        *(
            "START",
            "unstop",
            "Start!",
            "start 🙏",
            "please subscribe me",
            "Alta",
            "ALTA por favor",
            "s’abonner",
            "Opt in!",
        ),
        *("OPT-IN", "Quero voltar a receber", "abonnieren", "iscrivimi", "meld mij aan", "prenumerera", "tilmeld mig"),
        *(
            "meld meg på",
            "tilaa uutiskirje",
            "zapisz mnie",
            "prihlasit odber",
            "feliratkozás",
            "mă abonez",
            "абонирам се",
        ),
        *("подписаться", "ПОДПИШИТЕ МЕНЯ", "підписатися", "εγγραφή", "ABONE OL", "اشتراك", "إشتراك", "اشتراک", "הרשמה"),
        *(
            "सब्सक्राइब करें",
            "berlangganan",
            "đăng ký nhận tin",
            "สมัครรับข่าวสาร",
            "订阅",
            "訂閱",
            "配信再開",
            "구독",
            "jiunge",
        ),
    ],
)
def test_opt_ins(text: str) -> None:
    assert keyword_in(text) is START


@pytest.mark.parametrize(
    "text",
    [
        # Sentences that hold the word.
        *(
            "please don't stop",
            "don't stop",
            "“don't stop”",
            "stop by tomorrow?",
            "bus stop",
            "Can you stop the delivery?",
        ),
        *(
            "non stop",
            "non-stop",
            "nonstop",
            "one stop shop",
            "stop 2",
            "2 stop",
            "stop at 5",
            "the end",
            "end of year",
        ),
        *(
            "I can't stop ordering",
            "full stop",
            "stop or start",
            "start stop",
            "stop it now or later?",
            "ok stop there at 5",
        ),
        *("cancel my order", "quit smoking kit?", "remove the gift wrap", "cancel 4711", "weekend", "start over"),
        *("when do you start", "I want to start a return", "subscribe and save?", "how do I unsubscribe", "stopover"),
        *(
            "no me des de baja",
            "no quiero darme de baja",
            "la baja temporada",
            "más baja",
            "sin parar",
            "no pares",
            "talla alta",
        ),
        *(
            "de alta calidad",
            "alto rendimiento",
            "cancelar mi pedido",
            "quiero salir a comer",
            "vou sair agora",
            "não pare",
        ),
        *(
            "je ne veux pas arrêter",
            "n'arrêtez pas",
            "arrêt de bus",
            "ne me désabonnez pas",
            "c'est dur",
            "un abonnement?",
        ),
        *(
            "nicht abmelden",
            "Ich will mich nicht abmelden",
            "halt",
            "anmelden",
            "Basta così, grazie mille a tutti",
            "non basta",
        ),
        *(
            "niet stoppen",
            "sluta inte",
            "älä lopeta",
            "nie rezygnuję",
            "dur bir dakika",
            "durum nedir",
            "iptal etmeyin",
            "red",
        ),
        *("не останавливайтесь", "не отписывайте меня", "остановка", "стоп кран", "لا تتوقف", "لا أريد إلغاء الاشتراك"),
        *(
            "אל תסירו אותי",
            "मत रोकें",
            "दुकान बंद है",
            "jangan berhenti",
            "đừng dừng",
            "อย่าหยุด",
            "不要退订",
            "别停止",
            "止めないで",
        ),
        *("배송 중지 언제", "acha", "acha kutuma?!? sawa"),
        # Not the whole message.
        *(
            "STOP\nMaria",
            "Hi! STOP",
            "STOP\n\nSent from my phone",
            "> stop\nno",
            "stopp it",
            "stopped",
            "sto p",
            "st op",
            "s top",
        ),
        *("stop.com", "www.stop.com", "stop@example.com", "#stop4711", "stop 🛑 5️⃣", "STOP" * 2, "STOPSTOP"),
        # A question is no consent, silence neither.
        *("Start?", "¿Alta?", "subscribe?", "اشتراك؟", "订阅？"),
        *("", " ", "\n", "...", "\u200b", "\u0301", "🛑", "✋", "STOP " * 60, "stop" + " " * 300, None),
    ],
)
def test_sentences_and_noise_say_nothing(text: str | None) -> None:
    assert keyword_in(text) is None


@pytest.mark.parametrize(
    "label", ["Cancel", "Cancelar", "End", "Quit", "İptal", "إلغاء", "ยกเลิก", "Basta", "Salir", "dur"]
)
def test_a_cancel_button_is_no_opt_out(label: str) -> None:
    assert button_keyword(label, label) is None
    assert keyword_in(label) is STOP


@pytest.mark.parametrize(
    ("payload", "label", "keyword"),
    [
        ("STOP_PROMOTIONS", "No more of this", STOP),
        ("17", "Stop promotions", STOP),
        ("17", "Detener promociones 🛑", STOP),
        ("start", "Yes!", START),
        ("stop", "Start", STOP),
        ("cancel", "Yes", None),
        ("17", "Hủy đăng ký", STOP),
        (None, None, None),
        ("", "x" * 300, None),
    ],
)
def test_buttons(payload: str | None, label: str | None, keyword: Keyword | None) -> None:
    assert button_keyword(payload, label) is keyword


OWN = Own(
    stop=frozenset({"fuera", "t"}),
    start=frozenset({"si quiero", "ok"}),
    stop_buttons=frozenset({"pref 0", "cancel", "ya no"}),
    start_buttons=frozenset({"pref 1", "alta"}),
    ignore=frozenset({"alta", "baja", "end"}),
)


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        *(("FUERA!", STOP), ("fuera, gracias", STOP), ("T", STOP), ("sí, quiero", START), ("ok", START), ("ok?", None)),
        *(
            ("stop", STOP),
            ("Baja", None),
            ("baja por favor", None),
            ("ALTA", None),
            ("end", None),
            ("darme de baja", STOP),
        ),
        *(("fuera de aquí", None), ("pref_0", None), ("pref 1", None)),
    ],
)
def test_a_workspaces_own_words(text: str, keyword: Keyword | None) -> None:
    assert keyword_in(text, OWN) is keyword


@pytest.mark.parametrize(
    ("payload", "label", "keyword"),
    [
        *(
            ("PREF_0", "Nein danke", STOP),
            ("pref_0_b", "Nein danke", None),
            ("x", "Cancel", STOP),
            ("PREF-1", "Ok", START),
        ),
        *(
            ("x", "Ya no", STOP),
            ("pref_0", "Alta", STOP),
            ("x", "baja", None),
            ("fuera", "x", None),
            ("stop", "x", STOP),
        ),
    ],
)
def test_a_workspaces_own_buttons(payload: str, label: str, keyword: Keyword | None) -> None:
    assert button_keyword(payload, label, OWN) is keyword


BEFORE = [
    "",
    " ",
    "\n",
    "🛑",
    "🙏🏽 ",
    "❤️",
    "«",
    "“",
    "¡",
    "*",
    "_",
    "- ",
    "\u200f",
    "\u202b",
    "\ufeff",
    "👨‍👩‍👧 ",
    "'",
]
AFTER = [
    "",
    " ",
    "\n",
    ".",
    "!!!",
    "…",
    " 🙏",
    "❤️",
    "»",
    "”",
    "*",
    "_",
    ".\n\n",
    "\u200e",
    "\u202c",
    "🇲🇽",
    "'",
    " :)",
    ",",
]
INVISIBLE = ["\u200b", "\u200d", "\u200e", "\u200f", "\u2060", "\ufeff", "\u00ad", "\u034f"]
entries = st.sampled_from(ENTRIES)


@given(
    entries, st.sampled_from(BEFORE), st.sampled_from(AFTER), st.sampled_from([str.upper, str.lower, str.title, str])
)
def test_decoration_changes_nothing(entry: Entry, before: str, after: str, cased: type[str]) -> None:
    text = before + cased(entry.phrase) + after
    assert keyword_in(text) is entry.keyword
    assert keyword_in(unicodedata.normalize("NFD", text)) is entry.keyword


@given(entries, st.data())
def test_what_cannot_be_seen_changes_nothing(entry: Entry, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(entry.phrase)))
    text = entry.phrase[:place] + data.draw(st.sampled_from(INVISIBLE)) + entry.phrase[place:]
    assert keyword_in(text) is entry.keyword


@given(st.sampled_from([entry for entry in ENTRIES if not entry.exact]))
def test_accents_may_be_left_out(entry: Entry) -> None:
    plain = "".join(c for c in unicodedata.normalize("NFD", entry.phrase) if not "\u0300" <= c <= "\u036f")
    assert keyword_in(plain) is entry.keyword


more = st.text(st.characters(categories=["Ll", "Lu", "Lo", "Nd"]), min_size=1, max_size=8)


@given(entries, more, st.booleans(), st.sampled_from(["", " ", "\n", ", "]))
def test_more_words_or_letters_make_it_another_message(entry: Entry, word: str, first: bool, between: str) -> None:
    text = f"{word}{between}{entry.phrase}" if first else f"{entry.phrase}{between}{word}"
    same = (bare(entry.phrase), spelled(entry.phrase))
    courtesy = bare(word) in map(bare, COURTESIES)
    if not courtesy and bare(text) not in same and bare(word) not in same:
        assert keyword_in(text) is (said_by(bare(text)) or said_by(spelled(text)))


@given(st.text(max_size=300))
def test_any_text_can_be_looked_up(text: str) -> None:
    assert bare(bare(text)) == bare(text)
    assert spelled(spelled(text)) == spelled(text)
    keyword_in(text)
    button_keyword(text, text)


def test_a_grapheme_joiner_within_a_word_whose_marks_count() -> None:
    assert keyword_in("d\u034fừng") is STOP
    assert keyword_in("dư\u034f\u0300ng") is STOP
