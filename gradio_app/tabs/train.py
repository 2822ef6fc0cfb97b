"""Train: one run, live. All of it is read from the run's folder, so a reload or a restart loses nothing."""

from __future__ import annotations

import re
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from ..disk import size_text
from ..launcher import SAVING, STOPPING, STOPPING_EARLY
from ..parts import facts, remedies
from ..parts.eta import Estimate
from ..parts.reader import PHASES, Reader, reader
from ..parts.widget import quiet, ticket, widget
from ..parts.words import count, duration, per_step, to_the_minute
from ..project import put
from ..studio import Studio, as_dict
from .dataset import PLAN

EVENTS = ("act", "open", "extend", "queue")
READ = {"video": "Read clips", "audio": "Read sound"}
LIVE = ("running", "starting")
SAID = {
    "save": "A checkpoint is saved after this step.",
    "sample": "Samples are drawn after this step.",
    "resume": "Going on from the last checkpoint.",
}
STALL = 240.0
LATELY = 86_400.0
MOST_STEPS = 1_000_000
NEW_RUN = "new run: "
FORMATS = {"diffusers": "diffusers", "comfyui": "ComfyUI", "kohya": "kohya", "lycoris": "LyCORIS"}
WORK = {"checkpoint": "a save", "validation": "a validation", "sample": "drawing samples", "export": "the export"}
WHILE_LIVE = (*SAID.values(), STOPPING, STOPPING_EARLY, SAVING)


def view(studio: Studio, run: str, said: str = "", nonce: float = 0.0) -> dict[str, Any]:
    """Everything the screen shows of one run; nothing when there is none.

    nonce: when the user last chose or pressed something. Of two views the page keeps the one that knows more, so a
    late answer of the clock never shows a run that was left, nor wipes away a sentence.
    """
    folder = studio.workspace.run(run)
    if folder is None:
        return {"run": "", "nonce": nonce}
    seen = reader(folder).refresh()
    state = seen.state
    adapter = seen.adapter()
    ahead = seen.estimate(_elsewhere(studio, seen)) if state == "running" else None
    titles = _titles(studio.modality(seen.recipe()))
    words = _words(seen, state, studio.queue.place(run), ahead, titles)
    return {
        "run": run,
        "runs": studio.workspace.run_names()[:50],
        "band": {
            **words,
            "headline": _short(studio, [words["headline"]])[0],
            "state": state,
            "numbers": _numbers(seen, ahead),
            "phases": _phases(seen, state, titles),
            "memory": _memory(seen),
        },
        "curve": seen.curve(),
        "matrix": seen.matrix(),
        "buttons": _buttons(studio, seen, state),
        "download": str(adapter) if adapter else "",
        "exports": _exports(seen),
        "said": said if said not in WHILE_LIVE or state in LIVE else "",
        "nonce": nonce,
        "facts": facts.told(seen, studio.modality(seen.recipe()), studio.launcher.process(folder)),
        "warnings": _short(studio, _warnings(seen, state)),
        "notes": _short(studio, [str(n.get("text", "")) for n in (*seen.quantised, *seen.notes[-4:])]),
        "log": seen.log(),
        "queue": _queue(studio),
        "extend": extend_form(seen, state),
        "remedies": _ways_out(seen, state),
    }


def chosen(known: dict[str, Any], run: str, said: str = "") -> dict[str, Any]:
    """What the session knows after the user has chosen a run or pressed something."""
    return {**known, "run": run, "said": said, "nonce": ticket()}


def shown(studio: Studio, known: dict[str, Any]) -> dict[str, Any]:
    """The view of the run that a session knows of, with what was said last."""
    return view(studio, str(known.get("run", "")), str(known.get("said", "")), float(known.get("nonce", 0.0)))


