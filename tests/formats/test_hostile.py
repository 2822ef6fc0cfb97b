"""Files made to break a reader: whatever the bytes, an answer or one sentence, and no more memory than they deserve."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from tests.formats.networks import model
from tuner.errors import UserError
from tuner.formats import dialects, file
from tuner.formats.fitting import checked, fits
from tuner.formats.layers import Layer
from tuner.toolbox import inspect, lowrank

Q = "transformer.transformer_blocks.0.attn.to_q"
FUSED = "lora_unet_double_blocks_0_img_attn_qkv"
PEFT = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"to_q": 3}})}


def made(name: str, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {f"{name}.{key.replace('__', '.')}": torch.randn(shape) * 0.1 for key, shape in shapes.items()}


SOUND: tuple[tuple[dict[str, Tensor], dict[str, str] | None], ...] = (
    (made(Q, lora_A__weight=(4, 32), lora_B__weight=(32, 4), lora_B__bias=(32,), lora_magnitude_vector=(32,)), PEFT),
    (made(FUSED, lora_down__weight=(4, 32), lora_up__weight=(96, 4), alpha=(), dora_scale=(96, 1)), None),
    (made(Q, hada_w1_a=(32, 2), hada_w1_b=(2, 32), hada_w2_a=(32, 2), hada_w2_b=(2, 32), alpha=()), None),
    (made(Q, lokr_w1=(4, 4), lokr_w2_a=(8, 2), lokr_w2_b=(2, 8), alpha=()), None),
    (made(FUSED, lokr_w1=(4, 4), lokr_w2=(24, 8)), None),
    (made(Q, oft_blocks=(4, 8, 8), alpha=(), rescale=(32, 1)), None),
    (made(Q, oft_blocks=(2, 4, 8, 8)), None),
    (made(Q, a1__weight=(32, 2), a2__weight=(2, 32), b1__weight=(32, 2), b2__weight=(2, 32)), None),
    (made(Q, weight=(32,), on_input=()), None),
    (made(Q, ia3_l=(32, 1)), None),
    (made(Q, diff=(32, 32), diff_b=(32,)), None),
)
"""A file of each kind that reads well, to be spoilt."""
KINDS = (
    torch.int8, torch.int64, torch.bool, torch.complex64, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e8m0fnu, torch.uint16, torch.bfloat16,
)  # fmt: skip
STATED = (
    "{", "[]", '[["a", 1]]', "null", '"x"', '{"r": "x", "lora_alpha": "y"}', '{"lora_alpha": 8, "alpha_pattern": [1]}',
    '{"lora_alpha": 8, "alpha_pattern": {"(": 1}}', '{"lora_alpha": 8, "alpha_pattern": {"to_q": "z"}}',
    '{"transformer.lora_alpha": [1]}', '{"transformer.lora_alpha": 1e999}', '{"lora_alpha": NaN}', "[" * 100_000,
    "9" * 5000, f'{{"lora_alpha": {"9" * 4000}}}', '{"feedforward_modules": 3}',
    '{"lora_alpha": 8, "alpha_pattern": {"(t|t)*x": 1}}', '{"lora_alpha": 8, "alpha_pattern": {".*.*.*.*.*x": 1}}',
)  # fmt: skip
NAMES = ("²", "a\nb", "\x1b[2J", "x." + "9" * 5000 + ".lora_A.weight", "", ".", ".lora_A.weight", "x" * 9000, "٣.diff")
SHAPES: tuple[Any, ...] = ([2**62, 4], [], [-1], [2**63], [1] * 70, [2**40, 0], "x", None)
Rng = random.Random


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def some_bytes(rng: Rng, tensors: dict[str, Tensor], stated: dict[str, str] | None) -> bytes:
    content = bytearray(save(tensors, stated))
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.3 else content)


def header(rng: Rng, tensors: dict[str, Tensor], stated: dict[str, str] | None) -> bytes:
    content = bytearray(save(tensors, stated))
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(8, 8 + content[0])] = rng.choice(b'{}[]":,0129-eE\\u\x00\xff aFx.')
    return bytes(content)


def declared(rng: Rng, tensors: dict[str, Tensor], stated: dict[str, str] | None) -> bytes:
    head, data = parts(save(tensors, stated))
    key = rng.choice(sorted(tensors))
    head[key]["shape"] = rng.choice(SHAPES)
    if rng.random() < 0.5:
        head[key]["data_offsets"] = rng.choice([[0, 0], [0, 2**63], [5, 3], [-1, 4], [0, 16]])
    return joined(head, data)


def name(rng: Rng, tensors: dict[str, Tensor], stated: dict[str, str] | None) -> bytes:
    head, data = parts(save(tensors, stated))
    head[rng.choice(NAMES)] = head.pop(rng.choice(sorted(tensors)))
    return joined(head, data)


def shape(rng: Rng, tensors: dict[str, Tensor], stated: dict[str, str] | None) -> bytes:
    sizes = [rng.choice([0, 1, 2, 3, 4, 8, 16, 32, 33, 64]) for _ in range(rng.randint(0, 4))]
    while math.prod(sizes) > 100_000:
        sizes.pop()
    return save({**tensors, rng.choice(sorted(tensors)): torch.randn(sizes)}, stated)


def kind(rng: Rng, tensors: dict[str, Tensor], stated: dict[str, str] | None) -> bytes:
    key = rng.choice(sorted(tensors))
    return save({**tensors, key: tensors[key].to(rng.choice(KINDS))}, stated)


def value(rng: Rng, tensors: dict[str, Tensor], stated: dict[str, str] | None) -> bytes:
    key, new = rng.choice(sorted(tensors)), rng.choice([0.0, math.nan, math.inf, 1e38, -1.0, 1e-45])
    return save({**tensors, key: torch.full_like(tensors[key], new)}, stated)


def settings(rng: Rng, tensors: dict[str, Tensor], stated: dict[str, str] | None) -> bytes:
    return save(tensors, {"lora_adapter_metadata": rng.choice(STATED)})


def mixture(rng: Rng, tensors: dict[str, Tensor], stated: dict[str, str] | None) -> bytes:
    both = {**tensors, **rng.choice(SOUND)[0]}
    return save({k: both[k] for k in rng.sample(sorted(both), rng.randint(1, len(both)))}, stated)


SPOILT: tuple[Callable[[Rng, dict[str, Tensor], dict[str, str] | None], bytes], ...] = (
    some_bytes, header, declared, name, shape, kind, value, settings, mixture,
)  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_file_ends_in_an_answer_or_in_one_sentence(spoil, tmp_path: Path) -> None:
    """Seeded, so that what fails once fails again."""
    rng, path, chosen = random.Random(spoil.__name__), tmp_path / "a.safetensors", model("flux1")
    refused = 0
    for tensors, stated in SOUND * 3:
        with torch.random.fork_rng():
            path.write_bytes(spoil(rng, tensors, stated))
        for look in (lambda: inspect.inspect(path), lambda: changes(path, chosen)):
            try:
                look()
            except UserError as error:
                refused += 1
                text = str(error)
                assert str(path) in text and text.isprintable(), text
                assert len(text) < 700, text
    assert refused


def changes(path: Path, chosen: Any) -> None:
    """All that a file says of the network is of its shapes, and its numbers are numbers."""
    contents = dialects.matched(dialects.understood(file.read(path), chosen.places), path, "FLUX.1")
    for layer in contents.layers:
        weight = chosen.weight(layer.part, layer.module)
        assert layer.delta(weight).shape == weight.shape
        bias = layer.bias(torch.zeros(len(weight)))
        assert bias is None or bias.shape == weight.shape[:1]


def test_sound_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for tensors, stated in SOUND:
        path.write_bytes(save(tensors, stated))
        changes(path, model("flux1"))
        assert not inspect.inspect(path)["leftover"]


BOMBS = {
    "LoKr of two factors": made(Q, lokr_w1=(500, 500), lokr_w2=(500, 500)),
    "LoKr of low rank": made(Q, lokr_w1=(1, 1), lokr_w2_a=(200_000, 1), lokr_w2_b=(1, 200_000)),
    "LoHa": made(Q, hada_w1_a=(90_000, 1), hada_w1_b=(1, 90_000), hada_w2_a=(90_000, 1), hada_w2_b=(1, 90_000)),
    "Tucker": made(Q, lora_down__weight=(1, 90_000), lora_up__weight=(1, 1), lora_mid__weight=(1, 1, 300, 300)),
    "large kernels": made(Q, lora_down__weight=(1, 8000), lora_up__weight=(1, 1), lora_mid__weight=(1, 1, 200, 200)),
    "OFT": made(Q, oft_blocks=(100_000, 2, 2)),
}
"""A few megabytes that ask for hundreds of gigabytes."""


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_few_bytes_cannot_ask_for_all_memory(bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(BOMBS[bomb]))
    largest = 0
    for owner, names in ((torch, ("kron", "einsum")), (lowrank, ("of_matrix", "of_factors"))):
        for called in names:
            own = getattr(owner, called)

            def watched(*given: Any, own: Callable[..., Any] = own) -> Any:
                nonlocal largest
                out = own(*given)
                tensors = (out,) if isinstance(out, Tensor) else (out.up, out.down)
                largest = max([largest, *(t.numel() for t in tensors if t.device.type == "cpu")])
                return out

            monkeypatch.setattr(owner, called, watched)
    for look in (lambda: inspect.inspect(path), lambda: changes(path, model("flux1"))):
        try:
            look()
        except UserError as error:
            assert str(path) in str(error)
    assert largest <= 4 * sum(t.numel() for t in BOMBS[bomb].values())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_eight_bits_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    path, chosen = tmp_path / "a.safetensors", model("flux1")
    pair = {k: v.to(dtype) for k, v in SOUND[1][0].items() if ".lora_" in k}
    path.write_bytes(save(pair))
    found = dialects.understood(file.read(path), chosen.places).layers
    down, up = (pair[f"{FUSED}.lora_{k}.weight"].float() for k in ("down", "up"))
    torch.testing.assert_close(torch.cat([x.delta() for x in found]), up @ down)
    assert inspect.inspect(path)["dtypes"] == {str(dtype).removeprefix("torch."): 2}
    path.write_bytes(save({**pair, f"{FUSED}.lora_up.weight_scale": torch.tensor(0.5)}))
    with pytest.raises(UserError, match=r"scales beside them .* fetch it in bf16 or fp16"):
        file.read(path)


def test_two_keys_for_one_thing_are_told(tmp_path: Path) -> None:
    """The second is not taken in silence."""
    path, twice = tmp_path / "a.safetensors", made(Q, lora_A__weight=(4, 32), lora_B__weight=(32, 4))
    path.write_bytes(save({**twice, **made(Q, lora_down__weight=(4, 32))}))
    contents = dialects.understood(file.read(path), model("flux1").places)
    assert len(contents.leftover) == 1 and len(contents.layers) == 1


def test_symlinks_and_names_that_no_disk_has(tmp_path: Path) -> None:
    real, link, loop = tmp_path / "real.safetensors", tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    real.write_bytes(save(SOUND[0][0]))
    link.symlink_to(real)
    loop.symlink_to(loop)
    assert file.read(link).tensors
    for path in (loop, tmp_path / f"{'x' * 5000}.safetensors", Path("/dev/null/a.safetensors")):
        with pytest.raises(UserError):
            file.read(path)


def test_what_is_spread_over_an_axis_has_its_length() -> None:
    """One number for all rows, or one channel for all, would be taken by torch without a word."""
    pair = {"down": torch.ones(2, 8), "up": torch.ones(6, 2)}
    for more in ({"magnitude": torch.ones(1)}, {"bias": torch.ones(1)}, {"magnitude": torch.ones(1, 6)}):
        with pytest.raises(UserError, match=r"which change no weight|whose sizes do not agree"):
            checked(Layer("", "m", "lora", {**pair, **more}), "a: m")
    ones = {"a1": torch.ones(1, 1), "a2": torch.ones(1, 8), "b1": torch.ones(6, 1), "b2": torch.ones(1, 8)}
    with pytest.raises(UserError, match="whose sizes do not agree"):
        checked(Layer("", "m", "glora", ones), "a: m")
    assert fits(Layer("", "m", "lora", pair), (6, 8)) and not fits(Layer("", "m", "lora", pair), (6, 9))


@pytest.mark.parametrize("shape", [(16,), (1, 16, 1, 1), (16, 1, 1, 1)])
def test_factors_of_channels_may_stand_along_any_axis(shape: tuple[int, ...]) -> None:
    """As LyCORIS keeps those of a convolution."""
    layer = checked(Layer("", "m", "ia3", {"weight": torch.ones(shape), "on_input": torch.tensor(True)}), "a: m")
    assert fits(layer, (8, 16, 3, 3)) and not fits(layer, (16, 8, 3, 3))


@pytest.mark.parametrize("said", [{"num_cayley_neumann_terms": 10**9}, {"num_cayley_neumann_terms": 0}, {"eps": "x"}])
def test_settings_cannot_keep_a_computer_busy(said: dict[str, Any], tmp_path: Path) -> None:
    """peft's OFT is a series whose length the header states."""
    path = tmp_path / "a.safetensors"
    sound = {"use_cayley_neumann": True, "peft_version": "0.21.2", "coft": True}
    key = "transformer.transformer_blocks.0.attn.to_q.oft_R.default.weight"
    for stated, fine in ((sound, True), ({**sound, **said}, False)):
        path.write_bytes(save({key: torch.zeros(1, 6)}, {file.METADATA: json.dumps(stated)}))
        if fine:
            assert [x.kind for x in dialects.understood(file.read(path), model("flux1").places).layers] == ["oft_in"]
            continue
        with pytest.raises(UserError, match=f"{next(iter(said))} is no number from"):
            dialects.understood(file.read(path), model("flux1").places)
