"""Remember what a full decode told, per version of a file, so that each is looked at once. Knows no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import audio, media, stores, video
from .facts import Look
from .item import Kind

FORMAT = 2
"""Raise it whenever `media`, `video` or `audio` decode differently."""

COLUMNS = (
    "key", "kind", "digest", "width", "height", "frames", "fps", "seconds", "rate", "channels", "blank", "notes"
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """One file to look at. version: of the file, "" if unknown. paper: colour behind transparent pictures."""

    ref: str
    kind: Kind
    version: str
    paper: str = "white"

    @property
    def key(self) -> str:
        """What the look depends on."""
        return f"{self.ref}|{self.version}|{self.paper}"


def look(wanted: Wanted) -> Look:
    """Read and decode a file wholly, and keep only the facts; an unusable one has its reason in `error`."""
    try:
        if wanted.kind == "image":
            return media.look_bytes(stores.read(wanted.ref), "image", wanted.paper)
        path = stores.local(wanted.ref)
        return video.look(path) if wanted.kind == "video" else audio.look(path)
    except stores.Unreadable as reason:
        return Look(error=reason.what)


class Looks:
    """Looks with a memory: one Parquet file below `store` for each data set; store=None remembers nothing.

    Only good files of a known version are remembered, so that a mended one is seen at once.
    """

    def __init__(self, store: Path | None, name: str) -> None:
        digest = hashlib.sha256(name.encode()).hexdigest()[:24]
        self._file = store / "looks" / f"{digest}-{FORMAT}.parquet" if store else None
        self._known: dict[str, Look] = self._load()
        self._used: dict[str, Look] = {}

    def at(self, wanted: Wanted) -> Look:
        """The facts about a file; decodes it unless this version of it is known. Safe to call from threads."""
        known = self._known.get(wanted.key) if wanted.version else None
        found = known or look(wanted)
        if wanted.version and not found.error:
            self._used[wanted.key] = found
        return found

    def save(self) -> None:
        """Keep what was used, if it is not what is kept already. A disk that is full only costs the memory."""
        if self._file is None or self._used.keys() == self._known.keys():
            return
        import pyarrow as pa  # noqa: PLC0415  (only scans load it)
        from pyarrow import parquet  # noqa: PLC0415

        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for key, one in self._used.items():
            columns["key"].append(key)
            columns["notes"].append(json.dumps(one.notes))
            for name in COLUMNS[1:-1]:
                columns[name].append(getattr(one, name))
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(f".{os.getpid()}.tmp")
            parquet.write_table(pa.table(columns), partial)
            partial.replace(self._file)

    def _load(self) -> dict[str, Look]:
        if self._file is None or not self._file.is_file():
            return {}
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415

        try:
            # one file, read as such: read_table is for data sets of many files, and loads pandas for them
            with parquet.ParquetFile(self._file) as file:
                table = file.read(columns=list(COLUMNS))
        except (OSError, pa.ArrowException):
            return {}
        rows = zip(*(table.column(name).to_pylist() for name in COLUMNS), strict=True)
        return {row[0]: _restored(row) for row in rows}


def _restored(row: Iterable[Any]) -> Look:
    facts = dict(zip(COLUMNS, row, strict=True))
    facts.pop("key")
    notes = tuple((kind, said) for kind, said in json.loads(facts.pop("notes")))
    return Look(**facts, notes=notes)
