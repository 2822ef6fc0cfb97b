"""Exports: an adapter written for other programs by the engine, each file checked; what is offered, and what came."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .listing import FORMATS, LIVE
from .parts.reader import reader
from .shelf import Foreign
from .studio import Studio
from .workspace import read_json, read_yaml, write_json

CHOICE = ("diffusers", "comfyui", "kohya")
PRECISIONS = ("fp32", "bf16", "fp16")
METADATA = ("share", "full", "minimal")
OWN = {"full": "model", "controlnet": "controlnet", "ia3": "peft"}
"""Ways of training that have one kind of file, whatever is asked for."""


@dataclass(frozen=True)
class Subject:
    """What is to be written: a run's result, one of its checkpoints, or a file from elsewhere.

    id: a run's name, RUN@STEP, or file:NAME. run: "" for a file. recipe: of the run; empty for a file.
    """

    id: str
    label: str
    path: Path
    run: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)


def subject(studio: Studio, wanted: str) -> Subject | None:
    """The thing with this id; nothing for any that is not exactly one of the workspace's own."""
    if wanted.startswith("file:"):
        path = next((p for p in _foreign(studio).files() if f"file:{p.name}" == wanted), None)
        return Subject(wanted, path.stem, path) if path else None
    name, _, step = wanted.partition("@")
    folder = studio.workspace.run(name)
    if folder is None or name not in studio.workspace.run_names():
        return None
    recipe, title = read_yaml(folder / "recipe.yaml"), name[11:] or name
    if not step:
        return Subject(wanted, title, folder, name, recipe) if (folder / "checkpoints").is_dir() else None
    path = folder / "checkpoints" / f"step-{int(step):06d}" if step.isdigit() else folder
    return Subject(wanted, f"{title}, step {step}", path, name, recipe) if path.is_dir() and path != folder else None


def offers(studio: Studio, of: Subject) -> list[dict[str, str]]:
    """Every format with the reason why it is not to be had, where it is not. Empty: there is nothing to choose."""
    if own(of):
        return []
    family = studio.catalog.family(family_of(studio, of))
    reasons = family.get("no_formats") or {}
    return [{"format": f, "title": FORMATS[f], "reason": sentence(str(reasons.get(f) or ""))} for f in CHOICE]


def own(of: Subject) -> str:
    """The one format that its way of training has; empty where there is a choice."""
    adapter = of.recipe.get("adapter") or {}
    kind = adapter.get("algorithm") if adapter.get("kind") == "peft" else adapter.get("kind")
    return OWN.get(str(kind or ""), "")


def sentence(text: str) -> str:
    """A reason of the engine's as a sentence."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def family_of(studio: Studio, of: Subject) -> str:
    """The family by the recipe, or by what the engine found in the file; empty where that is not one."""
    if of.recipe:
        return str(of.recipe.get("family") or "")
    found = _foreign(studio).report(of.path).get("families") or []
    return str(found[0]) if len(found) == 1 else ""


def form(studio: Studio, of: Subject) -> dict[str, Any]:
    """The page before anything is written."""
    shown, family = offers(studio, of), family_of(studio, of)
    save = of.recipe.get("save") or {}
    known = [{"name": f["name"], "title": f["title"]} for f in studio.catalog.get()["families"]]
    return {
        "kind": "export", "stage": "form", "id": of.id, "label": of.label, "live": False, "formats": shown,
        "precision": str(save.get("precision") or ""), "metadata": "share",
        "whole": FORMATS.get(own(of), ""), "link": f"export:{of.id}",
        "families": [] if family else known, "trouble": "",
    }  # fmt: skip


def start(studio: Studio, sent: dict[str, Any]) -> Path | None:
    """Let the engine write the files in the background."""
    of = subject(studio, str(sent.get("id", "")))
    if of is None:
        return None
    folder = studio.workspace.new_export(of.label)
    write_json(folder / "asked.json", {"id": of.id, "label": of.label, "run": of.run})
    studio.launcher.export(folder, of.path, options(studio, of, sent))
    return folder


def options(studio: Studio, of: Subject, sent: dict[str, Any]) -> list[str]:
    """The choices as the engine's command line has them. All formats chosen: the engine takes those that it can."""
    shown = offers(studio, of)
    possible = [o["format"] for o in shown if not o["reason"]]
    chosen = [f for f in possible if f in (sent.get("formats") or [])]
    out = [f"--formats={','.join(chosen)}"] if chosen and chosen != possible else []
    if shown and sent.get("precision") in PRECISIONS:
        out.append(f"--precision={sent['precision']}")
    if shown and sent.get("metadata") in METADATA:
        out.append(f"--metadata={sent['metadata']}")
    if of.run:
        return out
    return [*out, *_base(studio, of, str(sent.get("family") or ""))]


def _base(studio: Studio, of: Subject, chosen: str) -> list[str]:
    """The family of a file from elsewhere, and the model of the project where it is of that family."""
    found = [str(f) for f in _foreign(studio).report(of.path).get("families") or []]
    project = studio.project.draft().raw
    family = chosen or (found[0] if len(found) == 1 else "")
    if project.get("source") and project.get("family") in ([family] if family else found):
        return [f"--family={project['family']}", f"--model={project['source']}"]
    return [f"--family={family}"] if family else []


def page(studio: Studio, name: str) -> dict[str, Any] | None:
    """Where an export stands; nothing when there is none of that name."""
    folder = place(studio, name)
    if folder is None:
        return None
    asked, seen = read_json(folder / "asked.json"), reader(folder).refresh()
    live, done = seen.state in LIVE, seen.state == "finished"
    event = seen.exports[-1] if seen.exports else {}
    return {
        "kind": "export", "stage": "working" if live else "done" if done else "failed", "live": live, "job": name,
        "link": f"written:{name}",
        "id": str(asked.get("id", "")), "label": str(asked.get("label", "")), "run": str(asked.get("run", "")),
        "files": [_file(folder, f) for f in event.get("files") or []] if done else [],
        "notes": [str(n["text"]) for n in seen.notes], "folder": str(folder / "export"),
        "trouble": "" if live or done else seen.error(),
    }  # fmt: skip


def place(studio: Studio, name: str) -> Path | None:
    """The folder of an export by its name."""
    folder = studio.workspace.exports / name
    inside = name and folder.resolve().parent == studio.workspace.exports.resolve()
    return folder if inside and (folder / "asked.json").is_file() else None


def _file(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    """One file with its badge: where it loads, or what is wrong with it."""
    path = folder / "export" / str(told.get("path", ""))
    parts = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if path.name.startswith("adapter_model"):
        parts += [p for p in (path.with_name("adapter_config.json"),) if p.is_file()]
    loads = ", ".join(str(name) for name in told.get("loads_in") or [])
    problems = [str(text) for text in told.get("problems") or []]
    return {
        "format": str(told.get("format", "")),
        "title": FORMATS.get(str(told.get("format", "")), str(told.get("format", ""))),
        "badge": "" if problems else f"loads in {loads}" if loads else "opened again and compared: equal",
        "problems": problems,
        "parts": [
            {"name": str(p.relative_to(path)) if p != path and path.is_dir() else p.name, "file": str(p),
             "bytes": p.stat().st_size} for p in parts
        ],
    }  # fmt: skip


def _foreign(studio: Studio) -> Foreign:
    return Foreign(studio.workspace.adapters, studio.launcher)
