"""Runs as folders: start, follow, stop, crash, kill, resume, and an app that comes back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from gradio_app.forms import get
from gradio_app.launcher import LocalLauncher
from gradio_app.main import SCREENS, begin, pick_run, tick
from gradio_app.parts import remedies
from gradio_app.parts.checks import Checker
from gradio_app.parts.loss import every, smooth, thin
from gradio_app.parts.reader import Reader, reader
from gradio_app.project import put
from gradio_app.queue import Queue
from gradio_app.studio import Studio
from gradio_app.tabs import compare, recipe, train
from tests.app.helpers import FAKE, until
from tuner import events
from tuner import recipe as recipes


def started(studio: Studio, steps: int = 30, name: str = "try") -> Path:
    """A run of the demo recipe with so many steps."""
    studio.project.draft()
    studio.project.update({"train.steps": steps, "name": name, "validate.every": 10})
    run, obstacle = begin(studio)
    assert not obstacle
    return studio.workspace.runs / run


def test_start_follow_finish(studio: Studio) -> None:
    folder = started(studio)
    assert (folder / "recipe.yaml").exists()
    until(lambda: reader(folder).refresh().state == "finished")
    shown = train.view(studio, folder.name)
    assert shown["band"]["headline"].startswith("Done: 30 steps")
    assert shown["matrix"]["steps"] == [0, 10, 20, 30]
    assert len(shown["matrix"]["rows"]) == 4
    assert len(shown["curve"]["raw"]) == 30
    assert [(e["format"], e["loads_in"]) for e in shown["exports"]] == [("diffusers", ["diffusers"]), ("ComfyUI", [])]
    assert "2 keys are unknown" in shown["exports"][1]["problems"][0] and Path(shown["exports"][1]["file"]).is_file()
    assert shown["band"]["memory"]["peak"] == 42.5 and "at most 3.4 GB" in shown["band"]["memory"]["text"]
    facts = dict(shown["facts"])
    assert facts["Pictures"] == "24" and facts["Skipped"] == "2" and facts["Epoch"] == "10.0 of 10.0"
    assert facts["Learning rate"] == "0.0001" and "Gradient norm" in facts
    assert {"at noise 0.1", "at noise 0.9", "Fixed-noise loss"} <= set(facts)
    assert facts["Measured on"] == "what is trained" and shown["curve"]["held"] is False
    assert [m["kind"] for m in shown["curve"]["marks"]].count("sample") == 4
    assert shown["download"].endswith(".safetensors")
    assert train.next_step(studio, folder.name) == {"text": "Compare", "on": True, "do": "compare"}


def test_stop_saves_and_resume_goes_on(studio: Studio) -> None:
    folder = started(studio, 400)
    until(lambda: reader(folder).refresh().step > 5)
    assert "Press again" in train.act(studio, folder.name, "stop")
    until(lambda: reader(folder).refresh().state == "stopped")
    at = reader(folder).step
    assert train.view(studio, folder.name)["buttons"][0]["do"] == "resume"
    train.act(studio, folder.name, "resume")
    until(lambda: reader(folder).refresh().step > at)
    assert reader(folder).start["from_step"] == at
    train.act(studio, folder.name, "stop")
    train.act(studio, folder.name, "end")
    until(lambda: reader(folder).refresh().state in ("stopped", "crashed"))


def test_a_stop_before_the_training_says_so(studio: Studio) -> None:
    studio.launcher.command = (*studio.launcher.command[:-1], "0.05")
    folder = started(studio, 400)
    until(lambda: reader(folder).refresh().state == "running")
    live = train.view(studio, folder.name)["buttons"]
    assert [b["off"] for b in live] == [False, True, True], "nothing can be saved or drawn yet"
    assert "before the training begins" in train.act(studio, folder.name, "stop")
    until(lambda: reader(folder).refresh().state == "stopped" and not reader(folder).alive)
    shown = train.view(studio, folder.name)
    assert shown["band"]["headline"] == "Stopped before the training began" and not reader(folder).steps
    assert [b["text"] for b in shown["buttons"]] == ["Try again"]


def test_second_press_ends_a_run_that_does_not_listen(studio: Studio) -> None:
    folder = started(studio, 4000, "deaf")
    until(lambda: reader(folder).refresh().step > 2)
    process = studio.launcher.process(folder)
    assert process is not None
    train.act(studio, folder.name, "stop")
    assert studio.launcher.stopping(folder)
    assert train.view(studio, folder.name)["buttons"][0]["text"] == "End at once"
    assert "Press again" in train.act(studio, folder.name, "stop"), "a second browser that still says Stop and save"
    assert "Ended at once" in train.act(studio, folder.name, "end")
    assert not process.is_running() or process.status() == "zombie"
    assert reader(folder).refresh().state == "crashed"
    assert train.view(studio, folder.name)["band"]["headline"] == "You ended it at once."


def test_kill_is_seen_as_a_crash_and_a_new_app_finds_a_run(studio: Studio) -> None:
    folder = started(studio, 4000)
    until(lambda: reader(folder).refresh().step > 2)
    again = Studio(studio.workspace, LocalLauncher(studio.launcher.command), *_rest(studio))
    assert pick_run(again, "") == folder.name
    assert Reader(folder).refresh().state == "running"
    process = again.launcher.process(folder)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: Reader(folder).refresh().state == "crashed")


def test_an_engine_that_does_not_start_is_a_crash_with_its_last_words(studio: Studio, tmp_path: Path) -> None:
    launcher = LocalLauncher((sys.executable, "-c", "raise SystemExit('No module named torch; install it.')"))
    folder = studio.workspace.new_run("x")
    launcher.run(folder, "name: x\n")
    until(lambda: reader(folder).refresh().state == "crashed")
    assert reader(folder).error() == "No module named torch; install it."


def test_a_second_run_waits_and_begins_by_itself(studio: Studio) -> None:
    """A failing run between two others does not stop the queue; the order can be changed; a new app goes on."""
    first = started(studio, 600)  # long enough for three checks on a busy machine
    broken, other, last = started(studio, 5, "breaks"), started(studio, 5, "other"), started(studio, 5, "last")
    assert [e["run"] for e in studio.queue.waiting()] == [broken.name, other.name, last.name]
    assert train.view(studio, broken.name)["band"]["headline"] == "Waiting in the queue"
    studio.queue.move(last.name, -1)
    studio.queue.remove(other.name)
    assert [e["run"] for e in studio.queue.waiting()] == [broken.name, last.name]
    assert studio.queue.pump() == "" and reader(first).refresh().state in ("starting", "running")
    again = Queue(studio.workspace, LocalLauncher(studio.launcher.command))
    until(lambda: (again.pump(), reader(last).refresh().state == "finished")[1])
    assert reader(broken).refresh().state == "failed" and reader(first).refresh().state == "finished"
    assert reader(broken).start["at"] >= reader(first).last["at"]
    assert reader(other).refresh().state == "new" and again.waiting() == []
    train.act(studio, other.name, "start")
    until(lambda: (again.pump(), reader(other).refresh().state == "finished")[1])


def test_two_apps_start_a_waiting_run_once(studio: Studio) -> None:
    """Many pumps at the same time over one workspace: one process."""
    folder = studio.workspace.new_run("once")
    (folder / "recipe.yaml").write_text(studio.project.yaml(studio.project.draft()))
    (studio.workspace.root / "queue.json").write_text(f'[{{"run": "{folder.name}", "do": "run"}}]')
    apps = [Queue(studio.workspace, LocalLauncher(studio.launcher.command)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        begun = [name for name in pool.map(lambda app: app.pump(), apps) if name]
    assert begun == [folder.name]
    train.act(studio, folder.name, "stop")
    train.act(studio, folder.name, "stop")


def test_an_engine_that_is_not_there_does_not_stop_the_queue(studio: Studio) -> None:
    studio.launcher.command = ("/does/not/exist",)
    folder = studio.workspace.new_run("x")
    (folder / "recipe.yaml").write_text("name: x\n")
    assert studio.queue.add(folder.name, "run")
    assert reader(folder).refresh().state == "crashed" and "could not be started" in reader(folder).error()


def test_a_finished_run_is_extended(studio: Studio) -> None:
    studio.project.update({"train.schedule": "constant"})
    folder = started(studio, 6)
    until(lambda: reader(folder).refresh().state == "finished")
    before = (folder / "recipe.yaml").read_bytes()
    assert train.view(studio, folder.name)["extend"] == {"of": 6, "steps": 3, "why": "", "how": "extend"}
    assert "number of further steps" in train.extend(studio, folder.name, "many")
    assert train.extend(studio, folder.name, 4) == "Going on to step 10."
    until(lambda: reader(folder).refresh().state == "finished" and reader(folder).step == 10)
    assert (folder / "recipe.yaml").read_bytes() == before and reader(folder).of == 10
    (folder / "recipe.yaml").write_text(before.decode().replace("schedule: constant", "schedule: cosine"))
    said = train.extend(studio, folder.name, 4)  # a schedule that has ended: a new run from this adapter
    new = studio.workspace.run(said.removeprefix(train.NEW_RUN))
    assert new is not None and new != folder
    raw = recipes.load(new / "recipe.yaml")
    assert raw.train.steps == 4 and raw.adapter.start == str(folder)
    until(lambda: (studio.queue.pump(), reader(new).refresh().state == "finished")[1])


def test_what_helps_after_a_failure() -> None:
    memory = "Memory ran out. Lower train.batch or media.resolutions, or set memory.checkpointing=true; the last ..."
    raw = {"train": {"batch": 4, "accumulate": 1, "lr": 1e-4}, "media": {"resolutions": [1024]}, "adapter": {}}
    ways = {r["key"]: r["changes"] for r in remedies.found(memory, raw)}
    assert ways == {
        "checkpointing": {"memory.checkpointing": True},
        "batch": {"train.batch": 2, "train.accumulate": 2},
        "quantise": {"memory.quantise": "int8"},
    }
    done = {**raw, "memory": {"checkpointing": True, "quantise": "nf4"}, "train": {"batch": 1}}
    assert [r["changes"] for r in remedies.found(memory, done)] == [{"media.resolutions": [768]}]
    least = {**done, "media": {}}
    assert [r["key"] for r in remedies.found(memory, least)] == ["resume", "recipe"], "there is always a way on"
    nan = remedies.found("The loss became nan at step 3 (items a); lower train.lr", raw)
    assert [r["changes"] for r in nan] == [{"train.lr": 3e-5}, {"train.precision": "fp32"}]
    killed = "The training process ended without a word: it was killed, or the memory ran out."
    assert remedies.found(killed, raw, 50)[0]["key"] == "resume"
    for way in [*remedies.found(memory, raw), *nan]:  # every change is one that the engine takes
        recipe_of = {"family": "sd1", "source": "x", "name": "n", "data": [{"path": "/p"}]}
        for key, value in way["changes"].items():
            put(recipe_of, key, value)
        recipes.parse(recipe_of)


CLASSES = {
    "breaks": ["skip", "recipe"],
    "memory": ["checkpointing", "batch", "quantise"],
    "diverges": ["lr"],
    "size": ["offered", "recipe"],
    "gone": ["dataset", "resume", "recipe"],
    "model": ["recipe", "resume"],
    "full": ["resume", "space"],
    "hub": ["resume", "recipe"],
    "cache": ["resume", "recipe"],
    "ours": ["resume", "recipe"],
    "dies": ["resume", "checkpointing", "batch"],
}
"""Everything that ends a run, as the fake engine does it by the recipe's name, and the buttons that there are."""


