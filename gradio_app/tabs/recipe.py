"""Recipe: choose one, fill its first screen, see what it will do."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .. import forms
from ..parts.widget import quiet, widget
from ..parts.words import count, duration
from ..project import DIAL, Card
from ..studio import Studio, as_dict, dataset_title
from ..workspace import Draft
from .dataset import PLAN

EVENTS = ("choose", "set", "reset", "dial", "remedy", "keep")
FIRST = ("name", "trigger")
LENGTH = ("train.steps", "source")
WATCH = ("validate.prompts",)
TITLES = {"demo": "Works right here", "own": "My recipes"}
LEVELS = {"error": 0, "warning": 1, "note": 2}
MOST = 8
LARGER = "On a larger model"
LABELS = {
    "name": "Name of the run",
    "source": "Base model",
    "train.steps": "Steps",
    "validate.prompts": "Prompts to watch",
}
TEXTS = {
    "name": "Its folder and files are called so",
    "train.steps": "How often the adapter is changed a little; the dial above sets it",
    "source": "A name the family knows, a Hub id, or a local folder in Hub layout",
    "validate.prompts": "One per line. Each is drawn before, during and after training, so that you see it learn",
}


def view(studio: Studio, saved: str = "") -> dict[str, Any]:
    """The whole screen as values."""
    draft = studio.project.draft()
    standard = studio.project.standard(draft)
    cards = studio.project.cards()
    problems, state, plan = findings(studio, draft)
    return {
        "many": len(cards) > 6,
        "groups": _groups(studio, cards),
        "chosen": draft.recipe,
        "title": next((c.name for c in cards if c.id == draft.recipe), "Recipe"),
        "description": draft.raw.get("description", ""),
        **_form(studio, draft, standard),
        "dial": draft.dial if draft.raw["train"]["steps"] == _steps(standard, draft.dial) else "",
        "positions": [_position(studio, draft, standard, name) for name in DIAL],
        "yaml": studio.project.yaml(draft),
        "saved": saved,
        "facts": _facts(studio, draft, plan),
        "problems": problems,
        "state": state,
        "why": _why(draft, standard),
    }


def findings(studio: Studio, draft: Draft) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, Any]]:
    """Problems, the state of the check in words, and the plan: mistakes of form at once, the rest from the engine."""
    calm = "Nothing stands in the way."
    mistakes = studio.project.mistakes(draft)
    if mistakes:
        return mistakes, {"kind": "error", "text": count(len(mistakes), "mistake"), "calm": ""}, {}
    studio.checker.want(studio.project.yaml(draft), studio.project.stamp(draft))
    answer = studio.checker.poll()
    if answer is None:
        text = "The form is fine; the engine is looking at the pictures."
        return [], {"kind": "busy", "text": "checking …", "calm": text}, {}
    ok = bool(answer.get("ok"))
    state = {"kind": "ok" if ok else "error", "text": "checked" if ok else "needs a change", "calm": calm}
    folder = studio.workspace.datasets.folder(draft.dataset)
    return _gathered(answer.get("problems") or [], f"{folder}/"), state, dict(answer.get("plan") or {})


def _gathered(problems: list[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    """The worst first; those that one remedy solves as one; file names without the folder everyone knows."""
    together: dict[str, list[dict[str, Any]]] = {}
    for i, one in enumerate(problems):
        key = f"{one.get('level')} {one['remedy']}" if one.get("remedy") else str(i)
        together.setdefault(key, []).append(one)
    shown = []
    for members in together.values():
        text = str(members[0].get("text", "")).replace(folder, "")
        more = f" The same holds for {len(members) - 1} more." if len(members) > 1 else ""
        shown.append({**members[0], "text": text + more})
    shown.sort(key=lambda one: LEVELS.get(one.get("level", ""), 3))
    if len(shown) > MOST:
        rest = {"level": "note", "where": "", "text": f"… and {len(shown) - MOST} more.", "remedy": {}}
        shown = [*shown[:MOST], rest]
    return shown


def plan_line(studio: Studio) -> str:
    """What pressing the button will do, in one line."""
    draft = studio.project.draft()
    steps = draft.raw.get("train", {}).get("steps", 0)
    return f"{dataset_title(draft.dataset)}, {steps} steps. Time: {_time(studio, draft, steps)}."


def build(studio: Studio) -> tuple[gr.HTML, gr.HTML, gr.Button]:
    """The screen; returns its widget, the line below and the start button."""
    screen = widget("recipe", view(studio), "recipe", EVENTS)
    with gr.Row(elem_classes="actions"):
        line = gr.HTML(plan_line(studio), html_template=PLAN, js_on_load=None, elem_classes="plan-line", padding=False)
        start = gr.Button("Start training", variant="primary", elem_id="start")

    def shown(saved: str = "") -> tuple[Any, str]:
        return view(studio, saved), plan_line(studio)

    def on_choose(event: gr.EventData) -> tuple[Any, str]:
        studio.project.choose(str(as_dict(event._data)["id"]))
        return shown()

    def on_set(event: gr.EventData) -> tuple[Any, str]:
        sent = as_dict(event._data)
        change(studio, str(sent["key"]), sent.get("value"))
        return shown()

    def on_reset(event: gr.EventData) -> tuple[Any, str]:
        key = str(as_dict(event._data)["key"])
        standard = studio.project.standard(studio.project.draft())
        studio.project.update({key: forms.get(standard, key)})
        return shown()

    def on_dial(event: gr.EventData) -> tuple[Any, str]:
        studio.project.turn_dial(str(as_dict(event._data)["position"]))
        return shown()

    def on_remedy(event: gr.EventData) -> tuple[Any, str]:
        remedy = as_dict(event._data).get("remedy") or {}
        studio.project.update({str(key): value for key, value in remedy.items()})
        return shown()

    def on_keep() -> tuple[Any, str]:
        path = studio.project.save_as(str(studio.project.draft().raw.get("name", "my recipe")))
        return shown(f"Saved as {path.name}.")

    for name, handler in {
        "choose": on_choose,
        "set": on_set,
        "reset": on_reset,
        "dial": on_dial,
        "remedy": on_remedy,
        "keep": on_keep,
    }.items():
        getattr(screen, name)(handler, None, [screen, line], **quiet())
    return screen, line, start


def change(studio: Studio, key: str, value: Any) -> None:
    """One field of the form was changed."""
    draft = studio.project.draft()
    if key == "trigger":
        studio.workspace.datasets.set_meta(draft.dataset, {"trigger": " ".join(str(value).split())})
        return
    known = {f.key: f for f in forms.fields(_open(draft.raw))}
    if key not in known:
        return
    typed = forms.read(known[key], value)
    if key.endswith(".kind"):
        parent = key.removesuffix(".kind")
        studio.project.update({parent: None if typed is None else {"kind": typed}})
    else:
        studio.project.update({key: typed})


def _open(raw: dict[str, Any]) -> dict[str, Any]:
    """Values with the optional group of samples opened, so that its fields can be filled."""
    return {**raw, "validate": raw.get("validate") or {}}


def _form(studio: Studio, draft: Draft, standard: dict[str, Any]) -> dict[str, Any]:
    data = studio.project.final(draft)["data"]
    raw, own = {**_open(draft.raw), "data": data}, {**_open(standard), "data": data}
    shown = [forms.described(f, raw, own) for f in forms.fields(raw)]
    for one in shown:
        one["label"] = LABELS.get(one["key"], one["label"])
        one["description"] = TEXTS.get(one["key"], one["description"])
        if one["key"] == "extensions":
            one["description"] += _known(studio)
        if one["key"] == "source":
            one["choices"] = _sources(studio, raw.get("family", ""))
    by_key = {one["key"]: one for one in shown}
    by_key["trigger"] = _trigger(studio.project.trigger(draft))
    rest = [one for one in shown if one["key"] not in (*FIRST, *LENGTH, *WATCH)]
    return {
        "basic": [by_key[key] for key in FIRST],
        "length": [by_key[key] for key in LENGTH],
        "watch": [by_key[key] for key in WATCH if key in by_key],
        "advanced": _grouped([one for one in rest if one["level"] != "expert"]),
        "expert": _grouped([one for one in rest if one["level"] == "expert"]),
    }


def _known(studio: Studio) -> str:
    """What there is to choose from, once the engine has said so."""
    kinds = [f"{e['kind']} ({e.get('title') or e.get('description', '')})" for e in studio.catalog.extensions()]
    return f". There are: {', '.join(kinds)}" if kinds else ""


def _trigger(word: str) -> dict[str, Any]:
    text = "A rare word put before captions that lack it; write it in a prompt to call what was learned"
    return {
        "key": "trigger",
        "label": "Trigger word",
        "kind": "text",
        "description": text,
        "value": word,
        "own": word,
        "changed": False,
        "empty": False,
        "choices": [],
    }


def _grouped(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in shown:
        groups.setdefault(one["group"], []).append(one)
    return [{"title": title, "fields": members} for title, members in groups.items()]


def _sources(studio: Studio, family: str) -> list[str]:
    sources = studio.catalog.family(family).get("sources") or []
    return [str(s) for s in (sources if isinstance(sources, list) else sources.keys())]


def _groups(studio: Studio, cards: list[Card]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for card in cards:
        family = studio.catalog.family(card.family)
        title = TITLES.get(card.group, LARGER)
        foot = [str(family.get("licence") or ""), f"{card.steps} steps"]
        if card.group == "demo":
            foot = ["no download", "CPU is enough"]
        groups.setdefault(title, []).append(
            {
                "id": card.id,
                "name": card.name,
                "description": card.description,
                "foot": [text for text in foot if text],
                "mono": card.family[:2].upper() + "".join(c for c in card.family if c.isdigit())[:1],
                "pictures": _pictures(studio) if card.group == "demo" else [],
            }
        )
    return [{"title": title, "cards": members} for title, members in groups.items()]


def _pictures(studio: Studio) -> list[str]:
    files = studio.workspace.datasets.files("demo") if studio.workspace.demo_images.is_dir() else []
    small = [studio.workspace.datasets.thumb(path) for path in files[:: max(1, len(files) // 4)][:4]]
    return [str(path) for path in small if path]


def _steps(standard: dict[str, Any], position: str) -> int:
    return max(1, round(standard["train"]["steps"] * DIAL.get(position, 1.0)))


def _position(studio: Studio, draft: Draft, standard: dict[str, Any], name: str) -> dict[str, str]:
    steps = _steps(standard, name)
    pace = studio.project.pace(draft.raw["family"])
    text = f"{steps} steps" + (f", {duration(pace * steps)}" if pace else "")
    return {"name": name, "title": name.capitalize(), "text": text}


def _time(studio: Studio, draft: Draft, steps: Any) -> str:
    pace = studio.project.pace(draft.raw.get("family", ""))
    known = pace is not None and isinstance(steps, int)
    return f"about {duration(pace * steps)}" if known else "not known yet"


def _facts(studio: Studio, draft: Draft, plan: dict[str, Any]) -> list[list[str]]:
    train, validate = draft.raw["train"], draft.raw.get("validate") or {}
    files = plan.get("items") or len(studio.workspace.datasets.files(draft.dataset))
    facts = [["Pictures", f"{files} in {dataset_title(draft.dataset)}"]]
    if plan.get("unused"):
        facts.append(["Left out", str(plan["unused"])])
    sizes = list(dict.fromkeys(f"{b['width']} × {b['height']}" for b in plan.get("buckets") or [] if b["width"]))
    if sizes:
        facts.append(["Sizes", ", ".join(sizes[:2]) + (f" and {len(sizes) - 2} more" if len(sizes) > 2 else "")])
    seen = _times_seen(train, files)
    if seen:
        facts.append(["Each is seen", seen])
    facts.append(["Time", _time(studio, draft, train.get("steps"))])
    prompts = validate.get("prompts") or []
    if prompts and isinstance(validate.get("every"), int):
        facts.append(["Samples", f"{len(prompts)} every {validate['every']} steps"])
    facts.append(["Runs on", studio.device()["name"]])
    return facts


def _times_seen(train: dict[str, Any], files: int) -> str:
    try:
        seen = train["steps"] * train["batch"] * train["accumulate"] / files
    except (TypeError, KeyError, ZeroDivisionError):
        return ""
    return f"{seen:.0f} times" if seen >= 1.5 else "about once" if seen > 0.7 else "not all of them"


def _why(draft: Draft, standard: dict[str, Any]) -> list[str]:
    adapter, train = draft.raw.get("adapter") or {}, draft.raw["train"]
    own = standard["train"]["steps"]
    why = [f"Standard is the length this recipe was tuned for: {own} steps."]
    if adapter.get("kind") == "lora":
        why.append(f"Rank {adapter.get('rank')}: higher learns more detail and makes a larger file.")
    rate = train.get("lr")
    why.append(f"Learning rate {rate:g}." if isinstance(rate, float) else "Learning rate: the optimiser's usual value.")
    why.append(f"Seed {train.get('seed')}: the same seed gives the same run.")
    return why
