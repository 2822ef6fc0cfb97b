"""Recipe: choose one, fill its first screen, see what it will do."""

from __future__ import annotations

import re
from typing import Any

import gradio as gr

from .. import forms
from ..parts import density, shelf, story
from ..parts.cards import others
from ..parts.widget import SILENT, notice, quiet, widget
from ..parts.words import count, duration
from ..project import DIAL, Card
from ..studio import Studio, as_dict, dataset_title
from ..workspace import Draft
from .dataset import PLAN

EVENTS = ("choose", "set", "reset", "dial", "remedy", "keep", "bring")
FIRST = ("name", "trigger")
LENGTH = ("train.steps", "source")
UNUSUAL = ("name", "source")
WATCH = ("validate.prompts",)
LEVELS = {"error": 0, "warning": 1, "note": 2}
MOST = 8
LABELS = {
    "name": "Name of the run",
    "source": "Base model",
    "train.steps": "Steps",
    "adapter.dora": "DoRA",
    "adapter.rslora": "rsLoRA",
    "adapter.text": "Text encoders",
    "media.fps": "Frames per second",
    "validate.prompts": "Prompts to watch",
}
TEXTS = {
    "name": "Its folder and files are called so",
    "train.steps": "How often the adapter is changed a little; the dial above sets it",
    "source": "A name the family knows, a Hub id, or a local folder in Hub layout",
    "validate.prompts": "One per line. Each is drawn before, during and after training, so that you see it learn",
}


def view(studio: Studio, told: dict[str, Any] = SILENT) -> dict[str, Any]:
    """The whole screen as values. told: what was just done ("saved"), or why an import was refused ("wrong")."""
    draft = studio.project.draft()
    standard = studio.project.standard(draft)
    cards = studio.project.cards()
    problems, state, plan = findings(studio, draft)
    family = studio.catalog.family(str(draft.raw.get("family", "")))
    turns = _turns(studio, draft, _files(studio, draft, plan))
    found = _fields(studio, draft)
    return {
        "many": len(cards) > 6,
        "groups": _groups(studio, cards, draft),
        "goals": [{"id": key, "title": title} for key, title in shelf.GOALS.items()],
        "chosen": draft.recipe,
        "title": next((c.name for c in cards if c.id == draft.recipe), "Recipe"),
        "description": draft.raw.get("description", ""),
        **_form(studio, draft, standard, found),
        "dial": draft.dial if draft.raw["train"]["steps"] == _steps(standard, draft.dial) else "",
        "positions": [_position(studio, draft, standard, name) for name in DIAL],
        "lengths": _length(studio, draft, family, turns),
        "density": _density(draft.raw, family),
        "changes": story.differences(found, _open(draft.raw), _open(standard)),
        "yaml": studio.project.yaml(draft),
        "file": f"{draft.raw.get('name', 'recipe')}.yaml",
        "told": told,
        "facts": _facts(studio, draft, plan),
        "problems": problems,
        "state": state,
        "why": story.why(draft.raw, standard, family, turns),
    }


def _length(studio: Studio, draft: Draft, family: dict[str, Any], turns: float) -> str:
    pace = studio.project.pace(str(draft.raw.get("family", "")))
    return story.length(draft.raw["train"], turns, pace, str(family.get("modality") or ""))


def _turns(studio: Studio, draft: Draft, files: int) -> float:
    """How many items an epoch has in units of those without repeats of their own."""
    usual = others(studio)
    return files + sum(n / usual - 1 for n in studio.workspace.datasets.repeats(draft.dataset).values())


def _files(studio: Studio, draft: Draft, plan: dict[str, Any]) -> int:
    """How many items are trained on."""
    return int(plan.get("items") or len(studio.workspace.datasets.files(draft.dataset)))