@pytest.mark.long
@pytest.mark.parametrize("phase", ["cache pictures", "load", "train"])
def test_killed_in_any_phase_it_goes_on(studio: Studio, phase: str) -> None:
    """An app that comes back finds the run as it is; the run, killed too, has a button with which it ends well."""
    studio.launcher.command = (*studio.launcher.command[:-1], "0.05")
    folder = started(studio, 60)
    until(lambda: reader(folder).refresh().phase.get("name") == phase)
    again = Studio(studio.workspace, LocalLauncher(studio.launcher.command), *_rest(studio))
    assert train.view(again, pick_run(again, ""))["band"]["state"] == "running"
    process = again.launcher.process(folder)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: reader(folder).refresh().state == "crashed")
    shown = train.view(again, folder.name)
    assert shown["remedies"][0]["key"] == "resume" and "killed" in shown["band"]["headline"]
    again.launcher.command = (*studio.launcher.command[:-1], "0.001")
    train.act(again, folder.name, "remedy:resume")
    train.act(again, folder.name, "remedy:resume")
    until(lambda: reader(folder).refresh().state == "finished" and not reader(folder).alive)
    assert again.queue.waiting() == [], "the second press of the same button did not queue the run once more"


def test_the_queue_outlives_the_app_and_a_run_that_fails(studio: Studio) -> None:
    """Order, removal and what is next are on the disk; a failure lets the next one begin."""
    studio.launcher.command = (*studio.launcher.command[:-1], "0.02")
    first = started(studio, 300)
    bad, good, other = (started(studio, 3, name) for name in ("breaks", "good", "other"))
    assert [e["run"] for e in studio.queue.waiting()] == [bad.name, good.name, other.name]
    again = Queue(studio.workspace, LocalLauncher(studio.launcher.command))
    again.move(other.name, -2)
    again.move(other.name, -1)
    again.remove(good.name)
    assert [e["run"] for e in studio.queue.waiting()] == [other.name, bad.name]
    again.move(bad.name, -1)
    studio.queue.add(good.name, "run")
    train.act(studio, first.name, "stop")
    until(lambda: (again.pump(), not again.waiting() and not reader(good).refresh().alive)[1])
    assert [reader(f).refresh().state for f in (bad, other, good)] == ["failed", "finished", "finished"]
    assert reader(bad).start["at"] < reader(other).start["at"] < reader(good).start["at"]


