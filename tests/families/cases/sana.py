"""Sana."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import Tensor, nn

from tests import tiny
from tests.families.case import Media, Rig, Shape
from tests.families.solver import Solver


def checkpoint(folder: Path, **transformer: Any) -> None:
    """Sana with an autoencoder that halves five times; its last width is that of the latents, as in the real one."""
    vocab = tiny.gemma_tokenizer(folder / "tokenizer")
    tiny.gemma_encoder(folder / "text_encoder", 32, vocab)
    kinds = ["ResBlock"] * 4 + ["EfficientViTBlock"] * 2
    scales = ((), (), (), (), (5,), (5,))
    vae = AutoencoderDC(
        latent_channels=16,
        attention_head_dim=8,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=(8, 8, 16, 16, 16, 32),
        decoder_block_out_channels=(8, 8, 16, 16, 16, 32),
        encoder_layers_per_block=(1, 1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1, 1),
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )
    tiny.save(vae, folder / "vae")
    shape = {
        "in_channels": 16,
        "out_channels": 16,
        "num_attention_heads": 8,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 64,
        "caption_channels": 32,
    }
    tiny.save(SanaTransformer2DModel(**{**shape, **transformer}), folder / "transformer")
    schedule = {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "flow_shift": 3.0,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "use_flow_sigmas": True,
    }
    tiny.write(folder / "scheduler" / "scheduler_config.json", schedule)
    parts = tiny.index(
        "SanaPipeline",
        scheduler="diffusers.DPMSolverMultistepScheduler",
        text_encoder="transformers.Gemma2Model",
        tokenizer="transformers.GemmaTokenizerFast",
        transformer="diffusers.SanaTransformer2DModel",
        vae="diffusers.AutoencoderDC",
    )
    tiny.write(folder / "model_index.json", {**parts, "_diffusers_version": "0.33.0"})


class Sana(Solver):
    """Sana 1.5: normalised queries and keys."""

    name = family = "sana"
    options = {"max_tokens": 96}
    settings = {"max_sequence_length": 96, "use_resolution_binning": False}
    overfit_shape = Shape(64, 64)
    overfit_steps = 150
    # SANA 1.5 1.6B; the 4.8B one is the same with 60 layers (4721.8 M)
    millions = 1604.6
    layers = {"default": 20 * 8, "attention+feed-forward": 20 * 10, "all-linear": 20 * 10 + 3}

    def build(self, folder: Path) -> None:
        checkpoint(folder, qk_norm="rms_norm_across_heads")

    def real(self) -> nn.Module:
        return SanaTransformer2DModel(qk_norm="rms_norm_across_heads")

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        vae = rig.official.vae
        with torch.no_grad():
            decoded = vae.decode(vae.encode(media.pixels).latent).sample
            return rig.official.image_processor.postprocess(decoded, output_type="pt")

    def tokens(self, rig: Rig, shape: Shape) -> int:
        _, h, w = self.cells(rig, shape)
        return h * w // rig.denoiser.config.patch_size**2


class Plain(Sana):
    """Sana 1.0, told no instruction; patches of 1 with a table of places, half of the answer a learned variance."""

    name = "sana-1.0"
    options = {"max_tokens": 64, "instruction": False}
    settings = {"max_sequence_length": 64, "use_resolution_binning": False, "complex_human_instruction": None}

    def build(self, folder: Path) -> None:
        checkpoint(folder, interpolation_scale=1.0, out_channels=32, timestep_scale=0.001)

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        return (torch.cat([target, torch.zeros_like(target)], 1),)
