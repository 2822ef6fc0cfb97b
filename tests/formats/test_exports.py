"""A run's files: each format written, checked and told; drawn the same by `tuner sample`; written again later."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.engine.test_runs import pictures
from tests.formats.networks import lora, model
from tests.tiny import build
from tuner import export, families, jobs, prepare, recipe
from tuner.__main__ import main
from tuner.events import follow
from tuner.formats import metadata, write
from tuner.formats.layers import Layer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on FLUX.1 whose adapter shows."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(folder / "home"))
        asked = {
            "name": "a run", "description": "secret words", "family": "flux1", "options": {"max_tokens": 24},
            "source": str(build("flux1", folder / "model")), "data": [{"path": str(pictures(folder / "private", 2))}],
            "media": {"resolutions": [64]}, "adapter": {"rank": 4, "alpha": 8},
            "save": {"every": 2, "metadata": "share"},
            "train": {"steps": 4, "batch": 2, "lr": 2e-2, "precision": "fp32"},
        }  # fmt: skip
        (folder / "recipe.yaml").write_text(yaml.safe_dump(asked))
        assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_every_format_is_checked_and_told(run: Path) -> None:
    event = next(e for e in follow(run / "events.jsonl")[0] if e["kind"] == "export")
    assert event["verified"]
    assert {f["format"]: f["loads_in"] for f in event["files"]} == {
        "diffusers": ["diffusers"], "comfyui": ["ComfyUI"], "kohya": ["kohya-style tools"],
    }  # fmt: skip
    assert all((run / f["path"]).is_file() for f in event["files"])
    said = header(run / "export" / "comfyui" / "a run.safetensors")
    assert said["ss_network_dim"] == "4" and said["ss_network_alpha"] == "8.0" and said["ss_v2"] == "False"
    assert said["modelspec.architecture"] == "flux-1-dev/lora" and said["modelspec.hash_sha256"].startswith("0x")
    assert "private" not in json.dumps(said) and "secret" not in json.dumps(said)


def test_all_files_draw_the_same(run: Path, tmp_path: Path) -> None:
    source = yaml.safe_load((run / "recipe.yaml").read_text())["source"]
    places = [None, run, *sorted((run / "export").glob("*/a run.safetensors"))]
    columns = [{"label": str(i), **({"adapter": str(p)} if p else {})} for i, p in enumerate(places)]
    request = {
        "family": "flux1", "source": source, "options": {"max_tokens": 24}, "prompts": ["a fractal"], "steps": 2,
        "size": [64, 64], "contenders": columns,
    }  # fmt: skip
    (tmp_path / "request.yaml").write_text(yaml.safe_dump(request))
    assert main(["sample", str(tmp_path / "request.yaml"), "--out", str(tmp_path / "grid")]) == 0
    base, *drawn = (np.asarray(Image.open(p)).astype(int) for p in sorted((tmp_path / "grid").glob("*.png")))
    assert len(drawn) == 3
    assert np.abs(drawn[0] - base).max() > 4
    assert all(np.abs(d - drawn[0]).max() <= 1 for d in drawn)


def test_an_older_checkpoint_is_written_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    arguments = ["--formats", "comfyui", "--precision", "bf16", "--metadata", "full"]
    assert main(["export", str(run / "checkpoints" / "step-000002"), *arguments]) == 0
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert event["verified"] and [f["format"] for f in event["files"]] == ["comfyui"]
    path = run / "export" / "step-000002" / "comfyui" / "a run.safetensors"
    said = header(path)
    assert said["ss_training_comment"] == "secret words" and "private" in said["ss_dataset_dirs"]
    assert said["ss_steps"] == "2"
    with safe_open(path, "pt") as file:
        kinds = {str(file.get_tensor(k).dtype) for k in file.keys() if "lora_" in k}  # noqa: SIM118
    assert kinds == {"torch.bfloat16"}


def test_a_file_from_elsewhere_is_written_in_all_formats_with_a_journal(run: Path, tmp_path: Path) -> None:
    given = tmp_path / "found.safetensors"
    given.write_bytes((run / "export" / "kohya" / "a run.safetensors").read_bytes())
    job, source = tmp_path / "job", yaml.safe_load((run / "recipe.yaml").read_text())["source"]
    base = ["--family", "flux1", "--model", source]
    assert main(["export", str(given), "--out", str(job / "export"), "--job", str(job), *base]) == 0
    told = follow(job / "events.jsonl")[0]
    assert [e["kind"] for e in (told[0], told[-1])] == ["started", "finished"]
    files = next(e for e in told if e["kind"] == "export")["files"]
    assert [f["format"] for f in files] == ["diffusers", "comfyui", "kohya"]
    assert not any(f["problems"] for f in files) and all((job / "export" / f["path"]).is_file() for f in files)
    ours, theirs = (load_file(p / "kohya" / name) for p, name in
                    ((run / "export", "a run.safetensors"), (job / "export", "found.safetensors")))  # fmt: skip
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_what_stands_in_the_way_is_in_the_journal(run: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.safetensors").write_bytes(b"no such file")
    assert main(["export", str(tmp_path / "odd.safetensors"), "--job", str(tmp_path / "job")]) == 1
    last = follow(tmp_path / "job" / "events.jsonl")[0][-1]
    assert last["kind"] == "failed" and last["user"] and "odd.safetensors" in last["error"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["/no/such/run"], "is no run folder and no whole checkpoint"),
        (["RUN", "--formats", "pickle"], "--formats has pickle; choose of diffusers"),
    ],
)
def test_bad_exports(run: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *(str(run) if a == "RUN" else a for a in arguments)]) == 1
    assert sentence in capsys.readouterr().err


def test_a_format_that_the_family_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = export.checked(["comfyui", "kohya", "diffusers"], families.get("omnigen").names)
    assert [s.split(",")[0] for s in said] == ["save.formats names comfyui", "save.formats names kohya"]


@pytest.mark.parametrize(
    ("adapter", "own"),
    [
        ({"kind": "full"}, "a whole model"),
        ({"kind": "controlnet"}, "a ControlNet"),
        ({"kind": "peft", "algorithm": "ia3"}, "peft's own file"),
    ],
)
def test_formats_that_a_kind_does_not_write_are_refused(adapter: dict, own: str) -> None:
    wanted = {"family": "flux1", "source": "x", "data": [{"path": "x"}], "adapter": adapter}
    for formats, said in ((["comfyui"], [own]), ([], [])):
        asked = recipe.Recipe.model_validate({**wanted, "save": {"formats": formats}})
        ready: Any = SimpleNamespace(recipe=asked, family=families.get("flux1")())
        found = [p.text for p in prepare.formats(ready)]
        assert len(found) == len(said)
        assert all(o in t for o, t in zip(said, found, strict=True))


def test_an_export_that_does_not_load_is_told_by_the_exit_code(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a journal and without one."""
    monkeypatch.setattr(jobs, "_written", lambda asked, say: False)
    assert main(["export", str(run)]) == 1
    assert main(["export", str(run), "--job", str(tmp_path / "job")]) == 1
    assert follow(tmp_path / "job" / "events.jsonl")[0][-1]["kind"] == "finished"


