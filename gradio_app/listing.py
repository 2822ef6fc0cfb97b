"""What the library tells of each thing in the workspace, as plain values.

What is told of a folder is read once and kept until its journal changes, so that a list of hundreds stays quick.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .datasets import DEMO, DataSets
from .disk import room_of
from .media import PICTURES
from .parts.reader import Reader, mark, reader
from .parts.words import count
from .shelf import Foreign
from .workspace import Workspace, read_json, read_yaml

LIVE = ("running", "starting")
FORMATS = {"diffusers": "diffusers", "comfyui": "ComfyUI", "kohya": "kohya-style tools", "lycoris": "LyCORIS",
           "peft": "PEFT", "model": "whole model", "controlnet": "ControlNet"}  # fmt: skip
STATES = {"new": "not started", "crashed": "ended early"}
BELOW = ("captions", "masks")
"""Kinds of jobs that have a folder of their own in jobs/."""
NEW_THUMBS = 24
"""How many small copies one look makes at most; the next look makes more."""
_told: dict[Path, tuple[Any, dict[str, Any]]] = {}


def everything(workspace: Workspace) -> list[dict[str, Any]]:
    """All things, the newest first; each with `room`. The demo pictures are not the user's and not listed."""
    runs = [workspace.runs / name for name in workspace.run_names()]
    exports = [path for path in _folders(workspace.exports) if (path / "asked.json").is_file()]
    found = [_kept(path, _run) for path in runs]
    found += [_dataset(workspace.datasets, name) for name in workspace.datasets.names() if name != DEMO]
    found += [_adapter(Foreign(workspace.adapters), path) for path in Foreign(workspace.adapters).files()]
    found += [_kept(path, _export) for path in exports]
    found += [_kept(path, _comparison) for path in workspace.comparisons()]
    found += [_kept(path, _job) for path in jobs(workspace).values()]
    _small(workspace, found)
    return sorted(found, key=lambda item: item["at"], reverse=True)


def jobs(workspace: Workspace) -> dict[str, Path]:
    """The folders of all jobs (captions, masks, uploads) by name."""
    root = workspace.root / "jobs"
    places = [root, *(root / kind for kind in BELOW)]
    return {path.name: path for place in places for path in _folders(place) if path.name not in BELOW}


def job_place(workspace: Workspace, name: str) -> Path:
    """The folder in which a job of this name lies."""
    kind = next((kind for kind in BELOW if re.match(rf"\d+-{kind}-", name)), "")
    return workspace.root / "jobs" / kind


def _folders(place: Path) -> list[Path]:
    """Real folders below a place, hidden ones not; none where there is no such place."""
    if not place.is_dir():
        return []
    return [p for p in place.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith(".")]


def _kept(folder: Path, tell: Callable[[Path, Reader], dict[str, Any]]) -> dict[str, Any]:
    """What `tell` says of a folder, said again while nothing in it is newer; a living one is always asked."""
    marks = [mark(folder / name) for name in ("events.jsonl", "launched.json", "recipe.yaml", "export")]
    known = _told.get(folder)
    if known and known[0] == marks:
        return {**known[1], "room": room_of(folder)}
    seen = reader(folder).refresh()
    item: dict[str, Any] = {
        "name": folder.name, "family": "", "state": STATES.get(seen.state, seen.state), "live": seen.state in LIVE,
        "adapter": False, "at": float(seen.last.get("at") or mark(folder)[0] / 1e9), "about": "", "picture": "",
        "trouble": seen.error() if seen.state in ("failed", "crashed") else "", **tell(folder, seen),
    }  # fmt: skip
    if not item["live"]:
        _told[folder] = (marks, item)
    return {**item, "room": room_of(folder)}


def _run(folder: Path, seen: Reader) -> dict[str, Any]:
    recipe, files = seen.recipe(), seen.samples[-1]["files"] if seen.samples else []
    return {
        "kind": "run", "family": str(seen.start.get("family") or recipe.get("family") or ""),
        "adapter": seen.adapter() is not None, "about": f"step {seen.step} of {seen.of}" if seen.of else "",
        "picture": str(folder / files[0]["file"]) if files else "", "source": str(recipe.get("source") or ""),
    }  # fmt: skip


def _export(folder: Path, seen: Reader) -> dict[str, Any]:
    state = {"finished": "", "running": "being written", "starting": "being written"}.get(seen.state, "failed")
    return {"kind": "export", "state": state, "about": exported(seen)}


def _comparison(folder: Path, seen: Reader) -> dict[str, Any]:
    asked = read_yaml(folder / "request.yaml")
    columns, prompts = asked.get("contenders") or [], asked.get("prompts") or []
    made = next((str(e["file"]) for e in seen.samples if e.get("file")), "")
    return {
        "kind": "compare", "family": str(asked.get("family") or ""), "picture": str(folder / made) if made else "",
        "about": f"{count(len(columns), 'contender')} · {count(len(prompts), 'prompt')}",
    }  # fmt: skip


def _job(folder: Path, seen: Reader) -> dict[str, Any]:
    asked = read_json(folder / "request.json") | read_json(folder / "asked.json")
    about = f"upload to {asked['repo']}" if asked.get("repo") else ""
    if asked.get("dataset"):
        about = f"{'masks' if 'mask' in folder.name else 'captions'} for {asked['dataset']}"
    return {"kind": "job", "about": about, "opens": bool(asked.get("repo"))}


def _adapter(foreign: Foreign, path: Path) -> dict[str, Any]:
    families = foreign.report(path).get("families") or []
    return {
        "kind": "adapter", "name": path.name, "family": str(families[0]) if len(families) == 1 else "", "state": "",
        "live": False, "adapter": True, "room": room_of(path), "at": path.stat().st_mtime, "trouble": "",
        "about": foreign.told(path), "warnings": foreign.warnings(path), "picture": "",
    }  # fmt: skip


def _dataset(sets: DataSets, name: str) -> dict[str, Any]:
    files, folder = sets.files(name), sets.folder(name)
    word = "picture" if all(path.suffix.lower() in PICTURES for path in files) else "item"
    return {
        "kind": "dataset", "name": name, "family": "", "state": "", "live": False, "adapter": False, "trouble": "",
        "room": room_of(folder, *sets.beside(name).values()), "at": folder.stat().st_mtime,
        "about": count(len(files), word), "picture": str(files[0]) if files else "",
    }  # fmt: skip


def _small(workspace: Workspace, items: list[dict[str, Any]]) -> None:
    """Give the items small pictures; of the many that have none yet, some at a time. A journal may name any file:
    only those of the workspace are shown."""
    sets, new = workspace.datasets, 0
    for item in items:
        path, item["thumb"] = Path(item.pop("picture") or "."), ""
        if not path.is_file() or not path.resolve().is_relative_to(workspace.root):
            continue
        known = sets.thumb_known(path)
        if known is None and new < NEW_THUMBS:
            known, new = sets.thumb(path), new + 1
        item["thumb"] = str(known or "")


def exported(seen: Reader) -> str:
    """An export in a line: 'diffusers, ComfyUI'."""
    files = (seen.exports[-1].get("files") or []) if seen.exports else []
    names = ", ".join(FORMATS.get(str(f.get("format")), str(f.get("format"))) for f in files)
    return names + ("; NOT as it was trained" if any(f.get("problems") for f in files) else "")


def when(at: float) -> str:
    """'28 Nov 2026, 14:05'."""
    then = time.localtime(at)
    return f"{then.tm_mday} {time.strftime('%b %Y, %H:%M', then)}"
