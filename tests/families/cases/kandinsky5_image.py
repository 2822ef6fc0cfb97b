"""Kandinsky 5.0 Image and its edit model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from diffusers import Kandinsky5Transformer3DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.kandinsky5 import pipeline_kandinsky_i2i, pipeline_kandinsky_t2i
from torch import Tensor, nn

from tests.families.case import Case, Rig, Shape, smooth
from tests.tiny import clip_encoder, clip_tokenizer, index, qwen_processor, qwen_vl, save, vae, write
from tuner.families._latents import pictures
from tuner.family import Request
from tuner.types import Cond, Media


class Kandinsky5Image(Case):
    """Text to image."""

    name = family = "kandinsky5_image"
    pipeline = "Kandinsky5T2IPipeline"
    module: Any = pipeline_kandinsky_t2i
    options: dict[str, Any] = {"max_tokens": 400}
    settings: dict[str, Any] = {"max_sequence_length": 400}
    pads_are_read = True  # the network takes no mask; the pipeline gives it the padding of a batch too
    visual_cond = False
    overfit_shape, overfit_batch = Shape(64, 64), 6
    # published as 6 B; configs/config_t2i.yaml of github.com/kandinskylab/kandinsky-5 has the numbers of `real`
    millions = 6022.1
    layers = {"default": 2 * 4 + 50 * 8, "attention+feed-forward": 52 * 2 + 408, "all-linear": 52 * 3 + 408}

    def build(self, folder: Path) -> None:
        qwen_processor(folder / "tokenizer")
        qwen_vl(folder / "text_encoder")
        clip_tokenizer(folder / "tokenizer_2")
        clip_encoder(folder / "text_encoder_2", 32, "quick_gelu")
        # the pipelines know no other rate than 8; they do not use the shift
        flux = {"shift_factor": 0.1159, "scaling_factor": 0.3611}
        vae(folder / "vae", 16, 4, use_quant_conv=False, use_post_quant_conv=False, **flux)
        network = Kandinsky5Transformer3DModel(
            in_visual_dim=16,
            out_visual_dim=16,
            in_text_dim=32,
            in_text_dim2=32,
            time_dim=32,
            model_dim=128,
            ff_dim=256,
            num_text_blocks=2,
            num_visual_blocks=2,
            axes_dims=(4, 6, 6),
            visual_cond=self.visual_cond,
        )
        alive(network)
        save(network, folder / "transformer")
        schedule = {
            "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
            "use_dynamic_shifting": False,
        }  # fmt: skip
        write(folder / "scheduler" / "scheduler_config.json", schedule)
        write(folder / "model_index.json", {**parts(self.pipeline, "AutoencoderKL"), "_diffusers_version": "0.36.0"})

    def real(self) -> nn.Module:
        return Kandinsky5Transformer3DModel(
            in_visual_dim=16,
            out_visual_dim=16,
            model_dim=2560,
            ff_dim=10240,
            num_visual_blocks=50,
            axes_dims=(32, 48, 48),
        )

    def official(self, folder: Path) -> Any:
        pipe = super().official(folder)
        pipe.resolutions = [(s.width, s.height) for s in (*self.shapes, self.overfit_shape)]
        return pipe

    @contextmanager
    def told(self, latents: Tensor | None = None) -> Iterator[None]:
        """Noise is `latents` where given. Pictures to edit are encoded to the mean, which we keep in the cache."""
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

    def guided(self, rig: Rig) -> dict[str, Any]:
        return {"guidance_scale": self.guidance, "negative_prompt": ""}

    def pack(self, rig: Rig, x: Tensor) -> Tensor:
        return x[:, :, None].permute(0, 2, 3, 4, 1)

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        return x[..., : rig.official.transformer.config.in_visual_dim].permute(0, 4, 1, 2, 3)[:, :, 0]

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        return SimpleNamespace(sample=self.pack(rig, target))

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        with torch.no_grad():
            raw = rig.official.vae.encode(media.pixels).latent_dist.mode()
            return rig.official.image_processor.postprocess(rig.official.vae.decode(raw).sample, output_type="pt")

    @contextmanager
    def flipped(self, rig: Rig) -> Iterator[None]:
        with negated(rig.denoiser):
            yield


class Edit(Kandinsky5Image):
    """Edits."""

    name = "kandinsky5_image-edit"
    task = "edit"
    pipeline = "Kandinsky5I2IPipeline"
    module = pipeline_kandinsky_i2i
    visual_cond = True
    # a caption gets what a picture of 1 MP leaves, and the template alone is 182 tokens here
    options: dict[str, Any] = {"max_tokens": 700}
    settings: dict[str, Any] = {"max_sequence_length": 700}
    overfit_lr = 4e-3

    def references(self, n: int) -> tuple[Tensor, ...]:
        """Of another size and aspect than the results."""
        return (smooth((n, 3, 112, 180), 5),)

    def train(self, rig: Rig, z: Tensor, cond: Cond) -> None:
        """One item: the sampler starts from the first picture, and so do all of the batch."""
        super().train(rig, z, {k: v[:1].expand_as(v) for k, v in cond.items()})

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        return replace(super().media(rig, shape, n), references=self.references(n))

    def run(self, pipe: Any, captions: Any, shape: Shape, **settings: Any) -> Any:
        images = pictures(self.references(len(captions))[0])
        return super().run(pipe, captions, shape, image=images, **settings)

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        references = tuple(pictures(self.references(1)[0]))
        return replace(super().request(rig, caption, shape, steps), references=references)


def alive(network: nn.Module) -> None:
    """A fresh network has modulations of zero, so that nothing would reach its blocks; trained ones have not."""
    for name, parameter in network.named_parameters():
        if "modulation.out_layer" in name:
            nn.init.normal_(parameter, std=0.1)


def parts(pipeline: str, autoencoder: str) -> dict[str, Any]:
    """`model_index.json` of a Kandinsky 5 model."""
    return index(
        pipeline,
        scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
        text_encoder="transformers.Qwen2_5_VLForConditionalGeneration",
        text_encoder_2="transformers.CLIPTextModel",
        tokenizer="transformers.Qwen2VLProcessor",
        tokenizer_2="transformers.CLIPTokenizer",
        transformer="diffusers.Kandinsky5Transformer3DModel",
        vae=f"diffusers.{autoencoder}",
    )


@contextmanager
def negated(network: nn.Module) -> Iterator[None]:
    """A network whose answer has the other sign."""
    hook = network.register_forward_hook(lambda module, args, out: type(out)(sample=-out.sample))
    try:
        yield
    finally:
        hook.remove()