@pytest.mark.parametrize(
    ("family", "endings", "name"),
    [
        ("flux1", ("norm_out.linear", "attn.to_q"), "final_layer.adaLN_modulation.1"),
        ("sd1", ("conv_in", "to_q"), "conv_in"),
        ("sdxl", ("time_embedding.linear_1", "to_q"), "time_embed.0"),
    ],
)
def test_layers_that_kohyas_own_networks_leave_out(
    family: str, endings: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    """Measured with sd-scripts' networks: they look for adapters in the blocks, and say nothing of the rest. LyCORIS
    looks everywhere."""
    chosen = model(family)
    layers = lora(chosen, endings)
    wish = export.Wish(formats=("kohya",))
    order = export.Order(tmp_path, chosen.places.names, chosen.networks, None, "network", wish)
    (whole,) = export.files(layers, order)
    assert whole.loads_in == ("lycoris-lora",) and not whole.problems
    assert chosen.places.lost(x.module for x in layers) == name
    (inside,) = export.files([x for x in layers if x.module.endswith("to_q")], order)
    assert inside.loads_in == ("kohya-style tools",)


def test_what_is_more_than_two_factors_is_not_said_to_load_in_kohyas_own_networks(tmp_path: Path) -> None:
    """They look for `lora_down` and `lora_up` alone; LyCORIS, which works within them, reads the rest but no bias."""
    chosen, told = model("sd1"), []
    plain, dora = (lora(chosen, ("attn1.to_q",), dora=d) for d in (False, True))
    biased = [replace(x, tensors={**x.tensors, "bias": torch.ones(len(x.tensors["up"]))}) for x in plain]

    def order(**wish: Any) -> export.Order:
        form = export.Wish(tell=told.append, **wish)
        return export.Order(tmp_path, chosen.places.names, chosen.networks, None, "network", form)

    found = {}
    for name, layers in (("plain", plain), ("dora", dora)):
        (file,) = export.files(layers, order(formats=("kohya",)))
        found[name] = file.loads_in
    assert found == {"plain": ("kohya-style tools",), "dora": ("lycoris-lora",)}
    assert not export.files(biased, order(formats=("kohya",)))[0].loads_in
    assert "kohya" not in export.wanted(order(), biased)
    assert "load no bias" in told[-1]


def test_lycoris_finds_an_alpha_in_every_file(tmp_path: Path) -> None:
    """Its reader ends in an error where a LoKr of whole factors has none, though it means nothing there."""
    from lycoris.kohya import get_module, make_module

    chosen = model("sd1")
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    whole = Layer("unet", name, "lokr", {"w1": torch.ones(4, 4), "w2": torch.randn(4, 4)})
    tensors = write.kohya([whole], chosen.places, chosen.weight).tensors
    key = f"lora_unet_{name.replace('.', '_')}"
    module = make_module(*get_module(tensors, key), key, chosen.networks["unet"].get_submodule(name))
    torch.testing.assert_close(module.get_weight(chosen.weight("unet", name).shape), whole.delta())


@pytest.mark.parametrize("format", ["diffusers", "comfyui", "kohya"])
def test_the_header_is_as_modelspec_wants_it(run: Path, format: str) -> None:
    """Version 1.0.1: what a file must have; forms of sizes, times and hashes (of all that follows the header)."""
    path = next((run / "export" / format).glob("*.safetensors"))
    said, raw = header(path), path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    assert said["modelspec.hash_sha256"] == "0x" + hashlib.sha256(raw[start:]).hexdigest()
    assert said["modelspec.sai_model_spec"] == "1.0.1" and said["modelspec.title"] == "a run"
    assert format in said["modelspec.implementation"].lower() or format == "kohya"
    assert re.fullmatch(r"\d+x\d+", said["modelspec.resolution"])
    assert datetime.fromisoformat(said["modelspec.date"]).tzinfo is not None


@pytest.mark.parametrize("resolution", [None, "unknown", "None"])
def test_a_size_that_is_none_is_left_out(resolution: str | None) -> None:
    chosen = model("flux1")
    facts = {} if resolution is None else {"modelspec.resolution": resolution}
    said = metadata.header({}, lora(chosen, ("to_q",)), chosen.places.names, facts, "full", "diffusers")
    assert "modelspec.resolution" not in said
