"""Adapters with text encoders in sweeps, in `tuner sample` and as assistants: as diffusers draws with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.engine.test_data_runs import events
from tests.engine.test_runs import losses
from tests.engine.test_text_training import FILE, ran, recipe  # noqa: F401  (a fixture)
from tuner import run
from tuner.__main__ import main
from tuner.checkpoint import WEIGHTS

PROMPT, STRENGTH = "a fractal of many colours", 0.7
DRAWN = {"prompts": [PROMPT], "negative": "red", "steps": 3, "guidance": 3.0, "seed": 7, "size": [64, 96]}
PLAIN = """
import json, sys
import torch, diffusers
wanted = json.loads(sys.argv[1])
pipe = diffusers.DiffusionPipeline.from_pretrained(wanted["source"])
pipe.load_lora_weights(wanted["lora"], adapter_name="it")
pipe.set_adapters("it", wanted["strength"])
pipe.set_progress_bar_config(disable=True)
pipe(generator=torch.Generator().manual_seed(7), **wanted["call"]).images[0].save(wanted["to"])
"""
FAMILIES = ["sdxl", *(pytest.param(f, marks=pytest.mark.families) for f in ("sd1", "flux1"))]


def official(raw: dict[str, Any], lora: Path, to: Path) -> np.ndarray:
    """What diffusers' own pipeline draws with the file at the strength, in a process of its own."""
    call = {"prompt": PROMPT, "num_inference_steps": 3, "width": 64, "height": 96, "guidance_scale": 3.0}
    call |= {"max_sequence_length": 24} if raw["family"] == "flux1" else {"negative_prompt": "red"}
    wanted = {"source": raw["source"], "lora": str(lora), "strength": STRENGTH, "call": call, "to": str(to)}
    subprocess.run([sys.executable, "-c", PLAIN, json.dumps(wanted)], check=True, capture_output=True)
    return np.asarray(Image.open(to)).astype(int)


def picture(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "samples" / f"{name}.png")).astype(int)


def far(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a - b).max())


