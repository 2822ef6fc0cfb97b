"""What every screen is given: the workspace and the few helpers that read it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .catalog import Catalog
from .launcher import LocalLauncher
from .parts.checks import Checker
from .parts.reader import Reader, newest_running, reader
from .project import Project
from .queue import Queue
from .workspace import Workspace


@dataclass(frozen=True)
class Studio:
    """All that a screen may use."""

    workspace: Workspace
    launcher: LocalLauncher
    catalog: Catalog
    checker: Checker
    project: Project
    queue: Queue
    doctor: Checker
    """Asked on request only: it looks at every file."""

    def running(self) -> Reader | None:
        """The run that trains now, whoever started it."""
        found = newest_running([self.workspace.runs / name for name in self.workspace.run_names()])
        return reader(found) if found else None

    def modality(self, recipe: dict[str, Any]) -> str:
        """image, video or audio; image while the families are not known yet."""
        return str(self.catalog.family(str(recipe.get("family", ""))).get("modality") or "image")

    def device(self) -> dict[str, str]:
        """The device the engine named last, else what can be said without it."""
        known = self.checker.device
        name = str(known.get("name") or f"CPU, {os.cpu_count()} cores")
        return {"name": name, "reason": str(known.get("reason") or "")}


def open_studio(workspace: Workspace | None = None, command: tuple[str, ...] | None = None) -> Studio:
    """A studio over a workspace; `command` replaces the engine in tests."""
    workspace = workspace or Workspace()
    launcher = LocalLauncher(command) if command else LocalLauncher()
    cache = workspace.root / "cache"
    return Studio(
        workspace,
        launcher,
        Catalog(launcher, cache),
        Checker(launcher, cache / "checks"),
        Project(workspace),
        Queue(workspace, launcher),
        Checker(launcher, cache / "doctor", ("--data",)),
    )


def dataset_title(name: str) -> str:
    """A data set's name as people read it."""
    return "Demo pictures" if name == "demo" else name


def as_dict(event_data: Any) -> dict[str, Any]:
    """What a widget sent along with an event."""
    return dict(event_data) if isinstance(event_data, dict) else {}
