"""Compare: base and adapters side by side, the same prompt, the same seed."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from tuner import events

from ..parts.reader import reader
from ..parts.widget import quiet, widget
from ..parts.words import count
from ..studio import Studio, as_dict
from ..workspace import write_json
from .dataset import PLAN
from .train import LIVE

EVENTS = ("form",)
MOST_PROMPTS = 12


def view(studio: Studio) -> dict[str, Any]:
    """Shelf, form and board as values."""
    shelf, base = contenders(studio)
    folder = next(iter(studio.workspace.comparisons()), None)
    board, state, sentence = _board(studio, folder)
    form = _form(studio, base)
    return {
        "shelf": shelf,
        "reset": "",
        "form": {key: form[key] for key in ("prompts", "seed", "steps")},
        "board": board,
        "state": state,
        "sentence": sentence,
    }


def stamp(studio: Studio) -> str:
    """Changes when there is something new to show."""
    folder = next(iter(studio.workspace.comparisons()), None)
    made = [str(reader(studio.workspace.runs / n).adapter()) for n in studio.workspace.run_names()[:12]]
    if folder is None:
        return str(made)
    seen = reader(folder).refresh()
    return f"{folder.name} {seen.seen} {seen.state} {made}"


def contenders(studio: Studio) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The base model and the adapters trained on it, the newest first; and the recipe they share."""
    known = _saved(studio).get("contenders") or {}
    base: dict[str, Any] = {}
    shelf: list[dict[str, Any]] = []
    for name in studio.workspace.run_names():
        folder = studio.workspace.runs / name
        seen = reader(folder).refresh()
        recipe = _recipe(folder / "recipe.yaml")
        if not (seen.adapter() or seen.checkpoints):
            continue
        base = base or recipe
        if (recipe.get("family"), recipe.get("source")) != (base.get("family"), base.get("source")):
            continue
        label, day = run_label(name)
        note = f"{day}, step {seen.step}" + (", training" if seen.state in LIVE else "")
        light = (recipe.get("adapter") or {}).get("kind") != "full"
        shelf.append({"id": name, "label": label, "note": note, "adapter": light, "on": not shelf, "strength": 1.0})
    base = base or studio.project.draft().raw
    source = Path(str(base.get("source", ""))).name
    first = {"id": "base", "label": "Base model", "note": source, "adapter": False, "on": True, "strength": 1.0}
    shelf = [first, *shelf[:12]]
    for one in shelf:
        mine = known.get(one["id"]) or {}
        one["on"] = bool(mine.get("on", one["on"]))
        one["strength"] = float(mine.get("strength", 1.0))
    return shelf, base


def run_label(name: str) -> tuple[str, str]:
    """'2026-11-22-demo-style' -> ('demo-style', '22 Nov')."""
    try:
        day = datetime.strptime(name[:10], "%Y-%m-%d")
    except ValueError:
        return name, "run"
    return name[11:] or name, f"{day.day} {day:%b}"


def request(studio: Studio) -> tuple[dict[str, Any], str]:
    """What the engine is asked to draw, or a sentence that says what is missing."""
    shelf, base = contenders(studio)
    form = _form(studio, base)
    chosen = [one for one in shelf if one["on"]]
    prompts = [line.strip() for line in form["prompts"].splitlines() if line.strip()][:MOST_PROMPTS]
    if not prompts:
        return {}, "Write at least one prompt."
    if not chosen:
        return {}, "Choose at least one contender."
    validate = base.get("validate") or {}
    asked = {
        "family": base.get("family"),
        "source": base.get("source"),
        "options": base.get("options") or {},
        "prompts": prompts,
        "seeds": [form["seed"]],
        "steps": form["steps"],
        "guidance": validate.get("guidance"),
        "size": _size(base),
        "contenders": [_contender(studio, one) for one in chosen],
    }
    return asked, ""