@pytest.mark.parametrize(
    "name", [name if name in ("breaks", "full") else pytest.param(name, marks=pytest.mark.long) for name in CLASSES]
)
def test_every_failure_has_buttons_that_mend_it(studio: Studio, name: str) -> None:
    """One sentence without commands, what was saved, one to three buttons; each is pressed, and the run ends well."""
    studio.launcher.command = (*studio.launcher.command[:-1], "0.001")
    studio.project.draft()
    studio.project.update({"train.batch": 8})
    folder = started(studio, 3, name)
    until(lambda: reader(folder).refresh().state in ("failed", "crashed") and not reader(folder).alive)
    shown = train.view(studio, folder.name)
    band, keys = shown["band"], [r["key"] for r in shown["remedies"]]
    assert keys == CLASSES[name] and "tuner " not in band["headline"] + band["sub"] and "\n" not in band["headline"]
    assert "Nothing of yours was changed." in band["sub"] or "saved" in band["sub"]
    assert ("resume" in keys) != any(b["do"] == "resume" for b in shown["buttons"])
    asked = reader(folder).recipe()
    for way in shown["remedies"]:
        pressed(studio, folder, way, ends=name != "dies")
    assert {**reader(folder).recipe()} == asked, "the run that failed stays as it was"


def pressed(studio: Studio, folder: Path, way: dict, ends: bool) -> None:
    """Press one button: a new run with that change, the same run again, or a screen with what it is about."""
    if way["key"] == "resume" and (folder / "failed-before").exists():
        failed_again = folder.with_name(folder.name + "-copy")
        shutil.copytree(folder, failed_again)
        folder = failed_again
    said = train.act(studio, folder.name, f"remedy:{way['key']}")
    if way["go"]:
        draft = studio.project.draft()
        assert way["go"] in SCREENS and studio.project.data_of(draft.raw) == "demo"
        assert way["go"] != "recipe" or draft.raw["train"] == reader(folder).recipe()["train"]
        return
    run = studio.workspace.run(said.removeprefix(train.NEW_RUN)) if said.startswith(train.NEW_RUN) else folder
    assert run is not None
    if way["changes"]:
        assert run != folder
        made = yaml.safe_load((run / "recipe.yaml").read_text())
        assert all(get(made, key) == value for key, value in way["changes"].items())
    until(lambda: not reader(run).refresh().alive)
    assert reader(run).refresh().state == ("finished" if ends else "crashed")


