"""Files in every published dialect, made from their layouts, are read with no key left over and the same changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from tests.formats.networks import Model, lora, model
from tests.formats.test_round_trips import ENDINGS, same
from tuner.errors import UserError
from tuner.formats import file, fuse, write
from tuner.formats.dialects import told, understood
from tuner.formats.layers import Contents, Layer
from tuner.formats.places import Place

Rename = Callable[[str], str]


def pairs(layers: list[Layer], name: Rename, down: str, up: str) -> dict[str, Tensor]:
    """The factors under `name(module) + ending`."""
    return {name(x.module) + end: x.tensors[k] for x in layers for k, end in (("down", down), ("up", up))}


def read(tmp_path: Path, chosen: Model, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Contents:
    path = tmp_path / "adapter.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    return understood(file.read(path), chosen.places)


def processors(module: str) -> str:
    """Diffusers' first layout: `attn1.processor.to_out_lora` for the layer `attn1.to_out.0`."""
    stem, _, last = module.removesuffix(".0").rpartition(".")
    return f"unet.{stem}.processor.{last}"


def flat(prefix: str) -> Rename:
    return lambda module: prefix + module.replace(".", "_")


PEFT = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")
OLD = (".lora.down.weight", ".lora.up.weight")
DIALECTS: dict[str, tuple[str, Rename, str, str]] = {
    "peft": ("flux1", lambda m: f"base_model.model.{m}", *PEFT),
    "peft, adapter's name": ("flux1", lambda m: m, ".lora_A.default.weight", ".lora_B.default.weight"),
    "diffusers": ("flux1", lambda m: f"transformer.{m}", *PEFT),
    "bare": ("flux1", lambda m: m, *PEFT),
    "diffusers, old": ("sd1", lambda m: f"unet.{m}", *OLD),
    "diffusers, processors": ("sd1", processors, "_lora.down.weight", "_lora.up.weight"),
    "diffusers, linear layers": (
        "sd1", lambda m: f"unet.{m}", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight",
    ),
    "kohya, diffusers' names": ("sdxl", flat("lora_unet_"), *KOHYA),
    "OneTrainer": ("flux1", flat("lora_transformer_"), *KOHYA),
    "LyCORIS": ("flux1", flat("lycoris_"), *KOHYA),
    "ComfyUI, diffusers' names": ("flux1", lambda m: f"diffusion_model.{m}", *PEFT),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect(dialect: str, tmp_path: Path) -> None:
    family, name, down, up = DIALECTS[dialect]
    chosen = model(family)
    endings = ("to_q", "to_out.0") if "processors" in dialect else ENDINGS[family]
    layers = [Layer(x.part, x.module, "lora", x.tensors) for x in lora(chosen, endings)]
    contents = read(tmp_path, chosen, pairs(layers, name, down, up))
    assert not contents.leftover
    same(chosen, layers, contents.layers)
    assert all(x.alpha is None and x.scale == 1 for x in contents.layers)


@pytest.mark.parametrize("endings", [PEFT, KOHYA, OLD])
def test_fused_weights_of_the_original(endings: tuple[str, str], tmp_path: Path) -> None:
    """q, k and v share their `down` in a file of the original network; halves of the last modulation change places."""
    chosen = model("flux1")
    torch.manual_seed(0)
    tensors, rank = {}, 3
    for name, out, columns in (
        ("double_blocks.0.img_attn.qkv", 96, 32), ("single_blocks.1.linear1", 224, 32),
        ("final_layer.adaLN_modulation.1", 64, 32), ("double_blocks.1.txt_mlp.2", 32, 128),
    ):  # fmt: skip
        tensors[f"diffusion_model.{name}{endings[0]}"] = torch.randn(rank, columns)
        tensors[f"diffusion_model.{name}{endings[1]}"] = torch.randn(out, rank)
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(6.0)
    contents = read(tmp_path, chosen, tensors)
    assert not contents.leftover and contents.dialect == "comfyui"
    found = {x.module: x for x in contents.layers}

    def whole(name: str) -> Tensor:
        down, up = (tensors[f"diffusion_model.{name}{e}"] for e in endings)
        return 2.0 * up @ down

    qkv = [found[f"transformer_blocks.0.attn.to_{x}"].delta() for x in "qkv"]
    torch.testing.assert_close(torch.cat(qkv), whole("double_blocks.0.img_attn.qkv"))
    one = [
        found[f"single_transformer_blocks.1.{m}"].delta() for m in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    torch.testing.assert_close(torch.cat(one), whole("single_blocks.1.linear1"))
    last = whole("final_layer.adaLN_modulation.1")
    torch.testing.assert_close(found["norm_out.linear"].delta(), torch.cat([last[32:], last[:32]]))


@pytest.mark.parametrize("dots", [True, False])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_names_of_the_original_unet(family: str, dots: bool, tmp_path: Path) -> None:
    chosen = model(family)
    layers = lora(chosen, ENDINGS[family])
    names = {m: name for name, place in chosen.places.native.items() for m in place.modules}
    assert all(layer.module in names for layer in layers)
    prefix = "model.diffusion_model." if dots else "lora_unet_"
    tensors = pairs(layers, lambda m: prefix + (names[m] if dots else names[m].replace(".", "_")), *KOHYA)
    contents = read(tmp_path, chosen, tensors)
    assert not contents.leftover
    same(chosen, [Layer(x.part, x.module, "lora", x.tensors) for x in layers], contents.layers)


TEXT = "text_model.encoder.layers.1.self_attn.q_proj"
T5 = "encoder.block.1.layer.0.SelfAttention.q"


@pytest.mark.parametrize(
    ("family", "name", "part"),
    [
        ("sd1", "lora_te_" + TEXT.replace(".", "_"), "text_encoder"),
        ("sdxl", "lora_te1_" + TEXT.replace(".", "_"), "text_encoder"),
        ("sdxl", "lora_te2_" + TEXT.replace(".", "_"), "text_encoder_2"),
        ("sdxl", "text_encoder_2." + TEXT, "text_encoder_2"),
        ("sdxl", "text_encoders.clip_g.transformer." + TEXT, "text_encoder_2"),
        ("flux1", "lora_te1_" + TEXT.replace(".", "_"), "text_encoder"),
        ("flux1", "lora_te3_" + T5.replace(".", "_"), "text_encoder_2"),
        ("flux1", "lora_te2_" + T5.replace(".", "_"), "text_encoder_2"),
        ("flux1", "text_encoders.t5xxl.transformer." + T5, "text_encoder_2"),
        ("flux1", "text_encoders.clip_l.transformer." + TEXT, "text_encoder"),
    ],
)
def test_text_encoders(family: str, name: str, part: str, tmp_path: Path) -> None:
    """kohya's and OneTrainer's names of FLUX.1's T5 clash; which modules an encoder has settles it."""
    chosen = model(family)
    tensors = {name + KOHYA[0]: torch.randn(2, 16), name + KOHYA[1]: torch.randn(16, 2)}
    contents = read(tmp_path, chosen, tensors)
    assert not contents.leftover
    assert [x.part for x in contents.layers] == [part]
    assert contents.layers[0].module in chosen.places.networks[part]


def test_an_encoder_that_is_not_there_is_left_over(tmp_path: Path) -> None:
    chosen = model("sd1")
    names = ["lora_te2_" + TEXT.replace(".", "_"), "text_encoders.t5xxl.transformer." + T5]
    contents = read(tmp_path, chosen, {n + e: torch.ones(16, 16) for n in names for e in KOHYA})
    assert len(contents.leftover) == 4 and not contents.layers


def test_stated_ranks_and_alphas(tmp_path: Path) -> None:
    """PEFT's settings in the header: alpha, patterns, rsLoRA; a key of the file goes before them."""
    chosen = model("flux1")
    layers = lora(chosen, ("attn.to_q", "proj_mlp", "attn.to_v"))
    tensors = pairs(layers, lambda m: f"transformer.{m}", *PEFT)
    tensors["transformer.transformer_blocks.0.attn.to_q.alpha"] = torch.tensor(1.0)
    stated = {"r": 4, "lora_alpha": 12, "alpha_pattern": {"proj_mlp": 2, "blocks.1.attn.to_v": 5}, "use_rslora": True}
    header = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in stated.items()})}
    contents = read(tmp_path, chosen, tensors, header)
    scales = {x.module: x.scale for x in contents.layers}
    assert scales["transformer_blocks.0.attn.to_q"] == 0.25
    assert scales["transformer_blocks.1.attn.to_q"] == 6.0  # 12 / sqrt(4)
    assert scales["single_transformer_blocks.0.proj_mlp"] == 1.0
    # a pattern holds at a dot only: `blocks.1` is the end of no name
    assert scales["transformer_blocks.1.attn.to_v"] == 6.0


