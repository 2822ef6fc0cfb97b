"""Automatic captions as a job of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import captions
from .batch import Batch
from .studio import Studio
from .workspace import write_json

MODELS = {
    "qwen": "Qwen3-VL: describes best (about 5 GB of memory)",
    "florence": "Florence-2: small and quick (about 1 GB)",
    "basic": "From file names and colours: no model, no download",
}
PURPOSES = ("general", "person", "style", "object", "motion", "sound")
CAPTIONS = Batch("caption", "written", "Loading the captioner …")
stop, running, state = CAPTIONS.stop, CAPTIONS.running, CAPTIONS.state


def start(studio: Studio, name: str, asked: dict[str, Any]) -> str:
    """Begin a job for some items ("ids") or all of a data set; a sentence about what stands in the way, or nothing."""
    if running(studio, name):
        return "Captions are being written for these already."
    model, purpose = str(asked.get("model", "")), str(asked.get("purpose", ""))
    if model not in MODELS or purpose not in PURPOSES:
        return "Choose a model and a purpose from the lists."
    word = studio.project.trigger(studio.project.draft())
    options = ["--model", model, "--purpose", purpose, "--batch", "1", *(["--trigger", word] if word else [])]
    options += ["--overwrite-auto"] if asked.get("again") else []
    wanted = {str(one) for one in asked.get("ids") or []}
    chosen = [path.name for path in studio.workspace.datasets.files(name) if path.name in wanted]
    if wanted and not chosen:
        return "None of these is there any more."
    todo = _lacking(studio, name, bool(asked.get("again")))
    todo = [one for one in todo if not wanted or one in wanted]

    def begin(folder: Path) -> None:
        if chosen:
            (folder / "only.txt").write_text("\n".join(chosen), encoding="utf-8")
            options.extend(["--only", str(folder / "only.txt")])
        write_json(folder / "request.json", {"dataset": name, "model": model, "purpose": purpose, "wanted": todo})
        studio.launcher.caption(folder, studio.workspace.datasets.folder(name), options)

    CAPTIONS.begin(studio, name, begin)
    return ""


def _lacking(studio: Studio, name: str, again: bool) -> list[str]:
    """The items that the captioner will write for: those without a caption, and with `again` those of its own."""
    sets = studio.workspace.datasets
    texts = {path.name: sets.caption(path) for path in sets.files(name)}
    origin = captions.origins(sets, name, texts)
    return [one for one, text in texts.items() if not text or (again and origin.get(one) == "auto")]
