"""Kandinsky 5.0 Video: text to video with and without channels for a first frame, and image to video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLHunyuanVideo, Kandinsky5Transformer3DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.kandinsky5 import pipeline_kandinsky, pipeline_kandinsky_i2v
from torch import Tensor, nn

from tests.families.case import Case, Rig, Shape, smooth
from tests.families.cases.kandinsky5_image import alive, negated, parts
from tests.tiny import clip_encoder, clip_tokenizer, qwen_processor, qwen_vl, save, write
from tuner.families._latents import pictures
from tuner.family import Request
from tuner.types import Media


class Kandinsky5Video(Case):
    """Text to video, by a model with channels for a first frame (as the published ones)."""

    name = family = "kandinsky5_video"
    pipeline = "Kandinsky5T2VPipeline"
    module: Any = pipeline_kandinsky
    visual_cond = True
    options: dict[str, Any] = {"max_tokens": 900}
    settings: dict[str, Any] = {"max_sequence_length": 900}
    shapes = (Shape(64, 64, 5), Shape(96, 64, 9))
    pads_are_read = True  # the network takes no mask; the pipeline gives it the padding of a batch too
    overfit_shape, overfit_steps, overfit_batch = Shape(32, 32, 5), 160, 4
    # published as 2 B; configs/k5_lite_i2v_5s_sft_sd.yaml of github.com/kandinskylab/kandinsky-5 has the numbers of
    # `real`
    millions = 2007.7
    layers = {"default": 34 * 4 + 32 * 4, "attention+feed-forward": 264 + 34 * 2, "all-linear": 264 + 34 * 3}

    def build(self, folder: Path) -> None:
        qwen_processor(folder / "tokenizer")
        qwen_vl(folder / "text_encoder")
        clip_tokenizer(folder / "tokenizer_2")
        clip_encoder(folder / "text_encoder_2", 32, "quick_gelu")
        vae = AutoencoderKLHunyuanVideo(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
        save(vae, folder / "vae")
        network = Kandinsky5Transformer3DModel(
            in_visual_dim=16,
            out_visual_dim=16,
            in_text_dim=32,
            in_text_dim2=32,
            time_dim=32,
            model_dim=128,
            ff_dim=256,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 6, 6),
            visual_cond=self.visual_cond,
        )
        alive(network)
        save(network, folder / "transformer")
        schedule = {
            "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 5.0,
            "use_dynamic_shifting": False,
        }  # fmt: skip
        write(folder / "scheduler" / "scheduler_config.json", schedule)
        written = {**parts(self.pipeline, "AutoencoderKLHunyuanVideo"), "_diffusers_version": "0.36.0"}
        write(folder / "model_index.json", written)

    def real(self) -> nn.Module:
        return Kandinsky5Transformer3DModel(
            in_visual_dim=16, out_visual_dim=16, model_dim=1792, ff_dim=7168, visual_cond=True
        )

    @contextmanager
    def told(self, latents: Tensor | None = None) -> Iterator[None]:
        """Noise is `latents` where given. First frames are encoded to the mean, which we keep in the cache."""
        noise = self.module.randn_tensor if latents is None else lambda *_, **__: latents.clone()
        with (
            patch.object(self.module, "randn_tensor", noise),
            patch.object(DiagonalGaussianDistribution, "sample", lambda posterior, generator=None: posterior.mode()),
        ):
            yield

    def run(self, pipe: Any, captions: Any, shape: Shape, **settings: Any) -> Any:
        with self.told(settings.pop("latents", None)):
            return super().run(pipe, captions, shape, **settings)

    def drawn_from_cache(self, rig: Rig, request: Request) -> Tensor:
        with self.told():
            return super().drawn_from_cache(rig, request)

    def size(self, shape: Shape) -> dict[str, Any]:
        return {**super().size(shape), "num_frames": shape.frames}

    def guided(self, rig: Rig) -> dict[str, Any]:
        return {"guidance_scale": self.guidance, "negative_prompt": ""}

    def pack(self, rig: Rig, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 4, 1)

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        return x[..., : rig.official.transformer.config.in_visual_dim].permute(0, 4, 1, 2, 3)

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        return SimpleNamespace(sample=self.pack(rig, target))

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        return self.decoded(rig, rig.official.vae.encode(media.pixels).latent_dist.mode())

    def decoded(self, rig: Rig, raw: Tensor) -> Tensor:
        """The pipeline's frames of latents as the autoencoder has them."""
        with torch.no_grad():
            return rig.official.video_processor.postprocess_video(rig.official.vae.decode(raw).sample, "pt")

    @contextmanager
    def flipped(self, rig: Rig) -> Iterator[None]:
        with negated(rig.denoiser):
            yield


class Plain(Kandinsky5Video):
    """Text to video, by a model without channels for a first frame."""

    name = "kandinsky5_video-plain"
    visual_cond = False
    quick = False


class FromImage(Kandinsky5Video):
    """Image to video, from a picture of another size; its pipeline needs five latent frames."""

    name = "kandinsky5_video-image"
    task = "image_to_video"
    pipeline = "Kandinsky5I2VPipeline"
    module = pipeline_kandinsky_i2v
    shapes = (Shape(64, 64, 17), Shape(96, 64, 21))
    overfit_shape = Shape(32, 32, 17)
    quick = False

    def references(self, n: int) -> tuple[Tensor, ...]:
        """Of another size and aspect than the clips."""
        return (smooth((n, 3, 80, 100), 5),)

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        return replace(super().media(rig, shape, n), references=self.references(n))

    def run(self, pipe: Any, captions: Any, shape: Shape, **settings: Any) -> Any:
        images = pictures(self.references(len(captions))[0])
        return super().run(pipe, captions, shape, image=images, **settings)

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        references = tuple(pictures(self.references(1)[0]))
        return replace(super().request(rig, caption, shape, steps), references=references)

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        """The first latent frame is the picture's; the pipeline evens the first four to those that follow."""
        pipe, (height, width) = rig.official, media.pixels.shape[-2:]
        with torch.no_grad():
            first = pipe.video_processor.preprocess(pictures(media.references[0]), height=height, width=width)
            raw = pipe.vae.encode(media.pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
            raw[:, :, :1] = pipe.vae.encode(first[:, :, None]).latent_dist.mode() * pipe.vae.config.scaling_factor
            evened = pipe.normalize_first_frame(self.pack(rig, raw))
        return self.decoded(rig, self.unpack(rig, evened, self.shapes[0]) / pipe.vae.config.scaling_factor)

    def sampled(self, rig: Rig, shape: Shape) -> Tensor:
        """The pipeline's scheduler never sees the given frame."""
        reached = super().sampled(rig, shape)
        return torch.cat([torch.zeros_like(reached[:, :, :1]), reached], 2)
