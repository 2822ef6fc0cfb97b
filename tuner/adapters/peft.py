"""Further kinds of adapter through peft: IA3, MiSS and HRA.

MiSS and HRA change a weight by a product of low rank, so that their result is written as a plain LoRA, exactly, and
loads wherever one does. IA3 is not of low rank; it is written as peft's own file.

HRA's reflections are put on what goes into a layer. peft builds the reflected weight in every step instead, at ten
times the cost, and needs plain weights for it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.hra.layer import HRAConv2d, HRALinear
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ..adapter import Written
from ..errors import UserError
from ..family import Family
from ..formats.apply import plain_weight
from ..formats.file import METADATA
from ..formats.layers import Layer
from ..formats.write import PEFT_FILE
from ..recipe import PeftSpec, Recipe
from ..source import Source
from ..types import Parts
from . import lora
from ._injected import Injected, layers_for, stem


class Peft(Injected):
    """An adapter of one of the kinds below."""

    def __init__(self, spec: PeftSpec, denoiser: nn.Module, part: str, layers: list[str]) -> None:
        self.algorithm = spec.algorithm
        made = {
            "ia3": lambda: peft.IA3Config(target_modules=layers, feedforward_modules=[]),
            "miss": lambda: peft.MissConfig(r=spec.rank, target_modules=layers),
            "hra": lambda: peft.HRAConfig(r=spec.rank, target_modules=layers),
        }[spec.algorithm]()
        super().__init__(made, denoiser, part, layers)
        if spec.algorithm == "hra":
            for module in self.modules.values():
                module.__class__ = Reflected if isinstance(module, HRALinear) else ReflectedConv
        for module in self.modules.values():
            # diffusers' casting of layers asks every layer of peft for it, and IA3's lack it (0.21.2)
            module.cast_input_dtype_enabled = True

    def layers(self) -> list[Layer]:
        """The adapter as it stands, in the form of all files; float32, on the CPU."""
        form = {"ia3": _ia3, "miss": _miss, "hra": _hra}[self.algorithm]
        with torch.no_grad():
            return [form(self.part, name, module) for name, module in self.modules.items()]

    def metadata(self) -> dict[str, str]:
        """See `Adapter.metadata`: peft's configuration."""
        return {
            "format": "pt",
            METADATA: json.dumps({f"{self.part}.{k}": v for k, v in lora.plain(self.config).items()}, default=str),
        }


