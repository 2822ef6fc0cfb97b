"""The page: header, four screens, one clock. Builds Blocks and says how they are to be served."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from . import api, space
from .door import Guard, Place
from .parts.reader import Reader
from .parts.widget import SILENT, quiet, scripts, style, widget
from .parts.words import to_the_minute
from .studio import Studio, dataset_title
from .tabs import compare, dataset, help, library, recipe, system, train
from .theme import theme
from .words import i18n
from .workspace import Draft

SCREENS = ("dataset", "recipe", "train", "compare", "library", "system", "help")
ICON = Path(__file__).resolve().parent / "parts" / "icon.svg"
DAY = (3600, 86400)
NOTICE = '<p class="t-notice" role="note">{{value}}</p>'


def frame_view(studio: Studio) -> dict[str, Any]:
    """The header."""
    draft = studio.project.draft()
    running = studio.running()
    name = next((c.name for c in studio.project.cards() if c.id == draft.recipe), "")
    bare = dataset.without_caption(studio, draft.dataset, studio.project.stamp(draft))
    marks = {}
    if bare:
        marks["dataset"] = {"kind": "warn", "text": f"{bare} without a caption"}
    if studio.project.mistakes(draft):
        marks["recipe"] = {"kind": "bad", "text": "Needs a change"}
    if mark := train.mark(studio, running):
        marks["train"] = mark
    return {
        "project": " · ".join(part for part in (dataset_title(draft.dataset), name) if part),
        "device": studio.device(),
        "job": _job(running) if running else None,
        "marks": marks,
    }


@dataclass(frozen=True)
class Page:
    """The parts of the page that events write to."""

    session: gr.State
    seen: gr.State
    told: tuple[gr.State, gr.State]
    """What Recipe and Compare said last."""
    tabs: gr.Tabs
    frame: gr.HTML
    dataset: tuple[gr.HTML, gr.HTML, gr.Button]
    recipe: tuple[gr.HTML, gr.HTML, gr.Button]
    train: tuple[gr.HTML, gr.HTML, gr.Button]
    compare: tuple[gr.HTML, gr.HTML, gr.Button, gr.Button]
    held: library.Screen
    """The Library screen with its open page."""

    @property
    def begins(self) -> list[Any]:
        """What a start of training changes."""
        return [self.session, self.tabs, self.recipe[0], self.train[0], self.recipe[2]]


def build(studio: Studio) -> gr.Blocks:
    """All of the page. State between ticks is a run's name and what was shown last, never a process."""
    studio.queue.watch()
    with gr.Blocks(title="Tuner", analytics_enabled=False, fill_width=True, delete_cache=DAY) as blocks:
        session, seen = gr.State({"run": "", "said": "", "nonce": 0.0}), gr.State({})
        told = (gr.State(SILENT), gr.State(SILENT))
        frame = widget("frame", frame_view(studio), "frame", ("openjob",))
        if space.space_id():
            gr.LoginButton(size="sm", elem_id="login")
        if said := space.notice():
            gr.HTML(said, html_template=NOTICE, js_on_load=None, elem_id="notice", padding=False)
        with gr.Tabs(elem_id="screens", selected="dataset") as tabs:
            with gr.Tab("Dataset", id="dataset") as dataset_tab:
                data = dataset.build(studio)
            with gr.Tab("Recipe", id="recipe") as recipe_tab:
                form = recipe.build(studio, told[0])
            with gr.Tab("Train", id="train"):
                live = train.build(studio, session)
            with gr.Tab("Compare", id="compare") as compare_tab:
                board = compare.build(studio, told[1])
            held = _further(studio, session, tabs)
        page = Page(session, seen, told, tabs, frame, data, form, live, board, held)
        _clock(studio, blocks, page)
        _buttons(studio, page)
        for tab, screen, parts in (
            (dataset_tab, dataset, data),
            (recipe_tab, recipe, form),
            (compare_tab, compare, board),
        ):
            tab.select(partial(_shown, studio, screen), None, list(parts[:2]), **quiet())
        api.build(studio, begin)
    return blocks


