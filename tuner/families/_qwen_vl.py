"""What families have in common whose text encoder, Qwen2.5-VL, may see the pictures that an edit starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from ..errors import UserError
from ..source import Source
from ..types import Cond, Media, Prompt
from ._latents import pictures


def refuse_other_task(source: Source, task: str, by_task: Mapping[str, Sequence[str]]) -> None:
    """Raise `UserError` if the model was made for another task than the recipe's; by_task: task → pipeline classes."""
    if source.pipeline in by_task[task]:
        return
    fitting = next(other for other, classes in by_task.items() if source.pipeline in classes)
    raise UserError(
        f"source {source.name} is a {source.pipeline} model, made for task {fitting}, but task is {task}; "
        f"set task to {fitting}, or choose a source for {task}."
    )


def seen(prompt: Prompt, most: int | None = None) -> list[Any]:
    """The reference pictures of a prompt as PIL, at least one. Raises `UserError` for none, or more than `most`."""
    count(len(prompt.references), most)
    return [pictures(reference[None])[0] for reference in prompt.references]


def count(references: int, most: int | None = None) -> None:
    """Raise `UserError` unless an item has one to `most` reference pictures."""
    if not references:
        raise UserError("task is edit, but an item has no picture to edit from; set data.N.reference to their folder.")
    if most is not None and references > most:
        raise UserError(
            f"this model edits from {most} picture, but an item has {references}; leave one folder in data.N.reference."
        )


def resized(references: Tensor, width: int, height: int, multiple: int) -> Tensor:
    """[B, 3, h, w] in -1..1 → [B, 3, height, width], by diffusers' own image processor from 8-bit pictures.

    multiple: what the pipeline's image processor is made for (pixels per latent cell, or twice that).
    """
    processor = VaeImageProcessor(vae_scale_factor=multiple)
    return processor.preprocess(pictures(references), height, width).to(references.device)


def per_item(named: dict[str, Tensor], media: Media) -> list[Cond]:
    """Batched tensors by name → one dict per item."""
    assert media.pixels is not None
    return [{name: value[i] for name, value in named.items()} for i in range(len(media.pixels))]


def alike(conds: Sequence[Cond], what: str = "reference pictures") -> Cond:
    """Items → batch. Raises `UserError` where their tensors differ in name or size, which one call cannot take."""
    shapes = [{k: v.shape for k, v in cond.items()} for cond in conds]
    if any(shape != shapes[0] for shape in shapes):
        raise UserError(
            f"the {what} of one batch differ in size or number, which this model's network cannot take together; "
            "set train.batch to 1, or give all of them one size."
        )
    return {k: torch.stack([c[k] for c in conds]) for k in conds[0]}


def padded(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Embeddings [L, D] each → [B, longest, D] with zeros after them, and [B, longest] of 1 and 0 (None: no zeros)."""
    batch = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    lengths = torch.tensor([len(t) for t in texts], device=batch.device)
    mask = (torch.arange(batch.shape[1], device=batch.device)[None] < lengths[:, None]).long()
    return batch, None if mask.all() else mask
