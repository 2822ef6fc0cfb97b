"""Stable Diffusion 2.x."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from tests.families.case import Case, Rig
from tests.families.ddpm import decoded_at_step_0
from tests.tiny import DDPM, clip_encoder, clip_tokenizer, index, unet, vae, write
from tuner.types import Media


def build_sd2(folder: Path, scheduler: dict[str, Any]) -> None:
    """2.1 with another tokenizer padding, activation and projection than 1.5."""
    clip_tokenizer(folder / "tokenizer", pad="!")
    clip_encoder(folder / "text_encoder", 48, "gelu")
    vae(folder / "vae", 4, 3, scaling_factor=0.18215)
    unet(folder / "unet", 48, 4, use_linear_projection=True, attention_head_dim=[2, 4])
    common = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
    write(folder / "scheduler" / "scheduler_config.json", {**DDPM, **common, "trained_betas": None, **scheduler})
    parts = index(
        "StableDiffusionPipeline",
        feature_extractor="transformers.CLIPImageProcessor",
        safety_checker=None,
        scheduler=f"diffusers.{scheduler['_class_name']}",
        text_encoder="transformers.CLIPTextModel",
        tokenizer="transformers.CLIPTokenizer",
        unet="diffusers.UNet2DConditionModel",
        vae="diffusers.AutoencoderKL",
    )
    size = {"height": 224, "width": 224}
    extractor = {"image_processor_type": "CLIPImageProcessor", "crop_size": size, "size": {"shortest_edge": 224}}
    write(folder / "feature_extractor" / "preprocessor_config.json", extractor)
    write(folder / "model_index.json", {**parts, "requires_safety_checker": False, "_diffusers_version": "0.8.0"})


class StableDiffusion2(Case):
    """2.1: velocity, DDIM."""

    name = family = "sd2"
    overfit_steps = 150
    millions = 865.9  # the published unet's 865,910,724 parameters
    layers = {"default": 16 * 8, "attention+feed-forward": 16 * 10, "all-linear": 16 * 10 + 32 + 22, "with-conv": 278}

    def build(self, folder: Path) -> None:
        build_sd2(folder, {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"})

    def real(self) -> nn.Module:
        return UNet2DConditionModel(
            sample_size=96,
            layers_per_block=2,
            cross_attention_dim=1024,
            attention_head_dim=[5, 10, 20, 20],
            use_linear_projection=True,
        )

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        return decoded_at_step_0(self, rig, media)


class Base(Case):
    """2.1 base: epsilon, PNDM."""

    name = "sd2-base"
    family = "sd2"
    overfit_steps = 250

    def build(self, folder: Path) -> None:
        build_sd2(folder, {"_class_name": "PNDMScheduler"})

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        return decoded_at_step_0(self, rig, media)
