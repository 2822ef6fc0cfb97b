"""Chroma 1: FLUX.1 without guidance embedding and pooled text; one small network makes all its modulations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ChromaPipeline
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, renamed
from ..objective import Objective
from ..recipe import Beta, setting
from ..source import Source
from ..types import Cond, Parts, Prompt
from . import _flow, _flux
from ._latents import halvings

ATTENTION = r".*\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
FEED_FORWARD = r".*\.ff(_context)?\.net\.(0\.proj|2)|single_transformer_blocks\.\d+\.proj_(mlp|out)"
MODULATION = r"distilled_guidance_layer\.(in_proj|out_proj|layers\.\d+\.linear_[12])"
ALIGNED = (Aligned("image_rotary_emb", dims=(0,)), Aligned("attention_mask", dims=(1,)))
DISTILLED = {"lodestones/Chroma1-Flash": "hd"}
KEPT = "_keeps_its_mask"


NAMES = Names(
    native=(
        *_flux.BLOCKS,
        *_flux.ENDS,
        *renamed(
            "distilled_guidance_layer.layers.{}.",
            "distilled_guidance_layer.layers.{}.",
            {"in_layer": "linear_1", "out_layer": "linear_2"},
        ),
    ),
    kohya="native",
    kohya_lacks=r"distilled_guidance_layer\..*|final_layer\..*",
    architecture="chroma",
    aliases=("Chroma1",),
    version="chroma",
)


class ChromaOptions(Options):
    """Settings of Chroma."""

    max_tokens: int = setting(512, "Length to which T5 captions are padded", ge=1, le=512)


@register
class Chroma(Family):
    """Rectified flow. The text's padding is masked, all but its first token."""

    name = "chroma"
    title = "Chroma 1"
    pipelines = {"generate": "ChromaPipeline"}
    accepts = ("ChromaPipeline",)
    text_parts = ("tokenizer", "text_encoder")
    sources = {"base": "lodestones/Chroma1-Base", "hd": "lodestones/Chroma1-HD"}
    resolution = 1024
    guidance = 5.0
    # Its makers found the ends of t undertrained by logit-normal draws and took a parabola (Chroma's model card).
    timesteps = Beta(alpha=2.0, beta=2.0)
    blocks = (
        Blocks("transformer_blocks", output=1, aligned=ALIGNED),
        Blocks("single_transformer_blocks", text="before", aligned=ALIGNED),
    )
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    }
    names = NAMES
    licence = "Apache-2.0"
    size = "8.9B"
    encoders = "T5-XXL"
    Options = ChromaOptions

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses the model distilled for few steps."""
        super().accept(source)
        if (base := DISTILLED.get(source.hub_id or "")) is not None:
            raise UserError(
                f"source {source.name} is distilled for few steps, which training would undo; train source {base} "
                "and use the result with the distilled model."
            )

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; latents are packed in 2x2 patches."""
        rate = halvings(source)
        return Geometry(multiple=2 * rate, rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`."""
        return [("tokenizer", len(tokenizers["tokenizer"](caption).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D], mask: bool [max_tokens] per caption, True for its tokens and one of padding.

        The pinned pipeline makes this mask of floats, which its attention adds to the scores (1 or 0) where the model
        was trained to leave padding out (diffusers issue 12116). As truth values, the same numbers do mask.
        """
        embeds, _, mask, *_ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            device=parts["text_encoder"].device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.max_tokens,
        )
        return [{"embeds": e, "mask": m.bool()} for e, m in zip(embeds, mask, strict=True)]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens}

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """As FLUX.1's: by the number of tokens where the scheduler says so."""
        return _flow.shift(scheduler, (latents.shape[-2] // 2) * (latents.shape[-1] // 2))

    def ready(self, denoiser: nn.Module) -> None:
        """Let checkpointed one-stream blocks have their mask: the pinned network calls them without it.

        `ChromaTransformer2DModel.forward` hands its checkpointing function (block, tokens, modulation, rotary tables)
        there; while it runs, the function is replaced by one that adds the mask.
        """
        if getattr(denoiser, KEPT, False):
            return
        setattr(denoiser, KEPT, True)
        single, plain = set(denoiser.get_submodule("single_transformer_blocks").children()), []

        def before(network: Any, args: tuple, kwargs: dict) -> None:
            mask, checkpoint = kwargs.get("attention_mask"), getattr(network, "_gradient_checkpointing_func", None)
            plain.append(checkpoint)

            def with_mask(block: nn.Module, *given: Any) -> Any:
                assert checkpoint is not None
                return (
                    checkpoint(block, *given, mask)
                    if block in single and len(given) == 3
                    else checkpoint(block, *given)
                )

            if checkpoint is not None:
                network._gradient_checkpointing_func = with_mask

        def after(network: Any, args: tuple, out: Any) -> None:
            if (checkpoint := plain.pop()) is not None:
                network._gradient_checkpointing_func = checkpoint

        denoiser.register_forward_pre_hook(before, with_kwargs=True)
        denoiser.register_forward_hook(after, always_call=True)

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        b, c, h, w = x.shape
        embeds, tokens = cond["embeds"], (h // 2) * (w // 2)
        out = denoiser(
            hidden_states=ChromaPipeline._pack_latents(x, b, c, h, w),
            timestep=t,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=ChromaPipeline._prepare_latent_image_ids(b, h // 2, w // 2, x.device, x.dtype),
            attention_mask=torch.cat([cond["mask"], cond["mask"].new_ones(b, tokens)], 1),
            joint_attention_kwargs={},
            return_dict=False,
        )[0]
        return ChromaPipeline._unpack_latents(out, h, w, 1)

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`; the masks stay truth values on their way through the pipeline."""
        names = {"embeds": "prompt_embeds", "mask": "prompt_attention_mask"}
        text = {name: request.cond[key][None] for key, name in names.items()}
        if request.negative is None:
            return {**text, "guidance_scale": 1.0}
        text |= {f"negative_{name}": request.negative[key][None] for key, name in names.items()}
        return {**text, "guidance_scale": request.guidance}
