"""Stable Diffusion 1.x."""

from __future__ import annotations

from pathlib import Path

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from tests.families.case import Case, Rig
from tests.families.ddpm import decoded_at_step_0
from tests.tiny import build
from tuner.types import Media


class StableDiffusion1(Case):
    """1.5: epsilon, PNDM."""

    name = family = "sd1"
    overfit_steps = 250
    quick = True
    millions = 859.5  # the published unet's 859,520,964 parameters
    # 16 levels of attention with 8 projections each; 2 layers of feed-forward, 2 convolutions around and 22 resnets
    layers = {"default": 16 * 8, "attention+feed-forward": 16 * 10, "all-linear": 16 * 10 + 32 + 22, "with-conv": 278}

    def build(self, folder: Path) -> None:
        build("sd1", folder)

    def real(self) -> nn.Module:
        return UNet2DConditionModel(sample_size=64, layers_per_block=2, cross_attention_dim=768, attention_head_dim=8)

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        return decoded_at_step_0(self, rig, media)


class Velocity(Case):
    """A model whose scheduler says v_prediction, and that ends at the clean latent."""

    name = "sd1-velocity"
    family = "sd1"
    overfit_steps = 150

    def build(self, folder: Path) -> None:
        ends = {"prediction_type": "v_prediction", "_class_name": "DDIMScheduler", "set_alpha_to_one": True}
        build("sd1", folder, scheduler=ends)
