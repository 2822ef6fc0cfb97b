"""Runs as their users start them: processes that are killed, resumed, stopped and started twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from tuner import checkpoint, run
from tuner import recipe as recipes
from tuner.events import follow, status

ROOT = Path(__file__).resolve().parents[2]
STEPS = 14


def pictures(folder: Path, count: int = 5) -> Path:
    """Pictures of two shapes, with captions."""
    folder.mkdir(parents=True)
    for i in range(count):
        size = (64, 64) if i % 2 else (96, 48)
        Image.effect_mandelbrot(size, (-2 + i / 9, -1.5, 1, 1.5), 60).convert("RGB").save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a fractal number {i}")
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny) -> Path:
    """A run that uses whatever draws random numbers or keeps state: dropout, EMA, caption dropout, accumulation."""
    folder = tmp_path_factory.mktemp("runs")
    pictures(folder / "pictures")
    settings = {
        "name": "kill me",
        "family": "flux1",
        "source": str(tiny("flux1")),
        "options": {"max_tokens": 24},
        "adapter": {"kind": "lora", "rank": 4, "alpha": 2, "dropout": 0.1},
        "data": [{"path": str(folder / "pictures")}],
        "media": {"resolutions": [64]},
        "train": {"steps": STEPS, "batch": 2, "accumulate": 2, "lr": 1e-2, "precision": "fp32", "caption_dropout": 0.3,
                  "schedule": "cosine", "warmup": 2},
        "extensions": [{"kind": "ema", "decay": 0.9}],
        "validate": {"prompts": ["a fractal"], "every": 6, "steps": 3},
        "save": {"every": 3, "keep": 2},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A workspace of its own, one thread (the number of threads changes the last digits)."""
    home = tmp_path_factory.mktemp("home")
    return {**os.environ, "TUNER_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TUNER_DEVICE": "cpu"}


def tuner(environment: dict[str, str], *arguments: object, **more) -> subprocess.CompletedProcess[str]:
    """`python -m tuner ...` to its end."""
    command = [sys.executable, "-m", "tuner", *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False, **more
    )


def losses(folder: Path) -> dict[int, float]:
    """Step → loss; a step that was done again after a resume counts as it was done last."""
    return {e["step"]: e["loss"] for e in follow(folder / "events.jsonl")[0] if e["kind"] == "step"}


def result(folder: Path) -> dict[str, bytes]:
    """The bytes of every exported tensor."""
    tensors = load_file(folder / "export" / "diffusers" / "pytorch_lora_weights.safetensors")
    return {k: v.numpy().tobytes() for k, v in tensors.items()}


