"""Dataset: bring pictures, videos and sounds; see them; write their captions; look after them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from .. import captioning, captions
from ..archives import Refused, unpack
from ..datasets import DEMO, Added
from ..media import ENDINGS, kind, told, unreadable
from ..parts.checks import digest
from ..parts.widget import SILENT, notice, quiet, widget
from ..parts.words import count
from ..studio import Studio, as_dict, dataset_title

MOST = 2000
COPY = "The demo stays as it is: you now work on a copy of it."
WORDS = {"image": "picture", "video": "video", "audio": "sound"}
Said = dict[str, Any]
"""What a handler adds to the view: note, undo (names), preview."""


def view(studio: Studio, told: Said = SILENT, preview: Said | None = None) -> dict[str, Any]:
    """The data set as the page shows it."""
    sets, draft = studio.workspace.datasets, studio.project.draft()
    items = _items(studio, draft.dataset)
    uses, plan = _uses(studio)
    offered = [
        {"name": n, "title": dataset_title(n), "count": len(sets.files(n)), "chosen": n == draft.dataset}
        for n in sets.names()
    ]
    return {
        "name": draft.dataset,
        "sets": offered,
        "items": items,
        "counts": _counts(items, uses),
        "trigger": studio.project.trigger(draft),
        "told": told,
        "preview": preview or {},
        "bulk": len(sets.meta(draft.dataset).get("before") or []),
        "aside": [] if draft.dataset == DEMO else sets.left_out(draft.dataset),
        "job": captioning.state(studio, draft.dataset),
        "models": captioning.MODELS,
        "purposes": captioning.PURPOSES,
        "doctor": _doctor(studio),
        "uses": uses,
        "plan": plan,
    }


def _counts(items: list[dict[str, Any]], uses: dict[str, Any]) -> dict[str, int]:
    """How many each filter would show."""
    return {
        "all": len(items),
        "bare": sum(not i["caption"] for i in items),
        "warn": sum(bool(i["warn"]) for i in items),
        "unused": sum(bool(uses.get(i["id"], {}).get("unused")) for i in items),
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
    text = _numbered(files)
    if not bare:
        return f"{text}, all with captions. Click a caption to change it."
    lacks = f"{text}. {count(bare, 'has', 'have')} no caption"
    if word:
        return f"{lacks} and will be trained with the trigger word alone."
    return f"{lacks}: write one, or set a trigger word."


def _numbered(files: list[Path]) -> str:
    kinds = [kind(path) for path in files]
    return ", ".join(count(kinds.count(k), word) for k, word in WORDS.items() if k in kinds)


def build(studio: Studio) -> tuple[gr.HTML, gr.HTML, gr.Button]:
    """The screen; returns the grid, the line below it and the button to the next screen."""
    seen, told = gr.State(""), gr.State(SILENT)
    grid = widget("grid", view(studio), "dataset", (*HANDLERS, "folder"))
    with gr.Row(elem_classes="actions"):
        line = gr.HTML(plan_line(studio), html_template=PLAN, js_on_load=None, elem_classes="plan-line", padding=False)
        onward = gr.Button("Choose a recipe", variant="primary", elem_id="to-recipe")

    def answered(preview: Said | None = None, **words: Any) -> tuple[Any, str, Said]:
        news = notice(**words)
        return view(studio, news, preview), plan_line(studio), news

    def bound(handler: Callable[[Studio, Said], Said]) -> Callable[[gr.EventData], tuple[Any, str, Said]]:
        def on_event(event: gr.EventData) -> tuple[Any, str, Said]:
            return answered(**handler(studio, as_dict(event._data)))

        return on_event

    def on_folder(event: gr.EventData, request: gr.Request) -> tuple[Any, str, Said]:
        path = str(as_dict(event._data).get("path", ""))
        return answered(note=take_folder(studio, path) if local(request) else AWAY)

    def on_tick(known: str, news: Said) -> tuple[Any, Any, Any]:
        mark = stamp(studio, news)
        if mark == known:
            return gr.skip(), gr.skip(), gr.skip()
        return mark, view(studio, news), plan_line(studio)

    for name, handler in HANDLERS.items():
        getattr(grid, name)(bound(handler), None, [grid, line, told], **quiet())
    grid.folder(on_folder, None, [grid, line, told], **quiet())
    gr.Timer(1.0).tick(on_tick, [seen, told], [seen, grid, line], concurrency_limit=None, **quiet(trigger_mode="once"))
    return grid, line, onward


PLAN = '<div class="t-plan" role="status">{{value}}</div>'
AWAY = "A folder of this machine can only be opened in a browser on this machine. Upload the files, or a zip of them."


def stamp(studio: Studio, told: Said = SILENT) -> str:
    """Changes when something happens that no press of this page causes: captions, the doctor's and the check's word.

    And with each notice, which is sent twice: a late view may have overtaken it.
    """
    uses, plan = _uses(studio)
    name = studio.project.draft().dataset
    job = captioning.state(studio, name)
    return digest(json.dumps([name, job, _doctor(studio), bool(uses), plan, told["at"]], default=str), "")


# -- what the page sends -----------------------------------------------------------------------------------------------


def _uploaded(studio: Studio, sent: Said) -> Said:
    files = [(Path(str(f["path"])), str(f["name"])) for f in sent.get("files", [])]
    return {"note": receive(studio, files, [str(name) for name in sent.get("failed", [])])}


def _caption(studio: Studio, sent: Said) -> Said:
    name, copied = _writable(studio)
    captions.write(studio.workspace.datasets, name, {str(sent["id"]): str(sent["text"])})
    return {"note": COPY if copied else ""}


def _bulk(studio: Studio, sent: Said) -> Said:
    """Preview, then apply: a change of many captions."""
    sets, draft = studio.workspace.datasets, studio.project.draft()
    texts = {path.name: sets.caption(path) for path in sets.files(draft.dataset)}
    try:
        made = captions.changes(texts, sent)
    except ValueError as error:
        return {"preview": {"asked": sent, "text": str(error), "rows": []}}
    if not sent.get("apply"):
        rows = [[c.picture, c.before, c.after] for c in made[:50]]
        text = f"{count(len(made), 'caption')} would change." if made else "No caption would change."
        return {"preview": {"asked": sent, "text": text, "rows": rows}}
    name, _ = _writable(studio)
    captions.apply(sets, name, made)
    return {"note": f"{count(len(made), 'caption')} changed."}


def _unbulk(studio: Studio, sent: Said) -> Said:
    back, stayed = captions.undo(studio.workspace.datasets, studio.project.draft().dataset)
    more = f" {count(stayed, 'was', 'were')} edited since and stay." if stayed else ""
    return {"note": f"{count(back, 'caption')} as before.{more}"}


def _remove(studio: Studio, sent: Said) -> Said:
    """Leave items out: they are moved aside, and `undo` brings them back."""
    wanted = [str(one) for one in sent.get("ids") or [sent.get("id")]]
    name, _ = _writable(studio)
    there = {path.name for path in studio.workspace.datasets.files(name)}
    gone = [one for one in wanted if one in there]
    for one in gone:
        studio.workspace.datasets.remove(name, one)
    what = gone[0] if len(gone) == 1 else count(len(gone), "item")
    was = "was" if len(gone) == 1 else "were"
    return {"note": f"{what} {was} left out of {dataset_title(name)}.", "undo": gone}


def _undo(studio: Studio, sent: Said) -> Said:
    for one in sent.get("ids") or []:
        studio.workspace.datasets.restore(studio.project.draft().dataset, str(one))
    return {}


def _pick(studio: Studio, sent: Said) -> Said:
    _select(studio, str(sent["name"]))
    return {}


def _fresh(studio: Studio, sent: Said) -> Said:
    _select(studio, studio.workspace.datasets.create(str(sent.get("name") or "my-pictures")))
    return {}


def _triggerword(studio: Studio, sent: Said) -> Said:
    word = " ".join(str(sent["text"]).split())
    studio.workspace.datasets.set_meta(studio.project.draft().dataset, {"trigger": word})
    return {}


def _autocaption(studio: Studio, sent: Said) -> Said:
    name, copied = _writable(studio)
    note = captioning.start(studio, name, sent)
    return {"note": note or (COPY if copied else "")}


def _captionstop(studio: Studio, sent: Said) -> Said:
    return {"note": captioning.stop(studio, studio.project.draft().dataset)}


def _examine(studio: Studio, sent: Said) -> Said:
    """Ask the doctor. The answer comes with a later tick."""
    draft = studio.project.draft()
    if studio.project.mistakes(draft):
        return {"note": "The recipe needs a change first: see Problems on the Recipe screen."}
    studio.doctor.want(studio.project.yaml(draft), studio.project.stamp(draft))
    return {}


def _remedy(studio: Studio, sent: Said) -> Said:
    """Set what the doctor proposes; only values that a finding of its own names."""
    wanted = sent.get("remedy") or {}
    if wanted and any(f.get("remedy") == wanted for f in _doctor(studio).get("findings", [])):
        studio.project.update({str(key): value for key, value in wanted.items()})
        return {"note": "Set in the recipe: " + ", ".join(f"{key} = {value}" for key, value in wanted.items()) + "."}
    return {}


HANDLERS: dict[str, Callable[[Studio, Said], Said]] = {
    "uploaded": _uploaded,
    "caption": _caption,
    "bulk": _bulk,
    "unbulk": _unbulk,
    "remove": _remove,
    "undo": _undo,
    "pick": _pick,
    "fresh": _fresh,
    "triggerword": _triggerword,
    "autocaption": _autocaption,
    "captionstop": _captionstop,
    "examine": _examine,
    "remedy": _remedy,
}


# -- files that come in ------------------------------------------------------------------------------------------------


def receive(studio: Studio, files: list[tuple[Path, str]], failed: list[str]) -> str:
    """Copy uploads into the chosen data set (a new one when that is the demo) and say what became of them."""
    uploads = studio.workspace.uploads.resolve()
    inside = [(path, name) for path, name in files[:MOST] if path.resolve().is_relative_to(uploads)]
    left = [f"{name}: it could not be copied" for name in failed]
    with tempfile.TemporaryDirectory(dir=uploads) as room:
        opened: list[tuple[Path, str]] = []
        for number, (path, name) in enumerate(inside):
            if Path(name).suffix.lower() != ".zip":
                opened.append((path, name))
                continue
            try:
                opened += unpack(path, Path(room) / str(number))
            except Refused as error:
                left.append(f"{name}: {error}".rstrip("."))
        said = _take(studio, opened, left)
    for path, _ in inside:
        path.unlink(missing_ok=True)
    return said


def take_folder(studio: Studio, path: str) -> str:
    """Copy the items and captions of a folder of this machine; the folder itself is only read."""
    folder = Path(path.strip()).expanduser()
    if not path.strip() or not folder.is_absolute() or not folder.is_dir():
        return "There is no such folder; give its whole path, for example /home/me/pictures."
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS | {".txt"})
    files = [p for p in found if p.is_file() and not any(x.startswith(".") for x in p.relative_to(folder).parts)]
    if not any(p.suffix.lower() in ENDINGS for p in files):
        return "There are no pictures, videos or sounds in this folder."
    if sum(p.stat().st_size for p in files) > shutil.disk_usage(studio.workspace.root).free // 2:
        return "The disk has too little room for a copy of this folder; make room first."
    named = [(p, "-".join(p.relative_to(folder).parts)) for p in files[: 2 * MOST]]
    return _take(studio, named, [])


def local(request: gr.Request) -> bool:
    """Whether the browser runs on this machine: nobody signed in, no other name, nothing in between."""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    loopback = ("127.0.0.1", "::1", "localhost")
    peer = request.client.host if request.client else ""
    between = any(request.headers.get(name) for name in ("x-forwarded-for", "forwarded", "x-real-ip"))
    return host in loopback and peer in loopback and not between and not request.username


def _take(studio: Studio, files: list[tuple[Path, str]], left: list[str]) -> str:
    draft = studio.project.draft()
    if draft.dataset == DEMO and files:
        _select(studio, studio.workspace.datasets.create("my-pictures"))
        draft = studio.project.draft()
    added = studio.workspace.datasets.add(draft.dataset, files) if files else Added()
    said = [f"{_numbered([Path(name) for name in added.pictures])} added."] if added.pictures else []
    if added.captions:
        said.append(f"{count(added.captions, 'caption')} read.")
    left = added.left_out + left
    if len(left) > 3:
        left = [*left[:3], f"and {len(left) - 3} more"]
    if left:
        said.append("Left out: " + "; ".join(left) + ".")
    return " ".join(said)


# -- what the page is told ---------------------------------------------------------------------------------------------


def _items(studio: Studio, name: str) -> list[dict[str, Any]]:
    sets, seen, items = studio.workspace.datasets, {}, []
    files = sets.files(name)[:MOST]
    texts = {path.name: sets.caption(path) for path in files}
    origin = captions.origins(sets, name, texts)
    for path, small in zip(files, sets.thumb_all(files), strict=True):
        stat = path.stat()
        twin = seen.setdefault((stat.st_size, _content(path, stat.st_mtime_ns)), path.name)
        what, warn, badge = kind(path), "", ""
        if small is None and what != "audio":
            warn, badge = f"This file cannot be used: {unreadable(path)}.", "damaged"
        elif twin != path.name:
            warn, badge = f"The same {WORDS[what]} as {twin}.", "twice"
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
            }
        )
    return items


def _uses(studio: Studio) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the engine's check says of each item (crop, bucket, why unused), and the plan; empty until known."""
    draft = studio.project.draft()
    if studio.project.mistakes(draft):
        return {}, {}
    answer = studio.checker.answer(digest(studio.project.yaml(draft), studio.project.stamp(draft))) or {}
    plan = answer.get("plan") or {}
    shown = ("crop", "scaled", "bucket", "original", "resolution", "unused", "frames")
    uses: dict[str, Any] = {}
    for one in plan.get("uses") or []:
        if one.get("dataset") == 0:
            uses.setdefault(str(one["name"]), {key: one[key] for key in shown if key in one})
    kept = ("items", "unused", "steps_per_epoch", "epochs")
    sizes = ("width", "height", "items", "frames", "seconds", "kind")
    buckets = [{key: bucket[key] for key in sizes if key in bucket} for bucket in plan.get("buckets") or []]
    return uses, {**{key: plan[key] for key in kept if key in plan}, "buckets": buckets} if plan else {}


def _doctor(studio: Studio) -> dict[str, Any]:
    """The doctor's findings for the data set as it is now; busy while it looks; empty when it was not asked."""
    draft = studio.project.draft()
    if studio.project.mistakes(draft):
        return {}
    key = digest(studio.project.yaml(draft), studio.project.stamp(draft))
    answer = studio.doctor.answer(key)
    if answer is None:
        asked = studio.doctor.asked(key)
        if asked:
            studio.doctor.poll()
        return {"busy": True} if asked else {}
    if "findings" not in answer:
        return {"error": " ".join(str(p.get("text", "")) for p in answer.get("problems") or [])}
    return {"findings": [_finding(f) for f in answer["findings"]]}


def _finding(found: dict[str, Any]) -> dict[str, Any]:
    """A finding with the names of its items, and those that a press may leave out: of copies all but the first."""
    names = [str(n["name"]) for n in found.get("items") or []]
    groups = [[str(n["name"]) for n in group] for group in found.get("groups") or []]
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
_BARE: dict[str, tuple[str, int]] = {}
_CONTENT: dict[tuple[str, int], str] = {}
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
