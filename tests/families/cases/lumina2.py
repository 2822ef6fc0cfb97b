"""Lumina-Image 2.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import Lumina2Transformer2DModel
from torch import Tensor, nn

from tests import tiny
from tests.families.case import Case, Rig, Shape

FLUX_VAE = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1159, "scaling_factor": 0.3611}


class Lumina2(Case):
    """Lumina-Image 2.0 with the system prompt of its pipeline."""

    name = family = "lumina2"
    overfit_shape = Shape(32, 32)
    overfit_steps = 100
    # 2.6B by its model card
    millions = 2609.8
    layers = {"default": 30 * 4, "attention+feed-forward": 30 * 7, "all-linear": 30 * 7 + 28}

    def build(self, folder: Path) -> None:
        vocab = tiny.gemma_tokenizer(folder / "tokenizer")
        tiny.gemma_encoder(folder / "text_encoder", 32, vocab)
        # four levels: the pipeline takes 8 pixels a cell for granted
        tiny.vae(folder / "vae", 4, 4, **FLUX_VAE)
        network = Lumina2Transformer2DModel(
            in_channels=4,
            hidden_size=64,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(300, 64, 64),
            cap_feat_dim=32,
        )
        tiny.save(network, folder / "transformer")
        schedule = {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": 6.0,
            "use_dynamic_shifting": False,
        }
        tiny.write(folder / "scheduler" / "scheduler_config.json", schedule)
        parts = tiny.index(
            "Lumina2Pipeline",
            scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
            text_encoder="transformers.Gemma2Model",
            tokenizer="transformers.GemmaTokenizerFast",
            transformer="diffusers.Lumina2Transformer2DModel",
            vae="diffusers.AutoencoderKL",
        )
        tiny.write(folder / "model_index.json", {**parts, "_diffusers_version": "0.33.0"})

    def real(self) -> nn.Module:
        return Lumina2Transformer2DModel(cap_feat_dim=2304)

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        return (-target,)


class Told(Lumina2):
    """Lumina-Image 2.0 with another system prompt."""

    name = "lumina2-told"
    options = {"system_prompt": "draw a photo", "max_tokens": 96}
    settings = {"system_prompt": "draw a photo", "max_sequence_length": 96}
