"""Text encoders (CLIP) beside the denoiser: an adapter on each, and captions told anew in every step."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapter, Layered
from ..errors import UserError
from ..family import Family
from ..formats import write
from ..formats.file import METADATA
from ..formats.layers import Layer
from ..libraries import diffusers
from ..recipe import LoraSpec, LycorisSpec
from ..source import Source
from ..types import Cond, Parts
from .start import text_layers, text_name

BLOCK = re.compile(r"[._]encoder\.layers\.(\d+)\.")


class TextEncoders:
    """A model's text encoders and what captions mean with them; those in `adapters` have one of their own.

    parts: what `Family.retelling_parts` names. stop: the step (from 0) from which on they stand still.
    State and layers are named as in published files: `text_encoder.text_model.encoder.layers.0.mlp.fc1...`.
    """

    def __init__(self, family: Family, parts: Parts, adapters: Mapping[str, Any], stop: int) -> None:
        self.family, self.parts, self.adapters, self.stop = family, parts, dict(adapters), stop
        self.encoders: dict[str, Any] = {name: parts[name] for name in family.trainable_text}
        for encoder in self.encoders.values():
            encoder.requires_grad_(False)
        for name, p in self._named().items():
            p.requires_grad_(stop > 0 and self._read(name))
            p.data = p.data.float()

    def _named(self) -> dict[str, nn.Parameter]:
        found = {}
        for adapter in self.adapters.values():
            own = dict(adapter.denoiser.named_parameters())
            found |= {_published(stable): own[name] for name, stable in adapter.names.items()}
        return found

    def _read(self, name: str) -> bool:
        """Whether anything is made of the answer of the block that a parameter stands in."""
        part, block = name.partition(".")[0], BLOCK.search(name)
        count = self.encoders[part].config.num_hidden_layers
        return block is None or int(block[1]) < count - self.family.trainable_text[part]

    def named(self) -> dict[str, nn.Parameter]:
        """What trains, by its stable name."""
        return {name: p for name, p in self._named().items() if self.stop > 0 and self._read(name)}

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser updates; always float32."""
        return list(self.named().values())

    def tell(self, captions: Sequence[str], cond: Cond, index: int) -> Cond:
        """The collated condition with what the encoders say of its captions now, with gradient until `stop`."""
        training = torch.is_grad_enabled() and index < self.stop
        for encoder in self.encoders.values():
            encoder.train(training)  # dropout and gradient checkpointing are for steps only
        with torch.set_grad_enabled(training), _quiet():
            return self.family.retell(self.parts, captions, cond)

    def checkpoint(self) -> None:
        """Recompute activations in the backward pass."""
        for encoder in self.encoders.values():
            encoder.activation_checkpointing_enable({"use_reentrant": False})

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """See `Adapter.scaled`."""
        with ExitStack() as stack:
            for adapter in self.adapters.values():
                stack.enter_context(adapter.scaled(strength))
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Adapter.disabled`."""
        with ExitStack() as stack:
            for adapter in self.adapters.values():
                stack.enter_context(adapter.disabled())
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors of the adapters, also of those that stand still."""
        return {_published(k): v for adapter in self.adapters.values() for k, v in adapter.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave; every name must match."""
        for part, adapter in self.adapters.items():
            own = {_published(k): k for k in adapter.state_dict()}
            adapter.load_state_dict({own.get(k, k): v for k, v in state.items() if k.startswith(f"{part}.")})

    def layers(self) -> list[Layer]:
        """What the adapters say of every module."""
        return [
            replace(layer, module=text_name(part, layer.module).partition(".")[2])
            for part, adapter in self.adapters.items()
            for layer in adapter.layers()
        ]

    def metadata(self) -> dict[str, Any]:
        """What diffusers' loader reads of each encoder: its LoRA's settings."""
        found, layers = {}, self.layers()
        for part in self.adapters:
            own = [layer for layer in layers if layer.part == part]
            found |= {f"{part}.{k}": v for k, v in write.settings(own, text=True).items()}
        return found


def _published(name: str) -> str:
    """A parameter's stable name as files have it."""
    name = f"{name}.weight" if name.endswith(f".{write.MAGNITUDE}") else name
    return text_name(*name.split(".", 1))  # type: ignore[arg-type]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the pipeline's word on every caption that is too long: the plan has named them all."""
    logging = diffusers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


class WithText:
    """The denoiser's adapter and the text encoders' as one `Adapter`."""

    def __init__(self, inner: Adapter, text: TextEncoders) -> None:
        self.inner, self.text = inner, text

    def parameters(self) -> list[nn.Parameter]:
        """See `Adapter.parameters`."""
        return [*self.inner.parameters(), *self.text.parameters()]

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """See `Adapter.scaled`; conditions that were told before stay as they are."""
        with self.inner.scaled(strength), self.text.scaled(strength):
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Adapter.disabled`; conditions that were told before stay as they are."""
        with self.inner.disabled(), self.text.disabled():
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """See `Adapter.state_dict`."""
        return {**self.inner.state_dict(), **self.text.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load_state_dict`."""
        parts = tuple(f"{part}." for part in self.text.adapters)
        self.inner.load_state_dict({k: v for k, v in state.items() if not k.startswith(parts)})
        self.text.load_state_dict(state)

    def begin(self, spec: LoraSpec | LycorisSpec, family: Family, source: Source) -> None:
        """Give the text encoders' adapters the values of the one from which the recipe goes on."""
        for adapter in self.text.adapters.values():
            adapter.begin(spec, family, source)

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """Part → text encoder that has an adapter."""
        return {part: self.text.encoders[part] for part in self.text.adapters}

    def layers(self) -> list[Layer]:
        """See `Layered.layers`; the denoiser's first."""
        return [*(self.inner.layers() if isinstance(self.inner, Layered) else []), *self.text.layers()]

    def loads_in(self) -> tuple[str, ...]:
        """Who reads LyCORIS' own keys: its library puts them on one network only, so nobody."""
        return ()

    def metadata(self) -> dict[str, str]:
        """See `Adapter.metadata`; a LyCORIS adapter's settings hold the text encoders' already."""
        inner = self.inner.metadata()
        if METADATA not in inner:
            return inner
        return {**inner, METADATA: json.dumps({**json.loads(inner[METADATA]), **self.text.metadata()}, default=str)}


