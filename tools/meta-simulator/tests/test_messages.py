from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meta_simulator.components import check_template
from meta_simulator.messages import Addressed, addressee, check_body, read_json

TEXT = {"messaging_product": "whatsapp", "to": "447700900142", "type": "text", "text": {"body": "Hi"}}


def _interactive(*titles: str) -> dict[str, Any]:
    buttons = [{"type": "reply", "reply": {"id": title, "title": title}} for title in titles]
    return {"type": "button", "body": {"text": "?"}, "action": {"buttons": buttons}}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"type": "image", "image": {"link": "https://example.org/a.png"}}, None),
        ({"type": "image", "image": {"id": "1"}}, None),
        ({"type": "interactive", "interactive": _interactive("Keep", "Drop")}, None),
        ({"messaging_product": None}, 100),
        ({"type": "poll"}, 100),
        ({"type": ["text"]}, 100),
        ({"text": None}, 131008),
        ({"text": {}}, 131008),
        ({"text": "Hi"}, 131009),
        ({"text": {"body": "x" * 4097}}, 100),
        ({"biz_opaque_callback_data": "x" * 513}, 100),
        ({"biz_opaque_callback_data": 5}, 100),
        ({"type": "image", "image": {}}, 131008),
        ({"type": "image", "image": {"link": "file:///etc/passwd"}}, 131009),
        ({"type": "interactive", "interactive": _interactive("a", "b", "c", "d")}, 131009),
        ({"type": "interactive", "interactive": _interactive("Same", "Same")}, 131009),
        ({"type": "interactive", "interactive": _interactive("x" * 21)}, 131009),
        ({"type": "template", "template": {"name": "a"}}, 131008),
        ({"type": "template", "template": {"language": {"code": "en"}}}, 131008),
        ({"type": "location", "location": {"latitude": 1}}, 131008),
        ({"type": "contacts", "contacts": []}, 131008),
        ({"type": "contacts", "contacts": [{"name": "Ines"}]}, 131008),
        ({"type": "contacts", "contacts": [{"name": {"formatted_name": "Ines"}}]}, None),
        ({"type": "contacts", "contacts": [{"name": {"formatted_name": "Ines"}, "fax": []}]}, 100),
        ({"to_number": "447700900142"}, 100),
        ({"text": {"body": "Hi", "bold": True}}, 100),
        ({"text": {"body": "Hi", "preview_url": "yes"}}, 100),
        ({"recipient_type": "everybody"}, 100),
        ({"context": {"message_id": "wamid.x"}}, None),
        ({"context": {"id": "wamid.x"}}, 131009),
        ({"type": "audio", "audio": {"id": "1", "caption": "a song"}}, 100),
        ({"type": "image", "image": {"id": "1", "caption": "x" * 1025}}, 131009),
        ({"type": "document", "document": {"id": "1", "filename": 5}}, 131009),
        ({"type": "location", "location": {"latitude": "52.1", "longitude": 13.4, "name": "Shop"}}, None),
        ({"type": "location", "location": {"latitude": 91, "longitude": 13.4}}, 131009),
        ({"type": "location", "location": {"latitude": [1], "longitude": 13.4}}, 131009),
        ({"type": "reaction", "reaction": {"message_id": "wamid.x", "emoji": ""}}, None),
        ({"type": "reaction", "reaction": {"message_id": "wamid.x", "emoji": 5}}, 131009),
        ({"type": "template", "template": {"name": 5, "language": {"code": "en"}}}, 131009),
        ({"type": "template", "template": {"name": "a", "language": {"code": "en", "policy": "fallback"}}}, 131009),
        ({"type": "template", "template": {"name": "a", "language": {"code": "en"}, "lang": "en"}}, 100),
        ({"type": "template", "template": {"name": "a", "language": {"code": "en"}, "components": [1]}}, 131009),
    ],
)
def test_what_meta_refuses_in_a_body(changes: dict[str, Any], code: int | None) -> None:
    refusal = check_body(TEXT | changes)
    assert (refusal.code if refusal else None) == code


ROW = {"id": "1", "title": "Blue"}


def _list(*rows: dict[str, Any], **section: Any) -> dict[str, Any]:
    sections = [{"rows": list(rows), **section}]
    return {"type": "list", "body": {"text": "Which?"}, "action": {"button": "Choose", "sections": sections}}


def _link(**parameters: Any) -> dict[str, Any]:
    whole = {"display_text": "Look", "url": "https://example.org", **parameters}
    return {"type": "cta_url", "body": {"text": "?"}, "action": {"name": "cta_url", "parameters": whole}}


