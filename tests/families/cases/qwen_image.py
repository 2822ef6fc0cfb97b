"""Qwen-Image and its edit models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from torch import Tensor, nn

from tests.families.case import Case, Rig, Shape, smooth
from tests.tiny import index, qwen_processor, qwen_tokenizer, qwen_vl, save, write
from tuner.families._latents import pictures
from tuner.family import Request
from tuner.types import Media

calculate_dimensions = pipeline_qwenimage_edit.calculate_dimensions


class QwenImage(Case):
    """Text to image."""

    name = family = "qwen_image"
    pipeline = "QwenImagePipeline"
    zero_cond_t = False
    options: dict[str, Any] = {"max_tokens": 200}
    settings: dict[str, Any] = {"max_sequence_length": 200}
    no_guidance = {"true_cfg_scale": 1.0}
    # the text's answer of the last block is thrown away
    without_gradient = r"transformer_blocks\.1\.(attn\.(add_q_proj|to_add_out)|txt_mlp)"
    overfit_steps = 120
    millions = 20430.4  # the Hub counts 20 B in its safetensors files; class defaults are the published configuration
    layers = {"default": 60 * 8, "attention+feed-forward": 60 * 12, "all-linear": 60 * 14}

    def build(self, folder: Path) -> None:
        processor = "transformers.Qwen2VLProcessor" if self.task == "edit" else None
        qwen_tokenizer(folder / "tokenizer")
        if processor:
            qwen_processor(folder / "processor")
        qwen_vl(folder / "text_encoder")
        # z_dim, latents_mean and latents_std of the class are the published ones
        save(AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1), folder / "vae")
        network = QwenImageTransformer2DModel(
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=8,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            zero_cond_t=self.zero_cond_t,
        )
        save(network, folder / "transformer")
        schedule = {
            "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
            "invert_sigmas": False, "max_image_seq_len": 8192, "max_shift": 0.9, "num_train_timesteps": 1000,
            "shift": 1.0, "shift_terminal": 0.02, "stochastic_sampling": False, "time_shift_type": "exponential",
            "use_beta_sigmas": False, "use_dynamic_shifting": True, "use_exponential_sigmas": False,
            "use_karras_sigmas": False,
        }  # fmt: skip
        write(folder / "scheduler" / "scheduler_config.json", schedule)
        parts = index(
            self.pipeline,
            scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
            text_encoder="transformers.Qwen2_5_VLForConditionalGeneration",
            tokenizer="transformers.Qwen2Tokenizer",
            transformer="diffusers.QwenImageTransformer2DModel",
            vae="diffusers.AutoencoderKLQwenImage",
            **({"processor": processor} if processor else {}),
        )
        write(folder / "model_index.json", {**parts, "_diffusers_version": "0.36.0"})

    def real(self) -> nn.Module:
        return QwenImageTransformer2DModel()

    def cells(self, rig: Rig, shape: Shape) -> tuple[int, ...]:
        rate = rig.official.vae_scale_factor
        return rig.official.vae.config.z_dim, shape.height // rate, shape.width // rate

    def pack(self, rig: Rig, x: Tensor) -> Tensor:
        return QwenImagePipeline._pack_latents(x, *x.shape)

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        x = x[:, : shape.height * shape.width // (2 * rig.official.vae_scale_factor) ** 2]
        return QwenImagePipeline._unpack_latents(x, shape.height, shape.width, rig.official.vae_scale_factor)[:, :, 0]

    def guided(self, rig: Rig) -> dict[str, Any]:
        return {"true_cfg_scale": self.guidance, "negative_prompt": ""}

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        vae = rig.official.vae
        with torch.no_grad():
            raw = vae.encode(media.pixels[:, :, None]).latent_dist.mode()
            return rig.official.image_processor.postprocess(vae.decode(raw).sample[:, :, 0], output_type="pt")


class Edit(QwenImage):
    """Edits of one picture. Its pipeline scales the picture to 1 MP: here to 64², by the same rule."""

    name = "qwen_image-edit"
    task = "edit"
    pipeline = "QwenImageEditPipeline"
    options = settings = {}
    shapes = (Shape(64, 64), Shape(96, 64))
    sources: tuple[tuple[int, int], ...] = ((90, 45),)
    """Sizes of the pictures to edit from: others than the result's, and than the one to which they are scaled."""
    batch = 1  # its pipeline scales only a single picture for the text encoder
    quick = False
    overfit_shape, overfit_steps = Shape(32, 32), 80

    def official(self, folder: Path) -> Any:
        pipeline_qwenimage_edit.calculate_dimensions = lambda area, ratio: calculate_dimensions(area // 256, ratio)
        return super().official(folder)

    def references(self, n: int) -> tuple[Tensor, ...]:
        return tuple(smooth((n, 3, height, width), 5 + i) for i, (width, height) in enumerate(self.sources))

    def images(self, n: int) -> Any:
        """The pictures as a user gives them to the pipeline."""
        return pictures(self.references(n)[0])[0]

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        return replace(super().media(rig, shape, n), references=self.references(n))

    def run(self, pipe: Any, captions: Any, shape: Shape, **settings: Any) -> Any:
        return super().run(pipe, captions, shape, image=self.images(len(captions)), **settings)

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        references = tuple(pictures(r)[0] for r in self.references(1))
        return replace(super().request(rig, caption, shape, steps), references=references)

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        mine = self.pack(rig, target)
        rest = torch.ones_like(call["hidden_states"][:, mine.shape[1] :])  # the answer for the given pictures is unused
        return (torch.cat([mine, rest[: len(mine)]], 1),)

    def tokens(self, rig: Rig, shape: Shape) -> int:
        given = sum(r.shape[-1] * r.shape[-2] for r in self.latents(rig)) // 4
        return super().tokens(rig, shape) + given

    def latents(self, rig: Rig) -> list[Tensor]:
        """Encoded pictures of one item."""
        with torch.no_grad():
            return list(rig.family.media_cond(rig.parts, self.media(rig, self.shapes[0], 1))[0].values())


class EditPlus(Edit):
    """Edits of several pictures, and the time of given pictures held at 0 (Qwen-Image-Edit-2511)."""

    name = "qwen_image-edit-several"
    pipeline = "QwenImageEditPlusPipeline"
    zero_cond_t = True
    sources = ((90, 45), (50, 60))

    def official(self, folder: Path) -> Any:
        pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE = 64 * 64
        pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE = 56 * 56
        return Case.official(self, folder)

    def images(self, n: int) -> Any:
        return [pictures(r)[0] for r in self.references(n)]
