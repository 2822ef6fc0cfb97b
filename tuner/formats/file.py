"""An adapter file opened safely: safetensors only, whole, of a sensible size, without broken numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError

HEADER = 100_000_000
"""Bytes: the format itself allows no longer header."""
LARGEST = 32_000_000_000
"""Bytes: a full difference of the largest model that is read into memory here; nothing larger is an adapter."""
NARROW = (torch.float8_e4m3fn, torch.float8_e5m2)
"""Numbers of one byte, with which little can be reckoned: float16 holds each of them exactly."""
MOST = 1e8
"""No value of a sound adapter is as large, and products of four that are larger would overflow."""
PICKLES = {b"PK\x03\x04": "a PyTorch file", b"\x80": "a pickle"}
WHOLE = (
    "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "double_blocks.0.img_attn.qkv.weight",
    "vae.encoder.",
)  # fmt: skip
MARKS = re.compile(
    r"[._]lora_|[._]lora\.|\.(?:hada_|lokr_|oft_|ia3_l|dora_scale|set_weight|reshape_weight|on_input|miss_block|hra_u)|"
    r"\.[ab][12]\.weight$|\.(?:diff|diff_b|w_norm|b_norm|alpha)$"
)
"""What some key of every adapter contains."""


STATED = "tuner_lycoris"
"""The key of the header of our LyCORIS checkpoints under which the settings of each module stand."""


@dataclass(frozen=True)
class File:
    """What a safetensors file holds, on the CPU. narrow: what was widened to float16 → how it is stored."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    narrow: dict[str, torch.dtype] = field(default_factory=dict)


def read(path: Path) -> File:
    """Open an adapter file. Raises `UserError` with the reason for everything that is no whole, sound adapter."""
    with _opened(path) as opened:
        names = list(opened.keys())
        metadata = dict(opened.metadata() or {})
        _refuse_names(path, names)
        if STATED not in metadata:
            _refuse_model(path, names)
        tensors = {name: opened.get_tensor(name) for name in names}
    narrow = {name: value.dtype for name, value in tensors.items() if value.dtype in NARROW}
    tensors |= {name: tensors[name].half() for name in narrow}
    for name, value in tensors.items():
        if value.is_floating_point() and value.itemsize == 1:
            raise UserError(f"{path} holds numbers of the kind {value.dtype}, which no adapter has; fetch it again.")
        # the alpha of a LoKr of whole factors means nothing, and some programs write it as infinite
        if not name.endswith(".alpha") and not _sensible(value):
            raise UserError(
                f"{path} holds values that are no numbers (NaN or infinite) or beyond all sense in {name}; it comes "
                "from a training that broke down, so take an earlier checkpoint of it."
            )
    return File(path, tensors, metadata, narrow)


def _sensible(value: Tensor) -> bool:
    return not value.is_floating_point() or not value.numel() or bool(value.abs().amax() < MOST)


def header(path: Path) -> dict[str, str]:
    """What the header of an adapter file states. Raises `UserError` as `read` does."""
    with _opened(path) as opened:
        return dict(opened.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The library's view of a file whose first bytes are in order. Raises `UserError`, whatever the library raises."""
    try:
        _refuse_foreign(path, _size(path))
        with safe_open(path, "pt") as opened:
            yield opened
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or was not copied whole ({_line(error)}); fetch it again.") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read ({_line(error)}); fetch it again.") from None


