"""Baking into a model folder and taking the difference of two: through each other and through the official pipeline."""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from tests.toolbox import made
from tuner.errors import UserError
from tuner.formats.apply import over
from tuner.formats.layers import Layer
from tuner.source import Source
from tuner.toolbox import place
from tuner.toolbox.bake import bake
from tuner.toolbox.extract import How, extract
from tuner.toolbox.lowrank import Cut
from tuner.toolbox.weights import Weights

STRENGTHS = [1.0, -0.5, 0.1, 0.5, -1.0, 2.0]
"""Of a DoRA, a LoKr, a LoHa, an OFT, a GLoRA and an IA3."""


def hashes(folder: Path) -> dict[str, str]:
    """What a folder holds."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def adapter(source: Source, part: str, rank: int = 2, size: float = 0.1) -> list[Layer]:
    """A LoRA on every linear layer and convolution of a component."""
    layers = []
    for i, (name, module) in enumerate(source.outline(part).named_modules()):
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            one = made.lora(name, tuple(module.weight.shape), rank, 2 * i)
            tensors = {k: v * size for k, v in one.tensors.items()}
            layers.append(Layer(part, name, "lora", tensors, 2.0 * rank))
    return layers


def weights(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """All weights of a component."""
    found = Weights(folder / part)
    return {k: found.get(k) for k in found.entries}


def draw(pipe: Any, steps: int = 2) -> np.ndarray:
    """One picture, 0..1."""
    pipe.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"num_inference_steps": steps, "width": 64, "height": 64, "output_type": "np"}
    if "Flux" in type(pipe).__name__:
        settings["max_sequence_length"] = 32
    return pipe("a red photo", generator=torch.Generator().manual_seed(3), **settings).images[0]


@pytest.mark.parametrize("family", ["sd1", "flux1"])
def test_a_baked_model_draws_what_the_model_with_its_adapter_draws(tiny, tmp_path: Path, family: str) -> None:
    folder = tiny(family)
    source, before = Source(str(folder), {}), hashes(folder)
    part = "unet" if family == "sd1" else "transformer"
    layers = [*adapter(source, part), *adapter(source, "text_encoder")]
    live = DiffusionPipeline.from_pretrained(folder)
    base = draw(live)
    for name in (part, "text_encoder"):
        over(getattr(live, name), [one for one in layers if one.part == name], 0.8)
    wanted = draw(live)
    done = bake([(layers, 0.8)], source, tmp_path / "out")
    got = draw(DiffusionPipeline.from_pretrained(tmp_path / "out"))
    assert np.abs(wanted - base).max() > 2 / 255
    assert np.abs(got - wanted).max() <= 1 / 255
    assert hashes(folder) == before
    assert set(done) == {part, "text_encoder"}
    assert done[part].tensors == sum(one.part == part for one in layers)
    assert done[part].as_dict()["rounding"] < 1e-5
    unchanged = next((folder / "vae").glob("*.safetensors"))
    assert (tmp_path / "out" / "vae" / unchanged.name).samefile(unchanged)
    assert not (tmp_path / "out" / "vae" / "config.json").samefile(folder / "vae" / "config.json")


@pytest.mark.parametrize("family", ["sd1", "flux1", "sdxl"])
def test_bake_then_extract_gives_the_adapter_back(tiny, tmp_path: Path, family: str) -> None:
    base = Source(str(tiny(family)), {})
    part = "transformer" if family == "flux1" else "unet"
    layers = [*adapter(base, part), *adapter(base, "text_encoder")]
    bake([(layers, 1.0)], base, tmp_path / "tuned")
    found = extract(Source(str(tmp_path / "tuned"), {}), base, How(Cut(rank=2)))
    assert {(f.part, f.module) for f in found.layers} == {(one.part, one.module) for one in layers}
    assert found.left == []
    wanted = {(one.part, one.module): one.delta() for one in layers}
    for one in found.layers:
        # the tuned model is float32: what was added is known to its rounding only
        made.close(one.delta(), wanted[one.part, one.module], 1e-5)


@pytest.mark.parametrize("family", ["sd1", "flux1"])
def test_extract_at_full_rank_then_bake_gives_the_tuned_model(tiny, tmp_path: Path, family: str) -> None:
    base = Source(str(tiny(family)), {})
    tuned = Source(str(tiny(family, seed=1)), {})
    found = extract(tuned, base, How(Cut(rank=10_000), whole=True))
    embeddings = {name for name, _ in found.left}
    assert all("embed" in name for name in embeddings), embeddings
    bake([(found.layers, 1.0)], base, tmp_path / "again")
    for part in ("unet" if family == "sd1" else "transformer", "text_encoder"):
        wanted, got = weights(tuned.folder, part), weights(tmp_path / "again", part)
        assert wanted.keys() == got.keys()
        for key in wanted:
            if f"{part}.{key.removeprefix('text_model.')}" not in embeddings:
                made.close(got[key], wanted[key])


def test_what_a_lora_cannot_hold_is_counted_not_dropped(tiny, tmp_path: Path) -> None:
    base = Source(str(tiny("sd1")), {})
    found = extract(Source(str(tiny("sd1", seed=1)), {}), base, How(Cut(rank=2), only=("unet",)))
    assert all(one.kind == "lora" and one.part == "unet" for one in found.layers)
    assert any(name.endswith("norm1.weight") for name, _ in found.left)
    assert 0 < found.left_share < 1
    old, new = weights(tiny("sd1"), "unet"), weights(tiny("sd1", seed=1), "unet")
    for one, kept in list(zip(found.layers, found.kept, strict=True))[:12]:
        difference = new[f"{one.module}.weight"] - old[f"{one.module}.weight"]
        best = torch.linalg.svdvals(difference.flatten(1).double())[2:].norm().item()
        assert kept.missing == pytest.approx(best, rel=1e-4)


def test_every_kind_is_baked_and_order_does_not_matter(tiny, tmp_path: Path) -> None:
    source = Source(str(tiny("flux1")), {})
    name = "transformer_blocks.0.attn.to_q"
    weight = weights(source.folder, "transformer")[f"{name}.weight"]
    shape = tuple(weight.shape)
    kinds = [made.dora(name, shape, 2), made.lokr(name, shape), made.loha(name, shape, 2)]
    kinds += made.on_base(name, shape[0])
    norm = Layer("transformer", "transformer_blocks.0.attn.norm_q", "diff", {"weight": made.rand(16, seed=1)})
    bias = Layer("transformer", name, "diff", {"bias": made.rand(shape[0], seed=2)})
    wanted = [([one], s) for one, s in zip([*kinds, norm, bias], [*STRENGTHS, 2.0, 1.0], strict=True)]
    bake(wanted, source, tmp_path / "a")
    bake(wanted[::-1], source, tmp_path / "b")
    got = weights(tmp_path / "a", "transformer")
    expected = weight + sum(s * one.delta(weight) for one, s in zip(kinds, STRENGTHS, strict=True))
    made.close(got[f"{name}.weight"], expected)
    before = weights(source.folder, "transformer")
    made.close(got[f"{name}.bias"], before[f"{name}.bias"] + bias.tensors["bias"])
    made.close(got[f"{norm.module}.weight"], before[f"{norm.module}.weight"] + 2 * norm.tensors["weight"])
    changed = {k for k in got if not got[k].equal(before[k])}
    assert changed == {f"{name}.weight", f"{name}.bias", f"{norm.module}.weight"}
    for key, value in weights(tmp_path / "b", "transformer").items():
        made.close(value, got[key], 1e-5)


def test_the_models_own_numbers_stay_unless_others_are_asked_for(tiny, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny("sd1"), half)
    for file in half.rglob("*.safetensors"):
        save_file({k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}, file)
    source = Source(str(half), {})
    layers = [*adapter(source, "unet"), *adapter(source, "text_encoder")]
    done = bake([(layers, 1.0)], source, tmp_path / "own")
    assert {v.dtype for v in weights(tmp_path / "own", "unet").values()} == {torch.float16}
    assert 1e-5 < done["unet"].as_dict()["rounding"] < 0.1
    bake([(layers, 1.0)], source, tmp_path / "wide", torch.bfloat16)
    assert {v.dtype for v in weights(tmp_path / "wide", "unet").values()} == {torch.bfloat16}
    # the embeddings' positions are whole numbers and stay so
    assert torch.bfloat16 in {v.dtype for v in weights(tmp_path / "wide", "text_encoder").values()}
    settings = json.loads((tmp_path / "wide" / "text_encoder" / "config.json").read_text())
    assert settings.get("dtype", settings.get("torch_dtype")) == "bfloat16"
    DiffusionPipeline.from_pretrained(tmp_path / "wide")


def sharded(folder: Path, out: Path, part: str, size: str) -> Path:
    """The same model, a component in several files."""
    shutil.copytree(folder, out)
    network = Source(str(folder), {}).load(part, torch.float32)
    shutil.rmtree(out / part)
    network.save_pretrained(out / part, max_shard_size=size)
    assert len(list((out / part).glob("*.safetensors"))) > 2
    return out


def test_shards_stay_shards(tiny, tmp_path: Path) -> None:
    folder = sharded(tiny("flux1"), tmp_path / "sharded", "transformer", "40KB")
    source = Source(str(folder), {})
    layers = adapter(source, "transformer")
    bake([(layers, 1.0)], source, tmp_path / "out")
    bake([(layers, 1.0)], Source(str(tiny("flux1")), {}), tmp_path / "whole")
    names = {p.name for p in (folder / "transformer").iterdir()}
    assert {p.name for p in (tmp_path / "out" / "transformer").iterdir()} == names
    wanted, got = weights(tmp_path / "whole", "transformer"), weights(tmp_path / "out", "transformer")
    assert wanted.keys() == got.keys()
    assert all(got[k].equal(wanted[k]) for k in got)
    found = extract(Source(str(tmp_path / "out"), {}), Source(str(tiny("flux1")), {}), How(Cut(rank=2)))
    assert len(found.layers) == len(layers)
    DiffusionPipeline.from_pretrained(tmp_path / "out")


def anonymous() -> int:
    """Bytes of memory that are in use: neither files that the system may drop, nor what the allocator keeps back."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def deep(folder: Path, out: Path, blocks: int, seed: int) -> Source:
    """A model whose transformer is a stack of wide one-stream blocks, 4 MB each, in one file."""
    from diffusers import FluxTransformer2DModel

    shutil.copytree(folder, out, ignore=lambda d, n: ["transformer"] if Path(d) == folder else [])
    torch.manual_seed(seed)
    shape = {"num_layers": 0, "num_single_layers": blocks, "attention_head_dim": 16, "num_attention_heads": 16}
    settings = json.loads((folder / "transformer" / "config.json").read_text()) | shape
    FluxTransformer2DModel.from_config(settings).save_pretrained(out / "transformer")
    return Source(str(out), {})


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs Linux's account of memory")
def test_memory_does_not_grow_with_the_model(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks: list[int] = []
    got = Weights.get

    def watched(self: Weights, key: str) -> torch.Tensor:
        peaks.append(anonymous())
        return got(self, key)

    monkeypatch.setattr(Weights, "get", watched)
    grown: dict[str, list[float]] = {"extract": [], "bake": []}
    for blocks in (4, 4, 16):  # the first round only loads the libraries
        base = deep(tiny("flux1"), tmp_path / f"base-{blocks}-{len(grown['bake'])}", blocks, 0)
        tuned = deep(tiny("flux1"), tmp_path / f"tuned-{blocks}-{len(grown['bake'])}", blocks, 1)
        peaks.clear()
        start = anonymous()
        found = extract(tuned, base, How(Cut(rank=1)))
        grown["extract"].append((max(peaks) - start) / 1e6)
        peaks.clear()
        start = anonymous()
        bake([(found.layers, 1.0)], base, tmp_path / f"baked-{blocks}-{len(grown['bake'])}")
        grown["bake"].append((max(peaks) - start) / 1e6)
    more = 12 * sum(p.numel() for p in tuned.outline("transformer").single_transformer_blocks[0].parameters()) * 4 / 1e6
    print(
        f"12 more blocks ({more:.0f} MB) cost { ({k: round(v[2] - v[1], 1) for k, v in grown.items()}) } MB of memory"
    )
    assert more > 30
    assert all(v[2] - v[1] < more / 4 for v in grown.values()), grown


def test_models_of_another_architecture_have_no_difference(tiny, tmp_path: Path) -> None:
    base = Source(str(tiny("flux1")), {})
    other = Source(str(tiny("flux1", transformer_settings={"num_layers": 1})), {})
    with pytest.raises(
        UserError, match=r"not of one architecture: in transformer, .* lacks .*settings that differ: num"
    ):
        extract(other, base, How(Cut(rank=2)))
    with pytest.raises(UserError, match=r"has transformer and .* has unet"):
        extract(Source(str(tiny("sd1")), {}), base, How(Cut(rank=2)))
    with pytest.raises(UserError, match="--part is vae; these two models share transformer, text_encoder"):
        extract(base, base, How(Cut(rank=2), only=("vae",)))
    with pytest.raises(UserError, match="are equal in transformer, text_encoder; there is nothing to extract"):
        extract(base, base, How(Cut(rank=2)))


def test_an_adapter_of_another_model_is_not_baked_and_leaves_nothing(tiny, tmp_path: Path) -> None:
    source = Source(str(tiny("sd1")), {})
    foreign = [made.lora("transformer_blocks.0.attn.to_q", (32, 32), 2)]
    with pytest.raises(UserError, match="has no transformer in its model_index"):
        bake([(foreign, 1.0)], source, tmp_path / "out")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    misshapen = Layer("unet", name, "lora", made.lora("", (7, 9), 2).tensors)
    with pytest.raises(UserError, match=r"the shape \[7, 9\]|do not fit"):
        bake([([misshapen], 1.0)], source, tmp_path / "out")
    absent = Layer("unet", "nowhere.to_q", "lora", made.lora("", (7, 9), 2).tensors)
    with pytest.raises(UserError, match=r"changes unet\.nowhere\.to_q\.weight, which .* does not have"):
        bake([([absent], 1.0)], source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over_or_half(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(str(tiny("sd1")), {})
    layers = adapter(source, "unet")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there is there already and is not overwritten"):
        bake([(layers, 1.0)], source, tmp_path / "there")
    with pytest.raises(UserError, match="lies in the model"):
        bake([(layers, 1.0)], source, source.folder / "out")
    with pytest.raises(UserError, match="does not exist; make it first"):
        bake([(layers, 1.0)], source, tmp_path / "a" / "b")
    with (
        pytest.raises(UserError, match=r"no space left to write in .*; free some space, then try again"),
        place.new(tmp_path / "huge", 10**18),
    ):
        pass

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tuner.toolbox.bake.stream", full)
    with pytest.raises(UserError, match="the disk is full"):
        bake([(layers, 1.0)], source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_damaged_and_unsafe_models_are_refused_in_a_sentence(tiny, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        shutil.copytree(tiny("sd1"), tmp_path / name)
        return tmp_path / name

    layers = adapter(Source(str(tiny("sd1")), {}), "unet")
    cut = copy("cut")
    file = cut / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    pickled = copy("pickled")
    (pickled / "unet" / file.name).rename(pickled / "unet" / "diffusion_pytorch_model.bin")
    none = copy("none")
    (none / "unet" / file.name).unlink()
    small = copy("small")
    settings = small / "unet" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"quantization_config": {"quant_method": "x"}}))
    lacking = sharded(tiny("sd1"), tmp_path / "lacking", "unet", "200KB")
    sorted((lacking / "unet").glob("*.safetensors"))[1].unlink()
    for folder, says in (
        (cut, "is damaged"), (pickled, r"\.bin files, which can hold programs"), (none, "has no weights"),
        (small, "stored quantised"), (lacking, "which its index names"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            bake([(layers, 1.0)], Source(str(folder), {}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
