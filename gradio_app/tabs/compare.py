"""Compare: base and adapters side by side, the same prompt, the same seed."""

from __future__ import annotations

import json
import re
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from tuner import events

from .. import blind
from ..datasets import unreadable
from ..launcher import STOPPING
from ..parts.names import safe_file, unused
from ..parts.reader import Reader, reader
from ..parts.widget import SILENT, notice, quiet, widget
from ..parts.words import count
from ..shelf import Foreign, advice, points
from ..studio import Studio, as_dict
from ..workspace import write_json
from .dataset import PLAN
from .train import LIVE

EVENTS = ("form", "act", "uploaded")
SLOTS = {"references": "Pictures to start from", "controls": "Control pictures"}
MOST_PROMPTS, MOST_SEEDS, MOST_STEPS, MOST_STRENGTHS = 12, 8, 8, 4


def view(studio: Studio, told: dict[str, Any] = SILENT) -> dict[str, Any]:
    """Shelf, form and board as values."""
    shelf, base = contenders(studio)
    folder = shown(studio)
    board, state, sentence = _board(studio, folder)
    form = _form(studio, base)
    return {
        "shelf": shelf,
        "reset": str(_saved(studio).get("restored", "")),
        "form": {key: form[key] for key in ("prompts", "seed", "steps", "frames", "seconds")},
        "modality": _family(studio, base).get("modality", "image"),
        "slots": _slots(studio, base),
        "history": [{"id": f.name, "text": _title(f)} for f in studio.workspace.comparisons()[:60]],
        "shown": folder.name if folder else "",
        "board": board,
        "blind": _blind(folder, board),
        "state": state,
        "sentence": sentence,
        "told": told,
        "chosen": chosen(studio, shelf),
    }


def chosen(studio: Studio, shelf: list[dict[str, Any]]) -> str:
    """Which contender is to be exported: the one that was chosen, else the suggested one, else the first that is on."""
    possible = [one for one in shelf if one["id"] != "base"]
    wanted = _saved(studio).get("chosen")
    ways = (lambda c: c["id"] == wanted, lambda c: c["on"] and c.get("suggested"), lambda c: c["on"], lambda c: True)
    return next((str(c["id"]) for way in ways for c in possible if way(c)), "")


def buttons(studio: Studio) -> tuple[Any, Any]:
    """Compare, and Export; the one that is the next step stands out."""
    folder, ready = shown(studio), bool(chosen(studio, contenders(studio)[0]))
    drawn = (
        ready and folder is not None and any(e["kind"] == "sample" for e in events.follow(folder / "events.jsonl")[0])
    )
    return gr.Button(variant="secondary" if drawn else "primary"), gr.Button(
        variant="primary" if drawn else "secondary", interactive=ready
    )


def stamp(studio: Studio) -> str:
    """Changes when there is something new to show."""
    folder = shown(studio)
    made = [
        f"{reader(f).adapter()} {len(reader(f).checkpoints)}"
        for f in (studio.workspace.runs / n for n in studio.workspace.run_names()[:12])
    ]
    foreign = Foreign(studio.workspace.adapters, studio.launcher)
    made += [f"{path.name} {foreign.told(path)}" for path in foreign.files()[:12]]
    if folder is None:
        return str(made)
    seen = reader(folder).refresh()
    return f"{folder.name} {seen.seen} {seen.state} {made}"


def shown(studio: Studio) -> Path | None:
    """The comparison that was opened, else the newest."""
    kept = studio.workspace.comparisons()
    wanted = _saved(studio).get("shown")
    return next((f for f in kept if f.name == wanted), next(iter(kept), None))


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
        shelf += _run(name, folder, seen, recipe, first=not shelf)
    base = base or studio.project.draft().raw
    source = Path(str(base.get("source", ""))).name
    first = {"id": "base", "label": "Base model", "note": source, "adapter": False, "on": True}
    shelf = [first, *shelf[:40], *_foreign(studio)]
    for one in shelf:
        mine = known.get(one["id"]) or {}
        one["on"] = bool(mine.get("on", one["on"]))
        one["strengths"] = list(mine.get("strengths") or [1.0])
    return shelf, base


