"""How long a run still takes: what it measured of itself, times what is still to come."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = ("step", "checkpoint", "validation", "sample", "export")
"""What takes time, in the order in which the engine does it after a step."""
BORDERS = (*KINDS, "started", "phase", "hooks")
"""Events between which time is counted; notes and warnings come in the middle of something."""
OUTLIER = 10


class Pace:
    """How long each kind of work took: the time from the event before it to its own.

    The first of a session stands alone: it loads and warms up, so it counts only while it is the only one.
    at: the time of the last event that counts.
    """

    def __init__(self) -> None:
        self._took: dict[str, deque[float]] = {kind: deque(maxlen=50) for kind in KINDS}
        self._first: dict[str, float] = {}
        self._met: set[str] = set()
        self.at = 0.0

    def take(self, event: Mapping[str, Any]) -> None:
        """Read the clock at an event."""
        kind, at = str(event["kind"]), float(event.get("at") or 0.0)
        if kind not in BORDERS:
            return
        if kind == "started":
            self._met.clear()
        elif kind in KINDS and self.at:
            if kind in self._met:
                self._took[kind].append(max(0.0, at - self.at))
            else:
                self._first[kind] = max(0.0, at - self.at)
                self._met.add(kind)
        self.at = at

    def of(self, kind: str) -> float | None:
        """Seconds that one of this kind takes, None before one was done. A machine that slept does not count."""
        took = self._took[kind]
        if not took:
            return self._first.get(kind)
        most = OUTLIER * statistics.median(took)
        return statistics.fmean([s for s in took if s <= most] or took)


@dataclass(frozen=True)
class Estimate:
    """What is still to come. seconds: of all that was measured, None before a step was. unknown: kinds that will come
    and of which none was done yet, so the time is at least `seconds`. counts: how many of each kind come."""

    seconds: float | None
    unknown: tuple[str, ...]
    counts: Mapping[str, int]


def left(
    counts: Mapping[str, int], pace: Pace, elsewhere: Mapping[str, float], following: str, elapsed: float
) -> Estimate:
    """The time that is left.

    elsewhere: what a kind took in earlier runs, for kinds that this one has not done yet. following: the kind that is
    being worked on, for `elapsed` seconds already.
    """
    known = {kind: pace.of(kind) if pace.of(kind) is not None else elsewhere.get(kind) for kind in KINDS}
    coming = [kind for kind in KINDS if counts.get(kind)]
    unknown = tuple(kind for kind in coming if known[kind] is None)
    if "step" in unknown:
        return Estimate(None, unknown, counts)
    total = sum(counts[kind] * (known[kind] or 0.0) for kind in coming)
    return Estimate(max(0.0, total - min(elapsed, known[following] or 0.0)), unknown, counts)


class Agenda:
    """What a recipe makes the engine do besides steps, and how often."""

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        save, validate = recipe.get("save") or {}, recipe.get("validate")
        self.every = {"checkpoint": _every(save, 250)}
        if validate is not None:
            self.every["validation"] = _every(validate, 100)
            if validate.get("prompts"):
                self.every["sample"] = self.every["validation"]

    def counts(self, step: int, of: int, done: Mapping[str, int]) -> dict[str, int]:
        """How many of each kind come after `step` of `of` steps. done: at which step each kind was done last."""
        besides = {kind: _times(every, step, of, _last(kind, done)) for kind, every in self.every.items()}
        return {"step": of - step, **besides, "export": 1}

    def following(self, step: int, of: int, done: Mapping[str, int]) -> str:
        """The kind that is worked on now: what is due at this step and not done yet, else the next step."""
        for kind, every in self.every.items():
            if (step % every == 0 or step == of) and step > _last(kind, done):
                return kind
        return "step" if step < of else "export"


def _times(every: int, step: int, of: int, done: int) -> int:
    """How often something still comes that is done every so many steps and at the last."""
    low = max(done, step - 1)
    return max(0, of // every - low // every) + (of % every != 0 and of > low)


def _last(kind: str, done: Mapping[str, int]) -> int:
    """Before anything was done: nothing is saved at step 0, but samples are drawn there."""
    return done.get(kind, 0 if kind == "checkpoint" else -1)


def _every(spec: Mapping[str, Any], usual: int) -> int:
    every = spec.get("every")
    return every if isinstance(every, int) and every > 0 else usual
