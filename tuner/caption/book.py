"""Captions beside the items, and where each came from. What a person wrote or edited is never overwritten.

The origins stand in `.tuner-captions.json` in the folder that is captioned: {"version": 1, "captions": {name:
{"origin": "auto" | "person" | "imported", "model", "purpose", "sha256" of the text without spaces at its ends}}}.
`imported`: it was there before we ever looked. `person`: it is no longer what we noted. `was`: the hash of the text
that a new one is about to replace, so that a kill between the two writes leaves neither unknown.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.captions import read_text
from ..data.sources.common import BOOK
from ..errors import UserError

State = Literal["none", "auto", "kept"]
Entry = dict[str, Any]


@dataclass
class Book:
    """The captions of one folder. folder: where they are written. notes: name → what is known of its caption."""

    folder: Path
    notes: dict[str, Entry] = field(default_factory=dict)
    waiting: dict[str, tuple[Path, str]] = field(default_factory=dict)
    """name → (text file, text), not on the disk yet."""
    changed: bool = False

    @classmethod
    def open(cls, folder: Path) -> Book:
        """The book of a folder, empty where there is none. Raises `UserError` if it is damaged."""
        try:
            raw = json.loads((folder / BOOK).read_text(encoding="utf-8"))
            notes = {name: _entry(raw["captions"][name]) for name in raw["captions"]}
        except FileNotFoundError:
            return cls(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{folder / BOOK}, which says where captions came from, is damaged; delete it: then all captions that "
                "are there are left as they are."
            ) from None
        return cls(folder, notes)

    def state(self, name: str, text: Path | None) -> State:
        """What there is for an item: no caption, one that we wrote, or one that stays. Notes what it learns.

        text: the text file that there is.
        """
        if text is None:
            return "none"
        note, now = self.notes.get(name), _hash(_read(text))
        if note is not None and note["origin"] == "auto" and now in (note["sha256"], note.get("was")):
            return "auto"
        origin = "imported" if note is None or (note["origin"] == "imported" and note["sha256"] == now) else "person"
        entry = {"origin": origin, "sha256": now}
        if entry != note:
            self.notes[name], self.changed = entry, True
        return "kept"

    def add(self, name: str, path: Path, text: str, model: str, purpose: str) -> None:
        """Note a new automatic caption; it is on the disk after the next `save`."""
        entry: Entry = {"origin": "auto", "sha256": _hash(text), "model": model, "purpose": purpose}
        if path.exists():
            entry["was"] = _hash(_read(path))
        self.notes[name], self.changed = entry, True
        self.waiting[name] = (path, text)

    @property
    def due(self) -> bool:
        """Whether enough is waiting to write the whole book: small books always, large ones every half per cent."""
        return len(self.waiting) > len(self.notes) // 200

    def save(self) -> list[str]:
        """Write the book, then the captions, each whole or not at all. Returns the names written. Raises `UserError`.

        In this order a kill in between leaves a note without a text, which is written on the next run; the other way
        round it would leave an automatic text that nobody knows.
        """
        for name, (path, _) in list(self.waiting.items()):
            if self.state(name, path if path.exists() else None) == "kept":  # somebody wrote one just now
                del self.waiting[name]
        if not self.changed and not self.waiting:
            return []
        told = json.dumps({"version": 1, "captions": self.notes}, ensure_ascii=False, indent=0)
        _write(self.folder / BOOK, told + "\n", self.folder)
        done = []
        for name, (path, text) in self.waiting.items():
            _write(path, text + "\n", self.folder)
            done.append(name)
        self.waiting, self.changed = {}, False
        return done


def writable(folder: Path) -> None:
    """Raise `UserError` unless captions can be written into this folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".tuner-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _cannot(folder, error) from None


def _entry(raw: Entry) -> Entry:
    if raw["origin"] not in ("auto", "person", "imported") or not isinstance(raw["sha256"], str):
        raise ValueError("no note of a caption")
    return raw


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()


def _read(path: Path) -> str:
    """The text of a file; what is no text, or cannot be read, is somebody's all the same."""
    try:
        return read_text(path.read_bytes())
    except (OSError, ValueError):
        return "\0"


def _write(path: Path, text: str, folder: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _cannot(folder, error) from None


def _cannot(folder: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"There is no space left to write captions in {folder}; free some and give the same command again: "
            "the captions that are there are kept."
        )
    return UserError(
        f"Captions cannot be written into {folder} ({error.strerror}); give yourself the right to write there, "
        "or choose another folder with --out."
    )
