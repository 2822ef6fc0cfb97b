"""What the Train page reads from a journal: time left, steps in columns. No process, no browser."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from gradio_app.parts import facts, gpu
from gradio_app.parts.eta import Agenda
from gradio_app.parts.reader import Reader
from gradio_app.parts.widget import ticket
from gradio_app.parts.words import to_the_minute
from gradio_app.studio import Studio
from gradio_app.tabs import train
from gradio_app.workspace import write_json
from tuner.events import alive, birth

TOOK = {"step": 2.0, "checkpoint": 3.0, "validation": 5.0, "sample": 20.0, "export": 8.0}
RECIPE = {"save": {"every": 7}, "validate": {"every": 10, "prompts": ["a cat"]}}


def run(steps: int, first: int = 0, begun: float = 1000.0) -> Iterator[dict[str, Any]]:
    """What the engine writes, in its order, with work of known lengths; samples of step 0 load their decoder first."""
    at = begun

    def said(kind: str, wait: float = 0.0, **more: Any) -> dict[str, Any]:
        nonlocal at
        at += wait
        return {"at": at, "kind": kind, **more}

    def looked(step: int, more: float = 0.0) -> Iterator[dict[str, Any]]:
        yield said("validation", TOOK["validation"], step=step, loss=0.5)
        yield said("sample", TOOK["sample"] + more, step=step, files=[])

    yield said("started", pid=0, born=0.0, from_step=first, steps=steps, family="sd1")
    yield said("phase", 40.0, name="load", done=0, of=0)
    yield said("hooks", 10.0)
    if first == 0:
        yield from looked(0, more=30.0)
    yield said("phase", name="train", done=first, of=steps)
    for step in range(first + 1, steps + 1):
        yield said("step", TOOK["step"], step=step, of=steps, loss=1 / step, lr=1e-4, seconds=TOOK["step"])
        if step % 7 == 0 or step == steps:
            yield said("checkpoint", TOOK["checkpoint"], step=step, path="x")
        if step % 10 == 0 or step == steps:
            yield said("note", 1.0, text="in the middle of a validation")
            at -= 1.0
            yield from looked(step)
    yield said("phase", name="export", done=0, of=0)
    yield said("export", TOOK["export"], path="x", verified=True)
    yield said("finished", step=steps)


def told(folder: Path, events: list[dict[str, Any]], recipe: dict[str, Any] | None = None) -> Reader:
    """A reader of a folder with these events."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE if recipe is None else recipe))
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return Reader(folder).refresh()


def test_the_time_left_is_exact_at_every_moment(tmp_path: Path) -> None:
    """Once each kind of work was seen twice, what is said at any event is what really follows, to the millisecond."""
    events = list(run(53))
    end, checked = events[-1]["at"], 0
    for number, event in enumerate(events):
        if event["kind"] not in ("step", "checkpoint", "validation", "sample") or event["step"] < 21:
            continue
        seen = told(tmp_path / "run", events[: number + 1])
        for later in (0.0, 1.5):
            ahead = seen.estimate({"export": TOOK["export"]}, now=event["at"] + later)
            assert ahead.unknown == () and ahead.seconds == pytest.approx(end - event["at"] - later), event
        checked += 1
    assert checked > 40


def test_what_was_not_measured_is_not_guessed(tmp_path: Path) -> None:
    events = list(run(53))
    kinds = [e["kind"] for e in events]
    before = told(tmp_path / "run", events[: kinds.index("step")]).estimate(now=0.0)
    assert before.seconds is None and "step" in before.unknown
    seen = told(tmp_path / "run", events[: kinds.index("step") + 1])
    ahead = seen.estimate(now=events[kinds.index("step")]["at"])
    assert ahead.unknown == ("checkpoint", "export")
    assert ahead.counts == {"step": 52, "checkpoint": 8, "validation": 6, "sample": 6, "export": 1}
    only_first_samples = 52 * 2 + 6 * 5 + 6 * 50
    assert ahead.seconds == only_first_samples
    known = seen.estimate({"checkpoint": 3.0, "export": 8.0}, now=seen.pace.at)
    assert known.unknown == () and known.seconds == only_first_samples + 8 * 3 + 8


