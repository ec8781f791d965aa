"""Parameters against the template's own components: a table of cases, and a call made from a template always fits."""

from copy import deepcopy
from typing import Any

import pytest
from dispatcher.templates import expected_names, given_names, mismatches, variables
from hypothesis import given
from hypothesis import strategies as st

Json = dict[str, Any]


def body(*texts: str | None, names: tuple[str, ...] = ()) -> Json:
    parameters: list[Json] = [{"type": "text", "text": text} for text in texts]
    for parameter, name in zip(parameters, names, strict=False):
        parameter["parameter_name"] = name
    return {"type": "body", "parameters": parameters}


def values(*parameters: Json) -> Json:
    return {"type": "body", "parameters": list(parameters)}


def header(*parameters: Json) -> Json:
    return {"type": "header", "parameters": list(parameters)}


def button(sub_type: str, index: Any, *parameters: Json) -> Json:
    return {"type": "button", "sub_type": sub_type, "index": index, "parameters": list(parameters)}


def buttons(*kinds: Json | str) -> Json:
    return {"type": "BUTTONS", "buttons": [{"type": kind} if isinstance(kind, str) else kind for kind in kinds]}


def text(value: Any) -> Json:
    return {"type": "text", "text": value}


def action(**values: Any) -> Json:
    return {"type": "action", "action": values}


def card(index: Any, *components: Json) -> Json:
    return {"card_index": index, "components": list(components)}


def carousel(*cards: Json) -> Json:
    return {"type": "carousel", "cards": list(cards)}


def offer(expires: Any) -> Json:
    parameter = {"type": "limited_time_offer", "limited_time_offer": {"expiration_time_ms": expires}}
    return {"type": "limited_time_offer", "parameters": [parameter]}


def products(count: int, sections: int = 1, title: str = "Bundles") -> Json:
    items = [{"product_retailer_id": str(number)} for number in range(count)]
    rows = [{"title": title, "product_items": items if number == 0 else []} for number in range(sections)]
    return action(thumbnail_product_retailer_id="1", sections=rows)


PLAIN: Json = {"type": "BODY", "text": "Hello"}
POSITIONAL: Json = {"type": "BODY", "text": "Hi {{1}}, order {{2}} is ready, {{1}}"}
BACKWARDS: Json = {"type": "BODY", "text": "{{2}} for {{1}}" + "x" * 1010}
NAMED: Json = {"type": "BODY", "text": "Hi {{first_name}}, order {{order_no}}"}
NAMES = ("first_name", "order_no")
TITLE: Json = {"type": "HEADER", "format": "TEXT", "text": "For {{1}}"}
IMAGE: Json = {"type": "HEADER", "format": "IMAGE"}
PLACE: Json = {"type": "HEADER", "format": "LOCATION"}
HERE: Json = {"type": "location", "location": {"latitude": "37.44", "longitude": -122.16, "name": "Shop"}}
URL = buttons("QUICK_REPLY", {"type": "URL", "url": "https://x.test/{{1}}"})
PLAIN_URL = buttons({"type": "URL", "url": "https://x.test/"})
SUFFIX = button("url", "1", text("4711"))
COUPON: Json = {"type": "coupon_code", "coupon_code": "25OFF"}
PASSWORD: list[Json] = [
    {"type": "BODY", "text": "*{{1}}* is your verification code."},
    buttons({"type": "URL", "url": "https://www.whatsapp.com/otp/code/?otp_type=COPY_CODE&code=otp{{1}}"}),
]
UNREAD_PASSWORD: list[Json] = [{"type": "BODY", "add_security_recommendation": True}, buttons("OTP")]
LONG_CODE = COUPON | {"coupon_code": "x" * 16}
OFFER: Json = {"type": "LIMITED_TIME_OFFER", "limited_time_offer": {"text": "Soon over", "has_expiration": True}}
CARD = {
    "components": [
        IMAGE,
        {"type": "BODY", "text": "{{1}}"},
        PLAIN_URL,
    ]
}
CAROUSEL: list[Json] = [PLAIN, {"type": "CAROUSEL", "cards": [CARD, CARD]}]
PICTURE = header({"type": "image", "image": {"id": "1"}})