def test_dora_in_both_spellings_and_axes(tmp_path: Path) -> None:
    chosen = model("sd1")
    by_rows = lora(chosen, ("attn1.to_q", "conv1"), dora=True)
    for spelling in (
        ".lora_magnitude_vector",
        ".lora_magnitude_vector.weight",
        ".lora_magnitude_vector.default.weight",
    ):
        tensors = pairs(by_rows, lambda m: f"unet.{m}", *PEFT)
        for x in by_rows:
            vector = x.tensors["magnitude"]
            axes = x.tensors["down"].ndim
            tensors[f"unet.{x.module}{spelling}"] = vector if axes == 2 else vector.reshape(1, -1, 1, 1)
        contents = read(tmp_path, chosen, tensors)
        assert not contents.leftover
        same(chosen, [Layer(x.part, x.module, "lora", x.tensors) for x in by_rows], contents.layers, 1e-5)
    layer = by_rows[0]
    weight = chosen.weight(layer.part, layer.module)
    for scale, axis in ((torch.rand(weight.shape[0], 1) + 1, 1), (torch.rand(1, weight.shape[1]) + 1, 0)):
        name = "lora_unet_" + layer.module.replace(".", "_")
        tensors = pairs([layer], lambda _, name=name: name, *KOHYA) | {f"{name}.dora_scale": scale}
        [found] = read(tmp_path, chosen, tensors).layers
        whole = weight + layer.tensors["up"] @ layer.tensors["down"]
        wanted = scale * whole / whole.norm(dim=axis, keepdim=True) - weight
        torch.testing.assert_close(found.delta(weight), wanted, rtol=1e-4, atol=1e-5)


