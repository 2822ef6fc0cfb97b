"""Stable Diffusion XL."""

from __future__ import annotations

from pathlib import Path

from diffusers import UNet2DConditionModel
from torch import nn

from tests.families.case import Case
from tests.tiny import build


class StableDiffusionXL(Case):
    """Base 1.0: epsilon; no text is all zeros."""

    name = family = "sdxl"
    millions = 2567.5  # the published unet's 2,567,463,684 parameters
    # 70 layers with 8 projections of attention and 2 of feed-forward; 11 levels with 2 projections, and 17 resnets
    layers = {"default": 70 * 8, "attention+feed-forward": 70 * 10, "all-linear": 70 * 10 + 22 + 17, "with-conv": 788}

    def build(self, folder: Path) -> None:
        build("sdxl", folder)

    def real(self) -> nn.Module:
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


class WithoutZeros(Case):
    """A model whose index does not force zeros for the empty prompt."""

    name = "sdxl-text"
    family = "sdxl"

    def build(self, folder: Path) -> None:
        build("sdxl", folder, force_zeros=False)
