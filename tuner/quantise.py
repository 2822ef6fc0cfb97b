"""Frozen networks held in fewer bits: which layers, by which library, what it saves, and what it cannot do.

The libraries do the work; here is the order in which each of them needs it done, and what each would get wrong in
silence. A linear layer of the chosen ones is replaced before the adapter is attached (`put`), but storage in fp8 is
put on behind it (`cast`), because an adapter that is attached later would be stored in fp8 too.
"""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import libraries
from .device import Device, free_memory
from .errors import Problem, UserError
from .family import Family
from .recipe import Recipe
from .source import Source
from .types import Parts

Say = Callable[..., Any]

Making = Callable[[nn.Linear, torch.dtype], nn.Module]
"""A linear layer with its weight in fewer bits, from one on the device that will hold it, and the dtype it computes in.
It may take over the old layer's tensors."""


def _quanto(kind: str) -> Making:
    def make(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
        quanto: Any = importlib.import_module("optimum.quanto")
        made = quanto.quantize_module(layer, weights=quanto.qtypes[kind])
        made.freeze()
        # under autocast inputs come in another dtype than the scales, which its kernels take for granted
        made.register_forward_pre_hook(lambda module, args: (args[0].to(module.weight.dtype), *args[1:]))
        return made

    return make


def _nf4(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    bnb = libraries.bitsandbytes()
    made = bnb.nn.Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, dtype, device="meta")
    made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
    made.bias = layer.bias
    made = made.to(layer.weight.device)
    # with AVX512 it packs the weight anew when it is evaluated, and then gives no gradient when it trains again
    made.support_avx512bf16_for_cpu = False
    return made


def _int8_bnb(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    bnb = libraries.bitsandbytes()
    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    made = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, device="meta")
    # bitsandbytes rounds a weight only on its way from the CPU to the device
    made.weight = bnb.nn.Int8Params(layer.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    return made.to(layer.weight.device)


def _torchao(config: str) -> Making:
    def make(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
        ao: Any = importlib.import_module("torchao.quantization")
        ao.quantize_(layer, getattr(ao, config)())
        return layer

    return make


@dataclass(frozen=True)
class Method:
    """One way of holding weights.

    name: of the library. package: what of it must be there. what: for people. why: when to take it, for people.
    each: bytes of a weight [rows, columns] with its scales, where a plain number takes so many bytes. adapters: kinds
    of adapters that work on it. make: None for `cast`.
    """

    name: str
    package: str
    what: str
    why: str
    each: Callable[[int, int, int], float]
    make: Making | None
    adapters: frozenset[str] = frozenset({"lora"})


def _scaled(rows: int, columns: int, plain: int) -> float:
    """A byte a weight, a scale a row, and quanto's two of the layer."""
    return rows * columns + (rows + 2) * plain


def _int4_bytes(rows: int, columns: int, plain: int) -> float:
    """Half a byte a weight, a scale and a shift a group: of 128 where that divides the columns, else as quanto does."""
    groups = rows
    if columns > 128:
        fitting = [size for size in (128, 96, 64, 32) if columns % size == 0]
        groups = rows * columns // fitting[0] if fitting else rows
    return rows * columns / 2 + (2 * groups + 2) * plain


def _nf4_bytes(rows: int, columns: int, plain: int) -> float:
    """Half a byte a weight, one for the scale of each 64, four for the scale of 256 of those, and two tables."""
    blocks = -(-rows * columns // 64)
    return rows * columns / 2 + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)


ALL = frozenset({"lora", "lycoris", "peft", "controlnet"})
"""Adapters that do not depend on how torchao's tensors are made."""
METHODS: dict[str, Method] = {
    "int8": Method(
        "optimum-quanto", "optimum.quanto", "8-bit integers, a scale per row",
        "it works on every device and is closest to the original", _scaled, _quanto("qint8"), ALL,
    ),
    "int4": Method(
        "optimum-quanto", "optimum.quanto", "4-bit integers, a scale per 128 weights",
        "it is the smallest without bitsandbytes", _int4_bytes, _quanto("qint4"), ALL,
    ),
    "fp8_quanto": Method(
        "optimum-quanto", "optimum.quanto", "8-bit floats (e4m3), a scale per row",
        "weights of very different size keep their digits", _scaled, _quanto("qfloat8_e4m3fn"), ALL,
    ),
    "int8_bnb": Method(
        "bitsandbytes", "bitsandbytes", "8-bit integers, a scale per row, multiplied as integers",
        "its products are fast on large CUDA devices", lambda rows, columns, _: rows * columns + 4 * rows, _int8_bnb,
        ALL,
    ),
    "nf4": Method(
        "bitsandbytes", "bitsandbytes", "4-bit normal floats with scales in 8 bits (QLoRA)",
        "it is the smallest that trains well", _nf4_bytes, _nf4, ALL,
    ),
    "fp8": Method(
        "diffusers", "diffusers", "8-bit floats (e4m3) without scales, cast layer by layer for computing",
        "it needs no further library and no kernels", lambda rows, columns, _: rows * columns, None, ALL,
    ),
    "int8_torchao": Method(
        "torchao", "torchao", "8-bit integers, a scale per row",
        "for those who have torchao", lambda rows, columns, plain: rows * columns + rows * plain,
        _torchao("Int8WeightOnlyConfig"),
    ),
    "fp8_torchao": Method(
        "torchao", "torchao", "8-bit floats (e4m3), a scale per row",
        "for those who have torchao", lambda rows, columns, plain: rows * columns + 4 * rows,
        _torchao("Float8WeightOnlyConfig"),
    ),
}  # fmt: skip
"""By the names that the recipe's `memory.quantise` takes."""


# -- which layers ------------------------------------------------------------------------------------------------------


def layers(network: nn.Module, pattern: str, method: str, skip: Sequence[str] = ()) -> list[str]:
    """Full names of the linear layers that are quantised: those whose name fits `pattern`, without the endings `skip`.

    Raises `UserError` for an ending that fits none. Left out are also layers that a library would get wrong:
    on a CPU quanto's int8 ends the process by a segmentation fault where the inputs are no multiple of 16, and T5's
    `wo` reads the dtype of its own weight to cast what it is given.
    """
    linear = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    found = [n for n in linear if re.fullmatch(pattern, n)]
    unused = [end for end in skip if not any(_ends(n, end) for n in linear)]
    if unused:
        endings = sorted({re.sub(r"^.*?\.\d+\.", "", n) for n in found})
        raise UserError(
            f"memory.quantise_skip: {', '.join(unused)} matches no layer; layers end in {', '.join(endings[:40])}."
        )
    found = [n for n in found if not any(_ends(n, end) for end in skip)]
    if method == "int8":
        found = [n for n in found if linear[n].in_features % 16 == 0]
    if method in ("nf4", "fp8"):
        found = [n for n in found if not _ends(n, "wo")]
    return found


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def of_base(family: Family) -> str:
    """The pattern of a family's denoiser: its own, or all layers of its blocks. So what stands around the blocks
    (embedders, the last norm's modulation, the last projection) keeps its precision."""
    return family.quantised or "|".join(rf"{re.escape(b.path)}\.\d+\..*" for b in family.blocks)


OF_TEXT = r".*\.\d+\..*"
"""The pattern of text encoders: all numbered blocks."""


# -- quantising --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where networks are held: the method, the dtype in which they are loaded and compute, and the device."""

    method: str
    dtype: torch.dtype
    device: torch.device


def put(network: Any, names: Sequence[str], place: Place) -> None:
    """Replace the named linear layers. Each is moved to the device by itself, so that the device never holds more than
    the result and one plain layer, and main memory no more than the loaded network."""
    make = METHODS[place.method].make
    assert make
    for name in names:
        parent, _, leaf = name.rpartition(".")
        holder = network.get_submodule(parent)
        layer = getattr(holder, leaf).to(place.device)
        made = make(layer, place.dtype)
        # frozen weights that ask for a gradient can be neither moved nor offloaded
        setattr(holder, leaf, made.requires_grad_(False).train(layer.training))
    # peft chooses its layers by these
    if place.method in ("nf4", "int8_bnb"):
        setattr(network, "is_loaded_in_4bit" if place.method == "nf4" else "is_loaded_in_8bit", True)


def cast(network: nn.Module, base: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Hold the layers `base` of the network in fp8 while they do not compute, in `dtype` while they do. The adapter, if
    there will be one, is attached already."""
    hooks = importlib.import_module("diffusers.hooks")
    chosen = {id(m) for m in base}
    leaves = (n for n, m in network.named_modules() if not list(m.children()) and id(m) not in chosen)
    others = "|".join(re.escape(n) for n in leaves)
    hooks.apply_layerwise_casting(network, torch.float8_e4m3fn, dtype, skip_modules_pattern=(rf"^({others})$",))


@dataclass(frozen=True)
class Quantised:
    """What was done to one network, for the journal. before, bytes: of all its weights."""

    part: str
    method: str
    layers: int
    before: int
    bytes: int
    reason: str

    def said(self) -> dict[str, Any]:
        """Fields of the `quantised` event."""
        about = METHODS[self.method]
        saved = f"{self.before / 1e6:.1f} MB became {self.bytes / 1e6:.1f} MB"
        text = f"{self.part}: {self.layers} layers in {about.what} ({about.name}), {saved}. {self.reason}"
        return {
            "part": self.part, "method": self.method, "library": about.name, "layers": self.layers,
            "before": self.before, "bytes": self.bytes, "reason": self.reason, "text": text,
        }  # fmt: skip


@dataclass
class Work:
    """The quantising of one network in two halves, with the attaching of an adapter between them.

    pattern, skip: see `layers`. late: see `base`.
    """

    part: str
    network: nn.Module
    place: Place
    pattern: str
    skip: Sequence[str] = ()
    late: bool = False

    def begin(self) -> None:
        """Before the adapter. Raises `UserError` where no layer would be quantised."""
        self.names = layers(self.network, self.pattern, self.place.method, self.skip)
        if not self.names:
            raise UserError(
                f"memory.quantise is {self.place.method}, but no layer of {self.part} can be held so; set it to none."
            )
        self.before = size(self.network)
        self.base = [self.network.get_submodule(n) for n in self.names]
        if not self.late:
            self._put()

    def _put(self) -> None:
        if METHODS[self.place.method].make:
            whole = size(self.network)
            chosen = {id(m) for m in self.base}
            self.base = []  # each plain layer goes when it is replaced
            put(self.network, [n for n, m in self.network.named_modules() if id(m) in chosen], self.place)
            self.bytes = self.before - whole + size(self.network)

    def end(self) -> Quantised:
        """Behind it."""
        if self.late:
            self._put()
        if METHODS[self.place.method].make is None:
            added = size(self.network) - self.before
            cast(self.network, self.base, self.place.dtype)
            self.bytes = size(self.network) - added
        self.base = []
        why = METHODS[self.place.method].why
        reason = f"{why[0].upper()}{why[1:]}."
        return Quantised(self.part, self.place.method, len(self.names), self.before, self.bytes, reason)


@contextmanager
def base(
    family: Family, parts: Parts, place: Place, skip: Sequence[str], say: Say, late: bool = False
) -> Iterator[None]:
    """Quantise the denoiser of `parts` around the attaching of its adapter, and tell `say` what was done.

    skip: endings of layers that keep their precision. late: only behind the attaching, for what needs plain weights: a
    ControlNet that copies them, and a pipeline's own loader of adapters (good for drawing, but peft then takes the
    layers for plain ones).
    """
    if place.method == "none":
        yield
        return
    work = Work(parts.denoiser, parts.network, place, of_base(family), skip, late)
    work.begin()
    yield
    say("quantised", **work.end().said())


def encoders(family: Family, source: Source, names: Sequence[str], place: Place, say: Say) -> Parts:
    """Load components on the device, the text encoders among them quantised: one after the other, so that no two lie
    whole in memory."""
    plain = place.method == "none"
    parts = family.load(source, names if plain else (), place.dtype)
    for name in () if plain else names:
        one = family.load(source, (name,), place.dtype).components
        if name.startswith("text_encoder") and isinstance(network := one.get(name), nn.Module):
            work = Work(name, network, place, OF_TEXT)
            work.begin()
            say("quantised", **work.end().said())
            network.to(place.device)
        parts.components |= one
    for component in parts.components.values():
        if isinstance(component, nn.Module):
            component.to(place.device)
    return parts


# -- memory ------------------------------------------------------------------------------------------------------------


def size(network: nn.Module) -> int:
    """Bytes of all parameters and buffers, as they lie in memory: also what a quantised weight has beside itself."""
    stores: dict[tuple[Any, int], int] = {}
    for module in network.modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        for tensor in own:
            for t in _plain(tensor):
                store = t.untyped_storage()
                stores[(t.device, store.data_ptr() or id(store))] = store.nbytes()
    return sum(stores.values())


def _plain(tensor: Any) -> Iterator[Tensor]:
    """The plain tensors that a parameter is made of."""
    if tensor is None:
        return
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
        return
    yield tensor
    if (state := getattr(tensor, "quant_state", None)) is not None:  # bitsandbytes, 4 bits
        for each in (state, state.state2):
            yield from (t for t in (getattr(each, "absmax", None), getattr(each, "code", None)) if t is not None)
    yield from (t for t in (getattr(tensor, "CB", None), getattr(tensor, "SCB", None)) if t is not None)


def predicted(network: nn.Module, names: Sequence[str], method: str, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of a network in `dtype`, and with these layers quantised. It may be on the meta device."""
    tensors = [*network.parameters(), *network.buffers()]
    whole = sum(t.numel() * (dtype.itemsize if t.is_floating_point() else t.element_size()) for t in tensors)
    if method == "none":
        return whole, whole
    small = float(whole)
    for name in names:
        layer: Any = network.get_submodule(name)
        weight, bias = layer.weight.numel(), 0 if layer.bias is None else layer.bias.numel()
        plain = (weight + (bias if method == "fp8" else 0)) * dtype.itemsize
        small += METHODS[method].each(layer.out_features, layer.in_features, dtype.itemsize) - plain
    return whole, round(small)


# -- what works where --------------------------------------------------------------------------------------------------


def choose(where: Device, small: Callable[[], int]) -> tuple[str, str]:
    """(method, reason) for `auto`. small: gives the bytes that int8 would take, asked only where it matters."""
    reason = unfit("nf4", where)
    free = free_memory(where)
    if where.kind == "cuda" and not reason and free is not None:
        share = f"{small() / 1e9:.1f} GB of the {free / 1e9:.1f} GB that are free on {where.name}"
        if small() > free / 2:
            return "nf4", f"in 8 bits it would take {share}."
        return "int8", f"in 8 bits it takes {share}, and 8 bits are closer to the original than 4."
    return "int8", f"on {where.kind} {METHODS['int8'].why}."


REFUSALS = (ImportError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError, OSError)
"""What the libraries raise where they do not work."""


@lru_cache
def unfit(method: str, where: Device) -> str:
    """Why a method does not work on this device, "" if it does: found by trying it on a small layer."""
    about = METHODS[method]
    if find_spec(about.package.split(".")[0]) is None or find_spec(about.package) is None:
        return f"{about.name} is not installed; `pip install {about.name}`"
    if method == "int4" and (missing := _compiler(where.kind)):
        return f"{about.name} compiles its 4-bit code at first use, and there is no {missing} here"
    if method == "int4":
        return ""  # trying it would take the minute in which it is compiled
    try:
        _try(method, where.torch)
    except REFUSALS as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return f"{about.name} says on {where.kind}: {first}"
    return ""


def _try(method: str, device: torch.device) -> None:
    """Raises whatever the library raises; `ValueError` where its answer is wrong or gives no gradient."""
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(64, 64)).requires_grad_(False).to(device, dtype)
        x = torch.randn(16, 64).to(device, dtype).requires_grad_(True)
    right = plain(x).detach()
    work = Work("layer", plain, Place(method, dtype, device), ".*")
    work.begin()
    work.end()
    out = plain(x)
    out.float().square().mean().backward()
    if x.grad is None or not (out - right).norm() < 0.3 * right.norm():
        raise ValueError("its answer is wrong")


def _compiler(kind: str) -> str:
    """What is missing to compile quanto's code, "" where nothing is."""
    package = importlib.import_module("optimum.quanto").__path__[0]
    folder = {"cuda": "hip" if torch.version.hip else "cuda", "mps": "mps"}.get(kind, "cpp")
    if list((Path(package) / "library" / "extensions" / folder / "build").glob("*.so")):
        return ""
    if kind == "cuda" and importlib.import_module("torch.utils.cpp_extension").CUDA_HOME is None:
        return "CUDA compiler (nvcc)"
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        return "C++ compiler"
    return "" if shutil.which("ninja") or find_spec("ninja") else "ninja (`pip install ninja`)"


def problems(recipe: Recipe, where: Device) -> Iterator[Problem]:
    """What the recipe asks of quantisation that does not work, and what works but does not save."""
    memory, adapter = recipe.memory, recipe.adapter
    for key, method in (("quantise", memory.quantise), ("quantise_text", memory.quantise_text)):
        if method not in ("none", "auto") and (reason := unfit(method, where)):
            way = "int8" if method != "int8" else "none"
            text = f"memory.{key} is {method}, but {reason}; take {way}."
            yield Problem("error", f"memory.{key}", text, {f"memory.{key}": way})
    method = memory.quantise
    if method == "none":
        if memory.quantise_skip:
            text = "memory.quantise_skip does nothing without memory.quantise; remove it."
            yield Problem("error", "memory.quantise_skip", text, {"memory.quantise_skip": []})
        return
    off = {"memory.quantise": "none"}
    if reason := _refused(method, adapter):
        yield Problem("error", "memory.quantise", f"memory.quantise is {method}, but {reason}", off)
    if memory.compile:
        text = f"memory.compile does not work with memory.quantise={method}; turn one of them off."
        yield Problem("error", "memory.compile", text, {"memory.compile": False})
    if method == "fp8" and not memory.checkpointing:
        text = (
            "memory.quantise is fp8 without memory.checkpointing: each layer's weight in the precision of the "
            "computation is then kept for the backward pass, so that training saves nothing; turn checkpointing on."
        )
        yield Problem("warning", "memory.checkpointing", text, {"memory.checkpointing": True})


def _refused(method: str, adapter: Any) -> str:
    """Why this adapter does not go onto a base that is held so, "" if it does."""
    if adapter.kind == "full":
        return "adapter.kind=full trains the base, and rounded weights do not train; take adapter.kind=lora, or none."
    if adapter.kind not in METHODS[method].adapters:
        fitting = [m for m, about in METHODS.items() if adapter.kind in about.adapters]
        way = f"take {', '.join(fitting)}" if fitting else "take none"
        return f"adapter.kind={adapter.kind} does not work on it; {way}, or adapter.kind=lora."
    if adapter.kind == "lycoris" and adapter.algorithm == "full":
        return "algorithm=full adds to the weights themselves, which are rounded; take another algorithm, or none."
    if adapter.kind == "lora" and adapter.dora and method in NO_DORA:
        return f"adapter.dora does not work on it ({NO_DORA[method]}); take int8 or nf4, or turn adapter.dora off."
    return ""


NO_DORA = {
    "fp8": "it measures the weights outside of the layer, where they are not cast back",
    "int8_bnb": "peft reads the scales of the weights away from bitsandbytes",
}
"""Where peft's DoRA fails, and why."""