def _further(studio: Studio, session: gr.State, tabs: gr.Tabs) -> library.Screen:
    """The screens beside the work: what there is, what this machine is, what the words mean."""
    with gr.Tab("Library", id="library") as library_tab:
        shelf = library.build(studio, session, tabs)
    with gr.Tab("System", id="system") as system_tab:
        machine = system.build(studio)
    with gr.Tab("Help", id="help"):
        help.build(studio)
    library_tab.select(lambda page: library.turned(studio, page), [shelf.page], shelf.parts, **quiet())
    system_tab.select(lambda: system.view(studio), None, [machine], **quiet())
    return shelf


def _shown(studio: Studio, screen: Any) -> tuple[Any, str]:
    return screen.view(studio), screen.plan_line(studio)


def _clock(studio: Studio, blocks: gr.Blocks, page: Page) -> None:
    """What happens when the page opens, and once a second from then on."""

    def on_load(request: gr.Request) -> tuple[Any, ...]:
        studio.catalog.ask()
        wanted = request.query_params.get("tab", "")
        run = pick_run(studio, request.query_params.get("run", ""))
        known = {"run": run, "said": "", "nonce": 0.0}
        opened = gr.Tabs(selected="train") if wanted not in SCREENS and studio.running() else gr.skip()
        return known, {}, opened, dataset.view(studio), dataset.plan_line(studio)

    outputs = [page.seen, page.frame, *page.recipe[:2], page.train[0], page.train[2], *page.compare]
    blocks.load(on_load, None, [page.session, page.seen, page.tabs, *page.dataset[:2]], **quiet())
    gr.Timer(1.0).tick(
        partial(tick, studio),
        [page.session, page.seen, *page.told],
        outputs,
        concurrency_limit=None,
        **quiet(trigger_mode="once"),
    )


def _buttons(studio: Studio, page: Page) -> None:
    """The primary buttons, each the next step."""

    def on_start(known: dict[str, Any]) -> tuple[Any, ...]:
        ready = gr.Button("Start training", interactive=True)
        run, obstacle = begin(studio)
        if not run:
            gr.Warning(obstacle, duration=8)
            return known, gr.Tabs(selected="recipe"), recipe.view(studio), gr.skip(), ready
        known = train.chosen(known, run)
        return known, gr.Tabs(selected="train"), gr.skip(), train.shown(studio, known), ready

    def on_next(known: dict[str, Any]) -> tuple[Any, ...]:
        run = pick_run(studio, known["run"])
        step = train.next_step(studio, run)["do"]
        if step == "recipe":
            train.act(studio, run, "recipe")
        moved = (known, gr.Tabs(selected=step), gr.skip(), gr.skip(), gr.skip())
        done = on_start(known) if step == "start" else moved
        after = train.next_step(studio, pick_run(studio, done[0]["run"]))
        return *done, gr.Button(after["text"], interactive=after["on"])

    def on_job(known: dict[str, Any]) -> tuple[Any, Any]:
        running = studio.running()
        known = train.chosen(known, running.folder.name if running else known["run"])
        return known, train.shown(studio, known)

    def on_export() -> tuple[Any, ...]:
        wanted = compare.chosen(studio, compare.contenders(studio)[0])
        shown = library.export_page(studio, wanted)
        if shown is None:
            gr.Warning("There is no adapter to export yet: train one, or add a file.", duration=8)
            return (gr.skip(),) * 4
        return gr.Tabs(selected="library"), *library.turned(studio, shown)

    def checking() -> gr.Button:
        return gr.Button("Checking …", interactive=False)

    spoken = quiet(queue=True, trigger_mode="once")  # only queued handlers can show a message
    start, onward = page.recipe[2], page.train[2]
    page.dataset[2].click(lambda: gr.Tabs(selected="recipe"), None, [page.tabs], **quiet())
    start.click(checking, None, [start], **quiet(trigger_mode="once")).then(
        on_start, [page.session], page.begins, **spoken
    )

    def starting(known: dict[str, Any]) -> Any:
        starts = train.next_step(studio, pick_run(studio, known["run"]))["do"] == "start"
        return checking() if starts else gr.skip()

    onward.click(starting, [page.session], [onward], **quiet(trigger_mode="once")).then(
        on_next, [page.session], [*page.begins, onward], **spoken
    )
    page.compare[3].click(on_export, None, [page.tabs, *page.held.parts], **spoken)
    page.frame.openjob(on_job, [page.session], [page.session, page.train[0]], **quiet())