CASES: list[tuple[str, list[Json], list[Json], list[str]]] = [
    ("fits", [POSITIONAL], [body("Ines", "4711")], []),
    ("one short", [POSITIONAL], [body("Ines")], ["count"]),
    ("one too many", [POSITIONAL], [body("Ines", "4711", "x")], ["count"]),
    ("nothing mapped", [POSITIONAL], [], ["count"]),
    ("empty", [POSITIONAL], [body("Ines", "  ")], ["empty value"]),
    ("null", [POSITIONAL], [body("Ines", None)], ["empty value"]),
    ("named", [NAMED], [body("Ines", "4711", names=NAMES)], []),
    ("named, other order", [NAMED], [body("4711", "Ines", names=NAMES[::-1])], []),
    ("named, misspelt", [NAMED], [body("Ines", "4711", names=("name", "order_no"))], ["names"]),
    ("named, twice", [NAMED], [body("Ines", "Ines", names=("first_name", "first_name"))], ["names"]),
    ("named, once too often", [NAMED], [body("Ines", "4711", "x", names=(*NAMES, "first_name"))], ["names"]),
    ("named, without names", [NAMED], [body("Ines", "4711")], ["names"]),
    ("no variables", [PLAIN], [], []),
    ("no variables, one given", [PLAIN], [body("x")], ["count"]),
    ("body given twice", [POSITIONAL], [body("Ines", "4711"), body("Ines", "4711")], ["given twice"]),
    ("parameters that are none", [POSITIONAL], [{"type": "body", "parameters": "Ines"}], ["parameters"]),
    ("parameters that are no objects", [POSITIONAL], [{"type": "body", "parameters": ["Ines", "1"]}], ["parameters"]),
    ("a number for a text", [POSITIONAL], [values(text("Ines"), text(4711))], []),
    ("an object for a text", [POSITIONAL], [values(text("Ines"), text({"a": 1}))], ["value"]),
    (
        "currency and date",
        [POSITIONAL],
        [
            values(
                {"type": "currency", "currency": {"fallback_value": "$1", "code": "USD", "amount_1000": 1000}},
                {"type": "date_time", "date_time": {"fallback_value": "1 May"}},
            )
        ],
        [],
    ),
    (
        "currency without its code",
        [POSITIONAL],
        [values({"type": "currency", "currency": {"fallback_value": "$1", "amount_1000": 1000}}, text("x"))],
        ["value"],
    ),
    ("date without a text", [POSITIONAL], [values({"type": "date_time"}, text("x"))], ["value"]),
    ("an image in a text", [POSITIONAL], [values({"type": "image", "image": {"id": "1"}}, text("x"))], ["type"]),
    ("a value type from the future", [POSITIONAL], [values({"type": "mood", "mood": 7}, text("x"))], []),
    ("1,024 characters", [{"type": "BODY", "text": "{{1}}"}], [body("x" * 1024)], []),
    ("1,025 characters", [{"type": "BODY", "text": "{{1}}"}], [body("x" * 1025)], ["length"]),
    ("long with its words", [BACKWARDS], [body("y" * 5, "z" * 4)], []),
    ("too long with its words", [BACKWARDS], [body("y" * 6, "z" * 5)], ["length"]),
    ("a title of 60", [TITLE], [header(text("x" * 56))], []),
    ("a title of 61", [TITLE], [header(text("x" * 57))], ["length"]),
    ("no header in the template", [PLAIN], [header(text("x"))], ["not in the template"]),
    ("an empty header", [PLAIN], [header()], []),
    ("image", [IMAGE], [PICTURE], []),
    ("image by link", [IMAGE], [header({"type": "image", "image": {"link": "http://127.0.0.1:1/a.png"}})], []),
    ("image by nothing", [IMAGE], [header({"type": "image", "image": {"caption": "x"}})], ["media"]),
    ("image missing", [IMAGE], [], ["media"]),
    ("two images", [IMAGE], [header(*PICTURE["parameters"] * 2)], ["media"]),
    ("video for an image", [IMAGE], [header({"type": "video", "video": {"id": "1"}})], ["media"]),
    ("place", [PLACE], [header(HERE)], []),
    ("place without a latitude", [PLACE], [header({"type": "location", "location": {"longitude": 1}})], ["location"]),
    (
        "no place on Earth",
        [PLACE],
        [header({"type": "location", "location": {"latitude": 91, "longitude": 1}})],
        ["location"],
    ),
    (
        "no place in any world",
        [PLACE],
        [header({"type": "location", "location": {"latitude": 10**400, "longitude": 1}})],
        ["location"],
    ),
    ("a header from the future", [{"type": "HEADER", "format": "HOLOGRAM"}], [header({"type": "hologram"})], []),
    ("button suffix", [URL], [SUFFIX], []),
    ("button suffix, index a number", [URL], [button("url", 1, text("4711"))], []),
    ("button suffix missing", [URL], [], ["suffix"]),
    ("button suffix twice", [URL], [SUFFIX, SUFFIX], ["given twice"]),
    ("two suffixes", [URL], [button("url", "1", text("a"), text("b"))], ["suffix"]),
    ("an empty suffix", [URL], [button("url", "1", text(" "))], ["empty value"]),
    ("a payload for a URL", [URL], [button("quick_reply", "1", text("x"))], ["sub_type"]),
    ("an address of 2,000", [URL], [button("url", "1", text("x" * 1985))], []),
    ("an address of 2,001", [URL], [button("url", "1", text("x" * 1986))], ["length"]),
    ("button without variable", [PLAIN_URL], [], []),
    ("a suffix for a whole address", [PLAIN_URL], [button("url", 0, text("x"))], ["not in the template"]),
    ("no such button", [URL], [SUFFIX, button("url", "2", text("x"))], ["not in the template"]),
    ("no such index", [PLAIN_URL], [button("url", "first", text("x"))], ["not in the template"]),
    ("no buttons at all", [PLAIN], [SUFFIX], ["not in the template"]),
    ("a number to call", [buttons("PHONE_NUMBER")], [button("phone_number", 0, text("x"))], ["not in the template"]),
    ("payload", [buttons("QUICK_REPLY")], [button("quick_reply", 0, {"type": "payload", "payload": "yes"})], []),
    ("an empty payload", [buttons("QUICK_REPLY")], [button("quick_reply", 0, {"type": "payload"})], ["empty value"]),
    ("a text for a payload", [buttons("QUICK_REPLY")], [button("quick_reply", 0, text("yes"))], ["payload"]),
    ("no payload", [buttons("QUICK_REPLY")], [], []),
    ("code", [buttons("COPY_CODE")], [button("COPY_CODE", 0, COUPON)], []),
    ("no code", [buttons("COPY_CODE")], [], ["code"]),
    ("a text for a code", [buttons("COPY_CODE")], [button("copy_code", 0, text("25OFF"))], ["code"]),
    ("a code of 20", [buttons("COPY_CODE")], [button("copy_code", 0, COUPON | {"coupon_code": "x" * 20})], []),
    ("a code of 21", [buttons("COPY_CODE")], [button("copy_code", 0, COUPON | {"coupon_code": "x" * 21})], ["length"]),
    ("flow", [buttons("FLOW")], [button("flow", 0, action(flow_token="t"))], []),
    ("flow without data", [buttons("FLOW")], [], []),
    ("a text for a flow", [buttons("FLOW")], [button("flow", 0, text("t"))], ["action"]),
    ("catalogue", [buttons("CATALOG")], [button("CATALOG", 0, action(thumbnail_product_retailer_id="1"))], []),
    ("catalogue without a thumbnail", [buttons("CATALOG")], [], []),
    ("products", [buttons("MPM")], [button("mpm", 0, products(30, 10))], []),
    ("no products", [buttons("MPM")], [], ["action"]),
    ("products without sections", [buttons("MPM")], [button("mpm", 0, action(sections=None))], ["sections"]),
    ("31 products", [buttons("MPM")], [button("mpm", 0, products(31))], ["products"]),
    ("11 sections", [buttons("MPM")], [button("mpm", 0, products(30, 11))], ["sections"]),
    ("a section's title of 25", [buttons("MPM")], [button("mpm", 0, products(1, title="x" * 25))], ["title"]),
    ("a button from the future", [buttons("TELEPATHY")], [button("telepathy", 0, {"type": "thought"})], []),
    ("one-time password", PASSWORD, [body("J$FpnYnP"), button("url", "0", text("J$FpnYnP"))], []),
    ("one-time password without its button", PASSWORD, [body("J$FpnYnP")], ["suffix"]),
    ("one-time password of 16", PASSWORD, [body("1"), button("url", "0", text("x" * 16))], ["length"]),
    ("one-time password, as created", UNREAD_PASSWORD, [body("1"), button("url", "0", text("1"))], []),
    ("one-time password, as created, empty", UNREAD_PASSWORD, [], ["count", "suffix"]),
    ("offer", [PLAIN, OFFER], [offer(1_795_000_000_000)], []),
    ("offer without its end", [PLAIN, OFFER], [], ["expiration"]),
    ("offer with a date", [PLAIN, OFFER], [offer("tomorrow")], ["expiration"]),
    ("an offer's code of 16", [OFFER, buttons("COPY_CODE")], [offer(1), button("copy_code", 0, LONG_CODE)], ["length"]),
    ("offer without a clock", [PLAIN, {"type": "LIMITED_TIME_OFFER", "limited_time_offer": {}}], [], []),
    ("an offer's body of 601", [{"type": "BODY", "text": "{{1}}"}, OFFER], [body("x" * 601), offer(1)], ["length"]),
    ("an offer that is none", [PLAIN], [offer(1)], ["not in the template"]),
    ("cards", CAROUSEL, [carousel(card(0, PICTURE, body("a")), card(1, PICTURE, body("b")))], []),
    ("cards in another order", CAROUSEL, [carousel(card(1, PICTURE, body("a")), card(0, PICTURE, body("b")))], []),
    ("one card short", CAROUSEL, [carousel(card(0, PICTURE, body("a")))], ["cards"]),
    ("one card twice", CAROUSEL, [carousel(card(0, PICTURE, body("a")), card(0, PICTURE, body("b")))], ["cards"]),
    ("cards that are none", CAROUSEL, [{"type": "carousel", "cards": "two"}], ["cards"]),
    ("no cards", CAROUSEL, [], ["cards"]),
    ("a card without its image", CAROUSEL, [carousel(card(0, body("a")), card(1, PICTURE, body("b")))], ["media"]),
    ("a card without its text", CAROUSEL, [carousel(card(0, PICTURE), card(1, PICTURE, body("b")))], ["count"]),
    ("a card of 161", CAROUSEL, [carousel(card(0, PICTURE, body("x" * 161)), card(1, PICTURE, body("b")))], ["length"]),
    (
        "product cards are Meta's to judge",
        [{"type": "CAROUSEL", "cards": [{"components": [{"type": "HEADER", "format": "PRODUCT"}]}]}],
        [carousel(card(0), card(1), card(2))],
        [],
    ),
    ("cards that the template lacks", [PLAIN], [carousel(card(0))], ["not in the template"]),
    ("a kind from the future", [{"type": "CAROUSEL_3D", "cards": [1]}], [], []),
    ("a kind of the call from the future", [PLAIN], [{"type": "order_status", "parameters": [{"type": "x"}]}], []),
    (
        "rubbish inside",
        [buttons("x"), {"type": "BUTTONS", "buttons": [None]}],
        [{"type": "button", "parameters": 7}],
        [],
    ),
    ("components that we don't know", [], [body("x"), SUFFIX], []),
]


