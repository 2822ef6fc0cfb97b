"""What comes out loads elsewhere: the exported file in a plain diffusers pipeline, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from tests.engine.test_runs import pictures
from tuner.__main__ import main

ROOT = Path(__file__).resolve().parents[2]

PLAIN = """
import json, sys
import torch, diffusers
wanted = json.loads(sys.argv[1])
pipe = diffusers.DiffusionPipeline.from_pretrained(wanted["source"])
if wanted["lora"]:
    pipe.load_lora_weights(wanted["lora"])
pipe.set_progress_bar_config(disable=True)
image = pipe(generator=torch.Generator().manual_seed(wanted["seed"]), **wanted["call"]).images[0]
image.save(wanted["to"])
"""


def plain(tmp_path: Path, name: str, **wanted) -> np.ndarray:
    """One picture from the official pipeline in a fresh process that knows nothing of us."""
    to = tmp_path / f"{name}.png"
    subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps({**wanted, "to": str(to)})],
        check=True, capture_output=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return np.asarray(Image.open(to)).astype(int)


CALLS = {
    "flux1": {"max_sequence_length": 24, "guidance_scale": 3.0},
    "sd1": {"guidance_scale": 3.0},
    "sdxl": {"guidance_scale": 3.0},
}


@pytest.mark.long
@pytest.mark.parametrize("family", CALLS)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_export_draws_the_validation_sample_elsewhere(
    family: str, kind: str, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same seed, same prompt: at most 1/255 apart, with alpha unlike rank, and unlike the base's picture."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    source, out = tiny(family), tmp_path / "run"
    adapter = {"kind": "lora", "rank": 4, "alpha": 10} if kind == "lora" else {"kind": "full"}
    recipe = {
        "name": "export", "family": family, "source": str(source), "adapter": adapter,
        "options": {"max_tokens": 24} if family == "flux1" else {},
        "data": [{"path": str(pictures(tmp_path / "pictures", 3))}], "media": {"resolutions": [64]},
        "train": {"steps": 8, "batch": 2, "lr": 2e-2 if kind == "lora" else 2e-3, "precision": "fp32"},
        "validate": {"prompts": ["a fractal of many colours"], "steps": 4, "guidance": 3.0, "seed": 7,
                     "size": [64, 96]},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(out)]) == 0
    ours = np.asarray(Image.open(out / "samples" / "step-000008-00.png")).astype(int)
    before = np.asarray(Image.open(out / "samples" / "step-000000-00.png")).astype(int)

    call = {"prompt": "a fractal of many colours", "num_inference_steps": 4, "width": 64, "height": 96, **CALLS[family]}
    whole = out / "export" / "model"
    loaded = plain(
        tmp_path, "loaded", call=call, seed=7,
        source=str(whole if kind == "full" else source),
        lora=None if kind == "full" else str(out / "export" / "diffusers"),
    )  # fmt: skip
    assert np.abs(loaded - ours).max() <= 1
    assert np.abs(ours - before).max() > 8, "training changed nothing: the comparison would prove nothing"
    base = plain(tmp_path, "base", call=call, seed=7, source=str(source), lora=None)
    assert np.abs(base - before).max() <= 1
    if kind == "full":
        written = "".join(p.read_text() for p in whole.rglob("*.json") if p.parent.name in ("transformer", "unet"))
        assert str(tmp_path) not in written and str(source) not in written, "the export names folders of this machine"
    else:
        with safe_open(out / "export" / "diffusers" / "pytorch_lora_weights.safetensors", "pt") as file:
            stated = json.loads(file.metadata()["lora_adapter_metadata"])
        part = "transformer" if family == "flux1" else "unet"
        assert (stated[f"{part}.r"], stated[f"{part}.lora_alpha"]) == (4, 10)
