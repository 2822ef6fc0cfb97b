"""Whole runs on data of every kind: masks, regularisation, several resolutions, archives, tables, clips and sound."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tuner.__main__ import main
from tuner.events import follow


def pictures(folder: Path, sizes: list[tuple[int, int]], seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i, (width, height) in enumerate(sizes):
        coarse = Image.fromarray(random.integers(0, 255, (4, 4, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a red photo of {i}", encoding="utf-8")
    return folder


def write(path: Path, **recipe: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    return tmp_path


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in follow(run / "events.jsonl")[0] if e["kind"] == kind]


def test_mixed_recipe(tiny, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures with masks, a regularisation set in a zip with another weight, a validation set, two resolutions."""
    own = pictures(home / "own", [(64, 64), (96, 64), (128, 128), (64, 96)])
    masks = home / "masks"
    masks.mkdir()
    for i in range(4):
        mask = Image.new("L", (32, 32), 0)
        mask.paste(255, (0, 0, 16, 32))
        mask.save(masks / f"{i}.png")
    others = pictures(home / "others", [(80, 80)] * 6, seed=1)
    with zipfile.ZipFile(home / "others.zip", "w") as file:
        for path in others.iterdir():
            file.write(path, path.name)
    held = pictures(home / "held", [(64, 64)] * 2, seed=2)
    recipe = write(
        home / "r.yaml",
        family="sd1",
        source=str(tiny("sd1")),
        adapter={"rank": 2},
        data=[
            {"path": str(own), "mask": str(masks), "trigger": "sks", "repeats": 2},
            {"path": str(home / "others.zip"), "role": "regularisation", "weight": 0.5},
            {"path": str(held), "role": "validation"},
        ],
        media={"resolutions": [32, 64]},
        train={"steps": 8, "batch": 2, "precision": "fp32", "caption_dropout": 0.2, "seed": 3, "workers": 1},
        extensions=[{"kind": "masked_loss"}],
        validate={"prompts": [], "every": 4},
        save={"every": 8},
    )
    assert main(["check", str(recipe)]) == 0
    report = json.loads(capsys.readouterr().out)
    plan = report["plan"]
    assert plan["items"] == 12
    roles = {d["role"]: d for d in plan["datasets"]}
    # four pictures at two resolutions, twice; six at two resolutions, every other epoch
    assert roles["train"]["drawn"] == 16
    assert roles["regularisation"]["drawn"] == 6
    assert roles["train"]["share"] == pytest.approx(16 / 22, abs=1e-4)
    assert roles["validation"]["drawn"] == 0
    assert {b["resolution"] for b in plan["buckets"]} == {32, 64}
    use = next(u for u in plan["uses"] if u["name"] == "0.png" and u["dataset"] == 0)
    assert use["captions"] == ["sks, a red photo of 0"]
    assert 7 <= use["tokens"][0] < use["tokens"][1] == 77, "CLIP counts, begin and end among them"
    levels = json.loads((tiny("sd1") / "vae" / "config.json").read_text())["block_out_channels"]
    assert plan["cell"] == 2 ** (len(levels) - 1), "pixels per latent cell: each level but the first halves"
    assert main(["run", str(recipe), "--out", str(home / "run")]) == 0
    steps = events(home / "run", "step")
    assert len(steps) == 8
    assert all(np.isfinite(s["loss"]) for s in steps)
    assert len(events(home / "run", "validation")) == 3
    assert (home / "run" / "export" / "diffusers" / "pytorch_lora_weights.safetensors").is_file()
    again = home / "again"
    assert main(["run", str(recipe), "train.workers=0", "--out", str(again)]) == 0
    assert [s["loss"] for s in events(again, "step")] == [s["loss"] for s in steps], "workers changed the run"
    assert not [e for e in events(again, "phase") if e["name"].startswith("cache")], "nothing had to be encoded again"


