"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, SD3Transformer2DModel
from torch import nn

from tests.families.case import Case
from tests.tiny import clip_encoder, clip_tokenizer, index, save, t5_encoder, t5_tokenizer, vae, write


def build(folder: Path, t5: bool, channels: int, **settings: Any) -> None:
    """A tiny checkpoint, with or without T5."""
    for part, width, act, pad in (("", 32, "quick_gelu", "<|endoftext|>"), ("_2", 40, "gelu", "!")):
        clip_tokenizer(folder / f"tokenizer{part}", pad=pad)
        clip_encoder(folder / f"text_encoder{part}", width, act, projection=width)
    t5_tokenizer(folder / "tokenizer_3")
    if t5:
        t5_encoder(folder / "text_encoder_3", 80)
    no_quant = {"use_quant_conv": False, "use_post_quant_conv": False}
    vae(folder / "vae", channels, 3, shift_factor=0.0609, scaling_factor=1.5305, **no_quant)
    shape = {
        "sample_size": 32, "patch_size": 2, "in_channels": channels, "out_channels": channels, "num_layers": 3,
        "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 80, "caption_projection_dim": 64,
        "pooled_projection_dim": 72, "pos_embed_max_size": 24,
    }  # fmt: skip
    save(SD3Transformer2DModel(**{**shape, **settings}), folder / "transformer")
    schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    write(folder / "scheduler" / "scheduler_config.json", schedule)
    parts = index(
        "StableDiffusion3Pipeline",
        scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
        text_encoder="transformers.CLIPTextModelWithProjection",
        text_encoder_2="transformers.CLIPTextModelWithProjection",
        text_encoder_3="transformers.T5EncoderModel" if t5 else None,
        tokenizer="transformers.CLIPTokenizer",
        tokenizer_2="transformers.CLIPTokenizer",
        tokenizer_3="transformers.T5TokenizerFast" if t5 else None,
        transformer="diffusers.SD3Transformer2DModel",
        vae="diffusers.AutoencoderKL",
    )
    write(folder / "model_index.json", parts)


class StableDiffusion3(Case):
    """SD3 medium: no normalisation of queries and keys, one attention a block."""

    name = family = "sd3"
    options = {"max_tokens": 32}
    settings = {"max_sequence_length": 32}
    overfit_steps, overfit_lr = 100, 1e-2
    # The last block computes no text, so its text's queries are thrown away.
    without_gradient = r"transformer_blocks\.2\.attn\.add_q_proj"
    # "2 billion" (Stability AI): the published file of 4.34 GB, at 2 bytes each, less the autoencoder (84 M) and the
    # table of positions (57 M), which is no parameter here
    millions, tolerance = 2028.3, 5.0
    layers = {"default": 24 * 8 - 1, "attention+feed-forward": 24 * 12 - 3, "all-linear": 24 * 14 - 3}

    def build(self, folder: Path) -> None:
        build(folder, True, 16)

    def real(self) -> nn.Module:
        # convert_sd3_to_diffusers.py: as many heads as layers, pos_embed_max_size from the file (192)
        return SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
        )


class StableDiffusion35Large(Case):
    """SD3.5 large: queries and keys are normalised. T5 is left out, as the pipeline allows."""

    name, family = "sd3-large-no-t5", "sd3"
    options = {"max_tokens": 32}
    settings = {"max_sequence_length": 32}
    overfit_steps, overfit_lr = 100, 1e-2
    without_gradient = StableDiffusion3.without_gradient
    millions, tolerance = 8100.0, 50.0  # "8.1 billion" (Stability AI), to its last digit
    layers = {"default": 38 * 8 - 1, "attention+feed-forward": 38 * 12 - 3, "all-linear": 38 * 14 - 3}

    def build(self, folder: Path) -> None:
        build(folder, False, 4, qk_norm="rms_norm")

    def official(self, folder: Path) -> Any:
        # the library wants to be told what the index says already
        pipe = DiffusionPipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def real(self) -> nn.Module:
        size = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
        return SD3Transformer2DModel(**size, pos_embed_max_size=192, qk_norm="rms_norm")


class StableDiffusion35Medium(StableDiffusion3):
    """SD3.5 medium: queries and keys are normalised, a second attention in the first blocks."""

    name = "sd3-medium-dual"
    # "2.5 billion" (Stability AI) counts the table of positions, 384 x 384 x 1536 = 226.5 M, which is no parameter here
    millions, tolerance = 2500.0 - 226.5, 50.0
    layers = {
        "default": 24 * 8 - 1 + 13 * 4,
        "attention+feed-forward": 24 * 12 - 3 + 13 * 4,
        "all-linear": 24 * 14 - 3 + 13 * 4,
    }

    def build(self, folder: Path) -> None:
        build(folder, True, 16, qk_norm="rms_norm", dual_attention_layers=(0, 1))

    def real(self) -> nn.Module:
        size = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
        dual = tuple(range(13))
        return SD3Transformer2DModel(**size, pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=dual)
