"""What the denoiser learns: noise a clean latent, name the target, score the answer.

A family names its objective; nothing else in the package knows epsilon from velocity.
Time runs from 0 (data) to 1 (noise) for every objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import Noised, expand, per_sample


class Objective(Protocol):
    """How x, t and the target hang together."""

    flow: bool

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """Noise `latents` [B, ...] at `t` [B] in [0, 1] and name the target."""
        ...

    def clean(self, prediction: Tensor, noised: Noised) -> Tensor:
        """The clean latent that this answer implies."""
        ...


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2022): x_t = (1 - t) x0 + t n, target n - x0."""

    flow = True

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """See `Objective.noised`."""
        tt = expand(t, latents)
        return Noised(x=(1 - tt) * latents + tt * noise, t=t, noise=noise, target=noise - latents)

    def clean(self, prediction: Tensor, noised: Noised) -> Tensor:
        """See `Objective.clean`."""
        return noised.x - expand(noised.t, noised.x) * prediction


@dataclass(frozen=True, eq=False)
class Diffusion:
    """DDPM (Ho et al. 2020) on a discrete schedule; the target is the noise or the velocity (Salimans & Ho 2022).

    alphas_cumprod: [T] of the scheduler that ships with the model. t in [0, 1] stands for step round(t * T).
    snr_gamma: min-SNR weight min(SNR, gamma) / SNR, divided by SNR + 1 instead for velocity (Hang et al. 2023).
    """

    alphas_cumprod: Tensor
    predicts: Literal["epsilon", "velocity"] = "epsilon"
    snr_gamma: float | None = None
    flow = False

    def _index(self, t: Tensor) -> Tensor:
        steps = len(self.alphas_cumprod)
        return (t * steps).round().long().clamp(0, steps - 1)

    def alpha(self, t: Tensor) -> Tensor:
        """The share [B] that the data has in the variance of x at t [B]."""
        return self.alphas_cumprod.to(t.device)[self._index(t)]

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """See `Objective.noised`; t is moved to the grid of the schedule."""
        t = t.to(latents.device)
        a = self.alpha(t)
        signal, sigma = expand(a.sqrt(), latents), expand((1 - a).sqrt(), latents)
        target = noise if self.predicts == "epsilon" else signal * noise - sigma * latents
        on_grid = self._index(t) / len(self.alphas_cumprod)
        weight = min_snr(a, self.snr_gamma, self.predicts)
        return Noised(signal * latents + sigma * noise, on_grid, noise, target, weight)

    def clean(self, prediction: Tensor, noised: Noised) -> Tensor:
        """See `Objective.clean`."""
        a = self.alpha(noised.t.to(noised.x.device))
        signal, sigma = expand(a.sqrt(), noised.x), expand((1 - a).sqrt(), noised.x)
        if self.predicts == "epsilon":
            return (noised.x - sigma * prediction) / signal
        return signal * noised.x - sigma * prediction


@dataclass(frozen=True)
class Cosine:
    """DDPM in continuous time on the cosine schedule (Nichol & Dhariwal 2021), as Wuerstchen's scheduler has it.

    The target is the noise. scaler: other than 1 it bends t as the scheduler does. s: keeps a little noise at t = 0.
    snr_gamma: as in `Diffusion`.
    """

    scaler: float = 1.0
    s: float = 0.008
    snr_gamma: float | None = None
    flow = False

    def alpha(self, t: Tensor) -> Tensor:
        """The share [B] that the data has in the variance of x at t [B]; never quite 0 or 1."""
        if self.scaler > 1:
            t = 1 - (1 - t) ** self.scaler
        elif self.scaler < 1:
            t = t**self.scaler
        start = math.cos(self.s / (1 + self.s) * math.pi / 2) ** 2
        return (torch.cos((t + self.s) / (1 + self.s) * math.pi / 2).square() / start).clamp(1e-4, 1 - 1e-4)

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """See `Objective.noised`."""
        a = self.alpha(t.to(latents.device))
        x = expand(a.sqrt(), latents) * latents + expand((1 - a).sqrt(), latents) * noise
        return Noised(x=x, t=t, noise=noise, target=noise, weight=min_snr(a, self.snr_gamma))

    def clean(self, prediction: Tensor, noised: Noised) -> Tensor:
        """See `Objective.clean`."""
        a = self.alpha(noised.t.to(noised.x.device))
        return (noised.x - expand((1 - a).sqrt(), noised.x) * prediction) / expand(a.sqrt(), noised.x)


def min_snr(alpha: Tensor, gamma: float | None, predicts: str = "epsilon") -> Tensor | None:
    """The weight min(SNR, gamma) / SNR per item (SNR + 1 below the line for velocity), None without gamma."""
    if gamma is None:
        return None
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / (snr if predicts == "epsilon" else snr + 1)


def error(prediction: Tensor, target: Tensor, kind: str = "l2", c: float = 0.1) -> Tensor:
    """Elementwise error in float32: squared, Huber, or smooth L1 (torch's definitions, `c` = delta or beta)."""
    prediction, target = prediction.float(), target.float()
    if kind == "huber":
        return F.huber_loss(prediction, target, reduction="none", delta=c)
    if kind == "smooth_l1":
        return F.smooth_l1_loss(prediction, target, reduction="none", beta=c)
    return (prediction - target).square()


def reduce(elementwise: Tensor, noised: Noised) -> Tensor:
    """Per-sample mean, per-sample weight, batch mean: in that order, everywhere."""
    loss = per_sample(elementwise)
    return (loss if noised.weight is None else loss * noised.weight).mean()


def alphas_cumprod(config: dict) -> Tensor:
    """The cumulated alphas [T] of a diffusers scheduler configuration, as its own DDPM class computes them."""
    from diffusers import DDPMScheduler  # noqa: PLC0415  (flow families never load it)

    return torch.as_tensor(DDPMScheduler.from_config(config).alphas_cumprod)
