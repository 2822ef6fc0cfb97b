"""Library: all runs and data sets, the bin, and publishing a run to the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from ..holdings import Library, size_text, when
from ..parts.names import safe_stem
from ..parts.reader import reader
from ..parts.widget import quiet, widget
from ..studio import Studio, as_dict
from .train import LIVE, chosen

EVENTS = ("act", "openitem", "prepare", "publish", "closepage")
PATIENCE = 120


def view(studio: Studio, said: str = "", page: dict[str, Any] | None = None) -> dict[str, Any]:
    """The list, the bin, and the page Publish when it is open."""
    library = Library(studio.workspace)
    items = [{**item, "bytes": item["size"], "size": size_text(item["size"]), "when": when(item["at"])}
             for item in library.items()]  # fmt: skip
    thrown = [{**item, "size": size_text(item["size"])} for item in library.binned()]
    total = size_text(sum(int(item["bytes"]) for item in items))
    return {"items": items, "bin": thrown, "total": total, "said": said, "page": page}


def build(studio: Studio, session: gr.State, tabs: gr.Tabs) -> gr.HTML:
    """The screen."""
    screen = widget("holdings", {"items": [], "bin": [], "total": "", "said": "", "page": None}, "library", EVENTS)
    job = gr.State("")
    clock = gr.Timer(1.0, active=False)

    def on_act(event: gr.EventData) -> dict[str, Any]:
        return view(studio, act(studio, as_dict(event._data)))

    def on_open(known: dict[str, Any], event: gr.EventData) -> tuple[Any, Any]:
        sent = as_dict(event._data)
        name, where = str(sent.get("name", "")), str(sent.get("tab", ""))
        if Library(studio.workspace).folder(str(sent.get("kind", "")), name) is None:
            return gr.skip(), gr.skip()
        if sent.get("kind") == "dataset":
            studio.project.select(name)
            return gr.skip(), gr.Tabs(selected="dataset")
        return chosen(known, name), gr.Tabs(selected="compare" if where == "compare" else "train")

    def on_prepare(event: gr.EventData) -> dict[str, Any]:
        return view(studio, page=preview(studio, as_dict(event._data)))

    def on_publish(event: gr.EventData) -> tuple[Any, Any, Any]:
        sent = as_dict(event._data)
        folder = start(studio, sent)
        if folder is None:
            return gr.skip(), gr.skip(), gr.skip()
        return folder.name, gr.Timer(active=True), view(studio, page=progress(studio, folder.name))

    def on_clock(name: str) -> tuple[Any, Any]:
        page = progress(studio, name)
        return view(studio, page=page), gr.Timer(active=bool(page and page["live"]))

    screen.act(on_act, None, [screen], **quiet())
    screen.openitem(on_open, [session], [session, tabs], **quiet())
    screen.prepare(on_prepare, None, [screen], **quiet())
    screen.publish(on_publish, None, [job, clock, screen], **quiet(trigger_mode="once"))
    screen.closepage(lambda: (view(studio), gr.Timer(active=False)), None, [screen, clock], **quiet())
    clock.tick(on_clock, [job], [screen, clock], **quiet(trigger_mode="once"))
    return screen


def act(studio: Studio, sent: dict[str, Any]) -> str:
    """Do what a button of the list says; returns one sentence about it."""
    library, what = Library(studio.workspace), sent.get("do")
    kind, name = str(sent.get("kind", "")), str(sent.get("name", ""))
    if what == "delete":
        return library.delete(kind, name)
    if what == "restore":
        return library.restore(kind, name)
    if what == "empty":
        return library.empty()
    if what == "write":
        library.write(kind, name, {key: str(sent[key]) for key in ("title", "tags", "note") if key in sent})
        return "Saved."
    return ""


def preview(studio: Studio, sent: dict[str, Any]) -> dict[str, Any]:
    """The card and the exact list of files, asked of the engine without sending anything."""
    run = str(sent.get("name", ""))
    path = studio.workspace.run(run)
    repo = str(sent.get("repo") or "").strip()
    page: dict[str, Any] = {"run": run, "repo": repo, "public": bool(sent.get("public")),
            "login": login(), "stage": "form",
            "wish": safe_stem(run[11:] or run, "my-lora"), "trouble": "", "parcel": None, "live": False}  # fmt: skip
    if path is None or not repo:
        return page
    with tempfile.TemporaryDirectory(dir=studio.workspace.root / "cache") as scratch:
        out = Path(scratch) / "told.json"
        child = studio.launcher.once(*_arguments(path, repo, sent), "--dry-run", "--job", scratch, out=out)
        child.wait(PATIENCE)
        if child.returncode == 0:
            parcel = json.loads(out.read_text(encoding="utf-8"))
            files = [{**file, "size": size_text(file["size"])} for file in parcel["files"]]
            page |= {"parcel": {**parcel, "files": files, "size": size_text(parcel["size"])}, "stage": "ready"}
        else:
            page["trouble"] = out.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip()[-400:]
    return page


def start(studio: Studio, sent: dict[str, Any]) -> Path | None:
    """Send in the background. The token goes into the environment of that one process, and nowhere else."""
    path, repo = studio.workspace.run(str(sent.get("name", ""))), str(sent.get("repo", "")).strip()
    if path is None or not repo:
        return None
    folder = studio.workspace.new_job(f"publish-{path.name[11:] or path.name}")
    arguments = [*_arguments(path, repo, sent), "--job", str(folder)]
    studio.launcher.publish(folder, arguments, str(sent.get("token") or "").strip())
    (folder / "asked.json").write_text(json.dumps({"run": path.name, "repo": repo}), encoding="utf-8")
    return folder


def progress(studio: Studio, name: str) -> dict[str, Any] | None:
    """Where an upload stands; nothing when there is none."""
    folder = studio.workspace.root / "jobs" / name
    if not name or not (folder / "asked.json").exists():
        return None
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    seen = reader(folder).refresh()
    live = seen.state in LIVE
    if not live and seen.last.get("kind") == "finished":
        shutil.rmtree(folder / "parcel", ignore_errors=True)
    return {
        **asked, "stage": "sending" if live else "done" if seen.state == "finished" else "failed", "live": live,
        "done": int(seen.phase.get("done") or 0), "of": int(seen.phase.get("of") or 0),
        "url": str(seen.last.get("url") or ""), "trouble": "" if live else seen.error(),
    }  # fmt: skip


def login() -> bool:
    """Whether huggingface_hub has a token of its own. It is looked for, never read."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    place = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return bool(os.environ.get("HF_TOKEN")) or place.is_file()


def _arguments(path: Path, repo: str, sent: dict[str, Any]) -> list[str]:
    seen = "--public" if sent.get("public") is True else "--private"
    return ["publish", str(path), f"--repo={repo}", seen, *(["--update"] if sent.get("update") is True else [])]
