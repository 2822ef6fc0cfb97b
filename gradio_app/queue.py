"""The queue of runs: a file in the workspace. One run trains at a time; the next starts when it has left."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from typing import Any

from filelock import FileLock, Timeout

from .launcher import LocalLauncher
from .parts.reader import LOOKED_AT, launched, reader
from .workspace import Workspace, write_json

PAUSE = 1.0


class Queue:
    """Which runs wait, in which order, and how each begins. All of it is on the disk, so a restart loses nothing.

    Every change is made under a file lock, and so is a start: two apps over one workspace never start two runs.
    """

    def __init__(self, workspace: Workspace, launcher: LocalLauncher) -> None:
        self.workspace, self.launcher = workspace, launcher
        self.file = workspace.root / "queue.json"
        self._lock = FileLock(workspace.root / ".queue.lock", thread_local=False)
        self._thread: threading.Thread | None = None

    def waiting(self) -> list[dict[str, Any]]:
        """The runs that wait, the next one first: {"run", "do": "run" or "resume", "steps"}."""
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        rows = [e for e in found if isinstance(e, dict) and isinstance(e.get("run"), str)]
        return [e for e in rows if self.workspace.run(e["run"]) is not None]

    def place(self, run: str) -> int:
        """1 for the next one, 0 for a run that does not wait."""
        return next((i for i, e in enumerate(self.waiting(), 1) if e["run"] == run), 0)

    def add(self, run: str, do: str, steps: int = 0) -> bool:
        """Let a run begin as soon as nothing else trains; whether that was at once."""
        with self._lock:
            if self._goes(run):  # two browsers pressed the same button
                return True
            rest = [e for e in self.waiting() if e["run"] != run]
            write_json(self.file, [*rest, {"run": run, "do": do, "steps": steps}])
        self.pump()
        return self.place(run) == 0

    def _goes(self, run: str) -> bool:
        folder = self.workspace.run(run)
        seen = reader(folder).refresh() if folder else None
        return seen is not None and seen.alive and seen.state in ("running", "starting")

    def remove(self, run: str) -> None:
        """Take a run out; its folder stays and can be started later."""
        with self._lock:
            write_json(self.file, [e for e in self.waiting() if e["run"] != run])

    def move(self, run: str, by: int) -> None:
        """Earlier (-1) or later (1)."""
        with self._lock:
            rows = self.waiting()
            at = next((i for i, e in enumerate(rows) if e["run"] == run), None)
            if at is None:
                return
            rows.insert(min(len(rows) - 1, max(0, at + by)), rows.pop(at))
            write_json(self.file, rows)

    def busy(self, next_one: str = "") -> bool:
        """Whether a process is there in a run, be it only to leave, when it still holds memory.

        What leaves the folder of the next one does not count: its start waits for that.
        """
        for number, name in enumerate(self.workspace.run_names()):
            folder = self.workspace.runs / name
            if number >= LOOKED_AT and not launched(folder):
                continue
            seen = reader(folder).refresh()
            if seen.alive and (name != next_one or seen.state in ("running", "starting")):
                return True
        return False

    def pump(self) -> str:
        """Start the next run if nothing trains: its name, else nothing. A run that cannot start does not block."""
        try:
            with self._lock.acquire(timeout=0):
                rows = self.waiting()
                if not rows or self.busy(rows[0]["run"]):
                    return ""
                first, rest = rows[0], rows[1:]
                write_json(self.file, rest)
                self._start(first)
                return str(first["run"])
        except Timeout:
            return ""

    def watch(self) -> None:
        """Look every second, also when no browser is open."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watched, name="queue", daemon=True)
            self._thread.start()

    def _watched(self) -> None:
        while self.workspace.root.is_dir():
            with suppress(OSError):  # a full disk, a folder being deleted: look again
                self.pump()
            time.sleep(PAUSE)

    def _start(self, entry: dict[str, Any]) -> None:
        folder = self.workspace.run(entry["run"])
        if folder is None:
            return
        try:
            if entry.get("do") == "resume":
                self.launcher.resume(folder, int(entry.get("steps") or 0))
            else:
                self.launcher.run(folder, (folder / "recipe.yaml").read_text(encoding="utf-8"))
        except (OSError, RuntimeError) as error:
            self.launcher.could_not(folder, f"The engine could not be started ({error}).")
