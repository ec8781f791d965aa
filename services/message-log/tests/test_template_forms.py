"""Templates filled in by a person."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_log.template_forms import by_key, form_of, said_in, text_of
from sendwhy.events import TemplateUpdated

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
BODY = {"type": "BODY", "text": "Hi {{1}}, {{2}} off."}


def template(*components: dict[str, Any], status: str = "APPROVED") -> TemplateUpdated:
    return TemplateUpdated(
        event_id=UUID(int=1),
        occurred_at=NOW,
        waba_id="300",
        name="sale",
        language="en_US",
        version=1,
        status=status,
        category="MARKETING",
        parameter_format="POSITIONAL",
        components=list(components),
        said_by="meta",
        said_at=NOW,
    )


def test_what_is_filled_in_stands_where_meta_wants_it() -> None:
    form = form_of(
        template(
            {"type": "HEADER", "format": "TEXT", "text": "For {{name}}"},
            BODY,
            {"type": "FOOTER", "text": "STOP to stop"},
            {"type": "BUTTONS", "buttons": [{"type": "QUICK_REPLY"}, {"type": "URL", "url": "https://x.test/{{1}}"}]},
        )
    )
    assert form.unfit is None
    given = {"header.0.name": "Ana", "body.0.1": " Ana ", "body.0.2": "10 %", "button.1.1": "a1"}
    assert [field.name for field in form.fields] == list(given)
    assert (form.missing(given), len(form.missing({}))) == ([], 4)
    assert form.content(given) == {
        "type": "template",
        "template": {
            "name": "sale",
            "language": {"code": "en_US"},
            "components": [
                {"type": "header", "parameters": [{"type": "text", "text": "Ana", "parameter_name": "name"}]},
                {"type": "body", "parameters": [{"type": "text", "text": "Ana"}, {"type": "text", "text": "10 %"}]},
                {
                    "type": "button",
                    "sub_type": "url",
                    "index": "1",
                    "parameters": [{"type": "text", "text": "a1"}],
                },
            ],
        },
    }


def test_a_template_without_variables_has_no_components() -> None:
    assert "components" not in form_of(template({"type": "BODY", "text": "Hello"})).content({})["template"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (template(BODY, status="PAUSED"), "it is paused"),
        (template({"type": "HEADER", "format": "IMAGE"}, BODY), "its header needs a file"),
        (template(BODY, {"type": "BUTTONS", "buttons": [{"type": "COPY_CODE"}]}), "a button of it needs a code"),
    ],
)
def test_what_cannot_be_sent_from_a_form_says_why(given: TemplateUpdated, why: str) -> None:
    assert form_of(given).unfit == why


def test_what_was_said_is_told_in_the_templates_words() -> None:
    known = by_key([template(BODY, {"type": "FOOTER", "text": "Bye {{1}}"})])
    form = form_of(known["sale/en_US"])
    content = form.content({"body.0.1": "Ana", "body.0.2": "10 %"})
    assert said_in(content, known) == "Hi Ana, 10 % off.\n\nBye {{1}}"
    assert said_in(content, {}) is None
    assert said_in({"type": "text", "text": {"body": "Hello"}}, {}) == "Hello"
    assert said_in({"type": "image", "image": {"caption": "Look"}}, {}) == "Look"
    assert text_of(known["sale/en_US"]).startswith("Hi {{1}}")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
_HOSTILE = st.fixed_dictionaries(
    {"type": st.sampled_from(["HEADER", "BODY", "BUTTONS", "body", "?"])},
    optional={"text": _JSON, "format": _JSON, "buttons": _JSON},
)


@given(st.lists(_HOSTILE, max_size=4), _JSON)
def test_whatever_meta_and_requests_hold_can_be_read(components: list[dict[str, Any]], given: Any) -> None:
    known = template(*components)
    form = form_of(known)
    form.content({})
    content: Any = {
        "type": "template",
        "template": {"name": "sale", "language": {"code": "en_US"}, "components": given},
    }
    said_in(content, {"sale/en_US": known})
    said_in(given, {})