def _run(name: str, folder: Path, seen: Reader, recipe: dict[str, Any], first: bool) -> list[dict[str, Any]]:
    """A run's result and, below it, its checkpoints with their validation loss; the suggested one is marked."""
    label, day = run_label(name)
    note = f"{day}, step {seen.step}" + (", training" if seen.state in LIVE else "")
    light = (recipe.get("adapter") or {}).get("kind") != "full"
    looks = (recipe.get("adapter") or {}).get("kind") == "controlnet"
    common = {"run": name, "adapter": light, "looks": looks}
    out = [{"id": name, "label": label, "note": note, "on": first, "path": str(folder), **common}]
    steps = sorted({int(e["step"]) for e in seen.checkpoints})
    steps = [n for n in steps if (folder / "checkpoints" / f"step-{n:06d}").is_dir()]
    losses = points(steps, [(int(e["step"]), float(e["loss"])) for e in seen.validation if e.get("loss") is not None])
    held_back = seen.held_back() > 0
    suggested, out[0]["hint"] = advice(steps, losses, held_back)
    kind = "validation loss" if held_back else "loss on what was trained"
    for step, loss in list(zip(steps, losses, strict=True))[-MOST_STEPS:]:
        path = folder / "checkpoints" / f"step-{step:06d}"
        more = {"step": step, "loss": loss, "suggested": step == suggested}
        told = f"{kind} {loss:.3f}" if loss is not None else "no loss measured"
        one = {"id": f"{name}@{step}", "label": f"{label}, step {step}", "note": told, "on": False, "path": str(path)}
        out.append({**one, **common, **more})
    return out


def _foreign(studio: Studio) -> list[dict[str, Any]]:
    """Files from elsewhere, with what the engine says of them."""
    foreign = Foreign(studio.workspace.adapters, studio.launcher)
    return [
        {
            "id": f"file:{path.name}", "label": path.stem, "note": foreign.told(path), "adapter": True, "on": False,
            "path": str(path), "warnings": foreign.warnings(path),
        }
        for path in foreign.files()[:20]
    ]  # fmt: skip


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
    validate, memory = base.get("validate") or {}, base.get("memory") or {}
    asked = {
        "family": base.get("family"),
        "source": base.get("source"),
        "task": base.get("task") or "generate",
        "options": base.get("options") or {},
        "prompts": prompts,
        "negative": validate.get("negative") or "",
        "seeds": form["seeds"],
        "steps": form["steps"],
        "guidance": validate.get("guidance"),
        "size": _size(base),
        "lyrics": validate.get("lyrics") or [],
        **{key: memory[key] for key in ("quantise", "quantise_text", "quantise_skip") if memory.get(key)},
        **{key: form[key] for key in ("frames", "seconds") if form[key]},
        "contenders": [column for one in chosen for column in _columns(one)],
    }
    for slot in _slots(studio, base):
        given = [picture["file"] for picture in slot["pictures"]]
        if slot["key"] == "controls" and not any(one.get("looks") for one in chosen):
            continue
        if len(given) not in (1, len(prompts)):
            return {}, f"Add pictures under {slot['title']}: one for all prompts, or {len(prompts)}, one for each."
        asked[slot["key"]] = given
    return asked, ""


