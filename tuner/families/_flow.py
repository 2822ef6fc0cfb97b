"""What families trained by flow matching have in common: objective, static and dynamic shift, the bare network."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ..errors import UserError
from ..objective import Flow


def objective(family: str, snr_gamma: float | None) -> Flow:
    """Rectified flow. Raises `UserError` for a setting that only noise prediction has."""
    if snr_gamma is not None:
        raise UserError(f"train.snr_gamma has no meaning for {family}; remove it.")
    return Flow()


def shift(scheduler: dict[str, Any], tokens: int) -> float:
    """How far a scheduler of diffusers moves t for a picture of so many tokens.

    Static: `flow_shift` of the solvers (DPM-Solver, UniPC), `shift` of Euler. Dynamic: exp(mu) with mu linear in the
    tokens, which stops at max_shift, since the line was drawn for up to max_image_seq_len tokens.
    """
    if not scheduler.get("use_dynamic_shifting", False):
        return float(scheduler.get("flow_shift" if scheduler.get("use_flow_sigmas") else "shift", 1.0))
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    few, many = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    mu = min(low + (high - low) * (tokens - few) / (many - few), high)
    return math.exp(mu) if scheduler.get("time_shift_type", "exponential") == "exponential" else mu


def bare(denoiser: nn.Module) -> Any:
    """The network itself: a distributed wrapper hides its configuration."""
    return getattr(denoiser, "module", denoiser)