@pytest.mark.parametrize(("name", "components", "call", "problems"), CASES, ids=[case[0] for case in CASES])
def test_parameters_against_the_template(
    name: str, components: list[Json], call: list[Json], problems: list[str]
) -> None:
    found = mismatches(components, call)
    assert [one["problem"] for one in found] == problems
    assert all(set(one) == {"component", "problem", "expected", "given"} for one in found)


def test_variables_are_distinct_and_in_order() -> None:
    assert variables("{{2}} {{1}} {{ 2 }} {{10}} {{}} {1}") == ["1", "2", "10"]
    assert variables("{{name}} {{ age }} {{name}}") == ["name", "age"]


def test_the_card_is_named() -> None:
    (found,) = mismatches(CAROUSEL, [carousel(card(0, PICTURE, body("a")), card(1, PICTURE))])
    assert found["component"] == "card 1 body"


# --- templates as Meta may have them, and calls that are made from them ---

_NAMES = st.lists(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), min_size=1, max_size=4, unique=True)
_VARIABLES: st.SearchStrategy[list[str]] = st.one_of(
    st.just(list[str]()), st.integers(1, 5).map(lambda count: [str(n + 1) for n in range(count)]), _NAMES
)


@st.composite
def texts(draw: st.DrawFn, kind: str, names: st.SearchStrategy[list[str]] = _VARIABLES) -> Json:
    words = "".join(f"w {{{{{name}}}}} " for name in draw(names))
    return {"type": kind, "format": "TEXT", "text": f"{words}w"}


