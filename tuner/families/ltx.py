"""LTX-Video 0.9: clips of 8k + 1 frames, packed, told the text by T5 and the place of every token in seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import LTXConditionPipeline, LTXPipeline
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, renamed
from ..objective import Flow, Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from ._latents import first_frames, later

ATTENTION = r"transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r"transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)"
EMBEDDERS = r"time_embed\.(linear|emb\.timestep_embedder\.linear_[12])|caption_projection\.linear_[12]"
CONDITION = "LTXConditionPipeline"
"""The pipeline of 0.9.5 and later, whose models count time from the start of the first frame."""


NAMES = Names(
    native=renamed(
        "",
        "",
        {
            "patchify_proj": "proj_in",
            "adaln_single.emb.timestep_embedder.linear_1": "time_embed.emb.timestep_embedder.linear_1",
            "adaln_single.emb.timestep_embedder.linear_2": "time_embed.emb.timestep_embedder.linear_2",
            "adaln_single.linear": "time_embed.linear",
        },
    ),
    architecture="LTX-Video",
    version="ltx_video",
)


class LtxOptions(Options):
    """Settings of LTX-Video."""

    max_tokens: int = setting(
        128, "Length to which captions are padded: 128 for 0.9.0 and 0.9.1, 256 for later ones", ge=1, le=512
    )


@register
class Ltx(Family):
    """Rectified flow; t moves towards noise with the number of tokens. A picture is a clip of one frame."""

    name = "ltx"
    title = "LTX-Video 0.9"
    modality = "video"
    pipelines = {"generate": "LTXPipeline", "image_to_video": "LTXImageToVideoPipeline"}
    accepts = ("LTXPipeline", "LTXImageToVideoPipeline", CONDITION)
    text_parts = ("tokenizer", "text_encoder")
    sources = {
        "0.9.0": "Lightricks/LTX-Video",
        "0.9.1": "a-r-r-o-w/LTX-Video-0.9.1-diffusers",
        "0.9.5": "Lightricks/LTX-Video-0.9.5",
    }
    resolution = 512
    guidance = 3.0
    timesteps = LogitNormal()
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{EMBEDDERS}",
    }
    names = NAMES
    licence = "LTX-Video Open Weights"
    size = "1.9B"
    encoders = "T5-XXL"
    Options = LtxOptions

    def __init__(self, options: Options | None = None, task: str = "generate") -> None:
        super().__init__(options, task)
        each = (Aligned("temb"),) if task == "image_to_video" else ()  # only there it is one per token
        self.blocks = (Blocks("transformer_blocks", aligned=(Aligned("image_rotary_emb"), *each)),)

    def pipe(self, parts: Parts) -> Any:
        """See `Family.pipe`: 0.9.5 and later have one pipeline for both tasks."""
        return self.assemble(LTXConditionPipeline, parts) if parts.pipeline == CONDITION else super().pipe(parts)

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        if snr_gamma is not None:
            raise UserError("train.snr_gamma has no meaning for ltx; remove it.")
        return Flow()

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; the pipelines take multiples of 32 only."""
        vae, network = source.config("vae"), source.config("transformer")
        halvings = 2 ** sum(vae.get("spatio_temporal_scaling", (True, True, True, False)))
        rate = vae.get("spatial_compression_ratio") or vae.get("patch_size", 4) * halvings
        return Geometry(
            multiple=math.lcm(32, rate * network.get("patch_size", 1)),
            rate=rate,
            frame_step=vae.get("temporal_compression_ratio") or vae.get("patch_size_t", 1) * halvings,
            fps=25.0,
            frames=97,
        )

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`."""
        return [("tokenizer", len(tokenizers["tokenizer"](caption).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D] of T5, mask: [max_tokens] per caption."""
        embeds, mask, *_ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.max_tokens,
            device=parts["text_encoder"].device,
        )
        return [{"embeds": e, "mask": m} for e, m in zip(embeds, mask, strict=True)]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens, "task": self.task}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """[B, C, f, h, w]: the posterior's mean, normalised per channel."""
        assert media.pixels is not None
        pixels = media.pixels if media.pixels.ndim == 5 else media.pixels[:, :, None]
        vae = parts["vae"]
        z = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        return LTXPipeline._normalize_latents(z, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """grid: [4], what places the tokens: frames and pixels per latent cell, frames per second, and 1 where time
        counts from the start of the first frame. first: [C, 1, h, w] of the first frame (image_to_video)."""
        vae, causal = parts["vae"], float(parts.pipeline == CONDITION)
        fps = media.fps or 25.0  # a picture's only frame stands at 0 for every rate
        grid = torch.tensor([vae.temporal_compression_ratio, vae.spatial_compression_ratio, fps, causal])
        assert media.pixels is not None
        conds: list[Cond] = [{"grid": grid} for _ in media.pixels]
        if self.task == "image_to_video":
            latents = self.encode_media(parts, Media(first_frames(media, self.name)))
            conds = [{**c, "first": z} for c, z in zip(conds, latents, strict=True)]
        return conds

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """exp(mu), mu linear in the number of tokens as in the pipeline of 0.9.0 and 0.9.1. Unlike there, mu stops at
        max_shift: the line was drawn for up to max_image_seq_len tokens, and exp(mu) runs away beyond."""
        if not scheduler.get("use_dynamic_shifting", False):
            return float(scheduler.get("shift", 1.0))
        tokens = math.prod(latents.shape[2:])
        low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
        few, many = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
        mu = min(low + (high - low) * (tokens - few) / (many - few), high)
        return math.exp(mu) if scheduler.get("time_shift_type", "exponential") == "exponential" else mu

    def emphasis(self, x: Tensor, cond: Cond) -> Tensor | None:
        """A given first frame does not count: the pipeline leaves it as it is."""
        return later(x) if "first" in cond else None

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        config: Any = getattr(denoiser, "module", denoiser).config  # a distributed wrapper hides it
        patch, frames, height, width = (config.patch_size, config.patch_size_t), *x.shape[2:]
        causal, times = bool(cond["grid"][0, 3]), t * 1000
        if causal:
            times = times[:, None]
        if "first" in cond:
            asked = LTXPipeline._pack_latents(later(x), *patch)[..., 0]
            times = t[:, None] * 1000 * asked
            x = (1 - later(x)) * cond["first"] + later(x) * x
        place: dict[str, Any] = {"num_frames": frames, "height": height, "width": width}
        out = denoiser(
            hidden_states=LTXPipeline._pack_latents(x, *patch),
            encoder_hidden_states=cond["embeds"],
            timestep=times,
            encoder_attention_mask=cond["mask"],
            **(_coordinates(x, patch, cond["grid"]) if causal else {**place, **_scale(cond["grid"])}),
            attention_kwargs=None,
            return_dict=False,
        )[0]
        return LTXPipeline._unpack_latents(out, frames // patch[1], height // patch[0], width // patch[0], *patch)

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`. Models whose autoencoder takes a time are decoded as their own example does it."""
        said: dict[str, Any] = {
            "prompt_embeds": request.cond["embeds"][None],
            "prompt_attention_mask": request.cond["mask"][None],
            "guidance_scale": request.guidance,
            "frame_rate": request.fps,
        }
        if request.negative is not None and request.guidance > 1.0:
            said["negative_prompt_embeds"] = request.negative["embeds"][None]
            said["negative_prompt_attention_mask"] = request.negative["mask"][None]
        if self.task == "image_to_video":
            said["image"] = request.references[0]
        if parts["vae"].config.timestep_conditioning:
            said |= {"decode_timestep": 0.05, "decode_noise_scale": 0.025}
        return said


def _scale(grid: Tensor) -> dict[str, Any]:
    """Seconds and pixels per latent cell; numbers as the pipeline gives them where all items have one frame rate."""
    (step, rate, *_), rates = grid[0].tolist(), grid[:, 2]
    same = rates[0].item() if bool((rates == rates[0]).all()) else rates.view(-1, 1, 1, 1, 1)
    return {"rope_interpolation_scale": (step / same, rate, rate)}


def _coordinates(x: Tensor, patch: tuple[int, int], grid: Tensor) -> dict[str, Any]:
    """Seconds and pixels of every token: [B, 3, N]; the first latent frame is one frame long."""
    ids = LTXConditionPipeline._prepare_video_ids(len(x), *x.shape[2:], *patch, device=x.device)
    step, rate = (int(v) for v in grid[0, :2].tolist())
    coordinates = LTXConditionPipeline._scale_video_ids(ids, rate, step, device=x.device).float()
    coordinates[:, 0] = coordinates[:, 0] * (1.0 / grid[:, 2:3])
    return {"video_coords": coordinates}
