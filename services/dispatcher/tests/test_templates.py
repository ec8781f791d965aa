from typing import Any

import pytest
from dispatcher.templates import mismatches, variables


def body(*texts: str | None, names: tuple[str, ...] = ()) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
    for parameter, name in zip(parameters, names, strict=False):
        parameter["parameter_name"] = name
    return {"type": "body", "parameters": parameters}


POSITIONAL = {"type": "BODY", "text": "Hi {{1}}, order {{2}} is ready, {{1}}"}
NAMED = {"type": "BODY", "text": "Hi {{first_name}}, order {{order_no}}"}
IMAGE = {"type": "HEADER", "format": "IMAGE"}
URL = {"type": "BUTTONS", "buttons": [{"type": "QUICK_REPLY"}, {"type": "URL", "url": "https://x.test/{{1}}"}]}
PLAIN_URL = {"type": "BUTTONS", "buttons": [{"type": "URL", "url": "https://x.test/"}]}
SUFFIX = {"type": "button", "sub_type": "url", "index": "1", "parameters": [{"type": "text", "text": "4711"}]}

CASES = [
    ("fits", [POSITIONAL], [body("Ines", "4711")], []),
    ("one short", [POSITIONAL], [body("Ines")], ["count"]),
    ("one too many", [POSITIONAL], [body("Ines", "4711", "x")], ["count"]),
    ("nothing mapped", [POSITIONAL], [], ["count"]),
    ("empty", [POSITIONAL], [body("Ines", "  ")], ["empty value"]),
    ("null", [POSITIONAL], [body("Ines", None)], ["empty value"]),
    ("named", [NAMED], [body("Ines", "4711", names=("first_name", "order_no"))], []),
    ("named, other order", [NAMED], [body("4711", "Ines", names=("order_no", "first_name"))], []),
    ("named, misspelt", [NAMED], [body("Ines", "4711", names=("name", "order_no"))], ["names"]),
    ("no variables", [{"type": "BODY", "text": "Hello"}], [], []),
    ("no variables, one given", [{"type": "BODY", "text": "Hello"}], [body("x")], ["count"]),
    ("image", [IMAGE], [{"type": "header", "parameters": [{"type": "image", "image": {"id": "1"}}]}], []),
    ("image missing", [IMAGE], [], ["media"]),
    ("video for an image", [IMAGE], [{"type": "header", "parameters": [{"type": "video"}]}], ["media"]),
    ("button suffix", [URL], [SUFFIX], []),
    ("button suffix missing", [URL], [], ["suffix"]),
    ("button without variable", [PLAIN_URL], [], []),
    ("a kind from the future", [{"type": "CAROUSEL_3D", "cards": [1]}], [], []),
    ("rubbish inside", [{"type": "BUTTONS", "buttons": ["x", None]}], [{"type": "button", "parameters": 7}], []),
]


@pytest.mark.parametrize(("name", "components", "given", "problems"), CASES, ids=[case[0] for case in CASES])
def test_parameters_against_the_template(name: str, components: Any, given: Any, problems: list[str]) -> None:
    assert [found["problem"] for found in mismatches(components, given)] == problems


def test_variables_are_distinct_and_in_order() -> None:
    assert variables("{{2}} {{1}} {{ 2 }} {{name}} {{}} {1}") == ["2", "1", "name"]
