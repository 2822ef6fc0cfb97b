"""An adapter file opened safely: safetensors only, whole, of a sensible size, without broken numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError

HEADER = 100_000_000
"""Bytes: the format itself allows no longer header."""
LARGEST = 32_000_000_000
"""Bytes: a full difference of the largest model that is read into memory here; nothing larger is an adapter."""
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
    """What a safetensors file holds, on the CPU."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read(path: Path) -> File:
    """Open an adapter file. Raises `UserError` with the reason for everything that is no whole, sound adapter."""
    size = _size(path)
    _refuse_foreign(path, size)
    try:
        with safe_open(path, "pt") as opened:
            names = list(opened.keys())
            metadata = dict(opened.metadata() or {})
            if STATED not in metadata:
                _refuse_model(path, names)
            tensors = {name: opened.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or was not copied whole ({error}); fetch it again.") from None
    for name, value in tensors.items():
        # the alpha of a LoKr of whole factors means nothing, and some programs write it as infinite
        if value.is_floating_point() and not name.endswith(".alpha") and not torch.isfinite(value).all():
            raise UserError(
                f"{path} holds values that are no numbers (NaN or infinite) in {name}; it comes from a training that "
                "broke down, so take an earlier checkpoint of it."
            )
    return File(path, tensors, metadata)


def header(path: Path) -> dict[str, str]:
    """What the header of an adapter file states. Raises `UserError` as `read` does."""
    _refuse_foreign(path, _size(path))
    try:
        with safe_open(path, "pt") as opened:
            return dict(opened.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or was not copied whole ({error}); fetch it again.") from None


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


def settings(file: File) -> dict[str, object]:
    """What the header, or PEFT's `adapter_config.json` beside the file, states of ranks and alphas; {} for nothing."""
    stated = file.metadata.get(METADATA)
    beside = file.path.with_name("adapter_config.json")
    try:
        if stated is not None:
            return dict(json.loads(stated))
        if file.path.stem == "adapter_model" and beside.is_file():
            return dict(json.loads(beside.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise UserError(
            f"{file.path}: what it states of its rank and alpha cannot be read ({error}); fetch it again."
        ) from None
    return {}


METADATA = "lora_adapter_metadata"
"""The header's key under which diffusers keeps PEFT's settings as JSON."""
