"""Which noise levels are trained: distributions of t in [0, 1], stratified draws, and the shift for resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .recipe import Beta, LogitNormal, Mode, TimestepSpec, Uniform


def quantile(spec: TimestepSpec, u: Tensor) -> Tensor:
    """The value of t below which a share `u` [N] in (0, 1) of the draws lies (inverse distribution function)."""
    if isinstance(spec, LogitNormal):
        return torch.sigmoid(spec.mean + spec.std * math.sqrt(2) * torch.erfinv(2 * u - 1))
    if isinstance(spec, Mode):
        # Esser et al. 2024, eq. 20; their u runs towards data, so that t falls with it
        v = 1 - u
        return 1 - v - spec.scale * (torch.cos(math.pi / 2 * v).square() - 1 + v)
    if isinstance(spec, Beta):
        return _beta_quantile(spec, u)
    assert isinstance(spec, Uniform)
    return spec.low + (spec.high - spec.low) * u


def _beta_quantile(spec: Beta, u: Tensor) -> Tensor:
    """Invert the beta distribution, integrated over x = logit(t): there its density t^alpha (1 - t)^beta is smooth."""
    reach = 40 / min(spec.alpha, spec.beta, 1.0)
    x = torch.linspace(-reach, reach, 16385, dtype=torch.float64)
    log = spec.alpha * F.logsigmoid(x) + spec.beta * F.logsigmoid(-x)
    cdf = torch.cumulative_trapezoid((log - log.max()).exp(), x)
    cdf = torch.cat([cdf.new_zeros(1), cdf / cdf[-1]])
    place = torch.searchsorted(cdf, u.double()).clamp(1, len(cdf) - 1)
    low, high = cdf[place - 1], cdf[place]
    share = (u.double() - low) / (high - low).clamp_min(1e-300)
    return torch.sigmoid(x[place - 1] + share * (x[place] - x[place - 1])).to(u.dtype)


def share(spec: TimestepSpec, t: float) -> float:
    """The share of draws below t in [0, 1]: the distribution function, found by halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        inside = min(max(middle, 1e-12), 1 - 1e-12)
        if quantile(spec, torch.tensor([inside], dtype=torch.float64)).item() < t:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def draw(
    spec: TimestepSpec,
    generators: Sequence[torch.Generator],
    places: Sequence[int],
    of: int,
    within: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One t per generator: [N] in (0, 1).

    places: each item's place among the `of` items of the optimiser step; with `stratified`, item i draws from
    the i-th of `of` equal shares of the distribution. within: the distribution is cut to this range, renormalised.
    """
    u = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    if spec.stratified:
        u = (torch.tensor(places, dtype=torch.float64) + u) / of
    if within != (0.0, 1.0):
        low, high = (share(spec, edge) for edge in within)
        if high - low < 1e-9:
            raise ValueError(f"no t of the distribution lies within {within}")
        u = low + (high - low) * u
    return quantile(spec, u.clamp(1e-6, 1 - 1e-6)).float()


def shifted(t: Tensor, shift: float) -> Tensor:
    """Move t towards noise: s t / (1 + (s - 1) t); s = 1 changes nothing (Esser et al. 2024, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def unshifted(reach: tuple[float, float], shift: float) -> tuple[float, float]:
    """The range of t before `shifted` that comes to lie in `reach`."""
    low, high = (t / (shift - (shift - 1) * t) for t in reach)
    return low, high
