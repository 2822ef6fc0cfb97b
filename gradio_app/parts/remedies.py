"""What helps when a run has failed: the engine's sentence and its recipe → one to three buttons that do it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .reader import ENDED

MOST = 3
MEMORY = ("memory ran out", "out of memory")
FETCH = ("could not be fetched", "process that prepares data", "cache entry", "cache shard")


def found(
    error: str, recipe: Mapping[str, Any], saved: int = 0, offered: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Buttons as {"key", "text", "why", "changes", "go"}, the best first.

    changes: of the recipe, for a new run; without them the same run goes on. go: a screen that is opened instead.
    saved: the step of the last checkpoint, 0 for none. offered: changes by which the engine says that it is solved.
    """
    said = error.lower()
    again = _again(saved)
    if offered:
        ways = [_offered(offered), CHANGE]
    elif "it was killed" in said:
        ways = [again, *_memory(recipe)]
    elif any(words in said for words in MEMORY):
        ways = _memory(recipe)
    elif error == ENDED:
        ways = [again]
    elif "the loss became" in said:
        ways = _diverged(recipe.get("train") or {})
    elif "no space left" in said:
        ways = [{**again, "why": "When you have freed some space."}, SPACE]
    elif any(words in said for words in FETCH):
        ways = [{**again, "why": "What is cached stays; what is damaged is made anew."}, CHANGE]
    elif said.startswith("data.") or "data set" in said:
        ways = [DATA, again, CHANGE]
    else:
        ways = [CHANGE, again] if "source" in said or "adapter" in said else [again, CHANGE]
    return (ways or [again, CHANGE])[:MOST]


def _again(saved: int) -> dict[str, Any]:
    if saved:
        return _way("resume", "Go on", f"From step {saved:,}, which is saved.")
    return _way("resume", "Try again", "From the beginning; what is cached stays.")


def _offered(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's own way out as a button."""
    if all(key.endswith(".on_problem") for key in changes):
        return _way("skip", "Leave such files out", "Start again without what cannot be read.", changes)
    values = ", ".join(f"{key}: {_short(value)}" for key, value in changes.items())
    return _way("offered", "Change it as suggested", f"A new run with {values}.", changes)


def _short(value: Any) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list | tuple) and value else str(value) or "nothing"


def _memory(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cheapest first: time, then batch (with the same items per step), then bits, then size."""
    memory, media, ways = recipe.get("memory") or {}, recipe.get("media") or {}, []
    train = recipe.get("train") or {}
    if not memory.get("checkpointing"):
        text = "Activations are computed twice instead of kept: slower by about a third, the same result."
        ways.append(_way("checkpointing", "Turn on checkpointing", text, {"memory.checkpointing": True}))
    batch = int(train.get("batch") or 1)
    if batch > 1:
        half = batch // 2
        times = -(-batch // half)
        changes = {"train.batch": half, "train.accumulate": int(train.get("accumulate") or 1) * times}
        ways.append(_way("batch", f"Batch {half} instead of {batch}", "In more parts, about the same result.", changes))
    if (recipe.get("adapter") or {}).get("kind", "lora") != "full" and memory.get("quantise", "none") == "none":
        text = "The frozen base is held in 8 bits: half the memory, nearly the same result."
        ways.append(_way("quantise", "Hold the base in 8 bits", text, {"memory.quantise": "int8"}))
    sizes = [int(s) for s in media.get("resolutions") or [] if isinstance(s, int)]
    if sizes and max(sizes) >= 512:
        smaller = sorted({max(256, s * 3 // 4 // 64 * 64) for s in sizes})
        text = f"Train at {', '.join(map(str, smaller))} pixels: much less memory, less detail."
        ways.append(_way("size", "Smaller pictures", text, {"media.resolutions": smaller}))
    return ways


def _diverged(train: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Numbers that ran away: a smaller learning rate, then more digits."""
    ways = []
    if isinstance(rate := train.get("lr"), int | float):
        slower = float(f"{rate / 3:.1g}")
        text = f"Train with {slower:g} instead of {rate:g}."
        ways.append(_way("lr", "Lower the learning rate", text, {"train.lr": slower}))
    if train.get("precision") != "fp32":
        text = "Every number in 32 bits: slower, and safe from overflow."
        ways.append(_way("fp32", "Compute in full precision", text, {"train.precision": "fp32"}))
    return ways


def _way(key: str, text: str, why: str, changes: Mapping[str, Any] | None = None, go: str = "") -> dict[str, Any]:
    return {"key": key, "text": text, "why": why, "changes": dict(changes or {}), "go": go}


CHANGE = _way("recipe", "Change the recipe", "Opens this run's recipe, ready to be changed.", go="recipe")
DATA = _way("dataset", "Open the data set", "Shows the files that this run wanted to train on.", go="dataset")
SPACE = _way("space", "See what takes space", "System shows the disk and can clear the cache.", go="system")
