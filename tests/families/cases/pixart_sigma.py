"""PixArt Sigma and alpha."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from tests.families.case import Case, Rig, Shape
from tests.tiny import index, save, t5_encoder, t5_tokenizer, vae, write


def build_pixart(folder: Path, pipeline: str, **transformer: Any) -> None:
    """Sigma at 1024 pixels; alpha has conditions on the size."""
    t5_tokenizer(folder / "tokenizer")
    t5_encoder(folder / "text_encoder", 32)
    vae(folder / "vae", 4, 3, scaling_factor=0.13025)
    shape = {
        "num_attention_heads": 4,
        "attention_head_dim": 24,
        "num_layers": 2,
        "cross_attention_dim": 96,
        "caption_channels": 32,
        "sample_size": 128,
        "use_additional_conditions": False,
    }
    save(PixArtTransformer2DModel(**{**shape, **transformer}), folder / "transformer")
    schedule = {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "lower_order_final": True,
        "euler_at_final": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "solver_order": 2,
        "solver_type": "midpoint",
        "steps_offset": 0,
        "timestep_spacing": "linspace",
        "use_karras_sigmas": False,
    }
    write(folder / "scheduler" / "scheduler_config.json", schedule)
    parts = index(
        pipeline,
        scheduler="diffusers.DPMSolverMultistepScheduler",
        text_encoder="transformers.T5EncoderModel",
        tokenizer="transformers.T5Tokenizer",
        transformer="diffusers.PixArtTransformer2DModel",
        vae="diffusers.AutoencoderKL",
    )
    write(folder / "model_index.json", {**parts, "_diffusers_version": "0.27.0.dev0"})


class PixArtSigma(Case):
    """Sigma: the second half of the answer is the variance, which the pipeline drops."""

    name = family = "pixart_sigma"
    options = {"max_tokens": 80}
    settings = {"max_sequence_length": 80, "clean_caption": False, "use_resolution_binning": False}
    overfit_steps, overfit_lr = 200, 5e-3
    quick = True
    millions, tolerance = 610, 5  # published as 0.6B, files of the transformer as 2.44 GB in fp32
    layers = {"default": 28 * 8, "attention+feed-forward": 28 * 10, "all-linear": 28 * 10 + 1 + 2 + 3}

    def build(self, folder: Path) -> None:
        build_pixart(folder, "PixArtSigmaPipeline")

    def real(self) -> nn.Module:
        # convert_pixart_sigma_to_diffusers.py of diffusers, for the model of 1024 pixels
        return PixArtTransformer2DModel(
            sample_size=128, caption_channels=4096, interpolation_scale=2, use_additional_conditions=False
        )

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        if rig.denoiser.config.out_channels == rig.denoiser.config.in_channels:
            return (target,)
        return (torch.cat([target, 7 - 3 * target], dim=1),)  # the variance, which must not be looked at


class WithoutVariance(PixArtSigma):
    """Answers with noise alone, at another published size of picture."""

    name = "pixart_sigma-plain"
    quick = False

    def build(self, folder: Path) -> None:
        build_pixart(folder, "PixArtSigmaPipeline", out_channels=4, sample_size=64)
        # the class by which the published models of 2024 still go
        for path in (folder / "model_index.json", folder / "transformer" / "config.json"):
            old = path.read_text(encoding="utf-8").replace("PixArtTransformer2DModel", "Transformer2DModel")
            path.write_text(old, encoding="utf-8")


class PixArtAlpha(PixArtSigma):
    """Alpha at 1024 pixels is told the size of the picture."""

    name = "pixart_sigma-alpha"
    quick = False

    def build(self, folder: Path) -> None:
        build_pixart(folder, "PixArtAlphaPipeline", use_additional_conditions=True)