def test_peft_itself_is_read(tmp_path: Path) -> None:
    """What PEFT saves of its own LoRA, DoRA, LoHa, LoKr and OFT changes weights as PEFT's merge does."""
    from copy import deepcopy

    for i, config in enumerate((
        peft.LoraConfig(r=4, lora_alpha=6, rank_pattern={"to_k": 2}, use_rslora=True, target_modules=["to_q", "to_k"]),
        peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=["to_q", "conv1"]),
        peft.LoHaConfig(r=3, alpha=5, target_modules=["to_q"]),
        peft.LoKrConfig(r=3, alpha=5, target_modules=["to_q"]),
        peft.OFTConfig(oft_block_size=4, target_modules=["to_q", "to_out.0", "proj_in"], num_cayley_neumann_terms=7),
        peft.OFTConfig(oft_block_size=8, target_modules=["to_q"], use_cayley_neumann=False, block_share=True),
        peft.OFTConfig(r=2, oft_block_size=0, target_modules=["to_k"], coft=True, eps=0.05),
    )):  # fmt: skip
        chosen = model("sd1")
        network = peft.get_peft_model(deepcopy(chosen.networks["unet"]), config)
        torch.manual_seed(i)
        with torch.no_grad():
            for n, p in network.named_parameters():
                if p.requires_grad and "magnitude" not in n:
                    p.add_(torch.randn_like(p) * 0.1)
        network.save_pretrained(tmp_path / str(i))
        contents = understood(file.read(tmp_path / str(i) / "adapter_model.safetensors"), chosen.places)
        assert not contents.leftover and contents.layers
        if i > 3:  # OFT: its settings are needed
            (tmp_path / str(i) / "adapter_config.json").unlink()
            alone = understood(file.read(tmp_path / str(i) / "adapter_model.safetensors"), chosen.places)
            assert not alone.layers and len(alone.leftover) == len(contents.layers)
        merged = dict(network.merge_and_unload().named_parameters())
        for x in contents.layers:
            weight = chosen.weight("unet", x.module)
            wanted = merged[f"{x.module}.weight"].detach() - weight
            torch.testing.assert_close(x.delta(weight), wanted, rtol=1e-3, atol=1e-5)


