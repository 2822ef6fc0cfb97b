"""Follows the journal of one run and knows what a screen needs of it. Derived from the disk alone."""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tuner import events

from . import eta, loss
from .history import Steps

PHASES = {
    "prepare": "Prepare",
    "cache pictures": "Read pictures",
    "cache text": "Read captions",
    "load": "Load model",
    "train": "Train",
    "export": "Save adapter",
}
SAME_PHASE = {"cache videos": "cache pictures", "cache sound": "cache pictures"}
"""Phases that stand at the same place of the timeline."""
CHUNK = 250_000
LOOKED_AT = 24
ENDED = "You ended it at once."


@dataclass
class Reader:
    """Everything told so far in one folder; `refresh` reads what is new."""

    folder: Path
    offset: int = 0
    seen: int = 0
    start: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    phase: dict[str, Any] = field(default_factory=dict)
    planned: dict[str, Any] = field(default_factory=dict)
    quantised: list[dict[str, Any]] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    steps: Steps = field(default_factory=Steps)
    validation: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    exports: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    pace: eta.Pace = field(default_factory=eta.Pace)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def refresh(self) -> Reader:
        """Read the new whole lines of the journal."""
        with self.lock:
            journal = self.folder / "events.jsonl"
            size = _size(journal)
            if size < self.offset:
                self.offset = self.seen = 0
                self.pace = eta.Pace()
                self._forget(-1)
            before = -1
            while before < self.offset < size:
                before = self.offset
                found, self.offset = events.follow(journal, before, CHUNK)
                for event in found:
                    self._take(event)
                self.seen += len(found)
        return self

    @property
    def state(self) -> str:
        """new | starting | running | finished | stopped | failed | crashed."""
        record = self._record()
        if record and events.alive(record["pid"], record["born"]):
            ours = self._told_by(record)
            if self.last.get("kind") in events.TERMINAL and ours:
                return str(self.last["kind"])
            return "running" if ours else "starting"
        if self.last.get("kind") in events.TERMINAL and (
            record is None or self._told_by(record) or float(self.last["at"]) > record["at"]
        ):
            return str(self.last["kind"])
        if not self.start:
            return "crashed" if record else "new"
        return "running" if events.alive(self.start["pid"], self.start["born"]) else "crashed"

    def _told_by(self, record: dict[str, Any]) -> bool:
        """Whether the last session in the journal is of the process that the app started last, or of a later one.

        Known by the process itself where it can be: somebody may set the clock between its start and its first word.
        """
        same = self.start.get("pid") == record["pid"] and self.start.get("born") == record["born"]
        return same or float(self.start.get("at", 0.0)) > record["at"]

    @property
    def alive(self) -> bool:
        """Whether its process is there, be it only to leave."""
        known = [e for e in (self._record(), self.start) if e]
        return any(events.alive(e["pid"], e["born"]) for e in known)

    @property
    def step(self) -> int:
        """The last finished step."""
        return self.steps.numbers[-1] if self.steps else int(self.start.get("from_step", 0))

    @property
    def of(self) -> int:
        """All steps of the run."""
        return int(self.start.get("steps", 0))

    def silent(self) -> float:
        """Seconds since a run that works said something; a slow run may be silent for ten of its steps."""
        if self.state != "running":
            return 0.0
        return max(0.0, time.time() - float(self.last.get("at", 0.0)) - 10 * (self.seconds_per_step() or 0.0))

    def seconds_per_step(self) -> float | None:
        """The median of the last steps."""
        recent = self.steps.seconds()
        return statistics.median(recent) if recent else None

    def estimate(self, elsewhere: Mapping[str, float] | None = None, now: float | None = None) -> eta.Estimate:
        """What is still to come at `now`, with samples, validation and saves. elsewhere: what kinds of work took in
        earlier runs, for those that this one has not done yet."""
        agenda = eta.Agenda(self.recipe())
        kept = {"checkpoint": self.checkpoints, "validation": self.validation, "sample": self.samples}
        done = {kind: int(said[-1]["step"]) for kind, said in kept.items() if said}
        following = "export" if self.phase.get("name") == "export" else agenda.following(self.step, self.of, done)
        elapsed = (time.time() if now is None else now) - self.pace.at
        return eta.left(agenda.counts(self.step, self.of, done), self.pace, elsewhere or {}, following, elapsed)

    def remaining(self) -> float | None:
        """Seconds to the end, as far as they can be known; see `estimate`."""
        return self.estimate().seconds

    def recipe(self) -> dict[str, Any]:
        """The recipe of the run, {} where it cannot be read. It is not to be changed."""
        path = self.folder / "recipe.yaml"
        return _yaml(path, *mark(path))

    def held_back(self) -> int:
        """How many items were kept out of training to measure the loss on, as far as the journal or the recipe says.

        Where there are none, the engine measures it on some of those that are trained on.
        """
        if "held" in self.planned:
            return int(self.planned["held"])
        return sum(isinstance(d, dict) and d.get("role") == "validation" for d in self.recipe().get("data") or [])

    def error(self) -> str:
        """What went wrong, in one plain sentence."""
        if self.last.get("kind") == "failed":
            return _without_commands(str(self.last.get("error", "")).split("\n", 1)[0])
        if self.state == "crashed":
            if (self.folder / "control" / f"ended-{(self._record() or self.start).get('pid')}").exists():
                return ENDED
            tail = [line for line in self.log(6) if line.strip() and not line.startswith((" ", "Traceback"))]
            if not self.start and tail:
                return tail[-1]
            return "The training process ended without a word: it was killed, or the memory ran out."
        return ""

    def further_errors(self) -> list[str]:
        """What else was wrong, when the engine listed several things."""
        if self.last.get("kind") != "failed":
            return []
        lines = str(self.last.get("error", "")).split("\n")[1:]
        return [_without_commands(line) for line in lines if line.strip()][:8]

    def log(self, lines: int = 40) -> list[str]:
        """The last lines of log.txt, with what a progress bar overwrote left out."""
        try:
            with (self.folder / "log.txt").open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - 16_000))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return [line.rsplit("\r", 1)[-1][:400] for line in text.rstrip().split("\n")][-lines:]

    def curve(self) -> dict[str, Any]:
        """Points to draw, at most 500 in all series together."""
        raw = self.steps.losses()
        round4 = [[x, round(y, 5)] for x, y in loss.thin(raw, 240)]
        line = [
            [x, round(y, 5), self.steps.rate(int(x))] for x, y in loss.every(loss.smooth(loss.means(raw, 4000)), 180)
        ]
        held = [(int(e["step"]), float(e["loss"])) for e in self.validation if e.get("loss") is not None]
        marks = [{"step": e["step"], "kind": "save", "text": f"saved at step {e['step']:,}"} for e in self.checkpoints]
        looks = sorted({int(e["step"]) for e in self.samples})
        marks += [{"step": n, "kind": "sample", "text": f"samples at step {n:,}"} for n in looks]
        return {
            "raw": round4,
            "line": line,
            "fixed": [list(p) for p in loss.every(held, 80)],
            "marks": [*loss.every(marks, 80), *self.changes[-20:]],
            "of": self.of,
            "held": self.held_back() > 0,
        }

    def matrix(self) -> dict[str, Any]:
        """Samples: one row per prompt, one column per step, the first column before training."""
        steps = sorted({int(e["step"]) for e in self.samples})
        rows: dict[str, dict[int, dict[str, Any]]] = {}
        for event in self.samples:
            for made in event["files"]:
                cell = {"file": str(self.folder / made["file"]), "seed": made.get("seed")}
                name = " · ".join(str(made[k]) for k in ("prompt", "sweep") if made.get(k))
                rows.setdefault(name, {})[int(event["step"])] = cell
        return {"steps": steps, "rows": [{"prompt": p, "cells": [c.get(s) for s in steps]} for p, c in rows.items()]}

    def adapter(self) -> Path | None:
        """The exported adapter in diffusers layout, when there is one."""
        files = sorted((self.folder / "export" / "diffusers").glob("*.safetensors"))
        return files[0] if files else None

    def _record(self) -> dict[str, Any] | None:
        path = self.folder / "launched.json"
        return _json(path, *mark(path))

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        self.last = event
        self.pace.take(event)
        if kind == "started":
            self._forget(int(event.get("from_step", 0)))
            self.start, self.phase, self.phases = event, {}, []
            self.planned = {}
            for kept in (self.warnings, self.notes, self.quantised):
                kept.clear()
            if self.step:
                self.changes.append({"step": self.step, "kind": "change", "text": f"went on from step {self.step}"})
        elif kind == "extended":
            text = f"extended to step {int(event['steps']):,}"
            self.changes.append({"step": self.step, "kind": "change", "text": text})
        elif kind == "phase":
            name = str(event["name"])
            self.phase = {**event, "name": SAME_PHASE.get(name, name)}
            self._enter(self.phase["name"])
        else:
            if kind in ("step", "sample", "validation") and self.phase.get("name") != "export":
                self._enter("train")
            if kind == "step":
                self.steps.take(event)
            elif kind == "planned":
                self.planned = event
            kept = {
                "validation": self.validation,
                "sample": self.samples,
                "checkpoint": self.checkpoints,
                "export": self.exports,
                "quantised": self.quantised,
                "warning": self.warnings,
                "note": self.notes,
            }.get(kind)
            if kept is not None:
                kept.append(event)

    def _enter(self, phase: str) -> None:
        """Steps and samples belong to training, also where the engine does not say so."""
        if self.phase.get("name") != phase:
            self.phase = {"name": phase}
        if phase not in self.phases:
            self.phases.append(phase)

    def _forget(self, step: int) -> None:
        """What an earlier session did after the step from which this one goes on does not count any more."""
        self.steps.forget(step)
        self.exports.clear()
        for kept in (self.validation, self.samples, self.checkpoints, self.changes):
            kept[:] = [e for e in kept if e["step"] <= step]


