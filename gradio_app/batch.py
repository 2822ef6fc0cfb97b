"""Jobs over the pictures of a data set (captions, masks): one folder per job, found again after any restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner import events

from .parts.words import count
from .studio import Studio

ENDED = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class Batch:
    """One kind of job. made: one thing that it makes, which is also its event. doing: as people say it."""

    made: str
    doing: str
    loading: str

    def stop(self, studio: Studio, name: str) -> str:
        """Ask the job to end after the picture at hand; pressed again, end it at once."""
        folder = self.newest(studio, name)
        if folder is None or not self.running(studio, name):
            return f"No {self.made}s are being {self.doing}."
        studio.launcher.stop(folder)
        return f"Stopping after this one; {self.made}s {self.doing} so far are kept. Press again to end at once."

    def running(self, studio: Studio, name: str) -> bool:
        """Whether such a job works on this data set now. One that said its last word is over before its process is."""
        folder = self.newest(studio, name)
        if folder is None or studio.launcher.process(folder) is None:
            return False
        found, _ = events.follow(folder / "events.jsonl")
        return all(e["kind"] not in ENDED for e in found)

    def newest(self, studio: Studio, name: str) -> Path | None:
        """The last job of a data set."""
        for folder in sorted(self._jobs(studio).iterdir(), reverse=True):
            try:
                request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if request.get("dataset") == name:
                return folder
        return None

    def state(self, studio: Studio, name: str) -> dict[str, Any]:
        """How far the last job is: state, done, of, text in words; empty when there was none."""
        folder = self.newest(studio, name)
        if folder is None:
            return {}
        found, _ = events.follow(folder / "events.jsonl")
        made = [e for e in found if e["kind"] == self.made]
        phases = [e for e in found if e["kind"] == "phase" and e.get("name") == self.made]
        ended = next((e for e in reversed(found) if e["kind"] in ENDED), None)
        done, of = (phases[-1]["done"], phases[-1]["of"]) if phases else (0, 0)
        told = {"what": self.made, "state": "running", "done": done, "of": of}
        if ended is not None:
            return {**told, "state": ended["kind"], "text": self._ending(ended, len(made), found)}
        if studio.launcher.process(folder) is None:
            text = _last(folder / "log.txt") or f"The {self.made}s broke off."
            return {**told, "state": "failed", "text": f"{text} {count(len(made), self.made)} {self.doing} are kept."}
        over = {str(e.get("item", "")) for e in made}
        told["todo"] = [one for one in self._asked(folder) if one not in over]
        return {**told, "text": f"{done} of {of}: {self.made}s are being {self.doing}" if of else self.loading}

    def _asked(self, folder: Path) -> list[str]:
        """The items that a job was to work on, as it noted itself."""
        try:
            return [str(one) for one in json.loads((folder / "request.json").read_text(encoding="utf-8"))["wanted"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def begin(self, studio: Studio, name: str, start: Callable[[Path], None]) -> None:
        """Start a job in a fresh folder. It becomes the newest only once it runs."""
        taken = [int(p.name.split("-")[0]) for p in self._jobs(studio).iterdir() if p.name.split("-")[0].isdigit()]
        folder = self._jobs(studio) / f"{max(taken, default=0) + 1:06d}-{self.made}s-{name}"
        folder.mkdir()
        start(folder)

    def _ending(self, ended: dict[str, Any], made: int, found: list[dict[str, Any]]) -> str:
        if ended["kind"] == "failed":
            return str(ended.get("error", ""))
        said = [str(e["text"]) for e in found if e["kind"] in ("note", "warning") and e.get("text")]
        text = f"{count(made, self.made)} {self.doing}."
        return " ".join([text, *said[-2:]]) if not made or self.made == "mask" else text

    def _jobs(self, studio: Studio) -> Path:
        folder = studio.workspace.root / "jobs" / f"{self.made}s"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _last(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:400] if lines else ""
