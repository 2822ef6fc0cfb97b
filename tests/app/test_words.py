"""The catalogues of translations: complete where it counts, whole, and about texts that there are."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from gradio_app import words
from gradio_app.door import Place
from gradio_app.main import serving
from gradio_app.studio import Studio
from tests.app.helpers import ROOT

HOLE = re.compile(r"\{\*?\w+\}")
LANGUAGES = tuple(words.LANGUAGES)
GRADIO = {"info", "warning", "error"}
"""Titles of Gradio's own messages."""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """`.ci/words.py`, which reads the texts out of the sources."""
    found = importlib.util.spec_from_file_location("words_tool", ROOT / ".ci" / "words.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_whole(language: str) -> None:
    entries = words.catalogue(language)
    assert all(source.strip() and target.strip() for source, target in entries.items())
    assert [s for s, t in entries.items() if sorted(HOLE.findall(s)) != sorted(HOLE.findall(t))] == []
    twice = [s for s in entries if len(set(HOLE.findall(s))) != len(HOLE.findall(s))]
    assert twice == [], "two values of one name could not be told apart"


def test_all_languages_have_the_same_texts() -> None:
    first, *others = (words.catalogue(language) for language in LANGUAGES)
    for one in others:
        assert sorted(first.keys() ^ one.keys()) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_label_is_translated(tool: ModuleType, language: str) -> None:
    """Tabs, buttons, headings, names of fields: whatever is short. `python .ci/words.py missing` prints the rest."""
    short = [text for text in tool.app() if len(text.split()) <= 4 and not HOLE.search(text)]
    assert len(short) > 200
    assert tool.lacking(short, words.catalogue(language)) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_nearly_every_sentence_is_translated(tool: ModuleType, language: str) -> None:
    texts = tool.app()
    lacking = tool.lacking(texts, words.catalogue(language))
    assert len(lacking) <= 0.03 * len(texts), lacking


def test_no_translation_is_of_a_text_that_is_gone(tool: ModuleType) -> None:
    """A text is often put together from pieces; each word of it stands in the sources."""
    said = re.findall(r"[a-z]+", tool.everything().lower())
    there = {form for word in said for form in (word, word.removesuffix("s"))} | GRADIO
    gone = {source: lost for source in words.catalogue("zh-CN") if (lost := set(_words(source)) - there)}
    assert gone == {}


def _words(source: str) -> list[str]:
    return [
        w.removesuffix("s") if w.endswith("s") else w for w in re.findall(r"[a-z]{4,}", HOLE.sub(" ", source).lower())
    ]


def test_the_reader_of_sources_finds_texts_and_leaves_code(tool: ModuleType) -> None:
    python = (
        '"""Not this."""\nx = {"key": f"Done: {of} steps" + (f" in {took}" if took else "")}\ncount(n, "caption")\n'
    )
    assert {"Done: {of} steps in {took}", "{n} captions"} <= set(tool.python_texts(python))
    script = 'h("p", { class: "a b" }, `${n} ${n === 1 ? "file" : "files"} of ${all}`, "It\'s here"); // "no comment"\n'
    found = set(tool.script_texts(script))
    assert {"{n} file of {all}", "{n} files of {all}", "It's here"} <= found
    assert not {"a b", "no comment"} & found


def test_what_lacks_can_be_asked_for_and_added(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`missing` prints JSON to fill in, `add` takes it."""
    monkeypatch.setattr(words, "HERE", tmp_path)
    for language in LANGUAGES:
        (tmp_path / f"{language}.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["words.py", "missing", "pt-BR", "--kind", "app"])
    tool.main()
    asked = json.loads(capsys.readouterr().out)
    assert asked["Start training"] == ""
    (tmp_path / "filled.json").write_text(json.dumps({"Start training": "Iniciar", "Stop": ""}), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["words.py", "add", "pt-BR", str(tmp_path / "filled.json")])
    tool.main()
    assert words.catalogue("pt-BR") == {"Start training": "Iniciar"}


def test_gradio_is_given_the_catalogues(studio: Studio) -> None:
    given = serving(studio, Place())["i18n"].translations_dict
    assert given["zh-CN"]["Train"] == "训练"
    assert given["pt-BR"]["Train"] == "Treinar"
    assert given["en"] == {}
