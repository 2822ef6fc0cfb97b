"""The interface in other languages: catalogues of English source text → translation, and how the page gets them.

Sources stay plain English. A text with values is a pattern: `{name}` stands for any text, which is shown as it is;
`{*name}` for a text of the interface, which is translated in its turn; a name of one letter, `{n}`, for a number.
`parts/words.js` puts the translations on the page; `python .ci/words.py` lists what has none yet.
"""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr

HERE = Path(__file__).resolve().parent
LANGUAGES = {"zh-CN": "中文", "pt-BR": "Português"}
"""Languages beside English, each by its own name; each has a catalogue LANGUAGE.json in this folder."""


def catalogue(language: str) -> dict[str, str]:
    """English source text → text in this language."""
    return json.loads((HERE / f"{language}.json").read_text(encoding="utf-8"))


def i18n() -> gr.I18n:
    """All catalogues for `launch`: Gradio hands them to the page along with its settings."""
    return gr.I18n(en={}, **{language: catalogue(language) for language in LANGUAGES})
