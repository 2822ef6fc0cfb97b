"""Starts, asks and ends the engine's processes. A restart of the app loses nothing: a run is a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tuner import events

from .parts.reader import reader
from .workspace import write_json

ENGINE = (sys.executable, "-m", "tuner")
STOPPING = "Stopping after this step; what was learned is saved first. Press again to end at once."
STOPPING_EARLY = "Stopping before the training begins; what was read stays. Press again to end at once."
SAVING = "The adapter is being saved, then the run ends by itself. Press again to end at once."
GRACE = 4.0
PATIENCE = 15.0


class LocalLauncher:
    """Engine processes on this machine, each in its own session so that the app's end does not end them."""

    def __init__(self, command: tuple[str, ...] = ENGINE, cwd: Path | None = None) -> None:
        self.command = command
        self.cwd = cwd or Path(__file__).resolve().parent.parent
        self._children: list[subprocess.Popen[bytes]] = []

    def run(self, folder: Path, recipe: str) -> None:
        """Write the recipe into the run folder and start training."""
        path = folder / "recipe.yaml"
        path.write_text(recipe, encoding="utf-8")
        self._start(folder, "run", str(path), "--out", str(folder))

    def resume(self, folder: Path, steps: int = 0) -> None:
        """Go on from the last checkpoint; `steps`: to another end than before."""
        self._start(folder, "resume", str(folder), *(["--steps", str(steps)] if steps else []))

    def could_not(self, folder: Path, why: str) -> None:
        """Note a start that failed before there was a process: the run reads as one that ended at once."""
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(why + "\n")
        write_json(folder / "launched.json", {"pid": 0, "born": 0.0, "at": time.time(), "command": ""})

    def sample(self, folder: Path, request: str) -> None:
        """Draw the pictures of a comparison."""
        path = folder / "request.yaml"
        path.write_text(request, encoding="utf-8")
        self._start(folder, "sample", str(path), "--out", str(folder))

    def export(self, folder: Path, path: Path, options: list[str]) -> None:
        """Write the adapter at `path` for other programs; journal, log and the files lie in `folder`."""
        self._start(folder, "export", str(path), *options, "--out", str(folder / "export"), "--job", str(folder))

    def publish(self, folder: Path, arguments: list[str], token: str = "") -> None:
        """Send to the Hub. A token is handed over in the environment: an argument list can be read by anyone."""
        self._start(folder, *arguments, environment={"HF_TOKEN": token} if token else {})

    def caption(self, folder: Path, path: Path, options: list[str]) -> None:
        """Write captions for the items of `path`; the journal and the log lie in `folder`."""
        self._start(folder, "caption", str(path), *options, "--job", str(folder))

    def mask(self, folder: Path, path: Path, out: Path, options: list[str]) -> None:
        """Make masks of people for the pictures of `path`; the journal and the log lie in `folder`."""
        self._start(folder, "mask", str(path), "--out", str(out), *options, "--job", str(folder))

    def ask(self, folder: Path, request: str) -> None:
        """Leave a request ("stop", "save", "sample") that the run takes at its next step border."""
        control = folder / "control"
        control.mkdir(exist_ok=True)
        (control / request).touch()

    def stop(self, folder: Path, insist: bool | None = None) -> str:
        """First press: ask. Second: end the process group at once. Returns a sentence about what was done.

        insist: which of the two is meant, where that is known: a press in a second browser is no second press.
        """
        process = self.process(folder)
        if process is None:
            return "This run is not running."
        pressed = folder / "control" / f"pressed-{process.pid}"
        if not (pressed.exists() if insist is None else insist):
            self.ask(folder, "stop")
            pressed.touch()
            return STOPPING
        (folder / "control" / f"ended-{process.pid}").touch()
        end(process)
        return "Ended at once. Resume goes on from the last checkpoint."

    def stopping(self, folder: Path) -> bool:
        """Whether stop was pressed for the process that runs now."""
        process = self.process(folder)
        return process is not None and (folder / "control" / f"pressed-{process.pid}").exists()

    def process(self, folder: Path) -> psutil.Process | None:
        """The living process of a folder, found by what it wrote down at its start."""
        self.reap()
        record = launched(folder)
        if record is None or not events.alive(record["pid"], record["born"]):
            return None
        return psutil.Process(record["pid"])

    def once(self, *arguments: str, out: Path) -> subprocess.Popen[bytes]:
        """A short engine command whose output goes into a file; for `check` and `describe`."""
        with out.open("wb") as stdout, out.with_suffix(".log").open("wb") as stderr:
            return subprocess.Popen(
                [*self.command, *arguments], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=self.cwd
            )

    def reap(self) -> None:
        """Collect ended children, so that none stays a zombie."""
        self._children = [child for child in self._children if child.poll() is None]

    def _until_gone(self, folder: Path) -> None:
        """An engine that has said its last word needs a moment to leave; one that works on is an error."""
        end_of_patience = time.monotonic() + PATIENCE
        while self.process(folder) is not None:
            if time.monotonic() > end_of_patience:
                raise RuntimeError(f"{folder.name} is still running.")
            time.sleep(0.1)

    def _start(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self._until_gone(folder)
        for stale in (folder / "control").glob("*"):
            stale.unlink()
        (folder / "control").mkdir(exist_ok=True)
        with (folder / "log.txt").open("ab") as log:
            child = subprocess.Popen(
                [*self.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.cwd,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._children.append(child)
        record = {"pid": child.pid, "born": _birth(child.pid), "at": time.time(), "command": arguments[0]}
        write_json(folder / "launched.json", record)


def launched(folder: Path) -> dict[str, Any] | None:
    """Who runs in this folder: the newest of what the app noted and what the journal says."""
    try:
        record = json.loads((folder / "launched.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if record is not None and events.alive(record["pid"], record["born"]):
        return record
    return reader(folder).refresh().start or record


def end(process: psutil.Process) -> None:
    """Terminate a process with its children; after a grace time, kill."""
    try:
        group = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in group:
        _quietly(member.terminate)
    _, left = psutil.wait_procs(group, timeout=GRACE)
    for member in left:
        _quietly(member.kill)
    psutil.wait_procs(left, timeout=GRACE)


def _quietly(action: Any) -> None:
    try:
        action()
    except psutil.NoSuchProcess:
        return


def _birth(pid: int) -> float:
    try:
        return events.birth(pid)
    except psutil.NoSuchProcess:
        return 0.0
