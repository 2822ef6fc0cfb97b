"""Dataset: bring pictures, videos and sounds; see them; write their captions; look after them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from .. import captioning, captions, companions, masking
from ..archives import Refused, unpack
from ..datasets import DEMO, Added
from ..media import ENDINGS, PICTURES
from ..parts.cards import MOST, doctor, look, numbered, others, plan_line, uses, view, without_caption
from ..parts.checks import digest
from ..parts.since import Marks, since
from ..parts.widget import SILENT, notice, quiet, widget
from ..parts.words import count
from ..studio import Studio, as_dict, dataset_title

__all__ = ["build", "plan_line", "view", "without_caption"]

COPY = "The demo stays as it is: you now work on a copy of it."
Said = dict[str, Any]
"""What a handler adds to the view: note, undo (names), preview, look."""


def build(studio: Studio) -> tuple[gr.HTML, gr.HTML, gr.Button]:
    """The screen; returns the grid, the line below it and the button to the next screen."""
    seen, told = gr.State({}), gr.State(SILENT)
    grid = widget("grid", view(studio), "dataset", (*HANDLERS, "folder", "whole"))
    with gr.Row(elem_classes="actions"):
        line = gr.HTML(plan_line(studio), html_template=PLAN, js_on_load=None, elem_classes="plan-line", padding=False)
        onward = gr.Button("Choose a recipe", variant="primary", elem_id="to-recipe")
    outputs = [grid, line, seen]

    def sent(known: Marks, news: Said, **shown: Any) -> tuple[Any, str, Marks]:
        mark = stamp(studio, news)  # first: what changes meanwhile is seen by the next tick
        patch, marks = since(known, view(studio, news, **shown))
        return patch, plan_line(studio), {**marks, "stamp": mark}

    def answer(known: Marks, before: Said, said: Said) -> tuple[Any, str, Marks, Said]:
        # a look at an item follows each save by itself, and leaves what was said of that
        news = before if said.keys() == {"look"} else notice(**{k: said[k] for k in ("note", "undo") if k in said})
        return *sent(known, news, **{k: said[k] for k in ("preview", "look") if k in said}), news

    def bound(handler: Callable[[Studio, Said], Said]) -> Callable[[Marks, Said, gr.EventData], tuple[Any, ...]]:
        def on_event(known: Marks, before: Said, event: gr.EventData) -> tuple[Any, ...]:
            return answer(known, before, handler(studio, as_dict(event._data)))

        return on_event

    def on_folder(known: Marks, before: Said, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        wanted = as_dict(event._data)
        path, what = str(wanted.get("path", "")), str(wanted.get("what", ""))
        return answer(known, before, {"note": take_folder(studio, path, what) if local(request) else AWAY})

    def on_tick(known: Marks, news: Said) -> tuple[Any, Any, Any]:
        return sent(known, news) if stamp(studio, news) != known.get("stamp") else (gr.skip(), gr.skip(), gr.skip())

    for name, handler in HANDLERS.items():
        getattr(grid, name)(bound(handler), [seen, told], [*outputs, told], **quiet())
    grid.folder(on_folder, [seen, told], [*outputs, told], **quiet())
    grid.whole(lambda news: sent({}, news), [told], outputs, **quiet())
    gr.Timer(1.0).tick(on_tick, [seen, told], outputs, concurrency_limit=None, **quiet(trigger_mode="once"))
    return grid, line, onward


PLAN = '<div class="t-plan" role="status">{{value}}</div>'
AWAY = "A folder of this machine can only be opened in a browser on this machine. Upload the files, or a zip of them."


def stamp(studio: Studio, told: Said = SILENT) -> str:
    """Changes when anything that the page shows does: files, captions, notices, the doctor's and the check's word."""
    _, plan = uses(studio)
    draft = studio.project.draft()
    job = [captioning.state(studio, draft.dataset), masking.state(studio, draft.dataset), studio.project.reads(draft)]
    files = studio.project.stamp(draft)
    noted = [studio.workspace.datasets.meta(draft.dataset).get(key) for key in ("trigger", "repeats", "masks")]
    return digest(json.dumps([draft.dataset, files, noted, job, doctor(studio), plan, told["at"]], default=str), "")


# -- what the page sends -----------------------------------------------------------------------------------------------


def _uploaded(studio: Studio, sent: Said) -> Said:
    files = [(Path(str(f["path"])), str(f["name"])) for f in sent.get("files", [])]
    return {"note": receive(studio, files, [str(name) for name in sent.get("failed", [])], str(sent.get("what") or ""))}


def _caption(studio: Studio, sent: Said) -> Said:
    name, copied = _writable(studio)
    captions.write(studio.workspace.datasets, name, {str(sent["id"]): str(sent["text"])})
    return {"note": COPY if copied else ""}


def _bulk(studio: Studio, sent: Said) -> Said:
    """Preview, then apply: a change of many captions."""
    sets, draft = studio.workspace.datasets, studio.project.draft()
    some = {str(one) for one in sent.get("ids") or []}
    files = [path for path in sets.files(draft.dataset) if not some or path.name in some]
    texts = {path.name: sets.caption(path) for path in files}
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


def _repeats(studio: Studio, sent: Said) -> Said:
    """How often these items are seen in an epoch; as often as the others when that is what was asked for."""
    try:
        times = int(sent.get("times") or 0)
    except (TypeError, ValueError):
        times = 0
    if not 1 <= times <= MOST_REPEATS:
        return {"note": f"Repeats are a whole number from 1 to {MOST_REPEATS}."}
    name, copied = _writable(studio)
    usual = others(studio)
    many = studio.workspace.datasets.set_repeats(
        name, [str(one) for one in sent.get("ids") or []], None if times == usual else times
    )
    text = f"{count(many, 'item is', 'items are')} now seen {times} × in each epoch."
    return {"note": f"{text} {COPY}" if copied else text}


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
    if wanted and any(f.get("remedy") == wanted for f in doctor(studio).get("findings", [])):
        studio.project.update({str(key): value for key, value in wanted.items()})
        return {"note": "Set in the recipe: " + ", ".join(f"{key} = {value}" for key, value in wanted.items()) + "."}
    return {}


def _look(studio: Studio, sent: Said) -> Said:
    """Show what is worked out for one item only."""
    return {"look": look(studio, str(sent.get("id", "")))}


def _maskpaint(studio: Studio, sent: Said) -> Said:
    """Keep what was painted."""
    drawn = Path(str(sent.get("path", ""))).resolve()
    if not drawn.is_relative_to(studio.workspace.uploads.resolve()):
        return {"note": f"The mask of {sent.get('id', '')} could not be read; paint it again."}
    name, copied = _writable(studio)
    trouble = companions.paint(studio.workspace.datasets, name, str(sent.get("id", "")), drawn)
    drawn.unlink(missing_ok=True)
    return {"note": trouble or (COPY if copied else f"Mask of {sent.get('id')} saved.")}


def _automask(studio: Studio, sent: Said) -> Said:
    name, copied = _writable(studio)
    return {"note": masking.start(studio, name, sent) or (COPY if copied else "")}


def _maskstop(studio: Studio, sent: Said) -> Said:
    return {"note": masking.stop(studio, studio.project.draft().dataset)}


def _maskrest(studio: Studio, sent: Said) -> Said:
    """The pictures without a mask count whole."""
    name, _ = _writable(studio)
    return {"note": f"{count(companions.whole(studio.workspace.datasets, name), 'picture')} will count whole."}


def _maskdrop(studio: Studio, sent: Said) -> Said:
    """Delete masks: of these items, or all. They are put aside, and `maskback` brings them back."""
    name, _ = _writable(studio)
    stems = [Path(str(one)).stem for one in sent["ids"]] if sent.get("ids") else None
    gone = companions.drop(studio.workspace.datasets, name, "mask", stems)
    return {"note": f"{count(gone, 'mask')} deleted. The dialogue Masks can bring back what was deleted."}


def _maskback(studio: Studio, sent: Said) -> Said:
    name, _ = _writable(studio)
    came = companions.back(studio.workspace.datasets, name, "mask")
    return {"note": f"{count(came, 'mask is', 'masks are')} back."}


def _maskuse(studio: Studio, sent: Said) -> Said:
    """Whether training heeds the masks."""
    name, _ = _writable(studio)
    studio.workspace.datasets.set_meta(name, {"masks": bool(sent.get("use"))})
    return {"note": "" if sent.get("use") else "Training will not heed the masks; they are kept."}


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
    "repeats": _repeats,
    "autocaption": _autocaption,
    "captionstop": _captionstop,
    "examine": _examine,
    "remedy": _remedy,
    "look": _look,
    "maskpaint": _maskpaint,
    "automask": _automask,
    "maskstop": _maskstop,
    "maskrest": _maskrest,
    "maskdrop": _maskdrop,
    "maskback": _maskback,
    "maskuse": _maskuse,
}


# -- files that come in ------------------------------------------------------------------------------------------------


def receive(studio: Studio, files: list[tuple[Path, str]], failed: list[str], what: str = "") -> str:
    """Copy uploads into the chosen data set (a new one when that is the demo) and say what became of them.

    what: mask, control or reference takes them as the companions of the pictures that are there.
    """
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
        said = _beside(studio, what, opened, left) if what else _take(studio, opened, left)
    for path, _ in inside:
        path.unlink(missing_ok=True)
    return said


def take_folder(studio: Studio, path: str, what: str = "") -> str:
    """Copy the items and captions of a folder of this machine; the folder itself is only read.

    what: mask, control or reference takes it as the companions of the pictures that are there.
    """
    folder = Path(path.strip()).expanduser()
    if not path.strip() or not folder.is_absolute() or not folder.is_dir():
        return "There is no such folder; give its whole path, for example /home/me/pictures."
    endings = PICTURES if what else ENDINGS
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings | {".txt"})
    files = [p for p in found if p.is_file() and not any(x.startswith(".") for x in p.relative_to(folder).parts)]
    if not any(p.suffix.lower() in endings for p in files):
        return f"There are no pictures{'' if what else ', videos or sounds'} in this folder."
    if sum(p.stat().st_size for p in files) > shutil.disk_usage(studio.workspace.root).free // 2:
        return "The disk has too little room for a copy of this folder; make room first."
    named = [(p, "-".join(p.relative_to(folder).parts)) for p in files[: 2 * MOST]]
    if what:
        return _beside(studio, what, [(p, name) for p, name in named if p.suffix.lower() in PICTURES], [])
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
    said = [f"{numbered([Path(name) for name in added.pictures])} added."] if added.pictures else []
    if added.captions:
        said.append(f"{count(added.captions, 'caption')} read.")
    return " ".join([*said, *_left_out(added.left_out + left)])


def _beside(studio: Studio, what: str, files: list[tuple[Path, str]], left: list[str]) -> str:
    """Take files as masks, control or reference pictures."""
    if what not in companions.KINDS:
        return "Choose what these files are: masks, control or reference pictures."
    name, _ = _writable(studio)
    taken, odd = companions.add(studio.workspace.datasets, name, what, files)
    said = [f"{count(taken, companions.WORDS[what])} added."] if taken else []
    if taken and what != "mask" and what not in studio.project.reads(studio.project.draft()):
        said.append(UNREAD[what])
    return " ".join([*said, *_left_out(odd + left)])


MOST_REPEATS = 1000
UNREAD = {
    "control": "The chosen recipe does not read them; one that trains a ControlNet does.",
    "reference": "The chosen recipe does not read them; one that trains edits, or videos from a first frame, does.",
}


def _left_out(left: list[str]) -> list[str]:
    shown = [*left[:3], f"and {len(left) - 3} more"] if len(left) > 3 else left
    return ["Left out: " + "; ".join(shown) + "."] if left else []


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
