"""`tuner check` in a child process: at most one at a time, its answers kept by what was asked."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..launcher import LocalLauncher

QUIET = 1.2
KEPT = 90


class Checker:
    """Answers of the engine about a recipe. `want` says which recipe matters, `poll` moves things on."""

    def __init__(self, launcher: LocalLauncher, folder: Path, options: tuple[str, ...] = ("--items",)) -> None:
        self.launcher, self.folder, self.options = launcher, folder, options
        folder.mkdir(parents=True, exist_ok=True)
        _prune(folder)
        self._lock = threading.RLock()
        self._wanted = ""
        self._since = 0.0
        self._running: tuple[str, subprocess.Popen[bytes]] | None = None
        self.device: dict[str, Any] = {}

    def want(self, recipe: str, stamp: str = "") -> str:
        """The recipe as YAML, and a stamp that changes with the pictures it reads."""
        key = digest(recipe, stamp)
        with self._lock:
            if key != self._wanted:
                self._wanted, self._since = key, time.monotonic()
                (self.folder / f"{key}.yaml").write_text(recipe, encoding="utf-8")
        return key

    def asked(self, key: str) -> bool:
        """Whether this is the question that is open."""
        return key == self._wanted

    def poll(self) -> dict[str, Any] | None:
        """The answer for the wanted recipe, or nothing while it is open; starts the child when all is quiet."""
        with self._lock:
            if self._running is not None and self._running[1].poll() is not None:
                self._running = None
            found = self.answer(self._wanted)
            if found is not None or not self._wanted:
                return found
            if self._running is None and time.monotonic() - self._since > QUIET:
                self._run(self._wanted)
            return None

    def now(self, recipe: str, stamp: str = "", timeout: float = 180.0) -> dict[str, Any]:
        """The answer at once: from what is known, else by waiting for the child."""
        key, until = self.want(recipe, stamp), time.monotonic() + timeout
        while time.monotonic() < until:
            with self._lock:
                found = self.answer(key)
                if found is not None:
                    return found
                if self._running is None or self._running[1].poll() is not None:
                    self._run(key)
            time.sleep(0.1)
        return trouble("The check took too long and was given up; the log of the app has more.")

    def answer(self, key: str) -> dict[str, Any] | None:
        """A finished answer from the disk."""
        if self._running is not None and self._running[0] == key and self._running[1].poll() is None:
            return None
        path = self.folder / f"{key}.json"
        try:
            found = path.stat()
        except OSError:
            return None
        answer = _parsed(path, found.st_mtime_ns, found.st_size) or trouble(_last_line(self.folder / f"{key}.log"))
        self.device = answer.get("device") or self.device
        return answer

    def _run(self, key: str) -> None:
        out = self.folder / f"{key}.json"
        out.unlink(missing_ok=True)
        self._running = (key, self.launcher.once("check", str(self.folder / f"{key}.yaml"), *self.options, out=out))


def digest(recipe: str, stamp: str) -> str:
    """A name for one question."""
    return hashlib.sha256(f"{recipe}\0{stamp}".encode()).hexdigest()[:24]


def trouble(text: str) -> dict[str, Any]:
    """An answer that says that there is none."""
    problem = {"level": "error", "where": "", "text": text or "The check ended without an answer.", "remedy": {}}
    return {"ok": False, "problems": [problem], "plan": {}, "device": {}}


def _prune(folder: Path) -> None:
    """Old answers are of no use."""
    files = sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in files[KEPT:]:
        old.unlink()


@lru_cache(maxsize=8)
def _parsed(path: Path, changed: int, size: int) -> dict[str, Any] | None:
    """An answer, read once per change of its file: it is asked for every second."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "ok" in found else None


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:400] if lines else ""
