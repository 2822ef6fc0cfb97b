"""Tell how far slow work is, with the time that is left, and not too often. Knows no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

EVERY = 0.5
"""Seconds between two tellings: a journal of a million lines helps nobody."""


def progress(say: Callable[..., Any], name: str) -> Callable[..., None]:
    """A function (done, of, **fields) that tells a phase: now and then, and always the last time."""
    began = time.monotonic()
    last = -EVERY

    def told(done: int, of: int, **fields: Any) -> None:
        nonlocal last
        now = time.monotonic() - began
        if done < of and now - last < EVERY:
            return
        last = now
        say("phase", name=name, done=done, of=of, seconds_left=round(now / max(done, 1) * (of - done), 1), **fields)

    return told