def build(studio: Studio) -> tuple[gr.HTML, gr.HTML, gr.Button]:
    """The screen; returns its widget, the line below and the primary button."""
    screen = widget("compare", view(studio), "compare", EVENTS)
    with gr.Row(elem_classes="actions"):
        line = gr.HTML("", html_template=PLAN, js_on_load=None, elem_classes="plan-line", padding=False)
        go = gr.Button("Compare", variant="primary", elem_id="compare-go")

    def on_form(event: gr.EventData) -> str:
        keep(studio, as_dict(event._data))
        return plan_line(studio)

    def on_go(shown: dict[str, Any] | None) -> tuple[Any, str]:
        if shown and isinstance(shown.get("sent"), dict):
            keep(studio, shown["sent"])
        asked, missing = request(studio)
        if missing:
            raise gr.Error(missing, duration=8, print_exception=False)
        folder = studio.workspace.new_comparison()
        studio.launcher.sample(folder, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True))
        return view(studio), plan_line(studio)

    screen.form(on_form, None, [line], **quiet())
    go.click(on_go, [screen], [screen, line], **quiet(queue=True, trigger_mode="once"))
    return screen, line, go


def plan_line(studio: Studio) -> str:
    """How many pictures will be drawn."""
    asked, missing = request(studio)
    if missing:
        return missing
    number = len(asked["prompts"]) * len(asked["contenders"])
    said = [count(len(asked["prompts"]), "prompt"), count(len(asked["contenders"]), "contender"), "the same seed"]
    return f"{count(number, 'picture')}: {', '.join(said)}."


def keep(studio: Studio, sent: dict[str, Any]) -> None:
    """Write the form down, so that it survives a reload."""
    saved = _saved(studio)
    marked = {
        str(c["id"]): {"on": bool(c["on"]), "strength": float(c["strength"])} for c in sent.get("contenders") or []
    }
    saved["contenders"] = {**(saved.get("contenders") or {}), **marked}
    saved["prompts"] = str(sent.get("prompts", ""))
    for key, low, high in (("seed", 0, 2**31 - 1), ("steps", 1, 200)):
        text = str(sent.get(key, "")).strip()
        if text.isdigit():
            saved[key] = min(high, max(low, int(text)))
    write_json(studio.workspace.compare / "form.json", saved)


def _saved(studio: Studio) -> dict[str, Any]:
    try:
        return json.loads((studio.workspace.compare / "form.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _form(studio: Studio, base: dict[str, Any]) -> dict[str, Any]:
    validate, saved = base.get("validate") or {}, _saved(studio)
    return {
        "prompts": saved.get("prompts") or "\n".join((validate.get("prompts") or [])[:4]),
        "seed": int(saved.get("seed", validate.get("seed", 0))),
        "steps": int(saved.get("steps", validate.get("steps", 20))),
    }


def _contender(studio: Studio, one: dict[str, Any]) -> dict[str, Any]:
    adapter = str(studio.workspace.runs / one["id"]) if one["id"] != "base" else None
    return {"label": one["label"], "adapter": adapter, "strength": one["strength"]}


def _size(base: dict[str, Any]) -> list[int] | None:
    size = (base.get("validate") or {}).get("size")
    edges = (base.get("media") or {}).get("resolutions")
    return list(size) if size else [edges[0], edges[0]] if edges else None


def _board(studio: Studio, folder: Path | None) -> tuple[dict[str, Any] | None, str, str]:
    """The matrix of the newest comparison, its state, and a sentence."""
    if folder is None:
        return None, "new", ""
    asked, state = _recipe(folder / "request.yaml"), reader(folder).refresh().state
    made, _ = events.follow(folder / "events.jsonl")
    cells = {(e["prompt"], e["contender"]): str(folder / e["file"]) for e in made if e["kind"] == "sample"}
    columns = [
        {"label": str(c["label"]), "note": f"strength {c['strength']:.2f}" if c.get("adapter") else "as it is"}
        for c in asked.get("contenders") or []
    ]
    rows = [
        {"prompt": str(p), "cells": [_cell(cells.get((r, c))) for c in range(len(columns))]}
        for r, p in enumerate(asked.get("prompts") or [])
    ]
    live = state in LIVE
    total = len(columns) * len(rows)
    sentence = f"Drawing, {len(cells)} of {total}" if live else ""
    if state in ("failed", "crashed"):
        sentence = reader(folder).error()
    return {"columns": columns, "rows": rows, "running": live}, "running" if live else _mood(state), sentence


def _mood(state: str) -> str:
    return "failed" if state in ("failed", "crashed") else state


def _cell(file: str | None) -> dict[str, str] | None:
    return {"file": file} if file else None


def _recipe(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        return {}
