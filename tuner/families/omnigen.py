"""OmniGen: one language model that reads words and reference pictures and denoises a picture behind them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.omnigen.processor_omnigen import OmniGenMultiModalProcessor
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, renamed
from ..objective import Objective
from ..recipe import LogitNormal
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from . import _flow
from ._latents import halvings

ATTENTION = r".*\.self_attn\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r".*\.mlp\.(gate_up_proj|down_proj)"
PIXELS = 16
"""Edge of what the pipeline counts as one token."""
PAD = 2
"""The token before the shorter captions of a batch; it is masked."""
TAG = "<img><|image_{}|></img>"


NAMES = Names(
    native=(
        *renamed(
            "llm.layers.{}.",
            "layers.{}.",
            {
                "self_attn.qkv_proj": ("self_attn.to_q", "self_attn.to_k", "self_attn.to_v"),
                "self_attn.o_proj": "self_attn.to_out.0",
                "mlp.gate_up_proj": "",
                "mlp.down_proj": "",
            },
        ),
        *renamed(
            "",
            "",
            {
                "x_embedder.proj": "patch_embedding.output_image_proj",
                "input_x_embedder.proj": "patch_embedding.input_image_proj",
                "time_token.mlp.0": "time_token.linear_1",
                "time_token.mlp.2": "time_token.linear_2",
                "t_embedder.mlp.0": "t_embedder.linear_1",
                "t_embedder.mlp.2": "t_embedder.linear_2",
                "final_layer.adaLN_modulation.1": "norm_out.linear",
                "final_layer.linear": "proj_out",
            },
        ),
    ),
    comfy=False,  # it reads OmniGen2, another network
    architecture="OmniGen-v1",
    version="omnigen",
)


class Processor(OmniGenMultiModalProcessor):
    """The pipeline's own, with a negative prompt of the user's: the pipeline has no argument for it."""

    negative = ""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `OmniGenMultiModalProcessor.__call__`."""
        return super().__call__(*args, **kwargs, **({"negative_prompt": self.negative} if self.negative else {}))


