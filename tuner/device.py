"""Which device computes and in which number format, each with the reason that is shown to the user."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass

import psutil
import torch

from .errors import UserError
from .recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """kind: cuda (NVIDIA and ROCm), mps or cpu. reason: one sentence."""

    kind: str
    name: str
    reason: str

    @property
    def torch(self) -> torch.device:
        """The device for torch."""
        return torch.device(self.kind)


def pick() -> Device:
    """The accelerator torch sees, else the CPU. TUNER_DEVICE=cpu (or cuda, mps) overrides."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    asked = os.environ.get("TUNER_DEVICE")
    if asked and asked != "cpu" and (found is None or found.type != asked):
        raise UserError(
            f"TUNER_DEVICE is {asked!r}, but torch finds no such device here; unset it or install its driver."
        )
    if asked == "cpu" or found is None:
        count = torch.get_num_threads()
        cores = f"CPU, {count} thread{'s' if count > 1 else ''}"
        return Device(
            "cpu", cores, "TUNER_DEVICE asked for it." if asked else "torch found no accelerator on this machine."
        )
    name = torch.cuda.get_device_name() if found.type == "cuda" else found.type.upper()
    return Device(found.type, name, "it is the accelerator that torch found.")


def free_memory(device: Device) -> int | None:
    """Bytes that are free on the device, None where torch does not say."""
    return torch.cuda.mem_get_info()[0] if device.kind == "cuda" else None


def memory(device: Device) -> dict[str, int]:
    """Bytes in use now ("used"), at most so far ("peak") and in all ("of"): of the accelerator what torch took of it,
    which is what runs out; else of this process. "peak" is missing where nobody keeps count."""
    if device.kind == "cuda":
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return {"used": torch.cuda.memory_reserved(), "peak": torch.cuda.max_memory_reserved(), "of": total}
    if device.kind == "mps":
        return {"used": torch.mps.driver_allocated_memory(), "of": torch.mps.recommended_max_memory()}
    said = {"used": psutil.Process().memory_info().rss, "of": psutil.virtual_memory().total}
    return {**said, "peak": max(_peak(), said["used"])}


def _peak() -> int:
    """The most that this process ever held, 0 where the system does not say."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    resource = importlib.import_module("resource")  # not on Windows
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def storage(recipe: Recipe, device: Device) -> torch.dtype:
    """The dtype in which the base model is held.

    Weights that train are float32, and so is everything on a CPU, where memory is not what runs out: a base that
    is stored in float32 gives the same picture in every program. On accelerators a frozen base is held in the
    dtype of the computation.
    """
    if recipe.adapter.kind == "full" or device.kind == "cpu":
        return torch.float32
    return DTYPES[recipe.train.precision]


def check_precision(recipe: Recipe, device: Device) -> None:
    """Raise `UserError` for a number format that this device cannot train in."""
    precision = recipe.train.precision
    if precision == "fp16" and device.kind != "cuda":
        raise UserError(
            f"train.precision is fp16, which trains on CUDA and ROCm only and this is {device.kind}; use bf16 or fp32."
        )
    if precision == "bf16" and device.kind == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError(f"train.precision is bf16, which {device.name} does not have; use fp16 or fp32.")