def build(inner: Adapter, spec: LoraSpec | LycorisSpec, family: Family, parts: Parts, stop: int) -> WithText:
    """The denoiser's adapter with the text encoders' beside it. parts: the text encoders, on their device."""
    assert spec.text is not None
    assert spec.text.parts is not None
    for part in spec.text.parts:
        parts[part].requires_grad_(False)
    chosen = {part: _chosen(spec, family, parts, part) for part in spec.text.parts}
    made = importlib.import_module(f".{spec.kind}", __package__).build_text(spec, chosen, parts)
    return WithText(inner, TextEncoders(family, parts, made, 0 if spec.text.frozen else stop))


def _chosen(spec: LoraSpec | LycorisSpec, family: Family, parts: Parts, part: str) -> list[str]:
    """Full names of a text encoder's layers that get an adapter. Raises `UserError` for targets that fit none."""
    assert spec.text is not None
    if spec.text.targets is None:
        return text_layers(parts[part], family.trainable_text[part])
    linear = [n for n, m in parts[part].named_modules() if isinstance(m, nn.Linear)]
    found = [n for n in linear if any(f".{text_name(part, n)}".endswith(f".{t}") for t in spec.text.targets)]
    if not found:
        raise UserError(
            f"adapter.text.targets: none of {', '.join(spec.text.targets[:4])} is a layer of {part}; they are such as "
            f"{text_name(part, linear[0])}, and endings of that."
        )
    return found
