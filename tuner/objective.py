"""What the denoiser learns: noise a clean latent, name the target, score the answer.

A family names its objective; nothing else in the package knows epsilon from velocity.
Time runs from 0 (data) to 1 (noise) for every objective.
"""

from __future__ import annotations

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

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """See `Objective.noised`; t is moved to the grid of the schedule."""
        steps = len(self.alphas_cumprod)
        index = (t * steps).round().long().clamp(0, steps - 1)
        a = self.alphas_cumprod.to(latents.device)[index]
        signal, sigma = expand(a.sqrt(), latents), expand((1 - a).sqrt(), latents)
        x = signal * latents + sigma * noise
        target = noise if self.predicts == "epsilon" else signal * noise - sigma * latents
        return Noised(x=x, t=index / steps, noise=noise, target=target, weight=self._weight(a))

    def _weight(self, a: Tensor) -> Tensor | None:
        if self.snr_gamma is None:
            return None
        snr = a / (1 - a)
        least = snr.clamp(max=self.snr_gamma)
        return least / (snr if self.predicts == "epsilon" else snr + 1)

    def clean(self, prediction: Tensor, noised: Noised) -> Tensor:
        """See `Objective.clean`."""
        a = self.alphas_cumprod.to(noised.x.device)[(noised.t * len(self.alphas_cumprod)).round().long()]
        signal, sigma = expand(a.sqrt(), noised.x), expand((1 - a).sqrt(), noised.x)
        if self.predicts == "epsilon":
            return (noised.x - sigma * prediction) / signal
        return signal * noised.x - sigma * prediction


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
