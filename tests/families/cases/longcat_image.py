"""LongCat-Image and its edit model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from torch import Tensor, nn

from tests.families.case import Case, Rig, Shape, smooth
from tests.tiny import index, qwen_processor, qwen_tokenizer, qwen_vl, save, vae, write
from tuner.families import longcat_image as family
from tuner.families._latents import pictures
from tuner.family import Request
from tuner.types import Media

calculate_dimensions = pipeline_longcat_image_edit.calculate_dimensions


class LongCatImage(Case):
    """Text to image."""

    name = family = "longcat_image"
    pipeline = "LongCatImagePipeline"
    no_guidance = {"guidance_scale": 1.0, "enable_prompt_rewrite": False}
    overfit_shape, overfit_batch = Shape(64, 64), 8
    # published as 6 B; 10 and 20 blocks, the rest as the class has it (meituan-longcat/LongCat-Image, transformer)
    millions = 6270.7
    layers = {"default": 10 * 8 + 20 * 3, "attention+feed-forward": 10 * 12 + 20 * 5, "all-linear": 10 * 14 + 20 * 6}

    def build(self, folder: Path) -> None:
        qwen_tokenizer(folder / "tokenizer")
        qwen_processor(folder / "text_processor")
        qwen_vl(folder / "text_encoder")
        # channels as published: the pipelines know no other number
        vae(folder / "vae", 16, 4, use_quant_conv=False, use_post_quant_conv=False, **FLUX_VAE)
        network = LongCatImageTransformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=8,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 6, 6],
        )
        save(network, folder / "transformer")
        schedule = {
            "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
            "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 3.0,
            "use_dynamic_shifting": True,
        }  # fmt: skip
        write(folder / "scheduler" / "scheduler_config.json", schedule)
        parts = index(
            self.pipeline,
            scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
            text_encoder="transformers.Qwen2_5_VLForConditionalGeneration",
            text_processor="transformers.Qwen2VLProcessor",
            tokenizer="transformers.Qwen2Tokenizer",
            transformer="diffusers.LongCatImageTransformer2DModel",
            vae="diffusers.AutoencoderKL",
        )
        write(folder / "model_index.json", {**parts, "_diffusers_version": "0.36.0"})

    def real(self) -> nn.Module:
        return LongCatImageTransformer2DModel(num_layers=10, num_single_layers=20)

    def pack(self, rig: Rig, x: Tensor) -> Tensor:
        return LongCatImagePipeline._pack_latents(x, *x.shape)

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        x = x[:, : shape.height * shape.width // (2 * rig.official.vae_scale_factor) ** 2]
        return LongCatImagePipeline._unpack_latents(x, shape.height, shape.width, rig.official.vae_scale_factor)

    def prove_overfit(self, rig: Rig) -> tuple[float, float]:
        """With shorter captions on both sides: 512 tokens of text beside 16 of the picture only cost time."""
        rig.official.tokenizer_max_length = 64
        with patch.object(family, "TOKENS", 64):
            return super().prove_overfit(rig)

    def guided(self, rig: Rig) -> dict[str, Any]:
        return {"guidance_scale": self.guidance, "negative_prompt": ""}


class Edit(LongCatImage):
    """Edits. The pipeline draws in 1 MP of the picture's aspect: here in 64², by the same rule."""

    name = "longcat_image-edit"
    task = "edit"
    pipeline = "LongCatImageEditPipeline"
    no_guidance = {"guidance_scale": 1.0}
    shapes = (Shape(64, 64), Shape(96, 48))
    batch = 1  # its pipeline takes one prompt

    def official(self, folder: Path) -> Any:
        pipeline_longcat_image_edit.calculate_dimensions = lambda area, ratio: calculate_dimensions(area // 256, ratio)
        return super().official(folder)

    def references(self, shape: Shape, n: int) -> tuple[Tensor, ...]:
        """In the aspect of the result, but of another size."""
        return (smooth((n, 3, shape.height * 5 // 4, shape.width * 5 // 4), 5),)

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        return replace(super().media(rig, shape, n), references=self.references(shape, n))

    def size(self, shape: Shape) -> dict[str, Any]:
        return {"output_type": "pt"}

    def run(self, pipe: Any, captions: Any, shape: Shape, **settings: Any) -> Any:
        return super().run(pipe, captions, shape, image=pictures(self.references(shape, 1)[0])[0], **settings)

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        references = tuple(pictures(r)[0] for r in self.references(shape, 1))
        return replace(super().request(rig, caption, shape, steps), references=references)

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        mine = self.pack(rig, target)
        return (torch.cat([mine, torch.ones_like(mine)], 1),)  # the answer for the given picture is unused

    def tokens(self, rig: Rig, shape: Shape) -> int:
        return 2 * super().tokens(rig, shape)


FLUX_VAE = {"shift_factor": 0.1159, "scaling_factor": 0.3611}
