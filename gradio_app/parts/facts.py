"""The facts beside a run: what the journal says of it, and what this machine has left. No text but short labels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import psutil

from ..holdings import size_text
from .gpu import gauge
from .reader import Reader

THINGS = {"image": "Pictures", "video": "Clips", "audio": "Recordings"}
LOW = 3
"""Saves that must still fit on the disk before it is worth a warning."""


def told(seen: Reader, modality: str, process: psutil.Process | None) -> list[list[str]]:
    """Rows of [what, value]. process: of the run while it lives."""
    recipe, last = seen.recipe(), seen.steps.last
    rows = [*_progress(seen, recipe, THINGS.get(modality, THINGS["image"])), *_rates(last)]
    if last.get("norm") is not None:
        rows.append(["Gradient norm", f"{last['norm']:.3g}"])
    rows += fixed_loss(seen)
    if seen.checkpoints:
        rows.append(["Last saved", f"step {seen.checkpoints[-1]['step']:,}"])
    if seen.warnings:
        rows.append(["Warnings", f"{len(seen.warnings)}"])
    keys = (("Device", "device"), ("Precision", "precision"))
    rows += [[title, str(seen.start[key])] for title, key in keys if seen.start.get(key)]
    return rows + (_machine(seen, process) if process is not None else [])


def _progress(seen: Reader, recipe: dict[str, Any], things: str) -> list[list[str]]:
    """How much was looked at: epoch, items, what was skipped."""
    rows: list[list[str]] = []
    if (each := int(seen.planned.get("per_epoch") or 0)) and seen.steps:
        rows.append(["Epoch", f"{seen.step / each:.1f} of {seen.of / each:.1f}"])
    train = recipe.get("train") or {}
    if seen.steps and train.get("batch"):
        shown = seen.step * int(train["batch"]) * int(train.get("accumulate", 1))
        rows.append([f"{things} seen", f"{shown:,}"])
    if seen.planned:
        rows.append([things, f"{int(seen.planned.get('items') or 0):,}"])
        rows.append(["Skipped", f"{int(seen.planned.get('left_out') or 0):,}"])
    return rows


def fixed_loss(seen: Reader) -> list[list[str]]:
    """The loss at fixed noise by its true name: of what it was measured on; and per level of noise."""
    if not seen.validation:
        return []
    last = seen.validation[-1]
    held = seen.held_back()
    rows = [["Validation loss" if held else "Fixed-noise loss", f"{last['loss']:.3g}"]]
    rows += [[f"at noise {t}", f"{value:.3g}"] for t, value in (last.get("by_t") or {}).items()]
    return [*rows, ["Measured on", "what was held back" if held else "what is trained"]]


def _rates(last: dict[str, Any]) -> list[list[str]]:
    """The learning rate; of each group of parameters where several have their own."""
    named = {key.removeprefix("lr_"): rate for key, rate in last.items() if key.startswith("lr_")}
    if last.get("lr") is None:
        return []
    if not named:
        return [["Learning rate", f"{last['lr']:.3g}"]]
    rates = {"denoiser": last["lr"], **named}
    return [[f"Learning rate, {name.replace('_', ' ')}", f"{rate:.3g}"] for name, rate in rates.items()]


def _machine(seen: Reader, process: psutil.Process) -> list[list[str]]:
    """What the run takes of this machine besides the memory that the engine names, and what is left of the disk."""
    rows = []
    if not str(seen.start.get("device", "")).lower().startswith("cpu"):
        rows += [["Main memory", size_text(held)]] if (held := _resident(process)) else []
        rows += [["GPU", said]] if (said := gauge.read()) else []
    free, each = room(seen)
    rows.append(["Free disk", size_text(free)])
    return [*rows, ["A save takes", size_text(each)]] if each else rows


def room(seen: Reader) -> tuple[int, int]:
    """(bytes free on the run's disk, bytes of the newest checkpoint; 0 before there is one)."""
    free = shutil.disk_usage(seen.folder).free
    saved = seen.folder / str(seen.checkpoints[-1].get("path", "")) if seen.checkpoints else None
    return free, _size(saved) if saved is not None and saved != seen.folder else 0


def little_room(seen: Reader) -> str:
    """A warning while a run goes on and the disk will soon be full; empty else."""
    free, each = room(seen)
    if not each or free >= LOW * each:
        return ""
    return f"The disk has {size_text(free)} left, and a save takes {size_text(each)}: free some space soon."


def _resident(process: psutil.Process) -> int:
    try:
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    except psutil.Error:  # it has just ended
        return 0


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError:  # a checkpoint that is being cleared away
        return 0