def test_a_silent_run_is_told_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    now = time.time()
    start = {"at": now - 300, "kind": "started", "pid": os.getpid(), "born": events.birth(os.getpid()), "steps": 9}
    step = {"at": now - 280, "kind": "step", "step": 1, "loss": 1.0, "seconds": 1.0}
    (tmp_path / "events.jsonl").write_text(json.dumps(start) + "\n" + json.dumps(step) + "\n")
    (tmp_path / "log.txt").write_text("reading\nwaiting for the disk\n")
    seen = Reader(tmp_path).refresh()
    words = train._words(seen, seen.state)
    assert words["headline"].startswith("No step for 4 min") or words["headline"].startswith("No step for 5 min")
    assert "waiting for the disk" in words["sub"]
    step["seconds"] = 60.0  # slow steps are not silence
    (tmp_path / "events.jsonl").write_text(json.dumps(start) + "\n" + json.dumps(step) + "\n")
    assert train._words(again := Reader(tmp_path).refresh(), again.state)["headline"].startswith("Training")


def test_steps_after_the_resumed_one_do_not_count(tmp_path: Path) -> None:
    lines = ['{"at": 1, "kind": "started", "pid": 1, "born": 0, "from_step": 0, "steps": 9}']
    lines += [f'{{"at": {s}, "kind": "step", "step": {s}, "loss": {s}}}' for s in range(1, 6)]
    lines += ['{"at": 9, "kind": "started", "pid": 1, "born": 0, "from_step": 3, "steps": 9}', '{"torn']
    lines += ['{"at": 10, "kind": "step", "step": 4, "loss": 44}']
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    seen = Reader(tmp_path).refresh()
    assert seen.steps.losses() == [(1, 1), (2, 2), (3, 3), (4, 44)]
    assert len(seen.warnings) == 1