_ONE_OR_NONE = st.sampled_from([[], ["1"], ["name"]])
_HEADERS = st.one_of(
    texts("HEADER", _ONE_OR_NONE),
    st.sampled_from(["IMAGE", "VIDEO", "DOCUMENT", "LOCATION"]).map(lambda kind: {"type": "HEADER", "format": kind}),
)
_KINDS = st.sampled_from(
    [
        {"type": "URL", "url": "https://x.test/"},
        {"type": "URL", "url": "https://x.test/{{1}}"},
        {"type": "OTP"},
        *({"type": kind} for kind in ("QUICK_REPLY", "COPY_CODE", "PHONE_NUMBER", "FLOW", "CATALOG", "MPM", "NEW")),
    ]
)
_BUTTONS = st.lists(_KINDS, min_size=1, max_size=4).map(lambda kinds: buttons(*kinds))


@st.composite
def templates(draw: st.DrawFn, *, cards: bool = True) -> list[Json]:
    parts = [draw(texts("BODY")), *draw(st.lists(_HEADERS, max_size=1)), *draw(st.lists(_BUTTONS, max_size=1))]
    if cards and draw(st.booleans()):
        count = draw(st.integers(1, 3))
        parts.append({"type": "CAROUSEL", "cards": [{"components": draw(templates(cards=False))}] * count})
    if draw(st.booleans()):
        parts.append(OFFER)
    return draw(st.permutations(parts))


