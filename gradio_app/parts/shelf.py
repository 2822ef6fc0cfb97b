"""The shelf of recipes: what each can make, what it needs, and whether the pictures and this machine suit it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..project import Card

GOALS = {
    "person": "A person",
    "style": "A style",
    "object": "An object",
    "motion": "A motion",
    "sound": "A voice or music",
    "edit": "An edit",
    "control": "Following a sketch or pose",
}
WORDS = {
    "person": r"\b(person|likeness)\b",
    "style": r"\bstyles?\b",
    "object": r"\b(object|subjects?)\b",
    "motion": r"\b(motion|movement|move|comes to life|clips)\b",
    "sound": r"\b(voice|music|songs?)\b",
}
MODALITIES = {
    "video": {".mp4", ".mov", ".webm", ".mkv", ".avi"},
    "audio": {".wav", ".mp3", ".flac", ".ogg", ".m4a"},
    "image": {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"},
}
THINGS = {"image": "pictures", "video": "videos", "audio": "sounds"}
DEMO, FITS, UNKNOWN, LARGER, OTHER, OWN = (
    "Works right here",
    "For this machine",
    "Needs an accelerator",
    "On a larger machine",
    "For other material",
    "My recipes",
)
ORDER = (OWN, DEMO, FITS, UNKNOWN, LARGER, OTHER)


def goals(card: Card, modality: str) -> list[str]:
    """What the user may want to make with this recipe."""
    if card.kind == "controlnet":
        return ["control"]
    if card.task == "edit":
        return ["edit"]
    found = [goal for goal, words in WORDS.items() if re.search(words, card.description.lower())]
    return [goal for goal in found if modality != "audio" or goal == "sound"]


def material(files: Iterable[Path]) -> set[str]:
    """The modalities that a data set has."""
    endings = {path.suffix.lower() for path in files}
    return {name for name, known in MODALITIES.items() if endings & known}


def unsuited(card: Card, modality: str, have: set[str]) -> str:
    """Why a recipe cannot be trained on this data set; empty when it can, or when there is nothing to tell by."""
    wanted = {modality} | ({"image"} if modality == "video" and card.task != "image_to_video" else set())
    if not modality or not have or wanted & have:
        return ""
    needs = " or ".join(THINGS[name] for name in sorted(wanted, reverse=True))
    return f"Learns from {needs}; your data set has {' and '.join(THINGS[name] for name in sorted(have))}."


def place(card: Card, kind: str, memory: float | None, reason: str) -> str:
    """Under which heading a recipe stands. kind: of the device, empty while unknown; memory: of the device, in GB."""
    if card.group == "demo":
        return DEMO
    if reason:
        return OTHER
    if card.group == "own":
        return OWN
    if kind == "cpu":
        return UNKNOWN
    if memory is None or card.gigabytes is None:
        return FITS
    return FITS if card.gigabytes <= memory else LARGER


@lru_cache(maxsize=1)
def memory() -> float | None:
    """Memory of the NVIDIA card in GB as its driver says; nothing where there is no such driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout
        return float(said.split()[0]) / 1000
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def arranged(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cards under their headings, in the order of usefulness; small needs first."""
    groups = [{"title": t, "cards": [c for c in shown if c["place"] == t]} for t in ORDER]
    for group in groups:
        group["cards"].sort(key=lambda c: c["gigabytes"] or 0)
    return [group for group in groups if group["cards"]]
