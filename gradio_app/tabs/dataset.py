"""Dataset: upload, see, caption."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..datasets import DEMO, Added, unreadable
from ..parts.widget import quiet, widget
from ..parts.words import count
from ..studio import Studio, as_dict, dataset_title

EVENTS = ("uploaded", "caption", "remove", "undo", "pick", "fresh", "triggerword")
MOST = 2000


def view(studio: Studio, note: str = "", undo: str = "") -> dict[str, Any]:
    """The data set as the page shows it."""
    sets, draft = studio.workspace.datasets, studio.project.draft()
    items = _items(studio, draft.dataset)
    counts = {
        "all": len(items),
        "bare": sum(not i["caption"] for i in items),
        "warn": sum(bool(i["warn"]) for i in items),
    }
    offered = [
        {"name": n, "title": dataset_title(n), "count": len(sets.files(n)), "chosen": n == draft.dataset}
        for n in sets.names()
    ]
    word = studio.project.trigger(draft)
    return {
        "name": draft.dataset,
        "sets": offered,
        "items": items,
        "counts": counts,
        "trigger": word,
        "note": note,
        "undo": undo,
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
    text = count(len(files), "picture")
    if not bare:
        return f"{text}, all with captions. Click a caption to change it."
    lacks = f"{text}. {count(bare, 'has', 'have')} no caption"
    if word:
        return f"{lacks} and will be trained with the trigger word alone."
    return f"{lacks}: write one, or set a trigger word."


def build(studio: Studio) -> tuple[gr.HTML, gr.HTML, gr.Button]:
    """The screen; returns the grid, the line below it and the button to the next screen."""
    grid = widget("grid", view(studio), "dataset", EVENTS)
    with gr.Row(elem_classes="actions"):
        line = gr.HTML(plan_line(studio), html_template=PLAN, js_on_load=None, elem_classes="plan-line", padding=False)
        onward = gr.Button("Choose a recipe", variant="primary", elem_id="to-recipe")

    def on_uploaded(event: gr.EventData) -> tuple[Any, str]:
        sent = as_dict(event._data)
        files = [(Path(str(f["path"])), str(f["name"])) for f in sent.get("files", [])]
        note = receive(studio, files, [str(name) for name in sent.get("failed", [])])
        return view(studio, note), plan_line(studio)

    def on_caption(event: gr.EventData) -> tuple[Any, str]:
        sent = as_dict(event._data)
        name, copied = _writable(studio)
        studio.workspace.datasets.set_caption(name, str(sent["id"]), str(sent["text"]))
        note = "The demo stays as it is: you now work on a copy of it." if copied else ""
        return view(studio, note), plan_line(studio)

    def on_remove(event: gr.EventData) -> tuple[Any, str]:
        picture = str(as_dict(event._data)["id"])
        name, _ = _writable(studio)
        studio.workspace.datasets.remove(name, picture)
        return view(studio, f"{picture} was removed from {dataset_title(name)}.", picture), plan_line(studio)

    def on_undo(event: gr.EventData) -> tuple[Any, str]:
        studio.workspace.datasets.restore(studio.project.draft().dataset, str(as_dict(event._data)["id"]))
        return view(studio), plan_line(studio)

    def on_pick(event: gr.EventData) -> tuple[Any, str]:
        _select(studio, str(as_dict(event._data)["name"]))
        return view(studio), plan_line(studio)

    def on_fresh(event: gr.EventData) -> tuple[Any, str]:
        wish = str(as_dict(event._data).get("name") or "my-pictures")
        _select(studio, studio.workspace.datasets.create(wish))
        return view(studio), plan_line(studio)

    def on_triggerword(event: gr.EventData) -> tuple[Any, str]:
        word = " ".join(str(as_dict(event._data)["text"]).split())
        studio.workspace.datasets.set_meta(studio.project.draft().dataset, {"trigger": word})
        return view(studio), plan_line(studio)

    for name, handler in {
        "uploaded": on_uploaded,
        "caption": on_caption,
        "remove": on_remove,
        "undo": on_undo,
        "pick": on_pick,
        "fresh": on_fresh,
        "triggerword": on_triggerword,
    }.items():
        getattr(grid, name)(handler, None, [grid, line], **quiet())
    return grid, line, onward


PLAN = '<div class="t-plan" role="status">{{value}}</div>'


def receive(studio: Studio, files: list[tuple[Path, str]], failed: list[str]) -> str:
    """Copy uploads into the chosen data set (a new one when that is the demo) and say what became of them."""
    uploads = studio.workspace.uploads.resolve()
    inside = [(path, name) for path, name in files[:MOST] if path.resolve().is_relative_to(uploads)]
    draft = studio.project.draft()
    if draft.dataset == DEMO and inside:
        _select(studio, studio.workspace.datasets.create("my-pictures"))
        draft = studio.project.draft()
    added = studio.workspace.datasets.add(draft.dataset, inside) if inside else Added()
    for path, _ in inside:
        path.unlink(missing_ok=True)
    said = [f"{count(len(added.pictures), 'picture')} added."] if added.pictures else []
    if added.captions:
        said.append(f"{count(added.captions, 'caption')} read.")
    left = added.left_out + [f"{name}: it could not be copied" for name in failed]
    if len(left) > 3:
        left = [*left[:3], f"and {len(left) - 3} more"]
    if left:
        said.append("Left out: " + "; ".join(left) + ".")
    return " ".join(said)


def _items(studio: Studio, name: str) -> list[dict[str, Any]]:
    sets, seen, items = studio.workspace.datasets, {}, []
    files = sets.files(name)[:MOST]
    for path, small in zip(files, sets.thumb_all(files), strict=True):
        stat = path.stat()
        twin = seen.setdefault((stat.st_size, _content(path, stat.st_mtime_ns)), path.name)
        warn, badge = "", ""
        if small is None:
            warn, badge = f"This file cannot be used: {unreadable(path)}.", "damaged"
        elif twin != path.name:
            warn, badge = f"The same picture as {twin}.", "twice"
        items.append(
            {
                "id": path.name,
                "thumb": str(small) if small else "",
                "caption": sets.caption(path),
                "size": _size(path, stat.st_mtime_ns),
                "warn": warn,
                "badge": badge,
            }
        )
    return items


_BARE: dict[str, tuple[str, int]] = {}
_CONTENT: dict[tuple[str, int], str] = {}
_SIZES: dict[tuple[str, int], str] = {}


def _content(path: Path, changed: int) -> str:
    key = (str(path), changed)
    if key not in _CONTENT:
        _CONTENT[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return _CONTENT[key]


def _size(path: Path, changed: int) -> str:
    key = (str(path), changed)
    if key not in _SIZES:
        try:
            with Image.open(path) as image:
                _SIZES[key] = f"{image.width} × {image.height}"
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            _SIZES[key] = "unreadable"
    return _SIZES[key]


def _writable(studio: Studio) -> tuple[str, bool]:
    name, copied = studio.workspace.datasets.writable(studio.project.draft().dataset)
    if copied:
        _select(studio, name)
    return name, copied


def _select(studio: Studio, name: str) -> None:
    draft = studio.project.draft()
    if studio.workspace.datasets.exists(name):
        word = studio.project.trigger(draft)
        if draft.dataset == DEMO and name.startswith("demo-copy") and word:
            studio.workspace.datasets.set_meta(name, {"trigger": word})
        studio.project.select(name)
