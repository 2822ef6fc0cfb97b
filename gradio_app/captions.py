"""Captions of a data set as the page sees them: where each came from, and changes of many at once with undo."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .datasets import DataSets

BOOK = ".tuner-captions.json"
"""The engine's own notes in the folder that it captioned; read here, never written."""

_TURN = threading.Lock()


@dataclass(frozen=True)
class Change:
    """One caption before and after."""

    picture: str
    before: str
    after: str


def mark(text: str) -> str:
    """What tells one text from another, as in the engine's notes."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


def origins(sets: DataSets, name: str, texts: dict[str, str]) -> dict[str, str]:
    """For each caption: you (written here), auto (by a captioner, unchanged since) or imported. texts: by picture."""
    mine = sets.meta(name).get("mine") or {}
    noted = _noted(sets.folder(name))
    found = {}
    for picture, text in texts.items():
        if not text:
            continue
        note = noted.get(picture) or {}
        if note.get("origin") == "auto" and note.get("sha256") == mark(text):
            found[picture] = "auto"
        else:
            edited = note.get("origin") == "person" or note.get("origin") == "auto"
            found[picture] = "you" if mine.get(picture) == mark(text) or edited else "imported"
    return found


def write(sets: DataSets, name: str, texts: dict[str, str]) -> None:
    """Write captions by hand, and note that a person did."""
    with _TURN:
        for picture, text in texts.items():
            sets.set_caption(name, picture, text)
        mine = sets.meta(name).get("mine") or {}
        sets.set_meta(name, {"mine": {**mine, **{p: mark(" ".join(t.split())) for p, t in texts.items()}}})


def changes(texts: dict[str, str], asked: dict[str, Any]) -> list[Change]:
    """What find and replace, or a prefix, would do. Raises `ValueError` with a sentence."""
    if asked.get("do") == "prefix":
        prefix = " ".join(str(asked.get("prefix", "")).split())
        if not prefix:
            raise ValueError("Write the text that is to stand in front.")
        made = {p: _joined(prefix, t) for p, t in texts.items() if not t.startswith(prefix)}
    else:
        find = str(asked.get("find", ""))
        if not find:
            raise ValueError("Write the text to look for.")
        instead = str(asked.get("replace", ""))
        pattern = rf"(?<!\w){re.escape(find)}(?!\w)" if asked.get("words") else re.escape(find)
        seek = re.compile(pattern, 0 if asked.get("case") else re.IGNORECASE)
        made = {p: seek.sub(lambda _: instead, t) for p, t in texts.items()}
    tidy = {p: " ".join(t.split()) for p, t in made.items()}
    return [Change(p, texts[p], t) for p, t in tidy.items() if t != texts[p]]


def apply(sets: DataSets, name: str, made: list[Change]) -> None:
    """Write many captions, and keep what they were for `undo`."""
    sets.set_meta(name, {"before": [[c.picture, c.before, c.after] for c in made]})
    write(sets, name, {c.picture: c.after for c in made})


def undo(sets: DataSets, name: str) -> tuple[int, int]:
    """Take the last change of many back; captions edited since stay. Returns how many went back, how many stayed."""
    before = sets.meta(name).get("before") or []
    there = {path.name: sets.caption(path) for path in sets.files(name)}
    back = {picture: text for picture, text, after in before if there.get(picture) == after}
    write(sets, name, back)
    sets.set_meta(name, {"before": []})
    return len(back), len(before) - len(back)


def _joined(prefix: str, text: str) -> str:
    if not text:
        return prefix
    return f"{prefix} {text}" if prefix[-1] in ",.;:" else f"{prefix}, {text}"


def _noted(folder: Path) -> dict[str, Any]:
    try:
        raw = json.loads((folder / BOOK).read_text(encoding="utf-8"))
        return {str(name): note for name, note in raw["captions"].items() if isinstance(note, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