def test_repeats_of_single_items(tiny, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted by the check, drawn by the run, exact after a stop, and no reason to encode anything again."""
    own = pictures(home / "own", [(64, 64)] * 4)
    recipe = write(
        home / "r.yaml",
        family="sd1",
        source=str(tiny("sd1")),
        adapter={"rank": 2},
        data=[{"path": str(own), "repeats_of": {"0.png": 3, "[3]*": 9, "3.*": 2}}],
        media={"resolutions": [64]},
        train={"steps": 7, "precision": "fp32"},
        save={"every": 3},
    )
    assert main(["check", str(recipe)]) == 1
    [problem] = [p for p in json.loads(capsys.readouterr().out)["problems"] if p["level"] == "error"]
    assert problem["text"].startswith("data.0.repeats_of names [3]*, but ")
    better = "data.0.repeats_of=" + json.dumps(problem["remedy"]["data.0.repeats_of"])
    assert main(["check", str(recipe), better]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["steps_per_epoch"], plan["datasets"][0]["drawn"]) == (7, 7)
    assert {u["name"]: u.get("repeats", 1) for u in plan["uses"]} == {"0.png": 3, "1.png": 1, "2.png": 1, "3.png": 2}
    assert main(["run", str(recipe), better, "--out", str(home / "whole")]) == 0
    steps = events(home / "whole", "step")
    assert main(["run", str(recipe), better, "--out", str(home / "cut")]) == 0
    assert not [e for e in events(home / "cut", "phase") if e["name"].startswith("cache")], "the cache stays valid"
    journal = home / "cut" / "events.jsonl"
    lines = journal.read_text("utf-8").splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if json.loads(line).get("kind") == "step" and '"step": 5' in line)
    journal.write_text("".join(lines[:at]), encoding="utf-8")
    shutil.rmtree(home / "cut" / "checkpoints" / "step-000006")
    shutil.rmtree(home / "cut" / "checkpoints" / "step-000007")
    assert main(["resume", str(home / "cut")]) == 0
    assert {s["step"]: s["loss"] for s in events(home / "cut", "step")} == {s["step"]: s["loss"] for s in steps}


def test_a_table_and_its_columns(tiny, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A CSV with two caption columns: both are drawn; a row whose file is missing is said, the rest trains."""
    pictures(home / "own", [(64, 64)] * 3)
    rows = ["file,text,tags"] + [f"own/{i}.png,a photo of {i},'x {i}'" for i in range(4)]
    (home / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    recipe = write(
        home / "r.yaml",
        family="sd1",
        source=str(tiny("sd1")),
        adapter={"rank": 2},
        data=[
            {
                "path": "list.csv",
                "columns": {"media": "file", "caption": ["text", "tags"]},
                "on_problem": "skip",
            }
        ],
        media={"resolutions": [64]},
        train={"steps": 2, "precision": "fp32"},
    )
    assert main(["check", str(recipe)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plan"]["items"] == 3
    assert "3.png" in "".join(p["text"] for p in report["problems"])
    assert next(u["captions"] for u in report["plan"]["uses"]) == ["a photo of 0", "'x 0'"]
    assert main(["run", str(recipe), "--out", str(home / "run")]) == 0


def test_settings_that_nothing_reads_are_refused(tiny, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = pictures(home / "own", [(64, 64)])
    recipe = write(home / "r.yaml", family="sd1", source=str(tiny("sd1")), data=[{"path": str(own)}])
    said = {
        f"data.0.control={own}": "data.0.control is set, but nothing in this recipe reads it",
        f"data.0.mask={own}": "data.0.mask is set, but nothing in this recipe reads it",
        f"data.0.reference={own}": "data.0.reference is set, but nothing in this recipe reads it",
        "data.0.strength=2": "data.0.strength is set, but nothing in this recipe reads it",
        "media.frames=9": "media.frames has no meaning for sd1",
        "media.size=[64, 64]": "media.size has no effect unless media.fit is exact",
        "media.fit=exact": "media.size is empty",
    }
    for override, sentence in said.items():
        assert main(["check", str(recipe), override]) == 1, override
        assert sentence in capsys.readouterr().out
