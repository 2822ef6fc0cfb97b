"""What helps when a run has failed: the engine's sentence and its recipe → one to three buttons."""

from __future__ import annotations

from typing import Any

MEMORY = ("memory ran out", "out of memory", "it was killed")
MOST = 3


def found(error: str, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Buttons as {"key", "text", "why", "changes"}, the best first. Without changes: the same run goes on."""
    said = error.lower()
    train = recipe.get("train") or {}
    if any(words in said for words in MEMORY):
        return _memory(recipe, train)[:MOST]
    if "the loss became" in said:
        return _diverged(train)[:MOST]
    if "no space left" in said:
        return [_again("resume", "Go on", "When you have freed some space.")]
    if "on_problem" in said or "to skip" in said:
        count = len(recipe.get("data") or [])
        changes = {f"data.{i}.on_problem": "skip" for i in range(count)}
        return [_new("skip", "Leave such files out", "Start again without what cannot be read.", changes)]
    if "could not be fetched" in said or "process that prepares data" in said:
        return [_again("resume", "Try again", "What is cached stays.")]
    return []


def _memory(recipe: dict[str, Any], train: dict[str, Any]) -> list[dict[str, Any]]:
    """The cheapest first: time, then batch (with the same items per step), then bits, then size."""
    memory, media, ways = recipe.get("memory") or {}, recipe.get("media") or {}, []
    if not memory.get("checkpointing"):
        text = "Activations are computed twice instead of kept: slower by about a third, the same result."
        ways.append(_new("checkpointing", "Turn on checkpointing", text, {"memory.checkpointing": True}))
    batch = int(train.get("batch") or 1)
    if batch > 1:
        half = batch // 2
        times = -(-batch // half)
        changes = {"train.batch": half, "train.accumulate": int(train.get("accumulate") or 1) * times}
        ways.append(_new("batch", f"Batch {half} instead of {batch}", "In more parts, about the same result.", changes))
    if (recipe.get("adapter") or {}).get("kind", "lora") != "full" and memory.get("quantise", "none") == "none":
        text = "The frozen base is held in 8 bits: half the memory, nearly the same result."
        ways.append(_new("quantise", "Hold the base in 8 bits", text, {"memory.quantise": "int8"}))
    sizes = [int(s) for s in media.get("resolutions") or [] if isinstance(s, int)]
    if sizes and max(sizes) >= 512:
        smaller = sorted({max(256, s * 3 // 4 // 64 * 64) for s in sizes})
        text = f"Train at {', '.join(map(str, smaller))} pixels: much less memory, less detail."
        ways.append(_new("size", "Smaller pictures", text, {"media.resolutions": smaller}))
    return ways


def _diverged(train: dict[str, Any]) -> list[dict[str, Any]]:
    """Numbers that ran away: a smaller learning rate, then more digits."""
    ways = []
    if isinstance(rate := train.get("lr"), int | float):
        slower = float(f"{rate / 3:.1g}")
        text = f"Train with {slower:g} instead of {rate:g}."
        ways.append(_new("lr", "Lower the learning rate", text, {"train.lr": slower}))
    if train.get("precision") != "fp32":
        text = "Every number in 32 bits: slower, and safe from overflow."
        ways.append(_new("fp32", "Compute in full precision", text, {"train.precision": "fp32"}))
    return ways


def _new(key: str, text: str, why: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {"key": key, "text": text, "why": why, "changes": changes}


def _again(key: str, text: str, why: str) -> dict[str, Any]:
    return _new(key, text, why, {})
