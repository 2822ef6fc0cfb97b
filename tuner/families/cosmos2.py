"""Cosmos-Predict2 Text2Image: a video network that draws one frame, told the text by T5-11B."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.cosmos import pipeline_cosmos2_text2image
from diffusers.utils import is_cosmos_guardrail_available
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, renamed
from ..objective import Objective
from ..recipe import LogitNormal, Recipe, setting
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from . import _flow

ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r".*\.ff\.net\.(0\.proj|2)"
MODULATION = r".*\.norm[123]\.linear_[12]"
DIVISOR = 16
"""The pipeline takes no size that this does not divide."""


ATTENTION_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "output_proj": "to_out.0"}
NAMES = Names(
    native=(
        *renamed("blocks.{}.self_attn.", "transformer_blocks.{}.attn1.", ATTENTION_NAMES),
        *renamed("blocks.{}.cross_attn.", "transformer_blocks.{}.attn2.", ATTENTION_NAMES),
        *renamed(
            "blocks.{}.",
            "transformer_blocks.{}.",
            {
                "mlp.layer1": "ff.net.0.proj",
                "mlp.layer2": "ff.net.2",
                "adaln_modulation_self_attn.1": "norm1.linear_1",
                "adaln_modulation_self_attn.2": "norm1.linear_2",
                "adaln_modulation_cross_attn.1": "norm2.linear_1",
                "adaln_modulation_cross_attn.2": "norm2.linear_2",
                "adaln_modulation_mlp.1": "norm3.linear_1",
                "adaln_modulation_mlp.2": "norm3.linear_2",
            },
        ),
        *renamed(
            "",
            "",
            {
                "x_embedder.proj.1": "patch_embed.proj",
                "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
                "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
                "final_layer.adaln_modulation.1": "norm_out.linear_1",
                "final_layer.adaln_modulation.2": "norm_out.linear_2",
                "final_layer.linear": "proj_out",
            },
        ),
    ),
    architecture="Cosmos-Predict2",
    version="cosmos_predict2",
)


class Unchecked:
    """Stands where the pipeline demands NVIDIA's guardrail, and checks nothing: for encoding text, which draws nothing,
    and for samples of those who asked for it."""

    def to(self, device: Any) -> Unchecked:
        """There is nothing to move."""
        return self

    def check_text_safety(self, prompt: str) -> bool:
        """Everything passes."""
        return True

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        """Everything passes as it is."""
        return frames


MISSING = (
    "cosmos2 has its samples checked by NVIDIA's guardrail, as the model's licence asks, but it is not installed; run "
    "`pip install cosmos_guardrail`, remove `validate`, or set options.unchecked to true: nothing is checked then, "
    "which the licence allows only beside a similar guardrail of your own."
)


@functools.cache
def guardrail() -> Any:
    """NVIDIA's own, once per process: it brings several models along. Raises `UserError` where it is not installed."""
    if not is_cosmos_guardrail_available():
        raise UserError(MISSING)
    return pipeline_cosmos2_text2image.CosmosSafetyChecker()


class Cosmos2Options(Options):
    """Settings of Cosmos-Predict2."""

    unchecked: bool = setting(
        False,
        "Draw samples without NVIDIA's guardrail (the package cosmos_guardrail): its licence for the model ends for "
        "whoever turns that off without a similar one of their own",
        "basic",
    )
    max_tokens: int = setting(512, "Length to which captions are padded", "expert", ge=1, le=512)


@register
class Cosmos2(Family):
    """Rectified flow. The pipeline speaks of x0 + sigma n instead (EDM), which is the same network asked the same way.

    With t = sigma / (1 + sigma), its input is (x0 + sigma n) (1 - t) = (1 - t) x0 + t n, its time t, and what it makes
    of the answer, (1 - t) (x0 + sigma n) - t answer, is the clean latent exactly if the answer is n - x0.

    NVIDIA's guardrail checks the pictures of samples, unless the options say that they are drawn unchecked.
    """

    name = "cosmos2"
    title = "Cosmos-Predict2 Text2Image"
    pipelines = {"generate": "Cosmos2TextToImagePipeline"}
    accepts = ("Cosmos2TextToImagePipeline",)
    text_parts = ("tokenizer", "text_encoder")
    sources = {
        "2b": "nvidia/Cosmos-Predict2-2B-Text2Image",
        "14b": "nvidia/Cosmos-Predict2-14B-Text2Image",
    }
    resolution = 1024
    guidance = 7.0
    timesteps = LogitNormal()
    blocks = (
        Blocks(
            "transformer_blocks", aligned=(Aligned("image_rotary_emb", dims=(0,)), Aligned("extra_pos_emb", dims=(1,)))
        ),
    )
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    }
    names = NAMES
    licence = "NVIDIA Open Model License (asks for its guardrail on samples)"
    size = "2B, 14B"
    encoders = "T5-11B"
    Options = Cosmos2Options

    def refuses(self, recipe: Recipe) -> str | None:
        """See `Family.refuses`; says early that samples need a guardrail which is not there."""
        drawn = recipe.validation is not None and recipe.validation.prompts
        return MISSING if drawn and not self.options.unchecked and not is_cosmos_guardrail_available() else None

    def assemble(self, cls: Any, parts: Parts) -> Any:
        """See `Family.assemble`; the guardrail, with its own models, comes in `prepare`."""
        return super().assemble(
            cls, Parts(parts.denoiser, {**parts.components, "safety_checker": Unchecked()}, parts.pipeline)
        )

    def prepare(self, pipe: Any, request: Request) -> None:
        """See `Family.prepare`; the prompt is cached, so that only pictures can be checked."""
        if not self.options.unchecked:
            pipe.safety_checker = guardrail()

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; the autoencoder is one of clips, a picture is a clip of one frame."""
        rate = 2 ** len(source.config("vae").get("temperal_downsample", [False, True, True]))
        patch = source.config("transformer").get("patch_size", [1, 2, 2])[-1]
        return Geometry(multiple=max(DIVISOR, patch * rate), rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`."""
        return [("tokenizer", len(tokenizers["tokenizer"](caption).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D] per caption, zero behind its end."""
        embeds, _ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.max_tokens,
            device=parts["text_encoder"].device,
        )
        return [{"embeds": e} for e in embeds]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """See `Family.encode_media`; normalised per channel, [B, 16, h, w]."""
        assert media.pixels is not None
        vae = parts["vae"]
        z = vae.encode(media.pixels[:, :, None].to(vae.dtype)).latent_dist.mode()[:, :, 0]
        mean, std = (torch.tensor(vae.config[k]).to(z)[:, None, None] for k in ("latents_mean", "latents_std"))
        return (z - mean) / std

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; one frame, and a mask of padded pixels that says that there are none."""
        # all zeros, so that its size is of no consequence; 8 pixels a cell are the published model's
        padding = torch.zeros(1, 1, 8 * x.shape[-2], 8 * x.shape[-1], device=x.device, dtype=x.dtype)
        return denoiser(
            hidden_states=x[:, :, None],
            timestep=t,
            encoder_hidden_states=cond["embeds"],
            padding_mask=padding,
            return_dict=False,
        )[0][:, :, 0]

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""
        text = {"prompt_embeds": request.cond["embeds"][None]}
        if request.negative is None:
            return {**text, "guidance_scale": 1.0}
        negative = {"negative_prompt_embeds": request.negative["embeds"][None]}
        return {**text, **negative, "guidance_scale": request.guidance}
