"""The recipe that is being prepared: chosen card + data set + the user's changes = what will be trained."""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import threading
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from tuner import recipe as recipes
from tuner.errors import UserError

from . import companions
from .parts.names import safe_stem, unused
from .parts.reader import reader
from .workspace import Draft, Workspace

SAID = {
    "kandinsky5 image to video": "Kandinsky 5 Video image to video",
    "lora text": "LoRA with text encoders",
    "generate": "text to video",
    "kontext": "Kontext",
    "lora": "LoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "controlnet": "ControlNet",
    "i2v": "image to video",
    "ace step": "ACE-Step",
    "auraflow": "AuraFlow",
    "cosmos2": "Cosmos-Predict2",
    "flux1": "FLUX.1",
    "flux2": "FLUX.2",
    "hidream": "HiDream",
    "hunyuan video15": "HunyuanVideo 1.5",
    "kandinsky5 image": "Kandinsky 5 Image",
    "kandinsky5 video": "Kandinsky 5 Video",
    "kandinsky5": "Kandinsky 5",
    "longcat image": "LongCat-Image",
    "ltx2": "LTX-2",
    "ltx": "LTX-Video",
    "lumina2": "Lumina 2",
    "omnigen": "OmniGen",
    "pixart sigma": "PixArt-Σ",
    "qwen image": "Qwen-Image",
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sd3": "Stable Diffusion 3",
    "sdxl": "SDXL",
    "stable cascade": "Stable Cascade",
    "z image": "Z-Image",
    "5b": "5B",
}
"""How words of a recipe's name are written; those of several words come before their parts."""
LARGEST, MEMBERS = 200_000, 20_000
DEEP = "This text holds far more than a recipe does: it is nested too deeply, or repeats itself by aliases."
DIAL = {"draft": 0.4, "standard": 1.0, "fine": 2.5}


@dataclass(frozen=True)
class Card:
    """One recipe to choose."""

    id: str
    path: Path
    name: str
    description: str
    family: str
    group: str
    steps: int
    task: str = "generate"
    kind: str = "lora"
    gigabytes: int | None = None


