"""An hour of a page that looks once a second at a run that goes on, without the seconds: polling.py HOME TICKS.

Prints as JSON: milliseconds a tick, and the megabytes of this process after the warm-up and at the end.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gradio_app.main import build, tick
from gradio_app.studio import Studio, open_studio
from gradio_app.tabs import dataset
from gradio_app.workspace import Workspace
from tuner import events

WARM = 200


def pretended(studio: Studio, name: str, born: float) -> events.Journal:
    """A run whose process is this one, or of long ago."""
    folder = studio.workspace.new_run(name)
    validate = {"every": 50, "prompts": ["a cat", "a dog"]}
    text = yaml.safe_dump({"name": name, "family": "sd1", "save": {"every": 50}, "validate": validate})
    (folder / "recipe.yaml").write_text(text)
    journal = events.Journal(folder / "events.jsonl")
    journal(
        "started", pid=os.getpid(), born=born, from_step=0, steps=4000, family="sd1", device="CPU", precision="fp32"
    )
    return journal


def learn(journal: events.Journal, step: int) -> None:
    """One more step with all that belongs to it."""
    memory = {"used": 10**9, "peak": 2 * 10**9, "of": 8 * 10**9}
    journal("step", step=step, of=4000, loss=1 / step, lr=1e-4, norm=0.1, seconds=1.0, memory=memory)
    if step % 50 == 0:
        journal("checkpoint", step=step, path=f"checkpoints/step-{step:06d}")
        journal("validation", step=step, loss=1 / step, by_t={"0.5": 0.1})
        journal(
            "sample", step=step, files=[{"prompt": p, "file": f"samples/{step}-{p}.png"} for p in ("a cat", "a dog")]
        )


def resident() -> float:
    """Megabytes."""
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def main(home: Path, ticks: int) -> None:
    """Two pages that look at the same run: one from the beginning, one that is opened anew every hundred seconds."""
    studio = open_studio(Workspace(home), (sys.executable, str(Path(__file__).with_name("fake_engine.py")), "0.01"))
    build(studio)
    for number in range(8):
        pretended(studio, f"old-{number}", born=1.0)("finished", step=4000, seconds=9.0)
    journal = pretended(studio, "live", events.birth(os.getpid()))
    known: dict[str, Any] = {"run": "", "said": "", "nonce": 0.0}
    pages: list[dict[str, Any]] = [{}, {}]
    begun, warm = time.monotonic(), 0.0
    for step in range(1, WARM + ticks + 1):
        if step == WARM + 1:
            begun, warm = time.monotonic(), resident()
        if step % 100 == 0:
            pages[1] = {}
        learn(journal, step)
        for page, seen in enumerate(pages if step % 100 == 0 else pages[:1]):
            pages[page] = tick(studio, known, seen)[0]
        dataset.stamp(studio)
    took = 1000 * (time.monotonic() - begun) / ticks
    print(json.dumps({"ticks": ticks, "ms": round(took, 1), "warm": round(warm, 1), "end": round(resident(), 1)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
