"""What the workspace holds: runs, adapters from elsewhere, exports and data sets, with names, tags and notes of the
user's, and a bin to bring back from.

Names, tags and notes lie in library.json; no run's journal and no data set is written to. Nothing outside the
workspace is ever moved or deleted.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .datasets import DEMO
from .parts.names import unused
from .parts.reader import Reader, reader
from .shelf import Foreign
from .workspace import Workspace, write_json

KINDS = ("run", "dataset", "adapter", "export")
LIVE = ("running", "starting")
FORMATS = {"diffusers": "diffusers", "comfyui": "ComfyUI", "kohya": "kohya-style tools", "lycoris": "LyCORIS",
           "peft": "PEFT", "model": "whole model", "controlnet": "ControlNet"}  # fmt: skip
STATES = {"new": "not started", "crashed": "ended early"}


class Library:
    """Lists and changes what lies in a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.bin = workspace.root / "bin"
        self._notes = workspace.root / "library.json"
        self._lock = threading.RLock()

    def items(self) -> list[dict[str, Any]]:
        """Everything, the newest first. The demo pictures are not the user's and not listed."""
        notes = self.notes()
        found = [self._run(self.workspace.runs / name) for name in self.workspace.run_names()]
        found += [self._dataset(name) for name in self.workspace.datasets.names() if name != DEMO]
        found += [_adapter(path) for path in Foreign(self.workspace.adapters).files()]
        found += [_export(path) for path in self.workspace.exports.glob("*") if (path / "asked.json").is_file()]
        for item in found:
            item |= {"title": item["name"], "tags": "", "note": "", **notes.get(f"{item['kind']}:{item['name']}", {})}
        return sorted(found, key=lambda item: item["at"], reverse=True)

    def binned(self) -> list[dict[str, Any]]:
        """What lies in the bin."""
        return [
            {"kind": kind, "name": path.name, "size": size_of(path)}
            for kind in KINDS
            for path in sorted((self.bin / kind).glob("*"))
        ]

    def notes(self) -> dict[str, dict[str, str]]:
        """What the user wrote, by kind:name."""
        try:
            found = json.loads(self._notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, kind: str, name: str, changes: dict[str, str]) -> None:
        """Set title, tags or note. An empty title is the folder's own name again."""
        if self.folder(kind, name) is None:
            return
        with self._lock:
            notes = self.notes()
            mine = notes.get(f"{kind}:{name}", {})
            for key, longest in (("title", 120), ("tags", 200), ("note", 2000)):
                if key in changes:
                    mine[key] = str(changes[key]).strip()[:longest]
            notes[f"{kind}:{name}"] = {key: text for key, text in mine.items() if text}
            write_json(self._notes, notes)

    def folder(self, kind: str, name: str) -> Path | None:
        """The folder of an item, or the file of an adapter; nothing for what is not exactly one of the workspace's."""
        parent = self._parents().get(kind)
        if parent is None or not name or name != Path(name).name or name.startswith("."):
            return None
        path = parent / name
        there = path.is_file() if kind == "adapter" else path.is_dir()
        return path if there and not path.is_symlink() else None

    def _parents(self) -> dict[str, Path]:
        """Where things of each kind lie."""
        places = self.workspace
        return {"run": places.runs, "dataset": places.datasets.root, "adapter": places.adapters,
                "export": places.exports}  # fmt: skip

    def delete(self, kind: str, name: str) -> str:
        """Move into the bin; returns a sentence about it."""
        with self._lock:
            path = self.folder(kind, name)
            if path is None:
                return "It is not there any more."
            if kind == "run" and reader(path).refresh().state in LIVE:
                return f"{name} is training now. Stop it first, then delete it."
            if kind == "export" and reader(path).refresh().state in LIVE:
                return f"{name} is being written now. Wait for its end, then delete it."
            if kind == "dataset" and (user := self._trains_on(path)):
                return f"{user} is training on {name}. Wait for its end, then delete it."
            place = self.bin / kind
            place.mkdir(parents=True, exist_ok=True)
            target = place / unused(name, {p.name for p in place.iterdir()})
            path.rename(target)
            notes = self.workspace.datasets.root / f".{name}.json"
            if kind == "dataset" and notes.exists():
                notes.rename(target / ".dataset.json")
            beside = self.workspace.datasets.root / ".companions" / name
            if kind == "dataset" and beside.is_dir():
                beside.rename(target / ".companions")
            return f"{name} is in the bin."

    def restore(self, kind: str, name: str) -> str:
        """Bring back from the bin; returns a sentence about it."""
        with self._lock:
            path = self._in_bin(kind, name)
            if path is None:
                return "It is not in the bin any more."
            parent = self._parents()[kind]
            free = unused(name, {p.name for p in parent.iterdir()})
            path.rename(parent / free)
            notes = parent / free / ".dataset.json"
            if notes.exists():
                notes.rename(parent / f".{free}.json")
            beside = parent / free / ".companions"
            if beside.is_dir():
                (parent / ".companions").mkdir(exist_ok=True)
                beside.rename(parent / ".companions" / free)
            return f"{free} is back."

    def empty(self) -> str:
        """Delete what lies in the bin for good; returns a sentence about it."""
        with self._lock:
            freed, number = size_of(self.bin), 0
            for item in self.binned():
                path = self.bin / item["kind"] / item["name"]
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                number += 1
            return f"{number} deleted for good, {size_text(freed)} freed." if number else "The bin is empty."

    def _in_bin(self, kind: str, name: str) -> Path | None:
        if kind not in KINDS or not name or name != Path(name).name or name in (".", ".."):
            return None
        path = self.bin / kind / name
        return path if path.exists() and not path.is_symlink() else None

    def _trains_on(self, data: Path) -> str:
        for name in self.workspace.run_names()[:24]:
            folder = self.workspace.runs / name
            if reader(folder).refresh().state in LIVE and str(data) in _paths(folder):
                return name
        return ""

    def _run(self, folder: Path) -> dict[str, Any]:
        seen = reader(folder).refresh()
        files = seen.samples[-1]["files"] if seen.samples else []
        at = float(seen.last.get("at") or folder.stat().st_mtime)
        recipe = _recipe(folder)
        family = seen.start.get("family") or recipe.get("family") or ""
        return {
            "kind": "run", "name": folder.name, "family": str(family), "state": STATES.get(seen.state, seen.state),
            "live": seen.state in LIVE, "adapter": seen.adapter() is not None, "size": size_of(folder), "at": at,
            "about": f"step {seen.step} of {seen.of}" if seen.of else "",
            "thumb": str(folder / files[0]["file"]) if files else "", "source": str(recipe.get("source") or ""),
        }  # fmt: skip

    def _dataset(self, name: str) -> dict[str, Any]:
        sets = self.workspace.datasets
        files, folder = sets.files(name), sets.folder(name)
        small = sets.thumb_all(files[:1])
        return {
            "kind": "dataset", "name": name, "family": "", "state": "", "live": False, "adapter": False,
            "size": size_of(folder), "at": folder.stat().st_mtime,
            "about": f"{len(files)} picture{'' if len(files) == 1 else 's'}",
            "thumb": str(small[0]) if small and small[0] else "",
        }  # fmt: skip