def sampled(raw: dict[str, Any], adapters: list[Path | None], tmp_path: Path) -> list[np.ndarray]:
    """`tuner sample` with these at the strength."""
    contenders = [{"label": str(i), "adapter": a and str(a), "strength": STRENGTH} for i, a in enumerate(adapters)]
    keys = ("prompts", "negative", "steps", "guidance", "size")
    request = {"family": raw["family"], "source": raw["source"], "options": raw["options"], "seeds": [7]}
    request |= {k: DRAWN[k] for k in keys} | {"contenders": contenders}
    (tmp_path / "request.yaml").write_text(yaml.safe_dump(request))
    shutil.rmtree(tmp_path / "grid", ignore_errors=True)
    assert main(["sample", str(tmp_path / "request.yaml"), "--out", str(tmp_path / "grid")]) == 0
    return [
        np.asarray(Image.open(tmp_path / "grid" / e["file"])).astype(int) for e in events(tmp_path / "grid", "sample")
    ]


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_sweeps_and_samples_apply_the_encoders_part(
    family: str,
    recipe: Callable[..., Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    raw = recipe(family, {"alpha": 9.0}, train={"steps": 3, "lr": 5e-2})
    other = ran(tmp_path, raw, "other")
    file = other / FILE
    bare = tmp_path / "bare.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.startswith("text_encoder")}, bare)
    wanted = official(raw, file.parent, tmp_path / "official.png")

    sweep = [{"label": "other", "trained": 0, "adapters": [{"path": "other/" + FILE, "strength": STRENGTH}]},
             {"label": "twice", "adapters": [{"path": "bare.safetensors"}, {"path": "other", "strength": -0.3}]},
             {"label": "base", "trained": 0}]  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    plain: dict[str | None, Path] = {}
    for text in (None, {}):
        for name, more in (("plain", {}), ("swept", {"sweep": str(tmp_path / "sweep.json")})):
            asked = recipe(family, text, train={"steps": 2}, validate={**DRAWN, "every": 1, **more})
            plain[name] = ran(tmp_path, asked, f"{name}-{'text' if text is not None else 'cached'}")
        swept = plain["swept"]
        assert losses(swept) == losses(plain["plain"])
        ours, theirs = load_file(swept / FILE), load_file(plain["plain"] / FILE)
        assert ours.keys() == theirs.keys() and all(v.equal(theirs[k]) for k, v in ours.items())
        assert far(picture(swept, "step-000002-00"), picture(plain["plain"], "step-000002-00")) == 0
        for step in ("000000", "000002"):
            assert far(picture(swept, f"step-{step}-00-other"), wanted) <= 1
            assert far(picture(swept, f"step-{step}-00-base"), picture(swept, "step-000000-00")) <= 1
        assert far(picture(swept, "step-000002-00-twice"), picture(swept, "step-000002-00")) > 2

    files = sorted((other / "export").rglob("*.safetensors"))
    drawn = sampled(raw, [None, bare, other, other / "checkpoints" / "step-000003", *files], tmp_path)
    assert len(files) == 3 and all(far(d, wanted) <= 1 for d in drawn[2:])
    assert far(drawn[0], wanted) > 2 and far(drawn[1], wanted) > 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "adapter"),
    [
        ("sdxl", {"kind": "lycoris", "algorithm": "loha"}),
        pytest.param("flux1", {"kind": "lycoris", "algorithm": "locon", "dora": True}, marks=pytest.mark.families),
        pytest.param("sd1", {"kind": "lora", "dora": True}, marks=pytest.mark.families),
    ],
)
def test_every_file_of_a_run_draws_alike(
    family: str,
    adapter: dict[str, Any],
    recipe: Callable[..., Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    """At a strength, from each format and from the checkpoint; the encoders' part is in it."""
    raw = recipe(family, {}, train={"steps": 3, "lr": 5e-2}, validate={**DRAWN, "every": 9})
    raw["adapter"] |= adapter
    raw["validate"]["sweep"] = [{"label": "weaker", "trained": STRENGTH}]
    out = ran(tmp_path, raw, "out")
    wanted = picture(out, "step-000003-00-weaker")
    files = sorted((out / "export").rglob("*.safetensors"))
    state = load_file(out / "checkpoints" / "step-000003" / WEIGHTS)
    assert any(k.startswith("text_encoder") for k in state)
    drawn = sampled(raw, [None, out / "checkpoints" / "step-000003", *files], tmp_path)
    assert len(files) >= 3 and far(drawn[0], wanted) > 2
    assert all(far(d, wanted) <= 1 for d in drawn[1:])


@pytest.mark.long
def test_an_assistant_over_the_encoders(recipe: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    """It acts as the same adapter held frozen does, steps back in samples, and the run resumes exactly."""
    validate = {**DRAWN, "every": 2}
    ran(tmp_path, recipe("sdxl", {"alpha": 9.0}, train={"steps": 3, "lr": 5e-2}), "other")
    alone = ran(tmp_path, recipe("sdxl", None, train={"steps": 2}, validate=validate), "alone")
    below = [{"path": "other", "strength": 1.0}]
    helped = ran(tmp_path, recipe("sdxl", None, train={"steps": 2}, validate=validate, assistants=below), "helped")
    shown = [{"path": "other", "strength": 1.0, "sampling": 1.0}]
    seen = ran(tmp_path, recipe("sdxl", None, train={"steps": 2}, validate=validate, assistants=shown), "seen")
    raw = recipe("sdxl", None, train={"steps": 2}, validate=validate)
    raw["adapter"] = {"start": "other"}
    begun = ran(tmp_path, raw, "begun")

    first = {f.name: events(f, "validation")[0]["loss"] for f in (alone, helped, seen, begun)}
    assert first["helped"] == pytest.approx(first["begun"], rel=1e-5) and first["seen"] == first["helped"]
    assert first["alone"] != pytest.approx(first["begun"], rel=1e-3)
    assert losses(helped) == losses(seen)
    start = "step-000000-00"
    assert far(picture(helped, start), picture(alone, start)) <= 1
    assert far(picture(seen, start), picture(begun, start)) <= 1
    assert far(picture(seen, start), picture(alone, start)) > 2
    assert load_file(helped / FILE).keys() == load_file(alone / FILE).keys()

    told, last = losses(helped), helped / "checkpoints" / "step-000002"
    weights = load_file(last / WEIGHTS)
    shutil.rmtree(last)
    assert run.resume(helped) == 0
    assert losses(helped) == told and all(v.equal(weights[k]) for k, v in load_file(last / WEIGHTS).items())


def test_what_an_assistant_means_for_the_cache_is_told(
    recipe: Callable[..., Any],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = ran(tmp_path, recipe("sdxl", {}, train={"steps": 1}), "other")
    for memory, level, words in (
        ({}, "note", "An assistant changes the text encoders: captions and prompts are encoded anew in every step"),
        ({"quantise_text": "int8"}, "error", "memory.quantise_text is int8, but this run changes the text encoders"),
    ):
        raw = recipe("sdxl", None, assistants=[{"path": str(other)}], memory=memory)
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
        capsys.readouterr()
        main(["check", str(tmp_path / "r.yaml")])
        told = {p["level"]: p["text"] for p in json.loads(capsys.readouterr().out)["problems"]}
        assert words in told[level]