def mark(studio: Studio, running: Reader | None) -> dict[str, str]:
    """The mark of the tab: a run trains, or the newest one failed lately or waits to be started; {} for none."""
    if running is not None:
        return {"kind": "live", "text": "Training"}
    newest = next(iter(studio.workspace.run_names()), "")
    if not newest or studio.queue.place(newest):
        return {}
    seen = reader(studio.workspace.runs / newest).refresh()
    if seen.state == "new":
        return {"kind": "warn", "text": "A run waits to be started"}
    lately = time.time() - float(seen.last.get("at") or seen.start.get("at") or 0.0) < LATELY
    failed = seen.state in ("failed", "crashed") and lately
    return {"kind": "bad", "text": "The last run failed"} if failed else {}


def stamp(studio: Studio, run: str) -> str:
    """Changes when there is something new to show; cheap enough for every second."""
    folder = studio.workspace.run(run)
    if folder is None:
        return ""
    seen = reader(folder).refresh()
    log = folder / "log.txt"
    size = log.stat().st_size if log.exists() else 0
    waits = [entry["run"] for entry in studio.queue.waiting()]
    state = seen.state
    minutes = round((seen.remaining() or 0.0) / 60) if state == "running" else 0
    parts = (run, seen.start.get("at"), seen.seen, state, size, studio.launcher.stopping(folder), waits)
    return " ".join(map(str, (*parts, minutes, seen.silent() // 60)))


def next_step(studio: Studio, run: str) -> dict[str, Any]:
    """The one primary button: what it says, whether it can be pressed, what it does."""
    folder = studio.workspace.run(run)
    state = reader(folder).refresh().state if folder else "new"
    if folder is None:
        return {"text": "Start training", "on": True, "do": "start"}
    if state == "new":
        return {"text": "Compare", "on": False, "do": "compare"}
    if state in ("failed", "crashed") and not reader(folder).checkpoints:
        return {"text": "Change the recipe", "on": True, "do": "recipe"}
    if state in LIVE:
        return {"text": "Compare", "on": bool(reader(folder).checkpoints), "do": "compare"}
    return {"text": "Compare", "on": bool(reader(folder).checkpoints or reader(folder).adapter()), "do": "compare"}


def build(studio: Studio, session: gr.State) -> tuple[gr.HTML, gr.HTML, gr.Button]:
    """The screen; returns its widget, the line below and the primary button."""
    screen = widget("train", {"run": ""}, "train", EVENTS)
    with gr.Row(elem_classes="actions"):
        line = gr.HTML("", html_template=PLAN, js_on_load=None, elem_classes="plan-line", padding=False)
        onward = gr.Button("Start training", variant="primary", elem_id="train-next")

    def answered(run: str, said: str) -> tuple[Any, Any]:
        if said.startswith(NEW_RUN):
            run = said.removeprefix(NEW_RUN)
            said = "This is a new run with that change; the one before stays as it is."
        known = chosen({}, run, said)
        return known, shown(studio, known)

    def on_act(event: gr.EventData) -> tuple[Any, Any]:
        sent = as_dict(event._data)
        run = str(sent.get("run", ""))
        return answered(run, act(studio, run, str(sent.get("do", ""))))

    def on_open(known: dict[str, Any], event: gr.EventData) -> tuple[Any, Any]:
        run = str(as_dict(event._data).get("run", ""))
        known = chosen(known, run if studio.workspace.run(run) else known.get("run", ""))
        return known, shown(studio, known)

    def on_extend(event: gr.EventData) -> tuple[Any, Any]:
        sent = as_dict(event._data)
        run = str(sent.get("run", ""))
        return answered(run, extend(studio, run, sent.get("steps")))

    def on_queue(known: dict[str, Any], event: gr.EventData) -> Any:
        change_queue(studio, as_dict(event._data))
        return shown(studio, known)

    screen.act(on_act, None, [session, screen], **quiet())
    screen.extend(on_extend, None, [session, screen], **quiet())
    screen.queue(on_queue, [session], [screen], **quiet())
    screen.open(on_open, [session], [session, screen], **quiet())
    return screen, line, onward


def act(studio: Studio, run: str, what: str) -> str:
    """Do what a button says; returns one sentence about it."""
    folder = studio.workspace.run(run)
    if folder is None:
        return ""
    if what in ("stop", "end"):
        return _stop(studio, folder, what == "end")
    if what in ("resume", "start"):
        return _begin(studio, run, "resume" if what == "resume" else "run")
    if what == "recipe":
        return _prepare(studio, reader(folder).refresh(), "recipe")
    if what.startswith("remedy:"):
        return _remedy(studio, run, what.removeprefix("remedy:"))
    if what in ("save", "sample") and studio.launcher.process(folder) is not None:
        studio.launcher.ask(folder, what)
        return SAID[what]
    return ""


def _stop(studio: Studio, folder: Path, now: bool) -> str:
    """Ask a run to stop, or end it now; and say what that means in its phase."""
    said = studio.launcher.stop(folder, now)
    seen = reader(folder).refresh()
    name = seen.phase.get("name", "")
    if said != STOPPING or name == "train" or (seen.steps and name not in PHASES):
        return said
    return SAVING if name == "export" else STOPPING_EARLY


def _begin(studio: Studio, run: str, do: str, steps: int = 0, now: str = "") -> str:
    """Start or go on, at once or in the queue; the sentence about it."""
    if studio.queue.add(run, do, steps):
        return now or (SAID["resume"] if do == "resume" else "")
    return "Another run trains now. This one waits in the queue and begins by itself."


def extend_form(seen: Reader, state: str) -> dict[str, Any] | None:
    """What the field for more steps proposes and how it goes on; nothing where more steps make no sense.

    A schedule that ends cannot be made longer; a LoRA then goes on as a new run that starts from it.
    """
    if state not in ("finished", "stopped") or not seen.checkpoints or not seen.of:
        return None
    raw = seen.recipe()
    schedule = str((raw.get("train") or {}).get("schedule", "constant"))
    steps = {"of": seen.of, "steps": max(1, round(seen.of / 2))}
    if schedule == "constant":
        return {**steps, "why": "", "how": "extend"}
    why = f"The learning rate follows a {schedule} schedule, which ends at step {seen.of}."
    if (raw.get("adapter") or {}).get("kind") != "lora":
        return {**steps, "why": f"{why} This run cannot be made longer.", "how": ""}
    return {**steps, "why": f"{why} More steps are a new run that goes on from this adapter.", "how": "new"}


def extend(studio: Studio, run: str, more: Any) -> str:
    """Let a run go on for `more` steps beyond its end, itself or as a new run that starts from its adapter."""
    folder = studio.workspace.run(run)
    if folder is None:
        return ""
    seen = reader(folder).refresh()
    form = extend_form(seen, seen.state)
    if form is None or not form["how"]:
        return form["why"] if form else "This run cannot be extended now."
    if not isinstance(more, int) or not 0 < more <= MOST_STEPS:
        return f"Give a number of further steps from 1 to {MOST_STEPS:,}."
    if form["how"] == "extend":
        return _begin(studio, run, "resume", seen.of + more, f"Going on to step {seen.of + more}.")
    return _new_run(studio, folder, {"train.steps": more, "adapter.start": str(folder)})


def change_queue(studio: Studio, sent: dict[str, Any]) -> None:
    """Earlier, later, or out of the queue."""
    run, do = str(sent.get("run", "")), str(sent.get("do", ""))
    if do == "remove":
        studio.queue.remove(run)
    elif do in ("up", "down"):
        studio.queue.move(run, -1 if do == "up" else 1)


def _remedy(studio: Studio, run: str, key: str) -> str:
    """A new run with the recipe of this one and the change that helps; this run stays as it is."""
    folder = studio.workspace.run(run)
    if folder is None:
        return ""
    seen = reader(folder).refresh()
    chosen = next((r for r in _ways_out(seen, seen.state) if r["key"] == key), None)
    if chosen is None:
        return ""
    if chosen["go"]:
        return _prepare(studio, seen, chosen["go"])
    if not chosen["changes"]:
        return _begin(studio, run, "resume")
    return _new_run(studio, folder, chosen["changes"])


def _ways_out(seen: Reader, state: str) -> list[dict[str, Any]]:
    """The buttons of a run that failed; none for any other."""
    if state not in ("failed", "crashed"):
        return []
    saved = int(seen.checkpoints[-1]["step"]) if seen.checkpoints else 0
    offered = seen.last.get("remedy") if seen.last.get("kind") == "failed" else None
    return remedies.found(seen.error(), seen.recipe(), saved, offered if isinstance(offered, dict) else None)


def _prepare(studio: Studio, seen: Reader, screen: str) -> str:
    """Put what a run was made of where the screen that is about to open shows it."""
    raw = seen.recipe()
    if screen == "recipe" and raw:
        studio.project.again(raw)
    elif screen == "dataset" and (name := studio.project.data_of(raw)):
        studio.project.select(name)
    return ""


def _new_run(studio: Studio, folder: Path, changes: dict[str, Any]) -> str:
    """The recipe of a run with changes, as a run of its own, at once or in the queue."""
    raw = deepcopy(reader(folder).recipe())
    for setting, value in changes.items():
        put(raw, setting, value)
    new = studio.workspace.new_run(str(raw.get("name", "run")))
    (new / "recipe.yaml").write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
    studio.queue.add(new.name, "run")
    return f"{NEW_RUN}{new.name}"


def _queue(studio: Studio) -> list[dict[str, Any]]:
    """The runs that wait, with what each will do."""
    rows = []
    for entry in studio.queue.waiting():
        steps = int(entry.get("steps") or 0)
        what = f"goes on to step {steps:,}" if steps else "goes on" if entry.get("do") == "resume" else "new"
        rows.append({"run": entry["run"], "what": what})
    return rows


def _elsewhere(studio: Studio, seen: Reader) -> dict[str, float]:
    """What saving and exporting took in the last runs of the family, where this run has not done it yet."""
    missing = [kind for kind in ("checkpoint", "export") if seen.pace.of(kind) is None]
    known: dict[str, float] = {}
    for name in studio.workspace.run_names()[:12] if missing else []:
        other = reader(studio.workspace.runs / name).refresh()
        if other.start.get("family") != seen.start.get("family"):
            continue
        for kind in missing:
            if kind not in known and (took := other.pace.of(kind)) is not None:
                known[kind] = took
    return known


def _words(
    seen: Reader, state: str, place: int = 0, ahead: Estimate | None = None, titles: dict[str, str] = PHASES
) -> dict[str, str]:
    """Headline and the sentence below it."""
    at, of = seen.step, seen.of
    if place and state not in LIVE:
        before = "It begins when the run before it has ended." if place == 1 else f"It is number {place} of those."
        return {"headline": "Waiting in the queue", "sub": before}
    saved = seen.checkpoints[-1]["step"] if seen.checkpoints else None
    safe = (
        f"Everything up to step {saved} is saved; Resume goes on from there."
        if saved
        else "Nothing of yours was changed."
    )
    if state == "starting":
        return {"headline": "Starting", "sub": "The engine is being loaded; this takes some seconds."}
    if state == "finished":
        took = duration(seen.last.get("seconds"))
        return {
            "headline": f"Done: {of} steps" + (f" in {took}" if took else ""),
            "sub": "The adapter is saved. Compare it with the base model.",
        }
    if state == "stopped" and not seen.checkpoints:
        return {
            "headline": "Stopped before the training began",
            "sub": "What was read is kept. Try again whenever you like.",
        }
    if state == "stopped":
        return {
            "headline": f"Stopped at step {at} of {of}",
            "sub": "What was learned is saved. Resume goes on from here.",
        }
    if state in ("failed", "crashed"):
        ours = state == "failed" and seen.last.get("user") is False
        return {
            "headline": seen.error(),
            "sub": f"This is a fault of the studio; the log says more. {safe}" if ours else safe,
        }
    if state == "new":
        return {"headline": "Not started", "sub": "It waits for you: press Start."}
    return _phase_words(seen, ahead, titles)


def _phase_words(seen: Reader, ahead: Estimate | None, titles: dict[str, str]) -> dict[str, str]:
    if (silent := seen.silent()) >= STALL:
        line = next((text for text in reversed(seen.log(12)) if text.strip()), "")
        said = f" The log's last line: {line}" if line else ""
        what = "step" if seen.steps else "sign of life"
        return {"headline": f"No {what} for {duration(silent)}", "sub": f"The process is still there.{said}"}
    name, done, total = seen.phase.get("name", ""), seen.phase.get("done"), seen.phase.get("of")
    if name == "train" or (seen.step and name not in PHASES):
        return {"headline": f"Training, step {seen.step} of {seen.of}", "sub": _ahead(ahead) if ahead else ""}
    part = f", {done} of {total}" if total else ""
    wait = duration(seen.phase.get("seconds_left"))
    return {
        "headline": f"{titles.get(name, name.capitalize() or 'Starting')}{part}",
        "sub": f"This part takes about {wait} more." if wait and done != total else "",
    }


def _ahead(ahead: Estimate) -> str:
    """What is still to come, in words, and what of it has no known length yet."""
    coming = [count(ahead.counts["step"], "step")] if ahead.counts["step"] else []
    if looks := ahead.counts.get("validation", 0):
        coming.append(count(looks, "validation") + (" with samples" if ahead.counts.get("sample") else ""))
    elif looks := ahead.counts.get("sample", 0):
        coming.append(count(looks, "round") + " of samples")
    if saves := ahead.counts["checkpoint"]:
        coming.append(count(saves, "save"))
    said = f"To come: {', '.join([*coming, 'the export'])}."
    strange = [WORK[kind] for kind in ahead.unknown if kind != "step"]
    if ahead.seconds is not None and strange:
        said += f" How long {' and '.join(strange)} will take is not known yet."
    return said


def _numbers(seen: Reader, ahead: Estimate | None) -> list[list[Any]]:
    """What stands large at the right: [what, text], or [what, "", seconds since 1970] for a time of day."""
    numbers: list[list[Any]] = []
    if ahead is not None and ahead.seconds is None:
        numbers.append(["Time left", "not known yet"])
    elif ahead is not None and ahead.seconds is not None:
        more = "at least " if set(ahead.unknown) - {"export"} else ""
        numbers.append(["Time left", more + to_the_minute(ahead.seconds)])
        numbers.append(["Done at", "", round(time.time() + ahead.seconds)])
    speed = seen.seconds_per_step()
    if speed is not None:
        numbers.append(["Speed", per_step(speed).replace(" per ", "/")])
    if seen.steps:
        numbers.append(["Loss", f"{seen.curve()['line'][-1][1]:.3g}"])
    return numbers


def _titles(modality: str) -> dict[str, str]:
    """The phases as a run of this kind goes through them."""
    return {**PHASES, "cache pictures": READ.get(modality, PHASES["cache pictures"])}


def _warnings(seen: Reader, state: str) -> list[str]:
    """What else was wrong, what the engine warned of, and whether the disk will be full."""
    told = [*seen.further_errors(), *(str(w.get("text", "")) for w in seen.warnings[-4:])]
    full = facts.little_room(seen) if state == "running" else ""
    return [full, *told] if full else told


def _phases(seen: Reader, state: str, titles: dict[str, str]) -> list[dict[str, Any]]:
    order = list(PHASES)
    current = seen.phase.get("name", "") if state in LIVE else ""
    reached = max((order.index(p) for p in seen.phases if p in order), default=-1)
    out = []
    for i, name in enumerate(order):
        if state == "finished" or i < reached or (i == reached and name != current and state not in LIVE):
            mood = "done"
        else:
            mood = "now" if name == current else "todo"
        out.append({"title": titles[name], "state": mood, "percent": _percent(seen, name) if mood == "now" else 0})
    if state in ("failed", "crashed", "stopped"):
        return _halted(out, reached, seen)
    return out


def _halted(phases: list[dict[str, Any]], reached: int, seen: Reader) -> list[dict[str, Any]]:
    """A run that ended early: the phase it was in shows how far it came."""
    if 0 <= reached < len(phases):
        name = list(PHASES)[reached]
        phases[reached] = {**phases[reached], "state": "now", "percent": _percent(seen, name)}
    return phases


def _percent(seen: Reader, name: str) -> int:
    if name == "train":
        return round(100 * seen.step / max(1, seen.of))
    done, total = seen.phase.get("done"), seen.phase.get("of")
    return round(100 * done / total) if done is not None and total else 0


def _buttons(studio: Studio, seen: Reader, state: str) -> list[dict[str, Any]]:
    if state in LIVE:
        pressed = studio.launcher.stopping(seen.folder)
        asked = {p.name for p in (seen.folder / "control").glob("*")}
        early = state == "starting" or seen.phase.get("name", "") != "train"
        return [
            {"do": "end", "kind": "stop", "text": "End at once", "off": False}
            if pressed
            else {"do": "stop", "kind": "stop", "text": "Stop and save", "off": False},
            {"do": "save", "off": pressed or early or "save" in asked},
            {"do": "sample", "off": pressed or early or "sample" in asked},
        ]
    if studio.queue.place(seen.folder.name):
        return []
    if state == "new":
        return [{"do": "start", "off": False, "text": "Start"}]
    if any(way["key"] == "resume" for way in _ways_out(seen, state)):
        return []  # the button stands in the band
    if state in ("stopped", "failed", "crashed"):
        again = "Resume" if seen.checkpoints else "Try again"
        return [
            {"do": "resume", "off": False, "text": again, "title": "Go on from the last checkpoint, if there is one"}
        ]
    return []


def _memory(seen: Reader) -> dict[str, Any]:
    """The bar of memory: shares of what there is, and the words beside it; {} while the engine has said nothing."""
    said = seen.steps.last.get("memory") or {}
    used, most, whole = (said.get(key) or 0 for key in ("used", "peak", "of"))
    if not used or not whole:
        return {}
    on_cpu = str(seen.start.get("device", "")).lower().startswith("cpu")
    text = f"{size_text(used)} of {size_text(whole)}" + (f", at most {size_text(most)}" if most else "")
    return {
        "title": "Memory of the process" if on_cpu else "GPU memory",
        "used": round(100 * used / whole, 1),
        "peak": round(100 * most / whole, 1),
        "text": text,
    }


def _exports(seen: Reader) -> list[dict[str, Any]]:
    """The files that came out: where each loads, or what is wrong with it, as the engine found by opening it again."""
    files = (seen.exports[-1].get("files") or []) if seen.exports else []
    shown = []
    for one in files:
        path = seen.folder / str(one.get("path", ""))
        problems = [str(text) for text in one.get("problems") or []]
        readers = [str(name) for name in one.get("loads_in") or []]
        shown.append(
            {
                "file": str(path) if path.is_file() else "",
                "name": f"{seen.folder.name}-{one.get('format')}{path.suffix}",
                "format": FORMATS.get(str(one.get("format")), str(one.get("format"))),
                "loads_in": [] if problems else readers,
                "problems": problems,
            }
        )
    return shown


def _short(studio: Studio, texts: list[str]) -> list[str]:
    """File names without the folder of the data sets."""
    return [re.sub(rf"{re.escape(str(studio.workspace.datasets.root))}/[^/\s]+/", "", text) for text in texts]
