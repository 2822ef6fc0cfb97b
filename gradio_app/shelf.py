"""What can be compared: the base, runs and their checkpoints, and adapter files from elsewhere."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .launcher import LocalLauncher
from .parts.names import safe_stem, unused
from .parts.words import count

HEADER = 100_000_000
NEAR = 0.01
WAITING = "being looked at"
PATIENCE = 120.0
"""Seconds after which nobody is thought to look at a file any more."""


def points(steps: Sequence[int], held: Sequence[tuple[int, float]]) -> list[float | None]:
    """The validation loss of each checkpoint: the last one measured up to its step, none where there is none."""
    return [next((loss for at, loss in sorted(held, reverse=True) if at <= step), None) for step in steps]


def best(steps: Sequence[int], losses: Sequence[float | None]) -> tuple[int | None, str]:
    """The suggested checkpoint and the reason; the earliest whose loss is within 1 % of the lowest."""
    known = sorted((step, loss) for step, loss in zip(steps, losses, strict=True) if loss is not None and loss == loss)
    if len(known) < 2:
        return None, ""
    low = min(loss for _, loss in known)
    step, loss = next((s, v) for s, v in known if v <= low + NEAR * abs(low))
    text = f"Step {step} is suggested: its validation loss, {loss:.3f}, is the lowest"
    if loss > low:
        text = f"Step {step} is suggested: its validation loss, {loss:.3f}, is within 1 % of the lowest, {low:.3f}"
    if step == known[-1][0]:
        return step, f"{text}. It was still falling at the end, so longer training may help."
    after = known[-1][1]
    if after > loss * (1 + 2 * NEAR):
        return step, f"{text}. It rises later: from then on the pictures are learned by heart."
    return step, f"{text}. Later steps are hardly better."


def advice(steps: Sequence[int], losses: Sequence[float | None], held_back: bool) -> tuple[int | None, str]:
    """The suggested checkpoint, if the loss can tell one, and what to say about it; empty for a single checkpoint.

    held_back: whether the loss was measured on items that were not trained on. On trained ones it falls on and on.
    """
    if len(steps) < 2:
        return None, ""
    if all(loss is None or loss != loss for loss in losses):
        return None, "No loss was measured on the way, so no step stands out: compare them by eye."
    if not held_back:
        return None, (
            "No step is suggested: nothing was held back from training, so the loss falls on even when everything is "
            "learned by heart. Compare by eye; next time, give a data set the role validation."
        )
    step, why = best(steps, losses)
    return step, why or "Only one checkpoint has a validation loss, so no step stands out: compare them by eye."


class Foreign:
    """Adapter files from elsewhere, copied into the workspace; the engine says what is in them."""

    def __init__(self, folder: Path, launcher: LocalLauncher | None = None) -> None:
        self.folder, self.launcher = folder, launcher
        self.said = folder / ".inspected"

    def add(self, path: Path, name: str) -> str:
        """Copy a file in and have it looked at; a sentence when it is none."""
        stem, ending = Path(name.replace("\\", "/")).stem, Path(name).suffix.lower()
        name = f"{safe_stem(stem, 'adapter')}.safetensors"
        if ending != ".safetensors":
            return f"{stem}{ending} was not taken: only .safetensors files are; others can hold programs."
        if not sound(path):
            return f"{name} was not taken: it is no whole .safetensors file. Download it again, then add it."
        target = self.folder / unused(name, {p.name for p in self.folder.iterdir()})
        shutil.copyfile(path, target)
        self._ask(target)
        return ""

    def look(self) -> None:
        """Have one file looked at that nobody has looked at yet: somebody put it into the folder by hand, or the app
        was ended meanwhile."""
        waiting = [path for path in self.files() if self.told(path) == WAITING]
        logs = [self.said / f"{path.name}.log" for path in waiting]
        if waiting and all(not log.exists() or time.time() - log.stat().st_mtime > PATIENCE for log in logs):
            self._ask(waiting[0])

    def _ask(self, path: Path) -> None:
        assert self.launcher is not None, "to add files, somebody must look at them"
        self.said.mkdir(parents=True, exist_ok=True)
        self.launcher.once("lora", "inspect", str(path), "--json", out=self.said / f"{path.name}.json")

    def files(self) -> list[Path]:
        """The newest first."""
        found = [p for p in self.folder.glob("*.safetensors") if p.is_file()]
        return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)

    def report(self, path: Path) -> dict[str, Any]:
        """What the engine found in the file; empty while it looks, and when it could not read it."""
        try:
            found = json.loads((self.said / f"{path.name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def told(self, path: Path) -> str:
        """The same in a line."""
        report = self.report(path)
        if not report:
            errors = self.said / f"{path.name}.log"
            lines = errors.read_text(encoding="utf-8", errors="replace").split("\n") if errors.exists() else []
            return next((line for line in reversed(lines) if line.strip()), WAITING)
        kinds = ", ".join(str(kind) for kind in report.get("kinds") or {}) or "adapter"
        ranks = "/".join(str(rank) for rank in list(report.get("ranks") or {})[:3])
        parts = [str(report.get("dialect") or ""), kinds + (f" rank {ranks}" if ranks else "")]
        parts += ["for " + ", ".join(map(str, report["families"][:3]))] if report.get("families") else []
        parts += [count(int(report["layers"]), "layer")] if report.get("layers") else []
        return ", ".join(part for part in parts if part)

    def warnings(self, path: Path) -> list[str]:
        """What a person should look at in this file."""
        return [str(text) for text in self.report(path).get("warnings") or []][:3]


def sound(path: Path) -> bool:
    """Whether the file has the frame of a .safetensors file; its numbers are not read."""
    try:
        with path.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            if not 2 <= size <= min(HEADER, path.stat().st_size - 8):
                return False
            header = json.loads(file.read(size))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError):
        return False
    return bool(ends) and path.stat().st_size == 8 + size + max(ends)
