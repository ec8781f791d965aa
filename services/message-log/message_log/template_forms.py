"""Templates as a person fills them in: the fields that one has, the message made of what was given, how it reads. Pure;
whether it fits is judged by the dispatcher. Shapes: Meta, "Templates overview" and "Send messages"."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from sendwhy.events import TemplateUpdated

from message_log.language import gettext as _
from message_log.words import in_words

_VARIABLE = re.compile(r"\{\{\s*([A-Za-z0-9_]+)\s*\}\}")
APPROVED = "APPROVED"


@dataclass(frozen=True, slots=True)
class Field:
    """One variable: its form name, and what stands beside it."""

    name: str
    label: str


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where variables stand: `kind` header, body or button; `index` of a button."""

    kind: str
    text: str
    index: int = 0

    @property
    def variables(self) -> list[str]:
        return list(dict.fromkeys(_VARIABLE.findall(self.text)))

    def field_name(self, variable: str) -> str:
        return f"{self.kind}.{self.index}.{variable}"

    def label(self, variable: str) -> str:
        name = f"{{{{{variable}}}}}"
        if self.kind == "header":
            return _("%(name)s in the title", name=name)
        if self.kind == "body":
            return _("%(name)s in the text", name=name)
        return _("%(name)s in a button's address", name=name)


@dataclass(frozen=True, slots=True)
class TemplateForm:
    """A template of the workspace. `unfit`: why it can't be filled in here, or None."""

    template: TemplateUpdated
    slots: tuple[_Slot, ...]
    unfit: str | None

    @property
    def key(self) -> str:
        return f"{self.template.name}/{self.template.language}"

    @property
    def fields(self) -> list[Field]:
        return [Field(slot.field_name(one), slot.label(one)) for slot in self.slots for one in slot.variables]

    def missing(self, given: Mapping[str, str]) -> list[str]:
        return [field.label for field in self.fields if not given.get(field.name, "").strip()]

    def content(self, given: Mapping[str, str]) -> dict[str, JsonValue]:
        """The message's content, as Meta takes it."""
        components = [_component(slot, given) for slot in self.slots if slot.variables]
        template: dict[str, JsonValue] = {
            "name": self.template.name,
            "language": {"code": self.template.language},
            **({"components": components} if components else {}),
        }
        return {"type": "template", "template": template}


def form_of(template: TemplateUpdated) -> TemplateForm:
    slots: list[_Slot] = []
    unfit = None if template.status == APPROVED else _("it is %(status)s", status=in_words(template.status))
    for component in template.components:
        kind = str(component.get("type", "")).upper()
        text = component.get("text")
        if kind == "BODY" and isinstance(text, str):
            slots.append(_Slot("body", text))
        elif kind == "HEADER" and str(component.get("format", "TEXT")).upper() != "TEXT":
            unfit = unfit or _("its header needs a file")
        elif kind == "HEADER" and isinstance(text, str):
            slots.append(_Slot("header", text))
        elif kind == "BUTTONS":
            found, why = _buttons(component.get("buttons"))
            slots += found
            unfit = unfit or why
    return TemplateForm(template, tuple(slots), unfit)


def _buttons(buttons: JsonValue) -> tuple[list[_Slot], str | None]:
    listed = [each for each in buttons if isinstance(each, dict)] if isinstance(buttons, list) else []
    kinds = [str(button.get("type", "")).upper() for button in listed]
    slots = [
        _Slot("button", str(button.get("url", "")), index)
        for index, (button, kind) in enumerate(zip(listed, kinds, strict=True))
        if kind == "URL" and _VARIABLE.search(str(button.get("url", "")))
    ]
    return slots, _("a button of it needs a code") if "COPY_CODE" in kinds else None


def _component(slot: _Slot, given: Mapping[str, str]) -> JsonValue:
    parameters: list[JsonValue] = [
        {
            "type": "text",
            "text": given.get(slot.field_name(one), "").strip(),
            **({} if one.isdigit() or slot.kind == "button" else {"parameter_name": one}),
        }
        for one in slot.variables
    ]
    if slot.kind == "button":
        return {"type": "button", "sub_type": "url", "index": str(slot.index), "parameters": parameters}
    return {"type": slot.kind, "parameters": parameters}


def text_of(template: TemplateUpdated) -> str:
    """The template's own words, variables as they stand: title, text, footer."""
    kinds = {"HEADER": "", "BODY": "", "FOOTER": ""}
    for component in template.components:
        kind, text = str(component.get("type", "")).upper(), component.get("text")
        if kind in kinds and isinstance(text, str):
            kinds[kind] = text
    return "\n\n".join(text for text in kinds.values() if text)


def said_in(content: JsonValue, templates: Mapping[str, TemplateUpdated]) -> str | None:
    """What a message says, as far as words say it: its text, its caption, or its template with the parameters filled in
    (`templates` by name/language)."""
    if not isinstance(content, dict):
        return None
    kind = content.get("type")
    body = content.get(kind) if isinstance(kind, str) else None
    if not isinstance(body, dict):
        return None
    if kind != "template":
        words = body.get("body") if kind == "text" else body.get("caption")
        return _words(words.get("text") if isinstance(words, dict) else words)
    language = body.get("language")
    code = language.get("code") if isinstance(language, dict) else None
    template = templates.get(f"{body.get('name')}/{code}")
    return None if template is None else _filled(template, body.get("components"))


def _words(value: JsonValue) -> str | None:
    return value if isinstance(value, str) else None


def _filled(template: TemplateUpdated, components: JsonValue) -> str:
    given = [each for each in components if isinstance(each, dict)] if isinstance(components, list) else []
    parts = []
    for component in template.components:
        kind, text = str(component.get("type", "")).upper(), component.get("text")
        if kind in ("HEADER", "BODY", "FOOTER") and isinstance(text, str):
            own = next((each for each in given if str(each.get("type", "")).upper() == kind), {})
            parts.append(_with(text, own.get("parameters")))
    return "\n\n".join(parts)


def _with(text: str, parameters: JsonValue) -> str:
    listed = [each for each in parameters if isinstance(each, dict)] if isinstance(parameters, list) else []
    named = {str(each.get("parameter_name") or number): each.get("text") for number, each in enumerate(listed, start=1)}
    return _VARIABLE.sub(lambda found: str(named.get(found[1]) or found[0]), text)


def by_key(templates: Sequence[TemplateUpdated]) -> dict[str, TemplateUpdated]:
    return {f"{one.name}/{one.language}": one for one in templates}