def tick(
    studio: Studio,
    known: dict[str, Any],
    seen: dict[str, str],
    recipe_said: dict[str, Any] = SILENT,
    compare_said: dict[str, Any] = SILENT,
) -> tuple[Any, ...]:
    """Once a second: send what changed since this browser saw it last, skip the rest.

    It writes only `seen`: what the user chose meanwhile is never overwritten by a late tick. A notice counts as a
    change, so that it is sent again if a late view overtook it.
    """
    run = known.get("run") or pick_run(studio, "")
    head = frame_view(studio)
    draft = studio.project.draft()
    findings = recipe.findings(studio, draft)
    stamps = {
        "frame": digest(head),
        "recipe": digest(
            [findings, bool(studio.catalog.get()["families"]), draft.raw, draft.dataset, recipe_said["at"]]
        ),
        "train": digest([train.stamp(studio, run), known.get("nonce")]),
        "compare": digest([compare.stamp(studio), compare_said["at"]]),
    }
    new = {name for name, mark in stamps.items() if seen.get(name) != mark}
    if not new:
        return (gr.skip(),) * 10
    step = train.next_step(studio, run)
    return (
        stamps,
        head if "frame" in new else gr.skip(),
        recipe.view(studio, recipe_said) if "recipe" in new else gr.skip(),
        recipe.plan_line(studio) if "recipe" in new else gr.skip(),
        train.shown(studio, {**known, "run": run}) if "train" in new else gr.skip(),
        gr.Button(step["text"], interactive=step["on"]) if "train" in new else gr.skip(),
        compare.view(studio, compare_said) if "compare" in new else gr.skip(),
        compare.plan_line(studio) if "compare" in new else gr.skip(),
        *(compare.buttons(studio) if "compare" in new else (gr.skip(),) * 2),
    )


def begin(studio: Studio, draft: Draft | None = None) -> tuple[str, str]:
    """Check what the page prepares, or `draft`, then train, or wait in the queue while another run trains.

    Returns the run's name, or what stands in the way.
    """
    draft = draft or studio.project.draft()
    needs = "This recipe needs a change first: see Problems."
    if studio.project.mistakes(draft):
        return "", needs
    text = studio.project.yaml(draft)
    if not studio.checker.now(text, studio.project.stamp(draft)).get("ok"):
        return "", needs
    folder = studio.workspace.new_run(str(draft.raw.get("name", "run")))
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    studio.queue.add(folder.name, "run")
    return folder.name, ""


def pick_run(studio: Studio, wanted: str) -> str:
    """The run that was asked for, else the one that is training, else the newest."""
    if studio.workspace.run(wanted):
        return wanted
    running = studio.running()
    if running is not None:
        return running.folder.name
    return next(iter(studio.workspace.run_names()), "")


def serving(studio: Studio, place: Place) -> dict[str, Any]:
    """How the page is served: only the workspace's pictures, only as this place allows, nothing from elsewhere."""
    guards = [Middleware(Guard, place=place, uploads=studio.workspace.uploads)]
    if space.space_id():
        guards.append(Middleware(space.OwnersOnly))
    return {
        "theme": theme(),
        "css": style(),
        "head": scripts(),
        "i18n": i18n(),
        "allowed_paths": studio.workspace.served(),
        "app_kwargs": {"middleware": guards},
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "show_error": True,
        "footer_links": [],
        "max_file_size": "200mb",
        "favicon_path": str(ICON),
        "quiet": True,
    }


def digest(value: Any) -> str:
    """A short mark of any plain value."""
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def _job(running: Reader) -> dict[str, Any]:
    percent = round(100 * running.step / max(1, running.of))
    left = running.remaining()
    text = f"{percent} %" + (f" · {to_the_minute(left)} left" if left is not None else "")
    return {"run": running.folder.name, "percent": percent, "text": text if running.step else "starting"}