@pytest.fixture(scope="module")
def straight(recipe: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without interruption."""
    out = tmp_path_factory.mktemp("straight") / "run"
    done = tuner(environment, "run", recipe, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_finished_run_has_the_files_that_were_promised(straight: Path) -> None:
    assert status(straight).state == "finished"
    for name in ("recipe.yaml", "events.jsonl", "control", "export/diffusers/pytorch_lora_weights.safetensors"):
        assert (straight / name).exists(), name
    assert [f.name for f in checkpoint.complete(straight)] == ["step-000012", "step-000014"]
    samples = sorted(p.name for p in (straight / "samples").iterdir())
    assert samples == [f"step-{s:06d}-00.png" for s in (0, 6, 12, 14)]
    assert len(losses(straight)) == STEPS
    assert len(set(losses(straight).values())) == STEPS
    told = follow(straight / "events.jsonl")[0]
    [planned] = [e for e in told if e["kind"] == "planned"]
    assert planned["items"] > 0 and planned["left_out"] == 0
    assert planned["held"] == 0 and planned["per_epoch"] > 0
    for memory in (e["memory"] for e in told if e["kind"] == "step"):
        assert 50e6 < memory["used"] <= memory["peak"] < memory["of"]


@pytest.mark.long
def test_killed_three_times_it_ends_bit_equal(
    straight: Path, recipe: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL at a random moment of training, three times; losses and adapter are those of the straight run."""
    out, dice = tmp_path / "run", random.Random()
    log = (tmp_path / "log.txt").open("w+")
    for kill in range(3):
        command = ["run", str(recipe), "--out", str(out)] if kill == 0 else ["resume", str(out)]
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", *command], env=environment, cwd=ROOT, stdout=log, stderr=log
        )
        target = dice.randint(kill * 4 + 1, kill * 4 + 4)
        deadline = time.monotonic() + 120
        while process.poll() is None and max(losses(out), default=0) < target:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(dice.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert status(out).state in ("crashed", "finished"), (tmp_path / "log.txt").read_text()
    done = tuner(environment, "resume", out)
    assert done.returncode == 0, done.stderr
    assert losses(out) == losses(straight)
    assert result(out) == result(straight)
    for picture in (straight / "samples").iterdir():
        assert (out / "samples" / picture.name).read_bytes() == picture.read_bytes()


@pytest.mark.long
def test_a_run_goes_on_beyond_its_end_as_if_it_had_been_longer(
    recipe: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """6 steps, extended to 11 and stopped, resumed: bit equal to 11 steps at once; the recipe keeps its 6."""
    constant = ("train.schedule=constant", "save.every=4", "validate=null")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert tuner(environment, "run", recipe, *constant, "train.steps=11", "--out", whole).returncode == 0
    assert tuner(environment, "run", recipe, *constant, "train.steps=6", "--out", out).returncode == 0
    before = (out / "recipe.yaml").read_bytes()
    refused = tuner(environment, "resume", out, "--steps", 6)
    assert refused.returncode == 1 and "has 6 steps already" in refused.stderr
    done = tuner(environment, "resume", out, "--steps", 11)
    assert done.returncode == 0, done.stderr
    assert (out / "recipe.yaml").read_bytes() == before
    assert [e["steps"] for e in follow(out / "events.jsonl")[0] if e["kind"] == "extended"] == [11]
    assert losses(out) == losses(whole) and result(out) == result(whole)
    again = tuner(environment, "resume", out)  # what was extended stays so
    assert again.returncode == 0 and status(out).of == 11


def test_a_schedule_that_has_ended_is_not_extended(straight: Path, environment: dict[str, str]) -> None:
    """A cosine has reached 0; the sentence says what to do instead, and the run is as before."""
    refused = tuner(environment, "resume", straight, "--steps", STEPS + 5)
    assert refused.returncode == 1
    assert "train.schedule=cosine" in refused.stderr and "adapter.start" in refused.stderr
    assert status(straight).state == "finished"


KILLED_WHILE_SAVING = """
import os, signal, sys
from tuner import checkpoint
from tuner.__main__ import main

write, count = checkpoint.torch.save, [0]

def torn(state, path):
    count[0] += 1
    if count[0] == 2:
        open(path, "wb").write(b"half of a checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)
    write(state, path)

checkpoint.torch.save = torn
sys.exit(main(sys.argv[1:]))
"""


def test_a_kill_inside_a_checkpoint_save_loses_nothing(
    straight: Path, recipe: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, "run", str(recipe), "--out", str(out)],
        env=environment, cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert [f.name for f in checkpoint.complete(out)] == ["step-000003"]
    assert list((out / "checkpoints").glob(".partial-*")), "the kill was meant to fall inside a save"
    with (out / "events.jsonl").open("a") as journal:  # and the journal's last line is torn as well
        journal.write('{"at": 17, "kind": "ste')
    # another number of threads would change the last digits, if the run did not keep its own
    done = tuner({**environment, "OMP_NUM_THREADS": "2"}, "resume", out)
    assert done.returncode == 0, done.stderr
    assert losses(out) == losses(straight)
    assert result(out) == result(straight)
    assert not list((out / "checkpoints").glob(".partial-*"))
    torn = [e for e in follow(out / "events.jsonl")[0] if e["kind"] == "warning" and "torn" in e["text"]]
    assert len(torn) == 1


KILLED_WHILE_SAMPLING = """
import os, signal, sys
from tuner import sample
from tuner.__main__ import main

draw, count = sample.draw, [0]

def killed(*arguments):
    count[0] += 1
    if count[0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(*arguments)

sample.draw = killed
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
def test_samples_that_a_kill_prevented_are_drawn_after_all(
    straight: Path, recipe: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED_WHILE_SAMPLING, "run", str(recipe), "--out", str(out)]
    killed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [e["step"] for e in follow(out / "events.jsonl")[0] if e["kind"] == "validation"] == [0, 6]
    assert [p.name for p in (out / "samples").iterdir()] == ["step-000000-00.png"]
    done = tuner(environment, "resume", out)
    assert done.returncode == 0, done.stderr
    for picture in (straight / "samples").iterdir():
        assert (out / "samples" / picture.name).read_bytes() == picture.read_bytes()
    assert result(out) == result(straight)


@pytest.mark.long
def test_controls_are_obeyed_and_a_second_start_is_refused(
    recipe: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["run", str(recipe), "train.steps=5000", "validate.every=5000", "save.every=5000", "--out", str(out)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", *arguments], env=environment, cwd=ROOT, stdout=log, stderr=log
        )
        try:
            wait_for(out, "step")
            assert status(out).state == "running"
            second = tuner(environment, "resume", out)
            assert second.returncode == 1
            assert "already running" in second.stderr and str(out) in second.stderr
            (out / "control" / "save").touch()
            wait_for(out, "checkpoint")
            (out / "control" / "sample").touch()
            wait_for(out, "sample", 2)
            (out / "control" / "stop").touch()
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert status(out).state == "stopped"
    stopped_at = status(out).step
    assert checkpoint.step_of(checkpoint.complete(out)[-1]) == stopped_at
    again = tuner(environment, "run", recipe, "--out", out)
    assert again.returncode == 1 and "already holds a run" in again.stderr and "resume" in again.stderr


def wait_for(out: Path, kind: str, count: int = 1) -> None:
    """Until the journal holds `count` events of that kind."""
    deadline = time.monotonic() + 120
    while sum(e["kind"] == kind for e in follow(out / "events.jsonl")[0]) < count:
        assert time.monotonic() < deadline, f"no {kind} event"
        time.sleep(0.01)


@pytest.mark.long
def test_a_stop_before_training_is_heeded_and_the_run_can_go_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every phase before the first step: the run says that it was stopped, what is cached stays, resume goes on."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tuner.progress.EVERY", 0.0)
    wanted, heard = recipes.load(recipe, ["train.steps=1", "train.accumulate=1", "validate="]), run.Controls.stop
    for phase in ("prepare", "cache pictures", "cache text", "load"):
        folder = tmp_path / phase

        def stop(self: run.Controls, folder: Path = folder, phase: str = phase) -> bool:
            """Somebody presses the button in this phase."""
            phases = [e["name"] for e in follow(folder / "events.jsonl")[0] if e["kind"] == "phase"]
            if phases[-1] == phase:
                self.folder.joinpath("stop").touch()
            return heard(self)

        monkeypatch.setattr(run.Controls, "stop", stop)
        assert run.start(wanted, folder) == 0
        told = follow(folder / "events.jsonl")[0]
        assert told[-1]["kind"] == "stopped" and not losses(folder)
        assert [e["name"] for e in told if e["kind"] == "phase"][-1] == phase
    monkeypatch.setattr(run.Controls, "stop", heard)
    assert run.resume(folder) == 0 and status(folder).state == "finished" and len(losses(folder)) == 1


def test_a_full_disk_is_a_sentence_and_keeps_the_last_checkpoint(
    recipe: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code = KILLED_WHILE_SAVING.replace(
        "os.kill(os.getpid(), signal.SIGKILL)", "raise OSError(28, 'No space left on device')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(recipe), "--out", str(out)],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"no space left to write in {out}" in done.stderr and "resume" in done.stderr
    assert [f.name for f in checkpoint.complete(out)] == ["step-000003"]
    assert status(out).state == "failed" and "no space left" in status(out).error


def test_the_last_line_of_a_failed_run_is_one_plain_sentence(
    recipe: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    done = tuner(environment, "run", recipe, "train.lr=1e30", "train.clip=0", "--out", tmp_path / "run")
    assert done.returncode == 1
    last = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "failed" and "train.lr" in last["error"]


LOADED = """
import sys
from tuner.__main__ import main
assert main(sys.argv[1:]) == 0
print("loaded", *sorted(m for m in sys.modules if m.startswith(("tuner.", "gradio", "bitsandbytes", "prodigyopt"))))
"""


@pytest.mark.long
def test_a_run_loads_only_what_its_recipe_names(recipe: Path, environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "run", str(recipe), "train.steps=1", "--out", str(tmp_path / "run")],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = done.stdout.splitlines()[-1].split()
    assert {"tuner.families.flux1", "tuner.extensions.ema", "tuner.adapters.lora"} <= set(loaded)
    others = (
        "tuner.families.sd",
        "tuner.extensions.tread",
        "tuner.extensions.masked",
        "tuner.adapters.full",
        "tuner.demo",
    )
    assert not [m for m in loaded if m.startswith((*others, "gradio", "bitsandbytes", "prodigyopt"))]


def test_what_can_fail_anywhere_is_told_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory and disk are the user's to solve (1); anything else is ours (2). All of it stands in the journal."""
    from tuner.run import watched

    def raising(error: BaseException):
        def work(say, controls) -> str:
            say("started", pid=os.getpid(), born=0.0)
            raise error

        return work

    cases = [
        (MemoryError(), 1, "train.batch"),
        (OSError(28, "full"), 1, "no space left"),
        (KeyError("x"), 2, "KeyError"),
    ]
    for i, (error, code, words) in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert watched(folder, raising(error)) == code
        assert status(folder).state == "failed" and words in status(folder).error
    assert "Traceback" in capsys.readouterr().err


def test_signals_mean_afterwards_what_they_meant_before(tmp_path: Path) -> None:
    """A notebook keeps its Ctrl-C after a run, and a run in a thread, where Python allows no handlers, works too."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work(say: Any, controls: run.Controls) -> str:
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGTERM)
        seen.append(controls.stop())
        return "stopped" if seen[-1] else "finished"

    assert run.watched(tmp_path, work) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run.watched, tmp_path, work).result() == 0
    assert seen == [True, False]
    assert [e["kind"] for e in follow(tmp_path / "events.jsonl")[0]] == ["stopped", "finished"]
