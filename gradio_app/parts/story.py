"""What a recipe's values mean, in sentences: why they are so, what they cost, what differs from the original."""

from __future__ import annotations

from typing import Any

from ..forms import Field, get, show
from .words import count, duration

COST = {
    "train.steps": "Time grows with it; memory does not",
    "train.batch": "Time per step and memory grow with it",
    "train.accumulate": "Time per step grows with it; memory does not",
    "train.precision": "bf16 and fp16 take half the memory of fp32",
    "train.optimizer": "adamw8bit and adafactor need less memory; lion half of adamw's",
    "media.resolutions": "Time and memory grow with the square of it",
    "media.frames": "Time and memory grow with it",
    "adapter.rank": "The file, and a little memory, grow with it",
    "adapter.dora": "Slower, and more memory",
    "adapter.kind": "full needs many times the memory of the others",
    "adapter.text": "Slower, and the text encoders stay in memory",
    "memory.checkpointing": "Much less memory; a step takes about a third longer",
    "memory.quantise": "int8 halves the base's memory, nf4 and int4 take about a quarter; steps may be slower",
    "memory.compile": "A wait of about a minute, then faster steps",
    "validate.every": "Each validation takes time",
    "validate.steps": "Drawing time grows with it",
    "validate.prompts": "Each prompt is drawn at every validation",
    "save.keep": "Each checkpoint takes room on the disk",
}


def bytes_text(size: float) -> str:
    """'7.1 GB', '310 MB'."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def scale(adapter: dict[str, Any]) -> str:
    """The factor on the adapter's answer, with how it comes about; empty where the kind has none."""
    rank, alpha = adapter.get("rank"), adapter.get("alpha")
    kind = adapter.get("kind")
    if kind not in ("lora", "lycoris", "controlnet") or (kind == "controlnet" and adapter.get("form") == "branch"):
        return ""
    rank = rank or (16 if kind == "lycoris" else None)
    if not isinstance(rank, int) or not isinstance(alpha, int | float | None):
        return ""
    alpha = rank if alpha is None else alpha
    below, shown = (rank**0.5, f"√{rank}") if adapter.get("rslora") else (rank, str(rank))
    return f"{alpha / below:.3g} ({alpha:g} / {shown})"


def seen(train: dict[str, Any], files: int) -> float | None:
    """How often each item is seen; nothing while the numbers are no numbers."""
    try:
        return train["steps"] * train["batch"] * train["accumulate"] / files
    except (TypeError, KeyError, ZeroDivisionError):
        return None


def times(number: float | None) -> str:
    """'40 times', 'about once'."""
    if number is None:
        return ""
    return f"{number:.0f} times" if number >= 1.5 else "about once" if number > 0.7 else "not even once"


def length(train: dict[str, Any], files: int, pace: float | None) -> str:
    """The line under the dial: how often each item is seen, and how long it takes."""
    number, steps = seen(train, files), train.get("steps")
    first = f"Each picture is seen {times(number)}" if number is not None else "There are no pictures yet"
    if pace is None or not isinstance(steps, int):
        return f"{first}. How long it takes is not known before a first run of this model here."
    return f"{first}, about {duration(pace * steps)}."


def differences(found: list[Field], raw: dict[str, Any], own: dict[str, Any]) -> list[dict[str, str]]:
    """What was changed from the recipe: the setting, what it said, what is now."""
    rows = []
    for one in found:
        now, was = get(raw, one.key, one.default), get(own, one.key, one.default)
        if one.key != "data" and now != was:
            rows.append({"key": one.key, "label": one.label, "was": _short(one, was), "now": _short(one, now)})
    return rows


def _short(one: Field, value: Any) -> str:
    if one.kind == "list":
        return count(len(value or []), "entry", "entries")
    if one.kind in ("group", "bool"):
        return "on" if show(one, value) else "off"
    text = str(show(one, value)) or ("automatic" if one.empty else "nothing")
    return text if len(text) <= 60 else text[:57] + "..."


def why(raw: dict[str, Any], own: dict[str, Any], family: dict[str, Any], files: int) -> list[str]:
    """One sentence per value that was derived for the user, with its reason."""
    train, media, memory = raw["train"], raw.get("media") or {}, raw.get("memory") or {}
    said = [_steps(train, own["train"]["steps"], files), *_adapter(raw.get("adapter") or {}), _rate(train)]
    sizes = media.get("resolutions") or ([family["resolution"]] if family.get("resolution") else [])
    if sizes:
        ground = "as the recipe says" if media.get("resolutions") else f"the size that {family['title']} was made for"
        said.append(f"Pictures are brought to {', '.join(map(str, sizes))} pixels: {ground}.")
    if memory.get("checkpointing"):
        said.append("Activations are computed twice, because else the model needs far more memory.")
    method = memory.get("quantise", "none")
    if method not in ("none", None):
        said.append(f"The base is held as {method}, so that it takes less memory; the adapter keeps full precision.")
    precision = {"bf16": "half the memory of fp32, and as stable", "fp32": "exact, and the fastest on a CPU"}
    if reason := precision.get(str(train.get("precision"))):
        said.append(f"Numbers are {train['precision']}: {reason}.")
    said.append(f"Seed {train.get('seed')}: the same seed gives the same run.")
    return said


def _steps(train: dict[str, Any], own: int, files: int) -> str:
    steps = train.get("steps")
    if steps == own:
        often = times(seen(train, files)) or "an unknown number of times"
        return f"{own} steps is the length this recipe was tuned for; with your pictures each is seen {often}."
    if not isinstance(steps, int):
        return f"The recipe was tuned for {own} steps."
    more = "longer learns more, and too long copies the pictures" if steps > own else "a first look"
    return f"{steps} steps instead of the {own} that this recipe was tuned for: {more}."


def _adapter(adapter: dict[str, Any]) -> list[str]:
    kind, rank = adapter.get("kind"), adapter.get("rank")
    if kind == "full":
        return ["All weights of the model are trained: the strongest way, and by far the most memory."]
    said = []
    if kind == "controlnet":
        said.append("A network that follows a control picture is trained beside the model, which stays as it is.")
    if rank:
        said.append(f"Rank {rank}: a higher one learns more detail and makes a larger file.")
    if text := scale(adapter):
        said.append(f"The adapter acts with a scale of {text}, alpha over rank.")
    return said


def _rate(train: dict[str, Any]) -> str:
    rate, optimizer = train.get("lr"), train.get("optimizer")
    if isinstance(rate, int | float):
        return f"Learning rate {rate:g} with {optimizer}: what this recipe was tuned with, unless you changed it."
    return f"The learning rate is left to {optimizer}: its usual value."
