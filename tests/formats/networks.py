"""Tiny random networks of four shapes: one-stream and two-stream, two UNets, one of clips; and adapters on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel, WanTransformer3DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from tuner import families
from tuner.formats.layers import Layer
from tuner.formats.places import Places, shapes

UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 8,
    "cross_attention_dim": 16, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "block_out_channels": [16, 32], "attention_head_dim": 4,
}  # fmt: skip


def flux1() -> nn.Module:
    return FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def sd1() -> nn.Module:
    return UNet2DConditionModel(**UNET)


def sdxl() -> nn.Module:
    more = {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    }  # fmt: skip
    return UNet2DConditionModel(**{**UNET, **more})


def wan() -> nn.Module:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
    )  # fmt: skip


def clip() -> nn.Module:
    return CLIPTextModel(
        CLIPTextConfig(vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    )


def t5() -> nn.Module:
    return T5EncoderModel(T5Config(vocab_size=99, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


@dataclass
class Model:
    """A denoiser (and text encoders) with what its family calls them."""

    networks: dict[str, nn.Module]
    places: Places

    @property
    def part(self) -> str:
        return next(iter(self.networks))

    def weight(self, part: str, module: str) -> Tensor:
        return self.networks[part].get_submodule(module).weight.detach()


@cache
def model(family: str) -> Model:
    """One model of a family, the same in every test."""
    torch.manual_seed(0)
    made = families.get(family)()
    networks = {made.denoiser: {"flux1": flux1, "sd1": sd1, "sdxl": sdxl, "wan": wan}[family]()}
    for i, part in enumerate(p for p in made.text_parts if p.startswith("text_encoder")):
        networks[part] = t5() if family == "wan" or (family == "flux1" and i) else clip()
    names = made.named(networks[made.denoiser].config)
    return Model(networks, Places(names, {part: shapes(network) for part, network in networks.items()}))


def lora(
    chosen: Model, endings: tuple[str, ...], ranks: tuple[int, ...] = (4,), dora: bool = False, seed: int = 0
) -> list[Layer]:
    """A LoRA on all modules of the denoiser with these endings, its ranks and alphas in turns."""
    torch.manual_seed(seed)
    layers, part = [], chosen.part
    names = [n for n, shape in chosen.places.networks[part].items() if n.endswith(endings) and len(shape) > 1]
    for i, name in enumerate(names):
        weight, rank = chosen.weight(part, name), ranks[i % len(ranks)]
        out, columns, *kernel = weight.shape
        tensors = {
            "down": torch.randn(rank, columns, *kernel) * 0.3,
            "up": torch.randn(out, rank, *[1] * len(kernel)) * 0.3,
        }
        if dora:
            tensors["magnitude"] = weight.flatten(1).norm(dim=1) * (1 + 0.2 * torch.rand(out))
        layers.append(Layer(part, name, "lora", tensors, (2.0, 3.0, 8.0)[i % 3] if len(ranks) > 1 else 2.0))
    return layers
