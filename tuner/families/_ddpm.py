"""What families with a discrete noise schedule have in common, most of them around diffusers' UNet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..control import CONTROLNET, Branch, Control
from ..errors import UserError
from ..family import Framing, Geometry
from ..libraries import diffusers
from ..native import Names, Native, renamed
from ..objective import Diffusion, alphas_cumprod
from ..source import Source
from ..types import Cond, Parts
from ._latents import halvings

STEPS = 1000
"""Length of the noise schedule of most models; `predict` counts its integer steps by it."""

ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r".*\.ff\.net\.(0\.proj|2)"
# The attention levels' `proj_in` and `proj_out` are 1x1 convolutions in Stable Diffusion 1 and linear later.
PROJECTIONS = r".*\.attentions\.\d+\.proj_(in|out)"
TIME = r".*\.resnets\.\d+\.time_emb_proj"
CONVOLUTIONS = r".*\.resnets\.\d+\.conv(1|2|_shortcut)|.*\.(down|up)samplers\.0\.conv"
QUANTISED = f"{ATTENTION}|{FEED_FORWARD}|{PROJECTIONS}"
"""The linear layers of the transformers inside a U-Net; its convolutions stay as they are."""
OUTSIDE = r"conv_in|conv_out|(time_embed|time_embedding|add_embedding|label_emb)\..*|input_blocks\.0\.0|out\.2"
"""Layers that kohya's tools load no adapter of, by both names that they have there."""
TARGETS = {
    "default": ATTENTION,
    "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
    "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{PROJECTIONS}|{TIME}",
    "with-conv": f"{ATTENTION}|{FEED_FORWARD}|{PROJECTIONS}|{TIME}|{CONVOLUTIONS}",
}
SMALL: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
}
"""Blocks of Stable Diffusion 1 and 2."""
LARGE: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
}
"""Blocks of Stable Diffusion XL and Kolors."""

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
TRANSFORMER = (
    *(f"attn{i}.{m}" for i in (1, 2) for m in ("to_q", "to_k", "to_v", "to_out.0")),
    *("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"),
)
TRANSFORMERS = ("norm", "proj_in", "proj_out", *(f"transformer_blocks.{{}}.{m}" for m in TRANSFORMER))
ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def named(names: Names, config: Mapping[str, Any]) -> Names:
    """`names` with the table of a UNet of this configuration."""
    return replace(names, native=sgm(config))


def sgm(config: Mapping[str, Any]) -> tuple[Native, ...]:
    """The names of Stability AI's own UNet, where all layers of all blocks are counted through.

    An attention stands behind its resnet under the same number; a downsampler has a number, an upsampler has none.
    """
    downs, ups = config["down_block_types"], config["up_block_types"]
    given = config.get("layers_per_block", 2)
    layers = [given] * len(downs) if isinstance(given, int) else list(given)
    rows = [*renamed("", "", ENDS), *_pair("middle_block.0", "middle_block.1", "mid_block", 0, True)]
    rows += renamed("middle_block.2.", "mid_block.resnets.1.", RESNET)
    number = 1
    for i, kind in enumerate(downs):
        for layer in range(layers[i]):
            block = f"input_blocks.{number}"
            rows += _pair(f"{block}.0", f"{block}.1", f"down_blocks.{i}", layer, "CrossAttn" in kind)
            number += 1
        if i < len(downs) - 1:
            rows.append(Native(f"input_blocks.{number}.0.op", (f"down_blocks.{i}.downsamplers.0.conv",)))
            number += 1
    number = 0
    for i, kind in enumerate(ups):
        attention = "CrossAttn" in kind
        for layer in range(layers[-1 - i] + 1):
            block = f"output_blocks.{number}"
            rows += _pair(f"{block}.0", f"{block}.1", f"up_blocks.{i}", layer, attention)
            number += 1
        if i < len(ups) - 1:
            place = 2 if attention else 1
            rows.append(Native(f"output_blocks.{number - 1}.{place}.conv", (f"up_blocks.{i}.upsamplers.0.conv",)))
    return tuple(rows)