def build(studio: Studio, told: gr.State) -> tuple[gr.HTML, gr.HTML, gr.Button, gr.Button]:
    """The screen; returns its widget, the line below, and the buttons Compare and Export."""
    screen = widget("compare", view(studio), "compare", EVENTS)
    with gr.Row(elem_classes="actions"):
        line = gr.HTML("", html_template=PLAN, js_on_load=None, elem_classes="plan-line", padding=False)
        go = gr.Button("Compare", variant="primary", elem_id="compare-go")
        onward = gr.Button("Export this one", interactive=False, elem_id="compare-export")

    def on_form(event: gr.EventData) -> str:
        keep(studio, as_dict(event._data))
        return plan_line(studio)

    def answered(said: str = "") -> tuple[Any, str, dict[str, Any]]:
        news = notice(text=said)
        return view(studio, news), plan_line(studio), news

    def on_act(event: gr.EventData) -> tuple[Any, str, dict[str, Any]]:
        return answered(act(studio, as_dict(event._data)))

    def on_uploaded(event: gr.EventData) -> tuple[Any, str, dict[str, Any]]:
        return answered(take(studio, as_dict(event._data)))

    def on_go(sent: dict[str, Any] | None) -> tuple[Any, str, dict[str, Any]]:
        if sent and isinstance(sent.get("sent"), dict):
            keep(studio, sent["sent"])
        asked, missing = request(studio)
        if missing:
            raise gr.Error(missing, duration=8, print_exception=False)
        folder = studio.workspace.new_comparison()
        write_json(folder / "form.json", _saved(studio))
        studio.launcher.sample(folder, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True))
        _save(studio, shown=folder.name)
        return answered()

    screen.form(on_form, None, [line], **quiet())
    screen.act(on_act, None, [screen, line, told], **quiet())
    screen.uploaded(on_uploaded, None, [screen, line, told], **quiet())
    go.click(on_go, [screen], [screen, line, told], **quiet(queue=True, trigger_mode="once"))
    return screen, line, go, onward


def act(studio: Studio, sent: dict[str, Any]) -> str:
    """Do what a button says; returns a sentence about it where one is needed."""
    what, folder = str(sent.get("do", "")), shown(studio)
    if what == "open":
        restore(studio, str(sent.get("id", "")))
    elif what == "choose":
        _save(studio, chosen=str(sent.get("id", "")))
    elif what == "unpick":
        _unpick(studio, str(sent.get("slot", "")), str(sent.get("name", "")))
    elif folder is None:
        return ""
    elif what == "stop":
        said = studio.launcher.stop(folder)
        return said if said != STOPPING else "Stopping after this one. What was drawn stays."
    elif what == "blind":
        return _start_blind(folder, _board(studio, folder)[0], sent)
    elif what == "vote":
        number = sent.get("number")
        blind.vote(folder, number if isinstance(number, int) else -1, str(sent.get("side", "")))
    elif what == "endblind":
        blind.end(folder)
    return ""


def take(studio: Studio, sent: dict[str, Any]) -> str:
    """Copy uploads into the workspace: adapters, or pictures for one of the slots; returns what was not taken."""
    uploads, said = studio.workspace.uploads.resolve(), []
    slot = str(sent.get("slot", ""))
    for one in list(sent.get("files") or [])[:MOST_PROMPTS]:
        path, name = Path(str(one.get("path", ""))).resolve(), str(one.get("name", ""))
        if not path.is_relative_to(uploads) or not path.is_file():
            continue
        if slot == "adapters":
            said.append(Foreign(studio.workspace.adapters, studio.launcher).add(path, name))
        elif slot in SLOTS:
            said.append(_add_picture(studio, slot, path, name))
    said += [f"{text} could not be uploaded." for text in list(sent.get("failed") or [])[:4]]
    return " ".join(text for text in said if text)


def _add_picture(studio: Studio, slot: str, path: Path, name: str) -> str:
    reason = unreadable(path)
    if reason:
        return f"{safe_file(name)} was not taken: {reason}."
    folder = studio.workspace.compare / ".pictures"
    folder.mkdir(exist_ok=True)
    target = folder / unused(safe_file(name), {p.name for p in folder.iterdir()})
    shutil.copyfile(path, target)
    _save(studio, **{slot: [*(_saved(studio).get(slot) or []), target.name]})
    return ""


def _unpick(studio: Studio, slot: str, name: str) -> None:
    if slot in SLOTS:
        _save(studio, **{slot: [kept for kept in _saved(studio).get(slot) or [] if kept != name]})


def _slots(studio: Studio, base: dict[str, Any]) -> list[dict[str, Any]]:
    """The pictures that this task or these contenders start from."""
    needed = ["references"] if base.get("task") in ("edit", "image_to_video") else []
    needed += ["controls"] if (base.get("adapter") or {}).get("kind") == "controlnet" else []
    folder, saved = studio.workspace.compare / ".pictures", _saved(studio)
    return [
        {
            "key": key, "title": SLOTS[key],
            "pictures": [
                {"name": name, "file": str(folder / name)}
                for name in saved.get(key) or []
                if Path(name).name == name and (folder / name).is_file()
            ],
        }
        for key in needed
    ]  # fmt: skip


