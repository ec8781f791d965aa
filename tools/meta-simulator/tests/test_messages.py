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
    ],
)
def test_what_meta_refuses_in_a_body(changes: dict[str, Any], code: int | None) -> None:
    refusal = check_body(TEXT | changes)
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
reply sections rows button header image contacts"""
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
