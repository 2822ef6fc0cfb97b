"""PixArt Sigma (and alpha): a transformer over 2x2 patches of latents, told the text by T5 through cross attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..blocks import Blocks
from ..errors import UserError
from ..family import Family, Framing, Geometry, Options, Request, register
from ..libraries import diffusers
from ..native import Names, renamed
from ..objective import Objective
from ..recipe import Uniform, setting
from ..source import Source
from ..types import Cond, Parts, Prompt
from . import _ddpm
from ._latents import halvings

ALPHA = "PixArtAlphaPipeline"
ALPHA_TOKENS = 120
ATTENTION = r"transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r"transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)"
OUTSIDE = r"adaln_single\.(linear|emb\.timestep_embedder\.linear_[12])|caption_projection\.linear_[12]|proj_out"
OTHER = "other_stage"


NAMES = Names(
    native=(
        *renamed(
            "blocks.{}.",
            "transformer_blocks.{}.",
            {
                "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
                "attn.proj": "attn1.to_out.0",
                "cross_attn.q_linear": "attn2.to_q",
                "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
                "cross_attn.proj": "attn2.to_out.0",
                "mlp.fc1": "ff.net.0.proj",
                "mlp.fc2": "ff.net.2",
            },
        ),
        *renamed(
            "",
            "",
            {
                "x_embedder.proj": "pos_embed.proj",
                "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
                "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
                "t_block.1": "adaln_single.linear",
                "y_embedder.y_proj.fc1": "caption_projection.linear_1",
                "y_embedder.y_proj.fc2": "caption_projection.linear_2",
                "final_layer.linear": "proj_out",
                # alpha at 1024 pixels
                "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
                "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
                "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
                "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
            },
        ),
    ),
    architecture="pixart-sigma",
    aliases=("pixart-alpha",),
    version="pixart_sigma",
)


class PixArtOptions(Options):
    """Settings of PixArt."""

    max_tokens: int = setting(300, "Length to which captions are padded; PixArt alpha takes 120", ge=1, le=300)
    stage: Literal["whole", "first", "second"] = setting(
        "whole", "Which part of the noise levels this model answers: a pair of models shares them (eDiff-I)"
    )
    boundary: float = setting(
        0.2, "The noise level t between the two models of a pair: the first has t above it", "expert", gt=0, lt=1
    )
    other_stage: str = setting(
        "", "The other model of the pair, a source like `source`: samples are drawn with both", "advanced"
    )


@register
class PixArtSigma(Family):
    """Noise prediction on 1000 discrete steps; the half of the answer that is the variance is not trained."""

    name = "pixart_sigma"
    title = "PixArt Sigma"
    pipelines = {"generate": "PixArtSigmaPipeline"}
    accepts = ("PixArtSigmaPipeline", ALPHA)
    text_parts = ("tokenizer", "text_encoder")
    sources = {
        "600m-1024": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "600m-512": "PixArt-alpha/PixArt-Sigma-XL-2-512-MS",
        "600m-2048": "PixArt-alpha/PixArt-Sigma-XL-2-2K-MS",
        "900m-1024": "terminusresearch/pixart-900m-1024-ft-v0.6",
        "900m-1024-stage1": "terminusresearch/pixart-900m-1024-ft-v0.7-stage1",
        "900m-1024-stage2": "terminusresearch/pixart-900m-1024-ft-v0.7-stage2",
    }
    resolution = 1024
    guidance = 4.5
    timesteps = Uniform()
    blocks = (Blocks("transformer_blocks"),)
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{OUTSIDE}",
    }
    names = NAMES
    licence = "CreativeML Open RAIL++-M"
    size = "0.61B"
    predicts = "epsilon"
    encoders = "T5-XXL"
    Options = PixArtOptions

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also sees to it that alpha and the two stages are trained as what they are."""
        super().accept(source)
        if source.pipeline == ALPHA and self.options.max_tokens > ALPHA_TOKENS:
            raise UserError(
                f"options.max_tokens is {self.options.max_tokens}, but source {source.name} is PixArt alpha, which was "
                f"made for captions of {ALPHA_TOKENS} tokens; set options.max_tokens: {ALPHA_TOKENS}."
            )
        said = {"stage1": "first", "stage2": "second"}.get(str(source.hub_id).rsplit("-", 1)[-1])
        if said and self.options.stage != said:
            raise UserError(
                f"source {source.name} is the {said} model of a pair, but options.stage is {self.options.stage}; "
                f"set options.stage: {said}."
            )
        if self.options.other_stage and self.options.stage == "whole":
            raise UserError(
                "options.other_stage names the other model of a pair, but options.stage is whole; say which one "
                "`source` is (options.stage: first or second)."
            )

    def load(self, source: Source, parts: Sequence[str], dtype: torch.dtype) -> Parts:
        """See `Family.load`; the other stage comes from its own source."""
        loaded = super().load(source, [p for p in parts if p != OTHER], dtype)
        if OTHER in parts:
            loaded.components[OTHER] = Source(self.options.other_stage, self.sources).load("transformer", dtype)
        return loaded

    def sample_parts(self, source: Source) -> tuple[str, ...]:
        """See `Family.sample_parts`."""
        return (*super().sample_parts(source), *([OTHER] if self.options.other_stage else []))

    def pipe(self, parts: Parts) -> Any:
        """The pipeline that the model was saved from; with both stages, each answers at its own noise levels."""
        pipe = self.assemble(getattr(diffusers, parts.pipeline or self.pipeline), parts)
        if (other := parts.components.get(OTHER)) is not None:
            pair = (parts.network, other) if self.options.stage == "first" else (other, parts.network)
            pipe.transformer = Stages(*pair, self.options.boundary)
        return pipe

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _ddpm.diffusion(source, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`."""
        rate = halvings(source)
        return Geometry(multiple=rate * source.config("transformer").get("patch_size", 2), rate=rate)

    def reach(self, source: Source) -> tuple[float, float]:
        """See `Family.reach`."""
        boundary = self.options.boundary
        return {"whole": (0.0, 1.0), "first": (boundary, 1.0), "second": (0.0, boundary)}[self.options.stage]

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`."""
        return [("tokenizer", len(tokenizers["tokenizer"](caption).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D], mask: [max_tokens] of 1 and 0.

        As the pipeline does without the packages that it would clean captions with: in lower case, else as they stand.
        """
        embeds, mask, *_ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            do_classifier_free_guidance=False,
            device=parts["text_encoder"].device,
            clean_caption=False,
            max_sequence_length=self.options.max_tokens,
        )
        return [{"embeds": e, "mask": m} for e, m in zip(embeds, mask, strict=True)]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens}

    def frame_cond(self, framing: Framing) -> Cond:
        """pixels: [2] height and width of the picture, which PixArt alpha is told."""
        return {"pixels": torch.tensor(framing.size[::-1], dtype=torch.float32)}

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`."""
        config: Any = getattr(denoiser, "module", denoiser).config  # a distributed wrapper hides it
        told = {"resolution": None, "aspect_ratio": None}
        # as diffusers' network decides when its configuration does not say; Sigma's says no
        sized = config.use_additional_conditions
        if config.sample_size == 128 if sized is None else sized:
            pixels = cond["pixels"].to(x.dtype)
            told = {"resolution": pixels, "aspect_ratio": pixels[:, :1] / pixels[:, 1:]}
        out = denoiser(
            x,
            encoder_hidden_states=cond["embeds"],
            encoder_attention_mask=cond["mask"],
            timestep=_ddpm.step_index(t),
            added_cond_kwargs=told,
            return_dict=False,
        )[0]
        return out.chunk(2, dim=1)[0] if config.out_channels == 2 * config.in_channels else out

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`; the size is drawn as asked, not the nearest of the pipeline's list and then scaled."""
        names = {"embeds": "prompt_embeds", "mask": "prompt_attention_mask"}
        text = {name: request.cond[key][None] for key, name in names.items()}
        text |= {"negative_prompt": None}
        if request.negative is not None:
            text |= {f"negative_{name}": request.negative[key][None] for key, name in names.items()}
        return {**text, "guidance_scale": request.guidance, "use_resolution_binning": False}


class Stages(nn.Module):
    """Two networks as one: the first answers where t lies above the boundary, the second below it."""

    def __init__(self, first: nn.Module, second: nn.Module, boundary: float) -> None:
        super().__init__()
        self.first, self.second, self.boundary = first, second, boundary

    @property
    def config(self) -> Any:
        """That of both."""
        return self.first.config

    @property
    def dtype(self) -> torch.dtype:
        """That of both."""
        return next(self.first.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """That of both."""
        return next(self.first.parameters()).device

    def forward(self, x: Tensor, *, timestep: Tensor, **told: Any) -> Any:
        """As of each; timestep [B] is one step of the schedule for the whole batch."""
        network = self.first if timestep[0].item() >= self.boundary * _ddpm.STEPS else self.second
        return network(x, timestep=timestep, **told)