def restore(studio: Studio, name: str) -> None:
    """Show a kept comparison again, and its prompts, seeds and contenders in the form."""
    folder = next((f for f in studio.workspace.comparisons() if f.name == name), None)
    if folder is None:
        return
    asked = _json(folder / "form.json")
    write_json(studio.workspace.compare / "form.json", {**_saved(studio), **asked})
    _save(studio, shown=name, restored=f"{name} {time.time()}")


def _start_blind(folder: Path, board: dict[str, Any] | None, sent: dict[str, Any]) -> str:
    a, b = sent.get("a"), sent.get("b")
    number = len(board["columns"]) if board else 0
    if not isinstance(a, int) or not isinstance(b, int) or a == b or not (0 <= a < number and 0 <= b < number):
        return "Choose two different contenders for the blind test."
    assert board is not None
    rows = [r for r, row in enumerate(board["rows"]) if row["cells"][a] and row["cells"][b]]
    if not rows:
        return "Nothing is drawn of these two yet."
    blind.start(folder, (a, b), rows)
    return ""


def _blind(folder: Path | None, board: dict[str, Any] | None) -> dict[str, Any] | None:
    """The pair on the screen, without labels; after ten choices the result."""
    test = blind.read(folder) if folder is not None else None
    if test is None or board is None:
        return None
    number, labels = len(test["votes"]), [board["columns"][i]["label"] for i in test["pair"]]
    if number >= blind.ROUNDS:
        return {"number": number, "of": blind.ROUNDS, "result": blind.verdict(test, labels)}
    row, swapped = test["dealt"][number]
    files = [board["rows"][row]["cells"][i]["file"] for i in test["pair"]]
    assert folder is not None
    left, right = blind.veiled(folder, number, files[::-1] if swapped else files)
    prompt = board["rows"][row]["prompt"]
    return {"number": number, "of": blind.ROUNDS, "left": left, "right": right, "prompt": prompt, "result": ""}


def plan_line(studio: Studio) -> str:
    """How many pictures will be drawn."""
    asked, missing = request(studio)
    if missing:
        return missing
    _, base = contenders(studio)
    thing = {"video": "clip", "audio": "recording"}.get(_family(studio, base).get("modality", ""), "picture")
    seeds = len(asked["seeds"])
    number = len(asked["prompts"]) * len(asked["contenders"]) * seeds
    said = [count(len(asked["prompts"]), "prompt"), count(len(asked["contenders"]), "contender")]
    said.append("the same seed" if seeds == 1 else f"the same {seeds} seeds")
    return f"{count(number, thing)}: {', '.join(said)}."


def keep(studio: Studio, sent: dict[str, Any]) -> None:
    """Write the form down, so that it survives a reload."""
    saved = _saved(studio)
    marked = {
        str(c["id"]): {"on": bool(c["on"]), "strengths": [float(n) for n in c["strengths"]][:MOST_STRENGTHS]}
        for c in sent.get("contenders") or []
    }
    saved["contenders"] = {**(saved.get("contenders") or {}), **marked}
    saved["prompts"] = str(sent.get("prompts", ""))
    seeds = [int(n) for n in re.findall(r"\d+", str(sent.get("seed", "")))][:MOST_SEEDS]
    if seeds:
        saved["seeds"] = sorted({min(2**31 - 1, n) for n in seeds}, key=seeds.index)
    for key, low, high in (("steps", 1, 200), ("frames", 1, 2000), ("seconds", 1, 600)):
        text = str(sent.get(key, "")).strip()
        if text.isdigit():
            saved[key] = min(high, max(low, int(text)))
    write_json(studio.workspace.compare / "form.json", saved)


def _save(studio: Studio, **changes: Any) -> None:
    write_json(studio.workspace.compare / "form.json", {**_saved(studio), **changes})


