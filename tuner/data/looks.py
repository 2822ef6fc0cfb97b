"""Remember what a full decode told, per version of a file, so that each picture is looked at once. Knows no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import astuple
from pathlib import Path

from . import media

FORMAT = 2
"""Raise it whenever `media` decodes differently."""


class Looks:
    """`media.look` with a memory: a file below `store` for each data folder; store=None remembers nothing.

    A file's version is its path, size, and times of change of content and of inode: the last cannot be set by hand.
    Only good files are remembered, so that a mended one is seen at once.
    """

    def __init__(self, store: Path | None, folder: Path) -> None:
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:24]
        self._file = store / "looks" / f"{name}-{FORMAT}.json" if store else None
        self._known = self._load()
        self._used: dict[str, media.Look] = {}

    def at(self, path: Path, paper: str = "white") -> media.Look:
        """The facts about a picture; decodes it unless this version of it is known. Safe to call from threads."""
        try:
            stat = path.stat()
        except OSError:
            return media.look(path, paper)
        key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{paper}"
        look = self._known.get(key) or media.look(path, paper)
        if not look.error:
            self._used[key] = look
        return look

    def save(self) -> None:
        """Keep what was used, if it is not what is kept already. A disk that is full only costs the memory."""
        if self._file is None or self._used.keys() == self._known.keys():
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(f".{os.getpid()}.tmp")
            partial.write_text(json.dumps({k: astuple(v) for k, v in self._used.items()}), encoding="utf-8")
            partial.replace(self._file)

    def _load(self) -> dict[str, media.Look]:
        if self._file is None:
            return {}
        try:
            raw = json.loads(self._file.read_text(encoding="utf-8"))
            return {
                key: media.Look(digest, width, height, tuple((kind, said) for kind, said in notes), *rest)
                for key, (digest, width, height, notes, *rest) in raw.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}