def _density(raw: dict[str, Any], family: dict[str, Any]) -> dict[str, Any]:
    """The plot of how often each noise level is trained; empty while the numbers are no numbers."""
    train = raw["train"]
    spec = train.get("timesteps") or family.get("timesteps")
    shift = train.get("shift", "auto")
    if not spec:
        return {}
    own = "" if train.get("timesteps") else f"{family.get('title')}'s own distribution"
    flow = family.get("predicts", "flow") == "flow"
    fixed = float(shift) if flow and isinstance(shift, int | float) and shift > 0 else 1.0
    try:
        curve = density.curve(spec, fixed)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return {}
    moved = f"moved by shift {fixed:g}" if fixed != 1 else ""
    if flow and shift == "auto":
        moved = "before the model's own shift, which grows with the size of the picture"
    text = ", ".join(part for part in (own or str(spec.get("kind", "")).replace("_", " "), moved) if part)
    return {"points": [[round(x, 4), round(y, 4)] for x, y in curve], "text": text}


def findings(studio: Studio, draft: Draft) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, Any]]:
    """Problems, the state of the check in words, and the plan: mistakes of form at once, the rest from the engine."""
    calm = "Nothing stands in the way."
    mistakes = studio.project.mistakes(draft) or _refused(studio, draft.raw)
    if mistakes:
        shown = _helped(studio, draft, mistakes)
        return shown, {"kind": "error", "text": count(len(mistakes), "mistake"), "calm": ""}, {}
    studio.checker.want(studio.project.yaml(draft), studio.project.stamp(draft))
    answer = studio.checker.poll()
    if answer is None:
        text = "The form is fine; the engine is looking at the pictures."
        return [], {"kind": "busy", "text": "checking …", "calm": text}, {}
    ok = bool(answer.get("ok"))
    state = {"kind": "ok" if ok else "error", "text": "checked" if ok else "needs a change", "calm": calm}
    folder = studio.workspace.datasets.folder(draft.dataset)
    gathered = _gathered(answer.get("problems") or [], f"{folder}/")
    return _helped(studio, draft, gathered), state, dict(answer.get("plan") or {})


