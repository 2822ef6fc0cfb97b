"""What a command prints: a progress bar on a terminal, else the journal's events as JSON lines."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

from tqdm import tqdm


class Console:
    """Shows events. On a terminal phases and steps are bars with ETA, other events one line each."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.bar: tqdm | None = None
        self.name = ""

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        if not self.terminal:
            sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            return
        kind = event["kind"]
        if kind == "phase" and event["name"] != "train":
            self._advance(event["name"], event.get("done", 0), event.get("of", 0), "")
        elif kind == "step":
            self._advance("train", event["step"], event["of"], f"loss {event['loss']:.4f}")
        elif text := sentence(event):
            tqdm.write(text)

    def _advance(self, name: str, done: int, of: int, note: str) -> None:
        if name != self.name or (self.bar is not None and done < self.bar.n):
            self.close()
            self.name = name
            width = shutil.get_terminal_size((100, 24)).columns
            self.bar = tqdm(total=of or None, desc=name, ncols=width) if of else None
            # after a resume the earlier steps are not this session's speed
            if self.bar is not None and name == "train" and done > 1:
                self.bar.initial = self.bar.n = done - 1
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """End the current bar."""
        if self.bar is not None:
            self.bar.close()
        self.bar = None


def sentence(event: dict[str, Any]) -> str:
    """One plain line for an event, "" for those that need none."""
    kind = event["kind"]
    if kind == "started":
        return _started(event)
    if kind in ("warning", "note"):
        return f"{kind.capitalize()}: {event['text']}"
    if kind in ("cache", "quantised", "extended", "refused"):
        return event["text"]
    if kind == "validation":
        return f"Fixed-noise loss at step {event['step']}: {event['loss']:.4f}"
    if kind == "sample" and event.get("files"):
        return f"Samples of step {event['step']}: {len(event['files'])} pictures in {event['folder']}"
    if kind == "export":
        return "\n".join(map(_written, event.get("files") or [event]))
    if kind == "stopped" and "step" not in event:
        return f"Stopped: {event['folder']}"
    if kind == "stopped":
        way = f"Go on with `python -m tuner resume {event['folder']}`."
        return f"Stopped at step {event['step']}; everything is saved. {way}"
    if kind == "finished":
        return f"Finished in {event['seconds']:.0f} s: {event['folder']}"
    return ""


def _started(event: dict[str, Any]) -> str:
    """What trains or draws, and on what; jobs without a model only have a name, which their user just typed."""
    if "family" not in event:
        return ""
    verb = f"goes on at step {event['from_step']}" if event.get("from_step") else "starts"
    return f"{event['name']} {verb}: {event['family']} on {event['device']}, {event['precision']}."


def _written(file: dict[str, Any]) -> str:
    """One exported file: where it loads, or what is wrong with it."""
    if problems := file.get("problems"):
        return f"Exported {file['path']}, but it does NOT load as it was trained: {'; '.join(problems)}"
    readers = ", ".join(file.get("loads_in", ()))
    checked = "opened again and compared: equal"
    return f"Exported {file['path']} ({f'loads in {readers}; ' if readers else ''}{checked})"
