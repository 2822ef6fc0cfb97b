"""Cosmos-Predict2 Text2Image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, ConfigMixin, CosmosTransformer3DModel, DiffusionPipeline, ModelMixin
from torch import Tensor, nn

from tests import tiny
from tests.families.case import Case, Media, Request, Rig, Shape

SIGMA_MAX = 80.0


class Guard(ModelMixin, ConfigMixin):
    """Stands in for a package of its own, for random pictures of a random network."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))  # where a pipeline finds out its device

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        return frames


def checkpoint(folder: Path, **transformer: Any) -> None:
    """Cosmos-Predict2 with 16 latent channels, whose published mean and deviation are the autoencoder's defaults."""
    tiny.t5_tokenizer(folder / "tokenizer")
    tiny.t5_encoder(folder / "text_encoder", 32)
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    tiny.save(vae, folder / "vae")
    shape = {
        "num_attention_heads": 6,
        "attention_head_dim": 16,
        "num_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": 32,
        "adaln_lora_dim": 16,
        "max_size": (4, 32, 32),
        "rope_scale": (1.0, 4.0, 4.0),
        "extra_pos_embed_type": None,
    }
    tiny.save(CosmosTransformer3DModel(**{**shape, **transformer}), folder / "transformer")
    schedule = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "final_sigmas_type": "sigma_min",
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "sigma_data": 1.0,
        "sigma_max": SIGMA_MAX,
        "sigma_min": 0.002,
        "use_karras_sigmas": True,
    }
    tiny.write(folder / "scheduler" / "scheduler_config.json", schedule)
    parts = tiny.index(
        "Cosmos2TextToImagePipeline",
        safety_checker=None,
        scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
        text_encoder="transformers.T5EncoderModel",
        tokenizer="transformers.T5TokenizerFast",
        transformer="diffusers.CosmosTransformer3DModel",
        vae="diffusers.AutoencoderKLWan",
    )
    tiny.write(folder / "model_index.json", {**parts, "_diffusers_version": "0.34.0"})


class Cosmos2(Case):
    """Cosmos-Predict2 2B. Its pipeline keeps x0 + sigma n; the network sees that times 1 / (1 + sigma)."""

    name = family = "cosmos2"
    options = {"max_tokens": 64, "unchecked": True}
    settings = {"max_sequence_length": 64}
    overfit_shape = Shape(32, 32)
    overfit_steps, overfit_lr = 400, 3e-3  # no layer has a bias
    # 2B by its model card; configuration of scripts/convert_cosmos_to_diffusers.py. The 14B one has 14265.3 M.
    millions = 1956.4
    layers = {"default": 28 * 8, "attention+feed-forward": 28 * 10, "all-linear": 28 * 16}

    def build(self, folder: Path) -> None:
        checkpoint(folder)

    def real(self) -> nn.Module:
        return CosmosTransformer3DModel(num_attention_heads=16, attention_head_dim=128, extra_pos_embed_type=None)

    def official(self, folder: Path) -> Any:
        pipe = DiffusionPipeline.from_pretrained(folder, safety_checker=Guard())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def size(self, shape: Shape) -> dict[str, Any]:
        return {**super().size(shape), "output_type": "latent"}

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        """Decoded here as there, but for the way through 8 bits, rounded down, that the guardrail's place costs."""
        out = super().run(pipe, captions, shape, **settings)
        out.images = self.decoded(pipe, pipe.vae, out.images)
        return out

    def decoded(self, pipe: Any, vae: Any, latents: Tensor) -> Tensor:
        std, mean = (torch.tensor(v)[:, None, None, None] for v in (vae.config.latents_std, vae.config.latents_mean))
        with torch.no_grad():
            video = vae.decode(latents[:, :, None] * std + mean).sample
        return pipe.video_processor.postprocess_video(video, output_type="pt")[:, 0]

    def guided(self, rig: Rig) -> dict[str, Any]:
        return {**super().guided(rig), "negative_prompt": ""}  # its own is a long one

    def drawn_from_cache(self, rig: Rig, request: Request) -> Tensor:
        return self.decoded(rig.official, rig.parts["vae"], super().drawn_from_cache(rig, request))

    def cells(self, rig: Rig, shape: Shape) -> tuple[int, ...]:
        return rig.parts["vae"].config.z_dim, shape.height // 8, shape.width // 8

    def pack(self, rig: Rig, x: Tensor) -> Tensor:
        return x[:, :, None] * (1 + SIGMA_MAX) / SIGMA_MAX

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        return x[:, :, 0]

    def time(self, rig: Rig, i: int) -> Tensor:
        sigma = rig.official.scheduler.sigmas[i].float()
        return sigma / (1 + sigma)

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        return (target[:, :, None],)

    def prove_known_answer(self, rig: Rig) -> None:
        """The pipeline stops at sigma 0.002, whose noise stays in the picture: here it goes on until that is gone."""
        scheduler = rig.official.scheduler
        usual = scheduler.config.sigma_min
        scheduler.register_to_config(sigma_min=1e-6)
        try:
            super().prove_known_answer(rig)
        finally:
            scheduler.register_to_config(sigma_min=usual)

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        vae = rig.official.vae
        assert media.pixels is not None
        with torch.no_grad():
            decoded = vae.decode(vae.encode(media.pixels[:, :, None]).latent_dist.mode()).sample
            return rig.official.video_processor.postprocess_video(decoded, output_type="pt")[:, 0]


class Placed(Cosmos2):
    """With learned places beside the rotary ones, as in Cosmos 1."""

    name = "cosmos2-placed"

    def build(self, folder: Path) -> None:
        checkpoint(folder, extra_pos_embed_type="learnable")