def test_older_rotations_are_read_as_what_they_are(tmp_path: Path) -> None:
    """`oft_diag` holds R itself, `oft_blocks` what R is made of; `set_weight` the weight."""
    chosen = model("sd1")
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weight, name = chosen.weight("unet", module), "lora_unet_" + module.replace(".", "_")
    blocks = torch.randn(4, 4, 4) * 0.2
    q = blocks - blocks.transpose(1, 2)
    rotation = torch.linalg.solve(torch.eye(4) - q, torch.eye(4) + q, left=False)
    wanted = torch.einsum("k n m, k n i -> k m i", rotation, weight.reshape(4, 4, -1)).reshape(weight.shape) - weight
    for key, value in (("oft_blocks", blocks), ("oft_diag", rotation)):
        [found] = read(tmp_path, chosen, {f"{name}.{key}": value}).layers
        torch.testing.assert_close(found.delta(weight), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"oft_diag holds no plain rotations"):
        read(tmp_path, chosen, {f"{name}.oft_diag": torch.zeros(4, 4, 4)})
    [found] = read(tmp_path, chosen, {f"{name}.set_weight": weight * 3}).layers
    torch.testing.assert_close(found.delta(weight), weight * 2)


def test_what_is_not_understood_is_listed(tmp_path: Path) -> None:
    chosen = model("flux1")
    tensors = pairs(lora(chosen, ("attn.to_q",)), lambda m: f"transformer.{m}", *PEFT)
    odd = {
        "transformer.transformer_blocks.7.attn.to_q.lora_A.weight": torch.ones(2, 32),
        "transformer.transformer_blocks.7.attn.to_q.lora_B.weight": torch.ones(32, 2),
        "transformer.transformer_blocks.0.attn.to_k.lora_A.weight": torch.ones(2, 32),
        "transformer.transformer_blocks.7.attn.to_v.set_weight": torch.ones(2),
        "transformer.something": torch.ones(2),
    }
    contents = read(tmp_path, chosen, tensors | odd)
    assert contents.leftover == sorted(odd)
    assert told(contents, tmp_path).startswith("5 keys have no place in this model and are left out of")


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    ranks=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    alphas=st.lists(st.sampled_from([1.0, 2.0, 0.5]), min_size=4, max_size=4),
    kind=st.sampled_from(["lora", "loha"]),
    seed=st.integers(0, 1000),
)
def test_joining_and_taking_apart_are_each_others_inverse(
    sizes: list[int], ranks: list[int], alphas: list[float], kind: str, seed: int
) -> None:
    """For any number of modules, rows, ranks (0: no layer) and alphas, whatever the kind."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    modules = tuple(f"m{i}" for i in range(len(sizes)))
    place, layers = Place("transformer", modules, tuple(sizes), (5,)), []
    for module, size, rank, alpha in zip(modules, sizes, ranks, alphas, strict=False):
        if rank == 0:
            continue
        tensors = {"down": rand(rank, 5), "up": rand(size, rank)}
        if kind == "loha":
            shapes = {"w1_a": (size, rank), "w1_b": (rank, 5), "w2_a": (size, rank), "w2_b": (rank, 5)}
            tensors = {k: rand(*shape) for k, shape in shapes.items()}
        layers.append(Layer("transformer", module, kind, tensors, alpha))
    if not layers:
        return
    one = fuse.together(layers, place, "fused", fuse.no_weights)
    wanted = {x.module: x.delta() for x in layers}
    stacked = torch.cat([wanted.get(m, torch.zeros(s, 5)) for m, s in zip(modules, sizes, strict=True)])
    torch.testing.assert_close(one.delta(), stacked, rtol=1e-5, atol=1e-5)
    parts = {x.module: x for x in fuse.apart(one, place)}
    assert set(wanted) <= set(parts)
    for module, size in zip(modules, sizes, strict=True):
        if module in parts:
            zero = torch.zeros(size, 5)
            torch.testing.assert_close(parts[module].delta(), wanted.get(module, zero), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_taken_apart_is_said(tmp_path: Path) -> None:
    chosen = model("flux1")
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 32), f"{name}.lora_up.weight": torch.ones(96, 2)}
    with pytest.raises(UserError, match="DoRA by columns over several modules"):
        read(tmp_path, chosen, tensors | {f"{name}.dora_scale": torch.ones(1, 32)})
    with pytest.raises(UserError, match="oft over several modules in one mixes their rows"):
        read(tmp_path, chosen, {f"{name}.oft_blocks": torch.zeros(4, 24, 24)})


B0 = "diffusion_model.double_blocks.0"
UNREAD = {
    "peft's OFT, unsaid": ("base_model.model.transformer_blocks.0.attn.to_q.oft_R.default.weight", "OFT of the inputs"),
    "OneTrainer's OFT": ("lora_transformer_transformer_blocks_0_attn_to_q.oft_R.weight", "OFT of the inputs"),
    "FLUX.1's control tools, norms": (f"{B0}.img_attn.norm.key_norm.set_weight", "no place here"),
    "FLUX.1's control tools, size": ("diffusion_model.img_in.reshape_weight", "widens a layer"),
    "HRA": ("base_model.model.transformer_blocks.0.attn.to_q.hra_u", "but peft reads"),
    "a parameter of Wan": ("diffusion_model.blocks.0.modulation.diff", "belongs to no layer"),
    "a parameter of LTX": ("diffusion_model.transformer_blocks.0.scale_shift_table.diff", "belongs to no layer"),
    "XLabs": ("double_blocks.0.processor.qkv_lora1.down.weight", "diffusers converts it"),
    "sd-scripts' OFT": ("oft_unet_double_blocks_0_img_attn_qkv.oft_blocks", "counts its limit"),
    "sparse biases": ("lora_unet_double_blocks_0_img_mlp_0.bias_values", "sparse biases"),
    "a bundled embedding": ("bundle_emb.word.string_to_param.*", "changes no layer"),
    "what nobody knows": ("diffusion_model.img_in.mystery", ""),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_keys_that_are_not_read_are_listed_with_the_reason(kind: str, tmp_path: Path) -> None:
    key, reason = UNREAD[kind]
    layers = lora(model("flux1"), ("attn.to_q",))
    known = pairs(layers, lambda m: f"transformer.{m}", *PEFT)
    contents = read(tmp_path, model("flux1"), {**known, key: torch.ones(2, 2)})
    assert contents.leftover == [key] and len(contents.layers) == len(layers)
    said = told(contents, tmp_path / "a.safetensors")
    assert key in said and reason in said and ("1 of them" in said) == bool(reason)


def test_text_encoders_in_lycoris_own_names(tmp_path: Path) -> None:
    """As we write them, with the part, and as LyCORIS' wrapper of one network does, without."""
    chosen = model("sdxl")
    for part in ("text_encoder", "text_encoder_2"):
        module = next(n for n in chosen.places.networks[part] if n.endswith("1.mlp.fc1"))
        layer = Layer(part, module, "lora", {"down": torch.randn(2, 16), "up": torch.randn(32, 2)})
        sheet = write.lycoris([*lora(chosen, ("to_q",)), layer], chosen.places, chosen.weight)
        contents = read(tmp_path, chosen, write.exact(sheet.tensors, "fp32"))
        assert not contents.leftover
        (found,) = [x for x in contents.layers if x.part in chosen.places.text]
        assert (found.part, found.module) == (part, module)
    alone = {f"lycoris_{module.replace('.', '_')}.lora_{k}.weight": layer.tensors[k] for k in ("down", "up")}
    (found,) = read(tmp_path, chosen, alone).layers
    assert found.module == module


