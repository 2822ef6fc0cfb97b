"""What the image and the video models of Kandinsky 5 have in common: text encoders, network, layouts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..native import Names
from ..types import Cond
from . import _flow

ATTENTION = r".*_blocks\.\d+\.(self|cross)_attention\.(to_query|to_key|to_value|out_layer)"
FEED_FORWARD = r".*_blocks\.\d+\.feed_forward\.(in_layer|out_layer)"
MODULATION = r".*_blocks\.\d+\.(text|visual)_modulation\.out_layer"
TARGETS = {
    "default": ATTENTION,
    "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
    "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
}
# The original has diffusers' names.
NAMES = Names(
    kohya="native",
    kohya_lacks=r"out_layer\..*|(pooled_text|text|time|visual)_embeddings\..*",
    architecture="Kandinsky-5",
    version="kandinsky5",
)
BLOCKS = (Blocks("visual_transformer_blocks", tokens="visual_embed", aligned=(Aligned("rope"),)),)
TEXT_PARTS = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")


class Filled:
    """Qwen's processor, which also fills texts up to the length to which it cuts them."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, **arguments: Any) -> Any:
        """The processor's answer; where a length is given, all texts have it, with the filling after them."""
        fill = {"padding": "max_length", "padding_side": "right"} if "max_length" in arguments else {}
        return self.processor(**{**arguments, **fill})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)


def encode(pipe: Any, texts: Sequence[str], max_tokens: int, **arguments: Any) -> list[Cond]:
    """embeds: [max_tokens, D] of Qwen2.5-VL, of which `length` [] are the text's; pooled: [P] of CLIP.

    The network has no mask: in a batch it reads what the text encoder says of the padding after a shorter caption.
    That depends only on what stands before it, so that the filled embeddings, cut to the longest of a batch, are
    those of the pipeline for this batch.
    """
    pipe.tokenizer = Filled(pipe.tokenizer)
    device = pipe.text_encoder.device
    embeds, pooled, bounds = pipe.encode_prompt(list(texts), max_sequence_length=max_tokens, device=device, **arguments)
    return [
        {"embeds": e, "pooled": p, "length": n} for e, p, n in zip(embeds, pooled, bounds.diff().long(), strict=True)
    ]


def shortened(conds: Sequence[Cond]) -> list[Cond]:
    """Captions cut to the longest of the batch; what told their lengths is left out."""
    longest = max(int(c["length"]) for c in conds)
    return [{**{k: v for k, v in c.items() if k != "length"}, "embeds": c["embeds"][:longest]} for c in conds]


@functools.cache
def template(pipeline: str) -> tuple[str, int]:
    """The pipeline's template, and how many tokens of its beginning are cut off."""
    pipe = getattr(diffusers, pipeline)(None, None, None, None, None, None, None)
    return pipe.prompt_template, pipe.prompt_template_encode_start_idx


def tokens(processor: Any, pipeline: str, caption: str) -> int:
    """Tokens of a caption in the pipeline's template, without those of pictures and of the cut beginning."""
    text, start = template(pipeline)
    return len(processor.tokenizer(text.format(caption)).input_ids) - start


def told(cond: Cond, prefix: str = "") -> dict[str, Any]:
    """A caption's embeddings as the pipelines take them."""
    length = int(cond["length"])
    return {
        f"{prefix}prompt_embeds_qwen": cond["embeds"][None, :length],
        f"{prefix}prompt_embeds_clip": cond["pooled"][None],
        f"{prefix}prompt_cu_seqlens": torch.tensor([0, length], dtype=torch.int32, device=cond["embeds"].device),
    }


def ask(denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond, scale: Sequence[float]) -> Tensor:
    """The network's answer [B, C, f, h, w] for x [B, C', f, h, w], as all pipelines call it; scale: of positions."""
    patch = _flow.bare(denoiser).config.patch_size
    cells = [n // p for n, p in zip(x.shape[2:], patch, strict=True)]
    out = denoiser(
        hidden_states=x.permute(0, 2, 3, 4, 1),
        encoder_hidden_states=cond["embeds"],
        pooled_projections=cond["pooled"],
        timestep=t * 1000,
        visual_rope_pos=[torch.arange(n, device=x.device) for n in cells],
        text_rope_pos=torch.arange(cond["embeds"].shape[1], device=x.device),
        scale_factor=scale,
        sparse_params=None,
        return_dict=True,
    ).sample
    return out.permute(0, 4, 1, 2, 3)
