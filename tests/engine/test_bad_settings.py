"""Bad input through the command line: one plain sentence that names the setting or file, exit code 1, nothing lost."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.engine.test_runs import pictures
from tuner.__main__ import main


@pytest.fixture
def start(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """start(command, **changed top-level settings) → (exit code, what was said on stderr, standard output)."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    folder = pictures(tmp_path / "pictures", 3)

    def run(command: str = "run", *overrides: str, **settings) -> tuple[int, str, str]:
        recipe = {
            "family": "flux1", "source": str(tiny("flux1")), "options": {"max_tokens": 24},
            "data": [{"path": str(folder)}], "media": {"resolutions": [64]}, "adapter": {"rank": 2},
            "train": {"steps": 1, "precision": "fp32"}, **settings,
        }  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
        out = ["--out", str(tmp_path / "run")] if command == "run" else []
        code = main([command, str(tmp_path / "recipe.yaml"), *overrides, *out])
        assert before == {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
        said = capsys.readouterr()
        return code, said.err, said.out

    return run


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"family": "flux9"}, "family is 'flux9', which is not one of "),
        ({"task": "edit"}, "task is edit, but source "),
        ({"task": "continue"}, "task is 'continue', but flux1 trains generate, edit; change `task`."),
        ({"source": "/no/such/model"}, "source is '/no/such/model', which is neither a folder, nor a Hub id"),
        ({"options": {"max_token": 8}}, "options.max_token is not a setting; did you mean options.max_tokens?"),
        ({"extensions": [{"kind": "emma"}]}, "extensions: kind 'emma' is not one of ema, masked_loss, tread"),
        ({"extensions": [{"kind": "ema", "decay": 2}]}, "extensions.0.decay is 2, but it should be less than 1"),
        ({"extensions": [{"kind": "ema"}, {"kind": "ema"}]}, "extensions: ema stands twice; keep one."),
        ({"extensions": [{"kind": "masked_loss"}]}, "data.0.mask"),
        ({"extensions": [{"kind": "tread", "first": 4, "last": 1}]}, "tread"),
        ({"adapter": {"targets": "everything"}}, "adapter.targets is 'everything'; flux1 has the presets default"),
        ({"adapter": {"targets": ["to_x"]}}, "adapter.targets: to_x matches no layer; layers end in"),
        ({"train": {"steps": 2, "snr_gamma": 5.0}}, "train.snr_gamma has no meaning for flux1; remove it."),
        ({"train": {"steps": 1, "precision": "fp16"}}, "train.precision is fp16, which trains on CUDA and ROCm only"),
        ({"train": {"steps": 1, "optimizer_options": {"beta": 1}}}, "train.optimizer_options.beta"),
        ({"validate": {"prompts": ["a"], "size": [60, 64]}}, "validate.size is [60, 64]; both must be multiples of 8."),
        ({"data": [{"path": "/no/such/folder"}]}, "/no/such/folder"),
        ({"memory": {"attention": "nonsense"}}, "memory.attention is 'nonsense'"),
    ],
)
def test_bad_settings(start, settings: dict, sentence: str) -> None:
    code, said, _ = start(**settings)
    assert code == 1
    assert sentence in said
    assert "Traceback" not in said


def test_a_folder_that_is_no_model(start, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, said, _ = start(source=str(tmp_path / "empty"))
    assert code == 1 and "has no model_index.json" in said and str(tmp_path / "empty") in said


def test_a_model_of_another_family(start, tiny) -> None:
    code, said, _ = start(source=str(tiny("sdxl")))
    assert code == 1 and "is a StableDiffusionXLPipeline model, but family flux1 needs one of FluxPipeline" in said


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder_2", "tokenizer"])
def test_a_model_with_a_part_missing_or_broken(start, tiny, tmp_path: Path, part: str) -> None:
    whole = shutil.copytree(tiny("flux1"), tmp_path / "model")
    shutil.rmtree(whole / part)
    code, said, _ = start(source=str(whole))
    assert code == 1 and part in said and "download" in said and "Traceback" not in said


def test_weights_that_are_cut_off(start, tiny, tmp_path: Path) -> None:
    whole = shutil.copytree(tiny("flux1"), tmp_path / "model")
    weights = next((whole / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    code, said, _ = start(source=str(whole))
    assert code == 1 and "transformer could not be loaded" in said


def test_check_lists_everything_at_once_and_the_plan(start, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "3.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "4.png")
    code, _, out = start("check", train={"steps": 2, "warmup": 5})
    report = json.loads(out)
    assert code == 1 and report["ok"] is False
    texts = " ".join(p["text"] for p in report["problems"])
    assert "3.png" in texts and "no caption" in texts and "train.warmup" in texts
    assert sum(b["items"] for b in report["plan"]["buckets"]) == report["plan"]["items"] == 3
    code, _, out = start("check", "data.0.on_problem=skip", "data.0.caption=x")
    report = json.loads(out)
    assert code == 0 and report["ok"] is True and report["plan"]["steps_per_epoch"] == 4
    assert [p["level"] for p in report["problems"] if "3.png" in p["text"]] == ["warning"]


def test_a_caption_that_is_too_long(start, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "1.txt").write_text("many words " * 30)
    code, said, _ = start()
    assert code == 1 and "1.png" in said and "tokenizer_2 of flux1 takes 24" in said and "on_problem=skip" in said
    code, _, out = start("run", "data.0.on_problem=skip")
    assert code == 0 and any(json.loads(line)["kind"] == "warning" for line in out.splitlines())


def test_resume_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err


def test_cache_alone_fills_what_a_run_then_finds(start, tmp_path: Path) -> None:
    code, _, out = start("cache")
    assert code == 0 and "3 media entries and 4 texts" in out
    code, _, out = start()
    assert code == 0 and '"cache pictures"' not in out and '"cache text"' not in out


def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 1
    assert "invalid choice: 'trian'" in capsys.readouterr().err
