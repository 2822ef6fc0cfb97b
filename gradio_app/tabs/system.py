"""System: the machine, the workspace, caches, versions and licences. Nothing heavy is imported to tell them."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gradio as gr
import psutil

import tuner

from ..disk import room_of, size_of, size_text, together
from ..parts.widget import quiet, widget
from ..studio import Studio

PACKAGES = ("torch", "diffusers", "transformers", "peft", "lycoris-lora", "accelerate", "safetensors", "gradio",
            "huggingface-hub")  # fmt: skip
PATIENCE = 300
ENCODED = "entries"
"""Below the cache: the engine's folder of pictures and captions as the models see them."""
LICENCES = [
    ["Tuner", "Apache-2.0 (the file LICENSE)"],
    ["Demo pictures and demo model", "made for Tuner, Apache-2.0"],
    ["Models you train on", "their own terms, on each recipe's card"],
    ["Python packages", "their own terms, installed by you from the package index"],
]


def view(studio: Studio, said: str = "") -> dict[str, Any]:
    """Everything as pairs of name and text."""
    places, device = studio.workspace, studio.device()
    root, cache = places.root, places.root / "cache"
    encoded, memory = room_of(cache / ENCODED), psutil.virtual_memory()
    free, whole = size_text(memory.available), size_text(memory.total)
    kept = {
        "Runs": room_of(places.runs),
        "Adapters and exports": room_of(places.adapters, places.exports),
        "Comparisons": room_of(places.compare),
        "Data sets": room_of(places.datasets.root),
        "Past jobs": room_of(root / "jobs"),
        "Bin": room_of(root / "bin"),
        "Cache": room_of(cache),
    }
    rest = room_of(cache).bytes - encoded.bytes
    return {
        "said": said,
        "busy": False,
        "machine": [
            ["Device", device["name"]],
            *([["Why this one", device["reason"]]] if device["reason"] else []),
            ["Memory", f"{free} of {whole} free"],
            ["System", f"{platform.system()} {platform.machine()}"],
        ],
        "folder": str(root),
        "kept": [[name, room.bytes, size_text(room.bytes)] for name, room in kept.items()],
        "workspace": [
            ["In all", size_text(together(kept.values()).bytes)],
            ["Free on this disk", size_text(shutil.disk_usage(root).free)],
        ],
        "cache": [["Encoded for training", size_text(encoded.bytes)], ["Previews and uploads", size_text(rest)]],
        "clear": size_text(encoded.bytes) if encoded.bytes else "",
        "versions": [["Tuner", tuner.__version__], ["Python", platform.python_version()],
                     *([name, version(name)] for name in PACKAGES)],
        "licences": LICENCES,
    }  # fmt: skip


def version(name: str) -> str:
    """What is installed, by its metadata alone."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def build(studio: Studio) -> gr.HTML:
    """The screen."""
    empty = {"said": "", "busy": False, "clear": "", "folder": "",
             **{name: [] for name in ("machine", "kept", "workspace", "cache", "versions", "licences")}}  # fmt: skip
    screen = widget("system", empty, "system", ("prune",))
    busy = {"said": "", "busy": True}
    screen.prune(lambda: {**view(studio), **busy}, None, [screen], **quiet(trigger_mode="once")).then(
        lambda: view(studio, prune(studio)), None, [screen], **quiet(queue=True)
    )
    return screen


def prune(studio: Studio) -> str:
    """Let the engine delete what it cached for training; returns a sentence about it."""
    if studio.running() is not None:
        return "A run is training and uses the cache. Wait for its end, then clear it."
    encoded = studio.workspace.root / "cache" / ENCODED
    before = size_of(encoded)
    out: Path = studio.workspace.root / "cache" / "prune.json"
    child = studio.launcher.once("cache", "--prune", out=out)
    try:
        code = child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        return "Clearing took too long and was given up; try again when the machine is quiet."
    if code:
        return f"The cache could not be cleared: {_last(out.with_suffix('.log'))}"
    return f"{size_text(max(0, before - size_of(encoded)))} of encoded pictures and captions were deleted."


def _last(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "the engine gave no reason."
