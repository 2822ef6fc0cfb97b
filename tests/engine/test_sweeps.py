"""Samples with other adapters and strengths during a run, as they would be alone, without a trace in the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.engine.test_runs import pictures
from tuner.__main__ import main
from tuner.events import follow


def settings(source: Path, tmp_path: Path, **validate: Any) -> dict[str, Any]:
    """A short run."""
    return {
        "name": "sweep", "family": "sd1", "source": str(source), "adapter": {"rank": 2, "alpha": 3},
        "data": [{"path": str(tmp_path / "pictures")}], "media": {"resolutions": [64]},
        "train": {"steps": 4, "batch": 2, "lr": 2e-2, "precision": "fp32", "threads": 1}, "save": {"every": 2},
        "validate": {"prompts": ["a red photo", "a dog"], "steps": 2, "every": 2, "guidance": 1.0, **validate},
    }  # fmt: skip


def trained(folder: Path, recipe: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "asked.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", str(folder / "asked.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def losses(run: Path) -> list[float]:
    return [e["loss"] for e in follow(run / "events.jsonl")[0] if e["kind"] == "step"]


def drawn(run: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(run / "samples" / f"{name}.png")).astype(int)


@pytest.fixture
def other(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(base model, a run whose adapter is used elsewhere)."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    pictures(tmp_path / "pictures", 3)
    source = tiny("sd1")
    recipe = settings(source, tmp_path)
    recipe["train"]["seed"] = 5
    return source, trained(tmp_path / "other", recipe)


def test_sweeps_show_what_they_say_and_leave_no_trace(other: tuple[Path, Path], tmp_path: Path) -> None:
    source, elsewhere = other
    plain = trained(tmp_path / "plain", settings(source, tmp_path))
    listed = [
        {"label": "base", "trained": 0},
        {"label": "half", "trained": 0.5},
        {"label": "other alone", "trained": 0, "adapters": [{"path": "other/run"}]},
        {"label": "both", "adapters": [{"path": "other/run", "strength": 0.8}]},
        {
            "label": "cancelled",
            "trained": 0,
            "adapters": [{"path": "other/run"}, {"path": "other/run", "strength": -1}],
        },
    ]
    (tmp_path / "sweep.json").write_text(json.dumps(listed))
    swept = trained(tmp_path / "swept", settings(source, tmp_path, sweep=str(tmp_path / "sweep.json")))

    assert losses(swept) == losses(plain)
    files = [f for e in follow(swept / "events.jsonl")[0] if e["kind"] == "sample" for f in e["files"]]
    assert len(files) == 3 * 2 * 6
    assert {f.get("sweep") for f in files} == {None, *(s["label"] for s in listed)}
    last = "step-000004-01"
    assert (drawn(swept, last) == drawn(plain, last)).all()
    before = drawn(plain, "step-000000-01")
    assert (drawn(swept, f"{last}-base") == before).all()
    assert np.abs(drawn(swept, f"{last}-other alone") - drawn(elsewhere, last)).max() <= 1
    assert np.abs(drawn(swept, f"{last}-cancelled") - before).max() <= 1
    seen = [drawn(swept, last), *(drawn(swept, f"{last}-{k}") for k in ("base", "half", "other alone", "both"))]
    for i, one in enumerate(seen):
        for another in seen[i + 1 :]:
            assert np.abs(one - another).max() > 1, "two sweeps draw the same: the comparison would prove nothing"


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ([{"label": "a", "trained": 0}, {"label": "a", "trained": 0.5}], "'a' stands twice"),
        ([{"label": "a"}], "changes nothing"),
        ([{"label": "a", "adapters": [{"path": "nowhere"}]}], "holds no adapter"),
        ("missing.json", "cannot be read"),
        ([{"label": "../up", "trained": 0}], "label"),
    ],
)
def test_sweeps_that_cannot_be_drawn_are_refused(
    sweep: Any, said: str, tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "pictures", 2)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings(tiny("sd1"), tmp_path, sweep=sweep)))
    assert main(["check", str(tmp_path / "r.yaml")]) == 1
    texts = " ".join(p["text"] for p in json.loads(capsys.readouterr().out)["problems"])
    assert said in texts


def test_a_full_rank_run_has_no_adapter_to_weigh(tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "pictures", 2)
    recipe = {**settings(tiny("sd1"), tmp_path, sweep=[{"label": "base", "trained": 0}]), "adapter": {"kind": "full"}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["check", str(tmp_path / "r.yaml")]) == 1
    assert "no adapter to weigh" in capsys.readouterr().out