_OF_BUTTON: dict[str, tuple[str, Json]] = {
    "OTP": ("url", text("123456")),
    "URL": ("url", text("4711")),
    "QUICK_REPLY": ("quick_reply", {"type": "payload", "payload": "yes"}),
    "COPY_CODE": ("copy_code", COUPON),
    "FLOW": ("flow", action(flow_token="t")),
    "CATALOG": ("catalog", action(thumbnail_product_retailer_id="1")),
    "MPM": ("mpm", products(3)),
}


def call_of(components: list[Json]) -> list[Json]:
    """A call by the template's own components."""
    call: list[Json] = []
    for part in components:
        kind = part["type"]
        if kind in ("BODY", "HEADER") and part["format"] == "TEXT":
            named = [
                text("v") | ({} if name.isdigit() else {"parameter_name": name}) for name in variables(part["text"])
            ]
            call += [{"type": kind.lower(), "parameters": named}] if named else []
        elif kind == "HEADER":
            media = part["format"].lower()
            call.append(header(HERE if media == "location" else {"type": media, media: {"id": "1"}}))
        elif kind == "CAROUSEL":
            call.append(
                carousel(*(card(index, *call_of(one["components"])) for index, one in enumerate(part["cards"])))
            )
        elif kind == "LIMITED_TIME_OFFER":
            call.append(offer(1))
        else:
            call += [button(_OF_BUTTON[one["type"]][0], index, _OF_BUTTON[one["type"]][1]) for index, one in of(part)]
    return call


