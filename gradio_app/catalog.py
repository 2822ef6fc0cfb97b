"""What the engine offers: `tuner describe` asked once per version in a child process, kept on disk."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from .launcher import LocalLauncher

EMPTY: dict[str, Any] = {"families": [], "extensions": [], "version": ""}


class Catalog:
    """Families and extensions. Empty until the child process has answered; nobody waits for it."""

    def __init__(self, launcher: LocalLauncher, cache: Path, engine: Path | None = None) -> None:
        self.launcher = launcher
        engine = engine or Path(__file__).resolve().parent.parent / "tuner"
        self.path = cache / f"catalog-{_fingerprint(engine)}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._child: subprocess.Popen[bytes] | None = None
        self._known: dict[str, Any] | None = None

    def ask(self) -> None:
        """Start the child process, unless the answer is known."""
        if self.get() is EMPTY and self._child is None:
            self._child = self.launcher.once("describe", "--json", out=self.path.with_suffix(".part"))

    def get(self) -> dict[str, Any]:
        """What is known now."""
        if self._child is not None and self._child.poll() is not None:
            part = self.path.with_suffix(".part")
            if self._child.returncode == 0 and part.exists():
                part.replace(self.path)
            self._child = None
        if self._known is None and self.path.exists():
            try:
                self._known = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError:
                self.path.unlink()
        return self._known or EMPTY

    def family(self, name: str) -> dict[str, Any]:
        """One family by its id; empty when unknown."""
        return next((f for f in self.get()["families"] if f.get("name") == name), {})

    def adapter(self, kind: str) -> dict[str, Any]:
        """One way of training by its kind; empty when unknown."""
        return next((a for a in self.get().get("adapters") or [] if a.get("kind") == kind), {})

    def extensions(self) -> list[dict[str, Any]]:
        """All techniques."""
        return list(self.get()["extensions"])


def _fingerprint(engine: Path) -> str:
    """Changes with any file of the engine, so that a stale catalog is never shown."""
    marks = []
    for path in sorted(engine.rglob("*.py")):
        stat = path.stat()
        marks.append(f"{path.relative_to(engine)}:{stat.st_mtime_ns}:{stat.st_size}")
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16]