@pytest.mark.parametrize(
    ("interactive", "code"),
    [
        (_list(ROW), None),
        (_list(ROW) | {"body": {"text": "x" * 4096}}, None),
        (_interactive("a") | {"body": {"text": "x" * 1025}}, 131009),
        (_interactive("a") | {"body": None}, 131008),
        (_interactive("a") | {"footer": {"text": "x" * 61}}, 131009),
        (_interactive("a") | {"header": {"type": "text", "text": "x" * 61}}, 131009),
        (_interactive("a") | {"header": {"type": "image", "image": {"id": "1"}}}, None),
        (_interactive("a") | {"header": {"type": "image", "image": {}}}, 131008),
        (_interactive("a") | {"header": {"type": "sticker"}}, 131009),
        (_interactive("a") | {"colour": "blue"}, 100),
        (_list(ROW) | {"header": {"type": "image", "image": {"id": "1"}}}, 131009),
        (_list(*({"id": str(number), "title": "x"} for number in range(11))), 131009),
        (_list(), 131009),
        (_list(ROW, ROW), 131009),
        (_list(ROW | {"title": "x" * 25}), 131009),
        (_list(ROW | {"description": "x" * 73}), 131009),
        (_list(ROW | {"id": "x" * 201}), 131009),
        (_list(ROW, title="x" * 25), 131009),
        (_list(ROW) | {"action": {"button": "x" * 21, "sections": [{"rows": [ROW]}]}}, 131009),
        (_list(ROW) | {"action": {"button": "x", "sections": [{"rows": [ROW]}, {"rows": []}]}}, 131009),
        (_link(), None),
        (_link(display_text="x" * 21), 131009),
        (_link(url="example.org"), 131009),
        ({"type": "flow", "body": {"text": "?"}, "action": {"name": "flow", "parameters": {"flow_cta": "Go"}}}, 131008),
        ({"type": "location_request_message", "body": {"text": "?"}, "action": {"name": "send_location"}}, None),
        ({"type": "product", "action": {"catalog_id": "1"}}, None),
        ({"type": "hologram", "action": {}}, 131009),
        ({"type": "button"}, 131008),
    ],
)
def test_limits_of_interactive_messages(interactive: dict[str, Any], code: int | None) -> None:
    refusal = check_body(TEXT | {"type": "interactive", "interactive": interactive})
    assert (refusal.code if refusal else None) == code


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"to": "+44 (7700) 900-142"}, "447700900142"),
        ({"to": 447700900142}, "447700900142"),
        ({"to": "447700900142", "recipient": "GB.1"}, "447700900142"),
        ({"recipient": "GB.1"}, "GB.1"),
        ({}, None),
        ({"to": ""}, None),
        ({"to": "abc"}, None),
        ({"to": {"phone": "1"}}, None),
    ],
)
def test_who_a_body_is_for(body: dict[str, Any], key: str | None) -> None:
    to = addressee(body)
    assert (to.key if isinstance(to, Addressed) else None) == key


COMPONENTS: list[dict[str, Any]] = [
    {"type": "HEADER", "format": "IMAGE"},
    {"type": "BODY", "text": "Hi {{1}}, order {{2}}"},
    {"type": "BUTTONS", "buttons": [{"type": "QUICK_REPLY"}, {"type": "URL", "url": "https://x.org/{{1}}"}]},
]


def _call(*, texts: tuple[Any, ...] = ("Ines", "4711"), header: str = "image", url: bool = True) -> Any:
    parameters = [{"type": "text", "text": text} for text in texts]
    components = [
        {"type": "header", "parameters": [{"type": header, header: {"id": "1"}}]},
        {"type": "body", "parameters": parameters},
    ]
    if url:
        text = {"type": "text", "text": "4711"}
        components.append({"type": "button", "sub_type": "url", "index": "1", "parameters": [text]})
    return {"components": components}


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (_call(), None),
        (_call(texts=("Ines",)), 132000),
        (_call(texts=("Ines", "4711", "more")), 132000),
        (_call(url=False), 131008),
        ({}, 132012),
        (_call(header="video"), 132012),
        (_call(texts=("Ines", None)), 131008),
        (_call(texts=("Ines", "a\nb")), 132018),
        (_call(texts=("Ines", "x" * 1024)), 132005),
    ],
)
def test_parameters_must_fit_the_template(call: Any, code: int | None) -> None:
    refusal = check_template(call, COMPONENTS, "POSITIONAL")
    assert (refusal.code if refusal else None) == code


BUTTONS = {
    "type": "BUTTONS",
    "buttons": [{"type": "QUICK_REPLY"}, {"type": "PHONE_NUMBER"}, {"type": "COPY_CODE"}],
}
CARD = [{"type": "HEADER", "format": "IMAGE"}, {"type": "BODY", "text": "{{1}}"}]
CARDS: list[dict[str, Any]] = [{"type": "CAROUSEL", "cards": [{"components": CARD}, {"components": CARD}]}]
OFFER: list[dict[str, Any]] = [{"type": "LIMITED_TIME_OFFER", "limited_time_offer": {"has_expiration": True}}]


def _button(sub_type: str, index: Any, *parameters: Any) -> dict[str, Any]:
    return {"type": "button", "sub_type": sub_type, "index": index, "parameters": list(parameters)}


def _coupon(code: Any = "SAVE20") -> dict[str, Any]:
    return _button("copy_code", "2", {"type": "coupon_code", "coupon_code": code})


