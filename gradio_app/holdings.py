"""What the workspace holds: runs, adapters, exports, comparisons, data sets and past jobs, with names, tags and notes
of the user's, and a bin to bring back from.

Names, tags and notes lie in library.json; no run's journal and no data set is written to. Nothing outside the
workspace is ever moved or deleted.
"""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

from . import listing
from .disk import size_of, size_text
from .listing import LIVE
from .parts.names import unused
from .parts.reader import reader
from .shelf import Foreign
from .workspace import Workspace, write_json

KINDS = ("run", "adapter", "export", "compare", "dataset", "job")
LONGEST = {"title": 120, "tags": 200, "note": 2000}
BUSY = {
    "run": "{name} is training now. Stop it first, then delete it.",
    "export": "{name} is being written now. Wait for its end, then delete it.",
    "compare": "{name} is being drawn now. Stop it first, then delete it.",
    "job": "{name} is at work now. Stop it first, then delete it.",
}


class Library:
    """Lists and changes what lies in a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.bin = workspace.root / "bin"
        self._notes = workspace.root / "library.json"
        self._lock = threading.RLock()

    def items(self) -> list[dict[str, Any]]:
        """Everything, the newest first, with what the user wrote."""
        notes = self.notes()
        found = listing.everything(self.workspace)
        for item in found:
            own = notes.get(f"{item['kind']}:{item['name']}", {})
            item |= {"title": item["name"], "tags": "", "note": "", "size": item["room"].bytes, **own}
        return found

    def binned(self) -> list[dict[str, Any]]:
        """What lies in the bin."""
        return [
            {"kind": kind, "name": path.name, "size": size_of(path)}
            for kind in KINDS
            for path in sorted((self.bin / kind).glob("*"))
            if not path.name.startswith(".")
        ]

    def notes(self) -> dict[str, dict[str, str]]:
        """What the user wrote, by kind:name; of what lies in the bin by bin/kind:name."""
        try:
            found = json.loads(self._notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}

    def write(self, kind: str, name: str, changes: dict[str, str]) -> None:
        """Set title, tags or note. An empty title is the folder's own name again."""
        if self.folder(kind, name) is None:
            return
        with self._lock:
            notes = self.notes()
            mine = notes.get(f"{kind}:{name}", {})
            for key, longest in LONGEST.items():
                if key in changes:
                    mine[key] = str(changes[key]).strip()[:longest]
            notes[f"{kind}:{name}"] = {key: text for key, text in mine.items() if text}
            write_json(self._notes, notes)

    def folder(self, kind: str, name: str) -> Path | None:
        """The folder of an item, or the file of an adapter; nothing for what is not exactly one of the workspace's."""
        if kind not in KINDS or not name or name != Path(name).name or name.startswith("."):
            return None
        path = self._parent(kind, name) / name
        there = path.is_file() if kind == "adapter" else path.is_dir() and path.name not in listing.BELOW
        return path if there and not path.is_symlink() else None

    def _parent(self, kind: str, name: str) -> Path:
        """Where a thing of this kind and name lies."""
        places = self.workspace
        if kind == "job":
            return listing.job_place(places, name)
        return {"run": places.runs, "dataset": places.datasets.root, "adapter": places.adapters,
                "export": places.exports, "compare": places.compare}[kind]  # fmt: skip

    def delete(self, kind: str, name: str) -> str:
        """Move into the bin; returns a sentence about it."""
        return self.throw(kind, name)[0]

    def throw(self, kind: str, name: str) -> tuple[str, str]:
        """The same; also the name that it has in the bin, empty where it stays."""
        with self._lock:
            path = self.folder(kind, name)
            if path is None:
                return "It is not there any more.", ""
            if kind in BUSY and reader(path).refresh().state in LIVE:
                return BUSY[kind].format(name=name), ""
            if kind == "dataset" and (user := self._uses(path)):
                return f"{user} is at work on {name}. Wait for its end, then delete it.", ""
            return f"{name} is in the bin.", self._move(kind, name, path)

    def clear_jobs(self) -> str:
        """Move all jobs that have ended into the bin; returns a sentence about it."""
        moved = 0
        with self._lock:
            for name, path in listing.jobs(self.workspace).items():
                if reader(path).refresh().state not in LIVE:
                    self._move("job", name, path)
                    moved += 1
        return f"{moved} past job{'' if moved == 1 else 's'} moved to the bin." if moved else "There are no past jobs."

    def _move(self, kind: str, name: str, path: Path) -> str:
        place = self.bin / kind
        place.mkdir(parents=True, exist_ok=True)
        target = place / unused(name, {p.name for p in place.iterdir()})
        path.rename(target)
        for inside, beside in self._beside(kind, name).items():
            if beside.exists():
                beside.rename(target / inside if kind == "dataset" else place / f".{target.name}{inside}")
        self._renote(f"{kind}:{name}", f"bin/{kind}:{target.name}")
        return target.name

    def restore(self, kind: str, name: str) -> str:
        """Bring back from the bin; returns a sentence about it."""
        with self._lock:
            path = self._in_bin(kind, name)
            if path is None:
                return "It is not in the bin any more."
            parent = self._parent(kind, name)
            parent.mkdir(parents=True, exist_ok=True)
            free = unused(name, {p.name for p in parent.iterdir()})
            path.rename(parent / free)
            for inside, beside in self._beside(kind, free).items():
                kept = parent / free / inside if kind == "dataset" else path.with_name(f".{name}{inside}")
                if kept.exists() and not beside.exists():
                    beside.parent.mkdir(exist_ok=True)
                    kept.rename(beside)
            self._renote(f"bin/{kind}:{name}", f"{kind}:{free}")
            return f"{free} is back."

    def empty(self) -> str:
        """Delete what lies in the bin for good; returns a sentence about it."""
        with self._lock:
            freed, number = size_of(self.bin), len(self.binned())
            for path in [path for kind in KINDS for path in (self.bin / kind).glob("*")]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            write_json(self._notes, {k: v for k, v in self.notes().items() if not k.startswith("bin/")})
            return f"{number} deleted for good, {size_text(freed)} freed." if number else "The bin is empty."

    def _in_bin(self, kind: str, name: str) -> Path | None:
        if kind not in KINDS or not name or name != Path(name).name or name.startswith("."):
            return None
        path = self.bin / kind / name
        return path if path.exists() and not path.is_symlink() else None

    def _beside(self, kind: str, name: str) -> dict[str, Path]:
        """What belongs to a thing and does not lie in it: what it is called in the bin, and where it lies."""
        if kind == "dataset":
            return self.workspace.datasets.beside(name)
        said = Foreign(self.workspace.adapters).said
        return {end: said / f"{name}{end}" for end in (".json", ".log")} if kind == "adapter" else {}

    def _renote(self, now: str, then: str) -> None:
        notes = self.notes()
        if now in notes:
            notes[then] = notes.pop(now)
            write_json(self._notes, notes)

    def _uses(self, data: Path) -> str:
        """The name of a run or job that works on a data set now."""
        for name in self.workspace.run_names()[:24]:
            folder = self.workspace.runs / name
            entries = reader(folder).recipe().get("data") or []
            paths = {str(entry.get("path")) for entry in entries if isinstance(entry, dict)}
            if str(data) in paths and reader(folder).refresh().state in LIVE:
                return name
        for name, folder in listing.jobs(self.workspace).items():
            if reader(folder).refresh().state in LIVE and name.split("-", 2)[-1] == data.name:
                return name
        return ""