def _pair(resnet: str, transformers: str, block: str, layer: int, attention: bool) -> list[Native]:
    rows = list(renamed(f"{resnet}.", f"{block}.resnets.{layer}.", RESNET))
    if attention:
        rows += renamed(f"{transformers}.", f"{block}.attentions.{layer}.", dict.fromkeys(TRANSFORMERS, ""))
    return rows


def diffusion(source: Source, snr_gamma: float | None, steps: int = STEPS) -> Diffusion:
    """The objective that the model's scheduler configuration states. Raises `UserError` for one we cannot train.

    steps: the length of the family's schedule, by which its `predict` counts.
    """
    config = source.config("scheduler")
    kind = config.get("_class_name", "no scheduler")
    if "beta_schedule" not in config or config.get("num_train_timesteps", 1000) != steps:
        raise UserError(
            f"source {source.name} has a noise schedule we cannot train ({kind}): needed is one with a "
            f"beta_schedule of {steps} steps; take another source."
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


def step_index(t: Tensor, steps: int = STEPS) -> Tensor:
    """t [B] in [0, 1] → integer steps [B] of the schedule."""
    return (t * steps).round().long().clamp(0, steps - 1)


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


def is_sd2(source: Source) -> bool:
    """Whether a StableDiffusionPipeline holds Stable Diffusion 2 and not 1.

    Both have one class name. Every published model of 2.x projects into its attention levels with linear layers and
    none of 1.x does, whatever their sizes: `use_linear_projection` of the UNet.
    """
    return bool(source.config("unet").get("use_linear_projection", False))


def framing_ids(framing: Framing) -> Cond:
    """time_ids: [6] = original (height, width), corner (top, left), size (height, width); Podell et al. 2023.

    The corner is counted in the scaled picture, as there. float32, so that sizes stay exact under bfloat16.
    """
    sizes = (*framing.original[::-1], *framing.corner[::-1], *framing.size[::-1])
    return {"time_ids": torch.tensor(sizes, dtype=torch.float32)}


def clip_tokens(tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
    """(tokenizer, tokens the caption has with start and end, tokens it takes) for every CLIP tokenizer."""
    return [(name, len(tok(caption).input_ids), tok.model_max_length) for name, tok in tokenizers.items()]


# -- ControlNet --------------------------------------------------------------------------------------------------------

RATE = "pixels_per_cell"
"""Noted among the components of a UNet's model: how far a fresh branch must scale the picture down."""


def _branch(parts: Parts, blocks: Sequence[int]) -> Any:
    """A copy of the UNet's way down. The picture is brought to the latents' size by one halving between two widths."""
    count = round(math.log2(parts[RATE])) + 1
    widths = ([16, 32, 96] + [256] * count)[:count]
    return diffusers.ControlNetModel.from_unet(parts.network, conditioning_embedding_out_channels=tuple(widths))


def _ask(parts: Parts, told: dict[str, Any], picture: Tensor, strength: float) -> dict[str, Any]:
    """As `StableDiffusionControlNetPipeline`, without guess mode."""
    more = {"added_cond_kwargs": told["added_cond_kwargs"]} if told.get("added_cond_kwargs") else {}
    down, middle = parts[CONTROLNET](
        told["sample"],
        told["timestep"],
        encoder_hidden_states=told["encoder_hidden_states"],
        controlnet_cond=picture,
        conditioning_scale=strength,
        guess_mode=False,
        return_dict=False,
        **more,
    )
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def _refuses(parts: Parts, config: dict[str, Any]) -> str | None:
    own: Any = parts.network.config
    for name in ("in_channels", "cross_attention_dim", "block_out_channels"):
        if config.get(name) is not None and _plain(config[name]) != _plain(own[name]):
            return f"its {name} is {_plain(config[name])}, that of the base {_plain(own[name])}"
    if config.get("global_pool_conditions"):
        return "it is of the kind that is drawn in guess mode (global_pool_conditions)"
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def control(pipeline: str) -> Control:
    """A ControlNet for a UNet, drawn by this pipeline."""
    return Control("pixels", Branch("ControlNetModel", pipeline, "image", _branch, _ask, refuses=_refuses))
