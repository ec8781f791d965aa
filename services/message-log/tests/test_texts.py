"""Every text of the pages stands in the catalogue; a second language is a file, and a broken one harms nobody."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po
from jinja2 import nodes
from message_log.language import ENGLISH, LOCALES, choose, decimal, gettext, lazy, load, ngettext, speaking, told
from message_log.pages import make_templates
from page_texts import PSEUDO, WORD, outside_the_catalogue, pseudo_language
from sendwhy.reasons import CATALOGUE
from structlog.testing import capture_logs

TEMPLATES = make_templates()
SAY = {"_", "gettext", "ngettext", "pgettext", "npgettext"}
# What is no text: a name that stays a name, a unit of a time, an example that people type.
NAMES = re.compile(r"Sendwhy|UTC|Europe/Berlin|wamid\.…")
# A macro may give attributes to the tag that calls it.
ATTRIBUTES = re.compile(r'[a-z-]+="[^"]*"|disabled')
# A sentence, or a word as people write it, in a string of a template.
PROSE = re.compile(r"[A-Z][a-z’]+|[a-z’]+ [a-z’]+ [a-z’]+")


def po(folder: Path, language: str, *texts: tuple[str | tuple[str, str], str | tuple[str, ...]]) -> Path:
    catalogue = Catalog(locale=language)
    for source, translation in texts:
        catalogue.add(source, translation)
    file = folder / language / "LC_MESSAGES" / "messages.po"
    file.parent.mkdir(parents=True)
    with file.open("wb") as opened:
        write_po(opened, catalogue)
    return folder


def markup_of(node: nodes.Node) -> Iterator[str]:
    """A template's own markup in its order, with a ⟦⟧ where the catalogue says something."""
    if isinstance(node, nodes.TemplateData):
        yield node.data
    for child in node.iter_child_nodes():
        yield from markup_of(child)


def strings_of(node: nodes.Node) -> Iterator[str]:
    """Strings in a template's expressions that aren't said through the catalogue."""
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name in SAY:
        for argument in node.kwargs:
            yield from strings_of(argument)
        return
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        yield node.value
    # Keys, and what is compared with, are codes.
    own = [node.node] if isinstance(node, nodes.Getitem) else [] if isinstance(node, nodes.Compare) else None
    for child in node.iter_child_nodes() if own is None else own:
        yield from strings_of(child)


@pytest.mark.parametrize("name", TEMPLATES.list_templates())
def test_a_template_says_nothing_past_the_catalogue(name: str) -> None:
    tree = TEMPLATES.parse((Path(TEMPLATES.loader.searchpath[0]) / name).read_text())  # type: ignore[union-attr]
    own = [ATTRIBUTES.sub("", text) for _, text in outside_the_catalogue("".join(markup_of(tree)))]
    assert [text for text in own if WORD.search(NAMES.sub("", text))] == []
    assert [text for text in strings_of(tree) if PROSE.search(text) and not NAMES.fullmatch(text)] == []


def test_reasons_are_in_the_catalogue() -> None:
    with (LOCALES / "messages.pot").open("rb") as file:
        known = read_po(file)
    for info in CATALOGUE.values():
        for text in (info.title, info.meaning, *info.causes, info.what_to_do, info.prevention, *info.meta_rules):
            assert known.get(text) is not None, text


def test_a_language_is_a_file(tmp_path: Path) -> None:
    spoken = load(
        po(
            tmp_path,
            "pl",
            ("Log in", "Zaloguj się"),
            (("%(num)s day", "%(num)s days"), ("%(num)s dzień", "%(num)s dni", "%(num)s dni")),
        )
    )
    table = {"login": lazy("Log in")}
    assert str(table["login"]) == "Log in"
    with speaking(spoken["pl"]):
        assert str(table["login"]) == gettext("Log in") == told("Log in") == "Zaloguj się"
        assert [ngettext("%(num)s day", "%(num)s days", n) for n in (1, 1234)] == ["1 dzień", "1\xa0234 dni"]
        assert decimal(12345) == "12\xa0345"
        assert gettext("What nobody translated, %(name)s", name="x") == "What nobody translated, x"
    assert decimal(12345) == "12,345"