def of(part: Json) -> list[tuple[int, Json]]:
    """The buttons that take parameters."""
    return [
        (index, one)
        for index, one in enumerate(part["buttons"])
        if one["type"] in _OF_BUTTON and not one.get("url", "{{1}}").endswith("/")
    ]


@given(templates(), st.randoms())
def test_a_call_made_from_a_template_fits_in_any_order(components: list[Json], random: Any) -> None:
    call = call_of(components)
    random.shuffle(call)
    assert mismatches(components, call) == []


@given(templates(), st.data())
def test_one_change_of_count_or_name_never_fits(components: list[Json], data: st.DataObject) -> None:
    call = call_of(components)
    # A quick reply's, a flow's and a catalogue's parameters may be left out.
    lists = [
        part["parameters"] for part in _parts(call) if part.get("sub_type") not in ("quick_reply", "flow", "catalog")
    ]
    lists = [one for one in lists if one]
    if not lists:
        return
    chosen = data.draw(st.sampled_from(lists))
    named = [entry for entry in chosen if "parameter_name" in entry]
    change = data.draw(st.sampled_from(["drop", "repeat", *(["rename"] if named else [])]))
    if change == "drop":
        chosen.pop()
    elif change == "repeat":
        chosen.append(deepcopy(chosen[-1]))
    else:
        named[0]["parameter_name"] += "_x"
    assert mismatches(components, call)


def _parts(call: list[Json]) -> list[Json]:
    inner = [part for one in call for each in one.get("cards", []) for part in _parts(each["components"])]
    return [one for one in call if "parameters" in one] + inner


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "parameters",
                    "text",
                    "index",
                    "sub_type",
                    "cards",
                    "buttons",
                    "components",
                    "format",
                    "action",
                    "image",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
_TYPED = st.sampled_from(["header", "body", "BUTTONS", "button", "carousel", "limited_time_offer", "new"])


@given(
    *[
        st.lists(
            st.builds(
                lambda kind, rest: rest | {"type": kind},
                _TYPED,
                st.dictionaries(
                    st.sampled_from(["parameters", "cards", "index", "sub_type", "text", "buttons", "format"]), _ANY
                ),
            ),
            max_size=4,
        )
    ]
    * 2
)
def test_whatever_stands_in_a_template_or_a_call_is_read(components: list[Json], call: list[Json]) -> None:
    assert isinstance(mismatches(components, call), list)


def test_what_is_taken_and_what_is_given_go_by_the_same_names() -> None:
    components: list[Any] = [
        {"type": "HEADER", "format": "IMAGE"},
        {"type": "BODY", "text": "Hola {{name}}, {{day}}"},
        {"type": "FOOTER", "text": "bye"},
        {"type": "BUTTONS", "buttons": [{"type": "QUICK_REPLY"}, {"type": "URL", "url": "https://x.example/{{1}}"}]},
    ]
    call: list[Any] = [
        {"type": "header", "parameters": [{"type": "image", "image": {"id": "1"}}]},
        {
            "type": "body",
            "parameters": [{"type": "text", "parameter_name": "name", "text": "Ines"}, {"text": "private"}],
        },
        {"type": "button", "index": "1", "parameters": [{"type": "payload", "payload": "x"}, {"type": None}]},
        {"type": "body", "parameters": "odd"},
    ]
    assert expected_names(components) == {"header": "image", "body": "name, day", "button 1": "1"}
    assert given_names(call) == {"header": "image", "body": "name, 2", "button 1": "payload, None"}
