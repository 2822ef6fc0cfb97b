"""Z-Image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from tests import tiny
from tests.families.case import Case, Rig, Shape

FLUX_VAE = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1159, "scaling_factor": 0.3611}


class ZImage(Case):
    """Z-Image Turbo; Base has the same parts and another static shift (6)."""

    name = family = "z_image"
    no_guidance = {"guidance_scale": 0.0}
    shift = 3.0
    overfit_steps = 100
    quick = True
    # 6B by its model card; the class's own defaults are its configuration
    millions = 6154.9
    layers = {"default": 34 * 4, "attention+feed-forward": 34 * 7, "all-linear": 34 * 7 + 32}

    def build(self, folder: Path) -> None:
        tiny.qwen_tokenizer(folder / "tokenizer")
        config = Qwen3Config(
            vocab_size=tiny.QWEN_VOCAB,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=1024,
        )
        tiny.save(Qwen3Model(config), folder / "text_encoder")
        tiny.vae(folder / "vae", 4, 3, **FLUX_VAE)
        network = ZImageTransformer2DModel(
            in_channels=4,
            dim=64,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=4,
            n_kv_heads=4,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        )
        for token in (network.x_pad_token, network.cap_pad_token):  # made without a value
            nn.init.normal_(token)
        tiny.save(network, folder / "transformer")
        schedule = {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": self.shift,
            "use_dynamic_shifting": False,
        }
        tiny.write(folder / "scheduler" / "scheduler_config.json", schedule)
        parts = tiny.index(
            "ZImagePipeline",
            scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
            text_encoder="transformers.Qwen3Model",
            tokenizer="transformers.Qwen2Tokenizer",
            transformer="diffusers.ZImageTransformer2DModel",
            vae="diffusers.AutoencoderKL",
        )
        tiny.write(folder / "model_index.json", {**parts, "_diffusers_version": "0.36.0"})

    def real(self) -> nn.Module:
        return ZImageTransformer2DModel()

    def seen(self, rig: Rig, call: dict[str, Any], shape: Shape) -> Tensor:
        return torch.stack(call["x"]).squeeze(2)

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        return (list(-target.unsqueeze(2)),)
