"""What the Dataset screen is told: every item with its caption, companions and findings, and the plan in one line."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from .. import captioning, captions, companions, masking
from ..datasets import DEMO
from ..forms import get
from ..media import kind, told, unreadable
from ..studio import Studio, dataset_title
from ..workspace import Draft
from .checks import digest
from .widget import SILENT
from .words import count

MOST = 2000
WORDS = {"image": "picture", "video": "video", "audio": "sound"}
Said = dict[str, Any]


def view(studio: Studio, news: Said = SILENT, **shown: Any) -> dict[str, Any]:
    """The data set as the page shows it. news: the notice. shown: `preview` of a change of many, `look` at one item."""
    sets, draft = studio.workspace.datasets, studio.project.draft()
    name = draft.dataset
    reads = [what for what in studio.project.reads(draft) if what != "mask"]
    used, plan = uses(studio)
    caption_job, mask_job = captioning.state(studio, name), masking.state(studio, name)
    waiting, own = dict.fromkeys(mask_job.pop("todo", []), "mask"), sets.repeats(name)
    waiting.update(dict.fromkeys(caption_job.pop("todo", []), "caption"))
    items = _items(studio, name, reads)
    for item in items:
        one = item["id"]
        item.update(use=used.get(one, {}), wait=waiting.get(one, ""), repeats=own.get(one, 0))
    offered = [
        {"name": n, "title": dataset_title(n), "count": len(sets.files(n)), "chosen": n == name} for n in sets.names()
    ]
    return {
        "name": name,
        "sets": offered,
        "items": items,
        "counts": _counts(items),
        "trigger": studio.project.trigger(draft),
        "told": news,
        "preview": {},
        "bulk": len(sets.meta(name).get("before") or []),
        "aside": [] if name == DEMO else sets.left_out(name),
        "job": caption_job,
        "maskjob": mask_job,
        "repeats": others(studio),
        "masks": {
            "count": sum(bool(i["mask"]) for i in items),
            "used": bool(sets.meta(name).get("masks", True)),
            "deleted": len(companions.dropped(sets, name, "mask")),
        },
        "reads": reads,
        "models": captioning.MODELS,
        "purposes": captioning.PURPOSES,
        "doctor": doctor(studio),
        "plan": plan,
        **shown,
    }


def others(studio: Studio) -> int:
    """How often an item is seen in an epoch that has no repeats of its own."""
    entries = studio.project.draft().raw.get("data") or [{}]
    times = entries[0].get("repeats")
    return times if isinstance(times, int) else 1


def _counts(items: list[dict[str, Any]]) -> dict[str, int]:
    """How many each filter would show."""
    return {
        "all": len(items),
        "bare": sum(not i["caption"] for i in items),
        "warn": sum(bool(i["warn"]) for i in items),
        "unused": sum(bool(i["use"].get("unused")) for i in items),
        "lone": sum(bool(i["lacks"]) for i in items),
    }


def without_caption(studio: Studio, name: str, stamp: str) -> int:
    """How many pictures have no caption; counted again only when the folder's stamp changes."""
    if _BARE.get(name, ("", 0))[0] != stamp:
        sets = studio.workspace.datasets
        _BARE[name] = (stamp, sum(not sets.caption(path) for path in sets.files(name)))
    return _BARE[name][1]


def plan_line(studio: Studio) -> str:
    """The data set in one line."""
    draft = studio.project.draft()
    files = studio.workspace.datasets.files(draft.dataset)
    bare = without_caption(studio, draft.dataset, studio.project.stamp(draft))
    word = studio.project.trigger(draft)
    if not files:
        return "No pictures yet."
    text = numbered(files)
    masked = len(companions.there(studio.workspace.datasets, draft.dataset, "mask"))
    text += f", {masked} with masks" if masked else ""
    if not bare:
        return f"{text}, all with captions. Click a caption to change it."
    lacks = f"{text}. {count(bare, 'has', 'have')} no caption"
    if word:
        return f"{lacks} and will be trained with the trigger word alone."
    return f"{lacks}: write one, or set a trigger word."


def numbered(files: list[Path]) -> str:
    kinds = [kind(path) for path in files]
    return ", ".join(count(kinds.count(k), word) for k, word in WORDS.items() if k in kinds)