def test_what_distilled_clips_models_change_besides_matrices(tmp_path: Path) -> None:
    """Files such as lightx2v's for Wan: factors, biases and norms beside each other, by the original's names."""
    chosen = model("wan")
    block, own = "diffusion_model.blocks.0", chosen.places.networks["transformer"]
    tensors = {
        f"{block}.self_attn.q.lora_down.weight": torch.randn(4, 24), f"{block}.self_attn.q.lora_up.weight":
        torch.randn(24, 4), f"{block}.self_attn.q.diff_b": torch.randn(24), f"{block}.norm3.diff_b": torch.randn(24),
    }  # fmt: skip
    norms = {"self_attn.norm_q": "attn1.norm_q", "cross_attn.norm_k": "attn2.norm_k", "norm3": "norm2"}
    tensors |= {f"{block}.{n}.diff": torch.randn(own[f"blocks.0.{m}"]) for n, m in norms.items()}
    contents = read(tmp_path, chosen, tensors)
    assert not contents.leftover
    changed = {x.module: x for x in contents.layers if x.kind == "diff" and "weight" in x.tensors}
    assert set(changed) == {f"blocks.0.{m}" for m in norms.values()}
    for native, module in norms.items():
        torch.testing.assert_close(changed[f"blocks.0.{module}"].delta(), tensors[f"{block}.{native}.diff"])
