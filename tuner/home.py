"""Where the studio keeps what is not the user's: runs, data sets made in the app, caches. Knows no torch."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The workspace: the folder named by the environment variable TUNER_HOME, else ~/tuner."""
    return Path(os.environ.get("TUNER_HOME") or Path.home() / "tuner").expanduser().resolve()


def cache_folder() -> Path:
    """Latents and text embeddings, by content; safe to delete at any time."""
    return home() / "cache"


def runs_folder() -> Path:
    """One folder per run."""
    return home() / "runs"


def package_recipes() -> Path:
    """The recipes that ship with the studio."""
    return Path(__file__).resolve().parent.parent / "recipes"