def _items(studio: Studio, name: str, reads: list[str]) -> list[dict[str, Any]]:
    sets, seen, items = studio.workspace.datasets, {}, []
    files = sets.files(name)[:MOST]
    texts = {path.name: sets.caption(path) for path in files}
    origin = captions.origins(sets, name, texts)
    beside = {what: companions.there(sets, name, what) for what in companions.KINDS}
    for path, small in zip(files, sets.thumb_all(files), strict=True):
        stat = path.stat()
        twin = seen.setdefault((stat.st_size, _content(path, stat.st_mtime_ns)), path.name)
        what, warn, badge = kind(path), "", ""
        if small is None and what != "audio":
            warn, badge = f"This file cannot be used: {unreadable(path)}.", "damaged"
        elif twin != path.name:
            warn, badge = f"The same {WORDS[what]} as {twin}.", "twice"
        mine = {key: found[path.stem] for key, found in beside.items() if path.stem in found}
        wanted = [key for key in ("control", "reference") if what != "audio" and (beside[key] or key in reads)]
        items.append(
            {
                "id": path.name,
                "kind": what,
                "file": str(path),
                "thumb": str(small) if small else "",
                "caption": texts[path.name],
                "origin": origin.get(path.name, ""),
                "size": _size(path, stat.st_mtime_ns),
                "warn": warn,
                "badge": badge,
                "mask": _mask(mine["mask"]) if "mask" in mine else None,
                "pair": {key: _file(mine[key]) for key in ("control", "reference") if key in mine},
                "lacks": [companions.WORDS[key] for key in wanted if key not in mine],
            }
        )
    return items


def _file(path: Path) -> list[str]:
    """Where a file is, and what changes when it does."""
    return [str(path), str(path.stat().st_mtime_ns)]


def _mask(path: Path) -> dict[str, Any]:
    """A mask: its file, and where it came from (you, auto, whole)."""
    where = _file(path)
    key = (where[0], int(where[1]))
    if key not in _MAKERS:
        _MAKERS[key] = companions.maker(path)
    return {"file": where, "by": _MAKERS[key]}


def look(studio: Studio, identity: str) -> dict[str, Any]:
    """What is worked out only for the item that is looked at: its mask at the resolution of the latents."""
    sets, name = studio.workspace.datasets, studio.project.draft().dataset
    path = next((p for p in sets.files(name) if p.name == identity), None)
    if path is None:
        return {"id": identity}
    mask = companions.there(sets, name, "mask").get(path.stem)
    used, plan = uses(studio)
    use = used.get(identity, {})
    return {
        "id": identity,
        "cells": _cells(studio, mask, use, int(plan.get("cell") or 0)),
        "tokens": _tokens(studio, sets.caption(path), use, bool(plan.get("open", True))),
    }


def _tokens(studio: Studio, caption: str, use: dict[str, Any], stale: bool) -> dict[str, Any]:
    """Tokens of a caption and the limit: as the model's own tokenizer counted in the check, else an estimate.

    The estimate is four tokens for three words, and two that open and close: usual for English and CLIP or T5.
    """
    counted = use.get("tokens") or []
    if counted and not stale:
        return {"has": counted[0], "takes": counted[1], "exact": True}
    word = studio.project.trigger(studio.project.draft())
    whole = caption if word in caption else f"{word}, {caption}"
    if not whole:
        return {}
    parts = len(re.findall(r"\w+|[^\w\s]", whole))
    return {"has": round(parts * 4 / 3) + 2, "takes": counted[1] if counted else 0, "exact": False}


def _cells(studio: Studio, mask: Path | None, use: dict[str, Any], cell: int) -> dict[str, Any]:
    seen = companions.cells(mask, use, cell) if mask else None
    if mask is None or seen is None:
        return {}
    share = sum(value * number for value, number in enumerate(seen.histogram())) / 255 / (seen.width * seen.height)
    key = digest(json.dumps([*_file(mask), use["crop"], use["scaled"], cell]), "")
    out = studio.workspace.datasets.thumbs / f"{key}-cells.png"
    if not out.exists():
        seen.save(out)
    return {"file": str(out), "size": [seen.width, seen.height], "share": round(100 * share)}


