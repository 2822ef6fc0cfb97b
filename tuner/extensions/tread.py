"""TREAD: token routing for cheaper training steps (Krause et al. 2025, arXiv 2501.04765).

A random share of the media tokens skips a run of transformer blocks unchanged and rejoins in place after it.
The kept tokens travel in their order; rotary tables, masks and other per-token arguments are cut alike; text is
never dropped. One route per forward pass is shared by the batch, because rotary tables have no batch axis.
Samples, validation and passes without gradient see all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .. import blocks
from ..errors import UserError
from ..extension import Context, Extension, Settings, Step, extension
from ..family import Family
from ..recipe import Recipe, setting


class TreadSettings(Settings):
    """See the module."""

    drop: float = setting(0.5, "Share of tokens that skip the routed blocks: more is faster and rougher", ge=0, lt=1)
    first: int = setting(2, "First routed block, counted from 0 over all blocks; negative: from the end", "expert")
    last: int = setting(-2, "Last routed block; negative counts from the end (-1 is the last one)", "expert")


@extension
class Tread(Extension):
    """Routes tokens around the blocks first..last while a training step runs."""

    kind = "tread"
    title = "Token routing (TREAD)"
    Settings = TreadSettings

    def refuses(self, family: Family, recipe: Recipe) -> str | None:
        """Only described transformer blocks can be routed, and the picture's tokens must be known by their place."""
        if not family.blocks:
            return f"tread needs a plain run of transformer blocks, which {family.name} has not; remove the extension."
        if any(run.plane for run in family.blocks):
            return f"tread cannot leave tokens out of {family.name}, whose blocks convolve them; remove the extension."
        if all(run.text != "none" for run in family.blocks):
            return f"tread cannot tell text from picture in the blocks of {family.name} yet; remove the extension."
        if recipe.adapter.kind == "controlnet" and recipe.adapter.form == "branch":
            return "a ControlNet adds to every token of the blocks, so that none can skip them; remove the extension."
        return None

    def attach(self, context: Context) -> None:
        """Hook the blocks. Raises `UserError` when first and last do not name a run of them."""
        self._step: Step | None = None
        self._full: Tensor | None = None
        walked = blocks.walk(context.family.blocks, context.denoiser)
        first, last = self._span(len(walked))
        if walked[first][1].text != "none":
            entries = [i for i, (_, run) in enumerate(walked) if run.text == "none"]
            raise UserError(
                f"extensions: tread: text and picture share one sequence in block {first}; "
                f"set first to one of {entries[0]} to {entries[-1]}."
            )
        ends = max(i for i, (_, run) in enumerate(walked) if run is walked[first][1])
        if walked[first][1].closed and last > ends:
            raise UserError(
                f"extensions: tread: {context.family.name} counts its tokens behind block {ends}, where none may be "
                f"missing; set last to {ends} or less."
            )
        for place, (module, run) in enumerate(walked[first : last + 1]):
            blocks.on_input(module, run, partial(self._enter, first=place == 0))
        module, run = walked[last]
        blocks.on_output(module, run, partial(self._rejoin, text=run.text))

    def _span(self, count: int) -> tuple[int, int]:
        """The places of the first and the last routed block among `count` blocks."""
        places = []
        for name in ("first", "last"):
            place: int = getattr(self.settings, name)
            if not -count <= place < count:
                raise UserError(
                    f"extensions: tread: {name} block {place} does not exist; "
                    f"the network has {count} blocks (0 to {count - 1})."
                )
            places.append(place % count)
        if places[0] > places[1]:
            raise UserError(
                f"extensions: tread: first block {self.settings.first} comes after last block {self.settings.last} "
                f"in a network of {count} blocks; lower first or raise last."
            )
        return places[0], places[1]

    @contextmanager
    def around(self, step: Step) -> Iterator[None]:
        """Route from here on, through the backward pass too: checkpointing replays the blocks there."""
        self._step, step.routed = step, None
        try:
            yield
        finally:
            self._step = self._full = None

    def keep(self, step: Step, count: int) -> Tensor:
        """Sorted ids [K] of the kept among `count` tokens; sets of K = count - round(count * drop) are as likely."""
        kept = max(1, count - round(count * self.settings.drop))
        return torch.randperm(count, generator=step.rng("tread"))[:kept].sort().values

    def _active(self) -> Step | None:
        return self._step if torch.is_grad_enabled() else None

    def _enter(self, call: blocks.Call, first: bool) -> None:
        """Cut the call of a routed block down to the kept tokens; after the first one the tokens are cut already."""
        if (step := self._active()) is None:
            return
        if first:
            self._full = call.tokens
            if step.routed is None:
                step.routed = self.keep(step, call.tokens.shape[1]).to(call.tokens.device)
                self._count = call.tokens.shape[1]
            if call.tokens.shape[1] != self._count:
                raise AssertionError("tread: two passes with different numbers of tokens in one step")
            call.set(call.blocks.tokens, call.tokens.index_select(1, step.routed))
        assert step.routed is not None
        for described, value in list(call.aligned()):
            text = described.text or call.blocks.text
            kept = partial(cut, dims=described.dims, keep=step.routed, count=self._count, text=text)
            call.set(described.name, described.changed(value, kept))

    def _rejoin(self, out: Tensor, text: Literal["none", "before", "after"]) -> Tensor:
        """Put the kept tokens back among those that skipped the blocks; text in the same sequence stays where it is."""
        if (step := self._active()) is None:
            return out
        full, keep = self._full, step.routed
        assert full is not None and keep is not None

        def whole(media: Tensor) -> Tensor:
            return full.to(media.dtype).index_copy(1, keep, media)

        if text == "before":
            words, media = out.split([out.shape[1] - len(keep), len(keep)], 1)
            return torch.cat([words, whole(media)], 1)
        if text == "after":
            media, words = out.split([len(keep), out.shape[1] - len(keep)], 1)
            return torch.cat([whole(media), words], 1)
        return whole(out)


def cut(value: Any, dims: Sequence[int], keep: Tensor, count: int, text: str = "none") -> Any:
    """Keep the entries `keep` [K] of the `count` media tokens along `dims`; the text's entries stay.

    value: a tensor, or a tuple, list or dict of such. Text's entries come first unless `text` is "after".
    """
    if isinstance(value, dict):
        return {k: cut(v, dims, keep, count, text) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(cut(v, dims, keep, count, text) for v in value)
    for dim in dims:
        words = value.shape[dim] - count
        if words < 0:
            raise AssertionError(f"a per-token argument {tuple(value.shape)} has not {count} entries along {dim}")
        ids = keep.to(value.device)
        others = torch.arange(words, device=value.device)
        order = torch.cat([ids, others + count]) if text == "after" else torch.cat([others, ids + words])
        value = value.index_select(dim, order)
    return value