@pytest.mark.parametrize(
    ("source", "translation"),
    [
        ("Fill in %(fields)s.", "Fyll i %(falt)s."),
        ("Fill in %(fields)s.", "Fyll i %(fields)s och %(more)s."),
        ("Fill in %(fields)s.", "Fyll i %(fields)d."),
        ("Fill in %(fields)s.", "Fyll i."),
        ("Fill in %(fields)s.", "100 % av %(fields)s."),
        ("more than 20 %% of it", "mer än 20 % av den"),
        ("Look at <a href=\"%(home)s\">all</a>.", "Se <a href=\"%(home)s\" onclick=\"x\">alla</a>."),
        ("Log in", "Logga <script>in</script>"),
        ("Log in", "Logga \"in\""),
        ("{count} new", "{antal} nya"),
        (("%(num)s day", "%(num)s days"), ("%(num)s dag", "%(dagar)s dagar")),
    ],
)  # fmt: skip
def test_a_wrong_translation_is_left_out_and_told(
    tmp_path: Path, source: str | tuple[str, str], translation: str | tuple[str, ...]
) -> None:
    with capture_logs() as logs:
        spoken = load(po(tmp_path, "sv", (source, translation), ("Log out", "Logga ut")))["sv"]
    assert [entry["event"] for entry in logs] == ["a translation is left out"]
    with speaking(spoken):
        assert gettext("Log out") == "Logga ut"
        if isinstance(source, str):
            assert told(source) == source
        else:
            assert ngettext(*source, 2) == "2 days"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"msgid x"])
def test_a_catalogue_that_cant_be_read_is_not_offered_and_told(tmp_path: Path, content: bytes) -> None:
    po(tmp_path, "sv", ("Log out", "Logga ut"))
    for language in ("nn", "not-a-language"):
        file = tmp_path / language / "LC_MESSAGES" / "messages.po"
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    with capture_logs() as logs:
        assert set(load(tmp_path)) == {"en", "sv"}
    assert [entry["language"] for entry in logs] == ["nn", "not-a-language"]


@pytest.mark.parametrize(
    ("kept", "accepted", "code"),
    [
        (None, "", "en"),
        (None, "sv", "sv"),
        (None, "sv-SE,sv;q=0.9,en;q=0.8", "sv"),
        (None, "en-GB,en;q=0.9,sv;q=0.8", "en"),
        (None, "de;q=1, SV;q=0.5", "sv"),
        (None, "sv;q=0, en", "en"),
        (None, "*", "en"),
        (None, "de, fr", "en"),
        (None, "sv;q=much", "en"),
        (None, ",;q=;,\x00" + "x," * 5000, "en"),
        ("sv", "en", "sv"),
        ("en", "sv", "en"),
        ("xx", "sv", "sv"),
    ],
)
def test_the_kept_language_goes_before_the_browsers_and_english_is_the_last(
    tmp_path: Path, kept: str | None, accepted: str, code: str
) -> None:
    assert choose(kept, accepted, load(po(tmp_path, "sv", ("Log in", "Logga in")))).code == code


@pytest.mark.parametrize(
    "template",
    [
        '{{ _("by %(who)s", who=who) }}',
        "{% trans who %}by {{ who }}{% endtrans %}",
        '{{ ngettext("by %(who)s", "by %(who)s", 1, who=who) }}',
        '{{ pgettext("person", "by %(who)s", who=who) }}',
        '{{ words.title_of(who) }}',
        '{{ words.told(who) }}',
    ],
)  # fmt: skip
def test_what_is_filled_into_a_text_stays_text(tmp_path: Path, template: str) -> None:
    page = TEMPLATES.from_string(template)
    for language in (ENGLISH, pseudo_language(tmp_path)[PSEUDO]):
        with speaking(language):
            assert page.render(who="<b>%(x)s</b>").strip("⟦⟧").removeprefix("by ") == "&lt;b&gt;%(x)s&lt;/b&gt;"