def test_a_change_that_is_needed_stops_the_start(studio: Studio) -> None:
    studio.project.draft()
    studio.project.update({"source": "/missing"})
    assert begin(studio) == ("", "This recipe needs a change first: see Problems.")
    assert recipe.view(studio)["problems"][0]["where"] == "source"
    studio.project.update({"source": "x", "train.steps": "many"})
    assert "train.steps" in recipe.view(studio)["problems"][0]["text"]
    assert studio.workspace.run_names() == []


def test_the_check_is_asked_once_per_question(studio: Studio) -> None:
    checker = Checker(LocalLauncher((sys.executable, str(FAKE), "0")), studio.workspace.root / "c")
    text = studio.project.yaml(studio.project.draft())
    assert checker.now(text)["ok"]
    assert len(list((studio.workspace.root / "c").glob("*.json"))) == 1
    checker.launcher.command = ("/does/not/exist",)
    assert checker.now(text)["plan"]["items"] == 24


def test_compare_draws_base_and_adapter(studio: Studio) -> None:
    folder = started(studio)
    until(lambda: reader(folder).refresh().state == "finished")
    shown = compare.view(studio)
    assert [c["id"] for c in shown["shelf"] if not c.get("step")] == ["base", folder.name]
    compare.keep(
        studio,
        {"contenders": [{"id": folder.name, "on": True, "strengths": [0.5]}], "prompts": "cat\n\ndog", "seed": "7"},
    )
    asked, missing = compare.request(studio)
    assert not missing and asked["prompts"] == ["cat", "dog"] and asked["seeds"] == [7]
    assert [c["strength"] for c in asked["contenders"]] == [1.0, 0.5]
    assert asked["contenders"][1]["adapter"] == str(folder)


def test_a_tick_sends_only_what_changed(studio: Studio) -> None:
    known = {"run": "", "said": "", "nonce": 0.0}
    first = tick(studio, known, {})
    assert all("__type__" not in str(part)[:12] for part in first)
    second = tick(studio, known, first[0])
    assert all(part == second[-1] for part in second)


def test_what_was_said_goes_along_with_every_later_view(studio: Studio) -> None:
    """A clock that overtakes an answer, or comes after it, never wipes a notice away."""
    known, said = {"run": "", "said": "", "nonce": 0.0}, {"at": 7.0, "saved": "Imported."}
    before = tick(studio, known, {})
    after = tick(studio, known, before[0], said)
    assert after[2]["told"] == said, "a notice counts as a change"
    studio.project.update({"train.steps": 12})
    assert tick(studio, known, after[0], said)[2]["told"] == said
    run = studio.workspace.new_run("one").name
    shown = train.shown(studio, train.chosen(known, run, "Going on."))
    assert shown["said"] == "Going on." and shown["nonce"] > train.shown(studio, known)["nonce"]


def test_curves_are_thin_and_keep_spikes() -> None:
    points = [(float(i), 1.0) for i in range(5000)]
    points[777] = (777.0, 9.0)
    assert len(thin(points, 240)) <= 240 and (777.0, 9.0) in thin(points, 240)
    assert every(points, 10)[-1] == points[-1] and len(every(points, 10)) == 10
    assert smooth([(0, 4.0), (1, 4.0)])[0][1] == 4.0


def _rest(studio: Studio) -> tuple:
    return studio.catalog, studio.checker, studio.project, studio.queue, studio.doctor
