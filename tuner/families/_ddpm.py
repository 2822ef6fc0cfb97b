"""What the families around diffusers' UNet have in common: schedule, geometry, adapter presets, caption lengths."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from ..errors import UserError
from ..family import Geometry
from ..objective import Diffusion, alphas_cumprod
from ..source import Source
from ._latents import halvings

STEPS = 1000
"""Length of the noise schedule of every model here; `predict` counts its integer steps by it."""

ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r".*\.ff\.net\.(0\.proj|2)"
# The attention levels' `proj_in` and `proj_out` are 1x1 convolutions in Stable Diffusion 1 and linear later.
PROJECTIONS = r".*\.attentions\.\d+\.proj_(in|out)"
TIME = r".*\.resnets\.\d+\.time_emb_proj"
TARGETS = {
    "default": ATTENTION,
    "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
    "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{PROJECTIONS}|{TIME}",
}


def diffusion(source: Source, snr_gamma: float | None) -> Diffusion:
    """The objective that the model's scheduler configuration states. Raises `UserError` for one we cannot train."""
    config = source.config("scheduler")
    kind = config.get("_class_name", "no scheduler")
    if "beta_schedule" not in config or config.get("num_train_timesteps", STEPS) != STEPS:
        raise UserError(
            f"source {source.name} has a noise schedule we cannot train ({kind}): needed is one with a "
            f"beta_schedule of {STEPS} steps; take another source."
        )
    kinds: dict[str, Literal["epsilon", "velocity"]] = {"epsilon": "epsilon", "v_prediction": "velocity"}
    predicts = kinds.get(config.get("prediction_type", "epsilon"))
    if predicts is None:
        raise UserError(
            f"source {source.name} answers with prediction_type {config['prediction_type']!r}, which we cannot train; "
            "needed is epsilon or v_prediction; take another source."
        )
    alphas = alphas_cumprod(config)
    if snr_gamma is not None and (config.get("rescale_betas_zero_snr") or alphas[-1] <= 0):
        raise UserError(
            f"train.snr_gamma does not fit source {source.name}: its schedule ends in pure noise "
            "(rescale_betas_zero_snr), where the signal-to-noise ratio is 0; remove train.snr_gamma."
        )
    return Diffusion(alphas, predicts, snr_gamma)


def step_index(t: Tensor) -> Tensor:
    """t [B] in [0, 1] → integer steps [B] of the schedule."""
    return (t * STEPS).round().long().clamp(0, STEPS - 1)


def geometry(source: Source) -> Geometry:
    """The UNet halves between its levels, so sizes must divide by the latent rate times those halvings."""
    rate = halvings(source)
    return Geometry(multiple=rate * 2 ** (len(source.config("unet")["down_block_types"]) - 1), rate=rate)


def refuse_guidance_embedding(source: Source) -> None:
    """Refuse models distilled for guidance (latent consistency): their UNet needs an input that training lacks."""
    if source.config("unet").get("time_cond_proj_dim") is not None:
        raise UserError(
            f"source {source.name} is distilled for few steps (unet time_cond_proj_dim); train the model it was made "
            "from instead and use the result with the distilled one."
        )


def clip_tokens(tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
    """(tokenizer, tokens the caption has with start and end, tokens it takes) for every CLIP tokenizer."""
    return [(name, len(tok(caption).input_ids), tok.model_max_length) for name, tok in tokenizers.items()]
