"""Diffusers' own converters read our ComfyUI and kohya files as the same adapter."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
from safetensors.torch import save_file

from tests.formats.networks import lora, model
from tests.formats.test_round_trips import same
from tuner.formats import file, write
from tuner.formats.dialects import understood
from tuner.formats.layers import Layer


@pytest.mark.parametrize(
    ("family", "target", "pipeline", "endings"),
    [
        ("wan", "comfyui", "WanPipeline", ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")),
        ("wan", "kohya", "WanPipeline", ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")),
        ("sd1", "kohya", "StableDiffusionPipeline", ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")),
    ],
)
def test_converted(family: str, target: str, pipeline: str, endings: tuple[str, ...], tmp_path: Path) -> None:
    chosen = model(family)
    layers = lora(chosen, endings)
    sheet = write.WRITERS[target](layers, chosen.places, chosen.weight)
    save_file({k: v.contiguous() for k, v in sheet.tensors.items()}, tmp_path / "a.safetensors")
    found = getattr(diffusers, pipeline).lora_state_dict(str(tmp_path), weight_name="a.safetensors")
    state, alphas = found if isinstance(found, tuple) else (found, None)
    contents = understood(file.File(tmp_path / "b.safetensors", state, {}), chosen.places)
    assert not contents.leftover
    if alphas:  # diffusers keeps alphas beside the state, by names of its own
        assert set(alphas.values()) == {2.0} and len(alphas) == len(layers)
        contents.layers = [Layer(x.part, x.module, x.kind, x.tensors, 2.0) for x in contents.layers]
    same(chosen, layers, contents.layers, 1e-5)
