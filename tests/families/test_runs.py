"""Every family and task through the command line: a recipe, a tiny checkpoint, own data, samples, export, resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.families.case import Case, Shape
from tests.families.cases import all_cases
from tuner import recipe as recipes
from tuner import sample
from tuner.__main__ import main
from tuner.data import audio, video
from tuner.events import follow
from tuner.home import package_recipes

RECIPES = sorted(p for p in package_recipes().rglob("*.yaml") if not p.name.startswith("_") and p.parent.name != "demo")


def frames(count: int, width: int, height: int, seed: int) -> np.ndarray:
    """uint8 [count, height, width, 3]: a smooth picture that moves."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    whole = np.asarray(Image.fromarray(coarse).resize((width + count, height), Image.Resampling.BICUBIC))
    return np.stack([whole[:, i : i + width] for i in range(count)])


def data(folder: Path, modality: str, task: str, shape: Shape) -> list[dict[str, Any]]:
    """Two items with captions of different length, and what the task pairs with them."""
    own = folder / "own"
    own.mkdir(parents=True)
    for i, caption in enumerate(("a red photo", "a red photo of a 2")):
        (own / f"{i}.txt").write_text(caption, encoding="utf-8")
        if modality == "audio":
            time = np.arange(int(48000 * (shape.seconds + 0.2))) / 48000
            audio.write(own / f"{i}.wav", np.stack([np.sin(time * 600 * (i + 1))] * 2).astype(np.float32) * 0.4, 48000)
        elif modality == "video":
            video.write(own / f"{i}.mp4", frames(shape.frames * 2 + 8, shape.width, shape.height, i), 24.0)
        else:
            Image.fromarray(frames(1, shape.width, shape.height, i)[0]).save(own / f"{i}.png")
    spec: dict[str, Any] = {"path": str(own)}
    if task == "edit":
        before = folder / "before"
        before.mkdir()
        for i in range(2):
            Image.fromarray(frames(1, shape.width, shape.height, i + 7)[0]).save(before / f"{i}.png")
        spec["reference"] = str(before)
    return [spec]


def small(case: Case, folder: Path, source: Path) -> dict[str, Any]:
    """A recipe's settings that make a run short."""
    shape, modality = case.shapes[0], recipes_modality(case)
    media: dict[str, Any] = {"seconds": shape.seconds} if modality == "audio" else {
        "fit": "exact", "size": [shape.width, shape.height],
    }  # fmt: skip
    validate: dict[str, Any] = {"prompts": ["a red photo"], "steps": 2, "every": 2}
    if modality == "video":
        media |= {"frames": shape.frames}
        validate |= {"frames": shape.frames}
    if modality != "audio":
        validate |= {"size": [shape.width, shape.height]}
    return {
        "family": case.family, "task": case.task, "source": str(source), "options": case.chosen(source),
        "adapter": {"rank": 2}, "data": data(folder, modality, case.task, shape), "media": media, "validate": validate,
        "train": {"steps": 2, "batch": 2, "precision": "fp32", "threads": 1}, "save": {"every": 1},
    }  # fmt: skip


def recipes_modality(case: Case) -> str:
    from tuner import families

    return families.get(case.family).modality


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if c.quick else pytest.mark.families) for n, c in all_cases().items()]
)
def test_run(
    name: str,
    checkpoint: Callable[[Case], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Checked without a problem, trained for two steps, sampled before and after, exported; caches filled once."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    case = all_cases()[name]
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(small(case, tmp_path, checkpoint(case))), encoding="utf-8")
    code = main(["check", str(file)])
    report = json.loads(capsys.readouterr().out)
    assert code == 0, report["problems"]
    assert not [p for p in report["problems"] if p["level"] != "note"], report["problems"]
    assert report["plan"]["items"] == 2
    run = tmp_path / "run"
    code = main(["run", str(file), "--out", str(run)])
    said = capsys.readouterr()
    assert code == 0, said.err
    events = follow(run / "events.jsonl")[0]
    losses = [e["loss"] for e in events if e["kind"] == "step"]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    samples = [run / f["file"] for e in events if e["kind"] == "sample" for f in e["files"]]
    assert len(samples) == 2
    ending = {"image": ".png", "video": ".mp4", "audio": ".wav"}[recipes_modality(case)]
    assert all(s.suffix == ending and s.stat().st_size > 100 for s in samples)
    exported = [e for e in events if e["kind"] == "export"]
    assert (run / exported[0]["path"]).is_file()
    compared(case, checkpoint(case), run, tmp_path, monkeypatch)
    capsys.readouterr()
    assert main(["cache", str(file)]) == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if '"cache ' in line], "encoded again"