class Ia3(Peft):
    """IA3, which scales biases too: only peft's own file says so."""

    def export(self, folder: Path, source: Source, pipeline: Any) -> list[Written]:
        """Write `folder/peft/adapter_model.safetensors` with its configuration, open it again and compare."""
        target, partial = folder / "peft", folder / ".partial-peft"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        settings = lora.plain(self.config)
        state = {k.replace(f"{self.part}.", "base_model.model.", 1): v for k, v in self.state_dict().items()}
        text = json.dumps({**settings, "base_model_name_or_path": None}, indent=2, default=str)
        (partial / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        save_file(state, partial / PEFT_FILE, {"format": "pt", METADATA: json.dumps(settings, default=str)})
        with safe_open(partial / PEFT_FILE, "pt") as file:
            same = set(file.keys()) == set(state) and all(file.get_tensor(k).equal(v) for k, v in state.items())
        if not same:
            raise AssertionError(f"{partial / PEFT_FILE} differs from the trained adapter")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return [Written(target / PEFT_FILE, "peft", ("PEFT",))]


def _ia3(part: str, name: str, module: Any) -> Layer:
    """Every output times a factor l (Liu et al. 2022): the weight's change is W * (l - 1), the bias's b * (l - 1)."""
    change = module.ia3_l["default"].detach().cpu().flatten() - 1
    tensors = {"weight": change, "on_input": torch.tensor(0)}
    if module.base_layer.bias is not None:
        tensors["bias"] = module.base_layer.bias.detach().cpu().float() * change
    return Layer(part, name, "ia3", tensors)


def _miss(part: str, name: str, module: Any) -> Layer:
    """W[o, i] + D[i mod r, o] (Kang & Yin 2024): `down` adds up the inputs of each residue."""
    block = module.miss_block["default"].detach().cpu()  # [r, out]
    rank = block.shape[0]
    places = torch.arange(module.in_features) % rank
    down = torch.nn.functional.one_hot(places, rank).T.float().contiguous()
    return Layer(part, name, "lora", {"down": down, "up": block.T.contiguous()}, float(rank))


def _hra(part: str, name: str, module: Any) -> Layer:
    """W H_1 ... H_r with H_i = I - 2 u_i u_i' (Yuan et al. 2024): W - W U T U'."""
    weight = plain_weight(module.base_layer)
    assert weight is not None
    weight = weight.cpu().float()
    u, t = _chain(module.hra_u["default"].detach().cpu())
    up = -(weight.flatten(1) @ u @ t)
    up = up.reshape(*up.shape, *[1] * (weight.ndim - 2))
    return Layer(part, name, "lora", {"down": u.T.reshape(-1, *weight.shape[1:]).contiguous(), "up": up},
                 float(u.shape[1]))  # fmt: skip


def _chain(u: Tensor) -> tuple[Tensor, Tensor]:
    """(U, T) with H_1 ... H_r = I - U T U', the columns of U being those of `u` [in, r] at length 1.

    T is the inverse of the part of U'U above the diagonal with halves on it (Puglisi 1992).
    """
    u = u.float() / u.float().norm(dim=0)
    one = torch.eye(u.shape[1], device=u.device)
    return u, torch.linalg.solve_triangular(torch.triu(u.T @ u, 1) + one / 2, one, upper=True)


class Reflected(HRALinear):
    """A linear layer whose input is reflected: its weight, which may be quantised, is not looked at."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's answer; in float32, since what is subtracted at the start adds up to zero."""
        if self.disable_adapters:
            return self.base_layer(x)
        with torch.autocast(x.device.type, enabled=False):
            u, t = _chain(self.hra_u["default"])
            turned = x.float() - x.float() @ u @ t.T @ u.T
        return self.base_layer(turned.to(x.dtype))


class ReflectedConv(HRAConv2d):
    """A convolution with the change of its weight beside it, as two small convolutions."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See `Reflected.forward`."""
        base: Any = self.base_layer
        out = base(x)
        if self.disable_adapters:
            return out
        with torch.autocast(x.device.type, enabled=False):
            u, t = _chain(self.hra_u["default"])
            up = -(base.weight.float().flatten(1) @ u @ t)
            down = u.T.reshape(-1, *base.weight.shape[1:])
            seen = functional.conv2d(x.float(), down, None, base.stride, base.padding, base.dilation)
            return out + functional.conv2d(seen, up[..., None, None]).to(out.dtype)


def build(spec: PeftSpec, family: Family, parts: Parts) -> Peft:
    """See `adapters.build`."""
    names = layers_for(spec.targets, family, parts.network)
    convolutions = [n for n in names if not isinstance(parts.network.get_submodule(n), nn.Linear)]
    if spec.algorithm == "miss" and convolutions:
        raise UserError(
            f"adapter.algorithm is miss, which has no form for convolutions such as {convolutions[0]} "
            f"({len(convolutions)} of the layers); choose other adapter.targets, or another kind."
        )
    kind = Ia3 if spec.algorithm == "ia3" else Peft
    return kind(spec, parts.network, stem(parts), names)


def refuses(family: Family, recipe: Recipe) -> str | None:
    """See `adapters.refuses`."""
    spec = recipe.adapter
    assert isinstance(spec, PeftSpec)
    if spec.algorithm == "ia3" and "rank" in spec.model_fields_set and spec.rank != 16:
        return f"adapter.rank is {spec.rank}, but ia3 has no rank; remove it."
    if spec.algorithm == "hra" and spec.rank % 2:
        return f"adapter.rank is {spec.rank}; hra begins without effect only with an even one; change it."
    return None
