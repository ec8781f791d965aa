"""STOP and START in the languages that people answer in.

A word counts only when it is the whole message: "please don't stop" is no opt-out. American law (47 CFR 64.1200)
names stop, quit, end, revoke, opt out, cancel and unsubscribe; all of them count.
"""

import re
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

MAX_LENGTH = 64


class Keyword(StrEnum):
    STOP = "stop"
    START = "start"


STOP_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "en": (
            *("stop", "stopall", "stop all", "unsubscribe", "unsubscribe me", "opt out", "optout", "opt me out"),
            *("remove me", "revoke", "please stop", "stop please", "stop messages", "stop promotions"),
            *("stop messaging me", "stop texting me", "stop marketing"),
        ),
        "es": (
            *("alto", "baja", "darme de baja", "dar de baja", "date de baja", "quiero darme de baja", "parar"),
            *("detener", "detener promociones", "desuscribir", "desuscribirme", "desuscribirse"),
            *("cancelar suscripción", "no más mensajes"),
        ),
        "pt": ("parar", "pare", "sair", "descadastrar", "cancelar inscrição", "parar promoções", "não quero receber"),
        "fr": (
            *("arrêt", "arrêter", "arrêtez", "désabonner", "se désabonner", "me désabonner", "désabonnement"),
            *("désinscription", "se désinscrire", "me désinscrire"),
        ),
        "de": ("stopp", "abmelden", "abbestellen", "austragen", "abmeldung"),
        "it": ("basta", "ferma", "fermare", "disiscrivi", "disiscrivimi", "annulla iscrizione", "cancellami"),
        "nl": ("stoppen", "afmelden", "uitschrijven"),
        "sv": ("stopp", "avregistrera", "avprenumerera", "avsluta prenumeration"),
        "da": ("afmeld", "frameld"),
        "no": ("stopp", "avmeld", "meld meg av"),
        "fi": ("lopeta", "peru tilaus"),
        "pl": ("wypisz", "wypisz mnie", "rezygnuję", "zrezygnuj"),
        "cs": ("odhlásit", "odhlásit odběr", "zrušit odběr"),
        "ro": ("dezabonare", "dezabonează", "oprește"),
        "tr": ("dur", "durdur", "abonelikten çık", "aboneliği iptal et"),
        "ru": ("стоп", "отписаться", "отписка", "отпишите меня"),
        "uk": ("стоп", "відписатися", "відписатись"),
        "el": ("διακοπή", "απεγγραφή"),
        "ar": ("توقف", "إيقاف", "ايقاف", "إلغاء الاشتراك", "الغاء الاشتراك"),
        "he": ("הסר", "הסרה", "הסירו אותי"),
        "hi": ("रोकें", "बंद करें", "सदस्यता समाप्त करें"),
        "id": ("berhenti", "hentikan", "berhenti berlangganan"),
        "ms": ("berhenti", "hentikan", "henti langganan"),
        "zh": ("停止", "退订", "退訂", "取消订阅", "取消訂閱"),
        "ja": ("停止", "配信停止", "配信を停止"),
        "ko": ("중지", "수신거부", "수신 거부", "구독취소", "구독 취소"),
    }
)

# An opt-out when typed; on a button they answer what the button asks ("Cancel" an appointment).
TYPED_STOP_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "en": ("cancel", "end", "quit"),
        "es": ("cancelar",),
        "pt": ("cancelar",),
        "tr": ("iptal",),
    }
)

START_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "en": ("start", "unstop", "subscribe", "subscribe me", "resubscribe", "opt in", "optin", "opt me in"),
        "es": ("alta", "darme de alta", "suscribir", "suscribirme", "suscribirse"),
        "pt": ("inscrever", "me inscrever", "quero receber", "voltar a receber"),
        "fr": ("abonner", "s'abonner", "m'abonner", "réabonner", "me réabonner"),
        "de": ("abonnieren", "wieder anmelden"),
        "it": ("iscrivimi", "iscriviti"),
        "nl": ("aanmelden", "inschrijven"),
        "sv": ("prenumerera",),
        "da": ("tilmeld",),
        "no": ("påmeld", "meld meg på"),
        "fi": ("tilaa",),
        "pl": ("zapisz mnie", "subskrybuj"),
        "cs": ("přihlásit odběr",),
        "ro": ("abonează", "abonare"),
        "tr": ("abone ol",),
        "ru": ("старт", "подписаться"),
        "uk": ("підписатися", "підписатись"),
        "el": ("εγγραφή",),
        "ar": ("اشتراك", "إشتراك"),
        "id": ("berlangganan",),
        "ms": ("langgan",),
        "zh": ("订阅", "訂閱"),
        "ja": ("配信再開", "配信を再開"),
        "ko": ("구독", "수신동의", "수신 동의"),
    }
)

_ACCENTS = re.compile("[\u0300-\u036f]")
_HYPHENS = re.compile(r"[-_\u2010-\u2015]")


def bare(text: str) -> str:
    """`text` without case, accents, punctuation and emoji around it; inner blanks single."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    visible = "".join(character for character in folded if unicodedata.category(character) != "Cf")
    without_accents = _ACCENTS.sub("", unicodedata.normalize("NFD", visible))
    words = unicodedata.normalize("NFC", _HYPHENS.sub(" ", without_accents))
    letters = [i for i, character in enumerate(words) if unicodedata.category(character)[0] in "LN"]
    if not letters:
        return ""
    last = letters[-1] + 1
    while last < len(words) and unicodedata.category(words[last]) in ("Mc", "Mn"):
        last += 1  # a vowel sign belongs to its letter
    return " ".join(words[letters[0] : last].replace("\u2019", "'").split())


def _table() -> Mapping[str, Keyword]:
    starts = {bare(word): Keyword.START for words in START_WORDS.values() for word in words}
    stops = {bare(word): Keyword.STOP for words in STOP_WORDS.values() for word in words}
    return MappingProxyType({**starts, **stops})


_KEYWORDS = _table()
_TYPED = frozenset(bare(word) for words in TYPED_STOP_WORDS.values() for word in words)


def keyword_in(text: str | None, *, typed: bool) -> Keyword | None:
    """What a whole message says, or None. `typed` is false for a button's label or payload."""
    if not text or len(text) > MAX_LENGTH:
        return None
    word = bare(text)
    return Keyword.STOP if typed and word in _TYPED else _KEYWORDS.get(word)