def _refused(studio: Studio, raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The reason of the engine's table why this family does not train this kind of adapter."""
    adapter = raw.get("adapter") or {}
    about = studio.catalog.adapter(str(adapter.get("kind", "")))
    variants = [v for v in about.get("variants") or [] if _holds(adapter, v.get("settings") or {})]
    for reasons in (about.get("refused"), *(v.get("refused") for v in variants)):
        if reason := (reasons or {}).get(str(raw.get("family", ""))):
            return [{"level": "error", "where": "adapter", "text": reason, "remedy": {"adapter": {"kind": "lora"}}}]
    return []


def _holds(adapter: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether an adapter is of the variant with these settings; an empty group means that the group is there."""
    return all(adapter.get(k) is not None if v == {} else adapter.get(k) == v for k, v in settings.items())


def _helped(studio: Studio, draft: Draft, problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Problems with their ways out: the engine's remedy, the recipe's own value, and the setting itself."""
    if not problems:
        return []
    standard = studio.project.standard(draft)
    known = {f.key: f for f in forms.fields(_open(draft.raw))}
    shown = []
    for one in map(_plainly, problems):
        where, remedies = str(one.get("where") or ""), []
        if one.get("remedy"):
            remedies.append({"text": _way(one), "values": one["remedy"]})
        field = known.get(where) or known.get(f"{where}.kind")
        own = forms.get(standard, where) if field else None
        if field and one.get("level") == "error" and own != forms.get(draft.raw, where) and not remedies:
            text = f"Back to the recipe's: {_said({where: own})}"
            remedies.append({"text": text, "values": {where: own}})
        at = field.key if field else "trigger" if where in ("trigger", "data.0.trigger") else ""
        shown.append({**one, "remedies": remedies, "at": at})
    return shown


def _way(problem: dict[str, Any]) -> str:
    """What a remedy of the engine does, on its button."""
    values = problem["remedy"]
    [key, value] = next(iter(values.items())) if len(values) == 1 else ("", None)
    if key.endswith(".on_problem") and value == "skip":
        return "Cut off what is too long" if "tokens" in str(problem.get("text")) else "Leave such files out"
    if known := WAYS.get((key, str(value))):
        return known
    if key.endswith(".repeats_of"):
        return "Forget the repeats of what is not there"
    return f"Put right: {_said(values)}"


WAYS = {
    ("media.small", "own"): "Train them smaller",
    ("media.small", "enlarge"): "Enlarge them",
    ("train.shift", "auto"): "Leave the shift to the model",
}


def _plainly(problem: dict[str, Any]) -> dict[str, Any]:
    """A problem in words of the app, with what can be done here, where the engine speaks of files and settings."""
    found = re.match(r"(\d+ \w+) (?:have|has) no caption", str(problem.get("text")))
    if not found or problem.get("level") != "error":
        return problem
    text = f"{found[1]} without a caption. Write one for each, or set a trigger word to train with that alone."
    return {**problem, "text": text, "where": "trigger", "remedy": {"data.0.on_problem": "skip"}, "go": "dataset"}


def _said(values: dict[str, Any]) -> str:
    """Values of a remedy in words: 'rank 16', 'adapter lora'."""
    said = []
    for key, value in values.items():
        value = value.get("kind", "on") if isinstance(value, dict) else value
        text = "automatic" if value is None else "nothing" if value in ("", []) else str(value)
        said.append(f"{forms.title(key.rsplit('.', 1)[-1]).lower()} {text}")
    text = ", ".join(said)
    return text if len(text) <= 90 else text[:87] + "..."


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


def build(studio: Studio, told: gr.State) -> tuple[gr.HTML, gr.HTML, gr.Button]:
    """The screen; returns its widget, the line below and the start button. What it says goes into `told` too."""
    screen = widget("recipe", view(studio), "recipe", EVENTS)
    with gr.Row(elem_classes="actions"):
        line = gr.HTML(plan_line(studio), html_template=PLAN, js_on_load=None, elem_classes="plan-line", padding=False)
        start = gr.Button("Start training", variant="primary", elem_id="start")

    def shown(**words: Any) -> tuple[Any, str, dict[str, Any]]:
        said = notice(**words)
        return view(studio, said), plan_line(studio), said

    def on_choose(event: gr.EventData) -> tuple[Any, str, dict[str, Any]]:
        studio.project.choose(str(as_dict(event._data)["id"]))
        return shown()

    def on_set(event: gr.EventData) -> tuple[Any, str, dict[str, Any]]:
        sent = as_dict(event._data)
        change(studio, str(sent["key"]), sent.get("value"))
        return shown()

    def on_reset(event: gr.EventData) -> tuple[Any, str, dict[str, Any]]:
        put_back(studio, str(as_dict(event._data)["key"]))
        return shown()

    def on_dial(event: gr.EventData) -> tuple[Any, str, dict[str, Any]]:
        studio.project.turn_dial(str(as_dict(event._data)["position"]))
        return shown()

    def on_remedy(event: gr.EventData) -> tuple[Any, str, dict[str, Any]]:
        remedy = as_dict(event._data).get("remedy") or {}
        studio.project.update({str(key): value for key, value in remedy.items()})
        return shown()

    def on_keep() -> tuple[Any, str, dict[str, Any]]:
        path = studio.project.save_as(str(studio.project.draft().raw.get("name", "my recipe")))
        return shown(saved=f"Saved as {path.name}.")

    def on_bring(event: gr.EventData) -> tuple[Any, str, dict[str, Any]]:
        sent = as_dict(event._data)
        draft, wrong = studio.project.bring(str(sent.get("text", "")))
        return shown(wrong=wrong) if draft is None else shown(saved="Imported, and kept in My recipes.")

    for name, handler in {
        "bring": on_bring,
        "choose": on_choose,
        "set": on_set,
        "reset": on_reset,
        "dial": on_dial,
        "remedy": on_remedy,
        "keep": on_keep,
    }.items():
        getattr(screen, name)(handler, None, [screen, line, told], **quiet())
    return screen, line, start


def change(studio: Studio, key: str, value: Any) -> None:
    """One field of the form was changed."""
    draft = studio.project.draft()
    if key == "trigger":
        studio.workspace.datasets.set_meta(draft.dataset, {"trigger": " ".join(str(value).split())})
        return
    known = {f.key: f for f in _fields(studio, draft)}
    if key not in known:
        return
    if known[key].kind == "list":
        studio.project.update({key: _listed(draft.raw, key, value)})
        return
    typed = forms.read(known[key], value)
    if key.endswith(".kind"):
        parent = key.removesuffix(".kind")
        studio.project.update({parent: None if typed is None else {"kind": typed}})
    else:
        studio.project.update({key: typed})


def put_back(studio: Studio, key: str) -> None:
    """One field as the recipe has it; a kind comes back with its settings."""
    draft = studio.project.draft()
    standard = studio.project.standard(draft)
    parent = key.removesuffix(".kind")
    own = forms.get(standard, parent)
    if parent != key and isinstance(own, dict) and own.get("kind") == forms.get(draft.raw, key):
        return
    if own is None and not _there(standard, parent):
        own = next((f.default for f in _fields(studio, draft) if f.key == key), None)
    studio.project.update({parent: own})


def _there(values: dict[str, Any], key: str) -> bool:
    missing = object()
    return forms.get(values, key, missing) is not missing


def _listed(raw: dict[str, Any], key: str, value: Any) -> list[Any]:
    """A list of groups with one more, or without the one that was named."""
    now = list(forms.get(raw, key) or [])
    if value == "add":
        return [*now, forms.fresh(key, len(now))]
    return [one for i, one in enumerate(now) if str(i) != str(value)]


def _fields(studio: Studio, draft: Draft) -> list[forms.Field]:
    """The fields of the form, with those that only this family has."""
    options = studio.catalog.family(str(draft.raw.get("family", ""))).get("options") or {}
    return forms.fields(_open(draft.raw), options=options if options.get("properties") else None)


def _open(raw: dict[str, Any]) -> dict[str, Any]:
    """Values with the optional group of samples opened, so that its fields can be filled."""
    return {**raw, "validate": raw.get("validate") or {}}


def _form(studio: Studio, draft: Draft, standard: dict[str, Any], found: list[forms.Field]) -> dict[str, Any]:
    data = studio.project.final(draft)["data"]
    raw, own = {**_open(draft.raw), "data": data}, {**_open(standard), "data": data}
    shown = [forms.described(f, raw, own) for f in found]
    family = studio.catalog.family(raw.get("family", ""))
    offered = {
        "source": _sources(studio, raw.get("family", "")),
        "adapter.targets": list(family.get("targets") or []),
        "task": list(family.get("tasks") or []),
    }
    refused = _kinds(studio, str(raw.get("family", "")))
    for one in shown:
        one["label"] = LABELS.get(one["key"], one["label"])
        one["description"] = TEXTS.get(one["key"], one["description"])
        one["usual"] = "" if one["key"] in UNUSUAL else _usual(one)
        one["cost"] = story.COST.get(one["key"].removesuffix(".kind"), "") or story.COST.get(one["key"], "")
        if one["key"] == "extensions":
            one["description"] += _known(studio)
        one["choices"] = offered.get(one["key"], one["choices"])
        one["reasons"] = refused if one["key"] == "adapter.kind" else {}
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


def _usual(one: dict[str, Any]) -> str:
    """The recipe's own value in one line, as far as it is worth a line."""
    if one["kind"] in ("group", "list", "lines", "yaml"):
        return ""
    if one["kind"] == "bool":
        return "on" if one["own"] else "off"
    return str(one["own"]) or ("automatic" if one["empty"] else "")


def _known(studio: Studio) -> str:
    """What there is to choose from, once the engine has said so."""
    kinds = [f"{e['kind']} ({e.get('title') or e.get('description', '')})" for e in studio.catalog.extensions()]
    return f". There are: {', '.join(kinds)}" if kinds else ""


def _kinds(studio: Studio, family: str) -> dict[str, str]:
    """The kinds of adapter that a family refuses, with the reason."""
    table = {a["kind"]: (a.get("refused") or {}).get(family) for a in studio.catalog.get().get("adapters") or []}
    return {kind: reason for kind, reason in table.items() if reason}


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
        "level": "basic",
        "usual": "",
        "cost": "",
        "reasons": {},
        "low": None,
        "high": None,
        "above": False,
    }


def _grouped(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in shown:
        groups.setdefault(one["group"], []).append(one)
    return [{"title": title, "fields": members} for title, members in groups.items()]


def _sources(studio: Studio, family: str) -> list[str]:
    sources = studio.catalog.family(family).get("sources") or []
    return [str(s) for s in (sources if isinstance(sources, list) else sources.keys())]


def _groups(studio: Studio, cards: list[Card], draft: Draft) -> list[dict[str, Any]]:
    kind, memory = str(studio.checker.device.get("kind") or ""), None
    if kind == "cuda":
        memory = shelf.memory()
    folder = studio.workspace.datasets.folder(draft.dataset)
    have = shelf.material(folder.iterdir())
    return shelf.arranged([_card(studio, card, (kind, memory), have) for card in cards])


def _card(studio: Studio, card: Card, machine: tuple[str, float | None], have: set[str]) -> dict[str, Any]:
    """One recipe of the shelf. machine: kind and memory of its device."""
    family = studio.catalog.family(card.family)
    modality = str(family.get("modality") or "")
    reason = shelf.unsuited(card, modality, have) if card.group != "demo" else ""
    foot = ["no download", "CPU is enough"]
    if card.group != "demo":
        needs = f"about {card.gigabytes} GB" if card.gigabytes else ""
        foot = [needs, str(family.get("size") or ""), f"{card.steps} steps", str(family.get("licence") or "")]
    return {
        "id": card.id,
        "name": card.name,
        "model": str(family.get("title") or ""),
        "description": card.description,
        "goals": shelf.goals(card, modality),
        "place": shelf.place(card, machine[0], machine[1], reason),
        "reason": reason,
        "gigabytes": card.gigabytes,
        "foot": [text for text in foot if text],
        "mono": card.family[:2].upper() + "".join(c for c in card.family if c.isdigit())[:1],
        "pictures": _pictures(studio) if card.group == "demo" else [],
    }


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
    files = _files(studio, draft, plan)
    turns, own = _turns(studio, draft, files), studio.workspace.datasets.repeats(draft.dataset)
    facts = [["Items", f"{files} in {dataset_title(draft.dataset)}"]]
    if plan.get("unused"):
        facts.append(["Left out", str(plan["unused"])])
    sizes = list(dict.fromkeys(f"{b['width']} × {b['height']}" for b in plan.get("buckets") or [] if b["width"]))
    if sizes:
        facts.append(["Sizes", ", ".join(sizes[:2]) + (f" and {len(sizes) - 2} more" if len(sizes) > 2 else "")])
    seen = story.seen(train, turns)
    if seen is not None:
        facts.append(["Each is seen", story.times(seen)])
        facts += [["Repeated", f"{len(own)} of them"]] if own else []
        facts.append(["Seen in all", f"{round(seen * turns):,}"])
    if plan.get("epochs"):
        facts.append(["Epochs", f"{plan['epochs']:g} of {count(plan['steps_per_epoch'], 'step')}"])
    if scale := story.scale(draft.raw.get("adapter") or {}):
        facts.append(["Scale", scale])
    facts.append(["Time", _time(studio, draft, train.get("steps"))])
    prompts = validate.get("prompts") or []
    if prompts and isinstance(validate.get("every"), int):
        facts.append(["Samples", f"{len(prompts)} every {validate['every']} steps"])
    facts += _weights(plan)
    facts.append(["Runs on", studio.device()["name"]])
    return facts


def _weights(plan: dict[str, Any]) -> list[list[str]]:
    """What the base takes, as it is and as it will be held."""
    rows = []
    for one in plan.get("memory") or []:
        name = "Base model" if len(rows) == 0 else forms.title(str(one["part"]))
        text = story.bytes_text(one["before"])
        if one["quantise"] not in ("none", None):
            text = f"{text}, {story.bytes_text(one['bytes'])} as {one['quantise']}"
        rows.append([name, text])
    return rows