class Project:
    """Reads and changes the draft of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.RLock()

    def cards(self) -> list[Card]:
        """The recipes that ship, then the user's own. A file that cannot be read is left out here; `check` names it."""
        shipped = sorted(self.workspace.recipes.glob("*/*.yaml"))
        shown = sorted(
            (p for p in shipped if not p.name.startswith("_")), key=lambda p: (p.parent.name != "demo", str(p))
        )
        own = sorted((self.workspace.root / "recipes").glob("*.yaml"))
        data = self._data()
        found = [_card(path, f"{path.parent.name}/{path.name}", path.parent.name, data) for path in shown]
        found += [_card(path, f"own:{path.name}", "own", data) for path in own]
        return [card for card in found if card is not None]

    def draft(self) -> Draft:
        """The draft with its recipe loaded."""
        draft = self.workspace.draft()
        if not draft.raw:
            cards = self.cards()
            chosen = next((c for c in cards if c.id == draft.recipe), cards[0] if cards else None)
            if chosen is not None:
                draft.recipe, draft.raw = chosen.id, self.plain(chosen)
                self.workspace.save_draft(draft)
        return draft

    def choose(self, identity: str) -> Draft:
        """Take another recipe; the data set and its trigger word stay."""
        with self._lock:
            draft = self.workspace.draft()
            chosen = next((c for c in self.cards() if c.id == identity), None)
            if chosen is not None:
                draft.recipe, draft.dial, draft.raw = chosen.id, "standard", self.plain(chosen)
                self.workspace.save_draft(draft)
            return draft

    def plain(self, card: Card) -> dict[str, Any]:
        """A recipe file as plain values with every default in place."""
        loaded = _load(card.path, self._data())
        return loaded.model_dump(mode="json", by_alias=True)

    def standard(self, draft: Draft) -> dict[str, Any]:
        """The chosen recipe as its author wrote it."""
        chosen = next((c for c in self.cards() if c.id == draft.recipe), None)
        return self.plain(chosen) if chosen else draft.raw

    def turn_dial(self, position: str) -> Draft:
        """Set the length by one dial; the recipe's own length is `standard`."""
        with self._lock:
            return self._turn(self.draft(), position)

    def _turn(self, draft: Draft, position: str) -> Draft:
        base = self.standard(draft)
        factor = DIAL.get(position, 1.0)
        steps = max(1, round(base["train"]["steps"] * factor))
        draft.dial = position
        draft.raw["train"] = {**draft.raw["train"], "steps": steps}
        if draft.raw.get("validate") and base.get("validate"):
            every = max(1, round(base["validate"]["every"] * factor))
            draft.raw["validate"] = {**draft.raw["validate"], "every": every}
        self.workspace.save_draft(draft)
        return draft

    def update(self, changes: dict[str, Any]) -> Draft:
        """Set values by dotted key, for example {"train.steps": 200}."""
        with self._lock:
            draft = self.draft()
            for key, value in changes.items():
                put(draft.raw, key, value)
            self.workspace.save_draft(draft)
            return draft

    def select(self, dataset: str) -> Draft:
        """Train on another data set."""
        with self._lock:
            draft = self.draft()
            draft.dataset = dataset
            self.workspace.save_draft(draft)
            return draft

    def final(self, draft: Draft) -> dict[str, Any]:
        """What will be trained: the draft over the chosen data set with its trigger word."""
        raw = {**draft.raw}
        entries = raw.get("data") or [{}]
        first = {**entries[0], "path": str(self.workspace.datasets.folder(draft.dataset))}
        first["trigger"] = self.trigger(draft) or None
        known = entries[0].get("repeats_of") or {}
        first["repeats_of"] = {**known, **self.workspace.datasets.repeats(draft.dataset)}
        raw["data"] = [{**first, **self._beside(draft, first)}, *entries[1:]]
        listed = raw.get("extensions") or []
        if raw["data"][0].get("mask") and all(one.get("kind") != "masked_loss" for one in listed):
            raw["extensions"] = [*listed, {"kind": "masked_loss"}]
        return raw

    def reads(self, draft: Draft) -> list[str]:
        """Which companions of the pictures this recipe acts on: mask, control, reference."""
        use_masks = self.workspace.datasets.meta(draft.dataset).get("masks", True)
        found = ["mask"] if use_masks else []
        found += ["control"] if (draft.raw.get("adapter") or {}).get("kind") == "controlnet" else []
        return found + (["reference"] if draft.raw.get("task") in ("edit", "image_to_video") else [])

    def _beside(self, draft: Draft, first: dict[str, Any]) -> dict[str, Any]:
        """The folders of companions that the recipe reads; one of another data set, as a saved recipe has, goes."""
        sets = self.workspace.datasets
        stale = [k for k in companions.KINDS if isinstance(first.get(k), str) and companions.ours(sets, first[k])]
        return {**dict.fromkeys(stale), **companions.settings(sets, draft.dataset, self.reads(draft))}

    def yaml(self, draft: Draft) -> str:
        """The final recipe as text."""
        return _dumped(json.dumps(self.final(draft)))

    def mistakes(self, draft: Draft) -> list[dict[str, Any]]:
        """What is wrong with the form of the recipe, known at once."""
        lines = _wrong(json.dumps(self.final(draft)))
        return [{"level": "error", "where": line.split(" ", 1)[0], "text": line, "remedy": {}} for line in lines]

    def trigger(self, draft: Draft) -> str:
        """The trigger word: noted with the data set; for the demo, what its recipe says."""
        meta = self.workspace.datasets.meta(draft.dataset)
        if "trigger" in meta:
            return str(meta["trigger"])
        entries = draft.raw.get("data") or [{}]
        return str(entries[0].get("trigger") or "") if draft.dataset == "demo" else ""

    def stamp(self, draft: Draft) -> str:
        """Changes whenever the pictures or captions of the data set change."""
        folder = self.workspace.datasets.folder(draft.dataset)
        with os.scandir(folder) as entries:
            marks = sorted((e.name, e.stat().st_mtime_ns) for e in entries)
        marks += companions.stamp(self.workspace.datasets, draft.dataset)
        return hashlib.sha256(repr((str(folder), marks)).encode()).hexdigest()[:24]

    def pace(self, family: str) -> float | None:
        """Seconds per step of the last finished runs of this family on this machine."""
        known = []
        for name in self.workspace.run_names()[:12]:
            seen = reader(self.workspace.runs / name).refresh()
            if seen.start.get("family") == family and (seconds := seen.seconds_per_step()):
                known.append(seconds)
        return statistics.median(known[:3]) if known else None

    def again(self, raw: dict[str, Any]) -> Draft:
        """Take the recipe of a run to be changed, and its data set where that is one of the workspace."""
        with self._lock:
            draft = self.draft()
            name = str(raw.get("name", ""))
            draft.recipe = next((c.id for c in self.cards() if self.plain(c).get("name") == name), draft.recipe)
            draft.raw, draft.dial = deepcopy(raw), "standard"
            draft.dataset = self.data_of(raw) or draft.dataset
            self.workspace.save_draft(draft)
            return draft

    def data_of(self, raw: dict[str, Any]) -> str:
        """The data set of the workspace that a recipe trains on first; empty for any other folder."""
        first = next(iter(raw.get("data") or []), None)
        path = str(first.get("path", "")) if isinstance(first, dict) else ""
        known = self.workspace.datasets
        return next((n for n in known.names() if path and str(known.folder(n)) == path), "")

    def save_as(self, name: str) -> Path:
        """Keep the draft as a recipe of the user's own."""
        draft = self.draft()
        path = self.workspace.root / "recipes" / f"{safe_stem(name, 'my-recipe')}.yaml"
        raw = {**self.final(draft), "name": name or draft.raw.get("name", "run")}
        path.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return path

    def bring(self, text: str, name: str = "") -> tuple[Draft | None, list[str]]:
        """Take a recipe from elsewhere: kept as the user's own and chosen, or what is wrong with it."""
        if len(text.encode()) > LARGEST:
            return None, ["The file is too large for a recipe; recipes are a few kilobytes of text."]
        try:
            raw = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f" in line {mark.line + 1}" if mark else ""
            return None, [f"This is not valid YAML{place}; check indentation and colons there."]
        except (RecursionError, ValueError):
            return None, [DEEP]
        if not _modest(raw):
            return None, [DEEP]
        if not isinstance(raw, dict):
            return None, ["A recipe holds settings such as `family: flux1`; this text has none."]
        if "extends" in raw:
            return None, ["This recipe extends another file, which is not here; export it from where it was made."]
        draft = self.draft()
        entries = raw.get("data") if isinstance(raw.get("data"), list) and raw.get("data") else [{}]
        first = entries[0] if isinstance(entries[0], dict) else {}
        place = str(self.workspace.datasets.folder(draft.dataset))
        raw["data"] = [{**first, "path": place, "trigger": None, "repeats_of": {}}, *entries[1:]]
        try:
            loaded = recipes.parse(raw, "")
        except UserError as error:
            return None, [line.removeprefix(": ") for line in str(error).splitlines()]
        path = self._own(name or loaded.name)
        path.write_text(recipes.dump(loaded), encoding="utf-8")
        return self.choose(f"own:{path.name}"), []

    def _own(self, name: str) -> Path:
        """An unused file for a recipe of the user's own."""
        folder = self.workspace.root / "recipes"
        taken = {p.stem for p in folder.glob("*.yaml")}
        return folder / f"{unused(safe_stem(name, 'my-recipe'), taken)}.yaml"

    def _data(self) -> str:
        """The chosen pictures: most recipes leave the data to the user."""
        return str(self.workspace.datasets.folder(self.workspace.draft().dataset))