def _line(error: Exception) -> str:
    """The first line of a message, without what a terminal would obey."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return first if first.isprintable() else ascii(first)


def _size(path: Path) -> int:
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the .safetensors file in it.")
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is no .safetensors file; other formats can hold programs and are not opened.")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty; fetch it again.")
    if size > LARGEST:
        raise UserError(
            f"{path} has {size / 1e9:.0f} GB, and adapters of more than {LARGEST / 1e9:.0f} GB are not opened: it is a "
            "whole model; name it as `source` instead."
        )
    return size


def _refuse_foreign(path: Path, size: int) -> None:
    """Look at the first bytes: what a safetensors file begins with, before any library reads it."""
    with path.open("rb") as opened:
        start = opened.read(9)
    for mark, kind in PICKLES.items():
        if start.startswith(mark) and start[8:] != b"{":
            raise UserError(
                f"{path} is {kind} under a .safetensors name; such files can hold programs and are not opened."
            )
    if len(start) < 9 or start[8:] != b"{":
        raise UserError(f"{path} is no safetensors file by its content; choose an adapter of this family.")
    header = int.from_bytes(start[:8], "little")
    if header > HEADER:
        raise UserError(f"{path} states a header of {header / 1e6:.0f} MB, which no adapter has; fetch it again.")
    if header + 8 > size:
        raise UserError(f"{path} is damaged or was not copied whole (it ends inside its header); fetch it again.")


def _refuse_model(path: Path, names: Iterable[str]) -> None:
    names = list(names)
    if not names:
        raise UserError(f"{path} holds no tensors; choose another file.")
    if any(MARKS.search(name) for name in names):
        return
    whole = [n for n in names if n.startswith(WHOLE)] or [n for n in names if n.endswith(".weight")]
    if len(whole) * 4 >= len(names):
        raise UserError(
            f"{path} is a whole model, not an adapter (it has weights such as {whole[0]}); name its folder as "
            "`source`, or take the difference to its base as an adapter with `tuner lora extract`."
        )
    raise UserError(f"{path} holds no adapter: none of its keys is one ({names[0]} ...); choose another file.")


def _refuse_names(path: Path, names: Iterable[str]) -> None:
    """Names that hide something from whoever reads a message, and numbers that mean nothing without others."""
    for name in names:
        if not name.isprintable() or len(name) > LONGEST:
            raise UserError(f"{path} has a key with strange characters ({ascii(name)[:80]}); take another file.")
        if SCALED.search(name):
            raise UserError(
                f"{path} keeps its numbers in few bits and their scales beside them ({name}), which is not read; fetch "
                "it in bf16 or fp16."
            )


LONGEST = 500
"""Characters: no network has such long names."""
SCALED = re.compile(
    r"(?:[._](?:scale_weight|weight_scale|scale_inv|scaled_fp8|comfy_quant)|\.weight_scale_2|^scaled_fp8)$"
)


def settings(file: File) -> dict[str, object]:
    """What the header, or PEFT's `adapter_config.json` beside the file, states of ranks and alphas; {} for nothing."""
    stated = file.metadata.get(METADATA)
    beside = file.path.with_name("adapter_config.json")
    try:
        if stated is None and file.path.stem == "adapter_model" and beside.is_file():
            if beside.stat().st_size > MOST_SETTINGS:
                raise ValueError("it is too large")
            stated = beside.read_text(encoding="utf-8")
        found = {} if stated is None else json.loads(stated)
        if not isinstance(found, dict):
            raise ValueError("it is no table")
        for key, value in found.items():
            _sensible_setting(key.rpartition(".")[2], value)
    except (ValueError, TypeError, OSError, RecursionError, re.error) as error:
        raise UserError(
            f"{file.path}: what it states of its rank and alpha cannot be read ({_line(error)}); fetch it again."
        ) from None
    return found


MOST_SETTINGS = 10_000_000
"""Bytes of PEFT's settings."""
REPEATS = re.compile(r"\)[*+{]")


def _sensible_setting(key: str, value: Any) -> None:
    """Raise `ValueError` for a setting that is read, and is none."""
    if key in BOUNDS and value is not None:
        low, high = BOUNDS[key]
        if not (isinstance(value, int | float) and low <= value <= high):
            raise ValueError(f"{key} is no number from {low:g} to {high:g}")
    elif key in ("rank_pattern", "alpha_pattern"):
        for pattern, number in (value or {}).items() if isinstance(value, dict | None) else ((None, None),):
            if pattern is None or not (isinstance(number, int | float) and abs(number) < MOST):
                raise ValueError(f"{key} is no table of numbers")
            re.compile(pattern)
            # such a pattern could keep a computer busy for ever
            if REPEATS.search(pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
                raise ValueError(f"the {key} {pattern[:60]!r} repeats too much")
    elif key == "feedforward_modules" and not (value is None or isinstance(value, list)):
        raise ValueError(f"{key} is no list")


BOUNDS = {
    "r": (-MOST, MOST), "lora_alpha": (-MOST, MOST), "alpha": (-MOST, MOST),
    "eps": (0, 1), "num_cayley_neumann_terms": (1, 100),
}  # fmt: skip
"""Between what a setting must lie that is a number."""

METADATA = "lora_adapter_metadata"
"""The header's key under which diffusers keeps PEFT's settings as JSON."""
