"""Automatic masks of people as a job of the engine, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import companions
from .batch import Batch
from .media import kind
from .studio import Studio
from .workspace import write_json

MASKS = Batch("mask", "made", "Loading the finder of people …")
stop, running, state = MASKS.stop, MASKS.running, MASKS.state


def start(studio: Studio, name: str, asked: dict[str, Any]) -> str:
    """Begin a job for some items ("ids") or all of a data set; a sentence about what stands in the way, or nothing."""
    if running(studio, name):
        return "Masks are being made for these already."
    sets = studio.workspace.datasets
    wanted = {str(one) for one in asked.get("ids") or []}
    chosen = [path.name for path in sets.files(name) if path.name in wanted]
    if wanted and not chosen:
        return "None of these pictures is there any more."

    again, there = bool(asked.get("again")), companions.there(sets, name, "mask")
    redo = {stem for stem, mask in there.items() if again and companions.maker(mask) == "auto"}
    todo = [p.name for p in sets.files(name) if (not wanted or p.name in wanted) and kind(p) != "audio"]
    todo = [one for one in todo if Path(one).stem not in there or Path(one).stem in redo]

    def begin(folder: Path) -> None:
        options = ["--overwrite-auto"] if again else []
        if chosen:
            (folder / "only.txt").write_text("\n".join(chosen), encoding="utf-8")
            options += ["--only", str(folder / "only.txt")]
        write_json(folder / "request.json", {"dataset": name, "wanted": todo})
        studio.launcher.mask(folder, sets.folder(name), companions.folder(sets, name, "mask"), options)

    MASKS.begin(studio, name, begin)
    return ""