@register
class OmniGen(Family):
    """Rectified flow, in a network that counts time from noise to data and answers data - noise.

    The text is read inside the network: what the cache holds of a caption are its tokens. For the task edit, pictures
    are named in the caption as <img><|image_1|></img>; where the caption does not name them they are put before it.
    """

    name = "omnigen"
    title = "OmniGen"
    pipelines = {"generate": "OmniGenPipeline", "edit": "OmniGenPipeline"}
    accepts = ("OmniGenPipeline",)
    text_parts = ("tokenizer",)
    further_parts = ("tokenizer",)
    sources = {"v1": "Shitao/OmniGen-v1-diffusers"}
    resolution = 1024
    guidance = 2.5
    timesteps = LogitNormal()
    blocks = (
        Blocks(
            "layers",
            text="before",
            aligned=(Aligned("attention_mask", dims=(2, 3)), Aligned("image_rotary_emb", dims=(0,))),
        ),
    )
    targets = {"default": ATTENTION, "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}"}
    names = NAMES
    licence = "MIT"
    size = "3.8B"
    encoders = "none (Phi-3 within)"

    def __init__(self, options: Options | None = None, task: str = "generate") -> None:
        super().__init__(options, task)
        self.reads = frozenset({"references"} if task == "edit" else ())

    def accept(self, source: Source) -> None:
        """See `Family.accept`; the pipeline counts a token for every 16x16 pixels."""
        super().accept(source)
        edge = halvings(source) * source.config("transformer").get("patch_size", 2)
        if edge != PIXELS:
            raise UserError(
                f"source {source.name} makes tokens of {edge}x{edge} pixels (vae levels times transformer patch_size), "
                f"but OmniGen's pipeline counts on {PIXELS}x{PIXELS}; take another source."
            )

    def pipe(self, parts: Parts) -> Any:
        """See `Family.pipe`."""
        pipe = super().pipe(parts)
        pipe.multimodal_processor = Processor(parts.components.get("tokenizer"))
        return pipe

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`."""
        return Geometry(multiple=PIXELS, rate=halvings(source))

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; the instruction around the caption counts."""
        told = Processor(tokenizers["tokenizer"]).process_multi_modal_prompt(caption, None)
        return [("tokenizer", len(told["input_ids"]), tokenizers["tokenizer"].model_max_length)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """ids: [L] tokens, spans: [K, 2] the places in them of the K pictures that are named, words: [N] the caption
        in UTF-8 (the pipeline takes nothing else), per caption."""
        processor = self.pipe(parts).multimodal_processor

        def encode(prompt: Prompt) -> Cond:
            told = tagged(prompt.text, len(prompt.references))
            tokens = processor.process_multi_modal_prompt(told, list(prompt.references))
            return {
                "ids": torch.tensor(tokens["input_ids"]),
                "spans": torch.tensor(tokens["image_sizes"] or [], dtype=torch.long).reshape(-1, 2),
                "words": torch.tensor(list(told.encode()), dtype=torch.uint8),
            }

        return [encode(p) for p in prompts]

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """reference_0, reference_1, ...: latents [C, h, w] of the pictures that an item is edited from.

        The mean of the posterior, from which the pipeline draws.
        """
        assert media.pixels is not None
        conds: list[Cond] = [{} for _ in media.pixels]
        for k, pictures in enumerate(media.references):
            for cond, latents in zip(conds, self.encode_media(parts, Media(pictures)), strict=True):
                cond[f"reference_{k}"] = latents
        return conds

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """See `Family.collate`; lists, one entry per item. references: the latents that each caption names, in order.

        The pipeline gives the network the pictures in the order in which the caption names them, as often as it does.
        """
        return {
            "ids": [c["ids"] for c in conds],
            "spans": [c["spans"] for c in conds],
            "references": [[c[f"reference_{k}"] for k in named(c["words"])] for c in conds],
        }

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """See `Family.shift`."""
        return _flow.shift(scheduler, latents.shape[-2] * latents.shape[-1] // 4)

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's time is 1 - t, its answer data - noise.

        It turns all items of a batch by the places of the first, with 0 for padding in front. Only distances count
        there, so places are counted from the start of the sequence for all: right for every item, and the pipeline's
        own for one alone.
        """
        patch = _flow.bare(denoiser).config.patch_size
        tokens = (x.shape[-2] // patch) * (x.shape[-1] // patch)
        longest = max(len(ids) for ids in cond["ids"])
        pads = [longest - len(ids) for ids in cond["ids"]]
        spans = [[[s + pad, e + pad] for s, e in c.tolist()] for c, pad in zip(cond["spans"], pads, strict=True)]
        length = longest + 1 + tokens
        return -denoiser(
            hidden_states=x,
            timestep=1 - t,
            input_ids=torch.stack(
                [nn.functional.pad(i, (pad, 0), value=PAD) for i, pad in zip(cond["ids"], pads, strict=True)]
            ),
            input_img_latents=[r[None].to(x.dtype) for references in cond["references"] for r in references],
            input_image_sizes={i: s for i, s in enumerate(spans) if s},
            attention_mask=torch.stack(
                [_attention(longest, tokens, pad, s, x.device) for pad, s in zip(pads, spans, strict=True)]
            ),
            position_ids=torch.arange(length, device=x.device).repeat(len(x), 1),
            return_dict=False,
        )[0]

    def prepare(self, pipe: Any, request: Request) -> None:
        """See `Family.prepare`; without a negative prompt of the user's the pipeline's own is used.

        Its pictures are left out: the pipeline shows the negative prompt none.
        """
        if request.negative is not None:
            words = re.sub(TAG.replace("|", r"\|").format(r"\d+"), "", _words(request.negative))
            pipe.multimodal_processor.negative = words.strip()

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`; references keep their size, up to the pipeline's usual limit of 1024."""
        words = _words(request.cond)
        common = {"guidance_scale": request.guidance}
        if not request.references:
            return {**common, "prompt": [words]}
        pictures = [p.convert("RGB") for p in request.references]
        return {**common, "prompt": [tagged(words, len(pictures))], "input_images": [pictures]}

    def wants_negative(self, source: Source, guidance: float) -> bool:
        """See `Family.wants_negative`; this pipeline always asks both ways."""
        return True


def tagged(text: str, count: int) -> str:
    """The caption with the places of `count` pictures, before it where it names none. Raises `UserError` for others."""
    known = [TAG.format(k + 1) for k in range(count)]
    numbers = {int(n) for n in re.findall(r"<\|image_(\d+)\|>", text)}
    if not numbers:
        return " ".join([*known, text]) if known else text
    if numbers != set(range(1, count + 1)) or not all(tag in text for tag in known):
        raise UserError(
            f"The caption {text[:80]!r} names pictures {sorted(numbers)}, but its item has {count} reference pictures; "
            f"name each as {TAG.format(1)}, or none at all."
        )
    return text


def named(words: Tensor) -> list[int]:
    """Which reference each place of a cached caption stands for, counted from 0."""
    return [int(n) - 1 for n in re.findall(r"<\|image_(\d+)\|>", _words({"words": words}))]


def _words(cond: Cond) -> str:
    return bytes(cond["words"].tolist()).decode()


def _attention(text: int, picture: int, pad: int, spans: list[list[int]], device: torch.device) -> Tensor:
    """Who sees whom [S, S], 1 or 0, in padding, text, time and picture: text looks back, pictures also at themselves.

    As the pipeline's collator makes it on the CPU, with rows of padding that see everything.
    """
    places = torch.arange(text + 1 + picture, device=device)
    sees = (places <= places[:, None]) | (places > text)[:, None]
    for start, end in spans:
        sees[start:end, start:end] = True
    return ((sees & (places >= pad)) | (places < pad)[:, None]).float()
