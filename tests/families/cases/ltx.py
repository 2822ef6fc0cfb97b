"""LTX-Video 0.9."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.ltx import pipeline_ltx_condition
from PIL import Image
from torch import Tensor, nn

from tests.families.case import Case, Rig, Shape, smooth
from tests.tiny import index, save, t5_encoder, t5_tokenizer, write
from tuner.family import Request
from tuner.types import Media


def clip(shape: Shape, n: int) -> Tensor:
    """[n, 3, F, H, W] of 8-bit values; all start with the same frame, since the pipeline takes one picture."""
    pixels = smooth((n, 3, shape.frames, shape.height, shape.width), 4)
    pixels[:, :, 0] = pixels[0, :, 0]
    return ((pixels + 1) * 127.5).round() / 127.5 - 1


class TextToVideo(Case):
    """0.9.0 text to video."""

    name = family = "ltx"
    options: dict[str, Any] = {"max_tokens": 64}
    settings: dict[str, Any] = {"max_sequence_length": 64}
    shapes = (Shape(64, 64, 9), Shape(96, 64, 17))
    overfit_shape = Shape(64, 64, 9)
    overfit_steps, overfit_lr = 150, 4e-3
    pipeline = "LTXPipeline"
    schedule: dict[str, Any] = {
        "base_image_seq_len": 1024, "base_shift": 0.95, "invert_sigmas": False, "max_image_seq_len": 4096,
        "max_shift": 2.05, "num_train_timesteps": 1000, "shift": 1.0, "shift_terminal": 0.1,
        "use_dynamic_shifting": True,
    }  # fmt: skip
    samples: dict[str, Any] = {}
    """What the engine's own samples say to the pipeline beyond its defaults."""
    millions = 1900.0  # published as 1.9B
    tolerance = 50.0
    layers = {"default": 28 * 8, "attention+feed-forward": 28 * 10, "all-linear": 28 * 10 + 5}
    vae_settings: dict[str, Any] = {}

    def build(self, folder: Path) -> None:
        t5_tokenizer(folder / "tokenizer")
        t5_encoder(folder / "text_encoder", 32)
        widths = {"block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
        layers = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
        vae = AutoencoderKLLTXVideo(latent_channels=8, **widths, **layers, **self.vae_settings)
        vae.latents_mean.normal_()
        vae.latents_std.uniform_(0.5, 2.0)
        save(vae, folder / "vae")
        sizes = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2, "cross_attention_dim": 64}
        network = LTXVideoTransformer3DModel(in_channels=8, out_channels=8, caption_channels=32, **sizes)
        save(network, folder / "transformer")
        schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", **self.schedule}
        write(folder / "scheduler" / "scheduler_config.json", schedule)
        whole = index(
            self.pipeline,
            scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
            text_encoder="transformers.T5EncoderModel",
            tokenizer="transformers.T5Tokenizer",
            transformer="diffusers.LTXVideoTransformer3DModel",
            vae="diffusers.AutoencoderKLLTXVideo",
        )
        write(folder / "model_index.json", {**whole, "_diffusers_version": "0.32.0.dev0"})

    def real(self) -> nn.Module:
        return LTXVideoTransformer3DModel()

    def cells(self, rig: Rig, shape: Shape) -> tuple[int, ...]:
        return 8, (shape.frames - 1) // 8 + 1, shape.height // 32, shape.width // 32

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        return Media(clip(shape, n), fps=self.fps(rig))

    def fps(self, rig: Rig) -> float:
        """Not the family's own: what the network is told must come from the item."""
        return 12.0

    def size(self, shape: Shape) -> dict[str, Any]:
        return {**super().size(shape), "num_frames": shape.frames, "frame_rate": 12}

    def picture(self, shape: Shape) -> Image.Image:
        """What an image-to-video pipeline is given."""
        first = clip(shape, 1)[0, :, 0]
        return Image.fromarray(((first + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        if self.task == "image_to_video":
            settings["image"] = [self.picture(shape)] * len(captions)  # this pipeline takes one per prompt
        return super().run(pipe, captions, shape, **settings)

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        pictures = (self.picture(shape),) if self.task == "image_to_video" else ()
        return replace(super().request(rig, caption, shape, steps), references=pictures)

    def pictured(self, rig: Rig, caption: str, shape: Shape, **settings: Any) -> Tensor:
        """With the autoencoder as it is loaded, and what the engine's own samples say."""
        with patch.object(rig.official, "vae", rig.parts["vae"]):
            return super().pictured(rig, caption, shape, **self.samples, **settings)

    def pack(self, rig: Rig, x: Tensor) -> Tensor:
        return LTXPipeline._pack_latents(x)

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        return LTXPipeline._unpack_latents(x, *self.cells(rig, shape)[1:])

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        vae = rig.official.vae
        with torch.no_grad():
            decoded = vae.decode(vae.encode(media.pixels).latent_dist.mode(), None).sample
        return rig.official.video_processor.postprocess_video(decoded, output_type="pt")

    def tokens(self, rig: Rig, shape: Shape) -> int:
        _, *cells = self.cells(rig, shape)
        return int(torch.tensor(cells).prod())


class Mean(DiagonalGaussianDistribution):
    """The pipeline draws the first frame's latents from the posterior; what we cache is its mean."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mode()


def on_average(pipe: Any) -> Any:
    """The same pipeline with that difference."""
    pipe.set_progress_bar_config(disable=True)
    encode = pipe.vae.encode

    def mean(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = encode(x, *args, **kwargs)
        out.latent_dist = Mean(out.latent_dist.parameters)
        return out

    pipe.vae.encode = mean
    return pipe


class ImageToVideo(TextToVideo):
    """0.9.0 image to video, from the same weights: the first frame stays clean, its tokens' time is 0."""

    name = "ltx-i2v"
    task = "image_to_video"
    quick = True

    def official(self, folder: Path) -> Any:
        return on_average(LTXImageToVideoPipeline.from_pretrained(folder))

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        """Given noise holds the first frame already, as this pipeline takes it."""
        if "latents" in settings:
            pixels = clip(shape, len(captions))[:, :, :1]
            with torch.no_grad():
                z = pipe.vae.encode(pixels).latent_dist.mode()
            z = LTXPipeline._normalize_latents(z, pipe.vae.latents_mean, pipe.vae.latents_std)
            first = LTXPipeline._pack_latents(z)
            settings["latents"] = torch.cat([first, settings["latents"][:, first.shape[1] :]], dim=1)
        return super().run(pipe, captions, shape, **settings)

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        """The solver sees the later frames only, unpacked."""
        if x.ndim == 5:
            return torch.cat([torch.zeros_like(x[:, :, :1]), x], dim=2)
        return super().unpack(rig, x, shape)


class Condition(TextToVideo):
    """0.9.5: another pipeline, which places tokens by coordinates; an autoencoder that is told a time."""

    name = "ltx-0.9.5"
    pipeline = "LTXConditionPipeline"
    schedule: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False}
    vae_settings: dict[str, Any] = {
        "timestep_conditioning": True, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
    }  # fmt: skip
    samples: dict[str, Any] = {"decode_timestep": 0.05, "decode_noise_scale": 0.025}

    def official(self, folder: Path) -> Any:
        return on_average(LTXConditionPipeline.from_pretrained(folder))

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        """This pipeline takes no noise; it is given ours where it draws its own."""
        if self.task == "image_to_video":
            settings["image"] = self.picture(shape)
        if "latents" not in settings:
            return Case.run(self, pipe, captions, shape, **settings)
        cells = ((shape.frames - 1) // 8 + 1, shape.height // 32, shape.width // 32)
        noise = LTXPipeline._unpack_latents(settings.pop("latents"), *cells)
        with patch.object(pipeline_ltx_condition, "randn_tensor", lambda *_, **__: noise.clone()):
            return Case.run(self, pipe, captions, shape, **{**settings, "output_type": "latent"})

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        vae = rig.official.vae
        with torch.no_grad():
            decoded = vae.decode(vae.encode(media.pixels).latent_dist.mode(), torch.zeros(1)).sample
        return rig.official.video_processor.postprocess_video(decoded, output_type="pt")


class ConditionedOnImage(Condition):
    """0.9.5 from a first frame."""

    name = "ltx-0.9.5-i2v"
    task = "image_to_video"
    settings: dict[str, Any] = {"max_sequence_length": 64, "image_cond_noise_scale": 0.0}
    samples: dict[str, Any] = {**Condition.samples, "image_cond_noise_scale": 0.15}
