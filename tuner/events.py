"""The run's journal: append-only JSON lines, one writer, any number of readers, no lock. Knows no torch."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

VERSION = 1
SINCE_1970 = 1e9
"""Births above this were taken from the clock: by other systems, and by journals from before."""
TERMINAL = ("finished", "stopped", "failed")


class Journal:
    """Writes `events.jsonl`. A torn last line (the process was killed while writing) is closed off first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        self._file = path.open("a", encoding="utf-8", buffering=1)
        if torn:
            self._file.write("\n")

    def __call__(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append one event and return it. `kind` is one of the names in the README's list of events."""
        event = {"at": round(time.time(), 3), "kind": kind, **fields}
        self._file.write(json.dumps(event, ensure_ascii=False) + "\n")
        return event

    def close(self) -> None:
        """Flush to the disk, then close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def follow(path: Path, offset: int = 0, most: int = -1) -> tuple[list[dict[str, Any]], int]:
    """Whole events after the byte `offset`, and the new offset. A torn last line waits for its end.

    most: look at about so many bytes only; a longer line is read to its end.

    A line that is not JSON (torn by a kill, then closed off) is returned as a `warning` event, never dropped.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(most)
            if most >= 0 and b"\n" not in data:
                data += file.readline()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return [_event(line) for line in data[:end].splitlines() if line.strip()], offset + end


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, UnicodeDecodeError):
        event = None
    if isinstance(event, dict) and "kind" in event:
        return event
    text = f"One line of the journal was torn and could not be read: {line[:60]!r}."
    return {"at": 0.0, "kind": "warning", "where": "events.jsonl", "text": text}


@dataclass(frozen=True)
class Status:
    """Where a run stands, derived from its folder alone."""

    state: Literal["new", "running", "finished", "stopped", "failed", "crashed"]
    step: int = 0
    of: int = 0
    phase: str = ""
    error: str = ""
    last: dict[str, Any] = field(default_factory=dict)


def status(folder: Path) -> Status:
    """Read the journal of a run folder: the last session's end, else whether its process still lives."""
    events, _ = follow(folder / "events.jsonl")
    starts = [i for i, e in enumerate(events) if e["kind"] == "started"]
    session = events[starts[-1] :] if starts else events
    if not session or (not starts and session[-1]["kind"] not in TERMINAL):
        return Status("new")
    start, last = session[0], session[-1]
    steps = [e for e in session if e["kind"] == "step"]
    phases = [e for e in session if e["kind"] == "phase"]
    step = steps[-1]["step"] if steps else start.get("from_step", 0)
    common = dict(step=step, of=start.get("steps", 0), phase=phases[-1]["name"] if phases else "", last=last)
    if last["kind"] in TERMINAL:
        return Status(last["kind"], error=last.get("error", ""), **common)
    if alive(start["pid"], start["born"]):
        return Status("running", **common)
    error = "The training process ended without a word (killed, or out of memory); log.txt has its last lines."
    return Status("crashed", error=error, **common)


def birth(pid: int) -> float:
    """When a process was born, so that a reused pid is not taken for ours: seconds since the machine started.

    Where the system does not tell that, seconds since 1970. Those move when somebody sets the clock.
    """
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return psutil.Process(pid).create_time()
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def alive(pid: int, born: float) -> bool:
    """Whether that very process still runs (a zombie does not)."""
    try:
        process = psutil.Process(pid)
        by_clock = born > SINCE_1970
        now = process.create_time() if by_clock else birth(pid)
        return abs(now - born) < (1.0 if by_clock else 0.02) and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False
