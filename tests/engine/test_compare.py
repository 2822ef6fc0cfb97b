"""`tuner sample`: base and adapters side by side, with the same seed, through the official pipeline's own loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from tests.engine.test_runs import pictures
from tuner.__main__ import main
from tuner.events import follow


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with an adapter that shows."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(folder / "home"))
        recipe = {
            "family": "flux1", "source": str(tiny("flux1")), "options": {"max_tokens": 24},
            "data": [{"path": str(pictures(folder / "pictures", 3))}], "media": {"resolutions": [64]},
            "adapter": {"rank": 4, "alpha": 8}, "train": {"steps": 6, "batch": 2, "lr": 2e-2, "precision": "fp32"},
        }  # fmt: skip
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def drawn(tmp_path: Path, run: Path, contenders: list[dict], **change) -> tuple[int, list[np.ndarray]]:
    """(exit code, the pictures in the order of the contenders)."""
    source = yaml.safe_load((run / "recipe.yaml").read_text())["source"]
    request = {
        "family": "flux1", "source": source, "options": {"max_tokens": 24}, "prompts": ["a fractal"], "seeds": [3],
        "steps": 3, "size": [64, 48], "contenders": contenders, **change,
    }  # fmt: skip
    (tmp_path / "request.yaml").write_text(yaml.safe_dump(request))
    code = main(["sample", str(tmp_path / "request.yaml"), "--out", str(tmp_path / "out")])
    events, _ = follow(tmp_path / "out" / "events.jsonl")
    files = [tmp_path / "out" / e["file"] for e in events if e["kind"] == "sample"]
    return code, [np.asarray(Image.open(f)).astype(int) for f in files]


def test_strength_runs_from_the_base_to_the_adapter_and_beyond(run: Path, tmp_path: Path) -> None:
    columns = [{"label": "base"}, *({"label": str(s), "adapter": str(run), "strength": s} for s in (0.0, 0.5, 1.0))]
    code, (base, none, half, whole) = drawn(tmp_path, run, columns)
    assert code == 0 and base.shape == (48, 64, 3)
    assert np.abs(base - none).max() <= 1
    assert 2 < np.abs(half - base).max() < np.abs(whole - base).max() * 1.01


def test_an_adapter_is_found_by_run_checkpoint_or_file(run: Path, tmp_path: Path) -> None:
    places = [
        run,
        run / "checkpoints" / "step-000006",
        run / "export" / "diffusers" / "pytorch_lora_weights.safetensors",
    ]
    code, found = drawn(tmp_path, run, [{"label": str(i), "adapter": str(p)} for i, p in enumerate(places)])
    assert code == 0
    assert all((picture == found[0]).all() for picture in found)


def test_a_contender_that_does_not_fit_leaves_the_others(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"x" * 40)
    columns = [{"label": "base"}, {"label": "broken", "adapter": str(broken)}, {"label": "good", "adapter": str(run)}]
    code, pictures = drawn(tmp_path, run, columns)
    told = follow(tmp_path / "out" / "events.jsonl")[0]
    assert code == 0 and len(pictures) == 2 and told[-1]["kind"] == "finished"
    [refused] = [e for e in told if e["kind"] == "refused"]
    assert refused["contender"] == 1 and str(broken) in refused["text"]
    assert [e["contender"] for e in told if e["kind"] == "sample"] == [0, 2]
    last = [e for e in told if e["kind"] == "phase"][-1]
    assert last["done"] == last["of"] == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"contenders": [{"label": "x", "adapter": "/no/such/file"}]}, "/no/such/file holds no adapter"),
        ({"size": [60, 64]}, "size is [60, 64]; both must be multiples of 8."),
        ({"options": {"tokens": 3}}, "options.tokens is not a setting"),
        ({"prompts": []}, "prompts is [], but"),
        ({"stpes": 4}, "stpes is not a setting; did you mean steps?"),
    ],
)
def test_bad_requests(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, sentence: str
) -> None:
    code, _ = drawn(tmp_path, run, **{"contenders": [{"label": "base"}], **change})
    assert code == 1
    assert sentence in capsys.readouterr().err


def test_files_that_are_no_adapter_of_this_family(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.safetensors"
    unet = {f"unet.mid_block.attentions.0.to_q.lora_{k}.weight": torch.ones(4, 4) for k in "AB"}
    for content in (b"not safetensors at all", save(unet)):
        foreign.write_bytes(content)
        code, _ = drawn(tmp_path, run, [{"label": "x", "adapter": str(foreign)}])
        said = capsys.readouterr().err
        assert code == 1 and str(foreign) in said and "choose an adapter of this family" in said
    (tmp_path / "pickle.bin").write_bytes(b"x")
    code, _ = drawn(tmp_path, run, [{"label": "x", "adapter": str(tmp_path / "pickle.bin")}])
    assert code == 1 and "is no .safetensors file" in capsys.readouterr().err
