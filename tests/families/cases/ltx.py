"""LTX-Video 0.9."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel
from torch import Tensor, nn

from tests.families.case import Case, Rig, Shape, smooth
from tests.tiny import index, save, t5_encoder, t5_tokenizer, write
from tuner.families._latents import pictures
from tuner.family import Request
from tuner.types import Media

SCHEDULE = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 1024, "base_shift": 0.95,
    "invert_sigmas": False, "max_image_seq_len": 4096, "max_shift": 2.05, "num_train_timesteps": 1000, "shift": 1.0,
    "shift_terminal": 0.1, "use_dynamic_shifting": True,
}  # fmt: skip


def clip(shape: Shape, n: int) -> Tensor:
    """[n, 3, F, H, W] of 8-bit values, as pictures have them."""
    pixels = smooth((n, 3, shape.frames, shape.height, shape.width), 4)
    return ((pixels + 1) * 127.5).round() / 127.5 - 1


def measured(vae: Any) -> nn.Module:
    """Statistics as measured ones: fresh ones are 0 and 1."""
    with torch.no_grad():
        vae.latents_mean.normal_(0, 0.3)
        vae.latents_std.uniform_(0.5, 1.5)
    return vae


class Generate(Case):
    """0.9.0, at another frame rate than the model's own."""

    name = family = "ltx"
    options: dict[str, Any] = {"max_tokens": 32}
    settings: dict[str, Any] = {"max_sequence_length": 32}
    shapes = (Shape(64, 64, 9), Shape(96, 64, 17))
    overfit_shape = Shape(64, 64, 9)
    overfit_steps, overfit_lr = 150, 5e-3
    pipeline = "LTXPipeline"
    # published as 2B; the weights of 0.9.0 are 3.85 GB in bfloat16
    millions = 1923.385
    layers = {"default": 28 * 8, "attention+feed-forward": 28 * 10, "all-linear": 28 * 10 + 7}

    def build(self, folder: Path) -> None:
        t5_tokenizer(folder / "tokenizer")
        t5_encoder(folder / "text_encoder", 32)
        save(measured(self.vae()), folder / "vae")
        sizes = {"num_attention_heads": 4, "attention_head_dim": 16, "cross_attention_dim": 64, "num_layers": 2}
        save(
            LTXVideoTransformer3DModel(in_channels=8, out_channels=8, caption_channels=32, **sizes),
            folder / "transformer",
        )
        write(folder / "scheduler" / "scheduler_config.json", SCHEDULE)
        parts = index(
            self.pipeline,
            scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
            text_encoder="transformers.T5EncoderModel",
            tokenizer="transformers.T5Tokenizer",
            transformer="diffusers.LTXVideoTransformer3DModel",
            vae="diffusers.AutoencoderKLLTXVideo",
        )
        write(folder / "model_index.json", {**parts, "_diffusers_version": "0.32.0.dev0"})

    def vae(self) -> nn.Module:
        """Of 0.9.0."""
        sizes = {"block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
        layers = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
        return AutoencoderKLLTXVideo(latent_channels=8, **sizes, **layers)

    def real(self) -> nn.Module:
        return LTXVideoTransformer3DModel()

    def fps(self, rig: Rig) -> float:
        return 30.0

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        return Media(clip(shape, n), fps=self.fps(rig))

    def size(self, shape: Shape) -> dict[str, Any]:
        return {**super().size(shape), "num_frames": shape.frames, "frame_rate": 30}

    def pack(self, rig: Rig, x: Tensor) -> Tensor:
        return LTXPipeline._pack_latents(x)

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        _, *cells = self.cells(rig, shape)
        return LTXPipeline._unpack_latents(x, *cells)

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        vae = rig.official.vae
        temb = torch.zeros(1) if vae.config.timestep_conditioning else None
        with torch.no_grad():
            decoded = vae.decode(vae.encode(media.pixels).latent_dist.mode(), temb).sample
        return rig.official.video_processor.postprocess_video(decoded, output_type="pt")

    def tokens(self, rig: Rig, shape: Shape) -> int:
        _, *cells = self.cells(rig, shape)
        return int(torch.tensor(cells).prod())


class ImageToVideo(Generate):
    """0.9.5, whose autoencoder decodes at a time of its own and states its compression, from a first frame."""

    name = "ltx-i2v"
    task = "image_to_video"
    pipeline = "LTXImageToVideoPipeline"
    quick = True

    def vae(self) -> nn.Module:
        sizes = {"block_out_channels": (8, 8, 16, 32, 32), "decoder_block_out_channels": (8, 16, 32)}
        layers = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 4}
        encoder = {"down_block_types": ("LTXVideo095DownBlock3D",) * 4, "spatio_temporal_scaling": (True,) * 4}
        steps = ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
        decoder = {"upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3, "timestep_conditioning": True}
        scaling = {"decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (False,) * 4}
        ratios = {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
        return AutoencoderKLLTXVideo(
            latent_channels=8, downsample_type=steps, **sizes, **layers, **encoder, **decoder, **scaling, **ratios
        )

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        first = pictures(clip(shape, len(captions))[:, :, 0])
        return super().run(pipe, captions, shape, image=first, **settings)

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        first = pictures(clip(shape, 1)[:, :, 0])
        return dataclasses.replace(super().request(rig, caption, shape, steps), references=tuple(first))

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        """The solver is given the frames behind the first."""
        return torch.cat([torch.zeros_like(x[:, :, :1]), x], dim=2) if x.ndim == 5 else super().unpack(rig, x, shape)

    @contextmanager
    def given(self, rig: Rig) -> Iterator[None]:
        """Random latents begin with the item's first frame: given latents, the pipeline reads no picture."""
        random = rig.latent

        def latent(shape: Shape, n: int, seed: int = 0) -> Tensor:
            x = random(shape, n, seed)
            with torch.no_grad():
                conds = rig.family.media_cond(rig.parts, self.media(rig, shape, n))
            return torch.cat([torch.stack([c["first"] for c in conds]), x[:, :, 1:]], dim=2)

        rig.latent = latent  # type: ignore[method-assign]
        try:
            yield
        finally:
            del rig.latent

    def prove_call_parity(self, rig: Rig, shape: Shape) -> None:
        with self.given(rig):
            super().prove_call_parity(rig, shape)

    def prove_answer_parity(self, rig: Rig) -> None:
        with self.given(rig):
            super().prove_answer_parity(rig)

    def prove_known_answer(self, rig: Rig) -> None:
        """The pipeline draws the first frame from the autoencoder's posterior; here it takes the mean, as we do."""
        encode = rig.official.vae.encode

        def certain(*args: Any, **kwargs: Any) -> Any:
            out = encode(*args, **kwargs)
            out.latent_dist.std = torch.zeros_like(out.latent_dist.std)
            return out

        rig.official.vae.encode = certain
        try:
            super().prove_known_answer(rig)
        finally:
            del rig.official.vae.encode