def compared(case: Case, source: Path, run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tuner sample`: the export and the checkpoint draw the same, and at strength 0 what the base draws."""
    shape, modality = case.shapes[0], recipes_modality(case)
    request: dict[str, Any] = {
        "family": case.family, "task": case.task, "source": str(source), "options": case.chosen(source), "steps": 2,
        "prompts": ["a red photo"],
        "contenders": [
            {"label": "base"},
            {"label": "none", "adapter": str(run), "strength": 0.0},
            {"label": "export", "adapter": str(run), "strength": 40.0},
            {"label": "checkpoint", "adapter": str(run / "checkpoints" / "step-000002"), "strength": 40.0},
        ],
    }  # fmt: skip
    request |= {"seconds": shape.seconds} if modality == "audio" else {"size": [shape.width, shape.height]}
    request |= {"frames": shape.frames} if modality == "video" else {}
    if case.task in ("edit", "image_to_video"):
        Image.fromarray(frames(1, shape.width, shape.height, 5)[0]).save(folder / "start.png")
        request["references"] = [str(folder / "start.png")]
    (folder / "s.yaml").write_text(yaml.safe_dump(request), encoding="utf-8")
    drawn, draw = [], sample.draw
    monkeypatch.setattr(sample, "draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    assert main(["sample", str(folder / "s.yaml"), "--out", str(folder / "grid")]) == 0
    base, none, export, saved = (content(next((folder / "grid").glob(f"0{i}-00-0.*"))) for i in range(4))
    if modality == "video":  # the encoder of clips does not always write the same bytes for the same frames
        base, none, export, saved = (d.frames for d in drawn)
    assert (export != base).any()
    assert (none == base).all()
    assert (export == saved).all()


def content(path: Path) -> np.ndarray:
    """A sample's values in levels of 0..255."""
    if path.suffix == ".png":
        return np.asarray(Image.open(path), np.float32)
    if path.suffix == ".mp4":
        return np.stack([np.asarray(still, np.float32) for still in video.stills(path, 3)])
    return audio.read(path, 0, audio.look(path).seconds, 48000, 2) * 255


def known(path: Path) -> str:
    return str(path.relative_to(package_recipes()).with_suffix(""))


@pytest.mark.parametrize("path", RECIPES, ids=known)
def test_recipe(
    path: Path,
    checkpoint: Callable[[Case], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each recipe is clean with data and a checkpoint of its family and task; only small sizes are set."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "extends" in raw:
        raw = {**yaml.safe_load((path.parent / raw["extends"]).read_text(encoding="utf-8")), **raw}
    fitting = [c for c in all_cases().values() if c.family == raw["family"] and c.task == raw.get("task", "generate")]
    assert fitting, "no case for this recipe"
    assert raw["description"]
    codes, reports = [], []
    for case in fitting:  # a recipe for one variant of a family (its options) is refused by another variant's model
        folder = tmp_path / case.name
        settings = small(case, folder, checkpoint(case))
        shape = case.shapes[0]
        chosen = [f"source={settings['source']}", f"data.0.path={settings['data'][0]['path']}"]
        beside = {k: v for k, v in settings["options"].items() if k not in case.options}
        chosen += [f"options.{k}={v}" for k, v in beside.items()]
        if "reference" in settings["data"][0]:
            chosen.append(f"data.0.reference={settings['data'][0]['reference']}")
        if raw.get("adapter", {}).get("kind") == "controlnet":
            chosen.append(f"data.0.control={settings['data'][0]['path']}")  # any picture of the same name will do
        if recipes_modality(case) == "audio":
            chosen += [f"media.seconds={shape.seconds}"]
        else:
            chosen += [f"media.resolutions=[{shape.width}]", "media.small=enlarge"]
            chosen += [f"validate.size=[{shape.width}, {shape.height}]"] if "validate" in raw else []
        if recipes_modality(case) == "video":
            chosen += [f"media.frames={shape.frames}"] + (
                [f"validate.frames={shape.frames}"] if "validate" in raw else []
            )
        if "max_tokens" in case.options and "max_tokens" not in raw.get("options", {}):
            # a tiny tokenizer makes a token of every byte, also of the pipeline's own template
            chosen += [f"options.max_tokens={case.options['max_tokens']}"]
        codes.append(main(["check", str(path), *chosen]))
        reports.append(json.loads(capsys.readouterr().out))
        if codes[-1] == 0:
            break
    assert 0 in codes, [r["problems"] for r in reports]
    recipes.load(path, [f"data.0.path={tmp_path}"])
