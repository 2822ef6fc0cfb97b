"""Layers with random numbers, of every kind whose change is known here, and what they must add up to."""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.formats.layers import Layer

SHAPES = ((12, 8), (8, 20), (6, 5, 3, 3))


def rand(*shape: int, seed: int) -> Tensor:
    """Random numbers of this shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora(module: str, shape: tuple[int, ...], rank: int, seed: int = 0, alpha: float | None = None) -> Layer:
    """A plain LoRA layer."""
    ones = [1] * (len(shape) - 2)
    down, up = rand(rank, *shape[1:], seed=seed), rand(shape[0], rank, *ones, seed=seed + 1)
    return Layer("transformer", module, "lora", {"down": down, "up": up}, alpha)


def tucker(module: str, shape: tuple[int, ...], rank: int, seed: int = 0) -> Layer:
    """A convolution with a middle."""
    tensors = {
        "down": rand(rank, shape[1], 1, 1, seed=seed),
        "up": rand(shape[0], rank, 1, 1, seed=seed + 1),
        "mid": rand(rank, rank, *shape[2:], seed=seed + 2),
    }
    return Layer("unet", module, "lora", tensors, rank / 2)


def loha(module: str, shape: tuple[int, int], rank: int, seed: int = 0) -> Layer:
    """A LoHa layer."""
    names = ("w1_a", "w1_b", "w2_a", "w2_b")
    sizes = ((shape[0], rank), (rank, shape[1])) * 2
    tensors = {n: rand(*s, seed=seed + i) for i, (n, s) in enumerate(zip(names, sizes, strict=True))}
    return Layer("transformer", module, "loha", tensors, rank / 2)


def lokr(module: str, shape: tuple[int, ...], rank: int = 0, seed: int = 0) -> Layer:
    """A LoKr layer: w1 [2, 2] or of rank 1, w2 whole, or of low rank with `rank`."""
    out, inner, more = shape[0] // 2, shape[1] // 2, shape[2:]
    tensors = {"w1": rand(2, 2, seed=seed)}
    if rank:
        tensors |= {"w2_a": rand(out, rank, seed=seed + 1), "w2_b": rand(rank, inner, *more, seed=seed + 2)}
    else:
        tensors |= {"w2": rand(out, inner, *more, seed=seed + 3)}
    return Layer("transformer", module, "lokr", tensors, 3.0 if rank else None)


def dora(module: str, shape: tuple[int, ...], rank: int, seed: int = 0) -> Layer:
    """A LoRA with a magnitude per output."""
    layer = lora(module, shape, rank, seed)
    return Layer(
        "transformer", module, "lora", {**layer.tensors, "magnitude": rand(shape[0], seed=seed + 5).abs() + 0.5}
    )


def on_base(module: str, size: int) -> list[Layer]:
    """A layer of each kind whose change depends on a square base weight, beside DoRA: OFT, GLoRA, IA3."""
    skew = rand(size // 4, 4, 4, seed=1) * 0.1
    pairs = ("a1", (size, 2)), ("a2", (2, size)), ("b1", (size, 2)), ("b2", (2, size))
    kinds: dict[str, dict[str, Tensor]] = {
        "oft": {"blocks": skew},
        "glora": {name: rand(*shape, seed=i) * 0.1 for i, (name, shape) in enumerate(pairs)},
        "ia3": {"weight": rand(size, seed=9) * 0.1, "on_input": torch.tensor(1)},
    }
    return [Layer("transformer", module, kind, tensors) for kind, tensors in kinds.items()]  # pyrefly: ignore


def close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> None:
    """Equal but for rounding, measured against the size of what is compared."""
    scale = max(b.abs().max().item(), 1e-6)
    assert a.shape == b.shape
    assert (a.double() - b.double()).abs().max().item() <= tolerance * scale