def _card(index: int, header: Any = None) -> dict[str, Any]:
    image = {"type": "image", "image": header if header is not None else {"id": "1"}}
    text = {"type": "text", "text": "Blue"}
    return {
        "card_index": index,
        "components": [{"type": "header", "parameters": [image]}, {"type": "body", "parameters": [text]}],
    }


def _header(**parameter: Any) -> dict[str, Any]:
    return {"type": "header", "parameters": [parameter]}


HEADER_TEXT: list[dict[str, Any]] = [{"type": "HEADER", "format": "TEXT", "text": "For {{1}}"}]
HEADER_PLACE: list[dict[str, Any]] = [{"type": "HEADER", "format": "LOCATION"}]
BODY: list[dict[str, Any]] = [{"type": "BODY", "text": "{{1}}"}]


@pytest.mark.parametrize(
    ("template", "given", "code"),
    [
        ([BUTTONS], [_coupon()], None),
        ([BUTTONS], [], 131008),
        ([BUTTONS], [_coupon("x" * 21)], 131009),
        ([BUTTONS], [_coupon(), _button("quick_reply", "0", {"type": "payload", "payload": "order-7"})], None),
        ([BUTTONS], [_coupon(), _button("quick_reply", 0, {"type": "payload"})], 131008),
        ([BUTTONS], [_coupon(), _button("url", 1, {"type": "text", "text": "x"})], 100),
        ([BUTTONS], [_coupon(), _button("url", 3, {"type": "text", "text": "x"})], 132018),
        ([BUTTONS], [_coupon(), _button("phone_number", 1)], 100),
        ([BUTTONS], [_coupon(), _button("url", "first")], 131009),
        ([BUTTONS], [_coupon(), {"type": "button", "sub_type": "url"}], 131009),
        (BODY, [{"type": "torso", "parameters": []}], 100),
        (BODY, [{"type": "body", "parameters": "Ines"}], 131009),
        (BODY, [{"type": "body", "parameters": [{"type": "currency", "currency": {"code": "EUR"}}]}], 131008),
        (BODY, [{"type": "body", "parameters": [{"type": "currency", "currency": {"fallback_value": "1 €"}}]}], None),
        (HEADER_TEXT, [_header(type="text", text="Ines")], None),
        (HEADER_TEXT, [_header(type="text", text="x" * 60)], 132005),
        (HEADER_PLACE, [_header(type="location", location={"latitude": 1, "longitude": 2})], None),
        (HEADER_PLACE, [_header(type="location", location={"latitude": 1})], 131008),
        ([CARD[0]], [_header(type="image", image={})], 131008),
        (CARDS, [{"type": "carousel", "cards": [_card(0), _card(1)]}], None),
        (CARDS, [{"type": "carousel", "cards": [_card(0)]}], 132012),
        (CARDS, [{"type": "carousel", "cards": [_card(0), _card(0)]}], 132012),
        (CARDS, [{"type": "carousel", "cards": [_card(0), _card(1, {})]}], 131008),
        (CARDS, [], 132012),
        (BODY, [{"type": "body", "parameters": [{"type": "text", "text": "x"}]}, {"type": "carousel"}], 132012),
        (OFFER, [], 132000),
    ],
)
def test_buttons_media_cards_and_offers(template: Any, given: list[dict[str, Any]], code: int | None) -> None:
    refusal = check_template({"components": given}, template, "POSITIONAL")
    assert (refusal.code if refusal else None) == code


def test_a_template_without_placeholders_takes_no_parameters() -> None:
    call = {"components": [{"type": "header", "parameters": [{"type": "text", "text": "x"}]}]}
    refusal = check_template(call, [{"type": "BODY", "text": "Hello"}], "POSITIONAL")
    assert refusal is not None
    assert refusal.code == 132000


def test_named_parameters_go_by_their_names() -> None:
    components: list[dict[str, Any]] = [{"type": "BODY", "text": "Hi {{first_name}}"}]

    def code(**parameter: str) -> int | None:
        call = {"components": [{"type": "body", "parameters": [{"type": "text", "text": "x", **parameter}]}]}
        refusal = check_template(call, components, "NAMED")
        return refusal.code if refusal else None

    assert code(parameter_name="first_name") is None
    assert code(parameter_name="other") == 132012
    assert code() == 132012


_NAMES = """to type text body template language code components parameters index interactive action buttons
reply sections rows button header image contacts footer title id name location latitude cards card_index sub_type
carousel coupon_code currency limited_time_offer format parameter_name BODY BUTTONS HEADER CAROUSEL COPY_CODE URL"""
_KEYS = st.sampled_from(sorted(_NAMES.split()))
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | _KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_KEYS, _ANYTHING), st.lists(st.dictionaries(_KEYS, _ANYTHING), max_size=4))
def test_no_body_is_too_odd_to_be_judged(body: dict[str, Any], components: list[dict[str, Any]]) -> None:
    addressee(body)
    whole = {"messaging_product": "whatsapp", **body}
    if check_body(whole) is None and isinstance(body.get("template"), dict):
        check_template(body["template"], components, "NAMED")


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"NaN", b"[" * 100_000, '{"a": 1}'.encode("utf-16")])
def test_what_is_not_json(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_json(raw)
