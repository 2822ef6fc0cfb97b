"""Weight changes as ranked directions: exact, and through small factors wherever a layer has them.

All sums are in float64, so that what is called exact is exact to the last digits of float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..formats.fitting import weight_shape
from ..formats.layers import Layer

DECOMPOSED = ("magnitude", "base_magnitude")
"""Tensors of DoRA, with which a change depends on the base's weight and has no small factors."""


@dataclass(frozen=True)
class Ranked:
    """A matrix as up [out, k] @ down [k, in], the singular value decomposition but for where the values are kept.

    values [k]: the singular values, falling; the columns of `up` and the rows of `down` are orthogonal. float64.
    """

    up: Tensor
    down: Tensor
    values: Tensor

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """(up, down) of the best approximation of this rank, the values shared evenly; float32."""
        up, down, values = self.up[:, :rank], self.down[:rank], self.values[:rank]
        root, live = values.sqrt(), values > 0
        left = torch.where(live, root / up.norm(dim=0).clamp_min(1e-300), 0.0)
        right = torch.where(live, root / down.norm(dim=1).clamp_min(1e-300), 1.0)
        return (up * left).float(), (down * right[:, None]).float()


@dataclass(frozen=True)
class Cut:
    """How far a spectrum is cut: to a rank, or to the fewest directions that hold a share of the energy (the sum of the
    squared singular values). most: highest rank with `energy`."""

    rank: int | None = None
    energy: float | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise UserError("Give either --rank or --energy, one of the two.")
        for name, value in (("rank", self.rank), ("max-rank", self.most)):
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1.")
        if self.most is not None and self.energy is None:
            raise UserError("--max-rank belongs to --energy; with --rank the rank is already fixed.")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise UserError(f"--energy is {self.energy:g}; it is a share and must be above 0 and at most 1.")

    def of(self, values: Tensor, energy: float | None = None) -> int:
        """The rank for these singular values: at least 1, at most as many as there are.

        energy: of the whole matrix, where `values` are not all of its singular values.
        """
        if self.rank is not None:
            return min(self.rank, len(values))
        assert self.energy is not None
        sums = values.square().cumsum(0)
        # against the last sum itself: a share of 1 is then reached, whatever the rounding
        enough = int((sums < self.energy * (sums[-1] if energy is None else energy)).sum()) + 1
        return min(enough, len(values), self.most or enough)


def factors(layer: Layer) -> tuple[Tensor, Tensor] | None:
    """(up [out, k], down [k, in ...flattened]) whose product is the layer's change, in float64; None where it has no
    small factors. A LoHa of rank r has k = r² by the face-splitting product (Slyusar 1999): the elementwise product of
    two products is the product of their row-wise Kronecker factors."""
    t = {k: v.detach().double().cpu() for k, v in layer.tensors.items()}
    if any(name in t for name in DECOMPOSED):
        return None
    if layer.kind == "lora":
        down = t["down"]
        if "mid" in t:  # Tucker: the middle belongs to the inputs
            down = torch.einsum("o i ..., i p -> o p ...", t["mid"], down.flatten(1))
        return layer.scale * t["up"].flatten(1), down.flatten(1)
    if layer.kind == "loha" and "t1" not in t:
        up, down = _rows(t["w1_a"], t["w2_a"]), _rows(t["w1_b"].T, t["w2_b"].T).T
        return (layer.scale * up, down) if up.shape[1] < min(up.shape[0], down.shape[1]) else None
    return None


def _rows(a: Tensor, b: Tensor) -> Tensor:
    """Kronecker product row by row: [n, r], [n, s] → [n, r * s]."""
    return (a[:, :, None] * b[:, None, :]).flatten(1)


def ranked(layer: Layer, weight: Tensor | None = None) -> Ranked:
    """The layer's change of its weight, by its factors where it has some. weight: as in `Layer.delta`."""
    if (found := factors(layer)) is not None:
        return of_factors(*found)
    if layer.kind == "lokr" and not any(name in layer.tensors for name in DECOMPOSED):
        return _kronecker(layer)
    return of_matrix(layer.delta(weight).flatten(1))


def singular(layer: Layer, weight: Tensor | None = None) -> Tensor:
    """The singular values of the layer's change, falling; as `ranked`, without the directions and their memory.

    Raises `ValueError` where only the whole matrix would tell, and it is out of all proportion to the file.
    """
    if layer.kind == "lokr" and not any(name in layer.tensors for name in DECOMPOSED):
        first, second = ({k: v for k, v in layer.tensors.items() if k[1] == n} for n in "12")
        values = torch.kron(_of_factor(first), _of_factor(second)) * abs(layer.scale)
        return values.sort(descending=True).values
    numbers, own = math.prod(weight_shape(layer)), sum(t.numel() for t in layer.tensors.values())
    # a few bytes in a file could otherwise ask for all memory there is
    if numbers > MANY and numbers > 64 * own and not (layer.kind == "lora" and "mid" not in layer.tensors):
        raise ValueError("its change is too large to be measured")
    return ranked(layer, weight).values


MANY = 2**26
"""Numbers of a matrix that is decomposed whole without asking."""


def _of_factor(t: dict[str, Tensor]) -> Tensor:
    """Singular values of one factor of a LoKr: w, or w_a and w_b, or those two through t."""
    own = {k[0] + k[2:]: v.double() for k, v in t.items()}  # w, w_a, w_b, t
    if "w" in own:
        return of_matrix(own["w"].flatten(1)).values
    if "t" in own:
        return of_matrix(
            torch.einsum("i j ..., j r, i p -> p r ...", own["t"], own["w_b"], own["w_a"]).flatten(1)
        ).values
    return of_factors(own["w_a"], own["w_b"].flatten(1)).values


