"""Samples from the model as it stands: through the family's official pipeline, from cached text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from .data import audio, video
from .family import Family, Request
from .types import Drawn, Parts, generator


def draw(family: Family, parts: Parts, request: Request) -> Drawn:
    """One sample, exactly as the pipeline makes it outside of training: same components, seed and dtype."""
    pipe = family.pipe(parts)
    family.prepare(pipe, request)
    arguments = {**family.sized(request), **family.call(parts, request)}
    sight = parts.sight
    looking = sight.drawing(request.control, request.strength) if sight else nullcontext({})
    # some pipelines draw from the global state too (OmniGen, the posterior of a reference picture)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), looking as control:
        torch.manual_seed(request.seed)
        out = pipe(**{**arguments, **control}, generator=generator(request.seed))
    drawn = family.drawn(out, request)
    drawn.rate = family.rate(parts)
    return drawn


def save(drawn: Drawn, stem: Path) -> Path:
    """Write a sample beside its name without ending: .png, .mp4 (with its sound) or .wav; returns the file."""
    if drawn.image is not None:
        path = stem.with_name(f"{stem.name}.png")
        drawn.image.save(path)
    elif drawn.frames is not None:
        path = stem.with_name(f"{stem.name}.mp4")
        video.write(path, drawn.frames, drawn.fps, drawn.sound, drawn.rate)
    else:
        assert drawn.sound is not None
        path = stem.with_name(f"{stem.name}.wav")
        audio.write(path, drawn.sound, drawn.rate)
    return path


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
