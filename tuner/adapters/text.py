"""Text encoders (CLIP) that train beside the denoiser: a LoRA on each, and captions told anew in every step."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..adapter import Adapter, Layered, on_cpu
from ..family import Family
from ..formats.layers import Layer
from ..libraries import diffusers
from ..recipe import LoraSpec, TextSpec
from ..types import Cond, Parts
from .lora import METADATA

PREFIX = "text_model."
"""Published files name CLIP's layers below it; transformers has it in one of its two classes only."""
LAYER = re.compile(r"(?:text_model\.)?(encoder\.layers\.(\d+)\.(?:self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12]))")


class TextEncoders:
    """LoRA on a model's text encoders, and what captions mean with it.

    parts: what `Family.retelling_parts` names. stop: the step (from 0) from which on they stand still.
    State and layers are named as in published files: `text_encoder.text_model.encoder.layers.0.mlp.fc1...`.
    """

    def __init__(self, family: Family, parts: Parts, spec: TextSpec, dropout: float, stop: int) -> None:
        assert spec.rank is not None
        assert spec.parts is not None
        self.family, self.parts, self.stop = family, parts, stop
        self.encoders: dict[str, Any] = {name: parts[name] for name in spec.parts}
        self.configs = {}
        for name, encoder in self.encoders.items():
            targets = layers_of(encoder, family.trainable_text[name])
            alpha = spec.rank if spec.alpha is None else spec.alpha
            self.configs[name] = peft.LoraConfig(
                r=spec.rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets
            )
            peft.inject_adapter_in_model(self.configs[name], encoder.requires_grad_(False))
        for p in self.parameters():
            p.data = p.data.float()

    def named(self) -> dict[str, nn.Parameter]:
        """What trains, by its stable name."""
        return {
            f"{part}.{_published(name)}": p
            for part, encoder in self.encoders.items()
            for name, p in encoder.named_parameters()
            if p.requires_grad
        }

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

    def lora_layers(self) -> list[LoraLayer]:
        """The layers that hold an adapter."""
        return [m for encoder in self.encoders.values() for m in encoder.modules() if isinstance(m, LoraLayer)]

    def layers(self) -> list[Layer]:
        """What the adapter says of every module."""
        state, found = on_cpu(dict(self.named())), []
        for part, encoder in self.encoders.items():
            for name, module in encoder.named_modules():
                if isinstance(module, LoraLayer):
                    full = _published(name)
                    pair = {
                        short: state[f"{part}.{full}.{long}.weight"]
                        for short, long in (("down", "lora_A"), ("up", "lora_B"))
                    }
                    found.append(Layer(part, full, "lora", pair, float(self.configs[part].lora_alpha)))
        return found

    def metadata(self) -> dict[str, Any]:
        """What diffusers' loader reads of each encoder: its LoRA's settings."""
        return {
            f"{part}.{k}": sorted(v) if isinstance(v, set) else v
            for part, config in self.configs.items()
            for k, v in config.to_dict().items()
        }


def layers_of(encoder: nn.Module, unread: int) -> list[str]:
    """The linear layers of a CLIP text encoder without its last `unread` blocks, by names that end alike in all
    versions of transformers."""
    found = [m for name, _ in encoder.named_modules() if (m := LAYER.fullmatch(name))]
    count = len({m[2] for m in found})
    return [m[1] for m in found if int(m[2]) < count - unread]


def _published(name: str) -> str:
    """A parameter's or module's name as files have it."""
    return PREFIX + name.removeprefix(PREFIX).replace(".default.", ".")


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
        layers = self.text.lora_layers()
        kept = [dict(layer.scaling) for layer in layers]
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling = {k: v * strength for k, v in scaling.items()}
        try:
            with self.inner.scaled(strength):
                yield
        finally:
            for layer, scaling in zip(layers, kept, strict=True):
                layer.scaling = scaling

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Adapter.disabled`; conditions that were told before stay as they are."""
        with ExitStack() as stack:
            for layer in self.text.lora_layers():
                layer.enable_adapters(False)
                stack.callback(layer.enable_adapters, True)
            stack.enter_context(self.inner.disabled())
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """See `Adapter.state_dict`."""
        return {**self.inner.state_dict(), **on_cpu(dict(self.text.named()))}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load_state_dict`."""
        own = self.text.named()
        if missing := set(own) - set(state):
            raise AssertionError(f"checkpoint and adapter differ in {sorted(missing)[:5]}")
        self.inner.load_state_dict({k: v for k, v in state.items() if k not in own})
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(state[name])

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """Part → text encoder that trains."""
        return self.text.encoders

    def layers(self) -> list[Layer]:
        """See `Layered.layers`; the denoiser's first."""
        return [*(self.inner.layers() if isinstance(self.inner, Layered) else []), *self.text.layers()]

    def metadata(self) -> dict[str, str]:
        """See `Adapter.metadata`."""
        inner = self.inner.metadata()
        stated = {**json.loads(inner.get(METADATA, "{}")), **self.text.metadata()}
        return {**inner, METADATA: json.dumps(stated, default=str)}


def weigh(family: Family, parts: Parts, strength: float) -> None:
    """Multiply the scale of what a loader has put on the text encoders."""
    for name in family.trainable_text:
        for layer in parts[name].modules():
            if isinstance(layer, LoraLayer):
                layer.scaling = {k: v * strength for k, v in layer.scaling.items()}


def build(inner: Adapter, spec: LoraSpec, family: Family, parts: Parts, stop: int) -> WithText:
    """The denoiser's adapter with the text encoders' beside it. parts: the text encoders, on their device."""
    assert spec.text is not None
    return WithText(inner, TextEncoders(family, parts, spec.text, spec.dropout, stop))
