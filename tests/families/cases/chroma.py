"""Chroma 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import ChromaTransformer2DModel
from torch import Tensor, nn

from tests.families.case import Rig, Shape
from tests.families.packed import Packed
from tests.tiny import index, save, t5_encoder, t5_tokenizer, vae, write


class Chroma(Packed):
    """Masked captions; the modulations of all blocks come from one small network."""

    name = family = "chroma"
    options = {"max_tokens": 32}
    settings = {"max_sequence_length": 32}
    overfit_steps = 100
    millions = 8900.0  # "8.9B" (model card)
    layers = {
        "default": 19 * 8 + 38 * 3,
        "attention+feed-forward": 19 * 12 + 38 * 5,
        "all-linear": 19 * 12 + 38 * 5 + 2 + 5 * 2,
    }

    def build(self, folder: Path) -> None:
        t5_tokenizer(folder / "tokenizer")
        t5_encoder(folder / "text_encoder", 32)
        flux = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1159, "scaling_factor": 0.3611}
        vae(folder / "vae", 4, 3, **flux)
        shape = {
            "patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6),
            "approximator_num_channels": 16, "approximator_hidden_dim": 24, "approximator_layers": 2,
        }  # fmt: skip
        save(ChromaTransformer2DModel(**shape), folder / "transformer")
        schedule = {
            "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
            "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
        }  # fmt: skip
        write(folder / "scheduler" / "scheduler_config.json", schedule)
        parts = index(
            "ChromaPipeline",
            feature_extractor=None,
            image_encoder=None,
            scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
            text_encoder="transformers.T5EncoderModel",
            tokenizer="transformers.T5Tokenizer",
            transformer="diffusers.ChromaTransformer2DModel",
            vae="diffusers.AutoencoderKL",
        )
        write(folder / "model_index.json", parts)

    def pictured(self, rig: Rig, caption: str, shape: Shape, **settings: Any) -> Tensor:
        with masking(rig.official):
            return super().pictured(rig, caption, shape, **settings)

    def real(self) -> nn.Module:
        return ChromaTransformer2DModel()


@contextmanager
def masking(pipe: Any) -> Iterator[None]:
    """The official pipeline with a mask of truth values: its own, of floats, is added instead (diffusers 12116)."""
    encode = pipe._get_t5_prompt_embeds

    def encoded(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        embeds, mask = encode(*args, **kwargs)
        return embeds, mask.bool()

    pipe._get_t5_prompt_embeds = encoded
    try:
        yield
    finally:
        del pipe._get_t5_prompt_embeds