def _adapter(path: Path) -> dict[str, Any]:
    foreign = Foreign(path.parent)
    families = foreign.report(path).get("families") or []
    return {
        "kind": "adapter", "name": path.name, "family": str(families[0]) if len(families) == 1 else "", "state": "",
        "live": False, "adapter": True, "size": size_of(path), "at": path.stat().st_mtime,
        "about": foreign.told(path), "warnings": foreign.warnings(path), "thumb": "",
    }  # fmt: skip


def _export(folder: Path) -> dict[str, Any]:
    seen = reader(folder).refresh()
    state = {"finished": "", "running": "being written", "starting": "being written"}.get(seen.state, "failed")
    return {
        "kind": "export", "name": folder.name, "family": "", "state": state, "live": seen.state in LIVE,
        "adapter": False, "size": size_of(folder), "at": float(seen.last.get("at") or folder.stat().st_mtime),
        "about": exported(seen), "thumb": "",
    }  # fmt: skip


def exported(seen: Reader) -> str:
    """An export in a line: 'diffusers, ComfyUI'."""
    files = (seen.exports[-1].get("files") or []) if seen.exports else []
    names = ", ".join(FORMATS.get(str(f.get("format")), str(f.get("format"))) for f in files)
    return names + ("; NOT as it was trained" if any(f.get("problems") for f in files) else "")


def size_of(folder: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count as nothing and are not followed."""
    if folder.is_file() and not folder.is_symlink():
        return folder.stat().st_size
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(at, name))
            except OSError:
                continue
            yield stat.st_size


def size_text(count: int) -> str:
    """'1.3 GB'."""
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count} bytes"


def when(at: float) -> str:
    """'28 Nov 2026, 14:05'."""
    then = time.localtime(at)
    return f"{then.tm_mday} {time.strftime('%b %Y, %H:%M', then)}"


def _recipe(folder: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _paths(folder: Path) -> set[str]:
    return {str(entry.get("path")) for entry in _recipe(folder).get("data") or []}