def _saved(studio: Studio) -> dict[str, Any]:
    return _json(studio.workspace.compare / "form.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _family(studio: Studio, base: dict[str, Any]) -> dict[str, Any]:
    return studio.catalog.family(str(base.get("family", "")))


def _form(studio: Studio, base: dict[str, Any]) -> dict[str, Any]:
    validate, saved = base.get("validate") or {}, _saved(studio)
    seeds = saved.get("seeds") or [int(validate.get("seed", 0))]
    return {
        "prompts": saved.get("prompts") or "\n".join((validate.get("prompts") or [])[:4]),
        "seeds": seeds,
        "seed": ", ".join(map(str, seeds)),
        "steps": int(saved.get("steps", validate.get("steps", 20))),
        "frames": saved.get("frames") or validate.get("frames"),
        "seconds": saved.get("seconds") or validate.get("seconds"),
    }


def _columns(one: dict[str, Any]) -> list[dict[str, Any]]:
    """A contender once for each of its strengths; the base once."""
    strengths = sorted(set(one["strengths"])) if one["adapter"] else [1.0]
    return [{"label": one["label"], "adapter": one.get("path"), "strength": s} for s in strengths]


def _title(folder: Path) -> str:
    """'2026-11-22, 3 contenders, 2 prompts' in the list of comparisons."""
    asked = _recipe(folder / "request.yaml")
    columns, prompts = len(asked.get("contenders") or []), asked.get("prompts") or [""]
    return f"{folder.name.replace('-compare', '')}: {count(columns, 'contender')}, {str(prompts[0])[:40]}"


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
    cells = {
        (e["prompt"], e.get("seed"), e["contender"]): str(folder / e["file"]) for e in made if e["kind"] == "sample"
    }
    refused = {e["contender"]: str(e["text"]).split("\n", 1)[0] for e in made if e["kind"] == "refused"}
    columns = [
        {
            "refused": _named(refused.get(number, ""), c),
            "label": str(c["label"]), "note": f"strength {c['strength']:.2f}" if c.get("adapter") else "as it is",
            "id": identity(studio, str(c.get("adapter") or "")),
        }
        for number, c in enumerate(asked.get("contenders") or [])
    ]  # fmt: skip
    seeds = asked.get("seeds") or [0]
    rows = [
        {
            "prompt": str(p), "seed": f"seed {seed}" if len(seeds) > 1 else "",
            "cells": [_cell(cells.get((r, seed, c))) for c in range(len(columns))],
        }
        for r, p in enumerate(asked.get("prompts") or [])
        for seed in seeds
    ]  # fmt: skip
    live = state in LIVE
    total = len(columns) * len(rows)
    sentence = f"Drawing, {len(cells)} of {total}" if live else _missing(refused)
    if state in ("failed", "crashed"):
        sentence = reader(folder).error()
    elif state == "stopped":
        sentence = f"Stopped, {len(cells)} of {total} were drawn."
    return {"columns": columns, "rows": rows, "running": live}, "running" if live else _mood(state), sentence


def _missing(refused: dict[int, str]) -> str:
    """What is said above a board on which not all could be drawn."""
    return f"{count(len(refused), 'contender')} could not be drawn; its column says why." if refused else ""


def _named(text: str, contender: dict[str, Any]) -> str:
    """A sentence about a contender with its name in place of its file's path."""
    return text.replace(str(contender.get("adapter") or "\0"), str(contender.get("label", "")))


def identity(studio: Studio, path: str) -> str:
    """The id on the shelf of what lies at a path; empty for the base."""
    if not path:
        return ""
    place = Path(path)
    if place.parent == studio.workspace.adapters:
        return f"file:{place.name}"
    if place.parent.name == "checkpoints":
        return f"{place.parents[1].name}@{int(place.name.removeprefix('step-') or 0)}"
    return place.name


def _mood(state: str) -> str:
    return "failed" if state in ("failed", "crashed") else state


def _cell(file: str | None) -> dict[str, str] | None:
    return {"file": file} if file else None


def _recipe(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        return {}
