"""Automatic captions as a job of the engine: one folder per job, so that a reload or a restart finds it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuner import events

from .parts.words import count
from .studio import Studio
from .workspace import write_json

MODELS = {
    "qwen": "Qwen3-VL: describes best (about 5 GB of memory)",
    "florence": "Florence-2: small and quick (about 1 GB)",
    "basic": "From file names and colours: no model, no download",
}
PURPOSES = ("general", "person", "style", "object", "motion", "sound")
ENDED = ("finished", "stopped", "failed")


def start(studio: Studio, name: str, asked: dict[str, Any]) -> str:
    """Begin a job for a data set; a sentence about what stands in the way, or nothing."""
    if running(studio, name):
        return "Captions are being written for these already."
    model, purpose = str(asked.get("model", "")), str(asked.get("purpose", ""))
    if model not in MODELS or purpose not in PURPOSES:
        return "Choose a model and a purpose from the lists."
    folder = _fresh(studio, name)
    word = studio.project.trigger(studio.project.draft())
    options = ["--model", model, "--purpose", purpose, "--batch", "1", *(["--trigger", word] if word else [])]
    options += ["--overwrite-auto"] if asked.get("again") else []
    write_json(folder / "request.json", {"dataset": name, "model": model, "purpose": purpose})
    studio.launcher.caption(folder, studio.workspace.datasets.folder(name), options)
    return ""


def stop(studio: Studio, name: str) -> str:
    """Ask the job to end after the picture at hand; pressed again, end it at once."""
    folder = newest(studio, name)
    if folder is None or not running(studio, name):
        return "No captions are being written."
    studio.launcher.stop(folder)
    return "Stopping after this one; captions written so far are kept. Press again to end at once."


def running(studio: Studio, name: str) -> bool:
    """Whether a job writes captions for this data set now."""
    folder = newest(studio, name)
    return folder is not None and studio.launcher.process(folder) is not None


def newest(studio: Studio, name: str) -> Path | None:
    """The last job of a data set."""
    for folder in sorted(_jobs(studio).iterdir(), reverse=True):
        try:
            request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if request.get("dataset") == name:
            return folder
    return None


def state(studio: Studio, name: str) -> dict[str, Any]:
    """How far the last job is: state, done, of, text in words; empty when there was none."""
    folder = newest(studio, name)
    if folder is None:
        return {}
    found, _ = events.follow(folder / "events.jsonl")
    written = [e for e in found if e["kind"] == "caption"]
    phases = [e for e in found if e["kind"] == "phase" and e.get("name") == "caption"]
    ended = next((e for e in reversed(found) if e["kind"] in ENDED), None)
    done, of = (phases[-1]["done"], phases[-1]["of"]) if phases else (0, 0)
    told = {"state": "running", "done": done, "of": of, "items": [str(e.get("item", "")) for e in written]}
    if ended is not None:
        return {**told, "state": ended["kind"], "text": _ending(ended, len(written), found)}
    if studio.launcher.process(folder) is None:
        text = _last(folder / "log.txt") or "Writing captions broke off."
        return {**told, "state": "failed", "text": f"{text} {count(len(written), 'caption')} written are kept."}
    return {**told, "text": f"{done} of {of} captioned" if of else "Loading the captioner …"}


def _ending(ended: dict[str, Any], written: int, found: list[dict[str, Any]]) -> str:
    if ended["kind"] == "failed":
        return str(ended.get("error", ""))
    said = [str(e["text"]) for e in found if e["kind"] in ("note", "warning") and e.get("text")]
    text = f"{count(written, 'caption')} written."
    return " ".join([text, *said[-2:]]) if not written else text


def _fresh(studio: Studio, name: str) -> Path:
    taken = [int(p.name.split("-")[0]) for p in _jobs(studio).iterdir() if p.name.split("-")[0].isdigit()]
    folder = _jobs(studio) / f"{max(taken, default=0) + 1:06d}-captions-{name}"
    folder.mkdir()
    return folder


def _jobs(studio: Studio) -> Path:
    folder = studio.workspace.root / "jobs" / "captions"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _last(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:400] if lines else ""