def test_a_resumed_run_knows_its_pace_and_a_late_one_stays_at_what_follows(tmp_path: Path) -> None:
    """A session that was killed long ago does not count as time that something took."""
    first = [e for e in run(53) if e.get("step", 0) <= 35 and e["kind"] not in ("export", "finished")]
    again = list(run(53, first=35, begun=900_000.0))
    at = next(i for i, e in enumerate(again) if e["kind"] == "step")
    seen = told(tmp_path / "run", [*first[:-1], *again[: at + 1]])
    left = again[-1]["at"] - again[at]["at"]
    assert seen.estimate({"export": 8.0}, now=again[at]["at"]).seconds == pytest.approx(left)
    late = seen.estimate({"export": 8.0}, now=again[at]["at"] + 1000.0).seconds
    assert late == pytest.approx(left - TOOK["step"]), "work that takes longer than ever does not eat up the rest"


def test_runs_without_samples_or_validation(tmp_path: Path) -> None:
    assert Agenda({"validate": None}).counts(0, 100, {}) == {"step": 100, "checkpoint": 1, "export": 1}
    quiet = Agenda({"save": {"every": 30}, "validate": {"every": 50, "prompts": []}})
    assert quiet.counts(50, 100, {"checkpoint": 30}) == {"step": 50, "checkpoint": 3, "validation": 2, "export": 1}
    assert quiet.following(50, 100, {"checkpoint": 30}) == "validation"
    assert quiet.following(100, 100, {"checkpoint": 100, "validation": 100}) == "export"
    assert [to_the_minute(s) for s in (40, 600, 7380, 7200)] == ["40 s", "10 min", "2 h 3 min", "2 h"]