def _without_commands(text: str) -> str:
    """What the engine says, without what is to be typed into a terminal: the page has buttons for it."""
    text = re.sub(r",?\sthen\s(go\son\swith\s)?`python\s-m\stuner[^`]*`", "", text)
    return re.sub(r";\s`python\s-m\stuner[^`]*`[^.]*", "", text)


def mark(path: Path) -> tuple[int, int]:
    """Changes when a file does; (0, -1) for one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return 0, -1
    return found.st_mtime_ns, found.st_size


def _size(path: Path) -> int:
    return max(0, mark(path)[1])


@lru_cache(maxsize=128)
def _yaml(path: Path, changed: int, size: int) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        return {}


@lru_cache(maxsize=256)
def _json(path: Path, changed: int, size: int) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=128)
def reader(folder: Path) -> Reader:
    """One reader per folder for all browsers; call `refresh` on it."""
    return Reader(folder)


def newest_running(folders: list[Path]) -> Path | None:
    """The first of these runs that is alive. The journals of old ones are read only where a process is known."""
    for number, folder in enumerate(folders):
        looked_at = number < LOOKED_AT or launched(folder)
        if looked_at and reader(folder).refresh().state in ("running", "starting"):
            return folder
    return None


def launched(folder: Path) -> bool:
    """Whether the process that the app started in a folder is there; one look at a small file."""
    path = folder / "launched.json"
    record = _json(path, *mark(path))
    return bool(record) and events.alive(record["pid"], record["born"])
