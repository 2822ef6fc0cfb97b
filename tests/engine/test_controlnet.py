"""ControlNet runs as their users start them: cached controls, samples, checkpoints, exports, comparisons, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from tests.engine.test_data_runs import events, pictures
from tests.engine.test_runs import losses
from tuner import checkpoint
from tuner.__main__ import main


def inverted(own: Path, folder: Path, factor: int = 1) -> Path:
    """A control picture for each item, of another size."""
    folder.mkdir()
    for path in own.glob("*.png"):
        image = Image.open(path)
        small = Image.fromarray(255 - np.asarray(image))
        small.resize((image.width * factor, image.height * factor)).save(folder / path.name)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    return tmp_path


def written(home: Path, tiny: Any, family: str, **change: Any) -> Path:
    """A recipe on pairs of two shapes, with masks, EMA and captions that drop out."""
    own = pictures(home / "own", [(64, 64), (96, 64), (64, 64)])
    masks = home / "masks"
    masks.mkdir()
    for i in range(3):
        Image.new("L", (32, 32), 200).save(masks / f"{i}.png")
    recipe = {
        "family": family, "source": str(tiny(family)), "options": {"max_tokens": 24} if family == "flux1" else {},
        "adapter": {"kind": "controlnet", **({"rank": 4, "form": "lora"} if family == "flux1" else {})},
        "data": [{"path": str(own), "control": str(inverted(own, home / "edges", 2)), "mask": str(masks)}],
        "media": {"resolutions": [64]},
        "train": {"steps": 4, "batch": 2, "lr": 1e-2, "precision": "fp32", "caption_dropout": 0.3,
                  **({"snr_gamma": 5.0} if family == "sd1" else {})},
        "memory": {"checkpointing": True},
        "extensions": [{"kind": "ema", "decay": 0.5}, {"kind": "masked_loss"}],
        "validate": {"prompts": ["a red photo", "a fractal"], "every": 4, "steps": 2, "size": [64, 48]},
        "save": {"every": 2},
        **change,
    }  # fmt: skip
    (home / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return home / "r.yaml"


@pytest.mark.parametrize("family", ["sd1", "flux1"])
def test_a_whole_run(tiny, home: Path, family: str) -> None:
    recipe, run, cut = written(home, tiny, family), home / "run", home / "cut"
    assert main(["run", str(recipe), "--out", str(run)]) == 0
    files = events(run, "export")[0]["files"][0]
    assert files["format"] == "controlnet" and files["loads_in"] == ["diffusers"] and not files["problems"]
    samples = events(run, "sample")
    assert [s["step"] for s in samples] == [0, 4]
    first, last = ([np.asarray(Image.open(run / f["file"])).astype(int) for f in s["files"]] for s in samples)
    assert first[0].shape == (48, 64, 3) and np.abs(first[0] - last[0]).max() > 2
    # a run that ended after two steps and goes on: the same losses and the same result, bit for bit
    assert main(["run", str(recipe), "--out", str(cut)]) == 0
    for path in (cut / "checkpoints").glob("step-000004*/*"):
        path.unlink()
    (cut / "events.jsonl").write_text(
        "".join(f"{line}\n" for line in (cut / "events.jsonl").read_text().splitlines() if '"step": 4' not in line)
    )
    assert main(["resume", str(cut)]) == 0
    assert losses(cut) == losses(run)
    a, b = (checkpoint.load(r / "checkpoints" / "step-000004")[0] for r in (run, cut))
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    path = "export/controlnet/" + ("diffusion_pytorch_model" if family == "sd1" else "pytorch_lora_weights")
    one, two = (load_file(r / f"{path}.safetensors") for r in (run, cut))
    assert all(one[k].equal(two[k]) for k in one)
    compare(home, tiny, family, run)


def compare(home: Path, tiny: Any, family: str, run: Path) -> None:
    """The exported ControlNet, its strength and the base beside each other, on one control picture."""
    columns = [
        {"label": "base"},
        {"label": "whole", "adapter": str(run)},
        {"label": "none", "adapter": str(run), "strength": 0},
        {"label": "checkpoint", "adapter": str(run / "checkpoints" / "step-000004")},
    ]
    request = {
        "family": family, "source": str(tiny(family)), "options": {"max_tokens": 24} if family == "flux1" else {},
        "prompts": ["a red photo"], "steps": 2, "size": [64, 48], "contenders": columns,
        "controls": [str(home / "edges" / "1.png")],
    }  # fmt: skip
    (home / "request.yaml").write_text(yaml.safe_dump(request))
    assert main(["sample", str(home / "request.yaml"), "--out", str(home / "out")]) == 0
    files = [home / "out" / e["file"] for e in events(home / "out", "sample")]
    base, whole, none, saved = (np.asarray(Image.open(f)).astype(int) for f in files)
    assert np.abs(whole - base).max() > 2
    # FLUX.1's official pipelines draw the control's posterior with the sample's generator, before its noise
    assert family == "flux1" or np.abs(none - base).max() <= 1
    assert np.abs(none - whole).max() > 2 and np.abs(saved - none).max() > 2


USUAL = {("sd1", "branch", "int8"), ("flux1", "lora", "int8")}
HELD = [
    pytest.param(
        *form, method, marks=() if (*form, method) in USUAL else pytest.mark.slow, id="-".join([*form, method])
    )
    for form in (("sd1", "branch"), ("flux1", "branch"), ("flux1", "lora"))
    for method in ("int8", "int4", "nf4", "int8_bnb", "fp8_quanto", "fp8")
]


@pytest.mark.parametrize(("family", "form", "method"), HELD)
def test_on_a_quantised_base(tiny, home: Path, family: str, form: str, method: str) -> None:
    """It trains as on the plain base but for the rounding, a branch begins as a copy of the plain weights, and the
    export draws on either base."""
    layers = {"layers": [1, 1]} if (family, form) == ("flux1", "branch") else {}
    adapter = {"kind": "controlnet", "form": form, **layers, **({"rank": 4} if form == "lora" else {})}
    short = {
        "validate": None,
        "extensions": [{"kind": "masked_loss"}],
        "memory": {"checkpointing": True},
        "save": {"every": 1, "keep": 9},
    }
    recipe, runs = written(home, tiny, family, adapter=adapter, **short), {}
    for how in ("none", method):
        runs[how] = home / how
        settings = [f"memory.quantise={how}", "train.lr=1e-4", "train.steps=2", "train.warmup=0"]
        assert main(["run", str(recipe), *settings, "--out", str(runs[how])]) == 0
    said = events(runs[method], "quantised")[0]
    assert said["bytes"] < said["before"] and said["layers"] > 4
    plain, rounded = losses(runs["none"]), losses(runs[method])
    apart = max(abs(rounded[i] - plain[i]) / plain[i] for i in plain)
    assert 0 < apart < 0.1
    one, two = (checkpoint.load(runs[how] / "checkpoints" / "step-000001")[0] for how in ("none", method))
    moved = max((one[k] - two[k]).abs().max().item() for k in one)  # Adam moves each number by at most its rate
    assert one.keys() == two.keys() and moved <= 2.1e-4
    columns = [{"label": "base"}, {"label": "whole", "adapter": str(runs[method]), "strength": 50}]
    request = {
        "family": family, "source": str(tiny(family)), "options": {"max_tokens": 24} if family == "flux1" else {},
        "prompts": ["a red photo"], "steps": 2, "size": [64, 48], "contenders": columns, "quantise": method,
        "controls": [str(home / "edges" / "1.png")],
    }  # fmt: skip
    (home / "request.yaml").write_text(yaml.safe_dump(request))
    assert main(["sample", str(home / "request.yaml"), "--out", str(home / "out")]) == 0
    base, whole = (np.asarray(Image.open(home / "out" / e["file"])).astype(int) for e in events(home / "out", "sample"))
    assert np.abs(whole - base).max() > 2


SENTENCES = {
    "adapter.form=lora": "adapter.form is lora, but sd1 has only branch",
    "adapter.rank=8": "adapter.rank belongs to adapter.form=lora",
    "adapter.layers=[4]": "adapter.layers has no meaning for sd1",
    "data=[{path: own}]": "3 items of data.0 have no control picture; set data.0.control",
    "validate.controls=[a.png, b.png, c.png]": "validate.controls has 3 pictures for 2 prompts",
    "adapter={kind: lora}": "data.0.control is set, but nothing in this recipe reads it",
}


def test_what_means_nothing_is_refused(tiny, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(home, tiny, "sd1")
    assert main(["check", str(recipe)]) == 0
    capsys.readouterr()
    for override, sentence in SENTENCES.items():
        asked = override.replace("path: own", f"path: {home / 'own'}")
        assert main(["check", str(recipe), asked]) == 1, override
        assert sentence in capsys.readouterr().out, override
    without = ["adapter={kind: lora}", f"data=[{{path: {home / 'own'}}}]", "extensions=[]", "validate.controls=[a.png]"]
    assert main(["check", str(recipe), *without]) == 1
    assert "validate.controls is set, but nothing here looks at them" in capsys.readouterr().out


def test_flux_refusals(tiny, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(home, tiny, "flux1")
    branch = ["adapter={kind: controlnet}", "extensions=[{kind: masked_loss}]"]
    said = {
        ("options.t5_mask=true",): "options.t5_mask hides the padding",
        ("adapter.layers=[1]",): "adapter.layers has 1 numbers; flux1 takes 2",
        ("extensions=[{kind: masked_loss}, {kind: tread}]",): "a ControlNet adds to every token",
    }
    for overrides, sentence in said.items():
        main(["check", str(recipe), *branch, *overrides])
        assert sentence in "".join(capsys.readouterr()), overrides
    for start, sentence in {"own": "holds no ControlNet", "edges": "holds no ControlNet"}.items():
        code = main(["run", str(recipe), *branch, f"adapter.start={home / start}", "--out", str(home / start / "run")])
        assert code == 1 and sentence in capsys.readouterr().err
    code = main(["run", str(recipe), *branch, "adapter.layers=[9, 1]", "--out", str(home / "many")])
    assert code == 1 and "adapter.layers asks for 9 blocks of transformer_blocks" in capsys.readouterr().err


def test_families_without_it_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--json"]) == 0
    about = next(a for a in json.loads(capsys.readouterr().out)["adapters"] if a["kind"] == "controlnet")
    assert "the libraries have no ControlNet for wan" in about["refused"]["wan"]
    assert not {"sd1", "sd2", "sdxl", "sd3", "flux1", "auraflow", "pixart_sigma", "hidream"} & set(about["refused"])
