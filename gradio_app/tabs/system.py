"""System: the machine, the workspace, caches, versions and licences. Nothing heavy is imported to tell them."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gradio as gr

from ..holdings import Library, size_of, size_text
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
    root, device = studio.workspace.root, studio.device()
    disk, cache = shutil.disk_usage(root), root / "cache"
    encoded, whole = size_of(cache / ENCODED), size_of(cache)
    return {
        "said": said,
        "busy": False,
        "machine": [
            ["Device", device["name"]],
            *([["Why this one", device["reason"]]] if device["reason"] else []),
            ["System", f"{platform.system()} {platform.machine()}"],
        ],
        "workspace": [
            ["Folder", str(root)],
            ["Runs", size_text(size_of(studio.workspace.runs))],
            [
                "Adapters and exports",
                size_text(sum(map(size_of, (studio.workspace.adapters, studio.workspace.exports)))),
            ],
            ["Data sets", size_text(size_of(studio.workspace.datasets.root))],
            ["Bin", size_text(size_of(Library(studio.workspace).bin))],
            ["Free on this disk", size_text(disk.free)],
        ],
        "cache": [["Encoded for training", size_text(encoded)], ["Previews and uploads", size_text(whole - encoded)]],
        "clear": size_text(encoded) if encoded else "",
        "versions": [["Python", platform.python_version()], *([name, version(name)] for name in PACKAGES)],
        "licences": LICENCES,
    }


def version(name: str) -> str:
    """What is installed, by its metadata alone."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def build(studio: Studio) -> gr.HTML:
    """The screen."""
    empty = {
        "said": "",
        "busy": False,
        "machine": [],
        "workspace": [],
        "cache": [],
        "clear": "",
        "versions": [],
        "licences": [],
    }
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