def test_a_long_run_is_read_in_little_memory(tmp_path: Path) -> None:
    """A journal of 10 MB takes a few megabytes, while it is read and afterwards; a step forgets what came after it."""
    line = (
        '{"at": %d, "kind": "step", "step": %d, "of": 50000, "seconds": 0.5, "loss": 0.25, "lr": 0.0001, "x": "%s"}\n'
    )
    with (tmp_path / "events.jsonl").open("w") as file:
        file.writelines(line % (i, i, "y" * 90) for i in range(1, 50_001))
    tracemalloc.start()
    seen = Reader(tmp_path).refresh()
    kept, most = (value / 1e6 for value in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    print(
        f"a journal of {(tmp_path / 'events.jsonl').stat().st_size / 1e6:.0f} MB: {kept:.1f} MB kept, {most:.1f} most"
    )
    assert seen.step == len(seen.steps) == 50_000 and kept < 3 and most < 8
    assert len(seen.curve()["line"]) <= 180 and seen.steps.rate(7) == 0.0001
    seen.steps.forget(100)
    assert len(seen.steps) == 100 and seen.steps.last["step"] == 100


def test_each_group_has_its_learning_rate_and_the_base_says_how_it_is_held(studio: Studio) -> None:
    """Rates of text encoders beside the denoiser's; the chosen quantisation with its reason; a bar only once told."""
    folder = studio.workspace.new_run("one")
    events = list(run(20))[:14]
    steps = [e for e in events if e["kind"] == "step"]
    steps[-1] |= {"lr_text": 5e-6}
    reason = "auto: nf4 is the smallest that trains well, and 11.2 GB are free."
    events.insert(2, {"at": 1001.0, "kind": "quantised", "part": "transformer", "text": reason})
    told(folder, events)
    shown = train.view(studio, folder.name)
    facts = dict(shown["facts"])
    assert facts["Learning rate, denoiser"] == "0.0001" and facts["Learning rate, text"] == "5e-06"
    assert reason in shown["notes"] and shown["band"]["memory"] == {} and shown["exports"] == []


def test_a_run_is_found_however_many_came_after_it(studio: Studio) -> None:
    """Forty newer folders hide neither the run that trains nor those that wait."""
    old = studio.workspace.new_run("old")
    (old / "recipe.yaml").write_text("name: old")
    me = {"pid": os.getpid(), "born": birth(os.getpid()), "at": 100.0}
    write_json(old / "launched.json", me)
    (old / "events.jsonl").write_text(json.dumps({**me, "at": 101.0, "kind": "started", "steps": 5}) + "\n")
    os.utime(old / "events.jsonl", (101, 101))
    for number in range(40):
        new = studio.workspace.new_run(f"new-{number}")
        (new / "recipe.yaml").write_text("name: new")
        assert not studio.queue.add(new.name, "run"), "it waits"
    assert studio.workspace.run_names()[-1] == old.name
    running = studio.running()
    assert running is not None and running.folder == old and studio.queue.busy()
    assert len(studio.queue.waiting()) == 40 and studio.queue.place(studio.queue.waiting()[-1]["run"]) == 40
    (old / "launched.json").write_text("{}")
    assert studio.running() is None


@pytest.mark.parametrize(
    ("role", "held", "name"), [("validation", True, "Validation loss"), ("train", False, "Fixed-")]
)
def test_the_fixed_loss_is_called_what_it_is(studio: Studio, role: str, held: bool, name: str) -> None:
    """Only what was not trained on validates: by the plan, else by the recipe."""
    folder = studio.workspace.new_run("one")
    recipe = {**RECIPE, "family": "ltx", "data": [{"path": "/p"}, {"path": "/q", "role": role}]}
    events = list(run(20))
    seen = told(folder, events, recipe)
    assert seen.curve()["held"] is held and facts.fixed_loss(seen)[0][0].startswith(name)
    events.insert(
        1, {"at": 1000.5, "kind": "planned", "items": 8, "left_out": 0, "held": 0 if held else 3, "per_epoch": 4}
    )
    seen = told(folder, events, recipe)
    assert seen.curve()["held"] is not held, "the plan knows better than the recipe"
    assert dict(facts.told(seen, "video", None))["Epoch"] == "5.0 of 5.0"


def test_a_run_on_clips_has_its_phase(tmp_path: Path) -> None:
    """The engine calls it `cache videos`; it has the same place on the timeline as pictures."""
    events = [next(run(9)), {"at": 1002.0, "kind": "phase", "name": "cache videos", "done": 3, "of": 12}]
    seen = told(tmp_path / "run", events)
    shown = train._phases(seen, "running", train._titles("video"))
    assert [p["title"] for p in shown if p["state"] == "now"] == ["Read clips"] and shown[1]["percent"] == 25
    assert train._phase_words(seen, None, train._titles("video"))["headline"] == "Read clips, 3 of 12"


def test_a_set_clock_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour forth or back: a process is known by its age since the machine started."""
    me = {"pid": os.getpid(), "born": birth(os.getpid())}
    assert alive(**me) and not alive(me["pid"], me["born"] + 0.05)
    for jump in (3600.0, -3600.0):
        real = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self, real=real, jump=jump: real(self) + jump)
        assert alive(**me)
        monkeypatch.undo()
        (tmp_path / "launched.json").write_text(json.dumps({**me, "at": 10_000.0}))
        start = {**me, "at": 10_000.0 + jump, "kind": "started", "steps": 5, "from_step": 0}
        assert told(tmp_path, [start]).state == "running"
        assert told(tmp_path, [start, {"at": start["at"], "kind": "stopped"}]).state == "stopped"
        (tmp_path / "launched.json").unlink()


def test_views_made_after_the_clock_was_set_back_are_still_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ticket()
    monkeypatch.setattr("time.time", lambda: 1.0)
    assert before < ticket() < ticket()


def test_the_machine_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card's temperature by its driver's tool, the disk beside the next save."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '62, 239.61, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu.look() == "62 °C, 240 W"
    events = [e for e in run(20) if e.get("step", 0) <= 8 and e["kind"] not in ("export", "finished")]
    folder = tmp_path / "run"
    seen = told(folder, [{**e, "path": "checkpoints/step-7"} if e["kind"] == "checkpoint" else e for e in events])
    saved = folder / "checkpoints" / "step-7"
    saved.mkdir(parents=True)
    (saved / "x").write_bytes(b"x" * 500)
    rows = dict(facts.told(seen, "image", psutil.Process()))
    assert rows["A save takes"] == "500 bytes" and rows["Main memory"].endswith("B") and rows["Free disk"]
    assert facts.little_room(seen) == ""
    monkeypatch.setattr(facts.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9000, 8000, 1000))
    assert facts.little_room(seen) == "The disk has 1.0 kB left, and a save takes 500 bytes: free some space soon."
