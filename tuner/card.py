"""The model card of a published adapter: what it is, how to load it, how it was trained. Knows no torch.

Never told: folders of this machine, captions, the data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from . import licences

TASKS = {
    ("image", "generate"): "text-to-image",
    ("image", "edit"): "image-to-image",
    ("video", "generate"): "text-to-video",
    ("video", "image_to_video"): "image-to-video",
    ("audio", "generate"): "text-to-audio",
}
UNSEEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Facts:
    """What the card may say. base: the base model's Hub id, "" when it is not from there. shown: (prompt, file)."""

    repo: str
    recipe: dict[str, Any] = field(default_factory=dict)
    base: str = ""
    weights: str = ""
    step: int = 0
    items: int = 0
    shown: tuple[tuple[str, str], ...] = ()


def base_of(recipe: dict[str, Any], sources: dict[str, str]) -> str:
    """The Hub id of a recipe's base model. A folder of this machine has none, and is never told."""
    source = str(recipe.get("source") or "")
    if source in sources:
        return sources[source]
    known = HUB_ID.fullmatch(source) and not Path(source).expanduser().exists()
    return source if known else ""


def write(facts: Facts) -> str:
    """The whole README.md."""
    head = yaml.safe_dump(_head(facts), sort_keys=False, allow_unicode=True, width=1000)
    parts = [f"---\n{head}---", f"# {facts.repo.split('/')[-1]}", _about(facts)]
    if facts.shown:
        parts.append("<Gallery />")
    if word := _trigger(facts.recipe):
        parts.append(f"## Trigger word\n\nUse `{_code(word)}` in the prompt.")
    parts += [part for part in (_loading(facts), _training(facts), _terms(facts)) if part]
    return "\n\n".join(parts) + "\n"


def _head(facts: Facts) -> dict[str, Any]:
    recipe, family = facts.recipe, str(facts.recipe.get("family") or "")
    kind = _kind(recipe)
    modality = licences.FAMILIES[family][1] if family in licences.FAMILIES else "image"
    task = TASKS.get((modality, str(recipe.get("task") or "generate")), "")
    head: dict[str, Any] = {}
    if facts.base:
        head["base_model"] = facts.base
        head["base_model_relation"] = "finetune" if kind == "full" else "adapter"
    if recipe:
        head["library_name"] = "diffusers"
        head["pipeline_tag"] = task
    head["tags"] = [tag for tag in (task if recipe else "", kind, "diffusers" if recipe else "", "tuner") if tag]
    if kind == "lora" and modality == "image":
        head["tags"].append("template:sd-lora")
    licence = licences.of(family, facts.base)
    if licence is not None:
        head["license"] = licence.tag
        if licence.tag == "other":
            head["license_name"] = licence.name
            if facts.base:
                head["license_link"] = f"{licences.HUB}/{facts.base}"
    if word := _trigger(recipe):
        head["instance_prompt"] = plain(word)
    if facts.shown:
        head["widget"] = [{"text": plain(prompt) or "-", "output": {"url": file}} for prompt, file in facts.shown]
    return head


def _about(facts: Facts) -> str:
    family = str(facts.recipe.get("family") or "")
    if family not in licences.FAMILIES:
        return "An adapter, shared with Tuner. Its base model is not known to the program that uploaded it."
    title = licences.FAMILIES[family][0]
    on = f"[{facts.base}]({licences.HUB}/{facts.base})" if facts.base else f"a model of the family {title}"
    what = {"lora": "A LoRA", "full": "A full fine-tune"}.get(_kind(facts.recipe), "An adapter")
    return f"{what} for {on}, trained with Tuner."


def _loading(facts: Facts) -> str:
    if _kind(facts.recipe) != "lora" or not facts.weights or not facts.base:
        return ""
    word = _code(_trigger(facts.recipe)) or "a picture"
    code = [
        "import torch",
        "from diffusers import DiffusionPipeline",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("{facts.base}", torch_dtype=torch.bfloat16).to("cuda")',
        f'pipeline.load_lora_weights("{facts.repo}", weight_name="{facts.weights}")',
    ]
    if facts.recipe.get("task", "generate") == "generate":
        code.append(f"result = pipeline(prompt={word!r})")
    return "## How to load it\n\n```python\n" + "\n".join(code) + "\n```"


def _training(facts: Facts) -> str:
    train, adapter = facts.recipe.get("train") or {}, facts.recipe.get("adapter") or {}
    media = facts.recipe.get("media") or {}
    told = {
        "Steps": facts.step or train.get("steps"),
        "Items in the data set": facts.items or None,
        "Rank": adapter.get("rank"),
        "Alpha": adapter.get("alpha"),
        "Learning rate": train.get("lr"),
        "Optimiser": train.get("optimizer"),
        "Schedule": train.get("schedule"),
        "Batch": train.get("batch"),
        "Resolution": ", ".join(str(edge) for edge in media.get("resolutions") or []) or None,
        "Precision": train.get("precision"),
        "Seed": train.get("seed"),
    }
    rows = [f"| {name} | {_cell(value)} |" for name, value in told.items() if value is not None]
    if not train:
        return ""
    return "\n".join(["## How it was trained", "", "| Setting | Value |", "|---|---|", *rows])


def _terms(facts: Facts) -> str:
    licence = licences.of(str(facts.recipe.get("family") or ""), facts.base)
    if licence is None:
        return ""
    if facts.base:
        return f"## Licence\n\nThe terms of the base model hold: see [{facts.base}]({licences.HUB}/{facts.base})."
    return "## Licence\n\nThe terms of the base model hold."


def _kind(recipe: dict[str, Any]) -> str:
    return str((recipe.get("adapter") or {}).get("kind") or "")


def _trigger(recipe: dict[str, Any]) -> str:
    words = [str(entry.get("trigger") or "") for entry in recipe.get("data") or []]
    return next((word for word in words if word), "")


def plain(text: str) -> str:
    """A text in one line, without control characters and those that turn the direction of writing."""
    return " ".join(UNSEEN.sub("", " ".join(text.split())).split())


def _code(text: str) -> str:
    return plain(text).replace("`", "'")


def _cell(value: Any) -> str:
    return plain(str(value)).replace("|", "/").replace("<", "&lt;")
