"""The workspace on disk: data sets, runs, comparisons and the unfinished draft. State is files, nothing else."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tuner import home

from .datasets import DataSets
from .parts.names import safe_stem, unused


@dataclass
class Draft:
    """What the user is preparing: survives reloads and restarts."""

    dataset: str = "demo"
    recipe: str = "demo/style-lora.yaml"
    dial: str = "standard"
    raw: dict[str, Any] = field(default_factory=dict)


class Workspace:
    """Folders of one user. Every method reads from or writes to the disk."""

    def __init__(self, root: Path | None = None, recipes: Path | None = None) -> None:
        self.root = (root or home.home()).resolve()
        self.recipes = recipes or home.package_recipes()
        self.runs = self.root / "runs"
        self.compare = self.root / "compare"
        self.adapters = self.root / "adapters"
        self.exports = self.root / "exports"
        self.uploads = self.root / "cache" / "uploads"
        self.demo_images = self.recipes / "demo" / "images"
        for folder in (self.runs, self.compare, self.adapters, self.exports, self.root / "recipes"):
            folder.mkdir(parents=True, exist_ok=True)
        self.uploads.mkdir(parents=True, exist_ok=True)
        self.uploads.chmod(0o700)
        self.datasets = DataSets(self.root / "datasets", self.root / "cache" / "thumbs", self.demo_images)

    def served(self) -> list[str]:
        """The only folders whose files the app hands to a browser."""
        folders = (self.datasets.root, self.datasets.thumbs, self.runs, self.compare, self.exports, self.demo_images)
        return [str(folder) for folder in folders]

    def draft(self) -> Draft:
        """The saved draft; a fresh one when there is none or it cannot be read."""
        try:
            saved = json.loads((self.root / "draft.json").read_text(encoding="utf-8"))
            draft = Draft(**{key: saved[key] for key in asdict(Draft()) if key in saved})
        except (OSError, ValueError, TypeError):
            draft = Draft()
        if not self.datasets.exists(draft.dataset):
            draft.dataset = "demo"
        return draft

    def save_draft(self, draft: Draft) -> None:
        """Write the draft in one move, so that a reader never sees half of it."""
        write_json(self.root / "draft.json", asdict(draft))

    def run_names(self) -> list[str]:
        """All runs, the newest first."""
        found = [p for p in _below(self.runs) if (p / "recipe.yaml").exists() and not p.name.startswith(".")]
        return [p.name for p in sorted(found, key=_started, reverse=True)]

    def run(self, name: str) -> Path | None:
        """The folder of a run by its name; nothing outside the runs folder, whatever the name says."""
        folder = (self.runs / name).resolve()
        return folder if name and folder.parent == self.runs and folder.is_dir() else None

    def new_run(self, name: str) -> Path:
        """An unused folder DATE-NAME."""
        return self._new(self.runs, name)

    def new_comparison(self, name: str = "compare") -> Path:
        """An unused folder for one comparison."""
        return self._new(self.compare, name)

    def new_export(self, name: str) -> Path:
        """An unused folder for files that an adapter is written as."""
        return self._new(self.exports, name)

    def new_job(self, name: str) -> Path:
        """An unused folder for a job that is neither run nor comparison; not served to browsers."""
        return self._new(self.root / "jobs", name)

    def comparisons(self) -> list[Path]:
        """All comparisons, the newest first."""
        found = [p for p in _below(self.compare) if (p / "request.yaml").exists()]
        return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)

    def _new(self, parent: Path, name: str) -> Path:
        parent.mkdir(parents=True, exist_ok=True)
        stem = f"{time.strftime('%Y-%m-%d')}-{safe_stem(name, 'run')}".lower()
        folder = parent / unused(stem, {p.name for p in parent.iterdir()})
        folder.mkdir()
        return folder


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside, then rename over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    fresh.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds; {} for one that is not there, is damaged, or holds no table."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """As `read_json`."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _below(folder: Path) -> list[Path]:
    """What lies in a folder; nothing when somebody took it away while the app runs."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _started(folder: Path) -> float:
    journal = folder / "events.jsonl"
    return (journal if journal.exists() else folder).stat().st_mtime
