"""Library: all that the workspace holds and the bin; over it, the pages that write an adapter for other programs and
publish it to the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from tuner import events, licences

from .. import exports
from ..disk import size_of, size_text, together
from ..holdings import Library
from ..listing import when
from ..parts.names import safe_stem
from ..parts.reader import reader
from ..parts.widget import quiet, widget
from ..shelf import WAITING, Foreign
from ..studio import Studio, as_dict
from ..workspace import write_json
from .compare import restore, take
from .train import LIVE, chosen

EVENTS = ("act", "openitem", "uploaded", "export", "write", "openexport", "prepare", "publish", "openupload",
          "openlink", "closepage")  # fmt: skip
PATIENCE = 120
EMPTY: dict[str, Any] = {"items": [], "bin": [], "total": "", "thrown": "", "said": "", "undo": None, "page": None}


@dataclass(frozen=True)
class Screen:
    """The widget; the page over the list that is open, if one is; and the clock that follows its job."""

    widget: gr.HTML
    page: gr.State
    clock: gr.Timer

    @property
    def parts(self) -> list[Any]:
        """What `turned` writes to."""
        return [self.page, self.clock, self.widget]


def view(
    studio: Studio, said: str = "", page: dict[str, Any] | None = None, undo: dict[str, str] | None = None
) -> dict[str, Any]:
    """The list and the bin, or the page over them when one is open. undo: what was just moved to the bin."""
    if page is not None:
        return {**EMPTY, "said": said, "page": page}
    library = Library(studio.workspace)
    Foreign(studio.workspace.adapters, studio.launcher).look()
    items, thrown = library.items(), library.binned()
    return {
        "items": [_worded(studio, item) for item in items],
        "bin": [{"kind": i["kind"], "name": i["name"], "size": size_text(i["size"])} for i in thrown],
        "total": size_text(together(item["room"] for item in items).bytes),
        "thrown": size_text(size_of(library.bin)), "said": said, "undo": undo, "page": None,
    }  # fmt: skip


def _worded(studio: Studio, item: dict[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in item.items() if key != "room"}
    return {
        **told, "bytes": item["size"], "size": size_text(item["size"]), "when": when(item["at"]),
        "licence": licence(studio, str(item["family"]), str(item.get("source") or "")),
    }  # fmt: skip


def licence(studio: Studio, family: str, source: str) -> str:
    """The terms that an adapter inherits from its base; empty where that is not known."""
    known = studio.catalog.family(family)
    if not source:  # a file from elsewhere does not tell which of the family's models it is for
        return str(known.get("licence") or "")
    sources = known.get("sources") or {}
    base = sources.get(source, source) if isinstance(sources, dict) else source
    found = licences.of(family, base)
    if found == licences.SEE_BASE:
        return "its own"
    return (found.name or found.tag) if found else ""


def turned(
    studio: Studio, page: dict[str, Any] | None, said: str = "", undo: dict[str, str] | None = None
) -> tuple[Any, Any, Any]:
    """Open a page, or the list again; for the outputs `Screen.parts`. The clock goes while something is at work."""
    shown = view(studio, said, page, undo)
    live = page["live"] if page else any(i["live"] or i["about"] == WAITING for i in shown["items"])
    return page, gr.Timer(active=bool(live)), shown


def build(studio: Studio, session: gr.State, tabs: gr.Tabs) -> Screen:
    """The screen."""
    widget_ = widget("holdings", EMPTY, "library", EVENTS)
    screen = Screen(widget_, gr.State(None), gr.Timer(1.0, active=False))

    def on_act(event: gr.EventData) -> tuple[Any, Any, Any]:
        return turned(studio, None, *act(studio, as_dict(event._data)))

    def on_uploaded(event: gr.EventData) -> tuple[Any, Any, Any]:
        return turned(studio, None, take(studio, {**as_dict(event._data), "slot": "adapters"}))

    def on_open(known: dict[str, Any], event: gr.EventData) -> tuple[Any, Any]:
        return opened(studio, known, as_dict(event._data))

    def turning(name: str) -> Callable[[gr.EventData], tuple[Any, Any, Any]]:
        def on_event(event: gr.EventData) -> tuple[Any, Any, Any]:
            return turned(studio, PAGES[name](studio, as_dict(event._data)))

        return on_event

    def on_clock(page: dict[str, Any] | None) -> tuple[Any, Any, Any]:
        return turned(studio, followed(studio, page))

    widget_.act(on_act, None, screen.parts, **quiet())
    widget_.uploaded(on_uploaded, None, screen.parts, **quiet())
    widget_.openitem(on_open, [session], [session, tabs], **quiet())
    for name in PAGES:
        getattr(widget_, name)(turning(name), None, screen.parts, **quiet(trigger_mode="once"))
    screen.clock.tick(on_clock, [screen.page], screen.parts, **quiet(trigger_mode="once"))
    return screen


def opened(studio: Studio, known: dict[str, Any], sent: dict[str, Any]) -> tuple[Any, Any]:
    """Show an item on the screen where it is worked with; for the outputs session and tabs."""
    name, kind = str(sent.get("name", "")), str(sent.get("kind", ""))
    if Library(studio.workspace).folder(kind, name) is None:
        return gr.skip(), gr.skip()
    if kind == "dataset":
        studio.project.select(name)
        return gr.skip(), gr.Tabs(selected="dataset")
    if kind == "adapter":
        return gr.skip(), gr.Tabs(selected="compare")
    if kind == "compare":
        restore(studio, name)
        return gr.skip(), gr.Tabs(selected="compare")
    if kind != "run":
        return gr.skip(), gr.skip()
    return chosen(known, name), gr.Tabs(selected="compare" if sent.get("tab") == "compare" else "train")


def export_page(studio: Studio, wanted: str) -> dict[str, Any] | None:
    """The page that asks how something is to be written."""
    of = exports.subject(studio, wanted)
    return exports.form(studio, of) if of else None


def _write(studio: Studio, sent: dict[str, Any]) -> dict[str, Any] | None:
    folder = exports.start(studio, sent)
    return exports.page(studio, folder.name) if folder else None


def _publish(studio: Studio, sent: dict[str, Any]) -> dict[str, Any] | None:
    folder = start(studio, sent)
    return progress(studio, folder.name) if folder else None


def followed(studio: Studio, page: dict[str, Any] | None) -> dict[str, Any] | None:
    """The open page as its job stands now."""
    if not page or not page.get("job"):
        return page
    return (exports.page if page["kind"] == "export" else progress)(studio, str(page["job"]))


def linked(studio: Studio, link: str) -> dict[str, Any] | None:
    """The page of an address, as `page["link"]` has it; the list where that names nothing any more."""
    kind, _, name = link.partition(":")
    if kind == "publish":
        run, _, written = name.partition(":")
        sent = {"name": run, "export": written}
        return preview(studio, sent) if _source(studio, sent) else None
    ways = {"export": export_page, "written": exports.page, "upload": progress}
    return ways[kind](studio, name) if kind in ways else None


PAGES: dict[str, Callable[[Studio, dict[str, Any]], dict[str, Any] | None]] = {
    "export": lambda studio, sent: export_page(studio, str(sent.get("id", ""))),
    "write": _write,
    "openexport": lambda studio, sent: exports.page(studio, str(sent.get("name", ""))),
    "prepare": lambda studio, sent: preview(studio, sent),
    "publish": _publish,
    "openupload": lambda studio, sent: progress(studio, str(sent.get("name", ""))),
    "openlink": lambda studio, sent: linked(studio, str(sent.get("page", ""))),
    "closepage": lambda studio, sent: None,
}
"""What the widget sends → the page over the list that it opens; none: the list."""


def act(studio: Studio, sent: dict[str, Any]) -> tuple[str, dict[str, str] | None]:
    """Do what a button of the list says; returns one sentence about it, and what an undo would bring back."""
    library, what = Library(studio.workspace), sent.get("do")
    kind, name = str(sent.get("kind", "")), str(sent.get("name", ""))
    if what == "delete":
        said, thrown = library.throw(kind, name)
        return said, {"kind": kind, "name": thrown} if thrown else None
    if what == "restore":
        return library.restore(kind, name), None
    if what == "empty":
        return library.empty(), None
    if what == "clear_jobs":
        return library.clear_jobs(), None
    if what == "write":
        library.write(kind, name, {key: str(sent[key]) for key in ("title", "tags", "note") if key in sent})
        return "Saved.", None
    return "", None


def preview(studio: Studio, sent: dict[str, Any]) -> dict[str, Any]:
    """The card and the exact list of files, asked of the engine without sending anything."""
    run, written = str(sent.get("name", "")), str(sent.get("export") or "")
    path = _source(studio, sent)
    repo = str(sent.get("repo") or "").strip()
    page: dict[str, Any] = {
        "kind": "publish", "run": run, "export": written, "repo": repo, "public": bool(sent.get("public")),
        "update": sent.get("update") is True, "gallery": [],
        "login": login(), "stage": "form", "wish": safe_stem((run or written)[11:] or run, "my-lora"), "trouble": "",
        "parcel": None, "live": False,
        "link": f"publish:{run}" + (f":{written}" if written else ""),
    }  # fmt: skip
    if path is None or not repo:
        return page
    with tempfile.TemporaryDirectory(dir=studio.workspace.root / "cache") as scratch:
        out = Path(scratch) / "told.json"
        child = studio.launcher.once(*_arguments(studio, path, sent), "--dry-run", "--job", scratch, out=out)
        child.wait(PATIENCE)
        if child.returncode == 0:
            parcel = json.loads(out.read_text(encoding="utf-8"))
            files = [{**file, "size": size_text(file["size"])} for file in parcel["files"]]
            page["gallery"] = _gallery(studio, run, parcel)
            page |= {"parcel": {**parcel, "files": files, "size": size_text(parcel["size"])}, "stage": "ready"}
        else:
            page["trouble"] = out.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip()[-400:]
    return page


def _gallery(studio: Studio, run: str, parcel: dict[str, Any]) -> list[dict[str, str]]:
    """Small copies of the pictures that the card shows."""
    shown, folder = [], studio.workspace.run(run)
    for one in parcel.get("shown") or []:
        path = folder / str(one["from"]) if folder else None
        if path and path.is_file() and path.resolve().is_relative_to(studio.workspace.runs.resolve()):
            shown.append({"prompt": str(one["prompt"]), "file": str(studio.workspace.datasets.thumb(path) or "")})
    return [one for one in shown if one["file"]]


def start(studio: Studio, sent: dict[str, Any]) -> Path | None:
    """Send in the background. The token goes into the environment of that one process, and nowhere else."""
    path, repo = _source(studio, sent), str(sent.get("repo", "")).strip()
    if path is None or not repo:
        return None
    written, run = str(sent.get("export") or ""), str(sent.get("name", ""))
    folder = studio.workspace.new_job(f"publish-{(run or written)[11:] or run}")
    arguments = [*_arguments(studio, path, sent), "--job", str(folder)]
    studio.launcher.publish(folder, arguments, str(sent.get("token") or "").strip())
    asked = {"run": run, "export": written, "repo": repo, "public": sent.get("public") is True}
    write_json(folder / "asked.json", {**asked, "update": sent.get("update") is True})
    return folder


def progress(studio: Studio, name: str) -> dict[str, Any] | None:
    """Where an upload stands; nothing when there is none."""
    folder = Library(studio.workspace).folder("job", name)
    if folder is None or not (folder / "asked.json").exists():
        return None
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    seen = reader(folder).refresh()
    live = seen.state in LIVE
    if not live and seen.last.get("kind") == "finished":
        shutil.rmtree(folder / "parcel", ignore_errors=True)
    made = not live and any(e["kind"] == "made" for e in events.follow(folder / "events.jsonl")[0])
    stage = "sending" if live else "done" if seen.state == "finished" else "failed"
    return {
        "kind": "publish", "job": name, "link": f"upload:{name}", **asked, "stage": stage, "live": live,
        "done": int(seen.phase.get("done") or 0), "of": int(seen.phase.get("of") or 0),
        "url": str(seen.last.get("url") or ""), "trouble": "" if live else seen.error(),
        "made": made,
    }  # fmt: skip


def login() -> bool:
    """Whether huggingface_hub has a token of its own. It is looked for, never read."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    place = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return bool(os.environ.get("HF_TOKEN")) or place.is_file()


def _source(studio: Studio, sent: dict[str, Any]) -> Path | None:
    """What the engine is to publish: a run's folder, or an export of a file that belongs to no run."""
    run, written = str(sent.get("name", "")), exports.place(studio, str(sent.get("export") or ""))
    return studio.workspace.run(run) if run else written / "export" if written else None


def _arguments(studio: Studio, path: Path, sent: dict[str, Any]) -> list[str]:
    seen, repo = "--public" if sent.get("public") is True else "--private", str(sent.get("repo", "")).strip()
    written = exports.place(studio, str(sent.get("export") or ""))
    chosen = [f"--files={written / 'export'}"] if written and sent.get("name") else []
    return [
        "publish",
        str(path),
        f"--repo={repo}",
        seen,
        *chosen,
        *(["--update"] if sent.get("update") is True else []),
    ]