def _modest(value: Any) -> bool:
    """Whether a value has few members once every alias in it is followed; a few lines of YAML may mean billions."""
    waiting, seen = [value], 0
    while waiting and seen <= MEMBERS:
        one = waiting.pop()
        waiting += [*one.keys(), *one.values()] if isinstance(one, dict) else one if isinstance(one, list | set) else []
        seen += 1
    return not waiting


def _card(path: Path, identity: str, group: str, data: str) -> Card | None:
    """What a shelf shows of a recipe file over this data; nothing for one that cannot be read."""
    try:
        loaded = _load(path, data)
    except UserError:
        return None
    if not loaded.description and group != "own":
        return None
    name = f" {loaded.name.replace('_', ' ').replace('-', ' ')} "
    for word, said in SAID.items():
        name = name.replace(f" {word} ", f" {said} ")
    name = name.strip()
    needs = re.search(r"(?:needs about|runs in|about) (\d+) GB of memory", loaded.description, re.IGNORECASE)
    return Card(
        id=identity,
        path=path,
        name=name[:1].upper() + name[1:],
        description=loaded.description,
        family=loaded.family,
        group=group,
        steps=loaded.train.steps,
        task=loaded.task,
        kind=loaded.adapter.kind,
        gigabytes=int(needs[1]) if needs else None,
    )


def _load(path: Path, data: str) -> recipes.Recipe:
    return _loaded(path, path.stat().st_mtime_ns, data)


@lru_cache(maxsize=16)
def _dumped(recipe: str) -> str:
    """A recipe given as JSON as YAML; asked every second, and it rarely changes."""
    return yaml.safe_dump(json.loads(recipe), sort_keys=False, allow_unicode=True)


@lru_cache(maxsize=16)
def _wrong(recipe: str) -> tuple[str, ...]:
    """What is wrong with the form of a recipe given as JSON, a line each."""
    try:
        recipes.parse(json.loads(recipe), "")
    except UserError as error:
        return tuple(line.removeprefix(": ") for line in str(error).splitlines())
    return ()


@lru_cache(maxsize=256)
def _loaded(path: Path, changed: int, folder: str) -> recipes.Recipe:
    """A recipe read once per change of its file."""
    return recipes.load(path, [f"data.0.path={json.dumps(folder)}"])


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set one value by its dotted key; groups that are missing are made, list places are numbers."""
    target: Any = raw
    parts = key.split(".")
    for part, following in pairwise(parts):
        if isinstance(target, list):
            target = target[int(part)]
            continue
        if not isinstance(target.get(part), dict | list):
            target[part] = [{}] if re.fullmatch(r"\d+", following) else {}
        target = target[part]
    if isinstance(target, list):
        target[int(parts[-1])] = value
    else:
        target[parts[-1]] = value