def uses(studio: Studio) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the engine's check says of each item (crop, bucket, why unused), and the plan; empty until known.

    While files or captions changed since, the answer before stands, and its plan says that it is `open`.
    """
    draft = studio.project.draft()
    if studio.project.mistakes(draft):
        return {}, {}
    recipe = studio.project.yaml(draft)
    answer = studio.checker.answer(digest(recipe, studio.project.stamp(draft)))
    known = _ANSWERS.get(digest(recipe, ""), {})
    if answer is not None:
        _ANSWERS.clear()  # of one recipe at a time
        _ANSWERS[digest(recipe, "")] = answer
    plan = (answer or known).get("plan") or {}
    shown = ("crop", "scaled", "bucket", "original", "resolution", "unused", "frames", "tokens")
    used: dict[str, Any] = {}
    for one in plan.get("uses") or []:
        if one.get("dataset") == 0:
            used.setdefault(str(one["name"]), {key: one[key] for key in shown if key in one})
    kept = ("items", "unused", "steps_per_epoch", "epochs", "cell")
    sizes = ("width", "height", "items", "frames", "seconds", "kind")
    buckets = [{key: bucket[key] for key in sizes if key in bucket} for bucket in plan.get("buckets") or []]
    told = {**{key: plan[key] for key in kept if key in plan}, "buckets": buckets, "open": answer is None}
    return used, told if plan else {"open": answer is None}


def doctor(studio: Studio) -> dict[str, Any]:
    """The doctor's findings: of the data set as it is now, or (`old`) what is left of those before the last changes.

    busy while it looks; empty when it was never asked.
    """
    draft = studio.project.draft()
    if studio.project.mistakes(draft):
        return {}
    key = digest(studio.project.yaml(draft), studio.project.stamp(draft))
    answer = studio.doctor.answer(key)
    if answer is None:
        asked = studio.doctor.asked(key)
        if asked:
            studio.doctor.poll()
        before = _FOUND.get(draft.dataset)
        known = {"findings": _left(studio, draft, before), "old": True} if before else {}
        return {**known, "busy": True} if asked else known
    if "findings" not in answer:
        return {"error": " ".join(str(p.get("text", "")) for p in answer.get("problems") or [])}
    _FOUND[draft.dataset] = answer["findings"]
    return {"findings": [_finding(f) for f in answer["findings"]]}


def _left(studio: Studio, draft: Draft, findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Findings of before, but for items that were left out since and for settings that are set by now."""
    there = {path.name for path in studio.workspace.datasets.files(draft.dataset)}
    shown = [_finding(f, there) for f in findings]
    return [
        new
        for f, new in zip(findings, shown, strict=True)
        if (new["items"] or not (f.get("items") or f.get("groups")))
        and not (new["remedy"] and all(get(draft.raw, key) == value for key, value in new["remedy"].items()))
    ]


def _finding(found: dict[str, Any], there: set[str] | None = None) -> dict[str, Any]:
    """A finding with the names of its items, and those that a press may leave out: of copies all but the first.

    there: the items that still are; none: all.
    """
    names = [n for n in (str(n["name"]) for n in found.get("items") or []) if there is None or n in there]
    groups = [[str(n["name"]) for n in group] for group in found.get("groups") or []]
    groups = [g for g in ([n for n in group if there is None or n in there] for group in groups) if len(g) > 1]
    extra = names if found.get("kind") in LEAVE else []
    if found.get("kind") in ("copies", "look_alikes", "near"):
        extra = [name for group in groups for name in group[1:]]
    return {
        "kind": found.get("kind", ""),
        "level": found.get("level", "note"),
        "text": str(found.get("text", "")),
        "items": names + [name for group in groups for name in group],
        "leave": extra,
        "remedy": found.get("remedy") or {},
    }


LEAVE = ("unreadable", "blurred", "dark", "bright", "flat", "still", "silent", "small")
_ANSWERS: dict[str, dict[str, Any]] = {}
_FOUND: dict[str, list[dict[str, Any]]] = {}
_BARE: dict[str, tuple[str, int]] = {}
_CONTENT: dict[tuple[str, int], str] = {}
_MAKERS: dict[tuple[str, int], str] = {}
_SIZES: dict[tuple[str, int], str] = {}


def _content(path: Path, changed: int) -> str:
    key = (str(path), changed)
    if key not in _CONTENT:
        with path.open("rb") as file:
            _CONTENT[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _CONTENT[key]


def _size(path: Path, changed: int) -> str:
    key = (str(path), changed)
    if key not in _SIZES:
        _SIZES[key] = told(path)
    return _SIZES[key]
