"""Kolors: SDXL's UNet, told the text by ChatGLM3, and how the picture was cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..family import Family, Framing, Geometry, Request, register
from ..native import Names
from ..objective import Objective
from ..recipe import Uniform
from ..source import Source
from ..types import Cond, Parts, Prompt
from . import _ddpm

STEPS = 1100
"""Length of the noise schedule, which ends in more noise than that of SDXL (technical report, section 2.3)."""
TOKENS = 256
"""Length to which captions are padded, on the left; the pipeline checks its `max_sequence_length` but never uses it."""


@register
class Kolors(Family):
    """Noise prediction on 1100 discrete steps.

    "No text" is the embedding of the empty prompt, also where the index says `force_zeros_for_empty_prompt`: the
    pipeline forgets the pooled half of such zeros and fails, so that no picture was ever sampled with them.
    """

    name = "kolors"
    title = "Kolors"
    pipelines = {"generate": "KolorsPipeline"}
    accepts = ("KolorsPipeline",)
    denoiser = "unet"
    text_parts = ("tokenizer", "text_encoder")
    sources = {"1.0": "Kwai-Kolors/Kolors-diffusers", "1.0-mirror": "terminusresearch/kwai-kolors-1.0"}
    resolution = 1024
    guidance = 5.0
    timesteps = Uniform()
    targets = _ddpm.TARGETS
    # ComfyUI itself has no Kolors; node packs run its UNet as SDXL's, and read kohya's files for it
    names = Names(
        native=_ddpm.sgm(_ddpm.LARGE),
        comfy=False,
        kohya="diffusers",
        architecture="Kolors",
        version="kolors",
    )
    quantised = _ddpm.QUANTISED
    licence = "Apache-2.0 (code), Kolors licence (weights)"
    size = "2.58B"
    predicts = "epsilon"
    encoders = "ChatGLM3-6B"

    def named(self, config: Mapping[str, Any]) -> Names:
        """See `Family.named`."""
        return _ddpm.named(self.names, config)

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses distilled models."""
        super().accept(source)
        _ddpm.refuse_guidance_embedding(source)

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _ddpm.diffusion(source, snr_gamma, STEPS)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`."""
        return _ddpm.geometry(source)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; two tokens begin every caption."""
        return [("tokenizer", len(tokenizers["tokenizer"](caption).input_ids), TOKENS)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [256, D] of the last layer but one, pooled: [D] of the last token of the last layer."""
        embeds, _, pooled, _ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            device=parts["text_encoder"].device,
            do_classifier_free_guidance=False,
            max_sequence_length=TOKENS,
        )
        return [{"embeds": e, "pooled": p} for e, p in zip(embeds, pooled, strict=True)]

    def frame_cond(self, framing: Framing) -> Cond:
        """See `_ddpm.framing_ids`."""
        return _ddpm.framing_ids(framing)

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`."""
        return denoiser(
            x,
            _ddpm.step_index(t, STEPS),
            encoder_hidden_states=cond["embeds"],
            added_cond_kwargs={"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]},
            return_dict=False,
        )[0]

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`; sizes are the pipeline's own defaults, an uncropped picture of the drawn size."""
        names = {"embeds": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
        text = {name: request.cond[key][None] for key, name in names.items()}
        if request.negative is not None:
            text |= {f"negative_{name}": request.negative[key][None] for key, name in names.items()}
        size = (request.height, request.width)
        return {**text, "guidance_scale": request.guidance, "original_size": size, "target_size": size}
