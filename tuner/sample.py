"""Pictures from the model as it stands: through the family's official pipeline, from cached text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .family import Family, Request
from .types import Parts, generator


def draw(family: Family, parts: Parts, request: Request) -> Any:
    """One PIL picture, exactly as the pipeline makes it outside of training: same components, seed and dtype."""
    pipe = family.pipe(parts)
    arguments = family.call(parts, request)
    with torch.no_grad():
        out = pipe(
            **arguments,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            generator=generator(request.seed),
            output_type="pil",
        )
    return out.images[0]


@contextmanager
def as_exported(parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """Hold the trained weights in the base's dtype, as a program that loads the exported file does."""
    kept = [p.data for p in parameters]
    for p in parameters:
        p.data = p.data.to(dtype)
    try:
        yield
    finally:
        for p, data in zip(parameters, kept, strict=True):
            p.data = data
