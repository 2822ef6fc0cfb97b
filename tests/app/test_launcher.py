"""Runs as folders: start, follow, stop, crash, kill, resume, and an app that comes back."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from gradio_app.launcher import LocalLauncher
from gradio_app.main import begin, pick_run, tick
from gradio_app.parts.checks import Checker
from gradio_app.parts.loss import every, smooth, thin
from gradio_app.parts.reader import Reader, reader
from gradio_app.studio import Studio
from gradio_app.tabs import compare, recipe, train
from tests.app.helpers import FAKE, until


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
    train.act(studio, folder.name, "stop")
    until(lambda: reader(folder).refresh().state in ("stopped", "crashed"))


def test_second_press_ends_a_run_that_does_not_listen(studio: Studio) -> None:
    folder = started(studio, 4000, "deaf")
    until(lambda: reader(folder).refresh().step > 2)
    process = studio.launcher.process(folder)
    assert process is not None
    train.act(studio, folder.name, "stop")
    assert studio.launcher.stopping(folder)
    assert train.view(studio, folder.name)["buttons"][0]["text"] == "End at once"
    assert "Ended at once" in train.act(studio, folder.name, "stop")
    assert not process.is_running() or process.status() == "zombie"
    assert reader(folder).refresh().state == "crashed"


@pytest.mark.parametrize("name", ["breaks", "dies"])
def test_failure_and_crash_are_told_in_one_sentence(studio: Studio, name: str) -> None:
    folder = started(studio, 10, name)
    until(lambda: reader(folder).refresh().state in ("failed", "crashed"))
    band = train.view(studio, folder.name)["band"]
    sentence = {"breaks": "cat.png is damaged", "dies": "ended without a word"}[name]
    assert sentence in band["headline"] and band["headline"].count("\n") == 0


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


def test_one_run_at_a_time(studio: Studio) -> None:
    folder = started(studio, 4000)
    assert "is training now" in begin(studio)[1]
    until(lambda: reader(folder).refresh().state == "running")
    assert "is training now" in begin(studio)[1]
    train.act(studio, folder.name, "stop")
    until(lambda: reader(folder).refresh().state == "stopped")


def test_steps_after_the_resumed_one_do_not_count(tmp_path: Path) -> None:
    lines = ['{"at": 1, "kind": "started", "pid": 1, "born": 0, "from_step": 0, "steps": 9}']
    lines += [f'{{"at": {s}, "kind": "step", "step": {s}, "loss": {s}}}' for s in range(1, 6)]
    lines += ['{"at": 9, "kind": "started", "pid": 1, "born": 0, "from_step": 3, "steps": 9}', '{"torn']
    lines += ['{"at": 10, "kind": "step", "step": 4, "loss": 44}']
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    seen = Reader(tmp_path).refresh()
    assert [(e["step"], e["loss"]) for e in seen.steps] == [(1, 1), (2, 2), (3, 3), (4, 44)]
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
    assert [c["id"] for c in shown["shelf"]] == ["base", folder.name]
    compare.keep(
        studio, {"contenders": [{"id": folder.name, "on": True, "strength": 0.5}], "prompts": "cat\n\ndog", "seed": "7"}
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


def test_curves_are_thin_and_keep_spikes() -> None:
    points = [(float(i), 1.0) for i in range(5000)]
    points[777] = (777.0, 9.0)
    assert len(thin(points, 240)) <= 240 and (777.0, 9.0) in thin(points, 240)
    assert every(points, 10)[-1] == points[-1] and len(every(points, 10)) == 10
    assert smooth([(0, 4.0), (1, 4.0)])[0][1] == 4.0


def _rest(studio: Studio) -> tuple:
    return studio.catalog, studio.checker, studio.project, studio.doctor