def of_factors(up: Tensor, down: Tensor) -> Ranked:
    """up [out, k] @ down [k, in] without the [out, in] matrix: QR of both, then the k x k core."""
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return Ranked(q_up @ left, (values[:, None] * right) @ q_down.T, values)


def of_matrix(matrix: Tensor) -> Ranked:
    """A dense [out, in] matrix through the eigenvectors of its smaller Gram matrix: about ten times as fast as an SVD.

    Exact as it stands: the matrix is only ever projected on orthonormal directions, never divided by small values.
    """
    m = _wide(matrix)
    if m.shape[0] > m.shape[1]:
        turned = of_matrix(m.T)
        return Ranked(turned.down.T.contiguous(), turned.up.T.contiguous(), turned.values)
    left = torch.linalg.eigh(m @ m.T).eigenvectors.flip(1)
    return _projected(left, m)


def _wide(matrix: Tensor) -> Tensor:
    """In float64, on the graphics card where there is one with such numbers."""
    return matrix.detach().to("cuda" if torch.cuda.is_available() else "cpu", torch.float64)


def _projected(left: Tensor, m: Tensor) -> Ranked:
    """A matrix on orthonormal directions that are those of its singular vectors."""
    down = left.T @ m
    values = down.norm(dim=1)
    order = values.argsort(descending=True, stable=True)
    return Ranked(left[:, order].cpu(), down[order].cpu(), values[order].cpu())


SPARE, ROUNDS = 16, 4
"""Directions sought beside those that are wanted, and power iterations."""


def best(matrix: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """(up, down) of a dense [out, in] matrix under `cut`, float32: the best approximation of its rank.

    Where the rank is known to be small against the matrix, only that many directions are sought, from a random start by
    power iterations (Halko, Martinsson and Tropp 2011, algorithm 4.4): many times as fast. With a spectrum that does
    not fall at all, such as that of pure noise, the error is above the best by less than a hundredth.
    """
    most = cut.rank or cut.most
    if most is None or 4 * (most + SPARE) > min(matrix.shape):
        found = of_matrix(matrix)
        return found.cut(cut.of(found.values))
    m = _wide(matrix)
    with torch.random.fork_rng():  # the same file from the same models
        torch.manual_seed(0)
        left = torch.svd_lowrank(m, q=most + SPARE, niter=ROUNDS)[0]
    found = _projected(left, m)
    return found.cut(min(most, cut.of(found.values, m.square().sum().item())))


def _kronecker(layer: Layer) -> Ranked:
    """A LoKr: the decomposition of a Kronecker product is the Kronecker product of the decompositions."""
    t = layer.tensors
    whole = {k: v for k, v in t.items() if not k.startswith("w1")}
    one = t["w1"] if "w1" in t else t["w1_a"].double() @ t["w1_b"].double()
    unit = Layer(layer.part, layer.module, "lokr", {"w1": torch.ones(1, 1), **whole})
    first, second = of_matrix(one), of_matrix(unit.delta().flatten(1))
    values = layer.scale * torch.kron(first.values, second.values)
    order = values.abs().argsort(descending=True, stable=True)
    up, down = torch.kron(first.up, second.up), torch.kron(first.down, second.down)
    return Ranked(layer.scale * up[:, order], down[order], values.abs()[order])


def norm(layer: Layer, weight: Tensor | None = None) -> float:
    """Frobenius norm of the layer's change of its weight."""
    if (found := factors(layer)) is not None:
        return product_norm(*found)
    return layer.delta(weight).double().norm().item()


def product_norm(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of up @ down without the product, and without the cancellation of a Gram matrix."""
    return (torch.linalg.qr(up.double()).R @ torch.linalg.qr(down.double().T).R.T).norm().item()


def distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Frobenius norm of the difference of two products given by their factors (up, down)."""
    up = torch.cat([a[0].double(), -b[0].double()], 1)
    return product_norm(up, torch.cat([a[1].double(), b[1].double()], 0))


def plain(part: str, module: str, pair: tuple[Tensor, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Layer:
    """A plain LoRA layer of factors (up [out, r], down [r, in ...flattened]) for a weight of `shape`; its scale is 1.

    A convolution's up is [out, r, 1, 1], as every program expects it.
    """
    up, down = pair
    rank = up.shape[1]
    if len(shape) > 2:
        up, down = up.reshape(*up.shape, *[1] * (len(shape) - 2)), down.reshape(rank, *shape[1:])
    return Layer(part, module, "lora", {"down": down.to(dtype), "up": up.to(dtype)}, float(rank))


def shape(layer: Layer) -> tuple[int, ...]:
    """The shape of the change of a layer with factors, without computing it."""
    t = layer.tensors
    if layer.kind == "lora" and "mid" in t:
        return (t["up"].shape[0], t["down"].shape[1], *t["mid"].shape[2:])
    if layer.kind == "lora":
        return (t["up"].shape[0], *t["down"].shape[1:])
    return tuple(layer.delta().shape)


def dtype_of(layers: Iterable[Layer]) -> torch.dtype:
    """The widest number format among these layers' tensors; bf16 beside fp16 makes fp32, which holds both."""
    found = {v.dtype for layer in layers for v in layer.tensors.values() if v.is_floating_point()}
    return found.pop() if len(found) == 1 and found <= {torch.float16, torch.bfloat16} else torch.float32


def total(values: Iterable[float]) -> float:
    """The norm of the whole from the norms of its parts."""
    return math.sqrt(sum(v * v for v in values))
